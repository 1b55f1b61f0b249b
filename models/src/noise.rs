//! Standard normal noise as a pure function of (seed, stream, index).
//!
//! Everybody who runs a request must start from the same noise, whatever the
//! device, the platform or the number of threads. So noise never comes from a
//! device's own generator, and never from the platform's mathematics library:
//!
//! 1. **Bits**: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
//!    as 1, 2, 3", SC 2011). Key = (seed mod 2³², seed div 2³²); counter =
//!    (block mod 2³², block div 2³², stream mod 2³², stream div 2³²). Each
//!    block gives four 32-bit words w₀…w₃.
//! 2. **Uniforms**: u(w) = (w + ½) · 2⁻³², exact in double precision, never 0
//!    nor 1.
//! 3. **Normals** (Box and Muller): r = √(−2 · ln u(w₀)),
//!    z₀ = r · cos(2π · u(w₁)), z₁ = r · sin(2π · u(w₁)), and z₂, z₃ in the same
//!    way from w₂, w₃. [`crate::elementary`] says term by term how
//!    ln, sin and cos are summed in double precision; each z is rounded once to
//!    f32. The largest magnitude is √(66 · ln 2) ≈ 6.76.
//! 4. Element i of the noise is z_(i mod 4) of block i div 4.
//!
//! Hence a shorter request is a prefix of a longer one, and any range can be
//! made by itself. `tests/fixtures/noise/reference.py` is the same in numpy,
//! bit by bit. Changing a bit here is a change of protocol.

use crate::elementary;

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Normals in a block.
const BLOCK: u64 = 4;

/// One block of Philox4x32-10.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// The first `len` standard normals of a seed's stream.
pub fn normal(seed: u64, stream: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normal(seed, stream, 0, &mut values);
    values
}

/// Elements `first..first + values.len()` of a seed's stream.
pub fn fill_normal(seed: u64, stream: u64, first: u64, values: &mut [f32]) {
    let mut index = first;
    let mut rest = values;
    while !rest.is_empty() {
        let normals = normal_block(seed, stream, index / BLOCK);
        let skip = (index % BLOCK) as usize;
        let count = rest.len().min(BLOCK as usize - skip);
        let (head, tail) = rest.split_at_mut(count);
        head.copy_from_slice(&normals[skip..skip + count]);
        rest = tail;
        index += count as u64;
    }
}

fn normal_block(seed: u64, stream: u64, block: u64) -> [f32; 4] {
    let words = philox4x32_10(
        [block as u32, (block >> 32) as u32, stream as u32, (stream >> 32) as u32],
        [seed as u32, (seed >> 32) as u32],
    );
    let (first, second) = (box_muller(words[0], words[1]), box_muller(words[2], words[3]));
    [first.0, first.1, second.0, second.1]
}

fn box_muller(radius_word: u32, angle_word: u32) -> (f32, f32) {
    let radius = (-2.0 * elementary::ln(uniform(radius_word))).sqrt();
    let (sine, cosine) = elementary::sin_cos_quarters(4.0 * uniform(angle_word));
    ((radius * cosine) as f32, (radius * sine) as f32)
}

fn uniform(word: u32) -> f64 {
    const SCALE: f64 = 1.0 / 4_294_967_296.0;
    (f64::from(word) + 0.5) * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        let ones = u32::MAX;
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    fn fnv1a(values: &[f32]) -> u64 {
        values
            .iter()
            .flat_map(|v| v.to_bits().to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    #[test]
    fn bits_are_those_of_the_numpy_reference() {
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../tests/fixtures/noise/normals.json")).unwrap();
        let number = |value: &serde_json::Value| value.as_str().unwrap().parse::<u64>().unwrap();
        for case in fixture["cases"].as_array().unwrap() {
            let expected: Vec<String> = case["bits"]
                .as_array()
                .unwrap()
                .iter()
                .map(|bits| bits.as_str().unwrap().to_owned())
                .collect();
            let mut values = vec![0.0; expected.len()];
            fill_normal(number(&case["seed"]), number(&case["stream"]), number(&case["first"]), &mut values);
            let bits: Vec<String> = values.iter().map(|v| format!("{:08x}", v.to_bits())).collect();
            assert_eq!(bits, expected, "{case}");
        }
        let long = &fixture["long"];
        let values =
            normal(number(&long["seed"]), number(&long["stream"]), long["length"].as_u64().unwrap() as usize);
        assert_eq!(format!("{:016x}", fnv1a(&values)), long["fnv1a"].as_str().unwrap());
    }

    #[test]
    fn any_range_is_the_same_as_the_whole() {
        let whole = normal(7, 0, 1_001);
        assert_eq!(normal(7, 0, 400), whole[..400]);
        for first in [0usize, 1, 2, 3, 4, 5, 997] {
            for len in [0usize, 1, 3, 4] {
                let mut part = vec![0.0; len];
                fill_normal(7, 0, first as u64, &mut part);
                assert_eq!(part, whole[first..first + len], "{first} + {len}");
            }
        }
    }

    #[test]
    fn extreme_words_stay_finite() {
        for radius in [0, 1, u32::MAX] {
            for angle in [0, 1, 1 << 30, 1 << 31, u32::MAX] {
                let (a, b) = box_muller(radius, angle);
                assert!(a.is_finite() && b.is_finite() && a.hypot(b) < 6.77);
            }
        }
    }

    #[test]
    fn moments_and_tails_are_normal() {
        let n = 1_000_000;
        let values = normal(20_260_101, 3, n);
        let moment = |k: i32| values.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / n as f64;
        // Five standard errors of each estimate.
        let root = (n as f64).sqrt();
        assert!(moment(1).abs() < 5.0 / root);
        assert!((moment(2) - 1.0).abs() < 5.0 * 2f64.sqrt() / root);
        assert!(moment(3).abs() < 5.0 * 15f64.sqrt() / root);
        assert!((moment(4) - 3.0).abs() < 5.0 * 96f64.sqrt() / root);
        for (bound, probability) in
            [(1.0, 0.317_310_5), (2.0, 0.045_500_26), (3.0, 0.002_699_796), (4.0, 6.334e-5)]
        {
            let beyond = values.iter().filter(|v| v.abs() > bound).count() as f64;
            let expected = probability * n as f64;
            assert!(
                (beyond - expected).abs() < 5.0 * expected.sqrt(),
                "beyond {bound}: {beyond} of {expected}"
            );
        }
    }

    #[test]
    fn neighbouring_seeds_streams_and_lags_are_uncorrelated() {
        let n = 200_000;
        let base = normal(1, 0, n + 1);
        let correlation = |other: &[f32]| {
            base.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / n as f64
        };
        let bound = 5.0 / (n as f64).sqrt();
        for (seed, stream) in [(0, 0), (2, 0), (1 << 32, 0), (1 << 63, 0), (1, 1), (1, 1 << 32)] {
            let other = normal(seed, stream, n);
            assert!(correlation(&other).abs() < bound, "seed {seed}, stream {stream}");
        }
        assert!(correlation(&base[1..]).abs() < bound, "lag one");
    }
}
