//! Queries that this validator makes up: prompts from a Markov chain over captions, parameters drawn from
//! the model's own ranges, pictures to embed mixed from pictures made before.
//!
//! What is drawn depends on the random source alone, so that nobody can prepare answers.

use std::collections::BTreeMap;

use argus_models::{ModelSpec, RgbPicture, registry::PictureLimits};
use argus_protocols::{
    Task, TaskKind,
    task::{ImageEmbedding, TextToImage},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::gallery::Gallery;
use crate::jobs::model_task;

/// Captions of everyday things, as the embedded model was trained on them.
const CAPTIONS: &str = include_str!("captions.txt");
/// Prompts are at most this long, as the seed's.
pub const PROMPT_CHARACTERS: usize = 80;
const PROMPT_WORDS: std::ops::RangeInclusive<usize> = 2..=12;

/// A Markov chain over words: which follow which in the captions, as often as they do.
pub struct Prompts {
    /// What follows a word; `None` is the end.
    follow: BTreeMap<&'static str, Vec<Option<&'static str>>>,
    first: Vec<&'static str>,
}

impl Prompts {
    pub fn new() -> Self {
        let mut prompts = Self { follow: BTreeMap::new(), first: Vec::new() };
        for caption in CAPTIONS.lines() {
            let words: Vec<&str> = caption.split_whitespace().collect();
            prompts.first.extend(words.first());
            for (i, word) in words.iter().enumerate() {
                prompts.follow.entry(word).or_default().push(words.get(i + 1).copied());
            }
        }
        prompts
    }

    /// A prompt of a few words and a bounded number of bytes of ASCII.
    pub fn draw(&self, rng: &mut impl Rng) -> String {
        loop {
            let prompt = self.walk(rng);
            if prompt.len() <= PROMPT_CHARACTERS && PROMPT_WORDS.contains(&prompt.split(' ').count()) {
                return prompt;
            }
        }
    }

    fn walk(&self, rng: &mut impl Rng) -> String {
        let mut word = *self.first.choose(rng).expect("there are captions");
        let mut prompt = word.to_owned();
        while let Some(Some(next)) = self.follow[word].choose(rng) {
            prompt.push(' ');
            prompt.push_str(next);
            word = next;
            if prompt.len() > PROMPT_CHARACTERS {
                break;
            }
        }
        prompt
    }
}

impl Default for Prompts {
    fn default() -> Self {
        Self::new()
    }
}

/// Draws the request of a synthetic round.
pub struct Synthesiser {
    prompts: Prompts,
    gallery: Mutex<Gallery>,
}

/// Pictures in one embedding request.
const PICTURES: std::ops::RangeInclusive<usize> = 1..=3;

impl Synthesiser {
    pub fn new() -> Self {
        Self { prompts: Prompts::new(), gallery: Mutex::default() }
    }

    /// A picture that was made, for later embedding requests.
    pub fn add(&self, picture: &RgbPicture) {
        self.gallery.lock().add(picture);
    }

    /// The request that `seed` stands for, within what the model allows. `None`: the model does not serve it.
    pub fn draw(&self, task: TaskKind, spec: &ModelSpec, seed: u64) -> Option<Task> {
        let mut rng = StdRng::seed_from_u64(seed);
        if !spec.serves(model_task(task)) {
            return None;
        }
        match task {
            TaskKind::TextToImage => Some(self.text_to_image(spec, spec.pictures.as_ref()?, &mut rng)),
            TaskKind::ImageEmbedding => {
                let gallery = self.gallery.lock();
                let count = rng.random_range(PICTURES);
                let pictures = (0..count).map(|_| gallery.draw(&mut rng).encode_png()).collect();
                Some(Task::ImageEmbedding(ImageEmbedding { model: spec.id.to_string(), pictures }))
            }
        }
    }

    fn text_to_image(&self, spec: &ModelSpec, limits: &PictureLimits, rng: &mut StdRng) -> Task {
        let edge = |rng: &mut StdRng| {
            let multiples =
                limits.size.min.div_ceil(limits.size.multiple_of)..=limits.size.max / limits.size.multiple_of;
            rng.random_range(multiples) * limits.size.multiple_of
        };
        // From half to all of the usual steps: enough that leaving some out saves time and shows.
        let usual = limits.steps.default;
        let steps = usual.div_ceil(2).max(limits.steps.min)..=usual;
        let guidance = limits.guidance.default.max(limits.guidance.min);
        let strongest = (guidance * 1.5).min(limits.guidance.max);
        Task::TextToImage(TextToImage {
            model: spec.id.to_string(),
            prompt: self.prompts.draw(rng),
            negative_prompt: String::new(),
            width: edge(rng),
            height: edge(rng),
            steps: rng.random_range(steps) as u32,
            guidance: rng.random_range(guidance..=strongest),
            seed: rng.random(),
        })
    }
}

impl Default for Synthesiser {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use argus_models::Registry;

    use super::*;

    #[test]
    fn prompts_are_short_various_and_of_known_words() {
        let prompts = Prompts::new();
        let mut rng = StdRng::seed_from_u64(1);
        let words: BTreeSet<&str> = CAPTIONS.split_whitespace().collect();
        let drawn: BTreeSet<String> = (0..1000).map(|_| prompts.draw(&mut rng)).collect();
        assert!(drawn.len() > 300, "{} of 1000 are different", drawn.len());
        for prompt in &drawn {
            assert!(prompt.len() <= PROMPT_CHARACTERS && prompt.is_ascii(), "{prompt}");
            assert!(prompt.split(' ').all(|word| words.contains(word)), "{prompt}");
        }
        let captions: BTreeSet<&str> = CAPTIONS.lines().collect();
        assert!(drawn.iter().any(|prompt| !captions.contains(prompt.as_str())), "none is new");
    }

    #[test]
    fn requests_are_what_the_registry_allows_and_told_by_the_seed() {
        let registry = Registry::from_toml(argus_models::registry::DEFAULT_REGISTRY).unwrap();
        let synthesiser = Synthesiser::new();
        for spec in registry.models() {
            for task in TaskKind::ALL {
                for seed in 0..50 {
                    let Some(drawn) = synthesiser.draw(task, spec, seed) else {
                        assert!(!spec.serves(model_task(task)));
                        continue;
                    };
                    assert_eq!((drawn.kind(), drawn.model()), (task, spec.id.as_str()));
                    assert_eq!(Task::from_bytes(&drawn.to_bytes()).unwrap(), drawn);
                    assert_eq!(synthesiser.draw(task, spec, seed).unwrap(), drawn);
                    if let Task::TextToImage(asked) = drawn {
                        let limits = spec.pictures.as_ref().unwrap();
                        assert!(limits.size.contains(asked.width) && limits.size.contains(asked.height));
                        assert!(limits.steps.contains(asked.steps as usize));
                        assert!(limits.guidance.contains(asked.guidance));
                    }
                }
            }
        }
    }
}
