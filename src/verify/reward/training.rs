//! Making a model of pairs whose answer is known.

use serde::{Deserialize, Serialize};

use super::{ModelError, PairFeatures, booster};

/// How trees are grown. The defaults are what the model in the binary was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Trees.
    pub rounds: u32,
    /// Decisions from a tree's root to a leaf.
    pub depth: u32,
    pub learning_rate: f32,
    /// The least weight of pairs in a leaf.
    pub least_weight: f32,
    /// L2, on the leaves.
    pub regularisation: f32,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { rounds: 120, depth: 4, learning_rate: 0.1, least_weight: 2.0, regularisation: 1.0 }
    }
}

/// A pair and whether it is the same answer twice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Example {
    pub pair: PairFeatures,
    pub same: bool,
}

/// The share of the weight that pairs get once more as they would be known had one picture been withheld.
const WITHHELD_SHARE: f32 = 0.1;

/// Trains a model and gives its file. Same and different pairs weigh the same in sum, so that P(same) does not
/// depend on how many of each were made. The same examples give the same bytes.
pub fn fit(examples: &[Example], recipe: &Recipe) -> Result<Vec<u8>, ModelError> {
    let count = |same: bool| examples.iter().filter(|example| example.same == same).count();
    let (alike, different) = (count(true), count(false));
    if alike == 0 || different == 0 {
        return Err(ModelError::Malformed("it takes same and different pairs to tell them apart".into()));
    }
    let total = examples.len() as f32;
    let weight = |same: bool| 0.5 * total / if same { alike } else { different } as f32;
    let mut pairs = Vec::with_capacity(2 * examples.len());
    let (mut labels, mut weights) = (Vec::new(), Vec::new());
    for Example { pair, same } in examples {
        let (label, weight) = (f32::from(u8::from(*same)), weight(*same));
        for (pair, share) in [(*pair, 1.0), (pair.without_pixels(), WITHHELD_SHARE)] {
            pairs.push(pair);
            labels.push(label);
            weights.push(weight * share);
        }
    }
    booster::train(&pairs, &labels, &weights, recipe)
}
