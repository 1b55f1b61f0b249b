//! Large pictures through the autoencoder, tile by tile, so that memory does not grow with them:
//! diffusers' `tiled_encode` and `tiled_decode`. Neighbours overlap by a quarter and are blended.

use candle_core::{DType, Device, Result, Tensor};

/// Edges of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileEdges {
    /// Of what the network takes.
    pub(super) input: usize,
    /// Of what it gives.
    pub(super) output: usize,
}

impl TileEdges {
    /// Input from one tile to the next.
    fn stride(self) -> usize {
        (self.input - self.input / 4).max(1)
    }

    /// Output over which neighbours are blended.
    fn blend(self) -> usize {
        self.output / 4
    }

    /// Output that a tile with a neighbour after it gives.
    fn kept(self) -> usize {
        self.output - self.blend()
    }
}

/// Runs `network` over the tiles of `[1, channels, height, width]`.
pub(super) fn in_tiles(
    input: &Tensor,
    edges: TileEdges,
    network: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (1, _, height, width) = input.dims4()? else {
        candle_core::bail!("pictures are taken in tiles one by one, not {:?}", input.shape());
    };
    let mut bands: Vec<Band> = Vec::new();
    let mut above: Vec<Tile> = Vec::new();
    for top in (0..height).step_by(edges.stride()) {
        let mut row: Vec<Tile> = Vec::new();
        for (column, left) in (0..width).step_by(edges.stride()).enumerate() {
            let part = input
                .narrow(2, top, edges.input.min(height - top))?
                .narrow(3, left, edges.input.min(width - left))?
                .contiguous()?;
            let mut tile = Tile::of(&network(&part)?)?;
            if let Some(above) = above.get(column) {
                tile.blend_below(above, edges.blend());
            }
            if let Some(left) = row.last() {
                tile.blend_right_of(left, edges.blend());
            }
            row.push(tile);
        }
        bands.push(Band::of(&row, edges.kept()));
        above = row;
    }
    let joined = join(&bands)?;
    joined.to_dtype(input.dtype())?.to_device(input.device())
}

/// Values of one tile, channel by channel, row by row.
struct Tile {
    values: Vec<f32>,
    channels: usize,
    height: usize,
    width: usize,
}

impl Tile {
    fn of(tensor: &Tensor) -> Result<Self> {
        let (_, channels, height, width) = tensor.dims4()?;
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { values, channels, height, width })
    }

    fn at(&self, channel: usize, y: usize, x: usize) -> usize {
        (channel * self.height + y) * self.width + x
    }

    fn blend_below(&mut self, above: &Self, blend: usize) {
        let blend = blend.min(above.height).min(self.height);
        for channel in 0..self.channels {
            for y in 0..blend {
                let share = y as f32 / blend as f32;
                for x in 0..self.width.min(above.width) {
                    let (own, other) =
                        (self.at(channel, y, x), above.at(channel, above.height - blend + y, x));
                    self.values[own] = above.values[other] * (1.0 - share) + self.values[own] * share;
                }
            }
        }
    }

    fn blend_right_of(&mut self, left: &Self, blend: usize) {
        let blend = blend.min(left.width).min(self.width);
        for channel in 0..self.channels {
            for y in 0..self.height.min(left.height) {
                for x in 0..blend {
                    let share = x as f32 / blend as f32;
                    let (own, other) = (self.at(channel, y, x), left.at(channel, y, left.width - blend + x));
                    self.values[own] = left.values[other] * (1.0 - share) + self.values[own] * share;
                }
            }
        }
    }
}

/// What a row of tiles gives of the result, channel by channel, row by row.
struct Band {
    values: Vec<f32>,
    channels: usize,
    height: usize,
    width: usize,
}

impl Band {
    fn of(row: &[Tile], kept: usize) -> Self {
        let (channels, height) = row.first().map_or((0, 0), |tile| (tile.channels, tile.height.min(kept)));
        let width = row.iter().map(|tile| tile.width.min(kept)).sum();
        let mut values = Vec::with_capacity(channels * height * width);
        for channel in 0..channels {
            for y in 0..height {
                for tile in row {
                    let start = tile.at(channel, y, 0);
                    values.extend_from_slice(&tile.values[start..start + tile.width.min(kept)]);
                }
            }
        }
        Self { values, channels, height, width }
    }
}

/// The bands one below the other: `[1, channels, height, width]`.
fn join(bands: &[Band]) -> Result<Tensor> {
    let bands = bands.iter().map(|band| {
        Tensor::from_slice(&band.values, (1, band.channels, band.height, band.width), &Device::Cpu)
    });
    Tensor::cat(&bands.collect::<Result<Vec<_>>>()?, 2)
}
