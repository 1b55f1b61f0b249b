//! Pictures on their way into a job, and those that come back.
//!
//! Invariants: a file's header is held against the limits before anything is decoded; decoding runs on a
//! blocking thread; pictures that do not fit together are refused here, in words for whoever sent them.

use argus_models::{
    Limits, ModelId, RgbPicture,
    diffusion::{self, Mask},
    engine::Job,
};
use argus_protocols::{
    Answer, Task, limits,
    task::{Control, Generation, Start, Upscale},
};

use super::{UnusableAnswer, translate};
use crate::miner::BackendError;

/// The engine's job for a task.
pub(super) async fn job(model: ModelId, task: Task) -> Result<Job, BackendError> {
    match task {
        Task::Generation(asked) if asked.start == Start::Noise && asked.controls.is_empty() => {
            Ok(Job::Generate { model, request: plain(&asked) })
        }
        task => {
            let decoded = tokio::task::spawn_blocking(move || decoded(model, task)).await;
            decoded.unwrap_or_else(|panic| Err(BackendError::Failed(panic.to_string())))
        }
    }
}

fn decoded(model: ModelId, task: Task) -> Result<Job, BackendError> {
    match task {
        Task::Generation(asked) => Ok(Job::Generate { model, request: generate(&asked)? }),
        Task::ImageEmbedding(asked) => Ok(Job::Embed { model, pictures: decode_all(&asked.pictures)? }),
        Task::NsfwClassification(asked) => {
            Ok(Job::Classify { model, pictures: decode_all(&asked.pictures)? })
        }
        Task::Upscale(asked) => {
            upscaled_size(&asked)?;
            Ok(Job::Upscale { model, picture: decode("picture", &asked.picture)?, factor: asked.factor })
        }
    }
}

/// A generation without its pictures: what is held against the model's ranges before any is decoded.
pub(super) fn plain(asked: &Generation) -> diffusion::Generate {
    diffusion::Generate {
        prompt: asked.prompt.clone(),
        negative_prompt: asked.negative_prompt.clone(),
        width: asked.width,
        height: asked.height,
        steps: asked.steps as usize,
        guidance: asked.guidance,
        seed: asked.seed,
        start: diffusion::Start::Noise,
        controls: Vec::new(),
    }
}

fn generate(asked: &Generation) -> Result<diffusion::Generate, BackendError> {
    let controls = asked.controls.iter().map(control).collect::<Result<_, _>>()?;
    Ok(diffusion::Generate { start: start(asked)?, controls, ..plain(asked) })
}

fn start(asked: &Generation) -> Result<diffusion::Start, BackendError> {
    Ok(match &asked.start {
        Start::Noise => diffusion::Start::Noise,
        Start::Picture { picture, strength } => {
            diffusion::Start::Picture { picture: decode("picture", picture)?, strength: *strength }
        }
        Start::Inpaint { picture, mask, strength } => {
            let (picture, mask) = (decode("picture", picture)?, decode("mask", mask)?);
            if picture.size() != mask.size() {
                return Err(BackendError::Invalid(format!(
                    "the mask is {}×{} and the picture {}×{}: give both the same size",
                    mask.width(),
                    mask.height(),
                    picture.width(),
                    picture.height()
                )));
            }
            diffusion::Start::Inpaint { picture, mask: Mask::of(&mask), strength: *strength }
        }
        Start::Uncrop { picture, pads } => {
            let picture = decode("picture", picture)?;
            let pads = translate::pads(*pads);
            let grown = (
                picture.width().saturating_add(pads.left).saturating_add(pads.right),
                picture.height().saturating_add(pads.top).saturating_add(pads.bottom),
            );
            if grown != (asked.width, asked.height) {
                return Err(BackendError::Invalid(format!(
                    "the picture and its pads are {}×{} together, but {}×{} is asked for",
                    grown.0, grown.1, asked.width, asked.height
                )));
            }
            diffusion::Start::Uncrop { picture, pads }
        }
    })
}

fn control(asked: &Control) -> Result<diffusion::Control, BackendError> {
    Ok(diffusion::Control {
        kind: translate::control_kind(asked.kind),
        picture: decode("control picture", &asked.picture)?,
        is_prepared: asked.is_prepared,
        scale: asked.scale,
    })
}

fn decode(what: &str, file: &[u8]) -> Result<RgbPicture, BackendError> {
    RgbPicture::decode(file, &Limits::default()).map_err(|error| invalid(what, &error))
}

fn decode_all(files: &[Vec<u8>]) -> Result<Vec<RgbPicture>, BackendError> {
    let numbered = |(i, file): (usize, &Vec<u8>)| decode(&format!("picture {}", i + 1), file);
    files.iter().enumerate().map(numbered).collect()
}

fn invalid(what: &str, error: &argus_models::PictureError) -> BackendError {
    BackendError::Invalid(format!("{what}: {error}"))
}

/// Width and height of the picture to upscale, by its header alone.
pub(super) fn size_to_upscale(asked: &Upscale) -> Result<(u32, u32), BackendError> {
    let size = RgbPicture::size_of(&asked.picture, &Limits::default());
    let size = size.map_err(|error| invalid("picture", &error))?;
    Ok((size.width.get(), size.height.get()))
}

fn upscaled_size(asked: &Upscale) -> Result<(u32, u32), BackendError> {
    let (width, height) = size_to_upscale(asked)?;
    let (wide, high) =
        (u64::from(width) * u64::from(asked.factor), u64::from(height) * u64::from(asked.factor));
    match (u32::try_from(wide), u32::try_from(high)) {
        (Ok(width), Ok(height)) if wide * high <= limits::ANSWER_PIXELS => Ok((width, height)),
        _ => Err(BackendError::Invalid(format!(
            "the picture would become {wide}×{high}; at most {} pixels are made: send a smaller one, or take a \
             smaller factor",
            limits::ANSWER_PIXELS
        ))),
    }
}

/// Width and height of the picture that answers a task; of a task that no picture answers there is none.
pub fn answer_size(task: &Task) -> Result<Option<(u32, u32)>, BackendError> {
    match task {
        Task::Generation(asked) => Ok(Some((asked.width, asked.height))),
        Task::Upscale(asked) => upscaled_size(asked).map(Some),
        Task::ImageEmbedding(_) | Task::NsfwClassification(_) => Ok(None),
    }
}

/// The picture of an answer: a PNG of exactly the size that the task means.
pub(super) async fn answered(task: &Task, png: Vec<u8>) -> Result<RgbPicture, UnusableAnswer> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    let (width, height) = answer_size(task).ok().flatten().ok_or(UnusableAnswer::Kind)?;
    if !png.starts_with(SIGNATURE) {
        return Err(UnusableAnswer::Picture("it is not a PNG file".into()));
    }
    let limits = Limits {
        max_side: width.max(height),
        max_pixels: u64::from(width) * u64::from(height),
        ..Limits::default()
    };
    let decoded = tokio::task::spawn_blocking(move || RgbPicture::decode(&png, &limits)).await;
    let picture = decoded
        .map_err(|panic| UnusableAnswer::Picture(panic.to_string()))?
        .map_err(|error| UnusableAnswer::Picture(error.to_string()))?;
    if (picture.width(), picture.height()) != (width, height) {
        return Err(UnusableAnswer::Size {
            asked: format!("{width}×{height}"),
            found: format!("{}×{}", picture.width(), picture.height()),
        });
    }
    Ok(picture)
}

/// Whether a client can be given this answer: it is of a kind that the task can have, and a picture opens
/// and has the size that was asked for. All that can be said without waiting for an engine.
pub async fn opens(task: &Task, answer: &Answer) -> bool {
    match answer {
        _ if !answer.answers(task) => false,
        Answer::Picture(png) => answered(task, png.clone()).await.is_ok(),
        Answer::Nsfw(_) | Answer::Embeddings(_) | Answer::Classes(_) => true,
    }
}
