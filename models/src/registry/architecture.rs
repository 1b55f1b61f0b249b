//! What models are built like, and what they can be asked for.
//!
//! A new architecture is a variant here, its tasks, and its arm in `engine/models.rs`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::diffusion::ControlKind;

/// What a model is built like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// Stable Diffusion 1.x, 2.x or XL; the model's own files say which.
    StableDiffusion,
    /// Kandinsky 2.2: prior and decoder, or inpaint decoder, in one folder.
    Kandinsky,
    /// RRDBNet, SRVGGNetCompact or upconv_7; the model's own files say which.
    Upscaler,
    /// A classifier of unsafe pictures: MobileNetV2, OpenNSFW or Stable Diffusion's safety checker.
    NsfwClassifier,
    /// CLIP, text and vision.
    Clip,
}

impl Architecture {
    /// What models of this architecture can be asked for.
    pub fn tasks(self) -> &'static [ModelTask] {
        use ModelTask::{
            Canny, Depth, ImageEmbedding, ImageToImage, Inpaint, NsfwClassification, Scribble, TextToImage,
            Uncrop, Upscale,
        };
        match self {
            Self::StableDiffusion => &[TextToImage, ImageToImage, Inpaint, Uncrop, Scribble, Canny, Depth],
            Self::Kandinsky => &[TextToImage, ImageToImage, Inpaint, Uncrop],
            Self::Upscaler => &[Upscale],
            Self::NsfwClassifier => &[NsfwClassification],
            Self::Clip => &[ImageEmbedding],
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::StableDiffusion => "Stable Diffusion: pictures from words",
            Self::Kandinsky => "Kandinsky 2.2: pictures from words",
            Self::Upscaler => "Upscaling: larger pictures",
            Self::NsfwClassifier => "Classification of unsafe pictures",
            Self::Clip => "CLIP: embeddings of pictures",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::StableDiffusion => "stable-diffusion",
            Self::Kandinsky => "kandinsky",
            Self::Upscaler => "upscaler",
            Self::NsfwClassifier => "nsfw-classifier",
            Self::Clip => "clip",
        })
    }
}

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelTask {
    TextToImage,
    ImageToImage,
    Inpaint,
    Uncrop,
    /// Words and a rough outline.
    Scribble,
    /// Words and Canny edges.
    Canny,
    /// Words and a depth map.
    Depth,
    Upscale,
    ImageEmbedding,
    NsfwClassification,
}

impl ModelTask {
    pub const ALL: [Self; 10] = [
        Self::TextToImage,
        Self::ImageToImage,
        Self::Inpaint,
        Self::Uncrop,
        Self::Scribble,
        Self::Canny,
        Self::Depth,
        Self::Upscale,
        Self::ImageEmbedding,
        Self::NsfwClassification,
    ];

    /// Whether the answer is a picture made by diffusion, from words among others.
    pub fn is_generation(self) -> bool {
        !matches!(self, Self::Upscale | Self::ImageEmbedding | Self::NsfwClassification)
    }
}

impl From<ControlKind> for ModelTask {
    fn from(kind: ControlKind) -> Self {
        match kind {
            ControlKind::Scribble => Self::Scribble,
            ControlKind::Canny => Self::Canny,
            ControlKind::Depth => Self::Depth,
        }
    }
}

impl fmt::Display for ModelTask {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::TextToImage => "text-to-image",
            Self::ImageToImage => "image-to-image",
            Self::Inpaint => "inpaint",
            Self::Uncrop => "uncrop",
            Self::Scribble => "scribble",
            Self::Canny => "canny",
            Self::Depth => "depth",
            Self::Upscale => "upscale",
            Self::ImageEmbedding => "image-embedding",
            Self::NsfwClassification => "nsfw-classification",
        })
    }
}
