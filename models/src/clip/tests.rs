//! The embedded CLIP model against the numbers of transformers.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::*;
use crate::device::DeviceKind;
use crate::embedded;
use crate::parity::assert_parity;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn clip() -> Clip {
    Clip::open(&embedded::find("clip-tiny").unwrap(), DeviceKind::Cpu, 2).unwrap()
}

fn picture(name: &str) -> RgbPicture {
    let bytes = std::fs::read(fixtures().join("pictures").join(name)).unwrap();
    RgbPicture::decode(&bytes, &Default::default()).unwrap()
}

#[track_caller]
fn assert_embeddings(name: &str, found: &[Vec<f32>], expected: &Tensor) {
    assert_eq!(found.len(), expected.dim(0).unwrap());
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_parity(name, &found.concat(), &expected);
}

#[test]
fn embeddings_are_those_of_transformers() {
    let fixture = candle_core::safetensors::load(fixtures().join("clip.fixture"), &Device::Cpu).unwrap();
    let clip = clip();
    let pictures = ["scene-64x64.png", "gradient-128x128.png", "scene-96x80.png"].map(picture);
    for (index, picture) in pictures.iter().enumerate() {
        let found: Vec<f32> =
            preprocess(picture, 64, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let expected: Vec<f32> =
            fixture["pixel_values"].get(index).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest <= 1e-6, "preprocessing of picture {index} differs by {largest}");
    }
    let found = clip.embed_pictures(&pictures).unwrap();
    assert_embeddings("pictures", &found, &fixture["image_embeds"]);
    let found = clip.embed_texts(&["a red apple", "a 3d icon of an octopus, cartoon"]).unwrap();
    assert_embeddings("texts", &found, &fixture["text_embeds"]);
}

#[test]
fn any_shape_of_picture_is_embedded() {
    let clip = clip();
    let strips = [(1, 1), (2000, 1), (1, 2000), (3, 700)]
        .map(|(width, height)| RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, 7]));
    let embeddings = clip.embed_pictures(&strips).unwrap();
    assert!(embeddings.iter().all(|embedding| embedding.len() == clip.width()));
    assert!(clip.embed_pictures(&[]).unwrap().is_empty());
}

#[test]
fn tokens_are_those_of_the_reference() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(fixtures().join("tokens.json")).unwrap()).unwrap();
    let clip = clip();
    assert!(cases.len() > 50);
    for case in cases {
        assert_eq!(clip.tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
    }
}

/// The tiny model of a published layout in a folder, and transformers' embeddings of the test pictures and texts.
fn published(name: &str) -> (Clip, std::collections::HashMap<String, Tensor>) {
    let path = fixtures().join(format!("vision/{name}.fixture"));
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weights =
        tensors.iter().filter_map(|(name, view)| Some((name.strip_prefix("model:")?.to_owned(), view)));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    std::fs::write(file, safetensors::serialize(weights, None).unwrap()).unwrap();
    for (name, text) in metadata.metadata().as_ref().unwrap() {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let clip = Clip::open(&ModelFiles::folder(folder.path()), DeviceKind::Cpu, 2).unwrap();
    let expected = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    (clip, expected)
}

#[test]
fn models_of_the_published_layouts_give_transformers_embeddings() {
    let pictures =
        ["chelsea-96x80.png", "scene-96x80.png", "gradient-128x128.png", "wide-200x50.png"].map(picture);
    for (name, edge) in [("clip-b32", 224), ("clip-l14-336", 336)] {
        let (clip, expected) = published(name);
        assert_eq!((clip.edge, clip.width()), (edge, 12));
        let found = clip.embed_pictures(&pictures).unwrap();
        assert_embeddings(name, &found, &expected["expected:image_embeds"]);
        let found = clip.embed_texts(&["a red apple", "on the table!"]).unwrap();
        assert_embeddings(name, &found, &expected["expected:text_embeds"]);
    }
}
