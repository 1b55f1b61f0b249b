//! How one step of the samplers without memory moves the latents: DDIM, DDPM, LCM, Euler and Euler
//! ancestral. The figures are taken in f32, in the order in which diffusers takes them.

use super::config::{Bounds, Prediction, Sampler, Settings, Variance};
use crate::elementary;

/// The least variance that DDPM counts with.
const LEAST_VARIANCE: f32 = 1e-20;
/// The deviation of pictures that LCM's boundary conditions stand on.
const PICTURE_DEVIATION: f32 = 0.5;

/// What share of the picture and of noise the latents of one noise level hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mix {
    pub(super) signal: f32,
    pub(super) noise: f32,
}

impl Mix {
    /// Of variance one, by the share of signal ᾱ.
    pub(super) fn of_alpha(alpha: f32) -> Self {
        Self { signal: alpha.sqrt(), noise: (1.0 - alpha).sqrt() }
    }

    /// Of variance one, by noise over signal.
    pub(super) fn of_sigma(sigma: f32) -> Self {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { signal, noise: sigma * signal }
    }

    /// The picture itself.
    pub(super) const CLEAN: Self = Self { signal: 1.0, noise: 0.0 };
}

/// Where latents go from a predicted picture.
#[derive(Debug, Clone)]
pub(super) enum Rule {
    Ddim {
        next: Mix,
    },
    Euler {
        sigma: f32,
        next: f32,
    },
    EulerAncestral {
        sigma: f32,
        down: f32,
        up: f32,
    },
    Ddpm {
        picture: f32,
        latent: f32,
        deviation: Deviation,
    },
    Lcm {
        picture: f32,
        latent: f32,
        next: Mix,
    },
    /// What the steps before gave counts too; the run's solver says how.
    Multistep,
}

/// The noise that DDPM adds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Deviation {
    Fixed(f32),
    /// Between two logarithms of variances, as the network says, from −1 to 1.
    Learned {
        least: f64,
        most: f64,
    },
}

impl Rule {
    /// DDIM's step to share of signal `next`.
    pub(super) fn ddim(next: f32) -> Self {
        Self::Ddim { next: Mix::of_alpha(next) }
    }

    /// DDPM's step from one share of signal to the next. `adds_noise`: not so at timestep 0.
    pub(super) fn ddpm(alpha: f32, next: f32, adds_noise: bool, variance: Variance) -> Self {
        let ratio = alpha / next;
        let beta = 1.0 - ratio;
        let (left, next_left) = (1.0 - alpha, 1.0 - next);
        let small = (next_left / left * beta).max(LEAST_VARIANCE);
        let logarithm = |variance: f32| elementary::ln(f64::from(variance.max(f32::MIN_POSITIVE)));
        let deviation = match variance {
            _ if !adds_noise => Deviation::Fixed(0.0),
            Variance::FixedSmall => Deviation::Fixed(small.sqrt()),
            Variance::FixedLarge => Deviation::Fixed(beta.sqrt()),
            Variance::LearnedRange => Deviation::Learned { least: logarithm(small), most: logarithm(beta) },
        };
        Self::Ddpm { picture: next.sqrt() * beta / left, latent: ratio.sqrt() * next_left / left, deviation }
    }

    /// LCM's step at a timestep; `next` is clean after the last.
    pub(super) fn lcm(timestep: f64, scaling: f32, next: Mix) -> Self {
        let scaled = timestep as f32 * scaling;
        let square = PICTURE_DEVIATION * PICTURE_DEVIATION;
        let length = scaled * scaled + square;
        Self::Lcm { picture: scaled / length.sqrt(), latent: square / length, next }
    }

    /// Euler's ancestral step between two noise levels.
    pub(super) fn ancestral(sigma: f32, next: f32) -> Self {
        let (square, next_square) = (sigma * sigma, next * next);
        let up = (next_square * (square - next_square) / square).sqrt();
        Self::EulerAncestral { sigma, down: (next_square - up * up).max(0.0).sqrt(), up }
    }

    /// Whether a step takes noise.
    pub(super) fn is_random(&self) -> bool {
        match self {
            Self::EulerAncestral { up, .. } => *up > 0.0,
            Self::Ddpm { deviation: Deviation::Fixed(deviation), .. } => *deviation > 0.0,
            Self::Ddpm { .. } => true,
            Self::Lcm { next, .. } => next.noise > 0.0,
            Self::Ddim { .. } | Self::Euler { .. } | Self::Multistep => false,
        }
    }

    /// Moves one latent. `picture` is the predicted one, held within bounds; `variance` what the
    /// network says of it, and `noise` a normal number.
    pub(super) fn next(&self, latent: f32, picture: f32, epsilon: f32, variance: f32, noise: f32) -> f32 {
        match self {
            Self::Ddim { next } => next.signal * picture + next.noise * epsilon,
            Self::Euler { sigma, next } => latent + (latent - picture) / sigma * (next - sigma),
            Self::EulerAncestral { sigma, down, up } => {
                latent + (latent - picture) / sigma * (down - sigma) + noise * up
            }
            Self::Ddpm { picture: of_picture, latent: of_latent, deviation } => {
                let deviation = match deviation {
                    Deviation::Fixed(deviation) => *deviation,
                    Deviation::Learned { least, most } => {
                        let share = (f64::from(variance) + 1.0) / 2.0;
                        let logarithm = share * most + (1.0 - share) * least;
                        elementary::exp((0.5 * logarithm).clamp(-700.0, 700.0)) as f32
                    }
                };
                of_picture * picture + of_latent * latent + deviation * noise
            }
            Self::Lcm { picture: of_picture, latent: of_latent, next } => {
                let denoised = of_picture * picture + of_latent * latent;
                match *next == Mix::CLEAN {
                    true => denoised,
                    false => next.signal * denoised + next.noise * noise,
                }
            }
            Self::Multistep => latent,
        }
    }
}

/// What a network's prediction says of one latent: the picture, and the noise in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    prediction: Prediction,
    /// Whether latents are picture plus σ · noise, as Euler has them.
    is_unscaled: bool,
    mix: Mix,
}

impl Reading {
    pub(super) fn new(settings: &Settings, mix: Mix) -> Self {
        let is_unscaled = matches!(settings.sampler, Sampler::Euler | Sampler::EulerAncestral);
        Self { prediction: settings.prediction, is_unscaled, mix }
    }

    /// (picture, noise).
    pub(super) fn read(self, latent: f32, output: f32) -> (f32, f32) {
        let Mix { signal, noise } = self.mix;
        if self.is_unscaled {
            let sigma = noise;
            let picture = match self.prediction {
                Prediction::Epsilon => latent - sigma * output,
                Prediction::Velocity => {
                    output * (-sigma / (sigma * sigma + 1.0).sqrt()) + latent / (sigma * sigma + 1.0)
                }
                Prediction::Sample => output,
            };
            return (picture, 0.0);
        }
        match self.prediction {
            Prediction::Epsilon => ((latent - noise * output) / signal, output),
            Prediction::Velocity => (signal * latent - noise * output, signal * output + noise * latent),
            Prediction::Sample => (output, (latent - signal * output) / noise),
        }
    }
}

impl Bounds {
    /// Holds predicted pictures within the bounds.
    pub(super) fn apply(self, pictures: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Fixed(range) => pictures.iter_mut().for_each(|value| *value = value.clamp(-range, range)),
            Self::Quantile { ratio, most } => {
                let bound = quantile(pictures, ratio).min(most).max(1.0);
                pictures.iter_mut().for_each(|value| *value = value.clamp(-bound, bound) / bound);
            }
        }
    }
}

/// The value below which `ratio` of the magnitudes lie, between the two nearest.
fn quantile(values: &[f32], ratio: f64) -> f32 {
    let mut magnitudes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    let Some(last) = magnitudes.len().checked_sub(1) else { return 0.0 };
    let position = ratio * last as f64;
    let (below, above) = (magnitudes[position.floor() as usize], magnitudes[position.ceil() as usize]);
    below + (above - below) * (position - position.floor()) as f32
}
