//! Attention over the pixels of a feature map and over the prompt: diffusers'
//! `Transformer2DModel` with `BasicTransformerBlock`s.

use candle_core::{Result, Tensor};

use super::blocks::NormFigures;
use crate::layers::attention::{Heads, KeyValueColumns, KeysValues, attend};
use crate::layers::{FeatureMap, GatedLinear, GroupNorm, LayerNorm, Linear};
use crate::weights::{Weights, WeightsResult};

/// Transformers use this epsilon whatever the UNet's is.
const GROUP_NORM_EPSILON: f64 = 1e-6;
const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Width of the hidden layer over that of a token.
const EXPANSION: usize = 4;

/// Figures of one transformer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransformerFigures {
    pub(crate) channels: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    /// Width of the prompt's features.
    pub(crate) context: usize,
}

/// Keys and values of the prompt for every layer of a transformer.
pub(crate) type PreparedContext = Vec<KeysValues>;

/// Attention within a feature map and to the prompt.
pub(crate) struct SpatialTransformer {
    norm: GroupNorm,
    input: Linear,
    layers: Vec<TransformerLayer>,
    output: Linear,
}

impl SpatialTransformer {
    pub(crate) fn load(weights: &Weights, figures: TransformerFigures, groups: usize) -> WeightsResult<Self> {
        let channels = figures.channels;
        let layer = |index: usize| {
            TransformerLayer::load(&weights.at(format!("transformer_blocks.{index}")), figures)
        };
        let norm = NormFigures { groups, epsilon: GROUP_NORM_EPSILON };
        Ok(Self {
            norm: GroupNorm::load(&weights.at("norm"), norm.groups, channels, norm.epsilon)?,
            input: Linear::load(&weights.at("proj_in"), channels, channels)?,
            layers: (0..figures.layers).map(layer).collect::<WeightsResult<_>>()?,
            output: Linear::load(&weights.at("proj_out"), channels, channels)?,
        })
    }

    /// Prepares a prompt's features, `[batch, tokens, context]`.
    pub(crate) fn prepare(&self, context: &Tensor) -> Result<PreparedContext> {
        self.layers.iter().map(|layer| layer.prepare(context)).collect()
    }

    pub(crate) fn forward(&self, input: &FeatureMap, context: &PreparedContext) -> Result<FeatureMap> {
        let extent = input.extent()?;
        let mut tokens = self.input.forward(&self.norm.forward(input)?.to_tokens()?)?;
        for (layer, context) in self.layers.iter().zip(context) {
            tokens = layer.forward(tokens, context)?;
        }
        let output = self.output.forward_add(&tokens, &input.to_tokens()?)?;
        FeatureMap::from_tokens(&output, extent.height, extent.width)
    }
}

struct TransformerLayer {
    self_norm: LayerNorm,
    queries_keys_values: Linear,
    self_out: Linear,
    cross_norm: LayerNorm,
    cross_queries: Linear,
    cross_keys_values: Linear,
    cross_out: Linear,
    feed_norm: LayerNorm,
    feed_in: GatedLinear,
    feed_out: Linear,
    channels: usize,
    heads: Heads,
}

impl TransformerLayer {
    fn load(weights: &Weights, figures: TransformerFigures) -> WeightsResult<Self> {
        let TransformerFigures { channels, heads, context, .. } = figures;
        let norm = |name: &str| LayerNorm::load(&weights.at(name), channels, LAYER_NORM_EPSILON);
        let joined = |names: &[&str], inputs| {
            let parts: Vec<_> = names.iter().map(|name| weights.at(name)).collect();
            Linear::load_joined(&parts, inputs, channels, false)
        };
        Ok(Self {
            self_norm: norm("norm1")?,
            queries_keys_values: joined(&["attn1.to_q", "attn1.to_k", "attn1.to_v"], channels)?,
            self_out: Linear::load(&weights.at("attn1.to_out.0"), channels, channels)?,
            cross_norm: norm("norm2")?,
            cross_queries: joined(&["attn2.to_q"], channels)?,
            cross_keys_values: joined(&["attn2.to_k", "attn2.to_v"], context)?,
            cross_out: Linear::load(&weights.at("attn2.to_out.0"), channels, channels)?,
            feed_norm: norm("norm3")?,
            feed_in: GatedLinear::load(&weights.at("ff.net.0.proj"), channels, EXPANSION * channels)?,
            feed_out: Linear::load(&weights.at("ff.net.2"), EXPANSION * channels, channels)?,
            channels,
            heads: Heads::new(weights, channels, heads),
        })
    }

    fn prepare(&self, context: &Tensor) -> Result<KeysValues> {
        let joined = &self.cross_keys_values.forward(context)?;
        self.heads.prepare(KeyValueColumns { joined, keys: 0, values: self.channels })
    }

    fn forward(&self, tokens: Tensor, context: &KeysValues) -> Result<Tensor> {
        let joined = self.queries_keys_values.forward(&self.self_norm.forward(&tokens)?)?;
        let tokens = self.self_out.forward_add(&self.heads.attend_within(&joined, false)?, &tokens)?;
        let queries = self.cross_queries.forward(&self.cross_norm.forward(&tokens)?)?;
        let tokens = self.cross_out.forward_add(&attend(&queries, context, false)?, &tokens)?;
        let hidden = self.feed_in.forward(&self.feed_norm.forward(&tokens)?)?;
        self.feed_out.forward_add(&hidden, &tokens)
    }
}
