//! CLIP's text tower, on its own as a diffusion model's text encoder or with a projection.

use candle_core::{IndexOp, Result, Tensor};
use serde::Deserialize;

use super::encoder::{Encoder, TEXT_TOWER, TowerConfig, TowerFields};
use crate::layers::{LayerNorm, Linear};
use crate::weights::{Weights, WeightsResult};

/// The `config.json` of a text encoder.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "TextFields")]
pub(crate) struct TextConfig {
    pub(crate) tower: TowerConfig,
    pub(crate) vocab_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) eos_token_id: u32,
    pub(crate) projection_dim: Option<usize>,
}

#[derive(Deserialize)]
struct TextFields {
    #[serde(flatten)]
    tower: TowerFields,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    eos_token_id: Option<u32>,
    projection_dim: Option<usize>,
}

impl From<TextFields> for TextConfig {
    fn from(fields: TextFields) -> Self {
        Self {
            tower: fields.tower.or(TEXT_TOWER),
            vocab_size: fields.vocab_size.unwrap_or(49_408),
            max_position_embeddings: fields.max_position_embeddings.unwrap_or(77),
            eos_token_id: fields.eos_token_id.unwrap_or(49_407),
            projection_dim: fields.projection_dim,
        }
    }
}

/// Configs of the first CLIP models carry this wrong end token; the true one is the largest id.
const LEGACY_END: u32 = 2;

/// What a text becomes.
pub(crate) struct TextFeatures {
    /// The last layer's output, normalised: `[batch, tokens, channels]`.
    pub(crate) hidden: Tensor,
    /// The output of the layer before the last, not normalised.
    pub(crate) penultimate: Tensor,
    /// `hidden` at the end token, projected if the model has a projection: `[batch, width]`.
    pub(crate) pooled: Tensor,
}

/// CLIP's text tower.
pub(crate) struct TextModel {
    tokens: Tensor,
    positions: Tensor,
    encoder: Encoder,
    final_norm: LayerNorm,
    projection: Option<Linear>,
    end: u32,
}

impl TextModel {
    /// Reads the tower, whose names may or may not begin with `text_model`, and `text_projection`
    /// where there is one.
    pub(crate) fn load(weights: &Weights, config: &TextConfig) -> WeightsResult<Self> {
        let inner = if weights.contains("text_model.final_layer_norm.weight") {
            weights.at("text_model")
        } else {
            weights.clone()
        };
        let channels = config.tower.hidden_size;
        let embeddings = inner.at("embeddings");
        let projection = match config.projection_dim {
            Some(width) if weights.contains("text_projection.weight") => {
                Some(Linear::load_without_bias(&weights.at("text_projection"), channels, width)?)
            }
            _ => None,
        };
        Ok(Self {
            tokens: embeddings.tensor("token_embedding.weight", &[config.vocab_size, channels])?,
            positions: embeddings
                .tensor("position_embedding.weight", &[config.max_position_embeddings, channels])?,
            encoder: Encoder::load(&inner.at("encoder"), &config.tower)?,
            final_norm: LayerNorm::load(
                &inner.at("final_layer_norm"),
                channels,
                config.tower.layer_norm_eps,
            )?,
            projection,
            end: config.eos_token_id,
        })
    }

    /// Whether `pooled` is projected.
    pub(crate) fn has_projection(&self) -> bool {
        self.projection.is_some()
    }

    /// Runs texts of equal length, at most the number of positions.
    pub(crate) fn forward(&self, texts: &[Vec<u32>]) -> Result<TextFeatures> {
        let length = texts.first().map_or(0, Vec::len);
        if length == 0 || texts.iter().any(|ids| ids.len() != length) {
            candle_core::bail!("texts must be token windows of one length");
        }
        let ids = Tensor::from_vec(texts.concat(), texts.len() * length, self.tokens.device())?;
        let embedded = self.tokens.index_select(&ids, 0)?.reshape((texts.len(), length, ()))?;
        let embedded = embedded.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        let encoded = self.encoder.forward(embedded, true)?;
        let hidden = self.final_norm.forward(&encoded.last)?;
        let ends = texts
            .iter()
            .enumerate()
            .map(|(index, ids)| hidden.i((index, self.end_position(ids))))
            .collect::<Result<Vec<_>>>()?;
        let mut pooled = Tensor::stack(&ends, 0)?;
        if let Some(projection) = &self.projection {
            pooled = projection.forward(&pooled)?;
        }
        Ok(TextFeatures { hidden, penultimate: encoded.penultimate, pooled })
    }

    fn end_position(&self, ids: &[u32]) -> usize {
        let end = if self.end == LEGACY_END { ids.iter().copied().max().unwrap_or(0) } else { self.end };
        ids.iter().position(|id| *id == end).unwrap_or(0)
    }
}
