//! Pictures to ask about: mixed from pictures that miners made before, so that nobody has seen them.

use std::collections::VecDeque;

use argus_models::{RgbPicture, resample::Filter};
use rand::{Rng, seq::IndexedRandom};

/// Pictures kept, each at most [`SIDE`] a side.
const KEPT: usize = 32;
/// The longer side of what is kept, and the sides of what is drawn.
const SIDE: u32 = 128;
const SHORTEST_SIDE: u32 = 48;
/// Shapes laid over a picture.
const SHAPES: std::ops::RangeInclusive<u32> = 1..=4;

/// The last pictures, newest last.
#[derive(Debug, Default)]
pub struct Gallery(VecDeque<RgbPicture>);

impl Gallery {
    pub fn add(&mut self, picture: &RgbPicture) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(picture.thumbnail(SIDE));
    }

    /// A picture that never was: two of the kept ones, or colours where there are none yet, cut, mirrored,
    /// blended, and with shapes laid over them.
    pub fn draw(&self, rng: &mut impl Rng) -> RgbPicture {
        let (width, height) =
            (rng.random_range(SHORTEST_SIDE..=SIDE), rng.random_range(SHORTEST_SIDE..=SIDE));
        self.draw_sized(width, height, rng)
    }

    /// [`Self::draw`] in a given size.
    pub fn draw_sized(&self, width: u32, height: u32, rng: &mut impl Rng) -> RgbPicture {
        let below = self.layer(width, height, rng);
        let above = self.layer(width, height, rng);
        let share: u32 = rng.random_range(64..=192);
        let shapes: Vec<Shape> =
            (0..rng.random_range(SHAPES)).map(|_| Shape::draw(width, height, rng)).collect();
        RgbPicture::from_fn(width, height, |x, y| {
            if let Some(shape) = shapes.iter().find(|shape| shape.covers(x, y)) {
                return shape.colour;
            }
            let at = (y * width + x) as usize * 3;
            std::array::from_fn(|c| {
                let (a, b) = (u32::from(below.pixels()[at + c]), u32::from(above.pixels()[at + c]));
                ((a * share + b * (256 - share)) / 256) as u8
            })
        })
    }

    fn layer(&self, width: u32, height: u32, rng: &mut impl Rng) -> RgbPicture {
        let deque: Vec<&RgbPicture> = self.0.iter().collect();
        let Some(picture) = deque.choose(rng) else {
            return gradient(width, height, rng);
        };
        let (whole_width, whole_height) = (picture.width(), picture.height());
        let cut_width = rng.random_range(whole_width.div_ceil(2)..=whole_width);
        let cut_height = rng.random_range(whole_height.div_ceil(2)..=whole_height);
        let left = rng.random_range(0..=whole_width - cut_width);
        let top = rng.random_range(0..=whole_height - cut_height);
        let scaled = picture.crop(left, top, cut_width, cut_height).resize(width, height, Filter::Lanczos);
        if rng.random() { mirrored(&scaled) } else { scaled }
    }
}

fn mirrored(picture: &RgbPicture) -> RgbPicture {
    let width = picture.width();
    RgbPicture::from_fn(width, picture.height(), |x, y| {
        let at = (y * width + width - 1 - x) as usize * 3;
        std::array::from_fn(|c| picture.pixels()[at + c])
    })
}

fn gradient(width: u32, height: u32, rng: &mut impl Rng) -> RgbPicture {
    let (from, to): ([u8; 3], [u8; 3]) = (rng.random(), rng.random());
    let across = rng.random::<bool>();
    RgbPicture::from_fn(width, height, |x, y| {
        let (at, of) = if across { (x, width) } else { (y, height) };
        std::array::from_fn(|c| ((u32::from(from[c]) * (of - at) + u32::from(to[c]) * at) / of) as u8)
    })
}

/// A filled disc or box.
struct Shape {
    colour: [u8; 3],
    x: u32,
    y: u32,
    radius: u32,
    round: bool,
}

impl Shape {
    fn draw(width: u32, height: u32, rng: &mut impl Rng) -> Self {
        Self {
            colour: rng.random(),
            x: rng.random_range(0..width),
            y: rng.random_range(0..height),
            radius: rng.random_range(2..=(width.min(height) / 3).max(2)),
            round: rng.random(),
        }
    }

    fn covers(&self, x: u32, y: u32) -> bool {
        let (dx, dy) = (x.abs_diff(self.x), y.abs_diff(self.y));
        if self.round { dx * dx + dy * dy <= self.radius * self.radius } else { dx.max(dy) <= self.radius }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn pictures_are_new_bounded_and_told_by_the_seed() {
        let mut gallery = Gallery::default();
        for round in 0..KEPT as u8 + 5 {
            let drawn = |seed| gallery.draw(&mut StdRng::seed_from_u64(seed));
            assert_eq!(drawn(1), drawn(1));
            assert_ne!(drawn(1), drawn(2));
            let sized = gallery.draw_sized(1, 200, &mut StdRng::seed_from_u64(1));
            assert_eq!((sized.width(), sized.height()), (1, 200));
            let sides = SHORTEST_SIDE..=SIDE;
            assert!(sides.contains(&drawn(1).width()) && sides.contains(&drawn(1).height()));
            gallery.add(&RgbPicture::from_fn(300, 200, |x, y| [x as u8, y as u8, round]));
        }
        assert_eq!(gallery.0.len(), KEPT);
        assert!(gallery.0.iter().all(|p| p.width() <= SIDE && p.height() <= SIDE));
    }
}
