//! Between the words of the protocol and those of the models crate, which know nothing of each other.

use argus_models::{
    ModelSpec, diffusion,
    registry::{ModelTask, PictureLimits},
};
use argus_protocols::{
    Features, ImageHashes, NsfwScores, TaskKind,
    limits::UPSCALE_FACTORS,
    task::{ControlKind, Pads},
};

use crate::gateway::{Allowed, GenerationLimits, ModelCard, UpscaleLimits};

/// The registry's word for a task.
pub fn model_task(task: TaskKind) -> ModelTask {
    match task {
        TaskKind::TextToImage => ModelTask::TextToImage,
        TaskKind::ImageEmbedding => ModelTask::ImageEmbedding,
        TaskKind::ImageToImage => ModelTask::ImageToImage,
        TaskKind::Inpaint => ModelTask::Inpaint,
        TaskKind::Uncrop => ModelTask::Uncrop,
        TaskKind::Scribble => ModelTask::Scribble,
        TaskKind::Canny => ModelTask::Canny,
        TaskKind::Depth => ModelTask::Depth,
        TaskKind::Upscale => ModelTask::Upscale,
        TaskKind::NsfwClassification => ModelTask::NsfwClassification,
    }
}

/// The tasks that a model serves.
pub fn tasks(spec: &ModelSpec) -> Vec<TaskKind> {
    TaskKind::ALL.into_iter().filter(|task| spec.serves(model_task(*task))).collect()
}

pub(super) fn control_kind(kind: ControlKind) -> diffusion::ControlKind {
    match kind {
        ControlKind::Scribble => diffusion::ControlKind::Scribble,
        ControlKind::Canny => diffusion::ControlKind::Canny,
        ControlKind::Depth => diffusion::ControlKind::Depth,
    }
}

pub(super) fn pads(pads: Pads) -> diffusion::Pads {
    let Pads { left, right, top, bottom } = pads;
    diffusion::Pads { left, right, top, bottom }
}

pub(super) fn scores(scores: argus_models::NsfwScores) -> NsfwScores {
    let argus_models::NsfwScores { drawing, hentai, neutral, porn, sexy } = scores;
    NsfwScores { drawing, hentai, neutral, porn, sexy }
}

pub(super) fn features(features: &argus_models::Features) -> Features {
    let hashes = features.hashes;
    Features {
        hashes: ImageHashes {
            average: hashes.average,
            perceptual: hashes.perceptual,
            difference: hashes.difference,
            colour: hashes.colour,
        },
        clip: features.clip.clone(),
        nsfw: scores(features.nsfw),
    }
}

/// What clients are told of a model: all but who serves it, and how long its embeddings are.
pub fn card(spec: &ModelSpec) -> ModelCard {
    ModelCard {
        id: spec.id.to_string(),
        description: description(spec),
        license: spec.licence.clone(),
        created: 0,
        tasks: tasks(spec),
        generation: spec.pictures.as_ref().map(generation_limits),
        upscale: spec
            .upscale
            .as_ref()
            .map(|limits| UpscaleLimits { factors: upscale_factors(spec), max_edge: limits.max_edge }),
        embedding_dimensions: None,
        work_units: spec.work_units,
        miners: 0,
    }
}

fn generation_limits(limits: &PictureLimits) -> GenerationLimits {
    let PictureLimits { size, steps, guidance, strength } = *limits;
    let edge = Allowed { min: size.min, max: size.max, step: size.multiple_of, default: size.default };
    let (min, max, default) = (steps.min as u32, steps.max as u32, steps.default as u32);
    GenerationLimits {
        width: edge,
        height: edge,
        steps: Allowed { min, max, step: 1, default },
        guidance: Allowed { min: guidance.min, max: guidance.max, step: 0.0, default: guidance.default },
        strength: Allowed { min: strength.min, max: strength.max, step: 0.0, default: strength.default },
        prompt_bytes: argus_models::engine::MAX_TEXT_BYTES as u32,
    }
}

/// By how much a model can make pictures grow, of what can be asked for.
pub fn upscale_factors(spec: &ModelSpec) -> Vec<u32> {
    let all = spec.upscale.iter().flat_map(|limits| limits.factors.iter().copied());
    all.filter(|factor| UPSCALE_FACTORS.contains(factor)).collect()
}

/// Whether two honest answers of this model agree to the bit.
pub fn is_exact(spec: &ModelSpec) -> bool {
    spec.numerics.is_exact()
}

/// One sentence about a model for people.
fn description(spec: &ModelSpec) -> String {
    format!("{} ({})", spec.architecture.title(), spec.id)
}
