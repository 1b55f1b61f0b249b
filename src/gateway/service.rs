//! What the gateway sells: the one trait between HTTP and whoever does the work.
//!
//! The validator implements [`Service`] over its miners; tests implement it over a local engine. Dropping
//! the future of [`Service::run`] cancels the work.

use std::{fmt, time::Duration};

use argus_protocols::{Answer, Hotkey, Task, TaskKind};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Every model that may be asked for now or later; [`ModelCard::miners`] says whether anybody serves it.
    fn models(&self) -> Vec<ModelCard>;

    /// Does the task. Its seed and pictures are as they go to the miner: the gateway has replaced the client's
    /// seed and changed its pictures, and tells the client the seed. Progress is sent with `try_send`: a
    /// full channel means that nobody needs that step. Dropping the future cancels the work.
    async fn run(&self, task: Task, progress: mpsc::Sender<Progress>) -> Result<Served, ServiceError>;

    /// What the network looks like from here, from memory: called for every page view, never blocks.
    fn status(&self) -> Status;
}

/// A model that can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelCard {
    pub id: String,
    /// One sentence for people.
    pub description: String,
    /// Licence of the weights, as an SPDX id where there is one.
    pub license: String,
    /// Unix time, seconds, when this model came to be offered; 0 when nobody knows.
    pub created: u64,
    /// `text-to-image`, `image-embedding`.
    #[schema(value_type = Vec<String>)]
    pub tasks: Vec<TaskKind>,
    /// Allowed values of text-to-image; there when `tasks` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_to_image: Option<TextToImageLimits>,
    /// Length of an image embedding; there when `tasks` names image-embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_dimensions: Option<u32>,
    /// Miners known to serve it now.
    pub miners: u32,
}

/// What a model makes pictures of. Pixels for sizes, bytes for the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TextToImageLimits {
    pub width: Allowed<u32>,
    pub height: Allowed<u32>,
    pub steps: Allowed<u32>,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: Allowed<f32>,
    /// Prompt and negative prompt, bytes of UTF-8 each.
    pub prompt_bytes: u32,
}

/// `min ..= max`, and the value that is taken when none is given. `step` 0 means that any value goes,
/// otherwise `min + n · step`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Allowed<T> {
    pub min: T,
    pub max: T,
    pub step: T,
    pub default: T,
}

impl<T: Copy + PartialOrd> Allowed<T>
where
    f64: From<T>,
{
    pub fn permits(&self, value: T) -> bool {
        let step = f64::from(self.step);
        let steps = (f64::from(value) - f64::from(self.min)) / step;
        // Written so that a NaN fails.
        value >= self.min && value <= self.max && (step == 0.0 || (steps - steps.round()).abs() < 1e-3)
    }
}

impl<T: Copy + PartialEq + fmt::Display> fmt::Display for Allowed<T>
where
    f64: From<T>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            return write!(f, "{}", self.min);
        }
        write!(f, "{} to {}", self.min, self.max)?;
        let step = f64::from(self.step);
        if step != 0.0 && step != 1.0 { write!(f, " in steps of {}", self.step) } else { Ok(()) }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_permit_what_they_say() {
        let size = Allowed { min: 64_u32, max: 256, step: 64, default: 128 };
        let permitted: Vec<_> = (0..400).filter(|value| size.permits(*value)).collect();
        assert_eq!(permitted, [64, 128, 192, 256]);
        assert_eq!(size.to_string(), "64 to 256 in steps of 64");
        let guidance = Allowed { min: 1.0_f32, max: 10.0, step: 0.0, default: 5.0 };
        assert!(guidance.permits(1.0) && guidance.permits(7.31) && guidance.permits(10.0));
        for bad in [f32::NAN, f32::INFINITY, -1.0, 0.99, 10.01] {
            assert!(!guidance.permits(bad), "{bad}");
        }
        assert_eq!(guidance.to_string(), "1 to 10");
        let halves = Allowed { min: 1.0_f32, max: 3.0, step: 0.5, default: 1.0 };
        assert!(halves.permits(2.5) && !halves.permits(2.6));
        let fixed = Allowed { min: 128_u32, max: 128, step: 64, default: 128 };
        assert!(fixed.permits(128) && !fixed.permits(64));
        assert_eq!(fixed.to_string(), "128");
    }
}
