//! The prior's sampler: diffusers' `UnCLIPScheduler`, by figures taken in f32 in its order.
//!
//! Invariant: the same bits on every platform for the same predictions and noise.

use serde::Deserialize;

use crate::diffusion::scheduler::cosine_betas;

/// The most timesteps that a prior is trained with.
const MAX_TRAINED_STEPS: usize = 10_000;
/// The least variance that is counted with.
const LEAST_VARIANCE: f32 = 1e-20;

/// `scheduler_config.json` of a prior.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct UnClipConfig {
    #[serde(rename = "_class_name")]
    class: String,
    #[serde(default = "trained_steps")]
    num_train_timesteps: usize,
    #[serde(default = "variance_type")]
    variance_type: String,
    #[serde(default = "yes")]
    clip_sample: bool,
    #[serde(default = "one")]
    clip_sample_range: f32,
    #[serde(default)]
    prediction_type: Prediction,
    #[serde(default = "beta_schedule")]
    beta_schedule: String,
}

fn trained_steps() -> usize {
    1000
}
fn variance_type() -> String {
    "fixed_small_log".to_owned()
}
fn yes() -> bool {
    true
}
fn one() -> f32 {
    1.0
}
fn beta_schedule() -> String {
    "squaredcos_cap_v2".to_owned()
}

/// What the prior was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Prediction {
    #[default]
    Epsilon,
    Sample,
}

/// Why a prior's scheduler config cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum UnClipError {
    #[error("scheduler `{0}` is no prior's; UnCLIPScheduler is")]
    UnknownClass(String),
    #[error("scheduler option {0} is not supported")]
    Unsupported(String),
}

/// A checked sampler of one prior.
#[derive(Debug, Clone)]
pub(super) struct UnClip {
    betas: Vec<f32>,
    /// The share of signal left (ᾱ) at each trained timestep, falling.
    alphas: Vec<f32>,
    prediction: Prediction,
    bound: Option<f32>,
}

/// One step of a run.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) timestep: f64,
    /// Shares of signal and noise in the latents.
    signal: f32,
    noise: f32,
    prediction: Prediction,
    bound: Option<f32>,
    /// What the predicted embedding and the latents are multiplied by.
    of_prediction: f32,
    of_latents: f32,
    /// Of the noise that is added; 0 in the last step.
    deviation: f32,
}

impl UnClip {
    /// The fewest steps that a run may take: its timesteps are spread between first and last.
    pub(super) const LEAST_STEPS: usize = 2;

    pub(super) fn new(config: &UnClipConfig) -> Result<Self, UnClipError> {
        if config.class != "UnCLIPScheduler" {
            return Err(UnClipError::UnknownClass(config.class.clone()));
        }
        let unsupported = |name: String| Err(UnClipError::Unsupported(name));
        if config.variance_type != "fixed_small_log" {
            return unsupported(format!("variance_type `{}`", config.variance_type));
        }
        if config.beta_schedule != "squaredcos_cap_v2" {
            return unsupported(format!("beta_schedule `{}`", config.beta_schedule));
        }
        if !(Self::LEAST_STEPS..=MAX_TRAINED_STEPS).contains(&config.num_train_timesteps) {
            return unsupported(format!("num_train_timesteps = {}", config.num_train_timesteps));
        }
        if config.clip_sample && !(config.clip_sample_range.is_finite() && config.clip_sample_range > 0.0) {
            return unsupported(format!("clip_sample_range = {}", config.clip_sample_range));
        }
        let betas = cosine_betas(config.num_train_timesteps);
        let mut product = 1.0f64;
        let alphas = betas
            .iter()
            .map(|beta| {
                product *= f64::from(1.0 - beta);
                product as f32
            })
            .collect();
        let bound = config.clip_sample.then_some(config.clip_sample_range);
        Ok(Self { betas, alphas, prediction: config.prediction_type, bound })
    }

    /// The most steps that a run may take.
    pub(super) fn max_steps(&self) -> usize {
        self.alphas.len()
    }

    /// Plans a run of `steps` steps, [`Self::LEAST_STEPS`] to [`Self::max_steps`].
    pub(super) fn plan(&self, steps: usize) -> Vec<Step> {
        let ratio = (self.alphas.len() - 1) as f64 / (steps.max(Self::LEAST_STEPS) - 1) as f64;
        let timestep = |step: usize| (step as f64 * ratio).round_ties_even() as usize;
        (0..steps).rev().map(|step| self.step(timestep(step), step.checked_sub(1).map(timestep))).collect()
    }

    /// From one timestep to the next of the run, or to the embedding itself.
    fn step(&self, timestep: usize, next: Option<usize>) -> Step {
        let alpha = self.alphas[timestep];
        let next_alpha = next.map_or(1.0, |next| self.alphas[next]);
        let (left, next_left) = (1.0 - alpha, 1.0 - next_alpha);
        // From one trained timestep to the one before, β is as trained.
        let beta = match timestep.checked_sub(1) == next {
            true => self.betas[timestep],
            false => 1.0 - alpha / next_alpha,
        };
        let variance = (next_left / left * beta).max(LEAST_VARIANCE);
        Step {
            timestep: timestep as f64,
            signal: alpha.sqrt(),
            noise: left.sqrt(),
            prediction: self.prediction,
            bound: self.bound,
            of_prediction: next_alpha.sqrt() * beta / left,
            of_latents: (1.0 - beta).sqrt() * next_left / left,
            deviation: if timestep > 0 { variance.sqrt() } else { 0.0 },
        }
    }
}

impl Step {
    /// Moves `latents` in place by what the prior said of them. `noise`: standard normal.
    pub(super) fn take(&self, latents: &mut [f32], output: &[f32], noise: &[f32]) {
        for ((latent, output), noise) in latents.iter_mut().zip(output).zip(noise) {
            let predicted = match self.prediction {
                Prediction::Epsilon => (*latent - self.noise * output) / self.signal,
                Prediction::Sample => *output,
            };
            let predicted = self.bound.map_or(predicted, |bound| predicted.clamp(-bound, bound));
            let mean = self.of_prediction * predicted + self.of_latents * *latent;
            *latent = mean + self.deviation * noise;
        }
    }
}
