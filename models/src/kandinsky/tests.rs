//! Tiny random models in the layout of Kandinsky 2.2 against diffusers' numbers for them
//! (`models/training/fixtures/kandinsky.py`), opened from folders as the real ones would be.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use super::*;
use crate::device::DeviceKind;
use crate::diffusion::{Mask, Pads};
use crate::layers::FeatureMap;
use crate::parity::assert_parity;
use crate::placement::Compute;

const PROMPT: &str = "a red apple, on the table!";
const NEGATIVE: &str = "blurry";
pub(super) const PRIOR: PriorSettings = PriorSettings { steps: 5, guidance: 2.0 };
const STEPS: usize = 4;
const GUIDANCE: f32 = 2.0;
const STRENGTH: f32 = 0.6;
const WIDTH: u32 = 48;
const HEIGHT: u32 = 32;
const EDGE: u32 = 32;
const TIMESTEP: f64 = 481.0;
const SEED: u64 = 22;
const WEIGHTS_SEED: u64 = 2022;

/// The folder of one model, and what diffusers computes with it.
pub(super) struct Fixture {
    folder: TempDir,
    expected: HashMap<String, Vec<f32>>,
}

/// How to make each tensor of a file: noise stream, shape, scale and offset.
type Recipes = BTreeMap<String, BTreeMap<String, (u64, Vec<usize>, f32, f32)>>;

impl Fixture {
    pub(super) fn unpack(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kandinsky").join(name);
        let bytes = std::fs::read(path.with_extension("fixture")).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in metadata.metadata().as_ref().unwrap() {
            if path == "weights" {
                make_weights(folder.path(), text);
            } else {
                write(&folder.path().join(path), text.as_bytes());
            }
        }
        let expected = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        let expected =
            expected.iter().map(|(name, tensor)| (name["expected:".len()..].to_owned(), values(tensor)));
        Self { expected: expected.collect(), folder }
    }

    pub(super) fn files(&self) -> ModelFiles {
        ModelFiles::folder(self.folder.path())
    }

    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    /// The same with one file changed.
    pub(super) fn changed(self, path: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Self {
        let file = self.path(path);
        let bytes = change(std::fs::read(&file).unwrap());
        std::fs::write(file, bytes).unwrap();
        self
    }

    pub(super) fn replaced(self, path: &str, old: &str, new: &str) -> Self {
        self.changed(path, |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(old), "{path} has no {old}");
            text.replace(old, new).into_bytes()
        })
    }
}

fn make_weights(folder: &Path, recipes: &str) {
    let recipes: Recipes = serde_json::from_str(recipes).unwrap();
    for (path, tensors) in recipes {
        let made: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, (stream, shape, scale, offset))| {
                let values = noise::normal(WEIGHTS_SEED, stream, shape.iter().product());
                let halves = values.iter().map(|value| f16::from_f32(value * scale + offset));
                (name, shape, halves.flat_map(f16::to_le_bytes).collect())
            })
            .collect();
        let views = made
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
        write(&folder.join(path), &safetensors::serialize(views, None).unwrap());
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(super) fn keep_going(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn listen(_: usize) -> ControlFlow<GenerateError> {
    ControlFlow::Continue(())
}

/// The models of a fixture on the processor, in the format that has kernels of ours or in another.
struct Models {
    prior: (Fixture, Prior),
    decoder: (Fixture, Decoder),
    inpainter: (Fixture, Decoder),
    dtype: DType,
}

impl Models {
    fn open(dtype: DType) -> Self {
        let decoder = |name| {
            let fixture = Fixture::unpack(name);
            let decoder =
                Decoder::load(Part::whole(&fixture.files()), &Compute::HOST.in_dtype(dtype)).unwrap();
            (fixture, decoder)
        };
        let fixture = Fixture::unpack("prior");
        let prior = Prior::load(Part::whole(&fixture.files()), &Compute::HOST.in_dtype(dtype)).unwrap();
        Self { prior: (fixture, prior), decoder: decoder("decoder"), inpainter: decoder("inpaint"), dtype }
    }

    fn embeddings(&self) -> Embeddings {
        let expected = &self.prior.0.expected;
        Embeddings {
            image: expected["guided_negative.image"].clone(),
            negative: expected["guided_negative.negative"].clone(),
        }
    }

    fn tensor(&self, values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Tensor {
        Tensor::from_vec(values, shape.into(), &Device::Cpu).unwrap().to_dtype(self.dtype).unwrap()
    }

    fn compare_prior_network(&self) {
        let (Fixture { expected, .. }, prior) = &self.prior;
        let texts = [NEGATIVE, PROMPT].map(|text| prior.encode(text).unwrap());
        for (index, (name, text)) in ["negative", "prompt"].into_iter().zip(&texts).enumerate() {
            let hidden = values(&text.hidden);
            let window = expected["text_hidden"].len() / 2;
            let known = &expected["text_hidden"][index * window..][..hidden.len()];
            assert_parity(&format!("text, {name}"), &hidden, known);
            let known = &expected["text_pooled"][index * prior.width()..][..prior.width()];
            assert_parity(&format!("pooled text, {name}"), &values(&text.pooled), known);
        }
        let texts = texts.map(|text| prior.transformer.prepare(&text).unwrap());
        let latents = self.tensor(expected["latents"].clone(), (2, prior.width()));
        let found = prior.transformer.forward(&latents, TIMESTEP, &[&texts[0], &texts[1]]).unwrap();
        assert_parity("prediction", &values(&found), &expected["prediction"]);
        assert_parity("zero", &prior.zero, &expected["zero"]);
    }

    fn compare_prior_runs(&self) {
        let (Fixture { expected, .. }, prior) = &self.prior;
        for (name, guidance, negative) in
            [("guided", 2.0, ""), ("guided_negative", 2.0, NEGATIVE), ("plain", 1.0, NEGATIVE)]
        {
            let steps = prior.sampler().plan(PRIOR.steps);
            let run = PriorRun { prompt: PROMPT, negative, guidance, steps: &steps };
            let count = if negative.is_empty() { 1 } else { 2 } * prior.width();
            let start = noise::normal(SEED, PRIOR_START_STREAM, count);
            let found = prior.embed(&run, &start, &mut PriorNoise { seed: SEED }, &mut listen).unwrap();
            assert_parity(&format!("{name}, image"), &found.image, &expected[&format!("{name}.image")]);
            assert_parity(
                &format!("{name}, negative"),
                &found.negative,
                &expected[&format!("{name}.negative")],
            );
        }
    }

    fn compare_unets(&self) {
        for ((Fixture { expected, .. }, decoder), channels) in [(&self.decoder, 4), (&self.inpainter, 9)] {
            let embeddings = decoder.embeddings(&self.embeddings(), GUIDANCE).unwrap();
            let conditioning = decoder.unet.prepare(&embeddings).unwrap();
            let (height, width) = (HEIGHT as usize / 2, WIDTH as usize / 2);
            let sample = noise::normal(SEED, 101, 2 * channels * height * width);
            let sample = self.tensor(sample, (2, channels, height, width));
            let sample = FeatureMap::from_channels_first(&sample).unwrap();
            let found = decoder.unet.forward(&sample, TIMESTEP, &conditioning).unwrap();
            let found = found.to_channels_first().unwrap();
            assert_parity(&format!("UNet of {channels} channels"), &values(&found), &expected["unet"]);
        }
    }

    fn compare_autoencoder(&self) {
        let (Fixture { expected, .. }, decoder) = &self.decoder;
        assert_parity("encoded", &decoder.encode(&picture(WIDTH, HEIGHT)).unwrap(), &expected["encoded"]);
        let (height, width) = (HEIGHT as usize / 2, WIDTH as usize / 2);
        let latents = self.tensor(noise::normal(SEED, 102, 4 * height * width), (1, 4, height, width));
        assert_parity("decoded", &values(&decoder.movq.decode(&latents).unwrap()), &expected["decoded"]);
    }

    /// One run of a decoder, from what `start` says.
    fn run(&self, decoder: &Decoder, width: u32, height: u32, guidance: f32, start: Start) -> Vec<f32> {
        let request = Generate { width, height, guidance, start, ..request() };
        let plan = decoder.scheduler().plan(STEPS).unwrap();
        let canvas = Canvas::of(&request, decoder.scale() as u32).unwrap();
        let size = decoder.latent_size(width, height);
        let run = DecoderRun {
            size,
            guidance,
            plan: &plan,
            begin: canvas.as_ref().map_or(0, |canvas| plan.begin_at_strength(canvas.strength)),
            known: canvas.as_ref().map(|canvas| decoder.known(canvas).unwrap()),
        };
        let start = noise::normal(SEED, START_STREAM, decoder.latent_count(size));
        let mut noise = SeededNoise { seed: SEED };
        decoder.denoise(&run, &self.embeddings(), &start, &mut noise, &mut listen).unwrap()
    }

    fn compare_decoder_runs(&self) {
        let (Fixture { expected, .. }, decoder) = &self.decoder;
        for (name, guidance) in [("latents", GUIDANCE), ("latents_unguided", 1.0)] {
            let found = self.run(decoder, WIDTH, HEIGHT, guidance, Start::Noise);
            assert_parity(name, &found, &expected[name]);
        }
        let start = Start::Picture { picture: picture(EDGE, EDGE), strength: STRENGTH };
        let found = self.run(decoder, EDGE, EDGE, GUIDANCE, start);
        assert_parity("latents of a picture", &found, &expected["latents_of_picture"]);
        let (Fixture { expected, .. }, decoder) = &self.inpainter;
        let found = self.run(decoder, WIDTH, HEIGHT, GUIDANCE, inpaint(1.0));
        assert_parity("inpainted latents", &found, &expected["latents"]);
        let found = decoder.movq.decode(&self.tensor(found, (1, 4, HEIGHT as usize / 2, WIDTH as usize / 2)));
        assert_parity("inpainted picture", &values(&found.unwrap()), &expected["picture"]);
    }
}

pub(super) fn picture(width: u32, height: u32) -> RgbPicture {
    RgbPicture::from_fn(width, height, |x, y| [x * 5, y * 7, (x + y) * 3].map(|value| value as u8))
}

fn inpaint(strength: f32) -> Start {
    let mask = Mask::from_fn(WIDTH, HEIGHT, |x, y| {
        (x > WIDTH / 3 && y > HEIGHT / 4 && y < HEIGHT * 3 / 4) || (x < 5 && y < 3)
    });
    Start::Inpaint { picture: picture(WIDTH, HEIGHT), mask, strength }
}

pub(super) fn request() -> Generate {
    Generate {
        prompt: PROMPT.into(),
        negative_prompt: NEGATIVE.into(),
        width: WIDTH,
        height: HEIGHT,
        steps: STEPS,
        guidance: GUIDANCE,
        seed: SEED,
        start: Start::Noise,
        controls: Vec::new(),
    }
}

pub(super) fn open(decoder: &str, threads: usize) -> KandinskyPipeline {
    let (prior, decoder) = (Fixture::unpack("prior"), Fixture::unpack(decoder));
    KandinskyPipeline::open(&prior.files(), &decoder.files(), DeviceKind::Cpu, threads)
        .unwrap()
        .with_prior(PRIOR)
        .unwrap()
}

#[test]
fn the_prior_is_that_of_diffusers() {
    let models = Models::open(DType::F32);
    models.compare_prior_network();
    models.compare_prior_runs();
}

#[test]
fn the_decoders_are_those_of_diffusers() {
    let models = Models::open(DType::F32);
    models.compare_unets();
    models.compare_autoencoder();
    models.compare_decoder_runs();
}

/// The path of other devices, in a format that has no kernels of ours.
#[test]
fn operations_of_other_devices_give_the_same() {
    let models = Models::open(DType::F64);
    models.compare_prior_network();
    models.compare_prior_runs();
    models.compare_unets();
    models.compare_autoencoder();
    models.compare_decoder_runs();
}

#[test]
fn a_seed_gives_the_picture_that_diffusers_makes_of_the_same_noise() {
    let expected = Fixture::unpack("decoder").expected["picture"].clone();
    let made = open("decoder", 2).generate(&request(), &mut keep_going).unwrap();
    let count = (WIDTH * HEIGHT) as usize;
    assert_eq!((made.width(), made.height()), (WIDTH, HEIGHT));
    for (index, found) in made.pixels().iter().enumerate() {
        let known = (expected[index % 3 * count + index / 3] * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0;
        assert!((f32::from(*found) - known).abs() <= 1.0, "sample {index}: {found} is not {known}");
    }
}

#[test]
fn the_picture_does_not_depend_on_the_number_of_threads() {
    let starts = [("decoder", Start::Noise), ("inpaint", inpaint(1.0))];
    for (decoder, start) in starts {
        let request = Generate { start, ..request() };
        let picture = open(decoder, 1).generate(&request, &mut keep_going).unwrap();
        for threads in [2, 3] {
            assert_eq!(picture, open(decoder, threads).generate(&request, &mut keep_going).unwrap());
        }
        let other = Generate { seed: SEED + 1, ..request };
        assert_ne!(picture, open(decoder, 1).generate(&other, &mut keep_going).unwrap());
    }
}

#[test]
fn every_start_and_every_folder_works() {
    let pipeline = open("decoder", 1);
    let start = Start::Picture { picture: picture(20, 70), strength: 0.3 };
    let of_picture = Generate { start, width: 24, height: 16, ..request() };
    let made = pipeline.generate(&of_picture, &mut keep_going).unwrap();
    assert_eq!((made.width(), made.height()), (24, 16));
    // Without guidance, the negative prompt says nothing.
    let plain = Generate { guidance: 1.0, ..request() };
    let silent = Generate { negative_prompt: String::new(), ..plain.clone() };
    let made = [&plain, &silent].map(|request| pipeline.generate(request, &mut keep_going).unwrap());
    assert_eq!(made[0], made[1]);

    let inpainter = open("inpaint", 1);
    let grown = Start::Uncrop {
        picture: picture(WIDTH - 16, HEIGHT - 8),
        pads: Pads { left: 16, bottom: 8, ..Pads::default() },
    };
    for start in [inpaint(1.0), inpaint(0.5), grown.clone()] {
        let request = Generate { start, ..request() };
        let made = [&inpainter, &pipeline].map(|pipeline| {
            assert!(pipeline.can(request.task()));
            pipeline.generate(&request, &mut keep_going).unwrap()
        });
        assert_ne!(made[0], made[1]);
        for made in made {
            assert_eq!((made.width(), made.height()), (WIDTH, HEIGHT));
            if request.start == grown {
                assert_eq!(made.crop(16, 0, WIDTH - 16, HEIGHT - 8), picture(WIDTH - 16, HEIGHT - 8));
            }
        }
    }

    let expected = pipeline.generate(&request(), &mut keep_going).unwrap();
    let (prior, decoder) = (Fixture::unpack("prior"), Fixture::unpack("decoder"));
    for (prior_prefix, decoder_prefix) in [("prior/", "decoder/"), ("prior/", ""), ("prior_", "")] {
        let folder = tempfile::tempdir().unwrap();
        let place = |fixture: &Fixture, prefix: &str| {
            for entry in std::fs::read_dir(fixture.folder.path()).unwrap().map(Result::unwrap) {
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_dir() {
                    copy(&entry.path(), &folder.path().join(format!("{prefix}{name}")));
                }
            }
        };
        place(&prior, prior_prefix);
        place(&decoder, decoder_prefix);
        let files = ModelFiles::folder(folder.path());
        let opened = KandinskyPipeline::open_folder(&files, DeviceKind::Cpu, 1).unwrap();
        let opened = opened.with_prior(PRIOR).unwrap();
        assert_eq!(expected, opened.generate(&request(), &mut keep_going).unwrap());
    }
}

#[test]
fn the_kept_part_shrinks_as_in_the_reference() {
    let size = decoder::LatentSize { height: 4, width: 5 };
    let mut painted = vec![0.0; 20];
    painted[7] = 1.0;
    #[rustfmt::skip]
    let expected = [
        1.0, 0.0, 0.0, 1.0, 1.0,
        1.0, 0.0, 0.0, 0.0, 1.0,
        1.0, 1.0, 0.0, 0.0, 1.0,
        1.0, 1.0, 1.0, 1.0, 1.0,
    ];
    assert_eq!(decoder::kept_of_painted(&painted, size), expected);
    assert_eq!(decoder::kept_of_painted(&[1.0; 20], size), [0.0; 20]);
}

#[test]
fn a_run_is_cancelled_at_the_next_step_of_either_part() {
    let pipeline = open("decoder", 1);
    let of = PRIOR.steps + STEPS;
    for last in [0, 2, PRIOR.steps, of - 1] {
        let mut heard = Vec::new();
        let mut control = |done: usize, of: usize| {
            heard.push((done, of));
            if done == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = pipeline.generate(&request(), &mut control).unwrap_err();
        assert!(matches!(error, GenerateError::Cancelled { done, of: 9 } if done == last), "{error}");
        assert_eq!(heard, (0..=last).map(|done| (done, of)).collect::<Vec<_>>());
    }
    let mut heard = Vec::new();
    let mut control = |done: usize, _: usize| {
        heard.push(done);
        ControlFlow::Continue(())
    };
    pipeline.generate(&request(), &mut control).unwrap();
    assert_eq!(heard, (0..=of).collect::<Vec<_>>());
}
