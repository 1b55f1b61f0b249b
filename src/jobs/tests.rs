//! Requests about pictures on their way to the engine: what is understood, and what is refused how.

use argus_models::{ModelId, diffusion};
use argus_protocols::task::{Control, ControlKind, Pads, Pictures, Upscale};

use super::*;

fn png(width: u32, height: u32) -> Vec<u8> {
    RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, 90]).encode_png()
}

fn generation(start: Start, controls: Vec<Control>) -> Task {
    Task::Generation(Generation {
        model: "argus-tiny".into(),
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        steps: 20,
        guidance: 4.0,
        seed: 7,
        start,
        controls,
    })
}

async fn job(task: Task) -> Result<Job, BackendError> {
    let model: ModelId = task.model().parse().unwrap();
    pictures::job(model, task).await
}

async fn request(task: Task) -> diffusion::Generate {
    match job(task).await.unwrap() {
        Job::Generate { request, .. } => request,
        other => panic!("{other:?}"),
    }
}

async fn refusal(task: Task) -> String {
    match job(task).await {
        Err(BackendError::Invalid(why)) => why,
        other => panic!("not refused as invalid: {other:?}"),
    }
}

#[tokio::test]
async fn a_request_is_the_same_in_the_words_of_the_engine() {
    let plain = request(generation(Start::Noise, Vec::new())).await;
    assert_eq!((plain.width, plain.height, plain.steps, plain.seed), (64, 64, 20, 7));
    assert_eq!(plain.task(), ModelTask::TextToImage);

    let begun =
        request(generation(Start::Picture { picture: png(64, 48), strength: 0.25 }, Vec::new())).await;
    let diffusion::Start::Picture { picture, strength } = &begun.start else { panic!("{begun:?}") };
    assert_eq!(((picture.width(), picture.height()), *strength), ((64, 48), 0.25));

    let mask = RgbPicture::from_fn(32, 32, |x, _| [if x < 8 { 255 } else { 0 }; 3]).encode_png();
    let begun = Start::Inpaint { picture: png(32, 32), mask, strength: 1.0 };
    let begun = request(generation(begun, Vec::new())).await;
    let diffusion::Start::Inpaint { mask, .. } = &begun.start else { panic!("{begun:?}") };
    assert_eq!(mask.anew().iter().filter(|anew| **anew).count(), 8 * 32);

    let pads = Pads { left: 8, right: 16, top: 0, bottom: 24 };
    let begun = request(generation(Start::Uncrop { picture: png(40, 40), pads }, Vec::new())).await;
    let diffusion::Start::Uncrop { pads, .. } = &begun.start else { panic!("{begun:?}") };
    assert_eq!((pads.left, pads.right, pads.top, pads.bottom), (8, 16, 0, 24));

    let control = |kind, is_prepared| Control { kind, picture: png(20, 20), is_prepared, scale: 0.5 };
    let controls = vec![control(ControlKind::Canny, false), control(ControlKind::Depth, true)];
    let steered = request(generation(Start::Noise, controls)).await;
    assert_eq!(steered.task(), ModelTask::Canny);
    let kinds: Vec<_> = steered.controls.iter().map(|c| (c.kind, c.is_prepared)).collect();
    assert_eq!(kinds, [(diffusion::ControlKind::Canny, false), (diffusion::ControlKind::Depth, true)]);

    let Ok(Job::Classify { pictures, .. }) =
        job(Task::NsfwClassification(Pictures { model: "m".into(), pictures: vec![png(9, 8); 2] })).await
    else {
        panic!("no classification")
    };
    assert_eq!(pictures.len(), 2);
}

#[tokio::test]
async fn pictures_that_do_not_fit_together_are_refused_in_words() {
    let begun = Start::Inpaint { picture: png(32, 32), mask: png(32, 31), strength: 1.0 };
    let why = refusal(generation(begun, Vec::new())).await;
    assert!(why.contains("mask is 32×31") && why.contains("same size"), "{why}");
    let pads = Pads { left: 8, ..Pads::default() };
    let why = refusal(generation(Start::Uncrop { picture: png(40, 40), pads }, Vec::new())).await;
    assert!(why.contains("48×40") && why.contains("64×64"), "{why}");
    let pads = Pads { left: u32::MAX, ..pads };
    refusal(generation(Start::Uncrop { picture: png(40, 40), pads }, Vec::new())).await;
}

#[tokio::test]
async fn unreadable_pictures_are_refused_by_their_name() {
    let mut cut = png(64, 64);
    cut.truncate(80);
    let huge = {
        let mut huge = png(8, 8);
        huge[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        huge
    };
    for bad in [cut, huge, b"GIF89a..".to_vec(), vec![0; 40]] {
        let begun = |picture: &Vec<u8>, mask: &Vec<u8>| {
            let (picture, mask) = (picture.clone(), mask.clone());
            generation(Start::Inpaint { picture, mask, strength: 0.5 }, Vec::new())
        };
        let good = png(64, 64);
        assert!(refusal(begun(&bad, &good)).await.starts_with("picture: "));
        assert!(refusal(begun(&good, &bad)).await.starts_with("mask: "));
        let control =
            Control { kind: ControlKind::Depth, picture: bad.clone(), is_prepared: true, scale: 1.0 };
        assert!(refusal(generation(Start::Noise, vec![control])).await.starts_with("control picture: "));
        let pictures = Pictures { model: "m".into(), pictures: vec![good, bad.clone()] };
        assert!(refusal(Task::ImageEmbedding(pictures.clone())).await.starts_with("picture 2: "));
        assert!(refusal(Task::NsfwClassification(pictures)).await.starts_with("picture 2: "));
        let asked = Upscale { model: "m".into(), picture: bad, factor: 2 };
        assert!(refusal(Task::Upscale(asked)).await.starts_with("picture: "));
    }
}

#[tokio::test]
async fn unusual_pictures_are_read_as_people_see_them() {
    let red = |[r, g, b]: [u8; 3]| r > 180 && g < 90 && b < 90;
    type Look = fn([u8; 3]) -> bool;
    let looks: [(&[u8], (u32, u32), Look); 6] = [
        (include_bytes!("../../tests/fixtures/pictures/cmyk.jpg"), (24, 16), red),
        (include_bytes!("../../tests/fixtures/pictures/animated.webp"), (24, 16), red),
        (include_bytes!("../../tests/fixtures/pictures/animated.png"), (24, 16), red),
        (include_bytes!("../../tests/fixtures/pictures/turned.jpg"), (16, 24), red),
        (include_bytes!("../../tests/fixtures/pictures/grey16.png"), (24, 16), |p| {
            p.iter().all(|s| s.abs_diff(156) <= 1)
        }),
        (include_bytes!("../../tests/fixtures/pictures/clear.png"), (24, 16), |p| p == [255; 3]),
    ];
    for (number, (file, size, is_right)) in looks.into_iter().enumerate() {
        let asked = Upscale { model: "m".into(), picture: file.to_vec(), factor: 2 };
        assert_eq!(answer_size(&Task::Upscale(asked.clone())).unwrap(), Some((size.0 * 2, size.1 * 2)));
        let Ok(Job::Upscale { picture, factor: 2, .. }) = job(Task::Upscale(asked)).await else {
            panic!("picture {number} is not read")
        };
        assert_eq!((picture.width(), picture.height()), size, "picture {number}");
        let first: [u8; 3] = picture.pixels()[..3].try_into().unwrap();
        assert!(is_right(first), "picture {number}: {first:?}");
    }
}

#[tokio::test]
async fn an_upscaled_picture_must_fit_an_answer() {
    let side = |side| Task::Upscale(Upscale { model: "m".into(), picture: png(side, side), factor: 4 });
    assert_eq!(answer_size(&side(572)).unwrap(), Some((2288, 2288)));
    let why = refusal(side(573)).await;
    assert!(why.contains("2292×2292") && why.contains("smaller"), "{why}");
}

#[tokio::test]
async fn an_answer_opens_when_it_is_what_was_asked_for() {
    let task = generation(Start::Noise, Vec::new());
    assert!(opens(&task, &Answer::Picture(png(64, 64))).await);
    assert!(!opens(&task, &Answer::Picture(png(64, 63))).await);
    assert!(!opens(&task, &Answer::Picture(png(64, 64)[..90].to_vec())).await);
    assert!(!opens(&task, &Answer::Embeddings(vec![vec![1.0]])).await);
    let task = Task::Upscale(Upscale { model: "m".into(), picture: png(20, 10), factor: 4 });
    assert!(opens(&task, &Answer::Picture(png(80, 40))).await);
    assert!(!opens(&task, &Answer::Picture(png(20, 10))).await);
}
