//! Layered settings: defaults, then the configuration file, then environment and flags (see `cli`).
//!
//! Each part of the node owns its section's type. A key that nobody knows is refused with its line and
//! the name that was probably meant, since a setting that is silently ignored costs an operator days.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{chain, gateway, identity::Wallet, miner, net, validator};

/// Everything a node can be told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps its key, database and address book. Default: `~/.argus/<role>`.
    pub data_dir: Option<PathBuf>,
    /// The subnet.
    pub netuid: Option<u16>,
    /// Loopback address of `/status` and `/metrics`; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// A validator without API.
    pub no_api: bool,
    /// Which hotkey the node acts for.
    pub wallet: Wallet,
    /// How this miner cheats, in tests.
    #[cfg(feature = "adversary")]
    #[serde(skip)]
    pub dishonest: Option<miner::dishonest::Kind>,
    pub net: net::Settings,
    pub chain: chain::Settings,
    pub engine: Engine,
    pub miner: miner::Settings,
    pub validator: validator::Settings,
    pub gateway: gateway::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: None,
            netuid: None,
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            no_api: false,
            wallet: Wallet::default(),
            #[cfg(feature = "adversary")]
            dishonest: None,
            net: net::Settings::default(),
            chain: chain::Settings::default(),
            engine: Engine::default(),
            miner: miner::Settings::default(),
            validator: validator::Settings::default(),
            gateway: gateway::Settings::default(),
        }
    }
}

/// What runs the models.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// `cpu`, `cuda:0`, `metal:0`.
    pub device: String,
    /// Worker threads, each with one job at a time.
    pub replicas: usize,
    /// Processor threads of each replica; 0 shares the machine's cores among the replicas.
    pub threads_per_replica: usize,
    /// Jobs waiting at most; beyond that the miner says busy.
    pub queue: usize,
    /// Model ids to serve, of the registry. Empty: all whose weights are in the binary.
    pub models: Vec<String>,
    /// A registry file instead of the built-in one.
    pub registry: Option<PathBuf>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            replicas: 1,
            threads_per_replica: 0,
            queue: 32,
            models: Vec::new(),
            registry: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}{suggestion}")]
    Parse { path: PathBuf, message: String, suggestion: String },
}

impl Config {
    /// Reads a file; without one, the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let message = error.to_string();
            ConfigError::Parse {
                path: path.to_owned(),
                suggestion: suggestion(error.message()).unwrap_or_default(),
                message,
            }
        })
    }
}

/// Serde's message names the unknown key and all known ones, in backticks: the closest is what was meant.
fn suggestion(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown").then(|| quoted.next())??;
    let (closeness, known) = quoted
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (closeness > 0.7).then(|| format!("did you mean `{known}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(text: &str) -> String {
        Config::parse(text, Path::new("argus.toml")).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_a_suggestion() {
        let error = refuse("netuid = 1\n\n[engine]\nreplicsa = 2\n");
        assert!(error.contains("argus.toml"), "{error}");
        assert!(error.contains("line 4"), "{error}");
        assert!(error.contains("did you mean `replicas`?"), "{error}");
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let error = refuse("netuid = \"one\"\n");
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn a_key_like_no_other_gets_no_suggestion() {
        assert!(!refuse("zzz = 1\n").contains("did you mean"));
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("", Path::new("x")).unwrap();
        assert_eq!(config.engine.device, "cpu");
    }

    #[test]
    fn the_presets_are_valid() {
        let presets = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let mut count = 0;
        for entry in std::fs::read_dir(presets).unwrap() {
            let path = entry.unwrap().path();
            // models.toml is the registry, checked by its own crate.
            if path.extension().is_some_and(|e| e == "toml") && !path.ends_with("models.toml") {
                Config::load(Some(&path)).unwrap();
                count += 1;
            }
        }
        assert!(count >= 4, "devnet, miner, validator and relay");
    }
}
