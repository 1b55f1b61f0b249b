//! The endpoints that look at pictures: `POST /v1/embeddings`, and `POST /v1/images/nsfw`. Pictures are decoded
//! under limits, changed in a few pixels so that no miner can answer from a cache, and sent on as PNG.

use std::sync::Arc;

use argus_models::nsfw::NSFW_THRESHOLD;
use argus_protocols::{Answer, NsfwScores, Task};
use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::{
    ApiError, ModelCard, ServiceError,
    api::App,
    ledger::{Sold, thousandths},
    limits,
    orders::Draft,
    request,
    service::Served,
};

/// OpenAI's embedding request, with pictures where OpenAI has texts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingRequest {
    /// Pictures (PNG, JPEG or WebP) as base64 or as `data:` URLs with base64.
    pub input: EmbeddingInput,
    /// A model of `GET /v1/models`. Default: the first that embeds pictures.
    pub model: Option<String>,
    /// `float` (default), or `base64` of little-endian 32-bit floats.
    pub encoding_format: Option<String>,
    /// Accepted where it is the model's own length.
    pub dimensions: Option<u32>,
    /// Accepted and ignored; nothing is kept about who asked.
    pub user: Option<String>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or an array of strings: pictures as base64 or data: URLs")]
pub enum EmbeddingInput {
    One(String),
    Many(Vec<String>),
}

/// The answer, as OpenAI has it, and who made it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EmbeddingResponse {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<EmbeddingData>,
    pub model: String,
    pub usage: TokenUsage,
    /// Hotkey of the miner that made it.
    pub miner: Option<String>,
    pub elapsed_ms: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EmbeddingData {
    /// `embedding`.
    pub object: &'static str,
    pub index: usize,
    pub embedding: EmbeddingValues,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum EmbeddingValues {
    Floats(Vec<f32>),
    /// Little-endian 32-bit floats as base64.
    Base64(String),
}

/// Pictures have no tokens: both are 0. Clients of OpenAI expect the field.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct TokenUsage {
    pub prompt_tokens: u32,
    pub total_tokens: u32,
}

/// Pictures to judge.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NsfwRequest {
    /// Pictures (PNG, JPEG or WebP) as base64 or as `data:` URLs with base64.
    pub input: EmbeddingInput,
    /// A model of `GET /v1/models`. Default: the first that does this.
    pub model: Option<String>,
    /// Accepted and ignored; nothing is kept about who asked.
    pub user: Option<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NsfwResponse {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<NsfwData>,
    pub model: String,
    /// Hotkey of the miner that judged.
    pub miner: Option<String>,
    pub elapsed_ms: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NsfwData {
    pub index: usize,
    /// Whether a miner would keep such a picture back.
    pub nsfw: bool,
    pub scores: NsfwClasses,
}

/// Probabilities of the classes; they add up to 1.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NsfwClasses {
    pub drawing: f32,
    pub hentai: f32,
    pub neutral: f32,
    pub porn: f32,
    pub sexy: f32,
}

impl From<NsfwScores> for NsfwClasses {
    fn from(scores: NsfwScores) -> Self {
        let NsfwScores { drawing, hentai, neutral, porn, sexy } = scores;
        Self { drawing, hentai, neutral, porn, sexy }
    }
}

impl EmbeddingRequest {
    /// Whether vectors are wanted as base64.
    fn as_base64(&self) -> Result<bool, ApiError> {
        match self.encoding_format.as_deref() {
            None | Some("float") => Ok(false),
            Some("base64") => Ok(true),
            Some(_) => {
                let message = "encoding_format must be float or base64";
                Err(ApiError::field("encoding_format", "unsupported_value", message))
            }
        }
    }
}

/// Embed pictures.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "embeddings",
    request_body(content((EmbeddingRequest = "application/json"), (EmbeddingRequest = "multipart/form-data"))),
    responses(
        (status = 200, description = "One embedding a picture, in the order of the input", body = EmbeddingResponse),
    ),
    security(("key" = []))
)]
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut as_base64 = false;
    let draft = |read: EmbeddingRequest, cards: &[ModelCard]| {
        as_base64 = read.as_base64()?;
        read.draft(cards)
    };
    let (model, served) = looked_at(&app, &headers, body, Sold::Embedding, draft).await?;
    let Answer::Embeddings(all) = served.answer else {
        tracing::error!("an embedding task was answered with something else");
        return Err(ApiError::internal());
    };
    let data = all.into_iter().enumerate().map(|(index, values)| {
        let embedding = if as_base64 {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            EmbeddingValues::Base64(STANDARD.encode(bytes))
        } else {
            EmbeddingValues::Floats(values)
        };
        EmbeddingData { object: "embedding", index, embedding }
    });
    let answer = EmbeddingResponse {
        object: "list",
        data: data.collect(),
        model,
        usage: TokenUsage::default(),
        miner: served.miner.map(|miner| miner.to_string()),
        elapsed_ms: served.elapsed.as_millis() as u64,
    };
    Ok(Json(answer).into_response())
}

/// Judge whether pictures are safe for work.
#[utoipa::path(
    post,
    path = "/v1/images/nsfw",
    tag = "images",
    request_body(content((NsfwRequest = "application/json"), (NsfwRequest = "multipart/form-data"))),
    responses(
        (status = 200, description = "The classes of each picture, in the order of the input", body = NsfwResponse),
    ),
    security(("key" = []))
)]
pub(super) async fn nsfw(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (model, served) = looked_at(&app, &headers, body, Sold::Classification, NsfwRequest::draft).await?;
    let Answer::Classes(all) = served.answer else {
        tracing::error!("a classification was answered with something else");
        return Err(ApiError::internal());
    };
    let data = all.into_iter().enumerate().map(|(index, scores)| NsfwData {
        index,
        nsfw: scores.porn + scores.hentai >= NSFW_THRESHOLD,
        scores: scores.into(),
    });
    let answer = NsfwResponse {
        object: "list",
        data: data.collect(),
        model,
        miner: served.miner.map(|miner| miner.to_string()),
        elapsed_ms: served.elapsed.as_millis() as u64,
    };
    Ok(Json(answer).into_response())
}

/// Reads a request about pictures, has it done and charges for it. Gives the id of the model that did it, too.
async fn looked_at<R: DeserializeOwned>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    sold: Sold,
    draft: impl FnOnce(R, &[ModelCard]) -> Result<Draft, ApiError>,
) -> Result<(String, Served), ApiError> {
    let admission = app.admit(headers)?;
    let _place = app.place()?;
    let memory = app.picture_place()?;
    let read = request::read::<R>(headers, body, limits::PICTURE_BODY).await?;
    let draft = draft(read, &app.service.models())?;
    let model = draft.model.clone();
    let task = app.decode(move || draft.prepare(true)).await??;
    drop(memory);
    let (Task::ImageEmbedding(asked) | Task::NsfwClassification(asked)) = &task else {
        return Err(ApiError::internal());
    };
    let count = asked.pictures.len();
    let price = thousandths(app.service.work(&task)?);
    let reservation = admission.reserve(price).map_err(|refusal| app.refused(refusal))?;
    let (progress, _kept) = mpsc::channel(1);
    let cancelled = app.count_cancelled();
    let served = tokio::time::timeout(app.timeout(), app.service.run(task, progress)).await;
    cancelled.finished();
    let served = served.map_err(|_| {
        app.metrics.fail("timed_out");
        ApiError::timed_out()
    })?;
    let served = served.map_err(|error: ServiceError| {
        app.metrics.fail(error.reason());
        ApiError::from(error)
    })?;
    let answers = match &served.answer {
        Answer::Embeddings(all) => all.len(),
        Answer::Classes(all) => all.len(),
        Answer::Picture(_) | Answer::Nsfw(_) => 0,
    };
    if answers != count {
        app.metrics.fail("failed");
        return Err(ServiceError::Failed(format!("{answers} answers for {count} pictures")).into());
    }
    reservation.charge(sold, count as u64, price);
    match sold {
        Sold::Classification => app.metrics.classifications.inc_by(count as u64),
        Sold::Embedding | Sold::Image => app.metrics.embeddings.inc_by(count as u64),
    };
    app.metrics.credits_thousandths.inc_by(price);
    Ok((model, served))
}
