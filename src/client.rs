//! A client of the gateway's API, for `argus generate` and the devnet's demo.
//!
//! Pictures are asked for as a stream of server-sent events, so that a person sees the steps.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

/// An event is at most a picture in base64 with its surroundings.
const EVENT_LIMIT: usize = 32 * 1024 * 1024;
/// Between two chunks of the stream; the gateway sends keep-alives more often than that.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the API at {url}: {source}; is a validator running there?")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("the API refused: {message}")]
    Refused { status: u16, message: String },
    #[error("the API's stream broke off: {0}")]
    Broken(String),
}

/// What to ask for; `None` leaves the model's default.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub model: Option<String>,
    pub prompt: String,
    pub negative_prompt: Option<String>,
    /// `WIDTHxHEIGHT`.
    pub size: Option<String>,
    pub steps: Option<u32>,
    pub guidance: Option<f32>,
}

/// Steps of the sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub step: u64,
    pub of: u64,
}

/// A picture and what the API says about it.
#[derive(Clone, Debug)]
pub struct Generated {
    pub png: Vec<u8>,
    /// The final event without the picture.
    pub details: Value,
}

pub struct Client {
    base: String,
    key: Option<String>,
    http: reqwest::Client,
}

impl Client {
    /// `base` is e.g. `http://127.0.0.1:8080`.
    pub fn new(base: &str, key: Option<String>) -> Self {
        let http = reqwest::Client::builder().read_timeout(IDLE).build().expect("no TLS to set up");
        Self { base: base.trim_end_matches('/').to_owned(), key, http }
    }

    /// Asks for one picture from words.
    pub async fn generate(
        &self,
        request: &Request,
        progress: impl FnMut(Progress),
    ) -> Result<Generated, ClientError> {
        let mut body = json!({ "prompt": request.prompt });
        for (name, value) in [
            ("model", request.model.clone().map(Value::from)),
            ("negative_prompt", request.negative_prompt.clone().map(Value::from)),
            ("size", request.size.clone().map(Value::from)),
            ("steps", request.steps.map(Value::from)),
            ("guidance", request.guidance.map(Value::from)),
        ] {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        self.picture("/v1/images/generations", body, progress).await
    }

    /// Asks an endpoint that makes pictures for one of them; `body` is its JSON object.
    pub async fn picture(
        &self,
        path: &str,
        mut body: Value,
        mut progress: impl FnMut(Progress),
    ) -> Result<Generated, ClientError> {
        body["stream"] = true.into();
        let mut response = self.send(path, &body).await?;
        let mut events = Events::default();
        while let Some(chunk) = response.chunk().await.map_err(|e| ClientError::Broken(e.to_string()))? {
            for event in events.push(&chunk)? {
                if let Some(error) = event.get("error") {
                    return Err(ClientError::Refused { status: 200, message: message(error) });
                }
                if let Some(picture) = finished(&event)? {
                    return Ok(picture);
                }
                if let (Some(step), Some(of)) = (event["step"].as_u64(), event["of"].as_u64()) {
                    progress(Progress { step, of });
                }
            }
        }
        Err(ClientError::Broken("it ended without a picture".into()))
    }

    /// Asks an endpoint that answers with JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send(path, body).await?.json().await.map_err(|e| ClientError::Broken(e.to_string()))
    }

    async fn send(&self, path: &str, body: &Value) -> Result<reqwest::Response, ClientError> {
        let url = format!("{}{path}", self.base);
        let mut call = self.http.post(&url).json(body);
        if let Some(key) = &self.key {
            call = call.bearer_auth(key);
        }
        let response = call.send().await.map_err(|source| ClientError::Unreachable { url, source })?;
        accepted(response).await
    }

    /// A JSON document of the API, e.g. `/v1/status`.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        let url = format!("{}{path}", self.base);
        let mut call = self.http.get(&url);
        if let Some(key) = &self.key {
            call = call.bearer_auth(key);
        }
        let response = call.send().await.map_err(|source| ClientError::Unreachable { url, source })?;
        accepted(response).await?.json().await.map_err(|e| ClientError::Broken(e.to_string()))
    }
}

async fn accepted(response: reqwest::Response) -> Result<reqwest::Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body: Value = response.json().await.unwrap_or_default();
    let message = match body.get("error") {
        Some(error) => message(error),
        None => status.to_string(),
    };
    Err(ClientError::Refused { status: status.as_u16(), message })
}

fn message(error: &Value) -> String {
    error["message"].as_str().unwrap_or("no reason given").to_owned()
}

/// The picture, when this event is the last one.
fn finished(event: &Value) -> Result<Option<Generated>, ClientError> {
    let kind = event["type"].as_str().unwrap_or_default();
    let Some(encoded) = event["b64_json"].as_str().filter(|_| kind.ends_with("completed")) else {
        return Ok(None);
    };
    let png = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|e| ClientError::Broken(format!("the picture is not base64: {e}")))?;
    let mut details = event.clone();
    details.as_object_mut().expect("it was indexed by name").remove("b64_json");
    Ok(Some(Generated { png, details }))
}

/// Splits a byte stream into the JSON documents of its events (WHATWG HTML, server-sent events).
#[derive(Default)]
struct Events {
    buffer: Vec<u8>,
}

impl Events {
    fn push(&mut self, chunk: &[u8]) -> Result<Vec<Value>, ClientError> {
        if self.buffer.len() + chunk.len() > EVENT_LIMIT {
            return Err(ClientError::Broken("an event is too large".into()));
        }
        self.buffer.extend_from_slice(chunk);
        let mut found = Vec::new();
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let data: String = text
                .lines()
                .filter_map(|line| line.strip_prefix("data:"))
                .map(|data| data.strip_prefix(' ').unwrap_or(data))
                .collect::<Vec<_>>()
                .join("\n");
            if data.is_empty() || data == "[DONE]" {
                continue;
            }
            found.push(serde_json::from_str(&data).map_err(|e| ClientError::Broken(e.to_string()))?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_stream_is_cut() {
        let stream = b": keep-alive\n\nevent: x\ndata: {\"step\":1,\"of\":2}\n\ndata: {\"a\":\ndata: 1}\n\ndata: [DONE]\n\n";
        for cut in 0..stream.len() {
            let mut events = Events::default();
            let mut found = events.push(&stream[..cut]).unwrap();
            found.extend(events.push(&stream[cut..]).unwrap());
            assert_eq!(found, [json!({ "step": 1, "of": 2 }), json!({ "a": 1 })], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        let chunk = vec![b'a'; EVENT_LIMIT / 2];
        events.push(&chunk).unwrap();
        events.push(&chunk).unwrap();
        assert!(events.push(b"a").is_err());
    }
}
