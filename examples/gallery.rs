//! Asks a running network for every task that makes pictures, and writes what was given and what came back:
//! the pictures of README.md's gallery.
//!
//!     ARGUS_API_KEY=… cargo run --example gallery -- docs/gallery [http://127.0.0.1:8080]

use std::path::{Path, PathBuf};

use anyhow::Context;
use argus::client::Client;
use argus_models::{
    Limits, RgbPicture,
    preprocess::{CannyThresholds, canny, scribble},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// The sheet of pictures from words, row by row.
const PROMPTS: [&str; 32] = [
    "a red apple",
    "a banana",
    "a strawberry",
    "a pineapple",
    "a pizza",
    "a hamburger",
    "an ice cream cone",
    "a birthday cake",
    "a sunflower",
    "a rose",
    "a tree",
    "a cactus",
    "a mushroom",
    "the sun",
    "a rainbow",
    "a snowman",
    "a cat",
    "a dog",
    "a panda",
    "a frog",
    "a penguin",
    "a whale",
    "a butterfly",
    "an octopus",
    "a house",
    "a rocket",
    "a red car",
    "a sailboat",
    "a guitar",
    "a soccer ball",
    "a blue heart",
    "a robot",
];
const COLUMNS: u32 = 8;

struct Gallery {
    client: Client,
    folder: PathBuf,
}

impl Gallery {
    async fn ask(&self, path: &str, body: Value) -> anyhow::Result<RgbPicture> {
        let generated = self.client.picture(path, body, |_| {}).await?;
        Ok(RgbPicture::decode(&generated.png, &Limits::default())?)
    }

    async fn drawn(&self, prompt: &str) -> anyhow::Result<RgbPicture> {
        self.ask("/v1/images/generations", json!({ "prompt": prompt })).await
    }

    fn write(&self, name: &str, picture: &RgbPicture) -> anyhow::Result<()> {
        let path = self.folder.join(name).with_extension("png");
        std::fs::write(&path, picture.encode_png()).with_context(|| path.display().to_string())?;
        println!("{} ({}×{})", path.display(), picture.width(), picture.height());
        Ok(())
    }

    async fn sheet(&self) -> anyhow::Result<()> {
        let mut pictures = Vec::new();
        for prompt in PROMPTS {
            pictures.push(self.drawn(prompt).await?);
        }
        self.write("text-to-image", &beside(&pictures, COLUMNS))
    }

    /// A task that begins from a picture: what was given and what came of it, side by side.
    async fn pair(&self, name: &str, path: &str, given: &RgbPicture, body: Value) -> anyhow::Result<()> {
        let found = self.ask(path, body).await.with_context(|| name.to_owned())?;
        self.write(name, &beside(&[given.clone(), found], 2))
    }
}

/// Pictures in rows, each in a place as large as the largest, on white.
fn beside(pictures: &[RgbPicture], columns: u32) -> RgbPicture {
    const GAP: u32 = 8;
    let wide = pictures.iter().map(RgbPicture::width).max().unwrap_or(1) + GAP;
    let high = pictures.iter().map(RgbPicture::height).max().unwrap_or(1) + GAP;
    let rows = (pictures.len() as u32).div_ceil(columns);
    RgbPicture::from_fn(wide * columns - GAP, high * rows - GAP, |x, y| {
        let picture = pictures.get((y / high * columns + x / wide) as usize);
        let inside = picture.filter(|picture| x % wide < picture.width() && y % high < picture.height());
        inside.map_or([255; 3], |picture| pixel(picture, x % wide, y % high))
    })
}

fn pixel(picture: &RgbPicture, x: u32, y: u32) -> [u8; 3] {
    let at = 3 * (y as usize * picture.width() as usize + x as usize);
    [0, 1, 2].map(|channel| picture.pixels()[at + channel])
}

fn encoded(picture: &RgbPicture) -> String {
    STANDARD.encode(picture.encode_png())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("say where the pictures go")?;
    let api = arguments.next().unwrap_or_else(|| "http://127.0.0.1:8080".to_owned());
    std::fs::create_dir_all(Path::new(&folder))?;
    let client = Client::new(&api, std::env::var("ARGUS_API_KEY").ok());
    let gallery = Gallery { client, folder: folder.into() };

    gallery.sheet().await?;

    let apple = gallery.drawn("a red apple").await?;
    let body = json!({ "image": encoded(&apple), "prompt": "an orange", "strength": 0.7 });
    gallery.pair("image-to-image", "/v1/images/image-to-image", &apple, body).await?;

    let pizza = gallery.drawn("a pizza").await?;
    let edge = pizza.width();
    let is_masked = |x: u32, y: u32| x > edge / 2 && y < edge * 5 / 8;
    let mask = RgbPicture::from_fn(edge, edge, |x, y| [if is_masked(x, y) { 255 } else { 0 }; 3]);
    let hidden = RgbPicture::from_fn(edge, edge, |x, y| match is_masked(x, y) {
        true => [128; 3],
        false => pixel(&pizza, x, y),
    });
    let body = json!({ "image": encoded(&pizza), "mask": encoded(&mask), "prompt": "a pizza" });
    gallery.pair("inpaint", "/v1/images/inpaint", &hidden, body).await?;

    let panda = gallery.drawn("a panda").await?;
    let pad = edge * 3 / 8;
    let part = panda.crop(0, 0, edge - pad, edge);
    let body = json!({ "image": encoded(&part), "prompt": "a panda", "right": pad });
    gallery.pair("uncrop", "/v1/images/uncrop", &part, body).await?;

    let house = gallery.drawn("a house").await?;
    let body = json!({ "scribble": encoded(&house), "prompt": "a house" });
    gallery.pair("scribble", "/v1/images/controls", &scribble(&house), body).await?;
    let cat = gallery.drawn("a cat").await?;
    let body = json!({ "canny": encoded(&cat), "prompt": "a dog" });
    gallery.pair("canny", "/v1/images/controls", &canny(&cat, CannyThresholds::CONTROL), body).await?;

    for factor in [2, 4] {
        let body = json!({ "image": encoded(&apple), "factor": factor });
        gallery.pair(&format!("upscale-x{factor}"), "/v1/images/upscale", &apple, body).await?;
    }
    Ok(())
}
