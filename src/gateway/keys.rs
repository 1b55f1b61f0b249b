//! API keys: their text, what is stored of them, and what is shown.
//!
//! A key is 256 random bits; it is shown once, when it is made. The store has BLAKE3 of it, which is
//! enough for a secret of that size: there is nothing to guess, so no salt and no slow hash.

use std::{fmt, str::FromStr};

use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limits;

const PREFIX: &str = "argus-";
const HASH_CONTEXT: &str = "argus/api-key/1";

/// The text of a key. Printed once, to whoever made it; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A new key from the operating system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|e| KeyError::Random(e.to_string()))?;
        Ok(Self(format!("{PREFIX}{}", hex::encode(bytes))))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// BLAKE3 of a key's text, in key-derivation mode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Of whatever a client sent: a text that was never a key has a hash that nobody knows.
    pub fn of(text: &str) -> Self {
        Self(blake3::derive_key(HASH_CONTEXT, text.as_bytes()))
    }

    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name by which people speak of the key: says nothing about its text.
    pub fn id(&self) -> KeyId {
        KeyId(format!("key_{}", hex::encode(&self.0[..6])))
    }
}

/// Public name of a key: `key_` and 12 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
pub struct KeyId(String);

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("key_").unwrap_or_default();
        if digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(text.into()))
        } else {
            Err(KeyError::Id(text.chars().take(32).collect()))
        }
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("{0:?} is not a key id; ids look like key_0123456789ab, see `argus keys list`")]
    Id(String),
    #[error("a name has 1 to {} characters and no control characters", limits::KEY_NAME)]
    Name,
    #[error("a rate is 1 to {} requests a minute", limits::RATE)]
    Rate,
    #[error("requests at once are 1 to {}", limits::CONCURRENT)]
    Concurrent,
    #[error("credits are 0 to {}, in thousandths at the finest", limits::CREDITS / 1000)]
    Credits,
    #[error("the operating system gives no random numbers: {0}")]
    Random(String),
}

/// Credits in thousandths; in JSON and on the command line a number such as 12.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Credits(pub u64);

impl Credits {
    pub fn from_number(number: f64) -> Result<Self, KeyError> {
        let thousandths = (number * 1000.0).round();
        // Written so that a NaN fails too.
        if !(thousandths >= 0.0 && thousandths <= limits::CREDITS as f64) {
            return Err(KeyError::Credits);
        }
        Ok(Self(thousandths as u64))
    }

    pub fn number(self) -> f64 {
        self.0 as f64 / 1000.0
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl FromStr for Credits {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_number(text.parse().map_err(|_| KeyError::Credits)?)
    }
}

impl Serialize for Credits {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.number())
    }
}

impl<'de> Deserialize<'de> for Credits {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_number(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What the store keeps of a key, under its hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    /// Unix time, milliseconds.
    pub created_ms: u64,
    pub revoked_ms: Option<u64>,
    /// Requests a minute; `None` follows the gateway's settings.
    pub rate: Option<u32>,
    /// Requests at once; `None` follows the gateway's settings.
    pub concurrent: Option<u32>,
    /// Credits given so far; `None` is without limit.
    pub credits: Option<Credits>,
}

/// What a key was used for, kept beside it under the same hash.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Requests let in.
    pub requests: u64,
    /// Requests turned away for rate, concurrency or credit.
    pub refused: u64,
    /// Pictures made.
    pub images: u64,
    /// Pictures embedded.
    pub embeddings: u64,
    /// Pictures classified.
    #[serde(default)]
    pub classifications: u64,
    /// Credits spent, thousandths.
    pub spent_thousandths: u64,
    /// Unix time, milliseconds.
    pub last_used_ms: Option<u64>,
}

/// What may be said when a key is made. All but the name has a default.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    pub name: String,
    #[serde(default)]
    pub rate: Option<u32>,
    #[serde(default)]
    pub concurrent: Option<u32>,
    #[serde(default)]
    pub credits: Option<Credits>,
}

impl NewKey {
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), rate: None, concurrent: None, credits: None }
    }

    pub fn validate(&self) -> Result<(), KeyError> {
        check_name(&self.name)?;
        check_rate(self.rate)?;
        check_concurrent(self.concurrent)
    }
}

/// A change to a key: what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyChange {
    pub name: Option<String>,
    pub rate: Option<u32>,
    pub concurrent: Option<u32>,
    /// Credits on top of those given before.
    pub add_credits: Option<Credits>,
    /// Takes the credit limit away.
    pub unlimited: bool,
}

impl KeyChange {
    pub fn validate(&self) -> Result<(), KeyError> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        check_rate(self.rate)?;
        check_concurrent(self.concurrent)
    }
}

fn check_name(name: &str) -> Result<(), KeyError> {
    let length = name.chars().count();
    let good = (1..=limits::KEY_NAME).contains(&length)
        && !name.chars().any(char::is_control)
        && !name.trim().is_empty();
    if good { Ok(()) } else { Err(KeyError::Name) }
}

fn check_rate(rate: Option<u32>) -> Result<(), KeyError> {
    match rate {
        Some(rate) if !(1..=limits::RATE).contains(&rate) => Err(KeyError::Rate),
        _ => Ok(()),
    }
}

fn check_concurrent(concurrent: Option<u32>) -> Result<(), KeyError> {
    match concurrent {
        Some(n) if !(1..=limits::CONCURRENT).contains(&n) => Err(KeyError::Concurrent),
        _ => Ok(()),
    }
}

/// A key as it is shown: to its holder (`GET /v1/key`) and to the operator (`argus keys list`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    #[schema(value_type = String)]
    pub id: KeyId,
    pub name: String,
    /// Unix time, milliseconds.
    pub created_ms: u64,
    /// Unix time, milliseconds.
    pub revoked_ms: Option<u64>,
    pub requests_per_minute: u32,
    pub concurrent: u32,
    /// Credits given so far; `null` is without limit.
    #[schema(value_type = Option<f64>)]
    pub credits: Option<Credits>,
    /// Credits left; `null` is without limit.
    #[schema(value_type = Option<f64>)]
    pub credits_left: Option<Credits>,
    pub usage: Usage,
}

/// A key that was just made: the only time its text is seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreatedKey {
    pub key: String,
    #[serde(flatten)]
    pub view: KeyView,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_random_and_hidden() {
        let (a, b) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.expose().len(), PREFIX.len() + 64);
        assert!(a.expose().starts_with("argus-"));
        assert!(!format!("{a:?}").contains(&a.expose()[6..12]));
        assert_eq!(a.hash(), KeyHash::of(a.expose()));
        assert!(!a.expose().contains(&a.hash().id().to_string()[4..]));
    }

    #[test]
    fn ids_parse_only_in_their_own_form() {
        let id = Secret::generate().unwrap().hash().id();
        assert_eq!(id.to_string().parse::<KeyId>().unwrap(), id);
        for bad in ["", "key_", "key_0123456789aB", "key_0123456789abc", "0123456789ab", "key_0123456789a/"] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad}");
            assert!(serde_json::from_value::<KeyId>(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn credits_are_exact_and_never_negative() {
        assert_eq!("0.2".parse::<Credits>().unwrap(), Credits(200));
        assert_eq!("1".parse::<Credits>().unwrap(), Credits(1000));
        for bad in ["-1", "NaN", "inf", "1e30", "ten"] {
            assert_eq!(bad.parse::<Credits>(), Err(KeyError::Credits), "{bad}");
        }
        let back: Credits = serde_json::from_str(&serde_json::to_string(&Credits(12_345)).unwrap()).unwrap();
        assert_eq!(back, Credits(12_345));
    }

    #[test]
    fn names_and_rates_are_checked() {
        assert_eq!(NewKey::named("").validate(), Err(KeyError::Name));
        assert_eq!(NewKey::named(" ").validate(), Err(KeyError::Name));
        assert_eq!(NewKey::named("a\u{1b}[31m").validate(), Err(KeyError::Name));
        assert_eq!(NewKey::named("n".repeat(65)).validate(), Err(KeyError::Name));
        NewKey::named("Lena’s studio").validate().unwrap();
        let rate = NewKey { rate: Some(0), ..NewKey::named("a") };
        assert_eq!(rate.validate(), Err(KeyError::Rate));
        let concurrent = KeyChange { concurrent: Some(1001), ..KeyChange::default() };
        assert_eq!(concurrent.validate(), Err(KeyError::Concurrent));
    }
}
