//! `argus devnet`: a whole network on this machine, with a demo.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::generate::{show, step_bar};
use crate::devnet::{Devnet, Options, PRESET, demo};

#[derive(clap::Args)]
pub struct Args {
    /// Where the nodes keep their data and logs; kept over restarts.
    #[arg(long, default_value = "target/devnet", value_name = "DIR")]
    dir: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    miners: u8,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    validators: u8,
    /// Where the first validator's API and studio listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    api: String,
    /// Time between blocks of the development chain, milliseconds.
    #[arg(long, default_value_t = 500)]
    block_ms: u32,
    /// Blocks between epochs.
    #[arg(long, default_value_t = 10)]
    tempo: u16,
    /// Configuration of every node [default: config/devnet.toml, built in].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make a picture into this file and show the scores and weights of the first periods.
    #[arg(long, value_name = "FILE")]
    demo: Option<PathBuf>,
    /// What the demo's picture shows.
    #[arg(long, default_value = "a red apple", requires = "demo")]
    prompt: String,
    /// Stop after the demo.
    #[arg(long, requires = "demo")]
    once: bool,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let config = match &args.config {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => PRESET.to_owned(),
    };
    let options = Options {
        binary: std::env::current_exe()?,
        dir: args.dir.clone(),
        validators: args.validators.into(),
        miners: vec![Vec::new(); args.miners.into()],
        config,
        block_ms: args.block_ms,
        tempo: args.tempo,
        api: args.api.clone(),
    };
    let spinner = spinner(json);
    let net = tokio::select! {
        net = Devnet::start(options, |step| spinner.set_message(step.to_owned())) => net?,
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    spinner.finish_and_clear();
    let outcome = tokio::select! {
        outcome = stay(&net, &args, json) => outcome,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    if !json {
        eprintln!("stopping the network");
    }
    net.stop().await;
    outcome
}

/// Shows where everything is, runs the demo, and keeps the network up.
async fn stay(net: &Devnet, args: &Args, json: bool) -> anyhow::Result<()> {
    let key = net.key("devnet").await?;
    announce(net, &key, json);
    if let Some(file) = &args.demo {
        demonstrate(net, &key, &args.prompt, file, json).await?;
        if args.once {
            return Ok(());
        }
    }
    if !json {
        println!("The network is up. Open the studio, or stop with Ctrl-C.");
    }
    std::future::pending().await
}

fn announce(net: &Devnet, key: &str, json: bool) {
    if json {
        let validators: Vec<_> =
            net.validators.iter().map(|v| json!({ "hotkey": v.hotkey, "api": v.api })).collect();
        let line = json!({
            "event": "ready", "chain": net.chain_url, "bootstrap": net.bootstrap, "validators": validators,
            "miners": net.miners.iter().map(|m| &m.hotkey).collect::<Vec<_>>(), "key": key,
        });
        println!("{line}");
        return;
    }
    println!("A network of your own:");
    println!("  chain      {}", net.chain_url);
    println!("  relay      {}", net.bootstrap);
    for miner in &net.miners {
        println!("  {}    hotkey {}", miner.process.name(), miner.hotkey);
    }
    for validator in &net.validators {
        println!("  {} API {}/v1", validator.process.name(), validator.api);
    }
    println!("  studio     {}/   API key {key}", net.validators[0].api);
    println!("  logs       {}\n", net.dir().display());
}

async fn demonstrate(
    net: &Devnet,
    key: &str,
    prompt: &str,
    file: &std::path::Path,
    json: bool,
) -> anyhow::Result<()> {
    let bar = step_bar(json);
    let generated = demo::picture(net, key, prompt, file, |progress| show(&bar, progress)).await?;
    bar.finish_and_clear();
    if json {
        println!(
            "{}",
            json!({ "event": "picture", "file": file, "prompt": prompt, "details": generated.details })
        );
    } else {
        println!("\"{prompt}\" → {}\n", file.display());
    }
    let spinner = spinner(json);
    let lines = demo::weights(net, |lines| {
        let set = lines.iter().flat_map(|line| &line.weights).flatten().count();
        spinner.set_message(format!("waiting for the first periods' weights and an epoch ({set} set)"));
    })
    .await?;
    spinner.finish_and_clear();
    if json {
        println!("{}", json!({ "event": "weights", "neurons": lines }));
    } else {
        println!("Scores and weights of the first periods:\n\n{}", demo::table(&lines));
    }
    Ok(())
}

fn spinner(json: bool) -> ProgressBar {
    if json || !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner();
    spinner.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a valid template"));
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
