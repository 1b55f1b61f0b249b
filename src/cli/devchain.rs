//! `argus devchain`: a chain for development, so that a network needs no real one.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::{amount::Tao, ready};
use crate::{
    chain::dev::{self, Rules, Settings},
    node,
};

#[derive(clap::Args)]
pub struct Args {
    /// Where to answer HTTP. Port 0 takes a free one, the same again after a restart.
    #[arg(long, env = "ARGUS_DEVCHAIN_LISTEN", default_value = "127.0.0.1:9944", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where the chain is kept [default: ~/.argus/devchain].
    #[arg(long, env = "ARGUS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// From one block to the next, milliseconds.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    block_ms: u64,
    #[command(flatten)]
    rules: RuleOptions,
}

/// A chain that exists keeps the rules it was made with.
#[derive(clap::Args)]
#[command(next_help_heading = "Rules of a new chain")]
struct RuleOptions {
    /// Subnets, comma-separated [default: 1].
    #[arg(long, value_name = "NETUID", value_delimiter = ',')]
    netuids: Option<Vec<u16>>,
    /// Blocks from epoch to epoch [default: 20].
    #[arg(long, value_name = "BLOCKS")]
    tempo: Option<u16>,
    /// Blocks between two weight sets of one validator [default: 5].
    #[arg(long, value_name = "BLOCKS")]
    weights_rate_limit: Option<u64>,
    /// The oldest version key that weights may carry [default: 0].
    #[arg(long, value_name = "KEY")]
    version_key: Option<u64>,
    /// Weights must name so many miners, or all there are [default: 1].
    #[arg(long, value_name = "COUNT")]
    min_allowed_weights: Option<u16>,
    /// The largest share of one weight, of 65535 [default: 65535].
    #[arg(long, value_name = "SHARE")]
    max_weights_limit: Option<u16>,
    /// Blocks without weights after which a validator is inactive [default: 5000].
    #[arg(long, value_name = "BLOCKS")]
    activity_cutoff: Option<u16>,
    /// Validator permits [default: 64].
    #[arg(long, value_name = "COUNT")]
    max_validators: Option<u16>,
    /// Neurons on a subnet [default: 256].
    #[arg(long, value_name = "COUNT")]
    max_neurons: Option<u16>,
    /// Blocks for which a new neuron cannot be replaced [default: 4096].
    #[arg(long, value_name = "BLOCKS")]
    immunity_period: Option<u16>,
    /// Stake that a validator needs [default: 1000].
    #[arg(long, value_name = "TAO")]
    min_stake: Option<Tao>,
    /// Paid to each subnet a block [default: 1].
    #[arg(long, value_name = "TAO")]
    emission: Option<Tao>,
    /// Price of a registration [default: 0].
    #[arg(long, value_name = "TAO")]
    registration_cost: Option<Tao>,
    /// The most the faucet gives at once, 0 for no faucet [default: 100000].
    #[arg(long, value_name = "TAO")]
    faucet: Option<Tao>,
}

impl RuleOptions {
    fn rules(self) -> Rules {
        let rao = |amount: Option<Tao>| amount.map(|tao| tao.rao());
        Rules {
            netuids: self.netuids,
            tempo: self.tempo,
            weights_rate_limit: self.weights_rate_limit,
            version_key: self.version_key,
            min_allowed_weights: self.min_allowed_weights,
            max_weights_limit: self.max_weights_limit,
            activity_cutoff: self.activity_cutoff,
            max_validators: self.max_validators,
            max_neurons: self.max_neurons,
            immunity_period: self.immunity_period,
            min_stake: rao(self.min_stake),
            emission: rao(self.emission),
            registration_cost: rao(self.registration_cost),
            faucet: rao(self.faucet),
        }
    }
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let data_dir = match args.data_dir {
        Some(dir) => dir,
        None => std::env::home_dir()
            .context("no --data-dir was given and there is no home folder to take a default from")?
            .join(".argus")
            .join("devchain"),
    };
    if !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "everybody who reaches this address can use the faucet and fill the chain");
    }
    let settings =
        Settings { listen: args.listen, data_dir, block_ms: args.block_ms, rules: args.rules.rules() };
    let stop = node::stop_signal()?;
    let shutdown = CancellationToken::new();
    let chain = dev::serve(settings, shutdown.clone()).await?;
    let endpoint = format!("http://{}", chain.address);
    ready::say(&if json {
        let line = serde_json::json!({
            "event": "ready", "endpoint": endpoint, "genesis": chain.genesis, "block": chain.block,
        });
        format!("{line}\n")
    } else {
        format!(
            "The development chain is up at block {}\n  endpoint  {endpoint}\n  genesis   {}\n",
            chain.block, chain.genesis
        )
    });
    let mut task = chain.task;
    tokio::select! {
        ended = &mut task => return Ok(ended??),
        () = stop => {}
    }
    shutdown.cancel();
    Ok(task.await??)
}
