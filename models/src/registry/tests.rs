use super::*;
use crate::device::DeviceKind;
use crate::diffusion::{Control, ControlKind, Generate, GenerateError, Pipeline, SchedulerKind, Start};
use crate::loader::ModelFiles;
use crate::picture::RgbPicture;
use crate::tokenizer::MAX_PROMPT_BYTES;
use crate::verified;

fn request() -> Generate {
    Generate {
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 128,
        height: 128,
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
    assert!((tiny.picture_work(128, 128, 40) - 2.0).abs() < 1e-12);
    assert_eq!(registry.first_for(ModelTask::ImageEmbedding).unwrap().id.as_str(), "clip-tiny");
    assert!(registry.get("nothing").is_none());
}

#[test]
fn requests_outside_the_ranges_name_the_field_and_what_is_allowed() {
    let registry = Registry::default();
    let spec = registry.get("argus-tiny").unwrap();
    let cases: [(&str, Generate); 6] = [
        ("width", Generate { width: 64, ..request() }),
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
        ("id = \"argus-tiny-inpaint\"", "id = \"clip-tiny\"", "twice"),
        ("id = \"argus-tiny\"", "id = \"argus-huge\"", "embedded"),
        ("source = \"embedded\"", "path = \"a\"\nsource = \"embedded\"", "either source"),
        ("tasks = [\"inpaint\", \"uncrop\"]", "tasks = []", "tasks must be"),
        ("tasks = [\"inpaint\", \"uncrop\"]", "tasks = [\"image-embedding\"]", "tasks must be"),
        ("max = 50, default = 20", "max = 50, default = 60", "default"),
        ("max = 128, multiple_of = 128", "max = 128, multiple_of = 0", "size"),
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

/// An entry with everything that an entry can have.
const WHOLE: &str = r#"
[[model]]
id = "dreamer"
architecture = "stable-diffusion"
path = "models/dreamer"
licence = "openrail"
tasks = ["text-to-image", "image-to-image", "scribble"]
size = { min = 256, max = 1024, multiple_of = 64, default = 512 }
steps = { min = 1, max = 50, default = 25 }
guidance = { min = 0.0, max = 12.0, default = 7.0 }
strength = { min = 0.1, max = 1.0, default = 0.7 }
scheduler = "dpm++-2m-karras"
work_units = 1600.0
timeout_seconds = 30
memory_mib = 4096
verification = "compare"
numerics = { dtype = "bf16", attention = "flash" }
fetch = { hub = "somebody/dreamer", revision = "0123456789abcdef0123456789abcdef01234567" }
files = [
    { path = "unet/config.json", size = 12, blake3 = "1111111111111111111111111111111111111111111111111111111111111111" },
    { path = "unet/model.safetensors", size = 34, blake3 = "2222222222222222222222222222222222222222222222222222222222222222", member = "half/unet.safetensors" },
]
loras = [{ path = "loras/detail.safetensors", scale = -0.5, size = 5, blake3 = "3333333333333333333333333333333333333333333333333333333333333333" }]

[model.controls.scribble]
path = "/srv/scribble"
fetch = { pypi = "scribbles", version = "1.0", sha256 = "4444444444444444444444444444444444444444444444444444444444444444" }
files = [{ path = "config.json", size = 6, blake3 = "5555555555555555555555555555555555555555555555555555555555555555" }]
"#;

#[test]
fn an_entry_says_everything_about_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.toml");
    std::fs::write(&path, WHOLE).unwrap();
    let registry = Registry::open(&path).unwrap();
    let spec = registry.get("dreamer").unwrap();
    assert_eq!(spec.component.folder().unwrap(), folder.path().join("models/dreamer"));
    assert_eq!(spec.component.files[1].member.as_deref(), Some("half/unet.safetensors"));
    assert_eq!(spec.component.files[1].blake3, Blake3Hash([0x22; 32]));
    let scribble = &spec.controls[&ControlKind::Scribble];
    assert_eq!(scribble.folder().unwrap(), Path::new("/srv/scribble"));
    assert!(matches!(scribble.origin.as_ref().unwrap().place, OriginPlace::PyPi { .. }));
    assert_eq!(spec.loras[0].component.folder().unwrap(), folder.path().join("loras"));
    assert_eq!((spec.loras[0].file.as_str(), spec.loras[0].scale), ("detail.safetensors", -0.5));
    assert_eq!((spec.memory, spec.pictures.unwrap().strength.default), (Some(4096 << 20), 0.7));
    assert!(!spec.numerics.is_exact());
    assert_eq!(spec.scheduler, Some(SchedulerKind::DpmMultistepKarras));
    let parts: Vec<String> = spec.parts().iter().map(|(part, _)| part.to_string()).collect();
    assert_eq!(parts, ["model", "control scribble", "LoRA 1"]);
}

#[test]
fn entries_that_contradict_themselves_are_refused() {
    let cases = [
        ("\"unet/config.json\"", "\"../config.json\"", "no path inside"),
        ("\"unet/config.json\"", "\"/etc/config.json\"", "no path inside"),
        ("\"unet/config.json\"", "\"unet//config.json\"", "no path inside"),
        ("\"unet/config.json\"", "\"unet\\\\config.json\"", "no path inside"),
        ("\"unet/config.json\"", "\"unet/model.safetensors\"", "listed twice"),
        ("\"half/unet.safetensors\"", "\"../../unet.safetensors\"", "no path inside"),
        ("size = 12", "size = 99999999999999", "more than"),
        ("blake3 = \"11", "blake3 = \"x1", "hexadecimal"),
        ("blake3 = \"11", "blake3 = \"1", "hexadecimal"),
        ("revision = \"0123456789abcdef0123456789abcdef01234567\"", "revision = \"main\"", "branches move"),
        ("hub = \"somebody/dreamer\", revision", "npm = \"somebody\", revision", "fetch must have"),
        ("hub = \"somebody/dreamer\"", "hub = \"some body?x=/..\"", "no name"),
        ("pypi = \"scribbles\"", "pypi = \"../scribbles\"", "no name"),
        ("size = 5, ", "", "size and blake3"),
        ("loras/detail.safetensors", "loras/detail.ckpt", "no safetensors file"),
        ("scale = -0.5", "scale = nan", "scale"),
        ("\"image-to-image\", \"scribble\"", "\"image-to-image\"", "go together"),
        ("\"image-to-image\", \"scribble\"", "\"canny\", \"scribble\"", "go together"),
        ("dtype = \"bf16\", attention = \"flash\"", "dtype = \"f16\", attention = \"portable\"", "f32 alone"),
        ("dtype = \"bf16\", attention", "dtype = \"bf16\", atention", "did you mean `attention`?"),
        (
            "numerics = { dtype = \"bf16\", attention = \"flash\" }",
            "numerics = \"device-f61\"",
            "did you mean `device-f16`?",
        ),
        ("strength = { min = 0.1", "strength = { min = 0.0", "strength"),
        ("\"dpm++-2m-karras\"", "\"dpm++-2m-karas\"", "did you mean `dpm++-2m-karras`?"),
        ("memory_mib = 4096", "memory_mib = 17592186044416", "memory_mib"),
        ("memory_mib = 4096", "upscale = { factors = [2], max_edge = 512 }", "models that upscale"),
        ("[model.controls.scribble]", "[model.controls.scribbel]", "did you mean `scribble`?"),
        ("path = \"/srv/scribble\"", "source = \"embedded\"", "not embedded"),
        ("path = \"models/dreamer\"", "path = \"\"", "either source"),
    ];
    Registry::from_toml(WHOLE).unwrap();
    for (old, new, expected) in cases {
        let text = WHOLE.replacen(old, new, 1);
        assert_ne!(text, WHOLE, "{old}");
        let error = Registry::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{new}: {error}");
    }
}

#[test]
fn numerics_profiles_have_names_or_are_tables() {
    for (text, expected) in [
        ("\"portable-f32\"", Numerics::PORTABLE_F32),
        ("\"device-f16\"", Numerics::DEVICE_F16),
        ("\"device-bf16\"", Numerics::DEVICE_BF16),
        ("{ dtype = \"f32\", attention = \"portable\", noise = \"philox4x32-10\" }", Numerics::PORTABLE_F32),
        (
            "{ dtype = \"f32\", attention = \"device\" }",
            Numerics { attention: Attention::Device, ..Numerics::PORTABLE_F32 },
        ),
    ] {
        let text = WHOLE.replacen("{ dtype = \"bf16\", attention = \"flash\" }", text, 1);
        assert_eq!(Registry::from_toml(&text).unwrap().models()[0].numerics, expected);
    }
    assert_eq!(serde_json::to_value(Numerics::DEVICE_F16).unwrap(), "device-f16");
    let flash = Numerics { attention: Attention::Flash, ..Numerics::DEVICE_F16 };
    assert_eq!(serde_json::to_value(flash).unwrap()["attention"], "flash");
}

#[test]
fn what_steers_a_picture_must_be_served() {
    let registry = Registry::from_toml(WHOLE).unwrap();
    let spec = registry.get("dreamer").unwrap();
    let picture = RgbPicture::from_fn(64, 64, |_, _| [0; 3]);
    let base = Generate { width: 512, height: 512, ..request() };
    let control = |kind, scale| Control { kind, picture: picture.clone(), is_prepared: false, scale };
    let with = |controls| Generate { controls, ..base.clone() };
    spec.check(&with(vec![control(ControlKind::Scribble, 1.0)])).unwrap();
    let field = |request: &Generate| match spec.check(request).unwrap_err() {
        GenerateError::Invalid { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(&with(vec![control(ControlKind::Depth, 1.0)])), "control");
    assert_eq!(field(&with(vec![control(ControlKind::Scribble, 0.0)])), "control scale");
    assert_eq!(field(&with(vec![control(ControlKind::Scribble, f32::NAN)])), "control scale");
    assert_eq!(field(&with(vec![control(ControlKind::Scribble, 1.0); 5])), "controls");
    let start = |strength| Start::Picture { picture: picture.clone(), strength };
    spec.check(&Generate { start: start(0.5), ..base.clone() }).unwrap();
    assert_eq!(field(&Generate { start: start(0.05), ..base.clone() }), "strength");
    assert_eq!(field(&Generate { start: start(f32::NAN), ..base.clone() }), "strength");
}

#[test]
fn files_are_what_is_pinned_or_they_are_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("unet/config.json", b"{\"a\": 1}");
    write("unet/extra.json", b"{}");
    let pin = FilePin {
        path: "unet/config.json".into(),
        size: 8,
        blake3: verified::blake3_of(b"{\"a\": 1}"),
        member: None,
    };
    let component =
        Component { source: ModelSource::Folder(folder.path().to_owned()), files: vec![pin], origin: None };
    let id: ModelId = "dreamer".parse().unwrap();
    let files = ModelFiles::pinned(&id, &component).unwrap();
    assert_eq!(files.read("unet/config.json", 100).unwrap(), b"{\"a\": 1}");
    assert!(!files.contains("unet/extra.json"));
    assert_eq!(files.read("unet/extra.json", 100).unwrap_err().reason(), "missing_file");

    write("unet/config.json", b"{\"a\": 2}");
    let error = files.read("unet/config.json", 100).unwrap_err();
    assert_eq!(error.reason(), "wrong_hash");
    assert!(error.to_string().contains("argus models add --replace"), "{error}");
    write("unet/config.json", b"{\"a\": 10}");
    assert_eq!(files.read("unet/config.json", 100).unwrap_err().reason(), "wrong_size");
    std::fs::remove_file(folder.path().join("unet/config.json")).unwrap();
    assert!(files.contains("unet/config.json"));
    let error = files.read("unet/config.json", 100).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");

    let revision = "0".repeat(40);
    let origin = Origin { place: OriginPlace::Hub { repository: "a/b".into(), revision } };
    let files = ModelFiles::pinned(&id, &Component { origin: Some(origin), ..component }).unwrap();
    let error = files.read("unet/config.json", 100).unwrap_err().to_string();
    assert!(error.contains("`argus models fetch dreamer`"), "{error}");
}

fn weights(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights").join(folder)
}

/// A copy of a model's folder that a test may spoil.
fn copy_of(folder: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in inspect(&weights(folder)).unwrap().files {
        let target = copy.path().join(&file);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(weights(folder).join(&file), target).unwrap();
    }
    copy
}

#[test]
fn looking_at_a_folder_finds_its_architecture_files_and_limits() {
    let found = inspect(&weights("argus-tiny")).unwrap();
    assert_eq!(found.architecture, Architecture::StableDiffusion);
    assert!(found.tasks.contains(&ModelTask::TextToImage) && found.tasks.contains(&ModelTask::Inpaint));
    for file in ["model_index.json", "tokenizer/tokenizer.json", "vae/diffusion_pytorch_model.safetensors"] {
        assert!(found.files.iter().any(|known| known == file), "{file}");
    }
    let limits = found.pictures.unwrap();
    assert!(limits.size.contains(limits.size.default) && limits.size.default >= 64);
    assert!(limits.size.default.is_multiple_of(limits.size.multiple_of));
    assert!((0.5..50.0).contains(&found.work_units), "{}", found.work_units);
    // Its numbers take at least twice their size in f16.
    assert!(found.memory > 2 * 20_000_000 && found.memory < 1 << 30, "{}", found.memory);

    let upscaler = inspect(&weights("upscale-x4")).unwrap();
    assert_eq!(
        (upscaler.architecture, upscaler.tasks.as_slice()),
        (Architecture::Upscaler, &[ModelTask::Upscale][..])
    );
    assert_eq!(upscaler.upscale.unwrap().factors, [2, 4]);
    assert_eq!(upscaler.files, ["config.json", "model.safetensors"]);
    let classifier = inspect(&weights("nsfw-mobilenetv2")).unwrap();
    assert_eq!(classifier.architecture, Architecture::NsfwClassifier);
    assert_eq!(classifier.files, ["model.safetensors"]);

    let clip = inspect(&weights("clip")).unwrap();
    assert_eq!((clip.architecture, clip.pictures), (Architecture::Clip, None));
    assert!(clip.files.contains(&"model.safetensors".to_owned()));
}

#[test]
fn what_is_found_opens_under_its_hashes() {
    let folder = copy_of("argus-tiny");
    let pin = |path: &String| {
        let (size, blake3) = verified::measure(&folder.path().join(path)).unwrap();
        FilePin { path: path.clone(), size, blake3, member: None }
    };
    let component = Component {
        source: ModelSource::Folder(folder.path().to_owned()),
        files: inspect(folder.path()).unwrap().files.iter().map(pin).collect(),
        origin: None,
    };
    let files = ModelFiles::pinned(&"tiny".parse().unwrap(), &component).unwrap();
    Pipeline::open(&files, DeviceKind::Cpu, 2).unwrap();
    // One bit of one weight.
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Pipeline::open(&files, DeviceKind::Cpu, 2).map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), "wrong_hash");
    assert!(error.to_string().contains("unet/diffusion_pytorch_model.safetensors"), "{error}");
}

#[test]
fn folders_that_are_no_models_are_refused_with_what_to_do() {
    let refuse = |folder: &Path| inspect(folder).map(|_| ()).unwrap_err();
    let unet = "unet/diffusion_pytorch_model.safetensors";
    let spoilt = |path: &str, spoil: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let folder = copy_of("argus-tiny");
        let bytes = std::fs::read(folder.path().join(path)).unwrap();
        std::fs::write(folder.path().join(path), spoil(bytes)).unwrap();
        refuse(folder.path())
    };
    let replaced = |path: &str, old: &str, new: &str| {
        spoilt(path, &|bytes| String::from_utf8(bytes).unwrap().replacen(old, new, 1).into_bytes())
    };
    let cut = |len: usize| move |bytes: Vec<u8>| bytes[..bytes.len().min(len)].to_vec();
    for (error, reason, said) in [
        (refuse(Path::new("/nowhere")), "unreadable", "/nowhere"),
        (refuse(Path::new("model.ckpt")), "pickled", "convert_checkpoint.py model.ckpt"),
        (spoilt(unet, &cut(5)), "malformed_weights", "fetch it again"),
        (spoilt(unet, &cut(1_000_000)), "malformed_weights", "fetch it again"),
        (spoilt(unet, &cut(0)), "malformed_weights", "fetch it again"),
        (spoilt(unet, &|_| b"PK\x03\x04 archive/data.pkl".to_vec()), "pickled", "convert_checkpoint.py"),
        (spoilt(unet, &|_| b"\x80\x02}q\x00X\x05\x00\x00\x00".to_vec()), "pickled", "whatever its name"),
        (spoilt(unet, &|_| b"<!DOCTYPE html><html>".to_vec()), "header_too_large", "header"),
        (
            replaced("model_index.json", "StableDiffusionPipeline", "FluxPipeline"),
            "unknown_architecture",
            "Flux",
        ),
        (replaced("model_index.json", "{", "{{"), "bad_config", "model_index.json"),
        (spoilt("unet/config.json", &|_| vec![b' '; 2 << 20]), "file_too_large", "unet/config.json"),
        (
            replaced("unet/config.json", "\"sample_size\": 16", "\"sample_size\": 4000"),
            "bad_config",
            "allowed",
        ),
    ] {
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }

    let folder = copy_of("argus-tiny");
    let pickle = folder.path().join("vae/diffusion_pytorch_model.bin");
    std::fs::rename(folder.path().join("vae/diffusion_pytorch_model.safetensors"), pickle).unwrap();
    let error = refuse(folder.path()).to_string();
    assert!(error.contains("convert_checkpoint.py") && error.contains("vae/"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"_class_name": "ControlNetModel"}"#).unwrap();
    assert!(refuse(folder.path()).to_string().contains("--control"));
    assert_eq!(inspect_control(folder.path()).unwrap_err().reason(), "missing_weights");
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert_eq!(refuse(folder.path()).reason(), "unknown_architecture");
    assert_eq!(inspect_control(folder.path()).unwrap_err().reason(), "unknown_architecture");
}

#[test]
fn weights_of_another_architecture_than_their_config_are_refused() {
    let folder = copy_of("argus-tiny");
    let (vae, unet) = ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors");
    std::fs::copy(folder.path().join(vae), folder.path().join(unet)).unwrap();
    let files = ModelFiles::folder(folder.path());
    let error = Pipeline::open(&files, DeviceKind::Cpu, 1).map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), "missing_tensor");
    assert!(error.to_string().contains("another architecture"), "{error}");
}
