//! The subnet's chain, as miners and validators need it: the metagraph, and a way to set weights.
//!
//! Invariants:
//! - Success is believed only when the extrinsic was found in a block; a call whose fate is unknown is
//!   [`ChainError::NotIncluded`], never success.
//! - A refusal keeps the name that subtensor's runtime uses ([`Refusal`]), whichever chain it came from.
//! - Whatever a chain answers is checked before it becomes a [`Metagraph`].
//!
//! [`dev`] is the embedded development chain and its client, [`yuma`] its consensus, [`Watch`] a cached
//! metagraph that refreshes itself.

pub mod dev;
mod metagraph;
mod metrics;
mod refusal;
mod settings;
mod watch;
pub mod yuma;

use std::{fmt, sync::Arc, time::Duration};

use argus_protocols::HotkeyPair;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use metagraph::{Hyperparameters, Metagraph, Neuron};
pub use metrics::Metrics;
pub use refusal::Refusal;
pub use settings::{Settings, SettingsError};
pub use watch::{View, Watch};

/// One TAO in rao.
pub const TAO: u64 = 1_000_000_000;

/// A chain that has subnets with miners and validators.
#[async_trait]
pub trait Chain: Send + Sync + 'static {
    /// The newest block.
    async fn head(&self) -> Result<Head, ChainError>;

    /// Everybody who is registered on a subnet, and its hyperparameters, all of one block.
    async fn metagraph(&self, netuid: u16) -> Result<Metagraph, ChainError>;

    /// Sets the weights (uid, weight) of a validator, and waits until they are in a block. The chain
    /// scales the largest to 65535.
    async fn set_weights(
        &self,
        pair: &HotkeyPair,
        netuid: u16,
        weights: &[(u16, u16)],
        version_key: u64,
    ) -> Result<Inclusion, ChainError>;
}

/// The newest block, and how far apart blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub block: u64,
    pub hash: Hash,
    #[serde(rename = "block_time_ms", with = "milliseconds")]
    pub block_time: Duration,
}

/// Where an extrinsic went into the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inclusion {
    pub block: u64,
    /// Of the extrinsic.
    pub hash: Hash,
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(duration.as_millis() as u64)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// A 32-byte hash of a block or an extrinsic; `0x` and 64 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a hash is 0x and 64 hexadecimal digits")]
pub struct BadHash;

impl std::str::FromStr for Hash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes).map_err(|_| BadHash)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    #[error("cannot reach the chain at {endpoint} ({detail}): is it running, is the address right?")]
    Unreachable { endpoint: String, detail: String },
    #[error("the chain at {endpoint} did not answer within {waited:?}")]
    TimedOut { endpoint: String, waited: Duration },
    #[error("the chain refused this: {0}")]
    Refused(Refusal),
    #[error(
        "extrinsic {hash} was not seen in a block within {waited:?}; it may still be included: look before sending it again"
    )]
    NotIncluded { hash: Hash, waited: Duration },
    #[error("the chain at {endpoint} gave an answer that makes no sense: {detail}")]
    Response { endpoint: String, detail: String },
    #[error("{0}")]
    Unsupported(String),
}

impl ChainError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ChainError::Unreachable { .. } => "unreachable",
            ChainError::TimedOut { .. } => "timed_out",
            ChainError::Refused(_) => "refused",
            ChainError::NotIncluded { .. } => "not_included",
            ChainError::Response { .. } => "bad_response",
            ChainError::Unsupported(_) => "unsupported",
        }
    }

    /// Whether the same call can succeed later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        match self {
            ChainError::Unreachable { .. } | ChainError::TimedOut { .. } | ChainError::NotIncluded { .. } => {
                true
            }
            ChainError::Refused(refusal) => refusal.passes_with_time(),
            ChainError::Response { .. } | ChainError::Unsupported(_) => false,
        }
    }

    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            ChainError::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl From<Refusal> for ChainError {
    fn from(refusal: Refusal) -> Self {
        ChainError::Refused(refusal)
    }
}

/// A client for the chain that the settings name. Makes no connection yet.
pub fn connect(settings: &Settings) -> Result<Arc<dyn Chain>, ChainError> {
    let endpoint = settings.endpoint.as_str();
    if endpoint.starts_with("ws://") || endpoint.starts_with("wss://") {
        return Err(ChainError::Unsupported(format!(
            "{endpoint}: subtensor is not in this build yet; use a development chain \
             (`argus devchain`, endpoint http://127.0.0.1:9944)"
        )));
    }
    Ok(Arc::new(dev::Client::new(settings)?))
}
