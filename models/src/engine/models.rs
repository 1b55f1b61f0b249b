//! The backend that runs the registry's models.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use crate::{
    clip::Clip,
    device::DeviceKind,
    diffusion::{ControlKind, Generate, GenerateError, Pipeline, StepControl},
    embedded,
    features::{Features, ImageHashes},
    loader::LoadError,
    nsfw::NsfwClassifier,
    picture::RgbPicture,
    pool::Pool,
    registry::{Architecture, ModelId, ModelSource, ModelSpec},
};

use super::{
    Job, Output, StartError,
    delivery::{JobError, JobErrorKind},
    workers::{Backend, Control},
};

/// The CLIP model of [`Features`]. It is in the binary, so that everybody
/// compares pictures in the same space.
pub const FEATURE_CLIP: &str = "clip-tiny";

/// The models of one device, shared by its replicas.
pub(super) struct Models {
    pipelines: BTreeMap<ModelId, Pipeline>,
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
        let clip = Clip::open_on(&clip, device, Pool::current()).map_err(failed(FEATURE_CLIP))?;
        let mut models = Self {
            pipelines: BTreeMap::new(),
            clips: BTreeMap::new(),
            feature_clip: Arc::new(clip),
            nsfw: NsfwClassifier::embedded().map_err(failed("nsfw-mobilenetv2"))?,
        };
        for spec in specs {
            match spec.architecture {
                Architecture::StableDiffusion => {
                    let control = |kind: &ControlKind| Some((*kind, spec.control_files(*kind)?));
                    let controls: Vec<_> = spec.controls.keys().filter_map(control).collect();
                    let pipeline = Pipeline::open_on(&spec.files(), &controls, device, Pool::current());
                    let mut pipeline = pipeline.map_err(failed(spec.id.as_str()))?;
                    if let Some(kind) = spec.scheduler {
                        let unfit = |error| spec.files().bad_config("scheduler", format!("{kind}: {error}"));
                        let set = pipeline.set_scheduler(kind).map_err(unfit);
                        set.map_err(failed(spec.id.as_str()))?;
                    }
                    check_offer(spec, &pipeline)?;
                    models.pipelines.insert(spec.id.clone(), pipeline);
                }
                Architecture::Clip => {
                    let is_feature_clip =
                        spec.component.source == ModelSource::Embedded && spec.id.as_str() == FEATURE_CLIP;
                    let clip = if is_feature_clip {
                        Arc::clone(&models.feature_clip)
                    } else {
                        let clip = Clip::open_on(&spec.files(), device, Pool::current());
                        Arc::new(clip.map_err(failed(spec.id.as_str()))?)
                    };
                    models.clips.insert(spec.id.clone(), clip);
                }
            }
        }
        Ok(models)
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

    fn picture(
        &self,
        model: &ModelId,
        request: &Generate,
        control: &mut Control<Output>,
    ) -> Result<Output, JobError> {
        let pipeline = self.pipelines.get(model).ok_or_else(|| not_loaded(model))?;
        let mut steps = Steps { control, stopped: None };
        let result = pipeline.generate(request, &mut steps);
        if let Some(stopped) = steps.stopped {
            return Err(stopped);
        }
        let picture = result.map_err(|error| match error {
            GenerateError::Device(error) => JobError::from_model(error),
            other => JobError::new(JobErrorKind::Failed, other.to_string()),
        })?;
        control.check()?;
        let features = self.features(&picture)?;
        Ok(Output::Picture { png: picture.encode_png(), picture, features })
    }

    fn run(&self, job: Job, control: &mut Control<Output>) -> Result<Output, JobError> {
        let clip = |model: &ModelId| self.clips.get(model).ok_or_else(|| not_loaded(model));
        match job {
            Job::Generate { model, request } => self.picture(&model, &request, control),
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
            Job::Upscale { model, .. } | Job::Classify { model, .. } => Err(not_loaded(&model)),
            Job::Features { picture } => Ok(Output::Features(self.features(&picture)?)),
        }
    }
}

/// A model whose registry entry offers sizes that it cannot make, or tasks, must not start.
fn check_offer(spec: &ModelSpec, pipeline: &Pipeline) -> Result<(), StartError> {
    let (offered, multiple) = (spec.pictures.as_ref().map(|limits| limits.size), pipeline.edge_multiple());
    if let Some(size) = offered
        && !(size.multiple_of as usize).is_multiple_of(multiple)
    {
        return Err(StartError::Sizes { model: spec.id.clone(), offered: size.multiple_of, multiple });
    }
    match spec.tasks.iter().find(|task| !pipeline.can(**task)) {
        Some(task) => Err(StartError::Task { model: spec.id.clone(), task: *task }),
        None => Ok(()),
    }
}

/// Submissions are checked against the same list, so this is a bug of ours.
fn not_loaded(model: &ModelId) -> JobError {
    JobError::new(JobErrorKind::Failed, format!("model `{model}` is not loaded"))
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
}
