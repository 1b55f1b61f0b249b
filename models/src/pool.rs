//! The threads that a model's work is shared out to.

use std::sync::Arc;

use crate::loader::LoadError;

/// A fixed number of threads.
#[derive(Clone)]
pub(crate) struct Pool(Arc<rayon::ThreadPool>);

impl Pool {
    /// A pool of `threads` threads, 0 for one a core.
    pub(crate) fn new(threads: usize) -> Result<Self, LoadError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("model-{index}"))
            .build()
            .map_err(|error| LoadError::Threads { threads, detail: error.to_string() })?;
        Ok(Self(Arc::new(pool)))
    }

    /// Runs `work` so that parallel loops in it use these threads.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }
}
