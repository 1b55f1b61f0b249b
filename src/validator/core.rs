//! The validator as a plain state machine: `handle(event, now) -> actions`, clock and randomness from outside.
//!
//! It decides who is asked when, what answers are worth, when a period ends and when weights go out. It holds
//! no picture and does no I/O: whoever drives it carries out each [`Action`] and says what came of it as an
//! [`Event`]. One seed replays a run of hundreds of miners exactly.
//!
//! Invariants: a score counts only after [`Event::Stored`]; every choice of a miner is followed by one
//! [`Event::Answered`] or [`Event::Abandoned`]; rounds, unsaved rows and lookups are bounded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use argus_protocols::{Challenge, Hotkey, TaskKind};
use rand::{Rng, SeedableRng, rngs::StdRng};

pub use super::events::{Action, Counters, Event, OrganicPick, Restored};
use super::{
    audits::{Audits, Method},
    period::{PeriodId, Periods},
    round::{Next, Origin, Outcome, Round, RoundId, Score, ScoreRow, Scored},
    select::{Failure, Held, Miners, NoRoom},
    settings::{Settings, TaskSettings},
    weights::{self, ChainView, Intent, Rules, Shares, Submission},
};

/// Rounds under way at once, organic ones included. Beyond it organic answers go unchecked.
pub const ROUNDS: usize = 64;
/// Synthetic rounds of one task at once: a slow reference must not pile them up.
const SYNTHETIC_ROUNDS: usize = 2;
/// A round that did not end by itself is dropped; every query has ended long before.
const ROUND_LONGEST_MS: u64 = 20 * 60_000;
/// Score rows that wait for the disk.
const UNSAVED_ROWS: usize = 8192;
const STORE_RETRY_MS: u64 = 2_000;
/// Without an answer from anybody for this long, unreachable miners may be our own fault.
const QUIET_MS: u64 = 60_000;

pub struct Core {
    settings: Settings,
    rng: StdRng,
    miners: Miners,
    audits: Audits,
    periods: Periods,
    submission: Submission,
    chain: ChainView,
    rules: Rules,
    uids: BTreeMap<Hotkey, u16>,
    rounds: BTreeMap<RoundId, Round>,
    next_round: RoundId,
    /// When the next synthetic round of a task begins.
    next_synthetic_ms: BTreeMap<TaskKind, u64>,
    /// Rows with the store, by period.
    storing: BTreeMap<PeriodId, usize>,
    unsaved: VecDeque<Score>,
    unsaved_periods: BTreeSet<PeriodId>,
    store_retry_ms: u64,
    last_answer_ms: Option<u64>,
    alarmed_at_block: Option<u64>,
    counters: Counters,
}

impl Core {
    pub fn new(settings: Settings, seed: u64, restored: Restored) -> Self {
        let mut periods = Periods::new(settings.periods.clone());
        let mut audits = Audits::new(settings.audits);
        for (period, tallies) in restored.closed {
            for ((_, miner), tally) in &tallies {
                audits.restore(
                    *miner,
                    (tally.audits - tally.audits_failed).into(),
                    tally.audits_failed.into(),
                );
            }
            periods.restore_closed(period, tallies);
        }
        for row in restored.scores {
            if let Some(has_passed) = row.audit() {
                audits.restore(row.miner, has_passed.into(), (!has_passed).into());
            }
            periods.add(&row);
        }
        let mut submission = Submission::restore(restored.included, restored.intent);
        if let Some(&last) = periods.closed().keys().next_back() {
            submission.offer(last);
        }
        Self {
            settings,
            rng: StdRng::seed_from_u64(seed),
            miners: Miners::default(),
            audits,
            periods,
            submission,
            chain: ChainView::default(),
            rules: Rules { min_entries: 0, max_share: u16::MAX },
            uids: BTreeMap::new(),
            rounds: BTreeMap::new(),
            next_round: 0,
            next_synthetic_ms: BTreeMap::new(),
            storing: BTreeMap::new(),
            unsaved: VecDeque::new(),
            unsaved_periods: BTreeSet::new(),
            store_retry_ms: 0,
            last_answer_ms: None,
            alarmed_at_block: None,
            counters: Counters::default(),
        }
    }

    /// Takes in what happened at `now_ms` (Unix time) and says what to do about it.
    pub fn handle(&mut self, event: Event, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => self.tick(now_ms, &mut actions),
            Event::Chain { view, rules, uids } => {
                self.chain = view;
                self.rules = rules;
                self.miners.set_registered(&uids);
                self.audits.retain(|miner| uids.contains_key(miner));
                self.uids = uids;
                actions.extend(self.submission.observe(&self.chain).map(Action::StoreIncluded));
            }
            Event::LookedUp { miner, found } => self.miners.looked_up(&miner, found, now_ms),
            Event::Answered { round, miner, outcome } => {
                self.answered(round, &miner, outcome, now_ms, &mut actions)
            }
            Event::Abandoned { round, miner } => {
                self.advance_round(round, now_ms, &mut actions, |core, round| {
                    if !round.is_pending(&miner) {
                        return Next::Wait;
                    }
                    core.miners.abandoned(&miner);
                    round.abandon(&miner)
                });
            }
            Event::Compared { round, agree, withheld } => {
                self.advance_round(round, now_ms, &mut actions, |core, round| {
                    core.counters.disagreements += u64::from(!agree);
                    let check = withheld || core.rng.random_bool(core.settings.checked_agreements);
                    round.compared(agree, check, &core.settings.scoring)
                });
            }
            Event::Referenced { round, found } => {
                self.advance_round(round, now_ms, &mut actions, |core, round| match found {
                    Some(found) => round.referenced(&found, &core.settings.scoring),
                    None => {
                        core.counters.unjudged += 1;
                        round.without_reference()
                    }
                });
            }
            Event::Audited { round, found } => {
                self.advance_round(round, now_ms, &mut actions, |core, round| {
                    core.counters.unjudged += u64::from(found.is_none());
                    round.audited(found, &core.settings.scoring)
                });
            }
            Event::Stored(rows) => self.stored(rows),
            Event::NotStored(rows) => self.not_stored(rows, now_ms),
            Event::PeriodStored(period) => {
                self.unsaved_periods.remove(&period);
            }
            Event::PeriodNotStored(period) => {
                self.unsaved_periods.insert(period);
                self.store_retry_ms = now_ms + STORE_RETRY_MS;
            }
            Event::WeightsIncluded(included) => {
                self.submission.included(included);
                self.alarmed_at_block = None;
            }
            Event::WeightsFailed(error) => self.submission.failed(error, now_ms),
        }
        actions
    }

    fn tick(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        actions.extend(self.miners.lookups_due(now_ms).into_iter().map(Action::LookUp));
        if self.chain.permitted && self.settings.synthetic {
            for task in self.settings.tasks.clone() {
                self.begin_synthetic(&task, now_ms, actions);
            }
        }
        self.drop_stuck_rounds(now_ms, actions);
        self.retry_store(now_ms, actions);
        self.close_periods(now_ms, actions);
        self.submit_weights(now_ms, actions);
    }

    fn begin_synthetic(&mut self, task: &TaskSettings, now_ms: u64, actions: &mut Vec<Action>) {
        let interval_ms = u64::from(task.interval_ms);
        let next = self.next_synthetic_ms.entry(task.task).or_insert(now_ms);
        // A clock set back must not stop the rounds.
        *next = (*next).min(now_ms + interval_ms);
        let running = |r: &&Round| r.task == task.task && r.origin != Origin::Organic;
        let running = self.rounds.values().filter(running).count();
        if now_ms < *next || running >= SYNTHETIC_ROUNDS || self.rounds.len() >= ROUNDS {
            return;
        }
        // Never later than the interval, and not foreseeable.
        *next = now_ms + (interval_ms as f64 * self.rng.random_range(0.7..1.0)) as u64;
        let Some(miner) = self.miners.for_round(task.task, &task.model, now_ms, &mut self.rng) else {
            return;
        };
        let mut miners = vec![miner];
        let audit = self.audits.draw(&miner, &mut self.rng);
        if audit.is_none() {
            let chosen = BTreeSet::from([miner]);
            miners.extend(self.miners.rival(task.task, &task.model, &chosen, now_ms, &mut self.rng));
        }
        let origin = if audit.is_some() { Origin::Audit } else { Origin::Synthetic };
        let round = self.open_round(origin, task.task, &miners, now_ms);
        self.rounds.get_mut(&round).expect("just opened").stands_for = audit.unwrap_or_default();
        let (seed, model) = (self.rng.random(), task.model.clone());
        actions.push(Action::Ask { round, task: task.task, model, miners, seed, is_audit: audit.is_some() });
    }

    fn open_round(&mut self, origin: Origin, task: TaskKind, miners: &[Hotkey], now_ms: u64) -> RoundId {
        let id = self.next_round;
        self.next_round += 1;
        self.counters.rounds += 1;
        self.rounds.insert(id, Round::new(id, origin, task, miners, now_ms));
        id
    }

    /// Chooses whom to ask for a client. Each pick is followed by an [`Event::Answered`] or
    /// [`Event::Abandoned`] for its miner, and for its rival if there is one.
    pub fn organic(
        &mut self,
        task: TaskKind,
        model: &str,
        tried: &BTreeSet<Hotkey>,
        now_ms: u64,
    ) -> Result<OrganicPick, NoRoom> {
        let periods = &self.periods;
        let quality = |miner: &Hotkey| periods.recent_mean(task, miner);
        let miner = self.miners.for_organic(task, model, tried, now_ms, quality, &mut self.rng)?;
        let checked = self.rounds.len() < ROUNDS && self.rng.random_bool(self.settings.checked_organic);
        let mut contestants = vec![miner];
        if checked {
            let mut tried = tried.clone();
            tried.insert(miner);
            contestants.extend(self.miners.rival(task, model, &tried, now_ms, &mut self.rng));
        }
        let round = self.open_round(Origin::Organic, task, &contestants, now_ms);
        self.rounds.get_mut(&round).expect("just opened").unchecked = !checked;
        Ok(OrganicPick { round, miner, rival: contestants.get(1).copied(), checked })
    }

    fn answered(
        &mut self,
        round: RoundId,
        miner: &Hotkey,
        outcome: Outcome,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        self.advance_round(round, now_ms, actions, |core, round| {
            if !round.is_pending(miner) {
                return Next::Wait;
            }
            let elapsed = outcome.as_ref().map(|reply| reply.elapsed).map_err(|failure| *failure);
            let mut held = core.miners.answered(miner, round.task, elapsed, now_ms);
            match elapsed {
                Ok(_) => core.last_answer_ms = Some(now_ms),
                Err(Failure::Unreachable) if core.may_be_offline(now_ms) => held = Held::Excused,
                Err(_) => {}
            }
            round.record(miner, outcome, held)
        });
    }

    fn may_be_offline(&self, now_ms: u64) -> bool {
        self.last_answer_ms.is_none_or(|last| now_ms.saturating_sub(last) > QUIET_MS)
    }

    /// Lets a round take a step, and does what it needs next.
    fn advance_round(
        &mut self,
        id: RoundId,
        now_ms: u64,
        actions: &mut Vec<Action>,
        step: impl FnOnce(&mut Self, &mut Round) -> Next,
    ) {
        let Some(mut round) = self.rounds.remove(&id) else { return };
        match step(self, &mut round) {
            Next::Wait => {}
            Next::Compare => actions.push(Action::Compare(id)),
            Next::Reference => self.refer(id, actions),
            Next::Audit { miner, commitment } => match self.audits.method(commitment, &mut self.rng) {
                Method::Trajectory { commitment, steps } => {
                    self.counters.trajectories += 1;
                    self.counters.steps_retaken += steps.len() as u64;
                    self.counters.steps_audited += u64::from(commitment.steps());
                    let challenge = Challenge::of_steps(&steps, &commitment);
                    actions.push(Action::Audit { round: id, miner, commitment, challenge, steps });
                }
                Method::Reproduction => {
                    round.reproduce();
                    self.refer(id, actions);
                }
            },
            Next::Done(scored) => {
                self.finish(&round, scored, now_ms, actions);
                return;
            }
        }
        self.rounds.insert(id, round);
    }

    fn refer(&mut self, round: RoundId, actions: &mut Vec<Action>) {
        self.counters.references += 1;
        actions.push(Action::Reference(round));
    }

    fn finish(&mut self, round: &Round, scored: Vec<Scored>, now_ms: u64, actions: &mut Vec<Action>) {
        let period = self.periods.at(now_ms);
        let row = |scored: Scored| Score {
            row: ScoreRow {
                period,
                at_ms: now_ms,
                round: round.id,
                origin: round.origin,
                task: round.task,
                miner: scored.miner,
                score: scored.score,
                verdict: scored.verdict.to_owned(),
                elapsed_ms: scored.elapsed.as_millis() as u64,
                voids: scored.voids,
            },
            receipt: scored.receipt,
        };
        let rows: Vec<Score> = scored.into_iter().map(row).collect();
        if let Some(miner) = round.unanswered_audit() {
            self.audits.owe(miner);
        }
        for Score { row, .. } in &rows {
            if let Some(has_passed) = row.audit() {
                self.counters.audits += 1;
                self.counters.audits_failed += u64::from(!has_passed);
                self.audits.settle(row.miner, has_passed);
            }
        }
        self.store(rows, actions);
        actions.push(Action::Forget(round.id));
    }

    fn store(&mut self, rows: Vec<Score>, actions: &mut Vec<Action>) {
        if rows.is_empty() {
            return;
        }
        for row in &rows {
            *self.storing.entry(row.row.period).or_default() += 1;
        }
        actions.push(Action::Store(rows));
    }

    fn no_longer_storing(&mut self, rows: &[Score]) {
        for row in rows {
            if let Some(count) = self.storing.get_mut(&row.row.period) {
                *count = count.saturating_sub(1);
            }
        }
        self.storing.retain(|_, count| *count > 0);
    }

    fn stored(&mut self, rows: Vec<Score>) {
        self.no_longer_storing(&rows);
        rows.iter().for_each(|score| self.periods.add(&score.row));
    }

    fn not_stored(&mut self, rows: Vec<Score>, now_ms: u64) {
        self.no_longer_storing(&rows);
        self.unsaved.extend(rows);
        let over = self.unsaved.len().saturating_sub(UNSAVED_ROWS);
        self.unsaved.drain(..over);
        self.counters.lost_rows += over as u64;
        self.store_retry_ms = now_ms + STORE_RETRY_MS;
    }

    fn retry_store(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if now_ms < self.store_retry_ms {
            return;
        }
        let rows: Vec<Score> = self.unsaved.drain(..).collect();
        self.store(rows, actions);
        for period in std::mem::take(&mut self.unsaved_periods) {
            self.store_period(period, now_ms, actions);
        }
    }

    fn drop_stuck_rounds(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let stuck = |r: &&Round| now_ms.saturating_sub(r.started_ms) > ROUND_LONGEST_MS;
        let stuck: Vec<RoundId> = self.rounds.values().filter(stuck).map(|r| r.id).collect();
        for id in stuck {
            if let Some(round) = self.rounds.remove(&id) {
                round.pending().for_each(|miner| self.miners.abandoned(&miner));
                actions.push(Action::Forget(id));
            }
        }
    }

    fn close_periods(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        // A period ends when all its scores are stored; a full disk holds it open.
        let current = self.periods.at(now_ms);
        let storing = self.storing.keys().chain(self.unsaved.iter().map(|score| &score.row.period)).min();
        if storing.is_some_and(|period| *period < current) {
            return;
        }
        for period in self.periods.advance(now_ms, &self.miners.absent()) {
            self.submission.offer(period);
            self.store_period(period, now_ms, actions);
        }
    }

    fn store_period(&mut self, period: PeriodId, now_ms: u64, actions: &mut Vec<Action>) {
        if let Some(tallies) = self.periods.closed().get(&period) {
            let oldest = self.periods.oldest_kept(now_ms);
            actions.push(Action::StorePeriod { period, tallies: tallies.clone(), oldest });
        }
    }

    fn submit_weights(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if self.submission.alarm(&self.chain)
            && self.alarmed_at_block.is_none_or(|at| self.chain.block >= at + self.chain.tempo)
        {
            self.alarmed_at_block = Some(self.chain.block);
            let last = self.submission.last_included().map_or(0, |i| i.block);
            actions.push(Action::Alarm { blocks: self.chain.block.saturating_sub(last) });
        }
        let Some(period) = self.submission.due(&self.chain, now_ms) else { return };
        let weights = weights::to_chain(&self.shares(), &self.uids, self.rules);
        if weights.is_empty() {
            return;
        }
        let ChainView { block, version_key, .. } = self.chain;
        let intent = Intent { period, block, weights, version_key };
        self.submission.sent(intent.clone());
        actions.push(Action::SetWeights(intent));
    }

    /// The weight vector as of the last closed period.
    pub fn shares(&self) -> Shares {
        weights::vector(&self.periods, &self.settings.incentive())
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn miners(&self) -> &Miners {
        &self.miners
    }

    pub fn audits(&self) -> &Audits {
        &self.audits
    }

    pub fn periods(&self) -> &Periods {
        &self.periods
    }

    pub fn submission(&self) -> &Submission {
        &self.submission
    }

    pub fn chain(&self) -> &ChainView {
        &self.chain
    }

    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// When the next synthetic round begins, Unix milliseconds.
    pub fn next_round_ms(&self) -> Option<u64> {
        self.next_synthetic_ms.values().min().copied()
    }
}

#[cfg(test)]
#[path = "simulation.rs"]
mod simulation;
