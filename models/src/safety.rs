//! The safety checker of Stable Diffusion: how near a picture is to concepts that must not be shown.
//!
//! CLIP's vision tower (ViT-L/14 in the published model) embeds the picture; a concept counts where
//! the cosine with its embedding exceeds its threshold. Special-care concepts make the thresholds of
//! the others 0.01 lower. In the layout of diffusers' `StableDiffusionSafetyChecker`, whose scores
//! these are, rounded to three decimals as there. The concepts have no names: only their embeddings
//! were published.

use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

use crate::clip::{self, VisionConfig, VisionModel};
use crate::loader::{LoadError, LoadResult, ModelFiles};
use crate::nsfw::NsfwOpinion;
use crate::picture::RgbPicture;
use crate::placement::{Compute, Placement};
use crate::pool::Pool;
use crate::weights::{Weights, WeightsResult};

/// The most concepts of one kind; the published model has 17, and 3 of special care.
const MAX_CONCEPTS: usize = 1024;
/// What a special-care concept adds to all scores after it.
const SPECIAL_CARE: f32 = 0.01;
/// The folder of the safety checker in a pipeline.
const PART: &str = "safety_checker";

#[derive(Deserialize)]
struct SafetyConfig {
    vision_config: VisionConfig,
    #[serde(default = "projection_dim")]
    projection_dim: usize,
}

fn projection_dim() -> usize {
    512
}

/// By how much a picture is nearer to each concept than is allowed; above 0 it is too near.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetyScores {
    /// Of the special-care concepts, which alone condemn nothing.
    pub special_care: Vec<f32>,
    pub concepts: Vec<f32>,
}

impl SafetyScores {
    /// Whether the picture is too near to any concept, or numbers are none.
    pub fn is_nsfw(&self) -> bool {
        self.concepts.iter().any(|score| score.is_nan() || *score > 0.0)
    }
}

impl From<SafetyScores> for NsfwOpinion {
    fn from(scores: SafetyScores) -> Self {
        let is_nsfw = scores.is_nsfw();
        let named = |kind: &str, scores: Vec<f32>| {
            let name = |(index, score)| (format!("{kind}-{index}"), score);
            scores.into_iter().enumerate().map(name).collect::<Vec<_>>()
        };
        let special = named("special-care", scores.special_care);
        let concepts = named("concept", scores.concepts);
        Self::new(f32::from(u8::from(is_nsfw)), is_nsfw, special.into_iter().chain(concepts))
    }
}

/// A safety checker that is ready to run.
pub struct SafetyChecker {
    vision: VisionModel,
    special_care: Vec<Concept>,
    concepts: Vec<Concept>,
    edge: u32,
    compute: Compute,
    pool: Pool,
}

/// An embedding of length 1, and the cosine from which it is too near.
struct Concept {
    direction: Vec<f32>,
    threshold: f32,
}

impl SafetyChecker {
    /// Whether the files hold a safety checker: their own `config.json` says so, or they are a
    /// pipeline with one.
    pub(crate) fn is_in(files: &ModelFiles) -> bool {
        #[derive(Deserialize)]
        struct Named {
            architectures: Vec<String>,
        }
        let named: LoadResult<Named> = files.config("config.json");
        files.contains(&format!("{PART}/config.json"))
            || named
                .is_ok_and(|named| named.architectures.iter().any(|a| a == "StableDiffusionSafetyChecker"))
    }

    /// Opens a safety checker: its own folder, or a pipeline that has one. `threads`: 0 for one a core.
    pub fn open(
        files: &ModelFiles,
        placement: impl Into<Placement>,
        threads: usize,
    ) -> std::result::Result<Self, LoadError> {
        Self::open_on(files, placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open`], to compute on the threads of `pool`.
    pub(crate) fn open_on(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        pool.run(|| Self::load(files, placement, pool.clone()))
    }

    fn load(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        let is_part = files.contains(&format!("{PART}/config.json"));
        let (part, path) = match is_part {
            true => (PART, format!("{PART}/config.json")),
            false => ("", "config.json".to_owned()),
        };
        let config: SafetyConfig = files.config(&path)?;
        let edge = u32::try_from(config.vision_config.image_size)
            .map_err(|error| files.bad_config(&path, error.to_string()))?;
        let compute = placement.open()?;
        let weights = files.weights(part, &compute)?;
        let width = config.projection_dim;
        Ok(Self {
            vision: VisionModel::load(&weights, &config.vision_config, width)?,
            special_care: concepts(&weights, "special_care_embeds", width)?,
            concepts: concepts(&weights, "concept_embeds", width)?,
            edge,
            compute,
            pool,
        })
    }

    /// The scores of a picture of any size.
    pub fn classify(&self, picture: &RgbPicture) -> Result<SafetyScores> {
        self.pool.run(|| {
            let input = clip::preprocess(picture, self.edge, &self.compute.device)?;
            self.scores(&input.unsqueeze(0)?.to_dtype(self.compute.dtype)?)
        })
    }

    /// The scores of a prepared picture, `[1, 3, edge, edge]`.
    fn scores(&self, input: &Tensor) -> Result<SafetyScores> {
        let embedding: Vec<f32> = self
            .vision
            .forward(input)?
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .squeeze(0)?
            .to_vec1()?;
        let direction = unit(embedding);
        let mut adjustment = 0.0;
        let mut special_care = Vec::with_capacity(self.special_care.len());
        for concept in &self.special_care {
            let score = concept.score(&direction, adjustment);
            if score > 0.0 {
                adjustment = SPECIAL_CARE;
            }
            special_care.push(score);
        }
        let concepts = self.concepts.iter().map(|concept| concept.score(&direction, adjustment)).collect();
        Ok(SafetyScores { special_care, concepts })
    }
}

impl Concept {
    fn score(&self, direction: &[f32], adjustment: f32) -> f32 {
        let products = self.direction.iter().zip(direction).map(|(a, b)| f64::from(*a) * f64::from(*b));
        let score = products.sum::<f64>() as f32 - self.threshold + adjustment;
        (score * 1000.0).round_ties_even() / 1000.0
    }
}

/// Reads `name` `[concepts, width]` and `name_weights` `[concepts]`.
fn concepts(weights: &Weights, name: &str, width: usize) -> WeightsResult<Vec<Concept>> {
    let count = match weights.shape(name) {
        Some([count, _]) if *count <= MAX_CONCEPTS => *count,
        _ => {
            return Err(
                weights.unsuitable(format!("`{name}` is no list of at most {MAX_CONCEPTS} embeddings"))
            );
        }
    };
    let embeddings = weights.values(name, &[count, width])?;
    let thresholds = weights.values(&format!("{name}_weights"), &[count])?;
    let directions = embeddings.chunks_exact(width.max(1)).map(|embedding| unit(embedding.to_vec()));
    Ok(directions.zip(thresholds).map(|(direction, threshold)| Concept { direction, threshold }).collect())
}

/// The same direction with length 1.
fn unit(mut values: Vec<f32>) -> Vec<f32> {
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(1e-12);
    values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    values
}

#[cfg(test)]
#[path = "safety_tests.rs"]
mod tests;
