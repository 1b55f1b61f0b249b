//! Pictures of one channel, and OpenCV's filters on them.

use crate::picture::RgbPicture;

/// Weights of [`GreyPicture::blurred`] along one axis; they add up to 16.
const BLUR: [u32; 5] = [1, 4, 6, 4, 1];

/// An 8-bit picture of one channel.
#[derive(Clone, PartialEq, Eq)]
pub struct GreyPicture {
    width: usize,
    height: usize,
    /// Row by row.
    values: Vec<u8>,
}

impl std::fmt::Debug for GreyPicture {
    /// Only the size: pictures never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GreyPicture({}×{})", self.width, self.height)
    }
}

impl GreyPicture {
    /// The luma of ITU-R BT.601, as `cvtColor` with `COLOR_RGB2GRAY` rounds it.
    pub fn of(picture: &RgbPicture) -> Self {
        let luma = |rgb: &[u8]| {
            let [red, green, blue] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
            ((red * 9798 + green * 19235 + blue * 3735 + (1 << 14)) >> 15) as u8
        };
        Self {
            width: picture.width() as usize,
            height: picture.height() as usize,
            values: picture.pixels().chunks_exact(3).map(luma).collect(),
        }
    }

    /// `values`: one for each pixel, row by row.
    pub(super) fn new(width: usize, height: usize, values: Vec<u8>) -> Self {
        debug_assert_eq!(values.len(), width * height);
        Self { width, height, values }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn height(&self) -> usize {
        self.height
    }

    /// Row by row.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// Three equal channels.
    pub fn to_rgb(&self) -> RgbPicture {
        let pixels = self.values.iter().flat_map(|value| [*value; 3]).collect();
        RgbPicture::new(self.width as u32, self.height as u32, pixels).expect("it was made from a picture")
    }

    /// 255 less each value.
    pub fn inverted(&self) -> Self {
        Self { values: self.values.iter().map(|value| 255 - value).collect(), ..*self }
    }

    /// `GaussianBlur` with a 5×5 kernel and a sigma of 0, which OpenCV takes as 1, 4, 6, 4, 1; beyond
    /// the edge lies the mirrored picture, its outermost pixels not repeated.
    pub fn blurred(&self) -> Self {
        let mirrored = |position: i64, length: usize| {
            let period = 2 * (length as i64 - 1);
            if period == 0 {
                return 0;
            }
            let position = position.rem_euclid(period);
            position.min(period - position) as usize
        };
        let taps = |position: usize, length: usize| -> [usize; 5] {
            std::array::from_fn(|tap| mirrored(position as i64 + tap as i64 - 2, length))
        };
        let mut across = Vec::with_capacity(self.values.len());
        let columns: Vec<_> = (0..self.width).map(|x| taps(x, self.width)).collect();
        for row in self.values.chunks_exact(self.width) {
            across.extend(columns.iter().map(|taps| weighted(taps.map(|tap| u32::from(row[tap])))));
        }
        let mut values = Vec::with_capacity(self.values.len());
        for y in 0..self.height {
            let rows = taps(y, self.height).map(|tap| &across[tap * self.width..][..self.width]);
            values.extend((0..self.width).map(|x| ((weighted(rows.map(|row| row[x])) + 128) >> 8) as u8));
        }
        Self { values, ..*self }
    }

    /// The largest value of the 3×3 square around each pixel.
    pub fn dilated(&self) -> Self {
        self.of_squares(u8::max)
    }

    /// The smallest value of the 3×3 square around each pixel.
    pub fn eroded(&self) -> Self {
        self.of_squares(u8::min)
    }

    /// Combines the 3×3 square around each pixel, as much of it as is inside.
    fn of_squares(&self, combine: impl Fn(u8, u8) -> u8) -> Self {
        let along = |lines: usize, length: usize, line_stride: usize, stride: usize, values: &[u8]| {
            let mut output = values.to_vec();
            for (line, place) in (0..lines).flat_map(|line| (0..length).map(move |place| (line, place))) {
                let at = line * line_stride + place * stride;
                if place > 0 {
                    output[at] = combine(output[at], values[at - stride]);
                }
                if place + 1 < length {
                    output[at] = combine(output[at], values[at + stride]);
                }
            }
            output
        };
        let across = along(self.height, self.width, self.width, 1, &self.values);
        Self { values: along(self.width, self.height, 1, self.width, &across), ..*self }
    }
}

fn weighted(values: [u32; 5]) -> u32 {
    values.iter().zip(BLUR).map(|(value, weight)| value * weight).sum()
}
