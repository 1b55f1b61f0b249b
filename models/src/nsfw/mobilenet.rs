//! NSFW scores of a picture, by the MobileNetV2 of nsfwjs 4.3.0 (MIT).
//!
//! The network: 224 × 224 RGB in [0, 1], a strided convolution, 17 inverted
//! residual blocks, a 1280-wide head averaged over the picture, three dense
//! layers and a softmax over five classes; batch normalisations are folded into
//! the biases. It always runs on the processor, with the kernels whose bits do
//! not depend on the processor or its threads: two nodes with the same picture
//! have the same scores, whatever device made it. Work is shared out to the
//! current rayon pool.
//!
//! A verdict is a reason not to send a picture, never by itself a reason to
//! punish: harmless patterns exist that fool this network.

use rayon::prelude::*;

use super::NsfwScores;
use crate::placement::Compute;
use crate::{
    embedded,
    layers::{
        Activation,
        activation::exp,
        isa::for_each_isa,
        product::{DenseRows, Epilogue, PackedMatrix, multiply},
    },
    loader::{LoadError, ModelFiles},
    picture::RgbPicture,
    resample::Filter,
    weights::{Weights, WeightsError},
};

/// Width of the feature before the dense layers.
pub const FEATURE_WIDTH: usize = 1280;
const SIDE: u32 = 224;
const STEM_CHANNELS: usize = 32;
/// Edge of the kernels of the stem and of the depthwise convolutions.
const KERNEL: usize = 3;
const TAPS: usize = KERNEL * KERNEL;
/// How much wider a block is inside than its input, but for the first.
const EXPANSION: usize = 6;
/// (output channels, stride of the first, blocks), as in the paper.
const STAGES: [(usize, usize, usize); 7] =
    [(16, 1, 1), (24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1)];
const CLASSES: usize = 5;

/// The classifier's weights, ready to run.
pub struct NsfwClassifier {
    stem: Point,
    blocks: Vec<Block>,
    head: Point,
    dense: [Point; 3],
}

impl NsfwClassifier {
    /// The classifier in the binary.
    pub fn embedded() -> Result<Self, LoadError> {
        Self::open(&embedded::nsfw_classifier())
    }

    /// Opens a folder with these weights in `model.safetensors`.
    pub fn open(files: &ModelFiles) -> Result<Self, LoadError> {
        Ok(Self::load(&files.weights("", &Compute::HOST)?)?)
    }

    fn load(weights: &Weights) -> Result<Self, WeightsError> {
        let stem = Point::convolution(weights, "Conv1k", "bn_Conv1", 3, STEM_CHANNELS, KERNEL)?;
        let mut blocks: Vec<Block> = Vec::new();
        let mut inputs = STEM_CHANNELS;
        for (outputs, stride, repeats) in STAGES {
            for repeat in 0..repeats {
                let stride = if repeat == 0 { stride } else { 1 };
                blocks.push(Block::load(weights, blocks.len(), inputs, outputs, stride)?);
                inputs = outputs;
            }
        }
        let head = Point::convolution(weights, "Conv_1k", "Conv_1_bn", inputs, FEATURE_WIDTH, 1)?;
        let dense = [
            Point::dense(weights, "dense_1", FEATURE_WIDTH, 256)?,
            Point::dense(weights, "dense_2", 256, 128)?,
            Point::dense(weights, "dense_3", 128, CLASSES)?,
        ];
        Ok(Self { stem, blocks, head, dense })
    }

    /// The scores of a picture of any size.
    pub fn classify(&self, picture: &RgbPicture) -> NsfwScores {
        self.scores(&self.feature(picture))
    }

    /// The averaged output of the convolutions, [`FEATURE_WIDTH`] values.
    pub fn feature(&self, picture: &RgbPicture) -> Vec<f32> {
        let picture = picture.resize(SIDE, SIDE, Filter::Bilinear);
        let mut map = self.stem.forward(&patches(&picture), Some(Activation::Relu6), None);
        for block in &self.blocks {
            map = block.forward(map);
        }
        let map = self.head.forward(&map, Some(Activation::Relu6), None);
        let pixels = (map.side * map.side) as f32;
        let mut feature = vec![0.0; FEATURE_WIDTH];
        for pixel in map.values.chunks_exact(FEATURE_WIDTH) {
            for (sum, value) in feature.iter_mut().zip(pixel) {
                *sum += value;
            }
        }
        feature.iter_mut().for_each(|sum| *sum /= pixels);
        feature
    }

    /// The scores of a [`feature`](Self::feature).
    ///
    /// # Panics
    /// If it does not have [`FEATURE_WIDTH`] values.
    pub fn scores(&self, feature: &[f32]) -> NsfwScores {
        assert_eq!(feature.len(), FEATURE_WIDTH, "not a feature of this classifier");
        let mut values = feature.to_vec();
        for (index, layer) in self.dense.iter().enumerate() {
            values = layer.forward(&Map { side: 1, channels: values.len(), values }, None, None).values;
            if index + 1 < self.dense.len() {
                values.iter_mut().for_each(|value| *value = value.max(0.0));
            }
        }
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        values.iter_mut().for_each(|value| *value = exp(*value - most));
        let total: f32 = values.iter().sum();
        let [drawing, hentai, neutral, porn, sexy] = std::array::from_fn(|class| values[class] / total);
        NsfwScores { drawing, hentai, neutral, porn, sexy }
    }
}

/// A square of pixels of some channels, row by row.
struct Map {
    side: usize,
    channels: usize,
    values: Vec<f32>,
}

/// The 3 × 3 pixels under each place of the stem's window, as [0, 1], zero beyond
/// the right and the lower edge.
fn patches(picture: &RgbPicture) -> Map {
    const CHANNELS: usize = 3 * TAPS;
    let (edge, pixels) = (SIDE as usize, picture.pixels());
    let side = edge / 2;
    let mut values = vec![0.0; side * side * CHANNELS];
    values.par_chunks_exact_mut(side * CHANNELS).enumerate().for_each(|(y, row)| {
        for (x, patch) in row.chunks_exact_mut(CHANNELS).enumerate() {
            let width = KERNEL.min(edge - 2 * x);
            for (line, target) in patch.chunks_exact_mut(3 * KERNEL).enumerate().take(edge - 2 * y) {
                let start = ((2 * y + line) * edge + 2 * x) * 3;
                for (value, &sample) in target.iter_mut().zip(&pixels[start..start + 3 * width]) {
                    *value = f32::from(sample) / 255.0;
                }
            }
        }
    });
    Map { side, channels: CHANNELS, values }
}

/// The same linear map of every pixel's channels.
struct Point {
    matrix: PackedMatrix,
    bias: Vec<f32>,
}

impl Point {
    /// A convolution `[outputs, inputs, edge, edge]` over gathered pixels: its
    /// inputs here are rows, columns, channels, in this order.
    fn convolution(
        weights: &Weights,
        kernel: &str,
        normalisation: &str,
        inputs: usize,
        outputs: usize,
        edge: usize,
    ) -> Result<Self, WeightsError> {
        let values = weights.values(kernel, &[outputs, inputs, edge, edge])?;
        let taps = edge * edge;
        let matrix = PackedMatrix::pack(1, taps * inputs, outputs, |_, place, output| {
            let (tap, input) = (place / inputs, place % inputs);
            values[(output * inputs + input) * taps + tap]
        });
        Ok(Self { matrix, bias: weights.values(&format!("{normalisation}.bias"), &[outputs])? })
    }

    fn dense(weights: &Weights, name: &str, inputs: usize, outputs: usize) -> Result<Self, WeightsError> {
        let values = weights.values(&format!("{name}k"), &[inputs, outputs])?;
        let matrix =
            PackedMatrix::pack(1, inputs, outputs, |_, input, output| values[input * outputs + output]);
        Ok(Self { matrix, bias: weights.values(&format!("{name}b"), &[outputs])? })
    }

    fn forward(&self, input: &Map, activation: Option<Activation>, residual: Option<&[f32]>) -> Map {
        let rows = DenseRows::new(&input.values, input.channels, input.channels);
        let epilogue = Epilogue { bias: Some(&self.bias), activation, residual, ..Epilogue::default() };
        let values = multiply(&rows, input.side * input.side, &self.matrix, &epilogue);
        Map { side: input.side, channels: self.matrix.columns(), values }
    }
}

/// An inverted residual block: widen, filter each channel, narrow.
struct Block {
    expand: Option<Point>,
    depthwise: Depthwise,
    project: Point,
    shortcut: bool,
}

impl Block {
    fn load(
        weights: &Weights,
        index: usize,
        inputs: usize,
        outputs: usize,
        stride: usize,
    ) -> Result<Self, WeightsError> {
        let name = if index == 0 { "expanded_conv".to_owned() } else { format!("block_{index}") };
        let inner = if index == 0 { inputs } else { inputs * EXPANSION };
        let point = |layer: &str, inputs, outputs| {
            Point::convolution(
                weights,
                &format!("{name}_{layer}k"),
                &format!("{name}_{layer}_BN"),
                inputs,
                outputs,
                1,
            )
        };
        Ok(Self {
            expand: (index > 0).then(|| point("expand", inputs, inner)).transpose()?,
            depthwise: Depthwise::load(weights, &name, inner, stride)?,
            project: point("project", inner, outputs)?,
            shortcut: stride == 1 && inputs == outputs,
        })
    }

    fn forward(&self, input: Map) -> Map {
        let filtered = match &self.expand {
            Some(expand) => self.depthwise.forward(&expand.forward(&input, Some(Activation::Relu6), None)),
            None => self.depthwise.forward(&input),
        };
        self.project.forward(&filtered, None, self.shortcut.then_some(&input.values))
    }
}

/// Channels that are computed at once.
const LANES: usize = 16;

/// A 3 × 3 convolution of each channel by itself, then ReLU6.
struct Depthwise {
    channels: usize,
    stride: usize,
    /// `[TAPS, channels]`.
    weights: Vec<f32>,
    bias: Vec<f32>,
    /// What lies beyond the edges.
    zeros: Vec<f32>,
}

impl Depthwise {
    fn load(weights: &Weights, name: &str, channels: usize, stride: usize) -> Result<Self, WeightsError> {
        assert!(channels.is_multiple_of(LANES), "the architecture has whole vectors only");
        let values = weights.values(&format!("{name}_depthwisek"), &[channels, 1, KERNEL, KERNEL])?;
        let by_tap = |place: usize| values[place % channels * TAPS + place / channels];
        Ok(Self {
            channels,
            stride,
            weights: (0..TAPS * channels).map(by_tap).collect(),
            bias: weights.values(&format!("{name}_depthwise_BN.bias"), &[channels])?,
            zeros: vec![0.0; channels],
        })
    }

    fn forward(&self, input: &Map) -> Map {
        let (channels, side) = (self.channels, input.side.div_ceil(self.stride));
        // A stride of 2 pads below and to the right only, as Keras does at even sides.
        let before = if self.stride == 1 { 1 } else { 0 };
        let coordinate = |output: usize, tap: usize| {
            (output * self.stride + tap).checked_sub(before).filter(|&position| position < input.side)
        };
        let pixel =
            |y: usize, x: usize, tap: usize| match (coordinate(y, tap / KERNEL), coordinate(x, tap % KERNEL))
            {
                (Some(row), Some(column)) => {
                    &input.values[(row * input.side + column) * channels..][..channels]
                }
                _ => &self.zeros[..],
            };
        let mut values = vec![0.0; side * side * channels];
        values.par_chunks_exact_mut(side * channels).enumerate().for_each(|(y, row)| {
            for (x, output) in row.chunks_exact_mut(channels).enumerate() {
                filter_pixel(&std::array::from_fn(|tap| pixel(y, x, tap)), &self.weights, &self.bias, output);
            }
        });
        Map { side, channels, values }
    }
}

for_each_isa! {
    /// All slices but `weights`, which is nine times as long, are as long as `output`.
    fn filter_pixel(taps: &[&[f32]; TAPS], weights: &[f32], bias: &[f32], output: &mut [f32]) {
        let channels = output.len();
        for first in (0..channels).step_by(LANES) {
            let mut sums = [0.0f32; LANES];
            sums.copy_from_slice(&bias[first..first + LANES]);
            for (tap, values) in taps.iter().enumerate() {
                let values = &values[first..first + LANES];
                let weights = &weights[tap * channels + first..][..LANES];
                for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                    *sum = value.mul_add(*weight, *sum);
                }
            }
            for (output, sum) in output[first..first + LANES].iter_mut().zip(sums) {
                *output = sum.clamp(0.0, 6.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Limits;
    use safetensors::SafeTensors;

    const PICTURES: [&str; 4] =
        ["nsfw_trigger_m.png", "nsfw_trigger_o.png", "scene-96x80.png", "rgba-64x64.png"];

    fn bytes(file: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/fixtures/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    /// As the fixture was made: transparency dropped, not laid on white.
    fn picture(file: &str) -> RgbPicture {
        let decoded = image::load_from_memory(&bytes(&format!("pictures/{file}"))).unwrap().into_rgb8();
        RgbPicture::new(decoded.width(), decoded.height(), decoded.into_raw()).unwrap()
    }

    fn values(fixture: &SafeTensors, name: &str) -> Vec<f32> {
        let data = fixture.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn in_order(scores: &NsfwScores) -> [f32; CLASSES] {
        [scores.drawing, scores.hentai, scores.neutral, scores.porn, scores.sexy]
    }

    #[test]
    fn features_and_scores_are_those_of_the_reference() {
        let classifier = NsfwClassifier::embedded().unwrap();
        let fixture = bytes("nsfw.fixture");
        let fixture = SafeTensors::deserialize(&fixture).unwrap();
        let (features, scores) = (values(&fixture, "feature"), values(&fixture, "scores"));
        for (index, file) in PICTURES.iter().enumerate() {
            let feature = classifier.feature(&picture(file));
            let expected = &features[index * FEATURE_WIDTH..][..FEATURE_WIDTH];
            for (ours, expected) in feature.iter().zip(expected) {
                assert!((ours - expected).abs() < 1e-4, "{file}: feature {ours} against {expected}");
            }
            let ours = classifier.scores(&feature);
            for (ours, expected) in in_order(&ours).iter().zip(&scores[index * CLASSES..]) {
                assert!((ours - expected).abs() < 1e-4, "{file}: score {ours} against {expected}");
            }
            assert!((in_order(&ours).iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert_eq!(ours.is_nsfw(), *file == "nsfw_trigger_m.png", "{file}");
        }
    }

    #[test]
    fn ordinary_pictures_are_fine_and_small_ones_too() {
        let classifier = NsfwClassifier::embedded().unwrap();
        for file in
            ["ddim-result.png", "waves-80x96.png", "tiny-5x3.png", "white-64x64.png", "noise-32x32.png"]
        {
            let picture =
                RgbPicture::decode(&bytes(&format!("pictures/{file}")), &Limits::default()).unwrap();
            assert!(!classifier.classify(&picture).is_nsfw(), "{file}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let classifier = NsfwClassifier::embedded().unwrap();
        let picture = picture("scene-96x80.png");
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| classifier.feature(&picture))
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn scores_that_are_no_numbers_count_as_nsfw() {
        let scores = NsfwScores { drawing: 0.0, hentai: f32::NAN, neutral: 0.0, porn: 0.0, sexy: 0.0 };
        assert!(scores.is_nsfw());
    }
}
