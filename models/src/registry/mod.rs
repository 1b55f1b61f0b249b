//! The models that a network knows, and what may be asked of each.
//!
//! Invariant: a [`Registry`] holds checked specs only: ids are unique and well formed, ranges are
//! not empty, defaults lie inside them, and no path of a pinned file leaves its model's folder.

mod architecture;
mod component;
mod entry;
mod id;
pub(crate) mod inspect;
mod limits;
mod numerics;
mod spec;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use architecture::{Architecture, ModelTask};
pub use component::{
    Blake3Hash, Component, FilePin, MAX_FILES, ModelSource, Origin, OriginPlace, Sha256Hash,
};
pub use id::{MAX_ID_BYTES, ModelId};
pub use inspect::{Inspection, inspect, inspect_control, inspect_file};
pub use limits::{EdgeRange, PictureLimits, Range, UpscaleLimits};
pub use numerics::{Attention, Noise, Numerics, Precision};
pub use spec::{LoraSpec, ModelSpec, Part, UPSCALE_UNIT_EDGE, Verification};

use entry::Entry;

/// The registry that is used where none is configured.
pub const DEFAULT_REGISTRY: &str = include_str!("../../../config/models.toml");
/// The most models in a registry.
pub const MAX_MODELS: usize = 256;
/// The largest registry file, in bytes.
pub const MAX_REGISTRY_BYTES: u64 = 8 << 20;

/// Why a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(
        "`{0}` is no model id; use at most {MAX_ID_BYTES} of a-z, 0-9, `-`, `.`, `_`, a letter or digit first"
    )]
    BadId(String),
    #[error("cannot read the model registry {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the model registry {} has {bytes} bytes, more than the {MAX_REGISTRY_BYTES} allowed", path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("model registry: {message}{suggestion}")]
    Syntax { message: String, suggestion: String },
    #[error("model registry: {model}: {detail}")]
    BadModel { model: ModelId, detail: String },
    #[error("model registry: {0} is listed twice")]
    Duplicate(ModelId),
    #[error("model registry: it lists {0} models, more than the {MAX_MODELS} allowed")]
    TooMany(usize),
}

impl RegistryError {
    /// A stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadId(_) => "bad_model_id",
            Self::Unreadable { .. } => "unreadable",
            Self::TooLarge { .. } => "registry_too_large",
            Self::Syntax { .. } => "bad_registry",
            Self::BadModel { .. } => "bad_model",
            Self::Duplicate(_) => "duplicate_model",
            Self::TooMany(_) => "too_many_models",
        }
    }
}

impl From<toml::de::Error> for RegistryError {
    fn from(error: toml::de::Error) -> Self {
        let suggestion = suggestion(error.message()).unwrap_or_default();
        Self::Syntax { message: error.to_string(), suggestion }
    }
}

/// Serde's message names the unknown key and all known ones, in backticks: the closest is what was meant.
fn suggestion(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown").then(|| quoted.next())??;
    let (closeness, known) = quoted
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (closeness > 0.7).then(|| format!("did you mean `{known}`?"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<Entry>,
}

/// The models that a network knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    models: Vec<ModelSpec>,
}

impl Registry {
    /// Reads and checks a registry. Unknown keys are errors that name the line. Relative paths in it are
    /// relative to the working folder; see [`Self::open`].
    pub fn from_toml(text: &str) -> Result<Self, RegistryError> {
        let file: File = toml::from_str(text)?;
        if file.model.len() > MAX_MODELS {
            return Err(RegistryError::TooMany(file.model.len()));
        }
        let mut models: Vec<ModelSpec> = Vec::with_capacity(file.model.len());
        for entry in file.model {
            let spec = entry.check()?;
            if models.iter().any(|known| known.id == spec.id) {
                return Err(RegistryError::Duplicate(spec.id));
            }
            models.push(spec);
        }
        Ok(Self { models })
    }

    /// Reads and checks a registry file. Relative paths in it are relative to its folder.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let unreadable = |source| RegistryError::Unreadable { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > MAX_REGISTRY_BYTES {
            return Err(RegistryError::TooLarge { path: path.to_owned(), bytes });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut registry = Self::from_toml(&text)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        registry.models.iter_mut().for_each(|spec| spec.resolve(folder));
        Ok(registry)
    }

    pub fn models(&self) -> &[ModelSpec] {
        &self.models
    }

    pub fn get(&self, id: &str) -> Option<&ModelSpec> {
        self.models.iter().find(|spec| spec.id.as_str() == id)
    }

    /// The models of these ids, in this registry's order.
    pub fn only(&self, ids: &[ModelId]) -> Self {
        Self { models: self.models.iter().filter(|spec| ids.contains(&spec.id)).cloned().collect() }
    }

    /// The same models, computed in other numerics: what an honest node with another device answers.
    pub fn in_numerics(mut self, numerics: Numerics) -> Self {
        self.models.iter_mut().for_each(|spec| spec.numerics = numerics);
        self
    }

    /// The first model that serves a task.
    pub fn first_for(&self, task: ModelTask) -> Option<&ModelSpec> {
        self.models.iter().find(|spec| spec.serves(task))
    }
}

impl Default for Registry {
    /// [`DEFAULT_REGISTRY`].
    fn default() -> Self {
        Self::from_toml(DEFAULT_REGISTRY).expect("the registry in the binary is checked by a test")
    }
}
