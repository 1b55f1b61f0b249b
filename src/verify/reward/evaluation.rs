//! How well pairs are told apart, by the model and by simpler rules on the same pairs.
//!
//! Invariant: prompts are either trained on or held out, with all their pairs; a [`Report`] is of pairs that
//! were held out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    ByDrift, Card, CutOffs, Drift, Example, FEATURES_VERSION, ModelError, NAMES, Origin, PairFeatures,
    Recipe, RewardModel, booster::Booster, fit,
};

/// The share of honest pairs that must pass.
pub const HONEST_SHARE: f64 = 0.999;
/// The most pairs of a data set.
pub const MAX_PAIRS: usize = 1 << 20;
/// The seed's rule where its reward model cannot be asked.
const SEED_CLIP_COSINE: f32 = 0.9;
/// The rule of the second seed.
const SEED_AVERAGE_HASH: f32 = 6.0;
const CLIP: usize = 4;
const AVERAGE_HASH: usize = 0;

/// The first line of a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub features_version: u32,
    pub features: Vec<String>,
    pub seed: u64,
    pub models: Vec<String>,
    pub prompts: usize,
}

/// A pair of pictures whose answer is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledPair {
    /// What one of the pictures went through, honest or not.
    pub kind: String,
    pub same: bool,
    /// How far honest pairs of the kind drift; of others, how far the right one of the two has.
    pub drift: Drift,
    /// Tells prompts apart.
    pub prompt: u64,
    /// Not trained on.
    pub held_out: bool,
    pub features: PairFeatures,
}

/// Pairs, one a line of JSON after the header's.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub header: Header,
    pub pairs: Vec<LabelledPair>,
}

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("line {line} cannot be read: {detail}")]
    Line { line: usize, detail: String },
    #[error("it is of other features than these: make it again with `argus reward dataset`")]
    Features,
    #[error("it has more than {MAX_PAIRS} pairs")]
    TooMany,
    #[error("it has no {missing} pairs among those that are {part}: make it of more prompts")]
    Lacking { missing: &'static str, part: &'static str },
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl DatasetError {
    /// Stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Line { .. } => "bad_line",
            Self::Features => "wrong_features",
            Self::TooMany => "too_many_pairs",
            Self::Lacking { .. } => "too_few_pairs",
            Self::Model(error) => error.reason(),
        }
    }
}

impl Header {
    pub fn new(seed: u64, models: Vec<String>, prompts: usize) -> Self {
        let features = NAMES.map(str::to_owned).to_vec();
        Self { features_version: FEATURES_VERSION, features, seed, models, prompts }
    }
}

impl Dataset {
    /// Reads what [`Self::to_lines`] wrote.
    pub fn from_lines(text: &str) -> Result<Self, DatasetError> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
        fn read<'a, T: Deserialize<'a>>((number, line): (usize, &'a str)) -> Result<T, DatasetError> {
            let detail = |error: serde_json::Error| error.to_string();
            serde_json::from_str(line).map_err(|e| DatasetError::Line { line: number + 1, detail: detail(e) })
        }
        let header: Header = read(lines.next().unwrap_or((0, "")))?;
        if header.features_version != FEATURES_VERSION || header.features != NAMES {
            return Err(DatasetError::Features);
        }
        let mut pairs = Vec::new();
        for line in lines {
            if pairs.len() == MAX_PAIRS {
                return Err(DatasetError::TooMany);
            }
            pairs.push(read(line)?);
        }
        Ok(Self { header, pairs })
    }

    pub fn to_lines(&self) -> String {
        let line = |value: serde_json::Result<String>| value.expect("plain values") + "\n";
        let pairs = self.pairs.iter().map(|pair| line(serde_json::to_string(pair)));
        line(serde_json::to_string(&self.header)) + &pairs.collect::<String>()
    }

    fn part(&self, held_out: bool) -> Vec<&LabelledPair> {
        self.pairs.iter().filter(|pair| pair.held_out == held_out).collect()
    }

    /// Both halves must have both answers.
    fn check(&self) -> Result<(), DatasetError> {
        for (held_out, part) in [(false, "to be trained on"), (true, "held out")] {
            for (same, missing) in [(true, "same"), (false, "different")] {
                if !self.part(held_out).iter().any(|pair| pair.same == same) {
                    return Err(DatasetError::Lacking { missing, part });
                }
            }
        }
        Ok(())
    }

    /// Trains a model on the pairs that are not held out, and finds its cut-offs on those that are.
    pub fn train(&self, recipe: Recipe) -> Result<(Vec<u8>, Card), DatasetError> {
        self.check()?;
        let trained_on = self.part(false);
        let file = fit(&examples(&trained_on), &recipe)?;
        let held_out = self.part(true);
        let scores = Booster::load(&file)?.predict(&features(&held_out))?;
        let cut_offs = cut_offs(&held_out, &scores);
        let mut prompts: Vec<u64> = trained_on.iter().map(|pair| pair.prompt).collect();
        prompts.sort_unstable();
        prompts.dedup();
        let Header { seed, models, .. } = self.header.clone();
        let origin = Origin { seed, models, prompts: prompts.len(), pairs: trained_on.len(), recipe };
        let card = Card::new(&file, cut_offs, origin);
        Ok((file, card))
    }
}

fn examples(pairs: &[&LabelledPair]) -> Vec<Example> {
    pairs.iter().map(|pair| Example { pair: pair.features, same: pair.same }).collect()
}

fn features(pairs: &[&LabelledPair]) -> Vec<PairFeatures> {
    pairs.iter().map(|pair| pair.features).collect()
}

/// The scores that [`HONEST_SHARE`] of the honest pairs reach.
fn cut_offs(pairs: &[&LabelledPair], scores: &[f32]) -> CutOffs {
    CutOffs::from_fn(|drift| {
        let honest = pairs.iter().zip(scores).filter(|(pair, _)| pair.same && pair.drift <= drift);
        cut_off(honest.map(|(_, score)| *score).collect())
    })
}

fn cut_off(mut honest: Vec<f32>) -> f32 {
    honest.sort_by(f32::total_cmp);
    let failing = (honest.len() as f64 * (1.0 - HONEST_SHARE)) as usize;
    honest.get(failing).copied().unwrap_or(1.0).clamp(f32::MIN_POSITIVE, 1.0 - f32::EPSILON)
}

/// Area under the receiver operating characteristic: how often a same pair scores above a different one.
pub fn area_under_curve(same: &[f32], different: &[f32]) -> f64 {
    let mut all: Vec<(f32, bool)> = same.iter().map(|score| (*score, true)).collect();
    all.extend(different.iter().map(|score| (*score, false)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut wins = 0.0;
    let mut below = 0usize;
    for equals in all.chunk_by(|a, b| a.0 == b.0) {
        let alike = equals.iter().filter(|(_, same)| *same).count();
        let others = equals.len() - alike;
        wins += alike as f64 * (below as f64 + others as f64 / 2.0);
        below += others;
    }
    wins / (same.len() as f64 * different.len() as f64)
}

/// Shares of pairs that a rule takes for the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Accepted {
    pub model: ByDrift<f64>,
    /// XGBoost on the four hashes, trained on the same pairs and held to the same share of honest ones.
    pub hashes: ByDrift<f64>,
    /// CLIP cosine above 0.9.
    pub clip: f64,
    /// At most 6 bits of the average hash.
    pub average_hash: f64,
}

/// One kind of pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub kind: String,
    pub same: bool,
    pub pairs: usize,
    pub accepted: Accepted,
}

/// Areas under the curve, over all pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Areas {
    pub model: f64,
    /// The model of what describes two pictures, had one been withheld.
    pub withheld: f64,
    pub hashes: f64,
    pub clip: f64,
    pub average_hash: f64,
}

/// What `argus reward eval` says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub seed: u64,
    pub same: usize,
    pub different: usize,
    pub cut_offs: CutOffs,
    pub areas: Areas,
    /// Honest kinds first.
    pub lines: Vec<Line>,
}

/// Scores of one rule, and from which on it accepts.
struct Rule {
    scores: Vec<f32>,
    least: f32,
}

impl Rule {
    fn area(&self, pairs: &[&LabelledPair]) -> f64 {
        let of = |same: bool| -> Vec<f32> {
            pairs.iter().zip(&self.scores).filter(|(pair, _)| pair.same == same).map(|(_, s)| *s).collect()
        };
        area_under_curve(&of(true), &of(false))
    }

    fn accepts(&self, place: usize) -> f64 {
        f64::from(u8::from(self.scores[place] >= self.least))
    }
}

/// Evaluates a model on the pairs that were held out.
pub fn evaluate(model: &RewardModel, dataset: &Dataset) -> Result<Report, DatasetError> {
    dataset.check()?;
    let held_out = dataset.part(true);
    let pairs = features(&held_out);
    let scores = model.probabilities(&pairs)?;
    let without_pixels: Vec<PairFeatures> = pairs.iter().map(PairFeatures::without_pixels).collect();
    let withheld = Rule { scores: model.probabilities(&without_pixels)?, least: 0.5 };
    let hashes = hash_scores(dataset, &held_out)?;
    let distance = |of: usize| pairs.iter().map(|pair| -pair.values()[of]).collect::<Vec<f32>>();
    let at = |scores: &[f32], least: f32| Rule { scores: scores.to_vec(), least };
    let hash_cut_offs = cut_offs(&held_out, &hashes);
    let by_model = Drift::ALL.map(|drift| at(&scores, model.card().cut_offs.of(drift)));
    let by_hashes = Drift::ALL.map(|drift| at(&hashes, hash_cut_offs.of(drift)));
    // Above, not from.
    let by_clip = at(&distance(CLIP), (SEED_CLIP_COSINE - 1.0).next_up());
    let by_average_hash = at(&distance(AVERAGE_HASH), -SEED_AVERAGE_HASH);
    let mut kinds: BTreeMap<(bool, &str), Vec<usize>> = BTreeMap::new();
    for (place, pair) in held_out.iter().enumerate() {
        kinds.entry((!pair.same, &pair.kind)).or_default().push(place);
    }
    let line = |((different, kind), places): ((bool, &str), Vec<usize>)| {
        let share =
            |rule: &Rule| places.iter().map(|place| rule.accepts(*place)).sum::<f64>() / places.len() as f64;
        let each = |[f16, bf16, lossy]: &[Rule; 3]| ByDrift {
            f16: share(f16),
            bf16: share(bf16),
            lossy: share(lossy),
        };
        let accepted = Accepted {
            model: each(&by_model),
            hashes: each(&by_hashes),
            clip: share(&by_clip),
            average_hash: share(&by_average_hash),
        };
        Line { kind: kind.to_owned(), same: !different, pairs: places.len(), accepted }
    };
    let lines = kinds.into_iter().map(line).collect();
    let area = |rule: &Rule| rule.area(&held_out);
    let areas = Areas {
        model: area(&by_model[0]),
        withheld: area(&withheld),
        hashes: area(&by_hashes[0]),
        clip: area(&by_clip),
        average_hash: area(&by_average_hash),
    };
    Ok(Report {
        seed: dataset.header.seed,
        same: held_out.iter().filter(|pair| pair.same).count(),
        different: held_out.iter().filter(|pair| !pair.same).count(),
        cut_offs: model.card().cut_offs,
        areas,
        lines,
    })
}

/// P(same) by trees that know the four hashes alone.
fn hash_scores(dataset: &Dataset, held_out: &[&LabelledPair]) -> Result<Vec<f32>, DatasetError> {
    let trained_on = dataset.part(false);
    let hashes = |pair: &&LabelledPair| Example { pair: pair.features.hashes_alone(), same: pair.same };
    let file = fit(&trained_on.iter().map(hashes).collect::<Vec<_>>(), &Recipe::default())?;
    let pairs: Vec<PairFeatures> = held_out.iter().map(|pair| pair.features.hashes_alone()).collect();
    Ok(Booster::load(&file)?.predict(&pairs)?)
}
