//! Mining: answering validators' queries with the models of this machine.
//!
//! A query passes admission (permit, stake, model, places: from its open frame alone), then its body is read
//! and checked, then it waits in a queue that is fair to each validator, then it is at work. Invariants:
//! - Nothing is read or computed for someone who may not ask; a refusal is typed and of constant size.
//! - Queries under way are bounded in all, for each hotkey and for each peer.
//! - A query that cannot be done before its deadline is not begun; one whose validator went away is cancelled.
//! - An NSFW picture never leaves: its features do.
//! - A picture's sampler states are kept for the seconds in which its validator may ask for some, within a
//!   bound on their bytes.

pub mod admission;
pub mod backend;
#[cfg(feature = "adversary")]
pub mod dishonest;
pub mod http;
mod metrics;
pub mod queue;
mod serve;
pub mod slots;
pub mod trajectory;

use std::{sync::Arc, time::Duration};

use argus_protocols::{Capability, Hotkey, Reason, Rejection};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use backend::{Backend, BackendError, Step};
pub use metrics::Metrics;

use self::{
    admission::{Admission, Load, Standing},
    serve::Admitted,
    slots::Slots,
    trajectory::Shelf,
};
use crate::{
    chain::{self, TAO},
    net::InboundQuery,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub admission: admission::Settings,
    pub backend: BackendSettings,
    pub trajectories: trajectory::Settings,
    /// How long a request's body may take to arrive, milliseconds.
    pub body_ms: u32,
    /// How long running queries are given to end when the node shuts down, milliseconds.
    pub drain_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            admission: admission::Settings::default(),
            backend: BackendSettings::default(),
            trajectories: trajectory::Settings::default(),
            body_ms: 20_000,
            drain_ms: 10_000,
        }
    }
}

/// What does the work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BackendSettings {
    /// The engine of this process.
    #[default]
    Engine,
    /// Workers elsewhere.
    Http(http::Settings),
}

impl Settings {
    pub fn validate(&self) -> Result<(), MinerError> {
        self.admission.validate().map_err(MinerError::Settings)?;
        self.trajectories.validate().map_err(MinerError::Settings)?;
        if self.body_ms == 0 {
            return Err(MinerError::Settings("body_ms is 0: give the body some time".into()));
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MinerError {
    #[error("miner.{0}")]
    Settings(String),
    #[error("no model passed its warm-up: see the log above, and check the device and the models' files")]
    NoModel,
    #[error("the net stopped handing out queries")]
    Net,
}

impl MinerError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            MinerError::Settings(_) => "settings",
            MinerError::NoModel => "no_model",
            MinerError::Net => "net",
        }
    }
}

/// Refusals being written and metagraphs being waited for at once; beyond it streams are just closed.
const REFUSALS: usize = 256;
/// A validator that the metagraph does not know makes us look again at most this often, whoever it is.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a refused validator waits for that look.
const LOOK_FOR: Duration = Duration::from_secs(2);
/// The least weight in the queue, as a share of all validators' stake: small validators are served too.
const LEAST_WEIGHT: f64 = 0.05;

/// What became of a query at the door.
enum Admittance {
    In(Admitted),
    Refused(InboundQuery, Rejection),
}

/// What all queries of a miner share.
struct Shared {
    settings: Settings,
    backend: Arc<dyn Backend>,
    chain: chain::Watch,
    admission: Mutex<Admission>,
    slots: Slots,
    shelf: Shelf,
    metrics: Metrics,
    looked_at: Mutex<Option<Instant>>,
    /// No new work.
    closing: CancellationToken,
    /// Running work ends too.
    abort: CancellationToken,
}

/// Runs a miner until shutdown: warms the models up, tells `capabilities` (for the record) what passed, and
/// answers queries. Returns when the last one is over.
pub async fn run(
    settings: Settings,
    backend: Arc<dyn Backend>,
    mut queries: mpsc::Receiver<InboundQuery>,
    chain: chain::Watch,
    netuid: u16,
    capabilities: watch::Sender<Vec<Capability>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), MinerError> {
    settings.validate()?;
    let shared = Arc::new(Shared {
        admission: Mutex::new(Admission::new(settings.admission.clone(), netuid)),
        slots: Slots::new(backend.slots()),
        shelf: Shelf::new(&settings.trajectories),
        metrics,
        settings,
        backend,
        chain,
        looked_at: Mutex::new(None),
        closing: shutdown.child_token(),
        abort: CancellationToken::new(),
    });
    let found = tokio::select! {
        found = shared.backend.warm_up() => found,
        () = shared.closing.cancelled() => return Ok(()),
    };
    if found.is_empty() {
        if !shared.backend.can_recover() {
            return Err(MinerError::NoModel);
        }
        tracing::warn!("nothing can be served yet: the worker does not answer; it is waited for");
    }
    shared.take_measurements(&found);
    // The receiver may be gone: a miner without a record still answers those who know it.
    let _ = capabilities.send(found);

    let queries_under_way = TaskTracker::new();
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let ended = loop {
        let query = tokio::select! {
            query = queries.recv() => query,
            found = shared.backend.changed() => {
                shared.take_measurements(&found);
                let _ = capabilities.send(found);
                continue;
            }
            () = shared.closing.cancelled() => break Ok(()),
        };
        let Some(query) = query else { break Err(MinerError::Net) };
        match shared.admit(query) {
            Admittance::In(admitted) => {
                queries_under_way.spawn(admitted.serve());
            }
            Admittance::Refused(query, rejection) => {
                // Beyond the bound the stream is closed without a word.
                if let Ok(permit) = refusals.clone().try_acquire_owned() {
                    let refused = shared.clone().refuse(query, rejection);
                    queries_under_way.spawn(async move {
                        refused.await;
                        drop(permit);
                    });
                }
            }
        }
    };
    queries_under_way.close();
    shared.closing.cancel();
    if ended.is_err() {
        shared.abort.cancel();
    }
    let drain = Duration::from_millis(shared.settings.drain_ms.into());
    if tokio::time::timeout(drain, queries_under_way.wait()).await.is_err() {
        tracing::warn!(queries = queries_under_way.len(), "cancelling what is still at work");
        shared.abort.cancel();
        queries_under_way.wait().await;
    }
    ended
}

impl Shared {
    fn take_measurements(&self, found: &[Capability]) {
        for capability in found {
            tracing::info!(
                model = capability.model,
                units_per_second = capability.work_units_per_second,
                "serving"
            );
            let seconds = 1.0 / f64::from(capability.work_units_per_second).max(1e-6);
            for task in capability.tasks.iter().filter_map(|code| argus_protocols::TaskKind::from_code(*code))
            {
                self.slots.measured(task, &capability.model, 1.0, Duration::from_secs_f64(seconds));
            }
        }
    }

    fn standing(&self, hotkey: &Hotkey) -> Option<Standing> {
        let metagraph = self.chain.metagraph()?;
        let neuron = metagraph.by_hotkey(hotkey)?;
        Some(Standing { permit: neuron.permit, stake: neuron.stake as f64 / TAO as f64 })
    }

    /// A validator's weight in the queue: its share of all validators' stake, with a floor.
    fn weight(&self, hotkey: &Hotkey) -> f64 {
        let share = self.chain.metagraph().and_then(|metagraph| {
            let all = metagraph.validator_stake().max(1) as f64;
            Some(metagraph.by_hotkey(hotkey)?.stake as f64 / all)
        });
        share.unwrap_or_default().max(LEAST_WEIGHT)
    }

    fn admit(self: &Arc<Self>, query: InboundQuery) -> Admittance {
        let standing = self.standing(&query.open().validator);
        let entered = self.admission.lock().enter(query.open(), query.peer(), standing, |task, model| {
            let usual = self.backend.usual_work(task, model)?;
            Some(Load {
                slots: self.slots.all(),
                wait: self.slots.wait(task, model),
                work: self.slots.time_for(task, model, usual),
                closing: self.closing.is_cancelled(),
            })
        });
        match entered {
            Ok(()) => Admittance::In(Admitted::new(self.clone(), query)),
            Err(rejection) => Admittance::Refused(query, rejection),
        }
    }

    /// Refuses a query; one of a validator that the metagraph does not know or allow yet only after a fresh
    /// look at the chain, since permits come with epochs and our view is some blocks old.
    async fn refuse(self: Arc<Self>, query: InboundQuery, rejection: Rejection) {
        if rejection.reason != Reason::Unauthorised || !self.may_look_again() {
            return self.reject(query, rejection).await;
        }
        // Whether it came or not, what is known then decides.
        let _ = tokio::time::timeout(LOOK_FOR, self.look_again()).await;
        match self.admit(query) {
            Admittance::In(admitted) => admitted.serve().await,
            Admittance::Refused(query, rejection) => self.reject(query, rejection).await,
        }
    }

    /// Resolves when the metagraph was read anew.
    async fn look_again(&self) {
        let mut chain = self.chain.clone();
        let before = chain.view().read_at;
        chain.refresh();
        while chain.view().read_at == before && chain.changed().await {}
    }

    fn may_look_again(&self) -> bool {
        let mut looked_at = self.looked_at.lock();
        let may = looked_at.is_none_or(|at| at.elapsed() >= LOOK_AGAIN);
        if may {
            *looked_at = Some(Instant::now());
        }
        may
    }

    async fn reject(&self, query: InboundQuery, rejection: Rejection) {
        tracing::debug!(query = %query.open().id, validator = query.open().validator.short(), reason = %rejection.reason, "refused");
        self.metrics.refused(rejection.reason);
        query.reject(rejection).await;
    }
}
