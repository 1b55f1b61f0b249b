//! The way from noise, or from a picture with noise, to the latents of a picture: the loops of
//! diffusers' text-to-image, img2img, inpaint and ControlNet pipelines.

use candle_core::{DType, Device, Tensor};

use super::canvas::{Canvas, Masks, resized};
use super::contracting::{Conditioning, TextConditioning};
use super::control::{ControlNet, Residuals};
use super::request::{Control, ControlKind, Generate};
use super::scheduler::{Plan, Run, Step, StepNoise};
use super::{GenerateError, Pipeline, StepControl, finite, invalid, trajectory};
use crate::layers::FeatureMap;
use crate::noise;
use crate::picture::RgbPicture;
use crate::preprocess::{self, CannyThresholds};

/// The noise stream that a picture starts from.
const START_STREAM: u64 = 0;
/// The noise stream that latents of a given picture are drawn with.
pub(super) const ENCODE_STREAM: u64 = 1;
/// The noise stream that latents of the known part of a picture are drawn with.
const KNOWN_STREAM: u64 = 2;

/// The draws of a run before its first step, each of the latents' length.
pub(super) struct Draws {
    /// What it starts from.
    pub(super) start: Vec<f32>,
    /// For the latents of the given picture.
    pub(super) picture: Vec<f32>,
    /// For the latents of that picture without what is made anew.
    pub(super) known: Vec<f32>,
}

impl Draws {
    pub(super) fn of_seed(seed: u64, length: usize) -> Self {
        let draw = |stream| noise::normal(seed, stream, length);
        Self { start: draw(START_STREAM), picture: draw(ENCODE_STREAM), known: draw(KNOWN_STREAM) }
    }
}

/// What stays the same through all steps of a run.
pub(super) struct Scene<'a> {
    conditioning: Conditioning,
    /// Whether the negative prompt is asked too.
    is_guided: bool,
    /// What stays as it is, for networks that know nothing of masks.
    kept: Option<Kept>,
    /// The mask and the known part's latents, for inpaint networks: `[1, 1 + latent channels, …]`.
    appended: Option<Tensor>,
    controls: Vec<Steering<'a>>,
}

/// The part of a picture that stays.
struct Kept {
    latents: Vec<f32>,
    noise: Vec<f32>,
    /// 1 where the picture is made anew, for one channel.
    mask: Vec<f32>,
}

impl Kept {
    /// Puts the part back, with the noise of step `step`.
    fn put_back(&self, latents: &mut [f32], plan: &Plan, step: usize) {
        let kept = plan.add_noise(&self.latents, &self.noise, step);
        for (place, (latent, kept)) in latents.iter_mut().zip(kept).enumerate() {
            let mask = self.mask[place % self.mask.len()];
            *latent = (1.0 - mask) * kept + mask * *latent;
        }
    }
}

/// One ControlNet with what it sees.
struct Steering<'a> {
    network: &'a ControlNet,
    conditioning: Conditioning,
    hint: FeatureMap,
    scale: f64,
}

impl Pipeline {
    /// Makes latents, `[latent channels, height, width]`.
    pub(super) fn denoise(
        &self,
        request: &Generate,
        canvas: Option<&Canvas>,
        plan: &Plan,
        draws: Draws,
        step_noise: &mut dyn StepNoise,
        control: &mut (dyn StepControl + Send),
    ) -> Result<Vec<f32>, GenerateError> {
        let begin = trajectory::begin_of(canvas, plan);
        let of = plan.steps.len() - begin;
        if control.step(0, of).is_break() {
            return Err(GenerateError::Cancelled { done: 0, of });
        }
        let (mut latents, scene) = self.set_out(request, canvas, plan, draws)?;
        let mut run = plan.begin(begin);
        for done in 0..of {
            if done > 0 && control.step(done, of).is_break() {
                return Err(GenerateError::Cancelled { done, of });
            }
            control.record(&|| trajectory::encode(&latents, &run));
            self.take_step(request, &scene, &mut run, &mut latents, step_noise)?;
        }
        control.record(&|| trajectory::encode(&latents, &run));
        // A last word so that progress ends at 100 %; the picture is as good as made.
        let _ = control.step(of, of);
        finite(latents)
    }

    /// Takes the next step of a run.
    pub(super) fn take_step(
        &self,
        request: &Generate,
        scene: &Scene,
        run: &mut Run,
        latents: &mut [f32],
        step_noise: &mut dyn StepNoise,
    ) -> Result<(), GenerateError> {
        let Some(step) = run.next_step() else { return Ok(()) };
        let prediction = self.predict(request, scene, step, latents)?;
        run.step(latents, &prediction, step_noise);
        if let Some(kept) = &scene.kept {
            kept.put_back(latents, run.plan(), run.next());
        }
        Ok(())
    }

    /// The latents before the first step, and what all steps need.
    pub(super) fn set_out<'a>(
        &'a self,
        request: &Generate,
        canvas: Option<&Canvas>,
        plan: &Plan,
        draws: Draws,
    ) -> Result<(Vec<f32>, Scene<'a>), GenerateError> {
        let is_guided = request.guidance > 1.0;
        let batch = if is_guided { 2 } else { 1 };
        let features = self.features(request)?;
        let text = features.conditioning(request);
        let mut scene = Scene {
            conditioning: self.unet.prepare(&text)?,
            is_guided,
            kept: None,
            appended: None,
            controls: self.steerings(request, &text, batch)?,
        };
        let Draws { start: noise, picture, known } = draws;
        let scaled = |noise: &[f32]| noise.iter().map(|value| value * plan.initial_scale).collect();
        let Some(canvas) = canvas else { return Ok((scaled(&noise), scene)) };
        let begin = plan.begin_at_strength(canvas.strength);
        let is_inpaint_network = self.is_inpaint_network();
        // As diffusers: pictures always leave a trace, inpainting at full strength does not.
        let starts_from_noise = canvas.masks.is_some() && canvas.strength >= 1.0;
        let picture = match starts_from_noise && is_inpaint_network {
            true => Vec::new(),
            false => self.encode_signed(&self.signed_picture(&canvas.picture, None)?, picture)?,
        };
        let latents = match starts_from_noise {
            true => scaled(&noise),
            false => plan.add_noise(&picture, &noise, begin),
        };
        if let Some(masks) = &canvas.masks {
            let mask = masks.latent(request.width, self.scale);
            if is_inpaint_network {
                scene.appended = Some(self.appended(canvas, masks, mask, known)?);
            } else {
                scene.kept = Some(Kept { latents: picture, noise, mask });
            }
        }
        Ok((latents, scene))
    }

    /// What an inpaint network sees beside the latents.
    fn appended(
        &self,
        canvas: &Canvas,
        masks: &Masks,
        mask: Vec<f32>,
        noise: Vec<f32>,
    ) -> Result<Tensor, GenerateError> {
        let known = self.signed_picture(&canvas.picture, Some(masks.painted()))?;
        let channels = [mask, self.encode_signed(&known, noise)?].concat();
        let [height, width] = [canvas.picture.height(), canvas.picture.width()];
        let shape = (1, 1 + self.latent_channels, height as usize / self.scale, width as usize / self.scale);
        Ok(Tensor::from_vec(channels, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    /// The ControlNets that a request asks for, each with its picture.
    fn steerings<'a>(
        &'a self,
        request: &Generate,
        text: &TextConditioning,
        batch: usize,
    ) -> Result<Vec<Steering<'a>>, GenerateError> {
        let steering = |control: &Control| {
            let network = self.controls.get(&control.kind);
            let network = network.ok_or_else(|| self.no_control(control.kind))?;
            let picture = self.control_picture(control, request.width, request.height)?;
            Ok(Steering {
                network,
                conditioning: network.prepare(text)?,
                hint: network.embed(&self.unit_picture(&picture)?, batch)?,
                scale: f64::from(control.scale),
            })
        };
        request.controls.iter().map(steering).collect()
    }

    /// What a ControlNet sees of a picture: lines are drawn at the size of the result.
    fn control_picture(
        &self,
        control: &Control,
        width: u32,
        height: u32,
    ) -> Result<RgbPicture, GenerateError> {
        let picture = resized(&control.picture, width, height);
        Ok(match (control.kind, &self.depth) {
            _ if control.is_prepared => picture,
            (ControlKind::Scribble, _) => preprocess::scribble(&picture),
            (ControlKind::Canny, _) => preprocess::canny(&picture, CannyThresholds::CONTROL),
            (ControlKind::Depth, Some(estimator)) => estimator.estimate(&picture)?,
            (ControlKind::Depth, None) => picture,
        })
    }

    pub(super) fn no_control(&self, kind: ControlKind) -> GenerateError {
        let kinds: Vec<String> = self.controls.keys().map(ToString::to_string).collect();
        let allowed = match kinds.as_slice() {
            [] => "absent: this model has no ControlNets".to_owned(),
            kinds => format!("one of {}", kinds.join(", ")),
        };
        invalid("control", kind, allowed)
    }

    /// What the network says of latents at a step, after guidance.
    pub(super) fn predict(
        &self,
        request: &Generate,
        scene: &Scene,
        step: &Step,
        latents: &[f32],
    ) -> Result<Vec<f32>, GenerateError> {
        let (height, width) = (request.height as usize / self.scale, request.width as usize / self.scale);
        let input: Vec<f32> = latents.iter().map(|value| value * step.input_scale).collect();
        let input = Tensor::from_vec(input, (1, self.latent_channels, height, width), &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)?;
        let for_all = |input: &Tensor| match scene.is_guided {
            true => FeatureMap::from_channels_first(&Tensor::cat(&[input, input], 0)?),
            false => FeatureMap::from_channels_first(input),
        };
        let plain = for_all(&input)?;
        let mut residuals: Option<Residuals> = None;
        for Steering { network, conditioning, hint, scale } in &scene.controls {
            let added = network.forward(&plain, step.timestep, hint, conditioning, *scale)?;
            residuals = Some(match residuals {
                Some(residuals) => residuals.add(&added)?,
                None => added,
            });
        }
        let seen = match &scene.appended {
            Some(appended) => for_all(&Tensor::cat(&[&input, appended], 1)?)?,
            None => plain,
        };
        let output = self.unet.forward(&seen, step.timestep, &scene.conditioning, residuals.as_ref())?;
        let output: Vec<f32> = output.to_channels_first()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(if scene.is_guided { guide(output, request.guidance) } else { output })
    }

    /// Latents of a picture, `[1, 3, height, width]` in −1 … 1, scaled as the UNet takes them: what
    /// the encoder says, drawn with `noise`.
    pub(super) fn encode_signed(&self, picture: &Tensor, noise: Vec<f32>) -> Result<Vec<f32>, GenerateError> {
        let distribution = self.vae.encode(picture)?;
        let mean = distribution.mean;
        let noise = Tensor::from_vec(noise, mean.shape(), &Device::Cpu)?;
        let noise = noise.to_dtype(self.vae_dtype)?.to_device(&self.device)?;
        let latents = (mean + ((distribution.log_variance * 0.5)?.exp()? * noise)?)?;
        let latents = ((latents - self.shift)? * self.scaling_factor)?;
        finite(latents.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// A picture as the autoencoder takes it: `[1, 3, height, width]` in −1 … 1, and 0 where it is
    /// hidden.
    pub(super) fn signed_picture(
        &self,
        picture: &RgbPicture,
        hidden: Option<&[bool]>,
    ) -> candle_core::Result<Tensor> {
        let mut values = planes(picture, |sample| sample / 127.5 - 1.0);
        if let Some(hidden) = hidden {
            for (place, value) in values.iter_mut().enumerate() {
                if hidden[place % hidden.len()] {
                    *value = 0.0;
                }
            }
        }
        picture_tensor(picture, values)?.to_dtype(self.vae_dtype)?.to_device(&self.device)
    }

    /// A picture as ControlNets take it: `[1, 3, height, width]` in 0 … 1.
    fn unit_picture(&self, picture: &RgbPicture) -> candle_core::Result<Tensor> {
        let values = planes(picture, |sample| sample / 255.0);
        picture_tensor(picture, values)?.to_dtype(self.dtype)?.to_device(&self.device)
    }
}

/// The samples of a picture, channel by channel.
fn planes(picture: &RgbPicture, value: impl Fn(f32) -> f32) -> Vec<f32> {
    let channel = |channel: usize| picture.pixels().iter().skip(channel).step_by(3);
    (0..3).flat_map(channel).map(|sample| value(f32::from(*sample))).collect()
}

fn picture_tensor(picture: &RgbPicture, values: Vec<f32>) -> candle_core::Result<Tensor> {
    let shape = (1, 3, picture.height() as usize, picture.width() as usize);
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The guided prediction: `without + guidance · (with − without)`.
fn guide(mut output: Vec<f32>, guidance: f32) -> Vec<f32> {
    let conditional = output.split_off(output.len() / 2);
    for (without, with) in output.iter_mut().zip(conditional) {
        *without += guidance * (with - *without);
    }
    output
}
