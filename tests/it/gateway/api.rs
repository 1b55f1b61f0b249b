//! The endpoints as a well-behaved client meets them, and every error it can be told.

use std::sync::atomic::Ordering;

use argus::gateway::{
    Settings,
    keys::{Credits, NewKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};

use super::{apple, error, service, settings, start, start_with, until, value};

#[tokio::test]
async fn a_prompt_becomes_a_picture_with_a_seed_of_our_own() {
    let running = start().await;
    let body = json!({
        "prompt": "a red apple", "negative_prompt": "pears", "model": "local-disc", "size": "192x128",
        "steps": 5, "guidance": 3.5, "seed": 7, "response_format": "b64_json", "user": "somebody",
        "quality": "auto", "n": 1, "partial_images": 2, "stream": false
    });
    let mut seeds = Vec::new();
    for _ in 0..2 {
        let response = running.images(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let answer = value(response).await;
        assert_eq!(answer["model"], "local-disc");
        assert_eq!(answer["size"], "192x128");
        assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
        let image = &answer["data"][0];
        assert_eq!(image["miner"], running.local.miner.to_string());
        let png = STANDARD.decode(image["b64_json"].as_str().unwrap()).unwrap();
        let picture = image::load_from_memory(&png).unwrap();
        assert_eq!((picture.width(), picture.height()), (192, 128));
        seeds.push(image["seed"].as_u64().unwrap());
    }
    let asked = running.local.pictures();
    assert_eq!(asked.iter().map(|task| task.seed).collect::<Vec<_>>(), seeds);
    assert!(!seeds.contains(&7) && seeds[0] != seeds[1], "{seeds:?}");
    let task = &asked[0];
    assert_eq!((task.prompt.as_str(), task.negative_prompt.as_str()), ("a red apple", "pears"));
    assert_eq!((task.width, task.height, task.steps, task.guidance), (192, 128, 5, 3.5));
}

#[tokio::test]
async fn what_is_left_out_is_the_models_default() {
    let running = start().await;
    let response =
        running.images(&json!({ "prompt": "x", "n": 3, "size": "auto", "steps": null })).send().await;
    let answer = value(response.unwrap()).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 3);
    let asked = running.local.pictures();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|t| (t.width, t.height, t.steps, t.guidance) == (128, 128, 4, 7.0)));
    assert!(asked[0].seed != asked[1].seed && asked[1].seed != asked[2].seed);
}

#[tokio::test]
async fn wrong_fields_are_named_with_what_is_allowed() {
    let running = start().await;
    let with = |field: &str, value: Value| {
        let mut body = apple();
        body[field] = value;
        body
    };
    let cases = [
        (json!({}), 400, "missing_required_parameter", "prompt", "needed"),
        (json!({ "prompt": 3 }), 400, "invalid_type", "prompt", "string"),
        (json!({ "prompt": " " }), 400, "empty_string", "prompt", "empty"),
        (json!({ "prompt": "x".repeat(401) }), 400, "string_above_max_length", "prompt", "400"),
        (
            with("negative_prompt", "x".repeat(401).into()),
            400,
            "string_above_max_length",
            "negative_prompt",
            "400",
        ),
        (with("n", 0.into()), 400, "invalid_value", "n", "1 to 10"),
        (with("n", 11.into()), 400, "invalid_value", "n", "1 to 10"),
        (with("n", (-1).into()), 400, "invalid_type", "n", "-1"),
        (with("n", json!(1.5)), 400, "invalid_type", "n", "1.5"),
        (with("steps", 51.into()), 400, "invalid_value", "steps", "1 to 50"),
        (with("steps", "ten".into()), 400, "invalid_type", "steps", "ten"),
        (with("guidance", json!(0.5)), 400, "invalid_value", "guidance", "1 to 15"),
        (with("guidance", json!(1e300)), 400, "invalid_value", "guidance", "1 to 15"),
        (with("size", "100x128".into()), 400, "invalid_value", "size", "64 to 256 in steps of 64"),
        (with("size", "128".into()), 400, "invalid_value", "size", "WIDTHxHEIGHT"),
        (with("size", "128x+128".into()), 400, "invalid_value", "size", "WIDTHxHEIGHT"),
        (with("size", "99999999999x128".into()), 400, "invalid_value", "size", "WIDTHxHEIGHT"),
        (with("response_format", "url".into()), 400, "unsupported_value", "response_format", "b64_json"),
        (with("output_format", "webp".into()), 400, "unsupported_value", "output_format", "png"),
        (with("background", "transparent".into()), 400, "unsupported_value", "background", "opaque"),
        (with("quality", "hd".into()), 400, "unsupported_value", "quality", "steps"),
        (with("partial_images", 4.into()), 400, "invalid_value", "partial_images", "0 to 3"),
        (with("stream", "yes".into()), 400, "invalid_type", "stream", "boolean"),
        (with("seed", json!(1.5)), 400, "invalid_type", "seed", "1.5"),
        (with("step", 3.into()), 400, "unknown_parameter", "step", "did you mean \"steps\""),
        (with("model", "local-dics".into()), 404, "model_not_found", "model", "did you mean \"local-disc\""),
        (with("model", "local-mean".into()), 400, "unsupported_model", "model", "local-disc"),
    ];
    for (body, status, code, param, says) in cases {
        let (got, error) = error(running.images(&body).send().await.unwrap()).await;
        assert_eq!(got, status, "{body} {error}");
        assert_eq!(error["code"], code, "{body} {error}");
        assert_eq!(error["param"], param, "{body} {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(says), "{body} {error}");
    }
    assert!(running.local.tasks.lock().is_empty());
    let view = running.gateway.ledger.holder(&running.key).unwrap();
    assert_eq!(view.usage.spent_thousandths, 0);
}

#[tokio::test]
async fn failures_of_the_service_have_their_own_status() {
    let running = start().await;
    let cases = [
        (service::BUSY, 503, "no_capacity", Some("7")),
        (service::LATE, 504, "timed_out", None),
        (service::BROKEN, 502, "miner_failed", None),
        (service::NUDE, 400, "content_policy_violation", None),
    ];
    for stream in [false, true] {
        for (prompt, status, code, retry) in cases {
            let body = json!({ "prompt": prompt, "stream": stream && prompt != service::NUDE });
            let response = running.images(&body).send().await.unwrap();
            let after = response.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned());
            let (got, error) = error(response).await;
            assert_eq!((got.as_u16(), error["code"].as_str()), (status, Some(code)), "{prompt}");
            assert_eq!(after.as_deref(), retry, "{prompt}");
        }
    }
    let view = running.gateway.ledger.holder(&running.key).unwrap();
    assert_eq!((view.usage.spent_thousandths, view.usage.images), (0, 0));
}

#[tokio::test]
async fn a_request_that_takes_too_long_ends_and_is_cancelled() {
    let running = start_with(Settings { timeout_s: 1, ..settings() }).await;
    let request = running.images(&json!({ "prompt": service::FOREVER }));
    let (status, error) = error(request.send().await.unwrap()).await;
    assert_eq!((status.as_u16(), error["code"].as_str()), (504, Some("timed_out")));
    assert_eq!(running.local.cancelled.load(Ordering::SeqCst), 1);
    assert_eq!(running.local.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn keys_are_asked_for() {
    let running = start().await;
    let url = running.url("/v1/images/generations");
    let none = running.http.post(&url).json(&apple()).send().await.unwrap();
    assert_eq!(none.headers()["www-authenticate"], "Bearer");
    let (status, missing) = error(none).await;
    assert_eq!((status.as_u16(), missing["code"].as_str()), (401, Some("missing_api_key")));
    for header in ["Bearer argus-0000", "Bearer ", "Basic dXNlcg==", "argus-1"] {
        let response = running.http.post(&url).header("authorization", header).json(&apple()).send().await;
        let (status, wrong) = error(response.unwrap()).await;
        assert_eq!((status.as_u16(), wrong["code"].as_str()), (401, Some("invalid_api_key")), "{header}");
    }
    let id = running.gateway.ledger.list()[0].id.clone();
    running.gateway.ledger.revoke(&id).unwrap();
    for request in [running.images(&apple()), running.get("/v1/key").bearer_auth(&running.key)] {
        let (status, revoked) = error(request.send().await.unwrap()).await;
        assert_eq!(status, 401);
        assert!(revoked["message"].as_str().unwrap().contains("revoked"));
    }
    assert!(running.local.tasks.lock().is_empty());
}

#[tokio::test]
async fn over_the_rate_a_key_is_told_when_to_come_back() {
    let running = start().await;
    let new = NewKey { rate: Some(2), ..NewKey::named("slow") };
    let key = running.gateway.ledger.create(new).unwrap().key;
    let url = running.url("/v1/images/generations");
    let ask = || running.http.post(&url).bearer_auth(&key).json(&apple()).send();
    assert_eq!(ask().await.unwrap().status(), 200);
    assert_eq!(ask().await.unwrap().status(), 200);
    let third = ask().await.unwrap();
    let after: u64 = third.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&after), "{after}");
    let (status, error) = error(third).await;
    assert_eq!((status.as_u16(), error["code"].as_str()), (429, Some("rate_limit_exceeded")));
    // Looking at models and the own account costs nothing of the rate.
    assert_eq!(running.get("/v1/models").bearer_auth(&key).send().await.unwrap().status(), 200);
    let account = value(running.get("/v1/key").bearer_auth(&key).send().await.unwrap()).await;
    let usage = &account["usage"];
    assert_eq!((usage["requests"].as_u64(), usage["refused"].as_u64()), (Some(2), Some(1)));
}

#[tokio::test]
async fn requests_at_once_are_limited_by_key_and_in_all() {
    let running = start_with(Settings { max_in_flight: 2, ..settings() }).await;
    let new = NewKey { concurrent: Some(1), ..NewKey::named("one at a time") };
    let key = running.gateway.ledger.create(new).unwrap().key;
    let url = running.url("/v1/images/generations");
    let gated = json!({ "prompt": service::GATED });
    let ask = |key: &str| tokio::spawn(running.http.post(&url).bearer_auth(key).json(&gated).send());
    let first = ask(&key);
    until("the first runs", || running.local.running.load(Ordering::SeqCst) == 1).await;
    let (status, second) = error(ask(&key).await.unwrap().unwrap()).await;
    assert_eq!((status.as_u16(), second["code"].as_str()), (429, Some("concurrency_limit_exceeded")));
    let other = ask(&running.key);
    until("the other key's runs", || running.local.running.load(Ordering::SeqCst) == 2).await;
    let full = ask(&running.key).await.unwrap().unwrap();
    assert_eq!(full.headers()["retry-after"], "2");
    let (status, full) = error(full).await;
    assert_eq!((status.as_u16(), full["code"].as_str()), (503, Some("no_capacity")));
    running.local.steps.add_permits(8);
    for request in [first, other] {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    running.local.steps.add_permits(4);
    assert_eq!(ask(&key).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn requests_side_by_side_cannot_overspend() {
    let running = start().await;
    let new = NewKey { credits: Some(Credits(5_500)), ..NewKey::named("five and a half") };
    let key = running.gateway.ledger.create(new).unwrap().key;
    let url = running.url("/v1/images/generations");
    let ask = |body: Value| running.http.post(&url).bearer_auth(&key).json(&body).send();
    // Half of them ask for two pictures at once.
    let asks = (0..20).map(|i| ask(json!({ "prompt": "x", "n": 1 + i % 2 })));
    let mut paid = 0;
    for response in futures::future::join_all(asks).await {
        let response = response.unwrap();
        if response.status() == 200 {
            paid += value(response).await["data"].as_array().unwrap().len() as u64;
        } else {
            let (status, error) = error(response).await;
            assert_eq!((status.as_u16(), error["code"].as_str()), (402, Some("insufficient_quota")));
        }
    }
    let view = running.gateway.ledger.holder(&key).unwrap();
    assert_eq!(view.usage.spent_thousandths, paid * 1_000);
    // One at a time they would spend all; side by side a reservation may still turn a pair away.
    assert!((1..=5).contains(&paid), "{paid}");
    let left = Credits(5_500 - paid * 1_000);
    assert_eq!(view.credits_left, Some(left));
    // What fails is not paid for.
    ask(json!({ "prompt": service::BROKEN })).await.unwrap();
    assert_eq!(running.gateway.ledger.holder(&key).unwrap().credits_left, Some(left));
}

#[tokio::test]
async fn embeddings_come_back_in_order_in_both_forms() {
    let running = start().await;
    let red = png(8, 8, [255, 0, 0]);
    let blue = png(600, 600, [0, 0, 255]);
    let input = json!([STANDARD.encode(&red), format!("data:image/png;base64,{}", STANDARD.encode(&blue))]);
    let body = json!({ "input": input, "model": "local-mean", "dimensions": 3 });
    let answer = value(running.post("/v1/embeddings", &body).send().await.unwrap()).await;
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("local-mean")));
    let floats = |at: usize| -> Vec<f64> {
        let embedding = answer["data"][at]["embedding"].as_array().unwrap();
        embedding.iter().map(|value| value.as_f64().unwrap()).collect()
    };
    assert!(floats(0)[0] > 0.9 && floats(0)[2] < 0.1, "{:?}", floats(0));
    assert!(floats(1)[2] > 0.9 && floats(1)[0] < 0.1, "{:?}", floats(1));
    assert_eq!((&answer["data"][0]["index"], &answer["data"][1]["index"]), (&json!(0), &json!(1)));

    let body = json!({ "input": STANDARD.encode(&red), "encoding_format": "base64" });
    let answer = value(running.post("/v1/embeddings", &body).send().await.unwrap()).await;
    let bytes = STANDARD.decode(answer["data"][0]["embedding"].as_str().unwrap()).unwrap();
    assert_eq!(bytes.len(), 12);
    assert!(f32::from_le_bytes(bytes[..4].try_into().unwrap()) > 0.9);

    let sent = running.local.embeddings();
    let sent_red = image::load_from_memory(&sent[0].pictures[0]).unwrap().into_rgb8();
    let sent_blue = image::load_from_memory(&sent[0].pictures[1]).unwrap();
    assert_eq!((sent_blue.width(), sent_blue.height()), (512, 512));
    assert!(sent_red.pixels().any(|pixel| pixel.0 != [255, 0, 0]), "some pixel must have changed");
    let view = running.gateway.ledger.holder(&running.key).unwrap();
    assert_eq!((view.usage.embeddings, view.usage.spent_thousandths), (3, 600));
}

#[tokio::test]
async fn wrong_embedding_requests_are_told_why() {
    let running = start().await;
    let good = STANDARD.encode(png(4, 4, [1, 2, 3]));
    let cases = [
        (json!({}), "missing_required_parameter", "input"),
        (json!({ "input": [] }), "invalid_value", "input"),
        (json!({ "input": vec![good.clone(); 17] }), "invalid_value", "input"),
        (json!({ "input": 3 }), "invalid_type", "input"),
        (json!({ "input": [good, "%%%"] }), "invalid_base64", "input[1]"),
        (json!({ "input": "aGVsbG8=" }), "invalid_image", "input[0]"),
        (json!({ "input": "https://example.org/cat.png" }), "unsupported_value", "input[0]"),
        (json!({ "input": good, "encoding_format": "hex" }), "unsupported_value", "encoding_format"),
        (json!({ "input": good, "dimensions": 4 }), "invalid_value", "dimensions"),
        (json!({ "input": good, "model": "local-disc" }), "unsupported_model", "model"),
    ];
    for (body, code, param) in cases {
        let (status, error) = error(running.post("/v1/embeddings", &body).send().await.unwrap()).await;
        assert_eq!((status.as_u16(), error["code"].as_str()), (400, Some(code)), "{error}");
        assert_eq!(error["param"], param);
    }
    assert!(running.local.tasks.lock().is_empty());
    assert_eq!(running.gateway.ledger.holder(&running.key).unwrap().usage.spent_thousandths, 0);
}

pub fn png(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(width, height, image::Rgb(colour));
    let mut bytes = Vec::new();
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

#[tokio::test]
async fn models_status_and_health_need_no_key() {
    let running = start().await;
    let list = value(running.get("/v1/models").send().await.unwrap()).await;
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "local-disc");
    assert_eq!(list["data"][0]["generation"]["steps"]["max"], 50);
    let one = value(running.get("/v1/models/local-mean").send().await.unwrap()).await;
    assert_eq!(one["tasks"], json!(["image-embedding", "nsfw-classification"]));
    let (status, none) = error(running.get("/v1/models/dall-e-3").send().await.unwrap()).await;
    assert_eq!((status.as_u16(), none["code"].as_str()), (404, Some("model_not_found")));

    let status = value(running.get("/v1/status").send().await.unwrap()).await;
    assert_eq!(status["miners"].as_array().unwrap().len(), 4);
    assert_eq!(status["chain"]["block"], 1234);

    let health = running.get("/health").send().await.unwrap();
    assert_eq!(health.status(), 200);
    assert_eq!(value(health).await["status"], "ok");
    running.local.miners.store(0, Ordering::SeqCst);
    let health = running.get("/health").send().await.unwrap();
    assert_eq!(health.status(), 503);
    let health = value(health).await;
    assert_eq!((&health["status"], &health["ready"]), (&json!("unavailable"), &json!(false)));
    assert!(health["problems"][0].as_str().unwrap().contains("no miner"));
    assert_eq!(running.get("/health/live").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_happened_is_counted() {
    let running = start().await;
    running.images(&apple()).send().await.unwrap();
    running.images(&json!({ "prompt": service::BROKEN })).send().await.unwrap();
    let stranger = running.http.post(running.url("/v1/images/generations")).bearer_auth("argus-0");
    stranger.send().await.unwrap();
    let response = running.get("/metrics").send().await.unwrap();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = response.text().await.unwrap();
    for line in [
        "argus_gateway_requests_total{route=\"/v1/images/generations\",status=\"200\"} 1",
        "argus_gateway_requests_total{route=\"/v1/images/generations\",status=\"401\"} 1",
        "argus_gateway_requests_total{route=\"/v1/images/generations\",status=\"502\"} 1",
        "argus_gateway_refused_total{reason=\"unknown_key\"} 1",
        "argus_gateway_failed_total{reason=\"failed\"} 1",
        "argus_gateway_images_total 1",
        "argus_gateway_credits_thousandths_total 1000",
        "argus_gateway_in_flight 0",
        "argus_gateway_image_seconds_count 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_the_same_shape() {
    let running = start().await;
    let (status, unknown) = error(running.get("/images/generations").send().await.unwrap()).await;
    assert_eq!((status.as_u16(), unknown["code"].as_str()), (404, Some("unknown_path")));
    assert!(unknown["message"].as_str().unwrap().contains("/v1/images/generations"));
    let (status, method) = error(running.get("/v1/images/generations").send().await.unwrap()).await;
    assert_eq!((status.as_u16(), method["code"].as_str()), (405, Some("method_not_allowed")));
}

#[tokio::test]
async fn other_origins_are_let_in_only_by_name() {
    let settings = Settings { allow_origins: vec!["https://example.org".into()], ..settings() };
    let running = start_with(settings).await;
    let preflight = |origin: &'static str| {
        running
            .http
            .request(Method::OPTIONS, running.url("/v1/images/generations"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .send()
    };
    let named = preflight("https://example.org").await.unwrap();
    assert_eq!(named.headers()["access-control-allow-origin"], "https://example.org");
    let other = preflight("https://example.com").await.unwrap();
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    let closed = start().await;
    let response = closed.get("/v1/models").header("origin", "https://example.org").send().await.unwrap();
    assert!(!response.headers().contains_key("access-control-allow-origin"));
}
