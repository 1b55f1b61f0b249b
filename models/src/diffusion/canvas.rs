//! Pictures that are made from pictures: what diffusion starts from, what of it is made anew, and
//! what is laid back over the result.
//!
//! Invariant: what is not made anew comes out as it went in, to the bit (after the resampling to the
//! size asked for). The new part fades in over the [`FADE`] pixels inside its edge.

use super::request::{Generate, Mask, Pads, Start};
use super::{GenerateError, invalid};
use crate::picture::RgbPicture;
use crate::resample::{self, Filter};

/// Pixels over which what is made anew fades in.
pub(crate) const FADE: u32 = 4;
/// The luma from which a pixel of a resampled mask is made anew.
const MASK_THRESHOLD: u8 = 128;

/// What a picture is made from, at the size asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Canvas {
    pub(crate) picture: RgbPicture,
    pub(crate) masks: Option<Masks>,
    pub(crate) strength: f32,
}

/// Which pixels are made anew.
#[derive(Clone, PartialEq)]
pub(crate) struct Masks {
    /// By diffusion, row by row.
    painted: Vec<bool>,
    /// In the result, row by row: never more than `painted`.
    anew: Vec<bool>,
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let count = |mask: &[bool]| mask.iter().filter(|anew| **anew).count();
        write!(formatter, "Masks({} painted, {} anew)", count(&self.painted), count(&self.anew))
    }
}

impl Canvas {
    /// What a request starts from; `None` where that is noise alone. `cell`: pixels along one edge of
    /// a latent pixel. The request's size must have been checked.
    pub(crate) fn of(request: &Generate, cell: u32) -> Result<Option<Self>, GenerateError> {
        request.check_start()?;
        let (width, height) = (request.width, request.height);
        match &request.start {
            Start::Noise => Ok(None),
            Start::Picture { picture, strength } => {
                let picture = resized(picture, width, height);
                Ok(Some(Self { picture, masks: None, strength: *strength }))
            }
            Start::Inpaint { picture, mask, strength } => {
                let anew = resized_mask(mask, width, height);
                if !anew.contains(&true) {
                    return Err(invalid("mask", "black everywhere", "white where the picture is made anew"));
                }
                let masks = Some(Masks { painted: anew.clone(), anew });
                Ok(Some(Self { picture: resized(picture, width, height), masks, strength: *strength }))
            }
            Start::Uncrop { picture, pads } => Ok(Some(Self::uncropped(picture, *pads, cell))),
        }
    }

    /// The picture with its edge pixels repeated over the pads. Diffusion paints whole latent pixels,
    /// so that none is half pad and half picture.
    fn uncropped(picture: &RgbPicture, pads: Pads, cell: u32) -> Self {
        let (width, height) = (picture.width(), picture.height());
        let (full_width, full_height) = (width + pads.left + pads.right, height + pads.top + pads.bottom);
        let pixels = picture.pixels();
        let canvas = RgbPicture::from_fn(full_width, full_height, |x, y| {
            let x = x.saturating_sub(pads.left).min(width - 1) as usize;
            let y = y.saturating_sub(pads.top).min(height - 1) as usize;
            let at = (y * width as usize + x) * 3;
            [pixels[at], pixels[at + 1], pixels[at + 2]]
        });
        let (columns, rows) = (pads.left..pads.left + width, pads.top..pads.top + height);
        let is_pad = |x: u32, y: u32| !columns.contains(&x) || !rows.contains(&y);
        let is_padded_cell = |x: u32, y: u32| {
            let (left, top) = (x / cell * cell, y / cell * cell);
            is_pad(left, top) || is_pad(left + cell - 1, top + cell - 1)
        };
        let masks = Masks {
            painted: Mask::from_fn(full_width, full_height, is_padded_cell).anew().to_vec(),
            anew: Mask::from_fn(full_width, full_height, is_pad).anew().to_vec(),
        };
        Self { picture: canvas, masks: Some(masks), strength: 1.0 }
    }

    /// The result: what was made where it is to be made anew, the picture elsewhere.
    pub(crate) fn finish(&self, made: RgbPicture) -> RgbPicture {
        let Some(masks) = &self.masks else { return made };
        let opacities = opacities(&masks.anew, made.width() as usize);
        let (width, height) = (made.width(), made.height());
        let mut pixels = made.into_pixels();
        for ((made, known), opacity) in
            pixels.chunks_exact_mut(3).zip(self.picture.pixels().chunks_exact(3)).zip(opacities)
        {
            for (made, known) in made.iter_mut().zip(known) {
                let sum = u32::from(*made) * opacity + u32::from(*known) * (FADE - opacity);
                *made = ((sum + FADE / 2) / FADE) as u8;
            }
        }
        RgbPicture::new(width, height, pixels).expect("as many pixels as before")
    }
}

impl Masks {
    /// 1 where a latent pixel is painted, 0 elsewhere, row by row: as diffusers, by the pixel in its
    /// top left corner.
    pub(crate) fn latent(&self, width: u32, cell: usize) -> Vec<f32> {
        let rows = self.painted.chunks_exact(width as usize).step_by(cell);
        rows.flat_map(|row| row.iter().step_by(cell)).map(|painted| f32::from(u8::from(*painted))).collect()
    }

    /// Whether each pixel is painted, row by row.
    pub(crate) fn painted(&self) -> &[bool] {
        &self.painted
    }
}

/// How much of the new shows in each pixel, 0 to [`FADE`]: by its distance to the known part along
/// rows and columns.
fn opacities(anew: &[bool], width: usize) -> Vec<u32> {
    let mut distances: Vec<u32> = anew.iter().map(|anew| if *anew { FADE } else { 0 }).collect();
    let nearer = |distances: &mut [u32], at: usize, other: usize| {
        distances[at] = distances[at].min(distances[other] + 1);
    };
    let last = distances.len();
    for at in 0..last {
        if at % width > 0 {
            nearer(&mut distances, at, at - 1);
        }
        if at >= width {
            nearer(&mut distances, at, at - width);
        }
    }
    for at in (0..last).rev() {
        if at % width + 1 < width {
            nearer(&mut distances, at, at + 1);
        }
        if at + width < last {
            nearer(&mut distances, at, at + width);
        }
    }
    distances
}

/// The picture at a size, as diffusers resamples it.
pub(crate) fn resized(picture: &RgbPicture, width: u32, height: u32) -> RgbPicture {
    if (picture.width(), picture.height()) == (width, height) {
        return picture.clone();
    }
    picture.resize(width, height, Filter::Lanczos)
}

fn resized_mask(mask: &Mask, width: u32, height: u32) -> Vec<bool> {
    let (from, to) = (resample::Size::new(mask.width(), mask.height()), resample::Size::new(width, height));
    let (Some(from), Some(to)) = (from, to) else { return Vec::new() };
    if from == to {
        return mask.anew().to_vec();
    }
    let samples: Vec<u8> = mask.anew().iter().map(|anew| if *anew { 255 } else { 0 }).collect();
    let resized = resample::resize::<1>(&samples, from, to, Filter::Lanczos);
    resized.into_iter().map(|luma| luma >= MASK_THRESHOLD).collect()
}

impl Generate {
    /// Whether what the picture is made from makes sense by itself.
    ///
    /// # Errors
    /// [`GenerateError::Invalid`] for a strength that is not above 0 and at most 1, a mask of another
    /// size than its picture, and pads that do not make the picture as large as is asked for.
    pub fn check_start(&self) -> Result<(), GenerateError> {
        match &self.start {
            Start::Noise => Ok(()),
            Start::Picture { strength, .. } => check_strength(*strength),
            Start::Inpaint { picture, mask, strength } => {
                check_strength(*strength)?;
                check_mask(mask, picture)
            }
            Start::Uncrop { picture, pads } => check_pads(self, picture, *pads),
        }
    }
}

fn check_strength(strength: f32) -> Result<(), GenerateError> {
    if strength > 0.0 && strength <= 1.0 {
        Ok(())
    } else {
        Err(invalid("strength", strength, "above 0, to 1"))
    }
}

fn check_mask(mask: &Mask, picture: &RgbPicture) -> Result<(), GenerateError> {
    if (mask.width(), mask.height()) == (picture.width(), picture.height()) {
        return Ok(());
    }
    Err(invalid(
        "mask",
        format_args!("{}×{}", mask.width(), mask.height()),
        format_args!("as large as its picture, {}×{}", picture.width(), picture.height()),
    ))
}

fn check_pads(request: &Generate, picture: &RgbPicture, pads: Pads) -> Result<(), GenerateError> {
    let Pads { left, right, top, bottom } = pads;
    if [left, right, top, bottom] == [0; 4] {
        return Err(invalid("pads", "0 on every side", "above 0 on one side at least"));
    }
    for (field, asked, edge, pads) in [
        ("width", request.width, picture.width(), [left, right]),
        ("height", request.height, picture.height(), [top, bottom]),
    ] {
        let sum = pads.iter().fold(u64::from(edge), |sum, pad| sum + u64::from(*pad));
        if u64::from(asked) != sum {
            return Err(invalid(
                field,
                asked,
                format_args!("{sum}, the picture's {edge} and the pads' {} and {}", pads[0], pads[1]),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "canvas_tests.rs"]
mod tests;
