//! Samplers: which noise levels to visit, and how a prediction moves the latents from one to the
//! next. The numbers are those of diffusers' schedulers of the same names: DDIM (η = 0), DDPM, LCM,
//! Euler, Euler ancestral, DPM-Solver++ and UniPC, by a model's own `scheduler_config.json` or by the
//! name of a [`SchedulerKind`].
//!
//! A [`Plan`] is immutable and holds every step of a run; a [`run::Run`] goes through it, from any step
//! on, and keeps what multistep samplers remember. What noise is added comes from a [`run::StepNoise`].
//!
//! Invariant: the same bits on every platform for the same predictions and noise.

mod config;
mod kind;
mod levels;
mod multistep;
mod rules;
mod run;

#[cfg(test)]
mod tests;

pub use kind::SchedulerKind;

pub(crate) use config::SchedulerConfig;
pub(crate) use levels::cosine_betas;
pub(crate) use run::{Plan, Run, SeededNoise, Step, StepNoise};

use config::{Sampler, Settings, Spacing};
use multistep::Solver;
use rules::{Mix, Reading, Rule};

/// Why a scheduler cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SchedulerError {
    #[error(
        "scheduler `{0}` is not known; DDIMScheduler, DDPMScheduler, LCMScheduler, EulerDiscreteScheduler, \
         EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler and \
         PNDMScheduler (run as DDIM) are"
    )]
    UnknownClass(String),
    #[error("scheduler `{0}` is not known; {names} are", names = SchedulerKind::ALL.map(SchedulerKind::name).join(", "))]
    UnknownKind(String),
    #[error("scheduler option {0} is not supported")]
    Unsupported(String),
    #[error("{steps} steps cannot be taken; this scheduler takes 1 to {most}")]
    Steps { steps: usize, most: usize },
}

/// A checked scheduler of one model.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    config: SchedulerConfig,
    settings: Settings,
    /// The share of signal left at each trained timestep, falling.
    alphas: Vec<f32>,
    /// How many of the trained timesteps a run may visit.
    reach: usize,
}

impl Scheduler {
    /// The scheduler of a config, or another one by name over the same noise levels.
    pub(crate) fn new(config: &SchedulerConfig, kind: Option<SchedulerKind>) -> Result<Self, SchedulerError> {
        let settings = config.settings(kind)?;
        let alphas = levels::alphas(&settings.training, settings.sampler)?;
        let reach = levels::reach(&settings, &alphas);
        if reach < alphas.len() && (reach < 2 || settings.spacing == Spacing::Trailing) {
            return Err(SchedulerError::Unsupported("lambda_min_clipped".to_owned()));
        }
        Ok(Self { config: config.clone(), settings, alphas, reach })
    }

    /// Another sampler over the same noise levels.
    pub(crate) fn with_kind(&self, kind: SchedulerKind) -> Result<Self, SchedulerError> {
        Self::new(&self.config, Some(kind))
    }

    /// The most steps that a run may take.
    pub(crate) fn max_steps(&self) -> usize {
        match self.settings.sampler {
            Sampler::Lcm => self.settings.original_steps,
            // They place one timestep more than they visit.
            Sampler::Dpm | Sampler::UniPc => (self.reach - 1).max(1),
            _ => self.alphas.len(),
        }
    }

    /// Plans a run of `steps` steps.
    pub(crate) fn plan(&self, steps: usize) -> Result<Plan, SchedulerError> {
        let most = self.max_steps();
        if steps == 0 || steps > most {
            return Err(SchedulerError::Steps { steps, most });
        }
        let (initial_scale, solver, steps) = match self.settings.sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Lcm => (1.0, None, self.steps_by_alpha(steps)),
            _ => self.steps_by_sigma(steps),
        };
        Ok(Plan { initial_scale, steps, bounds: self.settings.bounds, solver })
    }

    fn step(&self, timestep: f64, input_scale: f32, mix: Mix, rule: Rule) -> Step {
        Step { timestep, input_scale, mix, reading: Reading::new(&self.settings, mix), rule }
    }

    fn steps_by_alpha(&self, steps: usize) -> Vec<Step> {
        let timesteps = levels::timesteps(&self.settings, steps);
        let final_alpha = if self.settings.ends_clean { 1.0 } else { self.alphas[0] };
        let gap = self.alphas.len() / steps;
        let step = |(place, timestep): (usize, &f64)| {
            let index = *timestep as usize;
            let alpha = self.alphas[index];
            let next = timesteps.get(place + 1).map(|timestep| self.alphas[*timestep as usize]);
            let rule = match self.settings.sampler {
                Sampler::Ddpm => Rule::ddpm(alpha, next.unwrap_or(1.0), index > 0, self.settings.variance),
                Sampler::Lcm => {
                    let next = next.map_or(Mix::CLEAN, Mix::of_alpha);
                    Rule::lcm(*timestep, self.settings.timestep_scaling, next)
                }
                _ => Rule::ddim(index.checked_sub(gap).map_or(final_alpha, |index| self.alphas[index])),
            };
            self.step(*timestep, 1.0, Mix::of_alpha(alpha), rule)
        };
        timesteps.iter().enumerate().map(step).collect()
    }

    /// Also what to scale the starting noise by, and the solver of samplers that look back.
    fn steps_by_sigma(&self, steps: usize) -> (f32, Option<Solver>, Vec<Step>) {
        let visited = levels::visited(&self.settings, &self.alphas, self.reach, steps);
        let is_multistep = matches!(self.settings.sampler, Sampler::Dpm | Sampler::UniPc);
        let step = |(timestep, sigmas): (&f64, &[f32])| {
            let (sigma, next) = (sigmas[0], sigmas[1]);
            if is_multistep {
                return self.step(*timestep, 1.0, Mix::of_sigma(sigma), Rule::Multistep);
            }
            let rule = match self.settings.sampler {
                Sampler::EulerAncestral => Rule::ancestral(sigma, next),
                _ => Rule::Euler { sigma, next },
            };
            let scale = 1.0 / (sigma * sigma + 1.0).sqrt();
            self.step(*timestep, scale, Mix { signal: 1.0, noise: sigma }, rule)
        };
        let planned = visited.timesteps.iter().zip(visited.sigmas.windows(2)).map(step).collect();
        if is_multistep {
            return (1.0, Some(Solver::new(&self.settings, &visited.sigmas)), planned);
        }
        let largest = visited.sigmas.iter().copied().fold(0.0, f32::max);
        let scale = match self.settings.spacing {
            Spacing::Leading => (largest * largest + 1.0).sqrt(),
            Spacing::Trailing | Spacing::Linspace => largest,
        };
        (scale, None, planned)
    }
}
