//! `argus chain`: what a hotkey does and sees on a development chain.

use std::path::PathBuf;

use anyhow::Context;
use argus_protocols::HotkeyPair;
use clap::Subcommand;
use serde_json::json;

use super::{
    amount::Tao,
    options::WalletOptions,
    table::{Align, Table},
};
use crate::{
    chain::{
        Chain, Inclusion, Metagraph,
        dev::{Client, wire},
    },
    config::Config,
    identity,
    node::DEFAULT_NETUID,
};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Which chain and subnet.
#[derive(clap::Args)]
struct Target {
    /// Configuration file (TOML); flags and environment win over it.
    #[arg(long, env = "ARGUS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The chain's endpoint [default: http://127.0.0.1:9944].
    #[arg(long, env = "ARGUS_CHAIN", value_name = "URL")]
    chain: Option<String>,
    /// The subnet [default: 1].
    #[arg(long, env = "ARGUS_NETUID")]
    netuid: Option<u16>,
}

/// Which chain and subnet, and for which hotkey.
#[derive(clap::Args)]
struct Signer {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    wallet: WalletOptions,
}

#[derive(Subcommand)]
enum Command {
    /// The chain: its newest block, subnets, faucet.
    Info {
        #[command(flatten)]
        target: Target,
    },
    /// Everybody on the subnet, with stake and the results of the last epoch.
    Metagraph {
        #[command(flatten)]
        target: Target,
    },
    /// Who gave which weights, in shares of 1.
    Weights {
        #[command(flatten)]
        target: Target,
    },
    /// Balance, stake and place of a hotkey.
    Account {
        #[command(flatten)]
        signer: Signer,
    },
    /// Put the hotkey on the subnet.
    Register {
        #[command(flatten)]
        signer: Signer,
    },
    /// Take balance from the faucet.
    Faucet {
        #[arg(long, value_name = "TAO")]
        amount: Tao,
        #[command(flatten)]
        signer: Signer,
    },
    /// Move balance into stake. What is missing comes from the faucet, if the chain has one.
    Stake {
        #[arg(long, value_name = "TAO")]
        amount: Tao,
        #[command(flatten)]
        signer: Signer,
    },
    /// Move stake back into balance.
    Unstake {
        #[arg(long, value_name = "TAO")]
        amount: Tao,
        #[command(flatten)]
        signer: Signer,
    },
    /// Set weights by hand, e.g. `0=0.5 1=0.25`; the largest becomes 1.
    SetWeights {
        #[arg(required = true, value_name = "UID=WEIGHT", value_parser = weight)]
        weights: Vec<(u16, f64)>,
        /// [default: the subnet's]
        #[arg(long, value_name = "KEY")]
        version_key: Option<u64>,
        #[command(flatten)]
        signer: Signer,
    },
}

fn weight(text: &str) -> Result<(u16, f64), String> {
    let parsed = text.split_once('=').and_then(|(uid, weight)| {
        let weight: f64 = weight.parse().ok()?;
        (weight.is_finite() && weight >= 0.0).then_some((uid.parse().ok()?, weight))
    });
    parsed.ok_or_else(|| "write a uid and its weight like 3=0.5".to_owned())
}

impl Target {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(endpoint) = &self.chain {
            config.chain.endpoint = endpoint.clone();
        }
        config.netuid = self.netuid.or(config.netuid);
        Ok(config)
    }

    fn connect(&self) -> anyhow::Result<(Client, u16)> {
        let config = self.config()?;
        Ok((Client::new(&config.chain)?, config.netuid.unwrap_or(DEFAULT_NETUID)))
    }
}

impl Signer {
    fn connect(&self) -> anyhow::Result<(Client, u16, HotkeyPair)> {
        let (client, netuid) = self.target.connect()?;
        let mut config = self.target.config()?;
        self.wallet.apply(&mut config);
        Ok((client, netuid, identity::open(&config.wallet)?))
    }
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    match args.command {
        Command::Info { target } => {
            let (client, _) = target.connect()?;
            let info = client.info().await?;
            print(json, &info, || info_text(client.endpoint(), &info))
        }
        Command::Metagraph { target } => {
            let (client, netuid) = target.connect()?;
            let metagraph = client.metagraph(netuid).await?;
            print(json, &metagraph, || metagraph_text(&metagraph))
        }
        Command::Weights { target } => {
            let (client, netuid) = target.connect()?;
            let rows = client.weights(netuid).await?;
            print(json, &rows, || weights_text(netuid, &rows))
        }
        Command::Account { signer } => {
            let (client, netuid, pair) = signer.connect()?;
            let account = client.account(&pair.hotkey()).await?;
            let metagraph = client.metagraph(netuid).await?;
            let uid = metagraph.by_hotkey(&pair.hotkey()).map(|n| n.uid);
            let value = json!({
                "hotkey": account.hotkey, "balance": account.balance, "stake": account.stake,
                "netuid": netuid, "uid": uid,
            });
            print(json, &value, || account_text(&account, netuid, uid))
        }
        Command::Register { signer } => {
            let (client, netuid, pair) = signer.connect()?;
            let included = client.register(&pair, netuid).await?;
            let metagraph = client.metagraph(netuid).await?;
            let uid = metagraph.by_hotkey(&pair.hotkey()).map(|n| n.uid);
            let value = json!({
                "hotkey": pair.hotkey(), "netuid": netuid, "uid": uid,
                "block": included.block, "hash": included.hash,
            });
            print(json, &value, || {
                let uid = uid.map_or_else(|| "?".to_owned(), |uid| uid.to_string());
                format!("{} is uid {uid} of subnet {netuid} since block {}\n", pair.hotkey(), included.block)
            })
        }
        Command::Faucet { amount, signer } => {
            let (client, _, pair) = signer.connect()?;
            let included = client.faucet(&pair, amount.rao()).await?;
            done(json, &client, &pair, included).await
        }
        Command::Stake { amount, signer } => {
            let (client, netuid, pair) = signer.connect()?;
            let balance = client.account(&pair.hotkey()).await?.balance;
            let missing = amount.rao().saturating_sub(balance);
            if missing > 0 && client.info().await?.faucet > 0 {
                let least = missing.max(crate::chain::dev::limits::SMALLEST_AMOUNT);
                client.faucet(&pair, least).await.context("the faucet did not give what is missing")?;
            }
            let included = client.add_stake(&pair, netuid, amount.rao()).await?;
            done(json, &client, &pair, included).await
        }
        Command::Unstake { amount, signer } => {
            let (client, netuid, pair) = signer.connect()?;
            let included = client.remove_stake(&pair, netuid, amount.rao()).await?;
            done(json, &client, &pair, included).await
        }
        Command::SetWeights { weights, version_key, signer } => {
            let (client, netuid, pair) = signer.connect()?;
            let version_key = match version_key {
                Some(key) => key,
                None => client.metagraph(netuid).await?.hyperparameters.version_key,
            };
            let included = client.set_weights(&pair, netuid, &scaled(&weights), version_key).await?;
            let value = json!({
                "hotkey": pair.hotkey(), "netuid": netuid,
                "block": included.block, "hash": included.hash,
            });
            print(json, &value, || format!("weights are set in block {}\n", included.block))
        }
    }
}

/// Scaled so that the largest is 65535.
fn scaled(weights: &[(u16, f64)]) -> Vec<(u16, u16)> {
    let largest = weights.iter().map(|w| w.1).fold(0.0, f64::max);
    let scale = if largest > 0.0 { f64::from(u16::MAX) / largest } else { 0.0 };
    weights.iter().map(|&(uid, weight)| (uid, (weight * scale).round() as u16)).collect()
}

fn print<T: serde::Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    match json {
        true => println!("{}", serde_json::to_string(value)?),
        false => print!("{}", text()),
    }
    Ok(())
}

/// What the account looks like after a change.
async fn done(json: bool, client: &Client, pair: &HotkeyPair, included: Inclusion) -> anyhow::Result<()> {
    let account = client.account(&pair.hotkey()).await?;
    let value = json!({
        "hotkey": account.hotkey, "balance": account.balance, "stake": account.stake,
        "block": included.block, "hash": included.hash,
    });
    print(json, &value, || {
        let staked: u64 = account.stake.values().sum();
        let (balance, staked) = (Tao::from_rao(account.balance), Tao::from_rao(staked));
        format!("done in block {}: balance {balance} TAO, stake {staked} TAO\n", included.block)
    })
}

fn info_text(endpoint: &str, info: &wire::Info) -> String {
    let netuids: Vec<String> = info.netuids.iter().map(u16::to_string).collect();
    format!(
        "endpoint  {endpoint}\ngenesis   {}\nblock     {}, one every {:?}\nsubnets   {}\nfaucet    {} TAO at once\nwaiting   {} extrinsics\n",
        info.genesis,
        info.head.block,
        info.head.block_time,
        netuids.join(", "),
        Tao::from_rao(info.faucet),
        info.pending,
    )
}

fn account_text(account: &wire::Account, netuid: u16, uid: Option<u16>) -> String {
    let place = match uid {
        Some(uid) => format!("uid {uid} of subnet {netuid}"),
        None => format!("not registered on subnet {netuid}"),
    };
    let mut text = format!(
        "hotkey    {}\n          {place}\nbalance   {} TAO\n",
        account.hotkey,
        Tao::from_rao(account.balance)
    );
    for (netuid, stake) in &account.stake {
        text += &format!("stake     {} TAO on subnet {netuid}\n", Tao::from_rao(*stake));
    }
    text
}

fn share(value: u16) -> String {
    match value {
        0 => "–".into(),
        value => format!("{:.4}", f64::from(value) / f64::from(u16::MAX)),
    }
}

fn metagraph_text(graph: &Metagraph) -> String {
    let right = Align::Right;
    let mut table = Table::new(&[
        ("uid", right),
        ("hotkey", Align::Left),
        ("stake", right),
        ("permit", Align::Left),
        ("incentive", right),
        ("dividends", right),
        ("vtrust", right),
        ("consensus", right),
        ("emission", right),
        ("updated", right),
    ]);
    for neuron in &graph.neurons {
        let permit = match (neuron.permit, neuron.active) {
            (true, true) => "yes",
            (true, false) => "inactive",
            (false, _) => "",
        };
        table.row(vec![
            neuron.uid.to_string(),
            neuron.hotkey.to_string(),
            format!("{:.3}", neuron.stake as f64 / crate::chain::TAO as f64),
            permit.to_owned(),
            share(neuron.incentive),
            share(neuron.dividends),
            share(neuron.vtrust),
            share(neuron.consensus),
            Tao::from_rao(neuron.emission).to_string(),
            neuron.last_update.to_string(),
        ]);
    }
    format!(
        "subnet {} at block {}: epoch every {} blocks, the next at block {}\n{table}",
        graph.netuid, graph.block, graph.hyperparameters.tempo, graph.next_epoch
    )
}

fn weights_text(netuid: u16, rows: &[wire::WeightRow]) -> String {
    if rows.is_empty() {
        return format!("nobody has set weights on subnet {netuid}\n");
    }
    let mut table =
        Table::new(&[("validator", Align::Right), ("hotkey", Align::Left), ("weights", Align::Left)]);
    for row in rows {
        let total: f64 = row.weights.iter().map(|w| f64::from(w.1)).sum();
        let weights: Vec<String> = row
            .weights
            .iter()
            .map(|&(uid, weight)| format!("{uid}: {:.4}", f64::from(weight) / total.max(1.0)))
            .collect();
        table.row(vec![row.uid.to_string(), row.hotkey.to_string(), weights.join("  ")]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_and_scaled() {
        assert_eq!(weight("3=0.5"), Ok((3, 0.5)));
        for bad in ["3", "=1", "3=", "3=-1", "3=NaN", "3=inf", "70000=1", "x=1"] {
            assert!(weight(bad).is_err(), "{bad}");
        }
        assert_eq!(scaled(&[(0, 0.5), (4, 0.25), (2, 0.0)]), [(0, 65535), (4, 32768), (2, 0)]);
        assert_eq!(scaled(&[(0, 0.0)]), [(0, 0)]);
    }
}
