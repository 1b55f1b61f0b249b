//! `argus models fetch`: the files of a model from where its entry says.

use anyhow::{Context, bail};
use argus_models::ModelSpec;
use serde_json::{Value, json};

use super::RegistryOption;
use crate::{
    cli::progress::Bars,
    fetch::{self, Fetched, Settings},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Models of the registry.
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    registry: RegistryOption,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let registry = args.registry.open()?;
    let settings = Settings::from_env();
    let mut reports = Vec::new();
    for spec in super::chosen(&registry, &args.ids)? {
        let done = fetch_parts(spec, &settings, json).with_context(|| spec.id.to_string())?;
        if !json {
            println!(
                "{}: {} files fetched ({} bytes), {} were there",
                spec.id, done.fetched, done.bytes, done.kept
            );
        }
        reports.push(json!({
            "id": spec.id.as_str(), "fetched": done.fetched, "bytes": done.bytes, "kept": done.kept,
        }));
    }
    if json {
        println!("{}", Value::from(reports));
    }
    Ok(())
}

fn fetch_parts(spec: &ModelSpec, settings: &Settings, json: bool) -> anyhow::Result<Fetched> {
    let mut done = Fetched::default();
    let mut found = false;
    for (part, component) in spec.parts() {
        if component.origin.is_none() {
            continue;
        }
        found = true;
        let mut bars = Bars::new(json);
        let fetched = fetch::fetch(component, settings, &mut bars).with_context(|| part.to_string())?;
        done.kept += fetched.kept;
        done.fetched += fetched.fetched;
        done.bytes += fetched.bytes;
    }
    if !found {
        bail!("its entry has no `fetch`: it is embedded, or only on the disk of whoever added it");
    }
    Ok(done)
}
