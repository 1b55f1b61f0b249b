//! The event loop: sole owner of the swarm.
//!
//! `select` one thing, apply it, repeat. Applying never awaits: it changes tables, calls into the swarm,
//! answers callers whose channels never block. The tables ([`peers`], [`lookups`], [`publisher`],
//! [`addresses`]) are state machines of their own that take the clock as an argument.

use std::{collections::HashMap, sync::Arc, time::Instant};

use argus_protocols::HotkeyPair;
use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    metrics::{Metrics as Libp2pMetrics, Recorder as _},
    swarm,
};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Event, Handle, InboundQuery, NetError, NodeKey, Offence, Persist, Settings,
    address_book::{AddressBook, Rejoin},
    behaviour::Behaviour,
    directory::Directory,
    handle::{Command, Inner},
    limits,
    metrics::Metrics,
    penalties::{Complaints, Penalties, Verdict},
    persist::Writer,
    record_store::VerifiedStore,
    relays::Relays,
    stream::{self, Admission, Asker, Links},
    transport, unix_ms,
};
use addresses::Addresses;
use lookups::Lookups;
use peers::Peers;
use publisher::Publisher;

mod addresses;
mod commands;
mod lookups;
mod peers;
mod publisher;
mod swarm_events;

/// A running net.
pub struct Net {
    pub handle: Handle,
    pub events: mpsc::Receiver<Event>,
    /// Queries that passed every check of the net. Not taking them answers `busy` to the askers.
    pub queries: mpsc::Receiver<InboundQuery>,
    /// Ends after `shutdown` is cancelled, with everything closed and written; earlier only on failure.
    pub task: JoinHandle<Result<(), NetError>>,
}

/// Starts the net; must be called within a tokio runtime. Without a hotkey (a relay) queries are neither
/// sent nor answered.
pub fn start(
    settings: Settings,
    node_key: NodeKey,
    hotkey: Option<Arc<HotkeyPair>>,
    netuid: u16,
    persist: Arc<dyn Persist>,
    registry: &mut Registry,
    shutdown: CancellationToken,
) -> Result<Net, NetError> {
    settings.validate()?;
    let metrics = Metrics::new(registry);
    let libp2p_metrics = Libp2pMetrics::new(registry);
    let peer = node_key.peer();
    let (command_sender, commands) = mpsc::channel(limits::COMMANDS);
    let (event_sender, events) = mpsc::channel(limits::EVENTS);
    let (query_sender, queries) = mpsc::channel(limits::INBOUND_QUERIES);
    let (complaints, offences) = Complaints::new(metrics.clone());

    let (records, known) = (persist.records(), persist.peers());
    let (writer, writing) = Writer::spawn(persist, metrics.persist_dropped.clone());
    let store = VerifiedStore::load(peer, settings.limits.records, records, writer.clone());
    let book = AddressBook::load(known, writer, unix_ms());

    let links = Links::default();
    let admission = Admission::new(
        peer,
        hotkey.clone(),
        netuid,
        &settings.limits,
        query_sender,
        complaints.clone(),
        metrics.clone(),
    );
    let streams = stream::Behaviour::new(links.clone(), admission.clone());
    let swarm = swarm(&settings, &node_key, store, streams)?;
    let directory = Arc::new(Directory::default());
    let now = Instant::now();
    let mut event_loop = EventLoop {
        rejoin: Rejoin::new(&settings.bootstrap, peer, now),
        addresses: Addresses::new(&settings, now),
        settings,
        swarm,
        commands,
        offences,
        events: event_sender,
        metrics: metrics.clone(),
        libp2p_metrics,
        directory: directory.clone(),
        admission,
        book,
        peers: Peers::default(),
        lookups: Lookups::default(),
        publisher: Publisher::default(),
        penalties: Penalties::default(),
        relays: Relays::default(),
        dials: HashMap::new(),
        advised: None,
    };
    event_loop.listen()?;
    let asker = Asker { peer, hotkey, netuid, links, complaints, metrics };
    let handle = Handle(Arc::new(Inner { peer, commands: command_sender, directory, asker }));
    let task = tokio::spawn(async move {
        event_loop.run(shutdown).await;
        // The loop was the last to write: what is queued reaches the disk now.
        drop(event_loop);
        writing.await.map_err(|error| NetError::Failed(format!("the writer of records failed: {error}")))
    });
    Ok(Net { handle, events, queries, task })
}

fn swarm(
    settings: &Settings,
    node_key: &NodeKey,
    store: VerifiedStore,
    streams: stream::Behaviour,
) -> Result<Swarm<Behaviour>, NetError> {
    let key = node_key.keypair();
    let (relay_transport, relay_client) = libp2p::relay::client::new(node_key.peer());
    let transport = transport::build(key, relay_transport)?;
    let behaviour = Behaviour::new(settings, key, store, streams, relay_client)?;
    let config = swarm::Config::with_tokio_executor()
        .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy)
        .with_max_negotiating_inbound_streams(limits::NEGOTIATING_STREAMS)
        .with_idle_connection_timeout(limits::IDLE_CONNECTION);
    Ok(Swarm::new(transport, behaviour, node_key.peer(), config))
}

/// Callers waiting for a connection with a peer.
type DialWaiters = Vec<oneshot::Sender<Result<(), String>>>;

pub(super) struct EventLoop {
    settings: Settings,
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    offences: mpsc::Receiver<(PeerId, Offence)>,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    libp2p_metrics: Libp2pMetrics,
    directory: Arc<Directory>,
    admission: Admission,
    book: AddressBook,
    rejoin: Rejoin,
    peers: Peers,
    lookups: Lookups,
    publisher: Publisher,
    addresses: Addresses,
    penalties: Penalties,
    relays: Relays,
    dials: HashMap<PeerId, DialWaiters>,
    /// When it was last said that the node is alone.
    advised: Option<Instant>,
}

impl EventLoop {
    fn listen(&mut self) -> Result<(), NetError> {
        for address in self.settings.listen.clone() {
            if let Err(error) = self.swarm.listen_on(address.clone()) {
                // Machines without IPv6 are common, and the others may do.
                if is_ipv6(&address) {
                    tracing::warn!(%address, %error, "not listening on this address");
                    continue;
                }
                return Err(NetError::Listen { address, cause: error.to_string() });
            }
        }
        for address in self.settings.announce.clone() {
            self.swarm.add_external_address(address);
        }
        self.choose_dht_mode();
        Ok(())
    }

    async fn run(&mut self, shutdown: CancellationToken) {
        let mut ticks = interval(limits::TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut handles = true;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = self.swarm.select_next_some() => {
                    self.libp2p_metrics.record(&event);
                    self.on_swarm_event(event);
                }
                command = self.commands.recv(), if handles => match command {
                    Some(command) => self.on_command(command),
                    // Nobody holds a handle; a relay lives on.
                    None => handles = false,
                },
                Some((peer, offence)) = self.offences.recv() => self.punish(peer, offence),
                _ = ticks.tick() => self.on_tick(Instant::now()),
            }
        }
        self.close().await;
    }

    fn on_tick(&mut self, now: Instant) {
        self.dial_known(true, now);
        for peer in self.penalties.released(now) {
            if !self.settings.blocked_peers.contains(&peer) {
                self.swarm.behaviour_mut().blocked.unblock_peer(peer);
            }
        }
        for id in self.lookups.overdue(now) {
            self.finish_lookup(id);
        }
        self.publish_if_due(now);
        self.dials.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
        self.tend_relays(now);
        self.tell_addresses(now);
        self.advise(now);
        if self.lookups.hourly(now) {
            self.swarm.behaviour_mut().kad.store_mut().expire();
        }
    }

    /// Dials peers known from before, while there are few connections.
    fn dial_known(&mut self, begin_more: bool, now: Instant) {
        let connections = self.peers.len();
        let peers = &self.peers;
        let dials = self.rejoin.next(&self.book, |peer| peers.contains(peer), connections, begin_more, now);
        for dial in dials {
            if let Err(error) = self.dial(dial.peer, dial.addresses) {
                tracing::debug!(peer = %dial.peer, %error, "not dialling");
                self.rejoin.ended(&dial.peer);
            }
        }
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) -> Result<(), swarm::DialError> {
        use swarm::dial_opts::{DialOpts, PeerCondition};
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        self.swarm.dial(options)
    }

    /// Counts an offence against a peer.
    fn punish(&mut self, peer: PeerId, offence: Offence) {
        match self.penalties.add(peer, offence, Instant::now()) {
            Verdict::Tolerate(points) => {
                tracing::debug!(%peer, offence = offence.label(), points, "offence");
                self.swarm.behaviour_mut().gossip.set_application_score(&peer, -points);
            }
            Verdict::Blocked => {}
            Verdict::Block(time) => {
                tracing::warn!(%peer, offence = offence.label(), ?time, "peer blocked for its offences");
                self.metrics.blocks.inc();
                self.swarm.behaviour_mut().blocked.block_peer(peer);
            }
        }
    }

    fn emit(&mut self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.metrics.dropped("event");
        }
    }

    /// Says what is wrong and what to do, when the node is alone, once a minute.
    fn advise(&mut self, now: Instant) {
        let quiet = self.advised.is_some_and(|at| now.saturating_duration_since(at) < limits::REDIAL_LAST);
        if quiet || self.addresses.age(now) < limits::REDIAL_FIRST * 5 {
            return;
        }
        for advice in self.advice() {
            self.advised = Some(now);
            tracing::warn!("{advice}");
        }
    }

    fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        if self.peers.is_empty() {
            let known = self.book.newest_first().len();
            advice.push(if self.rejoin.has_bootstrap() || known > 0 {
                format!(
                    "no peer is connected; still trying the bootstrap list and {known} known peers. Is this \
                     machine online, and do the bootstrap addresses still hold?"
                )
            } else if self.settings.relay_server {
                "no peer is connected; others join with the addresses this node printed".to_owned()
            } else {
                "no peer is connected and no bootstrap address is set: set `bootstrap` to the address of a \
                 running node"
                    .to_owned()
            });
        }
        if self.settings.relay_server && !self.addresses.reachable() {
            advice.push(
                "this relay has no address that others are known to reach, so it cannot give reservations: set \
                 `announce` to its public address, or `dht = \"server\"` if it is public where it listens"
                    .to_owned(),
            );
        }
        advice
    }

    /// Closes every connection, for a bounded time.
    async fn close(&mut self) {
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closing = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.next().await;
            }
        };
        if timeout(limits::CLOSE, closing).await.is_err() {
            tracing::debug!("not every connection closed in time");
        }
    }
}

fn is_ipv6(address: &Multiaddr) -> bool {
    use libp2p::multiaddr::Protocol;
    matches!(address.iter().next(), Some(Protocol::Ip6(_)))
}
