//! What crosses HTTP between a development chain and its clients.

use std::collections::BTreeMap;

use argus_protocols::{
    Hotkey, HotkeyPair, Signature,
    hotkey::{BadSignature, Domain},
};
use serde::{Deserialize, Serialize};

use crate::chain::{Hash, Head, Refusal};

/// What a hotkey can ask of the chain. Amounts in rao.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Mints free balance, on chains that allow it.
    Faucet { amount: u64 },
    /// Registers the signer on a subnet and burns the price from its free balance.
    Register { netuid: u16 },
    /// Moves free balance into stake on a subnet.
    AddStake { netuid: u16, amount: u64 },
    /// Moves stake back into free balance.
    RemoveStake { netuid: u16, amount: u64 },
    /// Replaces the signer's weights.
    SetWeights { netuid: u16, uids: Vec<u16>, values: Vec<u16>, version_key: u64 },
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// The chain this is for.
    pub genesis: Hash,
    /// How many extrinsics of the signer went before.
    pub nonce: u64,
    /// Any number. Two calls that are meant to be two differ in it, should they race for one nonce; a call that
    /// is sent again does not.
    pub id: u32,
    pub call: Call,
}

/// A signed call, as it was received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extrinsic {
    pub signer: Hotkey,
    /// [`Payload`] as JSON text: these bytes are signed.
    pub payload: String,
    pub signature: Signature,
}

impl Extrinsic {
    pub fn sign(pair: &HotkeyPair, payload: &Payload) -> Self {
        let payload = serde_json::to_string(payload).expect("plain data becomes JSON");
        let signature = pair.sign(Domain::DevChain, payload.as_bytes());
        Self { signer: pair.hotkey(), payload, signature }
    }

    /// Of signer and payload. Not of the signature: signing the same payload twice gives two signatures,
    /// and it is still one extrinsic.
    pub fn hash(&self) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("argus/devchain/extrinsic/1");
        hasher.update(self.signer.as_bytes());
        hasher.update(self.payload.as_bytes());
        Hash(*hasher.finalize().as_bytes())
    }

    /// Checks the signature.
    pub fn verify(&self) -> Result<(), BadSignature> {
        self.signer.verify(Domain::DevChain, self.payload.as_bytes(), &self.signature)
    }
}

/// The chain at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    pub genesis: Hash,
    pub head: Head,
    pub netuids: Vec<u16>,
    /// The most a faucet call gives, rao; 0 when there is none.
    pub faucet: u64,
    /// Extrinsics that wait for a block.
    pub pending: usize,
}

/// One hotkey's account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub genesis: Hash,
    pub hotkey: Hotkey,
    /// Of its next extrinsic, waiting ones counted.
    pub nonce: u64,
    /// Free balance, rao.
    pub balance: u64,
    /// Stake on each subnet, rao.
    pub stake: BTreeMap<u16, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    pub hash: Hash,
}

/// What became of an extrinsic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// Waits for a block.
    Pending,
    /// In a block on the disk. A refusal means that it had no effect beyond using up its nonce.
    Included { block: u64, refusal: Option<Refusal> },
    /// Never seen, lost with the pool, or included too long ago.
    Unknown,
}

/// A block as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub number: u64,
    pub hash: Hash,
    pub parent: Hash,
    /// Unix time, milliseconds.
    pub time_ms: u64,
    pub extrinsics: Vec<Extrinsic>,
}

/// One validator's weights and bonds, (uid, value), of 65535.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightRow {
    pub uid: u16,
    pub hotkey: Hotkey,
    pub weights: Vec<(u16, u16)>,
    pub bonds: Vec<(u16, u16)>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub error: Refusal,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload {
        Payload { genesis: Hash([7; 32]), nonce: 3, id: 5, call: Call::Register { netuid: 1 } }
    }

    #[test]
    fn the_wire_form_is_what_the_documentation_says() {
        let pair = HotkeyPair::from_seed(&[1; 32]);
        let extrinsic = Extrinsic::sign(&pair, &payload());
        let genesis = "07".repeat(32);
        assert_eq!(
            extrinsic.payload,
            format!(r#"{{"genesis":"0x{genesis}","nonce":3,"id":5,"call":{{"register":{{"netuid":1}}}}}}"#)
        );
        let included = Status::Included { block: 5, refusal: Some(Refusal::Stale) };
        assert_eq!(
            serde_json::to_string(&included).unwrap(),
            r#"{"status":"included","block":5,"refusal":"Stale"}"#
        );
    }

    #[test]
    fn a_signature_holds_for_its_signer_and_payload_alone() {
        let pair = HotkeyPair::from_seed(&[1; 32]);
        let good = Extrinsic::sign(&pair, &payload());
        good.verify().unwrap();
        let mut other = good.clone();
        other.payload = other.payload.replace("\"nonce\":3", "\"nonce\":4");
        assert!(other.verify().is_err());
        let mut stolen = good.clone();
        stolen.signer = HotkeyPair::from_seed(&[2; 32]).hotkey();
        assert!(stolen.verify().is_err());
        let again = Extrinsic::sign(&pair, &payload());
        assert_eq!(again.hash(), good.hash());
        assert_ne!(other.hash(), good.hash());
        assert_ne!(stolen.hash(), good.hash());
    }
}
