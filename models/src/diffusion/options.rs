//! What the config files of the diffusion models' networks share: defaults, options that are built in one
//! way only, and bounds of figures.

use serde::Deserialize;

use crate::loader::{LoadError, LoadResult, ModelFiles};

/// The most resolutions of a network.
pub(crate) const MAX_BLOCKS: usize = 16;
/// The most layers of a network or of one of its blocks; the prior of Kandinsky 2.2 has 20.
pub(crate) const MAX_LAYERS: usize = 128;
/// The widest token, embedding or picture inside a network; Kandinsky 2.2 has 2,048 channels at most.
pub(crate) const MAX_CHANNELS: usize = 1 << 16;

/// Options that this crate knows nothing else of, by their names.
pub(crate) type Others = serde_json::Map<String, serde_json::Value>;

/// Options that are built in one way only, with the values in JSON that mean that way.
pub(crate) type Fixed = [(&'static str, &'static [&'static str])];

/// Those of every UNet.
pub(crate) const UNET_FIXED: &Fixed = &[
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
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("resnet_skip_time_act", &["false"]),
    ("time_cond_proj_dim", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &["null"]),
];

/// Those of every autoencoder.
pub(crate) const AUTOENCODER_FIXED: &Fixed =
    &[("act_fn", &["\"silu\""]), ("mid_block_add_attention", &["true"])];

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

/// What diffusers takes where a config says nothing.
pub(crate) mod defaults {
    pub(crate) fn one() -> usize {
        1
    }
    pub(crate) fn two() -> usize {
        2
    }
    pub(crate) fn three() -> usize {
        3
    }
    pub(crate) fn four() -> usize {
        4
    }
    pub(crate) fn groups() -> usize {
        32
    }
    pub(crate) fn epsilon() -> f64 {
        1e-5
    }
    pub(crate) fn yes() -> bool {
        true
    }
}

pub(crate) fn check_class(files: &ModelFiles, path: &str, found: &str, built: &str) -> LoadResult<()> {
    if found == built { Ok(()) } else { Err(files.unknown(path, format!("`{found}`"))) }
}

pub(crate) fn check_fixed(
    files: &ModelFiles,
    path: &str,
    options: &Others,
    fixed: &Fixed,
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

pub(crate) fn check_blocks(
    files: &ModelFiles,
    path: &str,
    found: &[String],
    known: &[&str],
) -> LoadResult<()> {
    match found.iter().find(|block| !known.contains(&block.as_str())) {
        Some(block) => Err(files.unknown(path, format!("block `{block}`"))),
        None => Ok(()),
    }
}

/// Holds figures by their names against 1 and the most that each may be.
pub(crate) fn check_ranges(
    files: &ModelFiles,
    path: &str,
    figures: &[(&str, usize, usize)],
) -> LoadResult<()> {
    match figures.iter().find(|(_, found, most)| !(1..=*most).contains(found)) {
        Some((name, found, most)) => {
            Err(files.bad_config(path, format!("{name} is {found}, but must be 1 to {most}")))
        }
        None => Ok(()),
    }
}

/// Holds the figures of a network's blocks against each other and the most that they may be. `kinds`: the
/// lists of block types, by their names.
pub(crate) fn check_block_figures(
    files: &ModelFiles,
    path: &str,
    channels: &[usize],
    kinds: &[(&str, &[String])],
    layers: usize,
) -> LoadResult<()> {
    if let Some((name, _)) = kinds.iter().find(|(_, kinds)| kinds.len() != channels.len()) {
        return Err(files.bad_config(path, format!("block_out_channels and {name} differ in length")));
    }
    let figures =
        [("the number of blocks", channels.len(), MAX_BLOCKS), ("layers_per_block", layers, MAX_LAYERS)];
    check_ranges(files, path, &figures)?;
    let channels: Vec<_> =
        channels.iter().map(|channels| ("a figure of block_out_channels", *channels, MAX_CHANNELS)).collect();
    check_ranges(files, path, &channels)
}

/// An autoencoder is of RGB pictures.
pub(crate) fn check_rgb(files: &ModelFiles, path: &str, inputs: usize, outputs: usize) -> LoadResult<()> {
    if (inputs, outputs) == (3, 3) {
        return Ok(());
    }
    Err(files.bad_config(path, "an autoencoder of RGB pictures has 3 channels"))
}
