//! `argus models remove`: drops an entry, and its files if that is asked for.

use std::path::Path;

use anyhow::Context;
use argus_models::{Registry, registry::Component};
use serde_json::json;

use super::{RegistryOption, registry_file::RegistryFile};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The model.
    id: String,
    /// Delete the files that the entry lists, and the folders that this leaves empty.
    #[arg(long)]
    files: bool,
    #[command(flatten)]
    registry: RegistryOption,
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let path = args.registry.file()?;
    let registry = Registry::open(path)?;
    let spec = super::find(&registry, &args.id)?;
    let mut file = RegistryFile::open(path)?;
    file.remove(&spec.id)?;
    file.save()?;
    let mut deleted = 0;
    if args.files {
        for (_, component) in spec.parts() {
            deleted += delete(component, &registry, spec.id.as_str())?;
        }
    }
    if json {
        println!("{}", json!({ "removed": spec.id.as_str(), "files_deleted": deleted }));
    } else {
        println!("removed {} from {}, deleted {deleted} files", spec.id, path.display());
    }
    Ok(())
}

/// Deletes the files that a component pins, and no others. What another entry uses stays.
fn delete(component: &Component, registry: &Registry, id: &str) -> anyhow::Result<usize> {
    let Some(folder) = component.folder() else { return Ok(0) };
    let others = registry.models().iter().filter(|spec| spec.id.as_str() != id);
    if others.flat_map(|spec| spec.parts()).any(|(_, other)| other.folder() == Some(folder)) {
        return Ok(0);
    }
    let mut deleted = 0;
    for pin in &component.files {
        let path = folder.join(&pin.path);
        match std::fs::remove_file(&path) {
            Ok(()) => deleted += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot delete {}", path.display())),
        }
        // Folders that still hold something refuse to go.
        let below = path.ancestors().skip(1).take_while(|above| above.starts_with(folder));
        below.map(Path::to_path_buf).for_each(|above| _ = std::fs::remove_dir(above));
    }
    Ok(deleted)
}
