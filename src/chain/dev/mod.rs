//! The embedded development chain: a subtensor in small, so that networks run and tests pass on one
//! machine without a real one.
//!
//! One process makes a block every so often and answers HTTP with JSON. Hotkeys sign what they do; there
//! are no coldkeys. A block holds extrinsics, `state` applies them, and at the end of each tempo an
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
//! An error is 4xx or 5xx with [`wire::Failure`]. To sign: put genesis, nonce, id and call ([`wire::Payload`])
//! into JSON text, and sign exactly those bytes over `Domain::DevChain`; the text travels as it is.

mod calls;
mod client;
mod ledger;
mod node;
mod server;
mod settings;
mod state;
#[cfg(test)]
mod tests;
pub mod wire;

pub use client::Client;
pub use ledger::LedgerError;
pub use server::{Running, ServeError, serve};
pub use settings::{Genesis, Rules, Settings, SettingsError};
pub use wire::Call;

/// Everything that is bounded.
pub mod limits {
    use std::time::Duration;

    use crate::chain::TAO;

    /// A request's body, bytes: weights for the largest subnet, with room.
    pub const REQUEST: usize = 64 << 10;
    /// An answer's body, bytes, as the client takes it.
    pub const RESPONSE: usize = 8 << 20;
    /// The longest wait for an inclusion in one request.
    pub const WAIT: Duration = Duration::from_secs(10);
    /// How long requests in work may take at the end.
    pub const DRAIN: Duration = Duration::from_secs(3);
    /// Requests in work at once; more are refused.
    pub const REQUESTS: usize = 1024;
    /// Extrinsics that wait for a block.
    pub const POOL: usize = 1024;
    /// Extrinsics of one hotkey that wait for a block.
    pub const POOL_OF_ONE: usize = 16;
    /// Extrinsics in one block.
    pub const BLOCK: usize = 512;
    pub const ACCOUNTS: usize = 10_000;
    pub const SUBNETS: usize = 16;
    pub const NEURONS: u64 = 256;
    /// Registrations on one subnet in one block.
    pub const REGISTRATIONS_PER_BLOCK: u32 = 64;
    /// The smallest amount that is given or staked, rao.
    pub const SMALLEST_AMOUNT: u64 = 1000;
    /// The most a faucet call may be set to give, rao: all there will ever be.
    pub const FAUCET: u64 = 21_000_000 * TAO;
    pub const SHORTEST_BLOCK_MS: u64 = 10;
    pub const LONGEST_BLOCK_MS: u64 = 60_000;
    /// Blocks from one snapshot of the state to the next.
    pub const SNAPSHOT_BLOCKS: u64 = 100;
    /// Blocks that can be asked for, and in which an extrinsic is found.
    pub const HISTORY: u64 = 20_000;
}
