//! What the validator's core is told and what it asks for.

use std::collections::BTreeMap;

use argus_protocols::{Capability, Challenge, Commitment, Hotkey, TaskKind};

use super::{
    period::{PeriodId, Tallies},
    round::{Outcome, RoundId, Score, ScoreRow},
    weights::{ChainView, Included, Intent, Rules},
};
use crate::verify::{Comparison, trajectory::Finding};

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A new view of the chain. `uids` are all neurons but this validator.
    Chain {
        view: ChainView,
        rules: Rules,
        uids: BTreeMap<Hotkey, u16>,
    },
    /// A lookup ended: the capabilities of a record that names a miner, `None` of another role's.
    LookedUp {
        miner: Hotkey,
        found: Result<Option<Vec<Capability>>, ()>,
    },
    /// A query ended.
    Answered {
        round: RoundId,
        miner: Hotkey,
        outcome: Outcome,
    },
    /// The client who wanted the answer went away.
    Abandoned {
        round: RoundId,
        miner: Hotkey,
    },
    /// `withheld`: one of the answers is the features of a picture that was kept back.
    Compared {
        round: RoundId,
        agree: bool,
        withheld: bool,
    },
    /// `None`: this validator's engine made no reference.
    Referenced {
        round: RoundId,
        found: Option<Vec<(Hotkey, Option<Comparison>)>>,
    },
    /// A trajectory audit is over; `None`: this validator's engine could not make it.
    Audited {
        round: RoundId,
        found: Option<Finding>,
    },
    Stored(Vec<Score>),
    NotStored(Vec<Score>),
    PeriodStored(PeriodId),
    PeriodNotStored(PeriodId),
    WeightsIncluded(Included),
    WeightsFailed(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    LookUp(Hotkey),
    /// Draw a request from `seed` and send it to all of `miners` at once.
    Ask {
        round: RoundId,
        task: TaskKind,
        model: String,
        miners: Vec<Hotkey>,
        seed: u64,
        /// Whether the miner is to be challenged afterwards, if it commits to a trajectory.
        is_audit: bool,
    },
    /// Compare the round's answers with each other.
    Compare(RoundId),
    /// Make the answer here and compare the round's answers with it.
    Reference(RoundId),
    /// Have the round's miner open the states of `challenge`, and take `steps` of its run again.
    Audit {
        round: RoundId,
        miner: Hotkey,
        commitment: Commitment,
        challenge: Challenge,
        steps: Vec<u32>,
    },
    /// Write the rows, each with its receipt.
    Store(Vec<Score>),
    /// Write a closed period; forget periods before `oldest` and what belongs to them.
    StorePeriod {
        period: PeriodId,
        tallies: Tallies,
        oldest: PeriodId,
    },
    /// The round is over: drop its answers. Comes after its [`Action::Store`].
    Forget(RoundId),
    /// Write the intent, then send the weights.
    SetWeights(Intent),
    /// The chain has weights of ours whose inclusion was not reported.
    StoreIncluded(Included),
    /// Weights have not reached the chain for two tempos.
    Alarm {
        blocks: u64,
    },
}

/// What to ask for an organic query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganicPick {
    pub round: RoundId,
    pub miner: Hotkey,
    /// Asked the same for comparison, off the client's path.
    pub rival: Option<Hotkey>,
    /// Whether the answers will be compared, so that they must be kept.
    pub checked: bool,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    pub rounds: u64,
    pub references: u64,
    /// Solo audits that came to a verdict.
    pub audits: u64,
    /// Of these, failed.
    pub audits_failed: u64,
    /// Trajectory audits begun.
    pub trajectories: u64,
    /// Steps taken again in them.
    pub steps_retaken: u64,
    /// Steps of the runs that they were about: what reproducing them would have taken.
    pub steps_audited: u64,
    /// Rounds in which the answers differed.
    pub disagreements: u64,
    /// Rounds that ended unjudged since no reference could be made.
    pub unjudged: u64,
    /// Rows given up because the disk stayed full too long.
    pub lost_rows: u64,
}

/// What the store knew at the start.
#[derive(Debug, Default)]
pub struct Restored {
    pub closed: BTreeMap<PeriodId, Tallies>,
    /// Scores of periods that are not among the closed ones.
    pub scores: Vec<ScoreRow>,
    pub included: Option<Included>,
    /// What was about to be sent to the chain.
    pub intent: Option<Intent>,
}
