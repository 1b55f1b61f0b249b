//! `argus models` on the embedded family's own folder, as an operator uses it on a model from elsewhere.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// A registry file, and a copy of a model beside it.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/weights/argus-tiny");
        copy(&from, &root.path().join("dreamer"));
        Self { root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn models(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_argus"));
        command.args(["--json", "models"]).args(arguments);
        command.env("ARGUS_REGISTRY", self.at("models.toml")).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> Value {
        let output = self.models(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "argus models {arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.models(arguments);
        assert_eq!(output.status.code(), Some(1), "argus models {arguments:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        error["error"].as_str().unwrap().to_owned()
    }

    fn add(&self, extra: &[&str]) -> Value {
        let folder = self.at("dreamer").display().to_string();
        self.succeed(&[&["add", &folder, "--licence", "MIT"], extra].concat())
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => _ = std::fs::copy(&path, &target).unwrap(),
        }
    }
}

#[test]
fn a_model_is_added_verified_spoilt_and_removed() {
    let place = Place::new();
    let added = place.add(&[]);
    assert_eq!(
        (added["id"].as_str(), added["architecture"].as_str()),
        (Some("dreamer"), Some("stable-diffusion"))
    );
    let text = std::fs::read_to_string(place.at("models.toml")).unwrap();
    // It began as the built-in registry, with its comments, and paths are relative to it.
    assert!(text.starts_with("# The models that nodes of this network serve"), "{text}");
    assert!(text.contains("path = \"dreamer\""), "{text}");

    let listed = place.succeed(&["list"]);
    let entry = listed.as_array().unwrap().iter().find(|entry| entry["id"] == "dreamer").unwrap();
    let files = entry["files"].as_array().unwrap();
    assert!(
        files.len() >= 9 && files.iter().all(|file| file["blake3"].as_str().unwrap().len() == 64),
        "{entry}"
    );
    assert_eq!(place.succeed(&["verify", "dreamer"])[0]["ok"], true);
    assert!(place.succeed(&["verify"]).as_array().unwrap().len() > 1);

    let again = place.at("dreamer").display().to_string();
    assert!(place.fail(&["add", &again, "--licence", "MIT"]).contains("--replace"));
    place.add(&["--replace", "--work-units", "2.5"]);
    assert!(place.fail(&["fetch", "dreamer"]).contains("no `fetch`"));
    assert!(place.fail(&["verify", "nothing"]).contains("argus-tiny"));

    let weights = place.at("dreamer/unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    std::fs::remove_file(place.at("dreamer/vae/config.json")).unwrap();
    let output = place.models(&["verify", "dreamer"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let wrong = report[0]["wrong"].as_array().unwrap();
    let reasons: Vec<_> = wrong.iter().map(|file| file["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["wrong_hash", "missing_file"], "{report}");

    let removed = place.succeed(&["remove", "dreamer", "--files"]);
    assert!(removed["files_deleted"].as_u64().unwrap() >= 8, "{removed}");
    assert!(!weights.exists());
    let text = std::fs::read_to_string(place.at("models.toml")).unwrap();
    assert!(text.starts_with("# The models") && !text.contains("dreamer"), "{text}");
}

/// The configs and tokenizers that a fixture carries in its header, by their paths; not its index of parts.
fn texts(fixture: &Path) -> Vec<(String, String)> {
    let bytes = std::fs::read(fixture).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let header = &rest[..u64::from_le_bytes(*length) as usize];
    let header: Value = serde_json::from_slice(header).unwrap();
    let texts = header["__metadata__"].as_object().unwrap().iter();
    let texts = texts.filter(|(path, _)| *path != "model_index.json");
    texts.map(|(path, text)| (path.clone(), text.as_str().unwrap().to_owned())).collect()
}

/// A single-file checkpoint of tiny networks, with the configs of their size and a tokenizer beside it.
#[test]
fn a_checkpoint_of_one_file_is_added_by_its_path() {
    let place = Place::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures");
    let checkpoint = place.at("downloads/Dream Shaper.safetensors");
    for (path, text) in texts(&fixtures.join("layouts/sd15.fixture")) {
        std::fs::create_dir_all(place.at("downloads").join(&path).parent().unwrap()).unwrap();
        std::fs::write(place.at("downloads").join(path), text).unwrap();
    }
    std::fs::copy(fixtures.join("checkpoints/sd15.fixture"), &checkpoint).unwrap();
    std::fs::write(place.at("downloads/another.safetensors"), b"").unwrap();
    let added = place.succeed(&["add", &checkpoint.display().to_string(), "--licence", "MIT"]);
    assert_eq!(
        (added["id"].as_str(), added["architecture"].as_str()),
        (Some("dream-shaper"), Some("stable-diffusion"))
    );
    let entry = added["entry"].as_str().unwrap();
    assert!(entry.contains("Dream Shaper.safetensors") && !entry.contains("another"), "{entry}");
    assert_eq!(place.succeed(&["verify", "dream-shaper"])[0]["ok"], true);
}

#[test]
fn what_cannot_be_added_says_what_to_do() {
    let place = Place::new();
    let folder = place.at("dreamer").display().to_string();
    assert!(place.fail(&["add", &folder]).contains("--licence"));
    assert!(place.fail(&["add", "/nowhere"]).contains("/nowhere"));
    std::fs::write(place.at("dreamer/README.md"), "---\nlicense: openrail++\ntags: []\n---\n").unwrap();
    let shown = place.succeed(&["add", &folder, "--dry-run"]);
    assert!(shown["entry"].as_str().unwrap().contains("licence = \"openrail++\""), "{shown}");
    assert!(!place.at("models.toml").exists());

    let checkpoint = place.at("model.ckpt");
    std::fs::write(&checkpoint, b"PK\x03\x04").unwrap();
    let said = place.fail(&["add", &checkpoint.display().to_string(), "--licence", "MIT"]);
    assert!(said.contains("convert_checkpoint.py"), "{said}");
    assert!(place.fail(&["remove", "argus-tiny"]).contains("models.toml"));
}
