//! The HTTP face of a validator: an OpenAI-compatible API, keys and credits, the studio, health and metrics.
//!
//! Invariants:
//! - Nothing here knows miners, the chain or libp2p: work goes through [`Service`], state through the store.
//! - A client's seed is never used, and its pictures are changed in a few pixels, so that no miner can
//!   answer an organic query from a cache.
//! - Prompts, pictures and keys never reach a log or the disk; a key is kept as its hash.
//! - Every body, queue, connection and wait is bounded ([`limits`], [`Settings`]).
//! - A client that goes away cancels the work it asked for, and pays for nothing it did not get.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::store::Store;

pub mod admin;
mod api;
pub mod embeddings;
pub mod error;
mod form;
pub mod images;
pub mod info;
pub mod keys;
pub mod ledger;
pub mod limits;
pub mod metrics;
pub mod models;
pub mod openapi;
pub mod orders;
pub mod pictures;
mod request;
mod server;
pub mod service;
pub mod settings;
mod sse;
mod studio;
pub mod work;

pub use error::ApiError;
pub use ledger::Ledger;
pub use metrics::Metrics;
pub use models::{Allowed, GenerationLimits, ModelCard, UpscaleLimits};
pub use service::{ChainStatus, MinerStatus, PeriodStatus, Progress, Served, Service, ServiceError, Status};
pub use settings::{GatewayError, Settings, SettingsError};

/// What a gateway is made of.
pub struct Parts {
    pub settings: Settings,
    /// Where `gateway.json` goes.
    pub data_dir: PathBuf,
    pub service: Arc<dyn Service>,
    pub store: Store,
    /// Registered in `registry` before it was shared.
    pub metrics: Metrics,
    /// What `GET /metrics` shows.
    pub registry: Arc<Registry>,
    pub shutdown: CancellationToken,
}

/// A gateway that listens.
pub struct Gateway {
    pub address: SocketAddr,
    /// The admin port, on loopback.
    pub admin: SocketAddr,
    pub ledger: Arc<Ledger>,
    /// Ends after `shutdown`, once running requests are done or the drain time is over.
    pub task: JoinHandle<()>,
}

/// Opens the ledger and both ports, and serves until `shutdown`.
pub async fn serve(parts: Parts) -> Result<Gateway, GatewayError> {
    let Parts { settings, data_dir, service, store, metrics, registry, shutdown } = parts;
    settings.validate()?;
    let ledger = Arc::new(Ledger::open(store, settings.key_defaults())?);
    let public = listen("gateway.listen", settings.listen).await?;
    let private = listen("gateway.admin_listen", settings.admin_listen).await?;
    let (address, admin) = (local(&public)?, local(&private)?);
    let token = keys::Secret::generate().map_err(ledger::LedgerError::from)?;
    let path = admin::AdminFile::path(&data_dir);
    admin::AdminFile::create(&data_dir, admin, &token)
        .map_err(|source| GatewayError::AdminFile { path: path.clone(), source })?;

    let terms = |max_connections| server::Terms {
        max_connections,
        drain: Duration::from_secs(settings.drain_s),
        head_timeout: limits::HEAD_TIMEOUT,
        open: metrics.connections.clone(),
    };
    let (public_terms, private_terms) = (terms(settings.max_connections), terms(limits::ADMIN_CONNECTIONS));
    let private_router = admin::router(Arc::clone(&ledger), &token);
    let app = api::App::new(settings, service, Arc::clone(&ledger), registry, metrics, shutdown.clone());
    let public_router = api::router(Arc::new(app));
    tracing::info!(%address, "gateway and studio listen");
    let task = tokio::spawn(async move {
        tokio::join!(
            server::accept(public, public_router, public_terms, shutdown.clone()),
            server::accept(private, private_router, private_terms, shutdown),
        );
        // A node that was restarted meanwhile has its own file there.
        if let Ok(Some(file)) = admin::AdminFile::read(&data_dir)
            && file.token == token.expose()
        {
            let _ = std::fs::remove_file(path);
        }
    });
    Ok(Gateway { address, admin, ledger, task })
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, GatewayError> {
    TcpListener::bind(address).await.map_err(|source| GatewayError::Listen { setting, address, source })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, GatewayError> {
    listener.local_addr().map_err(GatewayError::Accept)
}
