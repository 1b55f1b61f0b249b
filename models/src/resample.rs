//! Antialiased resampling of 8-bit pictures, bit-equal to Pillow's.
//!
//! Preprocessing and image hashes were defined by Pillow, and a hash compared
//! across implementations allows no rounding of its own. So this follows
//! the arithmetic of Pillow 13: a pass for the width and one for the height,
//! each with coefficients rounded to 22 fractional bits, sums rounded to 8 bits
//! between the passes.

use std::num::NonZeroU32;

use rayon::prelude::*;

use crate::elementary;

/// Fractional bits of a coefficient: 32, less 8 of the sample and 2 of headroom.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Rows handed to one thread at a time.
const ROWS_PER_TASK: usize = 32;

/// Reconstruction filter, stretched when shrinking so that it antialiases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Triangle of radius 1.
    Bilinear,
    /// Keys' cubic with a = −½, radius 2.
    Bicubic,
    /// Sinc windowed by sinc, radius 3.
    Lanczos,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            Self::Bilinear if distance < 1.0 => 1.0 - distance,
            Self::Bicubic if distance < 1.0 => {
                const A: f64 = -0.5;
                ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
            }
            Self::Bicubic if distance < 2.0 => {
                const A: f64 = -0.5;
                (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
            }
            Self::Lanczos if distance < 3.0 => elementary::sinc(x) * elementary::sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: NonZeroU32,
    pub height: NonZeroU32,
}

impl Size {
    /// `None` if a side is 0.
    pub fn new(width: u32, height: u32) -> Option<Self> {
        Some(Self { width: NonZeroU32::new(width)?, height: NonZeroU32::new(height)? })
    }

    fn columns(self) -> usize {
        self.width.get() as usize
    }

    fn rows(self) -> usize {
        self.height.get() as usize
    }
}

/// Resamples rows of interleaved 8-bit samples, `CHANNELS` a pixel.
///
/// # Panics
/// If `pixels` is not `from` × `CHANNELS` samples long.
pub fn resize<const CHANNELS: usize>(pixels: &[u8], from: Size, to: Size, filter: Filter) -> Vec<u8> {
    assert_eq!(pixels.len(), from.columns() * from.rows() * CHANNELS, "samples do not fill the picture");
    let stretch = |pixels: &[u8], stride: usize| {
        let kernels = Kernels::new(from.rows(), to.rows(), filter);
        vertical(pixels, stride * CHANNELS, &kernels)
    };
    let widen = |pixels: &[u8]| {
        let kernels = Kernels::new(from.columns(), to.columns(), filter);
        horizontal::<CHANNELS>(pixels, from.columns(), &kernels)
    };
    match (from.width == to.width, from.height == to.height) {
        (true, true) => pixels.to_vec(),
        (true, false) => stretch(pixels, from.columns()),
        (false, true) => widen(pixels),
        (false, false) if vertical_first(from, to) => widen(&stretch(pixels, from.columns())),
        (false, false) => stretch(&widen(pixels), to.columns()),
    }
}

/// Whether Pillow (since 13.0) shrinks the height first: when it loses more than
/// twice the pixels that the width loses.
fn vertical_first(from: Size, to: Size) -> bool {
    let lost = |from: NonZeroU32, to: NonZeroU32| i64::from(from.get()) - i64::from(to.get());
    let height = lost(from.height, to.height);
    height > 0 && height > 2 * lost(from.width, to.width)
}

fn horizontal<const CHANNELS: usize>(pixels: &[u8], columns: usize, kernels: &Kernels) -> Vec<u8> {
    let (source_stride, stride) = (columns * CHANNELS, kernels.len() * CHANNELS);
    let mut output = vec![0; pixels.len() / source_stride * stride];
    output
        .par_chunks_mut(stride * ROWS_PER_TASK)
        .zip(pixels.par_chunks(source_stride * ROWS_PER_TASK))
        .for_each(|(targets, sources)| {
            for (target, source) in targets.chunks_exact_mut(stride).zip(sources.chunks_exact(source_stride))
            {
                for (pixel, (first, weights)) in target.chunks_exact_mut(CHANNELS).zip(kernels.iter()) {
                    let mut sums = [HALF; CHANNELS];
                    let window = &source[first * CHANNELS..(first + weights.len()) * CHANNELS];
                    for (samples, weight) in window.chunks_exact(CHANNELS).zip(weights) {
                        for (sum, &sample) in sums.iter_mut().zip(samples) {
                            *sum += i32::from(sample) * weight;
                        }
                    }
                    for (sample, sum) in pixel.iter_mut().zip(sums) {
                        *sample = round(sum);
                    }
                }
            }
        });
    output
}

fn vertical(pixels: &[u8], stride: usize, kernels: &Kernels) -> Vec<u8> {
    let mut output = vec![0; stride * kernels.len()];
    output.par_chunks_mut(stride).enumerate().for_each_init(
        || vec![0i32; stride],
        |sums, (row, target)| {
            let (first, weights) = kernels.get(row);
            sums.fill(HALF);
            for (source, &weight) in pixels.chunks_exact(stride).skip(first).zip(weights) {
                for (sum, &sample) in sums.iter_mut().zip(source) {
                    *sum += i32::from(sample) * weight;
                }
            }
            for (sample, &sum) in target.iter_mut().zip(sums.iter()) {
                *sample = round(sum);
            }
        },
    );
    output
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn round(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// For each output position, the first input position and the weights from there on.
struct Kernels {
    first: Vec<usize>,
    ends: Vec<usize>,
    weights: Vec<i32>,
}

impl Kernels {
    fn new(input: usize, output: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let radius = filter.radius() * stretch;
        let mut kernels = Self { first: Vec::with_capacity(output), ends: Vec::new(), weights: Vec::new() };
        let mut exact = Vec::new();
        for position in 0..output {
            let centre = (position as f64 + 0.5) * scale;
            let first = (centre - radius + 0.5).max(0.0) as usize;
            let end = ((centre + radius + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((first..end).map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch))));
            let total: f64 = exact.iter().sum();
            kernels.first.push(first);
            kernels.weights.extend(
                exact.iter().map(|&weight| fixed_point(if total == 0.0 { weight } else { weight / total })),
            );
            kernels.ends.push(kernels.weights.len());
        }
        kernels
    }

    fn len(&self) -> usize {
        self.first.len()
    }

    fn get(&self, position: usize) -> (usize, &[i32]) {
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        (self.first[position], &self.weights[start..self.ends[position]])
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        (0..self.len()).map(|position| self.get(position))
    }
}

/// Rounds half away from zero, as Pillow does.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        seed: u32,
        channels: usize,
        filter: String,
        from: [u32; 2],
        to: [u32; 2],
        fnv1a: String,
    }

    fn size([width, height]: [u32; 2]) -> Size {
        let side = |side| NonZeroU32::new(side).unwrap();
        Size { width: side(width), height: side(height) }
    }

    /// As `samples` of tests/fixtures/resample/reference.py.
    fn samples(count: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let next = |i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match (i / 97 % 3, state >> 31) {
                (0, 0) => 255,
                (0, _) => 0,
                _ => (state >> 24) as u8,
            }
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn every_filter_gives_pillows_bytes() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../tests/fixtures/resample/cases.json")).unwrap();
        assert!(cases.len() > 70);
        for case in &cases {
            let (from, to) = (size(case.from), size(case.to));
            let filter = match case.filter.as_str() {
                "bilinear" => Filter::Bilinear,
                "bicubic" => Filter::Bicubic,
                _ => Filter::Lanczos,
            };
            let pixels = samples(from.columns() * from.rows() * case.channels, case.seed);
            let resized = match case.channels {
                1 => resize::<1>(&pixels, from, to, filter),
                _ => resize::<3>(&pixels, from, to, filter),
            };
            let hash = resized.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let Case { filter, channels, from, to, .. } = case;
            assert_eq!(
                format!("{hash:016x}"),
                case.fnv1a,
                "{filter} of {channels} channels, {from:?} to {to:?}"
            );
        }
    }

    #[test]
    fn a_flat_picture_stays_flat() {
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let resized = resize::<1>(&[77; 35], size([7, 5]), size([40, 3]), filter);
            assert_eq!(resized, [77; 120]);
        }
    }
}
