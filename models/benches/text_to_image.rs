//! Times text-to-image stage by stage and prints one JSON object, in the same form as
//! `models/training/bench_diffusers.py`, which runs this on the same weights and lays both side by side.
//!
//! `cargo bench -p argus-models --bench text_to_image -- --steps 20 --threads 2`

use std::{
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

use argus_models::{
    Clip, DeviceKind, Generate, ModelFiles, ModelSpec, Pipeline, Registry, RgbPicture, Start,
};

struct Options {
    /// Folders in the layout of diffusers; the embedded models where there are none.
    pipeline: Option<PathBuf>,
    clip: Option<PathBuf>,
    size: u32,
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
            pipeline: None,
            clip: None,
            size: 0,
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
                "--pipeline" => options.pipeline = Some(value.into()),
                "--clip" => options.clip = Some(value.into()),
                "--size" => options.size = number()? as u32,
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
                        "{name} is not known; there are --pipeline, --clip, --size, --steps, --guidance, \
                         --threads, --warm-up, --repeats and --prompt"
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// Seconds of one picture's stages.
#[derive(Default)]
struct Stages {
    text: Vec<f64>,
    step: Vec<f64>,
    decode: Vec<f64>,
    picture: Vec<f64>,
}

impl Stages {
    /// `ends`: when the first step began and when each ended.
    fn add(&mut self, started: Instant, ends: &[Instant], finished: Instant) {
        let seconds = |duration: Duration| duration.as_secs_f64();
        let (Some(first), Some(last)) = (ends.first(), ends.last()) else { return };
        self.text.push(seconds(*first - started));
        self.step.push(seconds(*last - *first) / (ends.len() - 1).max(1) as f64);
        self.decode.push(seconds(finished - *last));
        self.picture.push(seconds(finished - started));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The most memory that this process has held, in megabytes; 0 where the system does not say.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

fn embedded(id: &str) -> Result<ModelSpec, String> {
    Registry::default().get(id).cloned().ok_or_else(|| format!("{id} is not in the registry"))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::from_arguments()?;
    let before = peak_mb();
    let files = match &options.pipeline {
        Some(folder) => ModelFiles::folder(folder),
        None => embedded("argus-tiny")?.files(),
    };
    let opened = Instant::now();
    let pipeline = Pipeline::open(&files, DeviceKind::Cpu, options.threads)?;
    let load = opened.elapsed().as_secs_f64();
    let size = if options.size == 0 { pipeline.default_edge() as u32 } else { options.size };
    let mut stages = Stages::default();
    for run in 0..options.warm_up + options.repeats {
        let request = Generate {
            prompt: options.prompt.clone(),
            negative_prompt: String::new(),
            width: size,
            height: size,
            steps: options.steps,
            guidance: options.guidance,
            seed: run as u64,
            start: Start::Noise,
            controls: Vec::new(),
        };
        let mut ends = Vec::with_capacity(options.steps + 1);
        let mut progress = |_: usize, _: usize| {
            ends.push(Instant::now());
            ControlFlow::Continue(())
        };
        let started = Instant::now();
        pipeline.generate(&request, &mut progress)?;
        if run >= options.warm_up {
            stages.add(started, &ends, Instant::now());
        }
    }
    let peak = peak_mb();
    drop(pipeline);
    let files = match &options.clip {
        Some(folder) => ModelFiles::folder(folder),
        None => embedded("clip-tiny")?.files(),
    };
    let clip = Clip::open(&files, DeviceKind::Cpu, options.threads)?;
    let picture = RgbPicture::from_fn(size, size, |x, y| [x as u8, y as u8, (x ^ y) as u8]);
    let mut embedding = Vec::with_capacity(options.repeats);
    for run in 0..options.warm_up + options.repeats {
        let started = Instant::now();
        clip.embed_pictures(std::slice::from_ref(&picture))?;
        if run >= options.warm_up {
            embedding.push(started.elapsed().as_secs_f64());
        }
    }
    println!(
        "{{\"bench\": \"argus\", \"text_s\": {:.5}, \"step_s\": {:.5}, \"decode_s\": {:.5}, \"picture_s\": {:.5}, \
         \"embed_s\": {:.5}, \"peak_mb\": {peak:.0}, \"above_start_mb\": {:.0}, \"load_s\": {load:.3}, \
         \"size\": {size}, \"steps\": {}, \"threads\": {}}}",
        median(stages.text),
        median(stages.step),
        median(stages.decode),
        median(stages.picture),
        median(embedding),
        peak - before,
        options.steps,
        options.threads,
    );
    Ok(())
}
