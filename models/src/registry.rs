//! The models that a network knows, and what may be asked of each.
//!
//! Invariant: a [`Registry`] holds checked specs only: ids are unique and well formed, ranges are
//! not empty, and defaults lie inside them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::diffusion::{ControlKind, Generate, GenerateError, MAX_EDGE, MAX_GUIDANCE};
use crate::embedded;
use crate::loader::ModelFiles;
use crate::tokenizer::MAX_PROMPT_BYTES;

/// The registry that is used where none is configured.
pub const DEFAULT_REGISTRY: &str = include_str!("../../config/models.toml");
/// The most models in a registry.
pub const MAX_MODELS: usize = 256;
/// The longest model id, in bytes.
pub const MAX_ID_BYTES: usize = 64;
/// The most steps that a spec may allow.
pub const MAX_STEPS: usize = 1000;
/// The edge of the picture whose upscaling is [`ModelSpec::work_units`], in pixels.
pub const UPSCALE_UNIT_EDGE: u32 = 256;
/// The longest timeout that a spec may set.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// The name of a model: lower-case letters, digits, `-`, `.` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId(String);

impl ModelId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for ModelId {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let well_formed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
        let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if text.len() > MAX_ID_BYTES || !starts_well || !text.bytes().all(well_formed) {
            let shown = text.chars().take(MAX_ID_BYTES).collect();
            return Err(RegistryError::BadId(shown));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ModelId {
    type Error = RegistryError;

    fn try_from(text: String) -> Result<Self, RegistryError> {
        text.parse()
    }
}

impl From<ModelId> for String {
    fn from(id: ModelId) -> Self {
        id.0
    }
}

/// Why a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(
        "`{0}` is no model id; use at most {MAX_ID_BYTES} of a-z, 0-9, `-`, `.`, `_`, a letter or digit first"
    )]
    BadId(String),
    #[error("model registry: {0}")]
    Syntax(#[from] toml::de::Error),
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
            Self::Syntax(_) => "bad_registry",
            Self::BadModel { .. } => "bad_model",
            Self::Duplicate(_) => "duplicate_model",
            Self::TooMany(_) => "too_many_models",
        }
    }
}

/// What a model is built like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// Stable Diffusion 1.x, 2.x or XL; the model's own files say which.
    StableDiffusion,
    /// CLIP, text and vision.
    Clip,
}

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelTask {
    TextToImage,
    ImageToImage,
    Inpaint,
    Uncrop,
    /// Words and a rough outline.
    Scribble,
    /// Words and Canny edges.
    Canny,
    /// Words and a depth map.
    Depth,
    Upscale,
    ImageEmbedding,
    NsfwClassification,
}

impl ModelTask {
    pub const ALL: [Self; 10] = [
        Self::TextToImage,
        Self::ImageToImage,
        Self::Inpaint,
        Self::Uncrop,
        Self::Scribble,
        Self::Canny,
        Self::Depth,
        Self::Upscale,
        Self::ImageEmbedding,
        Self::NsfwClassification,
    ];

    /// Whether the answer is a picture made by diffusion, from words among others.
    pub fn is_generation(self) -> bool {
        !matches!(self, Self::Upscale | Self::ImageEmbedding | Self::NsfwClassification)
    }
}

impl From<ControlKind> for ModelTask {
    fn from(kind: ControlKind) -> Self {
        match kind {
            ControlKind::Scribble => Self::Scribble,
            ControlKind::Canny => Self::Canny,
            ControlKind::Depth => Self::Depth,
        }
    }
}

impl fmt::Display for ModelTask {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::TextToImage => "text-to-image",
            Self::ImageToImage => "image-to-image",
            Self::Inpaint => "inpaint",
            Self::Uncrop => "uncrop",
            Self::Scribble => "scribble",
            Self::Canny => "canny",
            Self::Depth => "depth",
            Self::Upscale => "upscale",
            Self::ImageEmbedding => "image-embedding",
            Self::NsfwClassification => "nsfw-classification",
        })
    }
}

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// In the binary.
    Embedded,
    /// A folder on disk.
    Folder(PathBuf),
}

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

/// How exactly two honest answers agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Numerics {
    /// To the bit, on any processor.
    #[serde(rename = "portable-f32")]
    PortableF32,
    /// Up to the rounding of the hardware.
    #[serde(rename = "device-f16")]
    DeviceF16,
}

/// Allowed values and the one that is used where none is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range<T> {
    pub min: T,
    pub max: T,
    pub default: T,
}

impl<T: PartialOrd + Copy> Range<T> {
    pub fn contains(&self, value: T) -> bool {
        self.min <= value && value <= self.max
    }

    fn is_sound(&self) -> bool {
        self.min <= self.max && self.contains(self.default)
    }
}

/// Allowed edges of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeRange {
    pub min: u32,
    pub max: u32,
    pub multiple_of: u32,
    pub default: u32,
}

impl EdgeRange {
    pub fn contains(&self, edge: u32) -> bool {
        (self.min..=self.max).contains(&edge) && edge.is_multiple_of(self.multiple_of)
    }
}

impl fmt::Display for EdgeRange {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        if self.min == self.max {
            write!(formatter, "{}", self.min)
        } else {
            write!(formatter, "a multiple of {} from {} to {}", self.multiple_of, self.min, self.max)
        }
    }
}

/// What may be asked of a picture model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureLimits {
    pub size: EdgeRange,
    pub steps: Range<usize>,
    pub guidance: Range<f32>,
}

/// One model of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    pub id: ModelId,
    pub architecture: Architecture,
    pub source: ModelSource,
    /// SPDX expression or name of the weights' licence.
    pub licence: String,
    pub tasks: Vec<ModelTask>,
    /// There if and only if the model makes pictures.
    pub pictures: Option<PictureLimits>,
    /// Work of one answer with default values, in units that all models share.
    pub work_units: f64,
    pub timeout: Duration,
    pub verification: Verification,
    pub numerics: Numerics,
}

impl ModelSpec {
    /// The model's files.
    pub fn files(&self) -> ModelFiles {
        match &self.source {
            ModelSource::Folder(folder) => ModelFiles::folder(folder),
            ModelSource::Embedded => {
                embedded::find(self.id.as_str()).expect("checked when the registry was read")
            }
        }
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
        Ok(())
    }
}

fn invalid(field: &'static str, found: impl fmt::Display, allowed: impl fmt::Display) -> GenerateError {
    GenerateError::Invalid { field, found: found.to_string(), allowed: allowed.to_string() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<Entry>,
}

/// A model as the file writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: ModelId,
    architecture: Architecture,
    source: Option<EntrySource>,
    path: Option<PathBuf>,
    licence: String,
    tasks: Vec<ModelTask>,
    size: Option<EdgeRange>,
    steps: Option<Range<usize>>,
    guidance: Option<Range<f32>>,
    work_units: f64,
    timeout_seconds: u64,
    verification: Verification,
    numerics: Numerics,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EntrySource {
    Embedded,
}

impl Entry {
    fn check(self) -> Result<ModelSpec, RegistryError> {
        let id = self.id.clone();
        self.into_spec().map_err(|detail| RegistryError::BadModel { model: id, detail })
    }

    fn into_spec(self) -> Result<ModelSpec, String> {
        let source = match (self.source, self.path) {
            (Some(EntrySource::Embedded), None) if embedded::find(self.id.as_str()).is_none() => {
                return Err("no model of this id is embedded".to_owned());
            }
            (Some(EntrySource::Embedded), None) => ModelSource::Embedded,
            (None, Some(path)) => ModelSource::Folder(path),
            _ => return Err("write either source = \"embedded\" or path = \"folder\"".to_owned()),
        };
        let possible = |task: &ModelTask| match self.architecture {
            Architecture::StableDiffusion => task.is_generation(),
            Architecture::Clip => *task == ModelTask::ImageEmbedding,
        };
        if self.tasks.is_empty() || !self.tasks.iter().all(possible) {
            let all = ModelTask::ALL.iter().filter(|task| possible(task));
            let all: Vec<String> = all.map(|task| format!("\"{task}\"")).collect();
            return Err(format!("tasks must be one or more of {} for this architecture", all.join(", ")));
        }
        let is_generative = self.tasks.iter().any(|task| task.is_generation());
        let pictures = match (self.size, self.steps, self.guidance) {
            (Some(size), Some(steps), Some(guidance)) if is_generative => {
                Some(checked_limits(size, steps, guidance)?)
            }
            _ if is_generative => {
                return Err("a model that makes pictures has size, steps and guidance".to_owned());
            }
            (None, None, None) => None,
            _ => return Err("size, steps and guidance are for models that make pictures".to_owned()),
        };
        if !(self.work_units.is_finite() && self.work_units > 0.0) {
            return Err("work_units must be above 0".to_owned());
        }
        let timeout = Duration::from_secs(self.timeout_seconds);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return Err(format!("timeout_seconds must be 1 to {}", MAX_TIMEOUT.as_secs()));
        }
        Ok(ModelSpec {
            id: self.id,
            architecture: self.architecture,
            source,
            licence: self.licence,
            tasks: self.tasks,
            pictures,
            work_units: self.work_units,
            timeout,
            verification: self.verification,
            numerics: self.numerics,
        })
    }
}

fn checked_limits(
    size: EdgeRange,
    steps: Range<usize>,
    guidance: Range<f32>,
) -> Result<PictureLimits, String> {
    if size.multiple_of == 0 || !size.contains(size.default) || size.min == 0 || size.max as usize > MAX_EDGE
    {
        return Err(format!("size must lie within 1 to {MAX_EDGE}, and its default must be allowed"));
    }
    if !steps.is_sound() || steps.min == 0 || steps.max > MAX_STEPS {
        return Err(format!("steps must lie within 1 to {MAX_STEPS}, and their default must be allowed"));
    }
    if !guidance.is_sound() || guidance.min < 0.0 || guidance.max > MAX_GUIDANCE {
        return Err(format!("guidance must lie within 0 to {MAX_GUIDANCE}, and its default must be allowed"));
    }
    Ok(PictureLimits { size, steps, guidance })
}

/// The models that a network knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    models: Vec<ModelSpec>,
}

impl Registry {
    /// Reads and checks a registry file. Unknown keys are errors that name the line.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Start;

    fn request() -> Generate {
        Generate {
            prompt: "a red apple".into(),
            negative_prompt: String::new(),
            width: 64,
            height: 64,
            steps: 20,
            guidance: 4.0,
            seed: 1,
            start: Start::Noise,
            controls: Vec::new(),
        }
    }

    #[test]
    fn the_default_registry_is_sound() {
        let registry = Registry::default();
        let tiny = registry.get("argus-tiny").unwrap();
        assert!(tiny.serves(ModelTask::TextToImage));
        assert_eq!(tiny.pictures.unwrap().steps.default, 20);
        assert_eq!(tiny.source, ModelSource::Embedded);
        tiny.check(&request()).unwrap();
        assert!((tiny.picture_work(64, 64, 40) - 2.0).abs() < 1e-12);
        assert_eq!(registry.first_for(ModelTask::ImageEmbedding).unwrap().id.as_str(), "clip-tiny");
        assert!(registry.get("nothing").is_none());
    }

    #[test]
    fn requests_outside_the_ranges_name_the_field_and_what_is_allowed() {
        let registry = Registry::default();
        let spec = registry.get("argus-tiny").unwrap();
        let cases: [(&str, Generate); 6] = [
            ("width", Generate { width: 128, ..request() }),
            ("height", Generate { height: 0, ..request() }),
            ("steps", Generate { steps: 51, ..request() }),
            ("guidance", Generate { guidance: f32::NAN, ..request() }),
            ("prompt", Generate { prompt: "x".repeat(MAX_PROMPT_BYTES + 1), ..request() }),
            ("negative_prompt", Generate { negative_prompt: "x".repeat(MAX_PROMPT_BYTES + 1), ..request() }),
        ];
        for (expected, request) in cases {
            match spec.check(&request).unwrap_err() {
                GenerateError::Invalid { field, .. } => assert_eq!(field, expected),
                other => panic!("{other}"),
            }
        }
        let error = spec.check(&Generate { steps: 51, ..request() }).unwrap_err();
        assert_eq!(error.to_string(), "steps is 51, but it must be 1 to 50");
        assert!(registry.get("clip-tiny").unwrap().check(&request()).is_err());
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let text = DEFAULT_REGISTRY.replacen("licence = \"MIT\"", "license = \"MIT\"", 1);
        let line = text.lines().position(|line| line.starts_with("license")).unwrap() + 1;
        let error = Registry::from_toml(&text).unwrap_err();
        assert_eq!(error.reason(), "bad_registry");
        assert!(error.to_string().contains(&format!("line {line}")), "{error}");
        assert!(error.to_string().contains("license"), "{error}");
    }

    #[test]
    fn unsound_models_are_refused() {
        let cases = [
            ("id = \"argus-tiny\"", "id = \"Argus Tiny\"", "no model id"),
            ("id = \"argus-tiny\"", "id = \"clip-tiny\"", "twice"),
            ("id = \"argus-tiny\"", "id = \"argus-huge\"", "embedded"),
            ("source = \"embedded\"", "path = \"a\"\nsource = \"embedded\"", "either source"),
            ("tasks = [\"text-to-image\"]", "tasks = []", "tasks must be"),
            ("tasks = [\"text-to-image\"]", "tasks = [\"image-embedding\"]", "tasks must be"),
            ("max = 50, default = 20", "max = 50, default = 60", "default"),
            ("max = 64, multiple_of = 64", "max = 64, multiple_of = 0", "size"),
            ("max = 12.0", "max = inf", "guidance"),
            ("work_units = 1.0", "work_units = nan", "work_units"),
            ("timeout_seconds = 20", "timeout_seconds = 0", "timeout_seconds"),
        ];
        for (old, new, expected) in cases {
            let text = DEFAULT_REGISTRY.replacen(old, new, 1);
            assert_ne!(text, DEFAULT_REGISTRY, "{old}");
            let error = Registry::from_toml(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{new}: {error}");
        }
    }

    #[test]
    fn a_folder_may_stand_for_embedded_weights() {
        let text = DEFAULT_REGISTRY.replacen("source = \"embedded\"", "path = \"models/sd15\"", 1);
        let registry = Registry::from_toml(&text).unwrap();
        assert_eq!(registry.get("argus-tiny").unwrap().source, ModelSource::Folder("models/sd15".into()));
    }
}
