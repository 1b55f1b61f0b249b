//! The HTTP backend against workers that are slow, lie, or are not there.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

use argus_models::engine::{Engine, EngineConfig};
use argus_protocols::Reason;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode as Status,
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::worker::contract::File;

/// What a worker answers next, and how often it was asked.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
    info: Arc<Mutex<Value>>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Script {
    fn then(&self, status: u16, answer: Value) {
        self.answers.lock().push_back((status, answer));
    }

    async fn serve(self, address: SocketAddr) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new()
            .route("/generate", post(answer))
            .route(
                "/info",
                get(|State(script): State<Script>| async move { Json(script.info.lock().clone()) }),
            )
            .with_state(self);
        let ending = stop.clone();
        let serving = async move { axum::serve(listener, router).await };
        tokio::spawn(async move {
            tokio::select! { _ = serving => {}, () = ending.cancelled() => {} }
        });
        (address, stop)
    }
}

async fn answer(State(script): State<Script>, Json(asked): Json<Value>) -> axum::response::Response {
    script.asked.lock().push(asked);
    let next = script.answers.lock().pop_front();
    match next {
        Some((0, _)) => std::future::pending().await,
        Some((status, answer)) => (Status::from_u16(status).unwrap(), Json(answer)).into_response(),
        None => Status::NOT_IMPLEMENTED.into_response(),
    }
}

/// The embedded registry with a short timeout, so that a test need not wait long.
fn registry() -> Registry {
    let text = argus_models::registry::DEFAULT_REGISTRY;
    Registry::from_toml(&text.replacen("timeout_seconds = 20", "timeout_seconds = 2", 1)).unwrap()
}

async fn backend(address: SocketAddr) -> Arc<Http> {
    let config = EngineConfig::on_processor(Vec::new());
    let started = tokio::task::spawn_blocking(move || Engine::start(&config, &Registry::default()));
    let features = Jobs::new(started.await.unwrap().unwrap()).await.unwrap();
    let settings = Settings {
        url: format!("http://{address}/generate"),
        info: format!("http://{address}/info"),
        slots: 2,
        health_ms: 50,
        token: None,
    };
    settings.validate().unwrap();
    Arc::new(Http::new(settings, &registry(), features).unwrap())
}

fn task() -> Task {
    task_of(64, 64)
}

fn task_of(width: u32, height: u32) -> Task {
    Task::Generation(Generation {
        model: "argus-tiny".into(),
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width,
        height,
        steps: 20,
        guidance: 4.0,
        seed: 7,
        start: Start::Noise,
        controls: Vec::new(),
    })
}

fn png(width: u32, height: u32) -> File {
    File(RgbPicture::from_fn(width, height, |x, y| [(x * 3) as u8, (y * 3) as u8, 90]).encode_png())
}

async fn run(backend: &Http) -> Result<Answer, BackendError> {
    backend.run(task(), mpsc::channel(1).0).await
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_believed_only_as_far_as_they_are_looked_at() {
    let script = Script::default();
    let (address, _stop) = script.clone().serve(anywhere()).await;
    let backend = backend(address).await;
    script.then(200, json!({ "image": png(64, 64) }));
    let Answer::Picture(found) = run(&backend).await.unwrap() else { panic!("no picture") };
    assert_eq!(File(found), png(64, 64));
    assert_eq!(script.asked.lock()[0]["pipeline_params"]["num_inference_steps"], 20);

    // A picture that is not safe for work stays here, whatever the worker thinks of it.
    let trigger = include_bytes!("../../../models/tests/fixtures/pictures/nsfw_trigger_m.png");
    let picture = RgbPicture::decode(trigger, &Limits::default()).unwrap();
    script.then(200, json!({ "image": File(trigger.to_vec()) }));
    let asked = task_of(picture.width(), picture.height());
    let answer = backend.run(asked, mpsc::channel(1).0).await.unwrap();
    assert!(matches!(answer, Answer::Nsfw(_)), "{answer:?}");

    for (answer, said) in [
        (json!({ "image": png(64, 32) }), "64×32"),
        (json!({ "image": png(128, 128) }), "picture"),
        (json!({ "image": File(vec![1, 2, 3]) }), "picture"),
        (json!({ "image": "no base64" }), "base64"),
        (json!({ "embeddings": [[1.0]] }), "not one to this task"),
        (
            json!({ "nsfw": { "hashes": ["0", "0", "0", "0"], "clip": [2.0], "scores":
            { "drawing": 1.0, "hentai": 0.0, "neutral": 0.0, "porn": 0.0, "sexy": 0.0 } } }),
            "not one to this task",
        ),
        (json!({}), "cannot be read"),
    ] {
        script.then(200, answer.clone());
        match run(&backend).await {
            Err(BackendError::Failed(detail)) => assert!(detail.contains(said), "{detail}"),
            other => panic!("{answer}: {other:?}"),
        }
    }
    let asked = script.asked.lock().len();
    let huge = "A".repeat(MAX_BYTES + 1);
    script.then(200, json!({ "image": huge }));
    assert!(matches!(run(&backend).await, Err(BackendError::Failed(detail)) if detail.contains("more than")));
    script.then(0, Value::Null);
    assert!(matches!(run(&backend).await, Err(BackendError::Failed(detail)) if detail.contains("too long")));
    // Neither was asked twice: the work may have been done.
    assert_eq!(script.asked.lock().len(), asked + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_keep_their_reason() {
    let script = Script::default();
    let (address, _stop) = script.clone().serve(anywhere()).await;
    let backend = backend(address).await;
    let told = |reason: &str| json!({ "error": { "reason": reason, "message": "no" } });
    for (status, body, reason) in [
        (422, told("invalid"), Reason::Invalid),
        (404, told("incapable"), Reason::Incapable),
        (429, told("busy"), Reason::Busy),
        (503, told("cancelled"), Reason::Cancelled),
        (500, told("failed"), Reason::Failed),
        (429, json!("slow down"), Reason::Busy),
        (503, json!({}), Reason::Busy),
        (500, json!({ "detail": "CUDA out of memory" }), Reason::Failed),
        (302, json!({}), Reason::Failed),
    ] {
        script.then(status, body.clone());
        assert_eq!(run(&backend).await.unwrap_err().reason(), reason, "{status} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_offered_while_the_worker_is_healthy() {
    let script = Script::default();
    let model = |id: &str, tasks: &[&str]| json!({ "id": id, "tasks": tasks, "work_units_per_second": 3.0 });
    *script.info.lock() = json!({ "model_name": "argus-tiny", "slots": 2, "models": [
        model("argus-tiny", &["text-to-image", "upscale"]), model("unknown", &["text-to-image"]),
    ] });
    let (address, stop) = script.clone().serve(anywhere()).await;
    let backend = backend(address).await;
    let (watching, shutdown) = (backend.clone(), CancellationToken::new());
    let ending = shutdown.clone();
    let watch = tokio::spawn(async move { watching.watch(ending).await });

    let found = backend.warm_up().await;
    assert_eq!(found.len(), 1);
    // Only what the registry says that the model serves.
    assert_eq!((found[0].model.as_str(), found[0].tasks.as_slice()), ("argus-tiny", &[1][..]));
    assert_eq!(found[0].concurrency, 2);
    assert!(backend.usual_work(TaskKind::TextToImage, "argus-tiny").is_some());
    assert!(backend.usual_work(TaskKind::ImageEmbedding, "clip-tiny").is_none());

    stop.cancel();
    assert_eq!(backend.changed().await, []);
    assert!(backend.usual_work(TaskKind::TextToImage, "argus-tiny").is_none());
    assert!(
        matches!(run(&backend).await, Err(BackendError::Failed(detail)) if detail.contains("no connection"))
    );

    // A connection that could not be made is tried again, and the worker comes back meanwhile.
    script.then(200, json!({ "image": png(64, 64) }));
    let asking = backend.clone();
    let answer = tokio::spawn(async move { run(&asking).await });
    let (_, stop) = script.clone().serve(address).await;
    assert!(answer.await.unwrap().is_ok());
    assert_eq!(backend.changed().await.len(), 1);
    stop.cancel();
    shutdown.cancel();
    watch.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_tells_a_name_alone_is_measured() {
    let script = Script::default();
    *script.info.lock() = json!({ "model_name": "Argus-Tiny" });
    // The first picture of all, and in the form of the seed's first endpoints.
    script.then(200, json!(png(128, 128)));
    let (address, _stop) = script.clone().serve(anywhere()).await;
    let backend = backend(address).await;
    let (watching, shutdown) = (backend.clone(), CancellationToken::new());
    let ending = shutdown.clone();
    tokio::spawn(async move { watching.watch(ending).await });
    let found = backend.warm_up().await;
    assert_eq!((found[0].model.as_str(), found[0].tasks.as_slice()), ("argus-tiny", &[1][..]));
    assert!(found[0].work_units_per_second > 0.0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(script.asked.lock().len(), 1);
    shutdown.cancel();
}

#[test]
fn settings_are_checked() {
    let parse = |text: &str| toml::from_str::<crate::miner::Settings>(text);
    let settings =
        parse("backend = { kind = \"http\", url = \"http://a/generate\", info = \"http://a/info\" }")
            .unwrap();
    let crate::miner::BackendSettings::Http(http) = settings.backend else { panic!() };
    http.validate().unwrap();
    let bad = |change: fn(&mut Settings)| {
        let mut settings = http.clone();
        change(&mut settings);
        settings.validate().unwrap_err()
    };
    assert!(bad(|settings| settings.url = "ftp://a".into()).contains("backend.url"));
    assert!(bad(|settings| settings.info = "a".into()).contains("backend.info"));
    assert!(bad(|settings| settings.slots = 0).contains("slots"));
    assert!(bad(|settings| settings.health_ms = 0).contains("health_ms"));
    let error = parse("backend = { kind = \"http\", url = \"x\", inf = \"y\" }").unwrap_err().to_string();
    assert!(error.contains("inf"), "{error}");
}
