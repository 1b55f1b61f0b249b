//! Two-dimensional convolution.

use candle_core::{DType, Result, Tensor};

use super::feature_map::{Extent, FeatureMap};
use super::host;
use super::kernel::TapRows;
use super::product::{Epilogue, PackedMatrix, RowSource, multiply};
use crate::weights::{Weights, WeightsResult};

/// The window of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Edge of the square kernel.
    pub(crate) kernel: usize,
    /// Input pixels from one output pixel to the next.
    pub(crate) stride: usize,
    /// Zero pixels above and to the left.
    pub(crate) before: usize,
    /// Zero pixels below and to the right.
    pub(crate) after: usize,
}

impl Window {
    /// One pixel.
    pub(crate) const POINT: Self = Self { kernel: 1, stride: 1, before: 0, after: 0 };
    /// 3×3, same size.
    pub(crate) const SAME: Self = Self { kernel: 3, stride: 1, before: 1, after: 1 };
    /// 3×3, half the size, as the UNet shrinks.
    pub(crate) const HALF: Self = Self { kernel: 3, stride: 2, before: 1, after: 1 };
    /// 3×3, half the size, padded below and to the right only, as the autoencoder shrinks.
    pub(crate) const HALF_AFTER: Self = Self { kernel: 3, stride: 2, before: 0, after: 1 };

    /// 3×3 without padding: a pixel less on each side.
    pub(crate) const INSIDE: Self = Self { kernel: 3, stride: 1, before: 0, after: 0 };

    /// Patches of this edge that do not overlap.
    pub(crate) const fn patches(edge: usize) -> Self {
        Self { kernel: edge, stride: edge, before: 0, after: 0 }
    }

    fn output_length(&self, input: usize) -> Result<usize> {
        match (input + self.before + self.after).checked_sub(self.kernel) {
            Some(room) => Ok(room / self.stride + 1),
            None => candle_core::bail!("a picture of {input} pixels is smaller than the window {self:?}"),
        }
    }
}

/// What may be done in the same pass as a convolution.
#[derive(Clone, Copy, Default)]
pub(crate) struct ConvExtras<'a> {
    /// Doubles the input's height and width first, each pixel becoming four.
    pub(crate) upsample: bool,
    /// Added to all pixels of each picture, `[batch or 1, channels]`.
    pub(crate) image_bias: Option<&'a Tensor>,
    /// Added to the result.
    pub(crate) residual: Option<&'a FeatureMap>,
}

/// A convolution with a square kernel.
pub(crate) struct Conv2d {
    window: Window,
    weight: ConvWeight,
}

enum ConvWeight {
    Host { matrix: PackedMatrix, bias: Option<Vec<f32>>, zeros: Vec<f32> },
    Device { weight: Tensor, bias: Option<Tensor> },
}

impl Conv2d {
    /// Reads `weight` `[outputs, inputs, kernel, kernel]` and `bias`.
    pub(crate) fn load(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        window: Window,
    ) -> WeightsResult<Self> {
        Self::load_with(weights, inputs, outputs, window, true)
    }

    /// As [`Conv2d::load`], without a bias.
    pub(crate) fn load_without_bias(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        window: Window,
    ) -> WeightsResult<Self> {
        Self::load_with(weights, inputs, outputs, window, false)
    }

    fn load_with(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        window: Window,
        bias: bool,
    ) -> WeightsResult<Self> {
        let k = window.kernel;
        let values = weights.values("weight", &[outputs, inputs, k, k])?;
        let bias = bias.then(|| weights.values("bias", &[outputs])).transpose()?;
        Self::from_values(weights, values, bias, inputs, outputs, window)
    }

    /// A convolution of these values, `[outputs, inputs, kernel, kernel]` and `[outputs]`, where
    /// `weights` are placed.
    pub(crate) fn from_values(
        weights: &Weights,
        values: Vec<f32>,
        bias: Option<Vec<f32>>,
        inputs: usize,
        outputs: usize,
        window: Window,
    ) -> WeightsResult<Self> {
        let k = window.kernel;
        let weight = if weights.on_host() {
            let matrix = PackedMatrix::pack(k * k, inputs, outputs, |tap, input, output| {
                values[(output * inputs + input) * k * k + tap]
            });
            ConvWeight::Host { matrix, bias, zeros: vec![0.0; inputs] }
        } else {
            let bias = bias.map(|bias| weights.place(bias, &[outputs])).transpose()?;
            ConvWeight::Device { weight: weights.place(values, &[outputs, inputs, k, k])?, bias }
        };
        Ok(Self { window, weight })
    }

    pub(crate) fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        self.forward_with(input, ConvExtras::default())
    }

    pub(crate) fn forward_with(&self, input: &FeatureMap, extras: ConvExtras) -> Result<FeatureMap> {
        match &self.weight {
            ConvWeight::Host { matrix, bias, zeros } => {
                self.forward_host(matrix, bias.as_deref(), zeros, input, extras)
            }
            ConvWeight::Device { weight, bias } => self.forward_device(weight, bias.as_ref(), input, extras),
        }
    }

    fn forward_host(
        &self,
        matrix: &PackedMatrix,
        bias: Option<&[f32]>,
        zeros: &[f32],
        input: &FeatureMap,
        extras: ConvExtras,
    ) -> Result<FeatureMap> {
        let extent = input.extent()?;
        if extent.channels != matrix.depth() {
            candle_core::bail!("a convolution of {} channels got {extent:?}", matrix.depth());
        }
        let scale = if extras.upsample { 2 } else { 1 };
        let height = self.window.output_length(extent.height * scale)?;
        let width = self.window.output_length(extent.width * scale)?;
        let rows = extent.batch * height * width;
        let output = host::with_values(input.native(), |values| {
            let source = WindowRows { values, zeros, extent, window: self.window, scale, height, width };
            host::with_optional_values(extras.image_bias, |image_bias| {
                host::with_optional_values(extras.residual.map(FeatureMap::native), |residual| {
                    let epilogue = Epilogue {
                        bias,
                        image_bias: image_bias.map(|values| (values, height * width)),
                        residual,
                        ..Epilogue::default()
                    };
                    multiply(&source, rows, matrix, &epilogue)
                })
            })
        })???;
        Ok(FeatureMap::from_native(host::tensor(output, (extent.batch, height, width, matrix.columns()))?))
    }

    fn forward_device(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        input: &FeatureMap,
        extras: ConvExtras,
    ) -> Result<FeatureMap> {
        let Window { stride, before, after, .. } = self.window;
        let mut input = input.native().clone();
        if extras.upsample {
            let (_, _, height, width) = input.dims4()?;
            input = input.upsample_nearest2d(2 * height, 2 * width)?;
        }
        if before != after {
            input = input.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
        }
        let padding = if before == after { before } else { 0 };
        let mut output = convolve(&input, weight, padding, stride)?;
        if let Some(bias) = bias {
            output = output.broadcast_add(&bias.reshape((1, (), 1, 1))?)?;
        }
        if let Some(bias) = extras.image_bias {
            let (images, channels) = bias.dims2()?;
            output = output.broadcast_add(&bias.reshape((images, channels, 1, 1))?)?;
        }
        if let Some(residual) = extras.residual {
            output = (output + residual.native())?;
        }
        Ok(FeatureMap::from_native(output))
    }
}

/// candle's convolution. On the processor it has none of bf16, whose sums are taken in f32 anyway.
fn convolve(input: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    if !(input.device().is_cpu() && input.dtype() == DType::BF16) {
        return input.conv2d(weight, padding, stride, 1, 1);
    }
    let (input, weight) = (input.to_dtype(DType::F32)?, weight.to_dtype(DType::F32)?);
    input.conv2d(&weight, padding, stride, 1, 1)?.to_dtype(DType::BF16)
}

/// The pixels under the window, one row for each output pixel and one tap for each place in it.
struct WindowRows<'a> {
    values: &'a [f32],
    zeros: &'a [f32],
    extent: Extent,
    window: Window,
    scale: usize,
    height: usize,
    width: usize,
}

impl WindowRows<'_> {
    /// The input coordinate under tap `tap` of output coordinate `output`, if it is inside.
    fn coordinate(&self, output: usize, tap: usize, length: usize) -> Option<usize> {
        let position = (output * self.window.stride + tap).checked_sub(self.window.before)? / self.scale;
        (position < length).then_some(position)
    }
}

// SAFETY: each pointer is that of a checked slice of `channels` values, or of as many zeros.
unsafe impl RowSource for WindowRows<'_> {
    fn fill(&self, first: usize, count: usize, taps: &mut [TapRows]) {
        let Extent { channels, height, width, .. } = self.extent;
        let kernel = self.window.kernel;
        let zeros = self.zeros[..channels].as_ptr();
        for (r, row) in (first..first + count).enumerate() {
            let (image, pixel) = (row / (self.height * self.width), row % (self.height * self.width));
            let (y, x) = (pixel / self.width, pixel % self.width);
            for tap_y in 0..kernel {
                let y = self.coordinate(y, tap_y, height);
                for tap_x in 0..kernel {
                    let pointer = match (y, self.coordinate(x, tap_x, width)) {
                        (Some(y), Some(x)) => {
                            let start = ((image * height + y) * width + x) * channels;
                            self.values[start..start + channels].as_ptr()
                        }
                        _ => zeros,
                    };
                    taps[tap_y * kernel + tap_x][r] = pointer;
                }
            }
        }
    }
}
