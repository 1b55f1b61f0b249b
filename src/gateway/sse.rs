//! Server-sent events for a request whose work runs in a task of its own.
//!
//! The task ends with the stream: a client that goes away drops the stream, which aborts the task, which
//! drops the service's future, which cancels the work. The task never waits for a slow client except with
//! a finished picture in hand.

use std::{convert::Infallible, future::Future, sync::Arc};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::Instrument;

use super::{
    ApiError,
    api::App,
    limits,
    work::{ImageEvent, error_event},
};

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `work` and answers with its events. When it fails before its first event, or within a moment, the
/// answer is the error with its own status instead of a stream.
pub(super) async fn respond<W, F>(app: &Arc<App>, work: W) -> Result<Response, ApiError>
where
    W: FnOnce(mpsc::Sender<ImageEvent>) -> F + Send + 'static,
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (out, mut events) = mpsc::channel(limits::PROGRESS);
    let task = tokio::spawn(
        {
            let app = Arc::clone(app);
            async move {
                let cancelled = app.count_cancelled();
                let result = tokio::time::timeout(app.timeout(), work(out.clone())).await;
                cancelled.finished();
                let result = result.unwrap_or_else(|_| {
                    app.metrics.fail("timed_out");
                    Err(ApiError::timed_out())
                });
                if let Err(error) = result {
                    let _ = out.send(ImageEvent::Failed(error)).await;
                }
            }
        }
        .in_current_span(),
    );
    let task = AbortOnDrop(task);
    let first = match tokio::time::timeout(limits::FIRST_EVENT, events.recv()).await {
        Ok(Some(ImageEvent::Failed(error))) => return Err(error),
        Ok(first) => first,
        Err(_) => None,
    };
    let rest = stream::unfold((events, task), |(mut events, task)| async move {
        events.recv().await.map(|event| (event, (events, task)))
    });
    let all = stream::iter(first).chain(rest);
    let keep_alive = KeepAlive::new().interval(limits::KEEP_ALIVE).text("keep-alive");
    Ok(Sse::new(encoded(all)).keep_alive(keep_alive).into_response())
}

fn encoded(events: impl Stream<Item = ImageEvent>) -> impl Stream<Item = Result<Event, Infallible>> {
    events
        .map(|event| match event {
            ImageEvent::Progress(progress) => named(progress.kind, &progress),
            ImageEvent::Completed(completed) => named(completed.kind, &completed),
            ImageEvent::Failed(error) => named("error", &error_event(&error)),
        })
        .chain(stream::iter([Event::default().data("[DONE]")]))
        .map(Ok)
}

fn named(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).json_data(data).expect("events are plain data without newlines")
}
