//! Runs jobs on devices: one thread a replica behind one bounded queue.
//!
//! - Weights load once a device and are shared by its replicas; each replica
//!   computes on threads of its own.
//! - [`Engine::start`] returns when every model has done its warm-up on every
//!   device, so that what a node offers is measured, not hoped for.
//! - [`Engine::submit`] never waits. A job is refused at once with a reason, or
//!   accepted, and then its sink hears exactly one [`JobEvent::Done`], whatever
//!   happens: cancel, failure, panic, shutdown.
//! - Cancelling takes effect at the next step.
//! - Jobs run one by one on a replica. On the processor running equal ones together brings nothing: a
//!   guidance pair through `argus-tiny`'s UNet took 66 ms alone and 87 ms each in twos (2 cores).
//!
//! Nothing here is asynchronous or knows the network.

mod capacity;
mod delivery;
mod job;
mod models;
mod workers;

use std::{num::NonZeroUsize, sync::Arc, thread, time::Duration};

pub use capacity::ModelCapacity;
pub use delivery::{CancelToken, EventSink, JobError, JobErrorKind, JobEvent};
pub use job::{Job, MAX_EMBEDDINGS_PER_JOB, MAX_PICTURE_PIXELS, MAX_TEXT_BYTES, Output};
pub use models::FEATURE_CLIP;
pub use workers::{Backend, Control, Shutdown, Snapshot, SubmitError, Workers};

use crate::{
    device::{DeviceError, DeviceKind},
    loader::LoadError,
    pool::Pool,
    registry::{ModelId, ModelSpec, ModelTask, Registry},
};
use capacity::Capacity;
use models::{Models, Replica};

/// The most devices of an engine.
pub const MAX_DEVICES: usize = 64;
/// The most replicas of a device.
pub const MAX_REPLICAS: usize = 64;
/// The most threads of a replica.
pub const MAX_THREADS: usize = 1024;
/// The longest queue.
pub const MAX_QUEUE: usize = 4096;

/// What an engine runs on, and which models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Each loads every model once.
    pub devices: Vec<DeviceKind>,
    /// Jobs that a device runs at the same time.
    pub replicas: usize,
    /// 0: the machine's cores, shared out to all replicas.
    pub threads_per_replica: usize,
    /// Models of the registry to load.
    pub models: Vec<ModelId>,
    /// Jobs that may wait.
    pub queue: usize,
}

impl EngineConfig {
    /// One replica on the processor with all cores, and 16 jobs that may wait.
    pub fn on_processor(models: Vec<ModelId>) -> Self {
        Self { devices: vec![DeviceKind::Cpu], replicas: 1, threads_per_replica: 0, models, queue: 16 }
    }

    fn check(&self) -> Result<(), StartError> {
        let out_of_range = |field, value, min, max| Err(StartError::OutOfRange { field, value, min, max });
        for (field, value, min, max) in [
            ("devices", self.devices.len(), 1, MAX_DEVICES),
            ("replicas", self.replicas, 1, MAX_REPLICAS),
            ("threads_per_replica", self.threads_per_replica, 0, MAX_THREADS),
            ("queue", self.queue, 1, MAX_QUEUE),
        ] {
            if !(min..=max).contains(&value) {
                return out_of_range(field, value, min, max);
            }
        }
        Ok(())
    }

    fn threads(&self) -> usize {
        if self.threads_per_replica > 0 {
            return self.threads_per_replica;
        }
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        (cores / (self.replicas * self.devices.len())).max(1)
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{field} is {value}, but must be {min} to {max}")]
    OutOfRange { field: &'static str, value: usize, min: usize, max: usize },
    #[error("model `{0}` is not in the registry")]
    UnknownModel(ModelId),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("model `{model}` does not load on {device}: {source}")]
    Model { model: String, device: DeviceKind, source: LoadError },
    #[error(
        "the registry offers model `{model}` in sizes of multiples of {offered}, but it makes multiples of {multiple}"
    )]
    Sizes { model: ModelId, offered: u32, multiple: usize },
    #[error("the registry says that model `{model}` serves {task}, but its networks cannot")]
    Task { model: ModelId, task: ModelTask },
    #[error("the registry says that model `{model}` enlarges {factor} times, but it can {possible:?}")]
    Factor { model: ModelId, factor: u32, possible: &'static [u32] },
    #[error(
        "model `{model}` needs {} MiB on {device}, but {} MiB are free: end what else uses the memory, serve fewer \
         models (`engine.models`), or mend memory_mib in its registry entry",
        needed.div_ceil(1 << 20), free >> 20
    )]
    Memory { model: ModelId, device: DeviceKind, needed: u64, free: u64 },
    #[error("the warm-up of {what} on {device} failed: {source}")]
    WarmUp { what: String, device: DeviceKind, source: JobError },
    #[error("cannot start the threads of a replica: {0}")]
    Threads(String),
}

impl StartError {
    /// Stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OutOfRange { .. } => "out_of_range",
            Self::UnknownModel(_) => "unknown_model",
            Self::Device(error) => error.reason(),
            Self::Model { source, .. } => source.reason(),
            Self::Sizes { .. } => "sizes",
            Self::Task { .. } => "task",
            Self::Factor { .. } => "factor",
            Self::Memory { .. } => "too_little_memory",
            Self::WarmUp { source, .. } => source.reason(),
            Self::Threads(_) => "threads",
        }
    }
}

/// A running engine. Clones share it; when the last is dropped, what is left is
/// cancelled.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    workers: Workers<Replica>,
    /// The models that are loaded, and no others.
    registry: Registry,
    capacity: Capacity,
}

impl Engine {
    /// Loads the models on each device, warms them up and starts the replicas.
    /// Blocks for as long as that takes.
    pub fn start(config: &EngineConfig, registry: &Registry) -> Result<Self, StartError> {
        config.check()?;
        let registry = chosen(registry, &config.models)?;
        let mut replicas = Vec::with_capacity(config.devices.len() * config.replicas);
        let mut capacity = Capacity::new(config.replicas);
        for &device in &config.devices {
            // Also where all models are computed on the processor: it is not what the operator expects.
            device.open()?;
            let pools = (0..config.replicas)
                .map(|_| Pool::new(config.threads()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| StartError::Threads(error.to_string()))?;
            let models = Arc::new(pools[0].run(|| Models::load(device, registry.models()))?);
            let first = replicas.len();
            replicas.extend(pools.into_iter().map(|pool| Replica { models: Arc::clone(&models), pool }));
            capacity.warm_up(device, &mut replicas[first], registry.models())?;
        }
        let workers =
            Workers::start(replicas, config.queue).map_err(|error| StartError::Threads(error.to_string()))?;
        Ok(Self(Arc::new(Inner { workers, registry, capacity })))
    }

    /// Queues a job or refuses it, at once. Gives the number of jobs that wait
    /// before it; `sink` hears of everything else.
    pub fn submit(&self, job: Job, cancel: CancelToken, sink: EventSink) -> Result<usize, SubmitError> {
        job.check(&self.0.registry)?;
        let estimate = self.estimate(&job);
        self.0.workers.submit(job, estimate, cancel, sink)
    }

    /// Device time that a job should take, by the warm-up.
    pub fn estimate(&self, job: &Job) -> Duration {
        self.0.capacity.estimate(job, &self.0.registry)
    }

    /// What the warm-up measured, for each loaded model.
    pub fn capacity(&self) -> &[ModelCapacity] {
        self.0.capacity.models()
    }

    /// The loaded models' specs.
    pub fn models(&self) -> &[ModelSpec] {
        self.0.registry.models()
    }

    /// Figures for metrics.
    pub fn snapshot(&self) -> Snapshot {
        self.0.workers.snapshot()
    }

    /// Refuses new jobs, ends the accepted ones as `mode` says, and waits for
    /// that. May be called again meanwhile: `Cancel` overrules `Drain`.
    pub fn shutdown(&self, mode: Shutdown) {
        self.0.workers.shutdown(mode);
    }
}

fn chosen(registry: &Registry, models: &[ModelId]) -> Result<Registry, StartError> {
    for id in models {
        if registry.get(id.as_str()).is_none() {
            return Err(StartError::UnknownModel(id.clone()));
        }
    }
    Ok(registry.only(models))
}

#[cfg(test)]
mod tests;
