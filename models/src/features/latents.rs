//! What the autoencoder of the embedded model sees in a picture.
//!
//! Latents forgive what an autoencoder forgives, grain above all, and keep what a diffusion model decides on.
//! Everybody uses the same encoder, whatever model made the picture, and it computes on the processor
//! (portable-f32), so that everybody gets the same bits.

use candle_core::{Device, Tensor};

use crate::{
    diffusion::{config::VaeConfig, vae::Autoencoder},
    embedded,
    loader::LoadError,
    picture::RgbPicture,
    placement::Compute,
    pool::Pool,
    resample::Filter,
};

/// The embedded model whose autoencoder it is.
const MODEL: &str = "argus-tiny";
/// The part's folder.
const PART: &str = "vae";
/// The longest edge of what is encoded, however large the autoencoder's own pictures are.
const MAX_EDGE: u32 = 128;

/// Encodes pictures of any size.
pub struct LatentEncoder {
    autoencoder: Autoencoder,
    scaling_factor: f64,
    shift: f64,
    /// Longest edge of what is encoded; larger pictures are shrunk to it.
    edge: u32,
    /// Pixels along one edge of a latent pixel.
    scale: u32,
    pool: Pool,
}

impl LatentEncoder {
    /// The one in the binary. `threads`: 0 for one a core.
    pub fn embedded(threads: usize) -> Result<Self, LoadError> {
        let files = embedded::find(MODEL).expect("the model is in the binary");
        let config = VaeConfig::open(&files, "vae/config.json")?;
        let weights = files.weights(PART, &Compute::HOST)?;
        let scale = config.scale() as u32;
        Ok(Self {
            autoencoder: Autoencoder::load(&weights, &config)?,
            scaling_factor: config.scaling_factor,
            shift: config.shift_factor.unwrap_or(0.0),
            edge: (config.trained_edge() as u32).clamp(scale, MAX_EDGE),
            scale,
            pool: Pool::new(threads)?,
        })
    }

    /// Means of the latents of a picture, scaled as a diffusion model takes them (a variance of about 1),
    /// channel by channel.
    pub fn encode(&self, picture: &RgbPicture) -> candle_core::Result<Vec<f32>> {
        self.pool.run(|| {
            let picture = self.fitted(picture);
            let shape = (1, 3, picture.height() as usize, picture.width() as usize);
            let channel = |channel: usize| picture.pixels().iter().skip(channel).step_by(3);
            let signed = |sample: &u8| f32::from(*sample) / 127.5 - 1.0;
            let values: Vec<f32> = (0..3).flat_map(channel).map(signed).collect();
            let mean = self.autoencoder.encode(&Tensor::from_vec(values, shape, &Device::Cpu)?)?.mean;
            let latents = mean.flatten_all()?.to_vec1::<f32>()?;
            let scaled = |latent: f32| ((f64::from(latent) - self.shift) * self.scaling_factor) as f32;
            Ok(latents.into_iter().map(scaled).collect())
        })
    }

    /// As large as the encoder takes it.
    fn fitted(&self, picture: &RgbPicture) -> RgbPicture {
        let (width, height) = (picture.width(), picture.height());
        let longer = width.max(height);
        let side = |side: u32| {
            let shrunk = if longer > self.edge {
                (u64::from(side) * u64::from(self.edge) / u64::from(longer)) as u32
            } else {
                side
            };
            (shrunk / self.scale).max(1) * self.scale
        };
        match (side(width), side(height)) {
            same if same == (width, height) => picture.clone(),
            (width, height) => picture.resize(width, height, Filter::Bicubic),
        }
    }

    /// Root of the mean square of the differences. `None` if the latents are not as many, or not finite.
    pub fn distance(a: &[f32], b: &[f32]) -> Option<f64> {
        if a.len() != b.len() || a.is_empty() {
            return None;
        }
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)) * (f64::from(*a) - f64::from(*b));
        let distance = (a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64).sqrt();
        distance.is_finite().then_some(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Limits;

    fn fixture(file: &str) -> RgbPicture {
        let path = format!("{}/tests/fixtures/pictures/{file}", env!("CARGO_MANIFEST_DIR"));
        RgbPicture::decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap()
    }

    #[test]
    fn grain_lies_nearer_than_another_picture() {
        let encoder = LatentEncoder::embedded(1).unwrap();
        let picture = fixture("chelsea-96x80.png").resize(64, 64, Filter::Bicubic);
        let grain = RgbPicture::from_fn(64, 64, |x, y| {
            let place = (y * 64 + x) as usize * 3;
            let pixel = &picture.pixels()[place..place + 3];
            std::array::from_fn(|c| pixel[c].saturating_add(((x + y) % 2) as u8))
        });
        let encode = |picture: &RgbPicture| encoder.encode(picture).unwrap();
        let own = encode(&picture);
        let distance = |other: &RgbPicture| LatentEncoder::distance(&own, &encode(other)).unwrap();
        assert_eq!(distance(&picture), 0.0);
        let other = fixture("scene-64x64.png");
        assert!(distance(&grain) * 10.0 < distance(&other), "{} {}", distance(&grain), distance(&other));
    }

    #[test]
    fn pictures_of_all_sizes_are_encoded() {
        let encoder = LatentEncoder::embedded(2).unwrap();
        for (width, height) in [(1, 1), (5, 3), (64, 64), (200, 50), (47, 300)] {
            let latents = encoder.encode(&RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, 9]));
            assert!(latents.unwrap().iter().all(|latent| latent.is_finite()), "{width}×{height}");
        }
    }

    #[test]
    fn latents_that_cannot_be_compared_have_no_distance() {
        assert_eq!(LatentEncoder::distance(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(LatentEncoder::distance(&[], &[]), None);
        assert_eq!(LatentEncoder::distance(&[f32::NAN], &[1.0]), None);
    }
}
