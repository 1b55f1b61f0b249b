//! What a device can do, measured by warm-up jobs.
//!
//! Making a picture costs something once and something for each step. Two short
//! runs tell both, and the cost of the default request follows: a long model
//! need not run it whole before a node may start. Every task that a model serves
//! runs at least once, so that no user's job is the first to find it broken.

use std::time::{Duration, Instant};

use crate::{
    device::DeviceKind,
    diffusion::{Control as ControlPicture, ControlKind, Generate, Mask, Pads, Start},
    picture::RgbPicture,
    registry::{ModelId, ModelSpec, ModelTask, PictureLimits, Registry, UPSCALE_UNIT_EDGE},
};

use super::{
    Job, StartError,
    delivery::{CancelToken, Delivery},
    models::Replica,
    workers::{Backend, Control},
};

/// Steps of the longer of the two measured runs, where the model allows them.
const MEASURED_STEPS: usize = 4;
/// Side of the picture that embeddings and features are measured with.
const PICTURE_SIDE: u32 = 256;

/// What the warm-up found for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCapacity {
    pub model: ModelId,
    /// Seconds that one replica takes for one work unit, the mean of the devices.
    pub seconds_per_unit: f64,
    /// Work units a second when all replicas do nothing else.
    pub units_per_second: f64,
    /// Seconds of a request with default values.
    pub default_seconds: f64,
}

/// The measurements of all devices.
pub(super) struct Capacity {
    replicas_per_device: usize,
    models: Vec<ModelCapacity>,
    devices: usize,
    features: Duration,
}

impl Capacity {
    pub(super) fn new(replicas_per_device: usize) -> Self {
        Self { replicas_per_device, models: Vec::new(), devices: 0, features: Duration::ZERO }
    }

    pub(super) fn models(&self) -> &[ModelCapacity] {
        &self.models
    }

    pub(super) fn estimate(&self, job: &Job, registry: &Registry) -> Duration {
        let capacity = job.model().and_then(|id| self.models.iter().find(|capacity| capacity.model == *id));
        match (capacity, job.work(registry)) {
            (Some(capacity), Some(units)) => {
                Duration::try_from_secs_f64(capacity.seconds_per_unit * units).unwrap_or(Duration::MAX)
            }
            _ => self.features,
        }
    }

    /// Runs each model on one replica of a device, and takes the times in.
    pub(super) fn warm_up(
        &mut self,
        device: DeviceKind,
        replica: &mut Replica,
        specs: &[ModelSpec],
    ) -> Result<(), StartError> {
        let mut bench = Bench { replica, device };
        let features = bench.second_run("features", || Job::Features { picture: sample(PICTURE_SIDE) })?;
        let seconds =
            specs.iter().map(|spec| bench.default_job(spec)).collect::<Result<Vec<_>, StartError>>()?;
        self.add(features, specs, &seconds);
        Ok(())
    }

    fn add(&mut self, features: Duration, specs: &[ModelSpec], seconds: &[f64]) {
        if self.models.is_empty() {
            let unmeasured = |spec: &ModelSpec| ModelCapacity {
                model: spec.id.clone(),
                seconds_per_unit: 0.0,
                units_per_second: 0.0,
                default_seconds: 0.0,
            };
            self.models = specs.iter().map(unmeasured).collect();
        }
        self.devices += 1;
        let weight = 1.0 / self.devices as f64;
        self.features = self.features.mul_f64(1.0 - weight) + features.mul_f64(weight);
        for ((capacity, spec), &seconds) in self.models.iter_mut().zip(specs).zip(seconds) {
            capacity.default_seconds += (seconds - capacity.default_seconds) * weight;
            capacity.seconds_per_unit = capacity.default_seconds / spec.work_units;
            capacity.units_per_second += self.replicas_per_device as f64 * spec.work_units / seconds;
        }
    }
}

/// Times jobs on one replica.
struct Bench<'a> {
    replica: &'a mut Replica,
    device: DeviceKind,
}

impl Bench<'_> {
    fn run(&mut self, what: &str, job: Job) -> Result<Duration, StartError> {
        let start = Instant::now();
        let (never, mut nobody) = (CancelToken::new(), Delivery::new(Box::new(|_| ())));
        let result = self.replica.run(job, &mut Control::new(&mut nobody, &never, &never));
        let failed = |source| StartError::WarmUp { what: what.to_owned(), device: self.device, source };
        result.map(|_| start.elapsed()).map_err(failed)
    }

    /// The first run finds weights on disk and caches cold.
    fn second_run(&mut self, what: &str, job: impl Fn() -> Job) -> Result<Duration, StartError> {
        self.run(what, job())?;
        self.run(what, job())
    }

    /// Seconds of the model's default job; runs one of each task that it serves.
    fn default_job(&mut self, spec: &ModelSpec) -> Result<f64, StartError> {
        let mut seconds = None;
        for task in &spec.tasks {
            let measured = match (&seconds, &spec.pictures) {
                (None, Some(limits)) if task.is_generation() => self.default_picture(spec, *task, limits)?,
                (Some(_), Some(limits)) if task.is_generation() => self
                    .run(&what(spec, *task), generation(spec, *task, limits, limits.steps.min))?
                    .as_secs_f64(),
                _ => self.second_run(&what(spec, *task), || other_job(spec, *task))?.as_secs_f64(),
            };
            seconds = seconds.or(Some(measured));
        }
        Ok(seconds.unwrap_or_default())
    }

    /// Seconds of a picture with default values.
    fn default_picture(
        &mut self,
        spec: &ModelSpec,
        task: ModelTask,
        limits: &PictureLimits,
    ) -> Result<f64, StartError> {
        let what = what(spec, task);
        let few = limits.steps.min;
        let more = limits.steps.max.min(few + MEASURED_STEPS - 1);
        let job = |steps| generation(spec, task, limits, steps);
        let short = self.second_run(&what, || job(few))?.as_secs_f64();
        if more == few {
            return Ok(short);
        }
        let long = self.run(&what, job(more))?.as_secs_f64();
        let step = ((long - short) / (more - few) as f64).max(0.0);
        Ok(short + step * limits.steps.default.saturating_sub(few) as f64)
    }
}

/// For messages.
fn what(spec: &ModelSpec, task: ModelTask) -> String {
    format!("{} for {task}", spec.id)
}

/// A square picture with something in it.
fn sample(side: u32) -> RgbPicture {
    RgbPicture::from_fn(side, side, |x, y| [x as u8, y as u8, (x ^ y) as u8])
}

/// A picture of the default size, from whatever the task makes it from; all steps are run.
fn generation(spec: &ModelSpec, task: ModelTask, limits: &PictureLimits, steps: usize) -> Job {
    let side = limits.size.default;
    let picture = || sample(side);
    // A quarter more on one side.
    let pad = (side / 4).max(1).min(side - 1);
    let (strength, mask) = (limits.strength.max, Mask::from_fn(side, side, |x, _| x >= side / 2));
    let start = match task {
        ModelTask::ImageToImage => Start::Picture { picture: picture(), strength },
        ModelTask::Inpaint => Start::Inpaint { picture: picture(), mask, strength },
        ModelTask::Uncrop => Start::Uncrop {
            picture: picture().crop(0, 0, side - pad, side),
            pads: Pads { right: pad, ..Pads::default() },
        },
        _ => Start::Noise,
    };
    let kind = ControlKind::ALL.into_iter().find(|kind| ModelTask::from(*kind) == task);
    let control = |kind| ControlPicture { kind, picture: picture(), is_prepared: true, scale: 1.0 };
    let request = Generate {
        prompt: "a red apple".to_owned(),
        negative_prompt: String::new(),
        width: side,
        height: side,
        steps,
        guidance: limits.guidance.default,
        seed: 0,
        start,
        controls: kind.map(control).into_iter().collect(),
    };
    Job::Generate { model: spec.id.clone(), request }
}

/// The default job of a task that makes no picture from words.
fn other_job(spec: &ModelSpec, task: ModelTask) -> Job {
    let model = spec.id.clone();
    match (task, &spec.upscale) {
        (ModelTask::Upscale, Some(limits)) => Job::Upscale {
            model,
            picture: sample(UPSCALE_UNIT_EDGE.min(limits.max_edge)),
            factor: limits.factors.first().copied().unwrap_or(2),
        },
        (ModelTask::NsfwClassification, _) => Job::Classify { model, pictures: vec![sample(PICTURE_SIDE)] },
        _ => Job::Embed { model, pictures: vec![sample(PICTURE_SIDE)] },
    }
}
