//! Hotkey records: the signed binding of a hotkey to a peer id, its addresses and what it serves.
//!
//! They live in the Kademlia DHT under [`key`]. A node stores one only if the signature holds, the key
//! matches and the sequence is newer; a reader checks again.

use bincode::{Decode, Encode};
use libp2p_identity::PeerId;
use multiaddr::Multiaddr;

use crate::{
    codec::{self, CodecError},
    hotkey::{BadSignature, Domain, Hotkey, HotkeyPair, Signature},
    limits,
};

/// The Kademlia protocol name.
pub const KAD_PROTOCOL: &str = "/argus/kad/1";
const KEY_PREFIX: &[u8] = b"argus/hotkey/1";

/// Where a hotkey's record lives in the DHT.
pub fn key(hotkey: &Hotkey) -> [u8; 32] {
    *blake3::Hasher::new()
        .update(KEY_PREFIX)
        .update(hotkey.as_bytes())
        .finalize()
        .as_bytes()
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Miner,
    Validator,
    Relay,
}

/// One model that a miner serves, published only after a warm-up job.
#[derive(Clone, Debug, PartialEq, Encode, Decode, serde::Serialize, serde::Deserialize)]
pub struct Capability {
    pub model: String,
    /// Codes of [`crate::TaskKind`].
    pub tasks: Vec<u16>,
    /// Measured at warm-up, for one query at a time.
    pub work_units_per_second: f32,
    /// Queries at once.
    pub concurrency: u16,
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

fn as_text<T: std::fmt::Display, S: serde::Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The encoded form of [`Record`]: peer ids and addresses as their own binary forms.
#[derive(Encode, Decode)]
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

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedRecord {
    pub record: Vec<u8>,
    pub signature: Signature,
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
    #[error("too many {0}")]
    TooMany(&'static str),
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
            RecordError::Codec(_) | RecordError::Peer(_) | RecordError::Address(_) => "malformed",
            RecordError::Signature(_) => "signature",
            RecordError::TooMany(_) => "limits",
            RecordError::OtherHotkey => "other_hotkey",
            RecordError::Expired => "expired",
            RecordError::Future => "future",
        }
    }
}

impl SignedRecord {
    /// Signs a record. Fails when it breaks a limit, since nobody would store it.
    pub fn sign(record: &Record, pair: &HotkeyPair) -> Result<Self, RecordError> {
        if record.hotkey != pair.hotkey() {
            return Err(RecordError::OtherHotkey);
        }
        check_counts(record.addresses.len(), &record.capabilities)?;
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
        let signature = pair.sign(Domain::Record, &record);
        let signed = Self { record, signature };
        let length = signed.to_bytes().len();
        if length > limits::RECORD {
            return Err(CodecError::TooLarge {
                length,
                limit: limits::RECORD,
            }
            .into());
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
        let wire: Wire = codec::decode::<Wire, { limits::RECORD }>(&self.record)?;
        check_counts(wire.addresses.len(), &wire.capabilities)?;
        if wire.expires_at_ms <= now_ms {
            return Err(RecordError::Expired);
        }
        let horizon = now_ms.saturating_add(limits::CLOCK_SKEW_MS);
        if wire.expires_at_ms > horizon.saturating_add(limits::RECORD_LIFETIME_MS)
            || wire.sequence > horizon
        {
            return Err(RecordError::Future);
        }
        let peer = PeerId::from_bytes(&wire.peer).map_err(|e| RecordError::Peer(e.to_string()))?;
        let addresses = wire
            .addresses
            .into_iter()
            .map(|a| Multiaddr::try_from(a).map_err(|e| RecordError::Address(e.to_string())))
            .collect::<Result<_, _>>()?;
        wire.hotkey
            .verify(Domain::Record, &self.record, &self.signature)?;
        let record = Record {
            hotkey: wire.hotkey,
            peer,
            addresses,
            role: wire.role,
            netuid: wire.netuid,
            capabilities: wire.capabilities,
            sequence: wire.sequence,
            expires_at_ms: wire.expires_at_ms,
        };
        Ok(VerifiedRecord {
            record,
            signed: self,
        })
    }
}

fn check_counts(addresses: usize, capabilities: &[Capability]) -> Result<(), RecordError> {
    if addresses > limits::RECORD_ADDRESSES {
        return Err(RecordError::TooMany("addresses"));
    }
    if capabilities.len() > limits::RECORD_CAPABILITIES {
        return Err(RecordError::TooMany("capabilities"));
    }
    let long = |c: &Capability| {
        c.model.len() > limits::MODEL_ID || c.tasks.len() > limits::CAPABILITY_TASKS
    };
    if capabilities.iter().any(long) {
        return Err(RecordError::TooMany("tasks or characters in a capability"));
    }
    Ok(())
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
