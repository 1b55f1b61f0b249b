//! How a node reaches its chain.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the chain listens: `http://host:port` is a development chain (`argus devchain`).
    pub endpoint: String,
    /// How often the metagraph is read, milliseconds; 0 means once a block.
    pub refresh_ms: u64,
    /// A metagraph older than this, in milliseconds, counts as stale.
    pub stale_after_ms: u64,
    /// How long one request may take, milliseconds.
    pub request_timeout_ms: u64,
    /// How long an extrinsic may take until it is seen in a block, milliseconds.
    pub inclusion_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: "http://127.0.0.1:9944".into(),
            refresh_ms: 0,
            stale_after_ms: 120_000,
            request_timeout_ms: 10_000,
            inclusion_timeout_ms: 60_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("chain.endpoint is {0:?}: write it like http://127.0.0.1:9944 (a development chain) or wss://…")]
    Endpoint(String),
    #[error("chain.{name} is {value}: it has to be between {least} and {most} milliseconds")]
    Milliseconds { name: &'static str, value: u64, least: u64, most: u64 },
}

impl Settings {
    /// For a development chain at this address, the rest as by default.
    pub fn at(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), ..Self::default() }
    }

    pub fn validate(&self) -> Result<(), SettingsError> {
        let schemes = ["http://", "ws://", "wss://"];
        let host = schemes.iter().find_map(|scheme| self.endpoint.strip_prefix(scheme));
        let usable = host.is_some_and(|host| {
            !host.is_empty() && host.len() < 512 && host.chars().all(|c| c.is_ascii_graphic())
        });
        if !usable {
            return Err(SettingsError::Endpoint(self.endpoint.chars().take(128).collect()));
        }
        const HOUR: u64 = 3_600_000;
        for (name, value, least, most) in [
            ("refresh_ms", self.refresh_ms, 0, HOUR),
            ("stale_after_ms", self.stale_after_ms, 1000, 24 * HOUR),
            ("request_timeout_ms", self.request_timeout_ms, 100, 120_000),
            ("inclusion_timeout_ms", self.inclusion_timeout_ms, 100, HOUR),
        ] {
            if !(least..=most).contains(&value) {
                return Err(SettingsError::Milliseconds { name, value, least, most });
            }
        }
        Ok(())
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn inclusion_timeout(&self) -> Duration {
        Duration::from_millis(self.inclusion_timeout_ms)
    }

    pub(crate) fn stale_after(&self) -> Duration {
        Duration::from_millis(self.stale_after_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_mistakes_are_named() {
        Settings::default().validate().unwrap();
        Settings::at("wss://entrypoint.example:443").validate().unwrap();
        for bad in ["", "127.0.0.1:9944", "http://", "https//x", "http://a b"] {
            let error = Settings::at(bad).validate().unwrap_err();
            assert!(error.to_string().contains("http://127.0.0.1:9944"), "{error}");
        }
        let zero = Settings { request_timeout_ms: 0, ..Settings::default() };
        assert!(zero.validate().unwrap_err().to_string().contains("chain.request_timeout_ms"));
    }
}
