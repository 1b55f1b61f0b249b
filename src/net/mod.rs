//! The peer-to-peer net: who is there, where a hotkey lives, and queries between nodes.
//!
//! [`start`] runs one event loop, the sole owner of the libp2p swarm; everybody else holds a [`Handle`]
//! and receives [`Event`]s and [`InboundQuery`]s over bounded channels. The loop never awaits work of
//! other parts: disk writes have their own thread, queries run in their callers' tasks on streams that
//! the connections hand out directly.
//!
//! Invariants
//! - Nothing received is believed before it is verified: records are checked before they are stored or
//!   answered to a lookup, open frames before the miner sees them, receipts before an answer is returned.
//! - Every command answers its caller, at the latest when its time is over.
//! - Every queue, map and stream count has a limit, in [`limits`] or [`Settings`].
//! - No miner, validator, store, chain or gateway is named here.

mod address_book;
mod behaviour;
mod directory;
mod error;
mod event_loop;
mod gossip;
mod handle;
mod identity;
pub mod limits;
mod metrics;
mod muxer;
mod penalties;
mod persist;
mod reachability;
mod record_store;
mod relays;
mod settings;
mod stream;
mod transport;

pub use error::{Deadline, LookupError, NetError, QueryError, StreamError};
pub use event_loop::{Net, start};
pub use handle::{Event, Handle, Published};
pub use identity::NodeKey;
pub use penalties::Offence;
pub use persist::{InMemory, KnownPeer, Persist};
pub use reachability::{
    AddressReport, AddressStatus, DhtMode, DhtReport, PathKind, PeerReport, Reachability, Snapshot,
    StreamReport, TransportKind,
};
pub use settings::{Dht, Limits, Settings};
pub use stream::{Answered, AnsweredAndOpen, Auditor, Committed, InboundQuery, OutgoingQuery, QueryProgress};

/// Unix time in milliseconds, as records and queries carry it.
pub(crate) fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_millis() as u64)
}

#[cfg(test)]
mod tests;
