//! `argus models`: what the registry knows.

use std::path::PathBuf;

use anyhow::Context;
use argus_models::{ModelSource, ModelSpec, Registry};
use serde_json::{Value, json};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The models of the registry, with what may be asked of them.
    List {
        /// A registry file instead of the built-in one.
        #[arg(long, env = "ARGUS_REGISTRY", value_name = "FILE")]
        registry: Option<PathBuf>,
    },
}

pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let Command::List { registry } = args.command;
    let registry = open(registry.as_deref())?;
    if json {
        println!("{}", Value::from(registry.models().iter().map(entry).collect::<Vec<_>>()));
        return Ok(());
    }
    for spec in registry.models() {
        let tasks: Vec<String> = spec.tasks.iter().map(ToString::to_string).collect();
        println!("{:<20} {:<16} {}", spec.id.as_str(), tasks.join(", "), spec.licence);
        if let Some(limits) = &spec.pictures {
            println!(
                "{:<20} {} px, {}–{} steps ({}), guidance {}–{} ({})",
                "",
                limits.size,
                limits.steps.min,
                limits.steps.max,
                limits.steps.default,
                limits.guidance.min,
                limits.guidance.max,
                limits.guidance.default
            );
        }
    }
    Ok(())
}

/// The registry of a file, or the built-in one.
pub fn open(path: Option<&std::path::Path>) -> anyhow::Result<Registry> {
    match path {
        None => Ok(Registry::default()),
        Some(path) => Registry::open(path).with_context(|| path.display().to_string()),
    }
}

fn entry(spec: &ModelSpec) -> Value {
    let source = match &spec.component.source {
        ModelSource::Embedded => Value::from("embedded"),
        ModelSource::Folder(path) => json!({ "path": path }),
    };
    let mut entry = json!({
        "id": spec.id.as_str(), "architecture": spec.architecture, "source": source, "licence": spec.licence,
        "tasks": spec.tasks, "work_units": spec.work_units, "timeout_seconds": spec.timeout.as_secs(),
        "verification": spec.verification, "numerics": spec.numerics,
    });
    if let Some(limits) = &spec.pictures {
        entry["size"] = json!(limits.size);
        entry["steps"] = json!(limits.steps);
        entry["guidance"] = json!(limits.guidance);
    }
    entry
}
