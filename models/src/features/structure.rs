//! Structural similarity (Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility
//! to structural similarity", 2004) at one scale and at several (Wang, Simoncelli and Bovik, "Multiscale
//! structural similarity for image quality assessment", 2003).
//!
//! With s = a + b and d = a − b of the samples in a window, and V their variances there, both factors of the
//! index are one minus something small where the pictures are close:
//!
//! * luminance 1 − μ(d)² / ((μ(s)² + μ(d)²) / 2 + C₁)
//! * contrast and structure 1 − V(d) / ((V(s) + V(d)) / 2 + C₂)
//!
//! which is the published formula, and loses no digits. Windows are Gaussians of 11 pixels and deviation 1.5
//! that lie wholly inside. Between scales four pixels become one, their mean; a last odd row or column is
//! dropped. A picture has as many scales, 5 at most, as leave room for a window, and the published exponents
//! of those are divided by their sum. Scales of more than [`DENSE_PIXELS`] look at every second row of windows.

use rayon::prelude::*;

use crate::{elementary, layers::isa::for_each_isa};

/// Pixels of a scale up to which every window is looked at.
const DENSE_PIXELS: usize = 1 << 18;
/// Pixels along the edge of a window.
const WINDOW: usize = 11;
const DEVIATION: f64 = 1.5;
/// Exponents of the scales, finest first.
const EXPONENTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/// (0.01 · 255)².
const C1: f32 = 6.5025;
/// (0.03 · 255)².
const C2: f32 = 58.5225;
/// Partial sums of a row.
const LANES: usize = 16;
/// A mean of contrast and structure below this is nothing alike.
const LEAST_SIMILARITY: f64 = 1e-9;

/// How unlike two pictures are in structure, 0 for equal ones; at most 1, or a little more where one is the
/// other's negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Structure {
    /// 1 − SSIM of the pixels as they are.
    pub fine: f64,
    /// 1 − SSIM at the coarsest scale.
    pub coarse: f64,
    /// 1 − MS-SSIM.
    pub multi_scale: f64,
}

/// Compares the grey samples of two pictures, rows of `width`. `None` if they are not as many.
pub fn structure(a: &[u8], b: &[u8], width: usize) -> Option<Structure> {
    if width == 0 || a.is_empty() || a.len() != b.len() || !a.len().is_multiple_of(width) {
        return None;
    }
    let mut scale = Scale::of(a, b, width);
    let room = scale.width.min(scale.height);
    let scales = (1..EXPONENTS.len()).take_while(|halvings| room >> halvings >= WINDOW).count() + 1;
    let exponents: f64 = EXPONENTS[..scales].iter().sum();
    let mut logarithm = Some(0.0);
    let mut similarity = Deficits::default();
    let mut fine = 0.0;
    for (index, exponent) in EXPONENTS[..scales].iter().enumerate() {
        similarity = scale.deficits();
        if index == 0 {
            fine = similarity.both;
        }
        let is_last = index + 1 == scales;
        let alike = 1.0 - if is_last { similarity.both } else { similarity.contrast };
        logarithm = match (logarithm, alike > LEAST_SIMILARITY) {
            (Some(sum), true) => Some(sum + exponent / exponents * elementary::ln(alike)),
            _ => None,
        };
        if !is_last {
            scale = scale.halved();
        }
    }
    let multi_scale = 1.0 - logarithm.map_or(0.0, elementary::exp);
    Some(Structure { fine, coarse: similarity.both, multi_scale })
}

/// Sum and difference of two grey pictures, in levels.
struct Scale {
    width: usize,
    height: usize,
    /// a + b − 255, so that squares stay small.
    sum: Vec<f32>,
    difference: Vec<f32>,
}

/// Means over the windows of what is missing to 1.
#[derive(Default)]
struct Deficits {
    /// Of contrast and structure.
    contrast: f64,
    /// Of those times luminance.
    both: f64,
}

impl Scale {
    fn of(a: &[u8], b: &[u8], width: usize) -> Self {
        let pairs = || a.iter().zip(b).map(|(a, b)| (f32::from(*a), f32::from(*b)));
        Self {
            width,
            height: a.len() / width,
            sum: pairs().map(|(a, b)| a + b - 255.0).collect(),
            difference: pairs().map(|(a, b)| a - b).collect(),
        }
    }

    fn halved(&self) -> Self {
        let (width, height) = (self.width / 2, self.height / 2);
        let halve = |plane: &[f32]| {
            let mut halved = vec![0.0; width * height];
            let rows = plane.chunks_exact(2 * self.width);
            for (target, rows) in halved.chunks_exact_mut(width).zip(rows) {
                let (above, below) = rows.split_at(self.width);
                let columns = above.chunks_exact(2).zip(below.chunks_exact(2));
                for (pixel, (above, below)) in target.iter_mut().zip(columns) {
                    *pixel = ((above[0] + above[1]) + (below[0] + below[1])) * 0.25;
                }
            }
            halved
        };
        Self { width, height, sum: halve(&self.sum), difference: halve(&self.difference) }
    }

    /// The window, which is smaller in pictures that it does not fit into.
    fn window(&self) -> Vec<f32> {
        let side = self.width.min(self.height).min(WINDOW);
        let side = side - usize::from(side.is_multiple_of(2));
        let middle = (side / 2) as f64;
        let weight = |place: usize| {
            let distance = (place as f64 - middle) / DEVIATION;
            elementary::exp(-0.5 * distance * distance)
        };
        let weights: Vec<f64> = (0..side).map(weight).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| (weight / total) as f32).collect()
    }

    fn deficits(&self) -> Deficits {
        let window = self.window();
        let columns = self.width - window.len() + 1;
        let step = if self.width * self.height > DENSE_PIXELS { 2 } else { 1 };
        let rows: Vec<usize> = (0..=self.height - window.len()).step_by(step).collect();
        let sums: Vec<[f64; 2]> = rows
            .par_iter()
            .map_init(
                || Workspace::new(self.width, columns),
                |workspace, &row| {
                    let range = row * self.width..(row + window.len()) * self.width;
                    row_deficits(&self.sum[range.clone()], &self.difference[range], &window, workspace)
                },
            )
            .collect();
        let windows = (rows.len() * columns) as f64;
        let mean = |of: usize| sums.iter().map(|sums| sums[of]).sum::<f64>() / windows;
        Deficits { contrast: mean(0), both: mean(1) }
    }
}

/// Moments of a row of windows: means of s, s², d, d².
struct Workspace {
    /// Summed along columns.
    vertical: [Vec<f32>; 4],
    /// And along rows.
    moments: [Vec<f32>; 4],
}

impl Workspace {
    fn new(width: usize, columns: usize) -> Self {
        let planes = |length: usize| std::array::from_fn(|_| vec![0.0; length]);
        Self { vertical: planes(width), moments: planes(columns) }
    }
}

for_each_isa! {
    /// Sums over a row of windows of what is missing to 1, of contrast and of the whole index. `sum` and
    /// `difference` are as many rows as the window has.
    fn row_deficits(sum: &[f32], difference: &[f32], window: &[f32], workspace: &mut Workspace) -> [f64; 2] {
        let Workspace { vertical, moments } = workspace;
        let [s, ss, d, dd] = vertical;
        let width = s.len();
        for plane in [&mut *s, &mut *ss, &mut *d, &mut *dd] {
            plane.fill(0.0);
        }
        let rows = sum.chunks_exact(width).zip(difference.chunks_exact(width));
        for (weight, (sum, difference)) in window.iter().zip(rows) {
            let (s, ss, d, dd) = (&mut s[..width], &mut ss[..width], &mut d[..width], &mut dd[..width]);
            let (sum, difference) = (&sum[..width], &difference[..width]);
            for x in 0..width {
                s[x] += weight * sum[x];
                ss[x] += weight * (sum[x] * sum[x]);
                d[x] += weight * difference[x];
                dd[x] += weight * (difference[x] * difference[x]);
            }
        }
        let columns = moments[0].len();
        for (moment, plane) in moments.iter_mut().zip(vertical.iter()) {
            moment.fill(0.0);
            for (place, weight) in window.iter().enumerate() {
                let (moment, plane) = (&mut moment[..columns], &plane[place..place + columns]);
                for x in 0..columns {
                    moment[x] += weight * plane[x];
                }
            }
        }
        let [s, ss, d, dd] = moments;
        let mut sums = [[0f32; LANES]; 2];
        let mut totals = [0f64; 2];
        // Single precision holds the sum of a few windows, double that of all.
        const BLOCK: usize = 16 * LANES;
        for start in (0..columns).step_by(BLOCK) {
            let end = (start + BLOCK).min(columns);
            for x in start..end {
                let (mean_s, mean_d) = (s[x] + 255.0, d[x]);
                let variance_s = (ss[x] - s[x] * s[x]).max(0.0);
                let variance_d = (dd[x] - mean_d * mean_d).max(0.0);
                let contrast = variance_d / ((variance_s + variance_d) * 0.5 + C2);
                let luminance = mean_d * mean_d / ((mean_s * mean_s + mean_d * mean_d) * 0.5 + C1);
                let lane = (x - start) % LANES;
                sums[0][lane] += contrast;
                sums[1][lane] += contrast + luminance - contrast * luminance;
            }
            for (total, lanes) in totals.iter_mut().zip(&mut sums) {
                *total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
                lanes.fill(0.0);
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        width: usize,
        height: usize,
        seed: u32,
        change: String,
        ssim: f64,
        multi_scale: Option<f64>,
    }

    /// As `picture` of tests/fixtures/structure/reference.py.
    fn grey(case: &Case) -> (Vec<u8>, Vec<u8>) {
        let mut state = case.seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for y in 0..case.height {
            for x in 0..case.width {
                let waves = (x * x / 7 + y * 3) % 160 + (x / 9 + y / 5) % 2 * 40;
                let sample = (waves as u32 + next() % 24).min(255);
                let noise = next();
                a.push(sample as u8);
                b.push(match case.change.as_str() {
                    "drift" => (sample + noise % 2).min(255),
                    "noise" => (sample + noise % 64).saturating_sub(32).min(255),
                    "darker" => sample * 3 / 4,
                    "shifted" => a[a.len().saturating_sub(3)].into(),
                    "negative" => 255 - sample,
                    _ => sample,
                } as u8);
            }
        }
        (a, b)
    }

    fn cases() -> Vec<Case> {
        serde_json::from_str(include_str!("../../tests/fixtures/structure/cases.json")).unwrap()
    }

    #[test]
    fn the_index_is_that_of_others() {
        let cases = cases();
        assert!(cases.iter().filter(|case| case.multi_scale.is_some()).count() >= 5);
        for case in cases {
            let (a, b) = grey(&case);
            let found = structure(&a, &b, case.width).unwrap();
            let close = |ours: f64, theirs: f64| (1.0 - ours - theirs).abs() < 2e-5;
            assert!(close(found.fine, case.ssim), "{}: {found:?}, expected {}", case.name, case.ssim);
            if let Some(theirs) = case.multi_scale {
                assert!(close(found.multi_scale, theirs), "{}: {found:?}, expected {theirs}", case.name);
            }
        }
    }

    #[test]
    fn equal_pictures_are_equal_whatever_their_size() {
        for (width, height) in [(1, 1), (2, 7), (5, 3), (11, 11), (64, 64), (33, 47), (640, 480)] {
            let picture: Vec<u8> = (0..width * height).map(|i| (i * 37 % 251) as u8).collect();
            let found = structure(&picture, &picture, width).unwrap();
            assert_eq!(found, Structure { fine: 0.0, coarse: 0.0, multi_scale: 0.0 }, "{width}×{height}");
            let inverse: Vec<u8> = picture.iter().map(|sample| 255 - sample).collect();
            let found = structure(&picture, &inverse, width).unwrap();
            assert!(found.multi_scale >= 0.0 && found.multi_scale <= 1.0, "{width}×{height}: {found:?}");
        }
        assert_eq!(structure(&[0; 6], &[0; 8], 2), None);
        assert_eq!(structure(&[], &[], 0), None);
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        let case = &cases()[0];
        let (a, b) = grey(case);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| structure(&a, &b, case.width).unwrap())
        };
        assert_eq!(with(1), with(3));
    }
}
