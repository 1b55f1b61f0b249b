//! ControlNet (Zhang et al., "Adding conditional control to text-to-image diffusion models", 2023;
//! diffusers' `ControlNetModel`): a copy of a UNet's contracting path that sees a control picture and
//! adds to what the UNet passes across.

use candle_core::{Result, Tensor};

use super::config::ControlNetConfig;
use super::contracting::{Conditioning, Contracted, ContractingPath, TextConditioning};
use crate::layers::{Activation, Conv2d, FeatureMap, Window};
use crate::weights::{Weights, WeightsResult};

/// What ControlNets add to the results of a UNet's contracting path.
pub(crate) struct Residuals {
    pub(super) skips: Vec<FeatureMap>,
    pub(super) middle: FeatureMap,
}

impl Residuals {
    /// These and those of another ControlNet.
    pub(crate) fn add(mut self, other: &Self) -> Result<Self> {
        for (own, other) in self.skips.iter_mut().zip(&other.skips) {
            *own = own.add(other)?;
        }
        self.middle = self.middle.add(&other.middle)?;
        Ok(self)
    }

    /// Adds them to what a UNet's contracting path gave.
    pub(super) fn steer(&self, contracted: &mut Contracted) -> Result<()> {
        if self.skips.len() != contracted.skips.len() {
            candle_core::bail!("the ControlNet has {} layers, not the UNet's", self.skips.len());
        }
        for (skip, residual) in contracted.skips.iter_mut().zip(&self.skips) {
            *skip = skip.add(residual)?;
        }
        contracted.middle = contracted.middle.add(&self.middle)?;
        Ok(())
    }
}

/// A ControlNet.
pub(crate) struct ControlNet {
    contracting: ContractingPath,
    hint: HintEmbedding,
    /// One for each result that the contracting path passes across.
    skips: Vec<Conv2d>,
    middle: Conv2d,
}

impl ControlNet {
    pub(crate) fn load(weights: &Weights, config: &ControlNetConfig) -> WeightsResult<Self> {
        let figures = &config.contracting;
        let channels = &figures.block_out_channels;
        let last = channels.len() - 1;
        // The first convolution, then each block's layers and downsampler.
        let mut widths = vec![channels[0]];
        for (block, width) in channels.iter().enumerate() {
            let results = figures.layers_per_block + usize::from(block < last);
            widths.extend(std::iter::repeat_n(*width, results));
        }
        let point = |name: String, width| Conv2d::load(&weights.at(name), width, width, Window::POINT);
        let skip = |(index, width): (usize, &usize)| point(format!("controlnet_down_blocks.{index}"), *width);
        Ok(Self {
            contracting: ContractingPath::load(weights, figures)?,
            hint: HintEmbedding::load(
                &weights.at("controlnet_cond_embedding"),
                &config.conditioning_embedding_out_channels,
                channels[0],
            )?,
            skips: widths.iter().enumerate().map(skip).collect::<WeightsResult<_>>()?,
            middle: point("controlnet_mid_block".to_owned(), channels[last])?,
        })
    }

    /// Computes what of a prompt does not change from step to step.
    pub(crate) fn prepare(&self, text: &TextConditioning) -> Result<Conditioning> {
        self.contracting.prepare(text)
    }

    /// Embeds a control picture, `[1, 3, height, width]` in 0 … 1, once for all steps, for a batch
    /// of latents.
    pub(crate) fn embed(&self, picture: &Tensor, batch: usize) -> Result<FeatureMap> {
        let embedded = self.hint.forward(&FeatureMap::from_channels_first(picture)?)?;
        let native = embedded.native();
        Ok(FeatureMap::from_native(Tensor::cat(&vec![native; batch], 0)?))
    }

    /// What this network adds at one step, `scale` times. `hint`: from [`Self::embed`].
    pub(crate) fn forward(
        &self,
        latents: &FeatureMap,
        timestep: f64,
        hint: &FeatureMap,
        conditioning: &Conditioning,
        scale: f64,
    ) -> Result<Residuals> {
        let time = self.contracting.time(timestep, conditioning, latents.native())?;
        let mut contexts = conditioning.contexts.iter();
        let contracted = self.contracting.forward(latents, Some(hint), &time, &mut contexts)?;
        let scaled = |(conv, map): (&Conv2d, &FeatureMap)| conv.forward(map)?.scale(scale);
        Ok(Residuals {
            skips: self.skips.iter().zip(&contracted.skips).map(scaled).collect::<Result<_>>()?,
            middle: scaled((&self.middle, &contracted.middle))?,
        })
    }
}

/// The convolutions that bring a control picture to the size of the latents.
struct HintEmbedding {
    convolutions: Vec<Conv2d>,
    output: Conv2d,
}

impl HintEmbedding {
    fn load(weights: &Weights, widths: &[usize], outputs: usize) -> WeightsResult<Self> {
        let mut convolutions = vec![Conv2d::load(&weights.at("conv_in"), 3, widths[0], Window::SAME)?];
        for (index, pair) in widths.windows(2).enumerate() {
            let block = |offset: usize| weights.at(format!("blocks.{}", 2 * index + offset));
            convolutions.push(Conv2d::load(&block(0), pair[0], pair[0], Window::SAME)?);
            convolutions.push(Conv2d::load(&block(1), pair[0], pair[1], Window::HALF)?);
        }
        let output = Conv2d::load(&weights.at("conv_out"), widths[widths.len() - 1], outputs, Window::SAME)?;
        Ok(Self { convolutions, output })
    }

    fn forward(&self, picture: &FeatureMap) -> Result<FeatureMap> {
        let mut hidden = picture.clone();
        for convolution in &self.convolutions {
            let convolved = convolution.forward(&hidden)?;
            hidden = FeatureMap::from_native(Activation::Silu.forward(convolved.native())?);
        }
        self.output.forward(&hidden)
    }
}
