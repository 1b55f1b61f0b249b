//! What can be asked of a miner and what it answers: the bodies of a query.
//!
//! An NSFW picture never travels: the answer has its [`Features`] alone. A decoded value keeps to every
//! limit of [`crate::limits`] and its numbers are finite; what a *model* allows is tighter and the model
//! registry's to check. `Debug` shows sizes instead of prompts and pictures, which are never logged.

use std::fmt;

use bincode::{Decode, Encode};

use crate::{
    codec::{self, CodecError, DecodeError, Decoder},
    limits,
};

/// The tasks of this version. Codes are part of the protocol and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum TaskKind {
    TextToImage = 1,
    ImageEmbedding = 2,
}

impl TaskKind {
    pub const ALL: [TaskKind; 2] = [TaskKind::TextToImage, TaskKind::ImageEmbedding];

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
        }
    }
}

impl std::fmt::Display for TaskKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// A picture from words. Ranges come from the model's registry entry.
#[derive(Clone, PartialEq, Encode, serde::Serialize)]
pub struct TextToImage {
    pub model: String,
    pub prompt: String,
    pub negative_prompt: String,
    /// Pixels.
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: f32,
    pub seed: u64,
}

impl<Context> Decode<Context> for TextToImage {
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
        })
    }
}

impl TextToImage {
    fn check(&self) -> Result<(), &'static str> {
        let sides = 1..=limits::SIDE;
        if !sides.contains(&self.width) || !sides.contains(&self.height) {
            return Err("a width or height out of bounds");
        }
        if !(1..=limits::STEPS).contains(&self.steps) {
            return Err("a number of steps out of bounds");
        }
        if self.guidance.is_sign_negative() || self.guidance > limits::GUIDANCE {
            return Err("a guidance scale out of bounds");
        }
        Ok(())
    }
}

impl fmt::Debug for TextToImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextToImage")
            .field("model", &self.model)
            .field("prompt_bytes", &self.prompt.len())
            .field("negative_prompt_bytes", &self.negative_prompt.len())
            .field("width", &self.width)
            .field("height", &self.height)
            .field("steps", &self.steps)
            .field("guidance", &self.guidance)
            .finish_non_exhaustive()
    }
}

/// Embeddings of encoded pictures (PNG, JPEG or WebP).
#[derive(Clone, PartialEq, Eq, Encode)]
pub struct ImageEmbedding {
    pub model: String,
    /// At least one, none of them empty.
    pub pictures: Vec<Vec<u8>>,
}

impl<Context> Decode<Context> for ImageEmbedding {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            model: codec::model_id(from)?,
            pictures: codec::list(from, limits::EMBEDDING_PICTURES, "pictures", |from| {
                codec::bytes(from, limits::BODY, "picture")
            })?,
        })
    }
}

impl ImageEmbedding {
    fn check(&self) -> Result<(), &'static str> {
        match self.pictures.is_empty() || self.pictures.iter().any(Vec::is_empty) {
            true => Err("no picture, or an empty one"),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for ImageEmbedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<usize> = self.pictures.iter().map(Vec::len).collect();
        f.debug_struct("ImageEmbedding").field("model", &self.model).field("picture_bytes", &sizes).finish()
    }
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Encode)]
pub enum Task {
    TextToImage(TextToImage),
    ImageEmbedding(ImageEmbedding),
}

impl<Context> Decode<Context> for Task {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(match u32::decode(from)? {
            0 => Task::TextToImage(Decode::decode(from)?),
            1 => Task::ImageEmbedding(Decode::decode(from)?),
            _ => return Err(codec::malformed("an unknown kind of task")),
        })
    }
}

impl Task {
    pub fn kind(&self) -> TaskKind {
        match self {
            Task::TextToImage(_) => TaskKind::TextToImage,
            Task::ImageEmbedding(_) => TaskKind::ImageEmbedding,
        }
    }

    pub fn model(&self) -> &str {
        match self {
            Task::TextToImage(task) => &task.model,
            Task::ImageEmbedding(task) => &task.model,
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
            Task::TextToImage(task) => task.check(),
            Task::ImageEmbedding(task) => task.check(),
        };
        checked.map_err(|wrong| CodecError::Malformed(wrong.into()))
    }
}

/// The seed systems' four hashes, bit-equal to Python's imagehash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct ImageHashes {
    pub average: u64,
    pub perceptual: u64,
    pub difference: u64,
    /// 42 bits.
    pub colour: u64,
}

/// Probabilities of the five classes; they add up to 1.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode, serde::Serialize)]
pub struct NsfwScores {
    pub drawing: f32,
    pub hentai: f32,
    pub neutral: f32,
    pub porn: f32,
    pub sexy: f32,
}

impl NsfwScores {
    /// How far the sum may be from 1: five halves rounded to `f16` and some arithmetic.
    const TOLERANCE: f32 = 0.01;

    fn check(&self) -> Result<(), &'static str> {
        let all = [self.drawing, self.hentai, self.neutral, self.porn, self.sexy];
        let sum: f32 = all.iter().sum();
        let probable = all.iter().all(|p| (0.0..=1.0).contains(p));
        match probable && (sum - 1.0).abs() <= Self::TOLERANCE {
            true => Ok(()),
            false => Err("class scores that are not probabilities"),
        }
    }
}

/// What stands for a picture when it is compared, and travels alone when the picture is NSFW.
#[derive(Clone, Debug, PartialEq, Encode, serde::Serialize)]
pub struct Features {
    pub hashes: ImageHashes,
    /// CLIP image embedding, unit length.
    pub clip: Vec<f32>,
    pub nsfw: NsfwScores,
}

impl<Context> Decode<Context> for Features {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { hashes: Decode::decode(from)?, clip: embedding(from)?, nsfw: Decode::decode(from)? })
    }
}

impl Features {
    /// How far the squared length of the embedding may be from 1.
    const TOLERANCE: f32 = 0.01;
    const COLOUR_BITS: u32 = 42;

    /// A miner that need not send its picture could send numbers that no picture has.
    fn check(&self) -> Result<(), &'static str> {
        if self.hashes.colour >> Self::COLOUR_BITS != 0 {
            return Err("a colour hash of more than 42 bits");
        }
        let square: f32 = self.clip.iter().map(|x| x * x).sum();
        // An overflow to infinity is no unit length either.
        if (square - 1.0).abs() > Self::TOLERANCE {
            return Err("a CLIP embedding that is not of unit length");
        }
        self.nsfw.check()
    }
}

/// 1 to [`limits::EMBEDDING_DIMENSIONS`] finite numbers.
fn embedding<D: Decoder>(from: &mut D) -> Result<Vec<f32>, DecodeError> {
    let values = codec::list(from, limits::EMBEDDING_DIMENSIONS, "embedding", |from| {
        codec::finite(from, "embedding")
    })?;
    match values.is_empty() {
        true => Err(codec::malformed("embedding: no dimensions")),
        false => Ok(values),
    }
}

/// The body of an answer.
#[derive(Clone, PartialEq, Encode)]
pub enum Answer {
    /// A picture as PNG. Its features are computed by whoever compares it, never believed.
    Picture(Vec<u8>),
    /// The picture was NSFW and stays where it was made.
    Nsfw(Features),
    /// One for each picture asked about, all of the same dimensions.
    Embeddings(Vec<Vec<f32>>),
}

impl<Context> Decode<Context> for Answer {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(match u32::decode(from)? {
            0 => Answer::Picture(codec::bytes(from, limits::BODY, "picture")?),
            1 => Answer::Nsfw(Decode::decode(from)?),
            2 => Answer::Embeddings(codec::list(from, limits::EMBEDDING_PICTURES, "embeddings", embedding)?),
            _ => return Err(codec::malformed("an unknown kind of answer")),
        })
    }
}

impl Answer {
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let answer: Self = codec::decode::<Self, { limits::BODY }>(bytes)?;
        answer.check()?;
        Ok(answer)
    }

    /// What [`Answer::from_bytes`] holds an answer to besides lengths.
    pub fn check(&self) -> Result<(), CodecError> {
        let checked = match self {
            Answer::Picture(picture) if picture.is_empty() => Err("an empty picture"),
            Answer::Picture(_) => Ok(()),
            Answer::Nsfw(features) => features.check(),
            Answer::Embeddings(all) => match all.first() {
                None => Err("no embeddings"),
                Some(first) if all.iter().any(|e| e.len() != first.len()) => {
                    Err("embeddings of different dimensions")
                }
                Some(_) => Ok(()),
            },
        };
        checked.map_err(|wrong| CodecError::Malformed(wrong.into()))
    }

    /// Whether this is a kind of answer that the task can have, with as many parts as it asks for.
    pub fn answers(&self, task: &Task) -> bool {
        match (task, self) {
            (Task::TextToImage(_), Answer::Picture(_) | Answer::Nsfw(_)) => true,
            (Task::ImageEmbedding(task), Answer::Embeddings(all)) => all.len() == task.pictures.len(),
            _ => false,
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Picture(picture) => write!(f, "Picture({} bytes)", picture.len()),
            Answer::Nsfw(_) => f.write_str("Nsfw(features)"),
            Answer::Embeddings(all) => {
                write!(f, "Embeddings({} of {} dimensions)", all.len(), all.first().map_or(0, Vec::len))
            }
        }
    }
}
