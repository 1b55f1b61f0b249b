//! Which miners are asked.
//!
//! Synthetic rounds go to the miner asked least, ties by lot, and unless they are audits to one other by lot, so that over time all
//! are measured alike and nobody can foresee their rival. Organic queries go to the best that has room: of
//! those whose recent score is near the best, the one with the shortest wait, never one of the worst tenth
//! while others are there. A miner that keeps
//! failing rests for growing pauses; one that is full rests for as long as it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use argus_protocols::{Capability, Hotkey, Reason, TaskKind};
use rand::{
    Rng,
    seq::{IndexedRandom, SliceRandom},
};
use serde::Serialize;

/// Failures in a row after which a miner rests.
const FAILURES_BEFORE_REST: u32 = 3;
const REST_FIRST_MS: u64 = 15_000;
const REST_LONGEST_MS: u64 = 5 * 60_000;
/// Refusals in a row ("busy", "unauthorised", "cancelled") that are not held against a miner.
const EXCUSED_IN_A_ROW: u32 = 3;
/// The longest that a "busy" is believed.
const BUSY_LONGEST_MS: u32 = 60_000;
/// However much concurrency a record claims.
const IN_FLIGHT_LIMIT: u32 = 64;
/// Organic queries may wait at a miner, for its queue is there for that: so many are out for each that it
/// takes at once.
const ORGANIC_DEPTH: u32 = 4;
/// The share of the worst miners that organic queries avoid.
const ORGANIC_AVOIDS: f64 = 0.1;
/// Organic queries go to nobody whose recent mean is below this share of the best one's.
const ORGANIC_QUALITY: f64 = 0.7;
/// Weight of the newest latency in the running mean.
const LATENCY_WEIGHT: f64 = 0.2;
/// Records are looked up again after this, sooner while there is none.
const LOOKUP_EVERY_MS: u64 = 60_000;
const LOOKUP_RETRY_FIRST_MS: u64 = 2_000;
/// Failed lookups in a row after which a miner counts as absent.
const LOOKUPS_UNTIL_ABSENT: u32 = 3;
/// Lookups at once.
const LOOKUPS: usize = 8;

/// Why a query brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Busy {
        retry_after_ms: u32,
    },
    /// Any other typed rejection.
    Rejected(Reason),
    /// No record, no route, or the connection broke.
    Unreachable,
    TimedOut,
    /// A frame, hash or receipt was wrong.
    Protocol,
    /// The answer cannot be read, or is not what was asked for.
    BadAnswer,
}

impl Failure {
    /// A stable label for logs, metrics and the status.
    pub fn label(self) -> &'static str {
        match self {
            Failure::Busy { .. } => Reason::Busy.label(),
            Failure::Rejected(reason) => reason.label(),
            Failure::Unreachable => "unreachable",
            Failure::TimedOut => Reason::TimedOut.label(),
            Failure::Protocol => "protocol",
            Failure::BadAnswer => "bad_answer",
        }
    }

    /// Whether an honest miner may now and then say so: it is full, shutting down, or has not heard of this
    /// validator's permit yet.
    fn excusable(self) -> bool {
        matches!(
            self,
            Failure::Busy { .. } | Failure::Rejected(Reason::Busy | Reason::Unauthorised | Reason::Cancelled)
        )
    }
}

#[derive(Debug, Default)]
struct Lookup {
    in_flight: bool,
    next_ms: u64,
    failures: u32,
}

/// What is known of one miner.
#[derive(Debug)]
pub struct Miner {
    pub uid: u16,
    /// From its record, if that names it a miner.
    offer: Option<Vec<Capability>>,
    lookup: Lookup,
    asked: BTreeMap<TaskKind, u64>,
    in_flight: u32,
    failures_in_a_row: u32,
    excused_in_a_row: u32,
    rests_until_ms: u64,
    /// Running mean of the time to an answer, milliseconds.
    latency_ms: BTreeMap<TaskKind, f64>,
    answers: u64,
    /// By [`Failure::label`].
    failures: BTreeMap<&'static str, u64>,
}

/// A miner's place in the world, for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Its record is being looked up for the first time, or it has none that names it a miner.
    Unknown,
    Ready,
    /// As many queries are out as it takes at once.
    Full,
    /// It failed again and again, or said it was busy.
    Resting,
}

impl Miner {
    fn new(uid: u16) -> Self {
        Self {
            uid,
            offer: None,
            lookup: Lookup::default(),
            asked: BTreeMap::new(),
            in_flight: 0,
            failures_in_a_row: 0,
            excused_in_a_row: 0,
            rests_until_ms: 0,
            latency_ms: BTreeMap::new(),
            answers: 0,
            failures: BTreeMap::new(),
        }
    }

    fn capability(&self, task: TaskKind, model: &str) -> Option<&Capability> {
        self.offer.as_ref()?.iter().find(|c| c.model == model && c.tasks.contains(&task.code()))
    }

    fn takes_at_once(capability: &Capability) -> u32 {
        u32::from(capability.concurrency).clamp(1, IN_FLIGHT_LIMIT)
    }

    /// Whether it may be asked while `depth` times as many queries are out as it takes at once.
    fn has_room(&self, task: TaskKind, model: &str, depth: u32, now_ms: u64) -> bool {
        let capability = self.capability(task, model);
        let room = |c: &Capability| self.in_flight < depth * Self::takes_at_once(c);
        now_ms >= self.rests_until_ms && capability.is_some_and(room)
    }

    pub fn presence(&self, now_ms: u64) -> Presence {
        let Some(offer) = &self.offer else { return Presence::Unknown };
        let most = offer.iter().map(Self::takes_at_once).max().unwrap_or(1);
        if now_ms < self.rests_until_ms {
            Presence::Resting
        } else if self.in_flight >= most {
            Presence::Full
        } else {
            Presence::Ready
        }
    }

    pub fn capabilities(&self) -> &[Capability] {
        self.offer.as_deref().unwrap_or_default()
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub fn answers(&self) -> u64 {
        self.answers
    }

    pub fn failures(&self) -> &BTreeMap<&'static str, u64> {
        &self.failures
    }

    pub fn latency_ms(&self) -> &BTreeMap<TaskKind, f64> {
        &self.latency_ms
    }

    pub fn rests_until_ms(&self) -> u64 {
        self.rests_until_ms
    }

    fn failed(&mut self, failure: Failure, now_ms: u64) -> Held {
        *self.failures.entry(failure.label()).or_default() += 1;
        if let Failure::Busy { retry_after_ms } = failure {
            let pause = u64::from(retry_after_ms.min(BUSY_LONGEST_MS));
            self.rests_until_ms = self.rests_until_ms.max(now_ms + pause);
        }
        if failure.excusable() && self.excused_in_a_row < EXCUSED_IN_A_ROW {
            self.excused_in_a_row += 1;
            return Held::Excused;
        }
        self.failures_in_a_row += 1;
        if let Some(rests) = self.failures_in_a_row.checked_sub(FAILURES_BEFORE_REST) {
            let pause = REST_FIRST_MS.saturating_mul(1 << rests.min(16)).min(REST_LONGEST_MS);
            self.rests_until_ms = self.rests_until_ms.max(now_ms + pause);
        }
        // A miner that moved has a newer record.
        if failure == Failure::Unreachable {
            self.lookup.next_ms = self.lookup.next_ms.min(now_ms + LOOKUP_RETRY_FIRST_MS);
        }
        Held::Against
    }
}

/// Whether a failure counts against a miner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Against,
    Excused,
}

/// Nobody can be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// When it makes sense to ask again. `None`: no miner serves the model at all.
    pub retry_after_ms: Option<u64>,
}

/// All miners of the subnet.
#[derive(Debug, Default)]
pub struct Miners(BTreeMap<Hotkey, Miner>);

impl Miners {
    /// The neurons now registered. Those that left are forgotten.
    pub fn set_registered(&mut self, uids: &BTreeMap<Hotkey, u16>) {
        self.0.retain(|hotkey, _| uids.contains_key(hotkey));
        for (&hotkey, &uid) in uids {
            self.0.entry(hotkey).or_insert_with(|| Miner::new(uid)).uid = uid;
        }
    }

    pub fn get(&self, miner: &Hotkey) -> Option<&Miner> {
        self.0.get(miner)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Hotkey, &Miner)> {
        self.0.iter()
    }

    /// Whose records should be looked up now; marks them as being looked up.
    pub fn lookups_due(&mut self, now_ms: u64) -> Vec<Hotkey> {
        let under_way = self.0.values().filter(|m| m.lookup.in_flight).count();
        let due = self.0.iter_mut().filter(|(_, m)| !m.lookup.in_flight && m.lookup.next_ms <= now_ms);
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|(_, miner)| miner.lookup.next_ms);
        due.truncate(LOOKUPS.saturating_sub(under_way));
        due.into_iter()
            .map(|(hotkey, miner)| {
                miner.lookup.in_flight = true;
                *hotkey
            })
            .collect()
    }

    /// What a lookup found: the capabilities of a record that names a miner. A lookup that failed leaves
    /// what is known: the DHT may be the one at fault, and queries will tell.
    pub fn looked_up(&mut self, miner: &Hotkey, found: Result<Option<Vec<Capability>>, ()>, now_ms: u64) {
        let newcomers_start_at = self.least_asked();
        let Some(miner) = self.0.get_mut(miner) else { return };
        miner.lookup.in_flight = false;
        if let Ok(Some(offer)) = found {
            miner.lookup.failures = 0;
            miner.lookup.next_ms = now_ms + LOOKUP_EVERY_MS;
            if miner.offer.is_none() && miner.asked.is_empty() {
                miner.asked = newcomers_start_at;
            }
            miner.offer = Some(offer);
        } else {
            let pause = LOOKUP_RETRY_FIRST_MS.saturating_mul(1 << miner.lookup.failures.min(8));
            miner.lookup.next_ms = now_ms + pause.min(LOOKUP_EVERY_MS);
            miner.lookup.failures += 1;
            if found.is_ok() {
                miner.offer = None;
            }
        }
    }

    /// The lowest count of each task: where newcomers start, so that they are not asked alone for hours.
    fn least_asked(&self) -> BTreeMap<TaskKind, u64> {
        let mut least = BTreeMap::new();
        for miner in self.0.values().filter(|m| m.offer.is_some()) {
            for (&task, &asked) in &miner.asked {
                least.entry(task).and_modify(|l: &mut u64| *l = asked.min(*l)).or_insert(asked);
            }
        }
        least
    }

    /// The miner whose turn it is in a synthetic round: the one asked least, ties by lot.
    pub fn for_round(
        &mut self,
        task: TaskKind,
        model: &str,
        now_ms: u64,
        rng: &mut impl Rng,
    ) -> Option<Hotkey> {
        let free = |(_, miner): &(&Hotkey, &Miner)| miner.has_room(task, model, 1, now_ms);
        let mut free: Vec<(Hotkey, u64)> =
            self.0.iter().filter(free).map(|(h, m)| (*h, m.asked.get(&task).copied().unwrap_or(0))).collect();
        free.shuffle(rng);
        let (least, _) = free.into_iter().min_by_key(|(_, asked)| *asked)?;
        self.asked(&least, task);
        Some(least)
    }

    /// The best miner for an organic query that was not tried yet. `quality`: recent mean score.
    pub fn for_organic(
        &mut self,
        task: TaskKind,
        model: &str,
        tried: &BTreeSet<Hotkey>,
        now_ms: u64,
        quality: impl Fn(&Hotkey) -> Option<f64>,
        rng: &mut impl Rng,
    ) -> Result<Hotkey, NoRoom> {
        let serving = self.0.iter().filter(|(_, m)| m.capability(task, model).is_some());
        let best = serving.filter_map(|(hotkey, _)| quality(hotkey)).fold(0.0, f64::max);
        let mut free: Vec<(Hotkey, f64, f64)> = self
            .0
            .iter()
            .filter(|(hotkey, m)| !tried.contains(hotkey) && m.has_room(task, model, ORGANIC_DEPTH, now_ms))
            .map(|(hotkey, m)| (*hotkey, quality(hotkey), m.wait_ms(task, model)))
            // Being fast makes up for nothing.
            .filter(|(_, quality, _)| quality.is_none_or(|q| q >= best * ORGANIC_QUALITY))
            .map(|(hotkey, quality, wait)| (hotkey, quality.unwrap_or(NEWCOMER), wait))
            .collect();
        if free.is_empty() {
            return Err(self.no_room(task, model, now_ms));
        }
        free.shuffle(rng);
        free.sort_by(|a, b| b.1.total_cmp(&a.1));
        let worst = (free.len() as f64 * ORGANIC_AVOIDS).ceil() as usize;
        free.truncate((free.len() - worst).max(1));
        let worth = |(_, quality, wait): &(Hotkey, f64, f64)| quality / wait;
        let best = free.iter().max_by(|a, b| worth(a).total_cmp(&worth(b))).expect("not empty").0;
        self.asked(&best, task);
        Ok(best)
    }

    fn no_room(&self, task: TaskKind, model: &str, now_ms: u64) -> NoRoom {
        let serving = self.0.values().filter(|m| m.capability(task, model).is_some());
        let soonest = serving.map(|m| m.rests_until_ms.saturating_sub(now_ms)).min();
        NoRoom { retry_after_ms: soonest.map(|pause| pause.clamp(1_000, REST_LONGEST_MS)) }
    }

    /// Somebody to compare an answer with, by lot.
    pub fn rival(
        &mut self,
        task: TaskKind,
        model: &str,
        tried: &BTreeSet<Hotkey>,
        now_ms: u64,
        rng: &mut impl Rng,
    ) -> Option<Hotkey> {
        let free = self.0.iter().filter(|(h, m)| !tried.contains(h) && m.has_room(task, model, 1, now_ms));
        let free: Vec<Hotkey> = free.map(|(hotkey, _)| *hotkey).collect();
        let rival = *free.choose(rng)?;
        self.asked(&rival, task);
        Some(rival)
    }

    fn asked(&mut self, miner: &Hotkey, task: TaskKind) {
        if let Some(miner) = self.0.get_mut(miner) {
            *miner.asked.entry(task).or_default() += 1;
            miner.in_flight += 1;
        }
    }

    /// A query ended, whichever way; each call to choose a miner is followed by one of these for it.
    pub fn answered(
        &mut self,
        miner: &Hotkey,
        task: TaskKind,
        outcome: Result<Duration, Failure>,
        now_ms: u64,
    ) -> Held {
        let Some(miner) = self.0.get_mut(miner) else { return Held::Excused };
        miner.in_flight = miner.in_flight.saturating_sub(1);
        match outcome {
            Ok(elapsed) => {
                let newest = elapsed.as_secs_f64() * 1000.0;
                let mean = miner.latency_ms.entry(task).or_insert(newest);
                *mean += LATENCY_WEIGHT * (newest - *mean);
                miner.answers += 1;
                miner.failures_in_a_row = 0;
                miner.excused_in_a_row = 0;
                Held::Excused
            }
            Err(failure) => miner.failed(failure, now_ms),
        }
    }

    /// The query was given up by the one who asked: nobody's fault.
    pub fn abandoned(&mut self, miner: &Hotkey) {
        if let Some(miner) = self.0.get_mut(miner) {
            miner.in_flight = miner.in_flight.saturating_sub(1);
        }
    }

    /// Registered miners that cannot be asked: no record was found, and it was looked for repeatedly.
    pub fn absent(&self) -> BTreeSet<Hotkey> {
        let absent = |miner: &Miner| miner.offer.is_none() && miner.lookup.failures >= LOOKUPS_UNTIL_ABSENT;
        self.0.iter().filter(|(_, miner)| absent(miner)).map(|(hotkey, _)| *hotkey).collect()
    }
}

/// The quality of a miner that has no score yet: it is tried when the known ones are slow or full.
const NEWCOMER: f64 = 0.5;
/// The wait assumed of a miner that never answered, milliseconds.
const UNKNOWN_WAIT_MS: f64 = 10_000.0;

impl Miner {
    /// How long an answer will take, by what it took before and what is already under way.
    fn wait_ms(&self, task: TaskKind, model: &str) -> f64 {
        let latency = self.latency_ms.get(&task).copied().unwrap_or(UNKNOWN_WAIT_MS).max(1.0);
        let at_once = self.capability(task, model).map_or(1, Self::takes_at_once);
        latency
            * (1.0 + f64::from(self.in_flight) / f64::from(at_once))
            * (1.0 + f64::from(self.failures_in_a_row))
    }
}
