//! Every task that the models in the binary serve, on a network of real processes: asked with `argus query`
//! over the overlay, and with `argus generate` through the API.

use std::process::Command;

use argus::jobs;
use argus_models::{ModelSpec, Registry, RgbPicture};
use argus_protocols::TaskKind;

use super::*;

/// The files that the tasks are about.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn write(dir: &Path) -> Self {
        let files = Self { dir: dir.to_owned() };
        let sky =
            RgbPicture::from_fn(64, 64, |x, y| if y < 40 { [90, 150, 240] } else { [40, 140, x as u8] });
        let disc = |x: u32, y: u32| x.abs_diff(32).pow(2) + y.abs_diff(32).pow(2) <= 18 * 18;
        let mask = RgbPicture::from_fn(64, 64, |x, y| [if disc(x, y) { 255 } else { 0 }; 3]);
        let half = sky.resize(32, 32, argus_models::resample::Filter::Bicubic);
        for (name, picture) in [("sky.png", sky), ("mask.png", mask), ("half.png", half)] {
            std::fs::write(files.path(name), picture.encode_png()).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The arguments that ask for a task, and the size of the picture that comes back.
    fn arguments(&self, task: TaskKind) -> (Vec<String>, Option<(u32, u32)>) {
        let (sky, made) = (self.path("sky.png"), Some((128, 128)));
        let strings = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        match task {
            TaskKind::TextToImage => (strings(&["text-to-image", "a red apple"]), made),
            TaskKind::ImageToImage => (strings(&["image-to-image", &sky, "a rainbow"]), made),
            TaskKind::Inpaint => (strings(&["inpaint", &sky, &self.path("mask.png"), "a yellow sun"]), made),
            TaskKind::Uncrop => {
                (strings(&["uncrop", &self.path("half.png"), "a meadow", "--pad", "16"]), made)
            }
            TaskKind::Scribble | TaskKind::Canny | TaskKind::Depth => {
                (strings(&[task.label(), &self.path("mask.png"), "a ball"]), made)
            }
            TaskKind::Upscale => (strings(&["upscale", &sky]), None),
            TaskKind::ImageEmbedding => (strings(&["image-embedding", &sky, &sky]), None),
            TaskKind::NsfwClassification => (strings(&["nsfw", &sky]), None),
        }
    }
}

/// Runs `argus` and gives the JSON it prints.
async fn argus(arguments: Vec<String>) -> Result<Value, String> {
    let output = tokio::task::spawn_blocking(move || {
        Command::new(BINARY).arg("--json").args(&arguments).output().unwrap()
    });
    let output = output.await.unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Asks until the validator has its permit and has found a miner.
async fn asked(arguments: &[String]) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match argus(arguments.to_vec()).await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "argus {arguments:?}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Holds an answer against what the task promises.
fn check(task: TaskKind, spec: &ModelSpec, size: Option<(u32, u32)>, file: &Path, answer: &Value) {
    match task {
        TaskKind::ImageEmbedding => {
            let all = answer.get("embeddings").or(answer.get("data")).unwrap().as_array().unwrap();
            assert_eq!(all.len(), 2, "{answer}");
        }
        TaskKind::NsfwClassification => {
            let neutral = match answer.get("classes") {
                Some(classes) => &classes[0]["neutral"],
                None => &answer["data"][0]["scores"]["neutral"],
            };
            assert!(neutral.is_number(), "{answer}");
        }
        _ => {
            let picture = image::open(file).unwrap_or_else(|error| panic!("{task}: {error}: {answer}"));
            let factor = jobs::upscale_factors(spec).first().copied().unwrap_or(1);
            let size = size.unwrap_or((64 * factor, 64 * factor));
            assert_eq!((picture.width(), picture.height()), size, "{task}");
            let pixels = picture.into_rgb8();
            let first = pixels.get_pixel(0, 0);
            assert!(pixels.pixels().any(|pixel| pixel != first), "{task}: a picture of one colour");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_is_served_over_the_overlay_and_through_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let net = start(options(&dir.path().join("net"), &[&[]], PRESET)).await;
    let key = net.key("test").await.unwrap();
    let files = Files::write(dir.path());
    let wallets = dir.path().join("net").join("wallets").display().to_string();
    let overlay: Vec<String> = [
        "--chain",
        &net.chain_url,
        "--netuid",
        "1",
        "--bootstrap",
        &net.bootstrap,
        "--wallet-path",
        &wallets,
        "--wallet",
        "devnet",
        "--hotkey",
        "validator-1",
    ]
    .map(str::to_owned)
    .to_vec();
    let api = ["--api", &net.validators[0].api, "--key", &key].map(str::to_owned).to_vec();
    let registry = Registry::default();
    let mut served = 0;
    for spec in registry.models() {
        for task in jobs::tasks(spec) {
            let (arguments, size) = files.arguments(task);
            for (command, options) in [("query", &overlay), ("generate", &api)] {
                let file = dir.path().join(format!("{}-{task}-{command}.png", spec.id));
                let mut all = vec![command.to_owned()];
                all.extend(arguments.iter().chain(options).cloned());
                all.extend(["--model".to_owned(), spec.id.to_string()]);
                if !matches!(task, TaskKind::ImageEmbedding | TaskKind::NsfwClassification) {
                    all.extend(["-o".to_owned(), file.display().to_string()]);
                }
                let answer = asked(&all).await;
                check(task, spec, size, &file, &answer);
                served += 1;
            }
        }
    }
    // Ten of a model and a task, all but depth, by both ways.
    assert!(served >= 20, "{served}");
    // What is wrong is said in words, without asking anybody.
    let mut wrong = vec!["query".to_owned(), "inpaint".into()];
    wrong.extend([files.path("sky.png"), files.path("half.png"), "a sun".into()]);
    wrong.extend(overlay.clone());
    if registry.models().iter().any(|spec| jobs::tasks(spec).contains(&TaskKind::Inpaint)) {
        let error = argus(wrong).await.unwrap_err();
        assert!(error.contains("32×32") && error.contains("same size"), "{error}");
    }
    std::fs::write(files.path("broken.png"), b"no picture").unwrap();
    let mut wrong = vec!["query".to_owned(), "image-embedding".into(), files.path("broken.png")];
    wrong.extend(overlay);
    let error = argus(wrong).await.unwrap_err();
    assert!(error.contains("broken.png") && error.contains("not a PNG, JPEG or WebP"), "{error}");
    net.stop().await;
}
