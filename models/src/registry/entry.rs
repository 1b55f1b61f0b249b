//! A model as a registry file writes it, and the checks that make a [`ModelSpec`] of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::component::{RawComponent, RawSource};
use super::spec::embedded_control;
use super::{
    Architecture, Blake3Hash, Component, EdgeRange, FilePin, LoraSpec, ModelId, ModelSource, ModelSpec,
    ModelTask, Numerics, Origin, PictureLimits, Range, RegistryError, UpscaleLimits, Verification,
};
use crate::diffusion::{ControlKind, SchedulerKind};
use crate::embedded;

/// The longest timeout that a spec may set.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// The most LoRAs of a model.
pub const MAX_LORAS: usize = 16;
/// The strongest LoRA, either way.
pub const MAX_LORA_SCALE: f32 = 4.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    id: ModelId,
    architecture: Architecture,
    source: Option<RawSource>,
    path: Option<PathBuf>,
    #[serde(default)]
    files: Vec<FilePin>,
    fetch: Option<Origin>,
    #[serde(default)]
    controls: BTreeMap<ControlKind, RawComponent>,
    #[serde(default)]
    loras: Vec<RawLora>,
    licence: String,
    tasks: Vec<ModelTask>,
    size: Option<EdgeRange>,
    steps: Option<Range<usize>>,
    guidance: Option<Range<f32>>,
    strength: Option<Range<f32>>,
    scheduler: Option<SchedulerKind>,
    upscale: Option<UpscaleLimits>,
    work_units: f64,
    timeout_seconds: u64,
    memory_mib: Option<u64>,
    verification: Verification,
    numerics: Numerics,
}

/// A LoRA: one safetensors file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLora {
    path: PathBuf,
    scale: f32,
    size: Option<u64>,
    blake3: Option<Blake3Hash>,
    member: Option<String>,
    fetch: Option<Origin>,
}

impl Entry {
    pub(super) fn check(self) -> Result<ModelSpec, RegistryError> {
        let id = self.id.clone();
        self.into_spec().map_err(|detail| RegistryError::BadModel { model: id, detail })
    }

    fn into_spec(self) -> Result<ModelSpec, String> {
        let component = RawComponent::new(self.source, self.path, self.files, self.fetch).check()?;
        check_embedded(&component, self.id.as_str())?;
        let mut controls = BTreeMap::new();
        for (kind, raw) in self.controls {
            let control = raw.check().map_err(|detail| format!("controls.{kind}: {detail}"))?;
            check_embedded(&control, &embedded_control(&self.id, kind))?;
            controls.insert(kind, control);
        }
        check_tasks(self.architecture, &self.tasks, &controls)?;
        if self.loras.len() > MAX_LORAS {
            return Err(format!("it lists {} LoRAs, more than the {MAX_LORAS} allowed", self.loras.len()));
        }
        if component.source == ModelSource::Embedded && !self.loras.is_empty() {
            return Err("loras are for models that are not embedded".to_owned());
        }
        let loras = self.loras.into_iter().map(RawLora::check).collect::<Result<_, _>>()?;
        let pictures = match (self.size, self.steps, self.guidance) {
            (Some(size), Some(steps), Some(guidance)) => {
                Some(PictureLimits::checked(size, steps, guidance, self.strength)?)
            }
            (None, None, None) if self.strength.is_none() => None,
            _ => return Err("a model that makes pictures has size, steps and guidance".to_owned()),
        };
        match (pictures.is_some(), self.tasks.iter().any(|task| task.is_generation())) {
            (false, true) => {
                return Err("a model that makes pictures has size, steps and guidance".to_owned());
            }
            (true, false) => {
                return Err("size, steps, guidance and strength are for models that make pictures".to_owned());
            }
            _ => {}
        }
        if self.scheduler.is_some() && pictures.is_none() {
            return Err("scheduler is for models that make pictures".to_owned());
        }
        match (&self.upscale, self.tasks.contains(&ModelTask::Upscale)) {
            (None, true) => {
                return Err("a model that upscales has upscale = { factors, max_edge }".to_owned());
            }
            (Some(_), false) => return Err("upscale is for models that upscale".to_owned()),
            (limits, _) => limits.iter().try_for_each(UpscaleLimits::check)?,
        }
        if !(self.work_units.is_finite() && self.work_units > 0.0) {
            return Err("work_units must be above 0".to_owned());
        }
        let timeout = Duration::from_secs(self.timeout_seconds);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return Err(format!("timeout_seconds must be 1 to {}", MAX_TIMEOUT.as_secs()));
        }
        let memory = self.memory_mib.map(|mib| mib.checked_mul(1 << 20).ok_or("memory_mib is too much"));
        Ok(ModelSpec {
            id: self.id,
            architecture: self.architecture,
            component,
            controls,
            loras,
            licence: self.licence,
            tasks: self.tasks,
            scheduler: self.scheduler,
            pictures,
            upscale: self.upscale,
            work_units: self.work_units,
            timeout,
            memory: memory.transpose()?,
            verification: self.verification,
            numerics: self.numerics,
        })
    }
}

fn check_embedded(component: &Component, name: &str) -> Result<(), String> {
    match component.source {
        ModelSource::Embedded if embedded::find(name).is_none() => {
            Err(format!("nothing of the name `{name}` is embedded"))
        }
        _ => Ok(()),
    }
}

fn check_tasks(
    architecture: Architecture,
    tasks: &[ModelTask],
    controls: &BTreeMap<ControlKind, Component>,
) -> Result<(), String> {
    let possible = architecture.tasks();
    if tasks.is_empty() || !tasks.iter().all(|task| possible.contains(task)) {
        let all: Vec<String> = possible.iter().map(|task| format!("\"{task}\"")).collect();
        return Err(format!("tasks must be one or more of {} for this architecture", all.join(", ")));
    }
    for kind in ControlKind::ALL {
        if tasks.contains(&kind.into()) != controls.contains_key(&kind) {
            return Err(format!("task \"{kind}\" and controls.{kind} go together"));
        }
    }
    Ok(())
}

impl RawLora {
    fn check(self) -> Result<LoraSpec, String> {
        let shown = self.path.display().to_string();
        let name = self.path.file_name().and_then(|name| name.to_str());
        let Some(file) = name.filter(|name| name.ends_with(".safetensors")).map(str::to_owned) else {
            return Err(format!("loras: {shown} is no safetensors file"));
        };
        if !(self.scale.is_finite() && self.scale.abs() <= MAX_LORA_SCALE) {
            return Err(format!("loras: the scale of {shown} must lie within ±{MAX_LORA_SCALE}"));
        }
        let files = match (self.size, self.blake3) {
            (Some(size), Some(blake3)) => {
                vec![FilePin { path: file.clone(), size, blake3, member: self.member }]
            }
            (None, None) if self.member.is_none() => Vec::new(),
            _ => return Err(format!("loras: {shown} has size and blake3, or neither")),
        };
        let mut folder = self.path;
        folder.pop();
        if folder.as_os_str().is_empty() {
            folder.push(".");
        }
        let component = RawComponent::new(None, Some(folder), files, self.fetch).check()?;
        Ok(LoraSpec { component, file, scale: self.scale })
    }
}
