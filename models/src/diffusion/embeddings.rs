//! What the networks are told in figures: the timestep, and SDXL's sizes.

use candle_core::{Result, Tensor};

use super::config::{AdditionConfig, ContractingConfig};
use crate::layers::{Activation, Linear};
use crate::weights::{Weights, WeightsResult};

/// SDXL's figures of a picture: its size, the crop's corner, the size asked for, height first.
pub(crate) type SizeFigures = [f64; 6];

/// Sines and cosines of figures, `channels` values each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sinusoids {
    pub(crate) channels: usize,
    pub(crate) cosines_first: bool,
    pub(crate) shift: f64,
}

impl Sinusoids {
    /// One row for each figure: `[figures, channels]`. `like`: a tensor of the device and format.
    pub(crate) fn forward(self, figures: &[f64], like: &Tensor) -> Result<Tensor> {
        const LONGEST_PERIOD: f64 = 10_000.0;
        let half = self.channels / 2;
        let mut values = Vec::with_capacity(figures.len() * self.channels);
        for figure in figures {
            let angle = |index: usize| {
                let exponent = -LONGEST_PERIOD.ln() as f32 * index as f32 / (half as f64 - self.shift) as f32;
                *figure as f32 * exponent.exp()
            };
            let sines = (0..half).map(|index| angle(index).sin());
            let cosines = (0..half).map(|index| angle(index).cos());
            if self.cosines_first {
                values.extend(cosines.chain(sines))
            } else {
                values.extend(sines.chain(cosines))
            }
            values.resize(values.len() + self.channels % 2, 0.0);
        }
        Tensor::from_vec(values, (figures.len(), self.channels), like.device())?.to_dtype(like.dtype())
    }
}

/// The embedding of a timestep: diffusers' `Timesteps` and `TimestepEmbedding`.
pub(crate) struct TimeEmbedding {
    sinusoids: Sinusoids,
    first: Linear,
    second: Linear,
}

impl TimeEmbedding {
    /// Reads `linear_1`, to `inner` channels, and `linear_2`, to `outputs`.
    pub(crate) fn load(
        weights: &Weights,
        sinusoids: Sinusoids,
        inner: usize,
        outputs: usize,
    ) -> WeightsResult<Self> {
        Ok(Self {
            sinusoids,
            first: Linear::load(&weights.at("linear_1"), sinusoids.channels, inner)?,
            second: Linear::load(&weights.at("linear_2"), inner, outputs)?,
        })
    }

    /// `[1, outputs]`. `like`: a tensor of the device and format.
    pub(crate) fn forward(&self, timestep: f64, like: &Tensor) -> Result<Tensor> {
        let embedded = self.sinusoids.forward(&[timestep], like)?;
        self.second.forward(&self.first.forward_activated(&embedded, Activation::Silu)?)
    }
}

/// SDXL's embedding of the pooled text and the sizes.
pub(super) struct AdditionEmbedding {
    sinusoids: Sinusoids,
    first: Linear,
    second: Linear,
}

impl AdditionEmbedding {
    pub(super) fn load(
        weights: &Weights,
        config: &ContractingConfig,
        addition: AdditionConfig,
        channels: usize,
    ) -> WeightsResult<Self> {
        let weights = weights.at("add_embedding");
        Ok(Self {
            sinusoids: Sinusoids {
                channels: addition.figure_channels,
                cosines_first: config.flip_sin_to_cos,
                shift: config.freq_shift,
            },
            first: Linear::load(&weights.at("linear_1"), addition.inputs, channels)?,
            second: Linear::load(&weights.at("linear_2"), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, pooled: &Tensor, size: SizeFigures) -> Result<Tensor> {
        let batch = pooled.dim(0)?;
        let figures = self.sinusoids.forward(&size, pooled)?.reshape((1, ()))?;
        let figures = figures.broadcast_as((batch, figures.dim(1)?))?;
        let joined = Tensor::cat(&[pooled, &figures.contiguous()?], 1)?;
        self.second.forward(&self.first.forward_activated(&joined, Activation::Silu)?)
    }
}
