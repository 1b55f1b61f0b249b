//! The engine for asynchronous callers, in the protocol's words: a [`Task`] in, an [`Answer`] out.
//!
//! Invariants: what a request may ask for is checked against the model's registry entry before anything is
//! decoded; pictures are decoded under the limits of the task, off the async threads; dropping a future
//! cancels its job at the next step; an NSFW picture becomes its features here, and nothing downstream can
//! send it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use argus_models::{
    Limits, ModelId, ModelSpec, RgbPicture, diffusion,
    engine::{CancelToken, Engine, Job, JobError, JobErrorKind, JobEvent, Output, SubmitError},
    registry::ModelTask,
};
use argus_protocols::{Answer, Capability, Features, ImageHashes, NsfwScores, Task, TaskKind};
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::{
    miner::{Backend, BackendError, Step},
    verify::{Evidence, EvidenceError},
};

/// How often a job that found the queue full is offered again, by those who wait for their own engine.
const OFFER_AGAIN: Duration = Duration::from_millis(50);
/// Side of the picture whose embedding tells how long a model's embeddings are.
const PROBE_SIDE: u32 = 64;

/// An engine and what it runs. Clones share it.
#[derive(Clone)]
pub struct Jobs {
    engine: Engine,
    /// Embedding lengths by model, and that of [`Features`].
    dimensions: Arc<Dimensions>,
}

#[derive(Debug)]
struct Dimensions {
    features: usize,
    models: BTreeMap<String, usize>,
}

/// Why an answer is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum UnusableAnswer {
    #[error("the answer is of another kind than the task")]
    Kind,
    #[error("the picture cannot be read: {0}")]
    Picture(String),
    #[error("the picture is {found}, asked for was {asked}")]
    Size { asked: String, found: String },
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The answer may be good; this node could not look at it.
    #[error("this node's engine failed: {0}")]
    Engine(BackendError),
}

impl Jobs {
    /// Asks the engine for one embedding of each kind, so that the lengths of all are known.
    pub async fn new(engine: Engine) -> Result<Self, BackendError> {
        let none = Arc::new(Dimensions { features: 0, models: BTreeMap::new() });
        let mut jobs = Self { engine, dimensions: none };
        let probe = RgbPicture::from_fn(PROBE_SIDE, PROBE_SIDE, |x, y| [x as u8, y as u8, 128]);
        let mut models = BTreeMap::new();
        for spec in jobs.engine.models().iter().filter(|spec| spec.serves(ModelTask::ImageEmbedding)) {
            let job = Job::Embed { model: spec.id.clone(), pictures: vec![probe.clone()] };
            if let Output::Embeddings(all) = jobs.patiently(job).await? {
                models.insert(spec.id.to_string(), all.first().map_or(0, Vec::len));
            }
        }
        let features = jobs.features(probe).await?.clip.len();
        jobs.dimensions = Arc::new(Dimensions { features, models });
        Ok(jobs)
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn spec(&self, model: &str) -> Option<&ModelSpec> {
        self.engine.models().iter().find(|spec| spec.id.as_str() == model)
    }

    /// Length of a model's image embeddings.
    pub fn embedding_dimensions(&self, model: &str) -> Option<usize> {
        self.dimensions.models.get(model).copied()
    }

    /// A job of this engine, waited for however full its queue is.
    async fn patiently(&self, job: Job) -> Result<Output, BackendError> {
        loop {
            match self.submit(job.clone(), None).await {
                Err(BackendError::Busy) => tokio::time::sleep(OFFER_AGAIN).await,
                result => return result,
            }
        }
    }

    async fn submit(&self, job: Job, steps: Option<mpsc::Sender<Step>>) -> Result<Output, BackendError> {
        let cancel = CancelOnDrop(CancelToken::new());
        let (sender, done) = oneshot::channel();
        let mut sender = Some(sender);
        let sink = Box::new(move |event: JobEvent| match event {
            JobEvent::Started => {}
            JobEvent::Step { step, of } => {
                // A full channel means that nobody needs this one.
                let _ = steps.as_ref().map(|steps| steps.try_send(Step { step, of }));
            }
            JobEvent::Done(result) => {
                if let Some(sender) = sender.take() {
                    // Whoever asked may be gone.
                    let _ = sender.send(result);
                }
            }
        });
        self.engine.submit(job, cancel.0.clone(), sink).map_err(refused)?;
        // The engine reports the end of every job that it took.
        done.await.unwrap_or_else(|_| Err(JobError::cancelled())).map_err(failed)
    }

    /// What comparing looks at, computed here.
    pub async fn features(&self, picture: RgbPicture) -> Result<Features, BackendError> {
        match self.patiently(Job::Features { picture }).await? {
            Output::Features(features) => Ok(protocol_features(&features)),
            _ => Err(another_output()),
        }
    }

    /// This node's own answer to a task, as evidence to hold others against.
    pub async fn reference(&self, task: &Task) -> Result<Evidence, BackendError> {
        let job = self.job(task.clone()).await?;
        Ok(match self.patiently(job).await? {
            Output::Picture { features, .. } if features.is_nsfw => {
                Evidence::Withheld(protocol_features(&features))
            }
            Output::Picture { picture, features, .. } => {
                Evidence::Picture { features: protocol_features(&features), picture }
            }
            Output::Embeddings(all) => Evidence::Embeddings(all),
            Output::Features(_) | Output::Classes(_) => return Err(another_output()),
        })
    }

    /// What a miner's answer shows. Of a picture that travelled nothing is believed but its samples.
    pub async fn evidence(&self, task: &Task, answer: Answer) -> Result<Evidence, UnusableAnswer> {
        match (task, answer) {
            (Task::TextToImage(asked), Answer::Picture(png)) => {
                let picture = decode_exactly(png, asked.width, asked.height).await?;
                let features = self.features(picture.clone()).await.map_err(UnusableAnswer::Engine)?;
                Ok(Evidence::Picture { features, picture })
            }
            (Task::TextToImage(_), Answer::Nsfw(features)) => {
                Ok(Evidence::withheld(features, self.dimensions.features)?)
            }
            (Task::ImageEmbedding(asked), Answer::Embeddings(all)) => {
                let dimensions = self.embedding_dimensions(&asked.model).unwrap_or_default();
                Ok(Evidence::embeddings(all, asked.pictures.len(), dimensions)?)
            }
            _ => Err(UnusableAnswer::Kind),
        }
    }

    /// The engine's job for a task; its pictures are decoded on a blocking thread.
    async fn job(&self, task: Task) -> Result<Job, BackendError> {
        let spec = self.spec(task.model()).ok_or(BackendError::Incapable)?;
        let model = spec.id.clone();
        match task {
            Task::TextToImage(asked) => Ok(Job::Generate { model, request: request(asked) }),
            Task::ImageEmbedding(asked) => blocking(move || decode_all(model, asked.pictures)).await,
        }
    }
}

fn another_output() -> BackendError {
    BackendError::Failed("the engine gave another output than was asked for".into())
}

struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn refused(error: SubmitError) -> BackendError {
    match error {
        SubmitError::Full { .. } => BackendError::Busy,
        SubmitError::UnknownModel(_) => BackendError::Incapable,
        SubmitError::InvalidParameters(detail) => BackendError::Invalid(detail),
        SubmitError::ShuttingDown => BackendError::Cancelled,
    }
}

fn failed(error: JobError) -> BackendError {
    match error.kind {
        JobErrorKind::Cancelled | JobErrorKind::ShutDown => BackendError::Cancelled,
        JobErrorKind::OutOfMemory | JobErrorKind::Failed | JobErrorKind::Panicked => {
            BackendError::Failed(error.to_string())
        }
    }
}

fn request(asked: argus_protocols::task::TextToImage) -> diffusion::Generate {
    diffusion::Generate {
        prompt: asked.prompt,
        negative_prompt: asked.negative_prompt,
        width: asked.width,
        height: asked.height,
        steps: asked.steps as usize,
        guidance: asked.guidance,
        seed: asked.seed,
        start: diffusion::Start::Noise,
        controls: Vec::new(),
    }
}

fn decode_all(model: ModelId, files: Vec<Vec<u8>>) -> Result<Job, BackendError> {
    let decode = |file: Vec<u8>| RgbPicture::decode(&file, &Limits::default());
    let pictures = files.into_iter().map(decode).collect::<Result<_, _>>();
    Ok(Job::Embed { model, pictures: pictures.map_err(|e| BackendError::Invalid(e.to_string()))? })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|panic| Err(BackendError::Failed(panic.to_string())))
}

/// A PNG of exactly this size.
async fn decode_exactly(png: Vec<u8>, width: u32, height: u32) -> Result<RgbPicture, UnusableAnswer> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
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

/// Whether a client can be given this answer: a picture opens and has the size that was asked for, embeddings
/// are as many as pictures. All that can be said without waiting for an engine.
pub async fn opens(task: &Task, answer: &Answer) -> bool {
    match (task, answer) {
        (Task::TextToImage(asked), Answer::Picture(png)) => {
            decode_exactly(png.clone(), asked.width, asked.height).await.is_ok()
        }
        (Task::TextToImage(_), Answer::Nsfw(_)) => true,
        (Task::ImageEmbedding(asked), Answer::Embeddings(all)) => all.len() == asked.pictures.len(),
        _ => false,
    }
}

/// The features of the models crate, which knows no protocol, in the protocol's form.
fn protocol_features(features: &argus_models::features::Features) -> Features {
    let (hashes, nsfw) = (features.hashes, features.nsfw);
    Features {
        hashes: ImageHashes {
            average: hashes.average,
            perceptual: hashes.perceptual,
            difference: hashes.difference,
            colour: hashes.colour,
        },
        clip: features.clip.clone(),
        nsfw: NsfwScores {
            drawing: nsfw.drawing,
            hentai: nsfw.hentai,
            neutral: nsfw.neutral,
            porn: nsfw.porn,
            sexy: nsfw.sexy,
        },
    }
}

/// The registry's word for a task.
pub fn model_task(task: TaskKind) -> ModelTask {
    match task {
        TaskKind::TextToImage => ModelTask::TextToImage,
        TaskKind::ImageEmbedding => ModelTask::ImageEmbedding,
    }
}

fn tasks(spec: &ModelSpec) -> Vec<TaskKind> {
    TaskKind::ALL.into_iter().filter(|task| spec.serves(model_task(*task))).collect()
}

#[async_trait]
impl Backend for Jobs {
    async fn warm_up(&self) -> Vec<Capability> {
        // The engine ran each model before it started; one that failed kept it from starting.
        let slots = self.slots();
        let capability = |spec: &ModelSpec| {
            let measured = self.engine.capacity().iter().find(|c| c.model == spec.id)?;
            Some(Capability {
                model: spec.id.to_string(),
                tasks: tasks(spec).into_iter().map(TaskKind::code).collect(),
                work_units_per_second: (1.0 / measured.seconds_per_unit) as f32,
                concurrency: u16::try_from(slots).unwrap_or(u16::MAX),
            })
        };
        self.engine.models().iter().filter_map(capability).collect()
    }

    fn slots(&self) -> usize {
        self.engine.snapshot().replicas.max(1)
    }

    fn usual_work(&self, task: TaskKind, model: &str) -> Option<f64> {
        let spec = self.spec(model).filter(|spec| spec.serves(model_task(task)))?;
        Some(spec.work_units)
    }

    fn work(&self, task: &Task) -> Result<f64, BackendError> {
        let spec = self.spec(task.model()).ok_or(BackendError::Incapable)?;
        if !spec.serves(model_task(task.kind())) {
            return Err(BackendError::Incapable);
        }
        match task {
            Task::TextToImage(asked) => {
                let request = request(asked.clone());
                spec.check(&request).map_err(|error| BackendError::Invalid(error.to_string()))?;
                Ok(spec.picture_work(asked.width, asked.height, request.steps))
            }
            Task::ImageEmbedding(asked) => Ok(spec.work_units * asked.pictures.len() as f64),
        }
    }

    async fn run(&self, task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        let job = self.job(task).await?;
        Ok(match self.submit(job, Some(steps)).await? {
            Output::Picture { features, .. } if features.is_nsfw => {
                Answer::Nsfw(protocol_features(&features))
            }
            Output::Picture { png, .. } => Answer::Picture(png),
            Output::Embeddings(all) => Answer::Embeddings(all),
            Output::Features(_) | Output::Classes(_) => return Err(another_output()),
        })
    }
}

/// Whether two honest answers of this model agree to the bit.
pub fn is_exact(spec: &ModelSpec) -> bool {
    spec.numerics.is_exact()
}

/// One sentence about a model for people.
pub fn description(spec: &ModelSpec) -> String {
    format!("{} ({})", spec.architecture.title(), spec.id)
}
