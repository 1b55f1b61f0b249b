//! What `argus status` and `argus lookup` show: peers with their path, own addresses with the fix for
//! each that cannot be reached, the DHT.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use serde::{Serialize, Serializer};

/// How bytes travel to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportKind {
    Quic,
    Tcp,
    Memory,
    Other,
}

/// Whether bytes go through a third node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    Direct,
    Relayed,
}

impl TransportKind {
    /// By the first hop of the address.
    pub fn of(address: &Multiaddr) -> Self {
        for protocol in address.iter() {
            match protocol {
                Protocol::QuicV1 | Protocol::Quic => return TransportKind::Quic,
                Protocol::Tcp(_) => return TransportKind::Tcp,
                Protocol::Memory(_) => return TransportKind::Memory,
                Protocol::P2pCircuit => return TransportKind::Other,
                _ => {}
            }
        }
        TransportKind::Other
    }
}

impl PathKind {
    pub fn of(address: &Multiaddr) -> Self {
        if address.iter().any(|p| p == Protocol::P2pCircuit) { PathKind::Relayed } else { PathKind::Direct }
    }
}

/// The way to one peer, tried out.
#[derive(Clone, Debug, Serialize)]
pub struct Reachability {
    #[serde(serialize_with = "text")]
    pub peer: PeerId,
    /// The other end as this node sees it.
    pub address: Multiaddr,
    pub transport: TransportKind,
    pub path: PathKind,
    /// `None` when the peer did not answer the ping in time.
    #[serde(rename = "rtt_ms", serialize_with = "milliseconds")]
    pub rtt: Option<Duration>,
}

/// One connected peer.
#[derive(Clone, Debug, Serialize)]
pub struct PeerReport {
    #[serde(serialize_with = "text")]
    pub peer: PeerId,
    /// The best connection's other end.
    pub address: Multiaddr,
    pub transport: TransportKind,
    pub path: PathKind,
    pub connections: usize,
    #[serde(rename = "rtt_ms", serialize_with = "milliseconds")]
    pub rtt: Option<Duration>,
    /// What the peer says it runs.
    pub agent: Option<String>,
}

/// Whether others can reach this node at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum AddressStatus {
    /// Announced by the operator and taken as true.
    Announced,
    /// Another node dialled it with success.
    Confirmed,
    /// Held by a relay for us.
    Relayed,
    /// Another node tried and failed; what to do about it.
    Unreachable { fix: String },
    /// Nobody has tested it yet; why.
    Untested { note: String },
}

#[derive(Clone, Debug, Serialize)]
pub struct AddressReport {
    pub address: Multiaddr,
    #[serde(flatten)]
    pub status: AddressStatus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DhtMode {
    Server,
    Client,
}

#[derive(Clone, Debug, Serialize)]
pub struct DhtReport {
    pub mode: DhtMode,
    /// Peers in the routing table.
    pub peers: usize,
    /// Records stored here.
    pub records: usize,
    /// Nodes that took the own record when it was last published.
    pub published_on: Option<usize>,
}

/// Query streams open now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamReport {
    pub inbound: usize,
    pub outbound: usize,
}

/// The net as this node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    #[serde(serialize_with = "text")]
    pub peer: PeerId,
    pub peers: Vec<PeerReport>,
    pub listen: Vec<Multiaddr>,
    /// Addresses others are told, and whether they hold.
    pub external: Vec<AddressReport>,
    pub dht: DhtReport,
    pub streams: StreamReport,
    /// Peers blocked now, by settings or penalty.
    pub blocked: usize,
    /// What the operator should know and do; empty when all is well.
    pub advice: Vec<String>,
}

/// What an operator can do about an address that others cannot dial.
pub(super) fn fix(address: &Multiaddr) -> String {
    let port = address.iter().find_map(|p| match p {
        Protocol::Tcp(port) => Some(format!("TCP port {port}")),
        Protocol::Udp(port) => Some(format!("UDP port {port}")),
        _ => None,
    });
    match port {
        Some(port) => format!(
            "others could not connect: forward {port} on the router to this machine and allow it in the firewall, \
             or set `announce` if it is forwarded under another address"
        ),
        None => "others could not connect: set `announce` to an address that is reachable".into(),
    }
}

fn text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn milliseconds<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(time) => serializer.serialize_some(&(time.as_micros() as f64 / 1000.0)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_transports_are_read_off_addresses() {
        let peer = PeerId::random();
        let relayed: Multiaddr =
            format!("/ip4/1.2.3.4/udp/1/quic-v1/p2p/{peer}/p2p-circuit").parse().unwrap();
        assert_eq!(PathKind::of(&relayed), PathKind::Relayed);
        assert_eq!(TransportKind::of(&relayed), TransportKind::Quic);
        let tcp: Multiaddr = "/ip4/1.2.3.4/tcp/7".parse().unwrap();
        assert_eq!(PathKind::of(&tcp), PathKind::Direct);
        assert_eq!(TransportKind::of(&tcp), TransportKind::Tcp);
        assert!(fix(&tcp).contains("TCP port 7"));
    }
}
