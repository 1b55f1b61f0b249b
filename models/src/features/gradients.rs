//! Edges of two pictures, by Sobel's gradients of their grey samples, in whole numbers.

use rayon::prelude::*;

use crate::{elementary, layers::isa::for_each_isa};

/// How two pictures' edges differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Edges {
    /// Squares of the difference of the gradients over squares of the gradients: 0 where all edges agree, 1
    /// where they have nothing in common.
    pub(super) disagreement: f64,
    /// |ln| of one picture's squared gradients over the other's: how much sharper one is.
    pub(super) sharpness: f64,
}

/// Added to each mean of squares, so that grain in flat pictures is no edge.
const GRAIN: f64 = 16.0;

/// Sums over all pixels but the outermost.
#[derive(Default)]
struct Sums {
    first: u64,
    second: u64,
    difference: u64,
}

/// `a`, `b`: grey samples of pictures of one size, rows of `width`.
pub(super) fn edges(a: &[u8], b: &[u8], width: usize) -> Edges {
    let height = a.len() / width;
    let rows = (1..height.saturating_sub(1)).into_par_iter().map(|row| {
        let rows = (row - 1) * width..(row + 2) * width;
        row_sums(&a[rows.clone()], &b[rows], width)
    });
    let sums = rows.reduce(Sums::default, |one, other| Sums {
        first: one.first + other.first,
        second: one.second + other.second,
        difference: one.difference + other.difference,
    });
    let pixels = (height.saturating_sub(2) * width.saturating_sub(2)).max(1) as f64;
    let [first, second, difference] =
        [sums.first, sums.second, sums.difference].map(|sum| sum as f64 / pixels);
    Edges {
        disagreement: difference / (first + second + 2.0 * GRAIN),
        sharpness: elementary::ln((first + GRAIN) / (second + GRAIN)).abs(),
    }
}

for_each_isa! {
    /// Of the middle one of three rows.
    fn row_sums(a: &[u8], b: &[u8], width: usize) -> Sums {
        /// Pixels whose squares fit into 32 bits: a gradient is at most 4 · 255 each way, a difference twice that.
        const BLOCK: usize = 128;
        let mut sums = Sums::default();
        let inner = width.saturating_sub(2);
        for start in (0..inner).step_by(BLOCK) {
            let end = (start + BLOCK).min(inner);
            let (mut first, mut second, mut difference) = (0u32, 0u32, 0u32);
            for x in start..end {
                let [ax, ay] = gradient(a, width, x);
                let [bx, by] = gradient(b, width, x);
                first += (ax * ax + ay * ay) as u32;
                second += (bx * bx + by * by) as u32;
                difference += ((ax - bx) * (ax - bx) + (ay - by) * (ay - by)) as u32;
            }
            sums.first += u64::from(first);
            sums.second += u64::from(second);
            sums.difference += u64::from(difference);
        }
        sums
    }
}

/// To the right and down, of the pixel at column `x` + 1 of three rows.
#[inline(always)]
fn gradient(rows: &[u8], width: usize, x: usize) -> [i32; 2] {
    let at = |row: usize, column: usize| i32::from(rows[row * width + x + column]);
    let right = (at(0, 2) - at(0, 0)) + 2 * (at(1, 2) - at(1, 0)) + (at(2, 2) - at(2, 0));
    let down = (at(2, 0) - at(0, 0)) + 2 * (at(2, 1) - at(0, 1)) + (at(2, 2) - at(0, 2));
    [right, down]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A black and white edge after `place` columns, in 16 × 16 pixels.
    fn edge(place: usize) -> Vec<u8> {
        (0..256).map(|i| if i % 16 < place { 0 } else { 255 }).collect()
    }

    #[test]
    fn edges_agree_where_they_lie_alike() {
        let at = |place: usize| edges(&edge(5), &edge(place), 16).disagreement;
        assert_eq!(at(5), 0.0);
        // Sobel sees an edge in two columns, one of which is shared.
        assert!((at(6) - 0.5).abs() < 1e-3, "{}", at(6));
        assert!((at(9) - 1.0).abs() < 1e-3, "{}", at(9));
    }

    #[test]
    fn blur_and_contrast_show_as_sharpness() {
        let half: Vec<u8> = edge(5).iter().map(|sample| sample / 2).collect();
        let found = edges(&edge(5), &half, 16);
        assert!((found.sharpness - (255f64 / 127.0).ln() * 2.0).abs() < 1e-2, "{found:?}");
        let flat = edges(&[7; 256], &[9; 256], 16);
        assert_eq!(flat, Edges { disagreement: 0.0, sharpness: 0.0 });
        assert_eq!(edges(&[1, 2], &[3, 4], 1), Edges { disagreement: 0.0, sharpness: 0.0 });
    }

    #[test]
    fn the_steepest_gradients_do_not_overflow() {
        // Columns 0 0 255 255 …: every second gradient is 4 · 255, and against its negative twice that.
        let stripes: Vec<u8> = (0..512 * 4).map(|i| if i % 4 < 2 { 0 } else { 255 }).collect();
        let inverse: Vec<u8> = stripes.iter().map(|sample| 255 - sample).collect();
        let found = edges(&stripes, &inverse, 512);
        assert!((found.disagreement - 2.0).abs() < 1e-3, "{found:?}");
        assert_eq!(found.sharpness, 0.0);
    }
}
