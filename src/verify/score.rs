//! What an answer is worth beside its rivals' answers to the same request.
//!
//! The seed's rules (Vision, s = ¼) without its two mistakes: everything short of a right answer is capped
//! at 1 − s, so that being wrong together never pays, and a failure is 0.
//!
//! | answers | scores |
//! |---|---|
//! | all right | fastest 1 + s, slowest 1 − s, others 1; all 1 when the times are a tie |
//! | one right | 1 + s; the others as below |
//! | wrong | (1 − s) · similarity |
//! | failed | 0 |
//!
//! There is no floor under a wrong answer: one would pay noise more than an honest failure.

use std::time::Duration;

/// The highest score there is, with the default stake.
pub const HIGHEST: f32 = 1.25;

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scoring {
    /// What is won or lost head to head, s. Between 0 and ½.
    pub stake: f32,
    /// Times that differ by less than this share of the slower one are a tie. Two honest miners on equal
    /// hardware differ by scheduling alone, and that luck should not be paid.
    pub tie_share: f32,
    /// Times that differ by less than this are a tie: round trips differ by as much.
    pub tie_ms: u32,
}

impl Default for Scoring {
    fn default() -> Self {
        Self { stake: 0.25, tie_share: 0.1, tie_ms: 50 }
    }
}

/// What became of one rival's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Right,
    /// Similarity to the right answer, or to the rival's when there is no reference.
    Wrong {
        similarity: f32,
    },
    Failed,
}

/// One rival of a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    pub verdict: Verdict,
    /// From the query until the answer was there, as the validator measured it. Of a failure: unused.
    pub elapsed: Duration,
}

impl Scoring {
    /// The scores of a round, in the order of its entries: each between 0 and 1 + s.
    pub fn scores(&self, entries: &[Entry]) -> Vec<f32> {
        let right = || entries.iter().filter(|e| e.verdict == Verdict::Right);
        let fastest = right().map(|e| e.elapsed).min().unwrap_or_default();
        let slowest = right().map(|e| e.elapsed).max().unwrap_or_default();
        let rivals_right = right().count();
        entries
            .iter()
            .map(|entry| match entry.verdict {
                Verdict::Failed => 0.0,
                Verdict::Wrong { similarity } => (1.0 - self.stake) * similarity.clamp(0.0, 1.0),
                Verdict::Right if rivals_right == 1 && entries.len() > 1 => 1.0 + self.stake,
                Verdict::Right if self.is_tie(fastest, slowest) => 1.0,
                Verdict::Right if entry.elapsed == fastest => 1.0 + self.stake,
                Verdict::Right if entry.elapsed == slowest => 1.0 - self.stake,
                Verdict::Right => 1.0,
            })
            .collect()
    }

    fn is_tie(&self, fastest: Duration, slowest: Duration) -> bool {
        let share = slowest.mul_f32(self.tie_share);
        slowest - fastest <= share.max(Duration::from_millis(self.tie_ms.into()))
    }

    /// What is wrong with these settings, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        if !(0.0..=0.5).contains(&self.stake) {
            return Err(format!("scoring.stake is {}: give a number from 0 to 0.5", self.stake));
        }
        if !(0.0..1.0).contains(&self.tie_share) {
            return Err(format!("scoring.tie_share is {}: give a number from 0 to 1", self.tie_share));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(verdict: Verdict, ms: u64) -> Entry {
        Entry { verdict, elapsed: Duration::from_millis(ms) }
    }

    const WRONG: Verdict = Verdict::Wrong { similarity: 0.4 };

    #[test]
    fn head_to_head_as_the_seed_scores_it() {
        let scores = |entries: &[Entry]| Scoring::default().scores(entries);
        assert_eq!(scores(&[entry(Verdict::Right, 900), entry(Verdict::Right, 500)]), [0.75, 1.25]);
        assert_eq!(scores(&[entry(Verdict::Right, 900), entry(WRONG, 500)]), [1.25, 0.75 * 0.4]);
        assert_eq!(scores(&[entry(WRONG, 900), entry(WRONG, 500)]), [0.75 * 0.4, 0.75 * 0.4]);
        assert_eq!(scores(&[entry(Verdict::Right, 900), entry(Verdict::Failed, 0)]), [1.25, 0.0]);
        assert_eq!(scores(&[entry(Verdict::Failed, 0), entry(Verdict::Failed, 0)]), [0.0, 0.0]);
    }

    #[test]
    fn a_tie_in_time_pays_nobody_for_luck() {
        let scores = |a, b| Scoring::default().scores(&[entry(Verdict::Right, a), entry(Verdict::Right, b)]);
        assert_eq!(scores(1000, 1099), [1.0, 1.0]);
        assert_eq!(scores(1000, 1120), [1.25, 0.75]);
        assert_eq!(scores(10, 59), [1.0, 1.0]);
        assert_eq!(scores(10, 61), [1.25, 0.75]);
    }

    #[test]
    fn alone_there_is_nothing_to_win() {
        assert_eq!(Scoring::default().scores(&[entry(Verdict::Right, 900)]), [1.0]);
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let verdict = prop_oneof![
            Just(Verdict::Right),
            Just(Verdict::Failed),
            (-1.0f32..2.0).prop_map(|similarity| Verdict::Wrong { similarity }),
        ];
        (verdict, 0u64..100_000).prop_map(|(verdict, ms)| entry(verdict, ms))
    }

    proptest! {
        #[test]
        fn scores_stay_in_range_and_wrong_never_beats_right(entries in prop::collection::vec(any_entry(), 1..8)) {
            let scoring = Scoring::default();
            for (entry, score) in entries.iter().zip(scoring.scores(&entries)) {
                match entry.verdict {
                    Verdict::Right => prop_assert!((0.75..=HIGHEST).contains(&score)),
                    Verdict::Failed => prop_assert_eq!(score, 0.0),
                    Verdict::Wrong { .. } => prop_assert!((0.0..=0.75).contains(&score)),
                }
            }
        }
    }
}
