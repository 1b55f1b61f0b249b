//! Latent diffusion: Stable Diffusion 1.x and 2.x, Stable Diffusion XL, and families of their shape.
//!
//! Invariant: the picture is a function of the weights, the request and the device's arithmetic
//! alone. The starting noise comes from [`crate::noise`], never from a device's generator; on the
//! processor the bits depend neither on the number of threads nor on the instruction set.

pub(crate) mod blocks;
pub(crate) mod canvas;
pub(crate) mod config;
mod contracting;
mod control;
mod denoise;
pub(crate) mod embeddings;
pub(crate) mod options;
mod prompt;
mod request;
pub(crate) mod scheduler;
mod tiles;
pub(crate) mod trajectory;
mod transformer;
mod unet;
pub(crate) mod vae;
mod weighting;

#[cfg(test)]
mod layout_tests;
#[cfg(test)]
pub(crate) mod pipeline_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod variant_tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

pub use request::{Control, ControlKind, Generate, MAX_CONTROL_SCALE, MAX_CONTROLS, Mask, Pads, Start};
pub use scheduler::{SchedulerError, SchedulerKind};
pub use trajectory::{Audited, Deviation, Deviations, Shown};

use crate::loader::{LoadError, ModelFiles};
use crate::noise;
use crate::picture::RgbPicture;
use crate::placement::{Compute, Placement};
use crate::pool::Pool;
use crate::preprocess::DepthEstimator;
use crate::registry::ModelTask;
use crate::tokenizer::MAX_PROMPT_BYTES;
use canvas::Canvas;
use config::{ControlNetConfig, UNetConfig, VaeConfig};
use contracting::TextConditioning;
use control::ControlNet;
use denoise::{Draws, ENCODE_STREAM};
use prompt::{PromptEncoder, PromptFeatures};
use scheduler::{Plan, Scheduler, SchedulerConfig, SeededNoise};
use unet::UNet;
use vae::Autoencoder;

/// The longest edge of a picture, in pixels.
pub const MAX_EDGE: usize = 2048;
/// The strongest guidance.
pub const MAX_GUIDANCE: f32 = 50.0;

/// The folder in a depth ControlNet's that may hold a [`DepthEstimator`], for pictures that are no
/// depth maps.
const DEPTH_ESTIMATOR: &str = "depth_estimator";

/// Hears of the progress of a generation, and may end it.
pub trait StepControl {
    /// Called before the first step with 0 and after each step with the number done.
    fn step(&mut self, done: usize, of: usize) -> ControlFlow<()>;

    /// Called with each state of the sampler: before the first step and after every one. `state` encodes it,
    /// for those who keep it.
    fn record(&mut self, _state: &dyn Fn() -> Vec<u8>) {}
}

impl<F: FnMut(usize, usize) -> ControlFlow<()>> StepControl for F {
    fn step(&mut self, done: usize, of: usize) -> ControlFlow<()> {
        self(done, of)
    }
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("{field} is {found}, but it must be {allowed}")]
    Invalid { field: &'static str, found: String, allowed: String },
    #[error("cancelled after {done} of {of} steps")]
    Cancelled { done: usize, of: usize },
    #[error("the network gave numbers that are not finite; the weights or the device are faulty")]
    NotFinite,
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
}

impl GenerateError {
    /// A stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::Cancelled { .. } => "cancelled",
            Self::NotFinite => "not_finite",
            Self::Device(_) => "device",
        }
    }
}

/// An error about a field of a request.
pub(crate) fn invalid(
    field: &'static str,
    found: impl fmt::Display,
    allowed: impl fmt::Display,
) -> GenerateError {
    GenerateError::Invalid { field, found: found.to_string(), allowed: allowed.to_string() }
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class: String,
    /// Whether the sizes give way to a score of beauty, as in Stable Diffusion XL's refiner.
    #[serde(default)]
    requires_aesthetics_score: bool,
    /// Whether an absent negative prompt is zeros instead of the encoded empty text.
    #[serde(default)]
    force_zeros_for_empty_prompt: bool,
}

/// A diffusion model that is ready to generate.
pub struct Pipeline {
    prompts: PromptEncoder,
    zero_negative: bool,
    unet: UNet,
    controls: BTreeMap<ControlKind, ControlNet>,
    /// Makes depth maps of other pictures.
    depth: Option<DepthEstimator>,
    vae: Autoencoder,
    scheduler: Scheduler,
    latent_channels: usize,
    /// Those of the latents, or with a mask and the latents of a picture's known part beside them.
    input_channels: usize,
    /// Picture pixels along one edge of a latent pixel.
    scale: usize,
    edge_multiple: usize,
    default_edge: usize,
    scaling_factor: f64,
    shift: f64,
    device: Device,
    dtype: DType,
    vae_dtype: DType,
    pool: Pool,
}

impl Pipeline {
    /// Opens a model in the layout of diffusers. `threads`: 0 for one a core.
    pub fn open(
        files: &ModelFiles,
        placement: impl Into<Placement>,
        threads: usize,
    ) -> Result<Self, LoadError> {
        Self::open_on(files, &[], placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open`], with ControlNets that were trained for the model, one of a kind at most. The
    /// folder of a depth ControlNet may hold Depth Anything as `depth_estimator`.
    pub fn open_with_controls(
        files: &ModelFiles,
        controls: &[(ControlKind, ModelFiles)],
        placement: impl Into<Placement>,
        threads: usize,
    ) -> Result<Self, LoadError> {
        Self::open_on(files, controls, placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open_with_controls`], to compute on the threads of `pool`.
    pub(crate) fn open_on(
        files: &ModelFiles,
        controls: &[(ControlKind, ModelFiles)],
        placement: Placement,
        pool: Pool,
    ) -> Result<Self, LoadError> {
        let compute = placement.open()?;
        pool.run(|| Self::load(files, controls, compute, pool.clone()))
    }

    fn load(
        files: &ModelFiles,
        controls: &[(ControlKind, ModelFiles)],
        compute: Compute,
        pool: Pool,
    ) -> Result<Self, LoadError> {
        let files = &files.in_parts()?;
        let index: ModelIndex = files.config("model_index.json")?;
        let is_double = index.is_double(files)?;
        let unet_config = UNetConfig::open(files, "unet/config.json")?;
        let vae_config = VaeConfig::open(files, "vae/config.json")?;
        check_fit(files, is_double, &unet_config, &vae_config)?;
        let scheduler_path = "scheduler/scheduler_config.json";
        let scheduler: SchedulerConfig = files.config(scheduler_path)?;
        let scheduler = Scheduler::new(&scheduler, None)
            .map_err(|error| files.bad_config(scheduler_path, error.to_string()))?;
        let load_prompts = if is_double { PromptEncoder::load_double } else { PromptEncoder::load_single };
        let vae_dtype = if vae_config.force_upcast { DType::F32 } else { compute.dtype };
        let vae_weights = files.weights("vae", &compute.in_dtype(vae_dtype))?;
        let scale = vae_config.scale();
        let load_control = |(kind, files): &(ControlKind, ModelFiles)| {
            let config = ControlNetConfig::open(files, "config.json", &unet_config, scale)?;
            Ok((*kind, ControlNet::load(&files.weights("", &compute)?, &config)?))
        };
        let depth = controls.iter().find(|(kind, files)| {
            *kind == ControlKind::Depth && files.contains(&format!("{DEPTH_ESTIMATOR}/config.json"))
        });
        let load_depth = |(_, files): &(ControlKind, ModelFiles)| {
            DepthEstimator::open_part(files, DEPTH_ESTIMATOR, pool.clone())
        };
        Ok(Self {
            prompts: load_prompts(files, &compute)?,
            zero_negative: is_double && index.force_zeros_for_empty_prompt,
            unet: UNet::load(&files.weights("unet", &compute)?, &unet_config)?,
            controls: controls.iter().map(load_control).collect::<Result<_, LoadError>>()?,
            depth: depth.map(load_depth).transpose()?,
            vae: Autoencoder::load(&vae_weights, &vae_config)?,
            scheduler,
            latent_channels: vae_config.latent_channels,
            input_channels: unet_config.contracting.in_channels,
            scale,
            edge_multiple: scale << (unet_config.contracting.block_out_channels.len() - 1),
            default_edge: unet_config.sample_size.unwrap_or(64).saturating_mul(scale).min(MAX_EDGE),
            scaling_factor: vae_config.scaling_factor,
            shift: vae_config.shift_factor.unwrap_or(0.0),
            device: compute.device,
            dtype: compute.dtype,
            vae_dtype,
            pool,
        })
    }

    /// Replaces the sampler of the model's own config, over the same noise levels.
    pub fn set_scheduler(&mut self, kind: SchedulerKind) -> Result<(), SchedulerError> {
        self.scheduler = self.scheduler.with_kind(kind)?;
        Ok(())
    }

    /// Width and height must be multiples of this many pixels.
    pub fn edge_multiple(&self) -> usize {
        self.edge_multiple
    }

    /// The edge of the pictures that the model was trained on, in pixels.
    pub fn default_edge(&self) -> usize {
        self.default_edge
    }

    /// Whether the model's networks can do a task.
    pub fn can(&self, task: ModelTask) -> bool {
        match task {
            ModelTask::TextToImage | ModelTask::ImageToImage => !self.is_inpaint_network(),
            ModelTask::Inpaint | ModelTask::Uncrop => true,
            ModelTask::Scribble => self.controls.contains_key(&ControlKind::Scribble),
            ModelTask::Canny => self.controls.contains_key(&ControlKind::Canny),
            ModelTask::Depth => self.controls.contains_key(&ControlKind::Depth),
            ModelTask::Upscale | ModelTask::ImageEmbedding | ModelTask::NsfwClassification => false,
        }
    }

    /// Whether the UNet sees a mask and the known part of a picture, and needs them.
    fn is_inpaint_network(&self) -> bool {
        self.input_channels != self.latent_channels
    }

    /// Makes a picture; all noise is named by the seed.
    pub fn generate(
        &self,
        request: &Generate,
        control: &mut (dyn StepControl + Send),
    ) -> Result<RgbPicture, GenerateError> {
        let plan = self.check(request)?;
        self.pool.run(|| {
            let canvas = self.canvas(request, &plan)?;
            let draws = Draws::of_seed(request.seed, self.latent_count(request));
            let mut step_noise = SeededNoise { seed: request.seed };
            let latents = self.denoise(request, canvas.as_ref(), &plan, draws, &mut step_noise, control)?;
            let made = self.decode(latents, request)?;
            Ok(match &canvas {
                Some(canvas) => canvas.finish(made),
                None => made,
            })
        })
    }

    /// Latents of a picture, scaled as the UNet takes them, `[latent channels, height, width]`:
    /// a draw, named by the seed, from what the encoder says. Both edges must be multiples of
    /// [`Self::edge_multiple`].
    pub fn encode(&self, picture: &RgbPicture, seed: u64) -> Result<Vec<f32>, GenerateError> {
        self.check_edges(picture.width(), picture.height())?;
        let pixels = picture.width() as usize * picture.height() as usize;
        let length = self.latent_channels * pixels / (self.scale * self.scale);
        self.pool.run(|| {
            let noise = noise::normal(seed, ENCODE_STREAM, length);
            self.encode_signed(&self.signed_picture(picture, None)?, noise)
        })
    }

    fn latent_count(&self, request: &Generate) -> usize {
        self.latent_channels * (request.height as usize / self.scale) * (request.width as usize / self.scale)
    }

    fn check_edges(&self, width: u32, height: u32) -> Result<(), GenerateError> {
        for (field, edge) in [("width", width), ("height", height)] {
            let edge = edge as usize;
            if edge == 0 || edge > MAX_EDGE || !edge.is_multiple_of(self.edge_multiple) {
                let allowed = format_args!("a multiple of {} up to {MAX_EDGE}", self.edge_multiple);
                return Err(invalid(field, edge, allowed));
            }
        }
        Ok(())
    }

    fn check(&self, request: &Generate) -> Result<Plan, GenerateError> {
        self.check_edges(request.width, request.height)?;
        for (field, text) in [("prompt", &request.prompt), ("negative_prompt", &request.negative_prompt)] {
            if text.len() > MAX_PROMPT_BYTES {
                return Err(invalid(
                    field,
                    format_args!("{} bytes long", text.len()),
                    format_args!("at most {MAX_PROMPT_BYTES} bytes long"),
                ));
            }
        }
        if !(0.0..=MAX_GUIDANCE).contains(&request.guidance) {
            return Err(invalid("guidance", request.guidance, format_args!("0 to {MAX_GUIDANCE}")));
        }
        self.check_controls(&request.controls)?;
        self.scheduler
            .plan(request.steps)
            .map_err(|_| invalid("steps", request.steps, format_args!("1 to {}", self.scheduler.max_steps())))
    }

    fn check_controls(&self, controls: &[Control]) -> Result<(), GenerateError> {
        if controls.len() > MAX_CONTROLS {
            return Err(invalid("controls", controls.len(), format_args!("{MAX_CONTROLS} at most")));
        }
        for control in controls {
            if !self.controls.contains_key(&control.kind) {
                return Err(self.no_control(control.kind));
            }
            if !(control.scale > 0.0 && control.scale <= MAX_CONTROL_SCALE) {
                return Err(invalid("scale", control.scale, format_args!("above 0, to {MAX_CONTROL_SCALE}")));
            }
            if !control.is_prepared && control.kind == ControlKind::Depth && self.depth.is_none() {
                let allowed = "a depth map already: this model has no depth_estimator";
                return Err(invalid("control", "a picture that is not prepared", allowed));
            }
        }
        Ok(())
    }

    /// What the request starts from, unless it is noise alone.
    fn canvas(&self, request: &Generate, plan: &Plan) -> Result<Option<Canvas>, GenerateError> {
        let needs_mask = self.is_inpaint_network();
        let has_mask = matches!(request.start, Start::Inpaint { .. } | Start::Uncrop { .. });
        if needs_mask && !has_mask {
            let allowed = "a picture with a mask or pads: this model paints into pictures";
            return Err(invalid("picture", "without a mask, or absent", allowed));
        }
        let canvas = Canvas::of(request, self.scale as u32)?;
        if let Some(Canvas { strength, .. }) = canvas
            && plan.begin_at_strength(strength) >= plan.steps.len()
        {
            let least = 1.0 / plan.steps.len() as f64;
            return Err(invalid("strength", strength, format_args!("{least:.3} or more, for one step")));
        }
        Ok(canvas)
    }

    /// Text features of the prompt, after those of the negative prompt where there is guidance.
    fn features(&self, request: &Generate) -> Result<PromptFeatures, GenerateError> {
        let guided = request.guidance > 1.0;
        let texts = [request.negative_prompt.as_str(), request.prompt.as_str()];
        let mut features = self.prompts.encode(if guided { &texts } else { &texts[1..] })?;
        if guided && self.zero_negative && request.negative_prompt.is_empty() {
            let keep = Tensor::new(&[0.0f32, 1.0], &self.device)?.to_dtype(self.dtype)?;
            features.context = features.context.broadcast_mul(&keep.reshape((2, 1, 1))?)?;
            features.pooled = features.pooled.broadcast_mul(&keep.reshape((2, 1))?)?;
        }
        Ok(features)
    }

    /// Turns latents into a picture.
    fn decode(&self, latents: Vec<f32>, request: &Generate) -> Result<RgbPicture, GenerateError> {
        let (height, width) = (request.height as usize / self.scale, request.width as usize / self.scale);
        let latents = Tensor::from_vec(latents, (1, self.latent_channels, height, width), &Device::Cpu)?;
        let latents = ((latents / self.scaling_factor)? + self.shift)?
            .to_dtype(self.vae_dtype)?
            .to_device(&self.device)?;
        let decoded = self.vae.decode(&latents)?.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
        let values = finite(decoded.flatten_all()?.to_vec1()?)?;
        let pixels = values
            .into_iter()
            .map(|value| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
            .collect();
        RgbPicture::new(request.width, request.height, pixels)
            .map_err(|error| GenerateError::Device(candle_core::Error::Msg(error.to_string())))
    }
}

impl PromptFeatures {
    /// What conditions the networks for a request.
    fn conditioning(&self, request: &Generate) -> TextConditioning<'_> {
        let (height, width) = (f64::from(request.height), f64::from(request.width));
        let size = [height, width, 0.0, 0.0, height, width];
        TextConditioning { context: &self.context, pooled: &self.pooled, size }
    }
}

impl ModelIndex {
    /// Whether the pipeline is one of Stable Diffusion XL's, with two text encoders.
    fn is_double(&self, files: &ModelFiles) -> Result<bool, LoadError> {
        const PATH: &str = "model_index.json";
        if self.requires_aesthetics_score {
            return Err(files.unknown(PATH, "a refiner"));
        }
        let kind = self.class.strip_prefix("StableDiffusion").and_then(|name| name.strip_suffix("Pipeline"));
        let (is_double, kind) = match kind.map(|kind| (kind, kind.strip_prefix("XL"))) {
            Some((_, Some(kind))) => (true, kind),
            Some((kind, None)) => (false, kind),
            None => return Err(files.unknown(PATH, format!("`{}`", self.class))),
        };
        let kind = kind.strip_prefix("ControlNet").unwrap_or(kind);
        match kind {
            "" | "Img2Img" | "Inpaint" => Ok(is_double),
            _ => Err(files.unknown(PATH, format!("`{}`", self.class))),
        }
    }
}

/// Holds the configs of a model's parts against each other.
fn check_fit(
    files: &ModelFiles,
    is_double: bool,
    unet: &UNetConfig,
    vae: &VaeConfig,
) -> Result<(), LoadError> {
    let path = "unet/config.json";
    if is_double != unet.contracting.addition().is_some() {
        return Err(files.bad_config(path, "addition_embed_type does not fit the pipeline's class"));
    }
    let (latents, inputs) = (vae.latent_channels, unet.contracting.in_channels);
    if ![latents, latents.saturating_mul(2).saturating_add(1)].contains(&inputs)
        || unet.out_channels != latents
    {
        return Err(files.bad_config(
            path,
            "its channels are neither those of the autoencoder's latents nor those of an inpaint network",
        ));
    }
    Ok(())
}

pub(crate) fn finite(values: Vec<f32>) -> Result<Vec<f32>, GenerateError> {
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(GenerateError::NotFinite) }
}
