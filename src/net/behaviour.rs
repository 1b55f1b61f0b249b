//! What the swarm does, in one struct: discovery, reachability, relays, gossip, queries, limits.

use std::{num::NonZeroUsize, time::Duration};

use argus_protocols::record::KAD_PROTOCOL;
use libp2p::{
    PeerId, StreamProtocol,
    allow_block_list::{self, AllowedPeers, BlockedPeers},
    autonat,
    connection_limits::{self, ConnectionLimits},
    dcutr, identify,
    identity::Keypair,
    kad, memory_connection_limits, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{Dht, NetError, Settings, gossip, record_store::VerifiedStore, stream};

/// What this node says it runs.
pub(super) const AGENT: &str = concat!("argus/", env!("CARGO_PKG_VERSION"));
/// The family of protocols that identify names.
const FAMILY: &str = "/argus/1";

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) memory: Toggle<memory_connection_limits::Behaviour>,
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) allowed: Toggle<allow_block_list::Behaviour<AllowedPeers>>,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) kad: kad::Behaviour<VerifiedStore>,
    pub(super) gossip: gossip::Behaviour,
    pub(super) queries: stream::Behaviour,
    pub(super) relay_client: relay::client::Behaviour,
    pub(super) dcutr: dcutr::Behaviour,
    pub(super) reachability: autonat::v2::client::Behaviour,
    pub(super) relay_server: Toggle<relay::Behaviour>,
    pub(super) reachability_server: Toggle<autonat::v2::server::Behaviour>,
}

impl Behaviour {
    pub(super) fn new(
        settings: &Settings,
        key: &Keypair,
        store: VerifiedStore,
        queries: stream::Behaviour,
        relay_client: relay::client::Behaviour,
    ) -> Result<Self, NetError> {
        let peer = key.public().to_peer_id();
        let limits = &settings.limits;
        let memory = (limits.memory_mib > 0)
            .then(|| memory_connection_limits::Behaviour::with_max_bytes(limits.memory_mib << 20));
        let mut blocked = allow_block_list::Behaviour::default();
        for peer in &settings.blocked_peers {
            blocked.block_peer(*peer);
        }
        let allowed = (!settings.allowed_peers.is_empty()).then(|| {
            let mut allowed = allow_block_list::Behaviour::default();
            for peer in &settings.allowed_peers {
                allowed.allow_peer(*peer);
            }
            allowed
        });
        let identify = identify::Config::new(FAMILY.into(), key.public())
            .with_agent_version(AGENT.into())
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        let server = settings.relay_server;
        Ok(Self {
            limits: connection_limits::Behaviour::new(connections(settings)),
            memory: memory.into(),
            blocked,
            allowed: allowed.into(),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new()),
            kad: kademlia(peer, store, settings.dht),
            gossip: gossip::behaviour(key)?,
            queries,
            relay_client,
            dcutr: dcutr::Behaviour::new(peer),
            reachability: autonat::v2::client::Behaviour::default(),
            relay_server: server.then(|| relay_server(peer, settings)).into(),
            reachability_server: server.then(autonat::v2::server::Behaviour::default).into(),
        })
    }
}

fn connections(settings: &Settings) -> ConnectionLimits {
    let limits = &settings.limits;
    ConnectionLimits::default()
        .with_max_established(Some(limits.connections))
        .with_max_established_per_peer(Some(limits.connections_per_peer))
        .with_max_pending_incoming(Some(limits.pending_connections))
        .with_max_pending_outgoing(Some(limits.pending_connections))
}

fn kademlia(peer: PeerId, store: VerifiedStore, dht: Dht) -> kad::Behaviour<VerifiedStore> {
    let mut config = kad::Config::new(StreamProtocol::new(KAD_PROTOCOL));
    config
        .set_query_timeout(Duration::from_secs(10))
        .set_substreams_timeout(Duration::from_secs(5))
        .set_parallelism(NonZeroUsize::new(5).expect("5 > 0"))
        // Records come to the event loop first: it verifies them and knows who sent them.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_caching(kad::Caching::Disabled)
        .set_record_ttl(Some(Duration::from_millis(argus_protocols::limits::RECORD_LIFETIME_MS)))
        .set_replication_interval(Some(Duration::from_secs(60 * 60)))
        // The event loop publishes the own record; provider records are not used.
        .set_publication_interval(None)
        .set_provider_publication_interval(None);
    let mut kad = kad::Behaviour::with_config(peer, store, config);
    // Never by Kademlia's own judgement, for which a relay's address is as good as an own one.
    kad.set_mode(Some(match dht {
        Dht::Server => kad::Mode::Server,
        Dht::Auto | Dht::Client => kad::Mode::Client,
    }));
    kad
}

fn relay_server(peer: PeerId, settings: &Settings) -> relay::Behaviour {
    let limits = &settings.limits;
    let config = relay::Config {
        max_reservations: limits.relay_reservations,
        max_circuits: limits.relay_circuits,
        max_circuit_bytes: limits.relay_circuit_bytes,
        max_circuit_duration: Duration::from_secs(limits.relay_circuit_secs),
        ..relay::Config::default()
    };
    relay::Behaviour::new(peer, config)
}
