//! What handles ask of the loop.

use std::time::Instant;

use argus_protocols::{Hotkey, VerifiedRecord, record};
use libp2p::{
    Multiaddr, PeerId,
    kad::{Mode, QueryId, Quorum, Record, RecordKey},
    swarm::DialError,
};
use tokio::sync::oneshot;

use super::{EventLoop, lookups::Waiter};
use crate::net::{
    DhtMode, DhtReport, LookupError, NetError, Snapshot, StreamReport, handle::Command, limits, unix_ms,
};

impl EventLoop {
    pub(super) fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Publish(record, reply) => {
                self.publisher.publish(*record, reply, now);
                self.publish_if_due(now);
            }
            Command::Lookup(hotkey, waiter) => self.lookup(hotkey, waiter, now),
            Command::Dial(peer, addresses, reply) => self.dial_for(peer, addresses, reply),
            Command::Reach(peer, reply) => self.peers.reach(peer, reply),
            Command::Report(peer, offence) => self.punish(peer, offence),
            Command::Snapshot(reply) => {
                let _ = reply.send(self.snapshot(now));
            }
        }
    }

    pub(super) fn lookup(&mut self, hotkey: Hotkey, waiter: Waiter, now: Instant) {
        let Some(waiter) = self.lookups.join(&hotkey, waiter) else {
            return;
        };
        let kad = &mut self.swarm.behaviour_mut().kad;
        let alone = kad.kbuckets().next().is_none();
        if alone {
            // Nobody to ask yet: what is kept here, else wait for somebody.
            match kad.store_mut().record(&hotkey) {
                Some(record) => {
                    let _ = waiter.send(Ok(record));
                }
                None => self.lookups.park(hotkey, waiter, now),
            }
            return;
        }
        let id = kad.get_record(RecordKey::new(&record::key(&hotkey)));
        self.lookups.begun(id, hotkey, waiter, now);
    }

    /// Ends a lookup and answers those who wait.
    pub(super) fn finish_lookup(&mut self, id: QueryId) {
        let now = Instant::now();
        let Some(hotkey) = self.lookups.hotkey(&id) else {
            return;
        };
        let kad = &mut self.swarm.behaviour_mut().kad;
        if let Some(mut query) = kad.query_mut(&id) {
            query.finish();
        }
        let own = kad.store_mut().record(&hotkey);
        let Some(ended) = self.lookups.end(&id, own, now) else {
            return;
        };
        match &ended.outcome {
            Ok(record) => {
                self.directory.learn(record, now);
                self.metrics.lookup("found");
            }
            Err(error) => self.metrics.lookup(LookupError::reason(error)),
        }
        ended.answer();
    }

    pub(super) fn publish_if_due(&mut self, now: Instant) {
        let Some(record) = self.publisher.due(now, unix_ms()) else {
            return;
        };
        let put = own_record(record);
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.store_mut().set_own(put.key.clone());
        // All: how many took it is told with the failure to reach all twenty.
        match kad.put_record(put, Quorum::All) {
            Ok(id) => self.publisher.putting(id, now),
            Err(_) => {
                let text = "this node keeps a newer one of the same hotkey; is another node using it?";
                self.publisher.failed(NetError::Record(text.into()), now);
            }
        }
    }

    fn dial_for(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        if self.peers.contains(&peer) {
            let _ = reply.send(Ok(()));
            return;
        }
        let waiting = self.dials.get(&peer).map_or(0, Vec::len);
        if waiting >= limits::WAITERS || self.dials.len() >= limits::WAITERS {
            let _ = reply.send(Err("too many dials at once".into()));
            return;
        }
        match self.dial(peer, addresses) {
            // Somebody is dialling already.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {
                self.dials.entry(peer).or_default().push(reply);
            }
            Err(error) => {
                let _ = reply.send(Err(error.to_string()));
            }
        }
    }

    fn snapshot(&mut self, now: Instant) -> Snapshot {
        let behaviour = self.swarm.behaviour_mut();
        let dht = DhtReport {
            mode: match behaviour.kad.mode() {
                Mode::Server => DhtMode::Server,
                Mode::Client => DhtMode::Client,
            },
            peers: behaviour.kad.kbuckets().map(|bucket| bucket.num_entries()).sum(),
            records: behaviour.kad.store_mut().len(),
            published_on: self.publisher.stored_on(),
        };
        let streams = StreamReport {
            inbound: self.admission.open_streams(),
            outbound: self.metrics.outbound_streams.get().max(0) as usize,
        };
        Snapshot {
            peer: *self.swarm.local_peer_id(),
            peers: self.peers.reports(),
            listen: self.addresses.listen(),
            external: self.addresses.reports(now),
            dht,
            streams,
            blocked: self.swarm.behaviour().blocked.blocked_peers().len(),
            advice: self.advice(),
        }
    }
}

fn own_record(record: &VerifiedRecord) -> Record {
    Record::new(RecordKey::new(&record.key()), record.signed().to_bytes())
}
