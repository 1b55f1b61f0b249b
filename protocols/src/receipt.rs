//! Receipts: a miner's signed word that it answered this request with this response.
//!
//! Nobody can later deny or invent an answer. Validators keep them behind every score.

use bincode::{Decode, Encode};

use crate::{
    codec::{self, CodecError, DecodeError, Decoder},
    hotkey::{BadSignature, Domain, Hotkey, HotkeyPair, Signature},
    limits,
    query::{Open, QueryId},
    trajectory::Commitment,
};

#[derive(Clone, Debug, PartialEq, Eq, Encode, serde::Serialize)]
pub struct Receipt {
    #[serde(serialize_with = "hex_bytes")]
    pub id: QueryId,
    pub netuid: u16,
    pub validator: Hotkey,
    pub miner: Hotkey,
    pub task: u16,
    pub model: String,
    /// BLAKE3 of the encoded [`Open`], which names the body's hash.
    #[serde(serialize_with = "hex_bytes")]
    pub request_hash: [u8; 32],
    /// BLAKE3 of the answer's body.
    #[serde(serialize_with = "hex_bytes")]
    pub response_hash: [u8; 32],
    /// Unix times of the miner's clock, milliseconds.
    pub accepted_at_ms: u64,
    pub finished_at_ms: u64,
    /// To the states of the run that made the picture; `None` where the miner cannot show any.
    pub trajectory: Option<Commitment>,
}

impl<Context> Decode<Context> for Receipt {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            id: Decode::decode(from)?,
            netuid: Decode::decode(from)?,
            validator: Decode::decode(from)?,
            miner: Decode::decode(from)?,
            task: Decode::decode(from)?,
            model: codec::model_id(from)?,
            request_hash: Decode::decode(from)?,
            response_hash: Decode::decode(from)?,
            accepted_at_ms: Decode::decode(from)?,
            finished_at_ms: Decode::decode(from)?,
            trajectory: Decode::decode(from)?,
        })
    }
}

impl Receipt {
    /// A miner takes a query only when its clock is within the skew of the issue, and works on it for
    /// the total deadline at most.
    fn within_times_of(&self, open: &Open) -> bool {
        let earliest = open.issued_at_ms.saturating_sub(limits::CLOCK_SKEW_MS);
        let latest = open
            .issued_at_ms
            .saturating_add(limits::CLOCK_SKEW_MS)
            .saturating_add(u64::from(open.deadlines.total_ms));
        earliest <= self.accepted_at_ms && self.finished_at_ms <= latest
    }
}

impl AsRef<[u8]> for QueryId {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn hex_bytes<T: AsRef<[u8]>, S: serde::Serializer>(bytes: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes.as_ref()))
}

/// A receipt as it travels: the encoded [`Receipt`] and the miner's signature over it.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct SignedReceipt {
    pub receipt: Vec<u8>,
    pub signature: Signature,
}

impl<Context> Decode<Context> for SignedReceipt {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { receipt: codec::bytes(from, limits::FRAME, "receipt")?, signature: Decode::decode(from)? })
    }
}

/// A receipt that holds for one request and one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReceipt {
    receipt: Receipt,
    signed: SignedReceipt,
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Signature(#[from] BadSignature),
    #[error("the receipt is for another {0}")]
    Mismatch(&'static str),
    #[error("the receipt says that the work ended before it was accepted")]
    Times,
}

impl ReceiptError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ReceiptError::Codec(codec) => codec.reason(),
            ReceiptError::Signature(_) => "signature",
            ReceiptError::Mismatch(_) => "mismatch",
            ReceiptError::Times => "times",
        }
    }
}

impl SignedReceipt {
    pub fn sign(receipt: &Receipt, pair: &HotkeyPair) -> Self {
        let receipt = codec::encode(receipt);
        let signature = pair.sign(Domain::Receipt, &receipt);
        Self { receipt, signature }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { limits::FRAME }>(bytes)
    }

    /// Checks the receipt against the query that was sent and the answer that came. Its times must lie
    /// where a miner whose clock took the query can have put them.
    pub fn verify(
        self,
        open: &Open,
        request_hash: [u8; 32],
        response_hash: [u8; 32],
    ) -> Result<VerifiedReceipt, ReceiptError> {
        let verified = self.verify_alone()?;
        let receipt = &verified.receipt;
        let mismatch = [
            ("query", receipt.id == open.id && receipt.netuid == open.netuid),
            ("validator", receipt.validator == open.validator),
            ("miner", receipt.miner == open.miner),
            ("task", receipt.task == open.task && receipt.model == open.model),
            ("request", receipt.request_hash == request_hash),
            ("response", receipt.response_hash == response_hash),
            ("time", receipt.within_times_of(open)),
        ];
        match mismatch.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(ReceiptError::Mismatch(what)),
            None => Ok(verified),
        }
    }

    /// Checks the signature by the miner that the receipt itself names, for receipts out of a store.
    pub fn verify_alone(self) -> Result<VerifiedReceipt, ReceiptError> {
        let receipt: Receipt = codec::decode::<Receipt, { limits::FRAME }>(&self.receipt)?;
        if receipt.accepted_at_ms > receipt.finished_at_ms {
            return Err(ReceiptError::Times);
        }
        receipt.miner.verify(Domain::Receipt, &self.receipt, &self.signature)?;
        Ok(VerifiedReceipt { receipt, signed: self })
    }
}

impl VerifiedReceipt {
    pub fn signed(&self) -> &SignedReceipt {
        &self.signed
    }
}

impl std::ops::Deref for VerifiedReceipt {
    type Target = Receipt;

    fn deref(&self) -> &Receipt {
        &self.receipt
    }
}
