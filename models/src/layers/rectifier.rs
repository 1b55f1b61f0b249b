//! Rectifiers that keep a share of what is below zero: LeakyReLU, PReLU and, with a slope of 0, ReLU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::feature_map::FeatureMap;
use super::host;
use super::isa::for_each_isa;
use crate::weights::{Weights, WeightsResult};

/// Pixels that one task takes.
const CHUNK_PIXELS: usize = 256;

/// `x` where it is above zero, `slope · x` below, with a slope for each channel.
pub(crate) struct Rectifier(Slopes);

enum Slopes {
    Host(Vec<f32>),
    /// `[1, channels, 1, 1]`.
    Device(Tensor),
}

impl Rectifier {
    /// PReLU: reads `weight` `[channels]`.
    pub(crate) fn load(weights: &Weights, channels: usize) -> WeightsResult<Self> {
        Self::from_slopes(weights, weights.values("weight", &[channels])?)
    }

    /// LeakyReLU with one slope, for use among `weights`.
    pub(crate) fn leaky(weights: &Weights, slope: f32, channels: usize) -> WeightsResult<Self> {
        Self::from_slopes(weights, vec![slope; channels])
    }

    fn from_slopes(weights: &Weights, slopes: Vec<f32>) -> WeightsResult<Self> {
        if weights.on_host() {
            return Ok(Self(Slopes::Host(slopes)));
        }
        let channels = slopes.len();
        Ok(Self(Slopes::Device(weights.place(slopes, &[1, channels, 1, 1])?)))
    }

    pub(crate) fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        match &self.0 {
            Slopes::Host(slopes) => {
                let extent = input.extent()?;
                if extent.channels != slopes.len() {
                    candle_core::bail!("a rectifier of {} channels got {extent:?}", slopes.len());
                }
                let output = host::with_values(input.native(), |values| {
                    let mut output = vec![0.0f32; values.len()];
                    let chunk = (CHUNK_PIXELS * slopes.len()).max(1);
                    values.par_chunks(chunk).zip(output.par_chunks_mut(chunk)).for_each(
                        |(values, output)| {
                            rectify(slopes, values, output);
                        },
                    );
                    output
                })?;
                Ok(FeatureMap::from_native(host::tensor(output, input.native().shape())?))
            }
            Slopes::Device(slopes) => {
                let input = input.native();
                let below = input.minimum(&input.zeros_like()?)?.broadcast_mul(slopes)?;
                Ok(FeatureMap::from_native((input.relu()? + below)?))
            }
        }
    }
}

for_each_isa! {
    fn rectify(slopes: &[f32], values: &[f32], output: &mut [f32]) {
        let pixels = values.chunks_exact(slopes.len()).zip(output.chunks_exact_mut(slopes.len()));
        for (values, output) in pixels {
            for ((output, value), slope) in output.iter_mut().zip(values).zip(slopes) {
                *output = if *value > 0.0 { *value } else { *value * *slope };
            }
        }
    }
}
