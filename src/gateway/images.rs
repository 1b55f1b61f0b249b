//! `POST /v1/images/generations`: checks against the model's own ranges, makes the pictures, charges
//! for what was delivered.

use std::{sync::Arc, time::Instant};

use argus_protocols::{Answer, Task, TaskKind, task::TextToImage};
use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use utoipa::ToSchema;

use super::{
    ApiError, ModelCard, Progress, ServiceError, TextToImageLimits,
    api::App,
    error::ErrorBody,
    ledger::{Reservation, Work},
    limits, request,
};
use crate::clock;

/// What OpenAI's image endpoint takes, and Argus's own parameters. Anything else is an error.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRequest {
    /// What the picture shows.
    #[schema(example = "a red apple")]
    pub prompt: String,
    /// A model of `GET /v1/models`. Default: the first that makes pictures.
    pub model: Option<String>,
    /// Pictures to make.
    #[schema(minimum = 1, maximum = 10, default = 1)]
    pub n: Option<u32>,
    /// `WIDTHxHEIGHT` in pixels within the model's range, or `auto`.
    #[schema(example = "auto")]
    pub size: Option<String>,
    /// `b64_json`; there are no URLs, because pictures are not kept here.
    pub response_format: Option<String>,
    /// What the picture must not show.
    pub negative_prompt: Option<String>,
    /// Denoising steps, within the model's range.
    pub steps: Option<u32>,
    /// Classifier-free guidance scale, within the model's range.
    pub guidance: Option<f32>,
    /// Accepted and replaced by a random one, so that no miner can answer from a cache. The answer has the
    /// seed that was used.
    pub seed: Option<i64>,
    /// Server-sent events with progress instead of one answer at the end.
    pub stream: Option<bool>,
    /// Accepted; there are no partial pictures.
    #[schema(minimum = 0, maximum = 3)]
    pub partial_images: Option<u32>,
    /// `png`.
    pub output_format: Option<String>,
    /// `auto` or `standard`; use `steps`.
    pub quality: Option<String>,
    /// `auto` or `opaque`.
    pub background: Option<String>,
    /// `auto`.
    pub moderation: Option<String>,
    /// Accepted and ignored; nothing is kept about who asked.
    pub user: Option<String>,
}

/// The answer. `created`, `data`, `size` and `output_format` are as OpenAI has them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ImageResponse {
    /// Unix time, seconds.
    pub created: u64,
    pub model: String,
    /// `WIDTHxHEIGHT`.
    pub size: String,
    pub output_format: &'static str,
    pub steps: u32,
    pub guidance: f32,
    pub data: Vec<ImageData>,
}

/// One picture.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ImageData {
    /// PNG as base64; `null` when the picture was blocked.
    pub b64_json: Option<String>,
    /// `nsfw` when the picture was made and stays with the miner. A blocked picture costs nothing.
    pub blocked: Option<&'static str>,
    /// The seed that was used instead of the client's.
    pub seed: u64,
    /// Hotkey of the miner that made it.
    pub miner: Option<String>,
    /// From asking the miner to the last byte, milliseconds.
    pub elapsed_ms: u64,
}

/// Event `image_generation.progress`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ProgressEvent {
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Which of the `n` pictures.
    pub index: u32,
    /// Steps done.
    pub step: u32,
    pub of: u32,
    /// Queries before this one at the miner; `null` once the work runs.
    pub queue_position: Option<u32>,
    /// 1, and one more each time that a miner failed and another began again.
    pub attempt: u32,
    pub elapsed_ms: u64,
}

/// Event `image_generation.completed`, and `image_generation.blocked` with `b64_json` null.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletedEvent {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub index: u32,
    /// Unix time, seconds.
    pub created_at: u64,
    pub model: String,
    pub size: String,
    pub output_format: &'static str,
    pub quality: &'static str,
    pub background: &'static str,
    pub steps: u32,
    pub guidance: f32,
    #[serde(flatten)]
    pub image: ImageData,
}

/// A request that passed every check.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// The seed is drawn anew for each picture.
    pub task: TextToImage,
    pub n: u32,
    pub stream: bool,
}

impl ImageRequest {
    /// Checks everything against the model's card.
    pub(super) fn check(self, cards: &[ModelCard]) -> Result<Order, ApiError> {
        self.check_openai_fields()?;
        let (card, allowed) = choose(cards, self.model.as_deref())?;
        let n = self.n.unwrap_or(1);
        if !(1..=limits::IMAGES).contains(&n) {
            return Err(out_of_range("n", n, &format!("1 to {}", limits::IMAGES)));
        }
        let (width, height) = size(self.size.as_deref(), allowed)?;
        let steps = self.steps.unwrap_or(allowed.steps.default);
        if !allowed.steps.permits(steps) {
            return Err(out_of_range("steps", steps, &allowed.steps.to_string()));
        }
        let guidance = self.guidance.unwrap_or(allowed.guidance.default);
        if !allowed.guidance.permits(guidance) {
            return Err(out_of_range("guidance", guidance, &allowed.guidance.to_string()));
        }
        let negative_prompt = self.negative_prompt.unwrap_or_default();
        for (field, text) in [("prompt", &self.prompt), ("negative_prompt", &negative_prompt)] {
            let limit = (allowed.prompt_bytes as usize).min(argus_protocols::limits::PROMPT);
            if text.len() > limit {
                let message = format!("{field} has {} bytes, at most {limit} are allowed", text.len());
                return Err(ApiError::field(field, "string_above_max_length", message));
            }
        }
        if self.prompt.trim().is_empty() {
            return Err(ApiError::field("prompt", "empty_string", "prompt is empty; say what to show"));
        }
        let model = card.id.clone();
        let task = TextToImage {
            model,
            prompt: self.prompt,
            negative_prompt,
            width,
            height,
            steps,
            guidance,
            seed: 0,
        };
        Ok(Order { task, n, stream: self.stream.unwrap_or(false) })
    }

    /// Fields that mean something at OpenAI and have one possible value here.
    fn check_openai_fields(&self) -> Result<(), ApiError> {
        let fields: [(&str, &Option<String>, &[&str], &str); 5] = [
            (
                "response_format",
                &self.response_format,
                &["b64_json"],
                "pictures are not kept here, so there is no url",
            ),
            ("output_format", &self.output_format, &["png"], "pictures are PNG"),
            ("quality", &self.quality, &["auto", "standard"], "use steps"),
            ("background", &self.background, &["auto", "opaque"], "pictures have no alpha"),
            ("moderation", &self.moderation, &["auto"], "what a miner blocks is the same for everybody"),
        ];
        for (field, value, allowed, why) in fields {
            if let Some(value) = value
                && !allowed.contains(&value.as_str())
            {
                let value: String = value.chars().take(40).collect();
                let message =
                    format!("{field}: {value:?} is not offered ({why}); allowed: {}", allowed.join(", "));
                return Err(ApiError::field(field, "unsupported_value", message));
            }
        }
        match self.partial_images {
            Some(n) if n > 3 => Err(out_of_range("partial_images", n, "0 to 3")),
            _ => Ok(()),
        }
    }
}

fn out_of_range(field: &str, value: impl std::fmt::Display, allowed: &str) -> ApiError {
    ApiError::field(field, "invalid_value", format!("{field}: {value} is not allowed; it must be {allowed}"))
}

fn choose<'a>(
    cards: &'a [ModelCard],
    wanted: Option<&str>,
) -> Result<(&'a ModelCard, &'a TextToImageLimits), ApiError> {
    let makers = || cards.iter().filter_map(|card| Some((card, card.text_to_image.as_ref()?)));
    if let Some(found) = makers().find(|(card, _)| wanted.is_none_or(|wanted| card.id == wanted)) {
        return Ok(found);
    }
    Err(unknown_model(cards, wanted, TaskKind::TextToImage))
}

/// Why no model fits: none there, another kind of model, or a name nobody knows.
pub(super) fn unknown_model(cards: &[ModelCard], wanted: Option<&str>, task: TaskKind) -> ApiError {
    let offered: Vec<_> = cards.iter().filter(|c| c.tasks.contains(&task)).map(|c| c.id.as_str()).collect();
    let Some(wanted) = wanted else {
        return ServiceError::NoCapacity { retry_after: request::FULL }.into();
    };
    let shown: String = wanted.chars().take(argus_protocols::limits::MODEL_ID).collect();
    if cards.iter().any(|card| card.id == wanted) {
        let message = format!("{shown:?} does not do {task}; these do: {}", offered.join(", "));
        return ApiError::field("model", "unsupported_model", message);
    }
    let near = offered
        .iter()
        .map(|id| (strsim::jaro_winkler(&shown, id), id))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = near.map(|(_, id)| format!("; did you mean {id:?}?")).unwrap_or_default();
    let mut error =
        ApiError::not_found("model_not_found", format!("there is no model {shown:?}{hint} (see /v1/models)"));
    error.detail.param = Some("model".into());
    error
}

fn size(wanted: Option<&str>, allowed: &TextToImageLimits) -> Result<(u32, u32), ApiError> {
    let text = match wanted {
        None | Some("auto") => return Ok((allowed.width.default, allowed.height.default)),
        Some(text) => text,
    };
    let parsed = text.split_once('x').and_then(|(w, h)| {
        let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse::<u32>().ok()).flatten();
        Some((number(w)?, number(h)?))
    });
    match parsed {
        Some((w, h)) if allowed.width.permits(w) && allowed.height.permits(h) => Ok((w, h)),
        _ => {
            let text: String = text.chars().take(40).collect();
            let range = format!(
                "WIDTHxHEIGHT with a width of {} and a height of {} pixels, or auto",
                allowed.width, allowed.height
            );
            Err(out_of_range("size", format!("{text:?}"), &range))
        }
    }
}

/// Pictures being made: holds the key's concurrency, its credits and a place among all requests.
struct Job {
    app: Arc<App>,
    order: Order,
    reservation: Reservation,
    _place: OwnedSemaphorePermit,
}

impl Job {
    /// Makes one picture and charges for it.
    async fn picture(&self, progress: mpsc::Sender<Progress>) -> Result<ImageData, ApiError> {
        // Seeds of 32 bits survive every JSON reader.
        let seed = u64::from(rand::random_range(1..=u32::MAX));
        let task = Task::TextToImage(TextToImage { seed, ..self.order.task.clone() });
        let served = self.app.service.run(task, progress).await.map_err(|error| {
            self.app.metrics.fail(error.reason());
            ApiError::from(error)
        })?;
        let (b64_json, blocked) = match served.answer {
            Answer::Picture(png) => (Some(STANDARD.encode(png)), None),
            Answer::Nsfw(_) => (None, Some("nsfw")),
            Answer::Embeddings(_) => {
                tracing::error!("a text-to-image task was answered with embeddings");
                return Err(ApiError::internal());
            }
        };
        if blocked.is_none() {
            self.reservation.charge(Work::Image, 1);
            self.app.metrics.images.inc();
            self.app.metrics.credits_thousandths.inc_by(Work::Image.price());
            self.app.metrics.image_seconds.observe(served.elapsed.as_secs_f64());
        }
        let elapsed_ms = served.elapsed.as_millis() as u64;
        Ok(ImageData { b64_json, blocked, seed, miner: served.miner.map(|m| m.to_string()), elapsed_ms })
    }

    fn size(&self) -> String {
        format!("{}x{}", self.order.task.width, self.order.task.height)
    }

    /// All pictures, or the first error.
    async fn all(&self) -> Result<ImageResponse, ApiError> {
        let data: Vec<_> = stream::iter(0..self.order.n)
            .map(|_| async {
                // Kept to the end: a service may take a closed channel for a client that went away.
                let (progress, _kept) = mpsc::channel(1);
                self.picture(progress).await
            })
            .buffered(limits::IMAGES_AT_ONCE)
            .try_collect()
            .await?;
        if data.iter().all(|image| image.blocked.is_some()) {
            return Err(all_blocked());
        }
        let task = &self.order.task;
        Ok(ImageResponse {
            created: clock::unix_ms() / 1000,
            model: task.model.clone(),
            size: self.size(),
            output_format: "png",
            steps: task.steps,
            guidance: task.guidance,
            data,
        })
    }

    /// All pictures as events, in the order in which they are done.
    async fn events(&self, out: &mpsc::Sender<ImageEvent>) -> Result<(), ApiError> {
        let mut pictures = stream::iter(0..self.order.n)
            .map(|index| async move { (index, self.followed(index, out).await) })
            .buffer_unordered(limits::IMAGES_AT_ONCE);
        let mut delivered = false;
        while let Some((index, image)) = pictures.next().await {
            let image = image?;
            delivered |= image.blocked.is_none();
            let kind = match image.blocked {
                None => "image_generation.completed",
                Some(_) => "image_generation.blocked",
            };
            let task = &self.order.task;
            let event = CompletedEvent {
                kind,
                index,
                created_at: clock::unix_ms() / 1000,
                model: task.model.clone(),
                size: self.size(),
                output_format: "png",
                quality: "auto",
                background: "opaque",
                steps: task.steps,
                guidance: task.guidance,
                image,
            };
            if out.send(ImageEvent::Completed(Box::new(event))).await.is_err() {
                return Ok(());
            }
        }
        if delivered { Ok(()) } else { Err(all_blocked()) }
    }

    /// One picture, its progress sent on as events. Progress that finds no room is dropped.
    async fn followed(&self, index: u32, out: &mpsc::Sender<ImageEvent>) -> Result<ImageData, ApiError> {
        let begun = Instant::now();
        let (progress, mut steps) = mpsc::channel(limits::PROGRESS);
        let picture = self.picture(progress);
        tokio::pin!(picture);
        let mut event = ProgressEvent::new(index, self.order.task.steps);
        let mut tell = |progress| {
            event.update(progress, begun);
            let _ = out.try_send(ImageEvent::Progress(event.clone()));
        };
        let image = loop {
            tokio::select! {
                biased;
                Some(progress) = steps.recv() => tell(progress),
                image = &mut picture => break image,
            }
        };
        // The last steps may have come in the same moment as the picture.
        while let Ok(progress) = steps.try_recv() {
            tell(progress);
        }
        image
    }
}

impl ProgressEvent {
    fn new(index: u32, of: u32) -> Self {
        let kind = "image_generation.progress";
        Self { kind, index, step: 0, of, queue_position: None, attempt: 1, elapsed_ms: 0 }
    }

    fn update(&mut self, progress: Progress, begun: Instant) {
        (self.step, self.of, self.queue_position, self.attempt) = match progress {
            Progress::Queued { position } => (self.step, self.of, Some(position), self.attempt),
            Progress::Step { step, of } => (step, of, None, self.attempt),
            Progress::Retrying { attempt } => (0, self.of, None, attempt),
        };
        self.elapsed_ms = begun.elapsed().as_millis() as u64;
    }
}

fn all_blocked() -> ApiError {
    ApiError::invalid(
        "content_policy_violation",
        "the picture was judged not safe for work and stays with the miner; nothing was charged",
    )
}

/// What a streamed request sends.
pub(super) enum ImageEvent {
    Progress(ProgressEvent),
    Completed(Box<CompletedEvent>),
    Failed(ApiError),
}

/// Make pictures from words.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = "images",
    request_body = ImageRequest,
    responses(
        (status = 200, description = "The pictures; with `stream`, server-sent events `image_generation.progress` \
          (ProgressEvent), `image_generation.completed` and `image_generation.blocked` (CompletedEvent), `error` \
          (ErrorBody), and `[DONE]` last",
         content((ImageResponse = "application/json"), (CompletedEvent = "text/event-stream"))),
        (status = 400, description = "A field is wrong: `param` names it, the message has the allowed range", body = ErrorBody),
        (status = 401, description = "No key, an unknown key or a revoked key", body = ErrorBody),
        (status = 402, description = "Not enough credits", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 408, description = "The body took too long", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 429, description = "Over the key's rate or concurrency; `Retry-After` says when", body = ErrorBody),
        (status = 502, description = "Every miner that was asked failed", body = ErrorBody),
        (status = 503, description = "No miner has room; `Retry-After` says when", body = ErrorBody),
        (status = 504, description = "No picture in time", body = ErrorBody),
    ),
    security(("key" = []))
)]
pub(super) async fn generations(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let admission = app.admit(&headers)?;
    let place = app.place()?;
    let bytes = request::body(&headers, body, limits::IMAGE_BODY).await?;
    let order = request::json::<ImageRequest>(&bytes)?.check(&app.service.models())?;
    let reservation = admission
        .reserve(Work::Image.price() * u64::from(order.n))
        .map_err(|refusal| app.refused(refusal))?;
    let job = Job { app: Arc::clone(&app), order, reservation, _place: place };
    if job.order.stream {
        return super::sse::respond(&app, |out| async move { job.events(&out).await }).await;
    }
    let cancelled = app.count_cancelled();
    let answer = tokio::time::timeout(app.timeout(), job.all()).await;
    cancelled.finished();
    let answer = answer.unwrap_or_else(|_| {
        app.metrics.fail("timed_out");
        Err(ApiError::timed_out())
    })?;
    Ok(Json(answer).into_response())
}

/// For the API document: an error inside a stream has the same body.
pub(super) fn error_event(error: &ApiError) -> ErrorBody {
    error.body()
}
