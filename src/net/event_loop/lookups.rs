//! Lookups of hotkeys under way: the newest verified record of several answers, an answer for every caller.
//!
//! The first answer of the DHT may be an old one, or a lie. A lookup takes [`limits::LOOKUP_ANSWERS`]
//! verified answers, or as many as there are, and returns the newest. It ends at the latest after
//! [`limits::LOOKUP_TIMEOUT`]; with at least one answer it waits [`limits::LOOKUP_GRACE`] for others.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use argus_protocols::{Hotkey, VerifiedRecord};
use libp2p::kad::QueryId;
use tokio::sync::oneshot;

use crate::net::{LookupError, limits};

pub(super) type Waiter = oneshot::Sender<Result<VerifiedRecord, LookupError>>;

struct Lookup {
    hotkey: Hotkey,
    waiters: Vec<Waiter>,
    best: Option<VerifiedRecord>,
    answers: usize,
    begun: Instant,
    first_answer: Option<Instant>,
}

/// Lookups that wait for the first peer to ask.
struct Parked {
    hotkey: Hotkey,
    waiter: Waiter,
    since: Instant,
}

#[derive(Default)]
pub(super) struct Lookups {
    running: HashMap<QueryId, Lookup>,
    parked: Vec<Parked>,
    swept: Option<Instant>,
}

/// The end of a lookup.
pub(super) struct Ended {
    pub(super) outcome: Result<VerifiedRecord, LookupError>,
    waiters: Vec<Waiter>,
}

impl Ended {
    pub(super) fn answer(self) {
        for waiter in self.waiters {
            let _ = waiter.send(self.outcome.clone());
        }
    }
}

/// How long a caller waits for the node to have anybody to ask.
const PARK: Duration = Duration::from_secs(5);

impl Lookups {
    /// Joins a lookup of the same hotkey; gives the waiter back when there is none.
    pub(super) fn join(&mut self, hotkey: &Hotkey, waiter: Waiter) -> Option<Waiter> {
        let full = self.running.len() >= limits::LOOKUPS;
        let mut running = self.running.values_mut();
        match running.find(|lookup| lookup.hotkey == *hotkey) {
            Some(lookup) if lookup.waiters.len() < limits::WAITERS => {
                lookup.waiters.push(waiter);
                None
            }
            Some(_) => {
                let _ = waiter.send(Err(LookupError::Busy));
                None
            }
            None if full => {
                let _ = waiter.send(Err(LookupError::Busy));
                None
            }
            None => Some(waiter),
        }
    }

    pub(super) fn begun(&mut self, id: QueryId, hotkey: Hotkey, waiter: Waiter, now: Instant) {
        self.running.insert(
            id,
            Lookup { hotkey, waiters: vec![waiter], best: None, answers: 0, begun: now, first_answer: None },
        );
    }

    /// Keeps a caller until there is somebody to ask.
    pub(super) fn park(&mut self, hotkey: Hotkey, waiter: Waiter, since: Instant) {
        if self.parked.len() >= limits::WAITERS {
            let _ = waiter.send(Err(LookupError::Busy));
            return;
        }
        self.parked.push(Parked { hotkey, waiter, since });
    }

    /// Those who waited for somebody to ask.
    pub(super) fn unpark(&mut self) -> Vec<(Hotkey, Waiter)> {
        let parked = self.parked.drain(..);
        parked.map(|parked| (parked.hotkey, parked.waiter)).collect()
    }

    pub(super) fn hotkey(&self, id: &QueryId) -> Option<Hotkey> {
        self.running.get(id).map(|lookup| lookup.hotkey)
    }

    /// An answer that was verified. `true` when the lookup has enough of them.
    pub(super) fn answered(&mut self, id: &QueryId, record: VerifiedRecord, now: Instant) -> bool {
        let Some(lookup) = self.running.get_mut(id) else {
            return false;
        };
        lookup.answers += 1;
        lookup.first_answer.get_or_insert(now);
        if lookup.best.as_ref().is_none_or(|best| record.replaces(best)) {
            lookup.best = Some(record);
        }
        lookup.answers >= limits::LOOKUP_ANSWERS
    }

    /// Lookups whose time is over. Answers parked callers whose time is over, too.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<QueryId> {
        let since = |at: Instant| now.saturating_duration_since(at);
        let (over, parked): (Vec<_>, Vec<_>) = self
            .parked
            .drain(..)
            .filter(|parked| !parked.waiter.is_closed())
            .partition(|parked| since(parked.since) >= PARK);
        self.parked = parked;
        for parked in over {
            let _ = parked.waiter.send(Err(LookupError::TimedOut(PARK)));
        }
        self.running
            .iter()
            .filter(|(_, lookup)| {
                since(lookup.begun) >= limits::LOOKUP_TIMEOUT
                    || lookup.first_answer.is_some_and(|at| since(at) >= limits::LOOKUP_GRACE)
            })
            .map(|(id, _)| *id)
            .collect()
    }

    /// Ends a lookup. `own`: the record this node keeps, if any.
    pub(super) fn end(&mut self, id: &QueryId, own: Option<VerifiedRecord>, now: Instant) -> Option<Ended> {
        let lookup = self.running.remove(id)?;
        let late = now.saturating_duration_since(lookup.begun) >= limits::LOOKUP_TIMEOUT;
        let newest = match (lookup.best, own) {
            (Some(best), Some(own)) => Some(if own.replaces(&best) { own } else { best }),
            (best, own) => best.or(own),
        };
        let outcome = match newest {
            Some(record) => Ok(record),
            None if late => Err(LookupError::TimedOut(limits::LOOKUP_TIMEOUT)),
            None => Err(LookupError::NotFound),
        };
        Some(Ended { outcome, waiters: lookup.waiters })
    }

    /// `true` once an hour, for sweeping.
    pub(super) fn hourly(&mut self, now: Instant) -> bool {
        let due = self.swept.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(3600));
        if due {
            self.swept = Some(now);
        }
        due
    }
}
