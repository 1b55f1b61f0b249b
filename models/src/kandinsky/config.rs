//! The `config.json` files of Kandinsky 2.2, as diffusers writes them, checked for every option that
//! would change a network in a way that is not built here.

use serde::Deserialize;

use crate::diffusion::config::{PerBlock, check_blocks, check_fixed};
use crate::loader::{LoadResult, ModelFiles};

/// The most layers of the prior, and of a block; the prior of Kandinsky 2.2 has 20.
const MAX_LAYERS: usize = 128;
/// The most resolutions of a network.
const MAX_BLOCKS: usize = 16;
/// The widest token, embedding or picture inside a network; Kandinsky 2.2 has 2,048 channels at most.
const MAX_CHANNELS: usize = 1 << 16;
/// The most tokens of a text.
const MAX_WINDOW: usize = 4096;

type Others = serde_json::Map<String, serde_json::Value>;

/// Holds figures by their names against 1 and the most that each may be.
fn check_ranges(files: &ModelFiles, path: &str, figures: &[(&str, usize, usize)]) -> LoadResult<()> {
    match figures.iter().find(|(_, found, most)| !(1..=*most).contains(found)) {
        Some((name, found, most)) => {
            Err(files.bad_config(path, format!("{name} is {found}, but must be 1 to {most}")))
        }
        None => Ok(()),
    }
}

/// Holds the figures of a network's blocks against each other and the most that they may be.
fn check_block_figures(
    files: &ModelFiles,
    path: &str,
    channels: &[usize],
    kinds: [&Vec<String>; 2],
    layers: usize,
) -> LoadResult<()> {
    if kinds.iter().any(|kinds| kinds.len() != channels.len()) {
        let detail = "block_out_channels, down_block_types and up_block_types differ in length";
        return Err(files.bad_config(path, detail));
    }
    let figures =
        [("the number of blocks", channels.len(), MAX_BLOCKS), ("layers_per_block", layers, MAX_LAYERS)];
    check_ranges(files, path, &figures)?;
    let channels: Vec<_> =
        channels.iter().map(|channels| ("a figure of block_out_channels", *channels, MAX_CHANNELS)).collect();
    check_ranges(files, path, &channels)
}

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

const PRIOR_FIXED: &[(&str, &[&str])] = &[
    ("time_embed_act_fn", &["\"silu\""]),
    ("encoder_hid_proj_type", &["\"linear\""]),
    ("added_emb_type", &["\"prd\""]),
];

impl PriorConfig {
    pub(super) fn open(files: &ModelFiles, path: &str) -> LoadResult<Self> {
        let config: Self = files.config(path)?;
        if config.class != "PriorTransformer" {
            return Err(files.unknown(path, format!("`{}`", config.class)));
        }
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
    #[serde(default = "two")]
    pub(super) layers_per_block: usize,
    pub(super) cross_attention_dim: usize,
    /// Channels of a head.
    attention_head_dim: PerBlock<usize>,
    #[serde(default = "groups")]
    pub(super) norm_num_groups: usize,
    #[serde(default = "epsilon")]
    pub(super) norm_eps: f64,
    #[serde(default = "yes")]
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

fn two() -> usize {
    2
}
fn groups() -> usize {
    32
}
fn epsilon() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}

const DECODER_FIXED: &[(&str, &[&str])] = &[
    ("act_fn", &["\"silu\""]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("num_class_embeds", &["null"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("mid_block_only_cross_attention", &["null", "false"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("num_attention_heads", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("resnet_skip_time_act", &["false"]),
    ("time_cond_proj_dim", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &["null"]),
];

impl DecoderConfig {
    pub(super) fn open(files: &ModelFiles, path: &str) -> LoadResult<Self> {
        let config: Self = files.config(path)?;
        if config.class != "UNet2DConditionModel" {
            return Err(files.unknown(path, format!("`{}`", config.class)));
        }
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
        check_block_figures(
            files,
            path,
            &self.block_out_channels,
            [&self.down_block_types, &self.up_block_types],
            self.layers_per_block,
        )?;
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
    #[serde(default = "one")]
    pub(super) layers_per_block: usize,
    #[serde(default = "three")]
    pub(super) latent_channels: usize,
    vq_embed_dim: Option<usize>,
    #[serde(default = "three")]
    in_channels: usize,
    #[serde(default = "three")]
    out_channels: usize,
    #[serde(default = "groups")]
    pub(super) norm_num_groups: usize,
    #[serde(default)]
    norm_type: Option<String>,
    #[serde(flatten)]
    others: Others,
}

fn one() -> usize {
    1
}
fn three() -> usize {
    3
}

const MOVQ_FIXED: &[(&str, &[&str])] = &[
    ("act_fn", &["\"silu\""]),
    ("lookup_from_codebook", &["false"]),
    ("mid_block_add_attention", &["true"]),
];

impl MovqConfig {
    pub(super) fn open(files: &ModelFiles, path: &str) -> LoadResult<Self> {
        let config: Self = files.config(path)?;
        if config.class != "VQModel" {
            return Err(files.unknown(path, format!("`{}`", config.class)));
        }
        if config.norm_type.as_deref() != Some("spatial") {
            return Err(files.unknown(path, format!("norm_type = {:?}", config.norm_type)));
        }
        check_fixed(files, path, &config.others, MOVQ_FIXED)?;
        let (down, up) = (&config.down_block_types, &config.up_block_types);
        check_blocks(files, path, down, &["DownEncoderBlock2D", "AttnDownEncoderBlock2D"])?;
        check_blocks(files, path, up, &["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])?;
        let channels = &config.block_out_channels;
        check_block_figures(files, path, channels, [down, up], config.layers_per_block)?;
        check_ranges(files, path, &[("latent_channels", config.latent_channels, MAX_CHANNELS)])?;
        if (config.in_channels, config.out_channels) != (3, 3) {
            return Err(files.bad_config(path, "an autoencoder of RGB pictures has 3 channels"));
        }
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
