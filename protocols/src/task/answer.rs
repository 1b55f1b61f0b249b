//! What comes back: pictures, the features of pictures that must not travel, vectors, classes.

use std::fmt;

use bincode::{Decode, Encode};

use super::Task;
use crate::{
    codec::{self, CodecError, DecodeError, Decoder},
    limits,
};

/// The seed systems' four hashes, bit-equal to Python's imagehash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct ImageHashes {
    pub average: u64,
    pub perceptual: u64,
    pub difference: u64,
    /// 42 bits.
    pub colour: u64,
}

/// Probabilities of the five classes of an NSFW classifier; they add up to 1.
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
    /// One for each picture asked about.
    Classes(Vec<NsfwScores>),
}

impl<Context> Decode<Context> for Answer {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(match u32::decode(from)? {
            0 => Answer::Picture(codec::bytes(from, limits::BODY, "picture")?),
            1 => Answer::Nsfw(Decode::decode(from)?),
            2 => Answer::Embeddings(codec::list(from, limits::PICTURES, "embeddings", embedding)?),
            3 => Answer::Classes(codec::list(from, limits::PICTURES, "classes", Decode::decode)?),
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
            Answer::Classes(all) if all.is_empty() => Err("no classes"),
            Answer::Classes(all) => all.iter().try_for_each(NsfwScores::check),
        };
        checked.map_err(|wrong| CodecError::Malformed(wrong.into()))
    }

    /// Whether this is a kind of answer that the task can have, with as many parts as it asks for.
    pub fn answers(&self, task: &Task) -> bool {
        match (task, self) {
            (Task::Generation(_) | Task::Upscale(_), Answer::Picture(_) | Answer::Nsfw(_)) => true,
            (Task::ImageEmbedding(task), Answer::Embeddings(all)) => all.len() == task.pictures.len(),
            (Task::NsfwClassification(task), Answer::Classes(all)) => all.len() == task.pictures.len(),
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
            Answer::Classes(all) => write!(f, "Classes({})", all.len()),
        }
    }
}
