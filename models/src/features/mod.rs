//! What is compared instead of pixels, and of pixels where there are two pictures.
//!
//! [`Features`] describe one picture without showing it: [`ImageHashes`], CLIP embedding, NSFW scores. They are
//! all that travels of a picture that is withheld. [`PixelMeasures`] say how two pictures lie apart where both
//! are there, and [`LatentEncoder`] what an autoencoder makes of one.
//!
//! Invariant: the same pictures give the same bits on every platform and with any number of threads: whole
//! numbers, [`crate::elementary`], single and double precision in a fixed order, and the layers of this crate.

mod colour;
mod gradients;
mod hashes;
mod latents;
mod pixels;
mod structure;

pub use hashes::{COLOUR_HASH_BITS, HASH_BITS, HashDistances, ImageHashes, hamming_distance};
pub use latents::LatentEncoder;
pub use pixels::PixelMeasures;
pub use structure::{Structure, structure};

use crate::nsfw::NsfwScores;

/// Everything that says what is in a picture without showing it.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    pub hashes: ImageHashes,
    /// CLIP image embedding of unit length.
    pub clip: Vec<f32>,
    pub nsfw: NsfwScores,
    /// Whether the scores are over the threshold of [`NsfwScores::is_nsfw`].
    pub is_nsfw: bool,
}

/// Cosine of the angle between two vectors, −1 to 1, summed in double precision.
/// `None` if their lengths differ, or either is all zero or not finite.
pub fn cosine_similarity(a: &[f32], b: &[f32]) -> Option<f32> {
    if a.len() != b.len() {
        return None;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt());
    cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0) as f32)
}
