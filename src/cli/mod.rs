//! The command line: one file a subcommand.
//!
//! Every answer has `--json`; a failure prints what went wrong and what to do, and exits non-zero.
//! Settings come from the configuration file, then `ARGUS_*` environment variables, then flags.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Peer-to-peer overlay for verified, decentralised image inference.
#[derive(Parser)]
#[command(
    name = "argus",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Print answers as JSON (long-running commands: one JSON object a line).
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
    match cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "argus", &mut std::io::stdout());
            Ok(())
        }
    }
}
