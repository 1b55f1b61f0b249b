//! A metagraph that keeps itself fresh.
//!
//! One task reads the chain and everybody else reads a `watch` channel. While the chain cannot be
//! reached, the last good metagraph stays, with its age and the last error beside it; the pause between
//! attempts grows up to [`LONGEST_PAUSE`]. The task ends with its shutdown token or its last reader.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Chain, ChainError, Head, Metagraph, Settings};

/// However fast blocks come, the metagraph is read no more often than this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two attempts while the chain fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is known of the subnet now.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The last one that was read; none before the first success.
    pub metagraph: Option<Arc<Metagraph>>,
    pub head: Option<Head>,
    /// When it was read.
    pub read_at: Option<Instant>,
    /// Failed attempts since.
    pub failures: u32,
    /// Why the last attempt failed, while it did.
    pub error: Option<Arc<ChainError>>,
}

impl View {
    /// How old the metagraph is.
    pub fn age(&self) -> Option<Duration> {
        self.read_at.map(|at| at.elapsed())
    }

    /// The block that the chain should have reached by now.
    pub fn estimated_block(&self) -> Option<u64> {
        let (head, age) = (self.head?, self.age()?);
        let blocks = age.as_millis() / head.block_time.as_millis().max(1);
        Some(head.block.saturating_add(u64::try_from(blocks).unwrap_or(u64::MAX)))
    }
}

/// A reader of the cached metagraph. Clones share one task.
#[derive(Clone)]
pub struct Watch {
    view: watch::Receiver<View>,
    hurry: Arc<Notify>,
    stale_after: Duration,
}

impl Watch {
    /// Starts reading a subnet.
    pub fn start(
        chain: Arc<dyn Chain>,
        netuid: u16,
        settings: &Settings,
        shutdown: CancellationToken,
    ) -> (Watch, JoinHandle<()>) {
        let (sender, view) = watch::channel(View::default());
        let hurry = Arc::new(Notify::new());
        let task = Task {
            chain,
            netuid,
            refresh: (settings.refresh_ms > 0).then(|| Duration::from_millis(settings.refresh_ms)),
            sender,
            hurry: hurry.clone(),
        };
        let watch = Watch { view, hurry, stale_after: settings.stale_after() };
        (watch, tokio::spawn(task.run(shutdown)))
    }

    /// A watch that always shows this metagraph, for nodes without a chain and for tests.
    pub fn fixed(metagraph: Metagraph) -> Watch {
        let view =
            View { metagraph: Some(Arc::new(metagraph)), read_at: Some(Instant::now()), ..View::default() };
        Watch { view: watch::channel(view).1, hurry: Arc::default(), stale_after: Duration::MAX }
    }

    /// The last good metagraph, however old.
    pub fn metagraph(&self) -> Option<Arc<Metagraph>> {
        self.view.borrow().metagraph.clone()
    }

    /// Everything that is known now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Whether there is no metagraph, or one older than the settings call fresh.
    pub fn is_stale(&self) -> bool {
        self.view.borrow().age().is_none_or(|age| age > self.stale_after)
    }

    /// Asks for a new reading now, e.g. after weights were set.
    pub fn refresh(&self) {
        self.hurry.notify_one();
    }

    /// Waits for the next reading or failure. `false` when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.view.changed().await.is_ok()
    }

    /// The metagraph as soon as there is one; the last error when none came in time.
    pub async fn ready(&self, within: Duration) -> Result<Arc<Metagraph>, Arc<ChainError>> {
        let mut view = self.view.clone();
        let found = tokio::time::timeout(within, view.wait_for(|v| v.metagraph.is_some())).await;
        if let Ok(Ok(view)) = found {
            return Ok(view.metagraph.clone().expect("just waited for it"));
        }
        let error = self.view.borrow().error.clone();
        Err(error.unwrap_or_else(|| {
            Arc::new(ChainError::TimedOut { endpoint: "the chain".into(), waited: within })
        }))
    }
}

struct Task {
    chain: Arc<dyn Chain>,
    netuid: u16,
    refresh: Option<Duration>,
    sender: watch::Sender<View>,
    hurry: Arc<Notify>,
}

impl Task {
    async fn run(self, shutdown: CancellationToken) {
        loop {
            let read = tokio::select! {
                read = self.read() => read,
                () = shutdown.cancelled() => return,
                () = self.sender.closed() => return,
            };
            let pause = match read {
                Ok((head, metagraph)) => self.publish(head, metagraph),
                Err(error) => self.publish_failure(error),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.hurry.notified() => {}
                () = shutdown.cancelled() => return,
                () = self.sender.closed() => return,
            }
        }
    }

    async fn read(&self) -> Result<(Head, Metagraph), ChainError> {
        let head = self.chain.head().await?;
        Ok((head, self.chain.metagraph(self.netuid).await?))
    }

    /// Returns the pause until the next reading.
    fn publish(&self, head: Head, metagraph: Metagraph) -> Duration {
        self.sender.send_modify(|view| {
            if view.failures > 0 {
                tracing::info!(failures = view.failures, "the chain answers again");
            }
            *view = View {
                metagraph: Some(Arc::new(metagraph)),
                head: Some(head),
                read_at: Some(Instant::now()),
                failures: 0,
                error: None,
            };
        });
        self.refresh.unwrap_or(head.block_time).max(SHORTEST_PAUSE)
    }

    fn publish_failure(&self, error: ChainError) -> Duration {
        let mut failures = 0;
        self.sender.send_modify(|view| {
            if view.failures == 0 {
                tracing::warn!(%error, reason = error.reason(), "cannot read the metagraph");
            }
            view.failures = view.failures.saturating_add(1);
            view.error = Some(Arc::new(error));
            failures = view.failures;
        });
        SHORTEST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use argus_protocols::HotkeyPair;
    use parking_lot::Mutex;

    use super::*;
    use crate::chain::{Hash, Hyperparameters, Inclusion};

    /// A chain that answers what it is told to.
    struct Scripted(Mutex<Result<u64, ChainError>>);

    #[async_trait::async_trait]
    impl Chain for Scripted {
        async fn head(&self) -> Result<Head, ChainError> {
            let block = self.0.lock().clone()?;
            Ok(Head { block, hash: Hash([0; 32]), block_time: Duration::from_millis(1) })
        }

        async fn metagraph(&self, netuid: u16) -> Result<Metagraph, ChainError> {
            let block = self.0.lock().clone()?;
            Ok(Metagraph {
                netuid,
                block,
                last_epoch: 0,
                next_epoch: 1,
                hyperparameters: Hyperparameters::default(),
                neurons: Vec::new(),
            })
        }

        async fn set_weights(
            &self,
            _: &HotkeyPair,
            _: u16,
            _: &[(u16, u16)],
            _: u64,
        ) -> Result<Inclusion, ChainError> {
            unreachable!("a watch only reads")
        }
    }

    fn unreachable_chain() -> ChainError {
        ChainError::Unreachable { endpoint: "http://x".into(), detail: "refused".into() }
    }

    async fn until(watch: &mut Watch, condition: impl Fn(&View) -> bool) -> View {
        let waiting = watch.view.wait_for(|view| condition(view));
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap().clone()
    }

    #[tokio::test]
    async fn the_last_good_metagraph_outlives_failures_and_is_replaced_after() {
        let chain = Arc::new(Scripted(Mutex::new(Err(unreachable_chain()))));
        let shutdown = CancellationToken::new();
        let (mut watch, task) = Watch::start(chain.clone(), 3, &Settings::default(), shutdown.clone());
        until(&mut watch, |view| view.failures > 0).await;
        assert!(watch.is_stale());
        let error = watch.ready(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.reason(), "unreachable");

        *chain.0.lock() = Ok(7);
        watch.refresh();
        assert_eq!(watch.ready(Duration::from_secs(60)).await.unwrap().block, 7);
        assert!(!watch.is_stale());

        *chain.0.lock() = Err(unreachable_chain());
        watch.refresh();
        let view = until(&mut watch, |view| view.failures >= 2).await;
        assert_eq!(view.metagraph.as_ref().unwrap().block, 7);
        assert!(view.error.is_some() && view.estimated_block().unwrap() > 7);

        *chain.0.lock() = Ok(9);
        watch.refresh();
        let view = until(&mut watch, |view| view.failures == 0).await;
        assert_eq!(view.metagraph.unwrap().block, 9);
        shutdown.cancel();
        task.await.unwrap();
        assert!(until_closed(watch).await);
    }

    async fn until_closed(mut watch: Watch) -> bool {
        while watch.changed().await {}
        true
    }

    #[tokio::test]
    async fn the_task_ends_with_its_last_reader() {
        let chain = Arc::new(Scripted(Mutex::new(Ok(1))));
        let (watch, task) = Watch::start(chain, 3, &Settings::default(), CancellationToken::new());
        watch.ready(Duration::from_secs(60)).await.unwrap();
        drop(watch);
        tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
    }

    #[test]
    fn a_fixed_watch_is_never_stale() {
        let metagraph = Metagraph {
            netuid: 1,
            block: 1,
            last_epoch: 0,
            next_epoch: 1,
            hyperparameters: Hyperparameters::default(),
            neurons: Vec::new(),
        };
        let watch = Watch::fixed(metagraph.clone());
        assert_eq!(*watch.metagraph().unwrap(), metagraph);
        assert!(!watch.is_stale());
    }
}
