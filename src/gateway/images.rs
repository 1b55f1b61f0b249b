//! The endpoints that answer with pictures: checks against the model's own ranges, makes the pictures, charges
//! for what was delivered.
//!
//! Each takes JSON, and a form where there are pictures to send. Bodies are read under their limit; pictures
//! are decoded for a few requests at a time, off the async threads.

use std::sync::Arc;

use argus_protocols::Task;
use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;

use super::{
    ApiError, ModelCard,
    api::App,
    ledger::thousandths,
    limits,
    orders::{
        Draft,
        requests::{
            ControlRequest, EditRequest, ImageRequest, ImageToImageRequest, InpaintRequest, UncropRequest,
            UpscaleRequest, VariationRequest,
        },
    },
    request,
    work::{CompletedEvent, EDIT, EventNames, GENERATION, ImageResponse, Job, Made, Order},
};
use crate::jobs;

/// One endpoint's way from a body to a draft.
trait Ask: DeserializeOwned {
    const NAMES: &'static EventNames = &EDIT;
    const BODY: usize = limits::PICTURE_BODY;

    fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError>;
}

impl Ask for ImageRequest {
    const NAMES: &'static EventNames = &GENERATION;
    const BODY: usize = limits::IMAGE_BODY;

    fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        ImageRequest::draft(self, cards)
    }
}

macro_rules! edits {
    ($($request:ident),*) => {$(
        impl Ask for $request {
            fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
                $request::draft(self, cards)
            }
        }
    )*};
}

edits!(
    EditRequest,
    VariationRequest,
    ImageToImageRequest,
    InpaintRequest,
    UncropRequest,
    ControlRequest,
    UpscaleRequest
);

async fn answer<A: Ask>(app: Arc<App>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let admission = app.admit(&headers)?;
    let place = app.place()?;
    let memory = (A::BODY > limits::IMAGE_BODY).then(|| app.picture_place()).transpose()?;
    let draft = request::read::<A>(&headers, body, A::BODY).await?.draft(&app.service.models())?;
    let (n, stream) = (draft.n, draft.stream);
    let task = prepared(&app, draft).await?;
    drop(memory);
    let price = thousandths(app.service.work(&task)?);
    let size = jobs::answer_size(&task).ok().flatten().ok_or_else(ApiError::internal)?;
    let made = Made::of(&task, size);
    let reservation =
        admission.reserve(price.saturating_mul(n.into())).map_err(|refusal| app.refused(refusal))?;
    let order = Order { task, made, n, price, names: A::NAMES };
    let job = Job { app: Arc::clone(&app), order, reservation, _place: place };
    if stream {
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

/// The task, its pictures decoded in turn with those of other requests.
async fn prepared(app: &App, draft: Draft) -> Result<Task, ApiError> {
    if !draft.has_pictures() {
        return draft.prepare(true);
    }
    app.decode(move || draft.prepare(true)).await?
}

/// Make pictures from words.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = "images",
    request_body(content((ImageRequest = "application/json"), (ImageRequest = "multipart/form-data"))),
    responses(
        (status = 200, description = "The pictures; with `stream`, server-sent events `image_generation.progress` \
          (ProgressEvent), `image_generation.completed` and `image_generation.blocked` (CompletedEvent), `error` \
          (ErrorBody), and `[DONE]` last",
         content((ImageResponse = "application/json"), (CompletedEvent = "text/event-stream"))),
    ),
    security(("key" = []))
)]
pub(super) async fn generations(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer::<ImageRequest>(app, headers, body).await
}

/// Defines a handler with its place in the API document.
macro_rules! endpoint {
    ($(#[doc = $about:literal])* $name:ident, $path:literal, $request:ident) => {
        $(#[doc = $about])*
        #[utoipa::path(
            post,
            path = $path,
            tag = "images",
            request_body(content(($request = "application/json"), ($request = "multipart/form-data"))),
            responses(
                (status = 200, description = "The pictures; with `stream`, server-sent events as of \
                  `/v1/images/generations`, named `image_edit.…`",
                 content((ImageResponse = "application/json"), (CompletedEvent = "text/event-stream"))),
            ),
            security(("key" = []))
        )]
        pub(super) async fn $name(
            State(app): State<Arc<App>>,
            headers: HeaderMap,
            body: Body,
        ) -> Result<Response, ApiError> {
            answer::<$request>(app, headers, body).await
        }
    };
}

endpoint! {
    /// Make a part of a picture, or all of it, anew, as OpenAI has it.
    edits, "/v1/images/edits", EditRequest
}
endpoint! {
    /// Make variations of a picture, as OpenAI has it.
    variations, "/v1/images/variations", VariationRequest
}
endpoint! {
    /// Make a picture from words and a picture.
    image_to_image, "/v1/images/image-to-image", ImageToImageRequest
}
endpoint! {
    /// Make a part of a picture anew.
    inpaint, "/v1/images/inpaint", InpaintRequest
}
endpoint! {
    /// Let a picture grow over its edges.
    uncrop, "/v1/images/uncrop", UncropRequest
}
endpoint! {
    /// Make a picture steered by an outline, edges or depth.
    controls, "/v1/images/controls", ControlRequest
}
endpoint! {
    /// Make a picture larger.
    upscale, "/v1/images/upscale", UpscaleRequest
}
