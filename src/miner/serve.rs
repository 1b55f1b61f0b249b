//! One admitted query from its body to its receipt.

use std::{sync::Arc, time::Duration};

use argus_protocols::{Answer, Hotkey, PeerId, Reason, Rejection, Task};
use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{Shared, backend::Step, slots::Turn};
use crate::net::{InboundQuery, StreamError};

/// Steps on their way to the validator; more are dropped, the next one says as much.
const STEPS: usize = 4;
/// What sending the answer may take of the time that is left.
const MARGIN: Duration = Duration::from_millis(50);

/// A query that was let in. Holds its place until dropped.
pub(super) struct Admitted {
    query: InboundQuery,
    place: Held,
}

/// A place of admission.
struct Held {
    shared: Arc<Shared>,
    validator: Hotkey,
    peer: PeerId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.admission.lock().leave(&self.validator, &self.peer);
        self.shared.measure();
    }
}

/// How a query ended that brought no answer.
enum Ended {
    /// The validator is told.
    Rejected(Rejection),
    /// There is nobody to tell.
    Stream(StreamError),
}

impl From<Reason> for Ended {
    fn from(reason: Reason) -> Self {
        Ended::Rejected(Rejection::new(reason))
    }
}

impl From<StreamError> for Ended {
    fn from(error: StreamError) -> Self {
        Ended::Stream(error)
    }
}

impl Shared {
    fn measure(&self) {
        self.metrics.load(self.slots.at_work(), self.slots.waiting(), self.admission.lock().held());
    }
}

impl Admitted {
    pub(super) fn new(shared: Arc<Shared>, query: InboundQuery) -> Self {
        shared.measure();
        let place = Held { shared, validator: query.open().validator, peer: query.peer() };
        Self { query, place }
    }

    pub(super) async fn serve(self) {
        let Self { mut query, place } = self;
        let shared = &place.shared;
        let id = query.open().id;
        let validator = query.open().validator.short();
        let task = query.open().task();
        let begun = Instant::now();
        match answer(shared, &mut query).await {
            Ok((answer, took)) => {
                let withheld = matches!(answer, Answer::Nsfw(_));
                let body = Bytes::from(answer.to_bytes());
                let compute_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
                match query.finish(body, compute_ms).await {
                    Ok(_) => {
                        shared.metrics.answered(task, begun.elapsed(), withheld);
                        tracing::debug!(query = %id, validator, compute_ms, withheld, "answered");
                    }
                    Err(error) => {
                        shared.metrics.broken(error.reason());
                        tracing::debug!(query = %id, validator, reason = error.reason(), "the answer was not taken");
                    }
                }
            }
            Err(Ended::Rejected(rejection)) => {
                shared.metrics.refused(rejection.reason);
                tracing::debug!(query = %id, validator, reason = %rejection.reason, "no answer");
                query.reject(rejection).await;
            }
            Err(Ended::Stream(error)) => {
                shared.metrics.broken(error.reason());
                tracing::debug!(query = %id, validator, reason = error.reason(), "the query broke off");
            }
        }
    }
}

/// The answer, and how long the work took.
async fn answer(shared: &Shared, query: &mut InboundQuery) -> Result<(Answer, Duration), Ended> {
    let total = Duration::from_millis(query.open().deadlines.total_ms.into());
    let deadline = Instant::now() + total;
    let (task, work) = read(shared, query).await?;
    let weight = shared.weight(&query.open().validator);
    let mut place = shared.slots.enter(query.open().validator, weight, work);
    query.accept(place.position as u32).await?;
    let turn = tokio::select! {
        turn = place.turn() => turn,
        () = query.closed() => return Err(StreamError::Closed.into()),
        () = sleep_until(deadline) => return Err(Reason::TimedOut.into()),
        () = shared.closing.cancelled() => return Err(Reason::Cancelled.into()),
    };
    let expected = shared.slots.time_for(task.kind(), task.model(), work);
    if Instant::now() + expected + MARGIN > deadline {
        return Err(Reason::TimedOut.into());
    }
    compute(shared, query, task, work, turn, deadline).await
}

/// Reads the body and checks what it asks for.
async fn read(shared: &Shared, query: &mut InboundQuery) -> Result<(Task, f64), Ended> {
    let limit = Duration::from_millis(shared.settings.body_ms.into());
    let body = timeout(limit, query.body()).await.map_err(|_| Ended::from(Reason::TimedOut))??;
    let task = Task::from_bytes(&body).map_err(|_| Ended::from(Reason::Invalid))?;
    let open = query.open();
    if task.kind().code() != open.task || task.model() != open.model {
        return Err(Reason::Invalid.into());
    }
    let work = shared.backend.work(&task).map_err(|error| {
        tracing::debug!(query = %open.id, %error, "invalid request");
        Ended::from(error.reason())
    })?;
    Ok((task, work))
}

async fn compute(
    shared: &Shared,
    query: &mut InboundQuery,
    task: Task,
    work: f64,
    turn: Turn,
    deadline: Instant,
) -> Result<(Answer, Duration), Ended> {
    let (kind, model) = (task.kind(), task.model().to_owned());
    let (steps, mut made) = mpsc::channel(STEPS);
    let begun = Instant::now();
    let mut job = shared.backend.run(task, steps);
    // Dropping the job on any way out cancels it.
    let result = loop {
        tokio::select! {
            result = &mut job => break result,
            Some(Step { step, of }) = made.recv() => query.progress(step, of).await?,
            () = query.closed() => return Err(StreamError::Closed.into()),
            () = sleep_until(deadline) => return Err(Reason::TimedOut.into()),
            () = shared.abort.cancelled() => return Err(Reason::Cancelled.into()),
        }
    };
    drop(turn);
    let took = begun.elapsed();
    let answer = result.map_err(|error| {
        tracing::warn!(query = %query.open().id, reason = %error.reason(), %error, "a job gave no answer");
        Ended::from(error.reason())
    })?;
    shared.slots.measured(kind, &model, work, took);
    Ok((answer, took))
}
