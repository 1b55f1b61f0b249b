//! Antialiased resampling of 8-bit pictures, bit-equal to Pillow's.
//!
//! Preprocessing and image hashes were defined by Pillow, and a hash compared
//! across implementations allows no rounding of its own. So this follows
//! Pillow's `Resample.c`: a horizontal pass, then a vertical one, each with
//! coefficients rounded to 22 fractional bits, sums rounded to 8 bits between
//! the passes.

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
    let stretched;
    let rows = if from.width == to.width {
        pixels
    } else {
        stretched = horizontal::<CHANNELS>(pixels, from, to, filter);
        &stretched
    };
    if from.height == to.height {
        return rows.to_vec();
    }
    vertical(rows, to.columns() * CHANNELS, from, to, filter)
}

fn horizontal<const CHANNELS: usize>(pixels: &[u8], from: Size, to: Size, filter: Filter) -> Vec<u8> {
    let kernels = Kernels::new(from.columns(), to.columns(), filter);
    let (source_stride, stride) = (from.columns() * CHANNELS, to.columns() * CHANNELS);
    let mut output = vec![0; stride * from.rows()];
    output
        .par_chunks_mut(stride * ROWS_PER_TASK)
        .zip(pixels.par_chunks(source_stride * ROWS_PER_TASK))
        .for_each(|(targets, sources)| {
            for (target, source) in targets.chunks_exact_mut(stride).zip(sources.chunks_exact(source_stride)) {
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

fn vertical(pixels: &[u8], stride: usize, from: Size, to: Size, filter: Filter) -> Vec<u8> {
    let kernels = Kernels::new(from.rows(), to.rows(), filter);
    let mut output = vec![0; stride * to.rows()];
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
            exact.extend(
                (first..end).map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch))),
            );
            let total: f64 = exact.iter().sum();
            kernels.first.push(first);
            kernels.weights.extend(exact.iter().map(|&weight| fixed_point(if total == 0.0 { weight } else { weight / total })));
            kernels.ends.push(kernels.weights.len());
        }
        kernels
    }

    fn get(&self, position: usize) -> (usize, &[i32]) {
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        (self.first[position], &self.weights[start..self.ends[position]])
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        (0..self.first.len()).map(|position| self.get(position))
    }
}

/// Rounds half away from zero, as Pillow does.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}
