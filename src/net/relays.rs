//! Which relays hold reservations for this node, since rust-libp2p has no such automatism.
//!
//! Sans-IO. While the node is not known to be reachable, reservations are kept with up to
//! [`limits::RELAYS`] of the relays it is connected to; one that fails or is lost is tried again with
//! growing pauses, after others had their turn. Once the node is reachable they are given back.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, multiaddr::Protocol};

use super::limits;

const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LAST: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
enum State {
    Idle {
        not_before: Instant,
    },
    /// Asked for, or held.
    Held(ListenerId),
}

struct Relay {
    address: Multiaddr,
    state: State,
    failures: u32,
}

/// What to do about reservations.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Listen on this circuit address, and say with [`Relays::listening`] how that went.
    Listen(PeerId, Multiaddr),
    /// Stop this listener.
    Stop(ListenerId),
}

#[derive(Default)]
pub(super) struct Relays {
    known: HashMap<PeerId, Relay>,
}

impl Relays {
    /// A connected peer relays for others. `address`: where it is connected, without its peer id.
    pub(super) fn candidate(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        let circuit = address.iter().any(|p| p == Protocol::P2pCircuit);
        if circuit || (self.known.len() >= limits::RELAY_CANDIDATES && !self.known.contains_key(&peer)) {
            return;
        }
        self.known.entry(peer).or_insert(Relay {
            address: address.clone(),
            state: State::Idle { not_before: now },
            failures: 0,
        });
    }

    /// The last connection to a relay is gone. A reservation made over it goes with it.
    pub(super) fn disconnected(&mut self, peer: &PeerId) {
        if let Some(relay) = self.known.get(peer)
            && matches!(relay.state, State::Idle { .. })
        {
            self.known.remove(peer);
        }
    }

    /// What to do now. `wanted`: whether reservations are of use.
    pub(super) fn next(&mut self, wanted: bool, now: Instant) -> Vec<Action> {
        let held = |relay: &Relay| match relay.state {
            State::Held(listener) => Some(listener),
            State::Idle { .. } => None,
        };
        if !wanted {
            return self.known.values().filter_map(held).map(Action::Stop).collect();
        }
        let room = limits::RELAYS.saturating_sub(self.known.values().filter_map(held).count());
        let mut ready: Vec<_> = self
            .known
            .iter()
            .filter(|(_, relay)| matches!(relay.state, State::Idle { not_before } if not_before <= now))
            .collect();
        ready.sort_by_key(|(_, relay)| relay.failures);
        ready
            .into_iter()
            .take(room)
            .map(|(peer, relay)| {
                let circuit = relay.address.clone().with(Protocol::P2p(*peer)).with(Protocol::P2pCircuit);
                Action::Listen(*peer, circuit)
            })
            .collect()
    }

    /// How the listening that was asked for began.
    pub(super) fn listening(&mut self, peer: &PeerId, listener: Option<ListenerId>, now: Instant) {
        match (self.known.get_mut(peer), listener) {
            (Some(relay), Some(listener)) => relay.state = State::Held(listener),
            (Some(relay), None) => fail(relay, now),
            (None, _) => {}
        }
    }

    /// The relay said yes.
    pub(super) fn accepted(&mut self, peer: &PeerId) {
        if let Some(relay) = self.known.get_mut(peer) {
            relay.failures = 0;
        }
    }

    /// A listener ended; `true` when it was one of these.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) -> bool {
        let relay = self
            .known
            .values_mut()
            .find(|relay| matches!(relay.state, State::Held(held) if held == listener));
        match relay {
            Some(relay) => {
                fail(relay, now);
                true
            }
            None => false,
        }
    }
}

fn fail(relay: &mut Relay, now: Instant) {
    let pause = (RETRY_FIRST * 2u32.saturating_pow(relay.failures.min(10))).min(RETRY_LAST);
    relay.failures += 1;
    relay.state = State::Idle { not_before: now + pause };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(relays: &mut Relays, now: Instant) -> Vec<PeerId> {
        relays
            .next(true, now)
            .into_iter()
            .map(|action| match action {
                Action::Listen(peer, circuit) => {
                    assert!(circuit.to_string().ends_with(&format!("/p2p/{peer}/p2p-circuit")));
                    relays.listening(&peer, Some(ListenerId::next()), now);
                    peer
                }
                Action::Stop(_) => panic!("nothing to stop"),
            })
            .collect()
    }

    #[test]
    fn two_reservations_are_kept_and_a_lost_one_is_replaced() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        for _ in 0..3 {
            relays.candidate(PeerId::random(), &address, now);
        }
        let held = listen(&mut relays, now);
        assert_eq!(held.len(), limits::RELAYS);
        assert!(relays.next(true, now).is_empty());
        let State::Held(lost) = relays.known[&held[0]].state else {
            panic!("held");
        };
        assert!(relays.closed(lost, now));
        assert!(!relays.closed(lost, now));
        let replacement = listen(&mut relays, now);
        assert_eq!(replacement.len(), 1);
        assert!(!held.contains(&replacement[0]), "the one that failed waits");
    }

    #[test]
    fn reservations_are_given_back_when_reachable() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.candidate(PeerId::random(), &"/ip4/127.0.0.1/tcp/1".parse().unwrap(), now);
        assert!(relays.next(false, now).is_empty());
        listen(&mut relays, now);
        assert!(matches!(relays.next(false, now)[..], [Action::Stop(_)]));
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let (mut relays, mut now) = (Relays::default(), Instant::now());
        let relay = PeerId::random();
        relays.candidate(relay, &"/ip4/127.0.0.1/tcp/1".parse().unwrap(), now);
        relays.listening(&relay, None, now);
        assert!(relays.next(true, now).is_empty());
        now += RETRY_FIRST;
        assert_eq!(relays.next(true, now).len(), 1);
        relays.listening(&relay, None, now);
        now += RETRY_FIRST;
        assert!(relays.next(true, now).is_empty());
    }
}
