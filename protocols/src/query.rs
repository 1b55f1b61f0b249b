//! Queries on `/argus/query/1`: one substream a query.
//!
//! `Open` (+ body chunks) → `Accepted` or `Rejected` → `Progress`* → `Result` (+ body chunks) → `Receipt`.
//! The open frame is signed by the validator's hotkey and names both peers, so that it is worth nothing
//! on another connection. Closing the stream cancels the work.

use bincode::{Decode, Encode};
use libp2p_identity::PeerId;

use crate::{
    codec::{self, CodecError, DecodeError, Decoder},
    hotkey::{BadSignature, Domain, Hotkey, HotkeyPair, Signature},
    limits,
    task::{Task, TaskKind},
};

/// The libp2p protocol name of query streams.
pub const PROTOCOL: &str = "/argus/query/1";

/// Random, chosen by the validator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct QueryId(pub [u8; 16]);

impl std::fmt::Display for QueryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// How long the validator waits, milliseconds: for the first frame of the answer, between frames, in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Deadlines {
    pub first_byte_ms: u32,
    pub idle_ms: u32,
    pub total_ms: u32,
}

/// What a validator asks, small enough to decide on admission before the body is read.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct Open {
    pub id: QueryId,
    pub netuid: u16,
    pub validator: Hotkey,
    pub miner: Hotkey,
    /// Peer ids (multihash bytes) of both ends of the connection that this may be used on.
    pub validator_peer: Vec<u8>,
    pub miner_peer: Vec<u8>,
    /// Unix time of the validator's clock, milliseconds.
    pub issued_at_ms: u64,
    pub deadlines: Deadlines,
    /// The task's code ([`TaskKind`]); a number, so that an unknown one can be answered `Incapable`.
    pub task: u16,
    pub model: String,
    pub body_length: u32,
    /// BLAKE3 of the body, an encoded [`crate::Task`].
    pub body_hash: [u8; 32],
}

impl<Context> Decode<Context> for Open {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            id: Decode::decode(from)?,
            netuid: Decode::decode(from)?,
            validator: Decode::decode(from)?,
            miner: Decode::decode(from)?,
            validator_peer: codec::bytes(from, limits::PEER_ID, "validator's peer id")?,
            miner_peer: codec::bytes(from, limits::PEER_ID, "miner's peer id")?,
            issued_at_ms: Decode::decode(from)?,
            deadlines: Decode::decode(from)?,
            task: Decode::decode(from)?,
            model: codec::model_id(from)?,
            body_length: Decode::decode(from)?,
            body_hash: Decode::decode(from)?,
        })
    }
}

impl Open {
    /// The limits that a miner holds an open frame to; a validator checks them before it signs.
    pub fn check(&self) -> Result<(), OpenError> {
        if self.body_length == 0 || self.body_length as usize > limits::BODY {
            return Err(OpenError::Body(self.body_length));
        }
        let Deadlines { first_byte_ms, idle_ms, total_ms } = self.deadlines;
        let possible = 1..=limits::DEADLINE_MS;
        if [first_byte_ms, idle_ms, total_ms].iter().any(|ms| !possible.contains(ms))
            || !codec::is_model_id(&self.model)
        {
            return Err(OpenError::Limits);
        }
        Ok(())
    }
}

/// An open frame as it travels: the encoded [`Open`] and the validator's signature over it.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct SignedOpen {
    pub open: Vec<u8>,
    pub signature: Signature,
}

impl<Context> Decode<Context> for SignedOpen {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { open: codec::bytes(from, limits::FRAME, "open")?, signature: Decode::decode(from)? })
    }
}

/// An open frame whose signature, peers, time and limits hold.
#[derive(Clone, Debug)]
pub struct VerifiedOpen {
    open: Open,
    request_hash: [u8; 32],
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Signature(#[from] BadSignature),
    #[error("the query was signed for another connection")]
    Peer,
    #[error("the query was signed for another miner")]
    Miner,
    #[error("the query was signed {0} ms from now, more than clocks may differ")]
    Stale(u64),
    #[error("the body of {0} bytes is empty or over the limit")]
    Body(u32),
    #[error("the model id or a deadline is empty or over its limit")]
    Limits,
}

impl OpenError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            OpenError::Codec(codec) => codec.reason(),
            OpenError::Signature(_) => "signature",
            OpenError::Peer => "other_peer",
            OpenError::Miner => "other_hotkey",
            OpenError::Stale(_) => "stale",
            OpenError::Body(_) | OpenError::Limits => "limits",
        }
    }
}

/// The body that came is not the one that the open frame announced.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body has another length or hash than the open frame says")]
    Hash,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the body is of another task or model than the open frame says")]
    Task,
}

impl SignedOpen {
    /// Signs an open frame. [`Open::check`] says whether a miner will take it.
    pub fn sign(open: &Open, pair: &HotkeyPair) -> Self {
        let open = codec::encode(open);
        let signature = pair.sign(Domain::Open, &open);
        Self { open, signature }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { limits::FRAME }>(bytes)
    }

    /// What a receipt will name: BLAKE3 of the encoded [`Open`].
    pub fn request_hash(&self) -> [u8; 32] {
        *blake3::hash(&self.open).as_bytes()
    }

    /// Checks everything that can be checked without the chain: cheap limits first, the signature last.
    pub fn verify(
        self,
        from: &PeerId,
        to: &PeerId,
        miner: &Hotkey,
        now_ms: u64,
    ) -> Result<VerifiedOpen, OpenError> {
        let open: Open = codec::decode::<Open, { limits::FRAME }>(&self.open)?;
        open.check()?;
        if open.validator_peer != from.to_bytes() || open.miner_peer != to.to_bytes() {
            return Err(OpenError::Peer);
        }
        if open.miner != *miner {
            return Err(OpenError::Miner);
        }
        let apart = open.issued_at_ms.abs_diff(now_ms);
        if apart > limits::CLOCK_SKEW_MS {
            return Err(OpenError::Stale(apart));
        }
        open.validator.verify(Domain::Open, &self.open, &self.signature)?;
        Ok(VerifiedOpen { request_hash: self.request_hash(), open })
    }
}

impl VerifiedOpen {
    pub fn request_hash(&self) -> [u8; 32] {
        self.request_hash
    }

    pub fn task(&self) -> Option<TaskKind> {
        TaskKind::from_code(self.open.task)
    }

    /// Decodes the body that came, if it is the one that was announced and signed for.
    pub fn read_task(&self, body: &[u8]) -> Result<Task, BodyError> {
        if body.len() != self.open.body_length as usize || blake3::hash(body) != self.open.body_hash {
            return Err(BodyError::Hash);
        }
        let task = Task::from_bytes(body)?;
        if task.kind().code() != self.open.task || task.model() != self.open.model {
            return Err(BodyError::Task);
        }
        Ok(task)
    }

    /// When the answer is no longer wanted: Unix milliseconds of the validator's clock.
    pub fn expires_at_ms(&self) -> u64 {
        let total = u64::from(self.open.deadlines.total_ms);
        self.open.issued_at_ms.saturating_add(total)
    }
}

impl std::ops::Deref for VerifiedOpen {
    type Target = Open;

    fn deref(&self) -> &Open {
        &self.open
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Accepted {
    /// Queries before this one, 0 when it runs at once.
    pub queue_position: u32,
}

impl Accepted {
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { limits::FRAME }>(bytes)
    }
}

/// The work has done `step` of `of` steps: 1 ≤ `step` ≤ `of`, never falling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Progress {
    pub step: u32,
    pub of: u32,
}

impl Progress {
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let progress: Self = codec::decode::<Self, { limits::FRAME }>(bytes)?;
        if !(1..=progress.of).contains(&progress.step) {
            return Err(CodecError::Malformed("a progress step beyond the last, or before the first".into()));
        }
        Ok(progress)
    }
}

/// Why a query was not answered: something a program can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Reason {
    /// No room now; try again after the time given.
    Busy = 1,
    /// This miner does not serve the task or the model.
    Incapable = 2,
    /// The hotkey has no validator permit, too little stake, or is blocked.
    Unauthorised = 3,
    /// The request breaks a limit or cannot be decoded.
    Invalid = 4,
    /// A deadline passed.
    TimedOut = 5,
    /// The work was begun and went wrong.
    Failed = 6,
    /// The asker closed the stream, or the miner is shutting down.
    Cancelled = 7,
}

impl Reason {
    pub const ALL: [Reason; 7] = [
        Reason::Busy,
        Reason::Incapable,
        Reason::Unauthorised,
        Reason::Invalid,
        Reason::TimedOut,
        Reason::Failed,
        Reason::Cancelled,
    ];

    /// A stable label for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Busy => "busy",
            Reason::Incapable => "incapable",
            Reason::Unauthorised => "unauthorised",
            Reason::Invalid => "invalid",
            Reason::TimedOut => "timed_out",
            Reason::Failed => "failed",
            Reason::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// Constant size, whatever the reason: five bytes, so that an attacker cannot amplify errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Reason,
    /// When `Busy`: how long to wait. Otherwise 0.
    pub retry_after_ms: u32,
}

impl Rejection {
    pub const LENGTH: usize = 5;

    pub fn new(reason: Reason) -> Self {
        Self { reason, retry_after_ms: 0 }
    }

    pub fn busy(retry_after_ms: u32) -> Self {
        Self { reason: Reason::Busy, retry_after_ms }
    }

    fn has_retry(reason: Reason) -> bool {
        reason == Reason::Busy
    }

    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let retry = match Self::has_retry(self.reason) {
            true => self.retry_after_ms.to_le_bytes(),
            false => [0; 4],
        };
        [self.reason as u8, retry[0], retry[1], retry[2], retry[3]]
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let bytes: [u8; Self::LENGTH] =
            bytes.try_into().map_err(|_| CodecError::Malformed("a rejection has five bytes".into()))?;
        let reason = Reason::ALL
            .into_iter()
            .find(|r| *r as u8 == bytes[0])
            .ok_or_else(|| CodecError::Malformed(format!("unknown reason {}", bytes[0])))?;
        let retry_after_ms = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        if retry_after_ms != 0 && !Self::has_retry(reason) {
            return Err(CodecError::NotCanonical);
        }
        Ok(Self { reason, retry_after_ms })
    }
}

/// Announces an answer; its body (an encoded [`crate::Answer`]) follows in chunks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ResultHeader {
    pub body_length: u32,
    /// BLAKE3 of the body; also the receipt's response hash.
    pub body_hash: [u8; 32],
    /// Time the work took, queueing excluded, as the miner says.
    pub compute_ms: u32,
}

impl ResultHeader {
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let header: Self = codec::decode::<Self, { limits::FRAME }>(bytes)?;
        if header.body_length as usize > limits::BODY {
            return Err(CodecError::TooLarge { length: header.body_length as usize, limit: limits::BODY });
        }
        if header.body_length == 0 {
            return Err(CodecError::Malformed("an answer without a body".into()));
        }
        Ok(header)
    }
}
