//! How two pictures' levels are spread, wherever in the picture they lie.

use rayon::prelude::*;

/// Levels of a channel.
const LEVELS: usize = 256;
const CHANNELS: usize = 3;
/// Pixels counted by one thread at a time.
const PIXELS_PER_TASK: usize = 1 << 16;

type Counts = [[u32; LEVELS]; CHANNELS];

fn counts(pixels: &[u8]) -> Counts {
    let count = |pixels: &[u8]| {
        let mut counts = [[0; LEVELS]; CHANNELS];
        for pixel in pixels.chunks_exact(CHANNELS) {
            for (counts, &sample) in counts.iter_mut().zip(pixel) {
                counts[usize::from(sample)] += 1;
            }
        }
        counts
    };
    let add = |mut sum: Counts, more: Counts| {
        for (sum, more) in sum.as_flattened_mut().iter_mut().zip(more.as_flattened()) {
            *sum += more;
        }
        sum
    };
    pixels.par_chunks(PIXELS_PER_TASK * CHANNELS).map(count).reduce(|| [[0; LEVELS]; CHANNELS], add)
}

/// The earth mover's distance between two pictures' histograms, in levels of 255: how far each sample has to be
/// moved on average so that both have as many of each level; mean of the channels. Pictures of equal size.
pub(super) fn histogram_distance(a: &[u8], b: &[u8]) -> f64 {
    let (a, b) = (counts(a), counts(b));
    let mut moved = 0u64;
    let mut pixels = 0i64;
    for (a, b) in a.iter().zip(&b) {
        let mut below = 0i64;
        for (a, b) in a.iter().zip(b) {
            below += i64::from(*a) - i64::from(*b);
            moved += below.unsigned_abs();
            pixels += i64::from(*a);
        }
    }
    moved as f64 / pixels.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_count_wherever_they_lie() {
        let a = [10, 20, 30, 40, 50, 60];
        let swapped = [40, 50, 60, 10, 20, 30];
        let brighter = [13, 20, 30, 43, 50, 60];
        assert_eq!(histogram_distance(&a, &a), 0.0);
        assert_eq!(histogram_distance(&a, &swapped), 0.0);
        // Two of six samples by 3 levels.
        assert_eq!(histogram_distance(&a, &brighter), 1.0);
        assert_eq!(histogram_distance(&[0; 3], &[255; 3]), 255.0);
    }
}
