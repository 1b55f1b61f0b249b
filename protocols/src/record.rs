//! Hotkey records: the signed binding of a hotkey to a peer id, its addresses and what it serves.
//!
//! They live in the Kademlia DHT under [`key`]. A node stores one only if the signature holds, the key
//! matches and the sequence is newer; a reader checks again. A [`VerifiedRecord`] keeps to every limit of
//! [`crate::limits`], names a well-formed peer and addresses that end at this peer if they name one.

use bincode::{Decode, Encode};
use libp2p_identity::PeerId;
use multiaddr::{Multiaddr, Protocol};

use crate::{
    codec::{self, CodecError, DecodeError, Decoder},
    hotkey::{BadSignature, Domain, Hotkey, HotkeyPair, Signature},
    limits,
};

/// The Kademlia protocol name.
pub const KAD_PROTOCOL: &str = "/argus/kad/1";
const KEY_PREFIX: &[u8] = b"argus/hotkey/1";

/// Where a hotkey's record lives in the DHT.
pub fn key(hotkey: &Hotkey) -> [u8; 32] {
    *blake3::Hasher::new().update(KEY_PREFIX).update(hotkey.as_bytes()).finalize().as_bytes()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Miner,
    Validator,
    Relay,
}

/// One model that a miner serves, published only after a warm-up job.
#[derive(Clone, Debug, PartialEq, Encode, serde::Serialize, serde::Deserialize)]
pub struct Capability {
    pub model: String,
    /// Codes of [`crate::TaskKind`]; codes that a reader does not know are left alone.
    pub tasks: Vec<u16>,
    /// Measured at warm-up, for one query at a time; finite and not negative.
    pub work_units_per_second: f32,
    /// Queries at once.
    pub concurrency: u16,
}

impl<Context> Decode<Context> for Capability {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            model: codec::model_id(from)?,
            tasks: codec::list(from, limits::CAPABILITY_TASKS, "tasks", Decode::decode)?,
            work_units_per_second: codec::finite(from, "work units per second")?,
            concurrency: Decode::decode(from)?,
        })
    }
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Record {
    pub hotkey: Hotkey,
    #[serde(serialize_with = "as_text")]
    pub peer: PeerId,
    pub addresses: Vec<Multiaddr>,
    pub role: Role,
    pub netuid: u16,
    pub capabilities: Vec<Capability>,
    /// Larger replaces smaller. Unix milliseconds at issue, so that it grows over restarts.
    pub sequence: u64,
    /// Unix milliseconds.
    pub expires_at_ms: u64,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The encoded form of [`Record`]: peer ids and addresses as their own binary forms.
#[derive(Encode)]
struct Wire {
    hotkey: Hotkey,
    peer: Vec<u8>,
    addresses: Vec<Vec<u8>>,
    role: Role,
    netuid: u16,
    capabilities: Vec<Capability>,
    sequence: u64,
    expires_at_ms: u64,
}

impl<Context> Decode<Context> for Wire {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            hotkey: Decode::decode(from)?,
            peer: codec::bytes(from, limits::PEER_ID, "peer id")?,
            addresses: codec::list(from, limits::RECORD_ADDRESSES, "addresses", |from| {
                codec::bytes(from, limits::ADDRESS, "address")
            })?,
            role: Decode::decode(from)?,
            netuid: Decode::decode(from)?,
            capabilities: codec::list(from, limits::RECORD_CAPABILITIES, "capabilities", Decode::decode)?,
            sequence: Decode::decode(from)?,
            expires_at_ms: Decode::decode(from)?,
        })
    }
}

/// A record as it travels: the encoded [`Record`] and the hotkey's signature over it.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct SignedRecord {
    pub record: Vec<u8>,
    pub signature: Signature,
}

impl<Context> Decode<Context> for SignedRecord {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { record: codec::bytes(from, limits::RECORD, "record")?, signature: Decode::decode(from)? })
    }
}

/// A record whose signature, limits and expiry hold.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedRecord {
    record: Record,
    signed: SignedRecord,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Signature(#[from] BadSignature),
    #[error("not a peer id: {0}")]
    Peer(String),
    #[error("not an address: {0}")]
    Address(String),
    #[error("the work units per second of a capability are negative")]
    Speed,
    #[error("the record is of another hotkey")]
    OtherHotkey,
    #[error("the record has expired")]
    Expired,
    #[error("the record's expiry or sequence is too far in the future")]
    Future,
}

impl RecordError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            RecordError::Codec(codec) => codec.reason(),
            RecordError::Peer(_) | RecordError::Address(_) | RecordError::Speed => "malformed",
            RecordError::Signature(_) => "signature",
            RecordError::OtherHotkey => "other_hotkey",
            RecordError::Expired => "expired",
            RecordError::Future => "future",
        }
    }
}

impl Record {
    fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire: Wire = codec::decode::<Wire, { limits::RECORD }>(bytes)?;
        let peer = PeerId::from_bytes(&wire.peer).map_err(|e| RecordError::Peer(e.to_string()))?;
        let addresses =
            wire.addresses.into_iter().map(|bytes| address(bytes, &peer)).collect::<Result<_, _>>()?;
        // `-0` is not negative by comparison, but prints as if it were.
        if (wire.capabilities.iter()).any(|c| c.work_units_per_second.is_sign_negative()) {
            return Err(RecordError::Speed);
        }
        Ok(Self {
            hotkey: wire.hotkey,
            peer,
            addresses,
            role: wire.role,
            netuid: wire.netuid,
            capabilities: wire.capabilities,
            sequence: wire.sequence,
            expires_at_ms: wire.expires_at_ms,
        })
    }
}

/// An address that, if it says at its end which peer is there, says this one.
fn address(bytes: Vec<u8>, peer: &PeerId) -> Result<Multiaddr, RecordError> {
    let address = Multiaddr::try_from(bytes).map_err(|e| RecordError::Address(e.to_string()))?;
    let wrong = match address.iter().last() {
        None => "it is empty",
        Some(Protocol::P2p(other)) if other != *peer => "it ends at another peer",
        // A DNS name may hold any text; this one would be shown in terminals.
        _ if !address.to_string().bytes().all(|c| c.is_ascii_graphic()) => {
            "it has characters that are not printable ASCII"
        }
        _ => return Ok(address),
    };
    Err(RecordError::Address(wrong.into()))
}

impl SignedRecord {
    /// Signs a record. Fails when it breaks a limit, since nobody would store it.
    pub fn sign(record: &Record, pair: &HotkeyPair) -> Result<Self, RecordError> {
        if record.hotkey != pair.hotkey() {
            return Err(RecordError::OtherHotkey);
        }
        let wire = Wire {
            hotkey: record.hotkey,
            peer: record.peer.to_bytes(),
            addresses: record.addresses.iter().map(Multiaddr::to_vec).collect(),
            role: record.role,
            netuid: record.netuid,
            capabilities: record.capabilities.clone(),
            sequence: record.sequence,
            expires_at_ms: record.expires_at_ms,
        };
        let record = codec::encode(&wire);
        // What a reader will hold it to.
        Record::from_bytes(&record)?;
        let signature = pair.sign(Domain::Record, &record);
        let signed = Self { record, signature };
        let length = signed.to_bytes().len();
        if length > limits::RECORD {
            return Err(CodecError::TooLarge { length, limit: limits::RECORD }.into());
        }
        Ok(signed)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { limits::RECORD }>(bytes)
    }

    /// Checks limits, expiry and signature. `now_ms` is Unix time.
    pub fn verify(self, now_ms: u64) -> Result<VerifiedRecord, RecordError> {
        let record = Record::from_bytes(&self.record)?;
        if record.expires_at_ms <= now_ms {
            return Err(RecordError::Expired);
        }
        let horizon = now_ms.saturating_add(limits::CLOCK_SKEW_MS);
        if record.expires_at_ms > horizon.saturating_add(limits::RECORD_LIFETIME_MS)
            || record.sequence > horizon
        {
            return Err(RecordError::Future);
        }
        record.hotkey.verify(Domain::Record, &self.record, &self.signature)?;
        Ok(VerifiedRecord { record, signed: self })
    }
}

impl VerifiedRecord {
    pub fn signed(&self) -> &SignedRecord {
        &self.signed
    }

    /// Whether this record should take the place of the other one of the same hotkey.
    pub fn replaces(&self, other: &VerifiedRecord) -> bool {
        self.record.hotkey == other.record.hotkey && self.record.sequence > other.record.sequence
    }

    /// The place in the DHT where this record belongs.
    pub fn key(&self) -> [u8; 32] {
        key(&self.record.hotkey)
    }
}

impl std::ops::Deref for VerifiedRecord {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}
