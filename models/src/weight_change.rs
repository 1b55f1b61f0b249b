//! Weights that are not those of the file: rounded to fewer bits, or a little beside.
//!
//! What a miner that saves memory would compute with, and what another checkpoint of an architecture looks
//! like; verification is measured against both.

use rayon::prelude::*;

use crate::noise;

/// Weights that share a scale, as in the usual formats of quantised models.
const BLOCK: usize = 32;

/// A change of every tensor but vectors (biases and normalisations), which such formats keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WeightChange {
    /// Rounded to signed whole numbers of 8 bits times a scale for each 32 weights, and back.
    Int8,
    /// The same in 4 bits.
    Int4,
    /// With noise whose deviation is this share of the tensor's own root mean square.
    Disturbed { share: f32, seed: u64 },
}

impl WeightChange {
    /// Changes a tensor, row-major. `name` tells tensors' noise apart.
    pub(crate) fn apply(self, name: &str, shape: &[usize], values: &mut [f32]) {
        if shape.len() < 2 {
            return;
        }
        match self {
            Self::Int8 => quantise(values, 127.0),
            Self::Int4 => quantise(values, 7.0),
            Self::Disturbed { share, seed } => {
                let squares: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
                let deviation = share * (squares / values.len().max(1) as f64).sqrt() as f32;
                let noise = noise::normal(seed, stream(name), values.len());
                values.iter_mut().zip(noise).for_each(|(value, noise)| *value += deviation * noise);
            }
        }
    }
}

/// Rounds to whole numbers of at most `most`, block by block.
fn quantise(values: &mut [f32], most: f32) {
    values.par_chunks_mut(BLOCK).for_each(|block| {
        let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / most;
        if scale > 0.0 {
            block.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
        }
    });
}

/// FNV-1a.
fn stream(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: WeightChange, values: &[f32]) -> Vec<f32> {
        let mut values = values.to_vec();
        change.apply("a", &[2, values.len() / 2], &mut values);
        values
    }

    #[test]
    fn rounding_keeps_the_largest_of_a_block_and_few_values() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) * 0.013).collect();
        for (change, levels) in [(WeightChange::Int8, 255), (WeightChange::Int4, 15)] {
            let rounded = changed(change, &values);
            for (before, after) in values.chunks(BLOCK).zip(rounded.chunks(BLOCK)) {
                let largest = before.iter().fold(0f32, |most, value| most.max(value.abs()));
                let step = 2.0 * largest / (levels - 1) as f32;
                let far = before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(far > 0.0 && far <= step * 0.501, "{change:?}: {far} of {step}");
            }
        }
        assert_eq!(changed(WeightChange::Int8, &[0.0; 8]), [0.0; 8]);
    }

    #[test]
    fn noise_is_in_proportion_and_named_by_the_seed() {
        let values: Vec<f32> = (0..4096).map(|i| if i % 2 == 0 { 3.0 } else { -3.0 }).collect();
        let disturbed = |seed| changed(WeightChange::Disturbed { share: 0.1, seed }, &values);
        assert_eq!(disturbed(1), disturbed(1));
        assert_ne!(disturbed(1), disturbed(2));
        let squares: f32 = disturbed(1).iter().zip(&values).map(|(a, b)| (a - b) * (a - b)).sum();
        let deviation = (squares / values.len() as f32).sqrt();
        assert!((deviation - 0.3).abs() < 0.03, "{deviation}");
    }

    #[test]
    fn vectors_stay_as_they_are() {
        let mut bias = [0.1, 0.2, 0.37];
        WeightChange::Int4.apply("bias", &[3], &mut bias);
        assert_eq!(bias, [0.1, 0.2, 0.37]);
    }
}
