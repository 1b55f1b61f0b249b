//! The noise levels of training, and those that a run visits.
//!
//! Invariant: the same bits on every platform. Roots, logarithms and exponentials come from
//! [`crate::elementary`], and products are taken in the precision that diffusers takes them.

use super::SchedulerError;
use super::config::{FinalSigma, Sampler, Settings, SigmaSpacing, Spacing, Training};
use crate::elementary;

/// What is left of the signal, in the place of nothing, where noise is counted over signal: the
/// smallest number of format f16, as in diffusers.
const LEAST_ALPHA: f32 = 1.0 / 16_777_216.0;
/// Karras et al.'s ρ.
const KARRAS_RHO: f64 = 7.0;
/// The largest β of the cosine schedule.
const MAX_BETA: f64 = 0.999;

/// The share of signal left (ᾱ) at each trained timestep, falling.
pub(super) fn alphas(training: &Training, sampler: Sampler) -> Result<Vec<f32>, SchedulerError> {
    let count = training.steps;
    let (start, end) = (training.beta_start, training.beta_end);
    let mut betas = match (&training.betas, training.beta_schedule.as_str()) {
        (Some(betas), _) => betas.clone(),
        (None, "linear") => linspace(start as f32, end as f32, count),
        (None, "scaled_linear") => {
            let roots = linspace(start.sqrt() as f32, end.sqrt() as f32, count);
            roots.into_iter().map(|root| root * root).collect()
        }
        (None, "squaredcos_cap_v2") => cosine_betas(count),
        (None, other) => return Err(SchedulerError::Unsupported(format!("beta_schedule `{other}`"))),
    };
    if training.rescale_to_zero_signal {
        rescale_to_zero_signal(&mut betas);
    }
    let mut product = 1.0f64;
    let mut alphas: Vec<f32> = betas
        .iter()
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        })
        .collect();
    if let (true, true, Some(last)) =
        (training.rescale_to_zero_signal, sampler.counts_sigmas(), alphas.last_mut())
    {
        *last = LEAST_ALPHA;
    }
    let least = if sampler.counts_sigmas() { f32::MIN_POSITIVE } else { 0.0 };
    match alphas.iter().all(|alpha| (least..=1.0).contains(alpha)) {
        true => Ok(alphas),
        false => Err(SchedulerError::Unsupported("betas outside 0 to 1".to_owned())),
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

/// Nichol and Dhariwal's cosine schedule.
pub(crate) fn cosine_betas(count: usize) -> Vec<f32> {
    let alpha = |time: f64| {
        let cosine = elementary::sin_cos_quarters((time + 0.008) / 1.008).1;
        cosine * cosine
    };
    let beta = |index: usize| {
        let (from, to) = (index as f64 / count as f64, (index + 1) as f64 / count as f64);
        (1.0 - alpha(to) / alpha(from)).min(MAX_BETA) as f32
    };
    (0..count).map(beta).collect()
}

/// Shifts the noise levels so that nothing of the picture is left at the last one (Lin et al. 2023).
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

/// The timesteps and noise levels of one run.
pub(super) struct Visited {
    /// Falling.
    pub(super) timesteps: Vec<f64>,
    /// Noise over signal at each, and after the last.
    pub(super) sigmas: Vec<f32>,
}

/// Noise over signal at each trained timestep.
fn trained_sigmas(alphas: &[f32]) -> Vec<f32> {
    alphas.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
}

/// The timesteps that DDIM, DDPM and LCM visit.
pub(super) fn timesteps(settings: &Settings, steps: usize) -> Vec<f64> {
    let trained = settings.training.steps;
    match settings.sampler {
        Sampler::Lcm => {
            let gap = trained / settings.original_steps;
            let taken = |step: usize| {
                let index = (step as f64 * (settings.original_steps as f64 / steps as f64)).floor() as usize;
                ((settings.original_steps - index) * gap - 1) as f64
            };
            (0..steps).map(taken).collect()
        }
        _ => spaced_timesteps(settings, trained, steps),
    }
}

fn spaced_timesteps(settings: &Settings, trained: usize, steps: usize) -> Vec<f64> {
    let is_multistep = matches!(settings.sampler, Sampler::Dpm | Sampler::UniPc);
    let last = (trained - 1) as f64;
    // The multistep solvers place one timestep more and leave out the lowest.
    let (points, first) = if is_multistep { (steps + 1, 1) } else { (steps, 0) };
    match settings.spacing {
        Spacing::Leading => {
            let ratio = trained / points;
            (first..points).rev().map(|step| ((step * ratio + settings.offset) as f64).min(last)).collect()
        }
        Spacing::Trailing => {
            let ratio = trained as f64 / steps as f64;
            (0..steps).map(|step| (trained as f64 - step as f64 * ratio).round_ties_even() - 1.0).collect()
        }
        Spacing::Linspace => {
            let gap = if points > 1 { last / (points - 1) as f64 } else { 0.0 };
            let timestep =
                |step: usize| if points > 1 && step == points - 1 { last } else { step as f64 * gap };
            let is_fractional = matches!(settings.sampler, Sampler::Euler | Sampler::EulerAncestral);
            let rounded =
                |value: f64| if is_fractional { f64::from(value as f32) } else { value.round_ties_even() };
            (first..points).rev().map(|step| rounded(timestep(step))).collect()
        }
    }
}

/// The timesteps and noise levels that the samplers of Euler, DPM-Solver and UniPC visit.
///
/// `reach`: how many of the trained timesteps may be visited.
pub(super) fn visited(settings: &Settings, alphas: &[f32], reach: usize, steps: usize) -> Visited {
    let trained = trained_sigmas(alphas);
    let mut timesteps = spaced_timesteps(settings, reach, steps);
    let mut sigmas: Vec<f64> = timesteps.iter().map(|timestep| interpolate(&trained, *timestep)).collect();
    if settings.sigma_spacing != SigmaSpacing::Trained {
        // Euler spaces between the first and last level of the run, the others of training.
        let (low, high) = match settings.sampler {
            Sampler::Euler => (sigmas[steps - 1], sigmas[0]),
            _ => (f64::from(trained[0]), f64::from(trained[trained.len() - 1])),
        };
        let (low, high) = (settings.sigma_range.0.unwrap_or(low), settings.sigma_range.1.unwrap_or(high));
        sigmas = spaced_sigmas(settings.sigma_spacing, low, high, steps);
        let logarithms: Vec<f64> =
            trained.iter().map(|sigma| f64::from(elementary::ln(f64::from(*sigma)) as f32)).collect();
        timesteps =
            sigmas.iter().map(|sigma| settings.round_timestep(timestep_of(&logarithms, *sigma))).collect();
    }
    let last = match (settings.final_sigma, settings.sampler) {
        (_, Sampler::EulerAncestral) | (FinalSigma::Zero, _) => 0.0,
        (FinalSigma::SigmaMin, Sampler::UniPc) if settings.sigma_spacing != SigmaSpacing::Trained => {
            sigmas[steps - 1]
        }
        (FinalSigma::SigmaMin, _) => f64::from(trained[0]),
    };
    let sigmas = sigmas.into_iter().chain([last]).map(|sigma| sigma as f32).collect();
    Visited { timesteps, sigmas }
}

impl Settings {
    /// A timestep between trained ones, as the sampler gives it to the network.
    fn round_timestep(&self, timestep: f64) -> f64 {
        match (self.sampler, self.sigma_spacing) {
            (Sampler::Euler, _) => f64::from(timestep as f32),
            (Sampler::Dpm, SigmaSpacing::Exponential) => timestep.trunc(),
            (Sampler::Dpm, _) if self.is_cosine => timestep.trunc(),
            (Sampler::UniPc, SigmaSpacing::Exponential) => timestep.trunc(),
            _ => timestep.round_ties_even(),
        }
    }
}

/// How many trained timesteps DPM-Solver's runs may visit: those whose ln(signal / noise) is not
/// clipped.
pub(super) fn reach(settings: &Settings, alphas: &[f32]) -> usize {
    let kept = |sigma: &f32| -elementary::ln(f64::from(*sigma)) >= settings.lambda_min;
    match settings.sampler == Sampler::Dpm && settings.lambda_min > f64::NEG_INFINITY {
        true => trained_sigmas(alphas).iter().filter(|sigma| kept(sigma)).count(),
        false => alphas.len(),
    }
}

/// `steps` noise levels from `high` down to `low`.
fn spaced_sigmas(spacing: SigmaSpacing, low: f64, high: f64, steps: usize) -> Vec<f64> {
    let root = |value: f64| elementary::exp(elementary::ln(value) / KARRAS_RHO);
    let position = |step: usize| if steps > 1 { step as f64 / (steps - 1) as f64 } else { 0.0 };
    let sigma = |step: usize| match spacing {
        SigmaSpacing::Karras => {
            let (low, high) = (root(low), root(high));
            let root = high + position(step) * (low - high);
            let square = root * root;
            square * square * square * root
        }
        SigmaSpacing::Trained | SigmaSpacing::Exponential | SigmaSpacing::Lu => {
            let (low, high) = (elementary::ln(low), elementary::ln(high));
            elementary::exp(high + position(step) * (low - high))
        }
    };
    (0..steps).map(sigma).collect()
}

/// The fractional timestep of a noise level, linear in its logarithm.
fn timestep_of(logarithms: &[f64], sigma: f64) -> f64 {
    const LEAST: f64 = 1e-10;
    let logarithm = elementary::ln(sigma.max(LEAST));
    let below = logarithms.iter().rposition(|known| logarithm >= *known).unwrap_or(0);
    let below = below.min(logarithms.len().saturating_sub(2));
    let above = (below + 1).min(logarithms.len() - 1);
    let (low, high) = (logarithms[below], logarithms[above]);
    let share = if low == high { 0.0 } else { ((low - logarithm) / (low - high)).clamp(0.0, 1.0) };
    (1.0 - share) * below as f64 + share * above as f64
}

/// Linear interpolation of `values` at a fractional index.
fn interpolate(values: &[f32], position: f64) -> f64 {
    let position = position.clamp(0.0, (values.len() - 1) as f64);
    let below = position.floor() as usize;
    let above = (below + 1).min(values.len() - 1);
    let (low, high) = (f64::from(values[below]), f64::from(values[above]));
    low + (high - low) * (position - below as f64)
}
