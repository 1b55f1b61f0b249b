//! Are two answers to the same request the same, up to what hardware does to floating point?
//!
//! Each measure is divided by its threshold, and the worst of these ratios decides: 1 or less is the same.
//! The similarity of a pair falls from 1 (identical) over ½ (at the threshold) to 0 (unrelated), so that a
//! wrong answer is worth little even when it looks alike.
//!
//! Measured by `cargo run --example calibrate` on the embedded models (10 to 20 steps, 64 × 64, 24 requests),
//! distances to the right answer, least / median / most. "Levels" is the mean absolute difference of samples
//! of 255, "CLIP" is 1 − cosine, "hash bits" are those of the average, perceptual and difference hash:
//!
//! | answer | levels | CLIP | hash bits | colour bits |
//! |---|---|---|---|---|
//! | honest | 0 / 0 / 0 | 0 / 0 / 0 | 0 / 0 / 0 | 0 / 0 / 0 |
//! | ±1 level at random | 0.47 / 0.57 / 0.61 | 0 / 0 / 0.0001 | 0 / 1 / 5 | 0 / 0 / 0 |
//! | JPEG 95 | 0.77 / 1.16 / 1.47 | 0 / 0 / 0.0002 | 0 / 1 / 4 | 0 / 0 / 2 |
//! | JPEG 75 | 1.35 / 2.41 / 3.19 | 0 / 0.0002 / 0.0017 | 0 / 1 / 8 | 0 / 0 / 2 |
//! | one step fewer | 0.07 / 0.46 / 3.54 | 0 / 0.0001 / 0.0043 | 0 / 2 / 11 | 0 / 0 / 2 |
//! | half the steps | 0.82 / 4.76 / 18.1 | 0.0002 / 0.017 / 0.088 | 0 / 11 / 35 | 0 / 1 / 3 |
//! | other seed | 5.6 / 30.8 / 62.2 | 0.0009 / 0.11 / 0.92 | 2 / 63 / 97 | 0 / 3 / 5 |
//! | guidance 1 | 11.8 / 23.7 / 50.1 | 0.044 / 0.37 / 1.59 | 18 / 46 / 80 | 0 / 4 / 7 |
//! | other prompt | 35.0 / 47.2 / 64.5 | 0.28 / 0.95 / 1.54 | 45 / 58 / 94 | 1 / 3 / 8 |
//! | noise | 92 / 107 / 121 | 0.19 / 0.86 / 1.78 | 82 / 93 / 102 | 3 / 6 / 7 |
//!
//! Embeddings: 0.0005 at most from those of the same picture as JPEG 90, 0.057 at least from another's.
//!
//! Hence samples are looked at wherever both pictures travelled: neither hashes nor CLIP tell half the steps
//! from all. Models whose honest answers agree to the bit on any hardware get [`Thresholds::exact`], which a
//! single step left out does not pass; others get [`Thresholds::default`], set where a drift of one level
//! passes and half the steps do not. Two pictures of such models that both travelled are judged by the
//! [reward model](super::reward) instead ([`Ruler`](super::Ruler)).

use argus_models::{RgbPicture, features::cosine_similarity, nsfw::NSFW_THRESHOLD};
use argus_protocols::{Features, ImageHashes, NsfwScores};

/// What is known of one answer.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// A picture that travelled, and its features and latents as the comparer computed them. There are no
    /// latents where answers agree to the bit, since nobody looks at them.
    Picture { features: Features, picture: RgbPicture, latents: Vec<f32> },
    /// The features that a miner claims for a picture it withheld as NSFW. Made by [`Evidence::withheld`].
    Withheld(Features),
    /// Made by [`Evidence::embeddings`].
    Embeddings(Vec<Vec<f32>>),
    /// Probabilities of the classes of each picture that was asked about.
    Classes(Vec<NsfwScores>),
}

/// Why claimed features or embeddings are no evidence.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EvidenceError {
    #[error("an embedding has {found} dimensions instead of {expected}")]
    Dimensions { expected: usize, found: usize },
    #[error("an embedding is not of unit length")]
    Length,
}

/// An honest embedding misses unit length by rounding alone.
const LENGTH_TOLERANCE: f64 = 1e-3;

impl Evidence {
    /// Features that came without their picture, as decoded from an answer. Missing or odd ones are refused,
    /// never taken for equal.
    pub fn withheld(features: Features, dimensions: usize) -> Result<Self, EvidenceError> {
        check_embedding(&features.clip, dimensions)?;
        Ok(Evidence::Withheld(features))
    }

    /// As many as pictures, which the protocol's [`Answer::answers`](argus_protocols::Answer::answers) sees to.
    pub fn embeddings(all: Vec<Vec<f32>>, dimensions: usize) -> Result<Self, EvidenceError> {
        for embedding in &all {
            check_embedding(embedding, dimensions)?;
        }
        Ok(Evidence::Embeddings(all))
    }

    /// Whether the answer kept its picture back.
    pub fn is_withheld(&self) -> bool {
        matches!(self, Evidence::Withheld(_))
    }

    fn features(&self) -> Option<&Features> {
        match self {
            Evidence::Picture { features, .. } | Evidence::Withheld(features) => Some(features),
            Evidence::Embeddings(_) | Evidence::Classes(_) => None,
        }
    }
}

fn check_embedding(embedding: &[f32], dimensions: usize) -> Result<(), EvidenceError> {
    if embedding.len() != dimensions {
        return Err(EvidenceError::Dimensions { expected: dimensions, found: embedding.len() });
    }
    let squares: f64 = embedding.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    // A comparison that NaN fails.
    if (squares.sqrt() - 1.0).abs() <= LENGTH_TOLERANCE { Ok(()) } else { Err(EvidenceError::Length) }
}

/// Where two answers stop being the same.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Mean absolute difference of the samples of two pictures that both travelled, in levels of 255.
    pub mean_abs_difference: f32,
    /// 1 − cosine of two pictures' CLIP embeddings.
    pub clip_distance: f32,
    /// Differing bits of the average, perceptual and difference hash together, of 192. Looked at when a
    /// picture did not travel: where both did, their samples say more than any hash of them.
    pub hash_bits: u32,
    /// Differing bits of the colour hash, of 42; likewise.
    pub colour_bits: u32,
    /// 1 − cosine of two embeddings of the same picture.
    pub embedding_distance: f32,
    /// How far a class of the same picture may lie apart, as a probability.
    pub class_distance: f32,
    /// How far the verdicts "NSFW" of two honest devices may lie apart, as a probability.
    pub nsfw_margin: f32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            mean_abs_difference: 0.8,
            clip_distance: 0.002,
            hash_bits: 8,
            colour_bits: 3,
            embedding_distance: 0.001,
            class_distance: 0.02,
            nsfw_margin: 0.05,
        }
    }
}

impl Thresholds {
    /// For models whose honest answers agree to the bit, whatever the hardware.
    pub fn exact() -> Self {
        Self {
            mean_abs_difference: 0.02,
            clip_distance: 1e-5,
            hash_bits: 1,
            colour_bits: 1,
            embedding_distance: 1e-5,
            class_distance: 1e-4,
            nsfw_margin: 1e-3,
        }
    }

    /// What is wrong with these thresholds, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("mean_abs_difference", self.mean_abs_difference),
            ("clip_distance", self.clip_distance),
            ("hash_bits", self.hash_bits as f32),
            ("colour_bits", self.colour_bits as f32),
            ("embedding_distance", self.embedding_distance),
            ("class_distance", self.class_distance),
            ("nsfw_margin", self.nsfw_margin),
        ];
        match positive.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((name, value)) => Err(format!("thresholds.{name} is {value}: give a number above 0")),
            None => Ok(()),
        }
    }
}

/// What comparing two answers gave.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Comparison {
    pub same: bool,
    /// 1 identical, ½ at the threshold, 0 unrelated.
    pub similarity: f32,
}

impl Comparison {
    /// Two answers that have nothing in common, not even their kind.
    pub const UNRELATED: Self = Self { same: false, similarity: 0.0 };

    /// From the worst measure in units of its threshold.
    fn from_ratio(ratio: f32) -> Self {
        // A NaN is not at most 1 either.
        if ratio.is_nan() {
            return Self::UNRELATED;
        }
        Self { same: ratio <= 1.0, similarity: 1.0 / (1.0 + ratio * ratio) }
    }
}

/// Compares two answers to one request.
pub fn compare(a: &Evidence, b: &Evidence, thresholds: &Thresholds) -> Comparison {
    if let (Evidence::Embeddings(a), Evidence::Embeddings(b)) = (a, b) {
        return compare_embeddings(a, b, thresholds);
    }
    if let (Evidence::Classes(a), Evidence::Classes(b)) = (a, b) {
        return compare_classes(a, b, thresholds);
    }
    let (Some(left), Some(right)) = (a.features(), b.features()) else {
        return Comparison::UNRELATED;
    };
    let clip = cosine_distance(&left.clip, &right.clip) / thresholds.clip_distance;
    let ratio = worse(clip, nsfw_ratio(a, b, thresholds));
    let ratio = match (a, b) {
        (Evidence::Picture { picture: left, .. }, Evidence::Picture { picture: right, .. }) => {
            let Some(levels) = left.mean_abs_difference(right) else {
                return Comparison::UNRELATED;
            };
            worse(ratio, levels as f32 / thresholds.mean_abs_difference)
        }
        _ => worse(ratio, hash_ratio(&left.hashes, &right.hashes, thresholds)),
    };
    Comparison::from_ratio(ratio)
}

fn compare_embeddings(a: &[Vec<f32>], b: &[Vec<f32>], thresholds: &Thresholds) -> Comparison {
    if a.is_empty() || a.len() != b.len() {
        return Comparison::UNRELATED;
    }
    let farthest = a.iter().zip(b).map(|(a, b)| cosine_distance(a, b)).fold(0.0, worse);
    Comparison::from_ratio(farthest / thresholds.embedding_distance)
}

fn compare_classes(a: &[NsfwScores], b: &[NsfwScores], thresholds: &Thresholds) -> Comparison {
    if a.is_empty() || a.len() != b.len() {
        return Comparison::UNRELATED;
    }
    let classes = |s: &NsfwScores| [s.drawing, s.hentai, s.neutral, s.porn, s.sexy];
    let (a, b) = (a.iter().flat_map(classes), b.iter().flat_map(classes));
    let farthest = a.zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, worse);
    Comparison::from_ratio(farthest / thresholds.class_distance)
}

/// The larger of the two; NaN stays NaN, where `f32::max` would drop it.
fn worse(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// 1 − cosine, NaN when there is none.
fn cosine_distance(a: &[f32], b: &[f32]) -> f32 {
    cosine_similarity(a, b).map_or(f32::NAN, |cosine| (1.0 - cosine).max(0.0))
}

/// When one answer kept its picture back and the other did not: how far the picture that travelled, whose
/// scores were computed here, is from where both would be honest. A claim of "NSFW" for a plainly harmless
/// picture gains nothing, nor does a plainly NSFW picture that was sent all the same.
fn nsfw_ratio(a: &Evidence, b: &Evidence, thresholds: &Thresholds) -> f32 {
    let travelled = match (a, b) {
        (Evidence::Picture { features, .. }, Evidence::Withheld(_)) => features,
        (Evidence::Withheld(_), Evidence::Picture { features, .. }) => features,
        _ => return 0.0,
    };
    let probability = travelled.nsfw.porn + travelled.nsfw.hentai;
    (probability - NSFW_THRESHOLD).abs() / thresholds.nsfw_margin
}

fn hash_ratio(a: &ImageHashes, b: &ImageHashes, thresholds: &Thresholds) -> f32 {
    let bits = |a: u64, b: u64| (a ^ b).count_ones();
    let shape =
        bits(a.average, b.average) + bits(a.perceptual, b.perceptual) + bits(a.difference, b.difference);
    let shape = shape as f32 / thresholds.hash_bits as f32;
    shape.max(bits(a.colour, b.colour) as f32 / thresholds.colour_bits as f32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIMENSIONS: usize = 4;

    fn features(explicit: f32) -> Features {
        Features {
            hashes: ImageHashes { average: 1, perceptual: 2, difference: 3, colour: 4 },
            clip: vec![0.5; DIMENSIONS],
            nsfw: NsfwScores {
                drawing: 0.0,
                hentai: 0.0,
                neutral: 1.0 - explicit,
                porn: explicit,
                sexy: 0.0,
            },
        }
    }

    fn picture(level: u8, explicit: f32) -> Evidence {
        Evidence::Picture {
            features: features(explicit),
            picture: RgbPicture::from_fn(8, 8, |_, _| [level; 3]),
            latents: Vec::new(),
        }
    }

    fn withheld(change: impl FnOnce(&mut Features)) -> Result<Evidence, EvidenceError> {
        let mut features = features(0.95);
        change(&mut features);
        Evidence::withheld(features, DIMENSIONS)
    }

    fn device(a: &Evidence, b: &Evidence) -> Comparison {
        compare(a, b, &Thresholds::default())
    }

    #[test]
    fn one_level_of_drift_is_the_same_only_where_hardware_drifts() {
        let (a, b) = (picture(100, 0.0), picture(101, 0.0));
        assert_eq!(device(&a, &a), Comparison { same: true, similarity: 1.0 });
        let close = Evidence::Picture {
            features: features(0.0),
            picture: RgbPicture::from_fn(8, 8, |x, _| [100 + (x % 2) as u8; 3]),
            latents: Vec::new(),
        };
        assert!(device(&a, &close).same);
        assert!(!device(&a, &b).same);
        assert!(!compare(&a, &close, &Thresholds::exact()).same);
        assert!(compare(&a, &a, &Thresholds::exact()).same);
    }

    #[test]
    fn pictures_of_other_sizes_and_answers_of_other_kinds_have_nothing_in_common() {
        let small = Evidence::Picture {
            features: features(0.0),
            picture: RgbPicture::from_fn(4, 8, |_, _| [0; 3]),
            latents: Vec::new(),
        };
        let embedding = Evidence::Embeddings(vec![vec![0.5; DIMENSIONS]]);
        assert_eq!(device(&picture(0, 0.0), &small), Comparison::UNRELATED);
        assert_eq!(device(&picture(0, 0.0), &embedding), Comparison::UNRELATED);
        assert_eq!(device(&embedding, &withheld(|_| ()).unwrap()), Comparison::UNRELATED);
    }

    #[test]
    fn missing_and_odd_features_are_refused() {
        assert!(withheld(|_| ()).is_ok());
        assert!(withheld(|f| f.clip.clear()).is_err());
        assert!(withheld(|f| f.clip.push(0.0)).is_err());
        assert!(withheld(|f| f.clip.fill(0.0)).is_err());
        assert!(withheld(|f| f.clip[0] = f32::NAN).is_err());
        assert!(withheld(|f| f.clip[0] = f32::INFINITY).is_err());
        let embedding = || vec![0.5; DIMENSIONS];
        assert!(Evidence::embeddings(vec![embedding()], DIMENSIONS).is_ok());
        assert!(Evidence::embeddings(vec![vec![1.0]], DIMENSIONS).is_err());
        assert!(!device(&Evidence::Embeddings(Vec::new()), &Evidence::Embeddings(Vec::new())).same);
    }

    #[test]
    fn classes_are_compared_one_by_one() {
        let shown = |explicit: &[f32]| {
            Evidence::Classes(explicit.iter().map(|explicit| features(*explicit).nsfw).collect())
        };
        assert_eq!(
            device(&shown(&[0.5, 0.1]), &shown(&[0.5, 0.1])),
            Comparison { same: true, similarity: 1.0 }
        );
        assert!(device(&shown(&[0.5, 0.1]), &shown(&[0.51, 0.1])).same);
        assert!(!compare(&shown(&[0.5]), &shown(&[0.51]), &Thresholds::exact()).same);
        let wrong = device(&shown(&[0.5, 0.1]), &shown(&[0.5, 0.9]));
        assert!(!wrong.same && wrong.similarity < 0.01, "{wrong:?}");
        for other in [shown(&[]), shown(&[0.5, 0.1]), shown(&[f32::NAN]), picture(0, 0.0)] {
            assert!(!device(&shown(&[0.5]), &other).same);
        }
        assert!(!device(&shown(&[]), &shown(&[])).same);
    }

    #[test]
    fn withheld_features_are_compared_like_any_other() {
        let honest = withheld(|_| ()).unwrap();
        assert!(device(&honest, &withheld(|_| ()).unwrap()).same);
        for other in [
            withheld(|f| f.hashes.average = !1),
            withheld(|f| f.hashes.colour ^= 0xff),
            withheld(|f| f.clip = vec![1.0, 0.0, 0.0, 0.0]),
        ] {
            let compared = device(&honest, &other.unwrap());
            assert!(!compared.same && compared.similarity < 0.2, "{compared:?}");
        }
    }

    #[test]
    fn a_claim_of_nsfw_gains_nothing() {
        let claim = withheld(|_| ()).unwrap();
        // The right hashes and embedding, of a picture that is plainly harmless.
        let compared = device(&picture(0, 0.01), &claim);
        assert!(!compared.same && compared.similarity < 0.01, "{compared:?}");
        // A picture at the border, judged either way by honest devices.
        assert!(device(&picture(0, NSFW_THRESHOLD - 0.01), &claim).same);
        // One that should not have been sent.
        assert!(!device(&picture(0, 1.0), &claim).same);
    }

    proptest! {
        #[test]
        fn similarity_and_verdict_tell_the_same(a in 0u8..=255, b in 0u8..=255) {
            let compared = device(&picture(a, 0.0), &picture(b, 0.0));
            prop_assert_eq!(compared.same, compared.similarity >= 0.5);
            prop_assert!((0.0..=1.0).contains(&compared.similarity));
            prop_assert_eq!(compared, device(&picture(b, 0.0), &picture(a, 0.0)));
        }
    }
}
