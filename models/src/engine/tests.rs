//! The engine with the real models of the binary.

use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::{
    diffusion::{Control, ControlKind, Generate, Mask, Pads, Start},
    features::{ImageHashes, cosine_similarity},
    picture::{Limits, RgbPicture},
};

const MODEL: &str = "argus-tiny";
const INPAINT: &str = "argus-tiny-inpaint";
const CLIP: &str = "clip-tiny";

fn id(model: &str) -> ModelId {
    model.parse().unwrap()
}

fn config() -> EngineConfig {
    EngineConfig { queue: 8, ..EngineConfig::on_processor(vec![id(MODEL), id(CLIP)]) }
}

fn start(config: &EngineConfig) -> Engine {
    Engine::start(config, &Registry::default()).unwrap()
}

fn apple(seed: u64, steps: usize) -> Job {
    let request = Generate {
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 128,
        height: 128,
        steps,
        guidance: 4.0,
        seed,
        start: Start::Noise,
        controls: Vec::new(),
    };
    Job::Generate { model: id(MODEL), request }
}

/// A registry entry of a model in the binary that paints nothing.
fn entry(id: &str, architecture: &str, task: &str, more: &str) -> String {
    format!(
        "[[model]]\nid = \"{id}\"\narchitecture = \"{architecture}\"\nsource = \"embedded\"\n\
         licence = \"MIT\"\ntasks = [\"{task}\"]\n{more}work_units = 0.5\ntimeout_seconds = 60\n\
         verification = \"compare\"\nnumerics = \"portable-f32\"\n"
    )
}

fn upscaler(id: &str, factors: &str) -> String {
    entry(id, "upscaler", "upscale", &format!("upscale = {{ factors = {factors}, max_edge = 256 }}\n"))
}

/// A registry of the binary's upscalers and classifier.
fn registry_of_others() -> Registry {
    let classifier = entry("nsfw-mobilenetv2", "nsfw-classifier", "nsfw-classification", "");
    let upscalers = [upscaler("upscale-x2", "[2]"), upscaler("upscale-x4", "[4, 2]")];
    Registry::from_toml(&(upscalers.concat() + &classifier)).unwrap()
}

/// The job of [`apple`], from something else than noise, by the model that does this.
fn apple_from(start: Start) -> Job {
    let Job::Generate { request, .. } = apple(3, 2) else { unreachable!() };
    let model = match start {
        Start::Inpaint { .. } | Start::Uncrop { .. } => INPAINT,
        Start::Noise | Start::Picture { .. } => MODEL,
    };
    Job::Generate { model: id(model), request: Generate { start, ..request } }
}

/// An engine with all that [`apple_from`] asks for.
fn start_painters() -> Engine {
    start(&EngineConfig { models: vec![id(MODEL), id(INPAINT)], ..config() })
}

fn submit(engine: &Engine, job: Job, cancel: &CancelToken) -> Receiver<JobEvent> {
    let (sender, events) = mpsc::sync_channel(256);
    let sink = Box::new(move |event| sender.send(event).unwrap());
    engine.submit(job, cancel.clone(), sink).unwrap();
    events
}

fn run(engine: &Engine, job: Job) -> Output {
    match submit(engine, job, &CancelToken::new()).iter().last() {
        Some(JobEvent::Done(Ok(output))) => output,
        other => panic!("{other:?}"),
    }
}

fn fixture(file: &str) -> RgbPicture {
    let path = format!("{}/tests/fixtures/pictures/{file}", env!("CARGO_MANIFEST_DIR"));
    RgbPicture::decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap()
}

fn refusal(engine: &Engine, job: Job) -> SubmitError {
    engine.submit(job, CancelToken::new(), Box::new(|_| panic!("a refused job has no events"))).unwrap_err()
}

#[test]
fn a_prompt_becomes_a_picture_with_its_features() {
    let engine = start(&config());
    let events: Vec<JobEvent> = submit(&engine, apple(7, 3), &CancelToken::new()).iter().collect();
    let steps = [1, 2, 3].map(|step| JobEvent::Step { step, of: 3 });
    assert_eq!((&events[0], &events[1..4]), (&JobEvent::Started, &steps[..]));
    let [.., JobEvent::Done(Ok(Output::Picture { picture, png, features }))] = &events[..] else {
        panic!("{:?}", events.last());
    };
    assert_eq!((events.len(), picture.width(), picture.height()), (5, 128, 128));
    assert_eq!(&RgbPicture::decode(png, &Limits::default()).unwrap(), picture);
    assert_eq!(features.hashes, ImageHashes::of(picture));
    assert!((features.clip.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    assert!(!features.is_nsfw);
    // The same seed gives the same bits, and features of a received picture are
    // those that its maker sent.
    assert_eq!(
        run(&engine, apple(7, 3)),
        Output::Picture { picture: picture.clone(), png: png.clone(), features: features.clone() }
    );
    assert_eq!(run(&engine, Job::Features { picture: picture.clone() }), Output::Features(features.clone()));
    let Output::Picture { picture: other, .. } = run(&engine, apple(8, 3)) else { panic!() };
    assert!(other.mean_abs_difference(picture).unwrap() > 1.0);
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.done, snapshot.failed, snapshot.queued, snapshot.running), (4, 0, 0, 0));
    assert!(snapshot.busy > Duration::ZERO);
}

#[test]
fn a_cancel_ends_a_picture_in_the_middle() {
    let engine = start(&config());
    let cancel = CancelToken::new();
    let events = submit(&engine, apple(1, 50), &cancel);
    assert_eq!(events.recv().unwrap(), JobEvent::Started);
    assert_eq!(events.recv().unwrap(), JobEvent::Step { step: 1, of: 50 });
    cancel.cancel();
    let rest: Vec<JobEvent> = events.iter().collect();
    assert!(matches!(rest.last(), Some(JobEvent::Done(Err(error))) if error.kind == JobErrorKind::Cancelled));
    assert!(rest.len() < 50, "it ran on for {} events", rest.len());
    let busy = submit(&engine, apple(1, 50), &CancelToken::new());
    let waiting = submit(&engine, apple(2, 50), &CancelToken::new());
    assert_eq!(busy.recv().unwrap(), JobEvent::Started);
    engine.shutdown(Shutdown::Cancel);
    for events in [busy, waiting] {
        let last = events.iter().last();
        assert!(
            matches!(&last, Some(JobEvent::Done(Err(error))) if error.kind == JobErrorKind::ShutDown),
            "{last:?}"
        );
    }
    assert_eq!(refusal(&engine, apple(1, 1)), SubmitError::ShuttingDown);
}

#[test]
fn replicas_share_weights_and_agree_to_the_bit() {
    let engine = start(&EngineConfig { replicas: 2, threads_per_replica: 1, ..config() });
    let jobs: Vec<_> = (0..4).map(|n| submit(&engine, apple(n / 2, 2), &CancelToken::new())).collect();
    let pictures: Vec<JobEvent> = jobs.iter().map(|events| events.iter().last().unwrap()).collect();
    assert_eq!((&pictures[0], &pictures[2]), (&pictures[1], &pictures[3]));
    assert_ne!(pictures[0], pictures[2]);
    let one = start(&EngineConfig { threads_per_replica: 3, ..config() });
    assert_eq!(JobEvent::Done(Ok(run(&one, apple(0, 2)))), pictures[0]);
    engine.shutdown(Shutdown::Drain);
    assert_eq!(engine.snapshot().done, 4);
}

#[test]
fn embeddings_features_and_capacity() {
    let engine = start(&config());
    let pictures =
        vec![fixture("scene-96x80.png"), fixture("gradient-128x128.png"), fixture("scene-64x64.png")];
    let Output::Embeddings(vectors) =
        run(&engine, Job::Embed { model: id(CLIP), pictures: pictures.clone() })
    else {
        panic!()
    };
    assert_eq!(vectors.len(), 3);
    let similarity = |a: usize, b: usize| cosine_similarity(&vectors[a], &vectors[b]).unwrap();
    assert!(similarity(0, 2) > 0.9 && similarity(0, 2) > similarity(0, 1));
    let Output::Features(features) = run(&engine, Job::Features { picture: pictures[0].clone() }) else {
        panic!()
    };
    assert_eq!(features.clip, vectors[0]);
    let texts = vec!["a red apple".to_owned(), "a blue heart".to_owned()];
    let Output::Embeddings(texts) = run(&engine, Job::EmbedTexts { model: id(CLIP), texts }) else {
        panic!()
    };
    assert_eq!((texts.len(), texts[0].len()), (2, vectors[0].len()));

    let Output::Features(trigger) = run(&engine, Job::Features { picture: fixture("nsfw_trigger_m.png") })
    else {
        panic!()
    };
    assert!(trigger.is_nsfw && trigger.nsfw.porn > 0.9);

    let capacity = engine.capacity();
    assert_eq!(capacity.iter().map(|model| model.model.as_str()).collect::<Vec<_>>(), [MODEL, CLIP]);
    for model in capacity {
        assert!(model.seconds_per_unit > 0.0 && model.units_per_second.is_finite(), "{model:?}");
    }
    // Twice the steps, twice the work.
    let (once, twice) = (engine.estimate(&apple(0, 10)), engine.estimate(&apple(0, 20)));
    assert!((twice.as_secs_f64() / once.as_secs_f64() - 2.0).abs() < 1e-3);
    assert!(engine.estimate(&Job::Features { picture: fixture("tiny-5x3.png") }) > Duration::ZERO);
}

#[test]
fn bad_jobs_are_refused_before_the_queue() {
    let engine = start(&EngineConfig { models: vec![id(CLIP)], ..config() });
    let picture = fixture("tiny-5x3.png");
    let embed =
        |model: &str, count: usize| Job::Embed { model: id(model), pictures: vec![picture.clone(); count] };
    assert_eq!(refusal(&engine, apple(0, 1)), SubmitError::UnknownModel(MODEL.into()));
    assert_eq!(refusal(&engine, embed("nothing", 1)).reason(), "unknown_model");
    for job in [embed(CLIP, 0), embed(CLIP, MAX_EMBEDDINGS_PER_JOB + 1)] {
        assert_eq!(refusal(&engine, job).reason(), "invalid_parameters");
    }
    let long = Job::EmbedTexts { model: id(CLIP), texts: vec!["x".repeat(MAX_TEXT_BYTES + 1)] };
    assert_eq!(refusal(&engine, long).reason(), "invalid_parameters");
    let registry = Registry::default();
    for (job, message) in [
        (apple(0, 51), "steps is 51, but it must be 1 to 50"),
        (embed(MODEL, 1), "model `argus-tiny` does not serve image-embedding"),
    ] {
        assert_eq!(job.check(&registry), Err(SubmitError::InvalidParameters(message.into())));
    }
    let wide = RgbPicture::new(1 << 13, 1 << 12, vec![0; 3 << 25]).unwrap();
    assert_eq!(refusal(&engine, Job::Features { picture: wide }).reason(), "invalid_parameters");
}

#[test]
fn an_engine_that_cannot_run_says_why() {
    let registry = Registry::default();
    let reason = |config: EngineConfig| {
        Engine::start(&config, &registry).err().expect("it must not start").to_string()
    };
    assert_eq!(reason(EngineConfig { queue: 0, ..config() }), "queue is 0, but must be 1 to 4096");
    assert_eq!(reason(EngineConfig { replicas: 0, ..config() }), "replicas is 0, but must be 1 to 64");
    assert_eq!(reason(EngineConfig { devices: Vec::new(), ..config() }), "devices is 0, but must be 1 to 64");
    let unknown = EngineConfig { models: vec![id("nothing")], ..config() };
    assert_eq!(reason(unknown), "model `nothing` is not in the registry");
    let text =
        crate::registry::DEFAULT_REGISTRY.replacen("source = \"embedded\"", "path = \"no/such/folder\"", 1);
    let error = Engine::start(&config(), &Registry::from_toml(&text).unwrap()).err().unwrap();
    assert_eq!(error.reason(), "missing_file");
    assert!(error.to_string().starts_with("model `argus-tiny` does not load on cpu"), "{error}");
    #[cfg(not(feature = "cuda"))]
    assert!(
        reason(EngineConfig { devices: vec![DeviceKind::Cuda(0)], ..config() }).contains("--features cuda")
    );
}

#[test]
fn pictures_are_made_from_pictures() {
    let engine = start_painters();
    let picture = fixture("scene-64x64.png").resize(128, 128, crate::resample::Filter::Lanczos);
    let made = |start: Start| match run(&engine, apple_from(start)) {
        Output::Picture { picture, .. } => picture,
        other => panic!("{other:?}"),
    };
    let like = made(Start::Picture { picture: picture.clone(), strength: 0.5 });
    let unlike = made(Start::Picture { picture: picture.clone(), strength: 1.0 });
    let distance = |other: &RgbPicture| other.mean_abs_difference(&picture).unwrap();
    assert!(0.0 < distance(&like) && distance(&like) < distance(&unlike));
    let mask = Mask::from_fn(128, 128, |x, _| x < 40);
    let painted = made(Start::Inpaint { picture: picture.clone(), mask, strength: 1.0 });
    assert_eq!(painted.crop(40, 0, 88, 128), picture.crop(40, 0, 88, 128));
    assert_ne!(painted, picture);
    let part = picture.crop(10, 10, 80, 100);
    let pads = Pads { left: 48, right: 0, top: 12, bottom: 16 };
    let grown = made(Start::Uncrop { picture: part.clone(), pads });
    assert_eq!(grown.crop(48, 12, 80, 100), part);
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_engine_lives() {
    let engine = start_painters();
    let picture = || fixture("scene-64x64.png");
    let mask = |width: u32| Mask::from_fn(width, 64, |_, _| true);
    let inpaint = |mask: Mask, strength: f32| Start::Inpaint { picture: picture(), mask, strength };
    let huge = RgbPicture::new(1 << 13, 1 << 12, vec![0; 3 << 25]).unwrap();
    for (start, says) in [
        (Start::Picture { picture: picture(), strength: 0.0 }, "strength is 0"),
        (Start::Picture { picture: picture(), strength: f32::NAN }, "strength is NaN"),
        (inpaint(mask(64), -0.5), "strength is -0.5"),
        (inpaint(mask(63), 1.0), "mask is 63×64, but it must be as large as its picture, 64×64"),
        (Start::Uncrop { picture: picture(), pads: Pads::default() }, "pads is 0 on every side"),
        (
            Start::Uncrop { picture: picture(), pads: Pads { left: u32::MAX, ..Pads::default() } },
            "width is 128",
        ),
        (Start::Picture { picture: huge, strength: 0.5 }, "a picture of 8192×4096"),
    ] {
        let refused = refusal(&engine, apple_from(start)).to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let Job::Generate { model, mut request } = apple(0, 1) else { unreachable!() };
    let control = Control { kind: ControlKind::Depth, picture: picture(), is_prepared: true, scale: 1.0 };
    request.controls = vec![control];
    let refused = refusal(&engine, Job::Generate { model, request });
    assert_eq!(refused.to_string(), "invalid parameters: model `argus-tiny` does not serve depth");
    // What only the model can tell fails the job, and the next one runs.
    let black = inpaint(Mask::from_fn(64, 64, |_, _| false), 1.0);
    let last = submit(&engine, apple_from(black), &CancelToken::new()).iter().last();
    let Some(JobEvent::Done(Err(error))) = last else { panic!("{last:?}") };
    assert!(error.kind == JobErrorKind::Failed && error.detail.contains("black everywhere"), "{error}");
    run(&engine, apple(0, 1));
}

#[test]
fn pictures_are_enlarged_and_classified() {
    let models = ["upscale-x2", "upscale-x4", "nsfw-mobilenetv2"].map(id).to_vec();
    let engine = Engine::start(&EngineConfig { models, ..config() }, &registry_of_others()).unwrap();
    let picture = fixture("scene-64x64.png");
    let upscale = |model: &str, factor| Job::Upscale { model: id(model), picture: picture.clone(), factor };
    for (model, factor) in [("upscale-x2", 2), ("upscale-x4", 4), ("upscale-x4", 2)] {
        let Output::Picture { picture: large, features, .. } = run(&engine, upscale(model, factor)) else {
            panic!("an upscaler gives a picture")
        };
        assert_eq!((large.width(), large.height()), (64 * factor, 64 * factor));
        let shrunk = large.resize(64, 64, crate::resample::Filter::Lanczos);
        let distance = shrunk.mean_abs_difference(&picture).unwrap();
        assert!(distance < 6.0, "{model} ×{factor}: {distance}");
        assert!(!features.is_nsfw);
    }
    assert!(refusal(&engine, upscale("upscale-x2", 4)).to_string().contains("factor is 4"));
    let pictures = vec![picture.clone(), fixture("nsfw_trigger_m.png")];
    let classify = Job::Classify { model: id("nsfw-mobilenetv2"), pictures };
    let Output::Classes(classes) = run(&engine, classify) else { panic!("a classifier gives classes") };
    let Output::Features(features) = run(&engine, Job::Features { picture: picture.clone() }) else {
        panic!()
    };
    assert_eq!((classes.len(), classes[0]), (2, features.nsfw));
    assert!(!classes[0].is_nsfw() && classes[1].is_nsfw());
    assert_eq!(engine.capacity().len(), 3);
    for capacity in engine.capacity() {
        assert!(capacity.seconds_per_unit > 0.0 && capacity.units_per_second.is_finite(), "{capacity:?}");
    }
    assert!(engine.estimate(&upscale("upscale-x2", 2)) > Duration::ZERO);
}

#[test]
fn factors_and_tasks_that_a_model_cannot_do_are_told_at_the_start() {
    let registry = Registry::from_toml(&upscaler("upscale-x2", "[2, 4]")).unwrap();
    let config = EngineConfig { models: vec![id("upscale-x2")], ..config() };
    let error = Engine::start(&config, &registry).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the registry says that model `upscale-x2` enlarges 4 times, but it can [2]"
    );
}

#[test]
fn a_model_with_control_nets_is_served_from_files() {
    let family = crate::diffusion::pipeline_tests::Family::unpack("sd15");
    let control = |kind: ControlKind| format!("controls.{kind}.path = {:?}\n", family.control_folder(kind));
    let text = format!(
        "[[model]]\nid = \"random\"\narchitecture = \"stable-diffusion\"\npath = {:?}\nlicence = \"none\"\n\
         tasks = [\"text-to-image\", \"image-to-image\", \"scribble\", \"canny\"]\nscheduler = \"unipc\"\n\
         size = {{ min = 32, max = 64, multiple_of = 4, default = 32 }}\n\
         steps = {{ min = 1, max = 9, default = 2 }}\nguidance = {{ min = 0.0, max = 9.0, default = 2.0 }}\n\
         work_units = 1.0\ntimeout_seconds = 60\nverification = \"compare\"\nnumerics = \"portable-f32\"\n{}{}",
        family.model_folder(),
        control(ControlKind::Scribble),
        control(ControlKind::Canny),
    );
    let registry = Registry::from_toml(&text).unwrap();
    let engine = Engine::start(&EngineConfig { models: vec![id("random")], ..config() }, &registry).unwrap();
    let picture = fixture("scene-64x64.png");
    let control = |kind, scale| Control { kind, picture: picture.clone(), is_prepared: false, scale };
    let job = |start: Start, controls: Vec<Control>| {
        let Job::Generate { request, .. } = apple(5, 2) else { unreachable!() };
        Job::Generate {
            model: id("random"),
            request: Generate { width: 64, height: 64, start, controls, ..request },
        }
    };
    let both = vec![control(ControlKind::Canny, 0.5), control(ControlKind::Scribble, 1.5)];
    let from = Start::Picture { picture: picture.clone(), strength: 0.5 };
    let steered = run(&engine, job(from.clone(), both));
    assert_ne!(steered, run(&engine, job(from, Vec::new())));
    let uncrop =
        Start::Uncrop { picture: picture.crop(0, 0, 32, 64), pads: Pads { right: 32, ..Pads::default() } };
    let refused = refusal(&engine, job(uncrop, vec![control(ControlKind::Canny, 1.0)])).to_string();
    assert!(refused.contains("does not serve uncrop"), "{refused}");
    for (controls, says) in [
        (vec![control(ControlKind::Canny, f32::NAN)], "scale is NaN"),
        (vec![control(ControlKind::Canny, 1.0); 5], "5 pictures"),
        (vec![control(ControlKind::Canny, 1.0), control(ControlKind::Depth, 1.0)], "control is depth"),
    ] {
        let refused = refusal(&engine, job(Start::Noise, controls)).to_string();
        assert!(refused.contains(says), "{refused}");
    }
    // A registry that offers more than the model can do.
    let more = Registry::from_toml(&text.replace("multiple_of = 4", "multiple_of = 2")).unwrap();
    let error = Engine::start(&EngineConfig { models: vec![id("random")], ..config() }, &more).err().unwrap();
    assert_eq!(error.reason(), "sizes");
}
