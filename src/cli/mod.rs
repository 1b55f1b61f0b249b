//! The command line: one file a subcommand.
//!
//! Every answer has `--json`; a failure prints what went wrong and what to do, and exits non-zero.
//! Settings come from the configuration file, then `ARGUS_*` environment variables, then flags.

mod amount;
mod chain;
mod devchain;
mod devnet;
mod generate;
pub mod keys;
mod light;
mod logging;
mod lookup;
mod miner;
mod models;
mod options;
mod progress;
mod query;
mod ready;
mod receipts;
mod relay;
mod reward;
mod status;
mod store;
mod table;
mod task;
mod validator;
mod wallet;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Peer-to-peer overlay for verified, decentralised image inference.
#[derive(Parser)]
#[command(name = "argus", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print answers as JSON (long-running commands: one JSON object a line).
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    log: logging::LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run models for validators.
    Miner(miner::Args),
    /// Score miners, write weights, sell the miners' work.
    Validator(validator::Args),
    /// Run a public node: bootstrap, reachability tests, relaying.
    Relay(relay::Args),
    /// Run models behind HTTP, for a miner elsewhere.
    Worker(worker::Args),
    /// Run a chain for development.
    Devchain(devchain::Args),
    /// Run a whole network on this machine.
    Devnet(devnet::Args),
    /// Register, stake and look around on a development chain.
    Chain(chain::Args),
    /// A hotkey's verified record, and whether its node can be reached.
    Lookup(lookup::Args),
    /// Ask a miner directly over the overlay.
    Query(query::Args),
    /// Make pictures, and have pictures looked at, through a validator's API.
    Generate(generate::Args),
    /// Create, list, change and revoke API keys of this machine's validator.
    Keys(keys::Args),
    /// The receipts behind the scores of a stopped validator, verified again.
    Receipts(receipts::Args),
    /// The models that this build and its registry know.
    Models(models::Args),
    /// The model that tells whether two pictures are the same answer.
    Reward(reward::Args),
    /// What a running node of this machine sees: peers, addresses, reachability, work.
    Status(status::Args),
    /// Repair a node's database.
    Store(store::Args),
    /// Make, show and list hotkeys; sign and verify with them.
    Wallet(wallet::Args),
    /// Print a completion script for a shell, to be sourced.
    Completions { shell: clap_complete::Shell },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let json = cli.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                eprintln!("{}", serde_json::json!({ "error": format!("{error:#}") }));
            } else {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let node = matches!(
        cli.command,
        Command::Miner(_)
            | Command::Validator(_)
            | Command::Relay(_)
            | Command::Worker(_)
            | Command::Devchain(_)
            | Command::Devnet(_)
    );
    cli.log.start(node)?;
    match cli.command {
        Command::Miner(args) => block_on(miner::run(args, cli.json)),
        Command::Validator(args) => block_on(validator::run(args, cli.json)),
        Command::Relay(args) => block_on(relay::run(args, cli.json)),
        Command::Worker(args) => block_on(worker::run(args, cli.json)),
        Command::Devchain(args) => block_on(devchain::run(args, cli.json)),
        Command::Devnet(args) => block_on(devnet::run(args, cli.json)),
        Command::Chain(args) => block_on(chain::run(args, cli.json)),
        Command::Lookup(args) => block_on(lookup::run(args, cli.json)),
        Command::Query(args) => block_on(query::run(args, cli.json)),
        Command::Generate(args) => block_on(generate::run(args, cli.json)),
        Command::Keys(args) => block_on(keys::run(args, cli.json)),
        Command::Receipts(args) => receipts::run(args, cli.json),
        Command::Models(args) => models::run(args, cli.json),
        Command::Reward(args) => reward::run(args, cli.json),
        Command::Status(args) => block_on(status::run(args, cli.json)),
        Command::Store(args) => store::run(args, cli.json),
        Command::Wallet(args) => wallet::run(args, cli.json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "argus", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
