//! Queries between nodes: `/argus/query/1`, one substream a query, frames as in `argus_protocols::codec`.

use std::time::Duration;

use argus_protocols::{ResultHeader, TaskKind, VerifiedReceipt, query::Deadlines};
use bytes::Bytes;
use libp2p::PeerId;

mod answer;

pub use answer::InboundQuery;

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
