//! `argus models list`.

use argus_models::{
    ModelSource, ModelSpec, Registry,
    registry::{Component, Part},
};
use serde_json::{Value, json};

pub(super) fn run(registry: &Registry, json: bool) -> anyhow::Result<()> {
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
        if let Some(limits) = &spec.upscale {
            let factors: Vec<String> = limits.factors.iter().map(|factor| format!("×{factor}")).collect();
            println!("{:<20} {}, edges up to {} px", "", factors.join(" and "), limits.max_edge);
        }
        if let Some(folder) = spec.component.folder() {
            let files = match spec.component.files.len() {
                0 => "without hashes".to_owned(),
                count => format!("{count} files"),
            };
            println!("{:<20} {} ({files})", "", folder.display());
        }
    }
    Ok(())
}

fn entry(spec: &ModelSpec) -> Value {
    let mut entry = json!({
        "id": spec.id.as_str(), "architecture": spec.architecture, "source": source(&spec.component),
        "files": spec.component.files, "fetch": spec.component.origin, "licence": spec.licence,
        "tasks": spec.tasks, "work_units": spec.work_units, "timeout_seconds": spec.timeout.as_secs(),
        "memory_mib": spec.memory.map(|bytes| bytes >> 20), "verification": spec.verification,
        "numerics": spec.numerics,
    });
    if let Some(limits) = &spec.pictures {
        entry["size"] = json!(limits.size);
        entry["steps"] = json!(limits.steps);
        entry["guidance"] = json!(limits.guidance);
        entry["strength"] = json!(limits.strength);
        entry["scheduler"] = json!(spec.scheduler);
    }
    if let Some(limits) = &spec.upscale {
        entry["upscale"] = json!(limits);
    }
    for (part, component) in spec.parts() {
        match part {
            Part::Base => {}
            Part::Control(kind) => entry["controls"][kind.to_string()] = source(component),
            Part::Lora(index) => {
                entry["loras"][index] =
                    json!({ "file": spec.loras[index].file, "scale": spec.loras[index].scale });
            }
        }
    }
    entry
}

fn source(component: &Component) -> Value {
    match &component.source {
        ModelSource::Embedded => Value::from("embedded"),
        ModelSource::Folder(path) => json!({ "path": path }),
    }
}
