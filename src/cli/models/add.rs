//! `argus models add`: looks at a model on disk, hashes its files and writes its entry.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, bail};
use argus_models::{
    ModelId,
    diffusion::ControlKind,
    registry::{FilePin, Inspection, ModelTask, inspect, inspect_control, inspect_file},
    verified,
};
use serde_json::json;
use toml_edit::{Array, InlineTable, Table, Value, value};

use super::{RegistryOption, registry_file::RegistryFile};
use crate::cli::progress::Bars;

/// The longest licence in a README's heading that is believed, in bytes.
const MAX_LICENCE_BYTES: usize = 80;
/// How much of a README is looked at.
const MAX_README_BYTES: usize = 64 << 10;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The model: a folder in the layout of diffusers or transformers, or a checkpoint of one file with its tokenizer
    /// beside it.
    path: PathBuf,
    /// Its name in the network [default: the folder's or the file's].
    #[arg(long)]
    id: Option<String>,
    /// SPDX expression or name of the weights' licence [default: what the folder's README.md says].
    #[arg(long)]
    licence: Option<String>,
    /// A ControlNet for it, as scribble=FOLDER, canny=FOLDER or depth=FOLDER (repeatable).
    #[arg(long = "control", value_name = "KIND=FOLDER")]
    controls: Vec<ControlArg>,
    /// A LoRA to merge into it, as FILE or FILE=SCALE (repeatable).
    #[arg(long = "lora", value_name = "FILE[=SCALE]")]
    loras: Vec<LoraArg>,
    /// Where others can fetch the same files: a repository of the hub and its commit.
    #[arg(long, value_name = "OWNER/NAME@COMMIT")]
    hub: Option<HubArg>,
    /// Price and capacity of one picture with default values [default: by the size of its network].
    #[arg(long, value_name = "UNITS")]
    work_units: Option<f64>,
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Overwrite the entry of this id.
    #[arg(long)]
    replace: bool,
    /// Print the entry, write nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    registry: RegistryOption,
}

#[derive(Clone)]
struct ControlArg(ControlKind, PathBuf);

impl FromStr for ControlArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, path) = text.split_once('=').ok_or("write it as KIND=FOLDER")?;
        let found = ControlKind::ALL.into_iter().find(|known| known.to_string() == kind);
        let kind = found.ok_or_else(|| format!("`{kind}` is none of scribble, canny, depth"))?;
        Ok(Self(kind, path.into()))
    }
}

#[derive(Clone)]
struct LoraArg(PathBuf, f64);

impl FromStr for LoraArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('=') {
            None => Ok(Self(text.into(), 1.0)),
            Some((path, scale)) => {
                Ok(Self(path.into(), scale.parse().map_err(|_| format!("`{scale}` is no scale"))?))
            }
        }
    }
}

#[derive(Clone)]
struct HubArg(String, String);

impl FromStr for HubArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repository, commit) = text.split_once('@').ok_or("write it as OWNER/NAME@COMMIT")?;
        Ok(Self(repository.to_owned(), commit.to_owned()))
    }
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let registry = args.registry.file()?;
    let mut file = RegistryFile::open_or_begin(registry)?;
    let path = args.path.canonicalize().with_context(|| format!("{} is not there", args.path.display()))?;
    let id = id(args, &path)?;
    let found = inspect(&path)?;
    let folder = if path.is_file() { path.parent().unwrap_or(&path) } else { &path };
    let entry = Entry { args, base: &base(file.folder())?, bars: &Bars::new(json) };
    let table = entry.table(&id, folder, &found)?;
    let text = table.to_string();
    file.put(&id, table, args.replace)?;
    if !args.dry_run {
        file.save()?;
    }
    if json {
        let report = json!({
            "id": id.as_str(), "architecture": found.architecture, "tasks": found.tasks,
            "files": found.files.len(), "registry": registry, "written": !args.dry_run, "entry": text,
        });
        println!("{report}");
    } else if args.dry_run {
        println!("[[model]]\n{}", text.trim());
    } else {
        println!(
            "{id}: {}, {} files hashed, written to {}",
            found.architecture,
            found.files.len(),
            registry.display()
        );
        println!(
            "serve it with `engine.registry = {:?}` and its id in `engine.models`",
            registry.display().to_string()
        );
    }
    Ok(())
}

/// The folder of the registry file, which may not be there yet, without links.
fn base(folder: &Path) -> anyhow::Result<PathBuf> {
    match folder.canonicalize() {
        Ok(folder) => Ok(folder),
        Err(_) => std::path::absolute(folder).with_context(|| folder.display().to_string()),
    }
}

fn id(args: &Args, path: &Path) -> anyhow::Result<ModelId> {
    if let Some(id) = &args.id {
        return Ok(id.parse()?);
    }
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    let name = name.and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    name.replace(' ', "-").parse().context("its name is no id; say --id")
}

/// An entry that is put together.
struct Entry<'a> {
    args: &'a Args,
    /// What paths are relative to where they can be.
    base: &'a Path,
    bars: &'a Bars,
}

impl Entry<'_> {
    fn table(&self, id: &ModelId, folder: &Path, found: &Inspection) -> anyhow::Result<Table> {
        let mut table = Table::new();
        table["id"] = value(id.as_str());
        table["architecture"] = value(found.architecture.to_string());
        table["path"] = value(self.path(folder));
        table["licence"] = value(self.licence(folder)?);
        let controls = self.args.controls.iter().map(|control| ModelTask::from(control.0));
        let tasks = found.tasks.iter().copied().chain(controls);
        table["tasks"] = value(tasks.map(|task| task.to_string()).collect::<Array>());
        if let Some(limits) = &found.pictures {
            let size = [
                ("min", limits.size.min),
                ("max", limits.size.max),
                ("multiple_of", limits.size.multiple_of),
                ("default", limits.size.default),
            ];
            table["size"] = inline(size.map(|(key, edge)| (key, i64::from(edge).into())));
            let steps =
                [("min", limits.steps.min), ("max", limits.steps.max), ("default", limits.steps.default)];
            table["steps"] = inline(steps.map(|(key, steps)| (key, (steps as i64).into())));
            let guidance = [
                ("min", limits.guidance.min),
                ("max", limits.guidance.max),
                ("default", limits.guidance.default),
            ];
            table["guidance"] = inline(guidance.map(|(key, guidance)| (key, f64::from(guidance).into())));
        }
        if let Some(limits) = &found.upscale {
            let factors: Array = limits.factors.iter().map(|factor| i64::from(*factor)).collect();
            table["upscale"] =
                inline([("factors", factors.into()), ("max_edge", i64::from(limits.max_edge).into())]);
        }
        table["work_units"] = value(self.args.work_units.unwrap_or(found.work_units));
        table["timeout_seconds"] = value(self.args.timeout.unwrap_or(found.timeout.as_secs()) as i64);
        table["memory_mib"] = value(found.memory.div_ceil(1 << 20) as i64);
        table["verification"] = value("compare");
        table["numerics"] = value("portable-f32");
        if let Some(HubArg(repository, commit)) = &self.args.hub {
            table["fetch"] =
                inline([("hub", repository.as_str().into()), ("revision", commit.as_str().into())]);
        }
        table["files"] = value(self.pins(id.as_str(), folder, &found.files)?);
        if !self.args.controls.is_empty() {
            table["controls"] = value(self.controls()?);
        }
        if !self.args.loras.is_empty() {
            table["loras"] = value(self.loras()?);
        }
        Ok(table)
    }

    fn controls(&self) -> anyhow::Result<InlineTable> {
        let mut controls = InlineTable::new();
        for ControlArg(kind, folder) in &self.args.controls {
            let folder =
                folder.canonicalize().with_context(|| format!("{} is not there", folder.display()))?;
            let files = inspect_control(&folder)?;
            let mut control = InlineTable::new();
            control.insert("path", self.path(&folder).into());
            control.insert("files", self.pins(&kind.to_string(), &folder, &files)?.into());
            if controls.insert(kind.to_string(), control.into()).is_some() {
                bail!("--control {kind} is given twice");
            }
        }
        Ok(controls)
    }

    fn loras(&self) -> anyhow::Result<Array> {
        let mut loras = Array::new();
        for LoraArg(path, scale) in &self.args.loras {
            let path = path.canonicalize().with_context(|| format!("{} is not there", path.display()))?;
            inspect_file(&path)?;
            let (size, blake3) = verified::measure(&path)
                .map_err(|problem| anyhow::anyhow!("{} {problem}", path.display()))?;
            let mut lora = InlineTable::new();
            lora.insert("path", self.path(&path).into());
            lora.insert("scale", (*scale).into());
            lora.insert("size", (size as i64).into());
            lora.insert("blake3", blake3.to_string().into());
            loras.push(lora);
        }
        Ok(one_a_line(loras))
    }

    /// Relative where the file is below the registry, so that both can move together.
    fn path(&self, path: &Path) -> String {
        path.strip_prefix(self.base).unwrap_or(path).display().to_string()
    }

    fn licence(&self, folder: &Path) -> anyhow::Result<String> {
        let given = self.args.licence.clone();
        given
            .or_else(|| licence_of(folder))
            .context("say under which licence the weights are, with --licence")
    }

    fn pins(&self, name: &str, folder: &Path, files: &[String]) -> anyhow::Result<Array> {
        let sizes =
            files.iter().map(|file| std::fs::metadata(folder.join(file)).map_or(0, |found| found.len()));
        let bar = self.bars.hashing(name, sizes.sum());
        let mut pins = Array::new();
        for file in files {
            let path = folder.join(file);
            let (size, blake3) = verified::measure(&path)
                .map_err(|problem| anyhow::anyhow!("{} {problem}", path.display()))?;
            let pin = FilePin { path: file.clone(), size, blake3, member: None };
            let mut table = InlineTable::new();
            table.insert("path", pin.path.into());
            table.insert("size", (pin.size as i64).into());
            table.insert("blake3", pin.blake3.to_string().into());
            pins.push(table);
            bar.inc(size);
        }
        bar.finish_and_clear();
        Ok(one_a_line(pins))
    }
}

/// The licence in a README's heading, as model cards have it: `license: openrail++`.
fn licence_of(folder: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    let readme = std::fs::File::open(folder.join("README.md")).ok()?;
    readme.take(MAX_README_BYTES as u64).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let heading = text.strip_prefix("---\n")?.split("\n---").next()?;
    let line = heading.lines().find_map(|line| line.strip_prefix("license:"))?;
    let licence = line.trim().trim_matches(['"', '\'']);
    (!licence.is_empty() && licence.len() <= MAX_LICENCE_BYTES).then(|| licence.to_owned())
}

fn inline<const N: usize>(pairs: [(&str, Value); N]) -> toml_edit::Item {
    value(pairs.into_iter().collect::<InlineTable>())
}

fn one_a_line(mut array: Array) -> Array {
    array.iter_mut().for_each(|item| item.decor_mut().set_prefix("\n    "));
    array.set_trailing("\n");
    array.set_trailing_comma(true);
    array
}
