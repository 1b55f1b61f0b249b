//! `argus models verify`: the files of models against the registry's hashes.

use anyhow::bail;
use argus_models::{ModelSpec, verified};
use serde_json::{Value, json};

use super::RegistryOption;
use crate::cli::progress::Bars;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Models [default: all].
    ids: Vec<String>,
    #[command(flatten)]
    registry: RegistryOption,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let registry = args.registry.open()?;
    let mut reports = Vec::new();
    for spec in super::chosen(&registry, &args.ids)? {
        reports.push(verify(spec, json));
    }
    let wrong = reports.iter().filter(|report| report["ok"] == false).count();
    if json {
        println!("{}", Value::from(reports));
    }
    match wrong {
        0 => Ok(()),
        _ => bail!("{wrong} of the models are not as the registry says"),
    }
}

fn verify(spec: &ModelSpec, json: bool) -> Value {
    let parts = spec.parts();
    let total = parts.iter().flat_map(|(_, component)| &component.files).map(|pin| pin.size).sum();
    let bar = Bars::new(json).hashing(spec.id.as_str(), total);
    let (mut wrong, mut files, mut unpinned) = (Vec::new(), 0, false);
    for (part, component) in &parts {
        let Some(folder) = component.folder() else { continue };
        unpinned |= component.files.is_empty();
        for pin in &component.files {
            files += 1;
            if let Err(problem) = verified::check_file(&folder.join(&pin.path), pin) {
                let (detail, reason) = (problem.to_string(), problem.reason());
                wrong.push(
                    json!({ "part": part.to_string(), "path": pin.path, "reason": reason, "detail": detail }),
                );
            }
            bar.inc(pin.size);
        }
    }
    bar.finish_and_clear();
    if !json {
        let id = spec.id.as_str();
        match (files, unpinned) {
            _ if !wrong.is_empty() => println!("{id:<20} {} of {files} files are wrong", wrong.len()),
            (_, true) => {
                println!("{id:<20} has no hashes in the registry; `argus models add --replace` writes them")
            }
            (0, _) => println!("{id:<20} embedded"),
            _ => println!("{id:<20} {files} files are right"),
        }
        for file in &wrong {
            println!("{:<20} {}: {}", "", text(&file["path"]), text(&file["detail"]));
        }
        if !wrong.is_empty() && parts.iter().any(|(_, component)| component.origin.is_some()) {
            println!("{:<20} `argus models fetch {id}` gets them again", "");
        }
    }
    json!({ "id": spec.id.as_str(), "ok": wrong.is_empty(), "files": files, "pinned": !unpinned, "wrong": wrong })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
