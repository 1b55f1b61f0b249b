//! Activations, with an exponential of our own so that the bits are the same on every processor.

use candle_core::{Result, Tensor};

use super::host::{self, is_host};
use super::isa::for_each_isa;

/// A function applied to every value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, with the normal distribution's Φ.
    Gelu,
    /// `x · sigmoid(1.702 x)`, as the first CLIP models.
    QuickGelu,
    /// `x` within 0 and 6, as the mobile networks.
    Relu6,
}

impl Activation {
    /// The activation by its name in a `config.json`.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu),
            "quick_gelu" => Some(Self::QuickGelu),
            _ => None,
        }
    }

    /// Applies it in place.
    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            Self::Silu => silu(values),
            Self::Gelu => gelu(values),
            Self::QuickGelu => quick_gelu(values),
            Self::Relu6 => relu6(values),
        }
    }

    /// Applies it to a tensor on any device.
    pub(crate) fn forward(self, input: &Tensor) -> Result<Tensor> {
        if is_host(input) {
            return host::map(input, |values| self.apply(values));
        }
        match self {
            Self::Silu => input.silu(),
            Self::Gelu => input.gelu_erf(),
            Self::QuickGelu => input * candle_nn::ops::sigmoid(&(input * 1.702)?)?,
            Self::Relu6 => input.clamp(0.0, 6.0),
        }
    }
}

for_each_isa! {
    fn silu(values: &mut [f32]) {
        for value in values {
            *value *= sigmoid(*value);
        }
    }
}

for_each_isa! {
    fn quick_gelu(values: &mut [f32]) {
        for value in values {
            *value *= sigmoid(1.702 * *value);
        }
    }
}

for_each_isa! {
    fn relu6(values: &mut [f32]) {
        for value in values {
            *value = value.clamp(0.0, 6.0);
        }
    }
}

for_each_isa! {
    fn gelu(values: &mut [f32]) {
        for value in values {
            *value *= normal_cdf(*value);
        }
    }
}

for_each_isa! {
    /// `output = left · gelu(right)`.
    pub(crate) fn gelu_gate(left: &[f32], right: &[f32], output: &mut [f32]) {
        for ((output, left), right) in output.iter_mut().zip(left).zip(right) {
            *output = *left * (*right * normal_cdf(*right));
        }
    }
}

/// `e^x` with a relative error below 2e-7, and 0 or a huge number out of range.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first exact in few bits, so that r is exact to the last bit.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    // Taylor's series on |r| <= ln 2 / 2: the first term left out is below 2e-9 · |r|.
    let mut p = 1.0f32 / 5040.0;
    p = p.mul_add(r, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    p * power
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The normal distribution function by formula 7.1.26 of Abramowitz and Stegun, whose absolute
/// error is below 1.5e-7.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / 0.327_591_1f32.mul_add(z, 1.0);
    let mut p = 1.061_405_4f32;
    p = p.mul_add(t, -1.453_152_1);
    p = p.mul_add(t, 1.421_413_8);
    p = p.mul_add(t, -0.284_496_72);
    p = p.mul_add(t, 0.254_829_6);
    let upper_tail = 0.5 * p * t * exp(-z * z);
    if x < 0.0 { upper_tail } else { 1.0 - upper_tail }
}
