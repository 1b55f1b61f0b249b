//! A worker: the engine behind `POST /generate` and `GET /info`, for a miner elsewhere whose backend is HTTP.
//!
//! Invariants: requests are bounded before they are parsed, and held to the models' limits before anything
//! in them is decoded; a client that goes away cancels its job at the next step; an NSFW picture does not
//! leave here either, its features do.

pub mod contract;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use argus_protocols::TaskKind;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use subtle::ConstantTimeEq;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use self::contract::{Failure, Info, MAX_BYTES, ModelInfo, Reason, Request};
use crate::{
    jobs::Jobs,
    miner::{Backend, BackendError},
};

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("serving failed: {0}")]
    Serve(std::io::Error),
}

struct Shared {
    jobs: Jobs,
    info: Info,
    /// What clients have to show.
    token: Option<String>,
}

/// A worker that listens, to be served.
pub struct Worker {
    listener: TcpListener,
    router: Router,
    pub address: SocketAddr,
}

impl Worker {
    pub async fn bind(address: SocketAddr, jobs: Jobs, token: Option<String>) -> Result<Self, WorkerError> {
        let listener = TcpListener::bind(address).await;
        let failed = |source| WorkerError::Listen { address, source };
        let listener = listener.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let info = info(&jobs).await;
        let router = Router::new()
            .route("/generate", post(generate))
            .route("/info", get(tell))
            .layer(DefaultBodyLimit::max(MAX_BYTES))
            .with_state(Arc::new(Shared { jobs, info, token }));
        Ok(Self { listener, router, address: bound })
    }

    /// Answers until `shutdown`, and then ends what is at work.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let ending = async move { shutdown.cancelled().await };
        axum::serve(self.listener, self.router)
            .with_graceful_shutdown(ending)
            .await
            .map_err(WorkerError::Serve)
    }
}

async fn info(jobs: &Jobs) -> Info {
    let found = jobs.warm_up().await;
    let models = found.iter().map(|capability| ModelInfo {
        id: capability.model.clone(),
        tasks: capability.tasks.iter().filter_map(|code| TaskKind::from_code(*code)).collect(),
        work_units_per_second: capability.work_units_per_second,
    });
    Info {
        model_name: found.first().map(|capability| capability.model.clone()).unwrap_or_default(),
        models: models.collect(),
        slots: jobs.slots(),
    }
}

async fn tell(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    match may(&shared, &headers) {
        true => Json(&shared.info).into_response(),
        false => unauthorised(),
    }
}

async fn generate(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    if !may(&shared, &headers) {
        return unauthorised();
    }
    match answer(&shared, &body).await {
        Ok(response) => Json(response).into_response(),
        Err(error) => {
            tracing::debug!(reason = label(&error), "no answer");
            failure(status(&error), label(&error), error.to_string())
        }
    }
}

async fn answer(shared: &Shared, body: &[u8]) -> Result<contract::Response, BackendError> {
    let request: Request =
        serde_json::from_slice(body).map_err(|error| BackendError::Invalid(error.to_string()))?;
    let task = request.into_task(shared.jobs.engine().models()).map_err(BackendError::Invalid)?;
    shared.jobs.work(&task)?;
    // Nobody listens to the steps.
    let (steps, _) = mpsc::channel(1);
    shared.jobs.run(task, steps).await.map(Into::into)
}

fn may(shared: &Shared, headers: &HeaderMap) -> bool {
    let Some(token) = &shared.token else { return true };
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    shown.is_some_and(|shown| shown.ct_eq(token.as_bytes()).into())
}

fn unauthorised() -> Response {
    failure(StatusCode::UNAUTHORIZED, "unauthorised", "show the worker's token as a bearer token".into())
}

fn failure(status: StatusCode, reason: &str, message: String) -> Response {
    (status, Json(Failure { error: Reason { reason: reason.to_owned(), message } })).into_response()
}

fn status(error: &BackendError) -> StatusCode {
    match error {
        BackendError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        BackendError::Incapable => StatusCode::NOT_FOUND,
        BackendError::Busy => StatusCode::TOO_MANY_REQUESTS,
        BackendError::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        BackendError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn label(error: &BackendError) -> &'static str {
    match error {
        BackendError::Invalid(_) => "invalid",
        BackendError::Incapable => "incapable",
        BackendError::Busy => "busy",
        BackendError::Cancelled => "cancelled",
        BackendError::Failed(_) => "failed",
    }
}
