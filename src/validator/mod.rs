//! Validating: asking miners, holding their answers against each other and against our own, telling the
//! chain what they are worth, and selling their work to clients.
//!
//! [`core`] decides everything as a plain state machine; the driver here carries its actions out. Invariants:
//! - A score counts only once it is on disk with the receipt behind it; a kill loses nothing that counted.
//! - Weights are believed to be set only when the chain has included them.
//! - A client's answer never waits for its comparison.
//! - Prompts and pictures reach neither log nor disk.

pub mod audits;
pub mod core;
mod driver;
mod events;
mod judge;
mod ledger;
mod metrics;
mod organic;
pub mod period;
pub mod round;
pub mod select;
pub mod settings;
mod status;
pub mod synthetic;
pub mod weights;

use std::sync::Arc;

use argus_protocols::{HotkeyPair, TaskKind};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use ledger::Ledger;
pub use organic::Organic;
pub use settings::{Settings, SettingsError, TaskSettings};
pub use status::Report;

use crate::{
    chain::{self, Chain},
    jobs::Jobs,
    net,
    store::{Store, StoreError},
};

#[derive(Debug, thiserror::Error)]
pub enum ValidatorError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(
        "this validator's engine does not run {model}, which the task {task} needs: add it to engine.models"
    )]
    Model { task: TaskKind, model: String },
    #[error("this validator's engine runs no model that any task needs: add models to engine.models")]
    NoTask,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ValidatorError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ValidatorError::Settings(_) => "settings",
            ValidatorError::Model { .. } => "model",
            ValidatorError::NoTask => "no_task",
            ValidatorError::Store(error) => error.reason(),
        }
    }
}

/// What a validator works with.
pub struct Parts {
    pub netuid: u16,
    pub handle: net::Handle,
    pub chain: Arc<dyn Chain>,
    pub watch: chain::Watch,
    /// Its own engine: settles what miners disagree on.
    pub jobs: Jobs,
    pub hotkey: Arc<HotkeyPair>,
    pub store: Store,
}

/// Starts a validator within a tokio runtime: what it knew is read from the store, and rounds begin as soon
/// as the chain gives this hotkey a permit. The task ends with `shutdown`, after what is under way is stored.
pub fn start(
    settings: Settings,
    parts: Parts,
    registry: &mut Registry,
    shutdown: CancellationToken,
) -> Result<(Organic, JoinHandle<()>), ValidatorError> {
    let settings = complete(settings, &parts.jobs)?;
    let driver = driver::Driver::new(settings, parts, registry, shutdown)?;
    let organic = Organic::new(driver.clone());
    Ok((organic, tokio::spawn(driver.run())))
}

/// Share of the incentive and pace of the tasks that no settings name: by what they cost a miner and how much
/// they are wanted. All of them together make a query every 2 s, of each task no more than that miners have
/// time for their clients.
const USUAL_TASKS: [(TaskKind, f64, u32); 10] = [
    (TaskKind::TextToImage, 0.30, 10_000),
    (TaskKind::ImageToImage, 0.12, 20_000),
    (TaskKind::Inpaint, 0.10, 20_000),
    (TaskKind::Uncrop, 0.06, 30_000),
    (TaskKind::Scribble, 0.08, 30_000),
    (TaskKind::Canny, 0.06, 30_000),
    (TaskKind::Depth, 0.06, 30_000),
    (TaskKind::Upscale, 0.10, 20_000),
    (TaskKind::ImageEmbedding, 0.08, 20_000),
    (TaskKind::NsfwClassification, 0.04, 30_000),
];

/// Fills in the tasks when none are named, and checks that this node's engine can settle all of them.
fn complete(mut settings: Settings, jobs: &Jobs) -> Result<Settings, ValidatorError> {
    settings.validate()?;
    if settings.tasks.is_empty() {
        for (task, incentive, interval_ms) in USUAL_TASKS {
            let serving = |spec: &&argus_models::ModelSpec| spec.serves(crate::jobs::model_task(task));
            if let Some(spec) = jobs.engine().models().iter().find(serving) {
                settings.tasks.push(TaskSettings {
                    task,
                    model: spec.id.to_string(),
                    incentive,
                    interval_ms,
                });
            }
        }
    }
    for TaskSettings { task, model, .. } in &settings.tasks {
        if !jobs.spec(model).is_some_and(|spec| spec.serves(crate::jobs::model_task(*task))) {
            return Err(ValidatorError::Model { task: *task, model: model.clone() });
        }
    }
    if settings.tasks.is_empty() { Err(ValidatorError::NoTask) } else { Ok(settings) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_asked_for_and_paid() {
        for task in TaskKind::ALL {
            assert_eq!(USUAL_TASKS.iter().filter(|(usual, ..)| *usual == task).count(), 1, "{task}");
        }
        let whole: f64 = USUAL_TASKS.iter().map(|(_, share, _)| share).sum();
        assert!((whole - 1.0).abs() < 1e-9, "{whole}");
        let a_second: f64 = USUAL_TASKS.iter().map(|(.., interval_ms)| 1e3 / f64::from(*interval_ms)).sum();
        assert!(a_second < 0.6, "{a_second} queries a second");
    }
}
