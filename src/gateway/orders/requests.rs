//! What the endpoints that make pictures take: OpenAI's fields where OpenAI has them, and Argus's own.
//! Anything else is an error.
//!
//! A picture in a request is base64, a `data:` URL, or a file of a form.

use serde::Deserialize;
use utoipa::ToSchema;

/// Defines requests that share the fields of every picture made from words, so that each is one flat object
/// whose unknown fields are refused.
macro_rules! requests {
    ($($(#[$about:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$attribute])* pub $field: $kind,)*
            /// What the picture shows.
            #[schema(example = "a red apple")]
            pub prompt: String,
            /// A model of `GET /v1/models`. Default: the first that does this.
            pub model: Option<String>,
            /// Pictures to make.
            #[schema(minimum = 1, maximum = 10, default = 1)]
            pub n: Option<u32>,
            /// `WIDTHxHEIGHT` in pixels within the model's range, or `auto`: of a picture's own size or the nearest
            /// that the model makes, else the model's default.
            #[schema(example = "auto")]
            pub size: Option<String>,
            /// What the picture must not show.
            pub negative_prompt: Option<String>,
            /// Denoising steps, within the model's range.
            pub steps: Option<u32>,
            /// Classifier-free guidance scale, within the model's range.
            pub guidance: Option<f32>,
            /// Accepted and replaced by a random one, so that no miner can answer from a cache. The answer has the
            /// seed that was used.
            pub seed: Option<i64>,
            /// `b64_json`; there are no URLs, because pictures are not kept here.
            pub response_format: Option<String>,
            /// Server-sent events with progress instead of one answer at the end.
            pub stream: Option<bool>,
            /// Accepted; there are no partial pictures.
            #[schema(minimum = 0, maximum = 3)]
            pub partial_images: Option<u32>,
            /// `png`.
            pub output_format: Option<String>,
            /// `auto` or `standard`; use `steps`.
            pub quality: Option<String>,
            /// `auto` or `opaque`.
            pub background: Option<String>,
            /// `auto`.
            pub moderation: Option<String>,
            /// Accepted and ignored; nothing is kept about who asked.
            pub user: Option<String>,
        }

        impl $name {
            /// What all of these requests share.
            pub(super) fn words(&self) -> Words {
                Words {
                    prompt: self.prompt.clone(),
                    model: self.model.clone(),
                    size: self.size.clone(),
                    negative_prompt: self.negative_prompt.clone().unwrap_or_default(),
                    steps: self.steps,
                    guidance: self.guidance,
                }
            }

            pub(super) fn delivery(&self) -> Delivery {
                Delivery {
                    n: self.n,
                    stream: self.stream.unwrap_or(false),
                    partial_images: self.partial_images,
                    response_format: self.response_format.clone(),
                    output_format: self.output_format.clone(),
                    quality: self.quality.clone(),
                    background: self.background.clone(),
                    moderation: self.moderation.clone(),
                }
            }
        }
    )*};
}

/// What a picture is made of besides pictures.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    pub prompt: String,
    pub model: Option<String>,
    pub size: Option<String>,
    pub negative_prompt: String,
    pub steps: Option<u32>,
    pub guidance: Option<f32>,
}

/// How the answer is wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivery {
    pub n: Option<u32>,
    pub stream: bool,
    pub partial_images: Option<u32>,
    pub response_format: Option<String>,
    pub output_format: Option<String>,
    pub quality: Option<String>,
    pub background: Option<String>,
    pub moderation: Option<String>,
}

requests! {
    /// A picture from words: what OpenAI's image endpoint takes, and Argus's own parameters.
    ImageRequest {}

    /// A picture from a picture, as OpenAI's edit endpoint has it. With a mask, or a picture that is transparent
    /// in parts, those parts are made anew; without, the whole picture is.
    EditRequest {
        /// The picture.
        image: String,
        /// As large as the picture. By OpenAI's convention what is *transparent* in it is made anew; see
        /// `mask_mode`.
        mask: Option<String>,
        /// `alpha` (default): what is transparent in the mask is made anew. `white`: what is white in it is.
        mask_mode: Option<String>,
        /// How much is made anew, within the model's range. Default: all of it with a mask, else the model's.
        strength: Option<f32>,
    }

    /// A picture from words and a picture.
    ImageToImageRequest {
        /// The picture; it is resized to the size asked for.
        image: String,
        /// The share of the steps that are run, within the model's range: 1 leaves nothing of the picture.
        strength: Option<f32>,
    }

    /// A picture of which one part is made anew.
    InpaintRequest {
        /// The picture; it is resized to the size asked for.
        image: String,
        /// As large as the picture; what is white in it is made anew.
        mask: String,
        /// `white` (default): what is white in the mask is made anew. `alpha`: what is transparent in it is.
        mask_mode: Option<String>,
        /// As in image-to-image. Default: all of it.
        strength: Option<f32>,
    }

    /// A picture that grows over its edges. It is scaled, pads and all, to the nearest size that the model makes.
    UncropRequest {
        /// The picture.
        image: String,
        /// Pixels of the picture to add on each side; one at least.
        left: Option<u32>,
        right: Option<u32>,
        top: Option<u32>,
        bottom: Option<u32>,
    }

    /// A picture steered by an outline, by edges, by depth, or by several of them at once.
    ControlRequest {
        /// A rough outline: white lines on black when `prepared`, else any picture, whose outline is drawn.
        scribble: Option<ControlInput>,
        /// Canny edges, likewise.
        canny: Option<ControlInput>,
        /// A depth map with what is near bright when `prepared`, else any picture, if the model can estimate depth.
        depth: Option<ControlInput>,
        /// A picture to begin from, as in image-to-image.
        image: Option<String>,
        /// As in image-to-image.
        strength: Option<f32>,
    }
}

/// A picture that steers another: the picture alone, or with how it is meant.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a picture as base64 or data: URL, or an object {image, prepared, scale}")]
pub enum ControlInput {
    /// Not prepared, at scale 1.
    Picture(String),
    Control(ControlSettings),
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlSettings {
    pub image: String,
    /// Whether it is a control picture already.
    #[serde(default)]
    pub prepared: bool,
    /// How strongly it steers, above 0 to 2.
    pub scale: Option<f32>,
}

impl ControlInput {
    pub(super) fn settings(self) -> ControlSettings {
        match self {
            ControlInput::Picture(image) => ControlSettings { image, prepared: false, scale: None },
            ControlInput::Control(settings) => settings,
        }
    }
}

/// OpenAI's request for variations of a picture: image-to-image without words.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VariationRequest {
    /// The picture.
    pub image: String,
    /// A model of `GET /v1/models`. Default: the first that makes pictures from pictures.
    pub model: Option<String>,
    /// Pictures to make.
    #[schema(minimum = 1, maximum = 10, default = 1)]
    pub n: Option<u32>,
    /// `WIDTHxHEIGHT` in pixels within the model's range, or `auto`.
    pub size: Option<String>,
    /// `b64_json`.
    pub response_format: Option<String>,
    /// How much is made anew, within the model's range.
    pub strength: Option<f32>,
    /// Server-sent events with progress instead of one answer at the end.
    pub stream: Option<bool>,
    /// Accepted and ignored; nothing is kept about who asked.
    pub user: Option<String>,
}

/// A picture to be made larger.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpscaleRequest {
    /// The picture.
    pub image: String,
    /// By how much each edge grows: one of the model's factors. Default: the model's first.
    #[schema(example = 2)]
    pub factor: Option<u32>,
    /// A model of `GET /v1/models`. Default: the first that does this, with the factor if one is given.
    pub model: Option<String>,
    /// `b64_json`.
    pub response_format: Option<String>,
    /// `png`.
    pub output_format: Option<String>,
    /// Server-sent events with progress instead of one answer at the end.
    pub stream: Option<bool>,
    /// Accepted and ignored; nothing is kept about who asked.
    pub user: Option<String>,
}
