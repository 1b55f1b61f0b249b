//! Builds a node of one role out of its parts, supervises them, and drains them in order.
//!
//! Every task hangs in one tree: a part that fails or ends early brings the node down with a message that
//! names it. Ctrl-C or SIGTERM first stops admission and lets running work finish, then closes the net.

mod admin;
mod folder;
mod persist;
mod publisher;
mod roles;
mod tree;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use argus_protocols::{Capability, Hotkey, HotkeyPair, Multiaddr, PeerId, Role};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

pub use admin::{AdminClient, AdminError};
pub use folder::{DataFolder, FolderError};
pub use roles::start_engine;

use crate::{
    config::Config,
    identity,
    net::{self, Event, Handle, InboundQuery, Net},
    store::Store,
};
use admin::StatusSource;
use persist::Kept;
use publisher::Publisher;
use tree::{Stage, Tree};

/// The subnet when none is named.
pub const DEFAULT_NETUID: u16 = 1;
/// Listeners report their addresses one by one; this long after the first one they are taken as complete.
const SETTLE: Duration = Duration::from_millis(300);

/// What a node says when it is up; with `--json` the `ready` line.
#[derive(Debug, Serialize)]
pub struct Ready {
    pub role: Role,
    pub hotkey: Option<Hotkey>,
    pub peer: String,
    /// Addresses to join by, ending in `/p2p/<peer id>`.
    pub addresses: Vec<Multiaddr>,
    /// The gateway's address, on a validator that has one.
    pub api: Option<SocketAddr>,
    pub admin: SocketAddr,
}

/// Runs a node until Ctrl-C or SIGTERM. `ready` is called once, when it does its role's work.
pub async fn run(role: Role, config: Config, ready: impl FnOnce(&Ready)) -> anyhow::Result<()> {
    // Signals count from here on: a node that is told to stop while it warms up must not ignore it.
    let stop = stop_signal()?;
    let mut node = Node::start(role, &config)?;
    let api = match role {
        Role::Relay => None,
        Role::Miner => node.mine(&config).await?,
        Role::Validator => node.validate(&config).await?,
    };
    let (report, tree) = node.open(&config, api).await?;
    ready(&report);
    tree.run(stop).await
}

/// A node that is being put together.
struct Node {
    role: Role,
    folder: DataFolder,
    store: Store,
    pair: Option<Arc<HotkeyPair>>,
    netuid: u16,
    registry: Registry,
    /// Once every metric is registered.
    shared_registry: Option<Arc<Registry>>,
    tree: Tree,
    handle: Handle,
    events: Option<mpsc::Receiver<Event>>,
    queries: Option<mpsc::Receiver<InboundQuery>>,
    capabilities: watch::Sender<Vec<Capability>>,
    /// What the role adds to `/status`.
    status: Option<StatusSource>,
}

impl Node {
    fn start(role: Role, config: &Config) -> anyhow::Result<Self> {
        let folder = DataFolder::locate(config.data_dir.as_deref(), role)?;
        folder.create()?;
        let pair = match role {
            Role::Relay => None,
            Role::Miner | Role::Validator => Some(Arc::new(identity::open(&config.wallet)?)),
        };
        let store = Store::open(&folder.database())?;
        let mut registry = Registry::default();
        let mut tree = Tree::new();
        let netuid = config.netuid.unwrap_or(DEFAULT_NETUID);
        let mut settings = config.net.clone();
        if role == Role::Relay {
            settings.relay_server = true;
            // A relay that waits for somebody to prove it reachable could never be the first node.
            settings.dht = net::Dht::Server;
        }
        let Net { handle, events, queries, task } = net::start(
            settings,
            identity::node_key(folder.path())?,
            pair.clone(),
            netuid,
            Arc::new(Kept(store.clone())),
            &mut registry,
            tree.token(Stage::Carry),
        )?;
        tree.spawn(Stage::Carry, "the net", async move { Ok(task.await??) });
        Ok(Self {
            role,
            folder,
            store,
            pair,
            netuid,
            registry,
            shared_registry: None,
            tree,
            handle,
            events: Some(events),
            queries: Some(queries),
            capabilities: watch::Sender::new(Vec::new()),
            status: None,
        })
    }

    /// What every role has besides its work: the record, the admin endpoint, and somebody who listens to
    /// the net's events.
    async fn open(mut self, config: &Config, api: Option<SocketAddr>) -> anyhow::Result<(Ready, Tree)> {
        let addresses = watch::Sender::new(Vec::new());
        let publisher = self.pair.as_ref().map(|pair| Publisher {
            handle: self.handle.clone(),
            pair: pair.clone(),
            role: self.role,
            netuid: self.netuid,
            addresses: addresses.subscribe(),
            capabilities: self.capabilities.subscribe(),
        });
        if let Some(publisher) = publisher {
            let token = self.tree.token(Stage::Carry);
            self.tree.spawn(Stage::Carry, "the record publisher", async move {
                publisher.run(token).await;
                Ok(())
            });
        }
        let mut events = self.events.take().expect("taken here alone");
        let mut settled = addresses.subscribe();
        let token = self.tree.token(Stage::Carry);
        self.tree.spawn(Stage::Carry, "the event listener", async move {
            loop {
                tokio::select! {
                    () = token.cancelled() => return Ok(()),
                    event = events.recv() => match event {
                        Some(Event::AddressesChanged(all)) => _ = addresses.send_replace(all),
                        Some(_) => {}
                        // The net ended; its own task says why.
                        None => {
                            token.cancelled().await;
                            return Ok(());
                        }
                    }
                }
            }
        });
        // A node without any address yet (behind NAT, before its relay answers) is ready all the same.
        let _ = tokio::time::timeout(Duration::from_secs(2), settled.wait_for(|all| !all.is_empty())).await;
        tokio::time::sleep(SETTLE).await;
        let report = self.report(settled.borrow().clone(), api, config.admin_listen).await?;
        Ok((report, self.tree))
    }

    async fn report(
        &mut self,
        addresses: Vec<Multiaddr>,
        api: Option<SocketAddr>,
        listen: SocketAddr,
    ) -> anyhow::Result<Ready> {
        let mut ready = Ready {
            role: self.role,
            hotkey: self.pair.as_ref().map(|pair| pair.hotkey()),
            peer: self.handle.peer().to_string(),
            addresses: with_peer(addresses, self.handle.peer()),
            api,
            admin: listen,
        };
        let registry = self.share_registry();
        let status = self.status_source(&ready);
        let token = self.tree.token(Stage::Carry);
        let (admin, serving) = admin::serve(listen, &self.folder, status, registry, token).await?;
        self.tree.spawn(Stage::Carry, "the admin endpoint", async move { Ok(serving.await?) });
        ready.admin = admin;
        Ok(ready)
    }

    /// No metric can be registered after this.
    fn share_registry(&mut self) -> Arc<Registry> {
        let registry = &mut self.registry;
        self.shared_registry.get_or_insert_with(|| Arc::new(std::mem::take(registry))).clone()
    }

    fn status_source(&mut self, ready: &Ready) -> StatusSource {
        let (handle, role, netuid) = (self.handle.clone(), self.status.take(), self.netuid);
        let fixed = serde_json::json!({
            "role": ready.role, "hotkey": ready.hotkey, "netuid": netuid, "api": ready.api,
        });
        Arc::new(move || {
            let (handle, role, mut status) = (handle.clone(), role.clone(), fixed.clone());
            Box::pin(async move {
                if let Ok(snapshot) = handle.snapshot().await {
                    let addresses = snapshot.external.iter().map(|report| report.address.clone()).collect();
                    status["addresses"] = serde_json::json!(with_peer(addresses, snapshot.peer));
                    status["net"] = serde_json::json!(snapshot);
                }
                if let Some(role) = role {
                    status["work"] = role().await;
                }
                status
            })
        })
    }
}

/// Addresses as others dial them.
fn with_peer(addresses: Vec<Multiaddr>, peer: PeerId) -> Vec<Multiaddr> {
    let dialled = |address: Multiaddr| address.with_p2p(peer).unwrap_or_else(|other| other);
    addresses.into_iter().map(dialled).collect()
}

/// Resolves at Ctrl-C or SIGTERM.
pub fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping: no new work, running work finishes first");
    })
}
