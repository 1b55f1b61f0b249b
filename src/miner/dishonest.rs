//! Miners that cheat on purpose, so that tests can watch them being caught. Only with feature `adversary`.

use std::{collections::HashMap, str::FromStr, sync::Arc};

use argus_models::RgbPicture;
use argus_protocols::{Answer, Capability, NsfwScores, Task, TaskKind};
use async_trait::async_trait;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::mpsc;

use super::backend::{Backend, BackendError, Step};
use crate::jobs;

/// How a dishonest miner saves itself the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Random samples.
    Noise,
    /// The answer to the first request, again and again.
    Cached,
    /// Half the steps that were asked for.
    FewerSteps,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "noise" => Ok(Kind::Noise),
            "cached" => Ok(Kind::Cached),
            "fewer-steps" => Ok(Kind::FewerSteps),
            other => Err(format!("{other:?} is no way to cheat; there are noise, cached and fewer-steps")),
        }
    }
}

/// Cheats on every task that its way of cheating allows: fewer steps are for pictures alone.
pub struct Dishonest {
    honest: Arc<dyn Backend>,
    kind: Kind,
    first: Mutex<HashMap<TaskKind, Answer>>,
}

impl Dishonest {
    pub fn new(honest: Arc<dyn Backend>, kind: Kind) -> Self {
        tracing::warn!(?kind, "this miner cheats");
        Self { honest, kind, first: Mutex::default() }
    }

    async fn cached(&self, task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        let kind = task.kind();
        let wanted = match &task {
            Task::ImageEmbedding(asked) | Task::NsfwClassification(asked) => asked.pictures.len(),
            Task::Generation(_) | Task::Upscale(_) => 1,
        };
        let known = self.first.lock().get(&kind).cloned();
        let answer = match known {
            Some(answer) => answer,
            None => self.honest.run(task, steps).await?,
        };
        self.first.lock().entry(kind).or_insert_with(|| answer.clone());
        Ok(match answer {
            Answer::Embeddings(all) => Answer::Embeddings(all.into_iter().cycle().take(wanted).collect()),
            Answer::Classes(all) => Answer::Classes(all.into_iter().cycle().take(wanted).collect()),
            other => other,
        })
    }

    /// The shape of an honest answer, without the work.
    async fn noise(&self, task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        let mut rng = StdRng::from_os_rng();
        if let Some((width, height)) = jobs::answer_size(&task)? {
            let picture = RgbPicture::from_fn(width, height, |_, _| rng.random());
            return Ok(Answer::Picture(picture.encode_png()));
        }
        let mut all = match self.cached(task, steps).await? {
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

    async fn run(&self, mut task: Task, steps: mpsc::Sender<Step>) -> Result<Answer, BackendError> {
        match self.kind {
            Kind::Noise => self.noise(task, steps).await,
            Kind::Cached => self.cached(task, steps).await,
            Kind::FewerSteps => {
                if let Task::Generation(asked) = &mut task {
                    asked.steps = (asked.steps / 2).max(1);
                }
                self.honest.run(task, steps).await
            }
        }
    }
}
