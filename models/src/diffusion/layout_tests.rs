//! Tiny random models in the layouts of Stable Diffusion 1.5, 2.1 and XL, made and computed by
//! diffusers (`models/training/layouts.py`), opened as the real ones would be, from folders.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::IndexOp;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::tests::{assert_close, denoised, keep_going};
use super::*;
use crate::device::DeviceKind;
use crate::layers::FeatureMap;
use crate::placement::Compute;

const PROMPT: &str = "a red apple, on the table!";
const NEGATIVE: &str = "blurry";
const EDGE: u32 = 32;
const TIMESTEP: f64 = 481.0;

/// How a model's weights are laid out on disk.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Packing {
    Whole,
    Half,
    Sharded,
}

pub(super) struct Layout {
    pub(super) folder: TempDir,
    expected: HashMap<String, Tensor>,
}

impl Layout {
    fn unpack(name: &str, packing: Packing) -> Self {
        Self::unpack_from("layouts", name, packing)
    }

    /// Unpacks a fixture of a folder of fixtures.
    pub(super) fn unpack_from(fixtures: &str, name: &str, packing: Packing) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(fixtures)
            .join(name)
            .with_extension("fixture");
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in metadata.metadata().as_ref().unwrap() {
            write(folder.path(), path, text.as_bytes());
        }
        let mut parts: BTreeMap<&str, Vec<(&str, TensorView)>> = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let (path, tensor) = name.split_once(':').unwrap();
            parts.entry(path).or_default().push((tensor, view));
        }
        parts.remove("expected");
        for (path, tensors) in parts {
            pack(folder.path(), path, tensors, packing);
        }
        let expected = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        Self { folder, expected }
    }

    pub(super) fn expected(&self, name: &str) -> Vec<f32> {
        self.tensor(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    pub(super) fn tensor(&self, name: &str) -> &Tensor {
        &self.expected[&format!("expected:{name}")]
    }

    pub(super) fn files(&self) -> ModelFiles {
        ModelFiles::folder(self.folder.path())
    }
}

pub(super) fn write(folder: &Path, path: &str, bytes: &[u8]) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn pack(folder: &Path, path: &str, mut tensors: Vec<(&str, TensorView)>, packing: Packing) {
    let stem = path.strip_suffix(".safetensors").unwrap();
    let serialize = |tensors: &[(&str, TensorView)]| {
        safetensors::serialize(tensors.iter().map(|(name, view)| (*name, view)), None).unwrap()
    };
    match packing {
        Packing::Whole => write(folder, path, &serialize(&tensors)),
        Packing::Half => write(folder, &format!("{stem}.fp16.safetensors"), &serialize(&tensors)),
        Packing::Sharded => {
            let second = tensors.split_off(tensors.len() / 2);
            let mut map = serde_json::Map::new();
            for (index, tensors) in [(1, tensors), (2, second)] {
                let shard = format!("{stem}-0000{index}-of-00002.safetensors");
                write(folder, &shard, &serialize(&tensors));
                let file_name = Path::new(&shard).file_name().unwrap().to_str().unwrap();
                map.extend(tensors.iter().map(|(name, _)| ((*name).to_owned(), file_name.into())));
            }
            let index = serde_json::json!({"metadata": {}, "weight_map": map});
            write(folder, &format!("{stem}.safetensors.index.json"), index.to_string().as_bytes());
        }
    }
}

fn request(negative_prompt: &str) -> Generate {
    Generate {
        prompt: PROMPT.into(),
        negative_prompt: negative_prompt.into(),
        width: EDGE,
        height: EDGE,
        steps: 4,
        guidance: 2.0,
        seed: 0,
        start: Start::Noise,
        controls: Vec::new(),
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(super) fn compare(layout: &Layout, pipeline: &Pipeline) {
    let features = pipeline.prompts.encode(&[NEGATIVE, PROMPT]).unwrap();
    assert_close(
        "negative context",
        &values(&features.context.i(0).unwrap()),
        &layout.expected("negative_context"),
    );
    assert_close("context", &values(&features.context.i(1).unwrap()), &layout.expected("context"));
    let pooled = features.pooled.narrow(0, 1, 1).unwrap();
    if layout.expected.contains_key("expected:pooled") {
        assert_close("pooled", &values(&pooled), &layout.expected("pooled"));
    }
    let edge = f64::from(EDGE);
    let text = TextConditioning {
        context: &features.context.narrow(0, 1, 1).unwrap(),
        pooled: &pooled,
        size: [edge, edge, 0.0, 0.0, edge, edge],
    };
    let conditioning = pipeline.unet.prepare(&text).unwrap();
    let noise = layout.tensor("noise").to_dtype(pipeline.dtype).unwrap();
    let output = pipeline
        .unet
        .forward(&FeatureMap::from_channels_first(&noise).unwrap(), TIMESTEP, &conditioning, None)
        .unwrap();
    assert_close("unet", &values(&output.to_channels_first().unwrap()), &layout.expected("unet"));
    let plan = pipeline.scheduler.plan(4).unwrap();
    for (name, negative) in [("latents", NEGATIVE), ("latents_without_negative", "")] {
        let found = denoised(pipeline, &request(negative), &plan, layout.expected("noise"));
        assert_close(name, &found, &layout.expected(name));
    }
    let latents =
        (layout.tensor("latents") / pipeline.scaling_factor).unwrap().to_dtype(pipeline.vae_dtype).unwrap();
    assert_close("picture", &values(&pipeline.vae.decode(&latents).unwrap()), &layout.expected("picture"));
}

#[test]
fn stable_diffusion_1_5_opens_from_a_folder() {
    let layout = Layout::unpack("sd15", Packing::Whole);
    compare(&layout, &Pipeline::open(&layout.files(), DeviceKind::Cpu, 1).unwrap());
}

#[test]
fn stable_diffusion_2_1_opens_from_half_precision_variants() {
    let layout = Layout::unpack("sd21", Packing::Half);
    compare(&layout, &Pipeline::open(&layout.files(), DeviceKind::Cpu, 1).unwrap());
}

#[test]
fn stable_diffusion_xl_opens_from_shards() {
    let layout = Layout::unpack("sdxl", Packing::Sharded);
    compare(&layout, &Pipeline::open(&layout.files(), DeviceKind::Cpu, 1).unwrap());
}

/// The path of other devices, in a format that has no kernels of ours.
#[test]
fn operations_of_other_devices_give_the_same() {
    for name in ["sd15", "sdxl"] {
        let layout = Layout::unpack(name, Packing::Whole);
        let pipeline =
            Pipeline::load(&layout.files(), &[], Compute::HOST.in_dtype(DType::F64), Pool::new(1).unwrap())
                .unwrap();
        compare(&layout, &Pipeline { vae_dtype: DType::F32, ..pipeline });
    }
}

#[track_caller]
fn assert_refused(layout: &Layout, reason: &str, says: &str) {
    match Pipeline::open(&layout.files(), DeviceKind::Cpu, 1) {
        Ok(_) => panic!("a model that should be refused as {reason} was opened"),
        Err(error) => {
            assert_eq!(error.reason(), reason, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}

/// Changes one file of a good model.
fn damaged(path: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Layout {
    let layout = Layout::unpack("sd15", Packing::Whole);
    let file = layout.folder.path().join(path);
    let bytes = change(std::fs::read(&file).unwrap());
    std::fs::write(file, bytes).unwrap();
    layout
}

fn replaced(path: &str, old: &str, new: &str) -> Layout {
    damaged(path, |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(old), "{path} has no {old}");
        text.replace(old, new).into_bytes()
    })
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

#[test]
fn damaged_weights_are_refused() {
    let truncated = damaged(UNET, |bytes| bytes[..bytes.len() / 2].to_vec());
    assert_refused(&truncated, "malformed_weights", "unet is not a whole safetensors file");
    assert_refused(&damaged(UNET, |_| Vec::new()), "malformed_weights", "unet");
    assert_refused(&damaged(UNET, |_| b"<html>".to_vec()), "malformed_weights", "unet");
    let header = |length: u64| {
        move |mut bytes: Vec<u8>| {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            bytes
        }
    };
    assert_refused(&damaged(UNET, header(u64::MAX)), "header_too_large", "header of");
    assert_refused(&damaged(UNET, header(1 << 22)), "malformed_weights", "unet");
    assert_refused(&damaged(UNET, |_| b"\xff\0\0\0\0\0\0\0{\"a".to_vec()), "malformed_weights", "unet");
}

#[test]
fn weights_of_another_architecture_are_refused() {
    let config = "unet/config.json";
    assert_refused(
        &replaced(config, "\"cross_attention_dim\": 12", "\"cross_attention_dim\": 16"),
        "wrong_shape",
        "[4, 12]",
    );
    assert_refused(
        &replaced(config, "\"layers_per_block\": 2", "\"layers_per_block\": 3"),
        "missing_tensor",
        "resnets.2",
    );
    assert_refused(
        &replaced("text_encoder/config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        "missing_tensor",
        "layers.2",
    );
    assert_refused(
        &replaced(config, "\"norm_num_groups\": 2", "\"norm_num_groups\": 0"),
        "unsuitable_weights",
        "groups",
    );
    assert_refused(
        &replaced("text_encoder/config.json", "\"num_attention_heads\": 2", "\"num_attention_heads\": 5"),
        "unsuitable_weights",
        "heads",
    );
    assert_refused(
        &replaced("text_encoder/config.json", "\"quick_gelu\"", "\"tanh\""),
        "unsuitable_weights",
        "tanh",
    );
}

#[test]
fn configs_that_are_not_built_are_refused() {
    let config = "unet/config.json";
    assert_refused(
        &replaced(config, "\"UNet2DConditionModel\"", "\"FluxTransformer2DModel\""),
        "unknown_architecture",
        "Flux",
    );
    assert_refused(
        &replaced(config, "\"CrossAttnDownBlock2D\"", "\"SimpleCrossAttnDownBlock2D\""),
        "unknown_architecture",
        "Simple",
    );
    assert_refused(
        &replaced(config, "\"class_embed_type\": null", "\"class_embed_type\": \"timestep\""),
        "unknown_architecture",
        "class_embed_type",
    );
    assert_refused(
        &replaced(config, "\"time_embedding_type\": \"positional\"", "\"time_embedding_type\": \"fourier\""),
        "unknown_architecture",
        "fourier",
    );
    assert_refused(
        &replaced(config, "\"block_out_channels\": [", "\"block_out_channels\": [4,"),
        "bad_config",
        "differ in length",
    );
    assert_refused(&replaced(config, "\"in_channels\": 4", "\"in_channels\": 5"), "bad_config", "latents");
    assert_refused(
        &replaced(config, "\"attention_head_dim\": 2", "\"attention_head_dim\": 3"),
        "bad_config",
        "heads",
    );
    assert_refused(
        &replaced("model_index.json", "StableDiffusionPipeline", "KandinskyPipeline"),
        "unknown_architecture",
        "Kandinsky",
    );
    assert_refused(&replaced("model_index.json", "{", ""), "bad_config", "model_index.json");
    assert_refused(
        &replaced("scheduler/scheduler_config.json", "PNDMScheduler", "HeunDiscreteScheduler"),
        "bad_config",
        "HeunDiscreteScheduler",
    );
    assert_refused(
        &replaced("scheduler/scheduler_config.json", "\"scaled_linear\"", "\"sigmoid\""),
        "bad_config",
        "sigmoid",
    );
    assert_refused(
        &replaced("vae/config.json", "\"AutoencoderKL\"", "\"VQModel\""),
        "unknown_architecture",
        "VQModel",
    );
    assert_refused(&damaged("vae/config.json", |_| vec![b' '; 2 << 20]), "file_too_large", "vae/config.json");
}

#[test]
fn missing_files_are_named() {
    for (path, reason) in [
        ("model_index.json", "missing_file"),
        ("unet/config.json", "missing_file"),
        ("tokenizer/vocab.json", "missing_file"),
        ("tokenizer/merges.txt", "missing_file"),
        ("scheduler/scheduler_config.json", "missing_file"),
        (UNET, "missing_weights"),
    ] {
        let layout = Layout::unpack("sd15", Packing::Whole);
        std::fs::remove_file(layout.folder.path().join(path)).unwrap();
        assert_refused(&layout, reason, path.split('/').next().unwrap());
    }
    let layout = Layout { folder: tempfile::tempdir().unwrap(), expected: HashMap::new() };
    assert_refused(&layout, "missing_file", "model_index.json");
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    let path = "unet/diffusion_pytorch_model.safetensors.index.json";
    for shard in
        ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "..", "weights.bin", "a/b.safetensors"]
    {
        let layout = Layout::unpack("sd15", Packing::Sharded);
        let index = serde_json::json!({"weight_map": {"conv_in.weight": shard}});
        write(layout.folder.path(), path, index.to_string().as_bytes());
        assert_refused(&layout, "bad_config", shard);
    }
}

#[test]
fn a_tokenizer_of_another_kind_is_refused() {
    assert_refused(
        &replaced("tokenizer/vocab.json", "<|startoftext|>", "[CLS]"),
        "bad_config",
        "<|startoftext|>",
    );
    assert_refused(&replaced("tokenizer/merges.txt", "r e\n", "r e x y z\n"), "bad_tokenizer", "tokenizer");
    assert_refused(
        &replaced(
            "tokenizer/tokenizer_config.json",
            "\"pad_token\": \"<|endoftext|>\"",
            "\"pad_token\": \"[PAD]\"",
        ),
        "bad_tokenizer",
        "[PAD]",
    );
}

#[test]
fn weights_that_are_not_finite_give_no_picture() {
    let layout = damaged(UNET, |mut bytes| {
        let end = bytes.len();
        bytes[end - 4096..].fill(0x7e);
        bytes
    });
    let pipeline = Pipeline::open(&layout.files(), DeviceKind::Cpu, 1).unwrap();
    let error = pipeline.generate(&request(NEGATIVE), &mut keep_going).unwrap_err();
    assert_eq!(error.reason(), "not_finite", "{error}");
}
