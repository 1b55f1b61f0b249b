//! The chain's HTTP face and its clockwork.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use argus_protocols::Hotkey;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, FromRequestParts, Path, Query, Request, State as Shared,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::{Ledger, LedgerError},
    limits,
    node::{Node, SubmitError},
    settings::{Settings, SettingsError},
    wire::{Account, Block, Extrinsic, Failure, Info, Status, Submitted, WeightRow},
};
use crate::{
    chain::{Hash, Head, Metagraph, Refusal},
    clock,
    store::{Store, StoreError},
};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot listen on {address} ({source}): is another chain running? choose another --listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("the HTTP server failed: {0}")]
    Http(io::Error),
    #[error("making blocks failed: {0}")]
    Producer(tokio::task::JoinError),
}

/// A chain that runs.
#[derive(Debug)]
pub struct Running {
    /// Where it answers.
    pub address: SocketAddr,
    pub genesis: Hash,
    /// The newest block when it began.
    pub block: u64,
    /// Ends after the shutdown token, when the database is closed.
    pub task: JoinHandle<Result<(), ServeError>>,
}

/// Opens or makes the chain in the data directory, and runs it until shutdown.
pub async fn serve(settings: Settings, shutdown: CancellationToken) -> Result<Running, ServeError> {
    settings.validate()?;
    let (path, rules) = (settings.data_dir.clone(), settings.rules.clone());
    let opened = tokio::task::spawn_blocking(move || -> Result<_, ServeError> {
        let entropy = Hash(rand::random());
        Ok(Ledger::open(Store::open(&path)?, &rules, entropy)?)
    });
    let (ledger, state) = opened.await.map_err(ServeError::Producer)??;
    let listener = listen(settings.listen, &ledger).await?;
    let address =
        listener.local_addr().map_err(|source| ServeError::Listen { address: settings.listen, source })?;
    ledger.set_port(address.port())?;
    let (genesis, block) = (state.genesis_hash, state.head.number);
    let block_time = Duration::from_millis(settings.block_ms);
    let node = Arc::new(Node::new(ledger, state, block_time));
    tracing::info!(%address, %genesis, block, "the development chain runs");
    let task = tokio::spawn(run(node, listener, block_time, shutdown));
    Ok(Running { address, genesis, block, task })
}

/// With port 0 the one that this chain had before, when it is free: a chain that was started again is found
/// where it was.
async fn listen(address: SocketAddr, ledger: &Ledger) -> Result<TcpListener, ServeError> {
    if address.port() == 0
        && let Some(port) = ledger.port()?
        && let Ok(listener) = TcpListener::bind(SocketAddr::new(address.ip(), port)).await
    {
        return Ok(listener);
    }
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

async fn run(
    node: Arc<Node>,
    listener: TcpListener,
    block_time: Duration,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    // Whichever part ends first takes the other along.
    let stop = shutdown.child_token();
    let producer = tokio::spawn(produce(node.clone(), block_time, stop.clone()));
    let router =
        router(Arc::new(App { node, requests: Semaphore::new(limits::REQUESTS), shutdown: stop.clone() }));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let guard = stop.clone().drop_guard();
    let producer = async {
        let result = producer.await;
        drop(guard);
        result
    };
    let served = async {
        tokio::select! {
            served = served.into_future() => served,
            // Nobody may hold up the end with a request that never comes whole.
            () = async { stop.cancelled().await; tokio::time::sleep(limits::DRAIN).await } => Ok(()),
        }
    };
    let (served, produced) = tokio::join!(served, producer);
    produced.map_err(ServeError::Producer)??;
    served.map_err(ServeError::Http)
}

async fn produce(node: Arc<Node>, block_time: Duration, stop: CancellationToken) -> Result<(), ServeError> {
    let mut ticks = tokio::time::interval(block_time);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        let producer = node.clone();
        let made = tokio::task::spawn_blocking(move || producer.produce(clock::unix_ms())).await;
        match made.map_err(ServeError::Producer)? {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::error!(%error, "no block could be written; trying again");
            }
            Err(_) => {}
        }
    }
}

struct App {
    node: Arc<Node>,
    requests: Semaphore,
    shutdown: CancellationToken,
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chain", get(info))
        .route("/v1/head", get(head))
        .route("/v1/blocks/{number}", get(block))
        .route("/v1/subnets/{netuid}/metagraph", get(metagraph))
        .route("/v1/subnets/{netuid}/weights", get(weights))
        .route("/v1/accounts/{hotkey}", get(account))
        .route("/v1/extrinsics", post(submit))
        .route("/v1/extrinsics/{hash}", get(status))
        .fallback(no_endpoint)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(app.clone(), admit))
        .layer(DefaultBodyLimit::max(limits::REQUEST))
        .with_state(app)
}

async fn admit(Shared(app): Shared<Arc<App>>, request: Request, next: Next) -> Response {
    let Ok(_permit) = app.requests.try_acquire() else {
        return Problem::from(Refusal::ExhaustsResources).into_response();
    };
    next.run(request).await
}

/// An answer that is not the one that was asked for.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    failure: Failure,
}

impl Problem {
    fn bad(status: StatusCode, message: impl ToString) -> Self {
        let failure = Failure { error: Refusal::BadRequest, message: message.to_string() };
        Self { status, failure }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::SubnetNotExists => StatusCode::NOT_FOUND,
            Refusal::BadRequest => StatusCode::BAD_REQUEST,
            Refusal::ExhaustsResources => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let message = refusal.explanation().to_owned();
        Self { status, failure: Failure { error: refusal, message } }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        tracing::error!(%error, "the chain's database failed");
        let failure = Failure { error: Refusal::Other("Unavailable".into()), message: error.to_string() };
        Self { status: StatusCode::SERVICE_UNAVAILABLE, failure }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Refused(refusal) => refusal.into(),
            SubmitError::Ledger(error) => error.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self.failure)).into_response()
    }
}

type Answer<T> = Result<Json<T>, Problem>;

/// A part of the path, with a JSON error when it cannot be read.
struct Named<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        path.map(|Path(value)| Named(value)).map_err(|e| Problem::bad(StatusCode::BAD_REQUEST, e.body_text()))
    }
}

async fn info(Shared(app): Shared<Arc<App>>) -> Json<Info> {
    Json(app.node.info())
}

async fn head(Shared(app): Shared<Arc<App>>) -> Json<Head> {
    Json(app.node.head())
}

async fn block(Shared(app): Shared<Arc<App>>, Named(number): Named<u64>) -> Answer<Block> {
    let none = || Problem {
        status: StatusCode::NOT_FOUND,
        failure: Failure {
            error: Refusal::Other("BlockNotFound".into()),
            message: format!("block {number} is not made yet, or too old"),
        },
    };
    app.node.block(number)?.map(Json).ok_or_else(none)
}

async fn metagraph(Shared(app): Shared<Arc<App>>, Named(netuid): Named<u16>) -> Answer<Metagraph> {
    Ok(Json(app.node.state().metagraph(netuid)?))
}

async fn weights(Shared(app): Shared<Arc<App>>, Named(netuid): Named<u16>) -> Answer<Vec<WeightRow>> {
    Ok(Json(app.node.state().weights(netuid)?))
}

async fn account(Shared(app): Shared<Arc<App>>, Named(hotkey): Named<Hotkey>) -> Json<Account> {
    Json(app.node.account(hotkey))
}

async fn submit(
    Shared(app): Shared<Arc<App>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Submitted>), Problem> {
    let body = body.map_err(|e| Problem::bad(e.status(), e.body_text()))?;
    let extrinsic: Extrinsic = serde_json::from_slice(&body)
        .map_err(|e| Problem::bad(StatusCode::BAD_REQUEST, format!("not an extrinsic: {e}")))?;
    let hash = app.node.submit(extrinsic)?;
    Ok((StatusCode::ACCEPTED, Json(Submitted { hash })))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    #[serde(default)]
    wait_ms: u64,
}

async fn status(
    Shared(app): Shared<Arc<App>>,
    Named(hash): Named<Hash>,
    wait: Result<Query<Wait>, QueryRejection>,
) -> Answer<Status> {
    let Query(wait) = wait.map_err(|e| Problem::bad(StatusCode::BAD_REQUEST, e.body_text()))?;
    let wait = Duration::from_millis(wait.wait_ms).min(limits::WAIT);
    let mut height = app.node.height();
    let included = async {
        loop {
            let status = app.node.status(&hash)?;
            if status != Status::Pending || height.changed().await.is_err() {
                return Ok::<_, LedgerError>(status);
            }
        }
    };
    tokio::select! {
        biased;
        status = included => Ok(Json(status?)),
        () = tokio::time::sleep(wait) => Ok(Json(Status::Pending)),
        () = app.shutdown.cancelled() => Ok(Json(Status::Pending)),
    }
}

async fn no_endpoint() -> Problem {
    Problem::bad(StatusCode::NOT_FOUND, "there is no such endpoint; GET /v1/chain is one")
}

async fn no_method() -> Problem {
    Problem::bad(StatusCode::METHOD_NOT_ALLOWED, "this endpoint takes another method")
}
