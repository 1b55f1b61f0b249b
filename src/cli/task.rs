//! The tasks as arguments of `argus query` and `argus generate`: one set of them, read into the same request
//! that the API takes ([`crate::gateway::orders`]), so that both commands and the API mean the same.

use std::path::{Path, PathBuf};

use anyhow::Context;
use argus_protocols::TaskKind;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// A task with the options `C` of the command that asks for it.
#[derive(clap::Subcommand)]
pub enum TaskArgs<C: clap::Args> {
    /// A picture from words.
    TextToImage(With<TextToImage, C>),
    /// A picture from words and a picture.
    ImageToImage(With<ImageToImage, C>),
    /// A part of a picture made anew.
    Inpaint(With<Inpaint, C>),
    /// A picture grown over its edges.
    Uncrop(With<Uncrop, C>),
    /// A picture from words and a rough outline.
    Scribble(With<Steered, C>),
    /// A picture from words and the edges of a picture.
    Canny(With<Steered, C>),
    /// A picture from words and the depth of a picture, or a depth map (--prepared; near is bright).
    Depth(With<Steered, C>),
    /// A picture made larger.
    Upscale(With<Upscale, C>),
    /// CLIP embeddings of pictures.
    ImageEmbedding(With<Pictures, C>),
    /// Whether pictures are safe for work.
    #[command(alias = "nsfw-classification")]
    Nsfw(With<Pictures, C>),
}

#[derive(clap::Args)]
pub struct With<A: clap::Args, C: clap::Args> {
    #[command(flatten)]
    asked: A,
    #[command(flatten)]
    common: C,
}

#[derive(clap::Args)]
pub struct TextToImage {
    /// What the picture should show.
    pub prompt: String,
    #[command(flatten)]
    pub words: Words,
}

#[derive(clap::Args)]
pub struct ImageToImage {
    /// The picture to begin from (PNG, JPEG or WebP).
    picture: PathBuf,
    /// What the new picture should show.
    prompt: String,
    /// How much is made anew, 0 to 1 [default: the model's].
    #[arg(long)]
    strength: Option<f32>,
    #[command(flatten)]
    words: Words,
}

#[derive(clap::Args)]
pub struct Inpaint {
    /// The picture (PNG, JPEG or WebP).
    picture: PathBuf,
    /// A picture of the same size; what is white in it is made anew.
    mask: PathBuf,
    /// What the new part should show.
    prompt: String,
    /// What is transparent in the mask is made anew, instead of what is white.
    #[arg(long)]
    mask_alpha: bool,
    /// How much is made anew within the mask, 0 to 1 [default: all].
    #[arg(long)]
    strength: Option<f32>,
    #[command(flatten)]
    words: Words,
}

#[derive(clap::Args)]
pub struct Uncrop {
    /// The picture (PNG, JPEG or WebP).
    picture: PathBuf,
    /// What the whole should show.
    #[arg(default_value = "")]
    prompt: String,
    /// Pixels to add on every side.
    #[arg(long, value_name = "PIXELS", default_value_t = 0)]
    pad: u32,
    /// Pixels to add on the left [default: --pad].
    #[arg(long)]
    left: Option<u32>,
    #[arg(long)]
    right: Option<u32>,
    #[arg(long)]
    top: Option<u32>,
    #[arg(long)]
    bottom: Option<u32>,
    #[command(flatten)]
    words: Words,
}

#[derive(clap::Args)]
pub struct Steered {
    /// The picture that steers (PNG, JPEG or WebP).
    picture: PathBuf,
    /// What the new picture should show.
    prompt: String,
    /// The picture has white lines on black, or is a depth map, already.
    #[arg(long)]
    prepared: bool,
    /// How strongly it steers, above 0 to 2.
    #[arg(long, default_value_t = 1.0)]
    scale: f32,
    #[command(flatten)]
    words: Words,
}

#[derive(clap::Args)]
pub struct Upscale {
    /// The picture (PNG, JPEG or WebP).
    picture: PathBuf,
    /// By how much each edge grows: 2 or 4 [default: the model's first].
    #[arg(long)]
    factor: Option<u32>,
    /// Model id [default: the first that does this].
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub struct Pictures {
    /// PNG, JPEG or WebP files.
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
    /// Model id [default: the first that does this].
    #[arg(long)]
    model: Option<String>,
}

/// What every picture from words has.
#[derive(clap::Args)]
pub struct Words {
    /// Model id [default: the first that does this].
    #[arg(long)]
    model: Option<String>,
    /// What the picture should not show.
    #[arg(long)]
    negative_prompt: Option<String>,
    /// WIDTHxHEIGHT in pixels [default: the picture's where there is one, else the model's].
    #[arg(long)]
    size: Option<String>,
    /// Denoising steps [default: the model's].
    #[arg(long)]
    steps: Option<u32>,
    /// Classifier-free guidance scale [default: the model's].
    #[arg(long)]
    guidance: Option<f32>,
    /// Names the noise [default: random]. A validator's API draws its own whatever is given here.
    #[arg(long)]
    seed: Option<u32>,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct Output {
    /// Where to write the PNG.
    #[arg(short, long, value_name = "FILE", default_value = "argus.png")]
    output: PathBuf,
}

/// A task as it was asked for.
pub struct Asked {
    pub kind: TaskKind,
    /// The JSON object that the API takes.
    pub body: Value,
    /// Where a picture goes.
    pub output: Option<PathBuf>,
    pub seed: Option<u32>,
}

impl<C: clap::Args> TaskArgs<C> {
    /// Reads the files that are named, and gives the command's own options back.
    pub fn read(self) -> anyhow::Result<(Asked, C)> {
        match self {
            TaskArgs::TextToImage(With { asked, common }) => Ok((asked.read()?, common)),
            TaskArgs::ImageToImage(With { asked, common }) => Ok((asked.read()?, common)),
            TaskArgs::Inpaint(With { asked, common }) => Ok((asked.read()?, common)),
            TaskArgs::Uncrop(With { asked, common }) => Ok((asked.read()?, common)),
            TaskArgs::Scribble(With { asked, common }) => Ok((asked.read(TaskKind::Scribble)?, common)),
            TaskArgs::Canny(With { asked, common }) => Ok((asked.read(TaskKind::Canny)?, common)),
            TaskArgs::Depth(With { asked, common }) => Ok((asked.read(TaskKind::Depth)?, common)),
            TaskArgs::Upscale(With { asked, common }) => Ok((asked.read()?, common)),
            TaskArgs::ImageEmbedding(With { asked, common }) => {
                Ok((asked.read(TaskKind::ImageEmbedding)?, common))
            }
            TaskArgs::Nsfw(With { asked, common }) => Ok((asked.read(TaskKind::NsfwClassification)?, common)),
        }
    }
}

impl TextToImage {
    pub fn read(self) -> anyhow::Result<Asked> {
        self.words.asked(TaskKind::TextToImage, json!({ "prompt": self.prompt }))
    }
}

impl ImageToImage {
    fn read(self) -> anyhow::Result<Asked> {
        let mut body = json!({ "prompt": self.prompt, "image": file(&self.picture)? });
        put(&mut body, "strength", self.strength);
        self.words.asked(TaskKind::ImageToImage, body)
    }
}

impl Inpaint {
    fn read(self) -> anyhow::Result<Asked> {
        let mode = if self.mask_alpha { "alpha" } else { "white" };
        let (image, mask) = (file(&self.picture)?, file(&self.mask)?);
        let mut body = json!({ "prompt": self.prompt, "image": image, "mask": mask, "mask_mode": mode });
        put(&mut body, "strength", self.strength);
        self.words.asked(TaskKind::Inpaint, body)
    }
}

impl Uncrop {
    fn read(self) -> anyhow::Result<Asked> {
        let mut body = json!({ "prompt": self.prompt, "image": file(&self.picture)? });
        let pads = [("left", self.left), ("right", self.right), ("top", self.top), ("bottom", self.bottom)];
        for (side, pad) in pads {
            body[side] = pad.unwrap_or(self.pad).into();
        }
        self.words.asked(TaskKind::Uncrop, body)
    }
}

impl Steered {
    fn read(self, kind: TaskKind) -> anyhow::Result<Asked> {
        let control =
            json!({ "image": file(&self.picture)?, "prepared": self.prepared, "scale": self.scale });
        let mut body = json!({ "prompt": self.prompt });
        body[kind.label()] = control;
        self.words.asked(kind, body)
    }
}

impl Upscale {
    fn read(self) -> anyhow::Result<Asked> {
        let mut body = json!({ "image": file(&self.picture)? });
        put(&mut body, "factor", self.factor);
        put(&mut body, "model", self.model);
        Ok(Asked { kind: TaskKind::Upscale, body, output: Some(self.output.output), seed: None })
    }
}

impl Pictures {
    fn read(self, kind: TaskKind) -> anyhow::Result<Asked> {
        let files = self.pictures.iter().map(|path| file(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut body = json!({ "input": files });
        put(&mut body, "model", self.model);
        Ok(Asked { kind, body, output: None, seed: None })
    }
}

impl Words {
    fn asked(self, kind: TaskKind, mut body: Value) -> anyhow::Result<Asked> {
        put(&mut body, "model", self.model);
        put(&mut body, "negative_prompt", self.negative_prompt);
        put(&mut body, "size", self.size);
        put(&mut body, "steps", self.steps);
        put(&mut body, "guidance", self.guidance);
        Ok(Asked { kind, body, output: Some(self.output.output), seed: self.seed })
    }
}

fn put(body: &mut Value, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body[name] = value.into();
    }
}

/// A picture file as the API takes it.
fn file(path: &Path) -> anyhow::Result<String> {
    let limit = crate::gateway::limits::PICTURE as u64;
    let cannot = || format!("cannot read {}", path.display());
    let length = std::fs::metadata(path).with_context(cannot)?.len();
    anyhow::ensure!(length <= limit, "{} has {length} bytes; at most {limit} are sent", path.display());
    let bytes = std::fs::read(path).with_context(cannot)?;
    // A wrong file is told by its name here, where the name is known.
    argus_models::RgbPicture::size_of(&bytes, &argus_models::Limits::default())
        .with_context(|| path.display().to_string())?;
    Ok(STANDARD.encode(bytes))
}

/// Classes and embeddings as a person reads them: one line a picture.
pub fn lines<T>(answers: &[T], line: impl Fn(&T) -> String) -> String {
    answers.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// How probable each class of an NSFW classifier is, largest first, from the API's or the protocol's form.
pub fn classes(scores: &Value) -> String {
    let mut all: Vec<(&str, f64)> = scores
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.iter().map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>().join("  ")
}
