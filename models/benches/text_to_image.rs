//! Times text-to-image with the embedded model and prints one JSON object, in the same form as
//! `models/training/bench_diffusers.py`, so that both can be laid side by side.
//!
//! `cargo bench -p argus-models --bench text_to_image -- --steps 20 --threads 2`

use std::ops::ControlFlow;
use std::time::Instant;

use argus_models::{DeviceKind, Generate, Pipeline, Registry, Start};

struct Options {
    steps: usize,
    guidance: f32,
    threads: usize,
    warm_up: usize,
    repeats: usize,
    prompt: String,
}

impl Options {
    fn from_arguments() -> Result<Self, String> {
        let mut options = Self {
            steps: 20,
            guidance: 4.0,
            threads: 2,
            warm_up: 2,
            repeats: 7,
            prompt: "a red apple".into(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--bench" {
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<usize>().map_err(|error| format!("{name}: {error}"));
            match name.as_str() {
                "--steps" => options.steps = number()?,
                "--guidance" => {
                    options.guidance = value.parse().map_err(|error| format!("{name}: {error}"))?
                }
                "--threads" => options.threads = number()?,
                "--warm-up" => options.warm_up = number()?,
                "--repeats" => options.repeats = number()?.max(1),
                "--prompt" => options.prompt = value,
                _ => {
                    return Err(format!(
                        "{name} is not known; there are --steps, --guidance, --threads, --warm-up, --repeats and --prompt"
                    ));
                }
            }
        }
        Ok(options)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::from_arguments()?;
    let registry = Registry::default();
    let spec = registry.get("argus-tiny").ok_or("argus-tiny is not in the registry")?;
    let opened = Instant::now();
    let pipeline = Pipeline::open(&spec.files(), DeviceKind::Cpu, options.threads)?;
    let load = opened.elapsed().as_secs_f64();
    let mut seconds = Vec::with_capacity(options.repeats);
    for run in 0..options.warm_up + options.repeats {
        let request = Generate {
            prompt: options.prompt.clone(),
            negative_prompt: String::new(),
            width: 64,
            height: 64,
            steps: options.steps,
            guidance: options.guidance,
            seed: run as u64,
            start: Start::Noise,
            controls: Vec::new(),
        };
        let started = Instant::now();
        pipeline.generate(&request, &mut |_: usize, _: usize| ControlFlow::Continue(()))?;
        if run >= options.warm_up {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "{{\"bench\": \"argus\", \"median_s\": {:.4}, \"min_s\": {:.4}, \"max_s\": {:.4}, \"repeats\": {}, \"steps\": {}, \"guidance\": {}, \
         \"width\": 64, \"height\": 64, \"threads\": {}, \"dtype\": \"float32\", \"load_s\": {load:.4}}}",
        seconds[seconds.len() / 2],
        seconds[0],
        seconds[seconds.len() - 1],
        options.repeats,
        options.steps,
        options.guidance,
        options.threads,
    );
    Ok(())
}
