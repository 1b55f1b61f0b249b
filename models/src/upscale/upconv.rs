//! waifu2x' upconv_7: six 3×3 convolutions without padding, then a transposed one that doubles the
//! size. The picture's edge is repeated beyond it, as waifu2x does.

use candle_core::Tensor;

use super::{Border, GenerateResult, MAX_CHANNELS, Network, Plan, Progress};
use crate::layers::{Conv2d, FeatureMap, Rectifier, Window, pixel_shuffle};
use crate::weights::{Weights, WeightsResult};

const SCALE: usize = 2;
/// 3×3 convolutions.
const LAYERS: usize = 6;
/// A pixel for each of the convolutions, and one for the transposed one.
const BORDER: usize = LAYERS + 1;
/// Slope of the rectifiers below zero.
const SLOPE: f32 = 0.1;
/// Edge of the transposed convolution's kernel; it takes two steps for each pixel.
const TRANSPOSED: usize = 4;

pub(super) struct Upconv {
    layers: Vec<(Conv2d, Rectifier)>,
    last: Conv2d,
    widest: usize,
}

impl Upconv {
    /// Reads `net.0`, `net.2` … `net.10` (rectifiers have no weights), and `net.12`, the transposed
    /// convolution `[inputs, 3, 4, 4]`.
    pub(super) fn load(weights: &Weights) -> WeightsResult<Self> {
        let net = weights.at("net");
        let mut layers = Vec::with_capacity(LAYERS);
        let (mut inputs, mut widest) = (3, 3);
        for place in (0..LAYERS).map(|layer| 2 * layer) {
            let outputs = match net.shape(&format!("{place}.weight")) {
                Some([outputs, _, 3, 3]) if *outputs <= MAX_CHANNELS => *outputs,
                _ => {
                    return Err(weights
                        .unsuitable(format!("`net.{place}.weight` is no 3×3 convolution of an upconv_7")));
                }
            };
            let convolution = Conv2d::load(&net.at(place), inputs, outputs, Window::INSIDE)?;
            layers.push((convolution, Rectifier::leaky(weights, SLOPE, outputs)?));
            widest = widest.max(inputs + outputs);
            inputs = outputs;
        }
        Ok(Self { layers, last: transposed(&net.at(2 * LAYERS), inputs)?, widest })
    }
}

/// The transposed convolution of stride 2 as a 2×2 convolution to the four pixels that each place
/// becomes. Along one axis pixel `2 m + r` of the full result is
/// `input[m − 1] · kernel[r + 2] + input[m] · kernel[r]`.
fn transposed(weights: &Weights, inputs: usize) -> WeightsResult<Conv2d> {
    const OUTPUTS: usize = 3 * SCALE * SCALE;
    const TAPS: usize = 2;
    let kernel = weights.values("weight", &[inputs, 3, TRANSPOSED, TRANSPOSED])?;
    let bias = weights.values("bias", &[3])?;
    let mut values = vec![0.0; OUTPUTS * inputs * TAPS * TAPS];
    for (index, value) in values.iter_mut().enumerate() {
        let (tap_x, tap_y) = (index % TAPS, index / TAPS % TAPS);
        let (input, output) = (index / (TAPS * TAPS) % inputs, index / (TAPS * TAPS * inputs));
        let (channel, y, x) = (output / (SCALE * SCALE), output / SCALE % SCALE, output % SCALE);
        let (kernel_y, kernel_x) = (y + 2 * (1 - tap_y), x + 2 * (1 - tap_x));
        *value = kernel[((input * 3 + channel) * TRANSPOSED + kernel_y) * TRANSPOSED + kernel_x];
    }
    let bias = (0..OUTPUTS).map(|output| bias[output / (SCALE * SCALE)]).collect();
    let window = Window { kernel: TAPS, stride: 1, before: 0, after: 0 };
    Conv2d::from_values(weights, values, Some(bias), inputs, OUTPUTS, window)
}

impl Network for Upconv {
    fn plan(&self) -> Plan {
        Plan {
            scale: SCALE,
            border: Border::Repeated(BORDER),
            multiple: 1,
            pixel_bytes: Some(4 * self.widest),
            stages: LAYERS + 1,
        }
    }

    fn forward(&self, input: &FeatureMap, _: usize, progress: &mut Progress) -> GenerateResult<Tensor> {
        let mut hidden = input.clone();
        for (convolution, rectifier) in &self.layers {
            hidden = rectifier.forward(&convolution.forward(&hidden)?)?;
            progress.advance()?;
        }
        let output = pixel_shuffle(&self.last.forward(&hidden)?.to_channels_first()?, SCALE)?;
        progress.advance()?;
        // The transposed convolution's padding of 3 cuts off one pixel more than the 2×2 form does.
        let (_, _, height, width) = output.dims4()?;
        Ok(output.narrow(2, 1, height - 2)?.narrow(3, 1, width - 2)?.contiguous()?)
    }
}
