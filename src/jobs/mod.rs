//! The engine for asynchronous callers, in the protocol's words: a [`Task`] in, an [`Answer`] out.
//!
//! Invariants: what a request may ask for is checked against the model's registry entry before anything is
//! decoded; pictures are decoded under the limits of the task, off the async threads; dropping a future
//! cancels its job at the next step; an NSFW picture becomes its features here, and nothing downstream can
//! send it.

mod pictures;
#[cfg(test)]
mod tests;
mod translate;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use argus_models::{
    LatentEncoder, LoadError, ModelSpec, RgbPicture,
    diffusion::{Audited, Shown},
    engine::{CancelToken, Engine, Job, JobError, JobErrorKind, JobEvent, Output, SubmitError},
    registry::{Architecture, ModelTask},
};
use argus_protocols::{
    Answer, Capability, Features, Task, TaskKind,
    task::{Generation, Start},
};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

pub use pictures::{answer_size, opens};
pub use translate::{card, is_exact, model_task, tasks, upscale_factors};

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
    /// Looks at pictures whose model drifts with the hardware; absent where none does.
    latents: Option<Arc<LatentEncoder>>,
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
        let latents = match engine.models().iter().all(is_exact) {
            true => None,
            false => Some(Arc::new(off_async(|| LatentEncoder::embedded(1)).await?.map_err(not_loaded)?)),
        };
        let mut jobs = Self { engine, dimensions: none, latents };
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
        self.submit_traced(job, steps, |_| ()).await
    }

    /// `hear` is given each state that the job reports, on the engine's thread.
    async fn submit_traced(
        &self,
        job: Job,
        steps: Option<mpsc::Sender<Step>>,
        mut hear: impl FnMut(Vec<u8>) + Send + 'static,
    ) -> Result<Output, BackendError> {
        let cancel = CancelOnDrop(CancelToken::new());
        let (sender, done) = oneshot::channel();
        let mut sender = Some(sender);
        let sink = Box::new(move |event: JobEvent| match event {
            JobEvent::Started => {}
            JobEvent::Step { step, of } => {
                // A full channel means that nobody needs this one.
                let _ = steps.as_ref().map(|steps| steps.try_send(Step { step, of }));
            }
            JobEvent::State(state) => hear(state),
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
            Output::Features(features) => Ok(translate::features(&features)),
            _ => Err(another_output()),
        }
    }

    /// What the autoencoder sees in a picture, where answers to a task drift with the hardware.
    async fn latents(&self, task: &Task, picture: &RgbPicture) -> Result<Vec<f32>, BackendError> {
        let drifts = self.spec(task.model()).is_some_and(|spec| !is_exact(spec));
        let Some(encoder) = self.latents.clone().filter(|_| drifts) else { return Ok(Vec::new()) };
        let picture = picture.clone();
        let encoded = off_async(move || encoder.encode(&picture).map_err(|error| error.to_string())).await?;
        encoded.map_err(BackendError::Failed)
    }

    /// This node's own answer to a task, as evidence to hold others against.
    pub async fn reference(&self, task: &Task) -> Result<Evidence, BackendError> {
        let job = self.job(task.clone()).await?;
        Ok(match self.patiently(job).await? {
            Output::Picture { features, .. } if features.is_nsfw => {
                Evidence::Withheld(translate::features(&features))
            }
            Output::Picture { picture, features, .. } => {
                let latents = self.latents(task, &picture).await?;
                Evidence::Picture { features: translate::features(&features), picture, latents }
            }
            Output::Embeddings(all) => Evidence::Embeddings(all),
            Output::Classes(all) => Evidence::Classes(all.into_iter().map(translate::scores).collect()),
            Output::Features(_) | Output::Audited(_) => return Err(another_output()),
        })
    }

    /// Whether runs that answer this task have states that could be shown.
    pub fn has_trajectory(&self, task: &Task) -> bool {
        let is_covered = |spec: &ModelSpec| spec.architecture == Architecture::StableDiffusion;
        matches!(task, Task::Generation(_)) && self.spec(task.model()).is_some_and(is_covered)
    }

    /// Takes some `steps` of a miner's run again, from the states of it that were opened by their indices;
    /// `states`: how many the miner says there are.
    pub async fn audit(
        &self,
        task: &Task,
        answer: Answer,
        opened: Vec<(u32, Vec<u8>)>,
        steps: &[u32],
        states: u32,
    ) -> Result<Audited, UnusableAnswer> {
        let Answer::Picture(png) = answer else { return Err(UnusableAnswer::Kind) };
        let picture = pictures::answered(task, png).await?;
        let Job::Generate { model, request } =
            self.job(task.clone()).await.map_err(UnusableAnswer::Engine)?
        else {
            return Err(UnusableAnswer::Kind);
        };
        let shown = Box::new(Shown {
            states: states as usize,
            opened: opened.into_iter().map(|(index, state)| (index as usize, state)).collect(),
            steps: steps.iter().map(|step| *step as usize).collect(),
            picture,
        });
        match self.patiently(Job::Audit { model, request, shown }).await.map_err(UnusableAnswer::Engine)? {
            Output::Audited(audited) => Ok(audited),
            _ => Err(UnusableAnswer::Engine(another_output())),
        }
    }

    /// What a miner's answer shows. Of a picture that travelled nothing is believed but its samples.
    pub async fn evidence(&self, task: &Task, answer: Answer) -> Result<Evidence, UnusableAnswer> {
        if !answer.answers(task) {
            return Err(UnusableAnswer::Kind);
        }
        match answer {
            Answer::Picture(png) => {
                let picture = pictures::answered(task, png).await?;
                let features = self.features(picture.clone()).await.map_err(UnusableAnswer::Engine)?;
                let latents = self.latents(task, &picture).await.map_err(UnusableAnswer::Engine)?;
                Ok(Evidence::Picture { features, picture, latents })
            }
            Answer::Nsfw(features) => Ok(Evidence::withheld(features, self.dimensions.features)?),
            Answer::Embeddings(all) => {
                let dimensions = self.embedding_dimensions(task.model()).unwrap_or_default();
                Ok(Evidence::embeddings(all, dimensions)?)
            }
            Answer::Classes(all) => Ok(Evidence::Classes(all)),
        }
    }

    /// The engine's job for a task; its pictures are decoded on a blocking thread.
    async fn job(&self, task: Task) -> Result<Job, BackendError> {
        let spec = self.spec(task.model()).ok_or(BackendError::Incapable)?;
        pictures::job(spec.id.clone(), task).await
    }
}

/// What a control adds to a step: its network is the half of the one it steers.
const CONTROL_WORK: f64 = 0.5;

/// Work units of a generation: of the steps that are run, with what its controls add to each.
fn generation_work(spec: &ModelSpec, asked: &Generation) -> f64 {
    let share = match &asked.start {
        Start::Noise | Start::Uncrop { .. } => 1.0,
        Start::Picture { strength, .. } | Start::Inpaint { strength, .. } => f64::from(*strength),
    };
    let steps = (f64::from(asked.steps) * share).ceil().max(1.0) as usize;
    let controls = 1.0 + CONTROL_WORK * asked.controls.len() as f64;
    spec.picture_work(asked.width, asked.height, steps) * controls
}

/// The one part of a start that can be checked before its picture is decoded.
fn check_strength(spec: &ModelSpec, asked: &Generation) -> Result<(), BackendError> {
    let (Start::Picture { strength, .. } | Start::Inpaint { strength, .. }) = &asked.start else {
        return Ok(());
    };
    match &spec.pictures {
        Some(limits) if !limits.strength.contains(*strength) => Err(BackendError::Invalid(format!(
            "strength is {strength}, but it must be {} to {}",
            limits.strength.min, limits.strength.max
        ))),
        _ => Ok(()),
    }
}

/// Holds a task against what its model allows, before anything in it is decoded, and says how much work it is.
pub fn work(spec: &ModelSpec, task: &Task) -> Result<f64, BackendError> {
    let serves = |kind| spec.serves(model_task(kind));
    match task {
        Task::Generation(asked) if asked.parts().all(serves) => {
            let plain = pictures::plain(asked);
            spec.check(&plain).map_err(|error| BackendError::Invalid(error.to_string()))?;
            check_strength(spec, asked)?;
            Ok(generation_work(spec, asked))
        }
        Task::Upscale(asked) if serves(TaskKind::Upscale) => {
            answer_size(task)?;
            let (width, height) = pictures::size_to_upscale(asked)?;
            if let Some(limits) = spec.upscale.as_ref().filter(|limits| !limits.contains(width, height)) {
                return Err(BackendError::Invalid(format!(
                    "the picture is {width}×{height}; at most {} a side are upscaled",
                    limits.max_edge
                )));
            }
            Ok(spec.upscale_work(width, height))
        }
        Task::ImageEmbedding(asked) | Task::NsfwClassification(asked) if serves(task.kind()) => {
            Ok(spec.work_units * asked.pictures.len() as f64)
        }
        _ => Err(BackendError::Incapable),
    }
}

/// Work that would hold up an async thread.
async fn off_async<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BackendError> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| BackendError::Failed(panic.to_string()))
}

fn not_loaded(error: LoadError) -> BackendError {
    BackendError::Failed(error.to_string())
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
        work(self.spec(task.model()).ok_or(BackendError::Incapable)?, task)
    }

    async fn run(&self, task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        let job = self.job(task).await?;
        answer_of(self.submit(job, Some(steps)).await?)
    }

    async fn run_traced(
        &self,
        task: Task,
        steps: mpsc::Sender<Step>,
        most: usize,
    ) -> Result<(Answer, Vec<Vec<u8>>), BackendError> {
        let job = match self.job(task).await? {
            Job::Generate { model, request } if most > 0 => Job::Trace { model, request },
            other => other,
        };
        let heard = Arc::new(Mutex::new(Heard { states: Vec::new(), left: Some(most) }));
        let keeping = heard.clone();
        let output = self.submit_traced(job, Some(steps), move |state| keeping.lock().keep(state)).await?;
        let answer = answer_of(output)?;
        let states = match answer {
            Answer::Picture(_) => std::mem::take(&mut heard.lock().states),
            _ => Vec::new(),
        };
        Ok((answer, states))
    }
}

/// The states of a run on its way.
struct Heard {
    states: Vec<Vec<u8>>,
    /// Bytes that there is room for; `None` when there were too many.
    left: Option<usize>,
}

impl Heard {
    fn keep(&mut self, state: Vec<u8>) {
        self.left = self.left.and_then(|left| left.checked_sub(state.len()));
        match self.left {
            Some(_) => self.states.push(state),
            None => self.states = Vec::new(),
        }
    }
}

fn answer_of(output: Output) -> Result<Answer, BackendError> {
    Ok(match output {
        Output::Picture { features, .. } if features.is_nsfw => Answer::Nsfw(translate::features(&features)),
        Output::Picture { png, .. } => Answer::Picture(png),
        Output::Embeddings(all) => Answer::Embeddings(all),
        Output::Classes(all) => Answer::Classes(all.into_iter().map(translate::scores).collect()),
        Output::Features(_) | Output::Audited(_) => return Err(another_output()),
    })
}
