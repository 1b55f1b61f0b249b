//! What can go wrong in the net, as programs and people see it.

use std::time::Duration;

use argus_protocols::{Reason, Rejection};
use libp2p::{Multiaddr, PeerId};

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{0}")]
    Settings(String),
    #[error(
        "cannot listen on {address}: {cause}; is another node running, or the address not of this machine?"
    )]
    Listen { address: Multiaddr, cause: String },
    #[error("the transport cannot be set up: {0}")]
    Transport(String),
    #[error("not a node key: {0}; remove the file to get a new identity, or restore it from a backup")]
    NodeKey(String),
    #[error("the record cannot be published: {0}")]
    Record(String),
    #[error("the node is shutting down")]
    Closed,
    #[error("the network loop has too many commands waiting; try again shortly")]
    Busy,
    #[error("no answer from the network within {0:?}")]
    TimedOut(Duration),
    #[error("peer {peer} cannot be reached: {cause}")]
    Unreachable { peer: PeerId, cause: String },
    /// The network loop stopped by itself, which it never should.
    #[error("the network loop failed: {0}")]
    Failed(String),
}

impl NetError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            NetError::Settings(_) => "settings",
            NetError::Listen { .. } => "listen",
            NetError::Transport(_) => "transport",
            NetError::NodeKey(_) => "node_key",
            NetError::Record(_) => "record",
            NetError::Closed => "closed",
            NetError::Busy => "busy",
            NetError::TimedOut(_) => "timed_out",
            NetError::Unreachable { .. } => "unreachable",
            NetError::Failed(_) => "failed",
        }
    }
}

/// Why a hotkey's record was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error(
        "no node that was asked has a record of this hotkey; is its node running and joined to this network?"
    )]
    NotFound,
    #[error("no answer from the network within {0:?}; is this node connected to any other?")]
    TimedOut(Duration),
    #[error("too many lookups at once; try again shortly")]
    Busy,
    #[error("the node is shutting down")]
    Closed,
}

impl LookupError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            LookupError::NotFound => "not_found",
            LookupError::TimedOut(_) => "timed_out",
            LookupError::Busy => "busy",
            LookupError::Closed => "closed",
        }
    }
}

/// Which of a query's deadlines passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    FirstByte,
    Idle,
    Total,
}

impl std::fmt::Display for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Deadline::FirstByte => "first byte",
            Deadline::Idle => "idle",
            Deadline::Total => "total",
        })
    }
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("the miner was not found: {0}")]
    Lookup(#[from] LookupError),
    #[error("the miner cannot be reached: {0}")]
    Unreachable(String),
    #[error("the miner declined: {}", .0.reason)]
    Rejected(Rejection),
    #[error("the {0} deadline passed")]
    TimedOut(Deadline),
    /// A frame out of place or undecodable, a body that does not match its hash or length, a receipt that
    /// does not hold. Counts against the miner.
    #[error("the miner broke the protocol: {0}")]
    Protocol(String),
    /// The stream ended before the answer did.
    #[error("the miner went away in mid-query")]
    Closed,
    /// The query breaks a limit and was not sent.
    #[error("not sent: {0}")]
    Invalid(String),
}

impl QueryError {
    /// The protocol's reason that comes nearest.
    pub fn reason(&self) -> Reason {
        match self {
            QueryError::Lookup(_) | QueryError::Unreachable(_) => Reason::Failed,
            QueryError::Rejected(rejection) => rejection.reason,
            QueryError::TimedOut(_) => Reason::TimedOut,
            QueryError::Protocol(_) | QueryError::Closed => Reason::Failed,
            QueryError::Invalid(_) => Reason::Invalid,
        }
    }

    /// A stable label for logs and metrics, finer than [`QueryError::reason`].
    pub fn label(&self) -> &'static str {
        match self {
            QueryError::Lookup(_) => "lookup",
            QueryError::Unreachable(_) => "unreachable",
            QueryError::Rejected(rejection) => rejection.reason.label(),
            QueryError::TimedOut(_) => "timed_out",
            QueryError::Protocol(_) => "protocol",
            QueryError::Closed => "closed",
            QueryError::Invalid(_) => "not_sent",
        }
    }
}

/// Why the answering side of a query ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The validator closed the stream: stop the work.
    #[error("the validator went away")]
    Closed,
    #[error("the {0} deadline of the query passed")]
    TimedOut(Deadline),
    /// A frame out of place, oversized or undecodable. Counts against the validator.
    #[error("the validator broke the protocol: {0}")]
    Protocol(String),
    /// The body's bytes do not have the hash that was signed.
    #[error("the body does not have the hash that was signed")]
    Hash,
    /// The answer is empty, or larger than any peer would take.
    #[error("the answer has {0} bytes: a body has at least one, and 16 MiB at most")]
    Size(usize),
}

impl StreamError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            StreamError::Closed => "closed",
            StreamError::TimedOut(_) => "timed_out",
            StreamError::Protocol(_) => "protocol",
            StreamError::Hash => "hash",
            StreamError::Size(_) => "size",
        }
    }
}
