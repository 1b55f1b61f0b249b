//! `argus relay`: a public node that others join by, test their reachability with, and are reached through.

use argus_protocols::Role;

use super::{options::NodeOptions, ready};
use crate::node;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeOptions,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    node::run(Role::Relay, args.node.config()?, |up| ready::announce(up, json)).await
}
