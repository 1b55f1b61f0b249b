//! What the net keeps over a restart: verified records and peers met with success.
//!
//! The node implements [`Persist`] over its store. Reads happen once, at start; writes come from a thread
//! of their own behind a bounded queue, so that a slow or full disk never holds up the event loop. What
//! is lost when that queue is full is counted, and comes back with the next record or connection.

use std::{collections::HashMap, sync::Arc};

use libp2p::{Multiaddr, PeerId};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::limits;

/// A peer that was connected with success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    #[serde(with = "as_text")]
    pub peer: PeerId,
    /// The address that worked last comes first. Without the `/p2p` part.
    pub addresses: Vec<Multiaddr>,
    /// Unix milliseconds of the last success.
    pub seen_at_ms: u64,
}

/// Where records and peers are kept. Failures are the implementation's to log: the net works without.
pub trait Persist: Send + Sync + 'static {
    /// Every stored record, as [`argus_protocols::SignedRecord`] bytes. They are verified again.
    fn records(&self) -> Vec<Vec<u8>>;
    /// `key` is [`argus_protocols::record::key`].
    fn put_record(&self, key: [u8; 32], signed: &[u8]);
    fn remove_record(&self, key: [u8; 32]);
    fn peers(&self) -> Vec<KnownPeer>;
    fn put_peer(&self, peer: &KnownPeer);
    fn remove_peer(&self, peer: &PeerId);
}

/// Keeps everything in memory: for tests, and for commands that join a network for a moment.
#[derive(Default)]
pub struct InMemory {
    records: Mutex<HashMap<[u8; 32], Vec<u8>>>,
    peers: Mutex<HashMap<PeerId, KnownPeer>>,
}

impl Persist for InMemory {
    fn records(&self) -> Vec<Vec<u8>> {
        self.records.lock().values().cloned().collect()
    }

    fn put_record(&self, key: [u8; 32], signed: &[u8]) {
        self.records.lock().insert(key, signed.to_vec());
    }

    fn remove_record(&self, key: [u8; 32]) {
        self.records.lock().remove(&key);
    }

    fn peers(&self) -> Vec<KnownPeer> {
        self.peers.lock().values().cloned().collect()
    }

    fn put_peer(&self, peer: &KnownPeer) {
        self.peers.lock().insert(peer.peer, peer.clone());
    }

    fn remove_peer(&self, peer: &PeerId) {
        self.peers.lock().remove(peer);
    }
}

pub(super) enum Write {
    PutRecord([u8; 32], Vec<u8>),
    RemoveRecord([u8; 32]),
    PutPeer(KnownPeer),
    RemovePeer(PeerId),
}

/// The bounded way to the thread that writes. The thread ends, with everything written, when the last
/// clone is dropped.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Write>,
    dropped: Counter,
}

impl Writer {
    /// `dropped` counts writes lost to a full queue.
    pub(super) fn spawn(persist: Arc<dyn Persist>, dropped: Counter) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, mut writes) = mpsc::channel(limits::PERSIST_QUEUE);
        let task = tokio::task::spawn_blocking(move || {
            while let Some(write) = writes.blocking_recv() {
                match write {
                    Write::PutRecord(key, signed) => persist.put_record(key, &signed),
                    Write::RemoveRecord(key) => persist.remove_record(key),
                    Write::PutPeer(peer) => persist.put_peer(&peer),
                    Write::RemovePeer(peer) => persist.remove_peer(&peer),
                }
            }
        });
        (Self { queue, dropped }, task)
    }

    pub(super) fn write(&self, write: Write) {
        if self.queue.try_send(write).is_err() {
            self.dropped.inc();
        }
    }
}

/// Peer ids as text.
mod as_text {
    use libp2p::PeerId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(peer: &PeerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(peer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerId, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|e| D::Error::custom(format!("not a peer id: {e}")))
    }
}
