//! What does the work behind a miner: the embedded engine, or workers behind an HTTP endpoint.

use argus_protocols::{Answer, Capability, Reason, Task, TaskKind};
use async_trait::async_trait;
use tokio::sync::mpsc;

/// A step of a job, `step` of `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub step: u32,
    pub of: u32,
}

/// Why a job gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The request breaks the model's limits; says which.
    #[error("{0}")]
    Invalid(String),
    #[error("the model is not served here")]
    Incapable,
    #[error("the device's queue is full")]
    Busy,
    #[error("the job was cancelled")]
    Cancelled,
    #[error("the work failed: {0}")]
    Failed(String),
}

impl BackendError {
    /// What the validator is told.
    pub fn reason(&self) -> Reason {
        match self {
            BackendError::Invalid(_) => Reason::Invalid,
            BackendError::Incapable => Reason::Incapable,
            BackendError::Busy => Reason::Busy,
            BackendError::Cancelled => Reason::Cancelled,
            BackendError::Failed(_) => Reason::Failed,
        }
    }
}

#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs a small job on each model and says what it measured. A model whose job fails is left out.
    async fn warm_up(&self) -> Vec<Capability>;

    /// Resolves with what can be served from now on, when that changes. Cancel-safe.
    async fn changed(&self) -> Vec<Capability> {
        std::future::pending().await
    }

    /// Whether models may come, through [`Self::changed`], where the warm-up found none.
    fn can_recover(&self) -> bool {
        false
    }

    /// Jobs that run at once.
    fn slots(&self) -> usize;

    /// Work of a request with default values, `None` when the model is not served for the task.
    fn usual_work(&self, task: TaskKind, model: &str) -> Option<f64>;

    /// Checks a request against its model's limits and says how much work it is.
    fn work(&self, task: &Task) -> Result<f64, BackendError>;

    /// Does the work. Steps are sent with `try_send`: a full channel means that nobody needs that one.
    /// Dropping the future cancels the job at its next step. A picture that is NSFW never comes back, its
    /// features do.
    async fn run(&self, task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError>;

    /// As [`Self::run`], with the states of the run's sampler that the answer can be audited by, as SPEC.md
    /// lays them out: all of them, or none where there are none, or where they have more than `most` bytes
    /// together. Of a picture that is kept back there are none.
    async fn run_traced(
        &self,
        task: Task,
        steps: mpsc::Sender<Step>,
        _most: usize,
    ) -> Result<(Answer, Vec<Vec<u8>>), BackendError> {
        Ok((self.run(task, steps).await?, Vec::new()))
    }
}
