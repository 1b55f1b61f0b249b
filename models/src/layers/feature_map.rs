//! A batch of pictures of any number of channels, in the layout that its device is fastest with.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::host::{self, is_host};

/// The extent of a [`FeatureMap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

/// Activations of a convolutional network.
///
/// The tensor is `[batch, height, width, channels]` on the host, where the kernels read one pixel's
/// channels as one run and attention takes pixels as tokens without a copy, and
/// `[batch, channels, height, width]` elsewhere, as candle's convolutions want it.
#[derive(Debug, Clone)]
pub(crate) struct FeatureMap(Tensor);

impl FeatureMap {
    /// From a `[batch, channels, height, width]` tensor.
    pub(crate) fn from_channels_first(tensor: &Tensor) -> Result<Self> {
        if is_host(tensor) {
            Ok(Self(tensor.permute((0, 2, 3, 1))?.contiguous()?))
        } else {
            Ok(Self(tensor.clone()))
        }
    }

    /// To a `[batch, channels, height, width]` tensor.
    pub(crate) fn to_channels_first(&self) -> Result<Tensor> {
        if is_host(&self.0) { self.0.permute((0, 3, 1, 2))?.contiguous() } else { Ok(self.0.clone()) }
    }

    /// From a tensor that is in this device's layout already.
    pub(crate) fn from_native(tensor: Tensor) -> Self {
        Self(tensor)
    }

    /// The tensor in this device's layout.
    pub(crate) fn native(&self) -> &Tensor {
        &self.0
    }

    pub(crate) fn extent(&self) -> Result<Extent> {
        if is_host(&self.0) {
            let (batch, height, width, channels) = self.0.dims4()?;
            Ok(Extent { batch, channels, height, width })
        } else {
            let (batch, channels, height, width) = self.0.dims4()?;
            Ok(Extent { batch, channels, height, width })
        }
    }

    /// One token a pixel, row by row: `[batch, height · width, channels]`.
    pub(crate) fn to_tokens(&self) -> Result<Tensor> {
        let Extent { batch, channels, height, width } = self.extent()?;
        if is_host(&self.0) {
            self.0.reshape((batch, height * width, channels))
        } else {
            self.0.reshape((batch, channels, height * width))?.transpose(1, 2)?.contiguous()
        }
    }

    /// The inverse of [`FeatureMap::to_tokens`].
    pub(crate) fn from_tokens(tokens: &Tensor, height: usize, width: usize) -> Result<Self> {
        let (batch, _, channels) = tokens.dims3()?;
        if is_host(tokens) {
            Ok(Self(tokens.reshape((batch, height, width, channels))?))
        } else {
            Ok(Self(tokens.transpose(1, 2)?.reshape((batch, channels, height, width))?.contiguous()?))
        }
    }

    /// The sum of two maps of one extent.
    pub(crate) fn add(&self, other: &Self) -> Result<Self> {
        Ok(Self((&self.0 + &other.0)?))
    }

    /// Every value times `factor`.
    pub(crate) fn scale(&self, factor: f64) -> Result<Self> {
        Ok(Self((&self.0 * factor)?))
    }

    /// The `count` rows of pixels from `first` on.
    pub(crate) fn rows(&self, first: usize, count: usize) -> Result<Self> {
        let dimension = if is_host(&self.0) { 1 } else { 2 };
        Ok(Self(self.0.narrow(dimension, first, count)?.contiguous()?))
    }

    /// Maps of equal width, one below the other.
    pub(crate) fn stack_rows(maps: &[Self]) -> Result<Self> {
        let dimension = if maps.iter().all(|map| is_host(&map.0)) { 1 } else { 2 };
        match maps {
            [map] => Ok(map.clone()),
            _ => Ok(Self(Tensor::cat(&maps.iter().map(|map| &map.0).collect::<Vec<_>>(), dimension)?)),
        }
    }

    /// The channels of `self`, then those of `other`.
    pub(crate) fn concatenate(&self, other: &Self) -> Result<Self> {
        if !is_host(&self.0) {
            return Ok(Self(Tensor::cat(&[&self.0, &other.0], 1)?));
        }
        let (left, right) = (self.extent()?, other.extent()?);
        if (left.batch, left.height, left.width) != (right.batch, right.height, right.width) {
            candle_core::bail!("cannot join the channels of {left:?} and {right:?}");
        }
        let channels = left.channels + right.channels;
        let mut joined = Vec::with_capacity(left.batch * left.height * left.width * channels);
        host::with_values(&self.0, |first| {
            host::with_values(&other.0, |second| {
                for (first, second) in
                    first.chunks_exact(left.channels).zip(second.chunks_exact(right.channels))
                {
                    joined.extend_from_slice(first);
                    joined.extend_from_slice(second);
                }
            })
        })??;
        Ok(Self(host::tensor(joined, (left.batch, left.height, left.width, channels))?))
    }

    /// Half the height and width (rounded down), each pixel the mean of four.
    pub(crate) fn halve(&self) -> Result<Self> {
        if !is_host(&self.0) {
            return Ok(Self(self.0.avg_pool2d(2)?));
        }
        let Extent { batch, channels, height, width } = self.extent()?;
        let (rows, columns) = (height / 2, width / 2);
        let output = host::with_values(&self.0, |values| {
            let mut output = vec![0.0f32; batch * rows * columns * channels];
            let row_length = (columns * channels).max(1);
            output.par_chunks_mut(row_length).enumerate().for_each(|(row, output)| {
                let above = (row / rows * height + row % rows * 2) * width * channels;
                let (above, below) = values[above..above + 2 * width * channels].split_at(width * channels);
                for (column, output) in output.chunks_exact_mut(channels).enumerate() {
                    let [above, below] =
                        [above, below].map(|row| row[2 * column * channels..].split_at(channels));
                    for (channel, output) in output.iter_mut().enumerate() {
                        let upper = above.0[channel] + above.1[channel];
                        *output = (upper + (below.0[channel] + below.1[channel])) * 0.25;
                    }
                }
            });
            output
        })?;
        Ok(Self(host::tensor(output, (batch, rows, columns, channels))?))
    }

    /// Twice the height and width, each pixel becoming four.
    pub(crate) fn double(&self) -> Result<Self> {
        let Extent { batch, channels, height, width } = self.extent()?;
        if !is_host(&self.0) {
            return Ok(Self(self.0.upsample_nearest2d(2 * height, 2 * width)?));
        }
        let output = host::with_values(&self.0, |values| {
            let mut output = vec![0.0f32; batch * 4 * height * width * channels];
            let row_length = (2 * width * channels).max(1);
            output.par_chunks_mut(row_length).enumerate().for_each(|(row, output)| {
                let start = row / 2 * width * channels;
                let pixels = values[start..start + width * channels].chunks_exact(channels);
                for (pixel, output) in pixels.zip(output.chunks_exact_mut(2 * channels)) {
                    output[..channels].copy_from_slice(pixel);
                    output[channels..].copy_from_slice(pixel);
                }
            });
            output
        })?;
        Ok(Self(host::tensor(output, (batch, 2 * height, 2 * width, channels))?))
    }
}
