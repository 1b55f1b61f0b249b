//! Who is let in: decided from the verified open frame alone, before a byte of the body is read.
//!
//! A plain state machine. Cheap reasons come first, and every refusal is a typed rejection of constant size.
//! Places are bounded in all, for each hotkey and for each peer; whoever was let in holds a place until
//! [`Admission::leave`].

use std::{collections::HashMap, time::Duration};

use argus_protocols::{Hotkey, PeerId, Reason, Rejection, TaskKind, query::Open};
use serde::{Deserialize, Serialize};

/// What an operator can set about letting queries in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Stake that a validator needs to be served, TAO.
    pub min_stake: f64,
    /// Queries that may wait, besides those at work.
    pub queue: u32,
    /// The share of all places that one hotkey may hold.
    pub hotkey_share: f64,
    /// Places that one peer may hold.
    pub per_peer: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { min_stake: 1000.0, queue: 16, hotkey_share: 0.6, per_peer: 16 }
    }
}

impl Settings {
    /// What is wrong with these settings, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        if !(self.min_stake.is_finite() && self.min_stake >= 0.0) {
            return Err(format!("admission.min_stake is {}: give TAO, 0 or more", self.min_stake));
        }
        if !(self.hotkey_share > 0.0 && self.hotkey_share <= 1.0) {
            return Err(format!(
                "admission.hotkey_share is {}: give a share above 0 and up to 1",
                self.hotkey_share
            ));
        }
        if self.per_peer == 0 || self.queue > QUEUE_LONGEST {
            return Err(format!("admission: per_peer must be above 0, queue at most {QUEUE_LONGEST}"));
        }
        Ok(())
    }
}

const QUEUE_LONGEST: u32 = 4096;

/// A hotkey's place on the chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    pub permit: bool,
    /// TAO.
    pub stake: f64,
}

/// What the miner can do now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Queries at work at once.
    pub slots: usize,
    /// How long a query that comes now waits for its turn.
    pub wait: Duration,
    /// How long it will be at work.
    pub work: Duration,
    /// No new work: the miner is shutting down.
    pub closing: bool,
}

/// The shortest time after which a refused asker should try again.
const RETRY_SHORTEST_MS: u64 = 250;
const RETRY_LONGEST_MS: u64 = 60_000;

#[derive(Debug)]
pub struct Admission {
    settings: Settings,
    netuid: u16,
    by_hotkey: HashMap<Hotkey, u32>,
    by_peer: HashMap<PeerId, u32>,
    held: u32,
}

impl Admission {
    pub fn new(settings: Settings, netuid: u16) -> Self {
        Self { settings, netuid, by_hotkey: HashMap::new(), by_peer: HashMap::new(), held: 0 }
    }

    /// Lets the query in or says why not. `standing`: of the asking hotkey, `None` when it is not
    /// registered; `load`: for a task and model, `None` when it is not served; asked only for those who may
    /// be served.
    pub fn enter(
        &mut self,
        open: &Open,
        peer: PeerId,
        standing: Option<Standing>,
        load: impl FnOnce(TaskKind, &str) -> Option<Load>,
    ) -> Result<(), Rejection> {
        let allowed = |s: Standing| s.permit && s.stake >= self.settings.min_stake;
        if open.netuid != self.netuid || !standing.is_some_and(allowed) {
            return Err(Rejection::new(Reason::Unauthorised));
        }
        let load = TaskKind::from_code(open.task).and_then(|task| load(task, &open.model));
        let Some(load) = load else {
            return Err(Rejection::new(Reason::Incapable));
        };
        if load.closing {
            return Err(Rejection::new(Reason::Cancelled));
        }
        let places = load.slots as u32 + self.settings.queue;
        let held_by = |count: Option<&u32>| count.copied().unwrap_or(0);
        let full = self.held >= places
            || held_by(self.by_hotkey.get(&open.validator)) >= self.share(places)
            || held_by(self.by_peer.get(&peer)) >= self.settings.per_peer;
        let too_late = load.wait + load.work > Duration::from_millis(open.deadlines.total_ms.into());
        if full || too_late {
            return Err(Rejection::busy(retry_after_ms(&load, full)));
        }
        self.held += 1;
        *self.by_hotkey.entry(open.validator).or_default() += 1;
        *self.by_peer.entry(peer).or_default() += 1;
        Ok(())
    }

    /// The query is over, whichever way.
    pub fn leave(&mut self, validator: &Hotkey, peer: &PeerId) {
        self.held = self.held.saturating_sub(1);
        release(&mut self.by_hotkey, validator);
        release(&mut self.by_peer, peer);
    }

    fn share(&self, places: u32) -> u32 {
        ((f64::from(places) * self.settings.hotkey_share).ceil() as u32).max(1)
    }

    /// Queries let in and not over.
    pub fn held(&self) -> u32 {
        self.held
    }
}

/// A place is free once the next query is done; a deadline can be met once the queue is worked off.
fn retry_after_ms(load: &Load, full: bool) -> u32 {
    let until = if full { load.work / load.slots.max(1) as u32 } else { load.wait };
    (until.as_millis() as u64).clamp(RETRY_SHORTEST_MS, RETRY_LONGEST_MS) as u32
}

fn release<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use argus_protocols::{QueryId, query::Deadlines};

    use super::*;

    const MODEL: &str = "argus-tiny";
    const WELL: Option<Standing> = Some(Standing { permit: true, stake: 5000.0 });

    fn open(validator: u8) -> Open {
        Open {
            id: QueryId([0; 16]),
            netuid: 7,
            validator: Hotkey::from_bytes([validator; 32]),
            miner: Hotkey::from_bytes([99; 32]),
            validator_peer: Vec::new(),
            miner_peer: Vec::new(),
            issued_at_ms: 0,
            deadlines: Deadlines { first_byte_ms: 1_000, idle_ms: 1_000, total_ms: 10_000 },
            task: TaskKind::TextToImage.code(),
            model: MODEL.into(),
            body_length: 10,
            body_hash: [0; 32],
        }
    }

    fn peer() -> PeerId {
        PeerId::from_bytes(&[0, 1, 7]).unwrap()
    }

    fn admission(queue: u32, per_peer: u32) -> Admission {
        Admission::new(Settings { queue, per_peer, ..Settings::default() }, 7)
    }

    fn enter(admission: &mut Admission, open: &Open, standing: Option<Standing>) -> Result<(), Rejection> {
        let second = Duration::from_secs(1);
        admission.enter(open, peer(), standing, |_, model| {
            (model == MODEL).then_some(Load { slots: 2, wait: second, work: second, closing: false })
        })
    }

    #[test]
    fn reasons_in_order_of_their_price() {
        let mut admission = admission(8, 8);
        let mut reason = |open: &Open, standing| enter(&mut admission, open, standing).unwrap_err().reason;
        let poor = Some(Standing { stake: 999.0, ..WELL.unwrap() });
        let without_permit = Some(Standing { permit: false, ..WELL.unwrap() });
        for standing in [None, poor, without_permit] {
            assert_eq!(reason(&open(1), standing), Reason::Unauthorised);
        }
        assert_eq!(reason(&Open { netuid: 8, ..open(1) }, WELL), Reason::Unauthorised);
        assert_eq!(reason(&Open { task: 999, ..open(1) }, WELL), Reason::Incapable);
        assert_eq!(reason(&Open { model: "x".into(), ..open(1) }, WELL), Reason::Incapable);
        let mut hurried = open(1);
        hurried.deadlines.total_ms = 1_500;
        assert_eq!(enter(&mut admission, &hurried, WELL), Err(Rejection::busy(1_000)));
        assert_eq!(admission.held(), 0);
        enter(&mut admission, &open(1), WELL).unwrap();
        assert_eq!(admission.held(), 1);
    }

    #[test]
    fn one_hotkey_leaves_room_for_others_and_all_together_are_bounded() {
        let mut admission = admission(8, 100);
        let mut count =
            |validator| (0..20).filter(|_| enter(&mut admission, &open(validator), WELL).is_ok()).count();
        assert_eq!(count(1), 6);
        assert_eq!(count(2), 4);
        assert_eq!(enter(&mut admission, &open(3), WELL), Err(Rejection::busy(500)));
        admission.leave(&open(1).validator, &peer());
        enter(&mut admission, &open(3), WELL).unwrap();
    }

    #[test]
    fn one_peer_is_bounded_whatever_hotkeys_it_brings() {
        let mut admission = admission(100, 3);
        let let_in = (0..20).filter(|i| enter(&mut admission, &open(*i), WELL).is_ok()).count();
        assert_eq!(let_in, 3);
    }

    #[test]
    fn who_is_shutting_down_takes_nobody() {
        let closing = Load { slots: 1, wait: Duration::ZERO, work: Duration::ZERO, closing: true };
        let rejection = admission(8, 8).enter(&open(1), peer(), WELL, |_, _| Some(closing));
        assert_eq!(rejection, Err(Rejection::new(Reason::Cancelled)));
    }

    #[test]
    fn who_left_leaves_nothing_behind() {
        let mut admission = admission(8, 8);
        for i in 0..50 {
            enter(&mut admission, &open(i), WELL).unwrap();
            admission.leave(&open(i).validator, &peer());
        }
        assert!(admission.by_hotkey.is_empty() && admission.by_peer.is_empty());
        assert_eq!(admission.held(), 0);
    }
}
