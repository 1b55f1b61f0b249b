//! Carries out what the core decides.
//!
//! Every event goes through [`Driver::apply`]: the core is locked for as long as it thinks, never while
//! anything is awaited. Actions run as tasks of one tracker and end in another event; how many there are is
//! bounded by the core.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use argus_protocols::{Answer, Challenge, Commitment, Hotkey, Role, Task, TaskKind, query::Deadlines};
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rand::Rng;
use tokio::time::MissedTickBehavior;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Parts, Settings, ValidatorError,
    core::{Action, Core, Event},
    judge::Judge,
    ledger::Ledger,
    metrics::Metrics,
    round::{Reply, RoundId},
    select::Failure,
    synthetic::Synthesiser,
    weights::{ChainView, Included, Intent, Rules},
};
use crate::{
    chain::ChainError,
    clock::unix_ms,
    net::{Auditor, LookupError, OutgoingQuery, QueryError, QueryProgress},
    store::StoreError,
    verify::{Evidence, trajectory::Finding},
};

/// How often the core looks at its clock.
const TICK: Duration = Duration::from_millis(250);
const COUNT_PEERS: Duration = Duration::from_secs(5);
/// How long what is under way may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(10);

pub(super) struct Driver {
    pub(super) core: Mutex<Core>,
    pub(super) parts: Parts,
    pub(super) settings: Settings,
    pub(super) judge: Judge,
    pub(super) metrics: Metrics,
    ledger: Ledger,
    /// Streams on which a miner waits to be challenged; of audits under way alone.
    auditors: Mutex<HashMap<(RoundId, Hotkey), Auditor>>,
    synthesiser: Synthesiser,
    peers: AtomicU32,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Driver {
    pub(super) fn new(
        settings: Settings,
        parts: Parts,
        registry: &mut Registry,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, ValidatorError> {
        let ledger = Ledger::new(parts.store.clone());
        let restored = ledger.restore()?;
        tracing::info!(
            periods = restored.closed.len(),
            scores = restored.scores.len(),
            "read what the last run left"
        );
        let seed = rand::rng().random();
        Ok(Arc::new(Self {
            core: Mutex::new(Core::new(settings.clone(), seed, restored)),
            judge: Judge::new(parts.jobs.clone(), settings.thresholds, settings.audits.tolerances),
            auditors: Mutex::default(),
            metrics: Metrics::new(registry),
            ledger,
            synthesiser: Synthesiser::new(),
            peers: AtomicU32::new(0),
            tasks: TaskTracker::new(),
            parts,
            settings,
            shutdown,
        }))
    }

    /// Runs until shutdown.
    pub(super) async fn run(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = tokio::time::interval(COUNT_PEERS);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = self.parts.watch.clone();
        self.look_at_chain();
        loop {
            tokio::select! {
                _ = tick.tick() => self.apply(Event::Tick),
                _ = count.tick() => self.count_peers(),
                changed = watch.changed() => match changed {
                    true => self.look_at_chain(),
                    // The watch ended; the node is going down.
                    false => break self.shutdown.cancelled().await,
                },
                () = self.shutdown.cancelled() => break,
            }
        }
        self.tasks.close();
        // Answers that came are judged and stored; queries still out are given up.
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "gave up rounds under way");
        }
    }

    fn count_peers(self: &Arc<Self>) {
        self.clone().spawn(async move |driver| {
            if let Ok(snapshot) = driver.parts.handle.snapshot().await {
                driver.peers.store(snapshot.peers.len() as u32, Ordering::Relaxed);
            }
        });
    }

    /// Peers connected, as of the last count.
    pub(super) fn peers(&self) -> u32 {
        self.peers.load(Ordering::Relaxed)
    }

    fn look_at_chain(self: &Arc<Self>) {
        let seen = self.parts.watch.view();
        let Some(metagraph) = &seen.metagraph else { return };
        let own = self.parts.hotkey.hotkey();
        let me = metagraph.by_hotkey(&own);
        let hyper = &metagraph.hyperparameters;
        let view = ChainView {
            block: seen.head.map_or(metagraph.block, |head| head.block.max(metagraph.block)),
            tempo: hyper.tempo.into(),
            rate_limit: hyper.weights_rate_limit,
            version_key: hyper.version_key,
            last_update: me.map_or(0, |neuron| neuron.last_update),
            permitted: me.is_some_and(|neuron| neuron.permit),
        };
        let rules = Rules { min_entries: hyper.min_allowed_weights, max_share: hyper.max_weights_limit };
        let others = metagraph.neurons.iter().filter(|neuron| neuron.hotkey != own);
        let uids = others.map(|neuron| (neuron.hotkey, neuron.uid)).collect();
        self.apply(Event::Chain { view, rules, uids });
    }

    /// Tells the core what happened, and begins what it decides.
    pub(super) fn apply(self: &Arc<Self>, event: Event) {
        self.metrics.event(&event);
        let actions = self.core.lock().handle(event, unix_ms());
        for action in actions {
            self.act(action);
        }
        self.metrics.core(&self.core.lock());
    }

    fn act(self: &Arc<Self>, action: Action) {
        let this = self.clone();
        match action {
            Action::LookUp(miner) => this.spawn(async move |driver| {
                let found = driver.look_up(&miner).await;
                driver.apply(Event::LookedUp { miner, found });
            }),
            Action::Ask { round, task, model, miners, seed, is_audit } => {
                this.spawn(async move |driver| {
                    driver.ask_all(round, task, &model, miners, seed, is_audit).await;
                });
            }
            Action::Audit { round, miner, commitment, challenge, steps } => {
                this.spawn(async move |driver| {
                    let found = driver.audit(round, miner, commitment, challenge, steps).await;
                    driver.apply(Event::Audited { round, found });
                });
            }
            Action::Compare(round) => this.spawn(async move |driver| {
                let found = driver.judge.compare(round).await;
                driver.keep_picture(found.picture.as_deref());
                driver.apply(Event::Compared { round, agree: found.agree, withheld: found.withheld });
            }),
            Action::Reference(round) => this.spawn(async move |driver| {
                driver.let_go(round);
                let found = driver.judge.reference(round).await;
                driver.apply(Event::Referenced { round, found });
            }),
            Action::Store(scores) => this.on_disk(move |ledger| {
                let stored = ledger.store_scores(&scores);
                match report("scores", stored) {
                    true => Event::Stored(scores),
                    false => Event::NotStored(scores),
                }
            }),
            Action::StorePeriod { period, tallies, oldest } => this.on_disk(move |ledger| {
                let stored = ledger.store_period(period, &tallies, oldest);
                tracing::info!(period, miners = tallies.len(), "a period is over");
                match report("period", stored) {
                    true => Event::PeriodStored(period),
                    false => Event::PeriodNotStored(period),
                }
            }),
            Action::Forget(round) => {
                self.let_go(round);
                self.judge.forget(round);
            }
            Action::SetWeights(intent) => this.spawn(async move |driver| {
                let event = driver.set_weights(intent).await;
                driver.apply(event);
            }),
            Action::StoreIncluded(included) => {
                tracing::info!(block = included.block, "found our weights on the chain");
                this.spawn(async move |driver| driver.store_included(included).await);
            }
            Action::Alarm { blocks } => {
                self.metrics.alarm();
                tracing::error!(
                    blocks,
                    "weights have not reached the chain for two tempos: check the chain's endpoint, the permit and the stake"
                );
            }
        }
    }

    fn spawn<F>(self: Arc<Self>, work: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tasks = self.tasks.clone();
        tasks.spawn(work(self));
    }

    /// Writes on a blocking thread, and tells the core how that went.
    fn on_disk(self: Arc<Self>, write: impl FnOnce(&Ledger) -> Event + Send + 'static) {
        let tasks = self.tasks.clone();
        tasks.spawn_blocking(move || {
            let event = write(&self.ledger);
            self.apply(event);
        });
    }

    fn keep_picture(&self, evidence: Option<&Evidence>) {
        if let Some(Evidence::Picture { picture, .. }) = evidence {
            self.synthesiser.add(picture);
        }
    }

    async fn look_up(&self, miner: &Hotkey) -> Result<Option<Vec<argus_protocols::Capability>>, ()> {
        match self.parts.handle.lookup(miner).await {
            Ok(record) if record.role == Role::Miner && record.netuid == self.parts.netuid => {
                Ok(Some(record.capabilities.clone()))
            }
            Ok(_) | Err(LookupError::NotFound) => Ok(None),
            Err(error) => {
                tracing::debug!(miner = miner.short(), reason = error.reason(), "no record");
                Err(())
            }
        }
    }

    async fn ask_all(
        self: Arc<Self>,
        round: RoundId,
        kind: TaskKind,
        model: &str,
        miners: Vec<Hotkey>,
        seed: u64,
        is_audit: bool,
    ) {
        let driver = self.clone();
        let model = model.to_owned();
        // Drawing pictures is too much for an async thread.
        let drawn = tokio::task::spawn_blocking(move || {
            let task = driver.synthesiser.draw(kind, driver.parts.jobs.spec(&model)?, seed)?;
            let body = Bytes::from(task.to_bytes());
            Some((task, body))
        });
        let Ok(Some((task, body))) = drawn.await else {
            tracing::error!(task = %kind, "no request could be drawn");
            for miner in miners {
                self.apply(Event::Abandoned { round, miner });
            }
            return;
        };
        let task = Arc::new(task);
        self.judge.open(round, task.clone());
        for miner in miners {
            let (task, body) = (task.clone(), body.clone());
            self.clone().spawn(async move |driver| {
                let deadlines = driver.deadlines(&task, None);
                let outcome = tokio::select! {
                    outcome = driver.ask_keeping(round, miner, &task, body, deadlines, |_| ()) => outcome,
                    () = driver.shutdown.cancelled() => return driver.apply(Event::Abandoned { round, miner }),
                };
                let outcome = outcome.map(|(reply, _, auditor)| {
                    if let Some(auditor) = auditor.filter(|_| is_audit) {
                        driver.auditors.lock().insert((round, miner), auditor);
                    }
                    reply
                });
                driver.apply(Event::Answered { round, miner, outcome });
            });
        }
    }

    /// How long a query may take: what its model allows, and no longer than `left`.
    pub(super) fn deadlines(&self, task: &Task, left: Option<Duration>) -> Deadlines {
        let allowed = self.parts.jobs.spec(task.model()).map_or(Duration::ZERO, |spec| spec.timeout);
        let total = allowed.min(left.unwrap_or(allowed)).as_millis() as u32;
        Deadlines {
            first_byte_ms: self.settings.first_byte_ms.min(total),
            idle_ms: self.settings.idle_ms.min(total),
            total_ms: total.min(argus_protocols::limits::DEADLINE_MS),
        }
    }

    /// Lets go of the miner that waits to be challenged, if one does.
    fn let_go(&self, round: RoundId) {
        self.auditors.lock().retain(|(of, _), _| *of != round);
    }

    /// Has a miner open states of the run that it committed to, and takes some of its steps again. `None`:
    /// this node could not do its part.
    async fn audit(
        &self,
        round: RoundId,
        miner: Hotkey,
        commitment: Commitment,
        challenge: Challenge,
        steps: Vec<u32>,
    ) -> Option<Finding> {
        let auditor = self.auditors.lock().remove(&(round, miner))?;
        let begun = Instant::now();
        let opening = tokio::select! {
            opening = auditor.challenge(&challenge) => opening,
            () = self.shutdown.cancelled() => return None,
        };
        let opening = match opening {
            Ok(opening) => opening,
            Err(error) => {
                tracing::warn!(
                    miner = miner.short(),
                    round,
                    reason = error.label(),
                    "a trajectory was not opened"
                );
                self.metrics.audited("unopened", begun.elapsed());
                return Some(Finding::Unopened);
            }
        };
        // Hashing megabytes is not for an async thread.
        let verified = tokio::task::spawn_blocking(move || opening.verify(&challenge, &commitment));
        let found = match verified.await.ok()? {
            Ok(opened) => self.judge.audit(round, &miner, opened, &steps, commitment.states).await?,
            Err(error) => Finding::from(error),
        };
        let label = match found {
            Finding::Sound => "sound",
            Finding::False(label) => label,
            Finding::Unopened => "unopened",
        };
        if found != Finding::Sound {
            tracing::warn!(miner = miner.short(), round, found = label, "a trajectory failed its audit");
        }
        self.metrics.audited(label, begun.elapsed());
        Some(found)
    }

    /// As [`Self::ask_keeping`], for who has nothing to ask afterwards.
    pub(super) async fn ask(
        &self,
        round: RoundId,
        miner: Hotkey,
        task: &Task,
        body: Bytes,
        deadlines: Deadlines,
        progress: impl FnMut(QueryProgress) + Send,
    ) -> Result<(Reply, Answer), Failure> {
        let (reply, answer, _) = self.ask_keeping(round, miner, task, body, deadlines, progress).await?;
        Ok((reply, answer))
    }

    /// Sends one query. The answer is decoded and kept for the judge if its round has a case. The miner may
    /// wait to be challenged until the stream is dropped.
    async fn ask_keeping(
        &self,
        round: RoundId,
        miner: Hotkey,
        task: &Task,
        body: Bytes,
        deadlines: Deadlines,
        progress: impl FnMut(QueryProgress) + Send,
    ) -> Result<(Reply, Answer, Option<Auditor>), Failure> {
        let query =
            OutgoingQuery { miner, task: task.kind(), model: task.model().to_owned(), body, deadlines };
        let asked = self.parts.handle.query_to_audit(query, progress).await;
        let (answered, auditor) = asked.map_err(|error| {
            let failure = failure(&error);
            tracing::debug!(miner = miner.short(), round, reason = failure.label(), %error, "no answer");
            failure
        })?;
        let answer = Answer::from_bytes(&answered.body).map_err(|_| Failure::BadAnswer)?;
        if !answer.answers(task) {
            return Err(Failure::BadAnswer);
        }
        self.metrics.answered(task.kind(), answered.total);
        self.judge.add(round, miner, answer.clone());
        let receipt = Arc::new(answered.receipt.signed().clone());
        // A commitment where there is nothing to commit to does not save anybody from being reproduced.
        let can_be_audited = self.parts.jobs.has_trajectory(task);
        let trajectory = answered.receipt.trajectory.filter(|_| can_be_audited);
        Ok((Reply { elapsed: answered.total, receipt, trajectory }, answer, auditor))
    }

    async fn set_weights(&self, intent: Intent) -> Event {
        let (ledger, written) = (self.ledger.clone(), intent.clone());
        let stored = tokio::task::spawn_blocking(move || ledger.store_intent(&written)).await;
        if !stored.is_ok_and(|stored| report("weight intent", stored)) {
            return Event::WeightsFailed("the intent could not be written to the store".into());
        }
        let Parts { chain, hotkey, netuid, .. } = &self.parts;
        let sent = tokio::select! {
            sent = chain.set_weights(hotkey, *netuid, &intent.weights, intent.version_key) => sent,
            () = self.shutdown.cancelled() => return Event::WeightsFailed("the node is shutting down".into()),
        };
        match sent {
            Ok(inclusion) => {
                tracing::info!(
                    block = inclusion.block,
                    entries = intent.weights.len(),
                    "the chain has our weights"
                );
                let Intent { period, weights, .. } = intent;
                let hash = inclusion.hash.to_string();
                let included = Included { period, block: inclusion.block, hash, weights };
                self.store_included(included.clone()).await;
                self.parts.watch.refresh();
                Event::WeightsIncluded(included)
            }
            Err(error) => {
                tracing::warn!(%error, reason = error.reason(), "weights were not set");
                if matches!(error, ChainError::NotIncluded { .. }) {
                    self.parts.watch.refresh();
                }
                Event::WeightsFailed(error.to_string())
            }
        }
    }

    /// A fact that the chain knows as well: should it not be written, it is found there again.
    async fn store_included(&self, included: Included) {
        let ledger = self.ledger.clone();
        let stored = tokio::task::spawn_blocking(move || ledger.store_included(&included)).await;
        if let Ok(stored) = stored {
            report("inclusion", stored);
        }
    }
}

/// Whether a write succeeded; says so when not.
fn report(what: &str, stored: Result<(), StoreError>) -> bool {
    if let Err(error) = &stored {
        tracing::warn!(%error, reason = error.reason(), "{what} not stored; trying again");
    }
    stored.is_ok()
}

fn failure(error: &QueryError) -> Failure {
    match error {
        QueryError::Rejected(rejection) if rejection.reason == argus_protocols::Reason::Busy => {
            Failure::Busy { retry_after_ms: rejection.retry_after_ms }
        }
        QueryError::Rejected(rejection) => Failure::Rejected(rejection.reason),
        QueryError::TimedOut(_) => Failure::TimedOut,
        QueryError::Protocol(_) => Failure::Protocol,
        QueryError::Lookup(_) | QueryError::Unreachable(_) | QueryError::Closed | QueryError::Invalid(_) => {
            Failure::Unreachable
        }
    }
}
