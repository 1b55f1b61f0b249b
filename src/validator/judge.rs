//! The answers of the rounds under way, and what comparing them shows.
//!
//! Bounded by the core's number of rounds: a round's answers are dropped with it.

use std::{collections::HashMap, sync::Arc};

use argus_models::registry::Precision;
use argus_protocols::{Answer, Hotkey, Task};
use parking_lot::Mutex;

use super::round::RoundId;
use crate::{
    jobs::{Jobs, UnusableAnswer, is_exact},
    verify::{
        Comparison, Evidence, Ruler, Thresholds,
        trajectory::{DeviceTolerances, Finding},
    },
};

/// What one answer turned out to be.
#[derive(Clone)]
enum Shown {
    Answer(Answer),
    Evidence(Arc<Evidence>),
    /// It is no answer to the task.
    Unusable,
}

struct Case {
    task: Arc<Task>,
    shown: HashMap<Hotkey, Shown>,
}

pub(super) struct Judge {
    jobs: Jobs,
    thresholds: Thresholds,
    tolerances: DeviceTolerances,
    cases: Mutex<HashMap<RoundId, Case>>,
}

/// What comparing a round's answers with each other gave.
pub(super) struct Agreement {
    pub agree: bool,
    pub withheld: bool,
    /// A right picture, as far as is known.
    pub picture: Option<Arc<Evidence>>,
}

impl Judge {
    pub(super) fn new(jobs: Jobs, thresholds: Thresholds, tolerances: DeviceTolerances) -> Self {
        Self { jobs, thresholds, tolerances, cases: Mutex::default() }
    }

    pub(super) fn open(&self, round: RoundId, task: Arc<Task>) {
        self.cases.lock().insert(round, Case { task, shown: HashMap::new() });
    }

    pub(super) fn add(&self, round: RoundId, miner: Hotkey, answer: Answer) {
        if let Some(case) = self.cases.lock().get_mut(&round) {
            case.shown.insert(miner, Shown::Answer(answer));
        }
    }

    pub(super) fn forget(&self, round: RoundId) {
        self.cases.lock().remove(&round);
    }

    fn task(&self, round: RoundId) -> Option<Arc<Task>> {
        self.cases.lock().get(&round).map(|case| case.task.clone())
    }

    fn ruler(&self, task: &Task) -> Ruler {
        match self.jobs.spec(task.model()) {
            Some(spec) if is_exact(spec) => Ruler::exact(),
            Some(spec) => Ruler::drifting(self.thresholds, spec.numerics.dtype),
            None => Ruler::drifting(self.thresholds, Precision::F16),
        }
    }

    /// Holds answers against one, off the async threads: large pictures take a while. `None`: it failed here.
    async fn held_against(
        &self,
        task: &Task,
        first: Arc<Evidence>,
        others: Vec<Arc<Evidence>>,
    ) -> Option<Vec<Comparison>> {
        let ruler = self.ruler(task);
        let compare = move || others.iter().map(|other| ruler.compare(&first, other)).collect();
        let compared = tokio::task::spawn_blocking(compare).await;
        compared.inspect_err(|panic| tracing::error!(%panic, "comparing answers failed")).ok()
    }

    /// Takes `steps` of the run that made a miner's answer again, from what it opened of its `states`. `None`:
    /// this node's own engine failed.
    pub(super) async fn audit(
        &self,
        round: RoundId,
        miner: &Hotkey,
        opened: Vec<(u32, Vec<u8>)>,
        steps: &[u32],
        states: u32,
    ) -> Option<Finding> {
        let (task, shown) = {
            let cases = self.cases.lock();
            let case = cases.get(&round)?;
            (case.task.clone(), case.shown.get(miner)?.clone())
        };
        let Shown::Answer(answer) = shown else { return None };
        match self.jobs.audit(&task, answer, opened, steps, states).await {
            Ok(audited) => {
                let spec = self.jobs.spec(task.model())?;
                let tolerances = self.tolerances.of(spec.numerics);
                tracing::debug!(round, miner = miner.short(), ?audited, "took steps again");
                Some(Finding::of(&audited, &tolerances))
            }
            Err(UnusableAnswer::Engine(error)) => {
                tracing::warn!(%error, "this node's engine could not take steps again");
                None
            }
            Err(error) => {
                tracing::debug!(miner = miner.short(), %error, "an answer that cannot be audited");
                Some(Finding::False("unusable_answer"))
            }
        }
    }

    /// Looks at each answer of a round once. `None`: this node's own engine failed.
    async fn evidence(&self, round: RoundId, task: &Task) -> Option<Vec<(Hotkey, Option<Arc<Evidence>>)>> {
        let shown: Vec<(Hotkey, Shown)> =
            self.cases.lock().get(&round)?.shown.iter().map(|(m, s)| (*m, s.clone())).collect();
        let mut all = Vec::with_capacity(shown.len());
        for (miner, shown) in shown {
            let evidence = match shown {
                Shown::Evidence(evidence) => Some(evidence),
                Shown::Unusable => None,
                Shown::Answer(answer) => {
                    let looked = match self.jobs.evidence(task, answer).await {
                        Ok(evidence) => Some(Arc::new(evidence)),
                        Err(UnusableAnswer::Engine(error)) => {
                            tracing::warn!(%error, "this node's engine could not look at an answer");
                            return None;
                        }
                        Err(error) => {
                            tracing::debug!(miner = miner.short(), %error, "an unusable answer");
                            None
                        }
                    };
                    let shown = looked.clone().map_or(Shown::Unusable, Shown::Evidence);
                    if let Some(case) = self.cases.lock().get_mut(&round) {
                        case.shown.insert(miner, shown);
                    }
                    looked
                }
            };
            all.push((miner, evidence));
        }
        Some(all)
    }

    /// Compares the answers of a round with each other.
    pub(super) async fn compare(&self, round: RoundId) -> Agreement {
        let unknown = Agreement { agree: false, withheld: false, picture: None };
        let Some(task) = self.task(round) else { return unknown };
        let Some(all) = self.evidence(round, &task).await else { return unknown };
        let usable: Option<Vec<Arc<Evidence>>> = all.into_iter().map(|(_, evidence)| evidence).collect();
        let Some((first, others)) = usable.as_deref().and_then(<[_]>::split_first) else { return unknown };
        let compared = self.held_against(&task, first.clone(), others.to_vec()).await;
        let Some(compared) = compared else { return unknown };
        let agree = compared.iter().all(|comparison| comparison.same);
        let withheld = first.is_withheld() || others.iter().any(|other| other.is_withheld());
        Agreement { agree, withheld, picture: agree.then(|| first.clone()) }
    }

    /// Makes the answer here and compares each of the round's with it. `None`: no reference could be made.
    pub(super) async fn reference(&self, round: RoundId) -> Option<Vec<(Hotkey, Option<Comparison>)>> {
        let task = self.task(round)?;
        let reference = match self.jobs.reference(&task).await {
            Ok(reference) => reference,
            Err(error) => {
                tracing::warn!(%error, "this node's engine could not make a reference");
                return None;
            }
        };
        let all = self.evidence(round, &task).await?;
        let readable = all.iter().filter_map(|(_, evidence)| evidence.clone()).collect();
        let mut compared = self.held_against(&task, Arc::new(reference), readable).await?.into_iter();
        Some(
            all.into_iter()
                .map(|(miner, evidence)| (miner, evidence.and_then(|_| compared.next())))
                .collect(),
        )
    }
}
