//! Periods: scores are averaged over each, the last few are kept, and their mean is a miner's standing.
//!
//! A plain state machine. Periods are cut by Unix time, so that all validators and all restarts of one agree
//! where they begin. Whoever drives it has stored a score before [`Periods::add`] counts it, and gives stored
//! ones back with [`Periods::restore_closed`] and [`Periods::add`] after a restart: nothing is lost.

use std::collections::{BTreeMap, BTreeSet};

use argus_protocols::{Hotkey, TaskKind};
use serde::{Deserialize, Serialize};

use super::round::ScoreRow;

/// Unix time divided by the length of a period.
pub type PeriodId = u64;

/// How long periods are and how many are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Length of a period, seconds.
    pub seconds: u32,
    /// How many are kept and averaged.
    pub kept: u32,
}

impl Default for Settings {
    /// The seed's: 30 periods of 20 minutes.
    fn default() -> Self {
        Self { seconds: 20 * 60, kept: 30 }
    }
}

impl Settings {
    /// What is wrong with these settings, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=7 * 24 * 3600).contains(&self.seconds) {
            return Err(format!("periods.seconds is {}: give 1 second to a week", self.seconds));
        }
        if !(1..=1000).contains(&self.kept) {
            return Err(format!("periods.kept is {}: keep 1 to 1000", self.kept));
        }
        Ok(())
    }

    fn length_ms(&self) -> u64 {
        u64::from(self.seconds) * 1000
    }
}

/// What a miner did in one task over one period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Sum of the scores.
    pub sum: f64,
    /// How many. 0 in a closed period: the miner had served before and was not there to be asked.
    pub count: u32,
    /// Of these, queries that brought no answer.
    #[serde(default)]
    pub failed: u32,
    /// Solo audits that came to a verdict.
    #[serde(default)]
    pub audits: u32,
    /// Of these, failed.
    #[serde(default)]
    pub audits_failed: u32,
    /// Answers that count for nothing since the failed audits stand for them.
    #[serde(default)]
    pub voided: f64,
}

impl Tally {
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.earned() / f64::from(self.count) }
    }

    /// What is left of the sum: the share of answers that failed audits did not void.
    fn earned(&self) -> f64 {
        self.sum * (1.0 - self.voided / f64::from(self.count.max(1))).max(0.0)
    }
}

/// What all miners did over one period.
pub type Tallies = BTreeMap<(TaskKind, Hotkey), Tally>;

#[derive(Debug)]
pub struct Periods {
    settings: Settings,
    /// Begun and not closed: the current one, and any before it whose end nobody saw.
    open: BTreeMap<PeriodId, Tallies>,
    closed: BTreeMap<PeriodId, Tallies>,
}

impl Periods {
    pub fn new(settings: Settings) -> Self {
        Self { settings, open: BTreeMap::new(), closed: BTreeMap::new() }
    }

    /// The period that a Unix time lies in.
    pub fn at(&self, now_ms: u64) -> PeriodId {
        now_ms / self.settings.length_ms()
    }

    /// Unix time at which a period begins, milliseconds.
    pub fn start_ms(&self, period: PeriodId) -> u64 {
        period.saturating_mul(self.settings.length_ms())
    }

    /// A period that was closed before the restart.
    pub fn restore_closed(&mut self, period: PeriodId, tallies: Tallies) {
        self.closed.insert(period, tallies);
    }

    /// Counts a score. One that comes after its period was closed still counts there.
    pub fn add(&mut self, row: &ScoreRow) {
        let tallies = match self.closed.get_mut(&row.period) {
            Some(closed) => closed,
            None => self.open.entry(row.period).or_default(),
        };
        let tally = tallies.entry((row.task, row.miner)).or_default();
        tally.sum += f64::from(row.score);
        tally.count += 1;
        tally.failed += u32::from(row.is_failure());
        let audit = row.audit();
        tally.audits += u32::from(audit.is_some());
        tally.audits_failed += u32::from(audit == Some(false));
        tally.voided += row.voids;
    }

    /// Closes the periods that are over and forgets those beyond the number kept. `absent` are miners that
    /// are registered but could not be asked: those that served before get an empty tally, a mean of 0.
    /// Returns the periods just closed, to be stored.
    pub fn advance(&mut self, now_ms: u64, absent: &BTreeSet<Hotkey>) -> Vec<PeriodId> {
        let current = self.at(now_ms);
        let later = self.open.split_off(&current);
        let over = std::mem::replace(&mut self.open, later);
        let mut just_closed = Vec::new();
        for (period, mut tallies) in over {
            let served = |(task, miner): (TaskKind, Hotkey)| absent.contains(&miner).then_some((task, miner));
            let known: Vec<_> =
                self.closed.values().flat_map(|t| t.keys().copied()).filter_map(served).collect();
            for key in known {
                tallies.entry(key).or_default();
            }
            self.closed.insert(period, tallies);
            just_closed.push(period);
        }
        let oldest = self.oldest_kept(now_ms);
        self.closed = self.closed.split_off(&oldest);
        just_closed
    }

    /// Everything before this period is forgotten.
    pub fn oldest_kept(&self, now_ms: u64) -> PeriodId {
        self.at(now_ms).saturating_sub(self.settings.kept.into())
    }

    pub fn closed(&self) -> &BTreeMap<PeriodId, Tallies> {
        &self.closed
    }

    /// What has been counted in periods that are not closed.
    pub fn open(&self) -> &BTreeMap<PeriodId, Tallies> {
        &self.open
    }

    /// Each miner's standing in a task: the mean over its closed periods, times the root of the share of all
    /// closed periods that it was there for, so that a newcomer's first lucky period is worth little beside
    /// the record of others. A period in which this validator was down is in nobody's way.
    pub fn standings(&self, task: TaskKind) -> BTreeMap<Hotkey, f64> {
        let mut sums: BTreeMap<Hotkey, (f64, usize)> = BTreeMap::new();
        let mut periods = 0;
        for tallies in self.closed.values() {
            let mut any = false;
            for ((_, miner), tally) in tallies.iter().filter(|((of, _), _)| *of == task) {
                let (sum, present) = sums.entry(*miner).or_default();
                *sum += tally.mean();
                *present += 1;
                any = true;
            }
            periods += usize::from(any);
        }
        let standing =
            |(sum, present): (f64, usize)| sum / present as f64 * (present as f64 / periods as f64).sqrt();
        sums.into_iter().map(|(miner, seen)| (miner, standing(seen))).collect()
    }

    /// A miner's mean in a task over the open periods and the last closed one: what it is like now.
    pub fn recent_mean(&self, task: TaskKind, miner: &Hotkey) -> Option<f64> {
        let last = self.closed.values().next_back();
        let recent = self.open.values().chain(last).filter_map(|t| t.get(&(task, *miner)));
        let (sum, count) = recent.fold((0.0, 0), |(sum, count), t| (sum + t.earned(), count + t.count));
        (count > 0).then(|| sum / f64::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::round::Origin, *};

    const TASK: TaskKind = TaskKind::TextToImage;

    fn miner(n: u8) -> Hotkey {
        Hotkey::from_bytes([n; 32])
    }

    fn row(period: PeriodId, n: u8, score: f32) -> ScoreRow {
        ScoreRow::right(period, TASK, miner(n), score)
    }

    fn periods(kept: u32) -> Periods {
        Periods::new(Settings { seconds: 10, kept })
    }

    #[test]
    fn standings_are_means_of_closed_periods_only() {
        let mut periods = periods(3);
        periods.add(&row(0, 1, 1.0));
        periods.add(&row(0, 1, 0.5));
        assert!(periods.standings(TASK).is_empty());
        assert!(periods.advance(9_999, &BTreeSet::new()).is_empty());
        assert_eq!(periods.advance(10_000, &BTreeSet::new()), [0]);
        assert_eq!(periods.standings(TASK)[&miner(1)], 0.75);
        assert!(periods.standings(TaskKind::ImageEmbedding).is_empty());
    }

    #[test]
    fn a_newcomer_is_damped_and_an_absent_miner_falls() {
        let mut periods = periods(4);
        for period in 0..4 {
            periods.add(&row(period, 1, 1.0));
            if period < 2 {
                periods.add(&row(period, 2, 1.0));
            }
            if period == 3 {
                periods.add(&row(period, 3, 1.0));
            }
            periods.advance(periods.start_ms(period + 1), &BTreeSet::from([miner(2), miner(9)]));
        }
        let standings = periods.standings(TASK);
        assert_eq!(standings[&miner(1)], 1.0);
        assert_eq!(standings[&miner(2)], 0.5);
        assert_eq!(standings[&miner(3)], 0.5);
        assert!(!standings.contains_key(&miner(9)), "never served, so it cannot be missed");
    }

    #[test]
    fn old_periods_are_forgotten_and_downtime_is_not_held_against_miners() {
        let mut periods = periods(2);
        periods.add(&row(0, 1, 1.0));
        periods.advance(10_000, &BTreeSet::new());
        periods.advance(20_000, &BTreeSet::new());
        assert_eq!(periods.standings(TASK)[&miner(1)], 1.0);
        periods.advance(30_000, &BTreeSet::new());
        assert!(periods.closed().is_empty());
    }

    #[test]
    fn a_late_score_counts_where_it_belongs() {
        let mut periods = periods(3);
        periods.add(&row(0, 1, 1.0));
        periods.advance(10_000, &BTreeSet::new());
        periods.add(&row(0, 1, 0.0));
        assert_eq!(periods.standings(TASK)[&miner(1)], 0.5);
    }

    #[test]
    fn what_is_restored_stands_as_before() {
        let mut before = periods(3);
        before.add(&row(0, 1, 1.25));
        before.advance(10_000, &BTreeSet::new());
        before.add(&row(1, 1, 0.75));
        let mut after = periods(3);
        for (period, tallies) in before.closed() {
            after.restore_closed(*period, tallies.clone());
        }
        after.add(&row(1, 1, 0.75));
        for periods in [&mut before, &mut after] {
            periods.advance(20_000, &BTreeSet::new());
        }
        assert_eq!(before.standings(TASK), after.standings(TASK));
    }

    /// A miner that cheats at every answer and is caught in every audit earns nothing, whatever the share of
    /// audits; one that is caught in half of them earns half.
    #[test]
    fn a_failed_audit_voids_the_answers_that_it_stands_for() {
        let audit = |score: f32, voids: f64| ScoreRow { origin: Origin::Audit, voids, ..row(0, 1, score) };
        let failed = || ScoreRow { verdict: "wrong".into(), ..audit(0.0, 10.0) };
        let mean = |rows: Vec<ScoreRow>| {
            let mut periods = periods(3);
            rows.iter().for_each(|row| periods.add(row));
            let recent = periods.recent_mean(TASK, &miner(1)).unwrap();
            periods.advance(10_000, &BTreeSet::new());
            let tally = periods.closed()[&0][&(TASK, miner(1))];
            assert_eq!(recent, tally.mean());
            (tally.audits, tally.audits_failed, tally.mean())
        };
        let with = |more: Vec<ScoreRow>| (0..18).map(|_| row(0, 1, 1.0)).chain(more).collect();
        assert_eq!(mean(with(vec![audit(1.0, 0.0), audit(1.0, 0.0)])), (2, 0, 1.0));
        assert_eq!(mean(with(vec![audit(1.0, 0.0), failed()])), (2, 1, 0.95 * 0.5));
        assert_eq!(mean(with(vec![failed(), failed()])), (2, 2, 0.0));
        assert_eq!(mean(vec![failed()]), (1, 1, 0.0));
    }
}
