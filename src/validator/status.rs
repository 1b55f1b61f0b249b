//! What a validator shows of itself: to `argus status`, to the gateway and the studio.

use std::collections::BTreeMap;

use argus_models::ModelSpec;
use argus_protocols::{Hotkey, TaskKind};
use serde::Serialize;

use super::{
    audits::Record,
    core::{Core, Counters},
    driver::Driver,
    period::{PeriodId, Tallies},
    select::{Miner, Presence},
    weights::Included,
};
use crate::{
    clock::unix_ms,
    gateway::{ChainStatus, MinerStatus, ModelCard, PeriodStatus, Status},
    jobs::{self, Jobs},
};

/// Everything, as JSON for `argus status`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Best share first.
    pub miners: Vec<MinerReport>,
    pub periods: Vec<PeriodReport>,
    pub weights: WeightsReport,
    pub counters: Counters,
    /// Rounds under way.
    pub rounds: usize,
    /// When the next synthetic round begins, Unix milliseconds.
    pub next_round_ms: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct MinerReport {
    pub hotkey: Hotkey,
    pub uid: u16,
    pub state: Presence,
    pub models: Vec<String>,
    /// Share of the weight vector.
    pub share: f64,
    /// Mean of the closed periods by task, as it goes into the weights.
    pub standing: BTreeMap<TaskKind, f64>,
    /// Mean score of the last closed period and the running one, by task.
    pub recent: BTreeMap<TaskKind, f64>,
    pub answers: u64,
    pub failures: BTreeMap<&'static str, u64>,
    pub latency_ms: BTreeMap<TaskKind, u64>,
    pub in_flight: u32,
    pub audits: AuditReport,
    /// Not asked before this, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rests_until_ms: Option<u64>,
}

/// What a miner's solo audits showed since this validator began, or as far back as periods are kept.
#[derive(Clone, Debug, Serialize)]
pub struct AuditReport {
    #[serde(flatten)]
    pub record: Record,
    /// The share of its synthetic queries that are audits.
    pub share: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct PeriodReport {
    pub period: PeriodId,
    /// Unix time, milliseconds.
    pub ends_at_ms: u64,
    pub closed: bool,
    /// Scored answers and failures.
    pub scored: u64,
    pub miners: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct WeightsReport {
    pub last: Option<Included>,
    pub under_way: bool,
    /// Failed attempts since the last success.
    pub failures: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// No weights for two tempos.
    pub alarm: bool,
    /// Newest block of the chain known here.
    pub block: u64,
    /// Whether this hotkey is registered and has a validator permit.
    pub permitted: bool,
}

fn by_task<T>(value: impl Fn(TaskKind) -> Option<T>) -> BTreeMap<TaskKind, T> {
    TaskKind::ALL.into_iter().filter_map(|task| Some((task, value(task)?))).collect()
}

pub(super) fn report(core: &Core, now_ms: u64) -> Report {
    let submission = core.submission();
    let shares = core.shares();
    let standings = by_task(|task| Some(core.periods().standings(task)));
    let miner = |(hotkey, miner): (&Hotkey, &Miner)| MinerReport {
        hotkey: *hotkey,
        uid: miner.uid,
        state: miner.presence(now_ms),
        models: miner.capabilities().iter().map(|c| c.model.clone()).collect(),
        share: shares.get(hotkey).copied().unwrap_or_default(),
        standing: by_task(|task| standings[&task].get(hotkey).copied()),
        recent: by_task(|task| core.periods().recent_mean(task, hotkey)),
        answers: miner.answers(),
        failures: miner.failures().clone(),
        latency_ms: miner.latency_ms().iter().map(|(task, ms)| (*task, ms.round() as u64)).collect(),
        in_flight: miner.in_flight(),
        audits: AuditReport { record: core.audits().record(hotkey), share: core.audits().share(hotkey) },
        rests_until_ms: Some(miner.rests_until_ms()).filter(|until| *until > now_ms),
    };
    let mut miners: Vec<MinerReport> = core.miners().iter().map(miner).collect();
    // Neurons without a record that names a miner are others' validators.
    miners.retain(|m| m.state != Presence::Unknown || m.share > 0.0 || !m.standing.is_empty());
    miners.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.uid.cmp(&b.uid)));
    let period = |closed| {
        move |(period, tallies): (&PeriodId, &Tallies)| PeriodReport {
            period: *period,
            ends_at_ms: core.periods().start_ms(*period + 1),
            closed,
            scored: tallies.values().map(|tally| u64::from(tally.count)).sum(),
            miners: tallies.keys().map(|(_, miner)| miner).collect::<std::collections::BTreeSet<_>>().len(),
        }
    };
    let closed = core.periods().closed().iter().map(period(true));
    Report {
        miners,
        periods: closed.chain(core.periods().open().iter().map(period(false))).collect(),
        weights: WeightsReport {
            last: submission.last_included().cloned(),
            under_way: submission.in_flight(),
            failures: submission.failures(),
            error: submission.last_error().map(str::to_owned),
            alarm: submission.alarm(core.chain()),
            block: core.chain().block,
            permitted: core.chain().permitted,
        },
        counters: core.counters(),
        rounds: core.rounds(),
        next_round_ms: core.next_round_ms(),
    }
}

pub(super) fn status(driver: &Driver) -> Status {
    let now_ms = unix_ms();
    let core = driver.core.lock();
    let report = report(&core, now_ms);
    let incentive = core.settings().incentive();
    let current = core.periods().at(now_ms);
    let tallies = core.periods().open().get(&current);
    let chain = driver.parts.watch.view();
    Status {
        hotkey: Some(driver.parts.hotkey.hotkey()),
        netuid: driver.parts.netuid,
        peers: driver.peers(),
        chain: ChainStatus {
            reachable: chain.metagraph.is_some() && chain.failures == 0,
            block: report.weights.block,
            weights_block: report.weights.last.as_ref().map(|included| included.block),
            error: chain.error.map(|error| error.to_string()).or(report.weights.error),
        },
        miners: report.miners.iter().map(|miner| miner_status(miner, &incentive, tallies)).collect(),
        period: Some(PeriodStatus {
            number: current,
            ends_at_ms: core.periods().start_ms(current + 1),
            scored: tallies.into_iter().flatten().map(|(_, tally)| u64::from(tally.count)).sum(),
        }),
    }
}

/// A miner's mean over all tasks by their incentive. A task in which it has not been scored counts as 0, as
/// it does in the weights: one who does well at the easy half of the work is not a good miner.
fn score(means: &BTreeMap<TaskKind, f64>, incentive: &BTreeMap<TaskKind, f64>) -> Option<f64> {
    let all: f64 = incentive.values().sum();
    let earned = incentive.iter().map(|(task, share)| share * means.get(task).copied().unwrap_or_default());
    (!means.is_empty()).then(|| earned.sum::<f64>() / all)
}

fn miner_status(
    miner: &MinerReport,
    incentive: &BTreeMap<TaskKind, f64>,
    current: Option<&Tallies>,
) -> MinerStatus {
    let means = if miner.standing.is_empty() { &miner.recent } else { &miner.standing };
    let latency = miner.latency_ms.get(&TaskKind::TextToImage).or(miner.latency_ms.values().next());
    let tallies = current.into_iter().flatten().filter(|((_, of), _)| *of == miner.hotkey);
    let (count, failed) =
        tallies.fold((0, 0), |(count, failed), (_, t)| (count + t.count, failed + t.failed));
    MinerStatus {
        hotkey: miner.hotkey,
        uid: miner.uid,
        reachable: matches!(miner.state, Presence::Ready | Presence::Full),
        models: miner.models.clone(),
        score: score(means, incentive),
        weight: miner.share,
        answered: (count - failed).into(),
        failed: failed.into(),
        latency_ms: latency.copied(),
    }
}

/// The models of this validator's engine, as clients see them: what it can check it can sell, whether or not
/// it is among the tasks that are paid for.
pub(super) fn model_cards(jobs: &Jobs, core: &Core) -> Vec<ModelCard> {
    let card = |spec: &ModelSpec| {
        let serving = |(_, miner): &(&Hotkey, &Miner)| {
            miner.capabilities().iter().any(|capability| capability.model == spec.id.as_str())
        };
        ModelCard {
            embedding_dimensions: jobs.embedding_dimensions(spec.id.as_str()).map(|d| d as u32),
            miners: core.miners().iter().filter(serving).count() as u32,
            ..jobs::card(spec)
        }
    };
    jobs.engine().models().iter().map(card).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_over_all_tasks_that_are_paid() {
        use TaskKind::{ImageEmbedding, TextToImage};
        let incentive = BTreeMap::from([(TextToImage, 0.75), (ImageEmbedding, 0.25)]);
        assert_eq!(score(&BTreeMap::new(), &incentive), None);
        assert_eq!(
            score(&BTreeMap::from([(TextToImage, 1.0), (ImageEmbedding, 0.5)]), &incentive),
            Some(0.875)
        );
        assert_eq!(score(&BTreeMap::from([(ImageEmbedding, 1.0)]), &incentive), Some(0.25));
    }
}
