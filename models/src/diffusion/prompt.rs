//! Text encoders of a diffusion model: one for Stable Diffusion, two for Stable Diffusion XL.
//!
//! A prompt may weigh its words ([`super::weighting`]) and be longer than an encoder's window. It is
//! then cut into windows that are encoded each by itself, and whose features stand one after the
//! other; all prompts that are encoded together get as many windows as the longest, the others'
//! empty. Weights multiply the features of their tokens. Stable Diffusion's one encoder has the mean
//! of each window's features restored after that, as AUTOMATIC1111's web interface does; those of
//! Stable Diffusion XL have not, since their layer before the last has a mean near zero.
//!
//! Invariant: a prompt of one window without weights is encoded as if there were neither.

use candle_core::{D, DType, Device, Result, Tensor};

use super::weighting::{self, Fragment};
use crate::clip::text::{TextConfig, TextModel};
use crate::loader::{LoadResult, ModelFiles};
use crate::placement::Compute;
use crate::tokenizer::ClipTokenizer;

/// The most windows of one prompt; what is longer is cut off.
pub const MAX_PROMPT_WINDOWS: usize = 8;

/// What prompts become.
pub(crate) struct PromptFeatures {
    /// `[prompts, tokens, channels]`.
    pub(crate) context: Tensor,
    /// `[prompts, channels]`, of the last encoder and each prompt's first window.
    pub(crate) pooled: Tensor,
}

struct Encoder {
    tokenizer: ClipTokenizer,
    model: TextModel,
}

/// A token and what its features are multiplied by.
type WeightedToken = (u32, f32);

impl Encoder {
    fn load(files: &ModelFiles, suffix: &str, compute: &Compute) -> LoadResult<Self> {
        let part = format!("text_encoder{suffix}");
        let config: TextConfig = files.config(&format!("{part}/config.json"))?;
        let model = TextModel::load(&files.weights(&part, compute)?, &config)?;
        let tokenizer =
            ClipTokenizer::open(files, &format!("tokenizer{suffix}"), config.max_position_embeddings)?;
        Ok(Self { tokenizer, model })
    }

    fn tokens(&self, fragments: &[Fragment]) -> Result<Vec<WeightedToken>> {
        let mut tokens = Vec::new();
        for fragment in fragments {
            tokens.extend(self.tokenizer.ids(&fragment.text)?.into_iter().map(|id| (id, fragment.weight)));
        }
        Ok(tokens)
    }

    /// How many windows tokens fill.
    fn windows(&self, tokens: &[WeightedToken]) -> usize {
        tokens.len().div_ceil(self.tokenizer.room()).clamp(1, MAX_PROMPT_WINDOWS)
    }

    /// Encodes prompts in `windows` windows each.
    fn encode(
        &self,
        prompts: &[Vec<WeightedToken>],
        windows: usize,
        penultimate: bool,
    ) -> Result<PromptFeatures> {
        let room = self.tokenizer.room();
        let window = |tokens: &[WeightedToken], index: usize| {
            let start = (index * room).min(tokens.len());
            tokens[start..(start + room).min(tokens.len())].to_vec()
        };
        let parts: Vec<Vec<WeightedToken>> =
            prompts.iter().flat_map(|tokens| (0..windows).map(move |index| window(tokens, index))).collect();
        let ids: Vec<Vec<u32>> =
            parts.iter().map(|part| self.tokenizer.window(part.iter().map(|(id, _)| *id))).collect();
        let features = self.model.forward(&ids)?;
        let context = if penultimate { features.penultimate } else { features.hidden };
        let context = weigh(context, &parts, !penultimate)?;
        let firsts: Vec<u32> = (0..prompts.len()).map(|prompt| (prompt * windows) as u32).collect();
        let firsts = Tensor::from_vec(firsts, prompts.len(), context.device())?;
        let channels = context.dim(D::Minus1)?;
        Ok(PromptFeatures {
            context: context.reshape((prompts.len(), (), channels))?,
            pooled: features.pooled.index_select(&firsts, 0)?,
        })
    }
}

/// Multiplies the features `[windows, tokens, channels]` of weighted tokens, which stand behind one
/// start token. `restores_mean`: then scales each window so that its mean is as before.
fn weigh(features: Tensor, windows: &[Vec<WeightedToken>], restores_mean: bool) -> Result<Tensor> {
    if windows.iter().flatten().all(|(_, weight)| *weight == 1.0) {
        return Ok(features);
    }
    let (_, tokens, channels) = features.dims3()?;
    let mut values: Vec<f32> = features.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    for (values, window) in values.chunks_exact_mut(tokens * channels).zip(windows) {
        if window.iter().all(|(_, weight)| *weight == 1.0) {
            continue;
        }
        let sum = |values: &[f32]| values.iter().map(|value| f64::from(*value)).sum::<f64>();
        let before = sum(values);
        for (features, (_, weight)) in values.chunks_exact_mut(channels).skip(1).zip(window) {
            features.iter_mut().for_each(|value| *value *= weight);
        }
        let factor = (before / sum(values)) as f32;
        if restores_mean && factor.is_finite() {
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }
    Tensor::from_vec(values, features.shape(), &Device::Cpu)?
        .to_dtype(features.dtype())?
        .to_device(features.device())
}

/// The text encoders of one model.
pub(crate) struct PromptEncoder {
    encoders: Vec<Encoder>,
    /// Whether the layer before the last is used, as Stable Diffusion XL does.
    penultimate: bool,
}

impl PromptEncoder {
    /// Stable Diffusion: the last layer of one encoder.
    pub(crate) fn load_single(files: &ModelFiles, compute: &Compute) -> LoadResult<Self> {
        Ok(Self { encoders: vec![Encoder::load(files, "", compute)?], penultimate: false })
    }

    /// Stable Diffusion XL: the layers before the last of two encoders side by side, pooled text
    /// from the second.
    pub(crate) fn load_double(files: &ModelFiles, compute: &Compute) -> LoadResult<Self> {
        let encoders = vec![Encoder::load(files, "", compute)?, Encoder::load(files, "_2", compute)?];
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
        let fragments: Vec<Vec<Fragment>> = prompts.iter().map(|prompt| weighting::parse(prompt)).collect();
        let tokens = self
            .encoders
            .iter()
            .map(|encoder| fragments.iter().map(|fragments| encoder.tokens(fragments)).collect())
            .collect::<Result<Vec<Vec<Vec<WeightedToken>>>>>()?;
        let windows = self
            .encoders
            .iter()
            .zip(&tokens)
            .flat_map(|(encoder, prompts)| prompts.iter().map(|tokens| encoder.windows(tokens)))
            .max()
            .unwrap_or(1);
        let mut contexts = Vec::with_capacity(self.encoders.len());
        let mut pooled = None;
        for (encoder, tokens) in self.encoders.iter().zip(&tokens) {
            let features = encoder.encode(tokens, windows, self.penultimate)?;
            contexts.push(features.context);
            pooled = Some(features.pooled);
        }
        match pooled {
            Some(pooled) => Ok(PromptFeatures { context: Tensor::cat(&contexts, D::Minus1)?, pooled }),
            None => candle_core::bail!("a diffusion model has a text encoder"),
        }
    }
}
