//! Peers met with success, kept over restarts, and the order in which they are dialled to rejoin.
//!
//! Sans-IO: the clock comes in, dials go out. A round takes the bootstrap list and the book, newest first,
//! with a bounded number of dials at once; on every tick a few more are begun whether or not those before
//! have ended, so that stale addresses cannot hold up fresh ones. Rounds repeat, with growing pauses, while
//! the node has few connections.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::{
    KnownPeer, limits,
    persist::{Write, Writer},
};

/// A peer that was seen again is written again only after this time.
const REWRITE_MS: u64 = 10 * 60 * 1000;
/// A peer not seen for this long is forgotten.
const FORGET_MS: u64 = 30 * 24 * 60 * 60 * 1000;

pub(super) struct AddressBook {
    peers: HashMap<PeerId, KnownPeer>,
    writer: Writer,
}

impl AddressBook {
    pub(super) fn load(mut persisted: Vec<KnownPeer>, writer: Writer, now_ms: u64) -> Self {
        persisted.sort_by_key(|known| std::cmp::Reverse(known.seen_at_ms));
        let mut peers = HashMap::new();
        for (place, mut known) in persisted.into_iter().enumerate() {
            let old = known.seen_at_ms.saturating_add(FORGET_MS) < now_ms;
            if place >= limits::BOOK_PEERS || old {
                writer.write(Write::RemovePeer(known.peer));
                continue;
            }
            known.addresses.truncate(limits::BOOK_ADDRESSES);
            peers.insert(known.peer, known);
        }
        Self { peers, writer }
    }

    /// A connection to the peer succeeded. `addresses`: those it can be dialled at, the one that worked
    /// first.
    pub(super) fn seen(&mut self, peer: PeerId, addresses: &[Multiaddr], now_ms: u64) {
        let dialable: Vec<_> = addresses.iter().filter_map(bare).collect();
        if dialable.is_empty() && !self.peers.contains_key(&peer) {
            return;
        }
        if !self.peers.contains_key(&peer) && self.peers.len() >= limits::BOOK_PEERS {
            self.forget_oldest();
        }
        let known = self.peers.entry(peer).or_insert_with(|| KnownPeer {
            peer,
            addresses: Vec::new(),
            seen_at_ms: 0,
        });
        let mut merged = dialable;
        merged.extend(known.addresses.iter().cloned());
        let mut once = HashSet::new();
        merged.retain(|address| once.insert(address.clone()));
        merged.truncate(limits::BOOK_ADDRESSES);
        let changed = merged != known.addresses;
        known.addresses = merged;
        if changed || now_ms.saturating_sub(known.seen_at_ms) > REWRITE_MS {
            known.seen_at_ms = now_ms;
            self.writer.write(Write::PutPeer(known.clone()));
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.peers.values().min_by_key(|known| known.seen_at_ms);
        if let Some(peer) = oldest.map(|known| known.peer) {
            self.peers.remove(&peer);
            self.writer.write(Write::RemovePeer(peer));
        }
    }

    pub(super) fn newest_first(&self) -> Vec<KnownPeer> {
        let mut all: Vec<_> = self.peers.values().cloned().collect();
        all.sort_by_key(|known| std::cmp::Reverse(known.seen_at_ms));
        all
    }

    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.peers.get(peer).map(|known| known.addresses.clone()).unwrap_or_default()
    }
}

/// The address without `/p2p`, if it is worth keeping: circuits end with the relay's mood.
fn bare(address: &Multiaddr) -> Option<Multiaddr> {
    if address.iter().any(|p| p == Protocol::P2pCircuit) {
        return None;
    }
    Some(address.iter().filter(|p| !matches!(p, Protocol::P2p(_))).collect())
}

/// Splits `…/p2p/<peer>` off an address.
pub(super) fn peer_of(address: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    let mut rest = address.clone();
    match rest.pop() {
        Some(Protocol::P2p(peer)) => Some((peer, rest)),
        _ => None,
    }
}

/// One peer to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
}

/// Dialling known peers until there are enough connections.
pub(super) struct Rejoin {
    bootstrap: Vec<Dial>,
    waiting: VecDeque<Dial>,
    in_flight: HashSet<PeerId>,
    next_round: Instant,
    pause: Duration,
}

impl Rejoin {
    pub(super) fn new(bootstrap: &[Multiaddr], local: PeerId, now: Instant) -> Self {
        let mut dials: Vec<Dial> = Vec::new();
        for (peer, address) in bootstrap.iter().filter_map(peer_of) {
            match dials.iter_mut().find(|dial| dial.peer == peer) {
                Some(dial) => dial.addresses.push(address),
                None if peer == local => {}
                None => dials.push(Dial { peer, addresses: vec![address] }),
            }
        }
        Self {
            bootstrap: dials,
            waiting: VecDeque::new(),
            in_flight: HashSet::new(),
            next_round: now,
            pause: limits::REDIAL_FIRST,
        }
    }

    pub(super) fn has_bootstrap(&self) -> bool {
        !self.bootstrap.is_empty()
    }

    /// What to dial now. `begin_more`: on ticks, a few dials above the usual number are begun.
    pub(super) fn next(
        &mut self,
        book: &AddressBook,
        connected: impl Fn(&PeerId) -> bool,
        connections: usize,
        begin_more: bool,
        now: Instant,
    ) -> Vec<Dial> {
        if connections >= limits::FEW_PEERS {
            self.waiting.clear();
            self.pause = limits::REDIAL_FIRST;
            self.next_round = now + self.pause;
        } else if self.waiting.is_empty() && self.in_flight.is_empty() && now >= self.next_round {
            self.begin_round(book);
            self.next_round = now + self.pause;
            self.pause = (self.pause * 2).min(limits::REDIAL_LAST);
        }
        let room = limits::BOOK_DIALS.saturating_sub(self.in_flight.len());
        let more = if begin_more { limits::BOOK_DIALS_A_TICK } else { 0 };
        let mut dials = Vec::new();
        while dials.len() < room.max(more) {
            let Some(dial) = self.waiting.pop_front() else {
                break;
            };
            if !connected(&dial.peer) && self.in_flight.insert(dial.peer) {
                dials.push(dial);
            }
        }
        dials
    }

    fn begin_round(&mut self, book: &AddressBook) {
        let bootstrap: HashSet<_> = self.bootstrap.iter().map(|dial| dial.peer).collect();
        self.waiting = self.bootstrap.iter().cloned().collect();
        for dial in &mut self.waiting {
            dial.addresses.extend(book.addresses(&dial.peer));
        }
        for known in book.newest_first() {
            if !bootstrap.contains(&known.peer) {
                self.waiting.push_back(Dial { peer: known.peer, addresses: known.addresses });
            }
        }
    }

    /// A dial ended, either way.
    pub(super) fn ended(&mut self, peer: &PeerId) {
        self.in_flight.remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::net::{InMemory, Persist};

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn known(port: u16, seen_at_ms: u64) -> KnownPeer {
        KnownPeer { peer: PeerId::random(), addresses: vec![address(port)], seen_at_ms }
    }

    async fn book(peers: Vec<KnownPeer>) -> AddressBook {
        let (writer, _) = Writer::spawn(Arc::new(InMemory::default()), Default::default());
        AddressBook::load(peers, writer, 1_000)
    }

    #[tokio::test]
    async fn the_address_that_worked_comes_first_and_survives() {
        let kept = Arc::new(InMemory::default());
        let (writer, writing) = Writer::spawn(kept.clone(), Default::default());
        let mut book = AddressBook::load(Vec::new(), writer, 1_000);
        let peer = PeerId::random();
        book.seen(peer, &[address(1), address(2)], 1_000);
        book.seen(peer, &[address(2)], 2_000);
        let circuit: Multiaddr = format!("/ip4/1.2.3.4/tcp/1/p2p/{peer}/p2p-circuit").parse().unwrap();
        book.seen(PeerId::random(), &[circuit], 2_000);
        drop(book);
        writing.await.unwrap();
        let peers = kept.peers();
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].addresses, [address(2), address(1)]);
    }

    #[tokio::test]
    async fn the_book_is_bounded_and_drops_the_oldest() {
        let peers: Vec<_> = (0..limits::BOOK_PEERS as u64 + 5).map(|n| known(1, n + 1)).collect();
        let newest = peers.last().unwrap().peer;
        let mut book = book(peers).await;
        assert_eq!(book.peers.len(), limits::BOOK_PEERS);
        let more: Vec<_> = (0..20).map(address).collect();
        let new = PeerId::random();
        book.seen(new, &more, 5_000);
        assert_eq!(book.peers.len(), limits::BOOK_PEERS);
        assert_eq!(book.addresses(&new).len(), limits::BOOK_ADDRESSES);
        let order = book.newest_first();
        assert_eq!((order[0].peer, order[1].peer), (new, newest));
    }

    #[tokio::test]
    async fn stale_peers_do_not_hold_up_fresh_ones() {
        let peers: Vec<_> = (0..100).map(|n| known(n as u16 + 1, n + 1)).collect();
        let book = book(peers.clone()).await;
        let now = Instant::now();
        let bootstrap = PeerId::random();
        let down: Multiaddr = format!("/ip4/127.0.0.1/tcp/9/p2p/{bootstrap}").parse().unwrap();
        let mut rejoin = Rejoin::new(&[down], PeerId::random(), now);
        let first = rejoin.next(&book, |_| false, 0, false, now);
        assert_eq!(first.len(), limits::BOOK_DIALS);
        assert_eq!(first[0].peer, bootstrap, "the bootstrap node and the newest go first");
        assert_eq!(first[1].peer, peers[99].peer);
        assert!(rejoin.next(&book, |_| false, 0, false, now).is_empty());
        let more = rejoin.next(&book, |_| false, 0, true, now + limits::TICK);
        assert_eq!(more.len(), limits::BOOK_DIALS_A_TICK, "a tick begins more although none has ended");
        assert!(rejoin.next(&book, |_| false, limits::FEW_PEERS, true, now).is_empty());
    }

    #[tokio::test]
    async fn rounds_repeat_with_growing_pauses_while_peers_are_few() {
        let book = book(vec![known(1, 1)]).await;
        let mut now = Instant::now();
        let mut rejoin = Rejoin::new(&[], PeerId::random(), now);
        let mut pauses = Vec::new();
        for _ in 0..4 {
            let begun = now;
            while rejoin.next(&book, |_| false, 0, true, now).is_empty() {
                now += limits::TICK;
            }
            pauses.push(now - begun);
            rejoin.ended(&book.newest_first()[0].peer);
        }
        assert!(pauses[1] < pauses[2] && pauses[2] < pauses[3], "{pauses:?}");
    }
}
