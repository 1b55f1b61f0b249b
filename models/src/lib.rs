//! What runs on a device: candle pipelines, image features, embedded weights.
//!
//! Nothing here knows the network, the protocols or the node. Pictures, prompts
//! and weights files are hostile input: limits are checked before allocation.

mod checkpoint;
pub mod clip;
pub mod device;
pub mod diffusion;
pub mod elementary;
mod embedded;
pub mod engine;
pub mod features;
pub mod kandinsky;
mod layers;
pub mod loader;
pub mod lora;
mod memory;
pub mod noise;
pub mod nsfw;
#[cfg(test)]
mod numerics_tests;
#[cfg(test)]
mod parity;
pub mod picture;
mod placement;
mod pool;
pub mod preprocess;
pub mod registry;
pub mod resample;
pub mod safety;
pub mod tokenizer;
pub mod upscale;
pub mod verified;
mod weight_change;
pub mod weights;

pub use clip::Clip;
pub use device::{DeviceError, DeviceKind};
pub use diffusion::{Generate, GenerateError, Pipeline, Start, StepControl};
pub use engine::{
    CancelToken, Engine, EngineConfig, EventSink, Job, JobError, JobErrorKind, JobEvent, Output, Shutdown,
    StartError, SubmitError,
};
pub use features::{Features, HashDistances, ImageHashes, LatentEncoder, PixelMeasures};
pub use kandinsky::{KandinskyPipeline, PriorSettings};
pub use loader::{LoadError, ModelFiles};
pub use nsfw::{NsfwModel, NsfwOpinion, NsfwScores};
pub use picture::{Limits, PictureError, RgbPicture};
pub use placement::Placement;
pub use registry::{ModelId, ModelSource, ModelSpec, Registry, RegistryError};
pub use upscale::Upscaler;
pub use weight_change::WeightChange;
