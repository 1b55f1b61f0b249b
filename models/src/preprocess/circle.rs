//! Circles to paint anew, as the network's own inpainting tasks are made of.

use std::ops::RangeInclusive;

use crate::diffusion::Mask;
use crate::noise::philox4x32_10;

/// Radii that a circle is drawn with, in pixels.
pub const RADII: RangeInclusive<u32> = 20..=100;
/// Keeps these draws apart from the noise streams of the same seed.
const STREAM: u32 = 0x0c19_c1e5;

/// A filled circle in a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circle {
    /// Column and row of the centre.
    pub centre: [u32; 2],
    /// Pixels up to this far from the centre belong to it.
    pub radius: u32,
}

impl Circle {
    /// The circle that a seed names in a picture of this size: any radius of [`RADII`], but at most
    /// half of the shorter side, around any pixel.
    pub fn draw(width: u32, height: u32, seed: u64) -> Self {
        let words = philox4x32_10([0, 0, STREAM, 0], [seed as u32, (seed >> 32) as u32]);
        let below = |word: u32, bound: u32| ((u64::from(word) * u64::from(bound)) >> 32) as u32;
        let largest = (width.min(height) / 2).clamp(1, *RADII.end());
        let smallest = (*RADII.start()).min(largest);
        Self {
            centre: [below(words[0], width), below(words[1], height)],
            radius: smallest + below(words[2], largest - smallest + 1),
        }
    }

    /// The mask that makes the circle anew.
    pub fn mask(&self, width: u32, height: u32) -> Mask {
        let squared = |a: u32, b: u32| u64::from(a.abs_diff(b)).pow(2);
        let [column, row] = self.centre;
        Mask::from_fn(width, height, |x, y| {
            squared(x, column) + squared(y, row) <= u64::from(self.radius).pow(2)
        })
    }
}
