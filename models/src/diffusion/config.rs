//! The `config.json` files of a diffusion model, as diffusers writes them, checked for every option
//! that would change the network in a way that is not built here.

use serde::Deserialize;

use crate::loader::{LoadError, ModelFiles};

/// A figure for all blocks, or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum PerBlock<T> {
    Same(T),
    Each(Vec<T>),
}

impl<T: Copy> PerBlock<T> {
    pub(crate) fn get(&self, block: usize) -> Option<T> {
        match self {
            Self::Same(value) => Some(*value),
            Self::Each(values) => values.get(block).copied(),
        }
    }
}

/// `unet/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct UNetConfig {
    #[serde(rename = "_class_name")]
    class: String,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) block_out_channels: Vec<usize>,
    pub(crate) down_block_types: Vec<String>,
    pub(crate) up_block_types: Vec<String>,
    #[serde(default = "mid_block")]
    mid_block_type: Option<String>,
    #[serde(default = "two")]
    pub(crate) layers_per_block: usize,
    pub(crate) cross_attention_dim: usize,
    /// The number of heads, in spite of its name, unless `num_attention_heads` is there.
    #[serde(default = "eight")]
    attention_head_dim: PerBlock<usize>,
    #[serde(default)]
    num_attention_heads: Option<PerBlock<usize>>,
    #[serde(default = "one_layer")]
    pub(crate) transformer_layers_per_block: PerBlock<usize>,
    #[serde(default = "groups")]
    pub(crate) norm_num_groups: usize,
    #[serde(default = "epsilon")]
    pub(crate) norm_eps: f64,
    #[serde(default = "yes")]
    pub(crate) flip_sin_to_cos: bool,
    #[serde(default)]
    pub(crate) freq_shift: f64,
    #[serde(default)]
    addition_embed_type: Option<String>,
    #[serde(default)]
    addition_time_embed_dim: Option<usize>,
    #[serde(default)]
    projection_class_embeddings_input_dim: Option<usize>,
    #[serde(default)]
    pub(crate) sample_size: Option<usize>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

fn mid_block() -> Option<String> {
    Some("UNetMidBlock2DCrossAttn".to_owned())
}
fn two() -> usize {
    2
}
fn eight() -> PerBlock<usize> {
    PerBlock::Same(8)
}
fn one_layer() -> PerBlock<usize> {
    PerBlock::Same(1)
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

/// SDXL's extra conditioning: the pooled text and six figures of the picture's size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdditionConfig {
    /// Channels of each figure's sinusoidal embedding.
    pub(crate) figure_channels: usize,
    /// Width of pooled text and figures together.
    pub(crate) inputs: usize,
}

/// The options of a UNet that are built in one way only, with the values that mean that way.
const UNET_FIXED: &[(&str, &[&str])] = &[
    ("act_fn", &["\"silu\""]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("num_class_embeds", &["null"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("downsample_padding", &["1"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("mid_block_only_cross_attention", &["null", "false"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_cond_proj_dim", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &["null"]),
];

const VAE_FIXED: &[(&str, &[&str])] = &[
    ("act_fn", &["\"silu\""]),
    ("latents_mean", &["null"]),
    ("latents_std", &["null"]),
    ("mid_block_add_attention", &["true"]),
];

fn check_fixed(
    files: &ModelFiles,
    path: &str,
    options: &serde_json::Map<String, serde_json::Value>,
    fixed: &[(&str, &[&str])],
) -> Result<(), LoadError> {
    for (name, allowed) in fixed {
        match options.get(*name).map(ToString::to_string) {
            Some(value) if !allowed.contains(&value.as_str()) => {
                return Err(files.unknown(path, format!("{name} = {value}")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_blocks(files: &ModelFiles, path: &str, found: &[String], known: &[&str]) -> Result<(), LoadError> {
    match found.iter().find(|block| !known.contains(&block.as_str())) {
        Some(block) => Err(files.unknown(path, format!("block `{block}`"))),
        None => Ok(()),
    }
}

impl UNetConfig {
    pub(crate) fn open(files: &ModelFiles, path: &str) -> Result<Self, LoadError> {
        let config: Self = files.config(path)?;
        if config.class != "UNet2DConditionModel" {
            return Err(files.unknown(path, format!("`{}`", config.class)));
        }
        if config.mid_block_type.as_deref() != Some("UNetMidBlock2DCrossAttn") {
            return Err(files.unknown(path, format!("mid_block_type {:?}", config.mid_block_type)));
        }
        check_fixed(files, path, &config.others, UNET_FIXED)?;
        check_blocks(files, path, &config.down_block_types, &["DownBlock2D", "CrossAttnDownBlock2D"])?;
        check_blocks(files, path, &config.up_block_types, &["UpBlock2D", "CrossAttnUpBlock2D"])?;
        let blocks = config.block_out_channels.len();
        if blocks == 0 || config.down_block_types.len() != blocks || config.up_block_types.len() != blocks {
            return Err(files.bad_config(
                path,
                "block_out_channels, down_block_types and up_block_types differ in length",
            ));
        }
        if config.block_out_channels.contains(&0) || config.layers_per_block == 0 {
            return Err(files.bad_config(path, "a block has no channels or no layers"));
        }
        for block in 0..blocks {
            if config
                .heads(block)
                .is_none_or(|heads| heads == 0 || !config.block_out_channels[block].is_multiple_of(heads))
            {
                return Err(files.bad_config(
                    path,
                    format!("the attention heads of block {block} do not divide its channels"),
                ));
            }
            if config.transformer_layers_per_block.get(block).is_none() {
                return Err(files.bad_config(
                    path,
                    format!("transformer_layers_per_block says nothing of block {block}"),
                ));
            }
        }
        match config.addition_embed_type.as_deref() {
            None => {}
            Some("text_time") if config.addition().is_some() => {}
            Some(kind) => return Err(files.unknown(path, format!("addition_embed_type `{kind}`"))),
        }
        Ok(config)
    }

    /// Attention heads of a block, counted from the outside.
    pub(crate) fn heads(&self, block: usize) -> Option<usize> {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).get(block)
    }

    pub(crate) fn addition(&self) -> Option<AdditionConfig> {
        self.addition_embed_type.as_ref()?;
        Some(AdditionConfig {
            figure_channels: self.addition_time_embed_dim?,
            inputs: self.projection_class_embeddings_input_dim?,
        })
    }
}

/// `vae/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct VaeConfig {
    #[serde(rename = "_class_name")]
    class: String,
    pub(crate) block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(default = "one")]
    pub(crate) layers_per_block: usize,
    #[serde(default = "four")]
    pub(crate) latent_channels: usize,
    #[serde(default = "three")]
    in_channels: usize,
    #[serde(default = "three")]
    out_channels: usize,
    #[serde(default = "groups")]
    pub(crate) norm_num_groups: usize,
    #[serde(default = "scaling")]
    pub(crate) scaling_factor: f64,
    #[serde(default)]
    pub(crate) shift_factor: Option<f64>,
    #[serde(default = "yes")]
    pub(crate) use_quant_conv: bool,
    #[serde(default = "yes")]
    pub(crate) use_post_quant_conv: bool,
    #[serde(default = "yes")]
    pub(crate) force_upcast: bool,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

fn one() -> usize {
    1
}
fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn scaling() -> f64 {
    0.18215
}

impl VaeConfig {
    pub(crate) fn open(files: &ModelFiles, path: &str) -> Result<Self, LoadError> {
        let config: Self = files.config(path)?;
        if config.class != "AutoencoderKL" {
            return Err(files.unknown(path, format!("`{}`", config.class)));
        }
        check_fixed(files, path, &config.others, VAE_FIXED)?;
        check_blocks(files, path, &config.down_block_types, &["DownEncoderBlock2D"])?;
        check_blocks(files, path, &config.up_block_types, &["UpDecoderBlock2D"])?;
        let blocks = config.block_out_channels.len();
        if blocks == 0 || config.down_block_types.len() != blocks || config.up_block_types.len() != blocks {
            return Err(files.bad_config(
                path,
                "block_out_channels, down_block_types and up_block_types differ in length",
            ));
        }
        if (config.in_channels, config.out_channels) != (3, 3) {
            return Err(files.bad_config(path, "an autoencoder of RGB pictures has 3 channels"));
        }
        if !(config.scaling_factor.is_finite() && config.scaling_factor > 0.0) {
            return Err(files.bad_config(path, "scaling_factor must be above 0"));
        }
        Ok(config)
    }

    /// Picture pixels along one edge of a latent pixel.
    pub(crate) fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1).min(16)
    }
}
