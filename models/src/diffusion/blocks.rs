//! The residual blocks that the UNet and the autoencoder share.

use candle_core::{Result, Tensor};

use crate::layers::{Conv2d, ConvExtras, FeatureMap, GroupNorm, Linear, Window};
use crate::weights::{Weights, WeightsResult};

/// Figures of the group normalisations in a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormFigures {
    pub(crate) groups: usize,
    pub(crate) epsilon: f64,
}

/// Two convolutions around a shortcut: diffusers' `ResnetBlock2D`.
pub(crate) struct ResidualBlock {
    first_norm: GroupNorm,
    first: Conv2d,
    time: Option<Linear>,
    second_norm: GroupNorm,
    second: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    /// `time_channels`: width of the time embedding that is added, where there is one.
    pub(crate) fn load(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        time_channels: Option<usize>,
        norm: NormFigures,
    ) -> WeightsResult<Self> {
        let shortcut = (inputs != outputs)
            .then(|| Conv2d::load(&weights.at("conv_shortcut"), inputs, outputs, Window::POINT));
        let time =
            time_channels.map(|channels| Linear::load(&weights.at("time_emb_proj"), channels, outputs));
        Ok(Self {
            first_norm: GroupNorm::load(&weights.at("norm1"), norm.groups, inputs, norm.epsilon)?,
            first: Conv2d::load(&weights.at("conv1"), inputs, outputs, Window::SAME)?,
            time: time.transpose()?,
            second_norm: GroupNorm::load(&weights.at("norm2"), norm.groups, outputs, norm.epsilon)?,
            second: Conv2d::load(&weights.at("conv2"), outputs, outputs, Window::SAME)?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// `time`: SiLU of the time embedding, `[batch or 1, time channels]`. Each map is let go as soon as it
    /// is no longer needed: in the autoencoder they are most of what a picture takes.
    pub(crate) fn forward(&self, input: FeatureMap, time: Option<&Tensor>) -> Result<FeatureMap> {
        let time = match (&self.time, time) {
            (Some(linear), Some(time)) => Some(linear.forward(time)?),
            (None, None) => None,
            _ => candle_core::bail!("a residual block got a time embedding that it does not take, or none"),
        };
        let mut hidden = self.first_norm.forward_silu(&input)?;
        let extras = ConvExtras { image_bias: time.as_ref(), ..Default::default() };
        hidden = self.first.forward_with(&hidden, extras)?;
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&input)?,
            None => input.clone(),
        };
        drop(input);
        hidden = self.second_norm.forward_silu(&hidden)?;
        self.second.forward_with(&hidden, ConvExtras { residual: Some(&residual), ..Default::default() })
    }
}

/// Twice the size, then a convolution: diffusers' `Upsample2D`.
pub(crate) struct Upsampler(Conv2d);

impl Upsampler {
    pub(crate) fn load(weights: &Weights, channels: usize) -> WeightsResult<Self> {
        Ok(Self(Conv2d::load(&weights.at("conv"), channels, channels, Window::SAME)?))
    }

    pub(crate) fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        self.0.forward_with(input, ConvExtras { upsample: true, ..Default::default() })
    }
}
