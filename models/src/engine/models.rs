//! The backend that runs the registry's models.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use crate::{
    clip::Clip,
    device::{DeviceError, DeviceKind},
    diffusion::{
        Audited, ControlKind, Generate, GenerateError, Pipeline, SchedulerError, SchedulerKind, Shown,
        StepControl,
    },
    embedded,
    features::{Features, ImageHashes},
    kandinsky::KandinskyPipeline,
    loader::{LoadError, ModelFiles},
    nsfw::{NsfwClassifier, NsfwModel, NsfwScores},
    picture::RgbPicture,
    placement::Placement,
    pool::Pool,
    registry::{Architecture, LoraSpec, ModelId, ModelSource, ModelSpec, ModelTask},
    upscale::Upscaler,
};

use super::{
    Job, Output, StartError,
    delivery::{JobError, JobErrorKind},
    workers::{Backend, Control},
};

/// The CLIP model of [`Features`]. It is in the binary and always runs on the processor in f32, so
/// that everybody describes the same picture by the same numbers.
pub const FEATURE_CLIP: &str = "clip-tiny";

/// A model that makes pictures from words.
enum Painter {
    StableDiffusion(Box<Pipeline>),
    Kandinsky(Box<KandinskyPipeline>),
}

impl Painter {
    fn open(spec: &ModelSpec, placement: Placement) -> Result<Self, LoadError> {
        let (files, pool) = (spec.files(), Pool::current());
        let mut painter = if spec.architecture == Architecture::Kandinsky {
            Self::Kandinsky(Box::new(KandinskyPipeline::open_folder_on(&files, placement, pool)?))
        } else {
            let control = |kind: &ControlKind| Some((*kind, spec.control_files(*kind)?));
            let controls: Vec<_> = spec.controls.keys().filter_map(control).collect();
            let with_lora = |files: ModelFiles, (lora, spec): (ModelFiles, &LoraSpec)| {
                files.with_lora(&lora, &spec.file, spec.scale)
            };
            let files = spec.lora_files().into_iter().try_fold(files.clone(), with_lora)?;
            Self::StableDiffusion(Box::new(Pipeline::open_on(&files, &controls, placement, pool)?))
        };
        if let Some(kind) = spec.scheduler {
            let unfit = |error| files.bad_config("scheduler", format!("{kind}: {error}"));
            painter.set_scheduler(kind).map_err(unfit)?;
        }
        Ok(painter)
    }

    fn set_scheduler(&mut self, kind: SchedulerKind) -> Result<(), SchedulerError> {
        match self {
            Self::StableDiffusion(pipeline) => pipeline.set_scheduler(kind),
            Self::Kandinsky(pipeline) => pipeline.set_scheduler(kind),
        }
    }

    fn edge_multiple(&self) -> usize {
        match self {
            Self::StableDiffusion(pipeline) => pipeline.edge_multiple(),
            Self::Kandinsky(pipeline) => pipeline.edge_multiple(),
        }
    }

    fn can(&self, task: ModelTask) -> bool {
        match self {
            Self::StableDiffusion(pipeline) => pipeline.can(task),
            Self::Kandinsky(pipeline) => pipeline.can(task),
        }
    }

    fn generate(
        &self,
        request: &Generate,
        control: &mut (dyn StepControl + Send),
    ) -> Result<RgbPicture, GenerateError> {
        match self {
            Self::StableDiffusion(pipeline) => pipeline.generate(request, control),
            Self::Kandinsky(pipeline) => pipeline.generate(request, control),
        }
    }
}

/// The models of one device, shared by its replicas.
pub(super) struct Models {
    painters: BTreeMap<ModelId, Painter>,
    upscalers: BTreeMap<ModelId, Upscaler>,
    classifiers: BTreeMap<ModelId, NsfwModel>,
    clips: BTreeMap<ModelId, Arc<Clip>>,
    feature_clip: Arc<Clip>,
    nsfw: NsfwClassifier,
}

impl Models {
    /// Loads models onto a device. Layers run in the pool that the caller is in.
    pub(super) fn load(device: DeviceKind, specs: &[ModelSpec]) -> Result<Self, StartError> {
        let failed = |model: &str| {
            let model = model.to_owned();
            move |source: LoadError| StartError::Model { model, device, source }
        };
        let clip = embedded::find(FEATURE_CLIP).expect("the feature model is in the binary");
        let clip = Clip::open_on(&clip, DeviceKind::Cpu.into(), Pool::current());
        let clip = clip.map_err(failed(FEATURE_CLIP))?;
        let mut models = Self {
            painters: BTreeMap::new(),
            upscalers: BTreeMap::new(),
            classifiers: BTreeMap::new(),
            clips: BTreeMap::new(),
            feature_clip: Arc::new(clip),
            nsfw: NsfwClassifier::embedded().map_err(failed("nsfw-mobilenetv2"))?,
        };
        for spec in specs {
            let placement = Placement::of_model(device, spec.numerics);
            if placement.device != device {
                let (model, numerics) = (&spec.id, spec.numerics);
                tracing::warn!(%model, %numerics, "computed on the processor, not on {device}");
            }
            check_memory(spec, placement.device)?;
            models.add(spec, placement).map_err(failed(spec.id.as_str()))?;
            models.check_offer(spec)?;
        }
        Ok(models)
    }

    fn add(&mut self, spec: &ModelSpec, placement: Placement) -> Result<(), LoadError> {
        let id = spec.id.clone();
        match spec.architecture {
            Architecture::StableDiffusion | Architecture::Kandinsky => {
                self.painters.insert(id, Painter::open(spec, placement)?);
            }
            Architecture::Upscaler => {
                self.upscalers.insert(id, Upscaler::open_on(&spec.files(), placement, Pool::current())?);
            }
            Architecture::NsfwClassifier => {
                self.classifiers.insert(id, NsfwModel::open_on(&spec.files(), placement, Pool::current())?);
            }
            Architecture::Clip => {
                let is_feature_clip = spec.component.source == ModelSource::Embedded
                    && spec.id.as_str() == FEATURE_CLIP
                    && spec.numerics.is_exact();
                let clip = match is_feature_clip {
                    true => Arc::clone(&self.feature_clip),
                    false => Arc::new(Clip::open_on(&spec.files(), placement, Pool::current())?),
                };
                self.clips.insert(id, clip);
            }
        }
        Ok(())
    }

    /// A model whose registry entry offers sizes, tasks or factors that it cannot do must not start.
    fn check_offer(&self, spec: &ModelSpec) -> Result<(), StartError> {
        let model = spec.id.clone();
        if let Some(painter) = self.painters.get(&model) {
            let (offered, multiple) =
                (spec.pictures.map_or(0, |limits| limits.size.multiple_of), painter.edge_multiple());
            if !(offered as usize).is_multiple_of(multiple) {
                return Err(StartError::Sizes { model, offered, multiple });
            }
            if let Some(task) = spec.tasks.iter().find(|task| !painter.can(**task)) {
                return Err(StartError::Task { model, task: *task });
            }
        }
        if let (Some(upscaler), Some(limits)) = (self.upscalers.get(&model), &spec.upscale)
            && let Some(factor) = limits.factors.iter().find(|factor| !upscaler.factors().contains(factor))
        {
            return Err(StartError::Factor { model, factor: *factor, possible: upscaler.factors() });
        }
        Ok(())
    }

    fn features(&self, picture: &RgbPicture) -> Result<Features, JobError> {
        let mut embeddings =
            self.feature_clip.embed_pictures(std::slice::from_ref(picture)).map_err(JobError::from_model)?;
        let nsfw = self.nsfw.classify(picture);
        Ok(Features {
            hashes: ImageHashes::of(picture),
            clip: embeddings.pop().unwrap_or_default(),
            is_nsfw: nsfw.is_nsfw(),
            nsfw,
        })
    }

    fn audit(
        &self,
        model: &ModelId,
        request: &Generate,
        shown: &Shown,
        control: &mut Control<Output>,
    ) -> Result<Audited, JobError> {
        let Painter::StableDiffusion(pipeline) = self.painters.get(model).ok_or_else(|| not_loaded(model))?
        else {
            let why = format!("model `{model}` has no trajectories that could be audited");
            return Err(JobError::new(JobErrorKind::Failed, why));
        };
        let mut steps = Steps { control, stopped: None, are_states_heard: false };
        let result = pipeline.audit(request, shown, &mut steps);
        match steps.stopped {
            Some(stopped) => Err(stopped),
            None => result.map_err(of_generation),
        }
    }

    /// Runs what makes a picture, and describes the picture.
    fn picture(
        &self,
        control: &mut Control<Output>,
        are_states_heard: bool,
        make: impl FnOnce(&mut Steps) -> Result<RgbPicture, GenerateError>,
    ) -> Result<Output, JobError> {
        let mut steps = Steps { control, stopped: None, are_states_heard };
        let result = make(&mut steps);
        if let Some(stopped) = steps.stopped {
            return Err(stopped);
        }
        let picture = result.map_err(of_generation)?;
        control.check()?;
        let features = self.features(&picture)?;
        Ok(Output::Picture { png: picture.encode_png(), picture, features })
    }

    fn run(&self, job: Job, control: &mut Control<Output>) -> Result<Output, JobError> {
        let clip = |model: &ModelId| self.clips.get(model).ok_or_else(|| not_loaded(model));
        match job {
            Job::Generate { model, request } => {
                let painter = self.painters.get(&model).ok_or_else(|| not_loaded(&model))?;
                self.picture(control, false, |steps| painter.generate(&request, steps))
            }
            Job::Trace { model, request } => {
                let painter = self.painters.get(&model).ok_or_else(|| not_loaded(&model))?;
                self.picture(control, true, |steps| painter.generate(&request, steps))
            }
            Job::Audit { model, request, shown } => {
                Ok(Output::Audited(self.audit(&model, &request, &shown, control)?))
            }
            Job::Upscale { model, picture, factor } => {
                let upscaler = self.upscalers.get(&model).ok_or_else(|| not_loaded(&model))?;
                self.picture(control, false, |steps| upscaler.upscale(&picture, factor, steps))
            }
            Job::Classify { model, pictures } => {
                let classifier = self.classifiers.get(&model).ok_or_else(|| not_loaded(&model))?;
                let mut classes = Vec::with_capacity(pictures.len());
                for (done, picture) in pictures.iter().enumerate() {
                    let opinion = classifier.classify(picture).map_err(JobError::from_model)?;
                    classes.push(NsfwScores::from(&opinion));
                    control.step(done as u32 + 1, pictures.len() as u32)?;
                }
                Ok(Output::Classes(classes))
            }
            Job::Embed { model, pictures } => {
                let clip = clip(&model)?;
                let mut embeddings = Vec::with_capacity(pictures.len());
                for (done, picture) in pictures.iter().enumerate() {
                    embeddings.extend(
                        clip.embed_pictures(std::slice::from_ref(picture)).map_err(JobError::from_model)?,
                    );
                    control.step(done as u32 + 1, pictures.len() as u32)?;
                }
                Ok(Output::Embeddings(embeddings))
            }
            Job::EmbedTexts { model, texts } => {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                Ok(Output::Embeddings(clip(&model)?.embed_texts(&texts).map_err(JobError::from_model)?))
            }
            Job::Features { picture } => Ok(Output::Features(self.features(&picture)?)),
        }
    }
}

/// A model that needs more memory than is free, with those before it loaded, must not start: it would
/// fail at the first job, or on the processor take the whole node with it.
fn check_memory(spec: &ModelSpec, device: DeviceKind) -> Result<(), StartError> {
    let Some(needed) = spec.memory else { return Ok(()) };
    let failed = |source: DeviceError| {
        let source = LoadError::Device(source);
        StartError::Model { model: spec.id.to_string(), device, source }
    };
    match device.free_memory().map_err(failed)? {
        Some(free) if free < needed => {
            Err(StartError::Memory { model: spec.id.clone(), device, needed, free })
        }
        _ => Ok(()),
    }
}

/// Submissions are checked against the same list, so this is a bug of ours.
fn not_loaded(model: &ModelId) -> JobError {
    JobError::new(JobErrorKind::Failed, format!("model `{model}` is not loaded"))
}

fn of_generation(error: GenerateError) -> JobError {
    match error {
        GenerateError::Device(error) => JobError::from_model(error),
        other => JobError::new(JobErrorKind::Failed, other.to_string()),
    }
}

/// One replica: the device's models and threads of its own.
pub(super) struct Replica {
    pub(super) models: Arc<Models>,
    pub(super) pool: Pool,
}

impl Backend for Replica {
    type Job = Job;
    type Output = Output;

    fn run(&mut self, job: Job, control: &mut Control<Output>) -> Result<Output, JobError> {
        let models = &self.models;
        self.pool.run(|| models.run(job, control))
    }
}

/// Passes a pipeline's steps on, and remembers why it was told to end.
struct Steps<'a, 'b> {
    control: &'a mut Control<'b, Output>,
    stopped: Option<JobError>,
    are_states_heard: bool,
}

impl StepControl for Steps<'_, '_> {
    fn step(&mut self, done: usize, of: usize) -> ControlFlow<()> {
        let result = match done {
            0 => self.control.check(),
            _ => self.control.step(done as u32, of as u32),
        };
        match result {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.stopped = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn record(&mut self, state: &dyn Fn() -> Vec<u8>) {
        if self.are_states_heard {
            self.control.state(state());
        }
    }
}
