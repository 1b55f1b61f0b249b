//! Miners that cheat on purpose, so that tests can watch them being caught. Only with feature `adversary`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use argus_models::RgbPicture;
use argus_protocols::{Answer, Capability, NsfwScores, Task, TaskKind};
use async_trait::async_trait;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::mpsc;

use super::backend::{Backend, BackendError, Step};
use crate::jobs;

/// How a dishonest miner saves itself the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Random samples.
    Noise,
    /// The answer to the first request, again and again.
    Cached,
    /// Half the steps that were asked for.
    FewerSteps,
    /// The same, committing to a made-up trajectory of all steps: it begins with the right noise, ends with
    /// the picture sent, and goes in straight lines between the states that there are.
    SkippedSteps,
    /// Honest, and leaves its answers in a folder.
    Lends(PathBuf),
    /// Hands on what it finds in such a folder as its own, and has no device.
    Relay(PathBuf),
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "noise" => Ok(Kind::Noise),
            "cached" => Ok(Kind::Cached),
            "fewer-steps" => Ok(Kind::FewerSteps),
            "skipped-steps" => Ok(Kind::SkippedSteps),
            other => match other.split_once(':') {
                Some(("lends", folder)) => Ok(Kind::Lends(folder.into())),
                Some(("relay", folder)) => Ok(Kind::Relay(folder.into())),
                _ => Err(format!(
                    "{other:?} is no way to cheat; there are noise, cached, fewer-steps, skipped-steps, \
                     lends:FOLDER and relay:FOLDER"
                )),
            },
        }
    }
}

/// Cheats on every task that its way of cheating allows: fewer steps are for pictures alone.
pub struct Dishonest {
    honest: Arc<dyn Backend>,
    kind: Kind,
    first: Mutex<HashMap<TaskKind, Made>>,
}

/// An answer with the states of the run that made it.
type Made = (Answer, Vec<Vec<u8>>);

/// How long a relay waits for an answer that it could hand on.
const RELAYED_WITHIN: Duration = Duration::from_secs(4);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Dishonest {
    pub fn new(honest: Arc<dyn Backend>, kind: Kind) -> Self {
        tracing::warn!(?kind, "this miner cheats");
        Self { honest, kind, first: Mutex::default() }
    }

    async fn cached(&self, task: Task, steps: mpsc::Sender<Step>, most: usize) -> Result<Made, BackendError> {
        let kind = task.kind();
        let wanted = match &task {
            Task::ImageEmbedding(asked) | Task::NsfwClassification(asked) => asked.pictures.len(),
            Task::Generation(_) | Task::Upscale(_) => 1,
        };
        let known = self.first.lock().get(&kind).cloned();
        let (answer, states) = match known {
            Some(made) => made,
            None => self.honest.run_traced(task, steps, most).await?,
        };
        self.first.lock().entry(kind).or_insert_with(|| (answer.clone(), states.clone()));
        let answer = match answer {
            Answer::Embeddings(all) => Answer::Embeddings(all.into_iter().cycle().take(wanted).collect()),
            Answer::Classes(all) => Answer::Classes(all.into_iter().cycle().take(wanted).collect()),
            other => other,
        };
        Ok((answer, states))
    }

    /// Half the steps, and states as if all had been taken.
    async fn skipped(
        &self,
        mut task: Task,
        steps: mpsc::Sender<Step>,
        most: usize,
    ) -> Result<Made, BackendError> {
        let mut all = 0;
        if let Task::Generation(asked) = &mut task {
            all = asked.steps as usize;
            asked.steps = (asked.steps / 2).max(1);
        }
        let (answer, states) = self.honest.run_traced(task, steps, most).await?;
        Ok((answer, made_up(&states, all)))
    }

    /// What somebody else answered to the same request, if it comes in time.
    async fn relayed(
        &self,
        folder: &Path,
        task: Task,
        steps: mpsc::Sender<Step>,
    ) -> Result<Answer, BackendError> {
        let file = lent(folder, &task);
        let begun = Instant::now();
        while begun.elapsed() < RELAYED_WITHIN {
            if let Some(answer) = tokio::fs::read(&file).await.ok().and_then(|b| Answer::from_bytes(&b).ok())
            {
                return Ok(answer);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.noise(task, steps).await
    }

    /// The shape of an honest answer, without the work.
    async fn noise(&self, task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        let mut rng = StdRng::from_os_rng();
        if let Some((width, height)) = jobs::answer_size(&task)? {
            let picture = RgbPicture::from_fn(width, height, |_, _| rng.random());
            return Ok(Answer::Picture(picture.encode_png()));
        }
        let mut all = match self.cached(task, steps, 0).await?.0 {
            Answer::Embeddings(all) => all,
            Answer::Classes(mut all) => {
                all.iter_mut().for_each(|scores| *scores = classes(&mut rng));
                return Ok(Answer::Classes(all));
            }
            Answer::Picture(_) | Answer::Nsfw(_) => return Err(BackendError::Failed("a picture".into())),
        };
        for embedding in &mut all {
            embedding.iter_mut().for_each(|x| *x = rng.random_range(-1.0..1.0));
            let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
            embedding.iter_mut().for_each(|x| *x /= length);
        }
        Ok(Answer::Embeddings(all))
    }
}

/// Where the answer to a task is lent.
fn lent(folder: &Path, task: &Task) -> PathBuf {
    folder.join(blake3::hash(&task.to_bytes()).to_hex().as_str())
}

/// Leaves an answer for a relay; whole or not at all.
async fn lend(folder: &Path, task: &Task, answer: &Answer) -> std::io::Result<()> {
    let file = lent(folder, task);
    let unfinished = file.with_extension("part");
    tokio::fs::create_dir_all(folder).await?;
    tokio::fs::write(&unfinished, answer.to_bytes()).await?;
    tokio::fs::rename(unfinished, file).await
}

/// The states of a run of `steps` steps, from those of a shorter one: the nearest, or where they have the same
/// length something between the two nearest.
fn made_up(states: &[Vec<u8>], steps: usize) -> Vec<Vec<u8>> {
    let Some(last) = states.len().checked_sub(1) else { return Vec::new() };
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("chunks of four"));
    let state = |index: usize| {
        let place = index as f64 * last as f64 / steps.max(1) as f64;
        let (before, after) = (&states[place.floor() as usize], &states[place.ceil() as usize]);
        if before.len() != after.len() {
            return after.clone();
        }
        let share = place.fract() as f32;
        let between = before.chunks_exact(4).zip(after.chunks_exact(4)).flat_map(|(before, after)| {
            let (before, after) = (number(before), number(after));
            (before + share * (after - before)).to_le_bytes()
        });
        between.collect()
    };
    (0..=steps).map(state).collect()
}

/// Probabilities of nothing.
fn classes(rng: &mut impl Rng) -> NsfwScores {
    let [drawing, hentai, neutral, porn, sexy] = std::array::from_fn(|_| rng.random_range(0.01..1.0_f32));
    let sum = drawing + hentai + neutral + porn + sexy;
    let [drawing, hentai, neutral, porn, sexy] = [drawing, hentai, neutral, porn, sexy].map(|x| x / sum);
    NsfwScores { drawing, hentai, neutral, porn, sexy }
}

#[async_trait]
impl Backend for Dishonest {
    async fn warm_up(&self) -> Vec<Capability> {
        self.honest.warm_up().await
    }

    async fn changed(&self) -> Vec<Capability> {
        self.honest.changed().await
    }

    fn can_recover(&self) -> bool {
        self.honest.can_recover()
    }

    fn slots(&self) -> usize {
        self.honest.slots()
    }

    fn usual_work(&self, task: TaskKind, model: &str) -> Option<f64> {
        self.honest.usual_work(task, model)
    }

    fn work(&self, task: &Task) -> Result<f64, BackendError> {
        self.honest.work(task)
    }

    async fn run(&self, task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        self.run_traced(task, steps, 0).await.map(|(answer, _)| answer)
    }

    async fn run_traced(
        &self,
        mut task: Task,
        steps: mpsc::Sender<Step>,
        most: usize,
    ) -> Result<Made, BackendError> {
        match &self.kind {
            Kind::Noise => Ok((self.noise(task, steps).await?, Vec::new())),
            Kind::Cached => self.cached(task, steps, most).await,
            Kind::FewerSteps => {
                if let Task::Generation(asked) = &mut task {
                    asked.steps = (asked.steps / 2).max(1);
                }
                self.honest.run_traced(task, steps, most).await
            }
            Kind::SkippedSteps => self.skipped(task, steps, most).await,
            Kind::Lends(folder) => {
                let (asked, made) = (task.clone(), self.honest.run_traced(task, steps, most).await?);
                if let Err(error) = lend(folder, &asked, &made.0).await {
                    tracing::warn!(%error, "an answer could not be lent");
                }
                Ok(made)
            }
            Kind::Relay(folder) => Ok((self.relayed(folder, task, steps).await?, Vec::new())),
        }
    }
}
