//! Group normalisation (with SiLU in the same pass) and layer normalisation.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::activation::Activation;
use super::feature_map::{Extent, FeatureMap};
use super::host;
use super::isa::for_each_isa;
use super::linear::Linear;
use crate::weights::{Weights, WeightsResult};

/// Pixels whose sums are taken together; fixed, so that the bits do not depend on threads.
const CHUNK_PIXELS: usize = 256;
/// Rows of a layer normalisation that one task takes.
const CHUNK_ROWS: usize = 64;
/// Below this many values another thread would not have woken up in time to help.
const PARALLEL_VALUES: usize = 1 << 14;

/// A weight and a bias for each channel.
enum Affine {
    Host { weight: Vec<f32>, bias: Vec<f32> },
    Device { weight: Tensor, bias: Tensor },
}

impl Affine {
    fn load(weights: &Weights, channels: usize) -> WeightsResult<Self> {
        if weights.on_host() {
            Ok(Self::Host {
                weight: weights.values("weight", &[channels])?,
                bias: weights.values("bias", &[channels])?,
            })
        } else {
            Ok(Self::Device {
                weight: weights.tensor("weight", &[channels])?,
                bias: weights.tensor("bias", &[channels])?,
            })
        }
    }
}

/// Normalises groups of channels over all pixels of a picture.
pub(crate) struct GroupNorm {
    affine: Affine,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`. `groups` must divide `channels`.
    pub(crate) fn load(
        weights: &Weights,
        groups: usize,
        channels: usize,
        epsilon: f64,
    ) -> WeightsResult<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(weights.unsuitable(format!("{channels} channels do not divide into {groups} groups")));
        }
        Ok(Self { affine: Affine::load(weights, channels)?, groups, epsilon })
    }

    pub(crate) fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        self.forward_with(input, None, false)
    }

    /// Then SiLU.
    pub(crate) fn forward_silu(&self, input: &FeatureMap) -> Result<FeatureMap> {
        self.forward_with(input, None, true)
    }

    /// Then `x · (1 + scale) + shift`, the same for all pixels of a picture, then SiLU.
    /// `modulation`: the scales of all channels, then the shifts, `[batch or 1, 2 · channels]`.
    pub(crate) fn forward_modulated_silu(
        &self,
        input: &FeatureMap,
        modulation: &Tensor,
    ) -> Result<FeatureMap> {
        self.forward_with(input, Some(modulation), true)
    }

    fn forward_with(
        &self,
        input: &FeatureMap,
        modulation: Option<&Tensor>,
        silu: bool,
    ) -> Result<FeatureMap> {
        let extent = input.extent()?;
        if let Some(modulation) = modulation {
            let (rows, width) = modulation.dims2()?;
            if width != 2 * extent.channels || (rows != 1 && rows != extent.batch) {
                candle_core::bail!("a modulation of {:?} does not fit {extent:?}", modulation.shape());
            }
        }
        match &self.affine {
            Affine::Host { weight, bias } => {
                check_channels(weight, extent)?;
                let output = host::with_values(input.native(), |values| {
                    host::with_optional_values(modulation, |modulation| {
                        self.normalise(weight, bias, values, extent, modulation, silu)
                    })
                })??;
                Ok(FeatureMap::from_native(host::tensor(output, input.native().shape())?))
            }
            Affine::Device { weight, bias } => {
                let mut output = self.forward_device(weight, bias, input.native())?;
                if let Some(modulation) = modulation {
                    let part = |index| {
                        let part = modulation.narrow(1, index * extent.channels, extent.channels)?;
                        part.reshape(((), extent.channels, 1, 1))
                    };
                    output = output.broadcast_mul(&(part(0)? + 1.0)?)?.broadcast_add(&part(1)?)?;
                }
                let output = if silu { Activation::Silu.forward(&output)? } else { output };
                Ok(FeatureMap::from_native(output))
            }
        }
    }

    fn forward_device(&self, weight: &Tensor, bias: &Tensor, input: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = input.dims4()?;
        let values = input.to_dtype(DType::F32)?.reshape((batch, self.groups, ()))?;
        let centred = values.broadcast_sub(&values.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        centred
            .broadcast_div(&(variance + self.epsilon)?.sqrt()?)?
            .to_dtype(input.dtype())?
            .reshape((batch, channels, height, width))?
            .broadcast_mul(&weight.reshape((1, channels, 1, 1))?)?
            .broadcast_add(&bias.reshape((1, channels, 1, 1))?)
    }

    fn normalise(
        &self,
        weight: &[f32],
        bias: &[f32],
        values: &[f32],
        extent: Extent,
        modulation: Option<&[f32]>,
        silu: bool,
    ) -> Vec<f32> {
        let channels = extent.channels;
        let image = extent.height * extent.width * channels;
        let chunk = CHUNK_PIXELS * channels;
        let mut output = vec![0.0f32; values.len()];
        if image == 0 {
            return output;
        }
        let apply = |factors: &[f32], offsets: &[f32], values: &[f32], output: &mut [f32]| {
            if silu {
                scale_silu(factors, offsets, values, output)
            } else {
                scale(factors, offsets, values, output)
            }
        };
        let factors = |index: usize, sums: &[ChannelSums]| {
            let (mut factors, mut offsets) = self.factors(weight, bias, sums, image);
            if let Some(modulation) = modulation {
                modulate(&modulation[index * 2 * channels % modulation.len()..], &mut factors, &mut offsets);
            }
            (factors, offsets)
        };
        let whole_image = |(index, (values, output)): (usize, (&[f32], &mut [f32]))| {
            let sums: Vec<_> = values.chunks(chunk).map(|values| ChannelSums::of(values, channels)).collect();
            let (factors, offsets) = factors(index, &sums);
            apply(&factors, &offsets, values, output);
        };
        if values.len() < PARALLEL_VALUES {
            values.chunks(image).zip(output.chunks_mut(image)).enumerate().for_each(whole_image);
        } else if extent.batch >= rayon::current_num_threads() {
            values.par_chunks(image).zip(output.par_chunks_mut(image)).enumerate().for_each(whole_image);
        } else {
            for (index, (values, output)) in values.chunks(image).zip(output.chunks_mut(image)).enumerate() {
                let (factors, offsets) = factors(index, &sums_of(values, channels));
                values.par_chunks(chunk).zip(output.par_chunks_mut(chunk)).for_each(|(values, output)| {
                    apply(&factors, &offsets, values, output);
                });
            }
        }
        output
    }

    /// What to multiply each channel by, and what to add to it.
    fn factors(
        &self,
        weight: &[f32],
        bias: &[f32],
        sums: &[ChannelSums],
        image: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let channels = weight.len();
        let members = channels / self.groups;
        let count = (image / self.groups) as f64;
        let (mut factors, mut offsets) = (vec![0.0; channels], vec![0.0; channels]);
        for group in 0..self.groups {
            let range = group * members..(group + 1) * members;
            let total = |part: fn(&ChannelSums) -> &[f64]| -> f64 {
                sums.iter().map(|sums| part(sums)[range.clone()].iter().sum::<f64>()).sum()
            };
            let mean = total(|sums| &sums.sums) / count;
            let variance = (total(|sums| &sums.squares) / count - mean * mean).max(0.0);
            let inverse = 1.0 / (variance + self.epsilon).sqrt();
            for channel in range {
                let factor = inverse * f64::from(weight[channel]);
                factors[channel] = factor as f32;
                offsets[channel] = (f64::from(bias[channel]) - mean * factor) as f32;
            }
        }
        (factors, offsets)
    }
}

fn check_channels(weight: &[f32], extent: Extent) -> Result<()> {
    if extent.channels != weight.len() {
        candle_core::bail!("a normalisation of {} channels got {extent:?}", weight.len());
    }
    Ok(())
}

/// Joins a picture's scales and shifts with what to multiply by and to add already.
fn modulate(modulation: &[f32], factors: &mut [f32], offsets: &mut [f32]) {
    let (scales, shifts) = modulation.split_at(factors.len());
    for (((factor, offset), scale), shift) in factors.iter_mut().zip(offsets).zip(scales).zip(shifts) {
        *factor *= 1.0 + scale;
        *offset = offset.mul_add(1.0 + scale, *shift);
    }
}

/// The sums of one picture's chunks, in order.
fn sums_of(values: &[f32], channels: usize) -> Vec<ChannelSums> {
    values.par_chunks(CHUNK_PIXELS * channels).map(|values| ChannelSums::of(values, channels)).collect()
}

/// Sums and sums of squares of each channel over some pixels.
struct ChannelSums {
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl ChannelSums {
    fn of(values: &[f32], channels: usize) -> Self {
        let mut result = Self { sums: vec![0.0; channels], squares: vec![0.0; channels] };
        accumulate(values, &mut result.sums, &mut result.squares);
        result
    }
}

for_each_isa! {
    fn accumulate(values: &[f32], sums: &mut [f64], squares: &mut [f64]) {
        for pixel in values.chunks_exact(sums.len()) {
            for ((value, sum), square) in pixel.iter().zip(sums.iter_mut()).zip(squares.iter_mut()) {
                let value = f64::from(*value);
                *sum += value;
                *square = value.mul_add(value, *square);
            }
        }
    }
}

for_each_isa! {
    fn scale(factors: &[f32], offsets: &[f32], values: &[f32], output: &mut [f32]) {
        for (values, output) in values.chunks_exact(factors.len()).zip(output.chunks_exact_mut(factors.len())) {
            for (((value, output), factor), offset) in values.iter().zip(output).zip(factors).zip(offsets) {
                *output = value.mul_add(*factor, *offset);
            }
        }
    }
}

for_each_isa! {
    fn scale_silu(factors: &[f32], offsets: &[f32], values: &[f32], output: &mut [f32]) {
        for (values, output) in values.chunks_exact(factors.len()).zip(output.chunks_exact_mut(factors.len())) {
            for (((value, output), factor), offset) in values.iter().zip(output).zip(factors).zip(offsets) {
                let value = value.mul_add(*factor, *offset);
                *output = value * super::activation::sigmoid(value);
            }
        }
    }
}

/// A group normalisation whose result is scaled and shifted pixel by pixel, by what the latents at
/// that place say: diffusers' `SpatialNorm` (MoVQ, Zheng et al. 2022).
pub(crate) struct SpatialNorm {
    norm: GroupNorm,
    /// Of each latent pixel: the scales of all channels, then the shifts.
    conditions: Linear,
}

impl SpatialNorm {
    /// The reference has these figures, whatever the config says.
    const GROUPS: usize = 32;
    const EPSILON: f64 = 1e-6;

    /// Reads `norm_layer`, `conv_y` and `conv_b`.
    pub(crate) fn load(weights: &Weights, channels: usize, latent_channels: usize) -> WeightsResult<Self> {
        let conditions = ["conv_y", "conv_b"].map(|name| weights.at(name));
        Ok(Self {
            norm: GroupNorm::load(&weights.at("norm_layer"), Self::GROUPS, channels, Self::EPSILON)?,
            conditions: Linear::load_joined(&conditions, latent_channels, channels, true)?,
        })
    }

    /// `latents`: of a size that divides the input's; each latent pixel is that of a square of pixels.
    pub(crate) fn forward(&self, input: &FeatureMap, latents: &FeatureMap, silu: bool) -> Result<FeatureMap> {
        let (extent, cells) = (input.extent()?, latents.extent()?);
        let is_whole = |pixels: usize, cells: usize| cells > 0 && pixels.is_multiple_of(cells);
        if extent.batch != cells.batch
            || !is_whole(extent.height, cells.height)
            || !is_whole(extent.width, cells.width)
        {
            candle_core::bail!("latents of {cells:?} do not divide {extent:?}");
        }
        let conditions = self.conditions.forward(&latents.to_tokens()?)?;
        match &self.norm.affine {
            Affine::Host { weight, bias } => {
                check_channels(weight, extent)?;
                let output = host::with_values(input.native(), |values| {
                    host::with_values(&conditions, |conditions| {
                        self.normalise((weight, bias), (values, extent), (conditions, cells), silu)
                    })
                })??;
                Ok(FeatureMap::from_native(host::tensor(output, input.native().shape())?))
            }
            Affine::Device { .. } => {
                let conditions = FeatureMap::from_tokens(&conditions, cells.height, cells.width)?;
                let conditions = conditions.native().upsample_nearest2d(extent.height, extent.width)?;
                let part = |index: usize| conditions.narrow(1, index * extent.channels, extent.channels);
                let output = ((self.norm.forward(input)?.native() * part(0)?)? + part(1)?)?;
                let output = if silu { Activation::Silu.forward(&output)? } else { output };
                Ok(FeatureMap::from_native(output))
            }
        }
    }

    fn normalise(
        &self,
        (weight, bias): (&[f32], &[f32]),
        (values, extent): (&[f32], Extent),
        (conditions, cells): (&[f32], Extent),
        silu: bool,
    ) -> Vec<f32> {
        let channels = extent.channels;
        let row = extent.width * channels;
        let image = extent.height * row;
        let mut output = vec![0.0f32; values.len()];
        if image == 0 {
            return output;
        }
        let (rows_each, pixels_each) = (extent.height / cells.height, extent.width / cells.width);
        let cell_row = cells.width * 2 * channels;
        for (index, (values, output)) in values.chunks(image).zip(output.chunks_mut(image)).enumerate() {
            let (factors, offsets) = self.norm.factors(weight, bias, &sums_of(values, channels), image);
            let conditions = &conditions[index * cells.height * cell_row..];
            values.par_chunks(row).zip(output.par_chunks_mut(row)).enumerate().for_each(
                |(y, (values, output))| {
                    let conditions = &conditions[y / rows_each * cell_row..][..cell_row];
                    scale_by_cells(&factors, &offsets, conditions, pixels_each, silu, values, output);
                },
            );
        }
        output
    }
}

for_each_isa! {
    /// One row of pixels, of which `pixels_each` have the same scales and shifts.
    fn scale_by_cells(
        factors: &[f32],
        offsets: &[f32],
        conditions: &[f32],
        pixels_each: usize,
        silu: bool,
        values: &[f32],
        output: &mut [f32],
    ) {
        let channels = factors.len();
        let offsets = &offsets[..channels];
        let pixels = values.chunks_exact(channels).zip(output.chunks_exact_mut(channels));
        for (x, (values, output)) in pixels.enumerate() {
            let cell = &conditions[x / pixels_each * 2 * channels..][..2 * channels];
            let (scales, shifts) = cell.split_at(channels);
            for channel in 0..channels {
                let value = values[channel].mul_add(factors[channel], offsets[channel]);
                output[channel] = value.mul_add(scales[channel], shifts[channel]);
            }
            if silu {
                for value in output {
                    *value *= super::activation::sigmoid(*value);
                }
            }
        }
    }
}

/// Normalises each token.
pub(crate) struct LayerNorm {
    affine: Affine,
    epsilon: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`.
    pub(crate) fn load(weights: &Weights, channels: usize, epsilon: f64) -> WeightsResult<Self> {
        Ok(Self { affine: Affine::load(weights, channels)?, epsilon })
    }

    /// Normalises the last dimension.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match &self.affine {
            Affine::Host { weight, bias } => {
                let channels = input.dim(candle_core::D::Minus1)?;
                if channels != weight.len() || channels == 0 {
                    candle_core::bail!(
                        "a normalisation of {} channels got {:?}",
                        weight.len(),
                        input.shape()
                    );
                }
                let output = host::with_values(input, |values| {
                    let mut output = vec![0.0f32; values.len()];
                    let chunk = CHUNK_ROWS * channels;
                    let epsilon = self.epsilon as f32;
                    if values.len() < PARALLEL_VALUES {
                        layer_norm(weight, bias, epsilon, values, &mut output);
                    } else {
                        values.par_chunks(chunk).zip(output.par_chunks_mut(chunk)).for_each(
                            |(values, output)| {
                                layer_norm(weight, bias, epsilon, values, output);
                            },
                        );
                    }
                    output
                })?;
                host::tensor(output, input.shape())
            }
            Affine::Device { weight, bias } => {
                // candle's fused kernel knows no 64-bit floats.
                let normalise = if input.dtype() == DType::F64 {
                    candle_nn::ops::layer_norm_slow
                } else {
                    candle_nn::ops::layer_norm
                };
                normalise(&input.contiguous()?, weight, bias, self.epsilon as f32)
            }
        }
    }
}

/// Partial sums of a row, so that they fill a vector.
const LANES: usize = 16;

#[inline(always)]
fn lane_sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    let rest: f32 = chunks.remainder().iter().map(|value| term(*value)).sum();
    lanes.iter().sum::<f32>() + rest
}

for_each_isa! {
    fn layer_norm(weight: &[f32], bias: &[f32], epsilon: f32, values: &[f32], output: &mut [f32]) {
        let channels = weight.len();
        for (values, output) in values.chunks_exact(channels).zip(output.chunks_exact_mut(channels)) {
            let mean = lane_sum(values, |value| value) / channels as f32;
            let variance = lane_sum(values, |value| (value - mean) * (value - mean)) / channels as f32;
            let inverse = 1.0 / (variance + epsilon).sqrt();
            for (((value, output), weight), bias) in values.iter().zip(output).zip(weight).zip(bias) {
                *output = ((value - mean) * inverse).mul_add(*weight, *bias);
            }
        }
    }
}
