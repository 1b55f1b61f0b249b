//! Options that several subcommands share, and how they join with the configuration file.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::config::Config;

/// Which hotkey to act for.
#[derive(Args, Clone, Debug, Default)]
pub struct WalletOptions {
    /// Folder of wallets [default: ~/.bittensor/wallets].
    #[arg(long, env = "ARGUS_WALLET_PATH", value_name = "DIR")]
    pub wallet_path: Option<PathBuf>,
    /// Name of the wallet [default: default].
    #[arg(long, env = "ARGUS_WALLET", value_name = "NAME")]
    pub wallet: Option<String>,
    /// Name of the hotkey in the wallet [default: default].
    #[arg(long, env = "ARGUS_HOTKEY", value_name = "NAME")]
    pub hotkey: Option<String>,
}

/// Options of every command that joins the overlay.
#[derive(Args, Clone, Debug, Default)]
pub struct NodeOptions {
    /// Configuration file (TOML); flags and environment win over it.
    #[arg(long, env = "ARGUS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the node keeps its key, database and address book.
    #[arg(long, env = "ARGUS_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The subnet.
    #[arg(long, env = "ARGUS_NETUID")]
    pub netuid: Option<u16>,
    /// The chain's endpoint, e.g. http://127.0.0.1:9944.
    #[arg(long, env = "ARGUS_CHAIN", value_name = "URL")]
    pub chain: Option<String>,
    /// Addresses to join by, e.g. /ip4/203.0.113.7/tcp/4001/p2p/12D3… (repeatable, or comma-separated).
    #[arg(long, env = "ARGUS_BOOTSTRAP", value_name = "MULTIADDR", value_delimiter = ',')]
    pub bootstrap: Vec<String>,
    /// Addresses to listen on (repeatable).
    #[arg(long, env = "ARGUS_LISTEN", value_name = "MULTIADDR", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Addresses that others reach this node by, when it cannot find out (repeatable).
    #[arg(long, env = "ARGUS_ANNOUNCE", value_name = "MULTIADDR", value_delimiter = ',')]
    pub announce: Vec<String>,
    /// A model registry file instead of the built-in one.
    #[arg(long, env = "ARGUS_REGISTRY", value_name = "FILE")]
    pub registry: Option<PathBuf>,
    #[command(flatten)]
    pub wallet: WalletOptions,
}

impl NodeOptions {
    /// The configuration with these options laid over it.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(dir) = &self.data_dir {
            config.data_dir = Some(dir.clone());
        }
        if let Some(registry) = &self.registry {
            config.engine.registry = Some(registry.clone());
        }
        if let Some(netuid) = self.netuid {
            config.netuid = Some(netuid);
        }
        if let Some(endpoint) = &self.chain {
            config.chain.endpoint = endpoint.clone();
        }
        for (given, setting, flag) in [
            (&self.bootstrap, &mut config.net.bootstrap, "--bootstrap"),
            (&self.listen, &mut config.net.listen, "--listen"),
            (&self.announce, &mut config.net.announce, "--announce"),
        ] {
            if !given.is_empty() {
                *setting = given
                    .iter()
                    .map(|text| text.parse().with_context(|| format!("{flag} {text}: not a multiaddress")))
                    .collect::<anyhow::Result<_>>()?;
            }
        }
        self.wallet.apply(&mut config);
        Ok(config)
    }
}

impl WalletOptions {
    /// Lays these options over the configuration.
    pub fn apply(&self, config: &mut Config) {
        let wallet = &mut config.wallet;
        wallet.path = self.wallet_path.clone().or(wallet.path.take());
        wallet.name = self.wallet.clone().or(wallet.name.take());
        wallet.hotkey = self.hotkey.clone().or(wallet.hotkey.take());
    }
}
