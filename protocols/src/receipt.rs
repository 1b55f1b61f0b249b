//! Receipts: a miner's signed word that it answered this request with this response.
//!
//! Nobody can later deny or invent an answer. Validators keep them behind every score.

use bincode::{Decode, Encode};

use crate::{
    codec::{self, CodecError},
    hotkey::{BadSignature, Domain, Hotkey, HotkeyPair, Signature},
    limits,
    query::{Open, QueryId},
};

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
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
}

impl AsRef<[u8]> for QueryId {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn hex_bytes<T: AsRef<[u8]>, S: serde::Serializer>(
    bytes: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes.as_ref()))
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedReceipt {
    pub receipt: Vec<u8>,
    pub signature: Signature,
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
}

impl SignedReceipt {
    pub fn sign(receipt: &Receipt, pair: &HotkeyPair) -> Self {
        let receipt = codec::encode(receipt);
        let signature = pair.sign(Domain::Receipt, &receipt);
        Self { receipt, signature }
    }

    /// Checks the receipt against the query that was sent and the answer that came.
    pub fn verify(
        self,
        open: &Open,
        request_hash: [u8; 32],
        response_hash: [u8; 32],
    ) -> Result<VerifiedReceipt, ReceiptError> {
        let verified = self.verify_alone()?;
        let receipt = &verified.receipt;
        let mismatch = [
            (
                "query",
                receipt.id == open.id && receipt.netuid == open.netuid,
            ),
            ("validator", receipt.validator == open.validator),
            ("miner", receipt.miner == open.miner),
            (
                "task",
                receipt.task == open.task && receipt.model == open.model,
            ),
            ("request", receipt.request_hash == request_hash),
            ("response", receipt.response_hash == response_hash),
            ("time", receipt.accepted_at_ms <= receipt.finished_at_ms),
        ];
        match mismatch.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(ReceiptError::Mismatch(what)),
            None => Ok(verified),
        }
    }

    /// Checks the signature by the miner that the receipt itself names, for receipts out of a store.
    pub fn verify_alone(self) -> Result<VerifiedReceipt, ReceiptError> {
        let receipt: Receipt = codec::decode::<Receipt, { limits::FRAME }>(&self.receipt)?;
        receipt
            .miner
            .verify(Domain::Receipt, &self.receipt, &self.signature)?;
        Ok(VerifiedReceipt {
            receipt,
            signed: self,
        })
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
