//! What runs on a device: candle pipelines, image features, embedded weights.
//!
//! Nothing here knows the network, the protocols or the node. Pictures, prompts
//! and weights files are hostile input: limits are checked before allocation.

pub mod elementary;
pub mod noise;
pub mod picture;
pub mod resample;

pub use picture::{Limits, PictureError, RgbPicture};
