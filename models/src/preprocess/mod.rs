//! Control pictures: what ControlNets are steered by, made from ordinary pictures.
//!
//! Edges and outlines follow OpenCV to the bit (grey, Gaussian, Canny, dilation, erosion with its
//! defaults), so that a picture prepared here is the one that the networks' users prepare. Depth is a
//! network of its own ([`DepthEstimator`]). Control pictures are RGB with three equal channels, white
//! on black: edges and lines white, near things bright.

mod canny;
mod circle;
mod depth;
mod grey;

pub use canny::CannyThresholds;
pub use circle::{Circle, RADII};
pub use depth::DepthEstimator;
pub use grey::GreyPicture;

use crate::picture::RgbPicture;

/// Canny edges, white on black, as `control_v11p_sd15_canny` and its like were trained on.
pub fn canny(picture: &RgbPicture, thresholds: CannyThresholds) -> RgbPicture {
    GreyPicture::of(picture).canny(thresholds).to_rgb()
}

/// Rough outlines, white on black, as `control_v11p_sd15_scribble` takes them: a 5×5 Gaussian, Canny
/// edges at 50 and 150, closed by a 3×3 square.
pub fn scribble(picture: &RgbPicture) -> RgbPicture {
    closed_edges(picture).to_rgb()
}

/// [`scribble`], inverted to black on white, as people draw. Before a ControlNet sees it, it must be
/// inverted again.
pub fn outline(picture: &RgbPicture) -> RgbPicture {
    closed_edges(picture).inverted().to_rgb()
}

fn closed_edges(picture: &RgbPicture) -> GreyPicture {
    GreyPicture::of(picture).blurred().canny(CannyThresholds::OUTLINE).dilated().eroded()
}

#[cfg(test)]
mod tests;
