//! The `config.json` files of Kandinsky 2.2, as diffusers writes them, checked for every option that
//! would change a network in a way that is not built here.

use serde::Deserialize;

use crate::diffusion::options::{
    AUTOENCODER_FIXED, Fixed, MAX_CHANNELS, MAX_LAYERS, Others, PerBlock, UNET_FIXED, check_block_figures,
    check_blocks, check_class, check_fixed, check_ranges, check_rgb,
};
use crate::loader::{LoadResult, ModelFiles};

/// The most tokens of a text.
const MAX_WINDOW: usize = 4096;

/// `config.json` of a `PriorTransformer`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct PriorConfig {
    #[serde(rename = "_class_name")]
    class: String,
    #[serde(default = "prior_heads")]
    pub(super) num_attention_heads: usize,
    #[serde(default = "sixty_four")]
    pub(super) attention_head_dim: usize,
    #[serde(default = "prior_layers")]
    pub(super) num_layers: usize,
    #[serde(default = "embedding_width")]
    pub(super) embedding_dim: usize,
    #[serde(default = "window")]
    pub(super) num_embeddings: usize,
    #[serde(default = "additional")]
    additional_embeddings: usize,
    norm_in_type: Option<String>,
    embedding_proj_norm_type: Option<String>,
    time_embed_dim: Option<usize>,
    embedding_proj_dim: Option<usize>,
    clip_embed_dim: Option<usize>,
    #[serde(flatten)]
    others: Others,
}

fn prior_heads() -> usize {
    32
}
fn sixty_four() -> usize {
    64
}
fn prior_layers() -> usize {
    20
}
fn embedding_width() -> usize {
    768
}
fn window() -> usize {
    77
}
fn additional() -> usize {
    4
}

const PRIOR_FIXED: &Fixed = &[
    ("time_embed_act_fn", &["\"silu\""]),
    ("encoder_hid_proj_type", &["\"linear\""]),
    ("added_emb_type", &["\"prd\""]),
];

impl PriorConfig {
    pub(super) fn open(files: &ModelFiles, path: &str) -> LoadResult<Self> {
        let config: Self = files.config(path)?;
        check_class(files, path, &config.class, "PriorTransformer")?;
        check_fixed(files, path, &config.others, PRIOR_FIXED)?;
        for (name, kind) in [
            ("norm_in_type", &config.norm_in_type),
            ("embedding_proj_norm_type", &config.embedding_proj_norm_type),
        ] {
            if let Some(kind) = kind.as_deref().filter(|kind| *kind != "layer") {
                return Err(files.unknown(path, format!("{name} = \"{kind}\"")));
            }
        }
        if config.additional_embeddings != additional() {
            return Err(
                files.unknown(path, format!("additional_embeddings = {}", config.additional_embeddings))
            );
        }
        let widths = [
            ("num_attention_heads · attention_head_dim", config.width(), MAX_CHANNELS),
            ("embedding_dim", config.embedding_dim, MAX_CHANNELS),
            ("embedding_proj_dim", config.pooled_width(), MAX_CHANNELS),
            ("time_embed_dim", config.time_width(), MAX_CHANNELS),
            ("num_embeddings", config.num_embeddings, MAX_WINDOW),
            ("num_layers", config.num_layers, MAX_LAYERS),
        ];
        check_ranges(files, path, &widths)?;
        if config.clip_embed_dim.is_some_and(|width| width != config.embedding_dim) {
            return Err(files.bad_config(path, "clip_embed_dim differs from embedding_dim"));
        }
        Ok(config)
    }

    /// Channels of a token.
    pub(super) fn width(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    pub(super) fn time_width(&self) -> usize {
        self.time_embed_dim.unwrap_or(self.width())
    }

    /// Width of the pooled text.
    pub(super) fn pooled_width(&self) -> usize {
        self.embedding_proj_dim.unwrap_or(self.embedding_dim)
    }

    pub(super) fn norms_input(&self) -> bool {
        self.norm_in_type.is_some()
    }

    pub(super) fn norms_pooled(&self) -> bool {
        self.embedding_proj_norm_type.is_some()
    }
}

/// `unet/config.json` of a decoder.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct DecoderConfig {
    #[serde(rename = "_class_name")]
    class: String,
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) block_out_channels: Vec<usize>,
    pub(super) down_block_types: Vec<String>,
    pub(super) up_block_types: Vec<String>,
    #[serde(default)]
    mid_block_type: Option<String>,
    #[serde(default = "crate::diffusion::options::defaults::two")]
    pub(super) layers_per_block: usize,
    pub(super) cross_attention_dim: usize,
    /// Channels of a head.
    attention_head_dim: PerBlock<usize>,
    #[serde(default = "crate::diffusion::options::defaults::groups")]
    pub(super) norm_num_groups: usize,
    #[serde(default = "crate::diffusion::options::defaults::epsilon")]
    pub(super) norm_eps: f64,
    #[serde(default = "crate::diffusion::options::defaults::yes")]
    pub(super) flip_sin_to_cos: bool,
    #[serde(default)]
    pub(super) freq_shift: f64,
    #[serde(default)]
    addition_embed_type: Option<String>,
    #[serde(default)]
    encoder_hid_dim_type: Option<String>,
    #[serde(default)]
    encoder_hid_dim: Option<usize>,
    #[serde(default)]
    resnet_time_scale_shift: Option<String>,
    #[serde(default)]
    pub(super) sample_size: Option<usize>,
    #[serde(flatten)]
    others: Others,
}

/// The options of a decoder that are built in one way only, beside those of every UNet.
const DECODER_FIXED: &Fixed = &[("num_attention_heads", &["null"])];

impl DecoderConfig {
    pub(super) fn open(files: &ModelFiles, path: &str) -> LoadResult<Self> {
        let config: Self = files.config(path)?;
        check_class(files, path, &config.class, "UNet2DConditionModel")?;
        check_fixed(files, path, &config.others, UNET_FIXED)?;
        check_fixed(files, path, &config.others, DECODER_FIXED)?;
        for (name, found, built) in [
            ("mid_block_type", &config.mid_block_type, "UNetMidBlock2DSimpleCrossAttn"),
            ("addition_embed_type", &config.addition_embed_type, "image"),
            ("encoder_hid_dim_type", &config.encoder_hid_dim_type, "image_proj"),
            ("resnet_time_scale_shift", &config.resnet_time_scale_shift, "scale_shift"),
        ] {
            if found.as_deref() != Some(built) {
                return Err(files.unknown(path, format!("{name} = {found:?}")));
            }
        }
        let (down, up) = (&config.down_block_types, &config.up_block_types);
        check_blocks(files, path, down, &["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"])?;
        check_blocks(files, path, up, &["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"])?;
        config.check_figures(files, path)?;
        Ok(config)
    }

    fn check_figures(&self, files: &ModelFiles, path: &str) -> LoadResult<()> {
        let blocks = self.block_out_channels.len();
        let kinds: [(&str, &[String]); 2] =
            [("down_block_types", &self.down_block_types), ("up_block_types", &self.up_block_types)];
        check_block_figures(files, path, &self.block_out_channels, &kinds, self.layers_per_block)?;
        let widths = [
            ("encoder_hid_dim", self.embedding_width(), MAX_CHANNELS),
            ("cross_attention_dim", self.cross_attention_dim, MAX_CHANNELS),
            ("in_channels", self.in_channels, MAX_CHANNELS),
            ("out_channels", self.out_channels, MAX_CHANNELS),
        ];
        check_ranges(files, path, &widths)?;
        let heads = |index: usize, block: usize| {
            let size = self.attention_head_dim.get(index);
            size.is_some_and(|size| size > 0 && self.block_out_channels[block].is_multiple_of(size))
        };
        match (0..blocks).find(|&index| !heads(index, index) || !heads(index, blocks - 1 - index)) {
            Some(block) => Err(files.bad_config(
                path,
                format!("attention_head_dim of block {block} does not divide its channels"),
            )),
            None => Ok(()),
        }
    }

    /// Channels of an attention head in down block `index`, or in up block `index`: the reference
    /// counts both from the list's start.
    pub(super) fn head_size(&self, index: usize) -> usize {
        self.attention_head_dim.get(index).unwrap_or(1)
    }

    /// Width of the image embedding.
    pub(super) fn embedding_width(&self) -> usize {
        self.encoder_hid_dim.unwrap_or(0)
    }
}

/// `movq/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct MovqConfig {
    #[serde(rename = "_class_name")]
    class: String,
    pub(super) block_out_channels: Vec<usize>,
    pub(super) down_block_types: Vec<String>,
    pub(super) up_block_types: Vec<String>,
    #[serde(default = "crate::diffusion::options::defaults::one")]
    pub(super) layers_per_block: usize,
    #[serde(default = "crate::diffusion::options::defaults::three")]
    pub(super) latent_channels: usize,
    vq_embed_dim: Option<usize>,
    #[serde(default = "crate::diffusion::options::defaults::three")]
    in_channels: usize,
    #[serde(default = "crate::diffusion::options::defaults::three")]
    out_channels: usize,
    #[serde(default = "crate::diffusion::options::defaults::groups")]
    pub(super) norm_num_groups: usize,
    #[serde(default)]
    norm_type: Option<String>,
    #[serde(flatten)]
    others: Others,
}

const MOVQ_FIXED: &Fixed = &[("lookup_from_codebook", &["false"])];

impl MovqConfig {
    pub(super) fn open(files: &ModelFiles, path: &str) -> LoadResult<Self> {
        let config: Self = files.config(path)?;
        check_class(files, path, &config.class, "VQModel")?;
        if config.norm_type.as_deref() != Some("spatial") {
            return Err(files.unknown(path, format!("norm_type = {:?}", config.norm_type)));
        }
        check_fixed(files, path, &config.others, AUTOENCODER_FIXED)?;
        check_fixed(files, path, &config.others, MOVQ_FIXED)?;
        let (down, up) = (&config.down_block_types, &config.up_block_types);
        check_blocks(files, path, down, &["DownEncoderBlock2D", "AttnDownEncoderBlock2D"])?;
        check_blocks(files, path, up, &["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])?;
        let channels = &config.block_out_channels;
        let kinds: [(&str, &[String]); 2] = [("down_block_types", down), ("up_block_types", up)];
        check_block_figures(files, path, channels, &kinds, config.layers_per_block)?;
        check_ranges(files, path, &[("latent_channels", config.latent_channels, MAX_CHANNELS)])?;
        check_rgb(files, path, config.in_channels, config.out_channels)?;
        if config.vq_embed_dim.is_some_and(|width| width != config.latent_channels) {
            return Err(files.bad_config(path, "vq_embed_dim differs from latent_channels"));
        }
        Ok(config)
    }

    /// Picture pixels along one edge of a latent pixel.
    pub(super) fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
