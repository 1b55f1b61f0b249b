//! What an engine can be asked for, and what it gives.

use crate::{
    diffusion::{Audited, Generate, Shown, Start},
    features::Features,
    nsfw::NsfwScores,
    picture::RgbPicture,
    registry::{ModelId, ModelSpec, ModelTask, Registry},
};

use super::SubmitError;

/// The most pictures or texts that one job embeds.
pub const MAX_EMBEDDINGS_PER_JOB: usize = 16;
/// The most pixels of a picture that is embedded or described.
pub const MAX_PICTURE_PIXELS: u64 = 16 << 20;
/// The longest text that is embedded, in bytes.
pub const MAX_TEXT_BYTES: usize = crate::tokenizer::MAX_PROMPT_BYTES;

/// One piece of work.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// A picture by diffusion, with its file and features.
    Generate { model: ModelId, request: Generate },
    /// The same, and each state of the sampler is reported ([`super::JobEvent::State`]) where the model's
    /// sampler has any to show.
    Trace { model: ModelId, request: Generate },
    /// Some steps of somebody else's run, taken again.
    Audit { model: ModelId, request: Generate, shown: Box<Shown> },
    /// A unit vector for each picture.
    Embed { model: ModelId, pictures: Vec<RgbPicture> },
    /// A unit vector for each text, in the space of the pictures' vectors.
    EmbedTexts { model: ModelId, texts: Vec<String> },
    /// The same picture with `factor` times as many pixels along each edge.
    Upscale { model: ModelId, picture: RgbPicture, factor: u32 },
    /// What each picture shows, by the classes of an NSFW classifier.
    Classify { model: ModelId, pictures: Vec<RgbPicture> },
    /// Features of a picture from elsewhere.
    Features { picture: RgbPicture },
}

/// What a job gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Picture {
        picture: RgbPicture,
        /// The picture as a PNG file.
        png: Vec<u8>,
        features: Features,
    },
    /// One for each picture or text, in order.
    Embeddings(Vec<Vec<f32>>),
    /// One for each picture, in order.
    Classes(Vec<NsfwScores>),
    Features(Features),
    Audited(Audited),
}

impl Job {
    /// The model that the job names; [`Job::Features`] needs none of them.
    pub fn model(&self) -> Option<&ModelId> {
        match self {
            Self::Generate { model, .. }
            | Self::Trace { model, .. }
            | Self::Audit { model, .. }
            | Self::Upscale { model, .. }
            | Self::Classify { model, .. }
            | Self::Embed { model, .. }
            | Self::EmbedTexts { model, .. } => Some(model),
            Self::Features { .. } => None,
        }
    }

    /// Holds the job against what its model allows.
    pub fn check(&self, registry: &Registry) -> Result<(), SubmitError> {
        let invalid = |detail: String| Err(SubmitError::InvalidParameters(detail));
        match self {
            Self::Generate { model, request }
            | Self::Trace { model, request }
            | Self::Audit { model, request, .. } => {
                let spec = find(registry, model, request.task())?;
                if request.start != Start::Noise {
                    find(registry, model, request.start_task())?;
                }
                request.pictures().try_for_each(check_picture)?;
                let checked = spec.check(request).and_then(|()| request.check_start());
                checked.map_err(|error| SubmitError::InvalidParameters(error.to_string()))
            }
            Self::Embed { model, pictures } => {
                find(registry, model, ModelTask::ImageEmbedding)?;
                check_count(pictures.len(), "pictures")?;
                pictures.iter().try_for_each(check_picture)
            }
            Self::EmbedTexts { model, texts } => {
                find(registry, model, ModelTask::ImageEmbedding)?;
                check_count(texts.len(), "texts")?;
                match texts.iter().map(String::len).find(|&bytes| bytes > MAX_TEXT_BYTES) {
                    Some(bytes) => {
                        invalid(format!("a text has {bytes} bytes; at most {MAX_TEXT_BYTES} are accepted"))
                    }
                    None => Ok(()),
                }
            }
            Self::Upscale { model, picture, factor } => {
                let spec = find(registry, model, ModelTask::Upscale)?;
                let Some(limits) = &spec.upscale else {
                    return invalid(format!("model `{model}` does not upscale"));
                };
                if !limits.factors.contains(factor) {
                    return invalid(format!(
                        "factor is {factor}, but it must be one of {:?}",
                        limits.factors
                    ));
                }
                if !limits.contains(picture.width(), picture.height()) {
                    return invalid(format!(
                        "a picture of {}×{}; edges of at most {} pixels are upscaled",
                        picture.width(),
                        picture.height(),
                        limits.max_edge
                    ));
                }
                check_picture(picture)
            }
            Self::Classify { model, pictures } => {
                find(registry, model, ModelTask::NsfwClassification)?;
                check_count(pictures.len(), "pictures")?;
                pictures.iter().try_for_each(check_picture)
            }
            Self::Features { picture } => check_picture(picture),
        }
    }

    /// Work units of the job by its model's spec; `None` for [`Job::Features`]
    /// and for models that the registry does not have.
    pub fn work(&self, registry: &Registry) -> Option<f64> {
        let spec = registry.get(self.model()?.as_str())?;
        match self {
            Self::Generate { request, .. } | Self::Trace { request, .. } => {
                Some(spec.picture_work(request.width, request.height, request.steps))
            }
            // Decoding is a step's work, or less.
            Self::Audit { request, shown, .. } => {
                Some(spec.picture_work(request.width, request.height, shown.steps.len() + 1))
            }
            Self::Upscale { picture, .. } => Some(spec.upscale_work(picture.width(), picture.height())),
            Self::Embed { pictures, .. } | Self::Classify { pictures, .. } => {
                Some(spec.work_units * pictures.len() as f64)
            }
            Self::EmbedTexts { texts, .. } => Some(spec.work_units * texts.len() as f64),
            Self::Features { .. } => None,
        }
    }
}

fn find<'a>(registry: &'a Registry, model: &ModelId, task: ModelTask) -> Result<&'a ModelSpec, SubmitError> {
    let spec = registry.get(model.as_str()).ok_or_else(|| SubmitError::UnknownModel(model.to_string()))?;
    if spec.serves(task) {
        Ok(spec)
    } else {
        Err(SubmitError::InvalidParameters(format!("model `{model}` does not serve {task}")))
    }
}

fn check_count(count: usize, what: &str) -> Result<(), SubmitError> {
    if (1..=MAX_EMBEDDINGS_PER_JOB).contains(&count) {
        return Ok(());
    }
    Err(SubmitError::InvalidParameters(format!("{count} {what}; 1 to {MAX_EMBEDDINGS_PER_JOB} are accepted")))
}

fn check_picture(picture: &RgbPicture) -> Result<(), SubmitError> {
    let (width, height) = (picture.width(), picture.height());
    if u64::from(width) * u64::from(height) <= MAX_PICTURE_PIXELS {
        return Ok(());
    }
    Err(SubmitError::InvalidParameters(format!(
        "a picture of {width}×{height}; at most {MAX_PICTURE_PIXELS} pixels are accepted"
    )))
}
