//! Kandinsky 2.2: a prior turns words into the embedding of a picture, a decoder turns the embedding
//! into the picture, from noise, from a picture, or from a part of one.
//!
//! Invariant: the picture is a function of the weights, the request and the device's arithmetic
//! alone. All noise comes from [`crate::noise`], each use from streams of its own; on the processor
//! the bits depend neither on the number of threads nor on the instruction set.

mod config;
mod decoder;
mod movq;
mod prior;
mod transformer;
mod unclip;
mod unet;

#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use crate::diffusion::canvas::Canvas;
use crate::diffusion::scheduler::{Plan, SeededNoise, StepNoise};
use crate::diffusion::{
    Generate, GenerateError, MAX_EDGE, MAX_GUIDANCE, SchedulerError, SchedulerKind, Start, StepControl,
    invalid,
};
use crate::loader::{LoadError, LoadResult, ModelFiles};
use crate::noise;
use crate::picture::RgbPicture;
use crate::placement::{Compute, Placement};
use crate::pool::Pool;
use crate::registry::ModelTask;
use crate::tokenizer::MAX_PROMPT_BYTES;
use decoder::{Decoder, DecoderRun};
use prior::{Embeddings, Prior, PriorRun};
use unclip::UnClip;

/// The noise stream that the decoder starts from; its steps have those of [`SeededNoise`].
const START_STREAM: u64 = 0;
/// The noise stream that the prior starts from.
const PRIOR_START_STREAM: u64 = 3;
/// The noise stream of the prior's first step; the steps after it have those that follow.
const PRIOR_STEP_STREAMS: u64 = 1 << 33;

/// How the prior is run. Requests do not say it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PriorSettings {
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; 1 and less ask the network once a step.
    pub guidance: f32,
}

impl Default for PriorSettings {
    /// 25 steps without guidance. (diffusers' own default is a guidance of 4.)
    fn default() -> Self {
        Self { steps: 25, guidance: 1.0 }
    }
}

/// The files of the prior or of the decoder.
#[derive(Clone, Copy)]
struct Part<'a> {
    files: &'a ModelFiles,
    /// What the paths of its files begin with.
    prefix: &'static str,
}

impl<'a> Part<'a> {
    fn whole(files: &'a ModelFiles) -> Self {
        Self { files, prefix: "" }
    }

    /// The prior and the decoder of a folder that holds both.
    fn both(files: &'a ModelFiles) -> (Self, Self) {
        let prior = if files.contains("prior/prior/config.json") { "prior/" } else { "prior_" };
        let decoder = if files.contains("decoder/unet/config.json") { "decoder/" } else { "" };
        (Self { files, prefix: prior }, Self { files, prefix: decoder })
    }

    fn path(&self, inside: &str) -> String {
        format!("{}{inside}", self.prefix)
    }
}

/// A Kandinsky 2.2 that is ready to generate.
pub struct KandinskyPipeline {
    prior: Prior,
    settings: PriorSettings,
    decoder: Decoder,
    pool: Pool,
}

impl KandinskyPipeline {
    /// Opens `kandinsky-2-2-prior` and `kandinsky-2-2-decoder` or `-decoder-inpaint`, in the layout
    /// of diffusers. `threads`: 0 for one a core.
    pub fn open(
        prior: &ModelFiles,
        decoder: &ModelFiles,
        placement: impl Into<Placement>,
        threads: usize,
    ) -> Result<Self, LoadError> {
        Self::open_on(prior, decoder, placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open`], to compute on the threads of `pool`.
    pub(crate) fn open_on(
        prior: &ModelFiles,
        decoder: &ModelFiles,
        placement: Placement,
        pool: Pool,
    ) -> LoadResult<Self> {
        let compute = placement.open()?;
        pool.run(|| Self::load(Part::whole(prior), Part::whole(decoder), &compute, pool.clone()))
    }

    /// Opens one folder that holds both: as diffusers saves a `KandinskyV22CombinedPipeline`
    /// (`prior_prior`, `prior_text_encoder`, …, `unet`, `movq`), or with the prior's folder as `prior`,
    /// and the decoder's as `decoder` or its parts beside it. `threads`: 0 for one a core.
    pub fn open_folder(
        files: &ModelFiles,
        placement: impl Into<Placement>,
        threads: usize,
    ) -> Result<Self, LoadError> {
        Self::open_folder_on(files, placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open_folder`], to compute on the threads of `pool`.
    pub(crate) fn open_folder_on(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        let compute = placement.open()?;
        let (prior, decoder) = Part::both(files);
        pool.run(|| Self::load(prior, decoder, &compute, pool.clone()))
    }

    fn load(prior: Part, decoder: Part, compute: &Compute, pool: Pool) -> LoadResult<Self> {
        let (prior, opened) = (Prior::load(prior, compute)?, Decoder::load(decoder, compute)?);
        if opened.embedding_width() != prior.width() {
            let (wanted, found) = (opened.embedding_width(), prior.width());
            let detail =
                format!("encoder_hid_dim is {wanted}, but the prior's embeddings have {found} values");
            return Err(decoder.files.bad_config(&decoder.path("unet/config.json"), detail));
        }
        Ok(Self { prior, settings: PriorSettings::default(), decoder: opened, pool })
    }

    /// Runs the prior as `settings` say.
    ///
    /// # Errors
    /// [`GenerateError::Invalid`] where the prior cannot be run so.
    pub fn with_prior(mut self, settings: PriorSettings) -> Result<Self, GenerateError> {
        let (least, most) = (UnClip::LEAST_STEPS, self.prior.sampler().max_steps());
        if !(least..=most).contains(&settings.steps) {
            return Err(invalid("prior steps", settings.steps, format_args!("{least} to {most}")));
        }
        check_guidance("prior guidance", settings.guidance)?;
        self.settings = settings;
        Ok(self)
    }

    /// Width and height must be multiples of this many pixels.
    pub fn edge_multiple(&self) -> usize {
        self.decoder.edge_multiple()
    }

    /// The edge of the pictures that the model was trained on, in pixels.
    pub fn default_edge(&self) -> usize {
        self.decoder.default_edge()
    }

    /// Whether the model's networks can do a task.
    pub fn can(&self, task: ModelTask) -> bool {
        match task {
            ModelTask::TextToImage | ModelTask::ImageToImage => !self.decoder.is_inpainter(),
            ModelTask::Inpaint | ModelTask::Uncrop => true,
            _ => false,
        }
    }

    /// Replaces the sampler of the decoder's own config, over the same noise levels.
    pub fn set_scheduler(&mut self, kind: SchedulerKind) -> Result<(), SchedulerError> {
        self.decoder.set_scheduler(kind)
    }

    /// Makes a picture, from the noise that the seed names. Steps of the prior count as steps too.
    pub fn generate(
        &self,
        request: &Generate,
        control: &mut (dyn StepControl + Send),
    ) -> Result<RgbPicture, GenerateError> {
        let plan = self.check(request)?;
        let canvas = Canvas::of(request, self.decoder.scale() as u32)?;
        let begin = canvas.as_ref().map_or(0, |canvas| plan.begin_at_strength(canvas.strength));
        if begin >= plan.steps.len() {
            let least = 1.0 / plan.steps.len() as f64;
            let strength = canvas.map_or(1.0, |canvas| canvas.strength);
            return Err(invalid("strength", strength, format_args!("{least:.3} or more, for one step")));
        }
        let of = self.settings.steps + plan.steps.len() - begin;
        let mut hear = |done: usize| match control.step(done, of) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(()) => ControlFlow::Break(GenerateError::Cancelled { done, of }),
        };
        let size = self.decoder.latent_size(request.width, request.height);
        self.pool.run(|| {
            let embeddings = self.embed(request, &mut hear)?;
            let known = canvas.as_ref().map(|canvas| self.decoder.known(canvas)).transpose()?;
            let run = DecoderRun { size, guidance: request.guidance, plan: &plan, begin, known };
            let start = noise::normal(request.seed, START_STREAM, self.decoder.latent_count(size));
            let latents = self.decoder.denoise(
                &run,
                &embeddings,
                &start,
                &mut SeededNoise { seed: request.seed },
                &mut |done| hear(self.settings.steps + done),
            )?;
            // A last word so that progress ends at 100 %; the picture is as good as made.
            let _ = hear(of);
            let picture = self.decoder.decode(latents, size)?;
            Ok(match &canvas {
                Some(canvas) => canvas.finish(picture),
                None => picture,
            })
        })
    }

    fn embed(
        &self,
        request: &Generate,
        hear: &mut dyn FnMut(usize) -> ControlFlow<GenerateError>,
    ) -> Result<Embeddings, GenerateError> {
        let negative = if request.guidance > 1.0 { request.negative_prompt.as_str() } else { "" };
        let run = PriorRun {
            prompt: &request.prompt,
            negative,
            guidance: self.settings.guidance,
            steps: &self.prior.sampler().plan(self.settings.steps),
        };
        let count = if negative.is_empty() { 1 } else { 2 } * self.prior.width();
        let start = noise::normal(request.seed, PRIOR_START_STREAM, count);
        self.prior.embed(&run, &start, &mut PriorNoise { seed: request.seed }, hear)
    }

    fn check(&self, request: &Generate) -> Result<Plan, GenerateError> {
        let multiple = self.edge_multiple();
        for (field, edge) in [("width", request.width), ("height", request.height)] {
            let pixels = edge as usize;
            if pixels == 0 || pixels > MAX_EDGE || !pixels.is_multiple_of(multiple) {
                return Err(invalid(field, edge, format_args!("a multiple of {multiple} up to {MAX_EDGE}")));
            }
        }
        for (field, text) in [("prompt", &request.prompt), ("negative_prompt", &request.negative_prompt)] {
            if text.len() > MAX_PROMPT_BYTES {
                let allowed = format_args!("at most {MAX_PROMPT_BYTES} bytes long");
                return Err(invalid(field, format_args!("{} bytes long", text.len()), allowed));
            }
        }
        check_guidance("guidance", request.guidance)?;
        if !request.controls.is_empty() {
            return Err(invalid("controls", "given", "absent: Kandinsky has no ControlNets here"));
        }
        if self.decoder.is_inpainter() && matches!(request.start, Start::Noise | Start::Picture { .. }) {
            let allowed = "a picture with a mask, or one to grow: this decoder does nothing else";
            return Err(invalid("start", "without a mask", allowed));
        }
        let scheduler = self.decoder.scheduler();
        scheduler
            .plan(request.steps)
            .map_err(|_| invalid("steps", request.steps, format_args!("1 to {}", scheduler.max_steps())))
    }
}

fn check_guidance(field: &'static str, guidance: f32) -> Result<(), GenerateError> {
    match (0.0..=MAX_GUIDANCE).contains(&guidance) {
        true => Ok(()),
        false => Err(invalid(field, guidance, format_args!("0 to {MAX_GUIDANCE}"))),
    }
}

/// The noise of the prior's steps that a seed names: of each step a stream of its own.
struct PriorNoise {
    seed: u64,
}

impl StepNoise for PriorNoise {
    fn fill(&mut self, step: usize, values: &mut [f32]) {
        noise::fill_normal(self.seed, PRIOR_STEP_STREAMS + step as u64, 0, values);
    }
}
