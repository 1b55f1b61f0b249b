//! The endpoints that take pictures: as JSON and as forms, what reaches the miner, and what is refused how.

use argus_models::{Limits, RgbPicture};
use argus_protocols::{
    Task, TaskKind,
    task::{ControlKind, Pads, Start},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Running, error, start, value};

fn png(width: u32, height: u32) -> Vec<u8> {
    RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, 90]).encode_png()
}

fn base64(file: &[u8]) -> String {
    STANDARD.encode(file)
}

/// White, or transparent, on the left half.
fn mask(width: u32, height: u32, transparent: bool) -> Vec<u8> {
    let picture = image::RgbaImage::from_fn(width, height, |x, _| {
        let left = x < width / 2;
        match transparent {
            true => image::Rgba([255, 255, 255, if left { 0 } else { 255 }]),
            false => image::Rgba([if left { 255 } else { 0 }; 4].map(|v| v.max(1))),
        }
    });
    let picture: image::DynamicImage = if transparent {
        picture.into()
    } else {
        image::DynamicImage::ImageRgba8(picture).into_rgb8().into()
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn decoded(file: &[u8]) -> RgbPicture {
    RgbPicture::decode(file, &Limits::default()).unwrap()
}

fn size(file: &[u8]) -> (u32, u32) {
    (decoded(file).width(), decoded(file).height())
}

/// A form of texts and files, as a browser or curl writes it.
struct Form(Vec<u8>);

impl Form {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn part(mut self, head: &str, content: &[u8]) -> Self {
        self.0.extend(format!("--frontier\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes());
        self.0.extend(content);
        self.0.extend(b"\r\n");
        self
    }

    fn text(self, name: &str, text: &str) -> Self {
        self.part(&format!("name=\"{name}\""), text.as_bytes())
    }

    fn file(self, name: &str, file: &[u8]) -> Self {
        self.part(&format!("name=\"{name}\"; filename=\"{name}.png\""), file)
    }
}

impl Running {
    fn form(&self, path: &str, mut form: Form) -> reqwest::RequestBuilder {
        form.0.extend(b"--frontier--\r\n");
        self.http
            .post(self.url(path))
            .bearer_auth(&self.key)
            .header("content-type", "multipart/form-data; boundary=frontier")
            .body(form.0)
    }

    async fn answered(&self, path: &str, body: Value) -> Value {
        let response = self.post(path, &body).send().await.unwrap();
        let status = response.status();
        let answer = value(response).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    fn last(&self) -> Task {
        self.local.tasks.lock().last().expect("something was asked").clone()
    }

    fn last_start(&self) -> Start {
        match self.last() {
            Task::Generation(asked) => asked.start,
            other => panic!("{other:?}"),
        }
    }
}

fn picture(answer: &Value) -> RgbPicture {
    decoded(&STANDARD.decode(answer["data"][0]["b64_json"].as_str().unwrap()).unwrap())
}

#[tokio::test]
async fn a_picture_is_made_from_a_picture() {
    let running = start().await;
    let image = format!("data:image/png;base64,{}", base64(&png(200, 100)));
    let body = json!({ "prompt": "a pear", "image": image, "strength": 0.4, "steps": 3 });
    let answer = running.answered("/v1/images/image-to-image", body).await;
    assert_eq!((&answer["task"], &answer["size"]), (&json!("image-to-image"), &json!("192x128")));
    assert_eq!(picture(&answer).width(), 192);
    let Start::Picture { picture, strength } = running.last_start() else { panic!() };
    assert_eq!((size(&picture), strength), ((192, 128), 0.4));
    // Twice the same gives two seeds.
    let body = json!({ "prompt": "", "image": base64(&png(64, 64)), "n": 2 });
    let answer = running.answered("/v1/images/image-to-image", body).await;
    assert_ne!(answer["data"][0]["seed"], answer["data"][1]["seed"]);
    let Start::Picture { strength, .. } = running.last_start() else { panic!() };
    assert_eq!(strength, 0.6, "the model's own");
    let answer = running.answered("/v1/images/variations", json!({ "image": base64(&png(64, 64)) })).await;
    assert_eq!(answer["task"], "image-to-image");
}

#[tokio::test]
async fn openais_edit_reads_the_mask_by_its_transparency() {
    let running = start().await;
    let form = || Form::new().text("prompt", "a hat").text("n", "1").file("image", &png(128, 64));
    let response = running.form("/v1/images/edits", form().file("mask", &mask(128, 64, true)));
    let response = response.send().await.unwrap();
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    assert_eq!(running.last().kind(), TaskKind::Inpaint);
    let Start::Inpaint { picture, mask: sent, strength } = running.last_start() else { panic!() };
    assert_eq!((size(&picture), size(&sent), strength), ((128, 64), (128, 64), 1.0));
    let sent = decoded(&sent);
    assert_eq!((sent.pixels()[0], sent.pixels()[127 * 3]), (255, 0));

    // A mask that is white instead, said so.
    let white = form().file("mask", &mask(128, 64, false));
    let (status, refused) = error(running.form("/v1/images/edits", white).send().await.unwrap()).await;
    assert_eq!((status.as_u16(), refused["param"].as_str()), (400, Some("mask")));
    assert!(refused["message"].as_str().unwrap().contains("mask_mode white"), "{refused}");
    let white = form().file("mask", &mask(128, 64, false)).text("mask_mode", "white");
    assert_eq!(running.form("/v1/images/edits", white).send().await.unwrap().status(), 200);
    let Start::Inpaint { mask: sent, .. } = running.last_start() else { panic!() };
    assert!(decoded(&sent).pixels()[0] > 200 && decoded(&sent).pixels()[127 * 3] < 50);

    // Without a mask the picture's own transparency counts, and without any the whole picture.
    let own = Form::new().text("prompt", "a hat").file("image[]", &mask(64, 64, true));
    assert_eq!(running.form("/v1/images/edits", own).send().await.unwrap().status(), 200);
    assert_eq!(running.last().kind(), TaskKind::Inpaint);
    assert_eq!(running.form("/v1/images/edits", form()).send().await.unwrap().status(), 200);
    assert_eq!(running.last().kind(), TaskKind::ImageToImage);
}

#[tokio::test]
async fn a_picture_grows_over_its_edges() {
    let running = start().await;
    let body = json!({ "prompt": "a garden", "image": base64(&png(64, 128)), "left": 32, "right": 32 });
    let answer = running.answered("/v1/images/uncrop", body).await;
    assert_eq!(answer["size"], "128x128");
    let Start::Uncrop { picture, pads } = running.last_start() else { panic!() };
    assert_eq!((size(&picture), pads), ((64, 128), Pads { left: 32, right: 32, ..Pads::default() }));
    // Larger than the model makes: picture and pads shrink alike.
    let body = json!({ "prompt": "a garden", "image": base64(&png(256, 512)), "left": 128, "right": 128 });
    running.answered("/v1/images/uncrop", body).await;
    let Start::Uncrop { picture, pads } = running.last_start() else { panic!() };
    assert_eq!((size(&picture), pads), ((128, 256), Pads { left: 64, right: 64, ..Pads::default() }));
}

#[tokio::test]
async fn several_pictures_steer_at_once() {
    let running = start().await;
    let image = base64(&png(100, 100));
    let body = json!({
        "prompt": "a house", "size": "128x128", "scribble": image,
        "depth": { "image": image, "prepared": true, "scale": 0.5 }
    });
    let answer = running.answered("/v1/images/controls", body).await;
    assert_eq!(answer["task"], "scribble");
    let Task::Generation(asked) = running.last() else { panic!() };
    let seen: Vec<_> = asked.controls.iter().map(|c| (c.kind, c.is_prepared, c.scale)).collect();
    assert_eq!(seen, [(ControlKind::Scribble, false, 1.0), (ControlKind::Depth, true, 0.5)]);
    assert_eq!(size(&asked.controls[0].picture), (128, 128));
    let form = Form::new().text("prompt", "a house").file("canny", &png(64, 64));
    assert_eq!(running.form("/v1/images/controls", form).send().await.unwrap().status(), 200);
    assert_eq!(running.last().kind(), TaskKind::Canny);
}

#[tokio::test]
async fn a_picture_is_made_larger_and_is_not_the_same_twice() {
    let running = start().await;
    let image = base64(&png(50, 30));
    let answer = running.answered("/v1/images/upscale", json!({ "image": image, "factor": 4 })).await;
    assert_eq!((&answer["size"], &answer["factor"]), (&json!("200x120"), &json!(4)));
    assert_eq!(answer["data"][0]["seed"], Value::Null);
    assert!(answer.get("steps").is_none(), "{answer}");
    assert_eq!((picture(&answer).width(), picture(&answer).height()), (200, 120));
    let first = running.last();
    running.answered("/v1/images/upscale", json!({ "image": image, "factor": 4 })).await;
    assert_ne!(first, running.last(), "nobody can answer from a cache");
    let view = running.gateway.ledger.holder(&running.key).unwrap();
    assert_eq!((view.usage.images, view.usage.spent_thousandths), (2, 2_000));
}

#[tokio::test]
async fn pictures_are_judged() {
    let running = start().await;
    let red = super::api::png(8, 8, [255, 0, 0]);
    let body = json!({ "input": [base64(&red), base64(&png(20, 20))] });
    let answer = running.answered("/v1/images/nsfw", body).await;
    let verdicts: Vec<_> = answer["data"].as_array().unwrap().iter().map(|one| &one["nsfw"]).collect();
    assert_eq!(verdicts, [&json!(true), &json!(false)]);
    assert!(answer["data"][0]["scores"]["porn"].as_f64().unwrap() > 0.9, "{answer}");
    let form = Form::new().file("input", &red).file("input", &red);
    let response = running.form("/v1/images/nsfw", form).send().await.unwrap();
    assert_eq!(value(response).await["data"].as_array().unwrap().len(), 2);
    let view = running.gateway.ledger.holder(&running.key).unwrap();
    assert_eq!((view.usage.classifications, view.usage.spent_thousandths), (4, 800));
}

#[tokio::test]
async fn progress_is_streamed_under_its_own_names() {
    let running = start().await;
    let body = json!({ "prompt": "x", "image": base64(&png(64, 64)), "stream": true });
    let text = running.post("/v1/images/image-to-image", &body).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("event: image_edit.progress\n"), "{text}");
    assert!(text.contains("event: image_edit.completed\n") && text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong() {
    let running = start().await;
    let good = base64(&png(64, 64));
    let cases = [
        ("image-to-image", json!({ "prompt": "x" }), "missing_required_parameter", "image"),
        ("image-to-image", json!({ "prompt": "x", "image": "%" }), "invalid_base64", "image"),
        ("image-to-image", json!({ "prompt": "x", "image": "aGVsbG8=" }), "invalid_image", "image"),
        (
            "image-to-image",
            json!({ "prompt": "x", "image": good, "strength": 0 }),
            "invalid_value",
            "strength",
        ),
        (
            "image-to-image",
            json!({ "prompt": "x", "image": good, "strength": 1.5 }),
            "invalid_value",
            "strength",
        ),
        (
            "image-to-image",
            json!({ "prompt": "x", "image": good, "mask": good }),
            "unknown_parameter",
            "mask",
        ),
        (
            "image-to-image",
            json!({ "prompt": "x", "image": good, "size": "100x100" }),
            "invalid_value",
            "size",
        ),
        (
            "inpaint",
            json!({ "prompt": "x", "image": good, "mask": base64(&png(64, 32)) }),
            "invalid_value",
            "mask",
        ),
        (
            "inpaint",
            json!({ "prompt": "x", "image": good, "mask": good, "mask_mode": "black" }),
            "unsupported_value",
            "mask_mode",
        ),
        ("uncrop", json!({ "prompt": "x", "image": good }), "invalid_value", "left"),
        ("uncrop", json!({ "prompt": "x", "image": good, "left": 9_999 }), "invalid_value", "left"),
        ("uncrop", json!({ "prompt": "x", "image": good, "left": 800 }), "invalid_value", "left"),
        ("controls", json!({ "prompt": "x" }), "missing_required_parameter", "scribble"),
        (
            "controls",
            json!({ "prompt": "x", "canny": { "image": good, "scale": 3 } }),
            "invalid_value",
            "canny.scale",
        ),
        ("controls", json!({ "prompt": "x", "depth": { "image": "?" } }), "invalid_base64", "depth"),
        ("controls", json!({ "prompt": "x", "depth": 3 }), "invalid_type", "depth"),
        ("upscale", json!({ "image": good, "factor": 3 }), "invalid_value", "factor"),
        ("upscale", json!({ "image": base64(&png(600, 20)) }), "picture_too_large", "image"),
        ("upscale", json!({ "image": good, "model": "local-disc" }), "unsupported_model", "model"),
        ("nsfw", json!({ "input": [] }), "invalid_value", "input"),
        ("nsfw", json!({ "input": "aGVsbG8=" }), "invalid_image", "input[0]"),
        (
            "edits",
            json!({ "prompt": "x", "image": "https://example.org/a.png" }),
            "unsupported_value",
            "image",
        ),
        ("variations", json!({ "image": good, "prompt": "x" }), "unknown_parameter", "prompt"),
    ];
    for (path, body, code, param) in cases {
        let path = format!("/v1/images/{path}");
        let (status, error) = error(running.post(&path, &body).send().await.unwrap()).await;
        let found = (status.as_u16(), error["code"].as_str(), error["param"].as_str());
        assert_eq!(found, (400, Some(code), Some(param)), "{path} {error}");
    }
    let broken = running.form("/v1/images/edits", Form::new().part("nothing", b"x")).send().await.unwrap();
    assert_eq!(error(broken).await.0, 400);
    assert!(running.local.tasks.lock().is_empty());
    assert_eq!(running.gateway.ledger.holder(&running.key).unwrap().usage.spent_thousandths, 0);
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused() {
    let running = start().await;
    let limit = argus::gateway::limits::PICTURE_BODY;
    let body = json!({ "prompt": "x", "image": "A".repeat(limit) });
    let (status, error) = error(running.post("/v1/images/inpaint", &body).send().await.unwrap()).await;
    assert_eq!((status.as_u16(), error["code"].as_str()), (413, Some("request_too_large")));
    assert!(running.local.tasks.lock().is_empty());
}
