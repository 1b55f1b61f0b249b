//! P(same): how likely two pictures are the same answer, up to what hardware and encodings do to it.
//!
//! A [`RewardModel`] is gradient-boosted trees over [`PairFeatures`]. The one in the binary was trained by
//! `argus reward train` on pairs that Argus made itself (`argus reward dataset`); its [`Card`] says from what,
//! and where honest pairs end. `docs/verification.md` has what `argus reward eval` says of it.
//!
//! Invariants:
//! * Moving two pictures further apart in any feature never raises P(same): the trees are monotone. Nobody
//!   gains by adding noise, or an encoding, to a wrong answer.
//! * A missing feature is never taken for an equal one: such a pair is not the same, whatever P says.
//! * A model is used only with the card that names its hash, and only if its features are the ones computed
//!   here; its trees are checked before XGBoost sees them, since it trusts what it loads.
//!
//! XGBoost is named in `booster.rs` alone.

mod booster;
mod card;
pub mod evaluation;
mod features;
mod training;
mod trees;

#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use booster::Booster;
pub use card::{ByDrift, CARD_VERSION, Card, CutOffs, Drift, Origin};
pub use features::{Description, FEATURES, FEATURES_VERSION, NAMES, PairFeatures, Sight};
pub use training::{Example, Recipe, fit};

/// The largest model file.
pub const MAX_MODEL_BYTES: usize = 4 << 20;

/// Why a model is not used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("the card cannot be read: {0}")]
    Card(String),
    #[error("the model has {bytes} bytes; at most {MAX_MODEL_BYTES} are read")]
    TooLarge { bytes: usize },
    #[error("the model has BLAKE3 {found}, its card says {expected}: take the card that was made with it")]
    Hash { expected: String, found: String },
    #[error(
        "the model was made for features of version {found}, these are {FEATURES_VERSION}: train it again"
    )]
    Version { found: u32 },
    #[error("the model knows other features than these: train it again")]
    Features,
    #[error("{0} is no share between 0 and 1 that a cut-off could be")]
    CutOff(f32),
    #[error("the model is damaged: {0}")]
    Malformed(String),
    #[error("XGBoost refuses: {0}")]
    Booster(String),
}

impl ModelError {
    /// Stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Card(_) => "bad_card",
            Self::TooLarge { .. } => "model_too_large",
            Self::Hash { .. } => "wrong_hash",
            Self::Version { .. } => "wrong_version",
            Self::Features => "wrong_features",
            Self::CutOff(_) => "bad_cut_off",
            Self::Malformed(_) => "damaged_model",
            Self::Booster(_) => "xgboost",
        }
    }
}

/// What the model makes of a pair.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Judgement {
    /// P(same).
    pub probability: f32,
    /// Below this two answers are not the same.
    pub cut_off: f32,
    pub same: bool,
}

impl Judgement {
    /// 1 where P is 1, ½ at the cut-off, 0 where P is 0, straight in between. A pair that lacks features is at
    /// most just below ½.
    pub fn similarity(&self) -> f32 {
        let Self { probability, cut_off, same } = *self;
        match same {
            true => 0.5 + 0.5 * (probability - cut_off) / (1.0 - cut_off).max(f32::MIN_POSITIVE),
            false => 0.5 * (probability / cut_off).min(1.0 - f32::EPSILON),
        }
    }
}

/// Trees and the card that goes with them.
pub struct RewardModel {
    booster: Booster,
    card: Card,
}

impl std::fmt::Debug for RewardModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RewardModel").field("card", &self.card).finish_non_exhaustive()
    }
}

impl RewardModel {
    /// The model in the binary.
    pub fn embedded() -> &'static Self {
        static EMBEDDED: LazyLock<RewardModel> = LazyLock::new(|| {
            let card = Card::from_json(include_bytes!("../../../config/reward/card.json"));
            card.and_then(|card| RewardModel::open(include_bytes!("../../../config/reward/model.json"), card))
                .expect("a test opens the model in the binary")
        });
        &EMBEDDED
    }

    /// A model file, as XGBoost writes JSON, with its card. Both may come from anywhere.
    pub fn open(file: &[u8], card: Card) -> Result<Self, ModelError> {
        if file.len() > MAX_MODEL_BYTES {
            return Err(ModelError::TooLarge { bytes: file.len() });
        }
        card.check(file)?;
        trees::check(file, FEATURES)?;
        Ok(Self { booster: Booster::load(file)?, card })
    }

    pub fn card(&self) -> &Card {
        &self.card
    }

    /// P(same) of each pair.
    pub fn probabilities(&self, pairs: &[PairFeatures]) -> Result<Vec<f32>, ModelError> {
        self.booster.predict(pairs)
    }

    /// Judges a pair of answers that may drift so far.
    pub fn judge(&self, pair: &PairFeatures, drift: Drift) -> Result<Judgement, ModelError> {
        let probability = self.probabilities(std::slice::from_ref(pair))?[0];
        let cut_off = self.card.cut_offs.of(drift);
        Ok(Judgement { probability, cut_off, same: pair.is_whole() && probability >= cut_off })
    }

    /// What each feature adds to the log-odds of P(same) (SHAP values, Lundberg et al. 2018), and the log-odds
    /// of the average pair, which they are added to.
    pub fn contributions(&self, pair: &PairFeatures) -> Result<([f32; FEATURES], f32), ModelError> {
        self.booster.contributions(pair)
    }
}
