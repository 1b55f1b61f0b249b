//! `argus validator`: scores miners, writes weights, and sells the miners' work through its API.

use std::net::SocketAddr;

use argus_protocols::Role;

use super::{options::NodeOptions, ready};
use crate::node;

#[derive(clap::Args)]
pub struct Args {
    /// Where the API and the studio listen [default: 127.0.0.1:8080].
    #[arg(long, env = "ARGUS_API_LISTEN", value_name = "ADDRESS", conflicts_with = "no_api")]
    api: Option<SocketAddr>,
    /// Run no API: score and set weights only.
    #[arg(long)]
    no_api: bool,
    #[command(flatten)]
    node: NodeOptions,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let mut config = args.node.config()?;
    if let Some(listen) = args.api {
        config.gateway.listen = listen;
    }
    config.no_api |= args.no_api;
    node::run(Role::Validator, config, |up| ready::announce(up, json)).await
}
