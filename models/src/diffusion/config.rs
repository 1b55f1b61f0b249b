//! The `config.json` files of a diffusion model, as diffusers writes them, checked for every option
//! that would change the network in a way that is not built here.

use serde::Deserialize;

use super::options::{
    AUTOENCODER_FIXED, Fixed, MAX_BLOCKS, MAX_CHANNELS, Others, PerBlock, UNET_FIXED, check_block_figures,
    check_blocks, check_class, check_fixed, check_ranges, check_rgb,
};
use crate::loader::{LoadError, ModelFiles};

/// The smallest edge of an autoencoder's tile, in pixels.
const MIN_TILE_EDGE: usize = 256;
/// The largest edge of an autoencoder's tile, in pixels.
const MAX_TILE_EDGE: usize = 1024;

/// What the configs of a UNet and of a ControlNet, which is a copy of its contracting path, share.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ContractingConfig {
    pub(crate) in_channels: usize,
    pub(crate) block_out_channels: Vec<usize>,
    pub(crate) down_block_types: Vec<String>,
    #[serde(default = "mid_block")]
    mid_block_type: Option<String>,
    #[serde(default = "super::options::defaults::two")]
    pub(crate) layers_per_block: usize,
    pub(crate) cross_attention_dim: usize,
    /// The number of heads, in spite of its name, unless `num_attention_heads` is there.
    #[serde(default = "eight")]
    attention_head_dim: PerBlock<usize>,
    #[serde(default)]
    num_attention_heads: Option<PerBlock<usize>>,
    #[serde(default = "one_layer")]
    pub(crate) transformer_layers_per_block: PerBlock<usize>,
    #[serde(default = "super::options::defaults::groups")]
    pub(crate) norm_num_groups: usize,
    #[serde(default = "super::options::defaults::epsilon")]
    pub(crate) norm_eps: f64,
    #[serde(default = "super::options::defaults::yes")]
    pub(crate) flip_sin_to_cos: bool,
    #[serde(default)]
    pub(crate) freq_shift: f64,
    #[serde(default)]
    addition_embed_type: Option<String>,
    #[serde(default)]
    addition_time_embed_dim: Option<usize>,
    #[serde(default)]
    projection_class_embeddings_input_dim: Option<usize>,
    #[serde(flatten)]
    others: Others,
}

/// `unet/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct UNetConfig {
    #[serde(rename = "_class_name")]
    class: String,
    pub(crate) out_channels: usize,
    pub(crate) up_block_types: Vec<String>,
    #[serde(default)]
    pub(crate) sample_size: Option<usize>,
    #[serde(flatten)]
    pub(crate) contracting: ContractingConfig,
}

/// The `config.json` of a ControlNet.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ControlNetConfig {
    #[serde(rename = "_class_name")]
    class: String,
    #[serde(default = "super::options::defaults::three")]
    conditioning_channels: usize,
    /// Widths of the convolutions that shrink the control picture to the size of the latents.
    #[serde(default = "conditioning_widths")]
    pub(crate) conditioning_embedding_out_channels: Vec<usize>,
    #[serde(flatten)]
    pub(crate) contracting: ContractingConfig,
}

fn mid_block() -> Option<String> {
    Some("UNetMidBlock2DCrossAttn".to_owned())
}
fn eight() -> PerBlock<usize> {
    PerBlock::Same(8)
}
fn one_layer() -> PerBlock<usize> {
    PerBlock::Same(1)
}
fn conditioning_widths() -> Vec<usize> {
    vec![16, 32, 96, 256]
}

/// SDXL's extra conditioning: the pooled text and six figures of the picture's size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdditionConfig {
    /// Channels of each figure's sinusoidal embedding.
    pub(crate) figure_channels: usize,
    /// Width of pooled text and figures together.
    pub(crate) inputs: usize,
}

/// The options of these UNets that are built in one way only, beside those of every UNet.
const CONTRACTING_FIXED: &Fixed = &[
    ("downsample_padding", &["1"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
];

const CONTROL_FIXED: &Fixed =
    &[("controlnet_conditioning_channel_order", &["\"rgb\""]), ("global_pool_conditions", &["false"])];

const VAE_FIXED: &Fixed = &[("latents_mean", &["null"]), ("latents_std", &["null"])];

/// The middle block with attention.
const ATTENTION_MIDDLE: &str = "UNetMidBlock2DCrossAttn";
/// The middle block of small ControlNets: one residual block.
const PLAIN_MIDDLE: &str = "UNetMidBlock2D";

impl ContractingConfig {
    fn check(&self, files: &ModelFiles, path: &str) -> Result<(), LoadError> {
        check_fixed(files, path, &self.others, UNET_FIXED)?;
        check_fixed(files, path, &self.others, CONTRACTING_FIXED)?;
        let (channels, down) = (&self.block_out_channels, &self.down_block_types);
        check_blocks(files, path, down, &["DownBlock2D", "CrossAttnDownBlock2D"])?;
        check_block_figures(files, path, channels, &[("down_block_types", down)], self.layers_per_block)?;
        let blocks = channels.len();
        for block in 0..blocks {
            if self
                .heads(block)
                .is_none_or(|heads| heads == 0 || !self.block_out_channels[block].is_multiple_of(heads))
            {
                let detail = format!("the attention heads of block {block} do not divide its channels");
                return Err(files.bad_config(path, detail));
            }
            if self.transformer_layers_per_block.get(block).is_none() {
                let detail = format!("transformer_layers_per_block says nothing of block {block}");
                return Err(files.bad_config(path, detail));
            }
        }
        match self.addition_embed_type.as_deref() {
            None => Ok(()),
            Some("text_time") if self.addition().is_some() => Ok(()),
            Some(kind) => Err(files.unknown(path, format!("addition_embed_type `{kind}`"))),
        }
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

    /// Whether the middle block attends to the prompt.
    pub(crate) fn has_middle_attention(&self) -> bool {
        self.mid_block_type.as_deref() == Some(ATTENTION_MIDDLE)
    }
}

impl UNetConfig {
    pub(crate) fn open(files: &ModelFiles, path: &str) -> Result<Self, LoadError> {
        let config: Self = files.config(path)?;
        check_class(files, path, &config.class, "UNet2DConditionModel")?;
        if !config.contracting.has_middle_attention() {
            return Err(
                files.unknown(path, format!("mid_block_type {:?}", config.contracting.mid_block_type))
            );
        }
        check_blocks(files, path, &config.up_block_types, &["UpBlock2D", "CrossAttnUpBlock2D"])?;
        if config.up_block_types.len() != config.contracting.block_out_channels.len() {
            return Err(files.bad_config(path, "block_out_channels and up_block_types differ in length"));
        }
        config.contracting.check(files, path)?;
        Ok(config)
    }
}

impl ControlNetConfig {
    /// Opens the config of a ControlNet for a UNet whose latents are `scale` pixels apart.
    pub(crate) fn open(
        files: &ModelFiles,
        path: &str,
        unet: &UNetConfig,
        scale: usize,
    ) -> Result<Self, LoadError> {
        let config: Self = files.config(path)?;
        check_class(files, path, &config.class, "ControlNetModel")?;
        let (own, unet) = (&config.contracting, &unet.contracting);
        let middle = own.mid_block_type.as_deref();
        if !own.has_middle_attention() && middle != Some(PLAIN_MIDDLE) {
            return Err(files.unknown(path, format!("mid_block_type {middle:?}")));
        }
        check_fixed(files, path, &own.others, CONTROL_FIXED)?;
        own.check(files, path)?;
        let fits = own.block_out_channels == unet.block_out_channels
            && own.layers_per_block == unet.layers_per_block
            && own.cross_attention_dim == unet.cross_attention_dim
            && own.addition().is_some() == unet.addition().is_some();
        if !fits {
            return Err(
                files.bad_config(path, "this ControlNet was trained for another model than it is given to")
            );
        }
        if config.conditioning_channels != 3 {
            return Err(files.bad_config(path, "a control picture has 3 channels"));
        }
        let widths = &config.conditioning_embedding_out_channels;
        if widths.len() > MAX_BLOCKS || widths.contains(&0) || 1 << widths.len() != 2 * scale {
            let detail = format!("conditioning_embedding_out_channels does not shrink pictures by {scale}");
            return Err(files.bad_config(path, detail));
        }
        Ok(config)
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
    #[serde(default = "super::options::defaults::one")]
    pub(crate) layers_per_block: usize,
    #[serde(default = "super::options::defaults::four")]
    pub(crate) latent_channels: usize,
    #[serde(default = "super::options::defaults::three")]
    in_channels: usize,
    #[serde(default = "super::options::defaults::three")]
    out_channels: usize,
    #[serde(default = "super::options::defaults::groups")]
    pub(crate) norm_num_groups: usize,
    #[serde(default = "scaling")]
    pub(crate) scaling_factor: f64,
    #[serde(default)]
    pub(crate) shift_factor: Option<f64>,
    #[serde(default = "super::options::defaults::yes")]
    pub(crate) use_quant_conv: bool,
    #[serde(default = "super::options::defaults::yes")]
    pub(crate) use_post_quant_conv: bool,
    #[serde(default = "super::options::defaults::yes")]
    pub(crate) force_upcast: bool,
    /// The edge of the pictures that the autoencoder was trained on, in pixels.
    #[serde(default)]
    sample_size: Option<usize>,
    #[serde(flatten)]
    others: Others,
}

fn scaling() -> f64 {
    0.18215
}

impl VaeConfig {
    pub(crate) fn open(files: &ModelFiles, path: &str) -> Result<Self, LoadError> {
        let config: Self = files.config(path)?;
        check_class(files, path, &config.class, "AutoencoderKL")?;
        check_fixed(files, path, &config.others, AUTOENCODER_FIXED)?;
        check_fixed(files, path, &config.others, VAE_FIXED)?;
        let (down, up) = (&config.down_block_types, &config.up_block_types);
        check_blocks(files, path, down, &["DownEncoderBlock2D"])?;
        check_blocks(files, path, up, &["UpDecoderBlock2D"])?;
        let kinds: [(&str, &[String]); 2] = [("down_block_types", down), ("up_block_types", up)];
        check_block_figures(files, path, &config.block_out_channels, &kinds, config.layers_per_block)?;
        check_ranges(files, path, &[("latent_channels", config.latent_channels, MAX_CHANNELS)])?;
        check_rgb(files, path, config.in_channels, config.out_channels)?;
        if !(config.scaling_factor.is_finite() && config.scaling_factor > 0.0) {
            return Err(files.bad_config(path, "scaling_factor must be above 0"));
        }
        Ok(config)
    }

    /// The edge of the pictures that it was trained on, in pixels.
    pub(crate) fn trained_edge(&self) -> usize {
        self.sample_size.unwrap_or(512)
    }

    /// The edge of the tiles that large pictures are taken in, in pixels.
    pub(crate) fn tile_edge(&self) -> usize {
        let trained = self.trained_edge().clamp(MIN_TILE_EDGE, MAX_TILE_EDGE);
        trained.next_multiple_of(4 * self.scale())
    }

    /// Picture pixels along one edge of a latent pixel.
    pub(crate) fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
