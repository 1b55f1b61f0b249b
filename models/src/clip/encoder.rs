//! The transformer that CLIP's text and vision towers share.

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::layers::attention::Heads;
use crate::layers::{Activation, LayerNorm, Linear};
use crate::weights::{Weights, WeightsResult};

/// The figures of a tower.
#[derive(Debug, Clone)]
pub(crate) struct TowerConfig {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
}

/// What a `config.json` says of a tower; transformers leaves out what is as in ViT-B/32.
#[derive(Deserialize)]
pub(super) struct TowerFields {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
}

/// Width, inner width, layers and heads where a config does not say.
#[derive(Clone, Copy)]
pub(super) struct TowerDefaults {
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
}

/// ViT-B/32's text tower.
pub(super) const TEXT_TOWER: TowerDefaults = TowerDefaults { width: 512, inner: 2048, layers: 12, heads: 8 };
/// ViT-B/32's vision tower.
pub(super) const VISION_TOWER: TowerDefaults =
    TowerDefaults { width: 768, inner: 3072, layers: 12, heads: 12 };

impl TowerFields {
    pub(super) fn or(self, defaults: TowerDefaults) -> TowerConfig {
        TowerConfig {
            hidden_size: self.hidden_size.unwrap_or(defaults.width),
            intermediate_size: self.intermediate_size.unwrap_or(defaults.inner),
            num_hidden_layers: self.num_hidden_layers.unwrap_or(defaults.layers),
            num_attention_heads: self.num_attention_heads.unwrap_or(defaults.heads),
            hidden_act: self.hidden_act.unwrap_or_else(|| "quick_gelu".to_owned()),
            layer_norm_eps: self.layer_norm_eps.unwrap_or(1e-5),
        }
    }
}

/// A stack of pre-norm transformer layers.
pub(crate) struct Encoder {
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: LayerNorm,
    queries_keys_values: Linear,
    attention_out: Linear,
    mlp_norm: LayerNorm,
    expand: Linear,
    shrink: Linear,
    activation: Activation,
    heads: Heads,
}

/// What an [`Encoder`] gives.
pub(crate) struct Encoded {
    /// The output of the last layer, `[batch, tokens, channels]`.
    pub(crate) last: Tensor,
    /// The output of the layer before it, which is the input where there is one layer only.
    pub(crate) penultimate: Tensor,
}

impl Encoder {
    /// Reads `layers.N`.
    pub(crate) fn load(weights: &Weights, config: &TowerConfig) -> WeightsResult<Self> {
        let activation = Activation::from_name(&config.hidden_act).ok_or_else(|| {
            weights.unsuitable(format!("`{}` is no activation that Argus knows", config.hidden_act))
        })?;
        let (channels, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || !channels.is_multiple_of(heads) || config.num_hidden_layers == 0 {
            return Err(weights.unsuitable(format!(
                "{channels} channels, {heads} heads, {} layers make no transformer",
                config.num_hidden_layers
            )));
        }
        let layer = |index: usize| {
            let weights = weights.at(format!("layers.{index}"));
            let attention = weights.at("self_attn");
            Ok(Layer {
                attention_norm: LayerNorm::load(&weights.at("layer_norm1"), channels, config.layer_norm_eps)?,
                queries_keys_values: Linear::load_joined(
                    &["q_proj", "k_proj", "v_proj"].map(|name| attention.at(name)),
                    channels,
                    channels,
                    true,
                )?,
                attention_out: Linear::load(&attention.at("out_proj"), channels, channels)?,
                mlp_norm: LayerNorm::load(&weights.at("layer_norm2"), channels, config.layer_norm_eps)?,
                expand: Linear::load(&weights.at("mlp.fc1"), channels, config.intermediate_size)?,
                shrink: Linear::load(&weights.at("mlp.fc2"), config.intermediate_size, channels)?,
                activation,
                heads: Heads::new(&weights, channels, heads),
            })
        };
        Ok(Self { layers: (0..config.num_hidden_layers).map(layer).collect::<WeightsResult<_>>()? })
    }

    /// Runs all layers on `[batch, tokens, channels]`.
    pub(crate) fn forward(&self, input: Tensor, causal: bool) -> Result<Encoded> {
        let mut penultimate = input.clone();
        let mut last = input;
        for layer in &self.layers {
            penultimate = last;
            last = layer.forward(&penultimate, causal)?;
        }
        Ok(Encoded { last, penultimate })
    }
}

impl Layer {
    fn forward(&self, input: &Tensor, causal: bool) -> Result<Tensor> {
        let joined = self.queries_keys_values.forward(&self.attention_norm.forward(input)?)?;
        let attended = self.heads.attend_within(&joined, causal)?;
        let middle = self.attention_out.forward_add(&attended, input)?;
        let expanded = self.expand.forward_activated(&self.mlp_norm.forward(&middle)?, self.activation)?;
        self.shrink.forward_add(&expanded, &middle)
    }
}
