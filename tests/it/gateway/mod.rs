//! The gateway over real sockets and a real store; the work is done by [`service::Local`].

mod api;
mod browser;
mod document;
mod easel;
mod hostile;
mod keys;
mod pictures;
mod service;
mod streams;
mod studio;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use argus::{
    gateway::{self, Gateway, Metrics, Settings, keys::NewKey},
    store::Store,
};
use prometheus_client::registry::Registry;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use service::Local;

/// A gateway of a test.
struct Running {
    dir: TempDir,
    local: Arc<Local>,
    gateway: Gateway,
    shutdown: CancellationToken,
    http: reqwest::Client,
    /// A key without limits.
    key: String,
}

fn settings() -> Settings {
    Settings {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        requests_per_minute: 100_000,
        concurrent_per_key: 1_000,
        ..Settings::default()
    }
}

async fn start() -> Running {
    start_with(settings()).await
}

async fn start_with(settings: Settings) -> Running {
    start_in(tempfile::tempdir().unwrap(), settings).await
}

/// In a directory that another gateway may have used before.
async fn start_in(dir: TempDir, settings: Settings) -> Running {
    let store = Store::open(&dir.path().join("db")).unwrap();
    let local = Local::new();
    let shutdown = CancellationToken::new();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let gateway = gateway::serve(gateway::Parts {
        settings,
        data_dir: dir.path().to_owned(),
        service: local.clone(),
        store,
        metrics,
        registry: Arc::new(registry),
        shutdown: shutdown.clone(),
    })
    .await
    .unwrap();
    let key = gateway.ledger.create(NewKey::named("test")).unwrap().key;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    Running { dir, local, gateway, shutdown, http, key }
}

impl Running {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway.address)
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(self.url(path))
    }

    /// A request with the test's key.
    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.http.post(self.url(path)).bearer_auth(&self.key).json(body)
    }

    fn images(&self, body: &Value) -> RequestBuilder {
        self.post("/v1/images/generations", body)
    }

    /// Stops the gateway and gives its directory back, the store closed.
    async fn stop(self) -> TempDir {
        let Running { dir, gateway, shutdown, http, local, .. } = self;
        drop((http, local));
        shutdown.cancel();
        gateway.task.await.unwrap();
        drop(gateway.ledger);
        dir
    }
}

async fn value(response: Response) -> Value {
    response.json().await.unwrap()
}

/// Checks that an answer is an error in OpenAI's shape, and returns it.
async fn error(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    assert!(response.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    let body = value(response).await;
    let error = &body["error"];
    for field in ["message", "type", "code"] {
        assert!(error[field].is_string(), "{body}");
    }
    assert!(error.as_object().unwrap().contains_key("param"), "{body}");
    (status, error.clone())
}

/// Waits for something that another task brings about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

fn apple() -> Value {
    json!({ "prompt": "a red apple" })
}
