//! Queries that this validator makes up: prompts from a Markov chain over captions, parameters drawn from
//! the model's own ranges, pictures mixed from pictures made before, masks and pads of random place and size.
//!
//! What is drawn depends on the random source and the pictures made before, so that nobody can prepare
//! answers; and leaving the work out shows: a mask, a strength or a pad is never so small that the picture
//! as it was sent would pass for its answer.

mod gallery;
mod prompts;

use argus_models::{
    ModelSpec, RgbPicture,
    preprocess::{self, CannyThresholds, GreyPicture},
    registry::{EdgeRange, PictureLimits},
};
use argus_protocols::{
    Task, TaskKind,
    task::{Control, ControlKind, Generation, Pads, Pictures, Start, Upscale},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use self::gallery::Gallery;
pub use self::prompts::{PROMPT_CHARACTERS, Prompts};
use crate::jobs::{model_task, upscale_factors};

/// Draws the request of a synthetic round.
pub struct Synthesiser {
    prompts: Prompts,
    gallery: Mutex<Gallery>,
}

/// Pictures in one request for embeddings or classes.
const PICTURES: std::ops::RangeInclusive<usize> = 1..=3;
/// How much of a picture is made anew where one is given: the middle of what people use, and enough that
/// sending the picture back shows.
const STRENGTH: std::ops::RangeInclusive<f32> = 0.4..=0.9;
/// Strength of inpainting, whose mask says what stays.
const INPAINT_STRENGTH: std::ops::RangeInclusive<f32> = 0.7..=1.0;
/// The radius of a mask as a share of the picture's shorter side. The seed's 20 to 100 pixels are a tenth of
/// that on its pictures, and then an untouched picture differs by too little to be told.
const MASK_RADIUS: std::ops::RangeInclusive<f64> = 0.125..=0.375;
/// The most that one pad takes of its side.
const PAD: u32 = 4;
/// The least that all pads of a side take of it.
const PADS: u32 = 8;
/// How strongly a control steers.
const CONTROL_SCALE: std::ops::RangeInclusive<f32> = 0.6..=1.2;

impl Synthesiser {
    pub fn new() -> Self {
        Self { prompts: Prompts::new(), gallery: Mutex::default() }
    }

    /// A picture that was made, for later requests about pictures.
    pub fn add(&self, picture: &RgbPicture) {
        self.gallery.lock().add(picture);
    }

    /// The request that `seed` stands for, within what the model allows. `None`: the model does not serve it.
    pub fn draw(&self, task: TaskKind, spec: &ModelSpec, seed: u64) -> Option<Task> {
        let mut rng = StdRng::seed_from_u64(seed);
        let rng = &mut rng;
        if !spec.serves(model_task(task)) {
            return None;
        }
        let model = spec.id.to_string();
        Some(match task {
            TaskKind::ImageEmbedding => Task::ImageEmbedding(self.pictures(model, rng)),
            TaskKind::NsfwClassification => Task::NsfwClassification(self.pictures(model, rng)),
            TaskKind::Upscale => Task::Upscale(Upscale {
                model,
                picture: self.gallery.lock().draw(rng).encode_png(),
                factor: *upscale_factors(spec).choose(rng)?,
            }),
            _ => Task::Generation(self.generation(task, spec, spec.pictures.as_ref()?, rng)),
        })
    }

    fn pictures(&self, model: String, rng: &mut StdRng) -> Pictures {
        let gallery = self.gallery.lock();
        let pictures = (0..rng.random_range(PICTURES)).map(|_| gallery.draw(rng).encode_png()).collect();
        Pictures { model, pictures }
    }

    fn generation(
        &self,
        task: TaskKind,
        spec: &ModelSpec,
        limits: &PictureLimits,
        rng: &mut StdRng,
    ) -> Generation {
        // From half to all of the usual steps: enough that leaving some out saves time and shows.
        let usual = limits.steps.default;
        let steps = usual.div_ceil(2).max(limits.steps.min)..=usual;
        let guidance = limits.guidance.default.max(limits.guidance.min);
        let strongest = (guidance * 1.5).min(limits.guidance.max);
        let (width, height) = (edge(&limits.size, rng), edge(&limits.size, rng));
        Generation {
            model: spec.id.to_string(),
            prompt: self.prompts.draw(rng),
            negative_prompt: String::new(),
            width,
            height,
            steps: rng.random_range(steps) as u32,
            guidance: rng.random_range(guidance..=strongest),
            seed: rng.random(),
            start: self.start(task, limits, (width, height), rng),
            controls: self.controls(task, width, height, rng),
        }
    }

    fn start(
        &self,
        task: TaskKind,
        limits: &PictureLimits,
        (width, height): (u32, u32),
        rng: &mut StdRng,
    ) -> Start {
        let strength = |usual: std::ops::RangeInclusive<f32>, rng: &mut StdRng| {
            rng.random_range(usual).clamp(limits.strength.min, limits.strength.max)
        };
        let gallery = self.gallery.lock();
        match task {
            TaskKind::ImageToImage => Start::Picture {
                picture: gallery.draw_sized(width, height, rng).encode_png(),
                strength: strength(STRENGTH, rng),
            },
            TaskKind::Inpaint => Start::Inpaint {
                picture: gallery.draw_sized(width, height, rng).encode_png(),
                mask: disc(width, height, rng).encode_png(),
                strength: strength(INPAINT_STRENGTH, rng),
            },
            TaskKind::Uncrop => {
                let pads = pads(width, height, rng);
                let (across, down) = (pads.left + pads.right, pads.top + pads.bottom);
                Start::Uncrop {
                    picture: gallery.draw_sized(width - across, height - down, rng).encode_png(),
                    pads,
                }
            }
            _ => Start::Noise,
        }
    }

    /// The picture that steers: as it is, so that drawing its lines is the miner's work too, or its lines
    /// drawn here. Any picture in grey is a depth map.
    fn controls(&self, task: TaskKind, width: u32, height: u32, rng: &mut StdRng) -> Vec<Control> {
        let kind = match task {
            TaskKind::Scribble => ControlKind::Scribble,
            TaskKind::Canny => ControlKind::Canny,
            TaskKind::Depth => ControlKind::Depth,
            _ => return Vec::new(),
        };
        let picture = self.gallery.lock().draw_sized(width, height, rng);
        let is_prepared = kind == ControlKind::Depth || rng.random();
        let picture = match kind {
            _ if !is_prepared => picture,
            ControlKind::Scribble => preprocess::scribble(&picture),
            ControlKind::Canny => preprocess::canny(&picture, CannyThresholds::CONTROL),
            ControlKind::Depth => GreyPicture::of(&picture).to_rgb(),
        };
        let scale = rng.random_range(CONTROL_SCALE);
        vec![Control { kind, picture: picture.encode_png(), is_prepared, scale }]
    }
}

impl Default for Synthesiser {
    fn default() -> Self {
        Self::new()
    }
}

fn edge(allowed: &EdgeRange, rng: &mut StdRng) -> u32 {
    let multiples = allowed.min.div_ceil(allowed.multiple_of)..=allowed.max / allowed.multiple_of;
    rng.random_range(multiples) * allowed.multiple_of
}

/// A white disc on black.
fn disc(width: u32, height: u32, rng: &mut StdRng) -> RgbPicture {
    let radius = f64::from(width.min(height)) * rng.random_range(MASK_RADIUS);
    let (x, y) = (rng.random_range(0.0..f64::from(width)), rng.random_range(0.0..f64::from(height)));
    RgbPicture::from_fn(width, height, |column, row| {
        let inside = (f64::from(column) - x).hypot(f64::from(row) - y) <= radius;
        [if inside { 255 } else { 0 }; 3]
    })
}

/// Pads that leave at least half of each side, and are not too small on one of them.
fn pads(width: u32, height: u32, rng: &mut StdRng) -> Pads {
    loop {
        let mut pad = |side: u32| rng.random_range(0..=side / PAD);
        let pads = Pads { left: pad(width), right: pad(width), top: pad(height), bottom: pad(height) };
        if pads.left + pads.right >= width / PADS || pads.top + pads.bottom >= height / PADS {
            return pads;
        }
    }
}

#[cfg(test)]
mod tests {
    use argus_models::{
        Limits, Registry,
        registry::{DEFAULT_REGISTRY, ModelTask, UpscaleLimits},
    };

    use super::*;

    /// The models of the registry, each as if it served every task of its kind.
    fn capable() -> Vec<ModelSpec> {
        let registry = Registry::from_toml(DEFAULT_REGISTRY).unwrap();
        let able = |spec: &ModelSpec| {
            let is_generative = spec.pictures.is_some();
            let tasks = ModelTask::ALL.into_iter().filter(|task| task.is_generation() == is_generative);
            let upscale = (!is_generative).then(|| UpscaleLimits { factors: vec![2, 4], max_edge: 512 });
            ModelSpec { tasks: tasks.collect(), upscale, ..spec.clone() }
        };
        registry.models().iter().map(able).collect()
    }

    fn decoded(file: &[u8]) -> RgbPicture {
        RgbPicture::decode(file, &Limits::default()).unwrap()
    }

    #[test]
    fn requests_are_what_the_model_allows_and_told_by_the_seed() {
        let synthesiser = Synthesiser::new();
        for spec in capable() {
            for task in TaskKind::ALL {
                for seed in 0..30 {
                    let Some(drawn) = synthesiser.draw(task, &spec, seed) else {
                        assert!(!spec.serves(model_task(task)));
                        continue;
                    };
                    assert_eq!((drawn.kind(), drawn.model()), (task, spec.id.as_str()));
                    assert_eq!(Task::from_bytes(&drawn.to_bytes()).unwrap(), drawn);
                    assert_eq!(synthesiser.draw(task, &spec, seed).unwrap(), drawn);
                    if let Task::Generation(asked) = drawn {
                        let limits = spec.pictures.as_ref().unwrap();
                        assert!(limits.size.contains(asked.width) && limits.size.contains(asked.height));
                        assert!(limits.steps.contains(asked.steps as usize));
                        assert!(limits.guidance.contains(asked.guidance));
                    }
                }
            }
        }
    }

    #[test]
    fn pictures_fit_together_and_leave_something_to_do() {
        let synthesiser = Synthesiser::new();
        let models = capable();
        let spec = models.iter().find(|spec| spec.pictures.is_some()).unwrap();
        let draw = |task, seed| match synthesiser.draw(task, spec, seed) {
            Some(Task::Generation(asked)) => asked,
            other => panic!("{other:?}"),
        };
        for seed in 0..100 {
            let asked = draw(TaskKind::Inpaint, seed);
            let Start::Inpaint { picture, mask, .. } = &asked.start else { panic!("{asked:?}") };
            let mask = decoded(mask);
            assert_eq!(decoded(picture).size(), mask.size());
            let white = mask.pixels().iter().filter(|sample| **sample == 255).count();
            // A quarter of the smallest disc is left when its centre is in a corner.
            assert!(white * 100 > mask.pixels().len(), "{white} of {}", mask.pixels().len());
            let asked = draw(TaskKind::Uncrop, seed);
            let Start::Uncrop { picture, pads } = &asked.start else { panic!("{asked:?}") };
            let picture = decoded(picture);
            assert_eq!(picture.width() + pads.left + pads.right, asked.width);
            assert_eq!(picture.height() + pads.top + pads.bottom, asked.height);
            assert!(picture.width() * picture.height() < asked.width * asked.height);
        }
    }
}
