use std::sync::{
    atomic::{AtomicUsize, Ordering},
    mpsc::{self, Receiver, SyncSender},
};

use super::*;

/// A backend whose jobs do what their name says.
struct Bench {
    runs: Arc<AtomicUsize>,
}

enum Work {
    /// Gives back this number, after as many steps.
    Count(u32),
    /// Steps each time the other side sends, until it hangs up.
    Paced(Receiver<()>),
    Panic,
    Fail,
}

impl Backend for Bench {
    type Job = Work;
    type Output = u32;

    fn run(&mut self, job: Work, control: &mut Control<u32>) -> Result<u32, JobError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        match job {
            Work::Count(of) => {
                for step in 1..=of {
                    control.step(step, of)?;
                }
                Ok(of)
            }
            Work::Paced(pace) => {
                let mut steps = 0;
                while pace.recv().is_ok() {
                    steps += 1;
                    control.step(steps, u32::MAX)?;
                }
                Ok(steps)
            }
            Work::Panic => panic!("a bug of the model"),
            Work::Fail => Err(JobError::from_model(candle_core::Error::msg("shape mismatch"))),
        }
    }
}

type Event = JobEvent<u32>;

/// Workers, and how many jobs their backends have begun.
fn workers(replicas: usize, queue: usize) -> (Workers<Bench>, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let backends = (0..replicas).map(|_| Bench { runs: Arc::clone(&runs) }).collect();
    (Workers::start(backends, queue).unwrap(), runs)
}

fn sink() -> (EventSink<u32>, Receiver<Event>) {
    let (sender, receiver) = mpsc::sync_channel(1024);
    (Box::new(move |event| sender.send(event).unwrap()), receiver)
}

impl Workers<Bench> {
    fn put(&self, work: Work, cancel: &CancelToken) -> Result<Receiver<Event>, SubmitError> {
        let (sink, events) = sink();
        self.submit(work, Duration::from_secs(1), cancel.clone(), sink).map(|_| events)
    }

    /// A job that runs, and holds its replica until the sender is dropped.
    fn hold(&self, cancel: &CancelToken) -> (SyncSender<()>, Receiver<Event>) {
        let (pace, paced) = mpsc::sync_channel(1);
        let events = self.put(Work::Paced(paced), cancel).unwrap();
        assert_eq!(events.recv().unwrap(), Event::Started);
        (pace, events)
    }
}

/// The error of the `Done` that must be the last event.
fn failure(events: &Receiver<Event>) -> JobErrorKind {
    let all: Vec<Event> = events.iter().collect();
    let dones = all.iter().filter(|event| matches!(event, Event::Done(_))).count();
    match all.last() {
        Some(Event::Done(Err(error))) if dones == 1 => error.kind,
        other => panic!("{dones} ends, the last event {other:?}"),
    }
}

#[test]
fn a_job_reports_start_steps_and_output_in_order() {
    let (workers, _) = workers(1, 4);
    let events = workers.put(Work::Count(2), &CancelToken::new()).unwrap();
    let expected =
        [Event::Started, Event::Step { step: 1, of: 2 }, Event::Step { step: 2, of: 2 }, Event::Done(Ok(2))];
    assert_eq!(events.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_full_queue_refuses_at_once_and_says_its_limit() {
    let (workers, _) = workers(1, 2);
    let token = CancelToken::new();
    let (pace, held) = workers.hold(&token);
    let waiting: Vec<_> = (0..2).map(|n| workers.put(Work::Count(n), &token).unwrap()).collect();
    let refused = workers.put(Work::Count(9), &token).unwrap_err();
    assert_eq!((refused.reason(), refused), ("full", SubmitError::Full { limit: 2 }));
    let snapshot = workers.snapshot();
    assert_eq!((snapshot.queued, snapshot.running, snapshot.backlog), (2, 1, Duration::from_secs(2)));
    drop(pace);
    assert_eq!(held.iter().last(), Some(Event::Done(Ok(0))));
    for (n, events) in waiting.iter().enumerate() {
        assert_eq!(events.iter().last(), Some(Event::Done(Ok(n as u32))));
    }
}

#[test]
fn a_running_job_ends_at_the_step_after_its_cancel() {
    let (workers, _) = workers(1, 4);
    let token = CancelToken::new();
    let (pace, events) = workers.hold(&token);
    pace.send(()).unwrap();
    assert_eq!(events.recv().unwrap(), Event::Step { step: 1, of: u32::MAX });
    token.cancel();
    pace.send(()).unwrap();
    assert_eq!(failure(&events), JobErrorKind::Cancelled);
    assert_eq!(workers.snapshot().cancelled, 1);
}

#[test]
fn jobs_cancelled_in_the_queue_never_run_and_make_room() {
    let (workers, runs) = workers(1, 2);
    let (pace, _held) = workers.hold(&CancelToken::new());
    let (gone, kept) = (CancelToken::new(), CancelToken::new());
    let first = workers.put(Work::Count(1), &gone).unwrap();
    let second = workers.put(Work::Count(2), &kept).unwrap();
    gone.cancel();
    let third = workers.put(Work::Count(3), &kept).unwrap();
    assert_eq!(failure(&first), JobErrorKind::Cancelled);
    kept.cancel();
    drop(pace);
    assert_eq!((failure(&second), failure(&third)), (JobErrorKind::Cancelled, JobErrorKind::Cancelled));
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!(workers.snapshot().cancelled, 3);
}

#[test]
fn panics_and_failures_are_typed_and_the_replica_lives_on() {
    let (workers, _) = workers(1, 8);
    let token = CancelToken::new();
    let panicked = workers.put(Work::Panic, &token).unwrap();
    let failed = workers.put(Work::Fail, &token).unwrap();
    let fine = workers.put(Work::Count(0), &token).unwrap();
    let last = panicked.iter().last();
    assert_eq!(last, Some(Event::Done(Err(JobError::new(JobErrorKind::Panicked, "a bug of the model")))));
    assert_eq!(failure(&failed), JobErrorKind::Failed);
    assert_eq!(fine.iter().last(), Some(Event::Done(Ok(0))));
    let Snapshot { done, failed, running, .. } = workers.snapshot();
    assert_eq!((done, failed, running), (1, 2, 0));
}

#[test]
fn a_panicking_sink_ends_only_its_own_job() {
    let (workers, _) = workers(1, 8);
    let sink: EventSink<u32> = Box::new(|_| panic!("a bug of the submitter"));
    workers.submit(Work::Count(3), Duration::ZERO, CancelToken::new(), sink).unwrap();
    let fine = workers.put(Work::Count(0), &CancelToken::new()).unwrap();
    assert_eq!(fine.iter().last(), Some(Event::Done(Ok(0))));
}

#[test]
fn draining_finishes_what_was_accepted_and_refuses_the_rest() {
    let (workers, _) = workers(1, 8);
    let token = CancelToken::new();
    let (pace, held) = workers.hold(&token);
    let queued = workers.put(Work::Count(5), &token).unwrap();
    thread::scope(|scope| {
        let drain = scope.spawn(|| workers.shutdown(Shutdown::Drain));
        // The held replica leaves what gets in meanwhile in the queue, until that is full.
        while !matches!(workers.put(Work::Count(0), &token), Err(SubmitError::ShuttingDown)) {
            thread::yield_now();
        }
        assert!(!drain.is_finished());
        drop(pace);
    });
    assert_eq!(held.iter().last(), Some(Event::Done(Ok(0))));
    assert_eq!(queued.iter().last(), Some(Event::Done(Ok(5))));
    workers.shutdown(Shutdown::Drain);
}

#[test]
fn cancelling_overrules_draining_and_ends_everything() {
    let (workers, runs) = workers(1, 8);
    let token = CancelToken::new();
    let (pace, held) = workers.hold(&token);
    let queued = workers.put(Work::Count(5), &token).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| workers.shutdown(Shutdown::Drain));
        let cancel = scope.spawn(|| workers.shutdown(Shutdown::Cancel));
        assert_eq!(failure(&queued), JobErrorKind::ShutDown);
        while !cancel.is_finished() {
            // The running job notices at its next step.
            let _ = pace.send(());
            thread::yield_now();
        }
    });
    assert_eq!(failure(&held), JobErrorKind::ShutDown);
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!((workers.snapshot().failed, workers.snapshot().queued), (2, 0));
}

#[test]
fn the_last_handle_may_be_dropped_in_a_sink() {
    let (workers, _) = workers(2, 8);
    let workers = Arc::new(workers);
    let (sender, receiver) = mpsc::sync_channel(1);
    let (go, wait) = mpsc::sync_channel::<()>(1);
    let mut own = vec![Arc::clone(&workers)];
    let sink: EventSink<u32> = Box::new(move |event| {
        if let Event::Done(_) = event {
            wait.recv().unwrap();
            own.clear();
            sender.send(()).unwrap();
        }
    });
    workers.submit(Work::Count(0), Duration::ZERO, CancelToken::new(), sink).unwrap();
    drop(workers);
    go.send(()).unwrap();
    receiver.recv().unwrap();
}

#[test]
fn many_submitters_and_replicas_lose_nothing() {
    const SUBMITTERS: u32 = 8;
    const JOBS: u32 = 50;
    let (workers, runs) = workers(3, 5);
    let accepted = AtomicUsize::new(0);
    thread::scope(|scope| {
        for submitter in 0..SUBMITTERS {
            let (workers, accepted) = (&workers, &accepted);
            scope.spawn(move || {
                for job in 0..JOBS {
                    let cancel = CancelToken::new();
                    let work = if (submitter + job) % 7 == 0 { Work::Panic } else { Work::Count(job % 3) };
                    match workers.put(work, &cancel) {
                        Ok(events) => {
                            accepted.fetch_add(1, Ordering::Relaxed);
                            if job % 5 == 0 {
                                cancel.cancel();
                            }
                            let dones = events.iter().filter(|event| matches!(event, Event::Done(_))).count();
                            assert_eq!(dones, 1);
                        }
                        Err(error) => assert_eq!(error.reason(), "full"),
                    }
                }
            });
        }
    });
    let snapshot = workers.snapshot();
    assert_eq!((snapshot.queued, snapshot.running), (0, 0));
    let ended = snapshot.done + snapshot.failed + snapshot.cancelled;
    assert_eq!(ended as usize, accepted.load(Ordering::Relaxed));
    assert!(runs.load(Ordering::Relaxed) <= accepted.load(Ordering::Relaxed));
}
