//! By which rule the answers of a model are held against each other.
//!
//! Models whose honest answers agree to the bit have thresholds that a single step left out does not pass. Of
//! others, two pictures that both travelled are judged by the [`RewardModel`]; a picture that was withheld,
//! embeddings and classes by thresholds. Missing features fail either way.

use argus_models::registry::Precision;

use super::{
    Comparison, Evidence, Thresholds, compare,
    reward::{Description, Drift, Judgement, ModelError, PairFeatures, RewardModel, Sight},
};

/// The rule for one model's answers.
#[derive(Debug, Clone, Copy)]
pub struct Ruler {
    thresholds: Thresholds,
    /// How far its answers drift, if they do.
    drift: Option<Drift>,
}

impl Ruler {
    /// For models whose honest answers agree to the bit.
    pub fn exact() -> Self {
        Self { thresholds: Thresholds::exact(), drift: None }
    }

    /// For models computed in this precision, whose answers agree up to what hardware does to them.
    pub fn drifting(thresholds: Thresholds, precision: Precision) -> Self {
        Self { thresholds, drift: Some(precision.into()) }
    }

    /// Compares two answers to one request.
    pub fn compare(&self, a: &Evidence, b: &Evidence) -> Comparison {
        let judged = self.drift.and_then(|drift| judge(a, b, drift));
        match judged {
            Some(Ok(comparison)) => comparison,
            Some(Err(error)) => {
                tracing::error!(%error, reason = error.reason(), "the reward model failed; comparing by thresholds");
                compare(a, b, &self.thresholds)
            }
            None => compare(a, b, &self.thresholds),
        }
    }
}

/// `None` unless both are pictures that travelled.
fn judge(a: &Evidence, b: &Evidence, drift: Drift) -> Option<Result<Comparison, ModelError>> {
    let (a, b) = (sight(a)?, sight(b)?);
    if a.picture == b.picture {
        return Some(Ok(Comparison { same: true, similarity: 1.0 }));
    }
    let Some(pair) = PairFeatures::of_pictures(a, b) else { return Some(Ok(Comparison::UNRELATED)) };
    Some(RewardModel::embedded().judge(&pair, drift).map(Comparison::from))
}

fn sight(evidence: &Evidence) -> Option<Sight<'_>> {
    match evidence {
        Evidence::Picture { features, picture, latents } => {
            let description = Description { hashes: &features.hashes, clip: &features.clip };
            Some(Sight { description, picture, latents })
        }
        Evidence::Withheld(_) | Evidence::Embeddings(_) | Evidence::Classes(_) => None,
    }
}

impl From<Judgement> for Comparison {
    fn from(judgement: Judgement) -> Self {
        Self { same: judgement.same, similarity: judgement.similarity() }
    }
}

#[cfg(test)]
mod tests {
    use argus_models::RgbPicture;
    use argus_protocols::{Features, ImageHashes, NsfwScores};

    use super::*;

    fn features() -> Features {
        Features {
            hashes: ImageHashes { average: 1, perceptual: 2, difference: 3, colour: 4 },
            clip: vec![0.6, 0.8],
            nsfw: NsfwScores { drawing: 0.0, hentai: 0.0, neutral: 1.0, porn: 0.0, sexy: 0.0 },
        }
    }

    /// A scene with `grain` levels of grain.
    fn picture(grain: u8, latents: Vec<f32>) -> Evidence {
        let picture = RgbPicture::from_fn(64, 64, |x, y| {
            let grain = if (x * 7 + y * 13) % 3 == 0 { grain } else { 0 };
            [(x * 2) as u8 + grain, (y * 2) as u8 + grain, 90 + grain]
        });
        Evidence::Picture { features: features(), picture, latents }
    }

    fn rulers() -> [Ruler; 2] {
        [Precision::F16, Precision::Bf16].map(|precision| Ruler::drifting(Thresholds::default(), precision))
    }

    #[test]
    fn equal_pictures_are_the_same_and_other_ones_are_not() {
        let right = picture(0, vec![0.0; 64]);
        for ruler in rulers().into_iter().chain([Ruler::exact()]) {
            let compared = ruler.compare(&right, &right);
            assert_eq!(compared, Comparison { same: true, similarity: 1.0 });
            let compared = ruler.compare(&right, &picture(90, vec![2.0; 64]));
            assert!(!compared.same && compared.similarity < 0.3, "{compared:?}");
        }
    }

    #[test]
    fn a_little_grain_is_drift_where_answers_drift() {
        let (right, drifted) = (picture(0, vec![0.0; 64]), picture(1, vec![0.002; 64]));
        for ruler in rulers() {
            let compared = ruler.compare(&right, &drifted);
            assert!(compared.same && compared.similarity >= 0.5, "{compared:?}");
        }
        assert!(!Ruler::exact().compare(&right, &drifted).same);
    }

    #[test]
    fn what_is_missing_is_never_the_same() {
        let (right, drifted) = (picture(0, vec![0.0; 64]), picture(1, Vec::new()));
        for ruler in rulers() {
            let compared = ruler.compare(&right, &drifted);
            assert!(!compared.same && compared.similarity < 0.5, "{compared:?}");
            let nan = picture(1, vec![f32::NAN; 64]);
            assert!(!ruler.compare(&right, &nan).same);
        }
    }

    #[test]
    fn sizes_must_agree() {
        let small = Evidence::Picture {
            features: features(),
            picture: RgbPicture::from_fn(32, 64, |_, _| [0; 3]),
            latents: vec![0.0; 64],
        };
        for ruler in rulers() {
            assert_eq!(ruler.compare(&picture(0, vec![0.0; 64]), &small), Comparison::UNRELATED);
        }
    }
}
