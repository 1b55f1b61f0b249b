//! From a request for pictures to the task that a miner gets, in two steps: a [`Draft`] is checked against the
//! models' cards, field by field; [`Draft::prepare`] decodes its pictures and makes the [`argus_protocols::Task`] of
//! them.
//!
//! Shared by the gateway's endpoints and the command line, so that both mean the same by the same words.

mod prepare;
pub mod requests;

use argus_protocols::{
    TaskKind, limits as protocol,
    task::{ControlKind, Pads},
};
use serde_json::Value;

use self::requests::{
    ControlRequest, Delivery, EditRequest, ImageRequest, ImageToImageRequest, InpaintRequest, UncropRequest,
    UpscaleRequest, VariationRequest, Words,
};
use super::{
    ApiError, GenerationLimits, ModelCard,
    embeddings::{EmbeddingInput, EmbeddingRequest, NsfwRequest},
    limits,
    models::choose,
    request,
};

/// A request that passed every check that needs no look at its pictures.
#[derive(Clone, Debug)]
pub struct Draft {
    pub model: String,
    pub n: u32,
    pub stream: bool,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Generation(Box<GenerationDraft>),
    Upscale {
        image: String,
        factor: u32,
        max_edge: u32,
    },
    /// Pictures to look at, for embeddings or classes.
    Pictures {
        kind: TaskKind,
        pictures: Vec<String>,
    },
}

#[derive(Clone, Debug)]
struct GenerationDraft {
    allowed: GenerationLimits,
    /// Whether the model makes parts of pictures anew.
    inpaints: bool,
    prompt: String,
    negative_prompt: String,
    /// `None`: as it fits the picture.
    size: Option<(u32, u32)>,
    steps: u32,
    guidance: f32,
    /// `None`: as is usual for what is asked.
    strength: Option<f32>,
    source: Source,
    controls: Vec<ControlDraft>,
}

/// Pictures as they came.
#[derive(Clone, Debug)]
enum Source {
    Nothing,
    Picture {
        image: String,
    },
    /// OpenAI's edit without a mask: what is transparent in the picture is made anew, else all of it.
    PerhapsMasked {
        image: String,
    },
    Masked {
        image: String,
        mask: String,
        mode: MaskMode,
    },
    Padded {
        image: String,
        pads: Pads,
    },
}

#[derive(Clone, Debug)]
struct ControlDraft {
    kind: ControlKind,
    field: &'static str,
    image: String,
    is_prepared: bool,
    scale: f32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum MaskMode {
    /// What is transparent is made anew.
    Alpha,
    /// What is white is.
    White,
}

/// Where a task is asked for.
pub fn path(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::TextToImage => "/v1/images/generations",
        TaskKind::ImageToImage => "/v1/images/image-to-image",
        TaskKind::Inpaint => "/v1/images/inpaint",
        TaskKind::Uncrop => "/v1/images/uncrop",
        TaskKind::Scribble | TaskKind::Canny | TaskKind::Depth => "/v1/images/controls",
        TaskKind::Upscale => "/v1/images/upscale",
        TaskKind::ImageEmbedding => "/v1/embeddings",
        TaskKind::NsfwClassification => "/v1/images/nsfw",
    }
}

/// Checks a request as it goes to [`path`] of its kind.
pub fn draft(kind: TaskKind, body: Value, cards: &[ModelCard]) -> Result<Draft, ApiError> {
    match kind {
        TaskKind::TextToImage => request::object::<ImageRequest>(body)?.draft(cards),
        TaskKind::ImageToImage => request::object::<ImageToImageRequest>(body)?.draft(cards),
        TaskKind::Inpaint => request::object::<InpaintRequest>(body)?.draft(cards),
        TaskKind::Uncrop => request::object::<UncropRequest>(body)?.draft(cards),
        TaskKind::Scribble | TaskKind::Canny | TaskKind::Depth => {
            request::object::<ControlRequest>(body)?.draft(cards)
        }
        TaskKind::Upscale => request::object::<UpscaleRequest>(body)?.draft(cards),
        TaskKind::ImageEmbedding => request::object::<EmbeddingRequest>(body)?.draft(cards),
        TaskKind::NsfwClassification => request::object::<NsfwRequest>(body)?.draft(cards),
    }
}

impl EmbeddingRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let card = choose(cards, self.model.as_deref(), &[TaskKind::ImageEmbedding])?;
        if let (Some(wanted), Some(length)) = (self.dimensions, card.embedding_dimensions)
            && wanted != length
        {
            let message = format!("dimensions: {wanted} is not allowed; {} has {length}", card.id);
            return Err(ApiError::field("dimensions", "invalid_value", message));
        }
        looking(card, TaskKind::ImageEmbedding, self.input)
    }
}

impl NsfwRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let card = choose(cards, self.model.as_deref(), &[TaskKind::NsfwClassification])?;
        looking(card, TaskKind::NsfwClassification, self.input)
    }
}

fn looking(card: &ModelCard, kind: TaskKind, input: EmbeddingInput) -> Result<Draft, ApiError> {
    let pictures = match input {
        EmbeddingInput::One(picture) => vec![picture],
        EmbeddingInput::Many(pictures) => pictures,
    };
    if !(1..=protocol::PICTURES).contains(&pictures.len()) {
        let message =
            format!("input: {} pictures are not allowed; 1 to {}", pictures.len(), protocol::PICTURES);
        return Err(ApiError::field("input", "invalid_value", message));
    }
    Ok(Draft { model: card.id.clone(), n: 1, stream: false, what: What::Pictures { kind, pictures } })
}

impl ImageRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let (words, delivery) = (self.words(), self.delivery());
        generation(cards, words, &delivery, None, Source::Nothing, Vec::new())
    }
}

impl EditRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let (words, delivery) = (self.words(), self.delivery());
        let mode = mask_mode(self.mask_mode.as_deref(), MaskMode::Alpha)?;
        let source = match self.mask {
            Some(mask) => Source::Masked { image: self.image, mask, mode },
            None => Source::PerhapsMasked { image: self.image },
        };
        generation(cards, words, &delivery, self.strength, source, Vec::new())
    }
}

impl VariationRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let words = Words { model: self.model, size: self.size, ..Words::default() };
        let stream = self.stream.unwrap_or(false);
        let delivery =
            Delivery { n: self.n, stream, response_format: self.response_format, ..Delivery::default() };
        let source = Source::Picture { image: self.image };
        generation(cards, words, &delivery, self.strength, source, Vec::new())
    }
}

impl ImageToImageRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let (words, delivery) = (self.words(), self.delivery());
        let source = Source::Picture { image: self.image };
        generation(cards, words, &delivery, self.strength, source, Vec::new())
    }
}

impl InpaintRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let (words, delivery) = (self.words(), self.delivery());
        let source = Source::Masked {
            image: self.image,
            mask: self.mask,
            mode: mask_mode(self.mask_mode.as_deref(), MaskMode::White)?,
        };
        generation(cards, words, &delivery, self.strength, source, Vec::new())
    }
}

impl UncropRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let (words, delivery) = (self.words(), self.delivery());
        let mut sides =
            [("left", self.left), ("right", self.right), ("top", self.top), ("bottom", self.bottom)]
                .map(|(field, pad)| (field, pad.unwrap_or(0)))
                .into_iter();
        if let Some((field, pad)) = sides.clone().find(|(_, pad)| *pad > protocol::SIDE) {
            return Err(out_of_range(field, pad, &format!("0 to {}", protocol::SIDE)));
        }
        if sides.all(|(_, pad)| pad == 0) {
            let message =
                "left, right, top and bottom are all 0; say by how many pixels the picture shall grow";
            return Err(ApiError::field("left", "invalid_value", message));
        }
        let [left, right, top, bottom] =
            [self.left, self.right, self.top, self.bottom].map(Option::unwrap_or_default);
        let source = Source::Padded { image: self.image, pads: Pads { left, right, top, bottom } };
        generation(cards, words, &delivery, None, source, Vec::new())
    }
}

impl ControlRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let (words, delivery) = (self.words(), self.delivery());
        let given = [
            (ControlKind::Scribble, "scribble", self.scribble),
            (ControlKind::Canny, "canny", self.canny),
            (ControlKind::Depth, "depth", self.depth),
        ];
        let mut controls = Vec::new();
        for (kind, field, input) in given {
            let Some(settings) = input.map(requests::ControlInput::settings) else { continue };
            let scale = settings.scale.unwrap_or(1.0);
            // A NaN is not above 0 either.
            if !(scale > 0.0 && scale <= protocol::CONTROL_SCALE) {
                let field = format!("{field}.scale");
                return Err(out_of_range(&field, scale, &format!("above 0 to {}", protocol::CONTROL_SCALE)));
            }
            controls.push(ControlDraft {
                kind,
                field,
                image: settings.image,
                is_prepared: settings.prepared,
                scale,
            });
        }
        if controls.is_empty() {
            let message = "give one or more of scribble, canny and depth: the picture that steers";
            return Err(ApiError::field("scribble", "missing_required_parameter", message));
        }
        let source = match self.image {
            Some(image) => Source::Picture { image },
            None => Source::Nothing,
        };
        generation(cards, words, &delivery, self.strength, source, controls)
    }
}

impl UpscaleRequest {
    pub fn draft(self, cards: &[ModelCard]) -> Result<Draft, ApiError> {
        let delivery = Delivery {
            stream: self.stream.unwrap_or(false),
            response_format: self.response_format,
            output_format: self.output_format,
            ..Delivery::default()
        };
        delivery.check()?;
        let wanted = self.model.as_deref();
        let has = |card: &ModelCard, factor| {
            card.upscale.as_ref().is_some_and(|limits| limits.factors.contains(&factor))
        };
        let fits = |card: &&ModelCard| self.factor.is_none_or(|factor| has(card, factor));
        // Without a model named, one that has the factor.
        let able: Vec<ModelCard> = match wanted {
            Some(_) => Vec::new(),
            None => cards.iter().filter(fits).cloned().collect(),
        };
        let card = choose(if able.is_empty() { cards } else { &able }, wanted, &[TaskKind::Upscale])?;
        let limits = card.upscale.clone().ok_or_else(ApiError::internal)?;
        let factors = &limits.factors;
        let factor = self.factor.or(factors.first().copied()).unwrap_or_default();
        if !factors.contains(&factor) {
            let all: Vec<String> = factors.iter().map(u32::to_string).collect();
            return Err(out_of_range("factor", factor, &format!("{} for {}", all.join(" or "), card.id)));
        }
        let what = What::Upscale { image: self.image, factor, max_edge: limits.max_edge };
        Ok(Draft { model: card.id.clone(), n: 1, stream: delivery.stream, what })
    }
}

/// Checks what every generation has, and puts it together.
fn generation(
    cards: &[ModelCard],
    words: Words,
    delivery: &Delivery,
    strength: Option<f32>,
    source: Source,
    controls: Vec<ControlDraft>,
) -> Result<Draft, ApiError> {
    delivery.check()?;
    let mut needed: Vec<TaskKind> = controls.iter().map(|control| control.kind.into()).collect();
    needed.extend(match source {
        Source::Nothing if controls.is_empty() => Some(TaskKind::TextToImage),
        Source::Nothing => None,
        Source::Picture { .. } | Source::PerhapsMasked { .. } => Some(TaskKind::ImageToImage),
        Source::Masked { .. } => Some(TaskKind::Inpaint),
        Source::Padded { .. } => Some(TaskKind::Uncrop),
    });
    let card = choose(cards, words.model.as_deref(), &needed)?;
    let allowed = card.generation.clone().ok_or_else(ApiError::internal)?;
    let n = delivery.n.unwrap_or(1);
    if !(1..=limits::IMAGES).contains(&n) {
        return Err(out_of_range("n", n, &format!("1 to {}", limits::IMAGES)));
    }
    let size = size(words.size.as_deref(), &allowed)?;
    let steps = words.steps.unwrap_or(allowed.steps.default);
    if !allowed.steps.permits(steps) {
        return Err(out_of_range("steps", steps, &allowed.steps.to_string()));
    }
    let guidance = words.guidance.unwrap_or(allowed.guidance.default);
    if !allowed.guidance.permits(guidance) {
        return Err(out_of_range("guidance", guidance, &allowed.guidance.to_string()));
    }
    if let Some(strength) = strength
        && !allowed.strength.permits(strength)
    {
        return Err(out_of_range("strength", strength, &allowed.strength.to_string()));
    }
    for (field, text) in [("prompt", &words.prompt), ("negative_prompt", &words.negative_prompt)] {
        let limit = (allowed.prompt_bytes as usize).min(protocol::PROMPT);
        if text.len() > limit {
            let message = format!("{field} has {} bytes, at most {limit} are allowed", text.len());
            return Err(ApiError::field(field, "string_above_max_length", message));
        }
    }
    // A picture can be made anew without words; out of nothing there is nothing without them.
    if words.prompt.trim().is_empty() && matches!(source, Source::Nothing) {
        return Err(ApiError::field("prompt", "empty_string", "prompt is empty; say what to show"));
    }
    let draft = GenerationDraft {
        inpaints: card.tasks.contains(&TaskKind::Inpaint),
        allowed,
        prompt: words.prompt,
        negative_prompt: words.negative_prompt,
        size,
        steps,
        guidance,
        strength,
        source,
        controls,
    };
    let what = What::Generation(Box::new(draft));
    Ok(Draft { model: card.id.clone(), n, stream: delivery.stream, what })
}

impl Delivery {
    /// Fields that mean something at OpenAI and have one possible value here.
    fn check(&self) -> Result<(), ApiError> {
        let fields: [(&str, &Option<String>, &[&str], &str); 5] = [
            (
                "response_format",
                &self.response_format,
                &["b64_json"],
                "pictures are not kept here, so there is no url",
            ),
            ("output_format", &self.output_format, &["png"], "pictures are PNG"),
            ("quality", &self.quality, &["auto", "standard"], "use steps"),
            ("background", &self.background, &["auto", "opaque"], "pictures have no alpha"),
            ("moderation", &self.moderation, &["auto"], "what a miner blocks is the same for everybody"),
        ];
        for (field, value, allowed, why) in fields {
            if let Some(value) = value
                && !allowed.contains(&value.as_str())
            {
                let value: String = value.chars().take(40).collect();
                let message =
                    format!("{field}: {value:?} is not offered ({why}); allowed: {}", allowed.join(", "));
                return Err(ApiError::field(field, "unsupported_value", message));
            }
        }
        match self.partial_images {
            Some(n) if n > 3 => Err(out_of_range("partial_images", n, "0 to 3")),
            _ => Ok(()),
        }
    }
}

pub(super) fn out_of_range(field: &str, value: impl std::fmt::Display, allowed: &str) -> ApiError {
    ApiError::field(field, "invalid_value", format!("{field}: {value} is not allowed; it must be {allowed}"))
}

fn mask_mode(given: Option<&str>, usual: MaskMode) -> Result<MaskMode, ApiError> {
    match given {
        None => Ok(usual),
        Some("alpha") => Ok(MaskMode::Alpha),
        Some("white") => Ok(MaskMode::White),
        Some(_) => Err(ApiError::field(
            "mask_mode",
            "unsupported_value",
            "mask_mode must be alpha (what is transparent is made anew) or white (what is white is)",
        )),
    }
}

/// `None` is `auto`.
fn size(wanted: Option<&str>, allowed: &GenerationLimits) -> Result<Option<(u32, u32)>, ApiError> {
    let text = match wanted {
        None | Some("auto") => return Ok(None),
        Some(text) => text,
    };
    let parsed = text.split_once('x').and_then(|(w, h)| {
        let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse::<u32>().ok()).flatten();
        Some((number(w)?, number(h)?))
    });
    match parsed {
        Some((w, h)) if allowed.width.permits(w) && allowed.height.permits(h) => Ok(Some((w, h))),
        _ => {
            let text: String = text.chars().take(40).collect();
            let range = format!(
                "WIDTHxHEIGHT with a width of {} and a height of {} pixels, or auto",
                allowed.width, allowed.height
            );
            Err(out_of_range("size", format!("{text:?}"), &range))
        }
    }
}

impl Draft {
    /// Whether there is anything to decode.
    pub fn has_pictures(&self) -> bool {
        match &self.what {
            What::Generation(draft) => !matches!(draft.source, Source::Nothing) || !draft.controls.is_empty(),
            What::Upscale { .. } | What::Pictures { .. } => true,
        }
    }
}
