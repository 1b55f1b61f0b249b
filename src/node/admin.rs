//! The node's own endpoint on loopback: `argus status` asks it, Prometheus scrapes it.
//!
//! `/health` and `/metrics` are open to this machine; `/status` wants the token that stands in
//! `admin.json` of the data folder, which its owner alone can read.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::folder::DataFolder;

/// Answers `/status`.
pub type StatusSource = Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen on {address} (admin_listen): {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("no node runs on {path}: start one, or name its folder with --data-dir")]
    NotRunning { path: PathBuf },
    #[error("{path} is damaged: {message}; it is written anew when the node starts")]
    Damaged { path: PathBuf, message: String },
    #[error("the node at {address} does not answer: {message}")]
    Unreachable { address: SocketAddr, message: String },
}

/// What `admin.json` says.
#[derive(Serialize, Deserialize)]
struct Ticket {
    address: SocketAddr,
    token: String,
    pid: u32,
}

struct Admin {
    token: String,
    status: StatusSource,
    registry: Arc<Registry>,
}

/// Listens, writes `admin.json`, and serves until shutdown.
pub async fn serve(
    listen: SocketAddr,
    folder: &DataFolder,
    status: StatusSource,
    registry: Arc<Registry>,
    shutdown: CancellationToken,
) -> Result<(SocketAddr, impl Future<Output = io::Result<()>> + use<>), AdminError> {
    let fail = |source| AdminError::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    let mut secret = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut secret).map_err(|e| fail(io::Error::other(e)))?;
    let ticket = Ticket { address, token: hex::encode(secret), pid: std::process::id() };
    let path = folder.admin();
    write_private(&path, &ticket).map_err(|source| AdminError::Write { path: path.clone(), source })?;
    let admin = Arc::new(Admin { token: ticket.token, status, registry });
    let router = Router::new()
        .route("/health", get(|| async { Json(serde_json::json!({ "alive": true })) }))
        .route("/metrics", get(metrics))
        .route("/status", get(answer_status))
        .with_state(admin);
    let serving = async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        // A ticket of a stopped node would send `argus status` to whoever has the port next.
        let _ = std::fs::remove_file(path);
        served
    };
    Ok((address, serving))
}

fn write_private(path: &PathBuf, ticket: &Ticket) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(&serde_json::to_vec(ticket)?)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn answer_status(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    if !bool::from(given.as_bytes().ct_eq(admin.token.as_bytes())) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    Json((admin.status)().await).into_response()
}

/// Reads a running node's status by the ticket in its data folder.
pub struct AdminClient {
    ticket: Ticket,
}

impl AdminClient {
    pub fn open(folder: &DataFolder) -> Result<Self, AdminError> {
        let path = folder.admin();
        let text = std::fs::read(&path).map_err(|_| AdminError::NotRunning { path: folder.path().into() })?;
        let ticket = serde_json::from_slice(&text)
            .map_err(|e| AdminError::Damaged { path, message: e.to_string() })?;
        Ok(Self { ticket })
    }

    pub async fn status(&self) -> Result<Value, AdminError> {
        let address = self.ticket.address;
        let fail = |error: reqwest::Error| AdminError::Unreachable { address, message: error.to_string() };
        reqwest::Client::new()
            .get(format!("http://{address}/status"))
            .bearer_auth(&self.ticket.token)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(fail)?
            .json()
            .await
            .map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn status_wants_the_token_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::at(dir.path());
        let shutdown = CancellationToken::new();
        let status: StatusSource = Arc::new(|| Box::pin(async { serde_json::json!({ "role": "relay" }) }));
        let registry = Arc::new(Registry::default());
        let (address, serving) =
            serve(([127, 0, 0, 1], 0).into(), &folder, status, registry, shutdown.clone()).await.unwrap();
        let server = tokio::spawn(serving);
        let answer = AdminClient::open(&folder).unwrap().status().await.unwrap();
        assert_eq!(answer["role"], "relay");
        let refused = reqwest::get(format!("http://{address}/status")).await.unwrap();
        assert_eq!(refused.status(), 401);
        assert!(reqwest::get(format!("http://{address}/metrics")).await.unwrap().status().is_success());
        shutdown.cancel();
        server.await.unwrap().unwrap();
        assert!(matches!(AdminClient::open(&folder), Err(AdminError::NotRunning { .. })));
    }

    #[test]
    fn a_damaged_ticket_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::at(dir.path());
        std::fs::write(folder.admin(), b"{").unwrap();
        assert!(matches!(AdminClient::open(&folder), Err(AdminError::Damaged { .. })));
    }
}
