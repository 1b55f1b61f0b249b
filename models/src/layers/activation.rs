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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_exact_to_a_few_bits() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "e^{x}");
        }
        assert!(exp(-1000.0) < 2e-38);
        assert!(exp(1000.0) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn activations_are_those_of_candle() {
        let inputs: Vec<f32> = (-3000..3000).map(|step| step as f32 / 250.0).collect();
        let host = Tensor::from_slice(&inputs, inputs.len(), &candle_core::Device::Cpu).unwrap();
        let exact = host.to_dtype(candle_core::DType::F64).unwrap();
        for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
            let found: Vec<f32> = activation.forward(&host).unwrap().to_vec1().unwrap();
            let expected: Vec<f64> = activation.forward(&exact).unwrap().to_vec1().unwrap();
            let largest = found
                .iter()
                .zip(expected)
                .map(|(a, b)| (f64::from(*a) - b).abs() / b.abs().max(1.0))
                .fold(0.0, f64::max);
            assert!(largest < 1e-6, "{activation:?}: {largest}");
        }
    }

    #[test]
    fn names_of_configs_are_known() {
        assert_eq!(Activation::from_name("quick_gelu"), Some(Activation::QuickGelu));
        assert_eq!(Activation::from_name("gelu"), Some(Activation::Gelu));
        assert_eq!(Activation::from_name("tanh"), None);
    }
}
