//! What real models come with besides the layouts of [`super::layout_tests`]: weighted and long prompts,
//! LoRAs, and checkpoints of one file, against transformers and diffusers
//! (`models/training/fixtures/prompts.py`, `lora.py`, `checkpoints.py`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::IndexOp;
use safetensors::SafeTensors;
use tempfile::TempDir;

use super::layout_tests::{Layout, Packing, compare, write};
use super::tests::{assert_close, keep_going};
use super::*;
use crate::device::DeviceKind;
use crate::layers::FeatureMap;
use crate::lora::MAX_LORA_SCALE;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn layout(name: &str) -> Layout {
    Layout::unpack_from("layouts", name, Packing::Whole)
}

fn open(files: &ModelFiles) -> Pipeline {
    Pipeline::open(files, DeviceKind::Cpu, 2).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn weighted_and_long_prompts_are_those_of_the_reference() {
    let bytes = std::fs::read(fixtures().join("prompts/prompts.fixture")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases: BTreeMap<String, (String, String)> =
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let expected = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    assert!(cases.len() >= 5);
    for model in ["sd15", "sd21", "sdxl"] {
        let pipeline = open(&layout(model).files());
        for (case, (prompt, negative)) in &cases {
            let name = format!("{model}.{case}");
            let features = pipeline.prompts.encode(&[negative, prompt]).unwrap();
            let context = &expected[&format!("{name}.context")];
            assert_eq!(features.context.dims(), context.dims(), "{name}");
            // The negative prompt and the prompt each by itself, so that neither hides in the other.
            for row in 0..2 {
                let (found, context) = (features.context.i(row).unwrap(), context.i(row).unwrap());
                assert_close(&name, &values(&found), &values(&context));
            }
            if let Some(pooled) = expected.get(&format!("{name}.pooled")) {
                assert_close(&format!("{name}, pooled"), &values(&features.pooled), &values(pooled));
            }
        }
    }
}

#[test]
fn a_plain_prompt_is_encoded_as_if_there_were_no_weights() {
    let pipeline = open(&layout("sdxl").files());
    let encode = |prompts: &[&str]| pipeline.prompts.encode(prompts).unwrap();
    let plain = encode(&["a red apple", ""]);
    assert_eq!(plain.context.dims(), [2, 77, 20]);
    let escaped = encode(&["([a red apple])", "()"]);
    assert_eq!(values(&plain.context), values(&escaped.context));
    assert_eq!(values(&plain.pooled), values(&escaped.pooled));
    // Beside a longer prompt it has more windows, of which the first is the same to the bit.
    let long = "a red apple on the table, ".repeat(20);
    let beside = encode(&["a red apple", &long]);
    assert!(beside.context.dim(1).unwrap() > 77);
    let first = |features: &PromptFeatures| values(&features.context.i((0, ..77)).unwrap());
    assert_eq!(first(&beside), first(&plain));
    let endless = encode(&["🍎".repeat(crate::tokenizer::MAX_PROMPT_BYTES / 4).as_str()]);
    assert_eq!(endless.context.dim(1).unwrap(), 77 * prompt::MAX_PROMPT_WINDOWS);
}

#[test]
fn long_and_weighted_prompts_make_pictures() {
    let pipeline = open(&layout("sdxl").files());
    let request = |prompt: &str, negative: &str| Generate {
        prompt: prompt.into(),
        negative_prompt: negative.into(),
        width: 32,
        height: 32,
        steps: 2,
        guidance: 2.0,
        seed: 1,
        start: Start::Noise,
        controls: Vec::new(),
    };
    let make = |prompt: &str, negative: &str| {
        pipeline.generate(&request(prompt, negative), &mut keep_going).unwrap()
    };
    let plain = make("a red apple", "blurry");
    assert_ne!(plain, make("a (red:1.5) apple", "blurry"));
    assert_ne!(plain, make("a red apple", "(blurry:1.8)"));
    assert_ne!(plain, make(&"a red apple on the table, ".repeat(10), "blurry"));
}

struct LoraCase {
    layout: Layout,
    expected: HashMap<String, Tensor>,
    name: &'static str,
}

impl LoraCase {
    fn new(model: &str, name: &'static str) -> Self {
        let path = fixtures().join("lora/expected.fixture");
        let expected = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        Self { layout: layout(model), expected, name }
    }

    fn files(&self, scale: f32) -> Result<ModelFiles, LoadError> {
        let lora = ModelFiles::folder(fixtures().join("lora"));
        self.layout.files().with_lora(&lora, &format!("{}.safetensors", self.name), scale)
    }

    fn unet(&self, pipeline: &Pipeline) -> (Tensor, Vec<f32>) {
        let features = pipeline.prompts.encode(&["a red apple, on the table!"]).unwrap();
        let text = TextConditioning {
            context: &features.context,
            pooled: &features.pooled,
            size: [32.0, 32.0, 0.0, 0.0, 32.0, 32.0],
        };
        let conditioning = pipeline.unet.prepare(&text).unwrap();
        let noise = FeatureMap::from_channels_first(self.layout.tensor("noise")).unwrap();
        let output = pipeline.unet.forward(&noise, 481.0, &conditioning, None).unwrap();
        (features.context, values(&output.to_channels_first().unwrap()))
    }
}

#[test]
fn loras_are_merged_as_diffusers_fuses_them() {
    for (model, name) in [
        ("sd15", "sd15-peft"),
        ("sd15", "sd15-kohya"),
        ("sd15", "sd15-processor"),
        ("sdxl", "sdxl-peft"),
        ("sdxl", "sdxl-kohya"),
    ] {
        let case = LoraCase::new(model, name);
        let (context, unet) = case.unet(&open(&case.files(0.7).unwrap()));
        assert_close(
            &format!("{name}, text"),
            &values(&context),
            &values(&case.expected[&format!("{name}.context")]),
        );
        assert_close(&format!("{name}, UNet"), &unet, &values(&case.expected[&format!("{name}.unet")]));
        let (_, without) = case.unet(&open(&case.layout.files()));
        assert_ne!(unet, without, "{name} changes nothing");
        let (_, zero) = case.unet(&open(&case.files(0.0).unwrap()));
        assert_eq!(zero, without, "{name} at scale 0 changes something");
    }
}

#[track_caller]
fn assert_refused(result: Result<impl Sized, LoadError>, reason: &str, says: &str) {
    match result {
        Ok(_) => panic!("what should be refused as {reason} was opened"),
        Err(error) => {
            assert_eq!(error.reason(), reason, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}

#[test]
fn loras_that_do_not_fit_are_refused_by_name() {
    let open = |files: ModelFiles| Pipeline::open(&files, DeviceKind::Cpu, 1).map(|_| ());
    let of = |model, name, scale| LoraCase::new(model, name).files(scale).and_then(open);
    assert_refused(of("sdxl", "sd15-peft", 1.0), "unsuitable_weights", "made for another model");
    assert_refused(of("sd15", "sdxl-kohya", 1.0), "unsuitable_weights", "text_encoder_2");
    assert_refused(of("sd15", "sd15-kohya", f32::NAN), "unsuitable_weights", "scale");
    assert_refused(of("sd15", "sd15-kohya", 2.0 * MAX_LORA_SCALE), "unsuitable_weights", "scale");
    assert_refused(of("sd15", "absent", 1.0), "missing_file", "absent.safetensors");
    // Three floats in each tensor: what follows the names matters less than the names.
    let made = |names: &[(&str, &[usize])]| {
        let folder = tempfile::tempdir().unwrap();
        let tensors = names.iter().map(|(name, shape)| {
            let tensor = Tensor::zeros(*shape, DType::F32, &Device::Cpu).unwrap();
            ((*name).to_owned(), tensor)
        });
        let tensors: HashMap<String, Tensor> = tensors.collect();
        candle_core::safetensors::save(&tensors, folder.path().join("x.safetensors")).unwrap();
        let lora = ModelFiles::folder(folder.path());
        layout("sd15").files().with_lora(&lora, "x.safetensors", 1.0).and_then(open)
    };
    let layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let (down, up) = (format!("{layer}.lora_A.weight"), format!("{layer}.lora_B.weight"));
    assert!(made(&[(&down, &[2, 4]), (&up, &[4, 2])]).is_ok());
    assert_refused(made(&[(&down, &[2, 4])]), "unsuitable_weights", "without the other");
    assert_refused(made(&[(&down, &[2, 4]), (&up, &[4, 3])]), "unsuitable_weights", "does not fit");
    assert_refused(made(&[(&down, &[0, 4]), (&up, &[4, 0])]), "unsuitable_weights", "does not fit");
    assert_refused(made(&[("conv_in.weight", &[2, 4])]), "unknown_lora", "`conv_in.weight`");
    let doubtful = format!("{layer}.hada_w1_a");
    assert_refused(
        made(&[(&down, &[2, 4]), (&up, &[4, 2]), (&doubtful, &[4, 2])]),
        "unknown_lora",
        "hada_w1_a",
    );
    let absent = "lora_unet_down_blocks_7_resnets_0_conv1.lora_down.weight";
    assert_refused(made(&[(absent, &[2, 4])]), "unknown_lora", absent);
}

/// A tiny checkpoint of one file, with the configs of its size and its tokenizers beside it.
fn checkpoint(name: &str) -> (TempDir, Layout) {
    let layout = layout(name);
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(fixtures().join("checkpoints").join(format!("{name}.fixture"))).unwrap();
    write(folder.path(), "dreams.safetensors", &bytes);
    for part in ["unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2"] {
        let Ok(listed) = std::fs::read_dir(layout.folder.path().join(part)) else { continue };
        for file in listed {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            if !name.ends_with(".safetensors") {
                write(folder.path(), &format!("{part}/{name}"), &std::fs::read(file.path()).unwrap());
            }
        }
    }
    (folder, layout)
}

#[test]
fn checkpoints_of_one_file_are_the_models_they_were_made_of() {
    for name in ["sd15", "sd21", "sdxl"] {
        let (folder, layout) = checkpoint(name);
        compare(&layout, &open(&ModelFiles::folder(folder.path())));
        // Named itself, in a folder with others.
        write(folder.path(), "other.safetensors", b"");
        compare(&layout, &open(&ModelFiles::folder(folder.path().join("dreams.safetensors"))));
    }
    // One tokenizer serves both encoders of XL, padded as each of them was trained; what the published
    // scheduler says is built in.
    let (folder, layout) = checkpoint("sdxl");
    std::fs::remove_dir_all(folder.path().join("tokenizer_2")).unwrap();
    std::fs::remove_dir_all(folder.path().join("scheduler")).unwrap();
    compare(&layout, &open(&ModelFiles::folder(folder.path())));
}

#[test]
fn loras_change_checkpoints_of_one_file() {
    let (folder, layout) = checkpoint("sdxl");
    let case = LoraCase { layout, ..LoraCase::new("sdxl", "sdxl-kohya") };
    let lora = ModelFiles::folder(fixtures().join("lora"));
    let files = ModelFiles::folder(folder.path()).with_lora(&lora, "sdxl-kohya.safetensors", 0.7).unwrap();
    let (_, unet) = case.unet(&open(&files));
    assert_close("UNet", &unet, &values(&case.expected["sdxl-kohya.unet"]));
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let open = |folder: &TempDir| Pipeline::open(&ModelFiles::folder(folder.path()), DeviceKind::Cpu, 1);
    let (folder, _) = checkpoint("sd15");
    std::fs::remove_dir_all(folder.path().join("tokenizer")).unwrap();
    assert_refused(open(&folder), "bad_config", "tokenizer/vocab.json");
    let (folder, _) = checkpoint("sd15");
    std::fs::remove_file(folder.path().join("unet/config.json")).unwrap();
    assert_refused(open(&folder), "wrong_shape", "320");
    let (folder, layout) = checkpoint("sd15");
    let unet = std::fs::read(layout.folder.path().join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    write(folder.path(), "dreams.safetensors", &unet);
    assert_refused(open(&folder), "unsuitable_weights", "model.diffusion_model");
    write(folder.path(), "dreams.safetensors", b"short");
    assert_refused(open(&folder), "malformed_weights", "dreams.safetensors");
    write(folder.path(), "dreams.safetensors", b"PK\x03\x04 archive/data.pkl");
    assert_refused(open(&folder), "pickled", "convert_checkpoint.py");
    let pickle = tempfile::tempdir().unwrap();
    write(pickle.path(), "dreams.ckpt", b"PK");
    assert_refused(open(&pickle), "pickled", "convert_checkpoint.py");
    let file = ModelFiles::folder(pickle.path().join("dreams.ckpt"));
    assert_refused(Pipeline::open(&file, DeviceKind::Cpu, 1), "pickled", "dreams.ckpt");
    // Two files: which is meant?
    write(folder.path(), "other.safetensors", b"");
    assert_refused(open(&folder), "missing_file", "model_index.json");
}

/// The built-in configs open with the figures of the published models.
#[test]
fn built_in_configs_are_those_of_the_published_models() {
    for (text, context, heads, velocity) in [
        (include_str!("../checkpoint/sd15.json"), 768, [8, 8], false),
        (include_str!("../checkpoint/sd21.json"), 1024, [5, 10], true),
        (include_str!("../checkpoint/sdxl.json"), 2048, [5, 10], false),
    ] {
        let configs: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (path, config) in &configs {
            write(folder.path(), path, config.to_string().as_bytes());
        }
        let files = ModelFiles::folder(folder.path());
        let unet = UNetConfig::open(&files, "unet/config.json").unwrap();
        assert_eq!(unet.contracting.cross_attention_dim, context);
        assert_eq!([unet.contracting.heads(0), unet.contracting.heads(1)], heads.map(Some));
        let vae = VaeConfig::open(&files, "vae/config.json").unwrap();
        assert_eq!(vae.scale(), 8);
        let index: ModelIndex = files.config("model_index.json").unwrap();
        let is_double = index.is_double(&files).unwrap();
        check_fit(&files, is_double, &unet, &vae).unwrap();
        assert_eq!(is_double, configs.contains_key("text_encoder_2/config.json"));
        let mut width = 0;
        for part in ["text_encoder", "text_encoder_2"] {
            if files.contains(&format!("{part}/config.json")) {
                let config: crate::clip::text::TextConfig =
                    files.config(&format!("{part}/config.json")).unwrap();
                width += config.tower.hidden_size;
            }
        }
        assert_eq!(width, context);
        let path = "scheduler/scheduler_config.json";
        let scheduler: SchedulerConfig = files.config(path).unwrap();
        assert_eq!(Scheduler::new(&scheduler, None).unwrap().plan(20).unwrap().steps.len(), 20);
        assert_eq!(configs[path]["prediction_type"] == "v_prediction", velocity);
    }
}

/// CLIP's own tokenizer as transformers has it, cut down to 3,000 merges.
#[test]
fn tokens_are_those_of_transformers() {
    let cases: Vec<(String, Vec<u32>)> =
        serde_json::from_slice(&std::fs::read(fixtures().join("tokens/prompts.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 1000);
    let files = ModelFiles::folder(fixtures());
    let tokenizer = crate::tokenizer::ClipTokenizer::open(&files, "tokens", 77).unwrap();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(text, ids)| {
            let found = tokenizer.ids(text).unwrap();
            (found != *ids).then(|| format!("{text:?}: {found:?} instead of {ids:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
