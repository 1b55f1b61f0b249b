//! What a folder on disk holds: its architecture, the files of it that are read, and sane limits.
//!
//! Invariant: only headers and configs are read, each under the limits of a load, so that looking at a
//! model takes a moment however large it is.

use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device};
use serde::Deserialize;

use super::{Architecture, EdgeRange, ModelTask, PictureLimits, Range};
use crate::loader::{LoadError, ModelFiles};

/// The most sub-folders of a model that are looked at.
const MAX_FOLDERS: usize = 64;
/// Networks that no pipeline here runs; the safety of pictures is judged by the embedded classifier.
const LEFT_OUT: [&str; 1] = ["safety_checker"];
/// The small files of a part, all but its weights.
const SMALL_FILES: [&str; 8] = [
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
}

#[derive(Deserialize)]
struct UNetFigures {
    in_channels: usize,
    sample_size: Option<usize>,
    block_out_channels: Vec<usize>,
}

#[derive(Deserialize)]
struct VaeFigures {
    block_out_channels: Vec<usize>,
}

#[derive(Deserialize)]
struct SchedulerFigures {
    #[serde(rename = "_class_name")]
    class: String,
    timestep_spacing: Option<String>,
}

/// Looks at a model's folder.
pub fn inspect(path: &Path) -> Result<Inspection, LoadError> {
    let files = ModelFiles::folder(path);
    check_readable(path)?;
    if files.contains("model_index.json") {
        return diffusion(path, &files);
    }
    let config: Class = files.config("config.json")?;
    match (config.model_type.as_deref(), config.class.as_deref()) {
        (Some("clip"), _) => clip(&files),
        (_, Some("ControlNetModel")) => Err(files.unknown(
            "config.json",
            "a ControlNet by itself; add it to the model that it steers with `--control KIND=FOLDER`, and it",
        )),
        (kind, class) => {
            let what = class.or(kind).unwrap_or("a model without a class");
            Err(files.unknown("config.json", format!("`{what}`")))
        }
    }
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
    ModelFiles::folder(folder).weights_of("", &[name.to_owned()], &Device::Cpu, DType::F32).map(|_| ())
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
    found.retain(|file| files.contains(file));
    let mut numbers = 0;
    if files.contains(&inside("config.json")) {
        let (index, weights) = files.weight_files(name)?;
        numbers = files.weights_of(name, &weights, &Device::Cpu, DType::F32)?.numbers();
        found.extend(index.into_iter().chain(weights));
    }
    Ok(PartFound { files: found, numbers })
}

fn diffusion(path: &Path, files: &ModelFiles) -> Result<Inspection, LoadError> {
    let index: Class = files.config("model_index.json")?;
    let class = index.class.unwrap_or_default();
    let (architecture, unet) = match class.as_str() {
        "StableDiffusionPipeline"
        | "StableDiffusionInpaintPipeline"
        | "StableDiffusionImg2ImgPipeline"
        | "StableDiffusionXLPipeline"
        | "StableDiffusionXLInpaintPipeline"
        | "StableDiffusionXLImg2ImgPipeline" => (Architecture::StableDiffusion, "unet"),
        other => return Err(files.unknown("model_index.json", format!("`{other}`"))),
    };
    let mut all = vec!["model_index.json".to_owned()];
    let (mut numbers, mut unet_numbers) = (0, 0);
    for folder in folders(path)? {
        if LEFT_OUT.contains(&folder.as_str()) {
            continue;
        }
        let found = part(files, &folder)?;
        numbers += found.numbers;
        if folder == unet {
            unet_numbers = found.numbers;
        }
        all.extend(found.files);
    }
    all.sort();
    let figures: UNetFigures = files.config("unet/config.json")?;
    let vae: VaeFigures = files.config("vae/config.json")?;
    let scheduler: SchedulerFigures = files.config("scheduler/scheduler_config.json")?;
    let tasks = match figures.in_channels {
        9 => vec![ModelTask::Inpaint, ModelTask::Uncrop],
        _ => {
            vec![ModelTask::TextToImage, ModelTask::ImageToImage, ModelTask::Inpaint, ModelTask::Uncrop]
        }
    };
    let scale = 1u32 << vae.block_out_channels.len().saturating_sub(1).min(8);
    let size = edges(files, &figures, scale)?;
    let pictures = limits(size, &scheduler);
    let latents = f64::from(size.default / scale).powi(2);
    let pixels = u64::from(size.default).pow(2);
    Ok(Inspection {
        architecture,
        tasks,
        files: all,
        pictures: Some(pictures),
        work_units: rounded(unet_numbers as f64 * latents * pictures.steps.default as f64 / UNIT_COST),
        timeout: Duration::from_secs(if size.default > 768 { 60 } else { 30 }),
        memory: numbers * 4 + pixels * PIXEL_BYTES,
    })
}

/// Edges around the one that the model was trained at.
fn edges(files: &ModelFiles, unet: &UNetFigures, scale: u32) -> Result<EdgeRange, LoadError> {
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
            "unet/config.json",
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
    let mut found = part(files, "")?;
    found.files.sort();
    Ok(Inspection {
        architecture: Architecture::Clip,
        tasks: vec![ModelTask::ImageEmbedding],
        files: found.files,
        pictures: None,
        work_units: rounded(CLIP_UNITS * found.numbers as f64 / CLIP_NUMBERS),
        timeout: Duration::from_secs(6),
        memory: found.numbers * 4,
    })
}

/// Two digits tell enough.
fn rounded(units: f64) -> f64 {
    let units = units.max(0.01);
    let digit = 10f64.powf(units.log10().floor() - 1.0);
    ((units / digit).round() * digit * 1000.0).round() / 1000.0
}

fn folders(path: &Path) -> Result<Vec<String>, LoadError> {
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
    folders.sort();
    Ok(folders)
}
