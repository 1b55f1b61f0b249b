//! Pictures being made: one answer at the end, or a stream of events; what is delivered is charged.

use std::{sync::Arc, time::Instant};

use argus_protocols::{Answer, Task, task::Generation};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use utoipa::ToSchema;

use super::{
    ApiError, Progress,
    api::App,
    error::ErrorBody,
    ledger::{Reservation, Sold},
    limits,
};
use crate::clock;

/// The answer. `created`, `data`, `size` and `output_format` are as OpenAI has them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ImageResponse {
    /// Unix time, seconds.
    pub created: u64,
    #[serde(flatten)]
    pub made: Made,
    pub data: Vec<ImageData>,
}

/// How the pictures were made.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Made {
    pub model: String,
    /// `text-to-image`, `inpaint`, `upscale` and so on.
    pub task: &'static str,
    /// `WIDTHxHEIGHT`.
    pub size: String,
    pub output_format: &'static str,
    /// Of a picture made from words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f32>,
    /// Of a picture made larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<u32>,
}

/// One picture.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ImageData {
    /// PNG as base64; `null` when the picture was blocked.
    pub b64_json: Option<String>,
    /// `nsfw` when the picture was made and stays with the miner. A blocked picture costs nothing.
    pub blocked: Option<&'static str>,
    /// The seed that was used instead of the client's; `null` where there is none.
    pub seed: Option<u64>,
    /// Hotkey of the miner that made it.
    pub miner: Option<String>,
    /// From asking the miner to the last byte, milliseconds.
    pub elapsed_ms: u64,
}

/// Event `image_generation.progress`; of any endpoint but generations `image_edit.progress`.
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

/// Event `image_generation.completed`, and `image_generation.blocked` with `b64_json` null; of any endpoint but
/// generations `image_edit.…`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletedEvent {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub index: u32,
    /// Unix time, seconds.
    pub created_at: u64,
    #[serde(flatten)]
    pub made: Made,
    pub quality: &'static str,
    pub background: &'static str,
    #[serde(flatten)]
    pub image: ImageData,
}

/// Pictures being made: holds the key's concurrency, its credits and a place among all requests.
pub(super) struct Job {
    pub app: Arc<App>,
    pub order: Order,
    pub reservation: Reservation,
    pub _place: OwnedSemaphorePermit,
}

/// A request that is ready to run.
pub(super) struct Order {
    /// Its seed is drawn anew for each picture.
    pub task: Task,
    pub made: Made,
    pub n: u32,
    /// Thousandths of a credit for each picture.
    pub price: u64,
    pub names: &'static EventNames,
}

/// The events of a stream, as OpenAI names them.
pub(super) struct EventNames {
    progress: &'static str,
    completed: &'static str,
    blocked: &'static str,
}

pub(super) const GENERATION: EventNames = EventNames {
    progress: "image_generation.progress",
    completed: "image_generation.completed",
    blocked: "image_generation.blocked",
};

pub(super) const EDIT: EventNames = EventNames {
    progress: "image_edit.progress",
    completed: "image_edit.completed",
    blocked: "image_edit.blocked",
};

impl Made {
    /// `size` is that of the answer.
    pub(super) fn of(task: &Task, (width, height): (u32, u32)) -> Self {
        let (steps, guidance, factor) = match task {
            Task::Generation(asked) => (Some(asked.steps), Some(asked.guidance), None),
            Task::Upscale(asked) => (None, None, Some(asked.factor)),
            Task::ImageEmbedding(_) | Task::NsfwClassification(_) => (None, None, None),
        };
        Self {
            model: task.model().to_owned(),
            task: task.kind().label(),
            size: format!("{width}x{height}"),
            output_format: "png",
            steps,
            guidance,
            factor,
        }
    }
}

impl Order {
    /// The task for one picture, and its seed.
    fn task(&self) -> (Task, Option<u64>) {
        match &self.task {
            Task::Generation(asked) => {
                // Seeds of 32 bits survive every JSON reader.
                let seed = u64::from(rand::random_range(1..=u32::MAX));
                (Task::Generation(Generation { seed, ..asked.clone() }), Some(seed))
            }
            other => (other.clone(), None),
        }
    }
}

impl Job {
    /// Makes one picture and charges for it.
    async fn picture(&self, progress: mpsc::Sender<Progress>) -> Result<ImageData, ApiError> {
        let (task, seed) = self.order.task();
        let served = self.app.service.run(task, progress).await.map_err(|error| {
            self.app.metrics.fail(error.reason());
            ApiError::from(error)
        })?;
        let (b64_json, blocked) = match served.answer {
            Answer::Picture(png) => (Some(STANDARD.encode(png)), None),
            Answer::Nsfw(_) => (None, Some("nsfw")),
            Answer::Embeddings(_) | Answer::Classes(_) => {
                tracing::error!("a request for a picture was answered with something else");
                return Err(ApiError::internal());
            }
        };
        if blocked.is_none() {
            self.reservation.charge(Sold::Image, 1, self.order.price);
            self.app.metrics.images.inc();
            self.app.metrics.credits_thousandths.inc_by(self.order.price);
            self.app.metrics.image_seconds.observe(served.elapsed.as_secs_f64());
        }
        let elapsed_ms = served.elapsed.as_millis() as u64;
        Ok(ImageData { b64_json, blocked, seed, miner: served.miner.map(|m| m.to_string()), elapsed_ms })
    }

    /// All pictures, or the first error.
    pub(super) async fn all(&self) -> Result<ImageResponse, ApiError> {
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
        Ok(ImageResponse { created: clock::unix_ms() / 1000, made: self.order.made.clone(), data })
    }

    /// All pictures as events, in the order in which they are done.
    pub(super) async fn events(&self, out: &mpsc::Sender<ImageEvent>) -> Result<(), ApiError> {
        let mut pictures = stream::iter(0..self.order.n)
            .map(|index| async move { (index, self.followed(index, out).await) })
            .buffer_unordered(limits::IMAGES_AT_ONCE);
        let mut delivered = false;
        while let Some((index, image)) = pictures.next().await {
            let image = image?;
            delivered |= image.blocked.is_none();
            let kind = match image.blocked {
                None => self.order.names.completed,
                Some(_) => self.order.names.blocked,
            };
            let event = CompletedEvent {
                kind,
                index,
                created_at: clock::unix_ms() / 1000,
                made: self.order.made.clone(),
                quality: "auto",
                background: "opaque",
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
        let steps_of = self.order.made.steps.unwrap_or(1);
        let mut event = ProgressEvent::new(self.order.names.progress, index, steps_of);
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
    fn new(kind: &'static str, index: u32, of: u32) -> Self {
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

/// For the API document: an error inside a stream has the same body.
pub(super) fn error_event(error: &ApiError) -> ErrorBody {
    error.body()
}
