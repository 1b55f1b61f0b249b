//! `argus reward`: the reward model's data, training, figures and reasons.

mod dataset;
mod eval;
mod explain;
mod files;
mod kinds;
mod observer;
mod painters;
mod train;

use std::path::PathBuf;

use anyhow::Context;

use crate::verify::reward::{Card, RewardModel, evaluation::Dataset};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make pairs of pictures, honest and not, and measure how they lie apart.
    Dataset(dataset::Args),
    /// Train a reward model on such pairs.
    Train(train::Args),
    /// How well pairs that were not trained on are told apart, beside simpler rules.
    Eval(eval::Args),
    /// Why two pictures are the same answer, or not.
    Explain(explain::Args),
}

pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    match args.command {
        Command::Dataset(args) => dataset::run(&args, json),
        Command::Train(args) => train::run(&args, json),
        Command::Eval(args) => eval::run(&args, json),
        Command::Explain(args) => explain::run(&args, json),
    }
}

/// Which reward model.
#[derive(clap::Args)]
struct ModelOption {
    /// A folder with model.json and card.json, as `argus reward train` writes it, instead of the built-in model.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
}

impl ModelOption {
    fn open(&self) -> anyhow::Result<OpenModel> {
        let Some(folder) = &self.model else { return Ok(OpenModel::Embedded(RewardModel::embedded())) };
        let open = || -> anyhow::Result<RewardModel> {
            let card = Card::from_json(&files::read(&folder.join(files::CARD))?)?;
            Ok(RewardModel::open(&files::read(&folder.join(files::MODEL))?, card)?)
        };
        Ok(OpenModel::Own(Box::new(open().with_context(|| folder.display().to_string())?)))
    }
}

enum OpenModel {
    Embedded(&'static RewardModel),
    Own(Box<RewardModel>),
}

impl std::ops::Deref for OpenModel {
    type Target = RewardModel;

    fn deref(&self) -> &RewardModel {
        match self {
            Self::Embedded(model) => model,
            Self::Own(model) => model,
        }
    }
}

fn read_dataset(path: &std::path::Path) -> anyhow::Result<Dataset> {
    let text = String::from_utf8(files::read(path)?).context("it is no text")?;
    Dataset::from_lines(&text).with_context(|| path.display().to_string())
}
