//! The studio's other modes in a real browser: a picture uploaded, a mask painted, a scribble drawn by keyboard,
//! pads, factors, a verdict, and all of it on a phone.

use argus_models::{Limits, RgbPicture};
use argus_protocols::{
    Task,
    task::{ControlKind, Pads, Start},
};
use serde_json::{Value, json};

use super::{
    Running,
    browser::Browser,
    start,
    studio::{enter, finished, open_browser},
};

fn decoded(file: &[u8]) -> RgbPicture {
    RgbPicture::decode(file, &Limits::default()).unwrap()
}

/// Puts a file into the studio's file chooser.
async fn upload(browser: &mut Browser, running: &Running, width: u32, height: u32) {
    let path = running.dir.path().join("upload.png");
    let picture = RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, 120]);
    std::fs::write(&path, picture.encode_png()).unwrap();
    let document = browser.call("DOM.getDocument", json!({})).await;
    let root = &document["root"]["nodeId"];
    let found = browser.call("DOM.querySelector", json!({ "nodeId": root, "selector": "#file" })).await;
    let files = json!({ "nodeId": found["nodeId"], "files": [path.display().to_string()] });
    browser.call("DOM.setFileInputFiles", files).await;
    browser.until(&format!("document.getElementById('easel').width === {width}")).await;
    browser.until("!document.getElementById('easel-drop').hidden").await;
}

/// Goes over to a task; its label is in the answer's `make` button.
async fn mode(browser: &mut Browser, task: &str) {
    browser.click(&format!("tab-{task}")).await;
    let selected = format!("document.getElementById('tab-{task}').getAttribute('aria-selected') === 'true'");
    browser.until(&selected).await;
}

/// Draws a stroke over the middle of the easel with the mouse.
async fn stroke(browser: &mut Browser) {
    browser.eval("document.getElementById('easel').scrollIntoView({ block: 'center' })").await;
    let place = "(() => { const b = document.getElementById('easel').getBoundingClientRect();
        return [b.left + b.width / 2, b.top + b.height / 2, b.width / 4]; })()";
    let place = browser.eval(place).await;
    let at = |index: usize| place[index].as_f64().unwrap();
    for (kind, x) in
        [("mousePressed", at(0) - at(2)), ("mouseMoved", at(0)), ("mouseReleased", at(0) + at(2))]
    {
        let params =
            json!({ "type": kind, "x": x, "y": at(1), "button": "left", "buttons": 1, "clickCount": 1 });
        browser.call("Input.dispatchMouseEvent", params).await;
    }
}

async fn made(browser: &mut Browser, running: &Running) -> Task {
    let before = running.local.tasks.lock().len();
    browser.click("make").await;
    super::until("the task arrives", || running.local.tasks.lock().len() > before).await;
    finished(browser).await;
    running.local.tasks.lock().last().unwrap().clone()
}

fn start_of(task: Task) -> Start {
    match task {
        Task::Generation(asked) => asked.start,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_painted_part_is_made_anew() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    browser.width(1280).await;
    enter(&mut browser, &running).await;
    mode(&mut browser, "inpaint").await;
    // Nothing is asked before there is a picture and something painted.
    browser.click("make").await;
    assert!(browser.text("easel-hint").await.contains("Choose a picture"));
    upload(&mut browser, &running, 128, 64).await;
    browser.click("make").await;
    assert!(browser.text("easel-hint").await.contains("Paint over"));
    assert!(running.local.tasks.lock().is_empty());
    stroke(&mut browser).await;
    browser.until("!document.getElementById('easel-clear').hidden").await;
    browser.type_into("prompt", "a hat").await;
    let Start::Inpaint { picture, mask, strength } = start_of(made(&mut browser, &running).await) else {
        panic!("no inpainting")
    };
    assert_eq!(strength, 1.0);
    assert_eq!(decoded(&picture).pixels()[..3], [0, 0, 120]);
    let mask = decoded(&mask);
    let at = |x: usize, y: usize| mask.pixels()[(y * 128 + x) * 3];
    assert_eq!((mask.width(), mask.height()), (128, 64));
    assert_eq!((at(64, 32), at(40, 32), at(64, 4), at(4, 32)), (255, 255, 0, 0));
    assert!(browser.text("about-facts").await.contains("inpaint"));
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test]
async fn a_scribble_is_drawn_without_a_mouse() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    browser.width(1280).await;
    enter(&mut browser, &running).await;
    // The arrow keys go through the tabs as well.
    browser.eval("document.querySelector('#tabs [aria-selected=true]').focus()").await;
    for _ in 0..4 {
        browser.press("ArrowRight", 39, false).await;
    }
    assert_eq!(browser.eval("document.activeElement.id").await, "tab-scribble");
    browser.eval("document.getElementById('easel').focus()").await;
    browser.press(" ", 32, false).await;
    for _ in 0..5 {
        browser.press("ArrowRight", 39, false).await;
    }
    browser.press(" ", 32, false).await;
    browser.type_into("prompt", "a road").await;
    let Task::Generation(asked) = made(&mut browser, &running).await else { panic!("no picture") };
    let control = &asked.controls[0];
    assert_eq!((control.kind, control.is_prepared, control.scale), (ControlKind::Scribble, true, 1.0));
    let drawn = decoded(&control.picture);
    let white = drawn.pixels().iter().filter(|sample| **sample > 200).count();
    assert!(white > 100 && white < drawn.pixels().len() / 3, "{white} of {}", drawn.pixels().len());
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test]
async fn the_picture_that_was_made_is_worked_on() {
    let Some(mut browser) = open_browser().await else { return };
    let running = start().await;
    browser.width(360).await;
    enter(&mut browser, &running).await;
    let Task::Generation(first) = made(&mut browser, &running).await else { panic!("no picture") };
    assert_eq!(first.start, Start::Noise);
    browser.click("continue").await;
    browser
        .until("document.getElementById('tab-image-to-image').getAttribute('aria-selected') === 'true'")
        .await;
    browser.until("document.getElementById('easel').width === 128").await;
    let begun = start_of(made(&mut browser, &running).await);
    let Start::Picture { strength, .. } = begun else { panic!("{begun:?}") };
    assert_eq!(strength, 0.6);

    mode(&mut browser, "uncrop").await;
    for (side, pad) in [("left", "64"), ("right", "64"), ("top", "64"), ("bottom", "64")] {
        browser.type_into(&format!("pad-{side}"), pad).await;
    }
    let begun = start_of(made(&mut browser, &running).await);
    let Start::Uncrop { pads, .. } = begun else { panic!("{begun:?}") };
    assert_eq!(pads, Pads { left: 64, right: 64, top: 64, bottom: 64 });

    mode(&mut browser, "upscale").await;
    browser.eval("document.getElementById('factor').value = '4'").await;
    let Task::Upscale(asked) = made(&mut browser, &running).await else { panic!("no upscaling") };
    assert_eq!((asked.factor, decoded(&asked.picture).width()), (4, 128));
    assert!(browser.text("about-facts").await.contains("512 × 512"));

    mode(&mut browser, "nsfw-classification").await;
    assert_eq!(browser.text("make-label").await, "Check it");
    let Task::NsfwClassification(asked) = made(&mut browser, &running).await else { panic!("no check") };
    assert_eq!(asked.pictures.len(), 1);
    browser.until("document.getElementById('about-prompt').textContent.includes('afe for work')").await;
    assert!(browser.text("about-facts").await.contains("Neutral"));

    // Every mode fits the phone, and each of its controls has a name.
    let tasks =
        browser.eval("[...document.querySelectorAll('#tabs .tab')].map((tab) => tab.id.slice(4))").await;
    let tasks: Vec<String> = serde_json::from_value(tasks).unwrap();
    assert_eq!(tasks.len(), 9);
    for task in tasks {
        mode(&mut browser, &task).await;
        let width = browser.eval("document.documentElement.scrollWidth").await.as_u64().unwrap();
        assert!(width <= 360, "{task}: {width}");
        assert_eq!(browser.eval(super::studio::NAMELESS).await, Value::Array(Vec::new()), "{task}");
    }
    // What is no picture is said.
    browser.eval("document.getElementById('tab-canny').click()").await;
    let document = browser.call("DOM.getDocument", json!({})).await;
    let root = &document["root"]["nodeId"];
    let found = browser.call("DOM.querySelector", json!({ "nodeId": root, "selector": "#file" })).await;
    let path = running.dir.path().join("text.png");
    std::fs::write(&path, "no picture").unwrap();
    let files = json!({ "nodeId": found["nodeId"], "files": [path.display().to_string()] });
    browser.call("DOM.setFileInputFiles", files).await;
    browser.until("document.getElementById('easel-hint').textContent.includes('no picture')").await;
    assert_eq!(browser.errors, Vec::<String>::new());
}
