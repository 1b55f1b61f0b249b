//! What can be read without asking for work: models, the key's own account, the network, health, metrics.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    ApiError, GenerationLimits, ModelCard, Status, UpscaleLimits, api::App, error::ErrorBody, keys::KeyView,
    request,
};

/// A model as OpenAI lists it, with what Argus knows beside it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelObject {
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Unix time, seconds; 0 when nobody knows.
    pub created: u64,
    /// `argus`.
    pub owned_by: &'static str,
    pub description: String,
    /// SPDX id of the weights' licence, where there is one.
    pub license: String,
    /// `text-to-image`, `image-to-image`, `upscale` and so on.
    pub tasks: Vec<&'static str>,
    pub generation: Option<GenerationLimits>,
    pub upscale: Option<UpscaleLimits>,
    pub embedding_dimensions: Option<u32>,
    /// Credits for one answer with default values.
    pub work_units: f64,
    /// Miners known to serve it now.
    pub miners: u32,
}

impl From<ModelCard> for ModelObject {
    fn from(card: ModelCard) -> Self {
        Self {
            id: card.id,
            object: "model",
            created: card.created,
            owned_by: "argus",
            description: card.description,
            license: card.license,
            tasks: card.tasks.into_iter().map(|task| task.label()).collect(),
            generation: card.generation,
            upscale: card.upscale,
            embedding_dimensions: card.embedding_dimensions,
            work_units: card.work_units,
            miners: card.miners,
        }
    }
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<ModelObject>,
}

/// All models with their allowed values. Needs no key.
#[utoipa::path(get, path = "/v1/models", tag = "models",
    responses((status = 200, description = "The models", body = ModelList)))]
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let data = app.service.models().into_iter().map(ModelObject::from).collect();
    Json(ModelList { object: "list", data })
}

/// One model. Needs no key.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models",
    params(("id" = String, Path, description = "The model's id")),
    responses(
        (status = 200, description = "The model", body = ModelObject),
        (status = 404, description = "There is no such model", body = ErrorBody),
    ))]
pub(super) async fn model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    match app.service.models().into_iter().find(|card| card.id == id) {
        Some(card) => Ok(Json(card.into())),
        None => {
            let shown: String = id.chars().take(argus_protocols::limits::MODEL_ID).collect();
            let mut error = ApiError::not_found(
                "model_not_found",
                format!("there is no model {shown:?} (see /v1/models)"),
            );
            error.detail.param = Some("model".into());
            Err(error)
        }
    }
}

/// The key that asks: its rate, its credits, what it was used for. Counts as no request.
#[utoipa::path(get, path = "/v1/key", tag = "account",
    responses(
        (status = 200, description = "The key's account", body = KeyView),
        (status = 401, description = "No key, an unknown key or a revoked key", body = ErrorBody),
    ),
    security(("key" = [])))]
pub(super) async fn key(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Json<KeyView>, ApiError> {
    let text = request::bearer(&headers)?;
    Ok(Json(app.ledger.holder(text).map_err(|refusal| app.refused(refusal))?))
}

/// The network as this node sees it. Needs no key.
#[utoipa::path(get, path = "/v1/status", tag = "network",
    responses((status = 200, description = "The network", body = Status)))]
pub(super) async fn status(State(app): State<Arc<App>>) -> Json<Status> {
    Json(app.service.status())
}

/// Whether this node can serve requests.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`, `degraded` (serves, but something needs a look) or `unavailable`.
    pub status: &'static str,
    pub version: &'static str,
    pub uptime_s: u64,
    /// Some miner can make a picture or an embedding now.
    pub ready: bool,
    pub peers: u32,
    pub chain_reachable: bool,
    pub block: u64,
    /// Miners by model.
    pub capable_miners: BTreeMap<String, u32>,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

/// Readiness: 200 when requests can be served, 503 when not. `/health/live` is 200 as long as the process runs.
#[utoipa::path(get, path = "/health", tag = "network",
    responses(
        (status = 200, description = "Requests can be served", body = Health),
        (status = 503, description = "No request can be served now; `problems` says why", body = Health),
    ))]
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let health = app.health();
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// Liveness.
#[utoipa::path(get, path = "/health/live", tag = "network",
    responses((status = 200, description = "The process runs", body = String, content_type = "text/plain")))]
pub(super) async fn live() -> &'static str {
    "ok\n"
}

impl App {
    fn health(&self) -> Health {
        let seen = self.service.status();
        let capable_miners: BTreeMap<_, _> =
            self.service.models().into_iter().map(|card| (card.id, card.miners)).collect();
        let closing = self.shutdown.is_cancelled();
        let served = capable_miners.values().any(|miners| *miners > 0);
        let mut problems = Vec::new();
        if closing {
            problems.push("this node is shutting down".to_owned());
        }
        if !served {
            problems.push("no miner serves any model".to_owned());
        }
        for (model, _) in capable_miners.iter().filter(|(_, miners)| served && **miners == 0) {
            problems.push(format!("no miner serves {model}"));
        }
        if !seen.chain.reachable {
            let why = seen.chain.error.as_deref().unwrap_or("no block seen yet");
            problems.push(format!("the chain does not answer: {why}"));
        }
        let ready = served && !closing;
        let status = match (ready, problems.is_empty()) {
            (false, _) => "unavailable",
            (true, false) => "degraded",
            (true, true) => "ok",
        };
        Health {
            status,
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.begun.elapsed().as_secs(),
            ready,
            peers: seen.peers,
            chain_reachable: seen.chain.reachable,
            block: seen.chain.block,
            capable_miners,
            problems,
        }
    }
}

/// Prometheus metrics (OpenMetrics text).
#[utoipa::path(get, path = "/metrics", tag = "network",
    responses((status = 200, description = "All metrics of this node", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8")))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &app.registry).map_err(|_| ApiError::internal())?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
