//! The HTTP face of a validator: an OpenAI-compatible API, keys and credits, the studio, health and metrics.
//!
//! Invariants:
//! - Nothing here knows miners, the chain or libp2p: work goes through [`Service`], state through the store.
//! - A client's seed is never used, and its pictures are changed in a few pixels, so that no miner can
//!   answer an organic query from a cache.
//! - Prompts, pictures and keys never reach a log or the disk; a key is kept as its hash.
//! - Every body, queue, connection and wait is bounded (`settings`, `limits`).

pub mod service;

pub use service::{
    Allowed, ChainStatus, MinerStatus, ModelCard, PeriodStatus, Progress, Served, Service,
    ServiceError, Status, TextToImageLimits,
};
