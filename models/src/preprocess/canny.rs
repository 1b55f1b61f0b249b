//! Canny edges, bit-equal to OpenCV's `Canny(grey, low, high)` with its defaults: 3×3 Sobel, gradients
//! measured by |dx| + |dy|.

use super::GreyPicture;

/// tan 22.5° with [`SHIFT`] fractional bits.
const TANGENT: i32 = 13573;
const SHIFT: u32 = 15;

/// From which gradient a pixel may be part of an edge, and from which it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CannyThresholds {
    pub low: u16,
    pub high: u16,
}

impl CannyThresholds {
    /// What is common with ControlNets.
    pub const CONTROL: Self = Self { low: 100, high: 200 };
    /// More edges, for outlines.
    pub const OUTLINE: Self = Self { low: 50, high: 150 };
}

/// A gradient: across, down, and its size. Beyond the picture it has no size.
#[derive(Debug, Clone, Copy, Default)]
struct Gradient {
    across: i32,
    down: i32,
    size: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    None,
    /// Part of an edge if it touches one.
    Candidate,
    Edge,
}

impl GreyPicture {
    /// 255 where there is an edge, 0 elsewhere.
    pub fn canny(&self, thresholds: CannyThresholds) -> Self {
        let low = i32::from(thresholds.low.min(thresholds.high));
        let high = i32::from(thresholds.low.max(thresholds.high));
        let stride = self.width() + 2;
        let gradients = self.gradients();
        let mut marks = vec![Mark::None; stride * (self.height() + 2)];
        let mut open = Vec::new();
        for at in (1..=self.height()).flat_map(|y| (1..=self.width()).map(move |x| y * stride + x)) {
            if gradients[at].size > low && is_ridge(&gradients, at, stride) {
                marks[at] = Mark::Candidate;
                if gradients[at].size > high {
                    marks[at] = Mark::Edge;
                    open.push(at);
                }
            }
        }
        while let Some(at) = open.pop() {
            let above = at - stride;
            let below = at + stride;
            for near in [above - 1, above, above + 1, at - 1, at + 1, below - 1, below, below + 1] {
                if marks[near] == Mark::Candidate {
                    marks[near] = Mark::Edge;
                    open.push(near);
                }
            }
        }
        let rows = marks.chunks_exact(stride).skip(1).take(self.height());
        let values = rows.flat_map(|row| &row[1..=self.width()]);
        let values = values.map(|mark| if *mark == Mark::Edge { 255 } else { 0 }).collect();
        Self::new(self.width(), self.height(), values)
    }

    /// Sobel gradients with a frame of one pixel around them; beyond the edge, values repeat.
    fn gradients(&self) -> Vec<Gradient> {
        let (width, height) = (self.width(), self.height());
        let mut gradients = vec![Gradient::default(); (width + 2) * (height + 2)];
        let neighbours = |position: usize, length: usize| {
            [position.saturating_sub(1), position, (position + 1).min(length - 1)]
        };
        for y in 0..height {
            let rows = neighbours(y, height).map(|y| &self.values()[y * width..][..width]);
            for x in 0..width {
                let columns = neighbours(x, width);
                let [above, middle, below] = rows.map(|row| columns.map(|column| i32::from(row[column])));
                let across = (above[2] - above[0]) + 2 * (middle[2] - middle[0]) + (below[2] - below[0]);
                let down = (below[0] - above[0]) + 2 * (below[1] - above[1]) + (below[2] - above[2]);
                gradients[(y + 1) * (width + 2) + x + 1] =
                    Gradient { across, down, size: across.abs() + down.abs() };
            }
        }
        gradients
    }
}

/// Whether a gradient is the largest along its own direction, taken as one of four.
fn is_ridge(gradients: &[Gradient], at: usize, stride: usize) -> bool {
    let Gradient { across, down, size } = gradients[at];
    let (x, y) = (across.abs(), down.abs() << SHIFT);
    let flat = x * TANGENT;
    // tan 67.5° = 2 + tan 22.5°.
    let steep = flat + (x << (SHIFT + 1));
    if y < flat {
        size > gradients[at - 1].size && size >= gradients[at + 1].size
    } else if y > steep {
        size > gradients[at - stride].size && size >= gradients[at + stride].size
    } else {
        let (above, below) = (at - stride, at + stride);
        let (before, after) =
            if (across ^ down) < 0 { (above + 1, below - 1) } else { (above - 1, below + 1) };
        size > gradients[before].size && size > gradients[after].size
    }
}
