//! Prompts from a Markov chain over captions.

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{SeedableRng, rngs::StdRng};

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
}
