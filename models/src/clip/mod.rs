//! CLIP in the layout of transformers: embeddings of pictures and of texts in one space.

mod encoder;
mod preprocess;
pub(crate) mod text;
pub(crate) mod vision;

#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

use crate::loader::{LoadError, LoadResult, ModelFiles};
use crate::picture::RgbPicture;
use crate::placement::{Compute, Placement};
use crate::pool::Pool;
use crate::tokenizer::ClipTokenizer;
pub(crate) use preprocess::preprocess;
use text::{TextConfig, TextModel};
pub(crate) use vision::{VisionConfig, VisionModel};

/// The most pictures embedded at once; more are taken in turns.
const PICTURES_AT_ONCE: usize = 8;

#[derive(Deserialize)]
struct ClipConfig {
    #[serde(default)]
    model_type: String,
    text_config: TextConfig,
    vision_config: VisionConfig,
    #[serde(default = "projection_dim")]
    projection_dim: usize,
}

fn projection_dim() -> usize {
    512
}

/// A CLIP model that is ready to embed.
pub struct Clip {
    text: TextModel,
    vision: VisionModel,
    tokenizer: ClipTokenizer,
    edge: u32,
    width: usize,
    compute: Compute,
    pool: Pool,
}

impl Clip {
    /// Opens a CLIP model. `threads`: 0 for one a core.
    pub fn open(
        files: &ModelFiles,
        placement: impl Into<Placement>,
        threads: usize,
    ) -> std::result::Result<Self, LoadError> {
        Self::open_on(files, placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open`], to compute on the threads of `pool`.
    pub(crate) fn open_on(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        pool.run(|| Self::load(files, placement, pool.clone()))
    }

    fn load(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        let mut config: ClipConfig = files.config("config.json")?;
        if config.model_type != "clip" {
            return Err(files.unknown("config.json", format!("model_type `{}`", config.model_type)));
        }
        let compute = placement.open()?;
        let weights = files.weights("", &compute)?;
        config.text_config.projection_dim = Some(config.projection_dim);
        let text = TextModel::load(&weights, &config.text_config)?;
        if !text.has_projection() {
            return Err(weights.unsuitable("there is no text_projection").into());
        }
        let edge = u32::try_from(config.vision_config.image_size)
            .map_err(|error| files.bad_config("config.json", error.to_string()))?;
        Ok(Self {
            text,
            vision: VisionModel::load(&weights, &config.vision_config, config.projection_dim)?,
            tokenizer: ClipTokenizer::open(files, "", config.text_config.max_position_embeddings)?,
            edge,
            width: config.projection_dim,
            compute,
            pool,
        })
    }

    /// The number of values in an embedding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Embeds pictures, in order; each embedding has length 1.
    pub fn embed_pictures(&self, pictures: &[RgbPicture]) -> Result<Vec<Vec<f32>>> {
        self.pool.run(|| {
            let mut embeddings = Vec::with_capacity(pictures.len());
            for pictures in pictures.chunks(PICTURES_AT_ONCE) {
                let inputs = pictures
                    .iter()
                    .map(|picture| preprocess(picture, self.edge, &self.compute.device))
                    .collect::<Result<Vec<_>>>()?;
                let inputs = Tensor::stack(&inputs, 0)?.to_dtype(self.compute.dtype)?;
                embeddings.extend(unit_rows(&self.vision.forward(&inputs)?)?);
            }
            Ok(embeddings)
        })
    }

    /// Embeds texts, in order; each embedding has length 1.
    pub fn embed_texts(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.pool.run(|| {
            let mut embeddings = Vec::with_capacity(texts.len());
            for texts in texts.chunks(PICTURES_AT_ONCE) {
                let ids = texts.iter().map(|text| self.tokenizer.encode(text)).collect::<Result<Vec<_>>>()?;
                embeddings.extend(unit_rows(&self.text.forward(&ids)?.pooled)?);
            }
            Ok(embeddings)
        })
    }
}

/// The rows of a matrix, each scaled to length 1.
fn unit_rows(rows: &Tensor) -> Result<Vec<Vec<f32>>> {
    let mut rows: Vec<Vec<f32>> = rows.to_dtype(DType::F32)?.to_vec2()?;
    for row in &mut rows {
        let length = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if !(length.is_finite() && length > 0.0) {
            candle_core::bail!("an embedding has length {length}; the weights or the device are faulty");
        }
        row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    Ok(rows)
}
