//! Clients' pictures: hostile text on the way in, PNG of a bounded size on the way out.
//!
//! Reading is bounded by [`limits`] before anything is allocated for what a header says. Pictures of tasks
//! whose answer follows from the picture alone travel with three random pixels changed by one step a
//! channel ([`freshen`]), so that no miner can answer from a cache; other tasks have a seed of our own.

use argus_models::{Limits, PictureError, RgbPicture, resample::Filter};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rand::Rng;

use super::{ApiError, limits};

const READ: Limits =
    Limits { max_bytes: limits::PICTURE, max_side: limits::PICTURE_SIDE, max_pixels: limits::PICTURE_PIXELS };

/// The file that a field of a request holds: base64, or a `data:` URL of it.
pub fn file(field: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    let wrong = |code, message: String| ApiError::field(field, code, format!("{field}: {message}"));
    let base64 = match text.strip_prefix("data:") {
        Some(url) => match url.split_once(',') {
            Some((kind, data)) if kind.ends_with(";base64") => data,
            _ => {
                return Err(wrong("invalid_base64", "a data URL must be data:image/…;base64,…".into()));
            }
        },
        None if text.starts_with("http://") || text.starts_with("https://") => {
            let message = "pictures are not fetched from the web; send the picture itself as base64";
            return Err(wrong("unsupported_value", message.into()));
        }
        None => text,
    };
    if base64.len() / 4 * 3 > limits::PICTURE {
        let message = format!("the picture is over {} bytes; scale it down", limits::PICTURE);
        return Err(wrong("picture_too_large", message));
    }
    STANDARD
        .decode(base64.trim_ascii())
        .map_err(|error| wrong("invalid_base64", format!("not base64: {error}")))
}

/// The picture that a field of a request holds.
pub fn decode(field: &str, text: &str) -> Result<RgbPicture, ApiError> {
    RgbPicture::decode(&file(field, text)?, &READ).map_err(|error| unreadable(field, &error))
}

/// What of a picture is transparent, as a mask: white where it is. `None`: nothing is.
pub fn transparent(field: &str, text: &str) -> Result<Option<RgbPicture>, ApiError> {
    let alpha = RgbPicture::decode_alpha(&file(field, text)?, &READ);
    let Some((size, alpha)) = alpha.map_err(|error| unreadable(field, &error))? else { return Ok(None) };
    if alpha.iter().all(|alpha| *alpha >= 128) {
        return Ok(None);
    }
    let width = size.width.get();
    let mask = RgbPicture::from_fn(width, size.height.get(), |x, y| {
        [if alpha[(y * width + x) as usize] < 128 { 255 } else { 0 }; 3]
    });
    Ok(Some(mask))
}

fn unreadable(field: &str, error: &PictureError) -> ApiError {
    ApiError::field(field, "invalid_image", format!("{field}: {error}"))
}

/// Scaled down, in its proportions, to an area that is enough to look at it.
pub fn small_enough(picture: RgbPicture) -> RgbPicture {
    let pixels = u64::from(picture.width()) * u64::from(picture.height());
    if pixels <= limits::PICTURE_TRAVELS {
        return picture;
    }
    let scale = (limits::PICTURE_TRAVELS as f64 / pixels as f64).sqrt();
    let side = |length: u32| ((f64::from(length) * scale) as u32).max(1);
    picture.resize(side(picture.width()), side(picture.height()), Filter::Bicubic)
}

/// In exactly this size.
pub fn fitted(picture: RgbPicture, width: u32, height: u32) -> RgbPicture {
    match (picture.width(), picture.height()) == (width, height) {
        true => picture,
        false => picture.resize(width, height, Filter::Lanczos),
    }
}

/// Moves every channel of three random pixels by one step.
pub fn freshen(picture: RgbPicture, random: &mut impl Rng) -> RgbPicture {
    let (width, height) = (picture.width(), picture.height());
    let mut pixels = picture.into_pixels();
    for _ in 0..3 {
        let at = random.random_range(0..pixels.len() / 3) * 3;
        for channel in &mut pixels[at..at + 3] {
            *channel = match *channel {
                0 => 1,
                255 => 254,
                value if random.random() => value + 1,
                value => value - 1,
            };
        }
    }
    RgbPicture::new(width, height, pixels).expect("as many samples as before")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> String {
        STANDARD.encode(RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, 77]).encode_png())
    }

    #[test]
    fn three_pixels_change_by_one_step() {
        let before = decode("image", &png(40, 30)).unwrap();
        let after = freshen(before.clone(), &mut rand::rng());
        let pairs = before.pixels().chunks(3).zip(after.pixels().chunks(3));
        let changed: Vec<_> = pairs.filter(|(a, b)| a != b).collect();
        assert!((1..=3).contains(&changed.len()), "{}", changed.len());
        for (a, b) in changed {
            // A pixel that was drawn three times may have moved by three.
            assert!(a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 3));
        }
        assert_ne!(freshen(before.clone(), &mut rand::rng()), freshen(before, &mut rand::rng()));
    }

    #[test]
    fn channels_do_not_wrap() {
        for value in [0, 255] {
            let picture = freshen(RgbPicture::from_fn(1, 1, |_, _| [value; 3]), &mut rand::rng());
            assert!(picture.pixels().iter().all(|v| v.abs_diff(value) <= 3));
        }
    }

    #[test]
    fn large_pictures_are_scaled_down_and_keep_their_shape() {
        let small = |width, height| small_enough(decode("image", &png(width, height)).unwrap());
        assert_eq!((small(2000, 1000).width(), small(2000, 1000).height()), (724, 362));
        assert_eq!((small(8192, 1).width(), small(8192, 1).height()), (8192, 1));
    }

    #[test]
    fn hostile_pictures_are_refused() {
        let code = |text: &str| decode("input[3]", text).unwrap_err().detail;
        assert_eq!(code("not base64!").code, "invalid_base64");
        assert_eq!(code("data:image/png,abc").code, "invalid_base64");
        assert_eq!(code("https://example.org/a.png").code, "unsupported_value");
        assert_eq!(code("").code, "invalid_image");
        assert_eq!(code(&STANDARD.encode("GIF89a............")).code, "invalid_image");
        let cut = STANDARD.encode(&STANDARD.decode(png(64, 64)).unwrap()[..100]);
        assert_eq!(code(&cut).code, "invalid_image");
        assert_eq!(code(&"A".repeat(limits::PICTURE * 4 / 3 + 8)).code, "picture_too_large");
        assert_eq!(code("").param.as_deref(), Some("input[3]"));
    }

    #[test]
    fn a_decompression_bomb_is_refused_by_its_header() {
        // 30,000 x 30,000 grey pixels announced in a few bytes.
        let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        bomb.extend_from_slice(&30_000_u32.to_be_bytes());
        bomb.extend_from_slice(&30_000_u32.to_be_bytes());
        bomb.extend_from_slice(&[8, 0, 0, 0, 0]);
        let crc = crc32(&bomb[12..]);
        bomb.extend_from_slice(&crc.to_be_bytes());
        bomb.extend_from_slice(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        let refused = decode("image", &STANDARD.encode(&bomb)).unwrap_err();
        assert!(refused.detail.message.contains("30000×30000"), "{}", refused.detail.message);
        assert!(transparent("image", &STANDARD.encode(&bomb)).is_err());
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1))
            })
        })
    }

    #[test]
    fn transparency_is_a_mask() {
        let clear =
            image::RgbaImage::from_fn(4, 2, |x, _| image::Rgba([9, 9, 9, if x < 2 { 0 } else { 255 }]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        clear.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let mask = transparent("mask", &STANDARD.encode(bytes.into_inner())).unwrap().unwrap();
        assert_eq!(mask.pixels()[..12], [255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0]);
        assert_eq!(transparent("mask", &png(4, 2)).unwrap(), None);
    }
}
