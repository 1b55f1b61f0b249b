//! What the submitter of a job hears, and how it stops the job.
//!
//! Invariant: a [`Delivery`] reports `Done` exactly once, on its way out of
//! scope at the latest.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::memory;

/// Stops a job from any thread, at its next step or before its first.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What happens to an accepted job, in this order: at most one `Started`, any
/// number of `Step` and `State`, exactly one `Done`.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent<Output = super::Output> {
    /// A replica took the job.
    Started,
    /// `step` of `of` is done, from 1.
    Step { step: u32, of: u32 },
    /// The sampler's next state, of [`super::Job::Trace`]: the first before the first step, then one after
    /// each.
    State(Vec<u8>),
    /// Nothing comes after this.
    Done(Result<Output, JobError>),
}

/// Why an accepted job gave no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct JobError {
    pub kind: JobErrorKind,
    /// For a person; holds neither prompts nor pictures.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum JobErrorKind {
    #[error("the job was cancelled")]
    Cancelled,
    #[error("the engine shut down before the job was done")]
    ShutDown,
    #[error("the device has too little memory for the job")]
    OutOfMemory,
    #[error("the model's computation failed")]
    Failed,
    #[error("the model's code panicked")]
    Panicked,
}

impl JobErrorKind {
    /// Stable label for metrics and wire errors.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::ShutDown => "shut_down",
            Self::OutOfMemory => "out_of_memory",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
        }
    }
}

impl JobError {
    pub fn new(kind: JobErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    pub fn cancelled() -> Self {
        Self::new(JobErrorKind::Cancelled, "")
    }

    /// A failure of a model.
    pub fn from_model(error: candle_core::Error) -> Self {
        let kind = match memory::is_short(&error) {
            true => JobErrorKind::OutOfMemory,
            false => JobErrorKind::Failed,
        };
        Self { kind, detail: error.to_string() }
    }

    /// Stable label for metrics and wire errors.
    pub fn reason(&self) -> &'static str {
        self.kind.reason()
    }
}

/// Receives a job's events. Called on an engine thread, or for a job that was
/// cancelled in the queue perhaps on another submitter's: it must return soon.
pub type EventSink<Output = super::Output> = Box<dyn FnMut(JobEvent<Output>) + Send>;

thread_local! {
    static INSIDE_SINK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is calling a sink, whose job cannot end before it returns.
pub(super) fn is_inside_sink() -> bool {
    INSIDE_SINK.get()
}

struct InsideSink {
    before: bool,
}

impl InsideSink {
    fn enter() -> Self {
        Self { before: INSIDE_SINK.replace(true) }
    }
}

impl Drop for InsideSink {
    fn drop(&mut self) {
        INSIDE_SINK.set(self.before);
    }
}

/// The way back to the submitter of one job.
pub(super) struct Delivery<Output> {
    sink: Option<EventSink<Output>>,
}

impl<Output> Delivery<Output> {
    pub(super) fn new(sink: EventSink<Output>) -> Self {
        Self { sink: Some(sink) }
    }

    /// A panic of the sink passes through, so that it ends the job.
    pub(super) fn progress(&mut self, event: JobEvent<Output>) {
        let _inside = InsideSink::enter();
        if let Some(sink) = &mut self.sink {
            sink(event);
        }
    }

    pub(super) fn done(mut self, result: Result<Output, JobError>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Output, JobError>) {
        if let Some(mut sink) = self.sink.take() {
            let _inside = InsideSink::enter();
            // What a sink does with its last event must not end a replica.
            let outcome = catch_unwind(AssertUnwindSafe(move || sink(JobEvent::Done(result))));
            if outcome.is_err() {
                tracing::error!("a job's event sink panicked");
            }
        }
    }
}

impl<Output> Drop for Delivery<Output> {
    fn drop(&mut self) {
        self.finish(Err(JobError::new(JobErrorKind::ShutDown, "")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn sink() -> (EventSink<u8>, mpsc::Receiver<JobEvent<u8>>) {
        let (sender, receiver) = mpsc::sync_channel(8);
        (Box::new(move |event| sender.send(event).unwrap()), receiver)
    }

    #[test]
    fn a_dropped_delivery_still_reports_done_once() {
        let (sink, events) = sink();
        drop(Delivery::new(sink));
        let shut_down = Err(JobError::new(JobErrorKind::ShutDown, ""));
        assert_eq!(events.iter().collect::<Vec<_>>(), [JobEvent::Done(shut_down)]);
    }

    #[test]
    fn a_finished_delivery_reports_nothing_more() {
        let (sink, events) = sink();
        Delivery::new(sink).done(Ok(7));
        assert_eq!(events.iter().collect::<Vec<_>>(), [JobEvent::Done(Ok(7))]);
    }

    #[test]
    fn a_panicking_sink_is_contained() {
        Delivery::<u8>::new(Box::new(|_| panic!("sink"))).done(Ok(1));
    }

    #[test]
    fn memory_failures_are_told_from_others() {
        for message in ["DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", "Out of Memory"] {
            assert_eq!(JobError::from_model(candle_core::Error::msg(message)).reason(), "out_of_memory");
        }
        let error = JobError::from_model(candle_core::Error::Msg("shape mismatch".to_owned()));
        assert_eq!(
            (error.reason(), error.to_string().as_str()),
            ("failed", "the model's computation failed: shape mismatch")
        );
        assert_eq!(JobError::cancelled().to_string(), "the job was cancelled");
    }
}
