//! Depth Anything against transformers' numbers.

use std::path::Path;

use safetensors::{SafeTensors, tensor::TensorView};

use super::*;

const PICTURES: [&str; 3] = ["chelsea-96x80.png", "scene-64x64.png", "wide-200x50.png"];

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)).unwrap()
}

fn picture(name: &str) -> RgbPicture {
    RgbPicture::decode(&bytes(&format!("pictures/{name}")), &Default::default()).unwrap()
}

/// The fixture's model in a folder, with its config and names changed.
fn open(
    fixture: &[u8],
    config: impl Fn(&str) -> String,
    rename: impl Fn(&str) -> String,
) -> std::result::Result<DepthEstimator, LoadError> {
    let tensors = SafeTensors::deserialize(fixture).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(fixture).unwrap();
    let weights: Vec<(String, TensorView)> = tensors
        .iter()
        .filter_map(|(name, view)| Some((rename(name.strip_prefix("model:")?), view)))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let config = config(&metadata.metadata().as_ref().unwrap()["config.json"]);
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let weights = safetensors::serialize(weights, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    DepthEstimator::open(&ModelFiles::folder(folder.path()), 2)
}

fn assert_close(what: &str, found: &FeatureMap, expected: TensorView) {
    let found: Vec<f32> = found.to_channels_first().unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let expected: Vec<f32> =
        expected.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    crate::parity::assert_parity(what, &found, &expected);
}

#[test]
fn depth_is_that_of_transformers() {
    let fixture = bytes("depth.fixture");
    let tensors = SafeTensors::deserialize(&fixture).unwrap();
    let published = open(&fixture, str::to_owned, str::to_owned).unwrap();
    let renamed = [
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ];
    let today = |name: &str| renamed.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new));
    let saved_today = open(&fixture, str::to_owned, today).unwrap();
    for name in PICTURES {
        let picture = picture(name);
        let input = published.input(&picture).unwrap();
        let expected = |what: &str| tensors.tensor(&format!("{name}:{what}")).unwrap();
        if name == PICTURES[0] {
            assert_close(&format!("{name}, prepared"), &input, expected("pixel_values"));
        }
        let depth = published.forward(&input).unwrap();
        assert_close(&format!("{name}, depth"), &depth, expected("predicted_depth"));
        let control = published.estimate(&picture).unwrap();
        assert_eq!((control.width(), control.height()), (picture.width(), picture.height()));
        for (pixel, expected) in control.pixels().chunks_exact(3).zip(expected("grey").data()) {
            // Shares of the range are cut to whole steps, which may fall on either side of one.
            assert!(pixel[0].abs_diff(*expected) <= 1 && pixel == [pixel[0]; 3], "{name}");
        }
        assert_eq!(control, saved_today.estimate(&picture).unwrap());
    }
}

#[test]
fn every_shape_of_picture_is_seen_and_long_strips_cost_no_more() {
    let depth = open(&bytes("depth.fixture"), str::to_owned, str::to_owned).unwrap();
    for (width, height) in [(1, 1), (1, 300), (4096, 2), (300, 1200)] {
        let (across, down) = depth.resized(width, height);
        assert!(across.is_multiple_of(14) && down.is_multiple_of(14) && across > 0 && down > 0);
        assert!(u64::from(across / 14) * u64::from(down / 14) <= 2 * MAX_PATCHES, "{across}×{down}");
    }
    for (width, height) in [(1, 1), (1, 60), (300, 2)] {
        let flat = RgbPicture::from_fn(width, height, |_, _| [90, 120, 30]);
        let control = depth.estimate(&flat).unwrap();
        assert_eq!((control.width(), control.height()), (width, height));
    }
}

#[test]
fn models_of_other_kinds_are_refused() {
    let fixture = bytes("depth.fixture");
    let reason = |old: &str, new: &str| {
        let config = |config: &str| {
            assert!(config.contains(old), "{config}");
            config.replace(old, new)
        };
        open(&fixture, config, str::to_owned).err().map(|error| error.reason())
    };
    assert_eq!(reason("depth_anything", "dpt"), Some("unknown_architecture"));
    let metric = r#""depth_estimation_type": "metric", "model_type": "depth_anything""#;
    assert_eq!(reason(r#""model_type": "depth_anything""#, metric), Some("unknown_architecture"));
    assert_eq!(reason("[4, 6, 8, 8]", "[4, 6, 8]"), Some("unknown_architecture"));
    assert_eq!(reason("[1, 2, 4, 5]", "[1, 2, 4, 6]"), Some("unsuitable_weights"));
    assert_eq!(
        reason(r#""num_attention_heads": 2"#, r#""num_attention_heads": 0"#),
        Some("unsuitable_weights")
    );
    assert_eq!(reason(r#""patch_size": 14"#, r#""patch_size": 0"#), Some("unsuitable_weights"));
    assert_eq!(reason(r#""hidden_size": 16"#, r#""hidden_size": 32"#), Some("wrong_shape"));
    let without = |name: &str| name.replace("neck.convs.3", "neck.others.3");
    let error = open(&fixture, str::to_owned, without).err().unwrap();
    assert_eq!(error.reason(), "missing_tensor");
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let depth = open(&bytes("depth.fixture"), str::to_owned, str::to_owned).unwrap();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let input = depth.input(&picture(PICTURES[0])).unwrap();
        let map: Vec<f32> = pool
            .install(|| depth.forward(&input).unwrap().native().flatten_all().unwrap().to_vec1().unwrap());
        map.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(3));
}
