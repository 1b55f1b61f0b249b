//! `argus query`: asks a miner directly over the overlay, signed by your hotkey, and checks the receipt.
//!
//! For validators and for looking into a network; customers use `argus generate`.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use argus_protocols::{
    Answer, Hotkey, Task, TaskKind,
    query::Deadlines,
    task::{Generation, Pictures, Start},
};
use rand::TryRngCore;
use serde_json::json;

use super::{
    generate::{show, step_bar},
    light::LightNode,
    options::NodeOptions,
};
use crate::{
    client::Progress,
    config::Config,
    identity,
    net::{Answered, OutgoingQuery, QueryProgress},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: TaskArgs,
    /// The miner to ask [default: one of the metagraph that serves the model].
    #[arg(long, global = true, value_name = "SS58")]
    miner: Option<Hotkey>,
    /// Seconds to wait in all.
    #[arg(long, global = true, default_value_t = 120)]
    timeout: u32,
}

#[derive(clap::Subcommand)]
enum TaskArgs {
    /// A picture from words.
    TextToImage {
        prompt: String,
        /// Where to write the PNG.
        #[arg(short, long, value_name = "FILE", default_value = "out.png")]
        output: PathBuf,
        #[arg(long, default_value = "argus-tiny")]
        model: String,
        #[arg(long, default_value = "")]
        negative_prompt: String,
        #[arg(long, default_value_t = 64)]
        width: u32,
        #[arg(long, default_value_t = 64)]
        height: u32,
        #[arg(long, default_value_t = 20)]
        steps: u32,
        #[arg(long, default_value_t = 4.0)]
        guidance: f32,
        /// [default: random]
        #[arg(long)]
        seed: Option<u64>,
        #[command(flatten)]
        node: NodeOptions,
    },
    /// CLIP embeddings of pictures.
    ImageEmbedding {
        #[arg(required = true)]
        pictures: Vec<PathBuf>,
        #[arg(long, default_value = "clip-tiny")]
        model: String,
        #[command(flatten)]
        node: NodeOptions,
    },
}

pub async fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (task, node, output) = args.task.read()?;
    let config = node.config()?;
    let pair = Arc::new(identity::open(&config.wallet)?);
    let node = LightNode::join(&config, Some(pair)).await?;
    let asked = ask(&node, &config, &task, args.miner, args.timeout, json).await;
    node.leave().await;
    let (answered, answer) = asked?;
    report(&answered, answer, output, json)
}

impl TaskArgs {
    /// The task, how to join, and where a picture goes.
    fn read(self) -> anyhow::Result<(Task, NodeOptions, Option<PathBuf>)> {
        match self {
            TaskArgs::TextToImage {
                prompt,
                output,
                model,
                negative_prompt,
                width,
                height,
                steps,
                guidance,
                seed,
                node,
            } => {
                let seed = match seed {
                    Some(seed) => seed,
                    None => rand::rngs::OsRng.try_next_u64()?,
                };
                let (start, controls) = (Start::Noise, Vec::new());
                let task = Generation {
                    model,
                    prompt,
                    negative_prompt,
                    width,
                    height,
                    steps,
                    guidance,
                    seed,
                    start,
                    controls,
                };
                Ok((Task::Generation(task), node, Some(output)))
            }
            TaskArgs::ImageEmbedding { pictures, model, node } => {
                let read = |path: &PathBuf| {
                    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
                };
                let pictures = pictures.iter().map(read).collect::<anyhow::Result<_>>()?;
                Ok((Task::ImageEmbedding(Pictures { model, pictures }), node, None))
            }
        }
    }
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
            let said = all.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>().join("\n");
            out["embeddings"] = serde_json::to_value(all)?;
            said
        }
        Answer::Classes(all) => {
            let said = all.iter().map(|scores| format!("{scores:?}")).collect::<Vec<_>>().join("\n");
            out["classes"] = serde_json::to_value(all)?;
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
