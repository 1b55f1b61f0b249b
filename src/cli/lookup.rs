//! `argus lookup`: a hotkey's verified record, and whether its node can be reached from here.

use argus_protocols::{Hotkey, VerifiedRecord};
use serde_json::json;

use super::{light::LightNode, options::NodeOptions};
use crate::net::Reachability;

#[derive(clap::Args)]
pub struct Args {
    /// The hotkey's SS58 address.
    #[arg(value_name = "HOTKEY")]
    target: Hotkey,
    #[command(flatten)]
    node: NodeOptions,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let node = LightNode::join(&args.node.config()?, None).await?;
    let record = node.lookup(&args.target).await?;
    let reachability = node.handle().reach(&record).await;
    if json {
        let reach = match &reachability {
            Ok(reach) => json!({ "reachable": true, "path": reach }),
            Err(error) => json!({ "reachable": false, "error": error.to_string() }),
        };
        println!("{}", json!({ "record": *record, "reachability": reach }));
    } else {
        print(&record);
        match reachability {
            Ok(reach) => print_reachability(&reach),
            Err(error) => println!("reachable     no: {error}"),
        }
    }
    node.leave().await;
    Ok(())
}

fn print(record: &VerifiedRecord) {
    println!("hotkey        {}", record.hotkey);
    println!("role          {:?}", record.role);
    println!("netuid        {}", record.netuid);
    println!("peer          {}", record.peer);
    for address in &record.addresses {
        println!("address       {address}");
    }
    for capability in &record.capabilities {
        println!(
            "model         {} ({:.1} work units a second, {} at once)",
            capability.model, capability.work_units_per_second, capability.concurrency
        );
    }
    println!("sequence      {} (signature verified)", record.sequence);
}

fn print_reachability(reach: &Reachability) {
    let rtt =
        reach.rtt.map_or("no answer to a ping".into(), |rtt| format!("{:.1} ms", rtt.as_secs_f64() * 1e3));
    let path = serde_json::to_value(reach.path).unwrap_or_default();
    let transport = serde_json::to_value(reach.transport).unwrap_or_default();
    println!(
        "reachable     yes, {} by {}, {rtt}",
        path.as_str().unwrap_or_default(),
        transport.as_str().unwrap_or_default()
    );
}
