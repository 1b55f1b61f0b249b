//! `argus query`: asks a miner directly over the overlay, signed by your hotkey, and checks the receipt.
//!
//! For validators and for looking into a network; customers use `argus generate`.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow, bail};
use argus_models::Registry;
use argus_protocols::{Answer, Hotkey, Task, TaskKind, query::Deadlines};
use rand::TryRngCore;
use serde_json::json;

use super::{
    generate::{show, step_bar},
    light::LightNode,
    options::NodeOptions,
    task::{Asked, TaskArgs, classes, lines},
};
use crate::{
    client::Progress,
    config::Config,
    gateway::orders,
    identity, jobs,
    net::{Answered, OutgoingQuery, QueryProgress},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: TaskArgs<Options>,
}

#[derive(clap::Args)]
struct Options {
    /// The miner to ask [default: one of the metagraph that serves the model].
    #[arg(long, value_name = "SS58")]
    miner: Option<Hotkey>,
    /// Seconds to wait in all.
    #[arg(long, default_value_t = 120)]
    timeout: u32,
    #[command(flatten)]
    node: NodeOptions,
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (asked, Options { miner, timeout, node }) = args.task.read()?;
    let config = node.config()?;
    let output = asked.output.clone();
    let task = task(asked, &config)?;
    let pair = Arc::new(identity::open(&config.wallet)?);
    let node = LightNode::join(&config, Some(pair)).await?;
    let asked = ask(&node, &config, &task, miner, timeout, json).await;
    node.leave().await;
    let (answered, answer) = asked?;
    report(&answered, answer, output, json)
}

/// The task that the arguments mean by the node's registry, checked as the API checks it.
fn task(asked: Asked, config: &Config) -> anyhow::Result<Task> {
    let registry = match &config.engine.registry {
        None => Registry::default(),
        Some(path) => Registry::open(path).with_context(|| path.display().to_string())?,
    };
    let cards: Vec<_> = registry.models().iter().map(jobs::card).collect();
    let refused = |error: crate::gateway::ApiError| anyhow!("{}", error.detail.message);
    let draft = orders::draft(asked.kind, asked.body, &cards).map_err(refused)?;
    let mut task = draft.prepare(false).map_err(refused)?;
    if let Task::Generation(generation) = &mut task {
        generation.seed = match asked.seed {
            Some(seed) => seed.into(),
            None => rand::rngs::OsRng.try_next_u32()?.into(),
        };
    }
    Ok(task)
}

async fn ask(
    node: &LightNode,
    config: &Config,
    task: &Task,
    miner: Option<Hotkey>,
    timeout: u32,
    quiet: bool,
) -> anyhow::Result<(Answered, Answer)> {
    let miner = match miner {
        Some(miner) => miner,
        None => find_miner(node, config, task.kind(), task.model()).await?,
    };
    let total_ms = timeout.saturating_mul(1000);
    let query = OutgoingQuery {
        miner,
        task: task.kind(),
        model: task.model().to_owned(),
        body: task.to_bytes().into(),
        deadlines: Deadlines { first_byte_ms: total_ms.min(15_000), idle_ms: total_ms, total_ms },
    };
    let bar = step_bar(quiet);
    let answered = node
        .handle()
        .query(query, |progress| {
            if let QueryProgress::Step { step, of } = progress {
                show(&bar, Progress { step: step.into(), of: of.into() });
            }
        })
        .await
        .with_context(|| format!("asking miner {miner}"))?;
    bar.finish_and_clear();
    let answer = Answer::from_bytes(&answered.body).context("the miner's answer cannot be decoded")?;
    Ok((answered, answer))
}

/// The first miner of the metagraph, best incentive first, whose record says that it serves the model.
async fn find_miner(
    node: &LightNode,
    config: &Config,
    task: TaskKind,
    model: &str,
) -> anyhow::Result<Hotkey> {
    let chain = crate::chain::connect(&config.chain)?;
    let netuid = config.netuid.unwrap_or(crate::node::DEFAULT_NETUID);
    let metagraph = chain.metagraph(netuid).await?;
    let mut miners: Vec<_> = metagraph.neurons.iter().collect();
    miners.sort_by_key(|neuron| std::cmp::Reverse(neuron.incentive));
    for neuron in miners {
        let Ok(record) = node.lookup(&neuron.hotkey).await else {
            continue;
        };
        let serves = |c: &argus_protocols::Capability| c.model == model && c.tasks.contains(&task.code());
        if record.capabilities.iter().any(serves) {
            return Ok(neuron.hotkey);
        }
    }
    bail!(
        "no miner of subnet {netuid} that can be found serves {model}; name one with --miner, or try again shortly"
    )
}

fn report(answered: &Answered, answer: Answer, output: Option<PathBuf>, json: bool) -> anyhow::Result<()> {
    let mut out = json!({
        "miner": answered.receipt.miner,
        "peer": answered.peer.to_string(),
        "seconds": answered.total.as_secs_f64(),
        "compute_ms": answered.header.compute_ms,
        "receipt": *answered.receipt,
    });
    let said = match answer {
        Answer::Picture(png) => {
            let output = output.context("the miner sent a picture where none was asked for")?;
            std::fs::write(&output, png).with_context(|| format!("cannot write {}", output.display()))?;
            out["file"] = output.display().to_string().into();
            output.display().to_string()
        }
        Answer::Nsfw(features) => {
            out["nsfw"] = serde_json::to_value(features)?;
            "the picture is not safe for work and stays with the miner; its features came instead".into()
        }
        Answer::Embeddings(all) => {
            let said = lines(&all, |embedding| format!("{embedding:?}"));
            out["embeddings"] = serde_json::to_value(all)?;
            said
        }
        Answer::Classes(all) => {
            let all = all.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
            let said = lines(&all, classes);
            out["classes"] = all.into();
            said
        }
    };
    if json {
        println!("{out}");
    } else {
        println!("{said}");
        println!(
            "from miner {} in {:.2} s, receipt verified",
            answered.receipt.miner,
            answered.total.as_secs_f64()
        );
    }
    Ok(())
}
