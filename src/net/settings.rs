//! Settings of the net: what the configuration file, environment and flags may say.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use serde::{Deserialize, Serialize};

use super::NetError;

/// Whether this node stores DHT records for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dht {
    /// A server once an address is known to be reachable (announced, or confirmed by others), else a client.
    #[default]
    Auto,
    /// Always a server: for public nodes, and for networks on one machine or behind one switch.
    Server,
    /// Never a server.
    Client,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Addresses to listen on. Port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// Addresses at which this node is reachable from outside, when it cannot see that itself (a forwarded
    /// port, a load balancer). Taken as true, so that the node serves the DHT at once.
    pub announce: Vec<Multiaddr>,
    /// Nodes to join by, each ending in `/p2p/<peer id>`. Peers met before are kept and tried as well.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether this node stores records of others.
    pub dht: Dht,
    /// Relay connections of nodes behind NAT, and test the reachability of others.
    pub relay_server: bool,
    /// Keep reservations with relays while this node is not reachable from outside.
    pub use_relays: bool,
    /// Seconds to wait for proof of reachability before a relay is used.
    pub relay_after_secs: u64,
    pub limits: Limits,
    /// Peers never talked to.
    #[serde(with = "peers")]
    pub blocked_peers: Vec<PeerId>,
    /// When not empty: the only peers talked to.
    #[serde(with = "peers")]
    pub allowed_peers: Vec<PeerId>,
}

/// What this node is willing to carry. Limits of the wire itself are in `argus_protocols::limits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in all.
    pub connections: u32,
    /// Connections with one peer (TCP, QUIC, relayed and direct during hole punching).
    pub connections_per_peer: u32,
    /// Connections being set up, each way.
    pub pending_connections: u32,
    /// Inbound query streams in all, and from one peer.
    pub inbound_queries: usize,
    pub inbound_queries_per_peer: usize,
    /// Memory of the whole process above which no new connection is taken, in MiB. 0 is no limit.
    pub memory_mib: usize,
    /// Records stored for others.
    pub records: usize,
    /// Relay server: reservations, and circuits at once.
    pub relay_reservations: usize,
    pub relay_circuits: usize,
    /// Relay server: bytes and seconds a circuit may last.
    pub relay_circuit_bytes: u64,
    pub relay_circuit_secs: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let any = |text: &str| text.parse().expect("a constant address parses");
        Self {
            listen: vec![
                any("/ip4/0.0.0.0/udp/4600/quic-v1"),
                any("/ip4/0.0.0.0/tcp/4600"),
                any("/ip6/::/udp/4600/quic-v1"),
                any("/ip6/::/tcp/4600"),
            ],
            announce: Vec::new(),
            bootstrap: Vec::new(),
            dht: Dht::Auto,
            relay_server: false,
            use_relays: true,
            relay_after_secs: 15,
            limits: Limits::default(),
            blocked_peers: Vec::new(),
            allowed_peers: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_peer: 4,
            pending_connections: 128,
            inbound_queries: 1024,
            inbound_queries_per_peer: 512,
            memory_mib: 0,
            records: 8192,
            relay_reservations: 1024,
            relay_circuits: 256,
            relay_circuit_bytes: 64 * 1024 * 1024,
            relay_circuit_secs: 600,
        }
    }
}

impl Settings {
    /// Says what is wrong and what to write instead.
    pub fn validate(&self) -> Result<(), NetError> {
        let fail = |text: String| Err(NetError::Settings(text));
        for address in &self.bootstrap {
            if !matches!(address.iter().last(), Some(Protocol::P2p(_))) {
                return fail(format!(
                    "bootstrap address {address} does not end in /p2p/<peer id>; copy it as the other node prints it"
                ));
            }
        }
        for address in &self.announce {
            let unspecified = address.iter().any(|p| match p {
                Protocol::Ip4(ip) => ip.is_unspecified(),
                Protocol::Ip6(ip) => ip.is_unspecified(),
                Protocol::Tcp(port) | Protocol::Udp(port) => port == 0,
                _ => false,
            });
            if unspecified {
                return fail(format!(
                    "announce address {address} names no place that others can reach; write the public address and port"
                ));
            }
        }
        let limits = &self.limits;
        let zero = [
            ("connections", limits.connections as usize),
            ("connections_per_peer", limits.connections_per_peer as usize),
            ("pending_connections", limits.pending_connections as usize),
            ("inbound_queries", limits.inbound_queries),
            ("inbound_queries_per_peer", limits.inbound_queries_per_peer),
            ("records", limits.records),
        ];
        if let Some((name, _)) = zero.iter().find(|(_, value)| *value == 0) {
            return fail(format!("limits.{name} is 0: nothing would work; leave it out for the default"));
        }
        Ok(())
    }

    pub(super) fn relay_after(&self) -> Duration {
        Duration::from_secs(self.relay_after_secs)
    }
}

/// Peer ids as text.
mod peers {
    use libp2p::PeerId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(peers: &[PeerId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(peers.iter().map(PeerId::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PeerId>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| text.parse().map_err(|e| D::Error::custom(format!("{text:?} is not a peer id: {e}"))))
            .collect()
    }
}
