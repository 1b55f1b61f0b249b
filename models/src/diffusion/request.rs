//! What can be asked of a model that makes pictures.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{picture::RgbPicture, registry::ModelTask};

/// The most ControlNets that steer one picture.
pub const MAX_CONTROLS: usize = 4;
/// The strongest influence of a ControlNet.
pub const MAX_CONTROL_SCALE: f32 = 2.0;

/// A request for a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Generate {
    /// What to show; at most [`crate::tokenizer::MAX_PROMPT_BYTES`] bytes.
    pub prompt: String,
    /// What not to show; used where `guidance` is above 1.
    pub negative_prompt: String,
    /// Pixels; a multiple of [`super::Pipeline::edge_multiple`].
    pub width: u32,
    /// Pixels; a multiple of [`super::Pipeline::edge_multiple`].
    pub height: u32,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; 1 and less ask the network once a step, without the negative prompt.
    pub guidance: f32,
    /// Names the noise.
    pub seed: u64,
    /// What the picture is made from.
    pub start: Start,
    /// Pictures that steer it, each through a ControlNet of its kind; at most [`MAX_CONTROLS`].
    pub controls: Vec<Control>,
}

impl Generate {
    /// The task that this is a request of. Pictures that steer it count before what it is made from, the
    /// first of them before the others.
    pub fn task(&self) -> ModelTask {
        match self.controls.first() {
            Some(control) => control.kind.into(),
            None => self.start_task(),
        }
    }

    /// The task by what the picture is made from alone.
    pub fn start_task(&self) -> ModelTask {
        match self.start {
            Start::Noise => ModelTask::TextToImage,
            Start::Picture { .. } => ModelTask::ImageToImage,
            Start::Inpaint { .. } => ModelTask::Inpaint,
            Start::Uncrop { .. } => ModelTask::Uncrop,
        }
    }

    /// All pictures of the request.
    pub fn pictures(&self) -> impl Iterator<Item = &RgbPicture> {
        let start = match &self.start {
            Start::Noise => None,
            Start::Picture { picture, .. }
            | Start::Inpaint { picture, .. }
            | Start::Uncrop { picture, .. } => Some(picture),
        };
        start.into_iter().chain(self.controls.iter().map(|control| &control.picture))
    }
}

/// What a picture is made from.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Start {
    /// Noise alone.
    #[default]
    Noise,
    /// A picture, which is resized to the size asked for.
    Picture {
        picture: RgbPicture,
        /// The share of the steps that are run, above 0 to 1: 1 leaves nothing of the picture.
        strength: f32,
    },
    /// A picture of which one part is made anew. It is resized to the size asked for.
    Inpaint {
        picture: RgbPicture,
        /// As large as the picture; what is white is made anew.
        mask: Mask,
        /// As in [`Start::Picture`].
        strength: f32,
    },
    /// A picture that grows over its edges. The request's size is the picture's and the pads' together.
    Uncrop { picture: RgbPicture, pads: Pads },
}

/// Where a picture is made anew.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    /// Row by row.
    anew: Vec<bool>,
}

impl Mask {
    /// From a picture: pixels whose luma (ITU-R BT.601, as Pillow's mode L) is 128 or more are made anew.
    pub fn of(picture: &RgbPicture) -> Self {
        let luma = |rgb: &[u8]| {
            let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
            (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
        };
        let anew = picture.pixels().chunks_exact(3).map(|rgb| luma(rgb) >= 128).collect();
        Self { width: picture.width(), height: picture.height(), anew }
    }

    /// From a rule: whether the pixel at column `x` of row `y` is made anew.
    pub fn from_fn(width: u32, height: u32, anew: impl Fn(u32, u32) -> bool) -> Self {
        let anew = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| anew(x, y));
        Self { width, height, anew: anew.collect() }
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    /// Row by row.
    pub fn anew(&self) -> &[bool] {
        &self.anew
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let anew = self.anew.iter().filter(|anew| **anew).count();
        write!(formatter, "Mask({}×{}, {anew} pixels anew)", self.width, self.height)
    }
}

/// How far a picture grows over each of its edges, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pads {
    pub left: u32,
    pub right: u32,
    pub top: u32,
    pub bottom: u32,
}

/// A picture that steers another.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    pub kind: ControlKind,
    /// Resized to the size asked for.
    pub picture: RgbPicture,
    /// Whether `picture` is a control picture already (white lines on black, or a depth map); otherwise one
    /// is made of it first.
    pub is_prepared: bool,
    /// Above 0 to [`MAX_CONTROL_SCALE`]; 1 is as trained.
    pub scale: f32,
}

/// What a ControlNet was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlKind {
    /// Rough outlines, white on black.
    Scribble,
    /// Canny edges, white on black.
    Canny,
    /// Depth maps; what is near is bright.
    Depth,
}

impl ControlKind {
    pub const ALL: [Self; 3] = [Self::Scribble, Self::Canny, Self::Depth];
}

impl fmt::Display for ControlKind {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Scribble => "scribble",
            Self::Canny => "canny",
            Self::Depth => "depth",
        })
    }
}
