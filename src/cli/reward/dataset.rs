//! `argus reward dataset`: pairs of pictures whose answer is known, made here.
//!
//! One seed stands for all of it. Prompts come from the validators' own Markov chain; steps, guidance and seed
//! are drawn as they draw them. A prompt, with all its pairs, is either trained on or held out, and cheats that
//! take another prompt's picture take one of the same part, so that no picture is in both.

use std::{collections::BTreeMap, io::IsTerminal, path::PathBuf};

use anyhow::{Context, ensure};
use argus_models::{
    Generate, ModelFiles, Registry, Start,
    features::cosine_similarity,
    registry::{Architecture, Precision},
};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{
    files,
    kinds::{Asked, Cheat, Encoding, HONEST},
    observer::{Observer, Seen},
    painters::{Painter, Painters},
};
use crate::{
    validator::synthetic::Prompts,
    verify::reward::{
        Drift, PairFeatures,
        evaluation::{Dataset, Header, LabelledPair, MAX_PAIRS},
    },
};

/// The most prompts: what [`MAX_PAIRS`] leaves room for.
const MAX_PROMPTS: u32 = (MAX_PAIRS / 64) as u32;
/// Of ten prompts, so many are held out.
const HELD_OUT_OF_TEN: u64 = 4;
/// Steps and guidance of a folder, which says nothing of them.
const FOLDER_STEPS: usize = 20;
const FOLDER_GUIDANCE: f32 = 5.0;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the pairs are written, one a line of JSON.
    #[arg(short, long, value_name = "FILE", default_value = "pairs.jsonl")]
    output: PathBuf,
    /// What everything is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prompts for each model, with about 40 pairs each.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(2..=MAX_PROMPTS as i64))]
    prompts: u32,
    /// Models of the registry that make pictures of words [default: argus-tiny, unless a folder is given].
    #[arg(long = "with", value_name = "ID")]
    models: Vec<String>,
    /// Folders of Stable Diffusion models in the layout of diffusers.
    #[arg(long = "folder", value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// A registry file instead of the built-in one.
    #[arg(long, env = "ARGUS_REGISTRY", value_name = "FILE")]
    registry: Option<PathBuf>,
    /// Steps at most, where a model usually takes more.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(2..=1000))]
    most_steps: Option<u32>,
    /// Threads to compute on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
}

/// A model whose pictures are compared.
struct Source {
    name: String,
    files: ModelFiles,
    steps: usize,
    guidance: f32,
}

impl Args {
    fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let registry = match &self.registry {
            Some(path) => Registry::open(path).with_context(|| path.display().to_string())?,
            None => Registry::default(),
        };
        let default = ["argus-tiny".to_owned()];
        let models =
            if self.models.is_empty() && self.folders.is_empty() { &default } else { &self.models[..] };
        let mut sources = Vec::new();
        for id in models {
            let spec = registry.get(id).with_context(|| format!("the registry has no model `{id}`"))?;
            let limits =
                spec.pictures.as_ref().filter(|_| spec.architecture == Architecture::StableDiffusion);
            let limits = limits.with_context(|| format!("`{id}` is no Stable Diffusion model"))?;
            let (steps, guidance) = (limits.steps.default, limits.guidance.default);
            sources.push(Source { name: id.clone(), files: spec.files(), steps, guidance });
        }
        for folder in &self.folders {
            let (steps, guidance) = (FOLDER_STEPS, FOLDER_GUIDANCE);
            let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
            sources.push(Source { name, files: ModelFiles::folder(folder), steps, guidance });
        }
        if let Some(most) = self.most_steps {
            sources.iter_mut().for_each(|source| source.steps = source.steps.min(most as usize));
        }
        Ok(sources)
    }
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let sources = args.sources()?;
    let observer = Observer::new(args.threads as usize)?;
    let bar = progress(sources.len() as u64 * u64::from(args.prompts), json);
    let mut pairs = Vec::new();
    for source in &sources {
        bar.set_message(source.name.clone());
        pairs.extend(Maker::new(args, source, &observer)?.pairs(&bar)?);
        ensure!(pairs.len() <= MAX_PAIRS, "more than {MAX_PAIRS} pairs: take fewer prompts or models");
    }
    bar.finish_and_clear();
    let models = sources.into_iter().map(|source| source.name).collect();
    let dataset = Dataset { header: Header::new(args.seed, models, args.prompts as usize), pairs };
    files::write(&args.output, dataset.to_lines().as_bytes())?;
    let same = dataset.pairs.iter().filter(|pair| pair.same).count();
    let different = dataset.pairs.len() - same;
    if json {
        println!(
            "{}",
            json!({ "file": args.output.display().to_string(), "same": same, "different": different })
        );
    } else {
        println!("{}: {same} same and {different} different pairs", args.output.display());
    }
    Ok(())
}

fn progress(prompts: u64, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] prompt {pos}/{len} ({eta})");
    ProgressBar::new(prompts).with_style(style.expect("a template of ours"))
}

/// Makes the pairs of one model.
struct Maker<'a> {
    observer: &'a Observer,
    painters: Painters,
    requests: Vec<Generate>,
    /// For each request, that of the nearest other prompt in the same part.
    nearest: Vec<Option<usize>>,
}

impl<'a> Maker<'a> {
    fn new(args: &Args, source: &Source, observer: &'a Observer) -> anyhow::Result<Self> {
        let painters = Painters::open(&source.files, args.threads as usize)?;
        let prompts = Prompts::new();
        let request = |number: u32| {
            let mut rng =
                StdRng::seed_from_u64(args.seed.wrapping_mul(MAX_PROMPTS.into()).wrapping_add(number.into()));
            Generate {
                prompt: prompts.draw(&mut rng),
                negative_prompt: String::new(),
                width: painters.edge(),
                height: painters.edge(),
                steps: rng.random_range(source.steps.div_ceil(2)..=source.steps),
                guidance: rng.random_range(source.guidance..=source.guidance * 1.5),
                seed: rng.random(),
                start: Start::Noise,
                controls: Vec::new(),
            }
        };
        let requests: Vec<Generate> = (0..args.prompts).map(request).collect();
        let nearest = nearest(observer, &requests)?;
        Ok(Self { observer, painters, requests, nearest })
    }

    fn pairs(&self, bar: &ProgressBar) -> anyhow::Result<Vec<LabelledPair>> {
        let exact = |request| self.painters.paint(Painter::Honest(Precision::F32), request);
        let right: Vec<_> = self.requests.iter().map(exact).collect::<Result<_, _>>()?;
        let mut pairs = Vec::new();
        for (number, request) in self.requests.iter().enumerate() {
            let nearest = self.nearest[number].map(|place| &right[place]);
            let asked = Asked { request, number, right: &right[number], nearest };
            pairs.extend(self.pairs_of(&asked)?);
            bar.inc(1);
        }
        Ok(pairs)
    }

    fn pairs_of(&self, asked: &Asked) -> anyhow::Result<Vec<LabelledPair>> {
        let prompt = prompt_hash(&asked.request.prompt);
        let labelled = |kind: &str, same, drift, features: Option<PairFeatures>| {
            let held_out = is_held_out(prompt);
            features.map(|features| LabelledPair {
                kind: kind.into(),
                same,
                drift,
                prompt,
                held_out,
                features,
            })
        };
        let mut pairs = Vec::new();
        let right = self.observer.look(asked.right.clone())?;
        // Each painter paints once, however its picture is sent.
        let mut painted: BTreeMap<&str, Seen> = BTreeMap::new();
        for honest in &HONEST {
            let plain =
                HONEST.iter().find(|other| other.painter == honest.painter).map_or("", |other| other.kind);
            if !painted.contains_key(plain) {
                let picture = match honest.painter {
                    Painter::Honest(Precision::F32) => asked.right.clone(),
                    painter => self.painters.paint(painter, asked.request)?,
                };
                painted.insert(plain, self.observer.look(picture)?);
            }
            let own = &painted[plain];
            let arrived = match honest.encoding {
                Encoding::Png => own.clone(),
                encoding => self.observer.look(encoding.pass(&own.picture)?)?,
            };
            pairs.extend(labelled(honest.kind, true, honest.drift, right.beside(&arrived)));
        }
        let [f16, bf16] = ["f16", "bf16"].map(|kind| &painted[kind]);
        pairs.extend(labelled("f16 and bf16", true, Drift::Bf16, f16.beside(bf16)));
        for cheat in Cheat::ALL {
            let Some(picture) = cheat.answer(&self.painters, asked)? else { continue };
            let wrong = self.observer.look(picture)?;
            for honest in [&right, f16] {
                pairs.extend(labelled(cheat.kind(), false, Drift::F16, honest.beside(&wrong)));
            }
        }
        Ok(pairs)
    }
}

/// The first bytes of the prompt's BLAKE3.
fn prompt_hash(prompt: &str) -> u64 {
    let hash = blake3::hash(prompt.as_bytes());
    hash.as_bytes()[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn is_held_out(prompt: u64) -> bool {
    prompt % 10 < HELD_OUT_OF_TEN
}

/// For each request the one whose prompt says nearly the same, by CLIP, among those of the same part.
fn nearest(observer: &Observer, requests: &[Generate]) -> anyhow::Result<Vec<Option<usize>>> {
    let texts: Vec<&str> = requests.iter().map(|request| request.prompt.as_str()).collect();
    let embeddings = observer.texts(&texts)?;
    let part = |place: usize| is_held_out(prompt_hash(texts[place]));
    let of = |own: usize| {
        let others =
            (0..texts.len()).filter(|other| texts[*other] != texts[own] && part(*other) == part(own));
        let likeness =
            |other: &usize| cosine_similarity(&embeddings[own], &embeddings[*other]).unwrap_or(-1.0);
        others.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
    };
    Ok((0..texts.len()).map(of).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn four_of_ten_prompts_are_held_out() {
        let prompts = Prompts::new();
        let mut rng = StdRng::seed_from_u64(3);
        let drawn: BTreeSet<String> = (0..4000).map(|_| prompts.draw(&mut rng)).collect();
        let held_out = drawn.iter().filter(|prompt| is_held_out(prompt_hash(prompt))).count();
        let share = held_out as f64 / drawn.len() as f64;
        assert!((0.35..0.45).contains(&share), "{held_out} of {}", drawn.len());
    }
}
