//! The vision transformer DINOv2 (arXiv 2304.07193): features of a picture after some of its layers.

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::layers::attention::Heads;
use crate::layers::{Activation, Conv2d, Extent, FeatureMap, Interpolation, LayerNorm, Linear, Window};
use crate::weights::{Weights, WeightsResult};

/// The most layers of a backbone; DINOv2's largest has 40.
const MAX_LAYERS: usize = 64;

/// The `backbone_config`; transformers leaves out what is as in DINOv2 base.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct BackboneConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    image_size: usize,
    patch_size: usize,
    qkv_bias: bool,
    use_swiglu_ffn: bool,
    apply_layernorm: bool,
    /// Layers whose outputs are taken, from 1; 0 would be what goes into the first.
    out_indices: Vec<usize>,
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-6,
            image_size: 224,
            patch_size: 14,
            qkv_bias: true,
            use_swiglu_ffn: false,
            apply_layernorm: true,
            out_indices: vec![9, 10, 11, 12],
        }
    }
}

impl BackboneConfig {
    pub(super) fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// What is wrong with it, if anything is.
    fn fault(&self) -> Option<String> {
        let Self { hidden_size, num_attention_heads: heads, num_hidden_layers: layers, .. } = self;
        if *heads == 0 || hidden_size % heads.max(&1) != 0 || !(1..=MAX_LAYERS).contains(layers) {
            return Some(format!(
                "{hidden_size} channels, {heads} heads, {layers} layers make no transformer"
            ));
        }
        if self.patch_size == 0 || !self.image_size.is_multiple_of(self.patch_size) || self.image_size == 0 {
            return Some(format!("patches of {} pixels do not fill {}", self.patch_size, self.image_size));
        }
        if self.use_swiglu_ffn || !self.apply_layernorm {
            return Some(
                "DINOv2 with gated layers or without its last normalisation is not known".to_owned(),
            );
        }
        if self.out_indices.len() != 4 || !self.out_indices.iter().all(|index| (1..=*layers).contains(index))
        {
            return Some(format!("out_indices {:?} are not four of {layers} layers", self.out_indices));
        }
        None
    }
}

pub(super) struct Backbone {
    patches: Conv2d,
    /// `[1, 1, channels]`, its position added.
    class: Tensor,
    positions: FeatureMap,
    layers: Vec<Layer>,
    last_norm: LayerNorm,
    taken: Vec<usize>,
    image_size: usize,
    patch_size: usize,
}

impl Backbone {
    /// Reads `embeddings`, `encoder` and `layernorm`.
    pub(super) fn load(weights: &Weights, config: &BackboneConfig) -> WeightsResult<Self> {
        if let Some(fault) = config.fault() {
            return Err(weights.unsuitable(fault));
        }
        let channels = config.hidden_size;
        let side = config.image_size / config.patch_size;
        let embeddings = weights.at("embeddings");
        let positions = embeddings.tensor("position_embeddings", &[1, side * side + 1, channels])?;
        let class = embeddings.tensor("cls_token", &[1, 1, channels])?;
        let layer = |index| Layer::load(&weights.at(format!("encoder.layer.{index}")), config);
        Ok(Self {
            patches: Conv2d::load(
                &embeddings.at("patch_embeddings.projection"),
                3,
                channels,
                Window::patches(config.patch_size),
            )?,
            class: (class + positions.narrow(1, 0, 1)?)?,
            positions: FeatureMap::from_tokens(
                &positions.narrow(1, 1, side * side)?.contiguous()?,
                side,
                side,
            )?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<WeightsResult<_>>()?,
            last_norm: LayerNorm::load(&weights.at("layernorm"), channels, config.layer_norm_eps)?,
            taken: config.out_indices.clone(),
            image_size: config.image_size,
            patch_size: config.patch_size,
        })
    }

    /// The edge of the pictures it was trained with.
    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    pub(super) fn patch_size(&self) -> usize {
        self.patch_size
    }

    /// One map of patches for each layer that is taken.
    pub(super) fn forward(&self, pictures: &FeatureMap) -> Result<Vec<FeatureMap>> {
        let patches = self.patches.forward(pictures)?;
        let Extent { height, width, .. } = patches.extent()?;
        let positions = Interpolation::Bicubic.resize(&self.positions, height, width)?;
        let tokens = (patches.to_tokens()? + positions.to_tokens()?)?;
        let mut hidden = Tensor::cat(&[&self.class, &tokens], 1)?;
        let mut features = Vec::with_capacity(self.taken.len());
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden)?;
            if self.taken.contains(&(index + 1)) {
                let tokens = self.last_norm.forward(&hidden)?.narrow(1, 1, height * width)?.contiguous()?;
                features.push(FeatureMap::from_tokens(&tokens, height, width)?);
            }
        }
        Ok(features)
    }
}

struct Layer {
    attention_norm: LayerNorm,
    queries_keys_values: Linear,
    attention_out: Linear,
    attention_scale: Tensor,
    mlp_norm: LayerNorm,
    expand: Linear,
    shrink: Linear,
    mlp_scale: Tensor,
    activation: Activation,
    heads: Heads,
}

impl Layer {
    fn load(weights: &Weights, config: &BackboneConfig) -> WeightsResult<Self> {
        let activation = Activation::from_name(&config.hidden_act).ok_or_else(|| {
            weights.unsuitable(format!("`{}` is no activation that Argus knows", config.hidden_act))
        })?;
        let channels = config.hidden_size;
        let attention = weights.at("attention");
        // transformers renamed these in its version 5; published files have the older names.
        let (joined, out) = match attention.contains("q_proj.weight") {
            true => (["q_proj", "k_proj", "v_proj"], "o_proj"),
            false => (["attention.query", "attention.key", "attention.value"], "output.dense"),
        };
        let norm = |name: &str| LayerNorm::load(&weights.at(name), channels, config.layer_norm_eps);
        let inner = channels.saturating_mul(config.mlp_ratio);
        Ok(Self {
            attention_norm: norm("norm1")?,
            queries_keys_values: Linear::load_joined(
                &joined.map(|name| attention.at(name)),
                channels,
                channels,
                config.qkv_bias,
            )?,
            attention_out: Linear::load(&attention.at(out), channels, channels)?,
            attention_scale: weights.tensor("layer_scale1.lambda1", &[channels])?,
            mlp_norm: norm("norm2")?,
            expand: Linear::load(&weights.at("mlp.fc1"), channels, inner)?,
            shrink: Linear::load(&weights.at("mlp.fc2"), inner, channels)?,
            mlp_scale: weights.tensor("layer_scale2.lambda1", &[channels])?,
            activation,
            heads: Heads::new(weights, channels, config.num_attention_heads),
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let joined = self.queries_keys_values.forward(&self.attention_norm.forward(input)?)?;
        let attended = self.attention_out.forward(&self.heads.attend_within(&joined, false)?)?;
        let middle = (attended.broadcast_mul(&self.attention_scale)? + input)?;
        let expanded = self.expand.forward_activated(&self.mlp_norm.forward(&middle)?, self.activation)?;
        self.shrink.forward(&expanded)?.broadcast_mul(&self.mlp_scale)? + middle
    }
}
