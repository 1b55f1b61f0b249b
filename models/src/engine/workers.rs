//! Replica threads behind one bounded queue, for any kind of work.
//!
//! Invariants: a job is refused at once or accepted; an accepted job gets
//! exactly one `Done`; no panic of a job ends a replica; never more than
//! `queue` jobs wait, cancelled ones not counted against a newcomer.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::delivery::{CancelToken, Delivery, EventSink, JobError, JobErrorKind, JobEvent, is_inside_sink};

/// Does the work of one replica's jobs.
pub trait Backend: Send + 'static {
    type Job: Send + 'static;
    type Output: Send + 'static;

    /// Runs one job. Calls [`Control::step`] after each step, and ends with its
    /// error when it gives one.
    fn run(&mut self, job: Self::Job, control: &mut Control<Self::Output>) -> Result<Self::Output, JobError>;
}

/// Why a job was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the queue of {limit} jobs is full: try again later")]
    Full { limit: usize },
    #[error("this engine does not run model `{0}`")]
    UnknownModel(String),
    #[error("invalid parameters: {0}")]
    InvalidParameters(String),
    #[error("the engine is shutting down")]
    ShuttingDown,
}

impl SubmitError {
    /// Stable label for metrics and wire errors.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::UnknownModel(_) => "unknown_model",
            Self::InvalidParameters(_) => "invalid_parameters",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// What becomes of the jobs that a shutdown finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// They are finished, queued ones as well.
    Drain,
    /// Queued ones fail at once, running ones at their next step.
    Cancel,
}

/// The engine at one moment, and its totals since the start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Snapshot {
    pub replicas: usize,
    pub queue_limit: usize,
    pub queued: usize,
    pub running: usize,
    /// Estimated device time of the queued jobs, over all replicas.
    pub backlog: Duration,
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Time that replicas spent on jobs, summed over replicas.
    pub busy: Duration,
}

/// A running job's line to its submitter.
pub struct Control<'a, Output> {
    delivery: &'a mut Delivery<Output>,
    cancel: &'a CancelToken,
    stop: &'a CancelToken,
}

impl<'a, Output> Control<'a, Output> {
    pub(super) fn new(
        delivery: &'a mut Delivery<Output>,
        cancel: &'a CancelToken,
        stop: &'a CancelToken,
    ) -> Self {
        Self { delivery, cancel, stop }
    }

    /// Reports that `step` of `of` is done; an error if the job shall end.
    pub fn step(&mut self, step: u32, of: u32) -> Result<(), JobError> {
        self.check()?;
        self.delivery.progress(JobEvent::Step { step, of });
        Ok(())
    }

    /// Reports a state of the job's sampler.
    pub fn state(&mut self, state: Vec<u8>) {
        self.delivery.progress(JobEvent::State(state));
    }

    /// An error if the job shall end.
    pub fn check(&self) -> Result<(), JobError> {
        if self.cancel.is_cancelled() {
            Err(JobError::cancelled())
        } else if self.stop.is_cancelled() {
            Err(JobError::new(JobErrorKind::ShutDown, ""))
        } else {
            Ok(())
        }
    }
}

/// A job that waits, with the way back to its submitter.
struct Queued<B: Backend> {
    job: B::Job,
    estimate: Duration,
    cancel: CancelToken,
    delivery: Delivery<B::Output>,
}

struct State<B: Backend> {
    queue: VecDeque<Queued<B>>,
    open: bool,
    threads: Vec<JoinHandle<()>>,
    alive: usize,
    totals: Snapshot,
}

struct Shared<B: Backend> {
    state: Mutex<State<B>>,
    /// A job was queued, or the queue closed, or a replica ended.
    changed: Condvar,
    stop: CancelToken,
}

/// The replica threads. Dropping this cancels what is left and joins them.
pub struct Workers<B: Backend> {
    shared: Arc<Shared<B>>,
    replicas: usize,
    queue_limit: usize,
}

impl<B: Backend> Workers<B> {
    /// Starts one thread for each backend.
    pub fn start(backends: Vec<B>, queue_limit: usize) -> std::io::Result<Self> {
        let replicas = backends.len();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: VecDeque::with_capacity(queue_limit),
                open: true,
                threads: Vec::with_capacity(replicas),
                alive: 0,
                totals: Snapshot { replicas, queue_limit, ..Snapshot::default() },
            }),
            changed: Condvar::new(),
            stop: CancelToken::new(),
        });
        // Dropped on an early return, this ends the threads that did start.
        let workers = Self { shared, replicas, queue_limit };
        for (number, mut backend) in backends.into_iter().enumerate() {
            let mut state = workers.shared.lock();
            let shared = Arc::clone(&workers.shared);
            let thread = thread::Builder::new().name(format!("replica-{number}")).spawn(move || {
                let replica = Replica { shared: &shared };
                while let Some(queued) = replica.next() {
                    replica.run(&mut backend, queued);
                }
            })?;
            state.alive += 1;
            state.threads.push(thread);
        }
        Ok(workers)
    }

    /// Queues a job, or refuses it at once. Gives the number of jobs waiting
    /// before it. `estimate` is the expected device time.
    pub fn submit(
        &self,
        job: B::Job,
        estimate: Duration,
        cancel: CancelToken,
        sink: EventSink<B::Output>,
    ) -> Result<usize, SubmitError> {
        let mut abandoned = Vec::new();
        let mut state = self.shared.lock();
        if !state.open {
            return Err(SubmitError::ShuttingDown);
        }
        if state.queue.len() >= self.queue_limit {
            abandoned = state.take_cancelled();
        }
        let position = state.queue.len();
        let accepted = position < self.queue_limit;
        if accepted {
            state.queue.push_back(Queued { job, estimate, cancel, delivery: Delivery::new(sink) });
            self.shared.changed.notify_one();
        }
        drop(state);
        for queued in abandoned {
            queued.delivery.done(Err(JobError::cancelled()));
        }
        if accepted { Ok(position) } else { Err(SubmitError::Full { limit: self.queue_limit }) }
    }

    /// Refuses new jobs, lets the accepted ones end as `mode` says, and waits for
    /// the replicas. May be called again, also meanwhile: `Cancel` overrules
    /// `Drain`. Called from an event sink, it does not wait.
    pub fn shutdown(&self, mode: Shutdown) {
        let mut state = self.shared.lock();
        state.open = false;
        let abandoned = match mode {
            Shutdown::Drain => VecDeque::new(),
            Shutdown::Cancel => {
                self.shared.stop.cancel();
                let abandoned = std::mem::take(&mut state.queue);
                state.totals.failed += abandoned.len() as u64;
                abandoned
            }
        };
        self.shared.changed.notify_all();
        drop(state);
        // Each reports that the engine shut down.
        drop(abandoned);
        if is_inside_sink() {
            return;
        }
        let mut state = self.shared.lock();
        while state.alive > 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        for thread in threads {
            // A replica's panics are caught; were one not, there is nothing to save.
            let _ = thread.join();
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let state = self.shared.lock();
        let estimates: Duration = state.queue.iter().map(|queued| queued.estimate).sum();
        Snapshot {
            queued: state.queue.len(),
            backlog: estimates / self.replicas.max(1) as u32,
            ..state.totals
        }
    }
}

impl<B: Backend> Drop for Workers<B> {
    fn drop(&mut self) {
        self.shutdown(Shutdown::Cancel);
    }
}

impl<B: Backend> Shared<B> {
    /// Nothing that can panic runs under the lock, so its state is whole even
    /// if it was poisoned.
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> State<B> {
    fn take_cancelled(&mut self) -> Vec<Queued<B>> {
        let (cancelled, waiting): (Vec<_>, Vec<_>) =
            self.queue.drain(..).partition(|queued| queued.cancel.is_cancelled());
        self.queue.extend(waiting);
        self.totals.cancelled += cancelled.len() as u64;
        cancelled
    }
}

/// One replica thread's side.
struct Replica<'a, B: Backend> {
    shared: &'a Shared<B>,
}

impl<B: Backend> Replica<'_, B> {
    /// Waits for a job; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Queued<B>> {
        let mut state = self.shared.lock();
        loop {
            if let Some(queued) = state.queue.pop_front() {
                state.totals.running += 1;
                return Some(queued);
            }
            if !state.open {
                return None;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, backend: &mut B, queued: Queued<B>) {
        let Queued { job, cancel, mut delivery, .. } = queued;
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut control = Control::new(&mut delivery, &cancel, &self.shared.stop);
            control.check()?;
            control.delivery.progress(JobEvent::Started);
            backend.run(job, &mut control)
        }))
        .unwrap_or_else(|panic| Err(JobError::new(JobErrorKind::Panicked, panic_message(&*panic))));
        let mut state = self.shared.lock();
        state.totals.running -= 1;
        state.totals.busy += start.elapsed();
        match &result {
            Ok(_) => state.totals.done += 1,
            Err(error) if error.kind == JobErrorKind::Cancelled => state.totals.cancelled += 1,
            Err(_) => state.totals.failed += 1,
        }
        drop(state);
        if let Err(error) = &result {
            tracing::debug!(reason = error.reason(), "a job failed");
        }
        delivery.done(result);
    }
}

impl<B: Backend> Drop for Replica<'_, B> {
    fn drop(&mut self) {
        self.shared.lock().alive -= 1;
        self.shared.changed.notify_all();
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
#[path = "workers_tests.rs"]
mod tests;
