//! Resizing of feature maps between pixels' centres or corners, as torch's `interpolate`.
//!
//! On the processor only. Nothing is averaged when a map shrinks; for that see [`crate::resample`].

use candle_core::Result;
use rayon::prelude::*;

use super::feature_map::{Extent, FeatureMap};
use super::host;
use super::isa::for_each_isa;

/// How values between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interpolation {
    /// `mode="bilinear", align_corners=True`: the outermost pixels stay where they are.
    BilinearCorners,
    /// `mode="bicubic", align_corners=False`: Keys' cubic with a = −¾ between centres.
    Bicubic,
}

/// Input positions of one output position along an axis, and their weights.
type Taps = Vec<(usize, f32)>;

impl Interpolation {
    /// The map resized to `height` × `width`, both at least 1.
    pub(crate) fn resize(self, input: &FeatureMap, height: usize, width: usize) -> Result<FeatureMap> {
        let Extent { batch, channels, height: rows, width: columns } = input.extent()?;
        if (rows, columns) == (height, width) {
            return Ok(input.clone());
        }
        let (vertical, horizontal) = (self.taps(rows, height), self.taps(columns, width));
        let stride = columns * channels;
        let output = host::with_values(input.native(), |values| {
            let mut output = vec![0.0f32; batch * height * width * channels];
            output.par_chunks_mut(width * channels).enumerate().for_each(|(index, target)| {
                let image = &values[index / height * rows * stride..][..rows * stride];
                let mut row = vec![0.0f32; stride];
                for (from, weight) in &vertical[index % height] {
                    add_scaled(*weight, &image[from * stride..][..stride], &mut row);
                }
                for (target, taps) in target.chunks_exact_mut(channels).zip(&horizontal) {
                    for (from, weight) in taps {
                        add_scaled(*weight, &row[from * channels..][..channels], target);
                    }
                }
            });
            output
        })?;
        Ok(FeatureMap::from_native(host::tensor(output, (batch, height, width, channels))?))
    }

    fn taps(self, input: usize, output: usize) -> Vec<Taps> {
        match self {
            Self::BilinearCorners => {
                let scale = if output > 1 { (input - 1) as f64 / (output - 1) as f64 } else { 0.0 };
                let taps = |place: usize| {
                    let position = place as f64 * scale;
                    let first = (position as usize).min(input - 1);
                    let share = (position - first as f64) as f32;
                    vec![(first, 1.0 - share), ((first + 1).min(input - 1), share)]
                };
                (0..output).map(taps).collect()
            }
            Self::Bicubic => {
                let scale = input as f64 / output as f64;
                let taps = |place: usize| {
                    let position = (place as f64 + 0.5) * scale - 0.5;
                    let (first, share) = (position.floor(), position - position.floor());
                    let tap = |tap: i64| {
                        let from = (first as i64 + tap).clamp(0, input as i64 - 1);
                        (from as usize, cubic(share - tap as f64) as f32)
                    };
                    (-1..=2).map(tap).collect()
                };
                (0..output).map(taps).collect()
            }
        }
    }
}

/// Keys' cubic with a = −¾ within a distance of 2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    if x <= 1.0 { ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0 } else { (((x - 5.0) * x + 8.0) * x - 4.0) * A }
}

for_each_isa! {
    fn add_scaled(weight: f32, values: &[f32], sums: &mut [f32]) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = value.mul_add(weight, *sum);
        }
    }
}
