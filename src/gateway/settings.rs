//! Settings of the gateway.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{ledger::Defaults, limits};

/// Settings of the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the API and the studio listen. Port 0 takes any free one. For the public internet put a
    /// proxy with TLS in front.
    pub listen: SocketAddr,
    /// Where `argus keys` reaches this node while it runs. Loopback only.
    pub admin_listen: SocketAddr,
    /// Origins of other web pages that may use the API from a browser, such as `https://example.org`, or
    /// `*` for any. Empty: only the studio.
    pub allow_origins: Vec<String>,
    /// Requests a minute of a key that was made without a rate of its own.
    pub requests_per_minute: u32,
    /// Requests at once of a key that was made without a number of its own.
    pub concurrent_per_key: u32,
    /// Requests at once in all; more are told to come back later.
    pub max_in_flight: usize,
    /// Open connections.
    pub max_connections: usize,
    /// The longest a request may take, seconds.
    pub timeout_s: u64,
    /// How long requests may still run when the node stops, seconds.
    pub drain_s: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            allow_origins: Vec::new(),
            requests_per_minute: 60,
            concurrent_per_key: 4,
            max_in_flight: 64,
            max_connections: 1024,
            timeout_s: 300,
            drain_s: 20,
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("gateway.{field}: {problem}")]
pub struct SettingsError {
    pub field: &'static str,
    pub problem: String,
}

impl Settings {
    pub fn key_defaults(&self) -> Defaults {
        Defaults { requests_per_minute: self.requests_per_minute, concurrent: self.concurrent_per_key }
    }

    pub fn validate(&self) -> Result<(), SettingsError> {
        let check = |field, good: bool, problem: &str| {
            if good { Ok(()) } else { Err(SettingsError { field, problem: problem.into() }) }
        };
        check(
            "admin_listen",
            self.admin_listen.ip().is_loopback(),
            "must be a loopback address such as 127.0.0.1:0",
        )?;
        check(
            "requests_per_minute",
            (1..=limits::RATE).contains(&self.requests_per_minute),
            "must be 1 to 100000",
        )?;
        check(
            "concurrent_per_key",
            (1..=limits::CONCURRENT).contains(&self.concurrent_per_key),
            "must be 1 to 1000",
        )?;
        check("max_in_flight", (1..=100_000).contains(&self.max_in_flight), "must be 1 to 100000")?;
        check("max_connections", (1..=100_000).contains(&self.max_connections), "must be 1 to 100000")?;
        check("timeout_s", (1..=3600).contains(&self.timeout_s), "must be 1 to 3600 seconds")?;
        check("drain_s", self.drain_s <= 600, "must be at most 600 seconds")?;
        for origin in &self.allow_origins {
            let any = origin == "*";
            let web = (origin.starts_with("https://") || origin.starts_with("http://"))
                && axum::http::HeaderValue::from_str(origin).is_ok()
                && origin.matches('/').count() == 2;
            check(
                "allow_origins",
                any || web,
                &format!("{origin:?} is not an origin; write https://host or https://host:port, or *"),
            )?;
        }
        Ok(())
    }
}

/// What stops the gateway from starting, or ends it.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Ledger(#[from] super::ledger::LedgerError),
    #[error("cannot listen on {address} ({setting}): {source}; choose another address or stop what uses it")]
    Listen { setting: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    AdminFile { path: std::path::PathBuf, source: std::io::Error },
    #[error("{0}")]
    Accept(std::io::Error),
}

impl GatewayError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            GatewayError::Settings(_) => "settings",
            GatewayError::Ledger(_) => "ledger",
            GatewayError::Listen { .. } => "listen",
            GatewayError::AdminFile { .. } => "admin_file",
            GatewayError::Accept(_) => "accept",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Settings::default().validate().unwrap();
    }

    #[test]
    fn a_public_admin_port_is_refused() {
        let settings = Settings { admin_listen: "0.0.0.0:1".parse().unwrap(), ..Settings::default() };
        assert_eq!(settings.validate().unwrap_err().field, "admin_listen");
    }

    #[test]
    fn origins_are_checked() {
        let with =
            |origin: &str| Settings { allow_origins: vec![origin.into()], ..Settings::default() }.validate();
        for good in ["*", "https://example.org", "http://localhost:3000"] {
            with(good).unwrap();
        }
        for bad in ["example.org", "https://example.org/", "https://example.org/path", "https://a\nb"] {
            assert_eq!(with(bad).unwrap_err().field, "allow_origins", "{bad}");
        }
    }
}
