//! The contract both ways, and a worker over HTTP.

use argus_models::{
    Registry,
    engine::{Engine, EngineConfig},
};
use argus_protocols::{
    Answer, Features, ImageHashes, NsfwScores, Task,
    task::{Control, ControlKind, Generation, Pads, Pictures, Start, Upscale},
};
use serde_json::{Value, json};

use super::*;

fn generation(start: Start, controls: Vec<Control>) -> Task {
    Task::Generation(Generation {
        model: "argus-tiny".into(),
        prompt: "a red apple \u{1f34e}".into(),
        negative_prompt: "blurry".into(),
        width: 64,
        height: 64,
        steps: 20,
        guidance: 4.0,
        seed: u64::MAX,
        start,
        controls,
    })
}

fn tasks() -> Vec<Task> {
    let control = |kind| Control { kind, picture: vec![5, 6], is_prepared: true, scale: 0.5 };
    let pads = Pads { left: 1, right: 2, top: 3, bottom: 4 };
    let pictures = Pictures { model: "clip-tiny".into(), pictures: vec![vec![1], vec![2, 3]] };
    vec![
        generation(Start::Noise, Vec::new()),
        generation(Start::Noise, vec![control(ControlKind::Scribble), control(ControlKind::Depth)]),
        generation(Start::Picture { picture: vec![1], strength: 0.25 }, Vec::new()),
        generation(Start::Inpaint { picture: vec![1], mask: vec![2], strength: 1.0 }, Vec::new()),
        generation(Start::Uncrop { picture: vec![9], pads }, vec![control(ControlKind::Canny)]),
        Task::ImageEmbedding(pictures.clone()),
        Task::NsfwClassification(pictures),
        Task::Upscale(Upscale { model: "argus-tiny".into(), picture: vec![7], factor: 2 }),
    ]
}

#[test]
fn every_task_survives_the_contract() {
    let registry = Registry::default();
    for task in tasks() {
        let text = serde_json::to_vec(&Request::of(&task)).unwrap();
        let request: Request = serde_json::from_slice(&text).unwrap();
        assert_eq!(request.into_task(registry.models()).unwrap(), task);
    }
}

#[test]
fn every_answer_survives_the_contract() {
    let scores = NsfwScores { drawing: 0.5, hentai: 0.0, neutral: 0.25, porn: 0.25, sexy: 0.0 };
    let hashes = ImageHashes { average: u64::MAX, perceptual: 1, difference: 1 << 63, colour: 42 };
    let features = Features { hashes, clip: vec![0.6, -0.8], nsfw: scores };
    let text = serde_json::to_vec(&contract::Response::from(Answer::Nsfw(features.clone()))).unwrap();
    let contract::Response::Nsfw(read) = contract::parse_response(&text).unwrap() else { panic!() };
    assert_eq!(Features::try_from(read).unwrap(), features);
    for answer in [
        Answer::Picture(vec![0, 255, 3]),
        Answer::Embeddings(vec![vec![0.1, f32::MIN_POSITIVE]]),
        Answer::Classes(vec![scores]),
    ] {
        let response = contract::Response::from(answer);
        let text = serde_json::to_vec(&response).unwrap();
        assert_eq!(contract::parse_response(&text).unwrap(), response);
    }
    let bare = contract::parse_response(b" \"AAEC\"").unwrap();
    assert_eq!(bare, contract::Response::Image(contract::File(vec![0, 1, 2])));
    for bad in [&b""[..], b"{}", b"\"?\"", b"{\"image\": 3}", b"{\"nsfw\": {}}"] {
        assert!(contract::parse_response(bad).is_err());
    }
}

#[test]
fn the_request_of_the_seed_takes_the_models_defaults() {
    let text = r#"{"prompt": "a", "seed": 0, "pipeline_type": "txt2img", "pipeline_params": {"num_inference_steps": 15},
                   "timeout": 12, "model_name": "Argus-Tiny"}"#;
    let request: Request = serde_json::from_str(text).unwrap();
    let Task::Generation(asked) = request.into_task(Registry::default().models()).unwrap() else { panic!() };
    assert_eq!(
        (asked.model.as_str(), asked.steps, asked.width, asked.guidance),
        ("argus-tiny", 15, 128, 4.0)
    );
    assert_eq!((asked.start, asked.seed), (Start::Noise, 0));
}

#[test]
fn requests_that_miss_something_are_refused_by_its_name() {
    let registry = Registry::default();
    for (request, said) in [
        (json!({"pipeline_type": "img2img", "model_name": "argus-tiny"}), "init_image"),
        (json!({"pipeline_type": "inpaint", "model_name": "argus-tiny", "init_image": "AA=="}), "mask_image"),
        (json!({"pipeline_type": "uncrop", "model_name": "argus-tiny", "init_image": "AA=="}), "pads"),
        (json!({"pipeline_type": "controlnet", "model_name": "argus-tiny"}), "controls"),
        (json!({"pipeline_type": "txt2img", "model_name": "sdxl"}), "`sdxl`"),
        (json!({"pipeline_type": "txt2img", "model_name": "clip-tiny"}), "makes no pictures"),
        (json!({"pipeline_type": "embedding"}), "no picture"),
    ] {
        let request: Request = serde_json::from_value(request).unwrap();
        let error = request.into_task(registry.models()).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

/// A worker of the embedded family, and its address.
async fn worker(token: Option<&str>) -> (String, CancellationToken) {
    let models = vec!["argus-tiny".parse().unwrap(), "clip-tiny".parse().unwrap()];
    let config = EngineConfig::on_processor(models);
    let started = tokio::task::spawn_blocking(move || Engine::start(&config, &Registry::default()));
    let jobs = Jobs::new(started.await.unwrap().unwrap()).await.unwrap();
    let worker = Worker::bind("127.0.0.1:0".parse().unwrap(), jobs, token.map(str::to_owned)).await.unwrap();
    let (url, shutdown) = (format!("http://{}", worker.address), CancellationToken::new());
    tokio::spawn(worker.serve(shutdown.clone()));
    (url, shutdown)
}

async fn post(url: &str, request: &Value) -> (u16, Value) {
    let client = reqwest::Client::new();
    let response = client.post(format!("{url}/generate")).json(request).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_answers_over_http() {
    let (url, shutdown) = worker(Some("secret")).await;
    let client = reqwest::Client::new();
    assert_eq!(client.get(format!("{url}/info")).send().await.unwrap().status(), 401);
    let request = json!({"pipeline_type": "txt2img", "prompt": "a red apple", "seed": 7});
    assert_eq!(post(&url, &request).await.0, 401);
    shutdown.cancel();

    let (url, shutdown) = worker(None).await;
    let info: Info = client.get(format!("{url}/info")).send().await.unwrap().json().await.unwrap();
    assert_eq!((info.model_name.as_str(), info.models.len()), ("argus-tiny", 2));
    assert!(info.models.iter().all(|model| model.work_units_per_second > 0.0));

    let (status, first) = post(&url, &request).await;
    assert_eq!(status, 200, "{first}");
    let contract::Response::Image(file) = serde_json::from_value(first.clone()).unwrap() else { panic!() };
    let picture = image::load_from_memory(&file.0).unwrap();
    assert_eq!((picture.width(), picture.height()), (128, 128));
    assert_eq!(post(&url, &request).await.1, first);

    let images = json!({"pipeline_type": "embedding", "images": [contract::File(file.0)]});
    let (status, embedded) = post(&url, &images).await;
    assert_eq!((status, embedded["embeddings"].as_array().unwrap().len()), (200, 1));

    for (request, status, reason) in [
        (json!({"pipeline_type": "txt2img", "pipeline_params": {"width": 4096}}), 422, "invalid"),
        (json!({"pipeline_type": "txt2img", "pipeline_params": {"num_inference_steps": 0}}), 422, "invalid"),
        (json!({"pipeline_type": "embedding", "images": ["AAAA"]}), 422, "invalid"),
        (json!({"pipeline_type": "dance"}), 422, "invalid"),
        (json!(["prompt"]), 422, "invalid"),
    ] {
        let (found, body) = post(&url, &request).await;
        assert_eq!((found, body["error"]["reason"].as_str()), (status, Some(reason)), "{request}: {body}");
    }
    let huge = client.post(format!("{url}/generate")).body(vec![b' '; contract::MAX_BYTES + 1]);
    assert_eq!(huge.send().await.unwrap().status(), 413);
    shutdown.cancel();
}
