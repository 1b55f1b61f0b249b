//! One admitted query from its body to its receipt.

use std::{sync::Arc, time::Duration};

use argus_protocols::{Answer, Hotkey, PeerId, Reason, Rejection, Task};
use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Shared,
    backend::Step,
    slots::Turn,
    trajectory::{Room, Trajectory},
};
use crate::net::{Committed, InboundQuery, StreamError};

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
            Ok(Done { answer, trajectory, took }) => {
                let withheld = matches!(answer, Answer::Nsfw(_));
                let body = Bytes::from(answer.to_bytes());
                let compute_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
                let finished = match &trajectory {
                    None => query.finish(body, compute_ms).await.map(|_| None),
                    Some(made) => query.finish_committed(body, compute_ms, made.commitment()).await.map(Some),
                };
                match finished {
                    Ok(committed) => {
                        shared.metrics.answered(task, begun.elapsed(), withheld);
                        tracing::debug!(query = %id, validator, compute_ms, withheld, "answered");
                        // Waiting to be asked is no work.
                        let shared = shared.clone();
                        drop(place);
                        if let (Some(committed), Some(trajectory)) = (committed, trajectory) {
                            let outcome = open(&shared, committed, &trajectory).await;
                            shared.metrics.challenged(outcome);
                            tracing::debug!(query = %id, validator, outcome, "the wait for a challenge is over");
                        }
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

/// What came of a query.
struct Done {
    answer: Answer,
    /// What the answer can be audited by.
    trajectory: Option<Trajectory>,
    /// How long the work took.
    took: Duration,
}

/// Waits for a validator to ask for states of the run that it has just been given, and shows them. Says how
/// that ended, for metrics.
async fn open(shared: &Shared, committed: Committed, trajectory: &Trajectory) -> &'static str {
    let challenged = tokio::select! {
        challenged = committed.challenge() => challenged,
        () = shared.abort.cancelled() => return "cancelled",
    };
    let (challenge, committed) = match challenged {
        Ok(Some(challenged)) => challenged,
        Ok(None) => return "not_asked",
        Err(error) => return error.reason(),
    };
    let Some(opening) = trajectory.open(&challenge) else {
        committed.refuse(Rejection::new(Reason::Invalid)).await;
        return "invalid";
    };
    match committed.open(opening.to_bytes().into()).await {
        Ok(()) => "opened",
        Err(error) => error.reason(),
    }
}

async fn answer(shared: &Shared, query: &mut InboundQuery) -> Result<Done, Ended> {
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
) -> Result<Done, Ended> {
    let (kind, model) = (task.kind(), task.model().to_owned());
    let (steps, mut made) = mpsc::channel(STEPS);
    let begun = Instant::now();
    let room = shared.shelf.room();
    let most = room.as_ref().map_or(0, Room::bytes);
    let mut job = shared.backend.run_traced(task, steps, most);
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
    let (answer, states) = result.map_err(|error| {
        tracing::warn!(query = %query.open().id, reason = %error.reason(), %error, "a job gave no answer");
        Ended::from(error.reason())
    })?;
    shared.slots.measured(kind, &model, work, took);
    let trajectory = match room.filter(|_| matches!(answer, Answer::Picture(_)) && !states.is_empty()) {
        // A hash of megabytes takes milliseconds.
        Some(room) => tokio::task::spawn_blocking(|| Trajectory::new(states, room)).await.ok().flatten(),
        None => None,
    };
    Ok(Done { answer, trajectory, took })
}
