//! The autoencoder between pictures and latents: MoVQ (Zheng et al. 2022), diffusers' `VQModel` with
//! spatial normalisation. Kandinsky 2.2 never quantises, so the codebook is not read.

use candle_core::{Result, Tensor};

use super::config::MovqConfig;
use crate::layers::attention::Heads;
use crate::layers::{Conv2d, ConvExtras, FeatureMap, GroupNorm, Linear, SpatialNorm, Window};
use crate::weights::{Weights, WeightsResult};

/// The autoencoder's normalisations use this, whatever its config says.
const EPSILON: f64 = 1e-6;

/// An autoencoder of RGB pictures in −1 … 1.
pub(super) struct Movq {
    encoder: Encoder,
    quantise: Conv2d,
    dequantise: Conv2d,
    decoder: Decoder,
}

impl Movq {
    pub(super) fn load(weights: &Weights, config: &MovqConfig) -> WeightsResult<Self> {
        let latents = config.latent_channels;
        let point = |name: &str| Conv2d::load(&weights.at(name), latents, latents, Window::POINT);
        Ok(Self {
            encoder: Encoder::load(&weights.at("encoder"), config)?,
            quantise: point("quant_conv")?,
            dequantise: point("post_quant_conv")?,
            decoder: Decoder::load(&weights.at("decoder"), config)?,
        })
    }

    /// Encodes `[batch, 3, height, width]` to `[batch, latent channels, height / scale, width / scale]`.
    pub(super) fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        let hidden = self.encoder.forward(&FeatureMap::from_channels_first(pictures)?)?;
        self.quantise.forward(&hidden)?.to_channels_first()
    }

    /// Decodes `[batch, latent channels, height, width]`; the result is not clamped.
    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = FeatureMap::from_channels_first(latents)?;
        self.decoder.forward(&self.dequantise.forward(&latents)?, &latents)?.to_channels_first()
    }
}

/// How a part of the autoencoder normalises.
#[derive(Debug, Clone, Copy)]
enum NormKind {
    /// The encoder, over this many groups.
    Groups(usize),
    /// The decoder, by what latents of this many channels say.
    Spatial(usize),
}

enum Norm {
    Group(GroupNorm),
    Spatial(SpatialNorm),
}

impl Norm {
    fn load(weights: &Weights, kind: NormKind, channels: usize) -> WeightsResult<Self> {
        match kind {
            NormKind::Groups(groups) => Ok(Self::Group(GroupNorm::load(weights, groups, channels, EPSILON)?)),
            NormKind::Spatial(latents) => Ok(Self::Spatial(SpatialNorm::load(weights, channels, latents)?)),
        }
    }

    /// `latents`: those of the decoder.
    fn forward(&self, input: &FeatureMap, latents: Option<&FeatureMap>, silu: bool) -> Result<FeatureMap> {
        match (self, latents) {
            (Self::Group(norm), _) if silu => norm.forward_silu(input),
            (Self::Group(norm), _) => norm.forward(input),
            (Self::Spatial(norm), Some(latents)) => norm.forward(input, latents, silu),
            (Self::Spatial(_), None) => candle_core::bail!("a spatial normalisation needs latents"),
        }
    }
}

/// Two convolutions around a shortcut.
struct ResidualBlock {
    first_norm: Norm,
    first: Conv2d,
    second_norm: Norm,
    second: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    fn load(weights: &Weights, inputs: usize, outputs: usize, kind: NormKind) -> WeightsResult<Self> {
        let shortcut = (inputs != outputs)
            .then(|| Conv2d::load(&weights.at("conv_shortcut"), inputs, outputs, Window::POINT));
        Ok(Self {
            first_norm: Norm::load(&weights.at("norm1"), kind, inputs)?,
            first: Conv2d::load(&weights.at("conv1"), inputs, outputs, Window::SAME)?,
            second_norm: Norm::load(&weights.at("norm2"), kind, outputs)?,
            second: Conv2d::load(&weights.at("conv2"), outputs, outputs, Window::SAME)?,
            shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, input: &FeatureMap, latents: Option<&FeatureMap>) -> Result<FeatureMap> {
        let hidden = self.first.forward(&self.first_norm.forward(input, latents, true)?)?;
        let hidden = self.second_norm.forward(&hidden, latents, true)?;
        let shortcut = self.shortcut.as_ref().map(|conv| conv.forward(input)).transpose()?;
        let residual = Some(shortcut.as_ref().unwrap_or(input));
        self.second.forward_with(&hidden, ConvExtras { residual, ..Default::default() })
    }
}

/// Attention of all pixels to each other, with one head.
struct PixelAttention {
    norm: Norm,
    queries_keys_values: Linear,
    output: Linear,
    head: Heads,
}

impl PixelAttention {
    fn load(weights: &Weights, channels: usize, kind: NormKind) -> WeightsResult<Self> {
        // Files written before diffusers 0.17 use the second names.
        let (joined, output) = if weights.contains("to_q.weight") {
            (["to_q", "to_k", "to_v"], "to_out.0")
        } else {
            (["query", "key", "value"], "proj_attn")
        };
        let norm = match kind {
            NormKind::Groups(_) => weights.at("group_norm"),
            NormKind::Spatial(_) => weights.at("spatial_norm"),
        };
        let joined = joined.map(|name| weights.at(name));
        Ok(Self {
            norm: Norm::load(&norm, kind, channels)?,
            queries_keys_values: Linear::load_joined(&joined, channels, channels, true)?,
            output: Linear::load(&weights.at(output), channels, channels)?,
            head: Heads::new(weights, channels, 1),
        })
    }

    fn forward(&self, input: &FeatureMap, latents: Option<&FeatureMap>) -> Result<FeatureMap> {
        let extent = input.extent()?;
        let normal = self.norm.forward(input, latents, false)?;
        let joined = self.queries_keys_values.forward(&normal.to_tokens()?)?;
        let attended = self.head.attend_within(&joined, false)?;
        let output = self.output.forward_add(&attended, &input.to_tokens()?)?;
        FeatureMap::from_tokens(&output, extent.height, extent.width)
    }
}

/// Residual blocks of one resolution, each with an attention or none of them, then another resolution.
struct Block {
    residuals: Vec<ResidualBlock>,
    attentions: Vec<PixelAttention>,
    resize: Option<Conv2d>,
}

impl Block {
    fn load(
        weights: &Weights,
        (inputs, outputs): (usize, usize),
        layers: usize,
        has_attention: bool,
        kind: NormKind,
    ) -> WeightsResult<Self> {
        let residual = |layer: usize| {
            let inputs = if layer == 0 { inputs } else { outputs };
            ResidualBlock::load(&weights.at(format!("resnets.{layer}")), inputs, outputs, kind)
        };
        let attention =
            |layer| PixelAttention::load(&weights.at(format!("attentions.{layer}")), outputs, kind);
        let attentions = if has_attention { layers } else { 0 };
        Ok(Self {
            residuals: (0..layers).map(residual).collect::<WeightsResult<_>>()?,
            attentions: (0..attentions).map(attention).collect::<WeightsResult<_>>()?,
            resize: None,
        })
    }

    fn forward(&self, mut hidden: FeatureMap, latents: Option<&FeatureMap>) -> Result<FeatureMap> {
        for (layer, residual) in self.residuals.iter().enumerate() {
            hidden = residual.forward(&hidden, latents)?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attention.forward(&hidden, latents)?;
            }
        }
        match &self.resize {
            // The decoder grows, the encoder shrinks.
            Some(conv) => {
                conv.forward_with(&hidden, ConvExtras { upsample: latents.is_some(), ..Default::default() })
            }
            None => Ok(hidden),
        }
    }
}

struct MiddleBlock {
    before: ResidualBlock,
    attention: PixelAttention,
    after: ResidualBlock,
}

impl MiddleBlock {
    fn load(weights: &Weights, channels: usize, kind: NormKind) -> WeightsResult<Self> {
        let residual = |name: &str| ResidualBlock::load(&weights.at(name), channels, channels, kind);
        Ok(Self {
            before: residual("resnets.0")?,
            attention: PixelAttention::load(&weights.at("attentions.0"), channels, kind)?,
            after: residual("resnets.1")?,
        })
    }

    fn forward(&self, input: &FeatureMap, latents: Option<&FeatureMap>) -> Result<FeatureMap> {
        let hidden = self.attention.forward(&self.before.forward(input, latents)?, latents)?;
        self.after.forward(&hidden, latents)
    }
}

struct Encoder {
    input: Conv2d,
    blocks: Vec<Block>,
    middle: MiddleBlock,
    output_norm: Norm,
    output: Conv2d,
}

impl Encoder {
    fn load(weights: &Weights, config: &MovqConfig) -> WeightsResult<Self> {
        let (channels, kind) = (&config.block_out_channels, NormKind::Groups(config.norm_num_groups));
        let last = channels[channels.len() - 1];
        let block = |index: usize| {
            let weights = weights.at(format!("down_blocks.{index}"));
            let (inputs, outputs) = (channels[index.saturating_sub(1)], channels[index]);
            let has_attention = config.down_block_types[index].starts_with("Attn");
            let mut block =
                Block::load(&weights, (inputs, outputs), config.layers_per_block, has_attention, kind)?;
            if index + 1 < channels.len() {
                let weights = weights.at("downsamplers.0.conv");
                block.resize = Some(Conv2d::load(&weights, outputs, outputs, Window::HALF_AFTER)?);
            }
            Ok(block)
        };
        Ok(Self {
            input: Conv2d::load(&weights.at("conv_in"), 3, channels[0], Window::SAME)?,
            blocks: (0..channels.len()).map(block).collect::<WeightsResult<_>>()?,
            middle: MiddleBlock::load(&weights.at("mid_block"), last, kind)?,
            output_norm: Norm::load(&weights.at("conv_norm_out"), kind, last)?,
            output: Conv2d::load(&weights.at("conv_out"), last, config.latent_channels, Window::SAME)?,
        })
    }

    fn forward(&self, pictures: &FeatureMap) -> Result<FeatureMap> {
        let mut hidden = self.input.forward(pictures)?;
        for block in &self.blocks {
            hidden = block.forward(hidden, None)?;
        }
        hidden = self.middle.forward(&hidden, None)?;
        self.output.forward(&self.output_norm.forward(&hidden, None, true)?)
    }
}

struct Decoder {
    input: Conv2d,
    middle: MiddleBlock,
    blocks: Vec<Block>,
    output_norm: Norm,
    output: Conv2d,
}

impl Decoder {
    fn load(weights: &Weights, config: &MovqConfig) -> WeightsResult<Self> {
        let (channels, kind) = (&config.block_out_channels, NormKind::Spatial(config.latent_channels));
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let block = |index: usize| {
            let weights = weights.at(format!("up_blocks.{index}"));
            let level = channels.len() - 1 - index;
            let (inputs, outputs) = (channels[(level + 1).min(channels.len() - 1)], channels[level]);
            let has_attention = config.up_block_types[index].starts_with("Attn");
            let layers = config.layers_per_block + 1;
            let mut block = Block::load(&weights, (inputs, outputs), layers, has_attention, kind)?;
            if level > 0 {
                let weights = weights.at("upsamplers.0.conv");
                block.resize = Some(Conv2d::load(&weights, outputs, outputs, Window::SAME)?);
            }
            Ok(block)
        };
        Ok(Self {
            input: Conv2d::load(&weights.at("conv_in"), config.latent_channels, last, Window::SAME)?,
            middle: MiddleBlock::load(&weights.at("mid_block"), last, kind)?,
            blocks: (0..channels.len()).map(block).collect::<WeightsResult<_>>()?,
            output_norm: Norm::load(&weights.at("conv_norm_out"), kind, first)?,
            output: Conv2d::load(&weights.at("conv_out"), first, 3, Window::SAME)?,
        })
    }

    /// `hidden`: what the first convolution reads; `latents`: what the normalisations read.
    fn forward(&self, hidden: &FeatureMap, latents: &FeatureMap) -> Result<FeatureMap> {
        let latents = Some(latents);
        let mut hidden = self.middle.forward(&self.input.forward(hidden)?, latents)?;
        for block in &self.blocks {
            hidden = block.forward(hidden, latents)?;
        }
        self.output.forward(&self.output_norm.forward(&hidden, latents, true)?)
    }
}
