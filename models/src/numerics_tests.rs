//! Every architecture in the number formats of accelerators, here on the processor: close to f32, and
//! something else.

use std::ops::ControlFlow;

use crate::diffusion::pipeline_tests::Family;
use crate::engine::{CancelToken, Engine, EngineConfig, Job, JobEvent, Output};
use crate::features::cosine_similarity;
use crate::registry::{Attention, Numerics};
use crate::{
    Clip, DeviceKind, Generate, Pipeline, Placement, Registry, RgbPicture, Start, Upscaler, embedded,
};

const HALVES: [Numerics; 2] = [Numerics::DEVICE_F16, Numerics::DEVICE_BF16];

fn on_processor(numerics: Numerics) -> Placement {
    Placement::new(DeviceKind::Cpu, numerics)
}

fn request(edge: u32) -> Generate {
    Generate {
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: edge,
        height: edge,
        steps: 4,
        guidance: 3.0,
        seed: 11,
        start: Start::Noise,
        controls: Vec::new(),
    }
}

fn sample() -> RgbPicture {
    RgbPicture::from_fn(40, 32, |x, y| [(5 * x) as u8, (7 * y) as u8, (x * y) as u8])
}

/// The mean difference of samples.
fn difference(left: &RgbPicture, right: &RgbPicture) -> f64 {
    assert_eq!((left.width(), left.height()), (right.width(), right.height()));
    let differences = left.pixels().iter().zip(right.pixels()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    differences.sum::<f64>() / left.pixels().len() as f64
}

#[track_caller]
fn assert_near(name: &str, difference: f64, most: f64) {
    println!("{name}: {difference:.4}");
    assert!(difference > 0.0 && difference < most, "{name}: {difference}");
}

#[test]
fn the_embedded_pictures_are_close_in_all_formats() {
    let files = embedded::find("argus-tiny").unwrap();
    let make = |numerics| {
        let pipeline = Pipeline::open(&files, on_processor(numerics), 2).unwrap();
        let request = request(pipeline.default_edge() as u32);
        pipeline.generate(&request, &mut |_: usize, _: usize| ControlFlow::Continue(())).unwrap()
    };
    let exact = make(Numerics::PORTABLE_F32);
    let device_f32 = Numerics { attention: Attention::Device, ..Numerics::PORTABLE_F32 };
    assert_eq!(make(device_f32), exact);
    let halves = HALVES.map(make);
    assert_ne!(halves[0], halves[1]);
    for ((numerics, picture), most) in HALVES.iter().zip(&halves).zip([1.5, 8.0]) {
        assert_near(&numerics.to_string(), difference(&exact, picture), most);
    }
}

#[test]
fn control_nets_and_two_encoders_are_close_in_all_formats() {
    let family = Family::unpack("sdxl");
    let make = |numerics| family.steered(on_processor(numerics), &request(64));
    let exact = make(Numerics::PORTABLE_F32);
    for (numerics, most) in HALVES.into_iter().zip([1.5, 8.0]) {
        assert_near(&numerics.to_string(), difference(&exact, &make(numerics)), most);
    }
}

#[test]
fn embeddings_are_close_in_all_formats() {
    let files = embedded::find("clip-tiny").unwrap();
    let embed = |numerics| {
        let clip = Clip::open(&files, on_processor(numerics), 2).unwrap();
        let texts = clip.embed_texts(&["a green pear"]).unwrap();
        [clip.embed_pictures(&[sample()]).unwrap(), texts].concat()
    };
    let exact = embed(Numerics::PORTABLE_F32);
    for (numerics, most) in HALVES.into_iter().zip([1e-4, 1e-2]) {
        for (exact, found) in exact.iter().zip(embed(numerics)) {
            assert_ne!(*exact, found);
            let distance = 1.0 - f64::from(cosine_similarity(exact, &found).unwrap());
            assert!(distance < most, "{numerics}: {distance}");
        }
    }
}

#[test]
fn upscaled_pictures_are_close_in_all_formats() {
    for name in ["upscale-x2", "upscale-x4"] {
        let files = embedded::find(name).unwrap();
        let make = |numerics| {
            let upscaler = Upscaler::open(&files, on_processor(numerics), 2).unwrap();
            let factor = upscaler.scale();
            upscaler.upscale(&sample(), factor, &mut |_: usize, _: usize| ControlFlow::Continue(())).unwrap()
        };
        let exact = make(Numerics::PORTABLE_F32);
        for (numerics, most) in HALVES.into_iter().zip([0.5, 4.0]) {
            assert_near(&format!("{name} {numerics}"), difference(&exact, &make(numerics)), most);
        }
    }
}

#[test]
fn an_engine_computes_in_the_numerics_of_the_registry() {
    let run = |registry: &Registry| {
        let config = EngineConfig::on_processor(vec!["argus-tiny".parse().unwrap()]);
        let edge = registry.get("argus-tiny").unwrap().pictures.unwrap().size.default;
        let engine = Engine::start(&config, registry).unwrap();
        let (sender, events) = std::sync::mpsc::sync_channel(64);
        let sink = Box::new(move |event| sender.send(event).unwrap());
        let job = Job::Generate { model: config.models[0].clone(), request: request(edge) };
        engine.submit(job, CancelToken::new(), sink).unwrap();
        match events.iter().last() {
            Some(JobEvent::Done(Ok(Output::Picture { picture, .. }))) => picture,
            other => panic!("{other:?}"),
        }
    };
    let exact = run(&Registry::default());
    let half = run(&Registry::default().in_numerics(Numerics::DEVICE_F16));
    assert_near("engine", difference(&exact, &half), 1.5);
}

#[test]
fn an_engine_refuses_numerics_that_its_device_has_not() {
    let flash = Numerics { attention: Attention::Flash, ..Numerics::DEVICE_F16 };
    let config = EngineConfig::on_processor(vec!["argus-tiny".parse().unwrap()]);
    let error = Engine::start(&config, &Registry::default().in_numerics(flash)).err().unwrap();
    assert_eq!(error.reason(), "numerics_not_there");
    let message = error.to_string();
    assert!(message.contains("argus-tiny") && message.contains("attention = \"device\""), "{message}");
}

#[test]
fn an_engine_refuses_a_model_that_needs_more_memory_than_there_is() {
    let text = crate::registry::DEFAULT_REGISTRY;
    let more = text.replace("id = \"argus-tiny\"\n", "id = \"argus-tiny\"\nmemory_mib = 1099511627776\n");
    assert_ne!(text, more);
    let config = EngineConfig::on_processor(vec!["argus-tiny".parse().unwrap()]);
    let error = Engine::start(&config, &Registry::from_toml(&more).unwrap()).err();
    #[cfg(target_os = "linux")]
    {
        let error = error.unwrap();
        assert_eq!(error.reason(), "too_little_memory");
        assert!(error.to_string().contains("needs 1099511627776 MiB on cpu"), "{error}");
    }
    #[cfg(not(target_os = "linux"))]
    assert!(error.is_none());
}
