//! The models in the binary: f16 safetensors, read where they lie.

use crate::loader::ModelFiles;

/// One file of an embedded model.
#[derive(Debug)]
pub(crate) struct EmbeddedFile {
    /// Path inside the model's folder.
    pub(crate) path: &'static str,
    pub(crate) bytes: &'static [u8],
}

macro_rules! bytes {
    ($folder:literal, $path:literal) => {
        include_bytes!(concat!("../weights/", $folder, "/", $path))
    };
}

/// The files of a folder, each under its path in it, and those that it shares with others.
macro_rules! embed {
    ($folder:literal: $($path:literal),* $(,)? $(; $($shared:literal = $bytes:expr),* $(,)?)?) => {
        &[
            $(EmbeddedFile { path: $path, bytes: bytes!($folder, $path) },)*
            $($(EmbeddedFile { path: $shared, bytes: $bytes },)*)?
        ]
    };
}

// What several models have in common is in the binary once.
static SCHEDULER: &[u8] = bytes!("argus-tiny", "scheduler/scheduler_config.json");
static TEXT_ENCODER_CONFIG: &[u8] = bytes!("argus-tiny", "text_encoder/config.json");
static TEXT_ENCODER: &[u8] = bytes!("argus-tiny", "text_encoder/model.safetensors");
static TOKENIZER: &[u8] = bytes!("argus-tiny", "tokenizer/tokenizer.json");
static UNET: &[u8] = bytes!("argus-tiny", "unet/diffusion_pytorch_model.safetensors");
static VAE_CONFIG: &[u8] = bytes!("argus-tiny", "vae/config.json");
static VAE: &[u8] = bytes!("argus-tiny", "vae/diffusion_pytorch_model.safetensors");

static ARGUS_TINY: &[EmbeddedFile] = embed!("argus-tiny":
    "model_index.json",
    "unet/config.json";
    "scheduler/scheduler_config.json" = SCHEDULER,
    "text_encoder/config.json" = TEXT_ENCODER_CONFIG,
    "text_encoder/model.safetensors" = TEXT_ENCODER,
    "tokenizer/tokenizer.json" = TOKENIZER,
    "unet/diffusion_pytorch_model.safetensors" = UNET,
    "vae/config.json" = VAE_CONFIG,
    "vae/diffusion_pytorch_model.safetensors" = VAE,
);

/// The second shard of its UNet has what was trained further, the first everything else.
static ARGUS_TINY_INPAINT: &[EmbeddedFile] = embed!("argus-tiny-inpaint":
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors";
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors" = UNET,
    "scheduler/scheduler_config.json" = SCHEDULER,
    "text_encoder/config.json" = TEXT_ENCODER_CONFIG,
    "text_encoder/model.safetensors" = TEXT_ENCODER,
    "tokenizer/tokenizer.json" = TOKENIZER,
    "vae/config.json" = VAE_CONFIG,
    "vae/diffusion_pytorch_model.safetensors" = VAE,
);

/// It was trained on outlines and on Canny edges, and takes both.
static ARGUS_TINY_CONTROLNET: &[EmbeddedFile] =
    embed!("argus-tiny-controlnet": "config.json", "diffusion_pytorch_model.safetensors");

/// It was trained with the tokenizer of the diffusion model.
static CLIP_TINY: &[EmbeddedFile] =
    embed!("clip": "config.json", "model.safetensors"; "tokenizer.json" = TOKENIZER);

static NSFW_MOBILENETV2: &[EmbeddedFile] = embed!("nsfw-mobilenetv2": "model.safetensors");

static UPSCALE_X2: &[EmbeddedFile] = embed!("upscale-x2": "config.json", "model.safetensors");

static UPSCALE_X4: &[EmbeddedFile] = embed!("upscale-x4": "config.json", "model.safetensors");

/// The files of the NSFW classifier that describes every picture.
pub(crate) fn nsfw_classifier() -> ModelFiles {
    ModelFiles::embedded("nsfw-mobilenetv2", NSFW_MOBILENETV2)
}

/// The files of an embedded model by its name in the registry.
pub(crate) fn find(name: &str) -> Option<ModelFiles> {
    let files = match name {
        "argus-tiny" => ARGUS_TINY,
        "argus-tiny-inpaint" => ARGUS_TINY_INPAINT,
        "argus-tiny-scribble" | "argus-tiny-canny" => ARGUS_TINY_CONTROLNET,
        "clip-tiny" => CLIP_TINY,
        "nsfw-mobilenetv2" => return Some(nsfw_classifier()),
        "upscale-x2" => UPSCALE_X2,
        "upscale-x4" => UPSCALE_X4,
        _ => return None,
    };
    Some(ModelFiles::embedded(name, files))
}
