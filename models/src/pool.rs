//! The threads that a model's work is shared out to.

use std::sync::Arc;

use crate::loader::LoadError;

/// A fixed number of threads, or those that the caller brings.
#[derive(Clone)]
pub(crate) struct Pool(Option<Arc<rayon::ThreadPool>>);

impl Pool {
    /// A pool of `threads` threads, 0 for one a core.
    pub(crate) fn new(threads: usize) -> Result<Self, LoadError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("model-{index}"))
            .build()
            .map_err(|error| LoadError::Threads { threads, detail: error.to_string() })?;
        Ok(Self(Some(Arc::new(pool))))
    }

    /// Whatever pool the caller runs in. Replicas that share a model bring one each: in a pool that
    /// two of them share, a thread of one that waits would take up the other's whole job.
    pub(crate) fn current() -> Self {
        Self(None)
    }

    /// Runs `work` so that parallel loops in it use these threads.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}
