//! The autoencoder between pictures and latents: diffusers' `AutoencoderKL`.

use candle_core::{Result, Tensor};

use super::blocks::{NormFigures, ResidualBlock, ResidualFigures, TimeUse, Upsampler};
use super::config::VaeConfig;
use super::tiles::{TileEdges, in_tiles};
use crate::layers::attention::Heads;
use crate::layers::{Conv2d, FeatureMap, GroupNorm, Linear, Window};
use crate::weights::{Weights, WeightsResult};

/// The autoencoder's normalisations use this, whatever its config says.
const EPSILON: f64 = 1e-6;

/// The most pixels of a picture that is taken whole; larger ones are taken in tiles. Everybody must
/// take the same pictures in tiles, since the bits differ.
const MAX_WHOLE_PIXELS: usize = 1 << 20;

/// What a picture becomes: a normal distribution of latents.
pub(crate) struct LatentDistribution {
    /// `[batch, latent channels, height, width]`.
    pub(crate) mean: Tensor,
    /// Logarithm of the variance, clamped to −30 … 20.
    pub(crate) log_variance: Tensor,
}

/// An autoencoder of RGB pictures in −1 … 1.
pub(crate) struct Autoencoder {
    encoder: Encoder,
    quantise: Option<Conv2d>,
    dequantise: Option<Conv2d>,
    decoder: Decoder,
    latent_channels: usize,
    scale: usize,
    /// Edge of a tile, in pixels.
    pub(super) tile_edge: usize,
    pub(super) max_whole_pixels: usize,
}

impl Autoencoder {
    pub(crate) fn load(weights: &Weights, config: &VaeConfig) -> WeightsResult<Self> {
        let latents = config.latent_channels;
        let point = |wanted: bool, name: &str, channels: usize| {
            wanted.then(|| Conv2d::load(&weights.at(name), channels, channels, Window::POINT)).transpose()
        };
        Ok(Self {
            encoder: Encoder::load(&weights.at("encoder"), config)?,
            quantise: point(config.use_quant_conv, "quant_conv", 2 * latents)?,
            dequantise: point(config.use_post_quant_conv, "post_quant_conv", latents)?,
            decoder: Decoder::load(&weights.at("decoder"), config)?,
            latent_channels: latents,
            scale: config.scale(),
            tile_edge: config.tile_edge(),
            max_whole_pixels: MAX_WHOLE_PIXELS,
        })
    }

    fn is_taken_whole(&self, height: usize, width: usize) -> bool {
        height.saturating_mul(width) <= self.max_whole_pixels
    }

    /// Encodes `[batch, 3, height, width]`, large pictures in tiles; the factor and shift of the
    /// config are not applied.
    pub(crate) fn encode(&self, pictures: &Tensor) -> Result<LatentDistribution> {
        let (_, _, height, width) = pictures.dims4()?;
        let moments = if self.is_taken_whole(height, width) {
            self.moments(pictures)?
        } else {
            let edges = TileEdges { input: self.tile_edge, output: self.tile_edge / self.scale };
            in_tiles(pictures, edges, |tile| self.moments(tile))?
        };
        Ok(LatentDistribution {
            mean: moments.narrow(1, 0, self.latent_channels)?.contiguous()?,
            log_variance: moments
                .narrow(1, self.latent_channels, self.latent_channels)?
                .clamp(-30.0, 20.0)?,
        })
    }

    fn moments(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut moments = self.encoder.forward(&FeatureMap::from_channels_first(pictures)?)?;
        if let Some(quantise) = &self.quantise {
            moments = quantise.forward(&moments)?;
        }
        moments.to_channels_first()
    }

    /// Decodes `[batch, latent channels, height, width]`, large pictures in tiles; the result is not
    /// clamped.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = latents.dims4()?;
        if self.is_taken_whole(height * self.scale, width * self.scale) {
            return self.decode_whole(latents);
        }
        let edges = TileEdges { input: self.tile_edge / self.scale, output: self.tile_edge };
        in_tiles(latents, edges, |tile| self.decode_whole(tile))
    }

    fn decode_whole(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = FeatureMap::from_channels_first(latents)?;
        if let Some(dequantise) = &self.dequantise {
            hidden = dequantise.forward(&hidden)?;
        }
        self.decoder.forward(&hidden)?.to_channels_first()
    }
}

fn residual(weights: &Weights, inputs: usize, outputs: usize, groups: usize) -> WeightsResult<ResidualBlock> {
    let norm = NormFigures { groups, epsilon: EPSILON };
    ResidualBlock::load(weights, ResidualFigures { inputs, outputs, time: TimeUse::None, norm })
}

/// Residual blocks of one resolution, the first of which changes the number of channels.
fn residuals(
    weights: &Weights,
    inputs: usize,
    outputs: usize,
    count: usize,
    groups: usize,
) -> WeightsResult<Vec<ResidualBlock>> {
    (0..count)
        .map(|layer| {
            residual(
                &weights.at(format!("resnets.{layer}")),
                if layer == 0 { inputs } else { outputs },
                outputs,
                groups,
            )
        })
        .collect()
}

struct Encoder {
    input: Conv2d,
    blocks: Vec<(Vec<ResidualBlock>, Option<Conv2d>)>,
    middle: MiddleBlock,
    output_norm: GroupNorm,
    output: Conv2d,
}

impl Encoder {
    fn load(weights: &Weights, config: &VaeConfig) -> WeightsResult<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let last = channels[channels.len() - 1];
        let block = |index: usize| {
            let weights = weights.at(format!("down_blocks.{index}"));
            let outputs = channels[index];
            let downsampler = (index + 1 < channels.len()).then(|| {
                Conv2d::load(&weights.at("downsamplers.0.conv"), outputs, outputs, Window::HALF_AFTER)
            });
            Ok((
                residuals(
                    &weights,
                    channels[index.saturating_sub(1)],
                    outputs,
                    config.layers_per_block,
                    groups,
                )?,
                downsampler.transpose()?,
            ))
        };
        Ok(Self {
            input: Conv2d::load(&weights.at("conv_in"), 3, channels[0], Window::SAME)?,
            blocks: (0..channels.len()).map(block).collect::<WeightsResult<_>>()?,
            middle: MiddleBlock::load(&weights.at("mid_block"), last, groups)?,
            output_norm: GroupNorm::load(&weights.at("conv_norm_out"), groups, last, EPSILON)?,
            output: Conv2d::load(&weights.at("conv_out"), last, 2 * config.latent_channels, Window::SAME)?,
        })
    }

    fn forward(&self, pictures: &FeatureMap) -> Result<FeatureMap> {
        let mut hidden = self.input.forward(pictures)?;
        for (residuals, downsampler) in &self.blocks {
            for residual in residuals {
                hidden = residual.forward(hidden, None)?;
            }
            if let Some(downsampler) = downsampler {
                hidden = downsampler.forward(&hidden)?;
            }
        }
        hidden = self.middle.forward(hidden)?;
        self.output.forward(&self.output_norm.forward_silu(&hidden)?)
    }
}

struct Decoder {
    input: Conv2d,
    middle: MiddleBlock,
    blocks: Vec<(Vec<ResidualBlock>, Option<Upsampler>)>,
    output_norm: GroupNorm,
    output: Conv2d,
}

impl Decoder {
    fn load(weights: &Weights, config: &VaeConfig) -> WeightsResult<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let block = |index: usize| {
            let weights = weights.at(format!("up_blocks.{index}"));
            let level = channels.len() - 1 - index;
            let (inputs, outputs) = (channels[(level + 1).min(channels.len() - 1)], channels[level]);
            let upsampler = (level > 0).then(|| Upsampler::load(&weights.at("upsamplers.0"), outputs));
            Ok((
                residuals(&weights, inputs, outputs, config.layers_per_block + 1, groups)?,
                upsampler.transpose()?,
            ))
        };
        Ok(Self {
            input: Conv2d::load(&weights.at("conv_in"), config.latent_channels, last, Window::SAME)?,
            middle: MiddleBlock::load(&weights.at("mid_block"), last, groups)?,
            blocks: (0..channels.len()).map(block).collect::<WeightsResult<_>>()?,
            output_norm: GroupNorm::load(&weights.at("conv_norm_out"), groups, first, EPSILON)?,
            output: Conv2d::load(&weights.at("conv_out"), first, 3, Window::SAME)?,
        })
    }

    fn forward(&self, latents: &FeatureMap) -> Result<FeatureMap> {
        let mut hidden = self.middle.forward(self.input.forward(latents)?)?;
        for (residuals, upsampler) in &self.blocks {
            for residual in residuals {
                hidden = residual.forward(hidden, None)?;
            }
            if let Some(upsampler) = upsampler {
                hidden = upsampler.forward(&hidden)?;
            }
        }
        self.output.forward(&self.output_norm.forward_silu(&hidden)?)
    }
}

struct MiddleBlock {
    before: ResidualBlock,
    attention: PixelAttention,
    after: ResidualBlock,
}

impl MiddleBlock {
    fn load(weights: &Weights, channels: usize, groups: usize) -> WeightsResult<Self> {
        Ok(Self {
            before: residual(&weights.at("resnets.0"), channels, channels, groups)?,
            attention: PixelAttention::load(&weights.at("attentions.0"), channels, groups)?,
            after: residual(&weights.at("resnets.1"), channels, channels, groups)?,
        })
    }

    fn forward(&self, input: FeatureMap) -> Result<FeatureMap> {
        self.after.forward(self.attention.forward(&self.before.forward(input, None)?)?, None)
    }
}

/// Attention of all pixels to each other, with one head.
struct PixelAttention {
    norm: GroupNorm,
    queries_keys_values: Linear,
    output: Linear,
    head: Heads,
}

impl PixelAttention {
    fn load(weights: &Weights, channels: usize, groups: usize) -> WeightsResult<Self> {
        // Files written before diffusers 0.17 use the second names.
        let (joined, output) = if weights.contains("to_q.weight") {
            (["to_q", "to_k", "to_v"], "to_out.0")
        } else {
            (["query", "key", "value"], "proj_attn")
        };
        Ok(Self {
            norm: GroupNorm::load(&weights.at("group_norm"), groups, channels, EPSILON)?,
            queries_keys_values: Linear::load_joined(
                &joined.map(|name| weights.at(name)),
                channels,
                channels,
                true,
            )?,
            output: Linear::load(&weights.at(output), channels, channels)?,
            head: Heads::new(weights, channels, 1),
        })
    }

    fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        let extent = input.extent()?;
        let joined = self.queries_keys_values.forward(&self.norm.forward(input)?.to_tokens()?)?;
        let attended = self.head.attend_within(&joined, false)?;
        let output = self.output.forward_add(&attended, &input.to_tokens()?)?;
        FeatureMap::from_tokens(&output, extent.height, extent.width)
    }
}
