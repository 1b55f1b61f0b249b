//! Checkpoints of one file, as model hubs distribute Stable Diffusion 1.x, 2.x and XL: seen as a folder
//! in the layout of diffusers.
//!
//! The file has weights alone. Its configs are built in, by what its names say it is; any file that lies
//! beside it under the path that diffusers would give it goes before the built-in one (`unet/config.json`,
//! `scheduler/scheduler_config.json`, `vae/diffusion_pytorch_model.safetensors`), which is how to say that
//! a model of 2.x predicts noise. A tokenizer is in none of these files: `tokenizer/vocab.json` and
//! `tokenizer/merges.txt` must lie beside it, once for both encoders of XL.
//!
//! Invariant: weights are read where they lie; a view copies nothing.

pub(crate) mod names;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::placement::Compute;
use crate::weights::{FileBytes, Weights, WeightsError};
use names::TensorView;

/// What a checkpoint was trained as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Stable Diffusion 1.x: CLIP ViT-L's text tower in the layout of transformers.
    One,
    /// Stable Diffusion 2.x: OpenCLIP ViT-H's.
    Two,
    /// Stable Diffusion XL: both CLIP ViT-L's and OpenCLIP ViT-bigG's.
    Xl,
}

const UNET: &str = "model.diffusion_model.";
const AUTOENCODER: &str = "first_stage_model.";
const FIRST_ENCODER: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";
const XL_FIRST_ENCODER: &str = "conditioner.embedders.0.transformer.";
const XL_SECOND_ENCODER: &str = "conditioner.embedders.1.model.";
/// Empty tensors with which trainers mark what an XL model predicts, and how its noise grows.
const PREDICTS_VELOCITY: &str = "v_pred";
const ENDS_WITHOUT_SIGNAL: &str = "ztsnr";

/// A checkpoint of one file.
pub(crate) struct Checkpoint {
    family: Family,
    file: FileBytes,
    /// Of the file in its folder.
    name: String,
    label: String,
    /// Residual blocks of each of the UNet's down blocks.
    unet_layers: usize,
    autoencoder_levels: usize,
    configs: BTreeMap<String, Value>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("label", &self.label)
            .field("family", &self.family)
            .finish()
    }
}

impl Checkpoint {
    /// Looks at the tensors of the file `name`. `label`: what to call it in messages.
    pub(crate) fn open(label: &str, name: &str, file: FileBytes) -> Result<Self, WeightsError> {
        let weights = Weights::open(label, vec![file.clone()], &Compute::HOST)?;
        let has = |prefix: &str| weights.tensors().any(|(name, _)| name.starts_with(prefix));
        let missing: Vec<&str> = [UNET, AUTOENCODER].into_iter().filter(|prefix| !has(prefix)).collect();
        let family = match (has(FIRST_ENCODER), has(OPEN_CLIP), has(XL_SECOND_ENCODER)) {
            _ if !missing.is_empty() => None,
            (true, false, false) => Some(Family::One),
            (false, true, false) => Some(Family::Two),
            (false, false, true) if has(XL_FIRST_ENCODER) => Some(Family::Xl),
            _ => None,
        };
        let Some(family) = family else {
            return Err(weights.unsuitable(
                "it is no whole checkpoint of Stable Diffusion 1.x, 2.x or XL: these have a UNet \
                 (`model.diffusion_model.…`), an autoencoder (`first_stage_model.…`) and text encoders \
                 (`cond_stage_model.…` or `conditioner.embedders.…`)",
            ));
        };
        let numbers = |prefix: &str, suffix: &str| -> Vec<usize> {
            let number = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse().ok();
            let named = weights.tensors().filter(|(name, _)| name.ends_with(suffix));
            named.filter_map(|(name, _)| number(name)).collect()
        };
        let inputs = format!("{UNET}input_blocks.");
        let first_half = numbers(&inputs, ".op.weight").into_iter().min();
        let last_input = numbers(&inputs, "").into_iter().max().unwrap_or(0);
        let levels = numbers(&format!("{AUTOENCODER}decoder.up."), "").into_iter().max().unwrap_or(0) + 1;
        Ok(Self {
            family,
            name: name.to_owned(),
            label: label.to_owned(),
            unet_layers: first_half.map_or(last_input, |index| index.saturating_sub(1)).max(1),
            autoencoder_levels: levels,
            configs: configs(family, &weights),
            file,
        })
    }

    /// The file's name in its folder.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A built-in file.
    pub(crate) fn config(&self, path: &str) -> Option<Vec<u8>> {
        self.configs.get(path).map(|value| value.to_string().into_bytes())
    }

    /// Where a file is looked for that is neither beside the checkpoint nor built in.
    pub(crate) fn fallback(&self, path: &str) -> Option<String> {
        let file = path.strip_prefix("tokenizer_2/").filter(|_| self.family == Family::Xl)?;
        Some(format!("tokenizer/{file}"))
    }

    /// The weights of a part, by the names that diffusers gives them.
    pub(crate) fn weights(&self, part: &str, compute: &Compute) -> Result<Option<Weights>, WeightsError> {
        let label = format!("{} ({part})", self.label);
        let open = || Weights::open(&label, vec![self.file.clone()], compute);
        let (layers, levels) = (self.unet_layers, self.autoencoder_levels);
        let view = |prefix: &'static str, rename: &dyn Fn(&str) -> Vec<TensorView>| {
            Ok(Some(open()?.renamed(|name| name.strip_prefix(prefix).map(rename).unwrap_or_default())?))
        };
        let same = |name: &str| names::whole(Some(name.to_owned()));
        match (part, self.family) {
            ("unet", _) => view(UNET, &|name| names::whole(names::unet_name(name, '.', layers))),
            ("vae", _) => view(AUTOENCODER, &|name| names::whole(names::autoencoder_name(name, levels))),
            ("text_encoder", Family::One) => view(FIRST_ENCODER, &same),
            ("text_encoder", Family::Two) => view(OPEN_CLIP, &|name| names::open_clip_views(name, false)),
            ("text_encoder", Family::Xl) => view(XL_FIRST_ENCODER, &same),
            ("text_encoder_2", Family::Xl) => {
                view(XL_SECOND_ENCODER, &|name| names::open_clip_views(name, true))
            }
            _ => Ok(None),
        }
    }
}

/// The built-in configs of a family, with what the file itself says.
fn configs(family: Family, weights: &Weights) -> BTreeMap<String, Value> {
    let text = match family {
        Family::One => include_str!("sd15.json"),
        Family::Two => include_str!("sd21.json"),
        Family::Xl => include_str!("sdxl.json"),
    };
    let mut configs: BTreeMap<String, Value> =
        serde_json::from_str(text).expect("the built-in configs are checked by a test");
    let channels = weights.shape(&format!("{UNET}input_blocks.0.0.weight")).and_then(|shape| shape.get(1));
    if let (Some(channels), Some(unet)) = (channels, configs.get_mut("unet/config.json")) {
        unet["in_channels"] = (*channels).into();
    }
    if let Some(scheduler) = configs.get_mut("scheduler/scheduler_config.json") {
        if weights.contains(PREDICTS_VELOCITY) {
            scheduler["prediction_type"] = "v_prediction".into();
        }
        if weights.contains(ENDS_WITHOUT_SIGNAL) {
            scheduler["rescale_betas_zero_snr"] = true.into();
            scheduler["timestep_spacing"] = "trailing".into();
        }
    }
    configs
}
