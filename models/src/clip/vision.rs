//! CLIP's vision tower.

use candle_core::{IndexOp, Result, Tensor};
use serde::Deserialize;

use super::encoder::{Encoder, TowerConfig, TowerFields, VISION_TOWER};
use crate::layers::{Conv2d, FeatureMap, LayerNorm, Linear, Window};
use crate::weights::{Weights, WeightsResult};

/// The `vision_config` of a CLIP model.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "VisionFields")]
pub(crate) struct VisionConfig {
    pub(crate) tower: TowerConfig,
    pub(crate) image_size: usize,
    pub(crate) patch_size: usize,
}

#[derive(Deserialize)]
struct VisionFields {
    #[serde(flatten)]
    tower: TowerFields,
    image_size: Option<usize>,
    patch_size: Option<usize>,
}

impl From<VisionFields> for VisionConfig {
    fn from(fields: VisionFields) -> Self {
        Self {
            tower: fields.tower.or(VISION_TOWER),
            image_size: fields.image_size.unwrap_or(224),
            patch_size: fields.patch_size.unwrap_or(32),
        }
    }
}

/// CLIP's vision tower with its projection.
pub(crate) struct VisionModel {
    patches: Conv2d,
    class: Tensor,
    positions: Tensor,
    first_norm: LayerNorm,
    encoder: Encoder,
    last_norm: LayerNorm,
    projection: Linear,
}

impl VisionModel {
    /// Reads `vision_model` (in a safety checker as published, it is below itself) and
    /// `visual_projection`.
    pub(crate) fn load(weights: &Weights, config: &VisionConfig, projected: usize) -> WeightsResult<Self> {
        let inner = match weights.contains("vision_model.vision_model.embeddings.class_embedding") {
            true => weights.at("vision_model.vision_model"),
            false => weights.at("vision_model"),
        };
        let channels = config.tower.hidden_size;
        if config.patch_size == 0 || !config.image_size.is_multiple_of(config.patch_size) {
            return Err(inner.unsuitable(format!(
                "patches of {} pixels do not fill {} pixels",
                config.patch_size, config.image_size
            )));
        }
        let patches = (config.image_size / config.patch_size).pow(2);
        let embeddings = inner.at("embeddings");
        let norm = |name: &str| LayerNorm::load(&inner.at(name), channels, config.tower.layer_norm_eps);
        Ok(Self {
            patches: Conv2d::load_without_bias(
                &embeddings.at("patch_embedding"),
                3,
                channels,
                Window::patches(config.patch_size),
            )?,
            class: embeddings.tensor("class_embedding", &[channels])?,
            positions: embeddings.tensor("position_embedding.weight", &[patches + 1, channels])?,
            // Spelt so in every published file.
            first_norm: norm("pre_layrnorm")?,
            encoder: Encoder::load(&inner.at("encoder"), &config.tower)?,
            last_norm: norm("post_layernorm")?,
            projection: Linear::load_without_bias(&weights.at("visual_projection"), channels, projected)?,
        })
    }

    /// Embeds normalised pictures `[batch, 3, edge, edge]` to `[batch, projected]`.
    pub(crate) fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let patches = self.patches.forward(&FeatureMap::from_channels_first(pictures)?)?.to_tokens()?;
        let (batch, _, channels) = patches.dims3()?;
        let class = self.class.reshape((1, 1, channels))?.broadcast_as((batch, 1, channels))?;
        let tokens = Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.positions)?;
        let encoded = self.encoder.forward(self.first_norm.forward(&tokens)?, false)?;
        let class = encoded.last.i((.., 0))?.contiguous()?;
        self.projection.forward(&self.last_norm.forward(&class)?)
    }
}
