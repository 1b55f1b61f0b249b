//! Queries between nodes: `/argus/query/1`, one substream a query, frames as in `argus_protocols::codec`.
//!
//! [`links`] knows the connections and gets streams from them, [`ask`] is the validator's side of a
//! stream, [`answer`] the miner's, [`audit`] what may follow the receipt on both, [`frames`] cuts a stream into frames for both.

use std::time::Duration;

use argus_protocols::{ResultHeader, TaskKind, VerifiedReceipt, query::Deadlines};
use bytes::Bytes;
use libp2p::PeerId;

mod answer;
mod ask;
mod audit;
mod frames;
mod links;
mod replay;

pub(super) use answer::Admission;
pub use answer::InboundQuery;
pub(super) use ask::{AskError, Asker, Clock};
pub use audit::{Auditor, Committed};
pub(super) use links::{Behaviour, Links, OpenError};

/// What to ask of a miner.
#[derive(Clone, Debug)]
pub struct OutgoingQuery {
    pub miner: argus_protocols::Hotkey,
    pub task: TaskKind,
    pub model: String,
    /// An encoded [`argus_protocols::Task`].
    pub body: Bytes,
    pub deadlines: Deadlines,
}

/// What a miner says before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryProgress {
    Accepted { queue_position: u32 },
    Step { step: u32, of: u32 },
}

/// An answer whose length, hash and receipt hold.
#[derive(Clone, Debug)]
pub struct Answered {
    /// An encoded [`argus_protocols::Answer`].
    pub body: Bytes,
    pub receipt: VerifiedReceipt,
    pub header: ResultHeader,
    /// From the call to the first frame of the miner.
    pub first_byte: Duration,
    /// From the call to the receipt.
    pub total: Duration,
    pub peer: PeerId,
}

/// An answer, and the stream it came on while the miner waits to be challenged.
pub type AnsweredAndOpen = (Answered, Option<Auditor>);

#[cfg(test)]
mod audit_tests;
#[cfg(test)]
mod tests;
