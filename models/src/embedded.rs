//! The models in the binary: f16 safetensors, read where they lie.

use crate::loader::ModelFiles;

/// One file of an embedded model.
#[derive(Debug)]
pub(crate) struct EmbeddedFile {
    /// Path inside the model's folder.
    pub(crate) path: &'static str,
    pub(crate) bytes: &'static [u8],
}

macro_rules! embed {
    ($folder:literal: $($path:literal),* $(,)?) => {
        &[$(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../weights/", $folder, "/", $path)) }),*]
    };
}

const ARGUS_TINY: &[EmbeddedFile] = embed!("argus-tiny":
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
);

const CLIP_TINY: &[EmbeddedFile] = &[
    EmbeddedFile { path: "config.json", bytes: include_bytes!("../weights/clip/config.json") },
    EmbeddedFile { path: "model.safetensors", bytes: include_bytes!("../weights/clip/model.safetensors") },
    // It was trained with the tokenizer of the diffusion model.
    EmbeddedFile {
        path: "tokenizer.json",
        bytes: include_bytes!("../weights/argus-tiny/tokenizer/tokenizer.json"),
    },
];

const NSFW_MOBILENETV2: &[EmbeddedFile] = embed!("nsfw-mobilenetv2": "model.safetensors");

const UPSCALE_X2: &[EmbeddedFile] = embed!("upscale-x2": "config.json", "model.safetensors");

const UPSCALE_X4: &[EmbeddedFile] = embed!("upscale-x4": "config.json", "model.safetensors");

/// The files of the NSFW classifier that describes every picture.
pub(crate) fn nsfw_classifier() -> ModelFiles {
    ModelFiles::embedded("nsfw-mobilenetv2", NSFW_MOBILENETV2)
}

/// The files of an embedded model by its name in the registry.
pub(crate) fn find(name: &str) -> Option<ModelFiles> {
    match name {
        "argus-tiny" => Some(ModelFiles::embedded(name, ARGUS_TINY)),
        "clip-tiny" => Some(ModelFiles::embedded(name, CLIP_TINY)),
        "nsfw-mobilenetv2" => Some(nsfw_classifier()),
        "upscale-x2" => Some(ModelFiles::embedded(name, UPSCALE_X2)),
        "upscale-x4" => Some(ModelFiles::embedded(name, UPSCALE_X4)),
        _ => None,
    }
}
