//! The contracting path of a UNet, down to its middle. A ControlNet is a trained copy of it.

use candle_core::{Result, Tensor};

use super::blocks::{NormFigures, ResidualBlock, ResidualFigures, TimeUse};
use super::config::ContractingConfig;
use super::embeddings::{AdditionEmbedding, Sinusoids, SizeFigures, TimeEmbedding};
use super::transformer::{PreparedContext, SpatialTransformer, TransformerFigures};
use crate::layers::{Activation, Conv2d, ConvExtras, FeatureMap, Window};
use crate::weights::{Weights, WeightsResult};

/// The text features that condition a network.
pub(crate) struct TextConditioning<'a> {
    /// `[batch, tokens, channels]`.
    pub(crate) context: &'a Tensor,
    /// `[batch, channels]`; used by networks with an addition embedding.
    pub(crate) pooled: &'a Tensor,
    pub(crate) size: SizeFigures,
}

/// What one prompt, or a batch of prompts, means to a network: computed once for all steps.
pub(crate) struct Conditioning {
    /// In the order in which the network runs its transformers.
    pub(super) contexts: Vec<PreparedContext>,
    /// Added to the time embedding, `[batch, time channels]`.
    addition: Option<Tensor>,
}

/// The contexts of the transformers still to run.
pub(super) type Contexts<'a> = std::slice::Iter<'a, PreparedContext>;

pub(super) fn attend_next(
    attention: &SpatialTransformer,
    hidden: &FeatureMap,
    contexts: &mut Contexts,
) -> Result<FeatureMap> {
    match contexts.next() {
        Some(context) => attention.forward(hidden, context),
        None => candle_core::bail!("the conditioning was prepared by another network"),
    }
}

/// What the contracting path gives.
pub(super) struct Contracted {
    /// The output of the middle block.
    pub(super) middle: FeatureMap,
    /// The output of the first convolution, of each layer and of each downsampler, in order.
    pub(super) skips: Vec<FeatureMap>,
}

/// The contracting path and the middle block.
pub(super) struct ContractingPath {
    input: Conv2d,
    time: TimeEmbedding,
    addition: Option<AdditionEmbedding>,
    down: Vec<DownBlock>,
    middle: MiddleBlock,
}

impl ContractingPath {
    pub(super) fn load(weights: &Weights, config: &ContractingConfig) -> WeightsResult<Self> {
        let channels = &config.block_out_channels;
        let builder = Builder::new(weights, config);
        let down_block =
            |block: usize| builder.down_block(block, channels[if block == 0 { 0 } else { block - 1 }]);
        Ok(Self {
            input: Conv2d::load(&weights.at("conv_in"), config.in_channels, channels[0], Window::SAME)?,
            time: builder.time_embedding()?,
            addition: config
                .addition()
                .map(|addition| AdditionEmbedding::load(weights, config, addition, builder.time_channels))
                .transpose()?,
            down: (0..channels.len()).map(down_block).collect::<WeightsResult<_>>()?,
            middle: builder.middle_block(channels[channels.len() - 1])?,
        })
    }

    /// Computes what does not change from step to step, for the transformers of this path.
    pub(super) fn prepare(&self, text: &TextConditioning) -> Result<Conditioning> {
        let down = self.down.iter().flat_map(|block| &block.attentions);
        let transformers = down.chain(self.middle.tail.as_ref().map(|(attention, _)| attention));
        let contexts =
            transformers.map(|transformer| transformer.prepare(text.context)).collect::<Result<_>>()?;
        let addition =
            self.addition.as_ref().map(|addition| addition.forward(text.pooled, text.size)).transpose()?;
        Ok(Conditioning { contexts, addition })
    }

    /// SiLU of the time embedding, `[batch or 1, time channels]`. `like`: a tensor of the device and format.
    pub(super) fn time(&self, timestep: f64, conditioning: &Conditioning, like: &Tensor) -> Result<Tensor> {
        let mut time = self.time.forward(timestep, like)?;
        if let Some(addition) = &conditioning.addition {
            time = addition.broadcast_add(&time)?;
        }
        Activation::Silu.forward(&time)
    }

    /// `hint`: added to the output of the first convolution.
    pub(super) fn forward(
        &self,
        latents: &FeatureMap,
        hint: Option<&FeatureMap>,
        time: &Tensor,
        contexts: &mut Contexts,
    ) -> Result<Contracted> {
        let mut hidden =
            self.input.forward_with(latents, ConvExtras { residual: hint, ..Default::default() })?;
        let mut skips = vec![hidden.clone()];
        for block in &self.down {
            hidden = block.forward(hidden, time, contexts, &mut skips)?;
        }
        Ok(Contracted { middle: self.middle.forward(hidden, time, contexts)?, skips })
    }
}

/// What the loaders of all blocks need.
pub(super) struct Builder<'a> {
    weights: &'a Weights,
    config: &'a ContractingConfig,
    time_channels: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(weights: &'a Weights, config: &'a ContractingConfig) -> Self {
        Self { weights, config, time_channels: 4 * config.block_out_channels[0] }
    }

    fn time_embedding(&self) -> WeightsResult<TimeEmbedding> {
        let sinusoids = Sinusoids {
            channels: self.config.block_out_channels[0],
            cosines_first: self.config.flip_sin_to_cos,
            shift: self.config.freq_shift,
        };
        let channels = self.time_channels;
        TimeEmbedding::load(&self.weights.at("time_embedding"), sinusoids, channels, channels)
    }

    pub(super) fn residual(
        &self,
        weights: &Weights,
        inputs: usize,
        outputs: usize,
    ) -> WeightsResult<ResidualBlock> {
        let norm = NormFigures { groups: self.config.norm_num_groups, epsilon: self.config.norm_eps };
        let figures = ResidualFigures { inputs, outputs, time: TimeUse::Added(self.time_channels), norm };
        ResidualBlock::load(weights, figures)
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

    /// `kind`: the block's name in diffusers; `block` counts from the outside.
    pub(super) fn transformers(
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
        let tail = || -> WeightsResult<_> {
            let block = self.config.block_out_channels.len() - 1;
            let attention = self.transformer(&weights.at("attentions.0"), block)?;
            Ok((attention, self.residual(&weights.at("resnets.1"), channels, channels)?))
        };
        Ok(MiddleBlock {
            head: self.residual(&weights.at("resnets.0"), channels, channels)?,
            tail: self.config.has_middle_attention().then(tail).transpose()?,
        })
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
            hidden = residual.forward(hidden, Some(time))?;
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
    head: ResidualBlock,
    /// Not in small ControlNets.
    tail: Option<(SpatialTransformer, ResidualBlock)>,
}

impl MiddleBlock {
    fn forward(&self, hidden: FeatureMap, time: &Tensor, contexts: &mut Contexts) -> Result<FeatureMap> {
        let hidden = self.head.forward(hidden, Some(time))?;
        match &self.tail {
            Some((attention, residual)) => {
                residual.forward(attend_next(attention, &hidden, contexts)?, Some(time))
            }
            None => Ok(hidden),
        }
    }
}
