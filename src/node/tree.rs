//! The supervised tree of a node's tasks.
//!
//! Tasks belong to a stage. Shutdown goes stage by stage, so that work drains while the net still
//! carries its answers. A task that ends before it was asked to is the node's end, with its name.

use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// In the order in which they are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Takes in work and does it: gateway, miner, validator.
    Work,
    /// Carries it: net, record publisher, chain watch, admin endpoint.
    Carry,
}

/// A stage that has not drained by then is cut off.
const DRAIN: Duration = Duration::from_secs(30);

pub struct Tree {
    work: Branch,
    carry: Branch,
}

struct Branch {
    stop: CancellationToken,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Tree {
    pub fn new() -> Self {
        let branch = || Branch { stop: CancellationToken::new(), tasks: JoinSet::new() };
        Self { work: branch(), carry: branch() }
    }

    fn branch(&mut self, stage: Stage) -> &mut Branch {
        match stage {
            Stage::Work => &mut self.work,
            Stage::Carry => &mut self.carry,
        }
    }

    /// The token that the tasks of a stage watch.
    pub fn token(&mut self, stage: Stage) -> CancellationToken {
        self.branch(stage).stop.clone()
    }

    pub fn spawn<F>(&mut self, stage: Stage, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.branch(stage).tasks.spawn(async move { (name, task.await) });
    }

    /// Runs until `stop` or until a task ends by itself; then drains every stage in order.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let early = tokio::select! {
            () = stop => None,
            Some(ended) = self.work.tasks.join_next() => Some(ended),
            Some(ended) = self.carry.tasks.join_next() => Some(ended),
        };
        let outcome = match early {
            None => Ok(()),
            Some(Ok((name, Ok(())))) => Err(anyhow!("{name} ended by itself, which it never should")),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("{name} failed"))),
            Some(Err(panic)) => Err(anyhow!(panic).context("a part of the node panicked")),
        };
        if let Err(error) = &outcome {
            tracing::error!("{error:#}; stopping the node");
        }
        let drained = self.work.drain().await.and(self.carry.drain().await);
        outcome.and(drained)
    }
}

impl Branch {
    async fn drain(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut outcome = Ok(());
        let draining = async {
            while let Some(ended) = self.tasks.join_next().await {
                let result = match ended {
                    Ok((name, result)) => result.with_context(|| format!("{name} did not stop cleanly")),
                    Err(panic) => Err(anyhow!(panic)),
                };
                if outcome.is_ok() {
                    outcome = result;
                }
            }
        };
        if timeout(DRAIN, draining).await.is_err() {
            self.tasks.abort_all();
            return Err(anyhow!("the node did not drain within {} s and was cut off", DRAIN.as_secs()));
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_drains_before_what_carries_it() {
        let mut tree = Tree::new();
        let (order, mut seen) = tokio::sync::mpsc::channel(2);
        for (stage, name) in [(Stage::Carry, "net"), (Stage::Work, "miner")] {
            let (token, order) = (tree.token(stage), order.clone());
            tree.spawn(stage, name, async move {
                token.cancelled().await;
                order.send(name).await?;
                Ok(())
            });
        }
        tree.run(async {}).await.unwrap();
        assert_eq!([seen.recv().await, seen.recv().await], [Some("miner"), Some("net")]);
    }

    #[tokio::test]
    async fn a_task_that_fails_ends_the_node_with_its_name() {
        let mut tree = Tree::new();
        let token = tree.token(Stage::Carry);
        tree.spawn(Stage::Carry, "net", async move {
            token.cancelled().await;
            Ok(())
        });
        tree.spawn(Stage::Work, "miner", async { Err(anyhow!("no engine")) });
        let error = tree.run(std::future::pending()).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "miner failed: no engine");
    }

    #[tokio::test]
    async fn a_task_that_ends_early_is_a_failure() {
        let mut tree = Tree::new();
        tree.spawn(Stage::Work, "gateway", async { Ok(()) });
        let error = tree.run(std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("gateway ended by itself"), "{error}");
    }
}
