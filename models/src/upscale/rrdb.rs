//! RRDBNet, the generator of ESRGAN (arXiv 1809.00219) and Real-ESRGAN (arXiv 2107.10833): residual
//! blocks of dense blocks at the small size, then twice a doubling.
//!
//! Networks of scale 2 and 1 are the one of scale 4 behind a pixel unshuffle.
//!
//! An output pixel depends on pixels up to 350 away, and visibly on many of them: tiles of
//! RealESRGAN_x4plus that overlap by 16 pixels differ from one pass by up to 18 of 255, by 32 pixels by
//! up to 7. So each dense block is run over the whole picture in strips, which need 5 rows around them
//! only; what is held for all pixels are four maps of the features.

use candle_core::{Result, Tensor};

use super::{Border, GenerateResult, MAX_CHANNELS, MAX_LAYERS, Network, Plan, Progress};
use crate::layers::{Conv2d, ConvExtras, Extent, FeatureMap, Rectifier, Window, pixel_unshuffle};
use crate::weights::{Weights, WeightsResult};

/// Slope of the rectifiers below zero.
const SLOPE: f32 = 0.2;
/// What is left of a block's result before it is added to its input.
const RESIDUAL_SCALE: f64 = 0.2;
/// Dense blocks in a residual one.
const DENSE_BLOCKS: usize = 3;
/// Convolutions in a dense block.
const DENSE_LAYERS: usize = 5;
/// The doublings make this of each edge.
const ENLARGEMENT: usize = 4;
/// Rows around a strip that the doublings' result depends on: 0.5 + 3 · 0.25, rounded up.
const ENLARGEMENT_BORDER: usize = 2;

/// What the published files call the layers.
struct Names {
    first: &'static str,
    body: &'static str,
    /// Whether a dense block is `RDB1` rather than `rdb1`.
    upper_case: bool,
    /// What follows `conv1` in a dense block.
    suffix: &'static str,
    /// After the blocks; `None`: it has the place after the last one in `body`.
    after_body: Option<&'static str>,
    /// Two doublings, then two at the large size.
    tail: [&'static str; 4],
}

const NAMES: [Names; 3] = [
    // Real-ESRGAN and BasicSR.
    Names {
        first: "conv_first",
        body: "body",
        upper_case: false,
        suffix: "",
        after_body: Some("conv_body"),
        tail: ["conv_up1", "conv_up2", "conv_hr", "conv_last"],
    },
    // ESRGAN as first published.
    Names {
        first: "conv_first",
        body: "RRDB_trunk",
        upper_case: true,
        suffix: "",
        after_body: Some("trunk_conv"),
        tail: ["upconv1", "upconv2", "HRconv", "conv_last"],
    },
    // The form that most community models have.
    Names {
        first: "model.0",
        body: "model.1.sub",
        upper_case: true,
        suffix: ".0",
        after_body: None,
        tail: ["model.3", "model.6", "model.8", "model.10"],
    },
];

impl Names {
    fn dense_block(&self, block: usize, dense: usize) -> String {
        let name = if self.upper_case { "RDB" } else { "rdb" };
        format!("{}.{block}.{name}{}", self.body, dense + 1)
    }
}

pub(super) struct Rrdb {
    first: Conv2d,
    blocks: Vec<[DenseBlock; DENSE_BLOCKS]>,
    after_body: Conv2d,
    doublings: [Conv2d; 2],
    large: Conv2d,
    last: Conv2d,
    rectifier: Rectifier,
    features: usize,
    growth: usize,
    unshuffle: usize,
}

impl Rrdb {
    /// The numbers of blocks, features and added channels, and the scale, are those of the weights.
    pub(super) fn load(weights: &Weights) -> WeightsResult<Self> {
        let names = NAMES.iter().find(|names| {
            weights.contains(&format!("{}.conv1{}.weight", names.dense_block(0, 0), names.suffix))
        });
        let Some(names) = names else {
            return Err(weights.unsuitable("there is no dense block of an RRDBNet (`body.0.rdb1.conv1`)"));
        };
        let shape = |name: String| match weights.shape(&format!("{name}.weight")) {
            Some([outputs, inputs, 3, 3]) if outputs.max(inputs) <= &MAX_CHANNELS => Ok((*outputs, *inputs)),
            other => Err(weights.unsuitable(format!("`{name}.weight` is {other:?}, no 3×3 convolution"))),
        };
        let (features, inputs) = shape(names.first.to_owned())?;
        let (growth, _) = shape(format!("{}.conv1{}", names.dense_block(0, 0), names.suffix))?;
        let Some(unshuffle) = [1, 2, 4].into_iter().find(|edge| 3 * edge * edge == inputs) else {
            return Err(weights.unsuitable(format!("pictures of {inputs} channels are no RGB")));
        };
        let layer =
            |name: &str, inputs, outputs| Conv2d::load(&weights.at(name), inputs, outputs, Window::SAME);
        let mut blocks = Vec::new();
        while weights.contains(&format!(
            "{}.conv1{}.weight",
            names.dense_block(blocks.len(), 0),
            names.suffix
        )) {
            if blocks.len() == MAX_LAYERS {
                return Err(weights.unsuitable(format!("there are more than {MAX_LAYERS} blocks")));
            }
            let dense = |dense| {
                let weights = weights.at(names.dense_block(blocks.len(), dense));
                DenseBlock::load(&weights, names.suffix, features, growth)
            };
            blocks.push([dense(0)?, dense(1)?, dense(2)?]);
        }
        let after_body = match names.after_body {
            Some(name) => name.to_owned(),
            None => format!("{}.{}", names.body, blocks.len()),
        };
        Ok(Self {
            first: layer(names.first, inputs, features)?,
            after_body: layer(&after_body, features, features)?,
            doublings: [layer(names.tail[0], features, features)?, layer(names.tail[1], features, features)?],
            large: layer(names.tail[2], features, features)?,
            last: layer(names.tail[3], features, 3)?,
            rectifier: Rectifier::leaky(weights, SLOPE, features)?,
            blocks,
            features,
            growth,
            unshuffle,
        })
    }

    /// From features at the small size to the picture.
    fn enlarge(&self, features: &FeatureMap) -> Result<FeatureMap> {
        let mut hidden = features.clone();
        for doubling in &self.doublings {
            let extras = ConvExtras { upsample: true, ..ConvExtras::default() };
            hidden = self.rectifier.forward(&doubling.forward_with(&hidden, extras)?)?;
        }
        self.last.forward(&self.rectifier.forward(&self.large.forward(&hidden)?)?)
    }
}

/// How a map is gone through, and by how much its edges grow.
struct Strips {
    /// Rows that a row of the result depends on, before and after it.
    border: usize,
    /// Bytes of activations for each pixel.
    pixel_bytes: usize,
    scale: usize,
}

impl Strips {
    /// Runs `step` on strips of whole rows, about `part_bytes` each, and joins what they become.
    fn run(
        &self,
        input: &FeatureMap,
        part_bytes: usize,
        progress: &mut Progress,
        step: impl Fn(&FeatureMap) -> Result<FeatureMap>,
    ) -> GenerateResult<FeatureMap> {
        let Extent { height, width, .. } = input.extent()?;
        let room = part_bytes / (width * self.pixel_bytes).max(1);
        // Where there is little room, more would be computed twice than is saved.
        let rows = room.saturating_sub(2 * self.border).max(4 * self.border);
        let mut strips = Vec::with_capacity(height.div_ceil(rows));
        for first in (0..height).step_by(rows) {
            if first > 0 {
                progress.tell()?;
            }
            let (own_end, start) = (height.min(first + rows), first.saturating_sub(self.border));
            let end = height.min(own_end + self.border);
            let output = step(&input.rows(start, end - start)?)?;
            strips.push(output.rows((first - start) * self.scale, (own_end - first) * self.scale)?);
        }
        Ok(FeatureMap::stack_rows(&strips)?)
    }
}

impl Network for Rrdb {
    fn plan(&self) -> Plan {
        Plan {
            scale: ENLARGEMENT / self.unshuffle,
            border: Border::Picture(0),
            multiple: self.unshuffle,
            pixel_bytes: None,
            stages: self.blocks.len() * DENSE_BLOCKS + 1,
        }
    }

    fn forward(
        &self,
        input: &FeatureMap,
        part_bytes: usize,
        progress: &mut Progress,
    ) -> GenerateResult<Tensor> {
        let input = match self.unshuffle {
            1 => input.clone(),
            edge => FeatureMap::from_channels_first(&pixel_unshuffle(&input.to_channels_first()?, edge)?)?,
        };
        let strips = Strips {
            border: DENSE_LAYERS,
            // What a dense block has joined, and the copy that joins it with the next.
            pixel_bytes: 8 * (self.features + DENSE_LAYERS * self.growth),
            scale: 1,
        };
        let first = self.first.forward(&input)?;
        let mut hidden = first.clone();
        for block in &self.blocks {
            let mut inner = hidden.clone();
            for dense in block {
                inner = strips.run(&inner, part_bytes, progress, |strip| dense.forward(strip))?;
                progress.advance()?;
            }
            hidden = scaled_sum(&inner, &hidden)?;
        }
        let extras = ConvExtras { residual: Some(&first), ..ConvExtras::default() };
        let features = self.after_body.forward_with(&hidden, extras)?;
        let strips = Strips {
            border: ENLARGEMENT_BORDER,
            // The input and output of a convolution at the large size, and one of them rectified.
            pixel_bytes: 12 * self.features * ENLARGEMENT * ENLARGEMENT,
            scale: ENLARGEMENT,
        };
        let output = strips.run(&features, part_bytes, progress, |strip| self.enlarge(strip))?;
        progress.advance()?;
        Ok(output.to_channels_first()?)
    }
}

/// Convolutions that each read the block's input and all results before them.
struct DenseBlock {
    layers: Vec<Conv2d>,
    rectifier: Rectifier,
}

impl DenseBlock {
    fn load(weights: &Weights, suffix: &str, features: usize, growth: usize) -> WeightsResult<Self> {
        let layer = |index: usize| {
            let outputs = if index + 1 < DENSE_LAYERS { growth } else { features };
            let weights = weights.at(format!("conv{}{suffix}", index + 1));
            Conv2d::load(&weights, features + index * growth, outputs, Window::SAME)
        };
        Ok(Self {
            layers: (0..DENSE_LAYERS).map(layer).collect::<WeightsResult<_>>()?,
            rectifier: Rectifier::leaky(weights, SLOPE, growth)?,
        })
    }

    fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        let mut joined = input.clone();
        let (last, layers) = self.layers.split_last().expect("a dense block has layers");
        for layer in layers {
            joined = joined.concatenate(&self.rectifier.forward(&layer.forward(&joined)?)?)?;
        }
        scaled_sum(&last.forward(&joined)?, input)
    }
}

/// `input` and a share of `change`.
fn scaled_sum(change: &FeatureMap, input: &FeatureMap) -> Result<FeatureMap> {
    change.scale(RESIDUAL_SCALE)?.add(input)
}
