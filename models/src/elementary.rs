//! Elementary functions that give the same bits on every platform.
//!
//! The platform's `ln`, `sin` and `cos` differ in the last place from one C
//! library to the next. What miners must agree on bit by bit (starting noise,
//! resampling coefficients, hash transforms) is computed here instead, from
//! nothing but IEEE 754 double additions, multiplications, divisions and
//! square roots in a fixed order. No operation is fused and none is reordered,
//! so any language with IEEE doubles can follow. Errors stay below 3 units in
//! the last place over the documented domains.

use std::f64::consts::{FRAC_PI_2, LN_2, PI, SQRT_2};

/// Terms of the series of artanh: 1/(2k+1) for k = 1..=11.
const ARTANH_TERMS: usize = 11;
/// The highest power in the series of the exponential function.
const EXPONENTIAL_TERMS: usize = 13;
/// ln 2 in two parts; whole multiples of the first, up to 2048, are exact.
const LN_2_PARTS: (f64, f64) = (0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10);
/// Terms after the leading one of the series of sine and cosine.
const CIRCULAR_TERMS: usize = 9;

/// Natural logarithm of a positive, normal `x`.
///
/// With x = m · 2^e, m in [√½, √2), and s = (m − 1)/(m + 1):
/// ln x = e · ln 2 + 2 s · (1 + s²/3 + s⁴/5 + … + s²²/23), the bracket by
/// Horner's rule from the highest term.
pub fn ln(x: f64) -> f64 {
    debug_assert!(x.is_normal() && x > 0.0, "ln needs a positive normal number");
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa >= SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for k in (1..=ARTANH_TERMS).rev() {
        sum = (sum + 1.0 / (2 * k + 1) as f64) * square;
    }
    exponent * LN_2 + 2.0 * s * (1.0 + sum)
}

/// e to the power of `x`, for |x| ≤ 700.
///
/// With x = k · ln 2 + r, k the nearest whole number: e^x = 2^k · (1 + r + r²/2! + … + r¹³/13!),
/// the sum by Horner's rule from the highest term.
pub fn exp(x: f64) -> f64 {
    debug_assert!(x.abs() <= 700.0, "exp needs a number whose result is normal");
    let whole = (x / LN_2 + 0.5).floor();
    let rest = (x - whole * LN_2_PARTS.0) - whole * LN_2_PARTS.1;
    let mut sum = 1.0;
    for k in (1..=EXPONENTIAL_TERMS).rev() {
        sum = 1.0 + sum * rest / k as f64;
    }
    sum * f64::from_bits(((whole as i64 + 1023) as u64) << 52)
}

/// (sin, cos) of `quarters` · π/2, for |quarters| ≤ 2^50.
///
/// The nearest whole number of quarter turns is split off exactly; the rest,
/// r in [−½, ½], goes as a = r · π/2 through the Taylor series
/// sin a = a · (1 − a²/(2·3) · (1 − a²/(4·5) · (1 − …))) and
/// cos a = 1 − a²/(1·2) · (1 − a²/(3·4) · (1 − …)), nine factors each.
pub fn sin_cos_quarters(quarters: f64) -> (f64, f64) {
    let whole = (quarters + 0.5).floor();
    let angle = (quarters - whole) * FRAC_PI_2;
    let square = angle * angle;
    let (mut sine, mut cosine) = (1.0, 1.0);
    for k in (1..=CIRCULAR_TERMS).rev() {
        let even = (2 * k) as f64;
        sine = 1.0 - square * sine / (even * (even + 1.0));
        cosine = 1.0 - square * cosine / (even * (even - 1.0));
    }
    sine *= angle;
    match (whole as i64).rem_euclid(4) {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// sin(πx) / (πx), and 1 at 0.
pub fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { sin_cos_quarters(2.0 * x).0 / (PI * x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(ours: f64, platform: f64, what: &str) {
        let tolerance = 1e-15 * platform.abs().max(1.0);
        assert!((ours - platform).abs() <= tolerance, "{what}: {ours:e} against {platform:e}");
    }

    #[test]
    fn ln_follows_the_platform() {
        for i in 1..=100_000u64 {
            let x = i as f64 / 7_919.0;
            close(ln(x), x.ln(), "ln");
        }
        for exponent in -1022..=1023 {
            let x = 2f64.powi(exponent);
            assert!((ln(x) - x.ln()).abs() <= 5e-16 * x.ln().abs());
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn exp_follows_the_platform() {
        for i in -70_000..=70_000 {
            let x = f64::from(i) / 100.03;
            assert!((exp(x) - x.exp()).abs() <= 1e-15 * x.exp(), "exp({x}): {:e}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        for i in 1..=1000 {
            close(ln(exp(f64::from(i) / 101.0)), f64::from(i) / 101.0, "ln of exp");
        }
    }

    #[test]
    fn sine_and_cosine_follow_the_platform() {
        for i in -40_000..=40_000 {
            let quarters = f64::from(i) / 4_001.0;
            let (sine, cosine) = sin_cos_quarters(quarters);
            // The platform rounds the angle first: allow for that.
            assert!((sine - (quarters * FRAC_PI_2).sin()).abs() < 4e-15);
            assert!((cosine - (quarters * FRAC_PI_2).cos()).abs() < 4e-15);
            close(sine * sine + cosine * cosine, 1.0, "unit circle");
        }
        for (whole, expected) in
            [(0.0, (0.0, 1.0)), (1.0, (1.0, 0.0)), (2.0, (0.0, -1.0)), (-1.0, (-1.0, 0.0))]
        {
            let (sine, cosine) = sin_cos_quarters(whole);
            assert_eq!((sine + 0.0, cosine + 0.0), expected);
        }
    }

    #[test]
    fn sinc_vanishes_at_whole_numbers() {
        assert_eq!(sinc(0.0), 1.0);
        for i in 1..10 {
            assert_eq!(sinc(f64::from(i)).abs(), 0.0);
        }
        assert!((sinc(0.5) - 2.0 / PI).abs() < 1e-15);
    }
}
