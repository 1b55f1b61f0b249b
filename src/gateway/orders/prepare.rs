//! The second step: pictures decoded, scaled to what the model makes, and put into a task.

use argus_models::RgbPicture;
use argus_protocols::{
    Task, TaskKind, limits as protocol,
    task::{Control, Generation, Pads, Pictures, Start, Upscale},
};

use super::{ApiError, Draft, GenerationDraft, MaskMode, Source, What};
use crate::gateway::pictures;

/// By how much scaling to a size that the model makes may change a picture's proportions.
const DISTORTION: f64 = 0.12;

impl Draft {
    /// Decodes the pictures and makes the task; its seed is 0. Takes its time: not for an async thread.
    /// `fresh`: change pictures whose answers could otherwise come from a cache.
    pub fn prepare(self, fresh: bool) -> Result<Task, ApiError> {
        match self.what {
            What::Generation(draft) => Ok(Task::Generation(draft.prepare(self.model)?)),
            What::Upscale { image, factor, max_edge } => {
                let mut picture = pictures::decode("image", &image)?;
                let pixels = u64::from(picture.width()) * u64::from(picture.height());
                let most = protocol::ANSWER_PIXELS / u64::from(factor * factor);
                if pixels > most || picture.width().max(picture.height()) > max_edge {
                    let message = format!(
                        "image: {}×{} is too large to grow by {factor}; at most {max_edge} a side and {most} pixels: \
                         scale it down first",
                        picture.width(),
                        picture.height()
                    );
                    return Err(ApiError::field("image", "picture_too_large", message));
                }
                if fresh {
                    picture = pictures::freshen(picture, &mut rand::rng());
                }
                Ok(Task::Upscale(Upscale { model: self.model, picture: picture.encode_png(), factor }))
            }
            What::Pictures { kind, pictures } => {
                let travelling = |(index, text): (usize, &String)| {
                    let picture = pictures::decode(&format!("input[{index}]"), text)?;
                    let picture = pictures::small_enough(picture);
                    let picture = if fresh { pictures::freshen(picture, &mut rand::rng()) } else { picture };
                    Ok(picture.encode_png())
                };
                let all = pictures.iter().enumerate().map(travelling).collect::<Result<_, ApiError>>()?;
                let asked = Pictures { model: self.model, pictures: all };
                Ok(match kind {
                    TaskKind::NsfwClassification => Task::NsfwClassification(asked),
                    _ => Task::ImageEmbedding(asked),
                })
            }
        }
    }
}

impl GenerationDraft {
    fn prepare(self, model: String) -> Result<Generation, ApiError> {
        let (start, (width, height)) = self.start()?;
        let mut controls = Vec::with_capacity(self.controls.len());
        for control in &self.controls {
            let picture = pictures::decode(control.field, &control.image)?;
            controls.push(Control {
                kind: control.kind,
                picture: pictures::fitted(picture, width, height).encode_png(),
                is_prepared: control.is_prepared,
                scale: control.scale,
            });
        }
        let Self { prompt, negative_prompt, steps, guidance, .. } = self;
        Ok(Generation {
            model,
            prompt,
            negative_prompt,
            width,
            height,
            steps,
            guidance,
            seed: 0,
            start,
            controls,
        })
    }

    fn start(&self) -> Result<(Start, (u32, u32)), ApiError> {
        let usual = (self.allowed.width.default, self.allowed.height.default);
        match &self.source {
            Source::Nothing => Ok((Start::Noise, self.size.unwrap_or(usual))),
            Source::Picture { image } => self.whole(image),
            Source::PerhapsMasked { image } => match pictures::transparent("image", image)? {
                Some(_) if !self.inpaints => Err(ApiError::field(
                    "image",
                    "unsupported_value",
                    "the picture is transparent in parts, and this model cannot make parts anew; send it opaque",
                )),
                Some(mask) => self.masked(image, mask),
                None => self.whole(image),
            },
            Source::Masked { image, mask, mode } => {
                let mask = match mode {
                    MaskMode::White => pictures::decode("mask", mask)?,
                    MaskMode::Alpha => pictures::transparent("mask", mask)?.ok_or_else(|| {
                        let message = "mask: nothing in it is transparent, so nothing would be made anew; \
                                       to mark by white instead, say mask_mode white";
                        ApiError::field("mask", "invalid_value", message)
                    })?,
                };
                self.masked(image, mask)
            }
            Source::Padded { image, pads } => self.padded(image, *pads),
        }
    }

    fn whole(&self, image: &str) -> Result<(Start, (u32, u32)), ApiError> {
        let picture = pictures::decode("image", image)?;
        let (width, height) = self.size_for(picture.width(), picture.height());
        let picture = pictures::fitted(picture, width, height).encode_png();
        let strength = self.strength.unwrap_or(self.allowed.strength.default);
        Ok((Start::Picture { picture, strength }, (width, height)))
    }

    fn masked(&self, image: &str, mask: RgbPicture) -> Result<(Start, (u32, u32)), ApiError> {
        let picture = pictures::decode("image", image)?;
        if picture.size() != mask.size() {
            let message = format!(
                "mask: it is {}×{} and the picture {}×{}; give both the same size",
                mask.width(),
                mask.height(),
                picture.width(),
                picture.height()
            );
            return Err(ApiError::field("mask", "invalid_value", message));
        }
        let (width, height) = self.size_for(picture.width(), picture.height());
        let picture = pictures::fitted(picture, width, height).encode_png();
        let mask = pictures::fitted(mask, width, height).encode_png();
        // The mask says what stays, so all of the rest may go.
        let strength = self.strength.unwrap_or(self.allowed.strength.max);
        Ok((Start::Inpaint { picture, mask, strength }, (width, height)))
    }

    fn padded(&self, image: &str, pads: Pads) -> Result<(Start, (u32, u32)), ApiError> {
        let picture = pictures::decode("image", image)?;
        let (wide, high) =
            (picture.width() + pads.left + pads.right, picture.height() + pads.top + pads.bottom);
        let (width, height) = self.size_for(wide, high);
        let (across, down) = (f64::from(width) / f64::from(wide), f64::from(height) / f64::from(high));
        if (across / down).ln().abs() > DISTORTION {
            let message = format!(
                "the picture with its pads is {wide}×{high}, and the nearest that this model makes is \
                 {width}×{height}: choose pads that come to those proportions"
            );
            return Err(ApiError::field("left", "invalid_value", message));
        }
        let scaled = |pad: u32, scale: f64| (f64::from(pad) * scale).round() as u32;
        let pads = Pads {
            left: scaled(pads.left, across),
            right: scaled(pads.right, across),
            top: scaled(pads.top, down),
            bottom: scaled(pads.bottom, down),
        };
        let inner = (width.checked_sub(pads.left + pads.right), height.checked_sub(pads.top + pads.bottom));
        let (Some(inner_width @ 1..), Some(inner_height @ 1..)) = inner else {
            let message = "the pads leave nothing of the picture at the size that this model makes";
            return Err(ApiError::field("left", "invalid_value", message));
        };
        if pads == Pads::default() {
            let message = "the pads come to nothing at the size that this model makes; choose larger ones";
            return Err(ApiError::field("left", "invalid_value", message));
        }
        let picture = pictures::fitted(picture, inner_width, inner_height).encode_png();
        Ok((Start::Uncrop { picture, pads }, (width, height)))
    }

    /// The size asked for, or the nearest to this one that the model makes.
    fn size_for(&self, width: u32, height: u32) -> (u32, u32) {
        if let Some(size) = self.size {
            return size;
        }
        let (most_wide, most_high) = (self.allowed.width.max, self.allowed.height.max);
        let shrink = (f64::from(most_wide) / f64::from(width)).min(f64::from(most_high) / f64::from(height));
        let scale = shrink.min(1.0);
        let scaled = |length: u32| (f64::from(length) * scale).round() as u32;
        (self.allowed.width.nearest(scaled(width)), self.allowed.height.nearest(scaled(height)))
    }
}
