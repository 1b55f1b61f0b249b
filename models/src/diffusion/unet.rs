//! The network that predicts the noise in latents: diffusers' `UNet2DConditionModel`.

use candle_core::{Result, Tensor};

use super::blocks::{ResidualBlock, Upsampler};
use super::config::UNetConfig;
use super::contracting::{
    Builder, Conditioning, Contexts, Contracted, ContractingPath, TextConditioning, attend_next,
};
use super::control::Residuals;
use super::transformer::SpatialTransformer;
use crate::layers::{Conv2d, FeatureMap, GroupNorm, Window};
use crate::weights::{Weights, WeightsResult};

/// A denoising UNet.
pub(crate) struct UNet {
    contracting: ContractingPath,
    up: Vec<UpBlock>,
    output_norm: GroupNorm,
    output: Conv2d,
}

impl UNet {
    pub(crate) fn load(weights: &Weights, config: &UNetConfig) -> WeightsResult<Self> {
        let figures = &config.contracting;
        let count = figures.block_out_channels.len();
        let first = figures.block_out_channels[0];
        let builder = Builder::new(weights, figures);
        let up_block = |index: usize| up_block(&builder, weights, config, index);
        Ok(Self {
            contracting: ContractingPath::load(weights, figures)?,
            up: (0..count).map(up_block).collect::<WeightsResult<_>>()?,
            output_norm: GroupNorm::load(
                &weights.at("conv_norm_out"),
                figures.norm_num_groups,
                first,
                figures.norm_eps,
            )?,
            output: Conv2d::load(&weights.at("conv_out"), first, config.out_channels, Window::SAME)?,
        })
    }

    /// Computes what does not change from step to step.
    pub(crate) fn prepare(&self, text: &TextConditioning) -> Result<Conditioning> {
        let mut conditioning = self.contracting.prepare(text)?;
        for transformer in self.up.iter().flat_map(|block| &block.attentions) {
            conditioning.contexts.push(transformer.prepare(text.context)?);
        }
        Ok(conditioning)
    }

    /// Predicts from `latents` at a timestep of training, steered by what ControlNets add.
    pub(crate) fn forward(
        &self,
        latents: &FeatureMap,
        timestep: f64,
        conditioning: &Conditioning,
        residuals: Option<&Residuals>,
    ) -> Result<FeatureMap> {
        let time = self.contracting.time(timestep, conditioning, latents.native())?;
        let mut contexts = conditioning.contexts.iter();
        let mut contracted = self.contracting.forward(latents, None, &time, &mut contexts)?;
        if let Some(residuals) = residuals {
            residuals.steer(&mut contracted)?;
        }
        let Contracted { middle: mut hidden, mut skips } = contracted;
        for block in &self.up {
            hidden = block.forward(hidden, &time, &mut contexts, &mut skips)?;
        }
        self.output.forward(&self.output_norm.forward_silu(&hidden)?)
    }
}

/// The block at `index` from the inside.
fn up_block(
    builder: &Builder,
    weights: &Weights,
    config: &UNetConfig,
    index: usize,
) -> WeightsResult<UpBlock> {
    let weights = weights.at(format!("up_blocks.{index}"));
    let channels = &config.contracting.block_out_channels;
    let block = channels.len() - 1 - index;
    let (inputs, outputs) = (channels[(block + 1).min(channels.len() - 1)], channels[block]);
    let layers = config.contracting.layers_per_block + 1;
    let residual = |layer: usize| {
        let skipped = if layer + 1 == layers { channels[block.saturating_sub(1)] } else { outputs };
        let below = if layer == 0 { inputs } else { outputs };
        builder.residual(&weights.at(format!("resnets.{layer}")), below + skipped, outputs)
    };
    let upsampler = (block > 0).then(|| Upsampler::load(&weights.at("upsamplers.0"), outputs));
    Ok(UpBlock {
        residuals: (0..layers).map(residual).collect::<WeightsResult<_>>()?,
        attentions: builder.transformers(&weights, &config.up_block_types[index], block, layers)?,
        upsampler: upsampler.transpose()?,
    })
}

struct UpBlock {
    residuals: Vec<ResidualBlock>,
    /// One for each residual block, or none.
    attentions: Vec<SpatialTransformer>,
    upsampler: Option<Upsampler>,
}

impl UpBlock {
    fn forward(
        &self,
        mut hidden: FeatureMap,
        time: &Tensor,
        contexts: &mut Contexts,
        skips: &mut Vec<FeatureMap>,
    ) -> Result<FeatureMap> {
        for (layer, residual) in self.residuals.iter().enumerate() {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the up blocks are more than the down blocks")
            };
            hidden = hidden.concatenate(&skip)?;
            drop(skip);
            hidden = residual.forward(hidden, Some(time))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attend_next(attention, &hidden, contexts)?;
            }
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&hidden),
            None => Ok(hidden),
        }
    }
}
