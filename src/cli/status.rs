//! `argus status`: asks a running node of this machine.

use std::path::PathBuf;

use anyhow::bail;
use argus_protocols::Role;
use serde_json::Value;

use crate::node::{AdminClient, AdminError, DataFolder};

#[derive(clap::Args)]
pub struct Args {
    /// The node's data folder [default: whichever of ~/.argus/{validator,miner,relay} has a running node].
    #[arg(long, env = "ARGUS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let status = ask(&args).await?;
    if json {
        println!("{status}");
    } else {
        print!("{}", outline(&status, 0));
    }
    Ok(())
}

async fn ask(args: &Args) -> anyhow::Result<Value> {
    if let Some(dir) = &args.data_dir {
        return Ok(AdminClient::open(&DataFolder::at(dir))?.status().await?);
    }
    for role in [Role::Validator, Role::Miner, Role::Relay] {
        match AdminClient::open(&DataFolder::locate(None, role)?) {
            Ok(client) => return Ok(client.status().await?),
            Err(AdminError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no node runs from the default folders: name its folder with --data-dir")
}

/// JSON for people: one line a value, objects indented, short lists on their line.
fn outline(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let entry = |name: &str, value: &Value| match value {
        Value::Object(map) if map.is_empty() => format!("{indent}{name}: –\n"),
        Value::Array(list) if list.is_empty() => format!("{indent}{name}: –\n"),
        Value::Object(_) | Value::Array(_) => {
            format!("{indent}{name}:\n{}", outline(value, depth + 1))
        }
        plain => format!("{indent}{name}: {}\n", scalar(plain)),
    };
    match value {
        Value::Object(map) => map.iter().map(|(name, value)| entry(&name.replace('_', " "), value)).collect(),
        Value::Array(list) => list
            .iter()
            .map(|item| match item {
                Value::Object(map) => {
                    let fields: Vec<String> = map
                        .iter()
                        .filter(|(_, v)| !v.is_null())
                        .map(|(name, value)| format!("{} {}", name.replace('_', " "), scalar(value)))
                        .collect();
                    format!("{indent}- {}\n", fields.join(", "))
                }
                plain => format!("{indent}- {}\n", scalar(plain)),
            })
            .collect(),
        plain => format!("{indent}{}\n", scalar(plain)),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_shows_every_value() {
        let status = serde_json::json!({
            "role": "miner", "dht": { "mode": "server" }, "empty": [],
            "peers": [{ "id": "a", "rtt_ms": 3, "relayed": null }],
        });
        let text = outline(&status, 0);
        for line in ["role: miner", "dht:", "  mode: server", "empty: –", "  - id a, rtt ms 3"] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
}
