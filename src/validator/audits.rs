//! Solo audits: whose queries go to one miner alone, how its answer is checked, and what that says of it.
//!
//! A plain state machine. An unpredictable share of synthetic queries has parameters that nobody else
//! receives, so that there is nothing to copy: the answer is held against this validator's own, or, for less,
//! some steps of the run that made it are taken again. Newcomers are audited more often, and whoever failed is
//! in doubt until enough audits in a row were passed; an audit that brings no answer is owed. Every draw comes from the validator's secret generator,
//! those of steps after the commitment.
//!
//! An audit stands for the answers that were not audited: one that fails voids 2/share of them, so that a
//! cheat pays for all that it did and not only for what was seen (`docs/verification.md` has the arithmetic).

use std::collections::{BTreeMap, BTreeSet};

use argus_protocols::{Commitment, Hotkey, limits};
use rand::{Rng, seq::index};
use serde::{Deserialize, Serialize};

use crate::verify::trajectory::DeviceTolerances;

/// The most steps that one challenge has room for, beside the first and the last state.
const STEPS_MOST: u32 = (limits::OPENED_STATES as u32 - 2) / 2;

/// Answers that each turn brings: as often as it is a miner's turn to be asked or audited, it is asked as
/// another's rival.
const ANSWERS_A_TURN: f64 = 2.0;
/// A failed audit stands for no more answers than at this share.
const LEAST_SHARE: f64 = 0.001;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The share of synthetic queries that go to one miner alone.
    pub share: f64,
    /// The same for miners that have not passed `newcomer_audits` yet.
    pub newcomer_share: f64,
    pub newcomer_audits: u32,
    /// The same for miners that failed one, until they passed `doubt_audits` in a row.
    pub doubt_share: f64,
    pub doubt_audits: u32,
    /// Steps that a trajectory audit takes again.
    pub steps: u32,
    /// The share of audits that are made in full although the miner committed to its trajectory.
    pub reproduced: f64,
    /// For models whose honest answers do not agree to the bit.
    pub tolerances: DeviceTolerances,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            share: 0.1,
            newcomer_share: 0.5,
            newcomer_audits: 5,
            doubt_share: 0.5,
            doubt_audits: 20,
            steps: 2,
            reproduced: 0.1,
            tolerances: DeviceTolerances::default(),
        }
    }
}

impl Settings {
    /// What is wrong with these settings, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        for (name, share) in [
            ("share", self.share),
            ("newcomer_share", self.newcomer_share),
            ("doubt_share", self.doubt_share),
            ("reproduced", self.reproduced),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("audits.{name} is {share}: give a share from 0 to 1"));
            }
        }
        if !(1..=STEPS_MOST).contains(&self.steps) {
            return Err(format!("audits.steps is {}: give 1 to {STEPS_MOST}", self.steps));
        }
        self.tolerances.validate().map_err(|wrong| format!("audits.{wrong}"))
    }
}

/// What a miner's audits showed, for the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    pub passed: u64,
    pub failed: u64,
    /// Audits to pass in a row until it is believed again.
    pub doubted_for: u32,
    /// Its last audit brought no answer, whatever the reason: the next query is one again.
    pub is_owing: bool,
}

/// How an answer is to be audited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// These steps of the run are taken again.
    Trajectory { commitment: Commitment, steps: Vec<u32> },
    /// The answer is made here.
    Reproduction,
}

#[derive(Debug)]
pub struct Audits {
    settings: Settings,
    records: BTreeMap<Hotkey, Record>,
}

impl Audits {
    pub fn new(settings: Settings) -> Self {
        Self { settings, records: BTreeMap::new() }
    }

    pub fn record(&self, miner: &Hotkey) -> Record {
        self.records.get(miner).copied().unwrap_or_default()
    }

    /// The share of a miner's synthetic queries that are audits.
    pub fn share(&self, miner: &Hotkey) -> f64 {
        let record = self.record(miner);
        if record.is_owing { 1.0 } else { self.share_of(&record) }
    }

    /// Without what is owed.
    fn share_of(&self, record: &Record) -> f64 {
        let Settings { share, newcomer_share, newcomer_audits, doubt_share, .. } = self.settings;
        if record.doubted_for > 0 {
            doubt_share.max(share)
        } else if record.passed < u64::from(newcomer_audits) {
            newcomer_share.max(share)
        } else {
            share
        }
    }

    /// Whether a miner's next query is an audit: then the number of answers that it stands for.
    pub fn draw(&self, miner: &Hotkey, rng: &mut impl Rng) -> Option<f64> {
        let stands_for = ANSWERS_A_TURN / self.share_of(&self.record(miner)).max(LEAST_SHARE);
        rng.random_bool(self.share(miner)).then_some(stands_for)
    }

    /// How to audit an answer. Called when it and its commitment have come, not before.
    pub fn method(&self, commitment: Option<Commitment>, rng: &mut impl Rng) -> Method {
        match commitment {
            Some(commitment) if !rng.random_bool(self.settings.reproduced) => {
                let (all, wanted) = (commitment.steps() as usize, self.settings.steps as usize);
                let drawn = index::sample(rng, all, wanted.min(all));
                let steps: BTreeSet<u32> = drawn.iter().map(|step| step as u32).collect();
                Method::Trajectory { commitment, steps: steps.into_iter().collect() }
            }
            _ => Method::Reproduction,
        }
    }

    /// An audit is over.
    pub fn settle(&mut self, miner: Hotkey, has_passed: bool) {
        let record = self.records.entry(miner).or_default();
        record.is_owing = false;
        if has_passed {
            record.passed += 1;
            record.doubted_for = record.doubted_for.saturating_sub(1);
        } else {
            record.failed += 1;
            record.doubted_for = self.settings.doubt_audits;
        }
    }

    /// An audit brought no answer: it was refused, or came to nothing on the way. That alone is no proof, so
    /// it is asked for again; who has nothing of its own to show is never asked for anything else.
    pub fn owe(&mut self, miner: Hotkey) {
        self.records.entry(miner).or_default().is_owing = true;
    }

    /// What an earlier life of this validator saw.
    pub fn restore(&mut self, miner: Hotkey, passed: u64, failed: u64) {
        let record = self.records.entry(miner).or_default();
        record.passed += passed;
        record.failed += failed;
        if failed > 0 {
            record.doubted_for = self.settings.doubt_audits;
        }
    }

    /// Forgets those who left the subnet.
    pub fn retain(&mut self, is_registered: impl Fn(&Hotkey) -> bool) {
        self.records.retain(|miner, _| is_registered(miner));
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::verify::trajectory::Tolerances;

    fn miner(n: u8) -> Hotkey {
        Hotkey::from_bytes([n; 32])
    }

    const RUN: Commitment = Commitment { root: [7; 32], states: 21 };

    #[test]
    fn newcomers_and_those_in_doubt_are_audited_more_often() {
        let mut audits = Audits::new(Settings::default());
        assert_eq!(audits.share(&miner(1)), 0.5);
        (0..5).for_each(|_| audits.settle(miner(1), true));
        assert_eq!(audits.share(&miner(1)), 0.1);
        audits.settle(miner(1), false);
        assert_eq!(audits.share(&miner(1)), 0.5);
        (0..19).for_each(|_| audits.settle(miner(1), true));
        assert_eq!((audits.share(&miner(1)), audits.record(&miner(1)).doubted_for), (0.5, 1));
        audits.settle(miner(1), true);
        assert_eq!(audits.share(&miner(1)), 0.1);
        // A restart forgets no doubt.
        let mut later = Audits::new(Settings::default());
        later.restore(miner(1), 25, 1);
        assert_eq!((later.share(&miner(1)), later.record(&miner(1)).doubted_for), (0.5, 20));
        later.retain(|_| false);
        assert_eq!(later.record(&miner(1)), Record::default());
    }

    #[test]
    fn an_audit_without_an_answer_is_asked_for_again() {
        let mut audits = Audits::new(Settings::default());
        audits.restore(miner(1), 100, 0);
        audits.owe(miner(1));
        let mut rng = StdRng::seed_from_u64(4);
        for _ in 0..20 {
            // It stands for as many answers as the one that was not answered.
            assert_eq!(audits.draw(&miner(1), &mut rng), Some(20.0));
        }
        audits.settle(miner(1), true);
        assert_eq!(audits.share(&miner(1)), 0.1);
    }

    #[test]
    fn the_share_that_is_drawn_is_the_share_that_was_set() {
        let mut audits = Audits::new(Settings::default());
        audits.restore(miner(1), 100, 0);
        let mut rng = StdRng::seed_from_u64(1);
        let drawn: Vec<f64> = (0..20_000).filter_map(|_| audits.draw(&miner(1), &mut rng)).collect();
        assert!((1_850..2_150).contains(&drawn.len()), "{}", drawn.len());
        // Together they stand for all answers.
        assert!(drawn.iter().all(|stands_for| *stands_for == 20.0));
    }

    #[test]
    fn every_step_is_drawn_alike_and_none_twice() {
        let audits = Audits::new(Settings { reproduced: 0.0, ..Settings::default() });
        let mut rng = StdRng::seed_from_u64(2);
        let mut seen = [0_u32; 20];
        for _ in 0..20_000 {
            let Method::Trajectory { steps, .. } = audits.method(Some(RUN), &mut rng) else { panic!() };
            assert!(steps.len() == 2 && steps[0] < steps[1]);
            steps.iter().for_each(|step| seen[*step as usize] += 1);
        }
        assert!(seen.iter().all(|count| (1_800..2_200).contains(count)), "{seen:?}");
        let short = Commitment { states: 2, ..RUN };
        let method = audits.method(Some(short), &mut rng);
        assert_eq!(method, Method::Trajectory { commitment: short, steps: vec![0] });
    }

    #[test]
    fn what_has_no_trajectory_is_reproduced_and_some_that_has() {
        let audits = Audits::new(Settings { reproduced: 0.25, ..Settings::default() });
        let mut rng = StdRng::seed_from_u64(3);
        assert_eq!(audits.method(None, &mut rng), Method::Reproduction);
        let mut reproduced = || audits.method(Some(RUN), &mut rng) == Method::Reproduction;
        let count = (0..4_000).filter(|_| reproduced()).count();
        assert!((850..1_150).contains(&count), "{count}");
    }

    #[test]
    fn settings_are_checked() {
        assert!(Settings::default().validate().is_ok());
        for wrong in [
            Settings { share: 1.1, ..Settings::default() },
            Settings { doubt_share: f64::NAN, ..Settings::default() },
            Settings { steps: 0, ..Settings::default() },
            Settings { steps: STEPS_MOST + 1, ..Settings::default() },
            Settings {
                tolerances: DeviceTolerances {
                    bf16: Tolerances { step: -1.0, ..Tolerances::BF16 },
                    ..DeviceTolerances::default()
                },
                ..Settings::default()
            },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }
}
