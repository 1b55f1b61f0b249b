//! One model of a registry.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Architecture, Component, ModelId, ModelTask, Numerics, PictureLimits, UpscaleLimits};
use crate::diffusion::{
    ControlKind, Generate, GenerateError, MAX_CONTROL_SCALE, MAX_CONTROLS, SchedulerKind, Start,
};
use crate::embedded;
use crate::loader::ModelFiles;
use crate::tokenizer::MAX_PROMPT_BYTES;

/// The edge of the picture whose upscaling is [`ModelSpec::work_units`], in pixels.
pub const UPSCALE_UNIT_EDGE: u32 = 256;

/// How answers of a model are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verification {
    /// Several miners answer the same request, and their answers are compared.
    Compare,
    /// The validator answers the request itself.
    Reproduce,
    /// The answer carries a proof.
    Prove,
}

/// A LoRA that is merged into a model's weights when it is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Its folder, with the file and no others.
    pub component: Component,
    /// The file in that folder.
    pub file: String,
    /// By how much; 1 is as trained.
    pub scale: f32,
}

/// A part of a model that has files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The model without its ControlNets and LoRAs.
    Base,
    Control(ControlKind),
    /// By its place in [`ModelSpec::loras`].
    Lora(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Base => formatter.write_str("model"),
            Self::Control(kind) => write!(formatter, "control {kind}"),
            Self::Lora(index) => write!(formatter, "LoRA {}", index + 1),
        }
    }
}

/// One model of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    pub id: ModelId,
    pub architecture: Architecture,
    /// The model's own files.
    pub component: Component,
    /// ControlNets by what they were trained on.
    pub controls: BTreeMap<ControlKind, Component>,
    /// Merged in this order.
    pub loras: Vec<LoraSpec>,
    /// SPDX expression or name of the weights' licence.
    pub licence: String,
    pub tasks: Vec<ModelTask>,
    /// Takes the place of the sampler that the model's own files name.
    pub scheduler: Option<SchedulerKind>,
    /// There if and only if the model makes pictures from words.
    pub pictures: Option<PictureLimits>,
    /// There if and only if the model upscales.
    pub upscale: Option<UpscaleLimits>,
    /// Work of one answer with default values, in units that all models share.
    pub work_units: f64,
    pub timeout: Duration,
    /// What the device must have free to serve the model, in bytes.
    pub memory: Option<u64>,
    pub verification: Verification,
    pub numerics: Numerics,
}

impl ModelSpec {
    /// The model's own files.
    pub fn files(&self) -> ModelFiles {
        self.open(&self.component, self.id.as_str())
    }

    /// The files of the ControlNet of this kind, if there is one.
    pub fn control_files(&self, kind: ControlKind) -> Option<ModelFiles> {
        Some(self.open(self.controls.get(&kind)?, &embedded_control(&self.id, kind)))
    }

    /// The files of each LoRA; [`LoraSpec::file`] names the one to read.
    pub fn lora_files(&self) -> Vec<(ModelFiles, &LoraSpec)> {
        self.loras.iter().map(|lora| (self.open(&lora.component, ""), lora)).collect()
    }

    fn open(&self, component: &Component, embedded: &str) -> ModelFiles {
        ModelFiles::pinned(&self.id, component)
            .or_else(|| embedded::find(embedded))
            .expect("checked when the registry was read")
    }

    /// Everything that has files.
    pub fn parts(&self) -> Vec<(Part, &Component)> {
        let controls = self.controls.iter().map(|(kind, component)| (Part::Control(*kind), component));
        let loras = self.loras.iter().enumerate().map(|(index, lora)| (Part::Lora(index), &lora.component));
        std::iter::once((Part::Base, &self.component)).chain(controls).chain(loras).collect()
    }

    /// Makes relative paths relative to `base`.
    pub(super) fn resolve(&mut self, base: &Path) {
        let loras = self.loras.iter_mut().map(|lora| &mut lora.component);
        let parts = self.controls.values_mut().chain(loras).chain([&mut self.component]);
        parts.for_each(|component| component.resolve(base));
    }

    pub fn serves(&self, task: ModelTask) -> bool {
        self.tasks.contains(&task)
    }

    /// Work of one picture: that of the default, by pixels and by steps.
    pub fn picture_work(&self, width: u32, height: u32, steps: usize) -> f64 {
        let Some(limits) = &self.pictures else { return self.work_units };
        let pixels = f64::from(width) * f64::from(height) / f64::from(limits.size.default).powi(2);
        self.work_units * pixels * steps as f64 / limits.steps.default as f64
    }

    /// Work of one upscaling: that of a picture of [`UPSCALE_UNIT_EDGE`] squared, by pixels.
    pub fn upscale_work(&self, width: u32, height: u32) -> f64 {
        let unit = f64::from(UPSCALE_UNIT_EDGE).powi(2);
        self.work_units * (f64::from(width) * f64::from(height) / unit).max(0.1)
    }

    /// Checks a request against what this model allows, field by field.
    pub fn check(&self, request: &Generate) -> Result<(), GenerateError> {
        let Some(limits) = &self.pictures else {
            return Err(invalid("model", &self.id, "one that makes pictures"));
        };
        for (field, text) in [("prompt", &request.prompt), ("negative_prompt", &request.negative_prompt)] {
            if text.len() > MAX_PROMPT_BYTES {
                return Err(invalid(
                    field,
                    format_args!("{} bytes long", text.len()),
                    format_args!("at most {MAX_PROMPT_BYTES} bytes long"),
                ));
            }
        }
        for (field, edge) in [("width", request.width), ("height", request.height)] {
            if !limits.size.contains(edge) {
                return Err(invalid(field, edge, limits.size));
            }
        }
        if !limits.steps.contains(request.steps) {
            return Err(invalid(
                "steps",
                request.steps,
                format_args!("{} to {}", limits.steps.min, limits.steps.max),
            ));
        }
        if !limits.guidance.contains(request.guidance) {
            return Err(invalid(
                "guidance",
                request.guidance,
                format_args!("{} to {}", limits.guidance.min, limits.guidance.max),
            ));
        }
        match &request.start {
            Start::Picture { strength, .. } | Start::Inpaint { strength, .. }
                if !limits.strength.contains(*strength) =>
            {
                let allowed = format_args!("{} to {}", limits.strength.min, limits.strength.max);
                Err(invalid("strength", strength, allowed))
            }
            _ => self.check_controls(request),
        }
    }

    fn check_controls(&self, request: &Generate) -> Result<(), GenerateError> {
        if request.controls.len() > MAX_CONTROLS {
            let allowed = format_args!("at most {MAX_CONTROLS} pictures");
            return Err(invalid("controls", format_args!("{} pictures", request.controls.len()), allowed));
        }
        for control in &request.controls {
            if !self.controls.contains_key(&control.kind) {
                let served: Vec<String> = self.controls.keys().map(ToString::to_string).collect();
                let allowed = if served.is_empty() { "absent".to_owned() } else { served.join(", ") };
                return Err(invalid("control", control.kind, allowed));
            }
            if !(control.scale > 0.0 && control.scale <= MAX_CONTROL_SCALE) {
                let allowed = format_args!("above 0 to {MAX_CONTROL_SCALE}");
                return Err(invalid("control scale", control.scale, allowed));
            }
        }
        Ok(())
    }
}

fn invalid(field: &'static str, found: impl fmt::Display, allowed: impl fmt::Display) -> GenerateError {
    GenerateError::Invalid { field, found: found.to_string(), allowed: allowed.to_string() }
}

/// The embedded ControlNet of an embedded model.
pub(super) fn embedded_control(model: &ModelId, kind: ControlKind) -> String {
    format!("{model}-{kind}")
}
