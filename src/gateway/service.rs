//! What the gateway sells: the one trait between HTTP and whoever does the work.
//!
//! The validator implements [`Service`] over its miners; tests implement it over a local engine. Dropping
//! the future of [`Service::run`] cancels the work.

use std::time::Duration;

use argus_protocols::{Answer, Hotkey, Task};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::ModelCard;

#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Every model that may be asked for now or later; [`ModelCard::miners`] says whether anybody serves it.
    fn models(&self) -> Vec<ModelCard>;

    /// Checks a task against its model's limits and says how much work it is, in work units: its price.
    fn work(&self, task: &Task) -> Result<f64, ServiceError>;

    /// Does the task. Its seed and pictures are as they go to the miner: the gateway has replaced the client's
    /// seed and changed its pictures, and tells the client the seed. Progress is sent with `try_send`: a
    /// full channel means that nobody needs that step. Dropping the future cancels the work.
    async fn run(&self, task: Task, progress: mpsc::Sender<Progress>) -> Result<Served, ServiceError>;

    /// What the network looks like from here, from memory: called for every page view, never blocks.
    fn status(&self) -> Status;
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A miner took it; so many queries go before it.
    Queued {
        position: u32,
    },
    Step {
        step: u32,
        of: u32,
    },
    /// The miner failed or went away; another one begins from the start.
    Retrying {
        attempt: u32,
    },
}

/// An answer, and who made it.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    pub answer: Answer,
    /// `None` when it was made here.
    pub miner: Option<Hotkey>,
    /// From asking to the last byte.
    pub elapsed: Duration,
}

/// Why there is no answer. The gateway makes an HTTP status of each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    #[error("there is no model {0:?}")]
    UnknownModel(String),
    /// The model's own check said no; the text names the field and the allowed range.
    #[error("{0}")]
    Invalid(String),
    #[error("no miner has room for this model now; try again in {} s", retry_after.as_secs().max(1))]
    NoCapacity { retry_after: Duration },
    #[error("no miner answered in time")]
    TimedOut,
    /// Every miner that was asked failed.
    #[error("the work failed: {0}")]
    Failed(String),
    #[error("this node is shutting down")]
    Closing,
}

impl ServiceError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ServiceError::UnknownModel(_) => "unknown_model",
            ServiceError::Invalid(_) => "invalid",
            ServiceError::NoCapacity { .. } => "no_capacity",
            ServiceError::TimedOut => "timed_out",
            ServiceError::Failed(_) => "failed",
            ServiceError::Closing => "closing",
        }
    }
}

/// The network as this validator sees it: the body of `GET /v1/status`, and what the studio shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// This validator; absent when there is none (a local engine).
    #[schema(value_type = Option<String>)]
    pub hotkey: Option<Hotkey>,
    pub netuid: u16,
    /// Peers connected now.
    pub peers: u32,
    pub chain: ChainStatus,
    /// Best weight first.
    pub miners: Vec<MinerStatus>,
    /// The running period.
    pub period: Option<PeriodStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChainStatus {
    /// The last call to the chain succeeded.
    pub reachable: bool,
    /// Last block seen.
    pub block: u64,
    /// Block of this validator's last accepted weights.
    pub weights_block: Option<u64>,
    /// What is wrong, in words, when something is.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MinerStatus {
    #[schema(value_type = String)]
    pub hotkey: Hotkey,
    pub uid: u16,
    /// Answers queries now, as far as this node knows.
    pub reachable: bool,
    pub models: Vec<String>,
    /// Mean score over the kept periods and all tasks by their incentive, 1 is par; `None` before the first answer was scored.
    pub score: Option<f64>,
    /// Share of this validator's weight vector, 0 to 1.
    pub weight: f64,
    /// Answers and failures of the running period.
    pub answered: u64,
    pub failed: u64,
    /// Median response time of late, milliseconds.
    pub latency_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeriodStatus {
    pub number: u64,
    /// Unix time, milliseconds.
    pub ends_at_ms: u64,
    /// Scored answers so far in this period.
    pub scored: u64,
}
