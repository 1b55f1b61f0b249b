//! Clients' queries: the best miner with room, the next one when it fails, within the client's time.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use argus_protocols::{Answer, Hotkey, Reason, Task};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    core::{Event, OrganicPick},
    driver::Driver,
    round::RoundId,
    select::Failure,
    status,
};
use crate::{
    clock::unix_ms,
    gateway::{ModelCard, Progress, Served, Service, ServiceError, Status},
    jobs::{self, Jobs},
    miner::Backend,
    net::QueryProgress,
};

/// When nobody says when there will be room.
const RETRY_AFTER: Duration = Duration::from_secs(15);

/// The validator as a service for clients. Clones share it.
#[derive(Clone)]
pub struct Organic(Arc<Driver>);

/// A query that is out. Dropped before it ended, the core hears that it was given up.
struct Out<'a> {
    driver: &'a Arc<Driver>,
    round: RoundId,
    miner: Hotkey,
    ended: bool,
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.driver.apply(Event::Abandoned { round: self.round, miner: self.miner });
        }
    }
}

impl Organic {
    pub(super) fn new(driver: Arc<Driver>) -> Self {
        Self(driver)
    }

    /// Everything `argus status` shows of a validator.
    pub fn report(&self) -> status::Report {
        status::report(&self.0.core.lock(), unix_ms())
    }

    fn jobs(&self) -> &Jobs {
        &self.0.parts.jobs
    }

    /// A rival gets the same request, for comparison; the client does not wait for it.
    fn ask_rival(&self, pick: &OrganicPick, rival: Hotkey, task: &Arc<Task>, body: &Bytes) {
        let (round, task, body) = (pick.round, task.clone(), body.clone());
        let driver = self.0.clone();
        self.0.tasks.spawn(async move {
            let deadlines = driver.deadlines(&task, None);
            let outcome = tokio::select! {
                outcome = driver.ask(round, rival, &task, body, deadlines, |_| ()) => outcome.map(|(reply, _)| reply),
                () = driver.shutdown.cancelled() => return driver.apply(Event::Abandoned { round, miner: rival }),
            };
            driver.apply(Event::Answered { round, miner: rival, outcome });
        });
    }

    /// One miner's try.
    async fn attempt(
        &self,
        pick: &OrganicPick,
        task: &Task,
        body: Bytes,
        left: Duration,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<Answer, Failure> {
        let driver = &self.0;
        let mut out = Out { driver, round: pick.round, miner: pick.miner, ended: false };
        let deadlines = driver.deadlines(task, Some(left));
        let tell = |step: QueryProgress| {
            // A full channel means that nobody needs this one.
            let _ = progress.try_send(match step {
                QueryProgress::Accepted { queue_position } => Progress::Queued { position: queue_position },
                QueryProgress::Step { step, of } => Progress::Step { step, of },
            });
        };
        let asked = driver.ask(pick.round, pick.miner, task, body, deadlines, tell).await;
        let (outcome, answer) = match asked {
            Ok((reply, answer)) => match jobs::opens(task, &answer).await {
                true => (Ok(reply), Ok(answer)),
                false => (Err(Failure::BadAnswer), Err(Failure::BadAnswer)),
            },
            Err(failure) => (Err(failure), Err(failure)),
        };
        out.ended = true;
        driver.apply(Event::Answered { round: pick.round, miner: pick.miner, outcome });
        answer
    }

    fn no_capacity(&self, retry_after_ms: Option<u64>) -> ServiceError {
        ServiceError::NoCapacity { retry_after: retry_after_ms.map_or(RETRY_AFTER, Duration::from_millis) }
    }
}

#[async_trait]
impl Service for Organic {
    fn models(&self) -> Vec<ModelCard> {
        status::model_cards(self.jobs(), &self.0.core.lock())
    }

    fn work(&self, task: &Task) -> Result<f64, ServiceError> {
        if self.jobs().spec(task.model()).is_none() {
            return Err(ServiceError::UnknownModel(task.model().to_owned()));
        }
        self.jobs().work(task).map_err(|error| ServiceError::Invalid(error.to_string()))
    }

    async fn run(&self, task: Task, progress: mpsc::Sender<Progress>) -> Result<Served, ServiceError> {
        let begun = Instant::now();
        if self.0.shutdown.is_cancelled() {
            return Err(ServiceError::Closing);
        }
        self.work(&task)?;
        let task = Arc::new(task);
        let body = Bytes::from(task.to_bytes());
        let time = Duration::from_millis(self.0.settings.total_ms.into());
        let mut tried = BTreeSet::new();
        let mut failed = None;
        for attempt in 1..=self.0.settings.organic_attempts {
            let Some(left) = time.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                return Err(ServiceError::TimedOut);
            };
            let picked = self.0.core.lock().organic(task.kind(), task.model(), &tried, unix_ms());
            let pick = match picked {
                Ok(pick) => pick,
                Err(no_room) => return Err(self.ended(failed, no_room.retry_after_ms)),
            };
            if attempt > 1 {
                let _ = progress.try_send(Progress::Retrying { attempt });
            }
            tried.insert(pick.miner);
            if pick.checked {
                self.0.judge.open(pick.round, task.clone());
            }
            if let Some(rival) = pick.rival {
                self.ask_rival(&pick, rival, &task, &body);
            }
            match self.attempt(&pick, &task, body.clone(), left, &progress).await {
                Ok(answer) => {
                    self.0.metrics.served(begun.elapsed());
                    return Ok(Served { answer, miner: Some(pick.miner), elapsed: begun.elapsed() });
                }
                Err(failure) => failed = Some(failure),
            }
        }
        Err(self.ended(failed, None))
    }

    fn status(&self) -> Status {
        status::status(&self.0)
    }
}

impl Organic {
    /// What the client is told when there is nobody left to try.
    fn ended(&self, last: Option<Failure>, retry_after_ms: Option<u64>) -> ServiceError {
        self.0.metrics.not_served();
        match last {
            None => self.no_capacity(retry_after_ms),
            Some(Failure::Busy { retry_after_ms }) => self.no_capacity(Some(retry_after_ms.into())),
            Some(Failure::TimedOut) => ServiceError::TimedOut,
            Some(Failure::Rejected(Reason::Invalid)) => {
                ServiceError::Invalid("every miner that was asked refused the request as invalid".into())
            }
            Some(failure) => ServiceError::Failed(format!("the last miner's failure: {}", failure.label())),
        }
    }
}
