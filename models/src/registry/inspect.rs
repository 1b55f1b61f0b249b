//! What a folder on disk holds: its architecture, the files of it that are read, and sane limits.
//!
//! Invariant: only headers and configs are read, each under the limits of a load, so that looking at a
//! model takes a moment however large it is.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::device::DeviceKind;
use crate::nsfw::NsfwModel;
use crate::placement::Compute;
use crate::upscale::Upscaler;

use super::{Architecture, EdgeRange, ModelTask, PictureLimits, Range, UpscaleLimits};
use crate::loader::{LoadError, ModelFiles};

/// The most sub-folders of a model that are looked at.
const MAX_FOLDERS: usize = 64;
/// Networks that no pipeline here runs; the safety of pictures is judged by the embedded classifier.
const LEFT_OUT: [&str; 1] = ["safety_checker"];
/// The small files of a part, all but its weights.
const SMALL_FILES: [&str; 9] = [
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
/// What a picture of the embedded text-to-image model costs, which is one work unit: numbers in its UNet,
/// times latent pixels, times steps.
const UNIT_COST: f64 = 12.5e6 * 256.0 * 20.0;
/// Numbers in the embedded CLIP, whose work is [`CLIP_UNITS`].
const CLIP_NUMBERS: f64 = 3.8e6;
const CLIP_UNITS: f64 = 0.2;
/// What a picture takes while it is made, for each of its pixels, beside the weights, in bytes.
const PIXEL_BYTES: u64 = 3 << 10;

/// What was found in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    pub architecture: Architecture,
    pub tasks: Vec<ModelTask>,
    /// The files that are read, with `/`, sorted.
    pub files: Vec<String>,
    pub pictures: Option<PictureLimits>,
    pub upscale: Option<UpscaleLimits>,
    pub work_units: f64,
    pub timeout: Duration,
    /// What a processor needs for it in f32, in bytes.
    pub memory: u64,
}

#[derive(Deserialize)]
struct Class {
    #[serde(rename = "_class_name")]
    class: Option<String>,
    model_type: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
    /// Of upscalers.
    architecture: Option<String>,
    scale: Option<u32>,
}

#[derive(Deserialize)]
struct UNetFigures {
    in_channels: usize,
    sample_size: Option<usize>,
    block_out_channels: Vec<usize>,
}

#[derive(Deserialize)]
struct AutoencoderFigures {
    block_out_channels: Vec<usize>,
}

#[derive(Deserialize)]
struct SchedulerFigures {
    #[serde(rename = "_class_name")]
    class: String,
    timestep_spacing: Option<String>,
}

/// Looks at a model's folder, or at a checkpoint of one file.
pub fn inspect(path: &Path) -> Result<Inspection, LoadError> {
    let files = ModelFiles::folder(path);
    check_readable(path)?;
    if path.is_file() {
        return checkpoint(&files.in_parts()?);
    }
    if files.contains("model_index.json") {
        return diffusion(path, &files);
    }
    if has_parts(path, &files, "prior") && has_parts(path, &files, "decoder") {
        return kandinsky(path, &files, "decoder/");
    }
    if !files.contains("config.json") && files.contains("model.safetensors") {
        return classifier(&files);
    }
    if !files.contains("config.json") {
        let parts = files.in_parts()?;
        if parts.checkpoint_file().is_some() {
            return checkpoint(&parts);
        }
    }
    let config: Class = files.config("config.json")?;
    if config.architectures.iter().any(|name| name == "StableDiffusionSafetyChecker") {
        return classifier(&files);
    }
    match (config.model_type.as_deref(), config.class.as_deref(), config.architecture.as_deref()) {
        (Some("clip"), ..) => clip(&files),
        (_, Some("ControlNetModel"), _) => Err(files.unknown(
            "config.json",
            "a ControlNet by itself; add it to the model that it steers with `--control KIND=FOLDER`, and it",
        )),
        (None, None, Some(_)) if config.scale.is_some() => upscaler(&files),
        (kind, class, _) => {
            let what = class.or(kind).unwrap_or("a model without a class");
            Err(files.unknown("config.json", format!("`{what}`")))
        }
    }
}

/// Whether a folder of the model is itself one of diffusers.
fn has_parts(path: &Path, files: &ModelFiles, folder: &str) -> bool {
    path.join(folder).is_dir() && files.contains(&format!("{folder}/model_index.json"))
}

/// The files of a ControlNet's folder.
pub fn inspect_control(path: &Path) -> Result<Vec<String>, LoadError> {
    let files = ModelFiles::folder(path);
    check_readable(path)?;
    let config: Class = files.config("config.json")?;
    match config.class.as_deref() {
        Some("ControlNetModel") => Ok(part(&files, "")?.files),
        class => {
            Err(files.unknown("config.json", format!("`{}`, as a ControlNet,", class.unwrap_or("nothing"))))
        }
    }
}

/// Holds the header of one safetensors file against the limits, as of a LoRA.
pub fn inspect_file(path: &Path) -> Result<(), LoadError> {
    check_readable(path)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(ModelFiles::folder(path).bad_config("", "it is no file"));
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    ModelFiles::folder(folder).weights_of("", &[name.to_owned()], &Compute::HOST).map(|_| ())
}

/// A path that is no folder or file to look into has a clearer reason than a missing file in it.
fn check_readable(path: &Path) -> Result<(), LoadError> {
    let is_pickle = |name: &str| PICKLES.iter().any(|ending| name.ends_with(ending));
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if is_pickle(name) => Err(LoadError::Pickled { path: path.display().to_string() }),
        _ => std::fs::metadata(path)
            .map(|_| ())
            .map_err(|source| LoadError::Unreadable { path: path.display().to_string(), source }),
    }
}

/// How pickled files are named.
pub(crate) const PICKLES: [&str; 6] = [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"];

/// One folder of a model.
struct PartFound {
    files: Vec<String>,
    /// In its weights.
    numbers: u64,
}

fn part(files: &ModelFiles, name: &str) -> Result<PartFound, LoadError> {
    let inside = |file: &str| if name.is_empty() { file.to_owned() } else { format!("{name}/{file}") };
    let mut found: Vec<String> = SMALL_FILES.iter().map(|file| inside(file)).collect();
    // Others of a checkpoint are built in.
    found.retain(|file| files.holds(file));
    let mut numbers = 0;
    if files.contains(&inside("config.json")) {
        numbers = files.weights(name, &Compute::HOST)?.numbers();
        match files.weight_files(name) {
            Ok((index, weights)) => found.extend(index.into_iter().chain(weights)),
            Err(LoadError::MissingWeights { .. }) => {} // in the checkpoint
            Err(error) => return Err(error),
        }
    }
    Ok(PartFound { files: found, numbers })
}

fn diffusion(path: &Path, files: &ModelFiles) -> Result<Inspection, LoadError> {
    let index: Class = files.config("model_index.json")?;
    match index.class.unwrap_or_default().as_str() {
        "StableDiffusionPipeline"
        | "StableDiffusionInpaintPipeline"
        | "StableDiffusionImg2ImgPipeline"
        | "StableDiffusionXLPipeline"
        | "StableDiffusionXLInpaintPipeline"
        | "StableDiffusionXLImg2ImgPipeline" => {
            let vae = files.config::<AutoencoderFigures>("vae/config.json")?;
            latent(Architecture::StableDiffusion, files, &folders(path)?, "", &vae)
        }
        "KandinskyV22CombinedPipeline" | "KandinskyV22InpaintCombinedPipeline" => kandinsky(path, files, ""),
        "KandinskyV22Pipeline" | "KandinskyV22InpaintPipeline" | "KandinskyV22PriorPipeline" => {
            Err(files.unknown(
                "model_index.json",
                "half of a Kandinsky; put prior and decoder into one folder, as `prior` and `decoder`, and it",
            ))
        }
        other => Err(files.unknown("model_index.json", format!("`{other}`"))),
    }
}

/// `decoder` is what the decoder's paths begin with.
fn kandinsky(path: &Path, files: &ModelFiles, decoder: &str) -> Result<Inspection, LoadError> {
    let movq = files.config::<AutoencoderFigures>(&format!("{decoder}movq/config.json"))?;
    latent(Architecture::Kandinsky, files, &folders(path)?, decoder, &movq)
}

/// What may lie beside a checkpoint of one file, in the place of what is built in or in the file.
const CHECKPOINT_PARTS: [&str; 7] =
    ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"];

fn checkpoint(files: &ModelFiles) -> Result<Inspection, LoadError> {
    let vae = files.config::<AutoencoderFigures>("vae/config.json")?;
    let parts = CHECKPOINT_PARTS.map(str::to_owned);
    let mut found = latent(Architecture::StableDiffusion, files, &parts, "", &vae)?;
    found.files.extend(files.checkpoint_file().map(str::to_owned));
    found.files.sort();
    Ok(found)
}

/// A model that makes pictures out of latents, by the UNet below `prefix`.
fn latent(
    architecture: Architecture,
    files: &ModelFiles,
    folders: &[String],
    prefix: &str,
    autoencoder: &AutoencoderFigures,
) -> Result<Inspection, LoadError> {
    let mut all = Vec::new();
    let (mut numbers, mut unet_numbers) = (0, 0);
    for folder in folders {
        let found = part(files, folder)?;
        numbers += found.numbers;
        if *folder == format!("{prefix}unet") {
            unet_numbers = found.numbers;
        }
        all.extend(found.files);
    }
    all.sort();
    let unet_path = format!("{prefix}unet/config.json");
    let unet: UNetFigures = files.config(&unet_path)?;
    let scheduler: SchedulerFigures = files.config(&format!("{prefix}scheduler/scheduler_config.json"))?;
    let tasks = match unet.in_channels {
        9 => vec![ModelTask::Inpaint, ModelTask::Uncrop],
        _ if architecture == Architecture::Kandinsky => {
            vec![ModelTask::TextToImage, ModelTask::ImageToImage]
        }
        _ => {
            vec![ModelTask::TextToImage, ModelTask::ImageToImage, ModelTask::Inpaint, ModelTask::Uncrop]
        }
    };
    let scale = 1u32 << autoencoder.block_out_channels.len().saturating_sub(1).min(8);
    let size = edges(files, &unet_path, &unet, scale)?;
    let pictures = limits(size, &scheduler);
    let latents = f64::from(size.default / scale).powi(2);
    let pixels = u64::from(size.default).pow(2);
    Ok(Inspection {
        architecture,
        tasks,
        files: all,
        pictures: Some(pictures),
        upscale: None,
        work_units: rounded(unet_numbers as f64 * latents * pictures.steps.default as f64 / UNIT_COST),
        timeout: Duration::from_secs(if size.default > 768 { 60 } else { 30 }),
        memory: numbers * 4 + pixels * PIXEL_BYTES,
    })
}

/// Edges around the one that the model was trained at.
fn edges(files: &ModelFiles, path: &str, unet: &UNetFigures, scale: u32) -> Result<EdgeRange, LoadError> {
    let blocks = unet.block_out_channels.len().clamp(1, 8) as u32;
    // The UNet halves its latents between blocks.
    let least = scale << (blocks - 1);
    let trained =
        unet.sample_size.and_then(|size| u32::try_from(size).ok()?.checked_mul(scale)).unwrap_or(512);
    let multiple_of = least.max(64.min(trained)).max(1);
    let default = (trained / multiple_of).max(1) * multiple_of;
    let largest = crate::diffusion::MAX_EDGE as u32 / multiple_of * multiple_of;
    if default > largest {
        return Err(files.bad_config(
            path,
            format!("sample_size makes pictures of {default} pixels, more than the {largest} allowed"),
        ));
    }
    let min = (default / 2 / multiple_of).max(1) * multiple_of;
    Ok(EdgeRange { min, max: (default * 2).min(largest), multiple_of, default })
}

/// Few steps and little guidance for models that were distilled to need no more.
fn limits(size: EdgeRange, scheduler: &SchedulerFigures) -> PictureLimits {
    let is_turbo = scheduler.class == "EulerAncestralDiscreteScheduler"
        && scheduler.timestep_spacing.as_deref() == Some("trailing");
    let is_distilled = is_turbo || matches!(scheduler.class.as_str(), "LCMScheduler" | "TCDScheduler");
    let (steps, guidance) = if is_distilled {
        (Range { min: 1, max: 14, default: 4 }, Range { min: 0.0, max: 4.0, default: 1.0 })
    } else {
        (Range { min: 1, max: 60, default: 25 }, Range { min: 0.0, max: 15.0, default: 7.0 })
    };
    PictureLimits { size, steps, guidance, strength: super::limits::STRENGTH }
}

fn clip(files: &ModelFiles) -> Result<Inspection, LoadError> {
    Ok(describer(Architecture::Clip, ModelTask::ImageEmbedding, part(files, "")?))
}

/// A model that says something of pictures of one size, by the cost of the embedded CLIP.
fn describer(architecture: Architecture, task: ModelTask, mut found: PartFound) -> Inspection {
    found.files.sort();
    Inspection {
        architecture,
        tasks: vec![task],
        files: found.files,
        pictures: None,
        upscale: None,
        work_units: rounded(CLIP_UNITS * found.numbers as f64 / CLIP_NUMBERS),
        timeout: Duration::from_secs(6),
        memory: found.numbers * 4,
    }
}

/// What an upscaler takes for each pixel that it is given, beside the weights, in bytes.
const UPSCALED_PIXEL_BYTES: u64 = 4 << 10;
/// The longest edge that an upscaler is offered for.
const UPSCALED_EDGE: u32 = 1024;
/// Numbers of the embedded upscaler that doubles, whose picture of 256×256 is one work unit.
const UPSCALER_NUMBERS: f64 = 0.55e6;

fn upscaler(files: &ModelFiles) -> Result<Inspection, LoadError> {
    let network = Upscaler::open(files, DeviceKind::Cpu, 1)?;
    let mut found = part(files, "")?;
    found.files.sort();
    Ok(Inspection {
        architecture: Architecture::Upscaler,
        tasks: vec![ModelTask::Upscale],
        files: found.files,
        pictures: None,
        upscale: Some(UpscaleLimits { factors: network.factors().to_vec(), max_edge: UPSCALED_EDGE }),
        work_units: rounded(found.numbers as f64 / UPSCALER_NUMBERS),
        timeout: Duration::from_secs(30),
        memory: found.numbers * 4 + u64::from(UPSCALED_EDGE).pow(2) * UPSCALED_PIXEL_BYTES,
    })
}

fn classifier(files: &ModelFiles) -> Result<Inspection, LoadError> {
    // Those without a config are known by their weights.
    NsfwModel::open(files, DeviceKind::Cpu, 1)?;
    let mut found = part(files, "")?;
    if found.numbers == 0 {
        let (_, weights) = files.weight_files("")?;
        found.numbers = files.weights_of("", &weights, &Compute::HOST)?.numbers();
        found.files.extend(weights);
    }
    Ok(describer(Architecture::NsfwClassifier, ModelTask::NsfwClassification, found))
}

/// Two digits tell enough.
fn rounded(units: f64) -> f64 {
    let units = units.max(0.01);
    let digit = 10f64.powf(units.log10().floor() - 1.0);
    ((units / digit).round() * digit * 1000.0).round() / 1000.0
}

/// The model's own folder, the folders in it and those in them, as paths with `/`.
fn folders(path: &Path) -> Result<Vec<String>, LoadError> {
    let mut folders = vec![String::new()];
    for inside in below(path)? {
        if LEFT_OUT.contains(&inside.as_str()) {
            continue;
        }
        let deeper = below(&path.join(&inside))?;
        folders.extend(
            deeper
                .iter()
                .filter(|name| !LEFT_OUT.contains(&name.as_str()))
                .map(|name| format!("{inside}/{name}")),
        );
        folders.push(inside);
    }
    Ok(folders)
}

fn below(path: &Path) -> Result<Vec<String>, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.display().to_string(), source };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if entry.path().is_dir() && !name.is_empty() && !name.starts_with('.') {
            folders.push(name);
        }
        if folders.len() > MAX_FOLDERS {
            return Err(
                ModelFiles::folder(path).bad_config("", format!("it has more than {MAX_FOLDERS} folders"))
            );
        }
    }
    Ok(folders)
}
