//! The embedded development chain: a subtensor in small, so that networks run and tests pass on one
//! machine without a real one.
//!
//! One process makes a block every so often and answers HTTP with JSON. Hotkeys sign what they do; there
//! are no coldkeys. A block holds extrinsics, [`state`] applies them, and at the end of each tempo an
//! epoch of Yuma consensus ([`super::yuma`]) pays incentives and dividends.
//!
//! Invariants:
//! - State is a pure function of the genesis and the blocks: replaying them gives the same state.
//! - A block is answered for only when it is on the disk: `kill -9` loses nothing that was acknowledged.
//! - An extrinsic counts once: it names the genesis and a nonce, and both are signed. Sending the same one
//!   again is harmless and answers with its status.
//! - The pool, requests, answers and the history of blocks are bounded ([`limits`]).
//!
//! # Endpoints
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/chain` | [`wire::Info`]: genesis, head, netuids |
//! | `GET /v1/head` | [`super::Head`] |
//! | `GET /v1/blocks/{number}` | [`wire::Block`]; 404 when too new or pruned |
//! | `GET /v1/subnets/{netuid}/metagraph` | [`super::Metagraph`] |
//! | `GET /v1/subnets/{netuid}/weights` | a list of [`wire::WeightRow`] |
//! | `GET /v1/accounts/{hotkey}` | [`wire::Account`]: genesis, next nonce, free balance, stakes |
//! | `POST /v1/extrinsics` | takes a [`wire::Extrinsic`], answers 202 with [`wire::Submitted`] |
//! | `GET /v1/extrinsics/{hash}?wait_ms=` | [`wire::Status`], waiting up to 10 s for the inclusion |
//!
//! An error is 4xx or 5xx with [`wire::Failure`]. To sign: put genesis, nonce and call ([`wire::Payload`])
//! into JSON text, and sign exactly those bytes over `Domain::DevChain`; the text travels as it is.

mod client;
pub mod wire;

pub use client::Client;
pub use wire::Call;

/// Everything that is bounded.
pub mod limits {
    use std::time::Duration;

    /// A request's body, bytes: weights for the largest subnet, with room.
    pub const REQUEST: usize = 128 << 10;
    /// An answer's body, bytes, as the client takes it.
    pub const RESPONSE: usize = 8 << 20;
    /// The longest wait for an inclusion in one request.
    pub const WAIT: Duration = Duration::from_secs(10);
}
