//! 8-bit RGB pictures: decoding of hostile files, encoding, resizing, comparing.
//!
//! Invariant of [`RgbPicture`]: both sides are at least 1, and there are
//! exactly width · height · 3 samples, row by row, red first.
//!
//! A picture file is read in two steps. The header alone says the size, which
//! is held against [`Limits`] before anything as large as the picture is
//! allocated; then the decoder runs under an allocation limit of its own.

use std::{io::Cursor, num::NonZeroU32};

use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader,
    codecs::png::{CompressionType, FilterType, PngEncoder},
    metadata::Orientation,
};

use crate::resample::{self, Filter, Size};

const CHANNELS: usize = 3;

/// What a decoder may spend on one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub max_bytes: usize,
    /// Longest side, in pixels.
    pub max_side: u32,
    /// Width times height.
    pub max_pixels: u64,
}

impl Limits {
    /// Bytes a decoder may hold for each pixel: 16-bit RGBA in and out, a row
    /// buffer, and the planes of a progressive JPEG.
    const DECODER_BYTES_PER_PIXEL: u64 = 24;
    /// What a decoder needs however small the picture is.
    const DECODER_BYTES_FIXED: u64 = 1 << 20;

    fn decoder(&self) -> image::Limits {
        let mut limits = image::Limits::no_limits();
        limits.max_alloc = Some(
            self.max_pixels
                .saturating_mul(Self::DECODER_BYTES_PER_PIXEL)
                .saturating_add(Self::DECODER_BYTES_FIXED),
        );
        limits
    }
}

impl Default for Limits {
    /// 16 MiB files of at most 4096 a side and 4 Mi pixels.
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_side: 4096, max_pixels: 4 << 20 }
    }
}

/// Why bytes did not become a picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("the picture file has {bytes} bytes; at most {limit} are accepted: send a smaller file")]
    FileTooLarge { bytes: usize, limit: usize },
    #[error("not a PNG, JPEG or WebP file: convert the picture to one of these")]
    UnknownFormat,
    #[error(
        "the picture is {width}×{height}; at most {max_side} a side and {max_pixels} pixels are accepted: shrink it"
    )]
    TooManyPixels { width: u32, height: u32, max_side: u32, max_pixels: u64 },
    #[error("the picture is damaged or uses an unsupported feature: {0}")]
    Damaged(String),
    #[error("a {width}×{height} RGB picture cannot have {samples} samples")]
    SampleCount { width: u32, height: u32, samples: usize },
}

impl PictureError {
    /// Stable label for metrics and wire errors.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::FileTooLarge { .. } => "file_too_large",
            Self::UnknownFormat => "unknown_format",
            Self::TooManyPixels { .. } => "too_many_pixels",
            Self::Damaged(_) => "damaged_picture",
            Self::SampleCount { .. } => "sample_count",
        }
    }
}

/// An 8-bit RGB picture.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbPicture {
    size: Size,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for RgbPicture {
    /// Only the size: pictures never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbPicture({}×{})", self.width(), self.height())
    }
}

impl RgbPicture {
    /// `pixels`: width · height · 3 samples, rows from the top, red first.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, PictureError> {
        let expected = (width as usize).checked_mul(height as usize).and_then(|n| n.checked_mul(CHANNELS));
        match (NonZeroU32::new(width), NonZeroU32::new(height)) {
            (Some(width), Some(height)) if expected == Some(pixels.len()) => {
                Ok(Self { size: Size { width, height }, pixels })
            }
            _ => Err(PictureError::SampleCount { width, height, samples: pixels.len() }),
        }
    }

    /// A picture whose pixel at (column, row) is `colour(column, row)`.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn from_fn(width: u32, height: u32, mut colour: impl FnMut(u32, u32) -> [u8; 3]) -> Self {
        let pixels =
            (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| colour(x, y));
        Self::new(width, height, pixels.collect()).expect("sides are not 0")
    }

    pub fn width(&self) -> u32 {
        self.size.width.get()
    }

    pub fn height(&self) -> u32 {
        self.size.height.get()
    }

    pub fn size(&self) -> Size {
        self.size
    }

    /// Rows from the top, red first.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// Reads a PNG, JPEG or WebP file, whichever its first bytes say. The first
    /// frame of an animation is taken, transparency is laid on white, samples of
    /// 16 bits are reduced to 8, grey becomes RGB, Exif orientation is applied.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, PictureError> {
        let (decoder, orientation) = Self::open(bytes, limits)?;
        let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        decoded.apply_orientation(orientation);
        Self::new(decoded.width(), decoded.height(), opaque_rgb(decoded))
    }

    /// How opaque each pixel of a file is, row by row, read as [`Self::decode`] reads it: 255 is opaque. `None`:
    /// the file has no transparency.
    pub fn decode_alpha(bytes: &[u8], limits: &Limits) -> Result<Option<(Size, Vec<u8>)>, PictureError> {
        let size = Self::size_of(bytes, limits)?;
        let (decoder, orientation) = Self::open(bytes, limits)?;
        if !decoder.color_type().has_alpha() {
            return Ok(None);
        }
        let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        decoded.apply_orientation(orientation);
        Ok(Some((size, decoded.into_rgba8().pixels().map(|pixel| pixel.0[3]).collect())))
    }

    /// The size that [`Self::decode`] would give, by the file's header alone; the samples may be damaged.
    pub fn size_of(bytes: &[u8], limits: &Limits) -> Result<Size, PictureError> {
        let (decoder, orientation) = Self::open(bytes, limits)?;
        let (width, height) = decoder.dimensions();
        let (width, height) = match orientation {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => (height, width),
            _ => (width, height),
        };
        match (NonZeroU32::new(width), NonZeroU32::new(height)) {
            (Some(width), Some(height)) => Ok(Size { width, height }),
            _ => Err(PictureError::SampleCount { width, height, samples: 0 }),
        }
    }

    /// A decoder of a file whose header keeps to the limits.
    fn open<'a>(
        bytes: &'a [u8],
        limits: &Limits,
    ) -> Result<(impl ImageDecoder + 'a, Orientation), PictureError> {
        if bytes.len() > limits.max_bytes {
            return Err(PictureError::FileTooLarge { bytes: bytes.len(), limit: limits.max_bytes });
        }
        let format = image::guess_format(bytes).map_err(|_| PictureError::UnknownFormat)?;
        if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) {
            return Err(PictureError::UnknownFormat);
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits.decoder());
        let mut decoder = reader.into_decoder().map_err(damaged)?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        if width > limits.max_side || height > limits.max_side || pixels > limits.max_pixels {
            let Limits { max_side, max_pixels, .. } = *limits;
            return Err(PictureError::TooManyPixels { width, height, max_side, max_pixels });
        }
        // A broken Exif block is no reason to refuse a good picture.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        Ok((decoder, orientation))
    }

    /// A PNG of this picture. The same picture gives the same bytes.
    pub fn encode_png(&self) -> Vec<u8> {
        let mut png = Vec::new();
        PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive)
            .write_image(&self.pixels, self.width(), self.height(), ExtendedColorType::Rgb8)
            .expect("writing to memory does not fail");
        png
    }

    /// Resampled to exactly `width` × `height`.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn resize(&self, width: u32, height: u32, filter: Filter) -> Self {
        let side = |side| NonZeroU32::new(side).expect("a picture has no side of 0");
        let size = Size { width: side(width), height: side(height) };
        Self { size, pixels: resample::resize::<CHANNELS>(&self.pixels, self.size, size, filter) }
    }

    /// The rectangle of `width` × `height` whose top left corner is at (`left`, `top`).
    ///
    /// # Panics
    /// If it is empty or reaches beyond the picture.
    pub fn crop(&self, left: u32, top: u32, width: u32, height: u32) -> Self {
        let within = |start: u32, len: u32, side: u32| start.checked_add(len).is_some_and(|end| end <= side);
        assert!(
            within(left, width, self.width()) && within(top, height, self.height()),
            "the rectangle reaches beyond the picture"
        );
        let stride = self.width() as usize * CHANNELS;
        let columns = left as usize * CHANNELS..(left + width) as usize * CHANNELS;
        let rows = self.pixels.chunks_exact(stride).skip(top as usize).take(height as usize);
        let pixels = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
        Self::new(width, height, pixels).expect("the rectangle is not empty")
    }

    /// This picture with its longer side at most `side`, in the same proportions.
    ///
    /// # Panics
    /// If `side` is 0.
    pub fn thumbnail(&self, side: u32) -> Self {
        let longer = self.width().max(self.height());
        if longer <= side {
            return self.clone();
        }
        let scaled = |length: u32| {
            let exact = u64::from(length) * u64::from(side);
            ((exact + u64::from(longer) / 2) / u64::from(longer)).max(1) as u32
        };
        self.resize(scaled(self.width()), scaled(self.height()), Filter::Lanczos)
    }

    /// Mean of |a − b| over all samples, 0 to 255; `None` if the sizes differ.
    pub fn mean_abs_difference(&self, other: &Self) -> Option<f64> {
        let sum =
            || self.pixels.iter().zip(&other.pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        (self.size == other.size).then(|| sum() as f64 / self.pixels.len() as f64)
    }
}

fn damaged(error: image::ImageError) -> PictureError {
    PictureError::Damaged(error.to_string())
}

fn opaque_rgb(decoded: DynamicImage) -> Vec<u8> {
    if !decoded.color().has_alpha() {
        return decoded.into_rgb8().into_raw();
    }
    let rgba = decoded.into_rgba8();
    rgba.pixels()
        .flat_map(|pixel| {
            let [red, green, blue, alpha] = pixel.0;
            [red, green, blue].map(|sample| on_white(sample, alpha))
        })
        .collect()
}

/// sample · alpha + white · (1 − alpha), rounded to nearest.
fn on_white(sample: u8, alpha: u8) -> u8 {
    let (sample, alpha) = (u32::from(sample), u32::from(alpha));
    ((sample * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
