//! The features of a pair of pictures, in the order that the model knows them by.

use argus_models::{
    LatentEncoder, PixelMeasures, RgbPicture,
    features::{Structure, cosine_similarity},
};
use argus_protocols::ImageHashes;
use serde::{Deserialize, Serialize};

/// Of the list below and what each of its names means. A model of another version is refused.
pub const FEATURES_VERSION: u32 = 1;

/// Names of the features: distances, 0 for equal pictures.
pub const NAMES: [&str; FEATURES] = [
    "average_hash",
    "perceptual_hash",
    "difference_hash",
    "colour_hash",
    "clip",
    "levels",
    "coarse_levels",
    "worst_block",
    "fine_structure",
    "coarse_structure",
    "multi_scale_structure",
    "edges",
    "sharpness",
    "colours",
    "latents",
];

/// How many features a pair has.
pub const FEATURES: usize = 15;

/// Those that need both pictures, not only what describes them.
const PIXELS: std::ops::RangeInclusive<usize> = 5..=14;

/// What travels even of a picture that is withheld.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    pub hashes: &'a ImageHashes,
    /// CLIP embedding of unit length.
    pub clip: &'a [f32],
}

/// A picture as it is compared.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    pub description: Description<'a>,
    pub picture: &'a RgbPicture,
    /// By [`LatentEncoder`].
    pub latents: &'a [f32],
}

/// How two pictures lie apart; NaN is what is not known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "[Option<f32>; FEATURES]", into = "[Option<f32>; FEATURES]")]
pub struct PairFeatures([f32; FEATURES]);

impl From<[Option<f32>; FEATURES]> for PairFeatures {
    fn from(values: [Option<f32>; FEATURES]) -> Self {
        Self(values.map(|value| value.unwrap_or(f32::NAN)))
    }
}

impl From<PairFeatures> for [Option<f32>; FEATURES] {
    fn from(pair: PairFeatures) -> Self {
        pair.0.map(|value| value.is_finite().then_some(value))
    }
}

impl PairFeatures {
    /// By name, in order. Anything but a finite number is what is not known.
    pub fn new(values: [f32; FEATURES]) -> Self {
        Self(values.map(|value| if value.is_finite() { value } else { f32::NAN }))
    }

    /// `None` if there are not as many as the model knows.
    pub fn from_slice(values: &[f32]) -> Option<Self> {
        values.try_into().ok().map(Self::new)
    }

    /// Of two pictures that are both there. `None` if they differ in size.
    pub fn of_pictures(a: Sight, b: Sight) -> Option<Self> {
        let PixelMeasures { levels, coarse_levels, worst_block, structure, edges, sharpness, colours } =
            PixelMeasures::of(a.picture, b.picture)?;
        let Structure { fine, coarse, multi_scale } = structure;
        let latents = LatentEncoder::distance(a.latents, b.latents).unwrap_or(f64::NAN);
        let mut values = Self::of_descriptions(a.description, b.description).0;
        let measured = [
            levels,
            coarse_levels,
            worst_block,
            fine,
            coarse,
            multi_scale,
            edges,
            sharpness,
            colours,
            latents,
        ];
        for (value, measured) in values[PIXELS].iter_mut().zip(measured) {
            *value = measured as f32;
        }
        Some(Self::new(values))
    }

    /// Of two pictures of which one at least was withheld: what pixels alone can say is not known.
    pub fn of_descriptions(a: Description, b: Description) -> Self {
        let bits = |of: fn(&ImageHashes) -> u64| (of(a.hashes) ^ of(b.hashes)).count_ones() as f32;
        let mut values = [f32::NAN; FEATURES];
        values[..4].copy_from_slice(&[
            bits(|hashes| hashes.average),
            bits(|hashes| hashes.perceptual),
            bits(|hashes| hashes.difference),
            bits(|hashes| hashes.colour),
        ]);
        values[4] = cosine_similarity(a.clip, b.clip).map_or(f32::NAN, |cosine| (1.0 - cosine).max(0.0));
        Self(values)
    }

    pub fn values(&self) -> &[f32; FEATURES] {
        &self.0
    }

    /// Whether nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.0.iter().all(|value| value.is_finite())
    }

    /// The same pair, had one picture been withheld.
    #[must_use]
    pub fn without_pixels(&self) -> Self {
        let mut values = self.0;
        values[PIXELS].fill(f32::NAN);
        Self(values)
    }

    /// With the four hashes alone, as the seed's reward model has them.
    #[must_use]
    pub fn hashes_alone(&self) -> Self {
        let mut values = self.0;
        values[4..].fill(f32::NAN);
        Self(values)
    }
}
