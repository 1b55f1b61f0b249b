//! A service without a network: pictures computed from the seed, behaviour chosen by the prompt.

use std::{
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use argus::gateway::{
    Allowed, ChainStatus, GenerationLimits, MinerStatus, ModelCard, PeriodStatus, Progress, Served, Service,
    ServiceError, Status, UpscaleLimits,
};
use argus_protocols::{
    Answer, Features, Hotkey, HotkeyPair, ImageHashes, NsfwScores, Task, TaskKind,
    task::{Generation, Pictures},
};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

/// Prompts that mean something to [`Local`]; any other is a picture at once.
pub const GATED: &str = "gated: each step waits for a permit";
pub const FOREVER: &str = "forever: never ends";
pub const BUSY: &str = "busy: no capacity";
pub const LATE: &str = "late: timed out";
pub const BROKEN: &str = "broken: every miner failed";
pub const NUDE: &str = "nude: not safe for work";
pub const RETRIED: &str = "retried: the first miner fails";

pub struct Local {
    pub miner: Hotkey,
    /// One permit a step of a [`GATED`] picture.
    pub steps: Semaphore,
    /// What was asked, as it arrived.
    pub tasks: Mutex<Vec<Task>>,
    pub running: AtomicUsize,
    /// Most at the same time.
    pub peak: AtomicUsize,
    pub cancelled: AtomicUsize,
    /// Miners the cards speak of.
    pub miners: AtomicUsize,
}

/// Counts a call as cancelled unless it came to its end.
struct Call<'a> {
    local: &'a Local,
    ended: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.local.running.fetch_sub(1, Ordering::SeqCst);
        if !self.ended {
            self.local.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Local {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            miner: HotkeyPair::from_seed(&[7; 32]).hotkey(),
            steps: Semaphore::new(0),
            tasks: Mutex::default(),
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            miners: AtomicUsize::new(3),
        })
    }

    /// The tasks asked so far that make pictures from words.
    pub fn pictures(&self) -> Vec<Generation> {
        let tasks = self.tasks.lock();
        let pictures = tasks.iter().filter_map(|task| match task {
            Task::Generation(task) => Some(task.clone()),
            _ => None,
        });
        pictures.collect()
    }

    /// The embedding tasks asked so far.
    pub fn embeddings(&self) -> Vec<Pictures> {
        let tasks = self.tasks.lock();
        let embeddings = tasks.iter().filter_map(|task| match task {
            Task::ImageEmbedding(task) => Some(task.clone()),
            _ => None,
        });
        embeddings.collect()
    }

    async fn picture(
        &self,
        task: &Generation,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<Answer, ServiceError> {
        let step = |step| {
            let _ = progress.try_send(Progress::Step { step, of: task.steps });
        };
        match task.prompt.as_str() {
            BUSY => return Err(ServiceError::NoCapacity { retry_after: Duration::from_millis(6_500) }),
            LATE => return Err(ServiceError::TimedOut),
            BROKEN => return Err(ServiceError::Failed("3 miners were asked".into())),
            FOREVER => std::future::pending().await,
            RETRIED => {
                step(2);
                let _ = progress.try_send(Progress::Retrying { attempt: 2 });
            }
            _ => {}
        }
        let _ = progress.try_send(Progress::Queued { position: 1 });
        for done in 1..=task.steps {
            if task.prompt == GATED {
                self.steps.acquire().await.expect("never closed").forget();
            }
            step(done);
        }
        if task.prompt == NUDE {
            return Ok(Answer::Nsfw(features()));
        }
        Ok(Answer::Picture(png(task)))
    }
}

fn features() -> Features {
    Features {
        hashes: ImageHashes { average: 1, perceptual: 2, difference: 3, colour: 4 },
        clip: vec![1.0],
        nsfw: NsfwScores { drawing: 0.0, hentai: 0.1, neutral: 0.0, porn: 0.9, sexy: 0.0 },
    }
}

/// A disc whose colour follows from the seed.
fn png(task: &Generation) -> Vec<u8> {
    let colour = [task.seed as u8, (task.seed >> 8) as u8, (task.seed >> 16) as u8];
    let centre = (f64::from(task.width) / 2.0, f64::from(task.height) / 2.0);
    let picture = image::RgbImage::from_fn(task.width, task.height, |x, y| {
        let distance = (f64::from(x) - centre.0).hypot(f64::from(y) - centre.1);
        image::Rgb(if distance < centre.0 * 0.8 { colour } else { [245, 245, 240] })
    });
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

#[async_trait]
impl Service for Local {
    fn models(&self) -> Vec<ModelCard> {
        let miners = self.miners.load(Ordering::SeqCst) as u32;
        let size = Allowed { min: 64, max: 256, step: 64, default: 128 };
        vec![
            ModelCard {
                id: "local-disc".into(),
                description: "A disc in a colour of the seed".into(),
                license: "MIT".into(),
                created: 1_790_000_000,
                tasks: TaskKind::ALL.into_iter().filter(|task| task.is_generation()).collect(),
                generation: Some(GenerationLimits {
                    width: size,
                    height: size,
                    steps: Allowed { min: 1, max: 50, step: 1, default: 4 },
                    guidance: Allowed { min: 1.0, max: 15.0, step: 0.0, default: 7.0 },
                    strength: Allowed { min: 0.1, max: 1.0, step: 0.0, default: 0.6 },
                    prompt_bytes: 400,
                }),
                upscale: None,
                embedding_dimensions: None,
                work_units: 1.0,
                miners,
            },
            ModelCard {
                id: "local-mean".into(),
                description: "The mean colour".into(),
                license: "MIT".into(),
                created: 1_790_000_000,
                tasks: vec![TaskKind::ImageEmbedding, TaskKind::NsfwClassification],
                generation: None,
                upscale: None,
                embedding_dimensions: Some(3),
                work_units: 0.2,
                miners,
            },
            ModelCard {
                id: "local-grow".into(),
                description: "Larger pixels".into(),
                license: "MIT".into(),
                created: 1_790_000_000,
                tasks: vec![TaskKind::Upscale],
                generation: None,
                upscale: Some(UpscaleLimits { factors: vec![2, 4], max_edge: 512 }),
                embedding_dimensions: None,
                work_units: 0.5,
                miners,
            },
        ]
    }

    fn work(&self, task: &Task) -> Result<f64, ServiceError> {
        Ok(match task {
            Task::Generation(_) | Task::Upscale(_) => 1.0,
            Task::ImageEmbedding(asked) | Task::NsfwClassification(asked) => {
                0.2 * asked.pictures.len() as f64
            }
        })
    }

    async fn run(&self, task: Task, progress: mpsc::Sender<Progress>) -> Result<Served, ServiceError> {
        let begun = Instant::now();
        self.tasks.lock().push(task.clone());
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(running, Ordering::SeqCst);
        let mut call = Call { local: self, ended: false };
        let answer = match &task {
            Task::Generation(task) => self.picture(task, &progress).await,
            Task::ImageEmbedding(task) => {
                Ok(Answer::Embeddings(task.pictures.iter().map(|p| mean(p)).collect()))
            }
            Task::Upscale(task) => Ok(Answer::Picture(larger(&task.picture, task.factor))),
            Task::NsfwClassification(task) => {
                Ok(Answer::Classes(task.pictures.iter().map(|p| classes(p)).collect()))
            }
        };
        call.ended = true;
        Ok(Served { answer: answer?, miner: Some(self.miner), elapsed: begun.elapsed() })
    }

    fn status(&self) -> Status {
        let miner = |uid: u16, weight: f64, reachable: bool| MinerStatus {
            hotkey: HotkeyPair::from_seed(&[uid as u8 + 1; 32]).hotkey(),
            uid,
            reachable,
            models: vec!["local-disc".into()],
            score: reachable.then_some(1.0 + weight / 10.0),
            weight,
            answered: 40 + u64::from(uid),
            failed: u64::from(!reachable),
            latency_ms: reachable.then_some(700 + u64::from(uid) * 120),
        };
        Status {
            hotkey: Some(self.miner),
            netuid: 1,
            peers: 6,
            chain: ChainStatus { reachable: true, block: 1234, weights_block: Some(1200), error: None },
            miners: vec![
                miner(2, 0.52, true),
                miner(0, 0.33, true),
                miner(1, 0.15, true),
                miner(4, 0.0, false),
            ],
            period: Some(PeriodStatus {
                number: 17,
                ends_at_ms: argus::clock::unix_ms() + 95_000,
                scored: 121,
            }),
        }
    }
}

fn larger(png: &[u8], factor: u32) -> Vec<u8> {
    let picture = image::load_from_memory(png).expect("the gateway sends what decodes").into_rgb8();
    let picture = image::RgbImage::from_fn(picture.width() * factor, picture.height() * factor, |x, y| {
        *picture.get_pixel(x / factor, y / factor)
    });
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

/// Red is not safe for work.
fn classes(png: &[u8]) -> NsfwScores {
    let red = mean(png)[0];
    NsfwScores { drawing: 0.0, hentai: 0.0, neutral: 1.0 - red, porn: red, sexy: 0.0 }
}

fn mean(png: &[u8]) -> Vec<f32> {
    let picture = image::load_from_memory(png).expect("the gateway sends what decodes").into_rgb8();
    let pixels = picture.pixels().len() as f32;
    (0..3).map(|c| picture.pixels().map(|p| f32::from(p.0[c])).sum::<f32>() / pixels / 255.0).collect()
}
