//! What happens to a request or its picture on the way to an answer, honestly or not.

use anyhow::Context;
use argus_models::{Generate, Limits, RgbPicture, registry::Precision, resample::Filter};
use image::{
    ExtendedColorType, ImageEncoder,
    codecs::{jpeg::JpegEncoder, webp::WebPEncoder},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::painters::{Painter, Painters};
use crate::verify::reward::Drift;

/// Words that a cheat keeps of a prompt.
const FIRST_WORDS: usize = 2;

/// A picture's way to an answer: who painted it, and how it was encoded.
pub(super) struct Honest {
    pub(super) kind: &'static str,
    pub(super) painter: Painter,
    pub(super) drift: Drift,
    pub(super) encoding: Encoding,
}

/// How a picture is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Png,
    WebP,
    Jpeg(u8),
}

impl Encoding {
    /// The picture as it arrives.
    pub(super) fn pass(self, picture: &RgbPicture) -> anyhow::Result<RgbPicture> {
        let (pixels, width, height) = (picture.pixels(), picture.width(), picture.height());
        let mut file = Vec::new();
        match self {
            Self::Png => file = picture.encode_png(),
            Self::WebP => {
                WebPEncoder::new_lossless(&mut file).encode(
                    pixels,
                    width,
                    height,
                    ExtendedColorType::Rgb8,
                )?;
            }
            Self::Jpeg(quality) => {
                let encoder = JpegEncoder::new_with_quality(&mut file, quality);
                encoder.write_image(pixels, width, height, ExtendedColorType::Rgb8)?;
            }
        }
        RgbPicture::decode(&file, &Limits::default()).context("just encoded")
    }
}

/// Honest answers, to be held against that of f32.
pub(super) const HONEST: [Honest; 12] = [
    honest("f32, other threads", Painter::Threaded, Drift::F16, Encoding::Png),
    honest("f32, WebP", EXACT, Drift::F16, Encoding::WebP),
    honest("f32, JPEG 95", EXACT, Drift::Lossy, Encoding::Jpeg(95)),
    honest("f32, JPEG 97", EXACT, Drift::Lossy, Encoding::Jpeg(97)),
    honest("f32, JPEG 99", EXACT, Drift::Lossy, Encoding::Jpeg(99)),
    honest("f16", F16, Drift::F16, Encoding::Png),
    honest("f16, JPEG 95", F16, Drift::Lossy, Encoding::Jpeg(95)),
    honest("f16, JPEG 98", F16, Drift::Lossy, Encoding::Jpeg(98)),
    honest("bf16", BF16, Drift::Bf16, Encoding::Png),
    honest("bf16, WebP", BF16, Drift::Bf16, Encoding::WebP),
    honest("bf16, JPEG 95", BF16, Drift::Lossy, Encoding::Jpeg(95)),
    honest("bf16, JPEG 98", BF16, Drift::Lossy, Encoding::Jpeg(98)),
];

const EXACT: Painter = Painter::Honest(Precision::F32);
const F16: Painter = Painter::Honest(Precision::F16);
const BF16: Painter = Painter::Honest(Precision::Bf16);

const fn honest(kind: &'static str, painter: Painter, drift: Drift, encoding: Encoding) -> Honest {
    Honest { kind, painter, drift, encoding }
}

/// Answers of miners that did other work than was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cheat {
    HalfTheSteps,
    MostSteps,
    OneStepFewer,
    NoGuidance,
    LowerGuidance,
    OtherSeed,
    Int8,
    Int4,
    OtherCheckpoint,
    HalfResolution,
    NearestPrompt,
    Jpeg30,
    Flat,
    Noise,
    FirstWords,
}

impl Cheat {
    pub(super) const ALL: [Self; 15] = [
        Self::HalfTheSteps,
        Self::MostSteps,
        Self::OneStepFewer,
        Self::NoGuidance,
        Self::LowerGuidance,
        Self::OtherSeed,
        Self::Int8,
        Self::Int4,
        Self::OtherCheckpoint,
        Self::HalfResolution,
        Self::NearestPrompt,
        Self::Jpeg30,
        Self::Flat,
        Self::Noise,
        Self::FirstWords,
    ];

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::HalfTheSteps => "half the steps",
            Self::MostSteps => "three quarters of the steps",
            Self::OneStepFewer => "one step fewer",
            Self::NoGuidance => "no guidance",
            Self::LowerGuidance => "lower guidance (× 0.7)",
            Self::OtherSeed => "other seed",
            Self::Int8 => "int8 weights",
            Self::Int4 => "int4 weights",
            Self::OtherCheckpoint => "other checkpoint (2–10 % off)",
            Self::HalfResolution => "half resolution, upscaled",
            Self::NearestPrompt => "cached picture of the nearest prompt",
            Self::Jpeg30 => "JPEG 30",
            Self::Flat => "flat picture",
            Self::Noise => "noise",
            Self::FirstWords => "first words of the prompt",
        }
    }
}

/// What a cheat has to go on.
pub(super) struct Asked<'a> {
    pub(super) request: &'a Generate,
    /// Counts requests.
    pub(super) number: usize,
    /// The right answer.
    pub(super) right: &'a RgbPicture,
    /// The right answer to another request, whose prompt is the nearest.
    pub(super) nearest: Option<&'a RgbPicture>,
}

impl Cheat {
    /// `None`: it cannot be done with this model or request.
    pub(super) fn answer(self, painters: &Painters, asked: &Asked) -> anyhow::Result<Option<RgbPicture>> {
        let Asked { request, right, .. } = *asked;
        let paint = |painter, change: &dyn Fn(&mut Generate)| {
            let mut request = request.clone();
            change(&mut request);
            painters.paint(painter, &request).map(Some)
        };
        let steps = request.steps;
        match self {
            Self::HalfTheSteps => paint(EXACT, &|r| r.steps = (steps / 2).max(1)),
            Self::MostSteps => paint(EXACT, &|r| r.steps = (steps * 3 / 4).max(1)),
            Self::OneStepFewer => paint(EXACT, &|r| r.steps = (steps - 1).max(1)),
            Self::NoGuidance => paint(EXACT, &|r| r.guidance = 1.0),
            Self::LowerGuidance => paint(EXACT, &|r| r.guidance = (r.guidance * 0.7).max(1.0)),
            Self::OtherSeed => paint(EXACT, &|r| r.seed ^= 1),
            Self::Int8 => paint(Painter::Int8, &|_| ()),
            Self::Int4 => paint(Painter::Int4, &|_| ()),
            Self::OtherCheckpoint => paint(Painter::Checkpoint(asked.number), &|_| ()),
            Self::HalfResolution => {
                let Some(half) = painters.half_edge() else { return Ok(None) };
                let small = paint(EXACT, &|r| (r.width, r.height) = (half, half))?;
                Ok(small.map(|small| small.resize(right.width(), right.height(), Filter::Lanczos)))
            }
            Self::NearestPrompt => Ok(asked.nearest.cloned()),
            Self::Jpeg30 => Encoding::Jpeg(30).pass(right).map(Some),
            Self::Flat => Ok(Some(flat(right))),
            Self::Noise => Ok(Some(noise(right, request.seed))),
            Self::FirstWords => {
                let words: Vec<&str> = request.prompt.split_whitespace().collect();
                let kept = FIRST_WORDS.min(words.len() - usize::from(words.len() > 1));
                paint(EXACT, &|r| r.prompt = words[..kept].join(" "))
            }
        }
    }
}

/// The mean colour of a picture: the best that a flat one can do.
fn flat(picture: &RgbPicture) -> RgbPicture {
    let mut sums = [0u64; 3];
    for pixel in picture.pixels().chunks_exact(3) {
        sums.iter_mut().zip(pixel).for_each(|(sum, sample)| *sum += u64::from(*sample));
    }
    let pixels = picture.pixels().len() as u64 / 3;
    let mean = sums.map(|sum| (sum / pixels) as u8);
    RgbPicture::from_fn(picture.width(), picture.height(), |_, _| mean)
}

fn noise(like: &RgbPicture, seed: u64) -> RgbPicture {
    let mut rng = StdRng::seed_from_u64(seed);
    RgbPicture::from_fn(like.width(), like.height(), |_, _| rng.random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_that_lose_nothing_lose_nothing() {
        let picture = noise(&RgbPicture::from_fn(24, 17, |_, _| [0; 3]), 5);
        assert_eq!(Encoding::Png.pass(&picture).unwrap(), picture);
        assert_eq!(Encoding::WebP.pass(&picture).unwrap(), picture);
        let lossy = Encoding::Jpeg(95).pass(&picture).unwrap();
        assert_ne!(lossy, picture);
        assert!(lossy.mean_abs_difference(&picture).unwrap() < 40.0);
    }

    #[test]
    fn a_flat_picture_has_the_mean_colour() {
        let picture = RgbPicture::from_fn(4, 2, |x, _| [x as u8 * 2, 10, 200]);
        assert_eq!(flat(&picture), RgbPicture::from_fn(4, 2, |_, _| [3, 10, 200]));
    }
}
