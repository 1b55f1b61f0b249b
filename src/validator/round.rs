//! One round: the same request to one or two miners, and how their answers become scores.
//!
//! Asking → comparing → (reference) → scored. Answers that disagree, and lone ones, are always settled by
//! this validator's own engine; answers that agree are checked against it now and then, so that two miners
//! who are wrong in the same way are found; withheld pictures always are.
//!
//! An audit is a round of one miner: asking → auditing, by a reference or by steps of its trajectory → scored,
//! 1 or 0.

use std::{sync::Arc, time::Duration};

use argus_protocols::{Commitment, Hotkey, SignedReceipt, TaskKind};
use serde::{Deserialize, Serialize};

use super::{
    period::PeriodId,
    select::{Failure, Held},
};
use crate::verify::{Comparison, Entry, Scoring, Verdict, trajectory::Finding};

/// Unique while the process lives.
pub type RoundId = u64;

/// Who wanted the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Synthetic,
    Organic,
    /// Asked of one miner alone, to be checked by this validator itself.
    Audit,
}

/// A score as it is stored, with the receipt that backs it beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreRow {
    pub period: PeriodId,
    /// Unix time, milliseconds.
    pub at_ms: u64,
    pub round: RoundId,
    pub origin: Origin,
    pub task: TaskKind,
    pub miner: Hotkey,
    pub score: f32,
    /// `right`, `wrong`, or the failure's label.
    pub verdict: String,
    /// Time to the answer; of a failure 0.
    pub elapsed_ms: u64,
    /// Answers that count for nothing since this failed audit stands for them.
    #[serde(default)]
    pub voids: f64,
}

impl ScoreRow {
    /// Whether there was no answer.
    pub fn is_failure(&self) -> bool {
        self.verdict != RIGHT && self.verdict != WRONG
    }

    /// A right answer of a synthetic round.
    #[cfg(test)]
    pub(super) fn right(period: PeriodId, task: TaskKind, miner: Hotkey, score: f32) -> Self {
        let verdict = RIGHT.to_owned();
        let (at_ms, round, elapsed_ms, voids) = (0, 0, 0, 0.0);
        Self {
            period,
            at_ms,
            round,
            origin: Origin::Synthetic,
            task,
            miner,
            score,
            verdict,
            elapsed_ms,
            voids,
        }
    }

    /// Whether an audit was passed; `None` for what is none, or brought no answer to audit.
    pub fn audit(&self) -> Option<bool> {
        match self.origin {
            Origin::Audit if self.verdict == RIGHT => Some(true),
            Origin::Audit if self.voids > 0.0 => Some(false),
            _ => None,
        }
    }
}

const RIGHT: &str = "right";
const WRONG: &str = "wrong";
/// The miner did not open what it committed to.
const UNOPENED: &str = "unopened";

/// A score on its way to the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    pub row: ScoreRow,
    /// The miner's word for its answer; of a failure there is none.
    pub receipt: Option<Arc<SignedReceipt>>,
}

/// An answer that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// From the query until the answer was there.
    pub elapsed: Duration,
    pub receipt: Arc<SignedReceipt>,
    /// What the receipt commits to.
    pub trajectory: Option<Commitment>,
}

/// How a query ended.
pub type Outcome = Result<Reply, Failure>;

#[derive(Clone, Debug, PartialEq)]
enum State {
    Pending,
    Answered(Reply),
    Failed(Failure),
    /// It could not answer and is not to blame.
    Excused,
}

#[derive(Clone, Debug)]
struct Contestant {
    miner: Hotkey,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    Comparing,
    Referencing,
    Auditing,
}

#[derive(Clone, Debug)]
pub struct Round {
    pub id: RoundId,
    pub origin: Origin,
    pub task: TaskKind,
    /// An organic answer that is not to be checked: only a failure is scored.
    pub unchecked: bool,
    /// Of an audit: how many answers a failure voids.
    pub stands_for: f64,
    pub started_ms: u64,
    contestants: Vec<Contestant>,
    stage: Stage,
}

/// What a round needs next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Wait,
    Compare,
    Reference,
    /// The only answer is to be audited, one way or the other.
    Audit {
        miner: Hotkey,
        commitment: Option<Commitment>,
    },
    /// Scores, in no order; a miner that was excused has none.
    Done(Vec<Scored>),
}

fn label(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Right => RIGHT,
        Verdict::Wrong { .. } => WRONG,
        Verdict::Failed => Failure::BadAnswer.label(),
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    pub miner: Hotkey,
    pub score: f32,
    pub verdict: &'static str,
    pub elapsed: Duration,
    pub receipt: Option<Arc<SignedReceipt>>,
    pub voids: f64,
}

impl Round {
    pub fn new(id: RoundId, origin: Origin, task: TaskKind, miners: &[Hotkey], now_ms: u64) -> Self {
        let contestants = miners.iter().map(|&miner| Contestant { miner, state: State::Pending }).collect();
        Self {
            id,
            origin,
            task,
            unchecked: false,
            stands_for: 0.0,
            started_ms: now_ms,
            contestants,
            stage: Stage::Asking,
        }
    }

    /// Miners whose answer is still awaited.
    pub fn pending(&self) -> impl Iterator<Item = Hotkey> + '_ {
        self.contestants.iter().filter(|c| c.state == State::Pending).map(|c| c.miner)
    }

    pub fn is_pending(&self, miner: &Hotkey) -> bool {
        self.pending().any(|pending| pending == *miner)
    }

    fn answered(&self) -> usize {
        self.contestants.iter().filter(|c| matches!(c.state, State::Answered(_))).count()
    }

    /// The miner that brought no answer to its audit, for whatever reason.
    pub fn unanswered_audit(&self) -> Option<Hotkey> {
        let silent = |c: &&Contestant| matches!(c.state, State::Failed(_) | State::Excused);
        let of_audit = self.contestants.iter().filter(|_| self.origin == Origin::Audit);
        of_audit.filter(silent).map(|c| c.miner).next()
    }

    /// A query of this round ended.
    pub fn record(&mut self, miner: &Hotkey, outcome: Outcome, held: Held) -> Next {
        let Some(contestant) =
            self.contestants.iter_mut().find(|c| c.miner == *miner && c.state == State::Pending)
        else {
            return Next::Wait;
        };
        contestant.state = match (outcome, held) {
            (Ok(reply), _) => State::Answered(reply),
            (Err(failure), Held::Against) => State::Failed(failure),
            (Err(_), Held::Excused) => State::Excused,
        };
        self.after_asking()
    }

    /// A query of this round was given up by whoever asked.
    pub fn abandon(&mut self, miner: &Hotkey) -> Next {
        self.contestants.retain(|c| c.miner != *miner);
        self.after_asking()
    }

    fn after_asking(&mut self) -> Next {
        if self.stage != Stage::Asking || self.pending().next().is_some() {
            return Next::Wait;
        }
        match self.answered() {
            0 => Next::Done(self.failures()),
            _ if self.unchecked => Next::Done(Vec::new()),
            1 => match self.only_answer().filter(|_| self.origin == Origin::Audit) {
                Some((miner, commitment)) => self.enter(Stage::Auditing, Next::Audit { miner, commitment }),
                None => self.enter(Stage::Referencing, Next::Reference),
            },
            _ => self.enter(Stage::Comparing, Next::Compare),
        }
    }

    fn only_answer(&self) -> Option<(Hotkey, Option<Commitment>)> {
        self.contestants.iter().find_map(|c| match &c.state {
            State::Answered(reply) => Some((c.miner, reply.trajectory)),
            _ => None,
        })
    }

    fn enter(&mut self, stage: Stage, next: Next) -> Next {
        self.stage = stage;
        next
    }

    /// The answers were compared with each other. `check`: look even when they agree.
    pub fn compared(&mut self, agree: bool, check: bool, scoring: &Scoring) -> Next {
        match self.stage {
            Stage::Comparing if agree && !check => Next::Done(self.scores(scoring, |_| Verdict::Right)),
            Stage::Comparing => self.enter(Stage::Referencing, Next::Reference),
            _ => Next::Wait,
        }
    }

    /// The audit is made by a reference.
    pub fn reproduce(&mut self) {
        if self.stage == Stage::Auditing {
            self.stage = Stage::Referencing;
        }
    }

    /// The audit by trajectory is over; `None`: it could not be made here, and nobody is judged.
    pub fn audited(&mut self, found: Option<Finding>, scoring: &Scoring) -> Next {
        if self.stage != Stage::Auditing {
            return Next::Wait;
        }
        let verdict = match found {
            None => return self.without_reference(),
            Some(Finding::Sound) => Verdict::Right,
            Some(Finding::False(_) | Finding::Unopened) => Verdict::Wrong { similarity: 0.0 },
        };
        let mut scores = self.scores(scoring, |_| verdict);
        if found == Some(Finding::Unopened) {
            scores.iter_mut().for_each(|scored| scored.verdict = UNOPENED);
        }
        Next::Done(scores)
    }

    /// The answers were compared with the reference; `None` for one that cannot be read.
    pub fn referenced(&mut self, found: &[(Hotkey, Option<Comparison>)], scoring: &Scoring) -> Next {
        if self.stage != Stage::Referencing {
            return Next::Wait;
        }
        let verdict = |miner: &Hotkey| match found.iter().find(|(of, _)| of == miner) {
            Some((_, Some(comparison))) if comparison.same => Verdict::Right,
            // In an audit nothing short of right is worth anything.
            Some((_, Some(_))) if self.origin == Origin::Audit => Verdict::Wrong { similarity: 0.0 },
            Some((_, Some(comparison))) => Verdict::Wrong { similarity: comparison.similarity },
            _ => Verdict::Failed,
        };
        Next::Done(self.scores(scoring, verdict))
    }

    /// There is no reference to be had: nobody who answered is judged.
    pub fn without_reference(&mut self) -> Next {
        Next::Done(self.failures())
    }

    fn failures(&self) -> Vec<Scored> {
        let failed = |c: &Contestant| match c.state {
            State::Failed(failure) => Some(Scored {
                miner: c.miner,
                score: 0.0,
                verdict: failure.label(),
                elapsed: Duration::ZERO,
                receipt: None,
                voids: 0.0,
            }),
            _ => None,
        };
        self.contestants.iter().filter_map(failed).collect()
    }

    fn scores(&self, scoring: &Scoring, verdict: impl Fn(&Hotkey) -> Verdict) -> Vec<Scored> {
        let rivals: Vec<(&Contestant, Entry)> = self
            .contestants
            .iter()
            .filter_map(|c| match &c.state {
                State::Answered(reply) => {
                    Some((c, Entry { verdict: verdict(&c.miner), elapsed: reply.elapsed }))
                }
                State::Failed(_) => Some((c, Entry { verdict: Verdict::Failed, elapsed: Duration::ZERO })),
                State::Pending | State::Excused => None,
            })
            .collect();
        let entries: Vec<Entry> = rivals.iter().map(|(_, entry)| *entry).collect();
        let scores = scoring.scores(&entries);
        rivals
            .iter()
            .zip(scores)
            .map(|((contestant, entry), score)| {
                let (verdict, receipt) = match (&contestant.state, entry.verdict) {
                    (State::Answered(reply), verdict) => (label(verdict), Some(reply.receipt.clone())),
                    (State::Failed(failure), _) => (failure.label(), None),
                    (State::Pending | State::Excused, _) => unreachable!("filtered out above"),
                };
                // An answer that failed its audit, as opposed to none.
                let is_false = receipt.is_some() && entry.verdict != Verdict::Right;
                let voids = if is_false { self.stands_for } else { 0.0 };
                Scored { miner: contestant.miner, score, verdict, elapsed: entry.elapsed, receipt, voids }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use argus_protocols::Signature;

    use super::*;

    const RUN: Commitment = Commitment { root: [7; 32], states: 21 };

    fn miner() -> Hotkey {
        Hotkey::from_bytes([1; 32])
    }

    /// An audit whose answer has come.
    fn audit(trajectory: Option<Commitment>) -> Round {
        let mut round = Round::new(1, Origin::Audit, TaskKind::TextToImage, &[miner()], 0);
        round.stands_for = 10.0;
        let receipt = Arc::new(SignedReceipt { receipt: Vec::new(), signature: Signature([0; 64]) });
        let reply = Reply { elapsed: Duration::from_secs(1), receipt, trajectory };
        let next = round.record(&miner(), Ok(reply), Held::Excused);
        assert_eq!(next, Next::Audit { miner: miner(), commitment: trajectory });
        round
    }

    /// Score, verdict and voided answers of a round's only contestant.
    fn outcome(next: Next) -> Option<(f32, &'static str, f64)> {
        let Next::Done(scored) = next else { panic!("{next:?}") };
        scored.first().map(|scored| (scored.score, scored.verdict, scored.voids))
    }

    #[test]
    fn an_audit_is_passed_or_worth_nothing() {
        let scoring = Scoring::default();
        let audited = |found| outcome(audit(Some(RUN)).audited(found, &scoring));
        assert_eq!(audited(Some(Finding::Sound)), Some((1.0, RIGHT, 0.0)));
        assert_eq!(audited(Some(Finding::False("another_step"))), Some((0.0, WRONG, 10.0)));
        assert_eq!(audited(Some(Finding::Unopened)), Some((0.0, UNOPENED, 10.0)));
        // This validator's own failure is nobody's fault.
        assert_eq!(audited(None), None);
    }

    #[test]
    fn an_audit_by_a_reference_knows_no_partial_credit() {
        let scoring = Scoring::default();
        let reproduced = |similarity, same| {
            let mut round = audit(None);
            round.reproduce();
            outcome(round.referenced(&[(miner(), Some(Comparison { same, similarity }))], &scoring))
        };
        assert_eq!(reproduced(1.0, true), Some((1.0, RIGHT, 0.0)));
        assert_eq!(reproduced(0.49, false), Some((0.0, WRONG, 10.0)));
        // An answer that is none fails like a wrong one.
        let mut round = audit(None);
        round.reproduce();
        let unusable = outcome(round.referenced(&[(miner(), None)], &scoring)).unwrap();
        assert_eq!((unusable.0, unusable.2), (0.0, 10.0));
        // The two ways do not mix.
        assert_eq!(audit(Some(RUN)).referenced(&[], &scoring), Next::Wait);
    }

    #[test]
    fn no_answer_is_no_proof_but_it_is_remembered() {
        let failed = |held| {
            let mut round = Round::new(1, Origin::Audit, TaskKind::TextToImage, &[miner()], 0);
            round.stands_for = 10.0;
            let next = round.record(&miner(), Err(Failure::TimedOut), held);
            (outcome(next), round.unanswered_audit())
        };
        assert_eq!(failed(Held::Against), (Some((0.0, "timed_out", 0.0)), Some(miner())));
        assert_eq!(failed(Held::Excused), (None, Some(miner())));
        assert_eq!(audit(None).unanswered_audit(), None);
    }
}
