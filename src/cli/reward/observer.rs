//! Looks at pictures as a validator does.

use anyhow::Context;
use argus_models::{
    Clip, DeviceKind, ImageHashes as Hashes, LatentEncoder, Registry, RgbPicture, engine::FEATURE_CLIP,
};
use argus_protocols::ImageHashes;

use crate::verify::reward::{Description, PairFeatures, Sight};

/// The models that describe pictures.
pub(super) struct Observer {
    clip: Clip,
    latents: LatentEncoder,
}

/// A picture and what was seen in it.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) picture: RgbPicture,
    hashes: ImageHashes,
    clip: Vec<f32>,
    latents: Vec<f32>,
}

impl Observer {
    pub(super) fn new(threads: usize) -> anyhow::Result<Self> {
        let registry = Registry::default();
        let clip = registry.get(FEATURE_CLIP).context("the registry lacks the features' own model")?;
        Ok(Self {
            clip: Clip::open(&clip.files(), DeviceKind::Cpu, threads)?,
            latents: LatentEncoder::embedded(threads)?,
        })
    }

    pub(super) fn look(&self, picture: RgbPicture) -> anyhow::Result<Seen> {
        let Hashes { average, perceptual, difference, colour } = Hashes::of(&picture);
        let mut clip = self.clip.embed_pictures(std::slice::from_ref(&picture))?;
        Ok(Seen {
            hashes: ImageHashes { average, perceptual, difference, colour },
            clip: clip.pop().unwrap_or_default(),
            latents: self.latents.encode(&picture)?,
            picture,
        })
    }

    /// Unit vectors of texts, in the space of pictures' vectors.
    pub(super) fn texts(&self, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
        Ok(self.clip.embed_texts(texts)?)
    }
}

impl Seen {
    fn sight(&self) -> Sight<'_> {
        let description = Description { hashes: &self.hashes, clip: &self.clip };
        Sight { description, picture: &self.picture, latents: &self.latents }
    }

    /// `None` if the pictures differ in size.
    pub(super) fn beside(&self, other: &Self) -> Option<PairFeatures> {
        PairFeatures::of_pictures(self.sight(), other.sight())
    }
}
