//! `argus reward train`: pairs in, a model and its card out.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::files;
use crate::verify::reward::{Recipe, RewardModel};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Pairs that `argus reward dataset` made.
    #[arg(default_value = "pairs.jsonl")]
    dataset: PathBuf,
    /// The folder that model.json and card.json are written to.
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    output: PathBuf,
    /// Trees.
    #[arg(long, default_value_t = Recipe::default().rounds, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rounds: u32,
    /// Decisions of a tree.
    #[arg(long, default_value_t = Recipe::default().depth, value_parser = clap::value_parser!(u32).range(1..=10))]
    depth: u32,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let dataset = super::read_dataset(&args.dataset)?;
    let recipe = Recipe { rounds: args.rounds, depth: args.depth, ..Recipe::default() };
    let (file, card) = dataset.train(recipe)?;
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make the folder {}", args.output.display()))?;
    files::write(&args.output.join(files::MODEL), &file)?;
    let written = serde_json::to_string_pretty(&card)? + "\n";
    files::write(&args.output.join(files::CARD), written.as_bytes())?;
    // What was written is what can be read again.
    RewardModel::open(&file, card.clone())?;
    if json {
        println!(
            "{}",
            json!({ "folder": args.output.display().to_string(), "bytes": file.len(), "card": card })
        );
    } else {
        println!(
            "{}: {} trees of {} pairs, {} bytes, cut-offs {:.4} (f16), {:.4} (bf16), {:.4} (lossy)",
            args.output.join(files::MODEL).display(),
            card.origin.recipe.rounds,
            card.origin.pairs,
            file.len(),
            card.cut_offs.f16,
            card.cut_offs.bf16,
            card.cut_offs.lossy,
        );
    }
    Ok(())
}
