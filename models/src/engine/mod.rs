mod delivery;
mod workers;

pub use delivery::{CancelToken, EventSink, JobError, JobErrorKind, JobEvent};
pub use workers::{Backend, Control, Shutdown, Snapshot, SubmitError, Workers};

use crate::{features::Features, picture::RgbPicture};

/// What a job gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Picture { picture: RgbPicture, png: Vec<u8>, features: Features },
    Embeddings(Vec<Vec<f32>>),
    Features(Features),
}
