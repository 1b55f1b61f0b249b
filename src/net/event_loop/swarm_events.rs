//! What the swarm reports.

use std::time::Instant;

use argus_protocols::{SignedRecord, record};
use libp2p::{
    Multiaddr, PeerId, autonat, dcutr, identify,
    kad::{self, GetRecordOk, InboundRequest, PeerRecord, PutRecordError, QueryResult},
    metrics::Recorder as _,
    multiaddr::Protocol,
    ping, relay,
    swarm::SwarmEvent,
};

use super::EventLoop;
use crate::net::{
    Dht, Event, Offence, PathKind, behaviour::BehaviourEvent, record_store::Fate, relays::Action, unix_ms,
};

/// The protocol by which relays are asked for circuits.
const RELAY_HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";

impl EventLoop {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event, now),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let first = self.peers.connected(peer_id, connection_id, &endpoint);
                self.rejoin.ended(&peer_id);
                if endpoint.is_dialer() {
                    let address = endpoint.get_remote_address().clone();
                    self.book.seen(peer_id, &[address], unix_ms());
                }
                if let Some(waiters) = self.dials.remove(&peer_id) {
                    waiters.into_iter().for_each(|waiter| {
                        let _ = waiter.send(Ok(()));
                    });
                }
                if first {
                    self.emit(Event::PeerConnected(peer_id));
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                let last = self.peers.disconnected(&peer_id, connection_id);
                if last {
                    self.relays.disconnected(&peer_id);
                    self.emit(Event::PeerDisconnected(peer_id));
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                tracing::debug!(%peer, %error, "dial failed");
                self.rejoin.ended(&peer);
                if !self.peers.contains(&peer)
                    && let Some(waiters) = self.dials.remove(&peer)
                {
                    let cause = error.to_string();
                    waiters.into_iter().for_each(|waiter| {
                        let _ = waiter.send(Err(cause.clone()));
                    });
                }
                self.dial_known(false, now);
            }
            SwarmEvent::NewListenAddr { address, .. } => self.on_listening(address, now),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.addresses.not_listening(&address, now);
                if self.settings.dht == Dht::Server {
                    self.swarm.remove_external_address(&address);
                }
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                let relayed = self.relays.closed(listener_id, now);
                if !relayed {
                    tracing::warn!(?addresses, ?reason, "no longer listening");
                }
                for address in &addresses {
                    self.addresses.not_listening(address, now);
                }
            }
            SwarmEvent::ExternalAddrConfirmed { address } => {
                let before = self.addresses.reachable();
                self.addresses.confirmed(address, now);
                self.reachability_changed(before);
            }
            SwarmEvent::ExternalAddrExpired { address } => {
                let before = self.addresses.reachable();
                self.addresses.expired(&address, now);
                self.reachability_changed(before);
            }
            _ => {}
        }
    }

    fn on_listening(&mut self, address: Multiaddr, now: Instant) {
        tracing::info!(address = %address.clone().with(Protocol::P2p(*self.swarm.local_peer_id())), "listening");
        if self.settings.dht == Dht::Server && PathKind::of(&address) == PathKind::Direct {
            // The operator says that this node can be reached where it listens.
            self.swarm.add_external_address(address.clone());
        }
        self.addresses.listening(address, now);
    }

    fn reachability_changed(&mut self, before: bool) {
        let reachable = self.addresses.reachable();
        if reachable != before {
            tracing::info!(reachable, "reachability from outside changed");
            self.choose_dht_mode();
            self.emit(Event::Reachable(reachable));
        }
    }

    /// A node that others cannot reach would slow their lookups down: it is a client.
    pub(super) fn choose_dht_mode(&mut self) {
        let server = match self.settings.dht {
            Dht::Server => true,
            Dht::Client => false,
            Dht::Auto => self.addresses.reachable(),
        };
        let mode = if server { kad::Mode::Server } else { kad::Mode::Client };
        self.swarm.behaviour_mut().kad.set_mode(Some(mode));
    }

    pub(super) fn tell_addresses(&mut self, now: Instant) {
        if let Some(addresses) = self.addresses.take_news(now) {
            self.emit(Event::AddressesChanged(addresses));
        }
    }

    /// Keeps reservations with relays while they are of use.
    pub(super) fn tend_relays(&mut self, now: Instant) {
        let wanted = self.settings.use_relays
            && !self.settings.relay_server
            && !self.addresses.reachable()
            && self.addresses.age(now) >= self.settings.relay_after();
        for action in self.relays.next(wanted, now) {
            match action {
                Action::Listen(peer, circuit) => {
                    let listener = self.swarm.listen_on(circuit).ok();
                    self.relays.listening(&peer, listener, now);
                }
                Action::Stop(listener) => {
                    self.swarm.remove_listener(listener);
                }
            }
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Identify(event) => {
                self.libp2p_metrics.record(&event);
                if let identify::Event::Received { peer_id, info, .. } = event {
                    self.on_identified(peer_id, &info, now);
                }
            }
            BehaviourEvent::Ping(event) => {
                self.libp2p_metrics.record(&event);
                let ping::Event { peer, connection, result } = event;
                if let Ok(rtt) = result {
                    self.peers.pinged(&peer, connection, rtt);
                }
            }
            BehaviourEvent::Kad(event) => {
                self.libp2p_metrics.record(&event);
                self.on_kad_event(event, now);
            }
            BehaviourEvent::Gossip(event) => self.libp2p_metrics.record(&event),
            BehaviourEvent::Dcutr(event) => {
                self.libp2p_metrics.record(&event);
                let dcutr::Event { remote_peer_id, result } = event;
                match result {
                    Ok(_) => {
                        tracing::info!(peer = %remote_peer_id, "hole punched: the connection is direct now")
                    }
                    Err(error) => {
                        tracing::debug!(peer = %remote_peer_id, %error, "hole punching failed");
                    }
                }
            }
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                renewal,
                ..
            }) => {
                self.relays.accepted(&relay_peer_id);
                if !renewal {
                    tracing::info!(relay = %relay_peer_id, "reachable through a relay");
                }
            }
            BehaviourEvent::RelayServer(event) => self.libp2p_metrics.record(&event),
            BehaviourEvent::Reachability(autonat::v2::client::Event {
                tested_addr,
                result: Err(error),
                ..
            }) => {
                tracing::debug!(address = %tested_addr, %error, "not reachable from outside");
                self.addresses.failed(tested_addr, now);
            }
            _ => {}
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: &identify::Info, now: Instant) {
        self.peers.identified(&peer, &info.agent_version);
        let connected: Vec<_> = self.peers.addresses(&peer).cloned().collect();
        let near = connected.iter().any(is_near);
        // A stranger's loopback address leads to this machine.
        let listening: Vec<_> = info
            .listen_addrs
            .iter()
            .filter(|address| near || !is_near(address))
            .take(crate::net::limits::BOOK_ADDRESSES)
            .cloned()
            .collect();
        let speaks = |name: &str| info.protocols.iter().any(|protocol| protocol.as_ref() == name);
        if speaks(record::KAD_PROTOCOL) {
            for address in &listening {
                let kad = &mut self.swarm.behaviour_mut().kad;
                kad.add_address(&peer, address.clone());
            }
        }
        if speaks(RELAY_HOP) {
            for address in listening.iter().chain(&connected) {
                self.relays.candidate(peer, &without_peer(address), now);
            }
        }
        self.book.seen(peer, &listening, unix_ms());
    }

    fn on_kad_event(&mut self, event: kad::Event, now: Instant) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => match result {
                QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => {
                    self.on_found(id, found, now);
                    if step.last {
                        self.finish_lookup(id);
                    }
                }
                QueryResult::GetRecord(_) if step.last => self.finish_lookup(id),
                QueryResult::PutRecord(result) => {
                    let stored_on = match result {
                        Ok(_) => kad::K_VALUE.get(),
                        Err(
                            PutRecordError::QuorumFailed { success, .. }
                            | PutRecordError::Timeout { success, .. },
                        ) => success.len(),
                    };
                    self.publisher.put(&id, stored_on, now);
                }
                _ => {}
            },
            kad::Event::InboundRequest {
                request: InboundRequest::PutRecord { source, record: Some(record), .. },
            } => self.on_record_sent(source, &record, now),
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => {
                self.publisher.new_peer(now);
                for (hotkey, waiter) in self.lookups.unpark() {
                    self.lookup(hotkey, waiter, now);
                }
            }
            _ => {}
        }
    }

    /// A node answered a lookup.
    fn on_found(&mut self, id: kad::QueryId, found: PeerRecord, now: Instant) {
        let Some(hotkey) = self.lookups.hotkey(&id) else {
            return;
        };
        let verified = SignedRecord::from_bytes(&found.record.value)
            .ok()
            .and_then(|signed| signed.verify(unix_ms()).ok())
            .filter(|record| record.hotkey == hotkey);
        match (verified, found.peer) {
            (Some(record), _) => {
                if self.lookups.answered(&id, record, now) {
                    self.finish_lookup(id);
                }
            }
            (None, peer) => {
                self.metrics.record("bad_answer");
                if let Some(peer) = peer {
                    self.metrics.offence(Offence::BadRecord.label());
                    self.punish(peer, Offence::BadRecord);
                }
            }
        }
    }

    /// A node wants a record to be kept here.
    fn on_record_sent(&mut self, source: PeerId, record: &kad::Record, now: Instant) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let fate = kad.store_mut().receive(&record.key, &record.value);
        self.metrics.record(fate.label());
        if let Fate::Stored(verified) = &fate {
            self.directory.refresh(verified, now);
        }
        if fate.is_offence() {
            self.metrics.offence(Offence::BadRecord.label());
            self.punish(source, Offence::BadRecord);
        }
    }
}

/// Whether an address leads to this very machine.
fn is_near(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        Some(Protocol::Memory(_)) => true,
        _ => false,
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|protocol| !matches!(protocol, Protocol::P2p(_))).collect()
}
