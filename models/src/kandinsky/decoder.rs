//! From embeddings to a picture: diffusers' `KandinskyV22Pipeline`, `KandinskyV22Img2ImgPipeline` and
//! `KandinskyV22InpaintPipeline`.

use std::ops::ControlFlow;

use candle_core::{DType, Result, Tensor};

use super::Part;
use super::config::{DecoderConfig, MovqConfig};
use super::movq::Movq;
use super::prior::Embeddings;
use super::unet::UNet;
use crate::diffusion::canvas::Canvas;
use crate::diffusion::scheduler::{Plan, Scheduler, SchedulerConfig, StepNoise};
use crate::diffusion::{GenerateError, SchedulerError, SchedulerKind, finite};
use crate::layers::FeatureMap;
use crate::loader::LoadResult;
use crate::picture::RgbPicture;
use crate::placement::Compute;

/// A decoder that is ready to draw.
pub(super) struct Decoder {
    pub(super) unet: UNet,
    pub(super) movq: Movq,
    scheduler: Scheduler,
    latent_channels: usize,
    is_inpainter: bool,
    embedding_width: usize,
    /// Picture pixels along one edge of a latent pixel.
    scale: usize,
    edge_multiple: usize,
    default_edge: usize,
    compute: Compute,
}

/// The extent of a picture in latent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LatentSize {
    pub(super) height: usize,
    pub(super) width: usize,
}

/// A picture that a run starts from, as latents.
pub(super) struct Known {
    pub(super) latents: Vec<f32>,
    /// Where a picture is made anew in part: 1 in each latent pixel that is kept, 0 elsewhere.
    pub(super) kept: Option<Vec<f32>>,
}

/// A run of the decoder.
pub(super) struct DecoderRun<'a> {
    pub(super) size: LatentSize,
    pub(super) guidance: f32,
    pub(super) plan: &'a Plan,
    /// The first step that is taken.
    pub(super) begin: usize,
    pub(super) known: Option<Known>,
}

impl Decoder {
    /// Opens the parts of `kandinsky-2-2-decoder` or `-decoder-inpaint`.
    pub(super) fn load(part: Part, compute: &Compute) -> LoadResult<Self> {
        let (files, unet_path) = (part.files, part.path("unet/config.json"));
        let config = DecoderConfig::open(files, &unet_path)?;
        let movq = MovqConfig::open(files, &part.path("movq/config.json"))?;
        let latents = movq.latent_channels;
        if config.out_channels != 2 * latents {
            let detail = "out_channels must be twice the autoencoder's latent_channels: noise and variance";
            return Err(files.bad_config(&unet_path, detail));
        }
        let is_inpainter = config.in_channels == 2 * latents + 1;
        if config.in_channels != latents && !is_inpainter {
            let detail = format!("in_channels must be {latents}, or {} to inpaint", 2 * latents + 1);
            return Err(files.bad_config(&unet_path, detail));
        }
        let path = part.path("scheduler/scheduler_config.json");
        let scheduler: SchedulerConfig = files.config(&path)?;
        let scheduler =
            Scheduler::new(&scheduler, None).map_err(|error| files.bad_config(&path, error.to_string()))?;
        let scale = movq.scale();
        let most = crate::diffusion::MAX_EDGE;
        Ok(Self {
            unet: UNet::load(&files.weights(&part.path("unet"), compute)?, &config)?,
            movq: Movq::load(&files.weights(&part.path("movq"), compute)?, &movq)?,
            scheduler,
            latent_channels: latents,
            is_inpainter,
            embedding_width: config.embedding_width(),
            scale,
            edge_multiple: scale << (config.block_out_channels.len() - 1),
            default_edge: config.sample_size.unwrap_or(64).saturating_mul(scale).min(most),
            compute: compute.clone(),
        })
    }

    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    pub(super) fn set_scheduler(&mut self, kind: SchedulerKind) -> std::result::Result<(), SchedulerError> {
        self.scheduler = self.scheduler.with_kind(kind)?;
        Ok(())
    }

    pub(super) fn is_inpainter(&self) -> bool {
        self.is_inpainter
    }

    /// Values in an embedding.
    pub(super) fn embedding_width(&self) -> usize {
        self.embedding_width
    }

    pub(super) fn scale(&self) -> usize {
        self.scale
    }

    pub(super) fn edge_multiple(&self) -> usize {
        self.edge_multiple
    }

    pub(super) fn default_edge(&self) -> usize {
        self.default_edge
    }

    pub(super) fn latent_size(&self, width: u32, height: u32) -> LatentSize {
        LatentSize { height: height as usize / self.scale, width: width as usize / self.scale }
    }

    /// Values in the latents of one picture.
    pub(super) fn latent_count(&self, size: LatentSize) -> usize {
        self.latent_channels * size.height * size.width
    }

    /// The picture that a run starts from, as latents.
    pub(super) fn known(&self, canvas: &Canvas) -> std::result::Result<Known, GenerateError> {
        let width = canvas.picture.width();
        let size = self.latent_size(width, canvas.picture.height());
        let kept = canvas.masks.as_ref().map(|masks| kept_of_painted(&masks.latent(width, self.scale), size));
        Ok(Known { latents: self.encode(&canvas.picture)?, kept })
    }

    /// The latents of a picture, `[latent channels, height, width]`.
    pub(super) fn encode(&self, picture: &RgbPicture) -> std::result::Result<Vec<f32>, GenerateError> {
        let channel = |channel: usize| {
            picture.pixels().iter().skip(channel).step_by(3).map(|value| f32::from(*value) / 127.5 - 1.0)
        };
        let values: Vec<f32> = (0..3).flat_map(channel).collect();
        let picture = self.place(values, (1, 3, picture.height() as usize, picture.width() as usize))?;
        finite(self.movq.encode(&picture)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// The picture of latents.
    pub(super) fn decode(
        &self,
        latents: Vec<f32>,
        size: LatentSize,
    ) -> std::result::Result<RgbPicture, GenerateError> {
        let latents = self.place(latents, (1, self.latent_channels, size.height, size.width))?;
        let decoded = self.movq.decode(&latents)?.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
        let values = finite(decoded.flatten_all()?.to_vec1()?)?;
        let sample = |value: f32| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let (width, height) = (size.width * self.scale, size.height * self.scale);
        RgbPicture::new(width as u32, height as u32, values.into_iter().map(sample).collect())
            .map_err(|error| GenerateError::Device(candle_core::Error::Msg(error.to_string())))
    }

    /// Turns noise into the latents of what the embeddings say. `noise`: that of the steps.
    /// `progress` hears the steps done.
    pub(super) fn denoise(
        &self,
        run: &DecoderRun,
        embeddings: &Embeddings,
        start: &[f32],
        noise: &mut dyn StepNoise,
        progress: &mut dyn FnMut(usize) -> ControlFlow<GenerateError>,
    ) -> std::result::Result<Vec<f32>, GenerateError> {
        let conditioning = self.unet.prepare(&self.embeddings(embeddings, run.guidance)?)?;
        let batch = if run.guidance > 1.0 { 2 } else { 1 };
        let constant = self.constant_channels(run);
        let mut latents = first_latents(run, start);
        let mut steps = run.plan.begin(run.begin);
        for (index, step) in run.plan.steps.iter().enumerate().skip(run.begin) {
            if let ControlFlow::Break(error) = progress(index - run.begin) {
                return Err(error);
            }
            let input = latents.iter().map(|value| value * step.input_scale);
            let input: Vec<f32> = input.chain(constant.iter().copied()).collect();
            let channels = input.len() / (run.size.height * run.size.width).max(1);
            let input =
                self.place(input.repeat(batch), (batch, channels, run.size.height, run.size.width))?;
            let input = FeatureMap::from_channels_first(&input)?;
            let output = self.unet.forward(&input, step.timestep, &conditioning)?.to_channels_first()?;
            let output: Vec<f32> = output.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            steps.step(&mut latents, &guide(output, run.guidance, batch), noise);
            if let Some(Known { latents: known, kept: Some(kept) }) = &run.known {
                keep(&mut latents, &run.plan.add_noise(known, start, index + 1), kept);
            }
        }
        finite(latents)
    }

    /// Embeddings as the network takes them: that of what not to show first.
    pub(super) fn embeddings(&self, embeddings: &Embeddings, guidance: f32) -> Result<Tensor> {
        let mut rows = Vec::new();
        if guidance > 1.0 {
            rows.extend_from_slice(&embeddings.negative);
        }
        rows.extend_from_slice(&embeddings.image);
        let count = rows.len() / self.embedding_width.max(1);
        self.place(rows, (count, self.embedding_width))
    }

    /// What an inpainter sees besides the latents: what is kept of the picture, and where.
    fn constant_channels(&self, run: &DecoderRun) -> Vec<f32> {
        let pixels = run.size.height * run.size.width;
        match &run.known {
            _ if !self.is_inpainter => Vec::new(),
            Some(Known { latents, kept: Some(kept) }) => {
                let masked = latents.iter().zip(kept.iter().cycle()).map(|(latent, kept)| latent * kept);
                masked.chain(kept.iter().copied()).collect()
            }
            _ => vec![0.0; (self.latent_channels + 1) * pixels],
        }
    }

    fn place(&self, values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        self.compute.tensor(values, shape)
    }
}

/// What the first step sees. A picture that is made anew in part starts from noise alone, unless
/// steps are left out.
fn first_latents(run: &DecoderRun, noise: &[f32]) -> Vec<f32> {
    match &run.known {
        Some(known) if known.kept.is_none() || run.begin > 0 => {
            run.plan.add_noise(&known.latents, noise, run.begin)
        }
        _ => noise.iter().map(|value| value * run.plan.initial_scale).collect(),
    }
}

/// Puts `known` back where it is kept.
fn keep(latents: &mut [f32], known: &[f32], kept: &[f32]) {
    for ((latent, known), kept) in latents.iter_mut().zip(known).zip(kept.iter().cycle()) {
        *latent = kept * known + (1.0 - kept) * *latent;
    }
}

/// The guided noise, `without + guidance · (with − without)`, then the variance as it is with.
fn guide(mut output: Vec<f32>, guidance: f32, batch: usize) -> Vec<f32> {
    if batch == 1 {
        return output;
    }
    let mut with = output.split_off(output.len() / 2);
    let noise = with.len() / 2;
    for (with, without) in with[..noise].iter_mut().zip(output) {
        *with = without + guidance * (*with - without);
    }
    with
}

/// Where a picture is kept, one value for each latent pixel, of where it is `painted`. What is kept
/// shrinks by one pixel, except towards the upper right and the lower left, as in the reference.
pub(super) fn kept_of_painted(painted: &[f32], size: LatentSize) -> Vec<f32> {
    const NEIGHBOURS: [(isize, isize); 6] = [(-1, 0), (0, -1), (-1, -1), (1, 0), (0, 1), (1, 1)];
    let is_painted = |y: Option<usize>, x: Option<usize>| match (y, x) {
        (Some(y), Some(x)) => y < size.height && x < size.width && painted[y * size.width + x] > 0.0,
        _ => false,
    };
    let kept = |y: usize, x: usize| {
        let near = |(dy, dx): (isize, isize)| is_painted(y.checked_add_signed(dy), x.checked_add_signed(dx));
        !is_painted(Some(y), Some(x)) && !NEIGHBOURS.into_iter().any(near)
    };
    let pixels = (0..size.height).flat_map(|y| (0..size.width).map(move |x| (y, x)));
    pixels.map(|(y, x)| f32::from(u8::from(kept(y, x)))).collect()
}
