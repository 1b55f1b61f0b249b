//! Latent diffusion: Stable Diffusion 1.x and 2.x, Stable Diffusion XL, and families of their shape.
//!
//! Invariant: the picture is a function of the weights, the request and the device's arithmetic
//! alone. The starting noise comes from [`crate::noise`], never from a device's generator; on the
//! processor the bits depend neither on the number of threads nor on the instruction set.

mod blocks;
mod config;
mod prompt;
mod request;
mod scheduler;
mod transformer;
mod unet;
mod vae;

#[cfg(test)]
mod layout_tests;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

pub use request::{Control, ControlKind, Generate, MAX_CONTROL_SCALE, MAX_CONTROLS, Mask, Pads, Start};
pub use scheduler::{SchedulerError, SchedulerKind};

use crate::device::DeviceKind;
use crate::layers::FeatureMap;
use crate::loader::{LoadError, ModelFiles};
use crate::noise;
use crate::picture::RgbPicture;
use crate::pool::Pool;
use crate::tokenizer::MAX_PROMPT_BYTES;
use config::{UNetConfig, VaeConfig};
use prompt::PromptEncoder;
use scheduler::{Plan, Scheduler, SchedulerConfig, SeededNoise};
use unet::{Conditioning, TextConditioning, UNet};
use vae::{Autoencoder, LatentDistribution};

/// The longest edge of a picture, in pixels.
pub const MAX_EDGE: usize = 2048;
/// The strongest guidance.
pub const MAX_GUIDANCE: f32 = 50.0;
/// The noise stream that a picture starts from.
const START_STREAM: u64 = 0;
/// The noise stream that latents of a given picture are drawn with.
const ENCODE_STREAM: u64 = 1;

/// Hears of the progress of a generation, and may end it.
pub trait StepControl {
    /// Called before the first step with 0 and after each step with the number done.
    fn step(&mut self, done: usize, of: usize) -> ControlFlow<()>;
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

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class: String,
    /// Whether an absent negative prompt is zeros instead of the encoded empty text.
    #[serde(default)]
    force_zeros_for_empty_prompt: bool,
}

/// A diffusion model that is ready to generate.
pub struct Pipeline {
    prompts: PromptEncoder,
    zero_negative: bool,
    unet: UNet,
    vae: Autoencoder,
    scheduler: Scheduler,
    latent_channels: usize,
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
    pub fn open(files: &ModelFiles, device: DeviceKind, threads: usize) -> Result<Self, LoadError> {
        Self::open_on(files, device, Pool::new(threads)?)
    }

    /// As [`Self::open`], to compute on the threads of `pool`.
    pub(crate) fn open_on(files: &ModelFiles, device: DeviceKind, pool: Pool) -> Result<Self, LoadError> {
        let (device, dtype) = (device.open()?, device.dtype());
        pool.run(|| Self::load(files, device, dtype, pool.clone()))
    }

    fn load(files: &ModelFiles, device: Device, dtype: DType, pool: Pool) -> Result<Self, LoadError> {
        let index: ModelIndex = files.config("model_index.json")?;
        let is_double = match index.class.as_str() {
            "StableDiffusionPipeline" => false,
            "StableDiffusionXLPipeline" => true,
            other => return Err(files.unknown("model_index.json", format!("`{other}`"))),
        };
        let unet_config = UNetConfig::open(files, "unet/config.json")?;
        let vae_config = VaeConfig::open(files, "vae/config.json")?;
        if is_double != unet_config.addition().is_some() {
            return Err(
                files.bad_config("unet/config.json", "addition_embed_type does not fit the pipeline's class")
            );
        }
        if unet_config.in_channels != vae_config.latent_channels
            || unet_config.out_channels != vae_config.latent_channels
        {
            return Err(files
                .bad_config("unet/config.json", "its channels are not those of the autoencoder's latents"));
        }
        let scheduler_path = "scheduler/scheduler_config.json";
        let scheduler: SchedulerConfig = files.config(scheduler_path)?;
        let scheduler = Scheduler::new(&scheduler, None)
            .map_err(|error| files.bad_config(scheduler_path, error.to_string()))?;
        let load_prompts = if is_double { PromptEncoder::load_double } else { PromptEncoder::load_single };
        let vae_dtype = if vae_config.force_upcast { DType::F32 } else { dtype };
        let scale = vae_config.scale();
        Ok(Self {
            prompts: load_prompts(files, &device, dtype)?,
            zero_negative: is_double && index.force_zeros_for_empty_prompt,
            unet: UNet::load(&files.weights("unet", &device, dtype)?, &unet_config)?,
            vae: Autoencoder::load(&files.weights("vae", &device, vae_dtype)?, &vae_config)?,
            scheduler,
            latent_channels: vae_config.latent_channels,
            scale,
            edge_multiple: scale << (unet_config.block_out_channels.len() - 1).min(16),
            default_edge: unet_config.sample_size.unwrap_or(64).saturating_mul(scale).min(MAX_EDGE),
            scaling_factor: vae_config.scaling_factor,
            shift: vae_config.shift_factor.unwrap_or(0.0),
            device,
            dtype,
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

    /// Makes a picture, from the noise that the seed names.
    pub fn generate(
        &self,
        request: &Generate,
        control: &mut (dyn StepControl + Send),
    ) -> Result<RgbPicture, GenerateError> {
        let plan = self.check(request)?;
        if request.start != Start::Noise || !request.controls.is_empty() {
            let (found, allowed) =
                ("given".to_owned(), "absent: this model makes pictures of words alone".to_owned());
            return Err(GenerateError::Invalid { field: "picture", found, allowed });
        }
        let noise = noise::normal(request.seed, START_STREAM, self.latent_count(request));
        self.pool.run(|| {
            let latents = self.denoise(request, &plan, noise, control)?;
            self.decode(latents, request)
        })
    }

    /// Latents of a picture, scaled as the UNet takes them, `[latent channels, height, width]`:
    /// a draw, named by the seed, from what the encoder says. Both edges must be multiples of
    /// [`Self::edge_multiple`].
    pub fn encode(&self, picture: &RgbPicture, seed: u64) -> Result<Vec<f32>, GenerateError> {
        self.check_edges(picture.width(), picture.height())?;
        self.pool.run(|| {
            let LatentDistribution { mean, log_variance } =
                self.vae.encode(&self.signed_picture(picture)?)?;
            let noise = Tensor::from_vec(
                noise::normal(seed, ENCODE_STREAM, mean.elem_count()),
                mean.shape(),
                &Device::Cpu,
            )?;
            let noise = noise.to_dtype(self.vae_dtype)?.to_device(&self.device)?;
            let latents = (mean + ((log_variance * 0.5)?.exp()? * noise)?)?;
            finite(
                ((latents - self.shift)? * self.scaling_factor)?
                    .to_dtype(DType::F32)?
                    .flatten_all()?
                    .to_vec1()?,
            )
        })
    }

    /// A picture as the autoencoder takes it: `[1, 3, height, width]` in −1 … 1.
    fn signed_picture(&self, picture: &RgbPicture) -> candle_core::Result<Tensor> {
        let channel = |channel: usize| {
            picture.pixels().iter().skip(channel).step_by(3).map(|value| f32::from(*value) / 127.5 - 1.0)
        };
        let values: Vec<f32> = (0..3).flat_map(channel).collect();
        let shape = (1, 3, picture.height() as usize, picture.width() as usize);
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.vae_dtype)?.to_device(&self.device)
    }

    fn latent_count(&self, request: &Generate) -> usize {
        self.latent_channels * (request.height as usize / self.scale) * (request.width as usize / self.scale)
    }

    fn check_edges(&self, width: u32, height: u32) -> Result<(), GenerateError> {
        for (field, edge) in [("width", width), ("height", height)] {
            let edge = edge as usize;
            if edge == 0 || edge > MAX_EDGE || !edge.is_multiple_of(self.edge_multiple) {
                let allowed = format!("a multiple of {} up to {MAX_EDGE}", self.edge_multiple);
                return Err(GenerateError::Invalid { field, found: edge.to_string(), allowed });
            }
        }
        Ok(())
    }

    fn check(&self, request: &Generate) -> Result<Plan, GenerateError> {
        self.check_edges(request.width, request.height)?;
        for (field, text) in [("prompt", &request.prompt), ("negative_prompt", &request.negative_prompt)] {
            if text.len() > MAX_PROMPT_BYTES {
                let found = format!("{} bytes long", text.len());
                return Err(GenerateError::Invalid {
                    field,
                    found,
                    allowed: format!("at most {MAX_PROMPT_BYTES} bytes long"),
                });
            }
        }
        if !(0.0..=MAX_GUIDANCE).contains(&request.guidance) {
            return Err(GenerateError::Invalid {
                field: "guidance",
                found: request.guidance.to_string(),
                allowed: format!("0 to {MAX_GUIDANCE}"),
            });
        }
        self.scheduler.plan(request.steps).map_err(|_| GenerateError::Invalid {
            field: "steps",
            found: request.steps.to_string(),
            allowed: format!("1 to {}", self.scheduler.max_steps()),
        })
    }

    /// Text features of the prompt, after those of the negative prompt where there is guidance.
    fn condition(&self, request: &Generate) -> Result<Conditioning, GenerateError> {
        let guided = request.guidance > 1.0;
        let texts = [request.negative_prompt.as_str(), request.prompt.as_str()];
        let mut features = self.prompts.encode(if guided { &texts } else { &texts[1..] })?;
        if guided && self.zero_negative && request.negative_prompt.is_empty() {
            let keep = Tensor::new(&[0.0f32, 1.0], &self.device)?.to_dtype(self.dtype)?;
            features.context = features.context.broadcast_mul(&keep.reshape((2, 1, 1))?)?;
            features.pooled = features.pooled.broadcast_mul(&keep.reshape((2, 1))?)?;
        }
        let (height, width) = (f64::from(request.height), f64::from(request.width));
        let text = TextConditioning {
            context: &features.context,
            pooled: &features.pooled,
            size: [height, width, 0.0, 0.0, height, width],
        };
        Ok(self.unet.prepare(&text)?)
    }

    /// Turns noise into latents, `[latent channels, height, width]`.
    fn denoise(
        &self,
        request: &Generate,
        plan: &Plan,
        noise: Vec<f32>,
        control: &mut (dyn StepControl + Send),
    ) -> Result<Vec<f32>, GenerateError> {
        let of = plan.steps.len();
        let conditioning = self.condition(request)?;
        let (height, width) = (request.height as usize / self.scale, request.width as usize / self.scale);
        let batch = if request.guidance > 1.0 { 2 } else { 1 };
        let mut latents = noise;
        latents.iter_mut().for_each(|value| *value *= plan.initial_scale);
        let mut run = plan.begin(0);
        for (done, step) in plan.steps.iter().enumerate() {
            if control.step(done, of).is_break() {
                return Err(GenerateError::Cancelled { done, of });
            }
            let input: Vec<f32> = latents.iter().map(|value| value * step.input_scale).collect();
            let input = Tensor::from_vec(
                input.repeat(batch),
                (batch, self.latent_channels, height, width),
                &Device::Cpu,
            )?;
            let input =
                FeatureMap::from_channels_first(&input.to_dtype(self.dtype)?.to_device(&self.device)?)?;
            let output = self.unet.forward(&input, step.timestep, &conditioning)?.to_channels_first()?;
            let output: Vec<f32> = output.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            let output = guide(output, request.guidance, batch);
            run.step(&mut latents, &output, &mut SeededNoise { seed: request.seed });
        }
        // A last word so that progress ends at 100 %; the picture is as good as made.
        let _ = control.step(of, of);
        finite(latents)
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

/// The guided prediction: `without + guidance · (with − without)`.
fn guide(mut output: Vec<f32>, guidance: f32, batch: usize) -> Vec<f32> {
    if batch == 1 {
        return output;
    }
    let conditional = output.split_off(output.len() / 2);
    for (without, with) in output.iter_mut().zip(conditional) {
        *without += guidance * (with - *without);
    }
    output
}

fn finite(values: Vec<f32>) -> Result<Vec<f32>, GenerateError> {
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(GenerateError::NotFinite) }
}
