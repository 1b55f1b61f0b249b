//! Pictures as CLIP's vision tower takes them, by the same steps as `CLIPImageProcessor` on Pillow.

use candle_core::{Device, Result, Tensor};

use crate::picture::RgbPicture;
use crate::resample::Filter;

/// Mean and standard deviation of each channel that CLIP was trained with.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];

/// The longest side that a picture may have after its shorter side is resized, in tower edges; a
/// longer strip is cropped first, so that memory is bounded whatever the picture's shape.
const MAX_ASPECT: u32 = 16;

/// Shorter side resized to `edge` (bicubic, antialiased), centre cropped, normalised: `[3, edge, edge]`.
pub(crate) fn preprocess(picture: &RgbPicture, edge: u32, device: &Device) -> Result<Tensor> {
    let (width, height) = (picture.width(), picture.height());
    let longest = width.min(height).saturating_mul(MAX_ASPECT);
    let picture = if width.max(height) > longest {
        centre_crop(picture, width.min(longest), height.min(longest))
    } else {
        picture.clone()
    };
    let (width, height) = (picture.width(), picture.height());
    let shorter = width.min(height);
    let resized = |side: u32| (u64::from(edge) * u64::from(side) / u64::from(shorter)) as u32;
    let picture = centre_crop(&picture.resize(resized(width), resized(height), Filter::Bicubic), edge, edge);
    let pixels = picture.pixels();
    let values = (0..3)
        .flat_map(|channel| {
            pixels
                .iter()
                .skip(channel)
                .step_by(3)
                .map(move |value| (f32::from(*value) / 255.0 - MEAN[channel]) / DEVIATION[channel])
        })
        .collect();
    let edge = edge as usize;
    Tensor::from_vec(values, (3, edge, edge), device)
}

fn centre_crop(picture: &RgbPicture, width: u32, height: u32) -> RgbPicture {
    picture.crop((picture.width() - width) / 2, (picture.height() - height) / 2, width, height)
}
