//! SRVGGNetCompact: 3×3 convolutions and PReLUs at the small size, then one pixel shuffle; the
//! result is added to the enlarged input. As in Real-ESRGAN (`realesr-animevideov3`, `realesr-general`).

use candle_core::Tensor;

use super::{Border, GenerateResult, MAX_CHANNELS, MAX_LAYERS, Network, Plan, Progress};
use crate::layers::{Conv2d, ConvExtras, FeatureMap, Rectifier, Window, pixel_shuffle};
use crate::weights::{Weights, WeightsResult};

pub(super) struct Compact {
    layers: Vec<(Conv2d, Rectifier)>,
    last: Conv2d,
    channels: usize,
    scale: usize,
}

impl Compact {
    /// Reads `body.N`: convolutions at the even places, slopes at the odd ones, and a convolution to
    /// `3 · scale²` channels at last.
    pub(super) fn load(weights: &Weights) -> WeightsResult<Self> {
        let body = weights.at("body");
        let outputs = |place: usize| match body.shape(&format!("{place}.weight")) {
            Some([outputs, _, 3, 3]) if *outputs <= MAX_CHANNELS => Some(*outputs),
            _ => None,
        };
        let Some(channels) = outputs(0) else {
            return Err(weights.unsuitable("`body.0.weight` is no 3×3 convolution of an SRVGGNetCompact"));
        };
        let mut layers = Vec::new();
        let mut inputs = 3;
        while body.contains(&format!("{}.weight", 2 * layers.len() + 1)) {
            let place = 2 * layers.len();
            if layers.len() == MAX_LAYERS {
                return Err(weights.unsuitable(format!("there are more than {MAX_LAYERS} layers")));
            }
            let convolution = Conv2d::load(&body.at(place), inputs, channels, Window::SAME)?;
            layers.push((convolution, Rectifier::load(&body.at(place + 1), channels)?));
            inputs = channels;
        }
        let place = 2 * layers.len();
        let scale = [1, 2, 3, 4].into_iter().find(|scale| outputs(place) == Some(3 * scale * scale));
        let Some(scale) = scale else {
            return Err(
                weights.unsuitable(format!("`body.{place}.weight` is no convolution to 3 · scale² channels"))
            );
        };
        let last = Conv2d::load(&body.at(place), inputs, 3 * scale * scale, Window::SAME)?;
        Ok(Self { layers, last, channels, scale })
    }
}

impl Network for Compact {
    fn plan(&self) -> Plan {
        let layers = self.layers.len() + 1;
        Plan {
            scale: self.scale,
            // Each convolution reads one pixel further.
            border: Border::Picture(layers),
            multiple: 1,
            // A convolution's input and output, or the shuffled picture in two orders.
            pixel_bytes: Some(4 * (3 * self.channels).max(12 * self.scale * self.scale)),
            stages: layers,
        }
    }

    fn forward(&self, input: &FeatureMap, _: usize, progress: &mut Progress) -> GenerateResult<Tensor> {
        let mut hidden = input.clone();
        for (convolution, rectifier) in &self.layers {
            hidden = rectifier.forward(&convolution.forward(&hidden)?)?;
            progress.advance()?;
        }
        let enlarged = self.enlarged(input)?;
        let extras = ConvExtras { residual: Some(&enlarged), ..ConvExtras::default() };
        let output = self.last.forward_with(&hidden, extras)?.to_channels_first()?;
        progress.advance()?;
        Ok(pixel_shuffle(&output, self.scale)?)
    }
}

impl Compact {
    /// Each sample of the input as often as it is in the enlarged picture.
    fn enlarged(&self, input: &FeatureMap) -> candle_core::Result<FeatureMap> {
        let input = input.to_channels_first()?;
        let (batch, channels, height, width) = input.dims4()?;
        let times = self.scale * self.scale;
        let repeated = input.unsqueeze(2)?.broadcast_as((batch, channels, times, height, width))?;
        FeatureMap::from_channels_first(&repeated.reshape((batch, channels * times, height, width))?)
    }
}
