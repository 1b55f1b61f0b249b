//! The decoder's network: diffusers' `UNet2DConditionModel` as Kandinsky 2.2 has it. The timestep and
//! the embedding scale and shift every block, residual blocks shrink and grow the picture, and pixels
//! attend to each other and to tokens of the embedding in one attention.

use candle_core::{Result, Tensor};

use super::config::DecoderConfig;
use crate::diffusion::blocks::{NormFigures, ResidualBlock, ResidualFigures, Resizing, TimeUse};
use crate::diffusion::embeddings::{Sinusoids, TimeEmbedding};
use crate::layers::attention::{Heads, KeyValueColumns, attend};
use crate::layers::{Activation, Conv2d, FeatureMap, GroupNorm, LayerNorm, Linear, Window};
use crate::weights::{Weights, WeightsResult};

/// Tokens that an embedding becomes.
const EMBEDDING_TOKENS: usize = 32;
const LAYER_NORM_EPSILON: f64 = 1e-5;
/// Attention uses this epsilon whatever the network's is.
const ATTENTION_NORM_EPSILON: f64 = 1e-5;

/// What embeddings mean to the network: computed once for all steps.
pub(super) struct Conditioning {
    /// Added to the time embedding, `[batch, time channels]`.
    time: Tensor,
    /// Keys and values for each attention in the order of `forward`, `[batch, tokens, 2 · channels]`.
    contexts: Vec<Tensor>,
}

type Contexts<'a> = std::slice::Iter<'a, Tensor>;

/// A decoder's UNet.
pub(super) struct UNet {
    input: Conv2d,
    time: TimeEmbedding,
    embedding_time: Linear,
    embedding_time_norm: LayerNorm,
    embedding_tokens: Linear,
    embedding_tokens_norm: LayerNorm,
    token_channels: usize,
    down: Vec<DownBlock>,
    middle: MiddleBlock,
    up: Vec<UpBlock>,
    output_norm: GroupNorm,
    output: Conv2d,
}

impl UNet {
    pub(super) fn load(weights: &Weights, config: &DecoderConfig) -> WeightsResult<Self> {
        let channels = &config.block_out_channels;
        let (first, blocks) = (channels[0], channels.len());
        let time = 4 * first;
        let sinusoids =
            Sinusoids { channels: first, cosines_first: config.flip_sin_to_cos, shift: config.freq_shift };
        let builder = Builder { weights, config, time_channels: time };
        let (embedding, token) = (config.embedding_width(), config.cross_attention_dim);
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.at(name), inputs, outputs);
        let norm = |name: &str, channels| LayerNorm::load(&weights.at(name), channels, LAYER_NORM_EPSILON);
        Ok(Self {
            input: Conv2d::load(&weights.at("conv_in"), config.in_channels, first, Window::SAME)?,
            time: TimeEmbedding::load(&weights.at("time_embedding"), sinusoids, time, time)?,
            embedding_time: linear("add_embedding.image_proj", embedding, time)?,
            embedding_time_norm: norm("add_embedding.image_norm", time)?,
            embedding_tokens: linear("encoder_hid_proj.image_embeds", embedding, EMBEDDING_TOKENS * token)?,
            embedding_tokens_norm: norm("encoder_hid_proj.norm", token)?,
            token_channels: token,
            down: (0..blocks).map(|block| builder.down_block(block)).collect::<WeightsResult<_>>()?,
            middle: builder.middle_block()?,
            up: (0..blocks).map(|index| builder.up_block(index)).collect::<WeightsResult<_>>()?,
            output_norm: GroupNorm::load(
                &weights.at("conv_norm_out"),
                config.norm_num_groups,
                first,
                config.norm_eps,
            )?,
            output: Conv2d::load(&weights.at("conv_out"), first, config.out_channels, Window::SAME)?,
        })
    }

    /// All attentions in the order that `forward` runs them.
    fn attentions(&self) -> impl Iterator<Item = &EmbeddingAttention> {
        let down = self.down.iter().flat_map(|block| &block.attentions);
        let up = self.up.iter().flat_map(|block| &block.attentions);
        down.chain([&self.middle.attention]).chain(up)
    }

    /// Computes what does not change from step to step, of embeddings `[batch, width]`.
    pub(super) fn prepare(&self, embeddings: &Tensor) -> Result<Conditioning> {
        let batch = embeddings.dim(0)?;
        let tokens = self.embedding_tokens.forward(embeddings)?;
        let tokens = tokens.reshape((batch, EMBEDDING_TOKENS, self.token_channels))?;
        let tokens = self.embedding_tokens_norm.forward(&tokens)?;
        Ok(Conditioning {
            time: self.embedding_time_norm.forward(&self.embedding_time.forward(embeddings)?)?,
            contexts: self
                .attentions()
                .map(|attention| attention.added.forward(&tokens))
                .collect::<Result<_>>()?,
        })
    }

    /// Predicts noise and variance from `latents` at a timestep of training.
    pub(super) fn forward(
        &self,
        latents: &FeatureMap,
        timestep: f64,
        conditioning: &Conditioning,
    ) -> Result<FeatureMap> {
        let time = self.time.forward(timestep, latents.native())?;
        let time = Activation::Silu.forward(&conditioning.time.broadcast_add(&time)?)?;
        let mut contexts = conditioning.contexts.iter();
        let mut hidden = self.input.forward(latents)?;
        let mut skips = vec![hidden.clone()];
        for block in &self.down {
            hidden = block.forward(hidden, &time, &mut contexts, &mut skips)?;
        }
        hidden = self.middle.forward(hidden, &time, &mut contexts)?;
        for block in &self.up {
            hidden = block.forward(hidden, &time, &mut contexts, &mut skips)?;
        }
        self.output.forward(&self.output_norm.forward_silu(&hidden)?)
    }
}

/// What the loaders of all blocks need.
struct Builder<'a> {
    weights: &'a Weights,
    config: &'a DecoderConfig,
    time_channels: usize,
}

impl Builder<'_> {
    fn residual(
        &self,
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        resizing: Resizing,
    ) -> WeightsResult<ResidualBlock> {
        let norm = NormFigures { groups: self.config.norm_num_groups, epsilon: self.config.norm_eps };
        let time = TimeUse::Modulating(self.time_channels);
        let figures = ResidualFigures { inputs, outputs, time, norm };
        Ok(ResidualBlock::load(weights, figures)?.resizing(resizing))
    }

    fn attentions(
        &self,
        weights: &Weights,
        kind: &str,
        channels: usize,
        head_size: usize,
        count: usize,
    ) -> WeightsResult<Vec<EmbeddingAttention>> {
        let count = if kind.starts_with("SimpleCrossAttn") { count } else { 0 };
        let attention =
            |layer| self.attention(&weights.at(format!("attentions.{layer}")), channels, head_size);
        (0..count).map(attention).collect()
    }

    fn attention(
        &self,
        weights: &Weights,
        channels: usize,
        head_size: usize,
    ) -> WeightsResult<EmbeddingAttention> {
        let joined = |names: &[&str], inputs| {
            let parts: Vec<_> = names.iter().map(|name| weights.at(name)).collect();
            Linear::load_joined(&parts, inputs, channels, true)
        };
        let groups = self.config.norm_num_groups;
        Ok(EmbeddingAttention {
            norm: GroupNorm::load(&weights.at("group_norm"), groups, channels, ATTENTION_NORM_EPSILON)?,
            queries_keys_values: joined(&["to_q", "to_k", "to_v"], channels)?,
            added: joined(&["add_k_proj", "add_v_proj"], self.config.cross_attention_dim)?,
            output: Linear::load(&weights.at("to_out.0"), channels, channels)?,
            channels,
            heads: Heads::new(weights, channels, channels / head_size),
        })
    }

    fn down_block(&self, block: usize) -> WeightsResult<DownBlock> {
        let weights = self.weights.at(format!("down_blocks.{block}"));
        let (channels, layers) = (&self.config.block_out_channels, self.config.layers_per_block);
        let (inputs, outputs) = (channels[block.saturating_sub(1)], channels[block]);
        let residual = |layer: usize| {
            let inputs = if layer == 0 { inputs } else { outputs };
            self.residual(&weights.at(format!("resnets.{layer}")), inputs, outputs, Resizing::None)
        };
        let is_last = block + 1 == channels.len();
        let shrink = (!is_last)
            .then(|| self.residual(&weights.at("downsamplers.0"), outputs, outputs, Resizing::Halve));
        let (kind, size) = (&self.config.down_block_types[block], self.config.head_size(block));
        Ok(DownBlock {
            residuals: (0..layers).map(residual).collect::<WeightsResult<_>>()?,
            attentions: self.attentions(&weights, kind, outputs, size, layers)?,
            shrink: shrink.transpose()?,
        })
    }

    fn middle_block(&self) -> WeightsResult<MiddleBlock> {
        let weights = self.weights.at("mid_block");
        let last = self.config.block_out_channels.len() - 1;
        let channels = self.config.block_out_channels[last];
        let residual = |name: &str| self.residual(&weights.at(name), channels, channels, Resizing::None);
        Ok(MiddleBlock {
            before: residual("resnets.0")?,
            attention: self.attention(&weights.at("attentions.0"), channels, self.config.head_size(last))?,
            after: residual("resnets.1")?,
        })
    }

    /// `index` counts from the inside.
    fn up_block(&self, index: usize) -> WeightsResult<UpBlock> {
        let weights = self.weights.at(format!("up_blocks.{index}"));
        let (channels, layers) = (&self.config.block_out_channels, self.config.layers_per_block + 1);
        let block = channels.len() - 1 - index;
        let (below, outputs) = (channels[(block + 1).min(channels.len() - 1)], channels[block]);
        let residual = |layer: usize| {
            let skipped = if layer + 1 == layers { channels[block.saturating_sub(1)] } else { outputs };
            let inputs = if layer == 0 { below } else { outputs } + skipped;
            self.residual(&weights.at(format!("resnets.{layer}")), inputs, outputs, Resizing::None)
        };
        let grow = (block > 0)
            .then(|| self.residual(&weights.at("upsamplers.0"), outputs, outputs, Resizing::Double));
        let (kind, size) = (&self.config.up_block_types[index], self.config.head_size(index));
        Ok(UpBlock {
            residuals: (0..layers).map(residual).collect::<WeightsResult<_>>()?,
            attentions: self.attentions(&weights, kind, outputs, size, layers)?,
            grow: grow.transpose()?,
        })
    }
}

/// Attention of pixels to the tokens of an embedding and to each other: diffusers' `Attention` with
/// `AttnAddedKVProcessor`.
struct EmbeddingAttention {
    norm: GroupNorm,
    queries_keys_values: Linear,
    /// Keys and values of the embedding's tokens.
    added: Linear,
    output: Linear,
    channels: usize,
    heads: Heads,
}

impl EmbeddingAttention {
    /// `context`: what [`EmbeddingAttention::added`] made of the tokens.
    fn forward(&self, input: &FeatureMap, context: &Tensor) -> Result<FeatureMap> {
        let extent = input.extent()?;
        let joined = self.queries_keys_values.forward(&self.norm.forward(input)?.to_tokens()?)?;
        let parts = [
            KeyValueColumns { joined: context, keys: 0, values: self.channels },
            KeyValueColumns { joined: &joined, keys: self.channels, values: 2 * self.channels },
        ];
        let keys_values = self.heads.prepare_sequence(&parts)?;
        let output = self.output.forward_add(&attend(&joined, &keys_values, false)?, &input.to_tokens()?)?;
        FeatureMap::from_tokens(&output, extent.height, extent.width)
    }

    fn forward_next(&self, input: &FeatureMap, contexts: &mut Contexts) -> Result<FeatureMap> {
        match contexts.next() {
            Some(context) => self.forward(input, context),
            None => candle_core::bail!("the network has more attentions than were prepared"),
        }
    }
}

struct DownBlock {
    residuals: Vec<ResidualBlock>,
    /// One for each residual block, or none.
    attentions: Vec<EmbeddingAttention>,
    shrink: Option<ResidualBlock>,
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
                hidden = attention.forward_next(&hidden, contexts)?;
            }
            skips.push(hidden.clone());
        }
        if let Some(shrink) = &self.shrink {
            hidden = shrink.forward(hidden, Some(time))?;
            skips.push(hidden.clone());
        }
        Ok(hidden)
    }
}

struct MiddleBlock {
    before: ResidualBlock,
    attention: EmbeddingAttention,
    after: ResidualBlock,
}

impl MiddleBlock {
    fn forward(&self, hidden: FeatureMap, time: &Tensor, contexts: &mut Contexts) -> Result<FeatureMap> {
        let hidden = self.attention.forward_next(&self.before.forward(hidden, Some(time))?, contexts)?;
        self.after.forward(hidden, Some(time))
    }
}

struct UpBlock {
    residuals: Vec<ResidualBlock>,
    /// One for each residual block, or none.
    attentions: Vec<EmbeddingAttention>,
    grow: Option<ResidualBlock>,
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
            hidden = hidden.concatenate(&skip)?;
            drop(skip);
            hidden = residual.forward(hidden, Some(time))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attention.forward_next(&hidden, contexts)?;
            }
        }
        match &self.grow {
            Some(grow) => grow.forward(hidden, Some(time)),
            None => Ok(hidden),
        }
    }
}
