//! `argus store`: help for a node's database.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::store::{Repaired, Store};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Save what can be read of a damaged database. Keeps a copy of the folder as it was.
    Repair {
        /// The database's folder, as the error message named it. No node may be using it.
        path: PathBuf,
    },
}

pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let Command::Repair { path } = args.command;
    let repaired = Store::repair(&path).context("nothing was repaired")?;
    match json {
        true => println!("{}", serde_json::to_string(&repaired)?),
        false => print!("{}", text(&path, &repaired)),
    }
    Ok(())
}

fn text(path: &Path, repaired: &Repaired) -> String {
    let mut text = format!("{} can be used again.\n", path.display());
    if repaired.lost > 0 {
        text += &format!("{} files could not be read; they are in its folder `lost`.\n", repaired.lost);
    }
    text += "Entries now:\n";
    for (table, count) in repaired.entries.iter().filter(|(_, count)| *count > 0) {
        text += &format!("  {table:<14}{count}\n");
    }
    text + &format!("As it was before: {}\n", repaired.copy.display())
}
