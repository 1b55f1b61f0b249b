//! The network that predicts the noise in latents: diffusers' `UNet2DConditionModel`.

use candle_core::{Result, Tensor};

use super::blocks::{NormFigures, ResidualBlock, Upsampler};
use super::config::{AdditionConfig, UNetConfig};
use super::transformer::{PreparedContext, SpatialTransformer, TransformerFigures};
use crate::layers::{Activation, Conv2d, FeatureMap, GroupNorm, Linear, Window};
use crate::weights::{Weights, WeightsResult};

/// What one prompt, or a batch of prompts, means to the UNet: computed once for all steps.
pub(crate) struct Conditioning {
    /// In the order of [`UNet::transformers`].
    contexts: Vec<PreparedContext>,
    /// Added to the time embedding, `[batch, time channels]`.
    addition: Option<Tensor>,
}

/// SDXL's figures of a picture: its size, the crop's corner, the size asked for, height first.
pub(crate) type SizeFigures = [f64; 6];

/// The text features that condition a UNet.
pub(crate) struct TextConditioning<'a> {
    /// `[batch, tokens, channels]`.
    pub(crate) context: &'a Tensor,
    /// `[batch, channels]`; used by networks with an addition embedding.
    pub(crate) pooled: &'a Tensor,
    pub(crate) size: SizeFigures,
}

/// A denoising UNet.
pub(crate) struct UNet {
    input: Conv2d,
    time: TimeEmbedding,
    addition: Option<AdditionEmbedding>,
    down: Vec<DownBlock>,
    middle: MiddleBlock,
    up: Vec<UpBlock>,
    output_norm: GroupNorm,
    output: Conv2d,
}

impl UNet {
    pub(crate) fn load(weights: &Weights, config: &UNetConfig) -> WeightsResult<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let builder = Builder { weights, config, time_channels: 4 * first };
        let up_block = |index: usize| {
            let (block, lower) = (channels.len() - 1 - index, channels.len() - index);
            builder.up_block(index, block, channels[lower.min(channels.len() - 1)])
        };
        let down_block =
            |block: usize| builder.down_block(block, if block == 0 { first } else { channels[block - 1] });
        Ok(Self {
            input: Conv2d::load(&weights.at("conv_in"), config.in_channels, first, Window::SAME)?,
            time: TimeEmbedding::load(weights, config, builder.time_channels)?,
            addition: config
                .addition()
                .map(|addition| AdditionEmbedding::load(weights, config, addition, builder.time_channels))
                .transpose()?,
            down: (0..channels.len()).map(down_block).collect::<WeightsResult<_>>()?,
            middle: builder.middle_block(last)?,
            up: (0..channels.len()).map(up_block).collect::<WeightsResult<_>>()?,
            output_norm: GroupNorm::load(
                &weights.at("conv_norm_out"),
                config.norm_num_groups,
                first,
                config.norm_eps,
            )?,
            output: Conv2d::load(&weights.at("conv_out"), first, config.out_channels, Window::SAME)?,
        })
    }

    /// All transformers in the order that `forward` runs them.
    fn transformers(&self) -> impl Iterator<Item = &SpatialTransformer> {
        let down = self.down.iter().flat_map(|block| &block.attentions);
        let up = self.up.iter().flat_map(|block| &block.attentions);
        down.chain([&self.middle.attention]).chain(up)
    }

    /// Computes what does not change from step to step.
    pub(crate) fn prepare(&self, text: &TextConditioning) -> Result<Conditioning> {
        let contexts = self
            .transformers()
            .map(|transformer| transformer.prepare(text.context))
            .collect::<Result<_>>()?;
        let addition =
            self.addition.as_ref().map(|addition| addition.forward(text.pooled, text.size)).transpose()?;
        Ok(Conditioning { contexts, addition })
    }

    /// Predicts from `latents` at a timestep of training.
    pub(crate) fn forward(
        &self,
        latents: &FeatureMap,
        timestep: f64,
        conditioning: &Conditioning,
    ) -> Result<FeatureMap> {
        let mut time = self.time.forward(timestep, latents.native())?;
        if let Some(addition) = &conditioning.addition {
            time = addition.broadcast_add(&time)?;
        }
        let time = Activation::Silu.forward(&time)?;
        let mut contexts = conditioning.contexts.iter();
        let mut hidden = self.input.forward(latents)?;
        let mut skips = vec![hidden.clone()];
        for block in &self.down {
            hidden = block.forward(hidden, &time, &mut contexts, &mut skips)?;
        }
        hidden = self.middle.forward(&hidden, &time, &mut contexts)?;
        for block in &self.up {
            hidden = block.forward(hidden, &time, &mut contexts, &mut skips)?;
        }
        self.output.forward(&self.output_norm.forward_silu(&hidden)?)
    }
}

/// What the loaders of all blocks need.
struct Builder<'a> {
    weights: &'a Weights,
    config: &'a UNetConfig,
    time_channels: usize,
}

impl Builder<'_> {
    fn residual(&self, weights: &Weights, inputs: usize, outputs: usize) -> WeightsResult<ResidualBlock> {
        let norm = NormFigures { groups: self.config.norm_num_groups, epsilon: self.config.norm_eps };
        ResidualBlock::load(weights, inputs, outputs, Some(self.time_channels), norm)
    }

    fn transformer(&self, weights: &Weights, block: usize) -> WeightsResult<SpatialTransformer> {
        let missing = || weights.unsuitable(format!("the config says nothing of block {block}"));
        let figures = TransformerFigures {
            channels: self.config.block_out_channels[block],
            heads: self.config.heads(block).ok_or_else(missing)?,
            layers: self.config.transformer_layers_per_block.get(block).ok_or_else(missing)?,
            context: self.config.cross_attention_dim,
        };
        SpatialTransformer::load(weights, figures, self.config.norm_num_groups)
    }

    fn transformers(
        &self,
        weights: &Weights,
        kind: &str,
        block: usize,
        count: usize,
    ) -> WeightsResult<Vec<SpatialTransformer>> {
        let count = if kind.starts_with("CrossAttn") { count } else { 0 };
        (0..count).map(|layer| self.transformer(&weights.at(format!("attentions.{layer}")), block)).collect()
    }

    fn down_block(&self, block: usize, inputs: usize) -> WeightsResult<DownBlock> {
        let weights = self.weights.at(format!("down_blocks.{block}"));
        let layers = self.config.layers_per_block;
        let outputs = self.config.block_out_channels[block];
        let residual = |layer: usize| {
            self.residual(
                &weights.at(format!("resnets.{layer}")),
                if layer == 0 { inputs } else { outputs },
                outputs,
            )
        };
        let is_last = block + 1 == self.config.block_out_channels.len();
        let downsampler = (!is_last)
            .then(|| Conv2d::load(&weights.at("downsamplers.0.conv"), outputs, outputs, Window::HALF));
        Ok(DownBlock {
            residuals: (0..layers).map(residual).collect::<WeightsResult<_>>()?,
            attentions: self.transformers(&weights, &self.config.down_block_types[block], block, layers)?,
            downsampler: downsampler.transpose()?,
        })
    }

    fn middle_block(&self, channels: usize) -> WeightsResult<MiddleBlock> {
        let weights = self.weights.at("mid_block");
        Ok(MiddleBlock {
            before: self.residual(&weights.at("resnets.0"), channels, channels)?,
            attention: self
                .transformer(&weights.at("attentions.0"), self.config.block_out_channels.len() - 1)?,
            after: self.residual(&weights.at("resnets.1"), channels, channels)?,
        })
    }

    /// `index` counts from the inside, `block` from the outside; `inputs` come from below.
    fn up_block(&self, index: usize, block: usize, inputs: usize) -> WeightsResult<UpBlock> {
        let weights = self.weights.at(format!("up_blocks.{index}"));
        let channels = &self.config.block_out_channels;
        let layers = self.config.layers_per_block + 1;
        let outputs = channels[block];
        let residual = |layer: usize| {
            let skipped = if layer + 1 == layers { channels[block.saturating_sub(1)] } else { outputs };
            let below = if layer == 0 { inputs } else { outputs };
            self.residual(&weights.at(format!("resnets.{layer}")), below + skipped, outputs)
        };
        let upsampler = (block > 0).then(|| Upsampler::load(&weights.at("upsamplers.0"), outputs));
        Ok(UpBlock {
            residuals: (0..layers).map(residual).collect::<WeightsResult<_>>()?,
            attentions: self.transformers(&weights, &self.config.up_block_types[index], block, layers)?,
            upsampler: upsampler.transpose()?,
        })
    }
}

/// The contexts of the transformers still to run.
type Contexts<'a> = std::slice::Iter<'a, PreparedContext>;

fn attend_next(
    attention: &SpatialTransformer,
    hidden: &FeatureMap,
    contexts: &mut Contexts,
) -> Result<FeatureMap> {
    match contexts.next() {
        Some(context) => attention.forward(hidden, context),
        None => candle_core::bail!("the conditioning was prepared by another network"),
    }
}

struct DownBlock {
    residuals: Vec<ResidualBlock>,
    /// One for each residual block, or none.
    attentions: Vec<SpatialTransformer>,
    downsampler: Option<Conv2d>,
}

impl DownBlock {
    fn forward(
        &self,
        mut hidden: FeatureMap,
        time: &Tensor,
        contexts: &mut Contexts,
        skips: &mut Vec<FeatureMap>,
    ) -> Result<FeatureMap> {
        for (layer, residual) in self.residuals.iter().enumerate() {
            hidden = residual.forward(&hidden, Some(time))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attend_next(attention, &hidden, contexts)?;
            }
            skips.push(hidden.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            hidden = downsampler.forward(&hidden)?;
            skips.push(hidden.clone());
        }
        Ok(hidden)
    }
}

struct MiddleBlock {
    before: ResidualBlock,
    attention: SpatialTransformer,
    after: ResidualBlock,
}

impl MiddleBlock {
    fn forward(&self, hidden: &FeatureMap, time: &Tensor, contexts: &mut Contexts) -> Result<FeatureMap> {
        let hidden = self.before.forward(hidden, Some(time))?;
        self.after.forward(&attend_next(&self.attention, &hidden, contexts)?, Some(time))
    }
}

struct UpBlock {
    residuals: Vec<ResidualBlock>,
    /// One for each residual block, or none.
    attentions: Vec<SpatialTransformer>,
    upsampler: Option<Upsampler>,
}

impl UpBlock {
    fn forward(
        &self,
        mut hidden: FeatureMap,
        time: &Tensor,
        contexts: &mut Contexts,
        skips: &mut Vec<FeatureMap>,
    ) -> Result<FeatureMap> {
        for (layer, residual) in self.residuals.iter().enumerate() {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the up blocks are more than the down blocks")
            };
            hidden = residual.forward(&hidden.concatenate(&skip)?, Some(time))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attend_next(attention, &hidden, contexts)?;
            }
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&hidden),
            None => Ok(hidden),
        }
    }
}

/// Sines and cosines of figures, `channels` values each.
#[derive(Debug, Clone, Copy)]
struct Sinusoids {
    channels: usize,
    cosines_first: bool,
    shift: f64,
}

impl Sinusoids {
    /// One row for each figure: `[figures, channels]`. `like`: a tensor of the device and format.
    fn forward(self, figures: &[f64], like: &Tensor) -> Result<Tensor> {
        const LONGEST_PERIOD: f64 = 10_000.0;
        let half = self.channels / 2;
        let mut values = Vec::with_capacity(figures.len() * self.channels);
        for figure in figures {
            let angle = |index: usize| {
                let exponent = -LONGEST_PERIOD.ln() as f32 * index as f32 / (half as f64 - self.shift) as f32;
                *figure as f32 * exponent.exp()
            };
            let sines = (0..half).map(|index| angle(index).sin());
            let cosines = (0..half).map(|index| angle(index).cos());
            if self.cosines_first {
                values.extend(cosines.chain(sines))
            } else {
                values.extend(sines.chain(cosines))
            }
            values.resize(values.len() + self.channels % 2, 0.0);
        }
        Tensor::from_vec(values, (figures.len(), self.channels), like.device())?.to_dtype(like.dtype())
    }
}

struct TimeEmbedding {
    sinusoids: Sinusoids,
    first: Linear,
    second: Linear,
}

impl TimeEmbedding {
    fn load(weights: &Weights, config: &UNetConfig, channels: usize) -> WeightsResult<Self> {
        let inputs = config.block_out_channels[0];
        let weights = weights.at("time_embedding");
        Ok(Self {
            sinusoids: Sinusoids {
                channels: inputs,
                cosines_first: config.flip_sin_to_cos,
                shift: config.freq_shift,
            },
            first: Linear::load(&weights.at("linear_1"), inputs, channels)?,
            second: Linear::load(&weights.at("linear_2"), channels, channels)?,
        })
    }

    fn forward(&self, timestep: f64, like: &Tensor) -> Result<Tensor> {
        let embedded = self.sinusoids.forward(&[timestep], like)?;
        self.second.forward(&self.first.forward_activated(&embedded, Activation::Silu)?)
    }
}

struct AdditionEmbedding {
    sinusoids: Sinusoids,
    first: Linear,
    second: Linear,
}

impl AdditionEmbedding {
    fn load(
        weights: &Weights,
        config: &UNetConfig,
        addition: AdditionConfig,
        channels: usize,
    ) -> WeightsResult<Self> {
        let weights = weights.at("add_embedding");
        Ok(Self {
            sinusoids: Sinusoids {
                channels: addition.figure_channels,
                cosines_first: config.flip_sin_to_cos,
                shift: config.freq_shift,
            },
            first: Linear::load(&weights.at("linear_1"), addition.inputs, channels)?,
            second: Linear::load(&weights.at("linear_2"), channels, channels)?,
        })
    }

    fn forward(&self, pooled: &Tensor, size: SizeFigures) -> Result<Tensor> {
        let batch = pooled.dim(0)?;
        let figures = self.sinusoids.forward(&size, pooled)?.reshape((1, ()))?;
        let figures = figures.broadcast_as((batch, figures.dim(1)?))?;
        let joined = Tensor::cat(&[pooled, &figures.contiguous()?], 1)?;
        self.second.forward(&self.first.forward_activated(&joined, Activation::Silu)?)
    }
}
