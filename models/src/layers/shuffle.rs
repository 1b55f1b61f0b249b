//! Pixels of many channels as squares of pixels of few, and back.

use candle_core::{Result, Tensor};

/// `[1, channels · r², height, width]` to `[1, channels, height · r, width · r]`: each pixel's channels
/// become a square of pixels.
pub(crate) fn pixel_shuffle(input: &Tensor, r: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = input.dims4()?;
    let channels = channels / (r * r);
    input.reshape((batch, channels, r, r, height, width))?.permute((0, 1, 4, 2, 5, 3))?.reshape((
        batch,
        channels,
        height * r,
        width * r,
    ))
}

/// The inverse of [`pixel_shuffle`].
pub(crate) fn pixel_unshuffle(input: &Tensor, r: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = input.dims4()?;
    input.reshape((batch, channels, height / r, r, width / r, r))?.permute((0, 1, 3, 5, 2, 4))?.reshape((
        batch,
        channels * r * r,
        height / r,
        width / r,
    ))
}
