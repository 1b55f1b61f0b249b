//! The connected peers: by which ways, how fast, what they run.

use std::{collections::HashMap, time::Duration};

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, swarm::ConnectionId};
use tokio::sync::oneshot;

use crate::net::{PathKind, PeerReport, Reachability, TransportKind, limits};

pub(super) struct Connection {
    id: ConnectionId,
    pub(super) address: Multiaddr,
    path: PathKind,
    transport: TransportKind,
    rtt: Option<Duration>,
}

#[derive(Default)]
struct Peer {
    connections: Vec<Connection>,
    agent: Option<String>,
    /// Those who wait for a round-trip time.
    waiters: Vec<oneshot::Sender<Option<Reachability>>>,
}

impl Peer {
    /// Direct before relayed, the younger of equals.
    fn best(&self) -> Option<&Connection> {
        self.connections.iter().max_by_key(|connection| connection.path == PathKind::Direct)
    }
}

#[derive(Default)]
pub(super) struct Peers(HashMap<PeerId, Peer>);

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    /// `true` when it is the first connection with this peer.
    pub(super) fn connected(&mut self, peer: PeerId, id: ConnectionId, end: &ConnectedPoint) -> bool {
        let address = end.get_remote_address().clone();
        // A circuit into this node names the relay on the local address.
        let path = match end {
            ConnectedPoint::Dialer { address, .. } => PathKind::of(address),
            ConnectedPoint::Listener { local_addr, .. } => PathKind::of(local_addr),
        };
        let transport = match end {
            ConnectedPoint::Dialer { address, .. } => TransportKind::of(address),
            ConnectedPoint::Listener { local_addr, .. } => TransportKind::of(local_addr),
        };
        let known = self.0.entry(peer).or_default();
        known.connections.push(Connection { id, address, path, transport, rtt: None });
        known.connections.len() == 1
    }

    /// `true` when it was the last connection with this peer.
    pub(super) fn disconnected(&mut self, peer: &PeerId, id: ConnectionId) -> bool {
        let Some(known) = self.0.get_mut(peer) else {
            return false;
        };
        known.connections.retain(|connection| connection.id != id);
        if known.connections.is_empty() {
            self.0.remove(peer);
            return true;
        }
        false
    }

    pub(super) fn pinged(&mut self, peer: &PeerId, id: ConnectionId, rtt: Duration) {
        let Some(known) = self.0.get_mut(peer) else {
            return;
        };
        if let Some(connection) = known.connections.iter_mut().find(|c| c.id == id) {
            connection.rtt = Some(rtt);
        }
        if known.best().is_some_and(|best| best.id == id) {
            let way = reachability(*peer, known);
            for waiter in known.waiters.drain(..) {
                let _ = waiter.send(way.clone());
            }
        }
    }

    pub(super) fn identified(&mut self, peer: &PeerId, agent: &str) {
        if let Some(known) = self.0.get_mut(peer) {
            // As long as a log line may be; it is the peer's own word.
            known.agent = Some(agent.chars().take(64).filter(|c| !c.is_control()).collect());
        }
    }

    /// Addresses of this peer's connections.
    pub(super) fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.0
            .get(peer)
            .into_iter()
            .flat_map(|known| known.connections.iter().map(|connection| &connection.address))
    }

    /// Answers with the way to this peer: at once when its time is known, else with the next ping.
    pub(super) fn reach(&mut self, peer: PeerId, reply: oneshot::Sender<Option<Reachability>>) {
        let Some(known) = self.0.get_mut(&peer) else {
            let _ = reply.send(None);
            return;
        };
        known.waiters.retain(|waiter| !waiter.is_closed());
        let measured = known.best().is_some_and(|best| best.rtt.is_some());
        if measured || known.waiters.len() >= limits::WAITERS {
            let _ = reply.send(reachability(peer, known));
        } else {
            known.waiters.push(reply);
        }
    }

    pub(super) fn reports(&self) -> Vec<PeerReport> {
        let mut reports: Vec<_> = self
            .0
            .iter()
            .filter_map(|(peer, known)| {
                let best = known.best()?;
                Some(PeerReport {
                    peer: *peer,
                    address: best.address.clone(),
                    transport: best.transport,
                    path: best.path,
                    connections: known.connections.len(),
                    rtt: best.rtt,
                    agent: known.agent.clone(),
                })
            })
            .collect();
        reports.sort_by_key(|report| report.peer);
        reports
    }
}

fn reachability(peer: PeerId, known: &Peer) -> Option<Reachability> {
    let best = known.best()?;
    Some(Reachability {
        peer,
        address: best.address.clone(),
        transport: best.transport,
        path: best.path,
        rtt: best.rtt,
    })
}
