use proptest::prelude::*;
use serde_json::{Value, json};

use super::{evaluation::*, *};

const MODEL: &[u8] = include_bytes!("../../../config/reward/model.json");
const CARD: &[u8] = include_bytes!("../../../config/reward/card.json");
/// Some of the pairs that the committed table is of (tests/fixtures/reward/README.md).
const PAIRS: &str = include_str!("../../../tests/fixtures/reward/pairs.jsonl");
/// P(same) of such pairs by XGBoost itself, in Python.
const PREDICTIONS: &str = include_str!("../../../tests/fixtures/reward/predictions.json");

fn card() -> Card {
    Card::from_json(CARD).unwrap()
}

/// A model file that is not the committed one, and a card that vouches for it.
fn forged(change: impl FnOnce(&mut Value)) -> Result<RewardModel, ModelError> {
    let mut file: Value = serde_json::from_slice(MODEL).unwrap();
    change(&mut file);
    vouched(serde_json::to_vec(&file).unwrap())
}

fn vouched(file: Vec<u8>) -> Result<RewardModel, ModelError> {
    let card = Card { blake3: blake3::hash(&file).to_string(), ..card() };
    RewardModel::open(&file, card)
}

fn even(values: f32) -> PairFeatures {
    PairFeatures::new([values; FEATURES])
}

#[test]
fn predictions_are_those_of_xgboost_in_python() {
    #[derive(serde::Deserialize)]
    struct Case {
        features: PairFeatures,
        probability: f32,
    }
    let cases: Vec<Case> = serde_json::from_str(PREDICTIONS).unwrap();
    assert!(cases.len() >= 20 && cases.iter().any(|case| !case.features.is_whole()));
    let pairs: Vec<PairFeatures> = cases.iter().map(|case| case.features).collect();
    let found = RewardModel::embedded().probabilities(&pairs).unwrap();
    for (case, found) in cases.iter().zip(found) {
        assert!((case.probability - found).abs() < 1e-6, "{found} instead of {}", case.probability);
    }
}

#[test]
fn the_card_belongs_to_the_model_and_names_its_features() {
    let model = RewardModel::embedded();
    assert_eq!(model.card().features, NAMES);
    assert!(MODEL.len() < 400_000, "{} bytes", MODEL.len());
    let CutOffs { f16, bf16, lossy } = model.card().cut_offs;
    assert!(0.0 < lossy && lossy <= bf16 && bf16 <= f16 && f16 < 1.0, "{f16}, {bf16}, {lossy}");
}

#[test]
fn other_cards_are_refused() {
    let reason = |change: fn(&mut Card)| {
        let mut card = card();
        change(&mut card);
        RewardModel::open(MODEL, card).unwrap_err().reason()
    };
    assert_eq!(reason(|card| card.blake3 = "00".repeat(32)), "wrong_hash");
    assert_eq!(reason(|card| card.features_version += 1), "wrong_version");
    assert_eq!(reason(|card| card.card_version += 1), "bad_card");
    assert_eq!(reason(|card| drop(card.features.pop())), "wrong_features");
    assert_eq!(reason(|card| card.features.swap(0, 1)), "wrong_features");
    for cut_off in [0.0, 1.0, -1.0, f32::NAN] {
        let mut card = card();
        card.cut_offs.bf16 = cut_off;
        assert_eq!(RewardModel::open(MODEL, card).unwrap_err().reason(), "bad_cut_off");
    }
    for text in ["", "{}", "[1, 2]", r#"{"card_version": "1"}"#] {
        assert_eq!(Card::from_json(text.as_bytes()).unwrap_err().reason(), "bad_card", "{text}");
    }
}

#[test]
fn damaged_models_are_refused_before_xgboost_sees_them() {
    assert!(forged(|_| ()).is_ok());
    for cut in [0, 1, 100, MODEL.len() / 2, MODEL.len() - 1] {
        assert_eq!(vouched(MODEL[..cut].to_vec()).unwrap_err().reason(), "damaged_model", "{cut} bytes");
    }
    assert_eq!(vouched(b"binf\0\0\0\0".to_vec()).unwrap_err().reason(), "damaged_model");
    assert_eq!(vouched(vec![b' '; MAX_MODEL_BYTES + 1]).unwrap_err().reason(), "model_too_large");
    let learner = "/learner/learner_model_param/num_feature";
    let reason = |place: &str, value: Value| {
        let forged = forged(|file| *file.pointer_mut(place).unwrap() = value.clone());
        forged.err().map_or("accepted", |error| error.reason())
    };
    assert_eq!(reason(learner, json!("16")), "wrong_features");
    assert_eq!(reason("/learner/learner_model_param/base_score", json!("9E-1")), "damaged_model");
    assert_eq!(reason("/learner/objective/name", json!("reg:squarederror")), "damaged_model");
    assert_eq!(reason("/learner/gradient_booster/name", json!("dart")), "damaged_model");
    assert_eq!(reason("/version/0", json!(2)), "damaged_model");
    assert_eq!(reason("/learner/gradient_booster/model/tree_info/0", json!(7)), "damaged_model");
    let tree = |part: &str| format!("/learner/gradient_booster/model/trees/0/{part}");
    for (part, value) in [
        ("left_children/0", json!(0)),
        ("left_children/0", json!(100_000)),
        ("left_children/0", json!(-7)),
        ("left_children/0", json!(2)),
        ("left_children/0", json!(-1)),
        ("right_children/0", json!(-1)),
        ("parents/0", json!(0)),
        ("parents/1", json!(3)),
        ("split_indices/0", json!(15)),
        ("split_indices", json!([0])),
        ("split_conditions/0", json!(null)),
        ("split_conditions/0", json!(1e39)),
        ("split_type/0", json!(1)),
        ("categories", json!([1])),
        ("tree_param/num_nodes", json!("3000000000")),
        ("tree_param/num_deleted", json!("1")),
        ("tree_param/num_feature", json!("99")),
    ] {
        assert_eq!(reason(&tree(part), value.clone()), "damaged_model", "{part} = {value}");
    }
}

#[test]
fn features_must_be_as_many_as_the_model_knows_and_whole() {
    assert!(PairFeatures::from_slice(&[0.0; FEATURES - 1]).is_none());
    assert!(PairFeatures::from_slice(&[0.0; FEATURES + 1]).is_none());
    let model = RewardModel::embedded();
    let judge = |pair: &PairFeatures| model.judge(pair, Drift::Lossy).unwrap();
    let equal = judge(&even(0.0));
    assert!(equal.same && equal.similarity() >= 0.5, "{equal:?}");
    for missing in 0..FEATURES {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [0.0; FEATURES];
            values[missing] = odd;
            let pair = PairFeatures::from_slice(&values).unwrap();
            let judged = judge(&pair);
            assert!(!judged.same && judged.similarity() < 0.5, "without {}: {judged:?}", NAMES[missing]);
        }
    }
    assert!(!judge(&even(0.0).without_pixels()).same);
}

#[test]
fn contributions_add_up_to_the_log_odds() {
    let model = RewardModel::embedded();
    for pair in [even(0.0), even(0.3), even(40.0)] {
        let (contributions, average) = model.contributions(&pair).unwrap();
        let sum: f32 = contributions.iter().sum::<f32>() + average;
        let probability = model.probabilities(&[pair]).unwrap()[0];
        assert!((1.0 / (1.0 + (-sum).exp()) - probability).abs() < 1e-4, "{sum} and {probability}");
    }
}

#[test]
fn one_seed_gives_one_model() {
    let dataset = Dataset::from_lines(PAIRS).unwrap();
    let recipe = Recipe { rounds: 5, ..Recipe::default() };
    let (file, card) = dataset.train(recipe).unwrap();
    assert_eq!(dataset.train(recipe).unwrap(), (file.clone(), card.clone()));
    let model = RewardModel::open(&file, card).unwrap();
    // Trained and loaded again: the same trees.
    let whole: Vec<PairFeatures> = dataset.pairs.iter().map(|pair| pair.features).collect();
    let scores = model.probabilities(&whole).unwrap();
    assert!(scores.iter().any(|p| *p > 0.6) && scores.iter().any(|p| *p < 0.4));
    assert_eq!(Dataset::from_lines(&dataset.to_lines()).unwrap(), dataset);
}

/// A small version of `argus reward eval`.
#[test]
fn the_model_tells_cheats_from_drift_better_than_each_baseline() {
    let dataset = Dataset::from_lines(PAIRS).unwrap();
    let report = evaluate(RewardModel::embedded(), &dataset).unwrap();
    let Areas { model, hashes, clip, average_hash, .. } = report.areas;
    assert!(model > hashes.max(clip).max(average_hash), "{:?}", report.areas);
    let honest: Vec<&Line> = report.lines.iter().filter(|line| line.same).collect();
    assert!(honest.len() >= 10);
    for line in honest {
        assert!(line.accepted.model.lossy > 0.95, "honest pairs fail: {line:?}");
    }
    for line in report.lines.iter().filter(|line| !line.same) {
        let Accepted { model, hashes, clip, average_hash } = line.accepted;
        for drift in Drift::ALL {
            assert!(model.of(drift) <= hashes.of(drift), "{line:?}");
        }
        assert!(model.f16 <= clip.min(average_hash), "{line:?}");
    }
}

#[test]
fn data_sets_of_other_features_or_with_too_little_are_refused() {
    let dataset = Dataset::from_lines(PAIRS).unwrap();
    let reason = |text: &str| Dataset::from_lines(text).unwrap_err().reason();
    assert_eq!(reason(""), "bad_line");
    assert_eq!(reason("{}"), "bad_line");
    let mut other = dataset.clone();
    other.header.features.reverse();
    assert_eq!(reason(&other.to_lines()), "wrong_features");
    let first: Vec<&str> = PAIRS.lines().take(2).collect();
    assert_eq!(reason(&format!("{}\n{}", first[0], &first[1][..30])), "bad_line");
    let short = first[1].replacen("\"features\":[", "\"features\":[0.5,", 1);
    assert_eq!(reason(&format!("{}\n{short}", first[0])), "bad_line");
    let lacking = |keep: fn(&LabelledPair) -> bool| {
        let pairs = dataset.pairs.iter().filter(|pair| keep(pair)).cloned().collect();
        Dataset { pairs, ..dataset.clone() }.train(Recipe::default()).unwrap_err().reason()
    };
    assert_eq!(lacking(|pair| pair.same), "too_few_pairs");
    assert_eq!(lacking(|pair| pair.held_out), "too_few_pairs");
}

#[test]
fn no_prompt_is_in_both_parts() {
    let dataset = Dataset::from_lines(PAIRS).unwrap();
    let of = |held_out: bool| {
        let part = dataset.pairs.iter().filter(move |pair| pair.held_out == held_out);
        part.map(|pair| pair.prompt).collect::<std::collections::BTreeSet<_>>()
    };
    assert!(!of(true).is_empty() && of(true).is_disjoint(&of(false)));
}

#[test]
fn the_area_counts_ties_half() {
    assert_eq!(area_under_curve(&[1.0, 2.0], &[0.0, 0.5]), 1.0);
    assert_eq!(area_under_curve(&[0.0], &[1.0]), 0.0);
    assert_eq!(area_under_curve(&[1.0, 1.0], &[1.0, 1.0]), 0.5);
    assert_eq!(area_under_curve(&[1.0, 3.0], &[1.0, 2.0]), (0.5 + 0.0 + 1.0 + 1.0) / 4.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// The invariant that adding to a distance never helps.
    #[test]
    fn further_apart_is_never_more_alike(
        values in proptest::array::uniform15(0.0f32..40.0),
        scale in 0.0f32..1.0,
        which in 0..FEATURES,
        more in 0.0f32..30.0,
    ) {
        let near = values.map(|value| value * scale * scale);
        let mut far = near;
        far[which] += more;
        let pairs = [PairFeatures::new(near), PairFeatures::new(far)];
        let found = RewardModel::embedded().probabilities(&pairs).unwrap();
        prop_assert!(found[1] <= found[0] + 1e-6, "{}: {found:?}", NAMES[which]);
    }
}
