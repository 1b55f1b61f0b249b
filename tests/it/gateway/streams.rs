//! Server-sent events, and what a client that goes away leaves behind: nothing.

use std::{sync::atomic::Ordering, time::Duration};

use argus::gateway::{
    Settings,
    keys::{Credits, NewKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Response;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{Running, service, settings, start, start_with, until};

#[derive(Debug, PartialEq)]
struct Event {
    name: String,
    data: String,
}

impl Event {
    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// Reads events as the specification of server-sent events has them; comments are left out.
struct Events {
    response: Response,
    text: String,
}

impl Events {
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let mut name = String::new();
                let mut data = Vec::new();
                for line in event.lines() {
                    match line.split_once(": ") {
                        Some(("event", text)) => name = text.into(),
                        Some(("data", text)) => data.push(text),
                        _ => assert!(line.starts_with(':'), "{line}"),
                    }
                }
                let event = Event { name, data: data.join("\n") };
                self.text = rest.to_owned();
                if !event.data.is_empty() {
                    return Some(event);
                }
            }
            let chunk = self.response.chunk().await.unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn rest(mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

async fn stream(running: &Running, body: &Value) -> Events {
    let mut body = body.clone();
    body["stream"] = true.into();
    let response = running.images(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    Events { response, text: String::new() }
}

#[tokio::test]
async fn steps_are_seen_while_they_happen() {
    let running = start().await;
    let body = json!({ "prompt": service::GATED, "steps": 3 });
    // The gateway answers with headers at the first event: the place in the queue.
    let mut events = stream(&running, &body).await;
    let queued = events.next().await.unwrap();
    assert_eq!(queued.name, "image_generation.progress");
    let queued = queued.json();
    assert_eq!(
        (&queued["queue_position"], &queued["step"], &queued["of"]),
        (&json!(1), &json!(0), &json!(3))
    );
    for step in 1..=3 {
        running.local.steps.add_permits(1);
        let event = events.next().await.unwrap().json();
        assert_eq!(event["type"], "image_generation.progress");
        assert_eq!((&event["step"], &event["of"]), (&json!(step), &json!(3)));
        assert_eq!((&event["queue_position"], &event["attempt"]), (&Value::Null, &json!(1)));
    }
    let last = events.rest().await;
    assert_eq!(last.len(), 2);
    assert_eq!(last[0].name, "image_generation.completed");
    let completed = last[0].json();
    let png = STANDARD.decode(completed["b64_json"].as_str().unwrap()).unwrap();
    image::load_from_memory(&png).unwrap();
    assert_eq!(completed["type"], "image_generation.completed");
    assert_eq!(completed["miner"], running.local.miner.to_string());
    assert_eq!(completed["seed"], running.local.pictures()[0].seed);
    assert_eq!(last[1], Event { name: String::new(), data: "[DONE]".into() });
    assert_eq!(running.gateway.ledger.holder(&running.key).unwrap().usage.images, 1);
}

#[tokio::test]
async fn several_pictures_share_a_stream() {
    let running = start().await;
    let events = stream(&running, &json!({ "prompt": "x", "n": 10 })).await.rest().await;
    let mut indices: Vec<_> = events
        .iter()
        .filter(|event| event.name == "image_generation.completed")
        .map(|event| event.json()["index"].as_u64().unwrap())
        .collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..10).collect::<Vec<_>>());
    assert!(running.local.peak.load(Ordering::SeqCst) <= 4);
}

#[tokio::test]
async fn another_attempt_is_told() {
    let running = start().await;
    let events = stream(&running, &json!({ "prompt": service::RETRIED })).await.rest().await;
    let attempts: Vec<_> = events
        .iter()
        .filter(|event| event.name == "image_generation.progress")
        .map(|event| (event.json()["attempt"].as_u64().unwrap(), event.json()["step"].as_u64().unwrap()))
        .collect();
    assert_eq!(attempts, [(1, 2), (2, 0), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]);
}

#[tokio::test]
async fn a_failure_in_the_stream_is_an_event() {
    let running = start_with(Settings { timeout_s: 1, ..settings() }).await;
    let events = stream(&running, &json!({ "prompt": service::GATED })).await.rest().await;
    let [.., error, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!((error.name.as_str(), done.data.as_str()), ("error", "[DONE]"));
    assert_eq!(error.json()["error"]["code"], "timed_out");
    let events = stream(&running, &json!({ "prompt": service::NUDE })).await.rest().await;
    let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names[names.len() - 3..], ["image_generation.blocked", "error", ""]);
    let blocked = events[events.len() - 3].json();
    assert_eq!((&blocked["b64_json"], &blocked["blocked"]), (&Value::Null, &json!("nsfw")));
    assert_eq!(running.gateway.ledger.holder(&running.key).unwrap().usage.spent_thousandths, 0);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_work_and_pays_nothing() {
    let running = start().await;
    let new = NewKey { credits: Some(Credits(3_000)), ..NewKey::named("three") };
    let key = running.gateway.ledger.create(new).unwrap().key;
    let cancelled = async |n: usize| {
        until("the work is cancelled", || running.local.cancelled.load(Ordering::SeqCst) == n).await;
    };
    for (round, streamed) in [false, true].into_iter().enumerate() {
        let body = json!({ "prompt": service::FOREVER, "n": 3, "stream": streamed }).to_string();
        let mut socket = tokio::net::TcpStream::connect(running.gateway.address).await.unwrap();
        let head = format!(
            "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).await.unwrap();
        until("three pictures are in work", || running.local.running.load(Ordering::SeqCst) == 3).await;
        assert_eq!(running.gateway.ledger.holder(&key).unwrap().credits_left, Some(Credits(0)));
        drop(socket);
        cancelled(3 * (round + 1)).await;
        until("the credits are back", || {
            running.gateway.ledger.holder(&key).unwrap().credits_left == Some(Credits(3_000))
        })
        .await;
    }
    // And a stream that was being read.
    let mut events = stream(&running, &json!({ "prompt": service::GATED })).await;
    events.next().await.unwrap();
    drop(events);
    cancelled(7).await;
    assert_eq!(running.local.running.load(Ordering::SeqCst), 0);
    let text = running.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(text.contains("argus_gateway_cancelled_total 3\n"), "{text}");
    assert!(text.contains("argus_gateway_in_flight 0\n"), "{text}");
}

#[tokio::test]
async fn a_node_that_stops_lets_requests_end() {
    let running = start().await;
    let mut events = stream(&running, &json!({ "prompt": service::GATED, "steps": 2 })).await;
    events.next().await.unwrap();
    running.shutdown.cancel();
    until("new connections are refused", || {
        std::net::TcpStream::connect_timeout(&running.gateway.address, Duration::from_secs(1)).is_err()
    })
    .await;
    running.local.steps.add_permits(2);
    let rest = events.rest().await;
    assert_eq!(rest.last().unwrap().data, "[DONE]");
    assert!(rest.iter().any(|event| event.name == "image_generation.completed"));
    running.gateway.task.await.unwrap();
}

#[tokio::test]
async fn a_node_that_stops_waits_only_so_long() {
    let running = start_with(Settings { drain_s: 0, ..settings() }).await;
    let mut events = stream(&running, &json!({ "prompt": service::GATED })).await;
    events.next().await.unwrap();
    running.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), running.gateway.task).await.unwrap().unwrap();
    until("the work is cancelled", || running.local.cancelled.load(Ordering::SeqCst) == 1).await;
}
