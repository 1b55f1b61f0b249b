//! How two pictures of one size lie apart, sample by sample.

use rayon::prelude::*;

use super::{
    colour::histogram_distance,
    gradients::edges,
    hashes::luma,
    structure::{Structure, structure},
};
use crate::picture::RgbPicture;

/// Blocks along each edge of the picture that is compared coarsely.
const BLOCKS: usize = 16;
/// Pixels made grey by one thread at a time.
const PIXELS_PER_TASK: usize = 1 << 14;

/// Distances between two pictures; all are 0 for equal ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelMeasures {
    /// Mean absolute difference of the samples, in levels of 255.
    pub levels: f64,
    /// The same of the means of 16 × 16 blocks: what is left of it without grain.
    pub coarse_levels: f64,
    /// The largest difference of a block's mean in a channel.
    pub worst_block: f64,
    pub structure: Structure,
    /// How far the edges agree: 0 wholly, 1 not at all.
    pub edges: f64,
    /// |ln| of the ratio of squared gradients: how much sharper one picture is.
    pub sharpness: f64,
    /// Earth mover's distance of the histograms, in levels.
    pub colours: f64,
}

impl PixelMeasures {
    /// `None` if the pictures differ in size.
    pub fn of(a: &RgbPicture, b: &RgbPicture) -> Option<Self> {
        let levels = a.mean_abs_difference(b)?;
        let width = a.width() as usize;
        let (grey_a, grey_b) = (grey(a), grey(b));
        let structure = structure(&grey_a, &grey_b, width)?;
        let edges = edges(&grey_a, &grey_b, width);
        let (coarse_levels, worst_block) = blocks(a, b);
        Some(Self {
            levels,
            coarse_levels,
            worst_block,
            structure,
            edges: edges.disagreement,
            sharpness: edges.sharpness,
            colours: histogram_distance(a.pixels(), b.pixels()),
        })
    }
}

fn grey(picture: &RgbPicture) -> Vec<u8> {
    picture.pixels().par_chunks_exact(3).with_min_len(PIXELS_PER_TASK).map(luma).collect()
}

/// Mean and most of the absolute differences of block means, in levels.
fn blocks(a: &RgbPicture, b: &RgbPicture) -> (f64, f64) {
    let (width, height) = (a.width() as usize, a.height() as usize);
    let (across, down) = (width.min(BLOCKS), height.min(BLOCKS));
    let rows: Vec<(f64, f64)> = (0..down)
        .into_par_iter()
        .map(|row| {
            let rows = row * height / down..(row + 1) * height / down;
            let mut sums = vec![[0i64; 3]; across];
            for y in rows.clone() {
                let line = y * width * 3..(y + 1) * width * 3;
                let (a, b) = (&a.pixels()[line.clone()], &b.pixels()[line]);
                for (column, sums) in sums.iter_mut().enumerate() {
                    let columns = column * width / across * 3..(column + 1) * width / across * 3;
                    let (a, b) = (&a[columns.clone()], &b[columns]);
                    for (a, b) in a.chunks_exact(3).zip(b.chunks_exact(3)) {
                        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                            *sum += i64::from(*a) - i64::from(*b);
                        }
                    }
                }
            }
            let (mut total, mut most) = (0.0, 0.0f64);
            for (column, sums) in sums.iter().enumerate() {
                let columns = (column + 1) * width / across - column * width / across;
                for sum in sums {
                    let mean = sum.unsigned_abs() as f64 / (columns * rows.len()) as f64;
                    total += mean;
                    most = most.max(mean);
                }
            }
            (total, most)
        })
        .collect();
    let total: f64 = rows.iter().map(|(total, _)| total).sum();
    (total / (across * down * 3) as f64, rows.iter().fold(0.0, |most, (_, row)| most.max(*row)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scene(width: u32, height: u32, seed: u32) -> RgbPicture {
        let mut state = seed;
        RgbPicture::from_fn(width, height, |x, y| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            [(x * 5 + seed) as u8, (y * 3) as u8 ^ (x as u8 & 16), (state >> 26) as u8]
        })
    }

    fn all(m: PixelMeasures) -> [f64; 9] {
        let PixelMeasures { levels, coarse_levels, worst_block, structure, edges, sharpness, colours } = m;
        let Structure { fine, coarse, multi_scale } = structure;
        [levels, coarse_levels, worst_block, fine, coarse, multi_scale, edges, sharpness, colours]
    }

    #[test]
    fn grain_averages_out_and_a_local_change_shows_in_its_block() {
        let flat = RgbPicture::from_fn(64, 64, |_, _| [100; 3]);
        let grain = RgbPicture::from_fn(64, 64, |x, y| [100 + ((x + y) % 2) as u8; 3]);
        let measures = PixelMeasures::of(&flat, &grain).unwrap();
        assert_eq!((measures.levels, measures.coarse_levels), (0.5, 0.5));
        let alternating = RgbPicture::from_fn(64, 64, |x, y| [if (x + y) % 2 == 0 { 99 } else { 101 }; 3]);
        let measures = PixelMeasures::of(&flat, &alternating).unwrap();
        assert_eq!((measures.levels, measures.coarse_levels, measures.worst_block), (1.0, 0.0, 0.0));
        let spot = RgbPicture::from_fn(64, 64, |x, y| [if x < 4 && y < 4 { 228 } else { 100 }; 3]);
        let measures = PixelMeasures::of(&flat, &spot).unwrap();
        assert_eq!((measures.worst_block, measures.coarse_levels), (128.0, 0.5));
    }

    #[test]
    fn pictures_of_other_sizes_are_not_measured() {
        assert_eq!(PixelMeasures::of(&scene(64, 32, 1), &scene(32, 64, 1)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever a miner sends, each measure is a finite number from 0, 0 of a picture and itself, and does
        /// not depend on the order of the pictures.
        #[test]
        fn measures_are_distances(width in 1u32..80, height in 1u32..80, seeds in any::<[u16; 2]>()) {
            let [a, b] = seeds.map(|seed| scene(width, height, seed.into()));
            let [ab, ba] = [PixelMeasures::of(&a, &b).unwrap(), PixelMeasures::of(&b, &a).unwrap()];
            prop_assert!(all(ab).iter().all(|measure| measure.is_finite() && *measure >= 0.0), "{ab:?}");
            for (ab, ba) in all(ab).into_iter().zip(all(ba)) {
                prop_assert!((ab - ba).abs() <= 1e-12 * ab.abs(), "{ab} and {ba}");
            }
            prop_assert_eq!(all(PixelMeasures::of(&a, &a).unwrap()), [0.0; 9]);
        }
    }
}
