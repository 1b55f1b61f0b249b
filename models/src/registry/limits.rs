//! What may be asked of a model.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::diffusion::{MAX_EDGE, MAX_GUIDANCE};

/// The most steps that a spec may allow.
pub const MAX_STEPS: usize = 1000;
/// The most that an upscaler may enlarge each edge.
pub const MAX_FACTOR: u32 = 8;
/// The longest edge of a picture that an upscaler may be given, in pixels.
pub const MAX_UPSCALE_EDGE: u32 = 4096;
/// Strengths of image-to-image where a model says nothing of them.
pub(super) const STRENGTH: Range<f32> = Range { min: 0.02, max: 1.0, default: 0.6 };

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

    pub(super) fn is_sound(&self) -> bool {
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
    /// Share of the steps that are run where a picture is made from another, above 0 to 1.
    pub strength: Range<f32>,
}

impl PictureLimits {
    pub(super) fn checked(
        size: EdgeRange,
        steps: Range<usize>,
        guidance: Range<f32>,
        strength: Option<Range<f32>>,
    ) -> Result<Self, String> {
        let strength = strength.unwrap_or(STRENGTH);
        let is_edge = size.multiple_of > 0 && size.contains(size.default) && size.min > 0;
        if !is_edge || size.max as usize > MAX_EDGE {
            return Err(format!("size must lie within 1 to {MAX_EDGE}, and its default must be allowed"));
        }
        if !steps.is_sound() || steps.min == 0 || steps.max > MAX_STEPS {
            return Err(format!("steps must lie within 1 to {MAX_STEPS}, and their default must be allowed"));
        }
        if !guidance.is_sound() || guidance.min < 0.0 || guidance.max > MAX_GUIDANCE {
            return Err(format!(
                "guidance must lie within 0 to {MAX_GUIDANCE}, and its default must be allowed"
            ));
        }
        if !strength.is_sound() || strength.min <= 0.0 || strength.max > 1.0 {
            return Err("strength must lie above 0 and within 1, and its default must be allowed".to_owned());
        }
        Ok(Self { size, steps, guidance, strength })
    }
}

/// What may be asked of an upscaler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpscaleLimits {
    /// By how much each edge may grow; the first is the default.
    pub factors: Vec<u32>,
    /// The longest edge of a picture to upscale, in pixels.
    pub max_edge: u32,
}

impl UpscaleLimits {
    /// Whether a picture of this size may be upscaled.
    pub fn contains(&self, width: u32, height: u32) -> bool {
        width.max(height) <= self.max_edge
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let are_factors = self.factors.iter().all(|factor| (2..=MAX_FACTOR).contains(factor));
        if self.factors.is_empty() || self.factors.len() > MAX_FACTOR as usize || !are_factors {
            return Err(format!("upscale.factors must be one or more of 2 to {MAX_FACTOR}"));
        }
        if !(1..=MAX_UPSCALE_EDGE).contains(&self.max_edge) {
            return Err(format!("upscale.max_edge must be 1 to {MAX_UPSCALE_EDGE}"));
        }
        Ok(())
    }
}
