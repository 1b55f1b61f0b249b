//! LoRA files: low-rank additions to a model's weights (Hu et al. 2021), merged when it is loaded, so
//! that its layers know nothing of them and it is as fast as without.
//!
//! Read are the names that trainers give: diffusers' and peft's (`unet.….lora_A.weight`, before that
//! `….lora.down.weight` and `….processor.to_q_lora.down.weight`), and kohya's (`lora_unet_…`, `lora_te_…`,
//! `lora_te1_…`, `lora_te2_…`, with `.alpha`), over diffusers' names of layers or those of single-file
//! checkpoints. Linear layers and convolutions; anything else in the file is an error that names it.
//!
//! Invariant: a weight becomes W + scale · α / rank · up · down, summed in one order on any number of
//! threads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::checkpoint::names;
use crate::placement::Compute;
use crate::weights::{FileBytes, Weights, WeightsError, WeightsResult};

/// The largest scale of a LoRA.
pub const MAX_LORA_SCALE: f32 = 16.0;
/// How many unknown names an error shows.
const SHOWN_NAMES: usize = 5;

/// The parts of a model that a LoRA may change, and how its names begin in each layout.
const PARTS: [(&str, &str); 7] = [
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
];

/// One tensor of a layer's addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Alpha,
}

const ROLES: [(&str, Role); 11] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// The addition to one layer.
#[derive(Debug, Clone, Default)]
struct Layer {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
}

/// A LoRA file.
pub(crate) struct Lora {
    label: String,
    scale: f32,
    weights: Weights,
    /// By part and name of the layer, which is with `_` for `.` in kohya's files.
    layers: BTreeMap<(&'static str, String), Layer>,
    /// The `alpha` of each part, where the file's metadata gives it.
    part_alphas: HashMap<&'static str, f32>,
}

impl std::fmt::Debug for Lora {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.debug_struct("Lora").field("label", &self.label).field("scale", &self.scale).finish()
    }
}

/// What a LoRA adds to one tensor.
#[derive(Clone)]
pub(crate) struct Patch {
    lora: Arc<Lora>,
    down: String,
    up: String,
    /// scale · α / rank.
    factor: f32,
}

impl Lora {
    /// Reads the names of a file. `label`: what to call it in messages.
    pub(crate) fn open(label: &str, file: FileBytes, scale: f32) -> WeightsResult<Self> {
        let part_alphas = part_alphas(file.as_slice());
        let weights = Weights::open(label, vec![file], &Compute::HOST)?;
        if !(scale.is_finite() && scale.abs() <= MAX_LORA_SCALE) {
            return Err(weights.unsuitable(format!("its scale {scale} is not within ±{MAX_LORA_SCALE}")));
        }
        let mut layers: BTreeMap<_, Layer> = BTreeMap::new();
        let mut unknown = Vec::new();
        for (name, _) in weights.tensors() {
            let Some((part, layer, role)) = read_name(name) else {
                unknown.push(name.to_owned());
                continue;
            };
            let layer = layers.entry((part, layer)).or_default();
            let place = match role {
                Role::Down => &mut layer.down,
                Role::Up => &mut layer.up,
                Role::Alpha => &mut layer.alpha,
            };
            *place = Some(name.to_owned());
        }
        if !unknown.is_empty() || layers.is_empty() {
            return Err(unknown_names(label, unknown));
        }
        Ok(Self { label: label.to_owned(), scale, weights, layers, part_alphas })
    }

    /// The parts of the model that it changes.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &'static str> {
        let mut parts: Vec<_> = self.layers.keys().map(|(part, _)| *part).collect();
        parts.dedup();
        parts.into_iter()
    }

    /// What it adds to the tensors of a part, by their names in `target`.
    pub(crate) fn patches(
        self: &Arc<Self>,
        part: &str,
        target: &Weights,
    ) -> WeightsResult<Vec<(String, Patch)>> {
        let names = TargetNames::new(target);
        let mut patches = Vec::new();
        let mut unknown = Vec::new();
        for ((of, name), layer) in self.layers.iter().filter(|((of, _), _)| *of == part) {
            let shown = || [&layer.down, &layer.up, &layer.alpha].into_iter().flatten().next().cloned();
            let Some(tensor) = names.find(name) else {
                unknown.extend(shown());
                continue;
            };
            let (Some(down), Some(up)) = (&layer.down, &layer.up) else {
                let name = shown().unwrap_or_default();
                return Err(self
                    .weights
                    .unsuitable(format!("`{name}` is there without the other tensors of its layer")));
            };
            let shape = target.shape(&tensor).unwrap_or_default();
            let factor = self.factor(of, layer, down, up, shape)?;
            patches
                .push((tensor, Patch { lora: Arc::clone(self), down: down.clone(), up: up.clone(), factor }));
        }
        if unknown.is_empty() { Ok(patches) } else { Err(unknown_names(&self.label, unknown)) }
    }

    /// scale · α / rank, once the shapes are found to fit.
    fn factor(
        &self,
        part: &str,
        layer: &Layer,
        down: &str,
        up: &str,
        target: &[usize],
    ) -> WeightsResult<f32> {
        let shape = |name: &str| self.weights.shape(name).unwrap_or_default();
        let (down_shape, up_shape) = (shape(down), shape(up));
        let rank = down_shape.first().copied().unwrap_or(0);
        let inputs = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
        let fits = rank > 0
            && target.len() >= 2
            && down_shape.len() >= 2
            && inputs(down_shape) == inputs(target)
            && up_shape.first() == target.first()
            && inputs(up_shape) == rank;
        if !fits {
            return Err(self.weights.unsuitable(format!(
                "`{down}` is {down_shape:?} and `{up}` {up_shape:?}, which does not fit a layer of {target:?}; \
                 it was made for another model"
            )));
        }
        let alpha = match &layer.alpha {
            Some(name) => self.weights.values(name, shape(name))?.first().copied(),
            None => self.part_alphas.get(part).copied(),
        };
        let factor = self.scale * (alpha.unwrap_or(rank as f32) / rank as f32);
        match factor.is_finite() {
            true => Ok(factor),
            false => Err(self.weights.unsuitable(format!("the alpha of `{down}` is no number"))),
        }
    }
}

/// Part, layer and role that a tensor's name says.
fn read_name(name: &str) -> Option<(&'static str, String, Role)> {
    let (layer, role) = ROLES.iter().find_map(|(suffix, role)| Some((name.strip_suffix(suffix)?, *role)))?;
    let prefixed = PARTS.iter().find_map(|(prefix, part)| Some((*part, layer.strip_prefix(prefix)?)));
    // The first files of diffusers are of the UNet alone, and do not say so.
    let is_unet = ["down_blocks.", "mid_block.", "up_blocks."].iter().any(|head| layer.starts_with(head));
    let (part, layer) = prefixed.or_else(|| is_unet.then_some(("unet", layer)))?;
    let layer = match layer.split_once(".processor.") {
        Some((block, "to_out")) => format!("{block}.to_out.0"),
        Some((block, map)) => format!("{block}.{map}"),
        None => layer.to_owned(),
    };
    Some((part, layer, role))
}

/// What diffusers notes beside its LoRAs: the same α for all layers of a part.
fn part_alphas(file: &[u8]) -> HashMap<&'static str, f32> {
    const NOTES: &str = "lora_adapter_metadata";
    let read = || -> Option<Value> {
        let (_, metadata) = SafeTensors::read_metadata(file).ok()?;
        serde_json::from_str(metadata.metadata().as_ref()?.get(NOTES)?).ok()
    };
    let notes = read().unwrap_or_default();
    let alpha = |part: &'static str| Some((part, notes.get(format!("{part}.lora_alpha"))?.as_f64()? as f32));
    ["unet", "text_encoder", "text_encoder_2"].into_iter().filter_map(alpha).collect()
}

fn unknown_names(file: &str, mut names: Vec<String>) -> WeightsError {
    names.sort();
    let more = names.len().saturating_sub(SHOWN_NAMES);
    names.truncate(SHOWN_NAMES);
    let mut shown = names.join("`, `");
    if more > 0 {
        shown = format!("{shown}` and {more} more, `…");
    }
    WeightsError::UnknownLora { file: file.to_owned(), names: shown }
}

/// The layers of a part, by the ways that LoRA files write their names.
struct TargetNames {
    /// Without `text_model.`, to the name of the weight.
    dotted: HashMap<String, String>,
    /// The same with `_` for `.`.
    underscored: HashMap<String, String>,
    /// Residual blocks of each of a UNet's down blocks.
    layers: usize,
}

const TEXT_MODEL: &str = "text_model.";

impl TargetNames {
    fn new(target: &Weights) -> Self {
        let (mut dotted, mut underscored) = (HashMap::new(), HashMap::new());
        let mut layers = 0;
        for (name, _) in target.tensors() {
            let short = name.strip_prefix(TEXT_MODEL).unwrap_or(name);
            let Some(short) = short.strip_suffix(".weight") else { continue };
            dotted.insert(short.to_owned(), name.to_owned());
            underscored.insert(short.replace('.', "_"), name.to_owned());
            let first = name.strip_prefix("down_blocks.0.resnets.").and_then(|rest| rest.split('.').next());
            let layer = first.and_then(|layer| layer.parse::<usize>().ok());
            layers = layers.max(layer.map_or(0, |layer| layer + 1));
        }
        Self { dotted, underscored, layers }
    }

    fn find(&self, layer: &str) -> Option<String> {
        let short = layer.strip_prefix(TEXT_MODEL).unwrap_or(layer);
        let kohya = layer.strip_prefix("text_model_").unwrap_or(layer);
        let found = self.dotted.get(short).or_else(|| self.underscored.get(kohya));
        found.cloned().or_else(|| {
            let name = names::unet_name(&format!("{layer}_weight"), '_', self.layers.max(1))?;
            self.underscored.get(name.strip_suffix("_weight")?).cloned()
        })
    }
}

impl Patch {
    /// Adds to the values of the tensor, whose first size is `outputs`.
    pub(crate) fn add_to(&self, values: &mut [f32], outputs: usize) -> WeightsResult<()> {
        let read = |name: &str| {
            let weights = &self.lora.weights;
            weights.values(name, weights.shape(name).unwrap_or_default())
        };
        let (down, up) = (read(&self.down)?, read(&self.up)?);
        let inputs = values.len() / outputs.max(1);
        let rank = up.len() / outputs.max(1);
        values.par_chunks_mut(inputs.max(1)).zip(up.par_chunks(rank.max(1))).for_each(|(row, weights)| {
            let mut addition = vec![0f32; row.len()];
            for (weight, part) in weights.iter().zip(down.chunks_exact(inputs.max(1))) {
                addition.iter_mut().zip(part).for_each(|(sum, value)| *sum += weight * value);
            }
            row.iter_mut().zip(addition).for_each(|(value, addition)| *value += self.factor * addition);
        });
        Ok(())
    }
}
