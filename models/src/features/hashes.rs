//! Four hashes of a picture.
//!
//! They are bit-equal to Python's `imagehash` on an RGB picture
//! (`average_hash`, `phash`, `dhash` of size 8, `colorhash` of 3 bits), as
//! integers whose highest bit is the first of the hash, so that `{:016x}` of a
//! hash (`{:011x}` of the colour hash) is `str()` of the Python object. They are
//! the same on every platform: nothing but integers and [`crate::elementary`].

use std::num::NonZeroU32;

use rayon::prelude::*;

use crate::{
    elementary::sin_cos_quarters,
    picture::RgbPicture,
    resample::{self, Filter, Size},
};

/// Bits of the average, perceptual and difference hash.
pub const HASH_BITS: u32 = 64;
/// Bits of the colour hash: 14 bins of 3 bits.
pub const COLOUR_HASH_BITS: u32 = 42;

/// Pixels counted by one thread at a time.
const PIXELS_PER_TASK: usize = 1 << 14;

/// The four hashes of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageHashes {
    /// Brighter than the mean, 8 × 8.
    pub average: u64,
    /// Low frequencies over their median, 8 × 8.
    pub perceptual: u64,
    /// Brighter than the pixel to the left, 8 × 8.
    pub difference: u64,
    /// Shares of black, grey and twelve colours, 3 bits each ([`COLOUR_HASH_BITS`]).
    pub colour: u64,
}

/// Differing bits of each of two pictures' hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashDistances {
    pub average: u32,
    pub perceptual: u32,
    pub difference: u32,
    pub colour: u32,
}

impl ImageHashes {
    pub fn of(picture: &RgbPicture) -> Self {
        let grey = GreyPicture::of(picture);
        Self {
            average: average_hash(&grey),
            perceptual: perceptual_hash(&grey),
            difference: difference_hash(&grey),
            colour: colour_hash(picture),
        }
    }

    /// Hamming distances to another picture's hashes.
    pub fn distances(&self, other: &Self) -> HashDistances {
        HashDistances {
            average: hamming_distance(self.average, other.average),
            perceptual: hamming_distance(self.perceptual, other.perceptual),
            difference: hamming_distance(self.difference, other.difference),
            colour: hamming_distance(self.colour, other.colour),
        }
    }
}

/// Number of differing bits.
pub fn hamming_distance(a: u64, b: u64) -> u32 {
    (a ^ b).count_ones()
}

/// ITU-R 601 luma with 16 fractional bits, as Pillow's mode L.
pub(super) fn luma(pixel: &[u8]) -> u8 {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
}

struct GreyPicture {
    size: Size,
    pixels: Vec<u8>,
}

impl GreyPicture {
    fn of(picture: &RgbPicture) -> Self {
        let pixels = picture.pixels().par_chunks_exact(3).with_min_len(PIXELS_PER_TASK).map(luma).collect();
        Self { size: picture.size(), pixels }
    }

    fn resize<const WIDTH: usize, const HEIGHT: usize>(&self) -> Vec<u8> {
        let side = |side: usize| NonZeroU32::new(side as u32).expect("hashes have no side of 0");
        let to = Size { width: side(WIDTH), height: side(HEIGHT) };
        resample::resize::<1>(&self.pixels, self.size, to, Filter::Lanczos)
    }
}

/// The first bit becomes the highest of `count`.
fn pack(bits: impl Iterator<Item = bool>) -> u64 {
    bits.fold(0, |packed, bit| packed << 1 | u64::from(bit))
}

fn average_hash(grey: &GreyPicture) -> u64 {
    let pixels = grey.resize::<8, 8>();
    let sum: u32 = pixels.iter().map(|&pixel| u32::from(pixel)).sum();
    pack(pixels.iter().map(|&pixel| u32::from(pixel) * HASH_BITS > sum))
}

fn difference_hash(grey: &GreyPicture) -> u64 {
    let pixels = grey.resize::<9, 8>();
    pack(pixels.chunks_exact(9).flat_map(|row| row.windows(2).map(|pair| pair[1] > pair[0])))
}

/// Side of the picture that goes through the cosine transform.
const TRANSFORM: usize = 32;
/// Frequencies kept in each direction.
const FREQUENCIES: usize = 8;

fn perceptual_hash(grey: &GreyPicture) -> u64 {
    let pixels = grey.resize::<TRANSFORM, TRANSFORM>();
    let transform = CosineTransform::new();
    let mut columns = [[0.0; TRANSFORM]; FREQUENCIES];
    for x in 0..TRANSFORM {
        let column = std::array::from_fn(|y| f64::from(pixels[y * TRANSFORM + x]));
        for (row, value) in columns.iter_mut().zip(transform.low_frequencies(column)) {
            row[x] = value;
        }
    }
    let low: Vec<f64> = columns.iter().flat_map(|&row| transform.low_frequencies(row)).collect();
    let mut sorted = low.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[low.len() / 2 - 1] + sorted[low.len() / 2]) / 2.0;
    pack(low.iter().map(|&value| value > median))
}

/// The lowest [`FREQUENCIES`] of a cosine transform of type 2 over
/// [`TRANSFORM`] samples: X(k) = Σ x(n) · cos(π k (2n + 1) / (2 · TRANSFORM)).
///
/// Samples are folded first, x(n) ± x(N − 1 − n), again and again: the sums hold
/// the even frequencies, the differences the odd ones. Symmetric pictures then
/// give exact zeros where the transform has zeros, as fast transforms do; summed
/// plainly, flat and striped pictures would hash to rounding errors.
struct CosineTransform {
    /// For each fold, cosines by odd frequency and position.
    cosines: Vec<Vec<Vec<f64>>>,
}

impl CosineTransform {
    fn new() -> Self {
        let fold = |length: usize, odd: usize| {
            (0..length / 2)
                .map(|n| sin_cos_quarters(((2 * n + 1) * (2 * odd + 1)) as f64 / length as f64).1)
                .collect()
        };
        let folds = TRANSFORM.ilog2();
        let cosines = (0..folds)
            .map(|level| (0..odd_frequencies(level)).map(|odd| fold(TRANSFORM >> level, odd)).collect())
            .collect();
        Self { cosines }
    }

    fn low_frequencies(&self, mut samples: [f64; TRANSFORM]) -> [f64; FREQUENCIES] {
        let mut low = [0.0; FREQUENCIES];
        for (level, cosines) in self.cosines.iter().enumerate() {
            let length = TRANSFORM >> level;
            let mut differences = [0.0; TRANSFORM / 2];
            for n in 0..length / 2 {
                let (first, last) = (samples[n], samples[length - 1 - n]);
                samples[n] = first + last;
                differences[n] = first - last;
            }
            for (odd, cosines) in cosines.iter().enumerate() {
                let products =
                    differences.iter().zip(cosines).map(|(difference, cosine)| difference * cosine);
                low[(2 * odd + 1) << level] = products.fold(0.0, |sum, product| sum + product);
            }
        }
        low[0] = samples[0];
        low
    }
}

/// How many of the kept frequencies are 2^level times an odd number.
fn odd_frequencies(level: u32) -> usize {
    FREQUENCIES >> (level + 1)
}

const COLOUR_BINS: usize = 14;
const HUES: usize = 6;
const BITS_PER_BIN: u32 = 3;
const BLACK_BELOW: u8 = (256 / 8) as u8;
const GREY_BELOW: u8 = (256 / 3) as u8;
const BRIGHT_ABOVE: u8 = (256 * 2 / 3) as u8;

/// Pixels in each bin: black, grey, six faint hues, six bright ones; and all
/// that are coloured, which is more: those of saturation 170 have no bin.
#[derive(Default)]
struct ColourCounts {
    bins: [u64; COLOUR_BINS],
    coloured: u64,
}

impl ColourCounts {
    fn count(mut self, pixel: &[u8]) -> Self {
        const FAINT: usize = 2;
        const BRIGHT: usize = FAINT + HUES;
        let (hue, saturation) = hue_and_saturation(pixel);
        if luma(pixel) < BLACK_BELOW {
            self.bins[0] += 1;
        } else if saturation < GREY_BELOW {
            self.bins[1] += 1;
        } else {
            self.coloured += 1;
            // Six bins of 42.5 over 0..=255.
            let hue_bin = (usize::from(hue) * 2 / 85).min(HUES - 1);
            match saturation.cmp(&BRIGHT_ABOVE) {
                std::cmp::Ordering::Less => self.bins[FAINT + hue_bin] += 1,
                std::cmp::Ordering::Greater => self.bins[BRIGHT + hue_bin] += 1,
                std::cmp::Ordering::Equal => {}
            }
        }
        self
    }

    fn add(mut self, other: Self) -> Self {
        for (bin, more) in self.bins.iter_mut().zip(other.bins) {
            *bin += more;
        }
        self.coloured += other.coloured;
        self
    }
}

fn colour_hash(picture: &RgbPicture) -> u64 {
    let counts = picture
        .pixels()
        .par_chunks(PIXELS_PER_TASK * 3)
        .map(|pixels| pixels.chunks_exact(3).fold(ColourCounts::default(), ColourCounts::count))
        .reduce(ColourCounts::default, ColourCounts::add);
    let all = picture.pixels().len() as u64 / 3;
    let levels = counts.bins.iter().enumerate().map(|(bin, &count)| {
        let whole = if bin < 2 { all } else { counts.coloured.max(1) };
        (count << BITS_PER_BIN) / whole
    });
    pack(levels.flat_map(|level| {
        let level = level.min((1 << BITS_PER_BIN) - 1);
        // Not quite binary: imagehash takes "any higher bit that is left" for
        // each but the first and the last.
        (0..BITS_PER_BIN)
            .map(move |i| (level >> (BITS_PER_BIN - i - 1)) & ((1 << (BITS_PER_BIN - i)) - 1) != 0)
    }))
}

/// Hue and saturation, 0 to 255 each, in Pillow's precision.
fn hue_and_saturation(pixel: &[u8]) -> (u8, u8) {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]];
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    if most == least {
        return (0, 0);
    }
    let range = f32::from(most - least);
    let saturation = range / f32::from(most);
    let [from_red, from_green, from_blue] = [red, green, blue].map(|sample| f32::from(most - sample) / range);
    let sixths = if red == most {
        from_blue - from_green
    } else if green == most {
        (2.0 + f64::from(from_red) - f64::from(from_blue)) as f32
    } else {
        (4.0 + f64::from(from_green) - f64::from(from_red)) as f32
    };
    let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    let byte = |fraction: f32| (f64::from(fraction) * 255.0) as u8;
    (byte(hue), byte(saturation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Limits;

    #[derive(serde::Deserialize)]
    struct Case {
        file: String,
        mode: String,
        average: String,
        perceptual: String,
        difference: String,
        colour: String,
    }

    fn fixture(file: &str) -> RgbPicture {
        let path = format!("{}/tests/fixtures/pictures/{file}", env!("CARGO_MANIFEST_DIR"));
        RgbPicture::decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap()
    }

    #[test]
    fn hashes_are_those_of_imagehash() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/fixtures/hashes.json")).unwrap();
        // Python drops the alpha channel; ours lays it on white.
        let opaque = cases.iter().filter(|case| !case.mode.ends_with('A'));
        let mut compared = 0;
        for case in opaque {
            let hashes = ImageHashes::of(&fixture(&case.file));
            let shown =
                [hashes.average, hashes.perceptual, hashes.difference].map(|hash| format!("{hash:016x}"));
            assert_eq!(
                shown,
                [&case.average, &case.perceptual, &case.difference].map(Clone::clone),
                "{}",
                case.file
            );
            assert_eq!(format!("{:011x}", hashes.colour), case.colour, "{}", case.file);
            compared += 1;
        }
        assert!(compared >= 15);
    }

    /// Hue and saturation of all colours, against a checksum of Pillow's
    /// `convert("HSV")` over them (red slowest, blue fastest).
    #[test]
    fn hue_and_saturation_are_those_of_pillow() {
        let mut sums = [0u64; 2];
        for colour in 0..1u32 << 24 {
            let [_, red, green, blue] = colour.to_be_bytes();
            let (hue, saturation) = hue_and_saturation(&[red, green, blue]);
            for (sum, value) in sums.iter_mut().zip([hue, saturation]) {
                *sum = sum.wrapping_mul(31).wrapping_add(u64::from(value));
            }
        }
        assert_eq!(sums, [0xa7df_b086_8739_49a8, 0xcffb_cb7c_74b8_9cf8]);
    }
}
