//! What crosses a wire or is signed in Argus: types, codec, limits, signatures.
//!
//! No I/O, no clock and no tokio here: times come in as arguments. A value that was only received is
//! another type than one that was verified (`SignedRecord` / `VerifiedRecord`, `SignedOpen` /
//! `VerifiedOpen`, `SignedReceipt` / `VerifiedReceipt`), so that unverified data cannot be used by
//! mistake. `protocols/SPEC.md` says the same byte by byte.

pub mod codec;
pub mod hotkey;
pub mod limits;
pub mod merkle;
pub mod query;
pub mod receipt;
pub mod record;
pub mod task;
pub mod trajectory;

pub use codec::CodecError;
pub use hotkey::{Hotkey, HotkeyPair, Signature};
pub use query::{Open, QueryId, Reason, Rejection, ResultHeader, SignedOpen, VerifiedOpen};
pub use receipt::{Receipt, SignedReceipt, VerifiedReceipt};
pub use record::{Capability, Record, RecordError, Role, SignedRecord, VerifiedRecord};
pub use task::{Answer, Features, ImageHashes, NsfwScores, Task, TaskKind};
pub use trajectory::{Challenge, Commitment, Opening};

/// libp2p identities that records and queries name.
pub use libp2p_identity::PeerId;
pub use multiaddr::Multiaddr;
