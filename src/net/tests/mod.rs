//! Whole nets in one process: the production configuration on the memory transport, TCP and QUIC.

use std::{sync::Arc, time::Duration};

use argus_protocols::{Answer, HotkeyPair, Record, Role, SignedRecord, TaskKind, query::Deadlines};
use bytes::Bytes;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Dht, Event, Handle, InMemory, InboundQuery, Net, NodeKey, OutgoingQuery, Persist, Settings, Snapshot,
    start, unix_ms,
};

mod joining;
mod queries;
mod records;
mod relaying;

/// Longer than anything takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Node {
    pub(super) handle: Handle,
    pub(super) hotkey: Arc<HotkeyPair>,
    pub(super) queries: mpsc::Receiver<InboundQuery>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) registry: Registry,
    address: Multiaddr,
    net: tokio::task::JoinHandle<Result<(), super::NetError>>,
    shutdown: CancellationToken,
}

/// How to make a node.
pub(super) struct Recipe {
    pub(super) settings: Settings,
    pub(super) key: NodeKey,
    pub(super) hotkey: Arc<HotkeyPair>,
    pub(super) persist: Arc<dyn Persist>,
}

impl Recipe {
    pub(super) fn new(listen: &str) -> Self {
        Self {
            settings: Settings {
                listen: vec![listen.parse().unwrap()],
                dht: Dht::Server,
                ..Settings::default()
            },
            key: NodeKey::generate(),
            hotkey: Arc::new(HotkeyPair::generate()),
            persist: Arc::new(InMemory::default()),
        }
    }

    pub(super) fn memory() -> Self {
        Self::new("/memory/0")
    }

    pub(super) fn joins(mut self, other: &Node) -> Self {
        self.settings.bootstrap.push(other.dialable());
        self
    }

    pub(super) async fn start(self) -> Node {
        let mut registry = Registry::default();
        let shutdown = CancellationToken::new();
        let listens = self.settings.listen.len();
        let Net { handle, events, queries, task } = start(
            self.settings,
            self.key,
            Some(self.hotkey.clone()),
            1,
            self.persist,
            &mut registry,
            shutdown.clone(),
        )
        .unwrap();
        let mut node = Node {
            handle,
            hotkey: self.hotkey,
            queries,
            events,
            registry,
            address: Multiaddr::empty(),
            net: task,
            shutdown,
        };
        let up = node.until("it listens", |snapshot| snapshot.listen.len() >= listens).await;
        node.address = up.listen.into_iter().next().unwrap_or(Multiaddr::empty());
        node
    }
}

impl Node {
    pub(super) fn peer(&self) -> PeerId {
        self.handle.peer()
    }

    /// Its first listen address, with its peer id.
    pub(super) fn dialable(&self) -> Multiaddr {
        self.address.clone().with(Protocol::P2p(self.peer()))
    }

    /// Waits for a condition on the snapshot.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let begun = tokio::time::Instant::now();
        loop {
            let snapshot = self.handle.snapshot().await.unwrap();
            if holds(&snapshot) {
                return snapshot;
            }
            assert!(begun.elapsed() < PATIENCE, "still not: {what}; {snapshot:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn until_connected(&self, other: &Node) {
        let peer = other.peer();
        self.until("connected", |snapshot| snapshot.peers.iter().any(|p| p.peer == peer)).await;
    }

    /// Until it has somebody to put records on.
    pub(super) async fn until_routed(&self) {
        self.until("somebody is in the routing table", |snapshot| snapshot.dht.peers > 0).await;
    }

    pub(super) async fn record(&self, sequence: u64) -> SignedRecord {
        let addresses = self.handle.snapshot().await.unwrap().listen;
        self.record_at(addresses, sequence)
    }

    pub(super) fn record_at(&self, addresses: Vec<Multiaddr>, sequence: u64) -> SignedRecord {
        let record = Record {
            hotkey: self.hotkey.hotkey(),
            peer: self.peer(),
            addresses,
            role: Role::Miner,
            netuid: 1,
            capabilities: Vec::new(),
            sequence,
            expires_at_ms: unix_ms() + 3_600_000,
        };
        SignedRecord::sign(&record, &self.hotkey).unwrap()
    }

    pub(super) fn query(&self, miner: &Node, body: impl Into<Bytes>) -> OutgoingQuery {
        OutgoingQuery {
            miner: miner.hotkey.hotkey(),
            task: TaskKind::TextToImage,
            model: "echo".into(),
            body: body.into(),
            deadlines: Deadlines { first_byte_ms: 30_000, idle_ms: 30_000, total_ms: 60_000 },
        }
    }

    /// Answers every query with its own body, after three steps of progress.
    pub(super) fn echo(&mut self) {
        let (_, empty) = mpsc::channel(1);
        let mut queries = std::mem::replace(&mut self.queries, empty);
        tokio::spawn(async move {
            while let Some(mut query) = queries.recv().await {
                tokio::spawn(async move {
                    let body = query.body().await?;
                    query.accept(0).await?;
                    for step in 1..=3 {
                        query.progress(step, 3).await?;
                    }
                    query.finish(body, 7).await
                });
            }
        });
    }

    pub(super) fn counter(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines()
            .find_map(|found| found.strip_prefix(line))
            .map_or(0, |value| value.trim().parse().unwrap())
    }

    pub(super) async fn until_counted(&self, line: &str) {
        let begun = tokio::time::Instant::now();
        while self.counter(line) == 0 {
            assert!(begun.elapsed() < PATIENCE, "{line} is not counted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops as Ctrl-C would.
    pub(super) async fn stop(mut self) {
        self.shutdown.cancel();
        (&mut self.net).await.unwrap().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A miner that published its record, and a validator that joined by it.
pub(super) async fn miner_and_validator(listen: &str) -> (Node, Node) {
    let miner = Recipe::new(listen).start().await;
    let validator = Recipe::new(listen).joins(&miner).start().await;
    miner.until_routed().await;
    let record = miner.record(unix_ms()).await;
    miner.handle.publish(record).await.unwrap();
    (miner, validator)
}

pub(super) fn picture(size: usize) -> Bytes {
    let bytes = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
    Answer::Picture(bytes).to_bytes().into()
}
