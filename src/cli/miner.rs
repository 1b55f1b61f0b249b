//! `argus miner`: runs models for validators.

use argus_protocols::Role;

use super::{options::NodeOptions, ready};
use crate::node;

#[derive(clap::Args)]
pub struct Args {
    /// Models to serve, by their registry ids (comma-separated).
    #[arg(long, env = "ARGUS_MODELS", value_delimiter = ',', value_name = "ID")]
    models: Vec<String>,
    /// What runs them: cpu, cuda:0, metal:0.
    #[arg(long, env = "ARGUS_DEVICE")]
    device: Option<String>,
    /// Jobs at once on the device.
    #[arg(long, env = "ARGUS_REPLICAS")]
    replicas: Option<usize>,
    /// Cheat in this way: noise, cached, fewer-steps, skipped-steps, lends:FOLDER, relay:FOLDER.
    #[cfg(feature = "adversary")]
    #[arg(long)]
    dishonest: Option<crate::miner::dishonest::Kind>,
    #[command(flatten)]
    node: NodeOptions,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let mut config = args.node.config()?;
    if !args.models.is_empty() {
        config.engine.models = args.models;
    }
    if let Some(device) = args.device {
        config.engine.device = device;
    }
    if let Some(replicas) = args.replicas {
        config.engine.replicas = replicas;
    }
    #[cfg(feature = "adversary")]
    {
        config.dishonest = args.dishonest;
    }
    node::run(Role::Miner, config, |up| ready::announce(up, json)).await
}
