//! Honest runs pass audits to the bit, whatever sampler and task; runs that were not made do not.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

use super::super::pipeline_tests::Family;
use super::super::{Control, ControlKind, Mask, Pads, SchedulerKind, Start};
use super::*;
use crate::device::DeviceKind;
use crate::embedded;
use crate::loader::ModelFiles;
use crate::noise::philox4x32_10;
use crate::placement::Placement;
use crate::registry::Numerics;
use crate::weight_change::WeightChange;

const STEPS: usize = 5;

fn pipeline() -> Pipeline {
    Pipeline::open(&embedded::find("argus-tiny").unwrap(), DeviceKind::Cpu, 2).unwrap()
}

fn request(seed: u64) -> Generate {
    Generate {
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        steps: STEPS,
        guidance: 3.0,
        seed,
        start: Start::Noise,
        controls: Vec::new(),
    }
}

/// Keeps the states of a run.
#[derive(Default)]
struct Recorder(Vec<Vec<u8>>);

impl StepControl for Recorder {
    fn step(&mut self, _: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn record(&mut self, state: &dyn Fn() -> Vec<u8>) {
        self.0.push(state());
    }
}

struct Traced {
    states: Vec<Vec<u8>>,
    picture: RgbPicture,
}

fn trace(pipeline: &Pipeline, request: &Generate) -> Traced {
    let mut recorder = Recorder::default();
    let picture = pipeline.generate(request, &mut recorder).unwrap();
    assert_eq!(recorder.0.len(), pipeline.steps_of(request).unwrap() + 1);
    Traced { states: recorder.0, picture }
}

impl Traced {
    fn show(&self, steps: &[usize]) -> Shown {
        let last = self.states.len() - 1;
        let needed: BTreeSet<usize> =
            steps.iter().flat_map(|step| [*step, step + 1]).chain([0, last]).collect();
        let opened = needed.into_iter().map(|index| (index, self.states[index].clone())).collect();
        Shown { states: self.states.len(), opened, steps: steps.to_vec(), picture: self.picture.clone() }
    }

    fn show_all(&self) -> Shown {
        self.show(&(0..self.states.len() - 1).collect::<Vec<_>>())
    }
}

fn audit(pipeline: &Pipeline, request: &Generate, shown: &Shown) -> Audited {
    pipeline.audit(request, shown, &mut Recorder::default()).unwrap()
}

fn deviations(pipeline: &Pipeline, request: &Generate, shown: &Shown) -> Deviations {
    match audit(pipeline, request, shown) {
        Audited::Checked(deviations) => deviations,
        Audited::Unfit(why) => panic!("{why}"),
    }
}

#[track_caller]
fn assert_exact(pipeline: &Pipeline, request: &Generate, what: &str) {
    let traced = trace(pipeline, request);
    let found = deviations(pipeline, request, &traced.show_all());
    assert_eq!(found.steps.len(), traced.states.len() - 1, "{what}");
    assert_eq!((found.farthest(), found.picture), (Deviation::NONE, 0.0), "{what}: {found:?}");
}

#[test]
fn every_sampler_takes_the_same_steps_again() {
    let mut pipeline = pipeline();
    for kind in SchedulerKind::ALL {
        pipeline.set_scheduler(kind).unwrap();
        assert_exact(&pipeline, &request(11), kind.name());
    }
}

#[test]
fn states_hold_what_the_next_step_looks_back_at() {
    let mut pipeline = pipeline();
    let length = pipeline.latent_count(&request(0)) * NUMBER;
    for (kind, vectors) in [
        (SchedulerKind::Ddim, [1, 1, 1, 1, 1, 1]),
        (SchedulerKind::DpmMultistep, [1, 2, 2, 2, 2, 1]),
        (SchedulerKind::UniPc, [1, 3, 4, 4, 4, 1]),
    ] {
        pipeline.set_scheduler(kind).unwrap();
        let traced = trace(&pipeline, &request(1));
        assert_eq!(
            traced.states.iter().map(|state| state.len() / length).collect::<Vec<_>>(),
            vectors,
            "{kind}"
        );
    }
}

#[test]
fn runs_from_pictures_pass_and_begin_where_the_picture_says() {
    let pipeline = pipeline();
    let picture = RgbPicture::from_fn(64, 64, |x, y| [4 * x as u8, 4 * y as u8, 90]);
    let part = Start::Picture { picture: picture.clone(), strength: 0.5 };
    let mask = Mask::from_fn(64, 64, |x, _| x > 30);
    let pads = Pads { right: 16, ..Pads::default() };
    for start in [
        part.clone(),
        Start::Inpaint { picture: picture.clone(), mask, strength: 0.8 },
        Start::Uncrop { picture: picture.crop(0, 0, 48, 64), pads },
    ] {
        let request = Generate { start, ..request(3) };
        assert_exact(&pipeline, &request, &format!("{:?}", request.task()));
    }
    // Two of five steps at half strength, from this picture and no other.
    let half = Generate { start: part, ..request(3) };
    let traced = trace(&pipeline, &half);
    assert_eq!(traced.states.len(), 3);
    let other = Start::Picture { picture: picture.crop(0, 0, 32, 32), strength: 0.5 };
    let found = deviations(&pipeline, &Generate { start: other, ..half }, &traced.show(&[1]));
    assert!(found.start > Deviation(0.05), "{found:?}");
}

#[test]
fn control_nets_steer_the_steps_again() {
    let family = Family::unpack("sd15");
    let files = |kind: ControlKind| (kind, ModelFiles::folder(family.control_folder(kind)));
    let controls = [files(ControlKind::Scribble), files(ControlKind::Canny)];
    let model = ModelFiles::folder(family.model_folder());
    let pipeline = Pipeline::open_with_controls(&model, &controls, DeviceKind::Cpu, 1).unwrap();
    let picture = RgbPicture::from_fn(32, 32, |x, y| [255 * u8::from((x / 8 + y / 8) % 2 == 0); 3]);
    let steered = |scale| Generate {
        width: 32,
        height: 32,
        controls: vec![Control {
            kind: ControlKind::Canny,
            picture: picture.clone(),
            is_prepared: false,
            scale,
        }],
        ..request(5)
    };
    assert_exact(&pipeline, &steered(1.0), "canny");
    // A run that was steered less.
    let found = deviations(&pipeline, &steered(1.0), &trace(&pipeline, &steered(0.5)).show_all());
    assert!(found.start == Deviation::NONE && found.steps.iter().all(|(_, found)| *found > Deviation::NONE));
}

#[test]
fn a_run_of_another_request_deviates_where_it_is_another() {
    let pipeline = pipeline();
    let asked = request(7);
    let check = |other: &Generate| deviations(&pipeline, &asked, &trace(&pipeline, other).show_all());
    let another_seed = check(&request(8));
    assert!(another_seed.start > Deviation(1.0), "{another_seed:?}");
    for other in
        [Generate { prompt: "a green pear".into(), ..request(7) }, Generate { guidance: 2.0, ..request(7) }]
    {
        let found = check(&other);
        assert_eq!(found.start, Deviation::NONE);
        assert!(found.steps.iter().all(|(_, deviation)| *deviation > Deviation(0.01)), "{found:?}");
        assert_eq!(found.picture, 0.0);
    }
    // An honest run, but the picture sent is another.
    let mut shown = trace(&pipeline, &asked).show(&[2]);
    shown.picture = RgbPicture::from_fn(64, 64, |_, _| [128; 3]);
    let found = deviations(&pipeline, &asked, &shown);
    assert!(found.farthest() == Deviation::NONE && found.picture > 10.0, "{found:?}");
}

#[test]
fn what_cannot_be_states_of_the_run_is_refused_before_anything_runs() {
    let pipeline = pipeline();
    let asked = request(7);
    let traced = trace(&pipeline, &asked);
    let honest = traced.show(&[1, 3]);
    let unfit = |change: &dyn Fn(&mut Shown)| {
        let mut shown = honest.clone();
        change(&mut shown);
        match audit(&pipeline, &asked, &shown) {
            Audited::Unfit(why) => why,
            Audited::Checked(found) => panic!("taken: {found:?}"),
        }
    };
    let set =
        |shown: &mut Shown, number: f32| shown.opened[1].1[8..12].copy_from_slice(&number.to_le_bytes());
    for (says, change) in [
        ("another number of states", &(|s: &mut Shown| s.states = 5) as &dyn Fn(&mut Shown)),
        ("another number of states", &|s| s.states = usize::MAX),
        ("another length", &|s| s.opened[1].1.truncate(8)),
        ("another length", &|s| s.opened[1].1.clear()),
        ("another length", &|s| s.opened[1].1.extend([0; 4])),
        ("not finite", &|s| set(s, f32::NAN)),
        ("not finite", &|s| set(s, f32::NEG_INFINITY)),
        ("was not opened", &|s| s.opened.truncate(1)),
        ("was not opened", &|s| s.opened.clear()),
        ("beyond the last", &|s| s.opened[1].0 = 6),
        ("does not have", &|s| s.steps = vec![5]),
        ("does not have", &|s| s.steps = vec![usize::MAX]),
        ("another size", &|s| s.picture = s.picture.crop(0, 0, 32, 64)),
    ] {
        let found = unfit(change);
        assert!(found.contains(says), "{says}: {found}");
    }
    // The largest numbers there are pass as states and fail as steps.
    let mut shown = honest.clone();
    set(&mut shown, f32::MAX);
    match audit(&pipeline, &asked, &shown) {
        Audited::Checked(found) => assert!(found.farthest() > Deviation(0.5), "{found:?}"),
        Audited::Unfit(_) => {}
    }
    // What only looks like zero is not.
    let mut shown = honest;
    let latest = shown.opened.len() - 1;
    shown.opened[latest].1[0] ^= 1;
    shown.steps = vec![STEPS - 1];
    shown.opened.push((STEPS - 1, traced.states[STEPS - 1].clone()));
    assert!(deviations(&pipeline, &asked, &shown).farthest() > Deviation::NONE);
}

/// A cheater that asks the network only at some steps and takes the last prediction for the others. Its
/// chain begins and ends as an honest one does.
fn skipping(pipeline: &Pipeline, request: &Generate, skipped: &BTreeSet<usize>) -> Traced {
    let plan = pipeline.check(request).unwrap();
    let draws = Draws::of_seed(request.seed, pipeline.latent_count(request));
    let (mut latents, scene) = pipeline.set_out(request, None, &plan, draws).unwrap();
    let mut run = plan.begin(0);
    let mut states = vec![encode(&latents, &run)];
    let mut prediction = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        if !skipped.contains(&index) {
            prediction = pipeline.predict(request, &scene, step, &latents).unwrap();
        }
        run.step(&mut latents, &prediction, &mut SeededNoise { seed: request.seed });
        states.push(encode(&latents, &run));
    }
    let picture = pipeline.decode(latents, request).unwrap();
    Traced { states, picture }
}

/// `count` of `among`, drawn by a counter.
fn drawn(seed: u32, count: usize, among: std::ops::Range<usize>) -> BTreeSet<usize> {
    let words = (0..).flat_map(|block| philox4x32_10([block, 0, 0, 0], [seed, 7]));
    let mut chosen = BTreeSet::new();
    for word in words {
        if chosen.len() == count.min(among.len()) {
            break;
        }
        chosen.insert(among.start + word as usize % among.len());
    }
    chosen
}

/// Over many seeds and draws of two steps, a skipped share f is found as often as chance says: a skipped step
/// is found whenever it is drawn, and no other is.
#[test]
fn a_miner_that_skips_a_share_of_the_steps_is_caught_as_often_as_the_arithmetic_says() {
    const RUN: usize = 8;
    const DRAWS: u32 = 4_000;
    let pipeline = pipeline();
    for (count, seeds) in [(1_usize, 3_u64), (2, 2), (4, 2), (6, 2)] {
        let mut caught = 0;
        for seed in 0..seeds {
            let asked = Generate { steps: RUN, guidance: 1.0, ..request(seed) };
            // The first step has no prediction before it that could be taken instead.
            let skipped = drawn(seed as u32 + 100 * count as u32, count, 1..RUN);
            let found = deviations(&pipeline, &asked, &skipping(&pipeline, &asked, &skipped).show_all());
            assert_eq!((found.start, found.picture), (Deviation::NONE, 0.0));
            let wrong = found.steps.iter().filter(|(_, deviation)| *deviation > Deviation::NONE);
            let wrong: BTreeSet<usize> = wrong.map(|(step, _)| *step).collect();
            assert_eq!(wrong, skipped);
            caught += (0..DRAWS).filter(|draw| !drawn(*draw, 2, 0..RUN).is_disjoint(&wrong)).count();
        }
        let measured = caught as f64 / (f64::from(DRAWS) * seeds as f64);
        let honest = (RUN - count) as f64;
        let exact = 1.0 - honest * (honest - 1.0) / (RUN * (RUN - 1)) as f64;
        let share = count as f64 / RUN as f64;
        let bound = 1.0 - (1.0 - share) * (1.0 - share);
        // Five standard errors.
        let error = 5.0 * (exact * (1.0 - exact) / (f64::from(DRAWS) * seeds as f64)).sqrt();
        println!(
            "{count} of {RUN} steps skipped: caught {measured:.3}, exactly {exact:.3}, bound {bound:.3}"
        );
        assert!((measured - exact).abs() <= error, "{measured} of {exact}");
        assert!(exact >= bound);
    }
}

/// What [`Deviation`]s look like between number formats (on a processor; no two devices were compared) and
/// for those who save work. `cargo test … -- --ignored --nocapture` prints the table that
/// `docs/verification.md` has, and what an audit costs.
#[test]
#[ignore = "a measurement"]
fn deviations_by_format_and_by_cheat() {
    const RUN: usize = 20;
    let files = embedded::find("argus-tiny").unwrap();
    let open = |files: &ModelFiles, numerics| {
        Pipeline::open(files, Placement::new(DeviceKind::Cpu, numerics), 2).unwrap()
    };
    let changed = |change| open(&files.with_change(change), Numerics::PORTABLE_F32);
    let (exact, f16, bf16) = (pipeline(), Numerics::DEVICE_F16, Numerics::DEVICE_BF16);
    let (f16, bf16) = (open(&files, f16), open(&files, bf16));
    let mut rows: Vec<(&str, Vec<f32>, f64)> = Vec::new();
    let mut row = |name: &'static str, by: &Pipeline, made: &dyn Fn(&Generate) -> (Traced, Vec<usize>)| {
        let (mut all, mut picture) = (Vec::new(), 0.0_f64);
        for seed in 0..3 {
            let asked = Generate { steps: RUN, ..request(seed) };
            let (traced, steps) = made(&asked);
            let found = deviations(by, &asked, &traced.show(&steps));
            all.extend(found.steps.iter().map(|(_, deviation)| deviation.0));
            picture = picture.max(found.picture);
        }
        all.sort_by(f32::total_cmp);
        rows.push((name, all, picture));
    };
    let every: Vec<usize> = (0..RUN).collect();
    let every = |pipeline: &Pipeline, asked: &Generate| (trace(pipeline, asked), every.clone());
    row("f16, checked in f32", &exact, &|asked| every(&f16, asked));
    row("bf16, checked in f32", &exact, &|asked| every(&bf16, asked));
    row("bf16, checked in f16", &f16, &|asked| every(&bf16, asked));
    for (name, change) in [
        ("int8 weights", WeightChange::Int8),
        ("int4 weights", WeightChange::Int4),
        ("a checkpoint 2 % beside", WeightChange::Disturbed { share: 0.02, seed: 1 }),
    ] {
        let other = changed(change);
        row(name, &exact, &|asked| every(&other, asked));
    }
    row("every second step skipped", &exact, &|asked| {
        let skipped: BTreeSet<usize> = (1..RUN).step_by(2).collect();
        (skipping(&exact, asked, &skipped), skipped.into_iter().collect())
    });
    row("guidance 2.5 for 3", &exact, &|asked| every(&exact, &Generate { guidance: 2.5, ..asked.clone() }));
    println!("what | least | median | 99 % | most | picture");
    for (name, all, picture) in rows {
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        let [least, median, nearly, most] = [0.0, 0.5, 0.99, 1.0].map(at);
        println!("{name} | {least:.1e} | {median:.1e} | {nearly:.1e} | {most:.1e} | {picture:.2}");
    }
    let asked = Generate { steps: RUN, ..request(9) };
    let begun = Instant::now();
    let traced = trace(&exact, &asked);
    let made = begun.elapsed();
    let begun = Instant::now();
    deviations(&exact, &asked, &traced.show(&[3, 11]));
    println!("{RUN} steps made in {made:.2?}, two of them audited in {:.2?}", begun.elapsed());
}
