//! What a picture shows, by classifiers of unsafe content.
//!
//! Three networks answer the same question: the embedded MobileNetV2 ([`NsfwClassifier`]), Yahoo's
//! OpenNSFW ([`OpenNsfw`]) and the safety checker of Stable Diffusion
//! ([`SafetyChecker`]). [`NsfwModel`] is any of them. The first two always
//! run on the processor, so that two nodes with the same picture have the same scores, whatever device
//! made it.
//!
//! A verdict is a reason not to send a picture, never by itself a reason to punish: harmless patterns
//! exist that fool each of these networks, though none is known that fools two.

mod mobilenet;
mod open_nsfw;

pub use mobilenet::{FEATURE_WIDTH, NsfwClassifier};
pub use open_nsfw::{OPEN_NSFW_THRESHOLD, OpenNsfw};

use candle_core::Result;

use crate::{
    loader::{LoadError, LoadResult, ModelFiles},
    picture::RgbPicture,
    placement::Placement,
    pool::Pool,
    safety::SafetyChecker,
};

/// `porn` + `hentai` from which a picture counts as NSFW. Over 1,200 harmless
/// drawings of objects the largest sum was 0.864; lower thresholds would refuse
/// hammers and envelopes.
pub const NSFW_THRESHOLD: f32 = 0.9;

/// How sure the classifier is of each class; the five add up to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NsfwScores {
    pub drawing: f32,
    pub hentai: f32,
    pub neutral: f32,
    pub porn: f32,
    pub sexy: f32,
}

impl NsfwScores {
    /// Whether `porn` + `hentai` reach [`NSFW_THRESHOLD`], or are no numbers.
    pub fn is_nsfw(&self) -> bool {
        let explicit = self.porn + self.hentai;
        explicit.is_nan() || explicit >= NSFW_THRESHOLD
    }
}

/// What one classifier says of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct NsfwOpinion {
    /// How likely the picture is unsafe, 0 to 1. Of a safety checker, which knows distances only, 1
    /// or 0 by its verdict.
    pub probability: f32,
    /// The classifier's own verdict, by its own threshold; true where its numbers are none.
    pub is_nsfw: bool,
    /// The classes that the classifier knows, in its order. Probabilities, but of a safety checker:
    /// there, by how much the picture is nearer to a concept than is allowed (above 0: unsafe).
    pub classes: Vec<NsfwClass>,
}

/// One class of a classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct NsfwClass {
    pub name: String,
    pub score: f32,
}

impl NsfwOpinion {
    pub(crate) fn new<N: Into<String>>(
        probability: f32,
        is_nsfw: bool,
        classes: impl IntoIterator<Item = (N, f32)>,
    ) -> Self {
        let classes = classes.into_iter().map(|(name, score)| NsfwClass { name: name.into(), score });
        Self { probability, is_nsfw, classes: classes.collect() }
    }
}

impl From<NsfwScores> for NsfwOpinion {
    fn from(scores: NsfwScores) -> Self {
        let NsfwScores { drawing, hentai, neutral, porn, sexy } = scores;
        let names = ["drawing", "hentai", "neutral", "porn", "sexy"];
        let values = [drawing, hentai, neutral, porn, sexy];
        Self::new(porn + hentai, scores.is_nsfw(), names.into_iter().zip(values))
    }
}

impl From<&NsfwOpinion> for NsfwScores {
    /// The five classes, where the classifier knows them; of others, `porn` is how likely the picture
    /// is unsafe, or 1 where the verdict says so, and `neutral` the rest.
    fn from(opinion: &NsfwOpinion) -> Self {
        let class = |name: &str| Some(opinion.classes.iter().find(|class| class.name == name)?.score);
        let known = || {
            Some(Self {
                drawing: class("drawing")?,
                hentai: class("hentai")?,
                neutral: class("neutral")?,
                porn: class("porn")?,
                sexy: class("sexy")?,
            })
        };
        let by_verdict = || {
            let porn = if opinion.is_nsfw { 1.0 } else { opinion.probability.min(1.0 - f32::EPSILON) };
            Self { drawing: 0.0, hentai: 0.0, neutral: 1.0 - porn, porn, sexy: 0.0 }
        };
        known().unwrap_or_else(by_verdict)
    }
}

/// A classifier of unsafe pictures, of any architecture that is known.
pub struct NsfwModel {
    network: Network,
    pool: Pool,
}

enum Network {
    MobileNet(NsfwClassifier),
    Open(OpenNsfw),
    Safety(SafetyChecker),
}

impl NsfwModel {
    /// Opens whichever classifier the files hold. `threads`: 0 for one a core.
    pub fn open(
        files: &ModelFiles,
        placement: impl Into<Placement>,
        threads: usize,
    ) -> std::result::Result<Self, LoadError> {
        Self::open_on(files, placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open`], to compute on the threads of `pool`. A folder with the `config.json` of a
    /// safety checker (or of a pipeline that has one below `safety_checker`) is one; the others are
    /// known by their weights.
    pub(crate) fn open_on(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        let network = pool.run(|| -> LoadResult<Network> {
            if SafetyChecker::is_in(files) {
                return Ok(Network::Safety(SafetyChecker::open_on(files, placement, Pool::current())?));
            }
            if OpenNsfw::is_in(files)? {
                return Ok(Network::Open(OpenNsfw::open(files)?));
            }
            Ok(Network::MobileNet(NsfwClassifier::open(files)?))
        })?;
        Ok(Self { network, pool })
    }

    /// What the classifier says of a picture of any size.
    pub fn classify(&self, picture: &RgbPicture) -> Result<NsfwOpinion> {
        self.pool.run(|| match &self.network {
            Network::MobileNet(network) => Ok(network.classify(picture).into()),
            Network::Open(network) => network.classify(picture),
            Network::Safety(network) => Ok(network.classify(picture)?.into()),
        })
    }
}

#[cfg(test)]
mod tests;
