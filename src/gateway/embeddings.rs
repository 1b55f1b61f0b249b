//! `POST /v1/embeddings` for pictures: decoded here under limits, changed in three random pixels by one
//! step a channel (so that no miner can answer from a cache), and sent on as PNG.

use std::{io::Cursor, sync::Arc};

use argus_protocols::{Answer, Task, TaskKind, limits::EMBEDDING_PICTURES, task::ImageEmbedding};
use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{ImageFormat, ImageReader, RgbImage, imageops::FilterType};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::{
    ApiError, ModelCard, ServiceError, api::App, error::ErrorBody, images::unknown_model, ledger::Work,
    limits, request,
};

/// OpenAI's embedding request, with pictures where OpenAI has texts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingRequest {
    /// Pictures (PNG, JPEG or WebP) as base64 or as `data:` URLs with base64.
    pub input: EmbeddingInput,
    /// A model of `GET /v1/models`. Default: the first that embeds pictures.
    pub model: Option<String>,
    /// `float` (default), or `base64` of little-endian 32-bit floats.
    pub encoding_format: Option<String>,
    /// Accepted where it is the model's own length.
    pub dimensions: Option<u32>,
    /// Accepted and ignored; nothing is kept about who asked.
    pub user: Option<String>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or an array of strings: pictures as base64 or data: URLs")]
pub enum EmbeddingInput {
    One(String),
    Many(Vec<String>),
}

/// The answer, as OpenAI has it, and who made it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EmbeddingResponse {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<EmbeddingData>,
    pub model: String,
    pub usage: TokenUsage,
    /// Hotkey of the miner that made it.
    pub miner: Option<String>,
    pub elapsed_ms: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EmbeddingData {
    /// `embedding`.
    pub object: &'static str,
    pub index: usize,
    pub embedding: EmbeddingValues,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum EmbeddingValues {
    Floats(Vec<f32>),
    /// Little-endian 32-bit floats as base64.
    Base64(String),
}

/// Pictures have no tokens: both are 0. Clients of OpenAI expect the field.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct TokenUsage {
    pub prompt_tokens: u32,
    pub total_tokens: u32,
}

struct Order {
    model: String,
    pictures: Vec<String>,
    as_base64: bool,
}

impl EmbeddingRequest {
    fn check(self, cards: &[ModelCard]) -> Result<Order, ApiError> {
        let wanted = self.model.as_deref();
        let card = cards
            .iter()
            .filter(|card| card.tasks.contains(&TaskKind::ImageEmbedding))
            .find(|card| wanted.is_none_or(|wanted| card.id == wanted))
            .ok_or_else(|| unknown_model(cards, wanted, TaskKind::ImageEmbedding))?;
        if let (Some(wanted), Some(length)) = (self.dimensions, card.embedding_dimensions)
            && wanted != length
        {
            let message = format!("dimensions: {wanted} is not allowed; {} has {length}", card.id);
            return Err(ApiError::field("dimensions", "invalid_value", message));
        }
        let as_base64 = match self.encoding_format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                let message = "encoding_format must be float or base64";
                return Err(ApiError::field("encoding_format", "unsupported_value", message));
            }
        };
        let pictures = match self.input {
            EmbeddingInput::One(picture) => vec![picture],
            EmbeddingInput::Many(pictures) => pictures,
        };
        if !(1..=EMBEDDING_PICTURES).contains(&pictures.len()) {
            let message =
                format!("input: {} pictures are not allowed; 1 to {EMBEDDING_PICTURES}", pictures.len());
            return Err(ApiError::field("input", "invalid_value", message));
        }
        Ok(Order { model: card.id.clone(), pictures, as_base64 })
    }
}

/// Decodes one picture of a request, untrusted, and makes of it what travels: PNG, small enough, three
/// pixels changed.
fn travelling(index: usize, text: &str) -> Result<Vec<u8>, ApiError> {
    let field = format!("input[{index}]");
    let wrong = |code, message: String| ApiError::field(&field, code, format!("{field}: {message}"));
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
    let bytes = STANDARD
        .decode(base64.trim_ascii())
        .map_err(|error| wrong("invalid_base64", format!("not base64: {error}")))?;
    let mut picture = decode(&bytes).map_err(|message| wrong("invalid_image", message))?;
    let pixels = u64::from(picture.width()) * u64::from(picture.height());
    if pixels > limits::PICTURE_TRAVELS {
        let scale = (limits::PICTURE_TRAVELS as f64 / pixels as f64).sqrt();
        let side = |length: u32| ((f64::from(length) * scale) as u32).max(1);
        picture = image::imageops::resize(
            &picture,
            side(picture.width()),
            side(picture.height()),
            FilterType::CatmullRom,
        );
    }
    freshen(&mut picture, &mut rand::rng());
    let mut png = Vec::new();
    picture.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).map_err(|_| ApiError::internal())?;
    Ok(png)
}

/// Looks at the header before it lets the decoder allocate for what the header says.
fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let format = image::guess_format(bytes).map_err(|_| "not a PNG, JPEG or WebP picture".to_owned())?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) {
        return Err(format!("{format:?} is not offered; send PNG, JPEG or WebP"));
    }
    let broken = |error: image::ImageError| format!("the picture cannot be decoded: {error}");
    let (width, height) =
        ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().map_err(broken)?;
    let side = limits::PICTURE_SIDE;
    if width > side || height > side || u64::from(width) * u64::from(height) > limits::PICTURE_PIXELS {
        return Err(format!(
            "{width} x {height} pixels are too many; at most {side} a side and {} in all",
            limits::PICTURE_PIXELS
        ));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut bounds = image::Limits::default();
    bounds.max_image_width = Some(side);
    bounds.max_image_height = Some(side);
    // Eight bytes a pixel (RGBA of 16 bits), and as much again for the decoder.
    bounds.max_alloc = Some(limits::PICTURE_PIXELS * 16);
    reader.limits(bounds);
    Ok(reader.decode().map_err(broken)?.into_rgb8())
}

/// Moves every channel of three random pixels by one step.
fn freshen(picture: &mut RgbImage, random: &mut impl Rng) {
    for _ in 0..3 {
        let x = random.random_range(0..picture.width());
        let y = random.random_range(0..picture.height());
        for channel in &mut picture.get_pixel_mut(x, y).0 {
            *channel = match *channel {
                0 => 1,
                255 => 254,
                value if random.random() => value + 1,
                value => value - 1,
            };
        }
    }
}

/// Embed pictures.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "embeddings",
    request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "One embedding a picture, in the order of the input", body = EmbeddingResponse),
        (status = 400, description = "A field or a picture is wrong: `param` names it", body = ErrorBody),
        (status = 401, description = "No key, an unknown key or a revoked key", body = ErrorBody),
        (status = 402, description = "Not enough credits", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 408, description = "The body took too long", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 429, description = "Over the key's rate or concurrency; `Retry-After` says when", body = ErrorBody),
        (status = 502, description = "Every miner that was asked failed", body = ErrorBody),
        (status = 503, description = "No miner has room; `Retry-After` says when", body = ErrorBody),
        (status = 504, description = "No answer in time", body = ErrorBody),
    ),
    security(("key" = []))
)]
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let admission = app.admit(&headers)?;
    let _place = app.place()?;
    let _memory = app.embedding_place()?;
    let bytes = request::body(&headers, body, limits::EMBEDDING_BODY).await?;
    let order = request::json::<EmbeddingRequest>(&bytes)?.check(&app.service.models())?;
    drop(bytes);
    let count = order.pictures.len() as u64;
    let reservation =
        admission.reserve(Work::Embedding.price() * count).map_err(|refusal| app.refused(refusal))?;
    let cancelled = app.count_cancelled();
    let answer = tokio::time::timeout(app.timeout(), answer(&app, order)).await;
    cancelled.finished();
    let answer = answer.unwrap_or_else(|_| {
        app.metrics.fail("timed_out");
        Err(ApiError::timed_out())
    })?;
    reservation.charge(Work::Embedding, count);
    app.metrics.embeddings.inc_by(count);
    app.metrics.credits_thousandths.inc_by(Work::Embedding.price() * count);
    Ok(Json(answer).into_response())
}

async fn answer(app: &App, order: Order) -> Result<EmbeddingResponse, ApiError> {
    let Order { model, pictures: texts, as_base64 } = order;
    let turn = Arc::clone(&app.decoding).acquire_owned().await.map_err(|_| ApiError::internal())?;
    let decoded = tokio::task::spawn_blocking(move || {
        // Moved in: a client that goes away must not let another decode begin before this one ends.
        let _turn = turn;
        texts.iter().enumerate().map(|(index, text)| travelling(index, text)).collect::<Result<Vec<_>, _>>()
    });
    let pictures = decoded.await.map_err(|_| ApiError::internal())??;
    let count = pictures.len();
    let task = Task::ImageEmbedding(ImageEmbedding { model: model.clone(), pictures });
    let (progress, _kept) = mpsc::channel(1);
    let served = app.service.run(task, progress).await.map_err(|error: ServiceError| {
        app.metrics.fail(error.reason());
        ApiError::from(error)
    })?;
    let Answer::Embeddings(embeddings) = served.answer else {
        tracing::error!("an embedding task was answered with a picture");
        return Err(ApiError::internal());
    };
    if embeddings.len() != count {
        app.metrics.fail("failed");
        return Err(
            ServiceError::Failed(format!("{} embeddings for {count} pictures", embeddings.len())).into()
        );
    }
    let data = embeddings.into_iter().enumerate().map(|(index, values)| {
        let embedding = if as_base64 {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            EmbeddingValues::Base64(STANDARD.encode(bytes))
        } else {
            EmbeddingValues::Floats(values)
        };
        EmbeddingData { object: "embedding", index, embedding }
    });
    Ok(EmbeddingResponse {
        object: "list",
        data: data.collect(),
        model,
        usage: TokenUsage::default(),
        miner: served.miner.map(|miner| miner.to_string()),
        elapsed_ms: served.elapsed.as_millis() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> String {
        let picture = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 77]));
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        STANDARD.encode(bytes)
    }

    #[test]
    fn three_pixels_change_by_one_step() {
        let text = png(40, 30);
        let before = decode(&STANDARD.decode(&text).unwrap()).unwrap();
        let after = decode(&travelling(0, &text).unwrap()).unwrap();
        let changed: Vec<_> = before.pixels().zip(after.pixels()).filter(|(a, b)| a != b).collect();
        assert!((1..=3).contains(&changed.len()), "{}", changed.len());
        for (a, b) in changed {
            // A pixel that was drawn twice may have moved by two.
            assert!(a.0.iter().zip(b.0).all(|(a, b)| a.abs_diff(b) <= 3));
        }
        assert_ne!(travelling(0, &text).unwrap(), travelling(0, &text).unwrap());
    }

    #[test]
    fn channels_do_not_wrap() {
        for value in [0, 255] {
            let mut picture = RgbImage::from_pixel(1, 1, image::Rgb([value; 3]));
            freshen(&mut picture, &mut rand::rng());
            assert!(picture.get_pixel(0, 0).0.iter().all(|v| v.abs_diff(value) <= 3));
        }
    }

    #[test]
    fn large_pictures_are_scaled_down_and_keep_their_shape() {
        let picture = decode(&travelling(0, &png(2000, 1000)).unwrap()).unwrap();
        assert_eq!((picture.width(), picture.height()), (724, 362));
        let line = decode(&travelling(0, &png(8192, 1)).unwrap()).unwrap();
        assert_eq!((line.width(), line.height()), (8192, 1));
    }

    #[test]
    fn hostile_pictures_are_refused() {
        let code = |text: &str| travelling(3, text).unwrap_err().detail;
        assert_eq!(code("not base64!").code, "invalid_base64");
        assert_eq!(code("data:image/png,abc").code, "invalid_base64");
        assert_eq!(code("https://example.org/a.png").code, "unsupported_value");
        assert_eq!(code("").code, "invalid_image");
        assert_eq!(code(&STANDARD.encode("GIF89a............")).code, "invalid_image");
        assert_eq!(
            code(&STANDARD.encode(&STANDARD.decode(png(64, 64)).unwrap()[..200])).code,
            "invalid_image"
        );
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
        let refused = decode(&bomb).unwrap_err();
        assert!(refused.contains("too many"), "{refused}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1))
            })
        })
    }
}
