//! DPT (arXiv 2103.13413): features of four layers, brought to four sizes and fused into depth.

use candle_core::Result;

use crate::layers::{Conv2d, ConvExtras, FeatureMap, Interpolation, Rectifier, Window, pixel_shuffle};
use crate::weights::{Weights, WeightsResult};

/// Brings the features of the layers together, the last layer's first.
pub(super) struct Neck {
    /// From the first layer taken to the last, at 4, 2, 1 and ½ times the patches.
    stages: Vec<Stage>,
    /// From the last to the first.
    fusions: Vec<Fusion>,
}

struct Stage {
    projection: Conv2d,
    resize: Resize,
    convolution: Conv2d,
}

enum Resize {
    /// A transposed convolution whose squares do not overlap, as a linear map of each pixel to a square.
    Grow(Conv2d, usize),
    Keep,
    Halve(Conv2d),
}

impl Stage {
    fn load(
        weights: &Weights,
        index: usize,
        inputs: usize,
        channels: usize,
        fused: usize,
    ) -> WeightsResult<Self> {
        let layer = weights.at(format!("reassemble_stage.layers.{index}"));
        let resize = layer.at("resize");
        let resize = match index {
            0 | 1 => {
                let edge = if index == 0 { 4 } else { 2 };
                let kernel = resize.values("weight", &[channels, channels, edge, edge])?;
                let bias = resize.values("bias", &[channels])?;
                let (places, outputs) = (edge * edge, channels * edge * edge);
                let values = (0..outputs * channels)
                    .map(|at| kernel[(at % channels) * outputs + at / channels])
                    .collect();
                let bias = (0..outputs).map(|output| bias[output / places]).collect();
                let map = Conv2d::from_values(&resize, values, Some(bias), channels, outputs, Window::POINT)?;
                Resize::Grow(map, edge)
            }
            2 => Resize::Keep,
            _ => Resize::Halve(Conv2d::load(&resize, channels, channels, Window::HALF)?),
        };
        Ok(Self {
            projection: Conv2d::load(&layer.at("projection"), inputs, channels, Window::POINT)?,
            resize,
            convolution: Conv2d::load_without_bias(
                &weights.at(format!("convs.{index}")),
                channels,
                fused,
                Window::SAME,
            )?,
        })
    }

    fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        let projected = self.projection.forward(input)?;
        let resized = match &self.resize {
            Resize::Grow(map, edge) => {
                let squares = map.forward(&projected)?.to_channels_first()?;
                FeatureMap::from_channels_first(&pixel_shuffle(&squares, *edge)?)?
            }
            Resize::Keep => projected,
            Resize::Halve(convolution) => convolution.forward(&projected)?,
        };
        self.convolution.forward(&resized)
    }
}

impl Neck {
    /// `inputs`: the backbone's channels; `channels`: those of each stage; `fused`: those of the result.
    pub(super) fn load(
        weights: &Weights,
        inputs: usize,
        channels: &[usize],
        fused: usize,
    ) -> WeightsResult<Self> {
        let stage =
            |(index, channels): (usize, &usize)| Stage::load(weights, index, inputs, *channels, fused);
        let fusion = |index| Fusion::load(&weights.at(format!("fusion_stage.layers.{index}")), fused);
        Ok(Self {
            stages: channels.iter().enumerate().map(stage).collect::<WeightsResult<_>>()?,
            fusions: (0..channels.len()).map(fusion).collect::<WeightsResult<_>>()?,
        })
    }

    /// One map from those of the backbone.
    pub(super) fn forward(&self, features: Vec<FeatureMap>) -> Result<FeatureMap> {
        if features.len() != self.stages.len() {
            candle_core::bail!("{} maps for {} stages", features.len(), self.stages.len());
        }
        let pairs = self.stages.iter().zip(&features);
        let maps = pairs.map(|(stage, map)| stage.forward(map)).collect::<Result<Vec<_>>>()?;
        let mut fused: Option<FeatureMap> = None;
        for (index, (map, fusion)) in maps.iter().rev().zip(&self.fusions).enumerate() {
            let size = match (maps.len() - 1 - index).checked_sub(1) {
                Some(next) => maps[next].extent()?,
                None => {
                    let extent = map.extent()?;
                    crate::layers::Extent { height: 2 * extent.height, width: 2 * extent.width, ..extent }
                }
            };
            fused = Some(fusion.forward(map, fused.as_ref(), size.height, size.width)?);
        }
        fused.ok_or_else(|| candle_core::Error::Msg("there are no features to fuse".to_owned()))
    }
}

/// Adds a map to the one so far, and enlarges both.
struct Fusion {
    added: Residual,
    joined: Residual,
    projection: Conv2d,
}

impl Fusion {
    fn load(weights: &Weights, channels: usize) -> WeightsResult<Self> {
        Ok(Self {
            added: Residual::load(&weights.at("residual_layer1"), channels)?,
            joined: Residual::load(&weights.at("residual_layer2"), channels)?,
            projection: Conv2d::load(&weights.at("projection"), channels, channels, Window::POINT)?,
        })
    }

    fn forward(
        &self,
        map: &FeatureMap,
        fused: Option<&FeatureMap>,
        height: usize,
        width: usize,
    ) -> Result<FeatureMap> {
        let joined = match fused {
            Some(fused) => self.joined.forward(&fused.add(&self.added.forward(map)?)?)?,
            None => self.joined.forward(map)?,
        };
        self.projection.forward(&Interpolation::BilinearCorners.resize(&joined, height, width)?)
    }
}

/// Two convolutions, each behind a rectifier, around a shortcut.
struct Residual {
    first: Conv2d,
    second: Conv2d,
    rectifier: Rectifier,
}

impl Residual {
    fn load(weights: &Weights, channels: usize) -> WeightsResult<Self> {
        let convolution = |name: &str| Conv2d::load(&weights.at(name), channels, channels, Window::SAME);
        Ok(Self {
            first: convolution("convolution1")?,
            second: convolution("convolution2")?,
            rectifier: Rectifier::leaky(weights, 0.0, channels)?,
        })
    }

    fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        let hidden = self.first.forward(&self.rectifier.forward(input)?)?;
        let extras = ConvExtras { residual: Some(input), ..ConvExtras::default() };
        self.second.forward_with(&self.rectifier.forward(&hidden)?, extras)
    }
}

/// From features to depth.
pub(super) struct Head {
    first: Conv2d,
    second: Conv2d,
    rectifier: Rectifier,
    last: Conv2d,
    positive: Rectifier,
}

impl Head {
    pub(super) fn load(weights: &Weights, channels: usize, hidden: usize) -> WeightsResult<Self> {
        Ok(Self {
            first: Conv2d::load(&weights.at("conv1"), channels, channels / 2, Window::SAME)?,
            second: Conv2d::load(&weights.at("conv2"), channels / 2, hidden, Window::SAME)?,
            rectifier: Rectifier::leaky(weights, 0.0, hidden)?,
            last: Conv2d::load(&weights.at("conv3"), hidden, 1, Window::POINT)?,
            positive: Rectifier::leaky(weights, 0.0, 1)?,
        })
    }

    pub(super) fn forward(&self, input: &FeatureMap, height: usize, width: usize) -> Result<FeatureMap> {
        let hidden = self.first.forward(input)?;
        let hidden = Interpolation::BilinearCorners.resize(&hidden, height, width)?;
        let hidden = self.rectifier.forward(&self.second.forward(&hidden)?)?;
        self.positive.forward(&self.last.forward(&hidden)?)
    }
}
