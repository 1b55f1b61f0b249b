//! The node's own addresses: where it listens, what others found out about them, what to tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use argus_protocols::limits as wire;
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::net::{AddressReport, AddressStatus, Dht, PathKind, Settings, limits, reachability};

/// Addresses that others tested are remembered up to this number.
const TESTED: usize = 64;
/// Changes are told when they have settled for this time.
const SETTLE: Duration = Duration::from_millis(200);

pub(super) struct Addresses {
    announced: Vec<Multiaddr>,
    /// The operator says that others can reach this node.
    public: bool,
    listening: BTreeSet<Multiaddr>,
    /// Confirmed by others, relayed ones included.
    confirmed: BTreeSet<Multiaddr>,
    failed: BTreeMap<Multiaddr, Instant>,
    told: Vec<Multiaddr>,
    changed: Option<Instant>,
    begun: Instant,
}

impl Addresses {
    pub(super) fn new(settings: &Settings, now: Instant) -> Self {
        Self {
            announced: settings.announce.clone(),
            public: settings.dht == Dht::Server,
            listening: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            failed: BTreeMap::new(),
            told: Vec::new(),
            changed: None,
            begun: now,
        }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begun)
    }

    pub(super) fn listening(&mut self, address: Multiaddr, now: Instant) {
        if PathKind::of(&address) == PathKind::Direct {
            self.listening.insert(address);
            self.changed = Some(now);
        }
    }

    pub(super) fn not_listening(&mut self, address: &Multiaddr, now: Instant) {
        self.listening.remove(address);
        self.changed = Some(now);
    }

    pub(super) fn confirmed(&mut self, address: Multiaddr, now: Instant) {
        self.failed.remove(&address);
        if self.confirmed.len() < TESTED && self.confirmed.insert(address) {
            self.changed = Some(now);
        }
    }

    pub(super) fn expired(&mut self, address: &Multiaddr, now: Instant) {
        if self.confirmed.remove(address) {
            self.changed = Some(now);
        }
    }

    /// Another node could not connect to this address.
    pub(super) fn failed(&mut self, address: Multiaddr, now: Instant) {
        if self.failed.len() < TESTED {
            self.failed.insert(address, now);
        }
    }

    /// Whether others are known to reach this node without a relay.
    pub(super) fn reachable(&self) -> bool {
        let direct = |address: &Multiaddr| PathKind::of(address) == PathKind::Direct;
        self.public || !self.announced.is_empty() || self.confirmed.iter().any(direct)
    }

    pub(super) fn listen(&self) -> Vec<Multiaddr> {
        self.listening.iter().cloned().collect()
    }

    /// What to put into the record, best first.
    fn best(&self) -> Vec<Multiaddr> {
        let beyond_loopback = self.listening.iter().any(|a| scope(a) != Scope::Loopback);
        let mut all: Vec<&Multiaddr> = self.announced.iter().chain(&self.confirmed).collect();
        let mut listening: Vec<_> = self
            .listening
            .iter()
            .filter(|address| !(beyond_loopback && scope(address) == Scope::Loopback))
            .collect();
        listening.sort_by_key(|address| scope(address));
        all.extend(listening);
        let mut once = BTreeSet::new();
        all.into_iter()
            .filter(|address| once.insert((*address).clone()))
            .take(wire::RECORD_ADDRESSES)
            .cloned()
            .collect()
    }

    /// The addresses to tell, once a change has settled.
    pub(super) fn take_news(&mut self, now: Instant) -> Option<Vec<Multiaddr>> {
        if now.saturating_duration_since(self.changed?) < SETTLE {
            return None;
        }
        self.changed = None;
        let best = self.best();
        if best == self.told {
            return None;
        }
        self.told.clone_from(&best);
        Some(best)
    }

    /// What is known about each address, for people.
    pub(super) fn reports(&self, now: Instant) -> Vec<AddressReport> {
        let mut reports = BTreeMap::new();
        for address in &self.announced {
            reports.insert(address.clone(), AddressStatus::Announced);
        }
        for address in &self.confirmed {
            let status = match PathKind::of(address) {
                PathKind::Direct => AddressStatus::Confirmed,
                PathKind::Relayed => AddressStatus::Relayed,
            };
            reports.entry(address.clone()).or_insert(status);
        }
        for address in self.failed.keys() {
            let fix = reachability::fix(address);
            reports.entry(address.clone()).or_insert(AddressStatus::Unreachable { fix });
        }
        let patience = limits::REDIAL_LAST;
        for address in &self.listening {
            let note = match scope(address) {
                Scope::Loopback => "only this machine can use it".to_owned(),
                Scope::Private => "only the local network can use it".to_owned(),
                Scope::Global if self.age(now) < patience => "no other node has tested it yet".to_owned(),
                Scope::Global => "no connected node tests addresses; connect to a relay".to_owned(),
            };
            reports.entry(address.clone()).or_insert(AddressStatus::Untested { note });
        }
        reports.into_iter().map(|(address, status)| AddressReport { address, status }).collect()
    }
}

/// Who can use an address, widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Global,
    Private,
    Loopback,
}

fn scope(address: &Multiaddr) -> Scope {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) if ip.is_loopback() => Scope::Loopback,
        Some(Protocol::Ip4(ip)) if ip.is_private() || ip.is_link_local() => Scope::Private,
        Some(Protocol::Ip6(ip)) if ip.is_loopback() => Scope::Loopback,
        Some(Protocol::Ip6(ip)) if ip.is_unique_local() || ip.is_unicast_link_local() => Scope::Private,
        Some(Protocol::Memory(_)) => Scope::Loopback,
        _ => Scope::Global,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_told_best_first_once_they_have_settled() {
        let now = Instant::now();
        let settings =
            Settings { announce: vec![address("/dns/argus.example/tcp/4600")], ..Settings::default() };
        let mut addresses = Addresses::new(&settings, now);
        for text in ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1"] {
            addresses.listening(address(text), now);
        }
        assert_eq!(addresses.take_news(now), None);
        let told = addresses.take_news(now + SETTLE).unwrap();
        let expected = ["/dns/argus.example/tcp/4600", "/ip4/8.8.8.8/tcp/1", "/ip4/10.0.0.1/tcp/1"];
        assert_eq!(told, expected.map(address));
        assert_eq!(addresses.take_news(now + SETTLE), None, "nothing changed");
        assert!(addresses.reachable());
    }

    #[test]
    fn a_circuit_is_told_but_does_not_make_a_node_reachable() {
        let now = Instant::now();
        let mut addresses = Addresses::new(&Settings::default(), now);
        addresses.listening(address("/ip4/127.0.0.1/tcp/1"), now);
        assert_eq!(addresses.take_news(now + SETTLE).unwrap().len(), 1, "loopback, for lack of others");
        let peer = libp2p::PeerId::random();
        let circuit = address(&format!("/ip4/8.8.8.8/tcp/1/p2p/{peer}/p2p-circuit"));
        addresses.confirmed(circuit.clone(), now);
        assert!(!addresses.reachable());
        assert_eq!(addresses.take_news(now + SETTLE).unwrap()[0], circuit);
        addresses.confirmed(address("/ip4/9.9.9.9/tcp/1"), now);
        assert!(addresses.reachable());
        addresses.failed(address("/ip4/7.7.7.7/tcp/4600"), now);
        let fixes = addresses.reports(now).into_iter().filter(
            |r| matches!(&r.status, AddressStatus::Unreachable { fix } if fix.contains("TCP port 4600")),
        );
        assert_eq!(fixes.count(), 1);
    }
}
