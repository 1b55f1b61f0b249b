//! The residual blocks that the UNet and the autoencoder share.

use candle_core::{Result as CandleResult, Tensor};

use crate::layers::{Conv2d, ConvExtras, FeatureMap, GroupNorm, Linear, Window};
use crate::weights::{Weights, WeightsResult};

/// Figures of the group normalisations in a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormFigures {
    pub(crate) groups: usize,
    pub(crate) epsilon: f64,
}

/// Figures of a residual block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResidualFigures {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) time: TimeUse<usize>,
    pub(crate) norm: NormFigures,
}

/// What the time embedding does to a residual block, by its width or by what is made of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TimeUse<T> {
    None,
    /// It is added behind the first convolution.
    Added(T),
    /// It scales and shifts what the second normalisation gives: diffusers' `scale_shift`.
    Modulating(T),
}

impl<T> TimeUse<T> {
    fn as_ref(&self) -> TimeUse<&T> {
        match self {
            Self::None => TimeUse::None,
            Self::Added(time) => TimeUse::Added(time),
            Self::Modulating(time) => TimeUse::Modulating(time),
        }
    }

    fn map<U, E>(self, change: impl FnOnce(T) -> Result<U, E>) -> Result<TimeUse<U>, E> {
        Ok(match self {
            Self::None => TimeUse::None,
            Self::Added(time) => TimeUse::Added(change(time)?),
            Self::Modulating(time) => TimeUse::Modulating(change(time)?),
        })
    }
}

/// What a residual block does to the size of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resizing {
    None,
    Halve,
    Double,
}

/// Two convolutions around a shortcut: diffusers' `ResnetBlock2D`.
pub(crate) struct ResidualBlock {
    first_norm: GroupNorm,
    resizing: Resizing,
    first: Conv2d,
    time: TimeUse<Linear>,
    second_norm: GroupNorm,
    second: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    pub(crate) fn load(weights: &Weights, figures: ResidualFigures) -> WeightsResult<Self> {
        let ResidualFigures { inputs, outputs, time, norm } = figures;
        let projected = if let TimeUse::Modulating(_) = time { 2 * outputs } else { outputs };
        let project = |channels| Linear::load(&weights.at("time_emb_proj"), channels, projected);
        let group_norm =
            |name: &str, channels| GroupNorm::load(&weights.at(name), norm.groups, channels, norm.epsilon);
        let shortcut = (inputs != outputs)
            .then(|| Conv2d::load(&weights.at("conv_shortcut"), inputs, outputs, Window::POINT));
        Ok(Self {
            first_norm: group_norm("norm1", inputs)?,
            resizing: Resizing::None,
            first: Conv2d::load(&weights.at("conv1"), inputs, outputs, Window::SAME)?,
            time: time.map(project)?,
            second_norm: group_norm("norm2", outputs)?,
            second: Conv2d::load(&weights.at("conv2"), outputs, outputs, Window::SAME)?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// One that also changes the size of the picture, behind its first normalisation.
    pub(crate) fn resizing(self, resizing: Resizing) -> Self {
        Self { resizing, ..self }
    }

    /// `time`: SiLU of the time embedding, `[batch or 1, time channels]`. Each map is let go as soon as it
    /// is no longer needed: in the autoencoder they are most of what a picture takes.
    pub(crate) fn forward(&self, input: FeatureMap, time: Option<&Tensor>) -> CandleResult<FeatureMap> {
        let project = |linear: &Linear| match time {
            Some(time) => linear.forward(time),
            None => candle_core::bail!("a residual block takes a time embedding, and got none"),
        };
        let time = self.time.as_ref().map(project)?;
        let mut hidden = self.first_norm.forward_silu(&input)?;
        let input = match self.resizing {
            Resizing::None => input,
            Resizing::Halve => {
                hidden = hidden.halve()?;
                input.halve()?
            }
            Resizing::Double => input.double()?,
        };
        let image_bias = if let TimeUse::Added(time) = &time { Some(time) } else { None };
        let upsample = self.resizing == Resizing::Double;
        hidden = self.first.forward_with(&hidden, ConvExtras { upsample, image_bias, residual: None })?;
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&input)?,
            None => input.clone(),
        };
        drop(input);
        hidden = match &time {
            TimeUse::Modulating(time) => self.second_norm.forward_modulated_silu(&hidden, time)?,
            _ => self.second_norm.forward_silu(&hidden)?,
        };
        self.second.forward_with(&hidden, ConvExtras { residual: Some(&residual), ..Default::default() })
    }
}

/// Twice the size, then a convolution: diffusers' `Upsample2D`.
pub(crate) struct Upsampler(Conv2d);

impl Upsampler {
    pub(crate) fn load(weights: &Weights, channels: usize) -> WeightsResult<Self> {
        Ok(Self(Conv2d::load(&weights.at("conv"), channels, channels, Window::SAME)?))
    }

    pub(crate) fn forward(&self, input: &FeatureMap) -> CandleResult<FeatureMap> {
        self.0.forward_with(input, ConvExtras { upsample: true, ..Default::default() })
    }
}
