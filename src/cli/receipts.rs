//! `argus receipts`: what a validator can prove, read from a stopped node's database.

use std::path::PathBuf;

use argus_protocols::Role;
use serde_json::json;

use crate::{node::DataFolder, store::Store, validator::Ledger};

#[derive(clap::Args)]
pub struct Args {
    /// Data folder of the validator [default: ~/.argus/validator]. It must not be running.
    #[arg(long, env = "ARGUS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let folder = DataFolder::locate(args.data_dir.as_deref(), Role::Validator)?;
    let all = Ledger::new(Store::open(&folder.database())?).receipts()?;
    let (verified, damaged): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    let verified: Vec<_> = verified.into_iter().flatten().collect();
    if json {
        let receipts: Vec<_> = verified.iter().map(|receipt| json!(**receipt)).collect();
        let answer = json!({ "verified": verified.len(), "damaged": damaged.len(), "receipts": receipts });
        println!("{answer}");
        return Ok(());
    }
    for receipt in &verified {
        println!(
            "{}  {}  {:<12} {} ms",
            receipt.id,
            receipt.miner,
            receipt.model,
            receipt.finished_at_ms - receipt.accepted_at_ms
        );
    }
    println!("{} receipts verified, {} damaged", verified.len(), damaged.len());
    Ok(())
}
