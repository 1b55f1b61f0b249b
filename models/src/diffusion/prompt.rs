//! Text encoders of a diffusion model: one for Stable Diffusion, two for Stable Diffusion XL.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::clip::text::{TextConfig, TextModel};
use crate::loader::{LoadResult, ModelFiles};
use crate::tokenizer::ClipTokenizer;

/// What prompts become.
pub(crate) struct PromptFeatures {
    /// `[prompts, tokens, channels]`.
    pub(crate) context: Tensor,
    /// `[prompts, channels]`, of the last encoder.
    pub(crate) pooled: Tensor,
}

struct Encoder {
    tokenizer: ClipTokenizer,
    model: TextModel,
}

impl Encoder {
    fn load(files: &ModelFiles, suffix: &str, device: &Device, dtype: DType) -> LoadResult<Self> {
        let part = format!("text_encoder{suffix}");
        let config: TextConfig = files.config(&format!("{part}/config.json"))?;
        let model = TextModel::load(&files.weights(&part, device, dtype)?, &config)?;
        let tokenizer =
            ClipTokenizer::open(files, &format!("tokenizer{suffix}"), config.max_position_embeddings)?;
        Ok(Self { tokenizer, model })
    }
}

/// The text encoders of one model.
pub(crate) struct PromptEncoder {
    encoders: Vec<Encoder>,
    /// Whether the layer before the last is used, as Stable Diffusion XL does.
    penultimate: bool,
}

impl PromptEncoder {
    /// Stable Diffusion: the last layer of one encoder.
    pub(crate) fn load_single(files: &ModelFiles, device: &Device, dtype: DType) -> LoadResult<Self> {
        Ok(Self { encoders: vec![Encoder::load(files, "", device, dtype)?], penultimate: false })
    }

    /// Stable Diffusion XL: the layers before the last of two encoders side by side, pooled text
    /// from the second.
    pub(crate) fn load_double(files: &ModelFiles, device: &Device, dtype: DType) -> LoadResult<Self> {
        let encoders =
            vec![Encoder::load(files, "", device, dtype)?, Encoder::load(files, "_2", device, dtype)?];
        if !encoders[1].model.has_projection() {
            return Err(files.bad_config(
                "text_encoder_2/config.json",
                "this encoder needs a projection_dim and a text_projection",
            ));
        }
        Ok(Self { encoders, penultimate: true })
    }

    /// Encodes prompts of at most [`crate::tokenizer::MAX_PROMPT_BYTES`].
    pub(crate) fn encode(&self, prompts: &[&str]) -> Result<PromptFeatures> {
        let mut contexts = Vec::with_capacity(self.encoders.len());
        let mut pooled = None;
        for encoder in &self.encoders {
            let ids =
                prompts.iter().map(|prompt| encoder.tokenizer.encode(prompt)).collect::<Result<Vec<_>>>()?;
            let features = encoder.model.forward(&ids)?;
            contexts.push(if self.penultimate { features.penultimate } else { features.hidden });
            pooled = Some(features.pooled);
        }
        match pooled {
            Some(pooled) => Ok(PromptFeatures { context: Tensor::cat(&contexts, D::Minus1)?, pooled }),
            None => candle_core::bail!("a diffusion model has a text encoder"),
        }
    }
}
