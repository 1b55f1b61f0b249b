//! Queries that this validator makes up: prompts from a Markov chain over captions, parameters drawn from
//! the model's own ranges, pictures to embed mixed from pictures made before.
//!
//! What is drawn depends on the random source alone, so that nobody can prepare answers.

use std::collections::BTreeMap;

use rand::{Rng, seq::IndexedRandom};

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

    /// A prompt of [`PROMPT_WORDS`] words and at most [`PROMPT_CHARACTERS`] bytes of ASCII.
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
