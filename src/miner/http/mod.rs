//! The backend whose work is done elsewhere, behind `POST /generate` and `GET /info` (see
//! [`crate::worker::contract`]): an `argus worker`, a fleet of them, or a NicheImage endpoint.
//!
//! Invariants: models are offered only while the worker answers `/info` and names them; no answer is read
//! beyond its limit; only a connection that could not be made is tried again, since work that was begun may
//! be going on; a picture that comes is looked at here, and leaves only if it is safe for work.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use argus_models::{Limits, ModelSpec, Registry, RgbPicture};
use argus_protocols::{Answer, Capability, Features, Task, TaskKind, task::Generation, task::Start};
use async_trait::async_trait;
use parking_lot::Mutex;
use reqwest::{Client, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Backend, BackendError, Step};
use crate::{
    jobs::{Jobs, answer_size, model_task, tasks, work},
    worker::contract::{self, Failure, Info, MAX_BYTES, MAX_INFO_BYTES, Request, Response},
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long `/info` may take.
const INFO: Duration = Duration::from_secs(5);
/// Attempts at a connection after the first, and the pause before each.
const RETRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(200);
/// Looks at `/info` that fail one after the other before the models are no longer offered.
const PATIENCE: u32 = 2;
/// How long a miner that starts waits for its worker before it goes on without.
const FIRST: Duration = Duration::from_secs(10);
/// Idle connections that are kept.
const POOL: usize = 64;
/// The most requests at once.
pub const MAX_SLOTS: usize = 1024;

/// Where the work is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `http://…/generate`.
    pub url: String,
    /// `http://…/info`.
    pub info: String,
    /// Requests at once; as many as the workers behind the address run together.
    #[serde(default = "default_slots")]
    pub slots: usize,
    /// Between two looks at `info`, milliseconds.
    #[serde(default = "default_health_ms")]
    pub health_ms: u32,
    /// What the worker wants to be shown as a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

fn default_slots() -> usize {
    1
}

fn default_health_ms() -> u32 {
    3_000
}

impl Settings {
    pub fn validate(&self) -> Result<(), String> {
        for (name, url) in [("url", &self.url), ("info", &self.info)] {
            match Url::parse(url) {
                Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => {}
                _ => return Err(format!("backend.{name} is {url:?}, which is no http or https address")),
            }
        }
        if !(1..=MAX_SLOTS).contains(&self.slots) {
            return Err(format!("backend.slots is {}, but must be 1 to {MAX_SLOTS}", self.slots));
        }
        match self.health_ms {
            0 => Err("backend.health_ms is 0: give the worker some rest".into()),
            _ => Ok(()),
        }
    }
}

/// Does the work over HTTP.
pub struct Http {
    settings: Settings,
    client: Client,
    /// Looks at pictures; runs none of the models.
    features: Jobs,
    models: Vec<ModelSpec>,
    found: watch::Sender<Vec<Capability>>,
    /// What the miner was last told.
    told: tokio::sync::Mutex<watch::Receiver<Vec<Capability>>>,
    look_now: Notify,
    /// Rates of models whose worker does not tell them, measured once.
    measured: Mutex<BTreeMap<String, f32>>,
}

impl Http {
    /// `models` are those of the registry that the worker may serve; [`Http::watch`] must run beside it.
    pub fn new(settings: Settings, models: &Registry, features: Jobs) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(POOL)
            .tcp_keepalive(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let found = watch::Sender::new(Vec::new());
        let told = tokio::sync::Mutex::new(found.subscribe());
        let (look_now, measured) = (Notify::new(), Mutex::default());
        Ok(Self {
            settings,
            client,
            features,
            models: models.models().to_vec(),
            found,
            told,
            look_now,
            measured,
        })
    }

    fn spec(&self, model: &str) -> Option<&ModelSpec> {
        self.models.iter().find(|spec| spec.id.as_str() == model)
    }

    /// Whether the worker serves this now.
    fn is_offered(&self, task: TaskKind, model: &str) -> bool {
        let offered =
            |capability: &Capability| capability.model == model && capability.tasks.contains(&task.code());
        self.found.borrow().iter().any(offered)
    }

    /// Looks at the worker's `/info` again and again, until shutdown.
    pub async fn watch(&self, shutdown: CancellationToken) {
        let mut failures = 0;
        loop {
            let looked = tokio::select! {
                looked = self.look() => looked,
                () = shutdown.cancelled() => return,
            };
            match looked {
                Ok(found) => {
                    failures = 0;
                    self.tell(found);
                }
                Err(detail) => {
                    failures += 1;
                    tracing::warn!(info = self.settings.info, detail, failures, "the worker does not answer");
                    if failures >= PATIENCE {
                        self.tell(Vec::new());
                    }
                }
            }
            let rest = Duration::from_millis(self.settings.health_ms.into());
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.look_now.notified() => tokio::time::sleep(PAUSE).await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn tell(&self, found: Vec<Capability>) {
        self.found.send_if_modified(|known| {
            let is_new = *known != found;
            if is_new {
                tracing::info!(models = found.len(), "what the worker serves changed");
                *known = found;
            }
            is_new
        });
    }

    /// What the worker serves of our models, or why it cannot be told.
    async fn look(&self) -> Result<Vec<Capability>, String> {
        let request = self.authorised(self.client.get(&self.settings.info)).timeout(INFO);
        let response = request.send().await.map_err(|error| chain(&error))?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let body = read(response, MAX_INFO_BYTES).await?;
        let info: Info = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        if info.models.is_empty() {
            return self.plain(&info.model_name).await;
        }
        let mut found = Vec::new();
        for spec in &self.models {
            let Some(told) = info.models.iter().find(|told| told.id == spec.id.as_str()) else { continue };
            let is_rate = told.work_units_per_second.is_finite() && told.work_units_per_second > 0.0;
            let served: Vec<TaskKind> =
                tasks(spec).into_iter().filter(|task| told.tasks.contains(task)).collect();
            if is_rate && !served.is_empty() {
                found.push(self.capability(spec, &served, told.work_units_per_second));
            }
        }
        match found.is_empty() {
            true => Err("it serves none of the models of engine.models".into()),
            false => Ok(found),
        }
    }

    /// The capability of an endpoint that tells a model's name and no more: it makes pictures from words,
    /// as fast as it did the first time.
    async fn plain(&self, name: &str) -> Result<Vec<Capability>, String> {
        let named = self.models.iter().find(|spec| spec.id.as_str().eq_ignore_ascii_case(name));
        let spec = named.ok_or_else(|| format!("it serves `{name}`, which is none of engine.models"))?;
        let known = self.measured.lock().get(spec.id.as_str()).copied();
        let rate = match known {
            Some(rate) => rate,
            None => self.measure(spec).await?,
        };
        self.measured.lock().insert(spec.id.to_string(), rate);
        Ok(vec![self.capability(spec, &[TaskKind::TextToImage], rate)])
    }

    async fn measure(&self, spec: &ModelSpec) -> Result<f32, String> {
        let limits = spec.pictures.ok_or("it makes no pictures from words")?;
        let task = Task::Generation(Generation {
            model: spec.id.to_string(),
            prompt: "a red apple".into(),
            negative_prompt: String::new(),
            width: limits.size.default,
            height: limits.size.default,
            steps: limits.steps.default as u32,
            guidance: limits.guidance.default,
            seed: 1,
            start: Start::Noise,
            controls: Vec::new(),
        });
        let begun = Instant::now();
        self.ask(&task, spec).await.map_err(|error| format!("its first picture: {error}"))?;
        Ok((spec.work_units / begun.elapsed().as_secs_f64().max(1e-3)) as f32)
    }

    fn capability(&self, spec: &ModelSpec, tasks: &[TaskKind], rate: f32) -> Capability {
        Capability {
            model: spec.id.to_string(),
            tasks: tasks.iter().map(|task| task.code()).collect(),
            work_units_per_second: rate,
            concurrency: u16::try_from(self.settings.slots).unwrap_or(u16::MAX),
        }
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.settings.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a task to the worker, and makes an answer of what comes back.
    async fn ask(&self, task: &Task, spec: &ModelSpec) -> Result<Answer, BackendError> {
        let body = serde_json::to_vec(&Request::of(task)).map_err(|error| failed(error.to_string()))?;
        let response = self.post(body, spec.timeout).await?;
        let status = response.status();
        let body = read(response, MAX_BYTES).await.map_err(failed)?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        let answer = match contract::parse_response(&body).map_err(failed)? {
            Response::Image(file) => self.picture(task, file.0).await?,
            Response::Nsfw(features) => Answer::Nsfw(Features::try_from(features).map_err(failed)?),
            Response::Embeddings(all) => Answer::Embeddings(all),
            Response::Classes(all) => Answer::Classes(all.into_iter().map(Into::into).collect()),
        };
        match answer.answers(task) && answer.check().is_ok() {
            true => Ok(answer),
            false => Err(failed("the worker's answer is not one to this task")),
        }
    }

    async fn post(&self, body: Vec<u8>, timeout: Duration) -> Result<reqwest::Response, BackendError> {
        let mut attempt = 0;
        loop {
            let request = self.authorised(self.client.post(&self.settings.url));
            let request = request.header("content-type", "application/json").timeout(timeout);
            match request.body(body.clone()).send().await {
                Ok(response) => return Ok(response),
                Err(error) => {
                    self.look_now.notify_one();
                    if !error.is_connect() || attempt == RETRIES {
                        return Err(failed(format!("the worker: {}", chain(&error))));
                    }
                    attempt += 1;
                    tokio::time::sleep(PAUSE * attempt).await;
                }
            }
        }
    }

    /// A picture as it may leave: a PNG of the right size, or its features.
    async fn picture(&self, task: &Task, file: Vec<u8>) -> Result<Answer, BackendError> {
        let Some((width, height)) = answer_size(task)? else {
            return Err(failed("the worker sent a picture that nobody asked for"));
        };
        let limits = Limits {
            max_side: width.max(height),
            max_pixels: u64::from(width) * u64::from(height),
            ..Limits::default()
        };
        let decoded = tokio::task::spawn_blocking(move || RgbPicture::decode(&file, &limits)).await;
        let picture = decoded
            .map_err(|panic| failed(panic.to_string()))?
            .map_err(|error| failed(format!("the worker's picture: {error}")))?;
        if (picture.width(), picture.height()) != (width, height) {
            let found = format!("{}×{}", picture.width(), picture.height());
            return Err(failed(format!("the worker's picture is {found}, asked for was {width}×{height}")));
        }
        let features = self.features.features(picture.clone()).await?;
        if is_nsfw(&features) {
            return Ok(Answer::Nsfw(features));
        }
        let encoded = tokio::task::spawn_blocking(move || picture.encode_png()).await;
        encoded.map(Answer::Picture).map_err(|panic| failed(panic.to_string()))
    }
}

fn is_nsfw(features: &Features) -> bool {
    let argus_protocols::NsfwScores { drawing, hentai, neutral, porn, sexy } = features.nsfw;
    argus_models::NsfwScores { drawing, hentai, neutral, porn, sexy }.is_nsfw()
}

/// What a worker's refusal is to our validators.
fn refusal(status: StatusCode, body: &[u8]) -> BackendError {
    let told = serde_json::from_slice::<Failure>(body).map(|failure| failure.error).ok();
    let message = told.as_ref().map_or_else(|| format!("the worker answers {status}"), |e| e.message.clone());
    match (told.as_ref().map(|told| told.reason.as_str()), status) {
        (Some("invalid"), _) => BackendError::Invalid(message),
        (Some("incapable"), _) => BackendError::Incapable,
        (Some("busy"), _) | (None, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            BackendError::Busy
        }
        (Some("cancelled"), _) => BackendError::Cancelled,
        _ => failed(message),
    }
}

/// The body of a response, up to a limit.
async fn read(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, String> {
    let too_large = || format!("the worker sends more than {limit} bytes");
    if response.content_length().is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An error with what caused it, without the address, which may hold a password.
fn chain(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut text = match () {
        () if error.is_timeout() => "it took too long".to_owned(),
        () if error.is_connect() => "no connection".to_owned(),
        () => "the exchange broke off".to_owned(),
    };
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn failed(detail: impl Into<String>) -> BackendError {
    BackendError::Failed(detail.into())
}

#[async_trait]
impl Backend for Http {
    async fn warm_up(&self) -> Vec<Capability> {
        let mut told = self.told.lock().await;
        let first = told.wait_for(|found| !found.is_empty());
        match tokio::time::timeout(FIRST, first).await {
            Ok(Ok(found)) => found.clone(),
            // It may come later; or whoever looks has ended, and the node with it.
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    fn can_recover(&self) -> bool {
        true
    }

    async fn changed(&self) -> Vec<Capability> {
        let mut told = self.told.lock().await;
        match told.changed().await {
            Ok(()) => told.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }

    fn slots(&self) -> usize {
        self.settings.slots
    }

    fn usual_work(&self, task: TaskKind, model: &str) -> Option<f64> {
        let spec = self.spec(model).filter(|spec| spec.serves(model_task(task)))?;
        self.is_offered(task, model).then_some(spec.work_units)
    }

    fn work(&self, task: &Task) -> Result<f64, BackendError> {
        work(self.spec(task.model()).ok_or(BackendError::Incapable)?, task)
    }

    async fn run(&self, task: Task, _: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        let spec = self.spec(task.model()).ok_or(BackendError::Incapable)?;
        self.ask(&task, spec).await
    }
}
