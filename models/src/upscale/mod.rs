//! Upscaling networks: Real-ESRGAN's RRDBNet and SRVGGNetCompact, and waifu2x' upconv_7.
//!
//! A model is a folder with the weights (`model.safetensors`) and a `config.json` that names the
//! architecture, the scale and the range of the samples; everything else is read off the weights.
//! Large pictures are taken in parts that overlap, so that memory stays bounded: SRVGGNetCompact and
//! upconv_7 in tiles, RRDBNet, whose outputs depend on pixels hundreds of places away, in strips layer
//! by layer. Invariant: the overlap covers all that an output pixel depends on, so that on the
//! processor the parts cannot be told from one pass, to the bit.

mod compact;
mod rrdb;
mod tiles;
mod upconv;

#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::diffusion::{GenerateError, StepControl};
use crate::layers::FeatureMap;
use crate::loader::{LoadError, LoadResult, ModelFiles};
use crate::picture::RgbPicture;
use crate::placement::{Compute, Placement};
use crate::pool::Pool;
use crate::resample::Filter;
use crate::weights::Weights;
use compact::Compact;
use rrdb::Rrdb;
use tiles::{Rect, Tile, tiles};
use upconv::Upconv;

type GenerateResult<T> = Result<T, GenerateError>;

/// The most pixels that a network is asked for, before any shrinking to a smaller factor. RRDBNet
/// holds about 2 GB at this size.
pub const MAX_OUTPUT_PIXELS: u64 = 16 << 20;
/// What a network may hold of one part's activations, in bytes, as far as it can be foreseen.
const PART_BYTES: usize = 256 << 20;
/// The most blocks or layers, and the most channels, that a network may have.
const MAX_LAYERS: usize = 256;
const MAX_CHANNELS: usize = 1024;

/// The `config.json` of an upscaler.
#[derive(Debug, Clone, Deserialize)]
struct UpscalerConfig {
    architecture: Architecture,
    /// By how much each edge grows.
    scale: u32,
    /// What black and white are to the network.
    #[serde(default = "unit_range")]
    input_range: [f32; 2],
}

fn unit_range() -> [f32; 2] {
    [0.0, 1.0]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Architecture {
    #[serde(rename = "rrdbnet")]
    Rrdb,
    #[serde(rename = "srvggnet-compact")]
    Compact,
    #[serde(rename = "upconv7")]
    Upconv,
}

/// What a network reads around a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Border {
    /// Up to so many pixels of the picture, and nothing beyond its edges.
    Picture(usize),
    /// Always so many pixels, which its output lacks: those beyond the picture repeat its edge.
    Repeated(usize),
}

impl Border {
    fn pixels(self) -> usize {
        match self {
            Self::Picture(pixels) | Self::Repeated(pixels) => pixels,
        }
    }
}

/// What tiling and padding need to know of a network.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// By how much each edge grows.
    scale: usize,
    border: Border,
    /// Edges of the input must be multiples of this.
    multiple: usize,
    /// Bytes of activations for each pixel of a tile; `None` where the network takes the whole picture
    /// and bounds its own memory.
    pixel_bytes: Option<usize>,
    /// How often [`Progress::advance`] is called for one tile.
    stages: usize,
}

/// A network: its input is `[1, 3, height, width]`, its output `scale` times as large.
trait Network: Send + Sync {
    fn plan(&self) -> Plan;

    /// `part_bytes`: about how much the activations of one part may take, where it takes parts.
    fn forward(
        &self,
        input: &FeatureMap,
        part_bytes: usize,
        progress: &mut Progress,
    ) -> GenerateResult<Tensor>;
}

/// Counts the stages of all tiles, and ends the work where whoever waits for it says so.
struct Progress<'a> {
    control: &'a mut (dyn StepControl + Send),
    done: usize,
    of: usize,
}

impl Progress<'_> {
    fn advance(&mut self) -> GenerateResult<()> {
        self.done += 1;
        self.tell()
    }

    fn tell(&mut self) -> GenerateResult<()> {
        // The last word is not asked whether to go on; the picture is as good as made.
        if self.control.step(self.done, self.of).is_break() && self.done < self.of {
            return Err(GenerateError::Cancelled { done: self.done, of: self.of });
        }
        Ok(())
    }
}

/// An upscaling model that is ready to run.
pub struct Upscaler {
    network: Box<dyn Network>,
    plan: Plan,
    range: [f32; 2],
    part_bytes: usize,
    compute: Compute,
    pool: Pool,
}

impl Upscaler {
    /// Opens an upscaling model. `threads`: 0 for one a core.
    pub fn open(
        files: &ModelFiles,
        placement: impl Into<Placement>,
        threads: usize,
    ) -> Result<Self, LoadError> {
        Self::open_on(files, placement.into(), Pool::new(threads)?)
    }

    /// As [`Self::open`], to compute on the threads of `pool`.
    pub(crate) fn open_on(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        pool.run(|| Self::load(files, placement, pool.clone()))
    }

    fn load(files: &ModelFiles, placement: Placement, pool: Pool) -> LoadResult<Self> {
        const CONFIG: &str = "config.json";
        let config: UpscalerConfig = files.config(CONFIG)?;
        let [low, high] = config.input_range;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(files.bad_config(CONFIG, format!("input_range {low} to {high} is none")));
        }
        let compute = placement.open()?;
        let weights = unwrapped(files.weights("", &compute)?);
        let network: Box<dyn Network> = match config.architecture {
            Architecture::Rrdb => Box::new(Rrdb::load(&weights)?),
            Architecture::Compact => Box::new(Compact::load(&weights)?),
            Architecture::Upconv => Box::new(Upconv::load(&weights)?),
        };
        let plan = network.plan();
        if plan.scale != config.scale as usize {
            let detail = format!("scale is {}, but the weights are of scale {}", config.scale, plan.scale);
            return Err(files.bad_config(CONFIG, detail));
        }
        Ok(Self { network, plan, range: [low, high], part_bytes: PART_BYTES, compute, pool })
    }

    /// By how much the network itself makes each edge grow.
    pub fn scale(&self) -> u32 {
        self.plan.scale as u32
    }

    /// The factors that can be asked for: the network's own, and 2 where that is 4, for which its
    /// output is shrunk.
    pub fn factors(&self) -> &'static [u32] {
        match self.plan.scale {
            4 => &[2, 4],
            3 => &[3],
            2 => &[2],
            _ => &[1],
        }
    }

    /// The picture with edges `factor` times as long. `control` hears of each stage of each tile,
    /// and may end the work there.
    ///
    /// # Errors
    /// [`GenerateError::Invalid`] for a factor that is not among [`Self::factors`], or where the
    /// network's output would have more than [`MAX_OUTPUT_PIXELS`].
    pub fn upscale(
        &self,
        picture: &RgbPicture,
        factor: u32,
        control: &mut (dyn StepControl + Send),
    ) -> GenerateResult<RgbPicture> {
        if !self.factors().contains(&factor) {
            return Err(GenerateError::Invalid {
                field: "factor",
                found: factor.to_string(),
                allowed: format!("one of {:?}", self.factors()),
            });
        }
        let pixels = u64::from(picture.width()) * u64::from(picture.height());
        let grown = pixels.saturating_mul(u64::from(self.scale()).pow(2));
        if grown > MAX_OUTPUT_PIXELS {
            return Err(GenerateError::Invalid {
                field: "picture",
                found: format!("{}×{}", picture.width(), picture.height()),
                allowed: format!("of at most {} pixels", MAX_OUTPUT_PIXELS / u64::from(self.scale()).pow(2)),
            });
        }
        self.pool.run(|| {
            let upscaled = self.run(picture, control)?;
            Ok(match factor == self.scale() {
                true => upscaled,
                false => {
                    upscaled.resize(picture.width() * factor, picture.height() * factor, Filter::Lanczos)
                }
            })
        })
    }

    /// The picture at the network's own scale.
    fn run(
        &self,
        picture: &RgbPicture,
        control: &mut (dyn StepControl + Send),
    ) -> GenerateResult<RgbPicture> {
        let Plan { scale, multiple, border, .. } = self.plan;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let padded = [width, height].map(|side| side.next_multiple_of(multiple));
        let room = match self.plan.pixel_bytes {
            Some(bytes) => (self.part_bytes / bytes.max(1)).isqrt(),
            None => usize::MAX,
        };
        let tiles = tiles(padded, room, border, multiple);
        let mut progress = Progress { control, done: 0, of: tiles.len() * self.plan.stages };
        progress.tell()?;
        let mut pixels = vec![0u8; width * height * scale * scale * 3];
        for tile in &tiles {
            let input = self.input(picture, tile.input)?;
            let output = self.network.forward(&input, self.part_bytes, &mut progress)?;
            let output: Vec<f32> =
                output.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            self.place(&output, tile, [width, height], &mut pixels)?;
        }
        let side = |side: usize| (side * scale) as u32;
        Ok(RgbPicture::new(side(width), side(height), pixels).expect("the sides are the picture's, scaled"))
    }

    /// The samples of a rectangle as the network takes them. Beyond the picture lie its own pixels:
    /// mirrored where edges are padded to a multiple, repeated where the border asks for it.
    fn input(&self, picture: &RgbPicture, rect: Rect) -> GenerateResult<FeatureMap> {
        let inside = |position: i64, side: u32| match self.plan.border {
            Border::Repeated(_) => position.clamp(0, i64::from(side) - 1) as usize,
            Border::Picture(_) if position < i64::from(side) => position as usize,
            Border::Picture(_) => (2 * (i64::from(side) - 1) - position).max(0) as usize,
        };
        let [low, high] = self.range;
        let stride = picture.width() as usize;
        let mut values = Vec::with_capacity(3 * rect.width * rect.height);
        for channel in 0..3 {
            for y in 0..rect.height as i64 {
                let row = inside(rect.top + y, picture.height()) * stride;
                values.extend((0..rect.width as i64).map(|x| {
                    let column = inside(rect.left + x, picture.width());
                    let sample = f32::from(picture.pixels()[(row + column) * 3 + channel]) / 255.0;
                    sample * (high - low) + low
                }));
            }
        }
        let values = Tensor::from_vec(values, (1, 3, rect.height, rect.width), &Device::Cpu)?;
        Ok(FeatureMap::from_channels_first(
            &values.to_dtype(self.compute.dtype)?.to_device(&self.compute.device)?,
        )?)
    }

    /// Writes a tile's own part of its output into the whole picture's pixels.
    fn place(
        &self,
        output: &[f32],
        tile: &Tile,
        [width, height]: [usize; 2],
        pixels: &mut [u8],
    ) -> GenerateResult<()> {
        let scale = self.plan.scale;
        let lost = match self.plan.border {
            Border::Picture(_) => 0,
            Border::Repeated(border) => border,
        };
        let (columns, rows) = ((tile.input.width - 2 * lost) * scale, (tile.input.height - 2 * lost) * scale);
        debug_assert_eq!(output.len(), 3 * columns * rows);
        let offset = |own: i64, input: i64| (own - input) as usize * scale - lost * scale;
        let (left, top) = (offset(tile.own.left, tile.input.left), offset(tile.own.top, tile.input.top));
        let [low, high] = self.range;
        // Padding to a multiple makes tiles reach beyond the picture.
        let own_width = tile.own.width.min(width - tile.own.left as usize) * scale;
        let own_height = tile.own.height.min(height - tile.own.top as usize) * scale;
        for y in 0..own_height {
            let target = (tile.own.top as usize * scale + y) * width * scale + tile.own.left as usize * scale;
            for x in 0..own_width {
                for channel in 0..3 {
                    let value = output[(channel * rows + top + y) * columns + left + x];
                    if !value.is_finite() {
                        return Err(GenerateError::NotFinite);
                    }
                    let sample = ((value - low) / (high - low)).clamp(0.0, 1.0);
                    pixels[(target + x) * 3 + channel] = (sample * 255.0).round() as u8;
                }
            }
        }
        Ok(())
    }
}

/// The weights themselves where training wrapped them: Real-ESRGAN's files keep them below a name.
fn unwrapped(weights: Weights) -> Weights {
    ["params_ema", "params"]
        .into_iter()
        .map(|name| weights.at(name))
        .find(|inner| ["conv_first.weight", "body.0.weight"].iter().any(|name| inner.contains(name)))
        .unwrap_or(weights)
}
