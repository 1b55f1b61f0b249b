//! Whether answers are the same, and what that is worth.
//!
//! Nothing here does I/O or runs a model: answers arrive as [`Evidence`], whose features were computed by
//! whoever compares them wherever a picture travelled. Features that a miner claims are believed only for
//! pictures that it must not send, and then they are compared like any other.

pub mod compare;
pub mod reward;
pub mod ruler;
pub mod score;
pub mod trajectory;

pub use compare::{Comparison, Evidence, EvidenceError, Thresholds, compare};
pub use ruler::Ruler;
pub use score::{Entry, Scoring, Verdict};
