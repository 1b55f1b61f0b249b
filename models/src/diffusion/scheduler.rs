//! Samplers: which noise levels to visit, and how a prediction moves the latents from one to the
//! next. The numbers are those of diffusers' `DDIMScheduler` (eta 0) and `EulerDiscreteScheduler`.

use serde::Deserialize;

/// Why a scheduler's config cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SchedulerError {
    #[error("scheduler `{0}` is not known; DDIMScheduler, EulerDiscreteScheduler and PNDMScheduler are")]
    UnknownClass(String),
    #[error("scheduler option {0} is not supported")]
    Unsupported(String),
    #[error("{steps} steps cannot be taken of {trained} trained ones")]
    Steps { steps: usize, trained: usize },
}

/// What the network was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Prediction {
    Epsilon,
    VPrediction,
}

/// Which of the trained timesteps a run visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// How the latents move from one noise level to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sampler {
    Ddim,
    Euler,
}

/// `scheduler_config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    class: String,
    #[serde(default = "trained_steps")]
    num_train_timesteps: usize,
    #[serde(default = "beta_start")]
    beta_start: f64,
    #[serde(default = "beta_end")]
    beta_end: f64,
    #[serde(default = "beta_schedule")]
    beta_schedule: String,
    trained_betas: Option<Vec<f32>>,
    #[serde(default = "prediction")]
    prediction_type: Prediction,
    timestep_spacing: Option<Spacing>,
    #[serde(default)]
    steps_offset: usize,
    /// On by default for DDIM, off for PNDM.
    set_alpha_to_one: Option<bool>,
    /// On by default for DDIM, unknown to the others.
    clip_sample: Option<bool>,
    #[serde(default = "one")]
    clip_sample_range: f32,
    #[serde(default)]
    thresholding: bool,
    #[serde(default)]
    rescale_betas_zero_snr: bool,
    #[serde(default)]
    use_karras_sigmas: Option<bool>,
    #[serde(default)]
    use_exponential_sigmas: Option<bool>,
    #[serde(default)]
    use_beta_sigmas: Option<bool>,
    #[serde(default)]
    final_sigmas_type: Option<String>,
    #[serde(default)]
    interpolation_type: Option<String>,
    #[serde(default)]
    timestep_type: Option<String>,
}

fn trained_steps() -> usize {
    1000
}
fn beta_start() -> f64 {
    0.0001
}
fn beta_end() -> f64 {
    0.02
}
fn beta_schedule() -> String {
    "linear".to_owned()
}
fn prediction() -> Prediction {
    Prediction::Epsilon
}
fn one() -> f32 {
    1.0
}

/// The most timesteps that a network is trained with.
const MAX_TRAINED_STEPS: usize = 10_000;

/// A checked scheduler of one model.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    sampler: Sampler,
    prediction: Prediction,
    spacing: Spacing,
    offset: usize,
    clip: Option<f32>,
    final_alpha: f32,
    /// The share of signal left at each trained timestep, falling.
    alphas: Vec<f32>,
}

impl Scheduler {
    pub(crate) fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        let sampler = match config.class.as_str() {
            // PNDM has the same noise levels; DDIM is the sampler that diffusers runs with its config.
            "DDIMScheduler" | "PNDMScheduler" => Sampler::Ddim,
            "EulerDiscreteScheduler" => Sampler::Euler,
            other => return Err(SchedulerError::UnknownClass(other.to_owned())),
        };
        config.check(sampler)?;
        let alphas = config.alphas()?;
        let is_ddim = config.class == "DDIMScheduler";
        let spacing = match sampler {
            Sampler::Ddim => Spacing::Leading,
            Sampler::Euler => Spacing::Linspace,
        };
        Ok(Self {
            sampler,
            prediction: config.prediction_type,
            spacing: config.timestep_spacing.unwrap_or(spacing),
            offset: config.steps_offset,
            clip: (is_ddim && config.clip_sample.unwrap_or(true)).then_some(config.clip_sample_range),
            final_alpha: if config.set_alpha_to_one.unwrap_or(is_ddim) { 1.0 } else { alphas[0] },
            alphas,
        })
    }

    /// The most steps that a run may take.
    pub(crate) fn max_steps(&self) -> usize {
        self.alphas.len()
    }

    /// Plans a run of `steps` steps.
    pub(crate) fn plan(&self, steps: usize) -> Result<Plan, SchedulerError> {
        let trained = self.alphas.len();
        if steps == 0 || steps > trained {
            return Err(SchedulerError::Steps { steps, trained });
        }
        let timesteps = self.timesteps(steps);
        match self.sampler {
            Sampler::Ddim => Ok(self.plan_ddim(&timesteps)),
            Sampler::Euler => Ok(self.plan_euler(&timesteps)),
        }
    }

    /// The timesteps of a run, falling.
    fn timesteps(&self, steps: usize) -> Vec<f64> {
        let trained = self.alphas.len();
        let last = (trained - 1) as f64;
        match self.spacing {
            Spacing::Leading => {
                let ratio = trained / steps;
                (0..steps).rev().map(|step| ((step * ratio + self.offset) as f64).min(last)).collect()
            }
            Spacing::Trailing => {
                let ratio = trained as f64 / steps as f64;
                (0..steps)
                    .map(|step| (trained as f64 - step as f64 * ratio).round_ties_even() - 1.0)
                    .collect()
            }
            Spacing::Linspace => {
                let gap = if steps > 1 { last / (steps - 1) as f64 } else { 0.0 };
                let timestep =
                    |step: usize| if steps > 1 && step == steps - 1 { last } else { step as f64 * gap };
                let rounded = |value: f64| {
                    if self.sampler == Sampler::Ddim {
                        value.round_ties_even()
                    } else {
                        f64::from(value as f32)
                    }
                };
                (0..steps).rev().map(|step| rounded(timestep(step))).collect()
            }
        }
    }

    fn plan_ddim(&self, timesteps: &[f64]) -> Plan {
        let ratio = self.alphas.len() / timesteps.len();
        let step = |timestep: &f64| {
            let index = *timestep as usize;
            let alpha = self.alphas[index];
            let previous = index.checked_sub(ratio).map_or(self.final_alpha, |index| self.alphas[index]);
            Step {
                timestep: *timestep,
                input_scale: 1.0,
                rule: Rule::Ddim {
                    signal: alpha.sqrt(),
                    noise: (1.0 - alpha).sqrt(),
                    next_signal: previous.sqrt(),
                    next_noise: (1.0 - previous).sqrt(),
                    clip: self.clip,
                },
                prediction: self.prediction,
            }
        };
        Plan { initial_scale: 1.0, steps: timesteps.iter().map(step).collect() }
    }

    fn plan_euler(&self, timesteps: &[f64]) -> Plan {
        let all: Vec<f64> =
            self.alphas.iter().map(|alpha| f64::from(((1.0 - alpha) / alpha).sqrt())).collect();
        let mut sigmas: Vec<f32> =
            timesteps.iter().map(|timestep| interpolate(&all, *timestep) as f32).collect();
        sigmas.push(0.0);
        let largest = sigmas.iter().copied().fold(0.0, f32::max);
        let initial_scale =
            if self.spacing == Spacing::Leading { (largest * largest + 1.0).sqrt() } else { largest };
        let step = |(timestep, sigma): (&f64, &[f32])| Step {
            timestep: *timestep,
            input_scale: 1.0 / (sigma[0] * sigma[0] + 1.0).sqrt(),
            rule: Rule::Euler { sigma: sigma[0], next: sigma[1] },
            prediction: self.prediction,
        };
        Plan { initial_scale, steps: timesteps.iter().zip(sigmas.windows(2)).map(step).collect() }
    }
}

impl SchedulerConfig {
    fn check(&self, sampler: Sampler) -> Result<(), SchedulerError> {
        let unsupported = |condition: bool, name: &str| {
            if condition { Err(SchedulerError::Unsupported(name.to_owned())) } else { Ok(()) }
        };
        unsupported(self.thresholding, "thresholding")?;
        unsupported(self.rescale_betas_zero_snr && sampler == Sampler::Euler, "rescale_betas_zero_snr")?;
        unsupported(self.use_karras_sigmas == Some(true), "use_karras_sigmas")?;
        unsupported(self.use_exponential_sigmas == Some(true), "use_exponential_sigmas")?;
        unsupported(self.use_beta_sigmas == Some(true), "use_beta_sigmas")?;
        unsupported(
            self.final_sigmas_type.as_deref().is_some_and(|kind| kind != "zero"),
            "final_sigmas_type",
        )?;
        unsupported(
            self.interpolation_type.as_deref().is_some_and(|kind| kind != "linear"),
            "interpolation_type",
        )?;
        unsupported(self.timestep_type.as_deref().is_some_and(|kind| kind != "discrete"), "timestep_type")?;
        unsupported(!(1..=MAX_TRAINED_STEPS).contains(&self.num_train_timesteps), "num_train_timesteps")?;
        unsupported(
            self.trained_betas.as_ref().is_some_and(|betas| betas.len() != self.num_train_timesteps),
            "trained_betas",
        )
    }

    /// The cumulative product of 1 − beta, in the precision that diffusers computes it.
    fn alphas(&self) -> Result<Vec<f32>, SchedulerError> {
        let count = self.num_train_timesteps;
        let mut betas = match (&self.trained_betas, self.beta_schedule.as_str()) {
            (Some(betas), _) => betas.clone(),
            (None, "linear") => linspace(self.beta_start as f32, self.beta_end as f32, count),
            (None, "scaled_linear") => {
                let roots = linspace(self.beta_start.sqrt() as f32, self.beta_end.sqrt() as f32, count);
                roots.into_iter().map(|root| root * root).collect()
            }
            (None, other) => return Err(SchedulerError::Unsupported(format!("beta_schedule `{other}`"))),
        };
        if self.rescale_betas_zero_snr {
            rescale_to_zero_signal(&mut betas);
        }
        let mut product = 1.0f64;
        let alphas: Vec<f32> = betas
            .iter()
            .map(|beta| {
                product *= f64::from(1.0 - beta);
                product as f32
            })
            .collect();
        match alphas.iter().all(|alpha| (0.0..=1.0).contains(alpha)) {
            true => Ok(alphas),
            false => Err(SchedulerError::Unsupported("betas outside 0 to 1".to_owned())),
        }
    }
}

/// Evenly spaced values, to the bit those of torch: from both ends, with fused multiply-adds.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = if count > 1 { (end - start) / (count - 1) as f32 } else { 0.0 };
    let value = |index: usize| match index < count / 2 {
        true => step.mul_add(index as f32, start),
        false => (-step).mul_add((count - 1 - index) as f32, end),
    };
    (0..count).map(value).collect()
}

/// Shifts the noise levels so that nothing of the picture is left at the last one.
fn rescale_to_zero_signal(betas: &mut [f32]) {
    let mut product = 1.0f64;
    let mut roots: Vec<f32> = betas
        .iter()
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            (product as f32).sqrt()
        })
        .collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    roots.iter_mut().for_each(|root| *root = (*root - last) * (first / (first - last)));
    let mut previous = 1.0;
    for (beta, root) in betas.iter_mut().zip(roots) {
        let alpha = root * root;
        *beta = 1.0 - alpha / previous;
        previous = alpha;
    }
}

/// Linear interpolation of `values` at a fractional index.
fn interpolate(values: &[f64], position: f64) -> f64 {
    let position = position.clamp(0.0, (values.len() - 1) as f64);
    let below = position.floor() as usize;
    let above = (below + 1).min(values.len() - 1);
    values[below] + (values[above] - values[below]) * (position - below as f64)
}

/// The steps of one run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// What to multiply the starting noise by.
    pub(crate) initial_scale: f32,
    pub(crate) steps: Vec<Step>,
}

/// One step: the network is asked at `timestep`, and its prediction moves the latents.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) timestep: f64,
    /// What to multiply the latents by before the network sees them.
    pub(crate) input_scale: f32,
    prediction: Prediction,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Ddim { signal: f32, noise: f32, next_signal: f32, next_noise: f32, clip: Option<f32> },
    Euler { sigma: f32, next: f32 },
}

impl Step {
    /// Moves `latents` in place by the network's `prediction`.
    pub(crate) fn apply(&self, latents: &mut [f32], prediction: &[f32]) {
        for (latent, output) in latents.iter_mut().zip(prediction) {
            *latent = self.next(*latent, *output);
        }
    }

    fn next(&self, latent: f32, output: f32) -> f32 {
        match self.rule {
            Rule::Ddim { signal, noise, next_signal, next_noise, clip } => {
                let (picture, epsilon) = match self.prediction {
                    Prediction::Epsilon => ((latent - noise * output) / signal, output),
                    Prediction::VPrediction => {
                        (signal * latent - noise * output, signal * output + noise * latent)
                    }
                };
                let picture = clip.map_or(picture, |range| picture.clamp(-range, range));
                next_signal * picture + next_noise * epsilon
            }
            Rule::Euler { sigma, next } => {
                let picture = match self.prediction {
                    Prediction::Epsilon => latent - sigma * output,
                    Prediction::VPrediction => {
                        output * (-sigma / (sigma * sigma + 1.0).sqrt()) + latent / (sigma * sigma + 1.0)
                    }
                };
                latent + (latent - picture) / sigma * (next - sigma)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Scheduler {
        Scheduler::new(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn noise_levels_can_be_rescaled_to_zero_signal() {
        let scheduler = scheduler(
            r#"{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": true,
                "set_alpha_to_one": false, "clip_sample": false}"#,
        );
        // By diffusers 0.42, whose square roots are a bit off in the last place.
        let expected = [
            (0, 0.999_149_98),
            (249, 0.654_188_87),
            (499, 0.242_358_997),
            (749, 0.033_171_453),
            (998, 1.967_963_4e-7),
            (999, 0.0),
        ];
        for (index, alpha) in expected {
            assert!(
                (f64::from(scheduler.alphas[index]) - alpha).abs() <= 1e-6 * alpha,
                "{index}: {} is not {alpha}",
                scheduler.alphas[index]
            );
        }
        let timesteps: Vec<f64> = scheduler.plan(4).unwrap().steps.iter().map(|step| step.timestep).collect();
        assert_eq!(timesteps, [999.0, 749.0, 499.0, 249.0]);
    }
}
