//! Depth maps by Depth Anything V2 (arXiv 2406.09414): a DINOv2 backbone and a DPT head, in the layout of
//! transformers' `DepthAnythingForDepthEstimation`.
//!
//! It always runs on the processor, so that two nodes prepare the same control picture, whatever device
//! they make pictures with.

mod backbone;
mod head;

#[cfg(test)]
mod tests;

use candle_core::{Device, Result, Tensor};
use serde::Deserialize;

use crate::layers::{FeatureMap, Interpolation};
use crate::loader::{LoadError, LoadResult, ModelFiles};
use crate::picture::RgbPicture;
use crate::placement::Compute;
use crate::pool::Pool;
use crate::resample::Filter;
use backbone::{Backbone, BackboneConfig};
use head::{Head, Neck};

use super::GreyPicture;

/// Mean and standard deviation of each channel that the backbone was trained with.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];
/// The most patches that a picture is cut into; a longer strip is seen in less detail.
const MAX_PATCHES: u64 = 4096;

/// The `config.json` of the model.
#[derive(Debug, Clone, Deserialize)]
struct DepthConfig {
    model_type: String,
    backbone_config: BackboneConfig,
    #[serde(default = "neck_hidden_sizes")]
    neck_hidden_sizes: Vec<usize>,
    #[serde(default = "reassemble_factors")]
    reassemble_factors: Vec<f64>,
    #[serde(default = "fusion_hidden_size")]
    fusion_hidden_size: usize,
    #[serde(default = "head_hidden_size")]
    head_hidden_size: usize,
    #[serde(default = "relative")]
    depth_estimation_type: String,
}

fn neck_hidden_sizes() -> Vec<usize> {
    vec![48, 96, 192, 384]
}

fn reassemble_factors() -> Vec<f64> {
    vec![4.0, 2.0, 1.0, 0.5]
}

fn fusion_hidden_size() -> usize {
    64
}

fn head_hidden_size() -> usize {
    32
}

fn relative() -> String {
    "relative".to_owned()
}

/// A depth model that is ready to run.
pub struct DepthEstimator {
    backbone: Backbone,
    neck: Neck,
    head: Head,
    pool: Pool,
}

impl DepthEstimator {
    /// Opens a folder with `config.json` and `model.safetensors`. `threads`: 0 for one a core.
    pub fn open(files: &ModelFiles, threads: usize) -> std::result::Result<Self, LoadError> {
        Self::open_on(files, Pool::new(threads)?)
    }

    /// As [`Self::open`], to compute on the threads of `pool`.
    pub(crate) fn open_on(files: &ModelFiles, pool: Pool) -> LoadResult<Self> {
        Self::open_part(files, "", pool)
    }

    /// As [`Self::open_on`], from a folder inside the model's.
    pub(crate) fn open_part(files: &ModelFiles, part: &str, pool: Pool) -> LoadResult<Self> {
        pool.run(|| Self::load(files, part, pool.clone()))
    }

    fn load(files: &ModelFiles, part: &str, pool: Pool) -> LoadResult<Self> {
        let path = if part.is_empty() { "config.json".to_owned() } else { format!("{part}/config.json") };
        let path = path.as_str();
        let config: DepthConfig = files.config(path)?;
        if config.model_type != "depth_anything" {
            return Err(files.unknown(path, format!("model_type `{}`", config.model_type)));
        }
        if config.depth_estimation_type != "relative" {
            let detail = format!("depth in metres (`{}`)", config.depth_estimation_type);
            return Err(files.unknown(path, detail));
        }
        if config.reassemble_factors != reassemble_factors() || config.neck_hidden_sizes.len() != 4 {
            return Err(files.unknown(path, "a neck other than of factors 4, 2, 1 and 0.5"));
        }
        let weights = files.weights(part, &Compute::HOST)?;
        let width = config.backbone_config.hidden_size();
        Ok(Self {
            backbone: Backbone::load(&weights.at("backbone"), &config.backbone_config)?,
            neck: Neck::load(
                &weights.at("neck"),
                width,
                &config.neck_hidden_sizes,
                config.fusion_hidden_size,
            )?,
            head: Head::load(&weights.at("head"), config.fusion_hidden_size, config.head_hidden_size)?,
            pool,
        })
    }

    /// The depth map of a picture as a control picture of its size: what is nearest is white, what is
    /// farthest black.
    pub fn estimate(&self, picture: &RgbPicture) -> Result<RgbPicture> {
        self.pool.run(|| {
            let depth = self.forward(&self.input(picture)?)?;
            let (height, width) = (picture.height() as usize, picture.width() as usize);
            let depth = Interpolation::Bicubic.resize(&depth, height, width)?;
            let depth: Vec<f32> = depth.native().flatten_all()?.to_vec1()?;
            if depth.iter().any(|value| !value.is_finite()) {
                candle_core::bail!("the depth is not finite; the weights are faulty");
            }
            let low = depth.iter().copied().fold(f32::INFINITY, f32::min);
            let range = depth.iter().copied().fold(f32::NEG_INFINITY, f32::max) - low;
            let grey = |value: &f32| if range > 0.0 { ((value - low) / range * 255.0) as u8 } else { 0 };
            Ok(GreyPicture::new(width, height, depth.iter().map(grey).collect()).to_rgb())
        })
    }

    /// `[1, 3, height, width]` to one channel of relative inverse depth, of the same size.
    fn forward(&self, input: &FeatureMap) -> Result<FeatureMap> {
        let features = self.backbone.forward(input)?;
        let extent = input.extent()?;
        self.head.forward(&self.neck.forward(features)?, extent.height, extent.width)
    }

    /// A picture as `DPTImageProcessor` prepares it: resized (bicubic), normalised.
    fn input(&self, picture: &RgbPicture) -> Result<FeatureMap> {
        let (width, height) = self.resized(picture.width(), picture.height());
        let picture = picture.resize(width, height, Filter::Bicubic);
        let values = (0..3)
            .flat_map(|channel| {
                let samples = picture.pixels().iter().skip(channel).step_by(3);
                samples.map(move |sample| (f32::from(*sample) / 255.0 - MEAN[channel]) / DEVIATION[channel])
            })
            .collect();
        let shape = (1, 3, height as usize, width as usize);
        FeatureMap::from_channels_first(&Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// The size that a picture is seen at: scaled as little as makes one side the trained one, then
    /// both sides rounded to whole patches.
    fn resized(&self, width: u32, height: u32) -> (u32, u32) {
        let (edge, patch) = (self.backbone.image_size() as f64, self.backbone.patch_size() as f64);
        let (across, down) = (edge / f64::from(width), edge / f64::from(height));
        let mut scale = if (1.0 - across).abs() < (1.0 - down).abs() { across } else { down };
        let patches = f64::from(width) * f64::from(height) * (scale / patch).powi(2);
        if patches > MAX_PATCHES as f64 {
            scale *= (MAX_PATCHES as f64 / patches).sqrt();
        }
        // A strip of one patch's height cannot be made narrower: it may not be longer than all patches.
        let side = |side: u32| {
            let patches = (f64::from(side) * scale / patch).round_ties_even();
            (patches.clamp(1.0, MAX_PATCHES as f64) * patch) as u32
        };
        (side(width), side(height))
    }
}
