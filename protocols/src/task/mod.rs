//! What can be asked of a miner and what it answers: the bodies of a query.
//!
//! An NSFW picture never travels: the answer has its [`Features`] alone. A decoded value keeps to every
//! limit of [`crate::limits`] and its numbers are finite; what a *model* allows is tighter and the model
//! registry's to check. Pictures are files as they came: whoever decodes them looks at their size first.
//! `Debug` shows sizes instead of prompts and pictures, which are never logged.

mod answer;
mod generation;

use std::fmt;

use bincode::{Decode, Encode};

pub use answer::{Answer, Features, ImageHashes, NsfwScores};
pub use generation::{Control, ControlKind, Generation, Pads, Start};

use crate::{
    codec::{self, CodecError, DecodeError, Decoder},
    limits,
};

/// The tasks of this version. Codes are part of the protocol and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum TaskKind {
    /// A picture from words.
    TextToImage = 1,
    /// Vectors of pictures.
    ImageEmbedding = 2,
    /// A picture from words and a picture.
    ImageToImage = 3,
    /// A part of a picture made anew.
    Inpaint = 4,
    /// A picture grown over its edges.
    Uncrop = 5,
    /// Words and a rough outline.
    Scribble = 6,
    /// Words and Canny edges.
    Canny = 7,
    /// Words and a depth map.
    Depth = 8,
    /// The same picture, larger.
    Upscale = 9,
    /// Whether pictures are safe for work.
    NsfwClassification = 10,
}

impl TaskKind {
    pub const ALL: [TaskKind; 10] = [
        TaskKind::TextToImage,
        TaskKind::ImageEmbedding,
        TaskKind::ImageToImage,
        TaskKind::Inpaint,
        TaskKind::Uncrop,
        TaskKind::Scribble,
        TaskKind::Canny,
        TaskKind::Depth,
        TaskKind::Upscale,
        TaskKind::NsfwClassification,
    ];

    pub fn code(self) -> u16 {
        self as u16
    }

    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    pub fn label(self) -> &'static str {
        match self {
            TaskKind::TextToImage => "text-to-image",
            TaskKind::ImageEmbedding => "image-embedding",
            TaskKind::ImageToImage => "image-to-image",
            TaskKind::Inpaint => "inpaint",
            TaskKind::Uncrop => "uncrop",
            TaskKind::Scribble => "scribble",
            TaskKind::Canny => "canny",
            TaskKind::Depth => "depth",
            TaskKind::Upscale => "upscale",
            TaskKind::NsfwClassification => "nsfw-classification",
        }
    }

    /// Whether its body is a [`Generation`].
    pub fn is_generation(self) -> bool {
        !matches!(self, TaskKind::ImageEmbedding | TaskKind::Upscale | TaskKind::NsfwClassification)
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Pictures (PNG, JPEG or WebP) to look at: the body of image embedding and NSFW classification.
#[derive(Clone, PartialEq, Eq, Encode)]
pub struct Pictures {
    pub model: String,
    /// At least one, none of them empty.
    pub pictures: Vec<Vec<u8>>,
}

impl<Context> Decode<Context> for Pictures {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            model: codec::model_id(from)?,
            pictures: codec::list(from, limits::PICTURES, "pictures", picture)?,
        })
    }
}

impl Pictures {
    fn check(&self) -> Result<(), &'static str> {
        match self.pictures.is_empty() || self.pictures.iter().any(Vec::is_empty) {
            true => Err("no picture, or an empty one"),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Pictures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<usize> = self.pictures.iter().map(Vec::len).collect();
        f.debug_struct("Pictures").field("model", &self.model).field("picture_bytes", &sizes).finish()
    }
}

/// The same picture with `factor` times as many pixels along each edge.
#[derive(Clone, PartialEq, Eq, Encode)]
pub struct Upscale {
    pub model: String,
    /// PNG, JPEG or WebP; not empty.
    pub picture: Vec<u8>,
    /// One of [`limits::UPSCALE_FACTORS`].
    pub factor: u32,
}

impl<Context> Decode<Context> for Upscale {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { model: codec::model_id(from)?, picture: picture(from)?, factor: Decode::decode(from)? })
    }
}

impl Upscale {
    fn check(&self) -> Result<(), &'static str> {
        if self.picture.is_empty() {
            return Err("an empty picture");
        }
        match limits::UPSCALE_FACTORS.contains(&self.factor) {
            true => Ok(()),
            false => Err("a factor that is not one of those there are"),
        }
    }
}

impl fmt::Debug for Upscale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upscale")
            .field("model", &self.model)
            .field("picture_bytes", &self.picture.len())
            .field("factor", &self.factor)
            .finish()
    }
}

/// A picture file; a body bounds all of its pictures together.
fn picture<D: Decoder>(from: &mut D) -> Result<Vec<u8>, DecodeError> {
    codec::bytes(from, limits::BODY, "picture")
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Encode)]
pub enum Task {
    Generation(Generation),
    ImageEmbedding(Pictures),
    Upscale(Upscale),
    NsfwClassification(Pictures),
}

impl<Context> Decode<Context> for Task {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(match u32::decode(from)? {
            0 => Task::Generation(Decode::decode(from)?),
            1 => Task::ImageEmbedding(Decode::decode(from)?),
            2 => Task::Upscale(Decode::decode(from)?),
            3 => Task::NsfwClassification(Decode::decode(from)?),
            _ => return Err(codec::malformed("an unknown kind of task")),
        })
    }
}

impl Task {
    pub fn kind(&self) -> TaskKind {
        match self {
            Task::Generation(task) => task.kind(),
            Task::ImageEmbedding(_) => TaskKind::ImageEmbedding,
            Task::Upscale(_) => TaskKind::Upscale,
            Task::NsfwClassification(_) => TaskKind::NsfwClassification,
        }
    }

    pub fn model(&self) -> &str {
        match self {
            Task::Generation(task) => &task.model,
            Task::ImageEmbedding(task) | Task::NsfwClassification(task) => &task.model,
            Task::Upscale(task) => &task.model,
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let task: Self = codec::decode::<Self, { limits::BODY }>(bytes)?;
        task.check()?;
        Ok(task)
    }

    /// What [`Task::from_bytes`] holds a task to besides lengths.
    pub fn check(&self) -> Result<(), CodecError> {
        let checked = match self {
            Task::Generation(task) => task.check(),
            Task::ImageEmbedding(task) | Task::NsfwClassification(task) => task.check(),
            Task::Upscale(task) => task.check(),
        };
        checked.map_err(|wrong| CodecError::Malformed(wrong.into()))
    }
}
