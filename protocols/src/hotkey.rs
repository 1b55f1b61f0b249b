//! sr25519 hotkeys (Bittensor's identity of a miner or validator), SS58 text form, signatures.
//!
//! Protocol messages are signed over a domain-separated BLAKE3 hash, so that a signature made for one
//! purpose never verifies for another. The signing context is Substrate's (`substrate`).

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, PublicKey, SecretKey};

/// SS58 network prefix of Bittensor hotkeys.
pub const SS58_PREFIX: u8 = 42;
const CONTEXT: &[u8] = b"substrate";

/// What a signature is for. The label goes into the signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    Record,
    Open,
    Receipt,
    /// An extrinsic of the embedded development chain.
    DevChain,
}

impl Domain {
    fn label(self) -> &'static str {
        match self {
            Domain::Record => "argus/record/1",
            Domain::Open => "argus/open/1",
            Domain::Receipt => "argus/receipt/1",
            Domain::DevChain => "argus/devchain/1",
        }
    }

    /// The 32 bytes that are signed: BLAKE3 in key-derivation mode, the label as its context.
    pub fn digest(self, message: &[u8]) -> [u8; 32] {
        blake3::derive_key(self.label(), message)
    }
}

/// An sr25519 public key. Its text form is SS58 with prefix 42.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Hotkey([u8; 32]);

/// A 64-byte sr25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Signature(pub [u8; 64]);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HotkeyError {
    #[error("not an SS58 address: {0}")]
    Base58(String),
    #[error("an SS58 hotkey has 48 characters, this has {0}")]
    TooLong(usize),
    #[error("an SS58 hotkey has 35 bytes, this one has {0}")]
    Length(usize),
    #[error("SS58 prefix {0} is of another network; hotkeys have prefix 42 and start with 5")]
    Prefix(u8),
    #[error("the SS58 checksum does not match: a character is wrong or missing")]
    Checksum,
    #[error("not a valid sr25519 secret key")]
    Secret,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the signature does not match the hotkey and the message")]
pub struct BadSignature;

impl Hotkey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first characters of the address: enough to tell nodes apart in a log line.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }

    /// Checks a signature over a protocol message of this domain.
    pub fn verify(&self, domain: Domain, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        self.verify_raw(&domain.digest(message), signature)
    }

    /// Checks a signature over the bytes as they are, as Bittensor's own tools make them.
    pub fn verify_raw(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        // The neutral element is a well-formed key whose every signature anybody can make.
        if self.0 == [0; 32] {
            return Err(BadSignature);
        }
        let key = PublicKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = schnorrkel::Signature::from_bytes(&signature.0).map_err(|_| BadSignature)?;
        key.verify_simple(CONTEXT, message, &signature).map_err(|_| BadSignature)
    }
}

fn checksum(payload: &[u8]) -> [u8; 2] {
    use blake2::{Blake2b512, Digest};
    let hash = Blake2b512::new().chain_update(b"SS58PRE").chain_update(payload).finalize();
    [hash[0], hash[1]]
}

impl fmt::Display for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(35);
        bytes.push(SS58_PREFIX);
        bytes.extend_from_slice(&self.0);
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        f.write_str(&bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hotkey({self})")
    }
}

impl FromStr for Hotkey {
    type Err = HotkeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // 35 bytes are at most 48 characters; anything longer is not worth decoding.
        if text.len() > 64 {
            return Err(HotkeyError::TooLong(text.len()));
        }
        let bytes = bs58::decode(text).into_vec().map_err(|e| HotkeyError::Base58(e.to_string()))?;
        let bytes: [u8; 35] = bytes.try_into().map_err(|b: Vec<u8>| HotkeyError::Length(b.len()))?;
        if bytes[0] != SS58_PREFIX {
            return Err(HotkeyError::Prefix(bytes[0]));
        }
        if checksum(&bytes[..33]) != bytes[33..] {
            return Err(HotkeyError::Checksum);
        }
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[1..33]);
        Ok(Self(key))
    }
}

impl serde::Serialize for Hotkey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Hotkey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", hex::encode(&self.0[..4]))
    }
}

impl serde::Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> serde::Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let mut bytes = [0; 64];
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        hex::decode_to_slice(digits, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// A hotkey with its secret. Never printed, never serialised, erased from memory when dropped.
pub struct HotkeyPair(Keypair);

impl HotkeyPair {
    pub fn generate() -> Self {
        Self(Keypair::generate())
    }

    /// From the 32-byte seed (`secretSeed` of a wallet file), expanded as Substrate does.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let secret = MiniSecretKey::from_bytes(seed).expect("any 32 bytes are a mini secret key");
        Self(secret.expand_to_keypair(ExpansionMode::Ed25519))
    }

    /// From the 64-byte expanded secret (`privateKey` of a wallet file): the scalar in its canonical
    /// form, then the nonce seed, as Substrate's `sp_core` writes it (not the Ed25519 form of polkadot-js).
    pub fn from_secret(secret: &[u8; 64]) -> Result<Self, HotkeyError> {
        let secret = SecretKey::from_bytes(secret).map_err(|_| HotkeyError::Secret)?;
        let pair = secret.to_keypair();
        if pair.public.to_bytes() == [0; 32] {
            return Err(HotkeyError::Secret);
        }
        Ok(Self(pair))
    }

    /// The 64-byte expanded secret, for writing a wallet file; the caller erases it.
    pub fn to_secret(&self) -> [u8; 64] {
        self.0.secret.to_bytes()
    }

    pub fn hotkey(&self) -> Hotkey {
        Hotkey(self.0.public.to_bytes())
    }

    pub fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        self.sign_raw(&domain.digest(message))
    }

    /// Signs the bytes as they are, as Bittensor's own tools do.
    pub fn sign_raw(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign_simple(CONTEXT, message).to_bytes())
    }
}

impl fmt::Debug for HotkeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HotkeyPair({})", self.hotkey())
    }
}
