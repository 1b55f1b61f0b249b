//! Measures how far answers lie from the right one, honest and not: the table in the documentation of
//! `argus::verify::compare` comes from here. Run it again for other models:
//!
//!     cargo run --example calibrate

use argus::{jobs::Jobs, validator::synthetic::Synthesiser, verify::Evidence};
use argus_models::{
    Limits, ModelSpec, Registry, RgbPicture,
    engine::{Engine, EngineConfig},
    features::cosine_similarity,
    registry::DEFAULT_REGISTRY,
};
use argus_protocols::{
    Answer, Task, TaskKind,
    task::{Generation, Pictures},
};
use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder};
use rand::{Rng, SeedableRng, rngs::StdRng};

const ROUNDS: u64 = 24;

/// What happened to a request or its answer, and the measured distances.
struct Series {
    name: &'static str,
    measures: [Vec<f32>; 4],
}

fn spread(values: &mut [f32]) -> String {
    values.sort_by(f32::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    format!("{:.4} / {:.4} / {:.4}", at(0.0), at(0.5), at(1.0))
}

impl Series {
    fn new(name: &'static str) -> Self {
        Self { name, measures: Default::default() }
    }

    fn add(&mut self, reference: &Evidence, other: &Evidence) {
        let (
            Evidence::Picture { features: f, picture: p, .. },
            Evidence::Picture { features: g, picture: q, .. },
        ) = (reference, other)
        else {
            return;
        };
        let bits = |a: u64, b: u64| (a ^ b).count_ones();
        let shape = bits(f.hashes.average, g.hashes.average)
            + bits(f.hashes.perceptual, g.hashes.perceptual)
            + bits(f.hashes.difference, g.hashes.difference);
        let measured = [
            p.mean_abs_difference(q).unwrap_or(255.0) as f32,
            1.0 - cosine_similarity(&f.clip, &g.clip).unwrap_or(0.0),
            shape as f32,
            bits(f.hashes.colour, g.hashes.colour) as f32,
        ];
        for (values, value) in self.measures.iter_mut().zip(measured) {
            values.push(value);
        }
    }

    fn print(&mut self) {
        let row: Vec<String> = self.measures.iter_mut().map(|values| spread(values)).collect();
        println!("| {} | {} |", self.name, row.join(" | "));
    }
}

fn changed(picture: &RgbPicture, change: impl FnMut(u8) -> u8) -> Answer {
    let pixels = picture.pixels().iter().copied().map(change).collect();
    let changed = RgbPicture::new(picture.width(), picture.height(), pixels).expect("the same size");
    Answer::Picture(changed.encode_png())
}

fn jpeg(picture: &RgbPicture, quality: u8) -> Vec<u8> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, quality)
        .write_image(picture.pixels(), picture.width(), picture.height(), ExtendedColorType::Rgb8)
        .expect("writing to memory does not fail");
    jpeg
}

fn reencoded(picture: &RgbPicture, quality: u8) -> Answer {
    let decoded = RgbPicture::decode(&jpeg(picture, quality), &Limits::default());
    Answer::Picture(decoded.expect("just encoded").encode_png())
}

const NAMES: [&str; 10] = [
    "honest",
    "drift by one level",
    "JPEG 95",
    "JPEG 75",
    "one step fewer",
    "half the steps",
    "other seed",
    "guidance 1",
    "other prompt",
    "noise",
];

/// The answers of [`NAMES`] to one request.
async fn answers(jobs: &Jobs, asked: &Generation, picture: &RgbPicture) -> anyhow::Result<[Evidence; 10]> {
    let task = Task::Generation(asked.clone());
    let other = |change: fn(&mut Generation)| {
        let mut other = asked.clone();
        change(&mut other);
        Task::Generation(other)
    };
    let mut rng = StdRng::seed_from_u64(asked.seed);
    let drifted = changed(picture, |s| s.saturating_add_signed(rng.random_range(-1..=1)));
    let noise = changed(picture, |_| rng.random());
    Ok([
        jobs.reference(&task).await?,
        jobs.evidence(&task, drifted).await?,
        jobs.evidence(&task, reencoded(picture, 95)).await?,
        jobs.evidence(&task, reencoded(picture, 75)).await?,
        jobs.reference(&other(|t| t.steps -= 1)).await?,
        jobs.reference(&other(|t| t.steps /= 2)).await?,
        jobs.reference(&other(|t| t.seed ^= 1)).await?,
        jobs.reference(&other(|t| t.guidance = 1.0)).await?,
        jobs.reference(&other(|t| t.prompt = "a blue house".into())).await?,
        jobs.evidence(&task, noise).await?,
    ])
}

/// Distances between the embedding of a picture and those of the same as JPEG and of another.
async fn embedding_distances(
    jobs: &Jobs,
    spec: &ModelSpec,
    synthesiser: &Synthesiser,
    seed: u64,
) -> anyhow::Result<[f32; 2]> {
    let draw = |seed| match synthesiser.draw(TaskKind::ImageEmbedding, spec, seed) {
        Some(Task::ImageEmbedding(asked)) => Ok(asked.pictures[0].clone()),
        _ => Err(anyhow::anyhow!("no picture was drawn")),
    };
    let picture = draw(seed)?;
    let decoded = RgbPicture::decode(&picture, &Limits::default())?;
    let pictures = vec![picture, jpeg(&decoded, 90), draw(seed + 1000)?];
    let task = Task::ImageEmbedding(Pictures { model: spec.id.to_string(), pictures });
    let Evidence::Embeddings(all) = jobs.reference(&task).await? else { anyhow::bail!("no embeddings came") };
    Ok([1, 2].map(|other| 1.0 - cosine_similarity(&all[0], &all[other]).unwrap_or(0.0)))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let registry = Registry::from_toml(DEFAULT_REGISTRY)?;
    let models = registry.models().iter().map(|spec| spec.id.clone()).collect();
    let engine = Engine::start(&EngineConfig::on_processor(models), &registry)?;
    let jobs = Jobs::new(engine).await?;
    let (painters, embedders): (Vec<&ModelSpec>, Vec<&ModelSpec>) =
        jobs.engine().models().iter().partition(|spec| spec.pictures.is_some());
    let synthesiser = Synthesiser::new();
    let mut all = NAMES.map(Series::new);
    let mut embeddings = [Vec::new(), Vec::new()];
    for seed in 0..ROUNDS {
        let Some(Task::Generation(asked)) = synthesiser.draw(TaskKind::TextToImage, painters[0], seed) else {
            anyhow::bail!("no request was drawn");
        };
        let reference = jobs.reference(&Task::Generation(asked.clone())).await?;
        let Evidence::Picture { picture, .. } = &reference else { continue };
        synthesiser.add(picture);
        for (series, answer) in all.iter_mut().zip(answers(&jobs, &asked, picture).await?) {
            series.add(&reference, &answer);
        }
        let distances = embedding_distances(&jobs, embedders[0], &synthesiser, seed).await?;
        embeddings.iter_mut().zip(distances).for_each(|(values, value)| values.push(value));
    }
    println!("Distances to the right answer, least / median / most of {ROUNDS}:\n");
    println!("| answer | levels | CLIP | hash bits | colour bits |\n|---|---|---|---|---|");
    all.iter_mut().for_each(Series::print);
    let [same, other] = &mut embeddings;
    println!("\nembedding distance: {} as JPEG 90, {} of another picture", spread(same), spread(other));
    Ok(())
}
