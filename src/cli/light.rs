//! A node for the length of one command: joins the overlay with a passing identity, keeps nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use argus_protocols::{Hotkey, HotkeyPair, VerifiedRecord};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    net::{self, Dht, Handle, InMemory, Net, NetError, NodeKey},
    node::DEFAULT_NETUID,
};

/// To connect to the first peer.
const JOIN: Duration = Duration::from_secs(15);

pub struct LightNode {
    handle: Handle,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), NetError>>,
    // Held so that the loop sees somebody at the other end.
    _events: tokio::sync::mpsc::Receiver<net::Event>,
    _queries: tokio::sync::mpsc::Receiver<net::InboundQuery>,
}

impl LightNode {
    /// Joins by the configured bootstrap addresses. `pair` signs queries, if any are to be made.
    pub async fn join(config: &Config, pair: Option<Arc<HotkeyPair>>) -> anyhow::Result<Self> {
        if config.net.bootstrap.is_empty() {
            bail!("no address to join by: give --bootstrap (a relay prints its own when it starts)");
        }
        let any = |text: &str| text.parse().expect("a constant address parses");
        let settings = net::Settings {
            listen: vec![any("/ip4/0.0.0.0/tcp/0"), any("/ip4/0.0.0.0/udp/0/quic-v1")],
            announce: Vec::new(),
            dht: Dht::Client,
            relay_server: false,
            use_relays: false,
            ..config.net.clone()
        };
        let shutdown = CancellationToken::new();
        let Net { handle, events, queries, task } = net::start(
            settings,
            NodeKey::generate(),
            pair,
            config.netuid.unwrap_or(DEFAULT_NETUID),
            Arc::new(InMemory::default()),
            &mut Registry::default(),
            shutdown.clone(),
        )?;
        let node = Self { handle, shutdown, task, _events: events, _queries: queries };
        tokio::time::timeout(JOIN, node.connected()).await.context(
            "none of the bootstrap addresses answered; are they right, and is the relay running?",
        )??;
        Ok(node)
    }

    async fn connected(&self) -> anyhow::Result<()> {
        while self.handle.snapshot().await?.dht.peers == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub async fn lookup(&self, hotkey: &Hotkey) -> anyhow::Result<VerifiedRecord> {
        self.handle.lookup(hotkey).await.with_context(|| format!("looking up {hotkey}"))
    }

    pub async fn leave(self) {
        self.shutdown.cancel();
        let _ = self.task.await;
    }
}
