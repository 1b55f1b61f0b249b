//! Whole runs against diffusers' schedulers, under a network that is a fixed affine function
//! (`models/training/fixtures/schedulers.py`).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::Deserialize;

use super::run::StepNoise;
use super::*;

/// The largest difference, of the largest latent.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Case {
    name: String,
    /// As diffusers writes the file, which is not always JSON.
    config: String,
    kind: Option<SchedulerKind>,
    steps: usize,
    begin: usize,
}

struct Fixture {
    cases: Vec<Case>,
    tensors: HashMap<String, Tensor>,
}

impl Fixture {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schedulers/schedulers.fixture");
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let cases = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
        Self { cases, tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap() }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.tensors[name].flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// The noise of the fixture.
struct GivenNoise {
    values: Vec<f32>,
}

impl StepNoise for GivenNoise {
    fn fill(&mut self, step: usize, values: &mut [f32]) {
        let start = step * values.len();
        values.copy_from_slice(&self.values[start..start + values.len()]);
    }
}

fn scheduler(json: &str, kind: Option<SchedulerKind>) -> Result<Scheduler, SchedulerError> {
    let json = crate::loader::without_python_numbers(json.as_bytes());
    Scheduler::new(&serde_json::from_slice(&json).unwrap(), kind)
}

fn follow(fixture: &Fixture, case: &Case) -> Result<f32, String> {
    let (of_latents, of_time, constant) = (
        fixture.values("network.of_latents"),
        fixture.values("network.of_time"),
        fixture.values("network.constant"),
    );
    let (start, picture) = (fixture.values("noise.start"), fixture.values("picture"));
    let mut noise = GivenNoise { values: fixture.values("noise.steps") };
    let expected: Vec<Vec<f32>> = fixture.tensors[&case.name].to_vec2().unwrap();
    let scheduler = scheduler(&case.config, case.kind).map_err(|error| error.to_string())?;
    let plan = scheduler.plan(case.steps).map_err(|error| error.to_string())?;
    if plan.steps.len() - case.begin != expected.len() - 1 {
        return Err(format!("{} steps instead of {}", plan.steps.len(), expected.len() - 1));
    }
    let mut latents = match case.begin {
        0 => start.iter().map(|value| value * plan.initial_scale).collect(),
        begin => plan.add_noise(&picture, &start, begin),
    };
    let mut run = plan.begin(case.begin);
    let mut largest_error = 0f32;
    for (place, row) in expected.iter().enumerate() {
        if place > 0 {
            let step = &plan.steps[case.begin + place - 1];
            if (step.timestep - f64::from(row[latents.len()])).abs() > 2e-4 * step.timestep.max(1.0) {
                return Err(format!("timestep {} instead of {}", step.timestep, row[latents.len()]));
            }
            let input: Vec<f32> = latents.iter().map(|latent| latent * step.input_scale).collect();
            let time = row[latents.len()] / 1000.0;
            let mut output: Vec<f32> = (0..input.len())
                .map(|index| of_latents[index] * input[index] + of_time[index] * time + constant[index])
                .collect();
            if step.takes_variance() {
                output.extend(input.iter().map(|value| (3.0 * value).sin()));
            }
            run.step(&mut latents, &output, &mut noise);
        }
        let reference = &row[..latents.len()];
        let largest = reference.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let error = latents.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
        if error.is_nan() || error > TOLERANCE {
            return Err(format!("after step {place}: relative error {error:.2e}"));
        }
        largest_error = largest_error.max(error);
    }
    Ok(largest_error)
}

#[test]
fn whole_runs_are_those_of_diffusers() {
    let fixture = Fixture::read();
    assert!(fixture.cases.len() > 200);
    let mut worst = (0.0, "");
    let mut wrong = Vec::new();
    for case in &fixture.cases {
        match follow(&fixture, case) {
            Ok(error) if error > worst.0 => worst = (error, &case.name),
            Ok(_) => {}
            Err(detail) => wrong.push(format!("{}: {detail}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), fixture.cases.len(), wrong.join("\n"));
    println!("{} runs, largest relative error {:.2e} ({})", fixture.cases.len(), worst.0, worst.1);
}

const STABLE: &str =
    r#""beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false"#;

fn stable(class: &str, options: &str) -> String {
    format!(
        r#"{{"_class_name": "{class}", {STABLE}{}{options}}}"#,
        if options.is_empty() { "" } else { ", " }
    )
}

#[test]
fn noise_levels_can_be_rescaled_to_zero_signal() {
    let options = r#""prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": true,
        "set_alpha_to_one": false"#;
    let scheduler = scheduler(&stable("DDIMScheduler", options), None).unwrap();
    // By diffusers 0.42, whose square roots are a bit off in the last place.
    let expected = [
        (0, 0.999_149_98),
        (249, 0.654_188_87),
        (499, 0.242_358_997),
        (749, 0.033_171_453),
        (998, 1.967_963_4e-7),
        (999, 0.0),
    ];
    for (index, alpha) in expected {
        assert!(
            (f64::from(scheduler.alphas[index]) - alpha).abs() <= 1e-6 * alpha,
            "{index}: {} is not {alpha}",
            scheduler.alphas[index]
        );
    }
    let timesteps: Vec<f64> = scheduler.plan(4).unwrap().steps.iter().map(|step| step.timestep).collect();
    assert_eq!(timesteps, [999.0, 749.0, 499.0, 249.0]);
}

#[test]
fn the_noise_of_a_step_depends_on_the_seed_and_the_step_alone() {
    let noise = |seed: u64, step: usize, len: usize| {
        let mut values = vec![0.0; len];
        SeededNoise { seed }.fill(step, &mut values);
        values
    };
    assert_eq!(noise(7, 3, 16), noise(7, 3, 16));
    assert_eq!(noise(7, 3, 16), noise(7, 3, 40)[..16]);
    assert_ne!(noise(7, 3, 16), noise(7, 4, 16));
    assert_ne!(noise(7, 3, 16), noise(8, 3, 16));
    assert_ne!(noise(7, 0, 16), crate::noise::normal(7, 0, 16), "the starting noise is another");
    // To the bit, for other implementations: Philox stream 2^32 + step.
    assert_eq!(noise(7, 3, 16), crate::noise::normal(7, (1 << 32) + 3, 16));
}

#[test]
fn a_run_begins_where_the_strength_says() {
    let plan = scheduler(&stable("DDIMScheduler", ""), None).unwrap().plan(10).unwrap();
    for (strength, begin) in [(1.0, 0), (0.7, 3), (0.75, 3), (0.3, 7), (0.05, 10), (0.0, 10), (2.0, 0)] {
        assert_eq!(plan.begin_at_strength(strength), begin, "strength {strength}");
    }
    let (picture, noise) = ([0.5, -0.25], [1.0, 2.0]);
    assert_eq!(plan.add_noise(&picture, &noise, 10), picture);
    let mut latents = [0.5, -0.25];
    plan.begin(10).step(&mut latents, &[9.0, 9.0], &mut SeededNoise { seed: 0 });
    assert_eq!(latents, [0.5, -0.25], "after the last step nothing moves");
}

#[test]
fn samplers_are_named_as_in_configs() {
    for kind in SchedulerKind::ALL {
        assert_eq!(kind.name().parse::<SchedulerKind>(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        assert_eq!(serde_json::from_value::<SchedulerKind>(kind.name().into()).unwrap(), kind);
    }
    let error = "heun".parse::<SchedulerKind>().unwrap_err().to_string();
    assert!(error.contains("`heun`") && error.contains("dpm++-2m-karras"), "{error}");
}

#[test]
fn every_sampler_runs_on_every_published_config() {
    for class in [
        "DDIMScheduler",
        "DDPMScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ] {
        for kind in SchedulerKind::ALL.into_iter().map(Some).chain([None]) {
            let scheduler = scheduler(&stable(class, ""), kind).unwrap();
            for steps in [1, 2, 13, scheduler.max_steps()] {
                let plan = scheduler.plan(steps).unwrap();
                assert_eq!(plan.steps.len(), steps);
                let mut latents = vec![plan.initial_scale; 2];
                let mut run = plan.begin(0);
                for step in &plan.steps {
                    let output: Vec<f32> =
                        latents.iter().map(|value| value * step.input_scale * 0.9).collect();
                    run.step(&mut latents, &output, &mut SeededNoise { seed: 1 });
                    assert!(latents.iter().all(|value| value.is_finite()), "{class} {kind:?} {steps}");
                }
            }
            for steps in [0, scheduler.max_steps() + 1] {
                assert!(matches!(scheduler.plan(steps), Err(SchedulerError::Steps { .. })));
            }
        }
    }
}

#[test]
fn options_that_are_not_built_are_refused_by_name() {
    for (class, options, says) in [
        ("HeunDiscreteScheduler", "", "HeunDiscreteScheduler"),
        ("EulerDiscreteScheduler", r#""timestep_type": "continuous""#, "timestep_type"),
        ("EulerDiscreteScheduler", r#""interpolation_type": "log_linear""#, "interpolation_type"),
        ("EulerDiscreteScheduler", r#""use_beta_sigmas": true"#, "use_beta_sigmas"),
        ("EulerDiscreteScheduler", r#""use_karras_sigmas": true, "use_exponential_sigmas": true"#, "at once"),
        ("EulerDiscreteScheduler", r#""sigma_min": -1.0, "use_karras_sigmas": true"#, "sigma_min"),
        ("DPMSolverMultistepScheduler", r#""use_flow_sigmas": true"#, "use_flow_sigmas"),
        ("DPMSolverMultistepScheduler", r#""solver_order": 4"#, "solver_order"),
        ("DPMSolverMultistepScheduler", r#""solver_order": 0"#, "solver_order"),
        ("DPMSolverMultistepScheduler", r#""algorithm_type": "dpmsolver""#, "final sigma of zero"),
        ("DPMSolverMultistepScheduler", r#""lambda_min_clipped": 100.0"#, "lambda_min_clipped"),
        ("UniPCMultistepScheduler", r#""lower_order_final": false"#, "lower_order_final"),
        ("UniPCMultistepScheduler", r#""solver_p": {"a": 1}"#, "solver_p"),
        ("LCMScheduler", r#""original_inference_steps": 2000"#, "original_inference_steps"),
        ("DDIMScheduler", r#""num_train_timesteps": 0"#, "num_train_timesteps"),
        ("DDIMScheduler", r#""num_train_timesteps": 100000000"#, "num_train_timesteps"),
        ("DDIMScheduler", r#""trained_betas": [0.1]"#, "trained_betas"),
        ("DDIMScheduler", r#""steps_offset": 1000"#, "steps_offset"),
        ("DDIMScheduler", r#""rescale_betas_zero_snr": true, "timestep_spacing": "trailing""#, "epsilon"),
        ("DDIMScheduler", r#""num_train_timesteps": 2, "trained_betas": [0.1, 7.0]"#, "betas outside"),
        (
            "EulerDiscreteScheduler",
            r#""num_train_timesteps": 2, "trained_betas": [0.1, 1.0]"#,
            "betas outside",
        ),
    ] {
        let error = scheduler(&stable(class, options), None).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{class} {options}: {error}");
    }
}
