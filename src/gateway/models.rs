//! The models on offer: their cards, and which of them a request means.

use std::fmt;

use argus_protocols::TaskKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ApiError, ServiceError, request};

/// A model that can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelCard {
    pub id: String,
    /// One sentence for people.
    pub description: String,
    /// Licence of the weights, as an SPDX id where there is one.
    pub license: String,
    /// Unix time, seconds, when this model came to be offered; 0 when nobody knows.
    pub created: u64,
    /// `text-to-image`, `image-to-image`, `upscale` and so on.
    #[schema(value_type = Vec<String>)]
    pub tasks: Vec<TaskKind>,
    /// Allowed values of the tasks that make pictures from words, whatever else they begin from; there when
    /// `tasks` names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<GenerationLimits>,
    /// Allowed values of upscale; there when `tasks` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upscale: Option<UpscaleLimits>,
    /// Length of an image embedding; there when `tasks` names image-embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_dimensions: Option<u32>,
    /// Credits for one answer with default values: of a picture with the default size and steps, of one of 256 ×
    /// 256 pixels to upscale, of one picture to embed or classify. Others cost by their pixels, steps and number.
    pub work_units: f64,
    /// Miners known to serve it now.
    pub miners: u32,
}

/// What a model makes pictures of. Pixels for sizes, bytes for the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GenerationLimits {
    pub width: Allowed<u32>,
    pub height: Allowed<u32>,
    pub steps: Allowed<u32>,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: Allowed<f32>,
    /// The share of the steps that are run where a picture is made from another.
    pub strength: Allowed<f32>,
    /// Prompt and negative prompt, bytes of UTF-8 each.
    pub prompt_bytes: u32,
}

/// How a model makes pictures larger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpscaleLimits {
    /// By how much each edge can grow; the first is the default.
    pub factors: Vec<u32>,
    /// The longest edge of a picture to make larger, pixels.
    pub max_edge: u32,
}

/// `min ..= max`, and the value that is taken when none is given. `step` 0 means that any value goes,
/// otherwise `min + n · step`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Allowed<T> {
    pub min: T,
    pub max: T,
    pub step: T,
    pub default: T,
}

impl<T: Copy + PartialOrd> Allowed<T>
where
    f64: From<T>,
{
    pub fn permits(&self, value: T) -> bool {
        let step = f64::from(self.step);
        let steps = (f64::from(value) - f64::from(self.min)) / step;
        // Written so that a NaN fails.
        value >= self.min && value <= self.max && (step == 0.0 || (steps - steps.round()).abs() < 1e-3)
    }
}

impl Allowed<u32> {
    /// The permitted value that is nearest to this one.
    pub fn nearest(&self, value: u32) -> u32 {
        let step = self.step.max(1);
        let value = value.clamp(self.min, self.max);
        let below = value - (value - self.min) % step;
        let above = below.saturating_add(step);
        if above <= self.max && above - value < value - below { above } else { below }
    }
}

impl<T: Copy + PartialEq + fmt::Display> fmt::Display for Allowed<T>
where
    f64: From<T>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            return write!(f, "{}", self.min);
        }
        write!(f, "{} to {}", self.min, self.max)?;
        let step = f64::from(self.step);
        if step != 0.0 && step != 1.0 { write!(f, " in steps of {}", self.step) } else { Ok(()) }
    }
}

/// The card of the model that a request names, or of the first that does all of what is needed.
pub(super) fn choose<'a>(
    cards: &'a [ModelCard],
    wanted: Option<&str>,
    needed: &[TaskKind],
) -> Result<&'a ModelCard, ApiError> {
    let able = |card: &&ModelCard| needed.iter().all(|task| card.tasks.contains(task));
    let mut able = cards.iter().filter(able);
    if let Some(found) = able.find(|card| wanted.is_none_or(|wanted| card.id == wanted)) {
        return Ok(found);
    }
    Err(unknown_model(cards, wanted, needed))
}

/// Why no model fits: none there, another kind of model, or a name nobody knows.
fn unknown_model(cards: &[ModelCard], wanted: Option<&str>, needed: &[TaskKind]) -> ApiError {
    let able = |card: &&ModelCard| needed.iter().all(|task| card.tasks.contains(task));
    let offered: Vec<_> = cards.iter().filter(able).map(|card| card.id.as_str()).collect();
    let tasks = needed.iter().map(|task| task.label()).collect::<Vec<_>>().join(" with ");
    if offered.is_empty() && !cards.is_empty() && wanted.is_none_or(|w| cards.iter().any(|c| c.id == w)) {
        let message = format!("no model here does {tasks} (see /v1/models)");
        return ApiError::field("model", "unsupported_task", message);
    }
    let Some(wanted) = wanted else {
        return ServiceError::NoCapacity { retry_after: request::FULL }.into();
    };
    let shown: String = wanted.chars().take(argus_protocols::limits::MODEL_ID).collect();
    if cards.iter().any(|card| card.id == wanted) {
        let message = format!("{shown:?} does not do {tasks}; these do: {}", offered.join(", "));
        return ApiError::field("model", "unsupported_model", message);
    }
    let near = offered
        .iter()
        .map(|id| (strsim::jaro_winkler(&shown, id), id))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = near.map(|(_, id)| format!("; did you mean {id:?}?")).unwrap_or_default();
    let mut error =
        ApiError::not_found("model_not_found", format!("there is no model {shown:?}{hint} (see /v1/models)"));
    error.detail.param = Some("model".into());
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_permit_what_they_say() {
        let size = Allowed { min: 64_u32, max: 256, step: 64, default: 128 };
        let permitted: Vec<_> = (0..400).filter(|value| size.permits(*value)).collect();
        assert_eq!(permitted, [64, 128, 192, 256]);
        assert_eq!([0, 64, 95, 97, 250, 9_999].map(|value| size.nearest(value)), [64, 64, 64, 128, 256, 256]);
        assert_eq!(size.to_string(), "64 to 256 in steps of 64");
        let guidance = Allowed { min: 1.0_f32, max: 10.0, step: 0.0, default: 5.0 };
        assert!(guidance.permits(1.0) && guidance.permits(7.31) && guidance.permits(10.0));
        for bad in [f32::NAN, f32::INFINITY, -1.0, 0.99, 10.01] {
            assert!(!guidance.permits(bad), "{bad}");
        }
        assert_eq!(guidance.to_string(), "1 to 10");
        let halves = Allowed { min: 1.0_f32, max: 3.0, step: 0.5, default: 1.0 };
        assert!(halves.permits(2.5) && !halves.permits(2.6));
        let fixed = Allowed { min: 128_u32, max: 128, step: 64, default: 128 };
        assert!(fixed.permits(128) && !fixed.permits(64));
        assert_eq!(fixed.to_string(), "128");
    }
}
