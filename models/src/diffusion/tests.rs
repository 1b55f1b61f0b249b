//! The embedded pipeline against diffusers' numbers, step by step and as a whole.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::*;
use crate::device::DeviceKind;
use crate::embedded;
use crate::layers::FeatureMap;
use crate::parity::{assert_parity, length_error};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn diffusion_fixture() -> &'static HashMap<String, Tensor> {
    static FIXTURE: OnceLock<HashMap<String, Tensor>> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        candle_core::safetensors::load(fixtures().join("diffusion.fixture"), &Device::Cpu).unwrap()
    })
}

fn pipeline() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE
        .get_or_init(|| Pipeline::open(&embedded::find("argus-tiny").unwrap(), DeviceKind::Cpu, 2).unwrap())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Holds numbers against the reference, each by itself and all together.
#[track_caller]
pub(super) fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_parity(name, found, expected);
    let error = length_error(found, expected);
    assert!(error <= 2e-5, "{name}: relative error of the length {error:.2e}");
}

fn request() -> Generate {
    Generate {
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 128,
        height: 128,
        steps: 20,
        guidance: 4.0,
        seed: 7,
        start: Start::Noise,
        controls: Vec::new(),
    }
}

/// The latents of a picture of words alone, from given noise.
pub(super) fn denoised(pipeline: &Pipeline, request: &Generate, plan: &Plan, start: Vec<f32>) -> Vec<f32> {
    let draws = Draws { start, picture: Vec::new(), known: Vec::new() };
    let mut step_noise = SeededNoise { seed: request.seed };
    pipeline.denoise(request, None, plan, draws, &mut step_noise, &mut keep_going).unwrap()
}

pub(super) fn keep_going(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn text_features_are_those_of_transformers() {
    let fixture = diffusion_fixture();
    let features =
        pipeline().prompts.encode(&["", "a red apple", "a 3d icon of an octopus, cartoon"]).unwrap();
    assert_close("text", &values(&features.context), &values(&fixture["text_hidden"]));
}

#[test]
fn the_unet_predicts_what_diffusers_predicts() {
    let fixture = diffusion_fixture();
    let context = &fixture["unet_context"];
    let text = TextConditioning {
        context,
        pooled: &context.narrow(1, 0, 1).unwrap().squeeze(1).unwrap(),
        size: [0.0; 6],
    };
    let unet = &pipeline().unet;
    let timestep = fixture["unet_timestep"].to_vec1::<i64>().unwrap()[0] as f64;
    let latents = FeatureMap::from_channels_first(&fixture["unet_latents"]).unwrap();
    let found = unet.forward(&latents, timestep, &unet.prepare(&text).unwrap(), None).unwrap();
    assert_close("unet", &values(&found.to_channels_first().unwrap()), &values(&fixture["unet_epsilon"]));
}

#[test]
fn the_autoencoder_is_that_of_diffusers() {
    let fixture = diffusion_fixture();
    let vae = &pipeline().vae;
    let decoded = vae.decode(&fixture["vae_decode_latents"]).unwrap();
    assert_close("decode", &values(&decoded), &values(&fixture["vae_decode_picture"]));
    let bytes = std::fs::read(fixtures().join("pictures/scene-64x64.png")).unwrap();
    let picture = RgbPicture::decode(&bytes, &Default::default()).unwrap();
    let found = vae.encode(&pipeline().signed_picture(&picture, None).unwrap()).unwrap();
    assert_close("encode, mean", &values(&found.mean), &values(&fixture["vae_encode_mean"]));
    assert_close(
        "encode, log variance",
        &values(&found.log_variance),
        &values(&fixture["vae_encode_logvar"]),
    );
}

#[test]
fn a_whole_run_ends_where_diffusers_ends() {
    let fixture = diffusion_fixture();
    let pipeline = pipeline();
    let plan = pipeline.scheduler.plan(20).unwrap();
    let timesteps: Vec<i64> = plan.steps.iter().map(|step| step.timestep as i64).collect();
    assert_eq!(timesteps, fixture["ddim_timesteps"].to_vec1::<i64>().unwrap());
    for steps in [1, 5, 20] {
        let mut plan = plan.clone();
        plan.steps.truncate(steps);
        let latents = denoised(pipeline, &request(), &plan, values(&fixture["ddim_noise"]));
        assert_close(
            &format!("after {steps} steps"),
            &latents,
            &values(&fixture[&format!("ddim_latents_after_{steps}")]),
        );
        if steps == 20 {
            let picture = pipeline.decode(latents, &request()).unwrap();
            let bytes = std::fs::read(fixtures().join("pictures/ddim-result.png")).unwrap();
            let expected = RgbPicture::decode(&bytes, &Default::default()).unwrap();
            let largest = picture.pixels().iter().zip(expected.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(largest <= Some(1), "a channel differs by {largest:?}");
        }
    }
}

#[test]
fn the_picture_does_not_depend_on_the_number_of_threads() {
    let one = Pipeline::open(&embedded::find("argus-tiny").unwrap(), DeviceKind::Cpu, 1).unwrap();
    let three = Pipeline::open(&embedded::find("argus-tiny").unwrap(), DeviceKind::Cpu, 3).unwrap();
    let request = Generate { steps: 3, ..request() };
    let picture = pipeline().generate(&request, &mut keep_going).unwrap();
    assert_eq!(picture, one.generate(&request, &mut keep_going).unwrap());
    assert_eq!(picture, three.generate(&request, &mut keep_going).unwrap());
    let other = pipeline().generate(&Generate { seed: 8, ..request }, &mut keep_going).unwrap();
    assert_ne!(picture, other);
}

#[test]
fn every_sampler_makes_a_picture_of_the_same_noise() {
    let mut pipeline = Pipeline::open(&embedded::find("argus-tiny").unwrap(), DeviceKind::Cpu, 2).unwrap();
    let request = Generate { steps: 4, ..request() };
    let mut pictures = Vec::new();
    for kind in SchedulerKind::ALL {
        pipeline.set_scheduler(kind).unwrap();
        let picture = pipeline.generate(&request, &mut keep_going).unwrap();
        assert_eq!(
            picture,
            pipeline.generate(&request, &mut keep_going).unwrap(),
            "{kind} is not repeatable"
        );
        // Over the same noise levels, Euler's ancestral steps are those of DDPM.
        let is_new = !pictures.contains(&picture);
        assert!(
            is_new || kind == SchedulerKind::EulerAncestral,
            "{kind} gives the picture of another sampler"
        );
        pictures.push(picture);
    }
}

#[test]
fn a_run_is_cancelled_at_the_next_step() {
    let mut heard = Vec::new();
    let mut control = |done: usize, of: usize| {
        heard.push((done, of));
        if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = pipeline().generate(&request(), &mut control).unwrap_err();
    assert!(matches!(error, GenerateError::Cancelled { done: 2, of: 20 }), "{error}");
    assert_eq!(heard, [(0, 20), (1, 20), (2, 20)]);
}

#[test]
fn requests_that_the_network_cannot_take_are_refused() {
    let cases = [
        ("width", Generate { width: 60, ..request() }),
        ("height", Generate { height: 4096, ..request() }),
        ("height", Generate { height: 0, ..request() }),
        ("steps", Generate { steps: 0, ..request() }),
        ("steps", Generate { steps: 1001, ..request() }),
        ("guidance", Generate { guidance: f32::NAN, ..request() }),
        ("guidance", Generate { guidance: -1.0, ..request() }),
        ("prompt", Generate { prompt: "a".repeat(MAX_PROMPT_BYTES + 1), ..request() }),
    ];
    for (expected, request) in cases {
        match pipeline().generate(&request, &mut keep_going).unwrap_err() {
            GenerateError::Invalid { field, .. } => assert_eq!(field, expected),
            other => panic!("{expected}: {other}"),
        }
    }
}

#[test]
fn other_shapes_and_no_guidance_work() {
    let request = Generate { width: 96, height: 32, guidance: 1.0, steps: 2, ..request() };
    let picture = pipeline().generate(&request, &mut keep_going).unwrap();
    assert_eq!((picture.width(), picture.height()), (96, 32));
    let latents = pipeline().encode(&picture, 3).unwrap();
    assert_eq!(latents.len(), 4 * 12 * 4);
    assert_eq!(latents, pipeline().encode(&picture, 3).unwrap());
}
