//! The safety checker against diffusers' scores and verdicts.

use std::path::Path;

use safetensors::{SafeTensors, tensor::TensorView};

use super::*;
use crate::device::DeviceKind;

const PICTURES: [&str; 4] =
    ["chelsea-96x80.png", "scene-96x80.png", "gradient-128x128.png", "wide-200x50.png"];

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)).unwrap()
}

/// The fixture's files in a folder, with names of tensors as `rename` gives them, below `part`.
fn folder(fixture: &[u8], part: &str, rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let tensors = SafeTensors::deserialize(fixture).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(fixture).unwrap();
    let weights: Vec<(String, TensorView)> = tensors
        .iter()
        .filter_map(|(name, view)| Some((rename(name.strip_prefix("model:")?), view)))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join(part);
    std::fs::create_dir_all(&inner).unwrap();
    std::fs::write(inner.join("config.json"), &metadata.metadata().as_ref().unwrap()["config.json"]).unwrap();
    std::fs::write(inner.join("model.safetensors"), safetensors::serialize(weights, None).unwrap()).unwrap();
    folder
}

fn expected(fixture: &[u8], name: &str) -> Vec<Vec<f32>> {
    let view = SafeTensors::deserialize(fixture).unwrap();
    let view = view.tensor(&format!("expected:{name}")).unwrap();
    let values: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks(values.len() / PICTURES.len()).map(<[f32]>::to_vec).collect()
}

#[test]
fn scores_and_verdicts_are_those_of_diffusers() {
    let fixture = bytes("vision/safety-checker.fixture");
    let as_published = folder(&fixture, "", str::to_owned);
    let as_saved_today =
        folder(&fixture, "safety_checker", |name| name.replace("vision_model.vision_model", "vision_model"));
    for folder in [as_published, as_saved_today] {
        let files = ModelFiles::folder(folder.path());
        let checker = SafetyChecker::open(&files, DeviceKind::Cpu, 2).unwrap();
        let model = crate::nsfw::NsfwModel::open(&files, DeviceKind::Cpu, 1).unwrap();
        let mut verdicts = Vec::new();
        for (index, name) in PICTURES.iter().enumerate() {
            let picture =
                RgbPicture::decode(&bytes(&format!("pictures/{name}")), &Default::default()).unwrap();
            let scores = checker.classify(&picture).unwrap();
            let special = &expected(&fixture, "special_scores")[index];
            let concepts = &expected(&fixture, "concept_scores")[index];
            assert_eq!((scores.special_care.len(), scores.concepts.len()), (special.len(), concepts.len()));
            let pairs = scores.special_care.iter().zip(special).chain(scores.concepts.iter().zip(concepts));
            for (ours, expected) in pairs {
                // Both are rounded to thousandths, which may fall on either side of a half.
                assert!((ours - expected).abs() < 1.1e-3, "{name}: {ours} against {expected}");
            }
            let is_nsfw = expected(&fixture, "unsafe")[index][0] == 1.0;
            assert_eq!(scores.is_nsfw(), is_nsfw, "{name}");
            verdicts.push(is_nsfw);

            let opinion = model.classify(&picture).unwrap();
            assert_eq!((opinion.is_nsfw, opinion.probability), (is_nsfw, f32::from(u8::from(is_nsfw))));
            assert_eq!(opinion.classes[0].name, "special-care-0");
            assert_eq!(opinion.classes[special.len()].score, scores.concepts[0]);
        }
        assert!(verdicts.contains(&true) && verdicts.contains(&false));
    }
}

#[test]
fn embeddings_before_rounding_are_those_of_transformers() {
    let fixture = bytes("vision/safety-checker.fixture");
    let folder = folder(&fixture, "", str::to_owned);
    let checker = SafetyChecker::open(&ModelFiles::folder(folder.path()), DeviceKind::Cpu, 1).unwrap();
    for (name, expected) in PICTURES.iter().zip(expected(&fixture, "embeds")) {
        let picture = RgbPicture::decode(&bytes(&format!("pictures/{name}")), &Default::default()).unwrap();
        let input = clip::preprocess(&picture, checker.edge, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let found: Vec<f32> = checker.vision.forward(&input).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
        crate::parity::assert_parity(name, &found, &expected);
    }
}

#[test]
fn checkers_that_do_not_fit_their_config_are_refused() {
    let fixture = bytes("vision/safety-checker.fixture");
    let open = |folder: &tempfile::TempDir| {
        SafetyChecker::open(&ModelFiles::folder(folder.path()), DeviceKind::Cpu, 1)
            .err()
            .map(|error| error.reason())
    };
    let without_concepts = folder(&fixture, "", |name| name.replace("concept_embeds", "concepts"));
    assert_eq!(open(&without_concepts), Some("unsuitable_weights"));
    let without_thresholds =
        folder(&fixture, "", |name| name.replace("special_care_embeds_weights", "thresholds"));
    assert_eq!(open(&without_thresholds), Some("missing_tensor"));
    let other = folder(&fixture, "", str::to_owned);
    std::fs::write(other.path().join("config.json"), "{}").unwrap();
    assert_eq!(open(&other), Some("bad_config"));
}
