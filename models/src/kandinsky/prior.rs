//! From words to the embedding of a picture: diffusers' `KandinskyV22PriorPipeline`.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

use super::Part;
use super::config::PriorConfig;
use super::transformer::{EncodedText, PreparedText, PriorTransformer};
use super::unclip::{Step, UnClip, UnClipConfig};
use crate::clip::text::{TextConfig, TextModel};
use crate::clip::vision::{VisionConfig, VisionModel};
use crate::diffusion::scheduler::StepNoise;
use crate::diffusion::{GenerateError, finite};
use crate::loader::LoadResult;
use crate::placement::Compute;
use crate::tokenizer::ClipTokenizer;

/// The largest picture that an image encoder may take, in pixels along an edge: the one that it is
/// given is made for it.
const MAX_ENCODER_EDGE: usize = 1024;

/// `image_encoder/config.json`.
#[derive(Deserialize)]
struct ImageEncoderConfig {
    #[serde(flatten)]
    vision: VisionConfig,
    projection_dim: usize,
}

/// A prior that is ready to embed.
pub(super) struct Prior {
    tokenizer: ClipTokenizer,
    text: TextModel,
    pub(super) transformer: PriorTransformer,
    sampler: UnClip,
    /// Mean and deviation of each value of an embedding.
    scale: Vec<(f32, f32)>,
    /// The embedding of a picture of zeros, which stands for no negative prompt.
    pub(super) zero: Vec<f32>,
    compute: Compute,
}

/// What a picture is to show, and what not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Embeddings {
    pub(super) image: Vec<f32>,
    pub(super) negative: Vec<f32>,
}

/// A run of the prior.
pub(super) struct PriorRun<'a> {
    pub(super) prompt: &'a str,
    /// Empty for none.
    pub(super) negative: &'a str,
    pub(super) guidance: f32,
    pub(super) steps: &'a [Step],
}

/// One embedding on its way, by the text that it follows and the one that it is led away from.
struct Chain {
    text: PreparedText,
    base: Option<PreparedText>,
}

impl Prior {
    /// Opens the parts of `kandinsky-2-2-prior`.
    pub(super) fn load(part: Part, compute: &Compute) -> LoadResult<Self> {
        let (files, config_path) = (part.files, part.path("prior/config.json"));
        let config = PriorConfig::open(files, &config_path)?;
        let scheduler_path = part.path("scheduler/scheduler_config.json");
        let scheduler: UnClipConfig = files.config(&scheduler_path)?;
        let sampler =
            UnClip::new(&scheduler).map_err(|error| files.bad_config(&scheduler_path, error.to_string()))?;
        let text_path = part.path("text_encoder/config.json");
        let text_config: TextConfig = files.config(&text_path)?;
        if text_config.tower.hidden_size != config.embedding_dim
            || text_config.projection_dim != Some(config.pooled_width())
        {
            return Err(files.bad_config(&text_path, "its widths are not those that the prior takes"));
        }
        if text_config.max_position_embeddings > config.num_embeddings {
            return Err(
                files.bad_config(&config_path, "num_embeddings is less than the text encoder's window")
            );
        }
        // First, so that the image encoder, which is the largest part, is gone before the others come.
        let zero = Self::embed_zero(part, &config, compute)?;
        let text_weights = files.weights(&part.path("text_encoder"), compute)?;
        let text = TextModel::load(&text_weights, &text_config)?;
        if !text.has_projection() {
            return Err(text_weights.unsuitable("there is no text_projection").into());
        }
        let weights = files.weights(&part.path("prior"), compute)?;
        let row = |name: &str| weights.values(name, &[1, config.embedding_dim]);
        Ok(Self {
            tokenizer: ClipTokenizer::open(
                files,
                &part.path("tokenizer"),
                text_config.max_position_embeddings,
            )?,
            text,
            transformer: PriorTransformer::load(&weights, &config)?,
            sampler,
            scale: row("clip_mean")?.into_iter().zip(row("clip_std")?).collect(),
            zero,
            compute: compute.clone(),
        })
    }

    /// The embedding of a picture of zeros, for which alone the image encoder is there.
    fn embed_zero(part: Part, prior: &PriorConfig, compute: &Compute) -> LoadResult<Vec<f32>> {
        let (files, path) = (part.files, part.path("image_encoder/config.json"));
        let config: ImageEncoderConfig = files.config(&path)?;
        if config.projection_dim != prior.embedding_dim {
            return Err(files.bad_config(&path, "projection_dim is not the prior's embedding_dim"));
        }
        let edge = config.vision.image_size;
        if !(1..=MAX_ENCODER_EDGE).contains(&edge) {
            let detail = format!("image_size is {edge}, but must be 1 to {MAX_ENCODER_EDGE}");
            return Err(files.bad_config(&path, detail));
        }
        let weights = files.weights(&part.path("image_encoder"), compute)?;
        let encoder = VisionModel::load(&weights, &config.vision, config.projection_dim)?;
        let picture = Tensor::zeros((1, 3, edge, edge), compute.dtype, &compute.device)?;
        let zero: Vec<f32> = encoder.forward(&picture)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if zero.iter().any(|value| !value.is_finite()) {
            return Err(weights.unsuitable("the embedding of a picture of zeros is not finite").into());
        }
        Ok(zero)
    }

    pub(super) fn sampler(&self) -> &UnClip {
        &self.sampler
    }

    /// Values in an embedding.
    pub(super) fn width(&self) -> usize {
        self.transformer.embedding_width()
    }

    /// The embedding of a prompt, and that of the negative one. `start` is the noise that both start
    /// from, one after the other, where there is a negative one. `progress` hears the steps done.
    pub(super) fn embed(
        &self,
        run: &PriorRun,
        start: &[f32],
        noise: &mut dyn StepNoise,
        progress: &mut dyn FnMut(usize) -> ControlFlow<GenerateError>,
    ) -> std::result::Result<Embeddings, GenerateError> {
        let chains = self.chains(run)?;
        let mut latents = start.to_vec();
        if latents.len() != chains.len() * self.width() {
            return Err(candle_core::Error::Msg("the prior's noise has another size".to_owned()).into());
        }
        let mut fresh = vec![0.0; latents.len()];
        for (done, step) in run.steps.iter().enumerate() {
            if let ControlFlow::Break(error) = progress(done) {
                return Err(error);
            }
            let output = self.predict(&chains, &latents, step.timestep, run.guidance)?;
            noise.fill(done, &mut fresh);
            step.take(&mut latents, &output, &fresh);
        }
        let mut embeddings = latents.chunks_exact(self.width()).map(|latents| {
            let scaled = latents.iter().zip(&self.scale);
            finite(scaled.map(|(value, (mean, deviation))| value * deviation + mean).collect())
        });
        let mut next = || embeddings.next().unwrap_or_else(|| Ok(self.zero.clone()));
        Ok(Embeddings { image: next()?, negative: next()? })
    }

    /// The embedding of the prompt comes first. That of the negative prompt is led away from the
    /// negative prompt too in the reference, which cancels out.
    fn chains(&self, run: &PriorRun) -> Result<Vec<Chain>> {
        let prompt = self.prepare(run.prompt)?;
        let base = (run.guidance > 1.0).then(|| self.prepare(run.negative)).transpose()?;
        let mut chains = vec![Chain { text: prompt, base }];
        if !run.negative.is_empty() {
            chains.push(Chain { text: self.prepare(run.negative)?, base: None });
        }
        Ok(chains)
    }

    fn prepare(&self, text: &str) -> Result<PreparedText> {
        self.transformer.prepare(&self.encode(text)?)
    }

    /// A token sees only those before it, so nothing is lost with the padding.
    pub(super) fn encode(&self, text: &str) -> Result<EncodedText> {
        let features = self.text.forward(&[self.tokenizer.encode_unpadded(text)?])?;
        Ok(EncodedText { hidden: features.hidden, pooled: features.pooled })
    }

    /// One prediction for each chain, one after the other.
    fn predict(&self, chains: &[Chain], latents: &[f32], timestep: f64, guidance: f32) -> Result<Vec<f32>> {
        let width = self.width();
        let (mut rows, mut texts) = (Vec::new(), Vec::new());
        for (chain, latents) in chains.iter().zip(latents.chunks_exact(width)) {
            for text in [Some(&chain.text), chain.base.as_ref()].into_iter().flatten() {
                rows.extend_from_slice(latents);
                texts.push(text);
            }
        }
        let input = Tensor::from_vec(rows, (texts.len(), width), &Device::Cpu)?;
        let input = input.to_dtype(self.compute.dtype)?.to_device(&self.compute.device)?;
        let output = self.transformer.forward(&input, timestep, &texts)?;
        let output: Vec<f32> = output.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut rows = output.chunks_exact(width);
        let mut predictions = Vec::with_capacity(latents.len());
        for chain in chains {
            let with = rows.next().unwrap_or_default();
            match chain.base.as_ref().and_then(|_| rows.next()) {
                Some(without) => predictions.extend(
                    with.iter().zip(without).map(|(with, without)| without + guidance * (with - without)),
                ),
                None => predictions.extend_from_slice(with),
            }
        }
        Ok(predictions)
    }
}
