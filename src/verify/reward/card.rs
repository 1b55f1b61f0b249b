//! What goes with a model file: its hash, its features, where honest pairs end, what it was trained on.

use argus_models::registry::Precision;
use serde::{Deserialize, Serialize};

use super::{FEATURES_VERSION, ModelError, NAMES, Recipe};

/// Of the card's own layout.
pub const CARD_VERSION: u32 = 1;
/// The largest card file.
const MAX_CARD_BYTES: usize = 1 << 20;

/// How far honest answers to one request drift apart, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drift {
    /// Computed in f32 or f16, sent without loss.
    F16,
    /// Computed in bf16, which rounds more coarsely, sent without loss.
    Bf16,
    /// Sent as JPEG of 95 or more. Miners' answers are PNG, so this is for pictures from elsewhere.
    Lossy,
}

impl Drift {
    pub const ALL: [Self; 3] = [Self::F16, Self::Bf16, Self::Lossy];
}

impl From<Precision> for Drift {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 | Precision::F16 => Self::F16,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// One of something for each [`Drift`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByDrift<T> {
    pub f16: T,
    pub bf16: T,
    pub lossy: T,
}

impl<T: Copy> ByDrift<T> {
    pub fn from_fn(of: impl FnMut(Drift) -> T) -> Self {
        let [f16, bf16, lossy] = Drift::ALL.map(of);
        Self { f16, bf16, lossy }
    }

    pub fn of(&self, drift: Drift) -> T {
        match drift {
            Drift::F16 => self.f16,
            Drift::Bf16 => self.bf16,
            Drift::Lossy => self.lossy,
        }
    }
}

/// P(same) from which answers count as the same: 99.9 % of the honest pairs that drift no further, and that the
/// model was not trained on, lie at or above it.
pub type CutOffs = ByDrift<f32>;

/// What a model was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Of `argus reward dataset`.
    pub seed: u64,
    /// Models whose pictures it has seen.
    pub models: Vec<String>,
    /// Prompts, and pairs of pictures, that it was trained on.
    pub prompts: usize,
    pub pairs: usize,
    pub recipe: Recipe,
}

/// The card of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub card_version: u32,
    pub features_version: u32,
    pub features: Vec<String>,
    /// Of the model file.
    pub blake3: String,
    pub cut_offs: CutOffs,
    pub origin: Origin,
}

impl Card {
    /// The card of a model that was just trained.
    pub fn new(file: &[u8], cut_offs: CutOffs, origin: Origin) -> Self {
        Self {
            card_version: CARD_VERSION,
            features_version: FEATURES_VERSION,
            features: NAMES.map(str::to_owned).to_vec(),
            blake3: blake3::hash(file).to_string(),
            cut_offs,
            origin,
        }
    }

    pub fn from_json(json: &[u8]) -> Result<Self, ModelError> {
        if json.len() > MAX_CARD_BYTES {
            return Err(ModelError::Card(format!("it has {} bytes, more than {MAX_CARD_BYTES}", json.len())));
        }
        serde_json::from_slice(json).map_err(|error| ModelError::Card(error.to_string()))
    }

    /// Holds a model file and the features of this build against the card.
    pub(super) fn check(&self, file: &[u8]) -> Result<(), ModelError> {
        if self.card_version != CARD_VERSION {
            let found = self.card_version;
            return Err(ModelError::Card(format!("it is of version {found}, read is {CARD_VERSION}")));
        }
        if self.features_version != FEATURES_VERSION {
            return Err(ModelError::Version { found: self.features_version });
        }
        if self.features != NAMES {
            return Err(ModelError::Features);
        }
        let found = blake3::hash(file).to_string();
        if found != self.blake3 {
            return Err(ModelError::Hash { expected: self.blake3.clone(), found });
        }
        let cut_offs = Drift::ALL.map(|drift| self.cut_offs.of(drift));
        match cut_offs.into_iter().find(|cut_off| !(*cut_off > 0.0 && *cut_off < 1.0)) {
            Some(cut_off) => Err(ModelError::CutOff(cut_off)),
            None => Ok(()),
        }
    }
}
