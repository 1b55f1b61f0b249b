//! Query ids seen lately, so that an open frame works once.
//!
//! An open frame names both peers and is worth nothing after `CLOCK_SKEW_MS`, so ids are kept for twice
//! that (clocks may be off either way), and [`limits::REPLAY_IDS`] at most: beyond, the oldest is
//! forgotten first. Only the peer that made an id could use that, to repeat its own query.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use argus_protocols::{QueryId, limits as wire};
use libp2p::PeerId;

use crate::net::limits;

const KEEP: Duration = Duration::from_millis(2 * wire::CLOCK_SKEW_MS);

/// Peer and id together, hashed: half the memory, and no way to make two collide.
type Seen = [u8; 16];

#[derive(Default)]
pub(super) struct Replay {
    seen: HashSet<Seen>,
    order: VecDeque<(Instant, Seen)>,
}

impl Replay {
    /// Whether this id is new from this peer; remembers it.
    pub(super) fn admit(&mut self, peer: &PeerId, id: &QueryId, now: Instant) -> bool {
        while let Some((at, oldest)) = self.order.front() {
            let over = self.order.len() >= limits::REPLAY_IDS;
            if !over && now.saturating_duration_since(*at) < KEEP {
                break;
            }
            self.seen.remove(oldest);
            self.order.pop_front();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&id.0).update(&peer.to_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        if !self.seen.insert(key) {
            return false;
        }
        self.order.push_back((now, key));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_works_once_for_a_peer_within_the_time() {
        let mut replay = Replay::default();
        let (peer, other, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let id = QueryId([7; 16]);
        assert!(replay.admit(&peer, &id, now));
        assert!(!replay.admit(&peer, &id, now + KEEP / 2));
        assert!(replay.admit(&other, &id, now));
        assert!(replay.admit(&peer, &id, now + KEEP), "the open frame is stale by then");
    }

    #[test]
    fn memory_is_bounded() {
        let mut replay = Replay::default();
        let (peer, now) = (PeerId::random(), Instant::now());
        for number in 0..limits::REPLAY_IDS as u128 + 10 {
            assert!(replay.admit(&peer, &QueryId(number.to_le_bytes()), now));
        }
        assert!(replay.order.len() <= limits::REPLAY_IDS);
        assert_eq!(replay.order.len(), replay.seen.len());
        assert!(!replay.admit(&peer, &QueryId((limits::REPLAY_IDS as u128).to_le_bytes()), now));
    }
}
