//! The JSON that a worker and whoever asks it exchange: `POST /generate` and `GET /info`.
//!
//! A plain text-to-image request and its answer are those of NicheImage's miner endpoints: `prompt`, `seed`,
//! `pipeline_type`, `pipeline_params` in diffusers' words, and a base64 `image` back. Everything else is
//! added to that. Unknown keys are let pass, so that either side may be newer.

use argus_models::{ModelSpec, registry::ModelTask};
use argus_protocols::{
    Answer, Features, ImageHashes, NsfwScores, Task, TaskKind, limits,
    task::{Control, ControlKind, Generation, Pads, Pictures, Start, Upscale},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// The largest request or answer: base64 of the largest body, and the words around it.
pub const MAX_BYTES: usize = limits::BODY / 3 * 4 + (1 << 20);
/// The largest `/info`.
pub const MAX_INFO_BYTES: usize = 256 << 10;

/// Bytes of a file, in base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct File(pub Vec<u8>);

impl TryFrom<String> for File {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        STANDARD.decode(text).map(Self).map_err(|error| format!("a file is no base64: {error}"))
    }
}

impl From<File> for String {
    fn from(file: File) -> Self {
        STANDARD.encode(file.0)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pipeline {
    Txt2img,
    Img2img,
    Inpaint,
    Uncrop,
    /// Words and `controls` alone; the others may be steered as well.
    Controlnet,
    Upscale,
    Embedding,
    Nsfw,
}

impl Pipeline {
    fn task(self, controls: &[ControlImage]) -> Result<ModelTask, String> {
        let steered = controls.first().map(|control| match control.kind {
            ControlKind::Scribble => ModelTask::Scribble,
            ControlKind::Canny => ModelTask::Canny,
            ControlKind::Depth => ModelTask::Depth,
        });
        Ok(match self {
            Pipeline::Upscale => ModelTask::Upscale,
            Pipeline::Embedding => ModelTask::ImageEmbedding,
            Pipeline::Nsfw => ModelTask::NsfwClassification,
            Pipeline::Controlnet => steered.ok_or("controls are missing")?,
            _ if steered.is_some() => steered.ok_or("controls are missing")?,
            Pipeline::Txt2img => ModelTask::TextToImage,
            Pipeline::Img2img => ModelTask::ImageToImage,
            Pipeline::Inpaint => ModelTask::Inpaint,
            Pipeline::Uncrop => ModelTask::Uncrop,
        })
    }
}

/// `POST /generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub pipeline_type: Pipeline,
    /// The first model that serves the pipeline where it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    #[serde(default)]
    pub prompt: String,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub pipeline_params: Parameters,
    /// What img2img, inpaint, uncrop and upscale begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_image: Option<File>,
    /// White where inpaint makes it anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_image: Option<File>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<ControlImage>,
    /// What embedding and nsfw look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<File>,
}

/// Parameters by the names that diffusers gives them; the model's defaults where they are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pads: Option<PadSizes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<u32>,
}

/// How far uncrop lets a picture grow, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PadSizes {
    pub left: u32,
    pub right: u32,
    pub top: u32,
    pub bottom: u32,
}

/// A picture that steers another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlImage {
    pub kind: ControlKind,
    pub image: File,
    /// Whether it is lines or depth already, and not a picture to find them in.
    #[serde(default)]
    pub is_prepared: bool,
    #[serde(default = "as_trained")]
    pub scale: f32,
}

fn as_trained() -> f32 {
    1.0
}

/// What a worker answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// PNG, JPEG or WebP.
    Image(File),
    /// The picture was not safe for work; what it is compared by.
    Nsfw(NsfwFeatures),
    Embeddings(Vec<Vec<f32>>),
    Classes(Vec<Scores>),
}

/// [`Features`] in JSON; the hashes in hexadecimal, since not every reader's numbers have 64 bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NsfwFeatures {
    /// average, perceptual, difference, colour.
    pub hashes: [String; 4],
    pub clip: Vec<f32>,
    pub scores: Scores,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub drawing: f32,
    pub hentai: f32,
    pub neutral: f32,
    pub porn: f32,
    pub sexy: f32,
}

/// What a worker answers in place of that, with a status that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub error: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// invalid, incapable, busy, cancelled, failed, unauthorised.
    pub reason: String,
    pub message: String,
}

/// `GET /info`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The only word of NicheImage's endpoints; the first of the models.
    pub model_name: String,
    #[serde(default)]
    pub models: Vec<ModelInfo>,
    /// Requests that are worked at at the same time.
    #[serde(default = "one")]
    pub slots: usize,
}

fn one() -> usize {
    1
}

/// One model of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub id: String,
    pub tasks: Vec<TaskKind>,
    /// By its warm-up.
    pub work_units_per_second: f32,
}

impl Request {
    /// What the task says.
    pub fn of(task: &Task) -> Self {
        let request = |pipeline_type, model: &str| Self {
            pipeline_type,
            model_name: Some(model.to_owned()),
            prompt: String::new(),
            seed: 0,
            pipeline_params: Parameters::default(),
            init_image: None,
            mask_image: None,
            controls: Vec::new(),
            images: Vec::new(),
        };
        let files = |pictures: &[Vec<u8>]| pictures.iter().cloned().map(File).collect();
        match task {
            Task::Generation(asked) => Self::of_generation(asked),
            Task::Upscale(asked) => Self {
                init_image: Some(File(asked.picture.clone())),
                pipeline_params: Parameters { factor: Some(asked.factor), ..Parameters::default() },
                ..request(Pipeline::Upscale, &asked.model)
            },
            Task::ImageEmbedding(asked) => {
                Self { images: files(&asked.pictures), ..request(Pipeline::Embedding, &asked.model) }
            }
            Task::NsfwClassification(asked) => {
                Self { images: files(&asked.pictures), ..request(Pipeline::Nsfw, &asked.model) }
            }
        }
    }

    fn of_generation(asked: &Generation) -> Self {
        let file = |bytes: &Vec<u8>| Some(File(bytes.clone()));
        let (pipeline_type, init_image, mask_image, strength, pads) = match &asked.start {
            Start::Noise if asked.controls.is_empty() => (Pipeline::Txt2img, None, None, None, None),
            Start::Noise => (Pipeline::Controlnet, None, None, None, None),
            Start::Picture { picture, strength } => {
                (Pipeline::Img2img, file(picture), None, Some(*strength), None)
            }
            Start::Inpaint { picture, mask, strength } => {
                (Pipeline::Inpaint, file(picture), file(mask), Some(*strength), None)
            }
            Start::Uncrop { picture, pads } => (Pipeline::Uncrop, file(picture), None, None, Some(*pads)),
        };
        let control = |control: &Control| ControlImage {
            kind: control.kind,
            image: File(control.picture.clone()),
            is_prepared: control.is_prepared,
            scale: control.scale,
        };
        Self {
            pipeline_type,
            model_name: Some(asked.model.clone()),
            prompt: asked.prompt.clone(),
            seed: asked.seed,
            pipeline_params: Parameters {
                width: Some(asked.width),
                height: Some(asked.height),
                num_inference_steps: Some(asked.steps),
                guidance_scale: Some(asked.guidance),
                negative_prompt: asked.negative_prompt.clone(),
                strength,
                pads: pads.map(|Pads { left, right, top, bottom }| PadSizes { left, right, top, bottom }),
                factor: None,
            },
            init_image,
            mask_image,
            controls: asked.controls.iter().map(control).collect(),
            images: Vec::new(),
        }
    }

    /// The task that this asks of one of these models.
    pub fn into_task(self, models: &[ModelSpec]) -> Result<Task, String> {
        let task = self.pipeline_type.task(&self.controls)?;
        let spec = match &self.model_name {
            Some(name) => models
                .iter()
                .find(|spec| spec.id.as_str().eq_ignore_ascii_case(name))
                .ok_or_else(|| format!("there is no model `{name}` here"))?,
            None => models
                .iter()
                .find(|spec| spec.serves(task))
                .ok_or_else(|| format!("no model here serves {task}"))?,
        };
        let model = spec.id.to_string();
        let pictures = |files: Vec<File>| files.into_iter().map(|file| file.0).collect();
        let task = match self.pipeline_type {
            Pipeline::Embedding => Task::ImageEmbedding(Pictures { model, pictures: pictures(self.images) }),
            Pipeline::Nsfw => Task::NsfwClassification(Pictures { model, pictures: pictures(self.images) }),
            Pipeline::Upscale => {
                let default = spec.upscale.as_ref().and_then(|limits| limits.factors.first().copied());
                let factor = self.pipeline_params.factor.or(default).unwrap_or_default();
                let picture = self.init_image.ok_or("init_image is missing")?.0;
                Task::Upscale(Upscale { model, picture, factor })
            }
            _ => Task::Generation(self.into_generation(spec)?),
        };
        task.check().map_err(|error| error.to_string())?;
        Ok(task)
    }

    fn into_generation(self, spec: &ModelSpec) -> Result<Generation, String> {
        let Some(limits) = &spec.pictures else {
            return Err(format!("model `{}` makes no pictures from words", spec.id));
        };
        let parameters = self.pipeline_params;
        let strength = parameters.strength.unwrap_or(limits.strength.default);
        let picture = self.init_image.map(|file| file.0).ok_or("init_image is missing");
        let start = match self.pipeline_type {
            Pipeline::Img2img => Start::Picture { picture: picture?, strength },
            Pipeline::Inpaint => {
                let mask = self.mask_image.ok_or("mask_image is missing")?.0;
                Start::Inpaint { picture: picture?, mask, strength }
            }
            Pipeline::Uncrop => {
                let PadSizes { left, right, top, bottom } =
                    parameters.pads.ok_or("pipeline_params.pads is missing")?;
                Start::Uncrop { picture: picture?, pads: Pads { left, right, top, bottom } }
            }
            _ => Start::Noise,
        };
        let control = |control: ControlImage| Control {
            kind: control.kind,
            picture: control.image.0,
            is_prepared: control.is_prepared,
            scale: control.scale,
        };
        Ok(Generation {
            model: spec.id.to_string(),
            prompt: self.prompt,
            negative_prompt: parameters.negative_prompt,
            width: parameters.width.unwrap_or(limits.size.default),
            height: parameters.height.unwrap_or(limits.size.default),
            steps: parameters.num_inference_steps.unwrap_or(limits.steps.default as u32),
            guidance: parameters.guidance_scale.unwrap_or(limits.guidance.default),
            seed: self.seed,
            start,
            controls: self.controls.into_iter().map(control).collect(),
        })
    }
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Picture(png) => Response::Image(File(png)),
            Answer::Nsfw(features) => Response::Nsfw(features.into()),
            Answer::Embeddings(all) => Response::Embeddings(all),
            Answer::Classes(all) => Response::Classes(all.into_iter().map(Scores::from).collect()),
        }
    }
}

impl From<Features> for NsfwFeatures {
    fn from(features: Features) -> Self {
        let ImageHashes { average, perceptual, difference, colour } = features.hashes;
        let hashes = [average, perceptual, difference, colour].map(|hash| format!("{hash:016x}"));
        Self { hashes, clip: features.clip, scores: features.nsfw.into() }
    }
}

impl TryFrom<NsfwFeatures> for Features {
    type Error = String;

    fn try_from(features: NsfwFeatures) -> Result<Self, String> {
        let mut hashes = [0; 4];
        for (hash, text) in hashes.iter_mut().zip(&features.hashes) {
            *hash = u64::from_str_radix(text, 16).map_err(|error| format!("a hash is no number: {error}"))?;
        }
        let [average, perceptual, difference, colour] = hashes;
        let hashes = ImageHashes { average, perceptual, difference, colour };
        Ok(Self { hashes, clip: features.clip, nsfw: features.scores.into() })
    }
}

impl From<NsfwScores> for Scores {
    fn from(scores: NsfwScores) -> Self {
        let NsfwScores { drawing, hentai, neutral, porn, sexy } = scores;
        Self { drawing, hentai, neutral, porn, sexy }
    }
}

impl From<Scores> for NsfwScores {
    fn from(scores: Scores) -> Self {
        let Scores { drawing, hentai, neutral, porn, sexy } = scores;
        Self { drawing, hentai, neutral, porn, sexy }
    }
}

/// A response, or the bare base64 string that NicheImage's first endpoints answered.
pub fn parse_response(body: &[u8]) -> Result<Response, String> {
    let answer = match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'"') => serde_json::from_slice(body).map(Response::Image),
        _ => serde_json::from_slice(body),
    };
    answer.map_err(|error| format!("the worker's answer cannot be read: {error}"))
}
