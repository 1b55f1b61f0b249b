//! What peers have done wrong, added up. A peer over the threshold is disconnected and blocked for a
//! time that doubles with each block; small slips are forgotten with time.
//!
//! Sans-IO: the clock comes in as an argument. Bounded: when full, whoever has the fewest points is
//! forgotten first.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::sync::mpsc;

use super::{limits, metrics::Metrics};

/// Something a peer did that honest software does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offence {
    /// A frame out of place, undecodable or cut short.
    BadFrame,
    /// A frame or body larger than the limits or than announced.
    Oversized,
    /// A signature that does not hold, or a message for another connection.
    BadSignature,
    /// A query id seen before on an open frame.
    Replay,
    /// A stream opened and then not used in time.
    SlowLoris,
    /// A body that does not have the hash that was signed.
    WrongHash,
    /// A receipt that does not hold.
    BadReceipt,
    /// A DHT record that is forged, malformed or of another hotkey.
    BadRecord,
    /// More streams at once than a peer may have.
    TooManyStreams,
    /// For other parts of the node: an answer proved dishonest, spam over a limit.
    Misconduct,
}

impl Offence {
    pub const ALL: [Offence; 10] = [
        Offence::BadFrame,
        Offence::Oversized,
        Offence::BadSignature,
        Offence::Replay,
        Offence::SlowLoris,
        Offence::WrongHash,
        Offence::BadReceipt,
        Offence::BadRecord,
        Offence::TooManyStreams,
        Offence::Misconduct,
    ];

    /// A stable label for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Offence::BadFrame => "bad_frame",
            Offence::Oversized => "oversized",
            Offence::BadSignature => "bad_signature",
            Offence::Replay => "replay",
            Offence::SlowLoris => "slow_loris",
            Offence::WrongHash => "wrong_hash",
            Offence::BadReceipt => "bad_receipt",
            Offence::BadRecord => "bad_record",
            Offence::TooManyStreams => "too_many_streams",
            Offence::Misconduct => "misconduct",
        }
    }

    /// What it counts; [`THRESHOLD`] is the end of patience.
    fn points(self) -> f64 {
        match self {
            Offence::TooManyStreams => 5.0,
            Offence::SlowLoris => 10.0,
            Offence::BadFrame | Offence::Replay => 20.0,
            Offence::Oversized | Offence::WrongHash | Offence::Misconduct => 25.0,
            Offence::BadSignature | Offence::BadReceipt | Offence::BadRecord => 35.0,
        }
    }
}

/// At this many points a peer is blocked.
pub(super) const THRESHOLD: f64 = 100.0;
/// Points are halved in this time.
const HALF_LIFE: Duration = Duration::from_secs(300);
const FIRST_BLOCK: Duration = Duration::from_secs(5 * 60);
const LONGEST_BLOCK: Duration = Duration::from_secs(6 * 60 * 60);

struct Entry {
    points: f64,
    at: Instant,
    blocks: u32,
    blocked_until: Option<Instant>,
}

impl Entry {
    fn points(&self, now: Instant) -> f64 {
        let halves = now.saturating_duration_since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.points * 0.5f64.powf(halves)
    }
}

/// What to do after an offence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Keep the connection; the peer's points now.
    Tolerate(f64),
    /// Disconnect, and block for this long.
    Block(Duration),
    /// It is blocked already.
    Blocked,
}

#[derive(Default)]
pub(super) struct Penalties {
    peers: HashMap<PeerId, Entry>,
}

impl Penalties {
    pub(super) fn add(&mut self, peer: PeerId, offence: Offence, now: Instant) -> Verdict {
        if self.peers.len() >= limits::PENALISED_PEERS && !self.peers.contains_key(&peer) {
            self.make_room(now);
        }
        let entry =
            self.peers.entry(peer).or_insert(Entry { points: 0.0, at: now, blocks: 0, blocked_until: None });
        if entry.blocked_until.is_some_and(|until| now < until) {
            // What was on its way when the connection ended.
            return Verdict::Blocked;
        }
        entry.points = entry.points(now) + offence.points();
        entry.at = now;
        if entry.points < THRESHOLD {
            return Verdict::Tolerate(entry.points);
        }
        let time = (FIRST_BLOCK * 2u32.saturating_pow(entry.blocks.min(16))).min(LONGEST_BLOCK);
        entry.points = 0.0;
        entry.blocks += 1;
        entry.blocked_until = Some(now + time);
        Verdict::Block(time)
    }

    /// Peers whose block is over.
    pub(super) fn released(&mut self, now: Instant) -> Vec<PeerId> {
        let mut released = Vec::new();
        for (peer, entry) in &mut self.peers {
            if entry.blocked_until.is_some_and(|until| until <= now) {
                entry.blocked_until = None;
                released.push(*peer);
            }
        }
        released
    }

    fn make_room(&mut self, now: Instant) {
        let least = self
            .peers
            .iter()
            .filter(|(_, entry)| entry.blocked_until.is_none())
            .min_by(|a, b| a.1.points(now).total_cmp(&b.1.points(now)))
            .or_else(|| self.peers.iter().min_by_key(|(_, entry)| entry.blocked_until))
            .map(|(peer, _)| *peer);
        if let Some(peer) = least {
            self.peers.remove(&peer);
        }
    }
}

/// The way of complaints from streams to the event loop. Each is counted, also one that is dropped
/// because the loop has too many waiting.
#[derive(Clone)]
pub(super) struct Complaints {
    queue: mpsc::Sender<(PeerId, Offence)>,
    metrics: Metrics,
}

impl Complaints {
    pub(super) fn new(metrics: Metrics) -> (Self, mpsc::Receiver<(PeerId, Offence)>) {
        let (queue, complaints) = mpsc::channel(limits::OFFENCES);
        (Self { queue, metrics }, complaints)
    }

    pub(super) fn add(&self, peer: PeerId, offence: Offence) {
        self.metrics.offence(offence.label());
        if self.queue.try_send((peer, offence)).is_err() {
            self.metrics.dropped("offence");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offences_add_up_to_blocks_that_double() {
        let mut penalties = Penalties::default();
        let (peer, other, now) = (PeerId::random(), PeerId::random(), Instant::now());
        assert_eq!(penalties.add(peer, Offence::BadSignature, now), Verdict::Tolerate(35.0));
        assert_eq!(penalties.add(peer, Offence::BadSignature, now), Verdict::Tolerate(70.0));
        assert_eq!(penalties.add(other, Offence::BadFrame, now), Verdict::Tolerate(20.0));
        assert_eq!(penalties.add(peer, Offence::BadSignature, now), Verdict::Block(FIRST_BLOCK));
        assert!(penalties.released(now).is_empty());
        assert_eq!(penalties.add(peer, Offence::BadSignature, now), Verdict::Blocked);
        assert_eq!(penalties.released(now + FIRST_BLOCK), [peer]);
        assert!(penalties.released(now + FIRST_BLOCK).is_empty());
        let now = now + FIRST_BLOCK;
        for _ in 0..2 {
            penalties.add(peer, Offence::BadSignature, now);
        }
        assert_eq!(penalties.add(peer, Offence::BadSignature, now), Verdict::Block(FIRST_BLOCK * 2));
    }

    #[test]
    fn slips_are_forgotten() {
        let mut penalties = Penalties::default();
        let (peer, mut now) = (PeerId::random(), Instant::now());
        for _ in 0..50 {
            assert!(matches!(penalties.add(peer, Offence::BadFrame, now), Verdict::Tolerate(_)));
            now += HALF_LIFE;
        }
    }

    #[test]
    fn memory_is_bounded_and_the_worst_are_kept() {
        let mut penalties = Penalties::default();
        let (worst, now) = (PeerId::random(), Instant::now());
        penalties.add(worst, Offence::BadSignature, now);
        for _ in 0..limits::PENALISED_PEERS + 100 {
            penalties.add(PeerId::random(), Offence::TooManyStreams, now);
        }
        assert_eq!(penalties.peers.len(), limits::PENALISED_PEERS);
        assert!(penalties.peers.contains_key(&worst));
    }
}
