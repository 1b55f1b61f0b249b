//! A picture by diffusion: from words, from a picture, of a part of one, over its edges, and steered by
//! outlines, edges or depth. One body for all of them; which task it is follows from what is in it.

use std::fmt;

use bincode::{Decode, Encode};

use super::{TaskKind, picture};
use crate::{
    codec::{self, DecodeError, Decoder},
    limits,
};

/// A picture from words and what else is given. Ranges come from the model's registry entry.
#[derive(Clone, PartialEq, Encode)]
pub struct Generation {
    pub model: String,
    pub prompt: String,
    pub negative_prompt: String,
    /// Pixels of the answer.
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: f32,
    pub seed: u64,
    /// What the picture is made from.
    pub start: Start,
    /// What steers it; at most [`limits::CONTROLS`].
    pub controls: Vec<Control>,
}

/// What a picture is made from.
#[derive(Clone, PartialEq, Encode)]
pub enum Start {
    /// Noise alone.
    Noise,
    /// A picture, resized to the size asked for.
    Picture {
        picture: Vec<u8>,
        /// The share of the steps that are run, above 0 to 1: 1 leaves nothing of the picture.
        strength: f32,
    },
    /// A picture of which one part is made anew; resized to the size asked for.
    Inpaint {
        picture: Vec<u8>,
        /// As large as the picture; what is white in it is made anew.
        mask: Vec<u8>,
        /// As in [`Start::Picture`].
        strength: f32,
    },
    /// A picture that grows over its edges. The size asked for is the picture's and the pads' together.
    Uncrop { picture: Vec<u8>, pads: Pads },
}

/// How far a picture grows over each of its edges, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Pads {
    pub left: u32,
    pub right: u32,
    pub top: u32,
    pub bottom: u32,
}

/// A picture that steers another.
#[derive(Clone, PartialEq, Encode)]
pub struct Control {
    pub kind: ControlKind,
    /// Resized to the size asked for.
    pub picture: Vec<u8>,
    /// Whether `picture` is a control picture already (white lines on black, or a depth map); otherwise the
    /// miner makes one of it.
    pub is_prepared: bool,
    /// Above 0 to [`limits::CONTROL_SCALE`]; 1 is as trained.
    pub scale: f32,
}

/// What a control picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlKind {
    Scribble,
    Canny,
    Depth,
}

impl From<ControlKind> for TaskKind {
    fn from(kind: ControlKind) -> Self {
        match kind {
            ControlKind::Scribble => TaskKind::Scribble,
            ControlKind::Canny => TaskKind::Canny,
            ControlKind::Depth => TaskKind::Depth,
        }
    }
}

impl<Context> Decode<Context> for Generation {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            model: codec::model_id(from)?,
            prompt: codec::text(from, limits::PROMPT, "prompt")?,
            negative_prompt: codec::text(from, limits::PROMPT, "negative prompt")?,
            width: Decode::decode(from)?,
            height: Decode::decode(from)?,
            steps: Decode::decode(from)?,
            guidance: codec::finite(from, "guidance")?,
            seed: Decode::decode(from)?,
            start: Decode::decode(from)?,
            controls: codec::list(from, limits::CONTROLS, "controls", Decode::decode)?,
        })
    }
}

impl<Context> Decode<Context> for Start {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(match u32::decode(from)? {
            0 => Start::Noise,
            1 => Start::Picture { picture: picture(from)?, strength: codec::finite(from, "strength")? },
            2 => Start::Inpaint {
                picture: picture(from)?,
                mask: codec::bytes(from, limits::BODY, "mask")?,
                strength: codec::finite(from, "strength")?,
            },
            3 => Start::Uncrop { picture: picture(from)?, pads: Decode::decode(from)? },
            _ => return Err(codec::malformed("an unknown kind of start")),
        })
    }
}

impl<Context> Decode<Context> for Control {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: Decode::decode(from)?,
            picture: picture(from)?,
            is_prepared: Decode::decode(from)?,
            scale: codec::finite(from, "control scale")?,
        })
    }
}

impl<Context> Decode<Context> for ControlKind {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(match u32::decode(from)? {
            0 => ControlKind::Scribble,
            1 => ControlKind::Canny,
            2 => ControlKind::Depth,
            _ => return Err(codec::malformed("an unknown kind of control")),
        })
    }
}

impl Generation {
    /// The task that this is a request of: what steers the picture counts before what it is made from, and
    /// the first of several controls before the others.
    pub fn kind(&self) -> TaskKind {
        self.parts().next().unwrap_or(TaskKind::TextToImage)
    }

    /// Every task that a model has to serve for this: one for each control, and one for the start. Nothing
    /// of either is text-to-image.
    pub fn parts(&self) -> impl Iterator<Item = TaskKind> + '_ {
        let start = match (&self.start, self.controls.is_empty()) {
            (Start::Noise, true) => Some(TaskKind::TextToImage),
            (Start::Noise, false) => None,
            (Start::Picture { .. }, _) => Some(TaskKind::ImageToImage),
            (Start::Inpaint { .. }, _) => Some(TaskKind::Inpaint),
            (Start::Uncrop { .. }, _) => Some(TaskKind::Uncrop),
        };
        self.controls.iter().map(|control| control.kind.into()).chain(start)
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let sides = 1..=limits::SIDE;
        if !sides.contains(&self.width) || !sides.contains(&self.height) {
            return Err("a width or height out of bounds");
        }
        if u64::from(self.width) * u64::from(self.height) > limits::ANSWER_PIXELS {
            return Err("more pixels than an answer can have");
        }
        if !(1..=limits::STEPS).contains(&self.steps) {
            return Err("a number of steps out of bounds");
        }
        if self.guidance.is_sign_negative() || self.guidance > limits::GUIDANCE {
            return Err("a guidance scale out of bounds");
        }
        self.check_start()?;
        self.controls.iter().try_for_each(Control::check)
    }

    fn check_start(&self) -> Result<(), &'static str> {
        let strong = |strength: f32| match strength > 0.0 && strength <= 1.0 {
            true => Ok(()),
            false => Err("a strength out of bounds"),
        };
        match &self.start {
            Start::Noise => Ok(()),
            Start::Picture { picture, .. } | Start::Uncrop { picture, .. } if picture.is_empty() => {
                Err("an empty picture")
            }
            Start::Inpaint { picture, mask, .. } if picture.is_empty() || mask.is_empty() => {
                Err("an empty picture or mask")
            }
            Start::Picture { strength, .. } | Start::Inpaint { strength, .. } => strong(*strength),
            Start::Uncrop { pads, .. } => match pads.surround(self.width, self.height) {
                true => Ok(()),
                false => Err("pads that leave no picture, or no pads"),
            },
        }
    }
}

impl Pads {
    /// Whether there are pads at all, and a picture is left between them.
    fn surround(self, width: u32, height: u32) -> bool {
        let (across, down) = (self.left.saturating_add(self.right), self.top.saturating_add(self.bottom));
        self != Self::default() && across < width && down < height
    }
}

impl Control {
    fn check(&self) -> Result<(), &'static str> {
        if self.picture.is_empty() {
            return Err("an empty control picture");
        }
        match self.scale > 0.0 && self.scale <= limits::CONTROL_SCALE {
            true => Ok(()),
            false => Err("a control scale out of bounds"),
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("model", &self.model)
            .field("prompt_bytes", &self.prompt.len())
            .field("negative_prompt_bytes", &self.negative_prompt.len())
            .field("width", &self.width)
            .field("height", &self.height)
            .field("steps", &self.steps)
            .field("guidance", &self.guidance)
            .field("start", &self.start)
            .field("controls", &self.controls)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Noise => f.write_str("Noise"),
            Start::Picture { picture, strength } => {
                write!(f, "Picture({} bytes, strength {strength})", picture.len())
            }
            Start::Inpaint { picture, mask, strength } => {
                write!(f, "Inpaint({} and {} bytes, strength {strength})", picture.len(), mask.len())
            }
            Start::Uncrop { picture, pads } => write!(f, "Uncrop({} bytes, {pads:?})", picture.len()),
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("kind", &self.kind)
            .field("picture_bytes", &self.picture.len())
            .field("is_prepared", &self.is_prepared)
            .field("scale", &self.scale)
            .finish()
    }
}
