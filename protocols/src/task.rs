//! What can be asked of a miner and what it answers: the bodies of a query.
//!
//! An NSFW picture never travels: the answer has its [`Features`] alone.

use bincode::{Decode, Encode};

use crate::{
    codec::{self, CodecError},
    limits,
};

/// The tasks of this version. Codes are part of the protocol and never reused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
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
#[derive(Clone, Debug, PartialEq, Encode, Decode, serde::Serialize)]
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

/// Embeddings of encoded pictures (PNG, JPEG or WebP).
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct ImageEmbedding {
    pub model: String,
    pub pictures: Vec<Vec<u8>>,
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Task {
    TextToImage(TextToImage),
    ImageEmbedding(ImageEmbedding),
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
        let within = match &task {
            Task::TextToImage(t) => {
                t.prompt.len() <= limits::PROMPT && t.negative_prompt.len() <= limits::PROMPT
            }
            Task::ImageEmbedding(t) => t.pictures.len() <= limits::EMBEDDING_PICTURES,
        };
        if !within || task.model().len() > limits::MODEL_ID {
            return Err(CodecError::Malformed(
                "a prompt, model id or number of pictures is over its limit".into(),
            ));
        }
        Ok(task)
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

/// What stands for a picture when it is compared, and travels alone when the picture is NSFW.
#[derive(Clone, Debug, PartialEq, Encode, Decode, serde::Serialize)]
pub struct Features {
    pub hashes: ImageHashes,
    /// CLIP image embedding, unit length.
    pub clip: Vec<f32>,
    pub nsfw: NsfwScores,
}

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Answer {
    /// A picture as PNG. Its features are computed by whoever compares it, never believed.
    Picture(Vec<u8>),
    /// The picture was NSFW and stays where it was made.
    Nsfw(Features),
    Embeddings(Vec<Vec<f32>>),
}

impl Answer {
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let answer: Self = codec::decode::<Self, { limits::BODY }>(bytes)?;
        let within = match &answer {
            Answer::Picture(_) => true,
            Answer::Nsfw(features) => features.clip.len() <= limits::EMBEDDING_DIMENSIONS,
            Answer::Embeddings(all) => {
                all.len() <= limits::EMBEDDING_PICTURES
                    && all.iter().all(|e| e.len() <= limits::EMBEDDING_DIMENSIONS)
            }
        };
        if !within {
            return Err(CodecError::Malformed(
                "too many embeddings or dimensions".into(),
            ));
        }
        Ok(answer)
    }
}
