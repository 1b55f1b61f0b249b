use super::*;
use crate::diffusion::{Generate, GenerateError, Start};
use crate::tokenizer::MAX_PROMPT_BYTES;

fn request() -> Generate {
    Generate {
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        steps: 20,
        guidance: 4.0,
        seed: 1,
        start: Start::Noise,
        controls: Vec::new(),
    }
}

#[test]
fn the_default_registry_is_sound() {
    let registry = Registry::default();
    let tiny = registry.get("argus-tiny").unwrap();
    assert!(tiny.serves(ModelTask::TextToImage));
    assert_eq!(tiny.pictures.unwrap().steps.default, 20);
    assert_eq!(tiny.component, Component::EMBEDDED);
    tiny.check(&request()).unwrap();
    assert!((tiny.picture_work(64, 64, 40) - 2.0).abs() < 1e-12);
    assert_eq!(registry.first_for(ModelTask::ImageEmbedding).unwrap().id.as_str(), "clip-tiny");
    assert!(registry.get("nothing").is_none());
}

#[test]
fn requests_outside_the_ranges_name_the_field_and_what_is_allowed() {
    let registry = Registry::default();
    let spec = registry.get("argus-tiny").unwrap();
    let cases: [(&str, Generate); 6] = [
        ("width", Generate { width: 128, ..request() }),
        ("height", Generate { height: 0, ..request() }),
        ("steps", Generate { steps: 51, ..request() }),
        ("guidance", Generate { guidance: f32::NAN, ..request() }),
        ("prompt", Generate { prompt: "x".repeat(MAX_PROMPT_BYTES + 1), ..request() }),
        ("negative_prompt", Generate { negative_prompt: "x".repeat(MAX_PROMPT_BYTES + 1), ..request() }),
    ];
    for (expected, request) in cases {
        match spec.check(&request).unwrap_err() {
            GenerateError::Invalid { field, .. } => assert_eq!(field, expected),
            other => panic!("{other}"),
        }
    }
    let error = spec.check(&Generate { steps: 51, ..request() }).unwrap_err();
    assert_eq!(error.to_string(), "steps is 51, but it must be 1 to 50");
    assert!(registry.get("clip-tiny").unwrap().check(&request()).is_err());
}

#[test]
fn unknown_keys_are_refused_with_their_line() {
    let text = DEFAULT_REGISTRY.replacen("licence = \"MIT\"", "license = \"MIT\"", 1);
    let line = text.lines().position(|line| line.starts_with("license")).unwrap() + 1;
    let error = Registry::from_toml(&text).unwrap_err();
    assert_eq!(error.reason(), "bad_registry");
    assert!(error.to_string().contains(&format!("line {line}")), "{error}");
    assert!(error.to_string().contains("did you mean `licence`?"), "{error}");
}

#[test]
fn unsound_models_are_refused() {
    let cases = [
        ("id = \"argus-tiny\"", "id = \"Argus Tiny\"", "no model id"),
        ("id = \"argus-tiny\"", "id = \"clip-tiny\"", "twice"),
        ("id = \"argus-tiny\"", "id = \"argus-huge\"", "embedded"),
        ("source = \"embedded\"", "path = \"a\"\nsource = \"embedded\"", "either source"),
        ("tasks = [\"text-to-image\"]", "tasks = []", "tasks must be"),
        ("tasks = [\"text-to-image\"]", "tasks = [\"image-embedding\"]", "tasks must be"),
        ("max = 50, default = 20", "max = 50, default = 60", "default"),
        ("max = 64, multiple_of = 64", "max = 64, multiple_of = 0", "size"),
        ("max = 12.0", "max = inf", "guidance"),
        ("work_units = 1.0", "work_units = nan", "work_units"),
        ("timeout_seconds = 20", "timeout_seconds = 0", "timeout_seconds"),
    ];
    for (old, new, expected) in cases {
        let text = DEFAULT_REGISTRY.replacen(old, new, 1);
        assert_ne!(text, DEFAULT_REGISTRY, "{old}");
        let error = Registry::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{new}: {error}");
    }
}

#[test]
fn a_folder_may_stand_for_embedded_weights() {
    let text = DEFAULT_REGISTRY.replacen("source = \"embedded\"", "path = \"models/sd15\"", 1);
    let registry = Registry::from_toml(&text).unwrap();
    assert_eq!(
        registry.get("argus-tiny").unwrap().component.source,
        ModelSource::Folder("models/sd15".into())
    );
}
