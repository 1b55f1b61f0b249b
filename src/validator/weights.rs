//! From standings to the weight vector, and from the vector to the chain.
//!
//! Two plain parts without I/O. [`vector`] splits the incentive over tasks and miners. [`Submission`] decides
//! when the newest vector goes out: not before the chain's rate limit allows it, again with growing pauses
//! while it fails, and never believed until the chain has included it. Whoever drives it writes the intent
//! to the store before the call, and tells what came of it.

use std::collections::{BTreeMap, BTreeSet};

use argus_protocols::{Hotkey, TaskKind};
use serde::{Deserialize, Serialize};

use super::period::{PeriodId, Periods};

/// A miner's share of all incentive; shares add up to 1.
pub type Shares = BTreeMap<Hotkey, f64>;

/// The weight vector by hotkey: inside each task standings are normalised, then tasks are added up by their
/// incentive share. A task in which nobody stands leaves its share to the others. Empty when nobody stands.
pub fn vector(periods: &Periods, incentive: &BTreeMap<TaskKind, f64>) -> Shares {
    let mut shares = Shares::new();
    for (&task, &incentive) in incentive {
        let standings = periods.standings(task);
        let sum: f64 = standings.values().sum();
        if sum > 0.0 {
            for (miner, standing) in standings {
                *shares.entry(miner).or_default() += incentive * standing / sum;
            }
        }
    }
    let sum: f64 = shares.values().sum();
    if sum <= 0.0 {
        return Shares::new();
    }
    shares.values_mut().for_each(|share| *share /= sum);
    shares
}

/// What the chain asks of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The least number of entries; fewer are filled up with zeros.
    pub min_entries: u16,
    /// The largest share of one entry, of 65535; 65535 is no limit.
    pub max_share: u16,
}

/// Turns shares into the chain's form: (uid, weight), the largest 65535, by uid. `uids` are the registered
/// neurons; a miner that left the chain falls out.
pub fn to_chain(shares: &Shares, uids: &BTreeMap<Hotkey, u16>, rules: Rules) -> Vec<(u16, u16)> {
    let mut by_uid: BTreeMap<u16, f64> = shares
        .iter()
        .filter_map(|(miner, &share)| Some((*uids.get(miner)?, share)))
        .filter(|&(_, share)| share > 0.0)
        .collect();
    if by_uid.is_empty() {
        return Vec::new();
    }
    cap_shares(&mut by_uid, f64::from(rules.max_share) / f64::from(u16::MAX));
    let largest = by_uid.values().copied().fold(0.0, f64::max);
    let scaled = |share: f64| ((share / largest * f64::from(u16::MAX)).round() as u16).max(1);
    let mut weights: BTreeMap<u16, u16> = by_uid.iter().map(|(&uid, &share)| (uid, scaled(share))).collect();
    let missing = usize::from(rules.min_entries).min(uids.len()).saturating_sub(weights.len());
    let fillers: Vec<u16> =
        uids.values().copied().filter(|uid| !weights.contains_key(uid)).take(missing).collect();
    weights.extend(fillers.into_iter().map(|uid| (uid, 0)));
    weights.into_iter().collect()
}

/// Cuts shares down to `limit` of their sum. The excess goes to those below it, by their shares. When the
/// limit is too low for so few entries, all become equal: there is no better vector.
fn cap_shares(shares: &mut BTreeMap<u16, f64>, limit: f64) {
    if limit * shares.len() as f64 <= 1.0 {
        if limit < 1.0 {
            shares.values_mut().for_each(|share| *share = 1.0);
        }
        return;
    }
    // Each round fixes at least one more entry at the limit.
    let mut fixed = BTreeSet::new();
    loop {
        let sum: f64 = shares.values().sum();
        let before = fixed.len();
        let over = |share: f64| share / sum > limit * (1.0 + 1e-9);
        fixed.extend(shares.iter().filter(|&(_, &share)| over(share)).map(|(&uid, _)| uid));
        if fixed.len() == before {
            return;
        }
        let free: f64 = shares.iter().filter(|(uid, _)| !fixed.contains(uid)).map(|(_, share)| share).sum();
        let cap = limit * free / (1.0 - limit * fixed.len() as f64);
        fixed.iter().for_each(|uid| {
            shares.insert(*uid, cap);
        });
    }
}

/// When a vector was included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Included {
    /// The last period it rests on.
    pub period: PeriodId,
    pub block: u64,
    /// The extrinsic's hash; empty when its inclusion was only seen by the chain's last update.
    pub hash: String,
    pub weights: Vec<(u16, u16)>,
}

/// What is written to the store before weights go to the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    pub period: PeriodId,
    /// The chain's newest block when the intent was made.
    pub block: u64,
    pub weights: Vec<(u16, u16)>,
    pub version_key: u64,
}

/// What the chain says about this validator, as of its newest block known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainView {
    pub block: u64,
    pub tempo: u64,
    /// Blocks that must lie between two weight sets.
    pub rate_limit: u64,
    pub version_key: u64,
    /// The block of this validator's last weight set that the chain knows; 0 when there was none.
    pub last_update: u64,
    /// Whether this validator is registered and may set weights.
    pub permitted: bool,
}

/// First pause after a failed attempt, milliseconds; doubled each time.
const RETRY_FIRST_MS: u64 = 2_000;
const RETRY_LONGEST_MS: u64 = 120_000;
/// Tempos without an included vector until the alarm.
const ALARM_TEMPOS: u64 = 2;
/// The view of the chain is refreshed within this many blocks.
const VIEW_LAG_BLOCKS: u64 = 20;

/// The way of vectors to the chain.
#[derive(Debug, Default)]
pub struct Submission {
    /// The newest closed period that a vector rests on.
    period: Option<PeriodId>,
    in_flight: bool,
    /// The last vector that went out and whose fate is not known.
    intent: Option<Intent>,
    included: Option<Included>,
    failures: u32,
    last_error: Option<String>,
    retry_at_ms: u64,
    /// The first block seen with something to say and nothing included since.
    waiting_since: Option<u64>,
}

impl Submission {
    /// As it was stored before a restart.
    pub fn restore(included: Option<Included>, intent: Option<Intent>) -> Self {
        let open = |intent: &Intent| included.as_ref().is_none_or(|i| i.period < intent.period);
        Self { intent: intent.filter(open), included, ..Self::default() }
    }

    /// A call whose fate is unknown (no answer in time, a kill) may have been included all the same. Nobody
    /// else can set our weights: when the chain knows newer ones than our intent is, it was. Returns what
    /// was found out, to be stored.
    pub fn observe(&mut self, chain: &ChainView) -> Option<Included> {
        let intent =
            self.intent.as_ref().filter(|intent| !self.in_flight && chain.last_update > intent.block)?;
        let Intent { period, weights, .. } = intent.clone();
        let included = Included { period, block: chain.last_update, hash: String::new(), weights };
        self.included(included.clone());
        Some(included)
    }

    /// A vector resting on this period can be made.
    pub fn offer(&mut self, period: PeriodId) {
        self.period = self.period.max(Some(period));
    }

    /// The period to send a vector for, if now is the time to.
    pub fn due(&mut self, chain: &ChainView, now_ms: u64) -> Option<PeriodId> {
        let period = self.period.filter(|p| self.included.as_ref().is_none_or(|i| i.period < *p))?;
        self.waiting_since = Some(self.waiting_since.map_or(chain.block, |since| since.min(chain.block)));
        // The block of our own inclusion may be a little newer than the view's; one far ahead is of a chain
        // that has been started anew since.
        let ours = self.included.as_ref().map(|i| i.block).filter(|b| *b <= chain.block + VIEW_LAG_BLOCKS);
        let last = ours.unwrap_or(0).max(chain.last_update);
        let limited = last != 0 && chain.block.saturating_sub(last) < chain.rate_limit;
        let due = chain.permitted && !self.in_flight && !limited && now_ms >= self.retry_at_ms;
        due.then_some(period)
    }

    /// The vector goes out.
    pub fn sent(&mut self, intent: Intent) {
        self.in_flight = true;
        self.intent = Some(intent);
    }

    pub fn included(&mut self, included: Included) {
        let period = self.included.as_ref().map_or(included.period, |i| i.period.max(included.period));
        *self =
            Self { period: self.period, included: Some(Included { period, ..included }), ..Self::default() };
    }

    pub fn failed(&mut self, error: String, now_ms: u64) {
        self.in_flight = false;
        let pause = RETRY_FIRST_MS.saturating_mul(1 << self.failures.min(16)).min(RETRY_LONGEST_MS);
        self.retry_at_ms = now_ms + pause;
        self.failures += 1;
        self.last_error = Some(error);
    }

    /// Whether vectors have not reached the chain for two tempos though there was something to say.
    pub fn alarm(&self, chain: &ChainView) -> bool {
        let waited = self.waiting_since.map_or(0, |since| chain.block.saturating_sub(since));
        chain.tempo > 0 && waited > ALARM_TEMPOS * chain.tempo.max(chain.rate_limit)
    }

    pub fn last_included(&self) -> Option<&Included> {
        self.included.as_ref()
    }

    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn in_flight(&self) -> bool {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{period, round::ScoreRow},
        *,
    };

    fn miner(n: u8) -> Hotkey {
        Hotkey::from_bytes([n; 32])
    }

    const ANY: Rules = Rules { min_entries: 0, max_share: u16::MAX };

    #[test]
    fn tasks_are_normalised_before_their_shares_are_added() {
        let mut periods = Periods::new(period::Settings { seconds: 10, kept: 3 });
        for _ in 0..3 {
            periods.add(&ScoreRow::right(0, TaskKind::TextToImage, miner(1), 1.0));
            periods.add(&ScoreRow::right(0, TaskKind::TextToImage, miner(2), 0.5));
            periods.add(&ScoreRow::right(0, TaskKind::ImageEmbedding, miner(2), 1.0));
        }
        periods.advance(10_000, &BTreeSet::new());
        let incentive = BTreeMap::from([(TaskKind::TextToImage, 0.6), (TaskKind::ImageEmbedding, 0.4)]);
        let shares = vector(&periods, &incentive);
        assert!((shares[&miner(1)] - 0.4).abs() < 1e-9);
        assert!((shares[&miner(2)] - 0.6).abs() < 1e-9);
        let alone = vector(&periods, &BTreeMap::from([(TaskKind::ImageEmbedding, 0.4)]));
        assert!((alone[&miner(2)] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn nobody_standing_gives_no_vector() {
        let periods = Periods::new(period::Settings::default());
        let shares = vector(&periods, &BTreeMap::from([(TaskKind::TextToImage, 1.0)]));
        assert!(shares.is_empty());
        assert!(to_chain(&shares, &BTreeMap::from([(miner(1), 0)]), ANY).is_empty());
    }

    #[test]
    fn the_chains_form_is_by_uid_with_the_largest_at_the_top() {
        let shares = Shares::from([(miner(1), 0.25), (miner(2), 0.5), (miner(3), 0.25)]);
        let uids = BTreeMap::from([(miner(1), 7), (miner(2), 3), (miner(9), 1)]);
        assert_eq!(to_chain(&shares, &uids, ANY), [(3, 65535), (7, 32768)]);
        let filled = Rules { min_entries: 3, ..ANY };
        assert_eq!(to_chain(&shares, &uids, filled), [(1, 0), (3, 65535), (7, 32768)]);
    }

    proptest! {
        #[test]
        fn no_entry_is_over_the_chains_largest_share(
            shares in prop::collection::vec(0.0001f64..1.0, 2..40), limit in 0.03f64..1.0
        ) {
            let count = shares.len();
            let mut shares: BTreeMap<u16, f64> = (0..).zip(shares).collect();
            let order: Vec<f64> = shares.values().copied().collect();
            cap_shares(&mut shares, limit);
            let sum: f64 = shares.values().sum();
            let allowed = limit.max(1.0 / count as f64) + 1e-6;
            for share in shares.values() {
                prop_assert!(share / sum <= allowed, "{share} of {sum} is over {limit}");
            }
            for (a, b) in order.iter().zip(order.iter().skip(1)).enumerate().map(|(i, _)| (i as u16, i as u16 + 1)) {
                if order[a as usize] >= order[b as usize] {
                    prop_assert!(shares[&a] >= shares[&b] - 1e-9, "the order changed");
                }
            }
        }
    }

    fn chain(block: u64) -> ChainView {
        ChainView { block, tempo: 10, rate_limit: 5, version_key: 0, last_update: 0, permitted: true }
    }

    fn intent(period: PeriodId, block: u64) -> Intent {
        Intent { period, block, weights: vec![(0, 65535)], version_key: 0 }
    }

    fn included(period: PeriodId, block: u64) -> Included {
        Included { period, block, hash: "0x00".into(), weights: vec![(0, 65535)] }
    }

    #[test]
    fn a_vector_goes_out_once_a_period_and_within_the_rate_limit() {
        let mut submission = Submission::default();
        assert_eq!(submission.due(&chain(100), 0), None);
        submission.offer(1);
        assert_eq!(submission.due(&chain(100), 0), Some(1));
        submission.sent(intent(1, 100));
        assert_eq!(submission.due(&chain(100), 0), None);
        submission.included(included(1, 101));
        submission.offer(1);
        assert_eq!(submission.due(&chain(110), 0), None);
        submission.offer(2);
        assert_eq!(submission.due(&chain(105), 0), None);
        assert_eq!(submission.due(&chain(106), 0), Some(2));
        assert_eq!(submission.due(&ChainView { permitted: false, ..chain(106) }, 0), None);
        assert_eq!(submission.due(&ChainView { last_update: 104, ..chain(106) }, 0), None);
    }

    #[test]
    fn failures_are_retried_with_growing_pauses_until_the_alarm() {
        let mut submission = Submission::default();
        submission.offer(1);
        let (mut now, mut pauses) = (0, Vec::new());
        for block in 100..120 {
            while submission.due(&chain(block), now).is_none() {
                now += 1_000;
            }
            submission.sent(intent(1, 100));
            submission.failed("no route".into(), now);
            pauses.push(submission.retry_at_ms - now);
        }
        assert_eq!(pauses[..4], [2_000, 4_000, 8_000, 16_000]);
        assert_eq!(pauses.last(), Some(&RETRY_LONGEST_MS));
        assert!(!submission.alarm(&chain(120)));
        assert!(submission.alarm(&chain(121)));
        submission.included(included(1, 121));
        assert!(!submission.alarm(&chain(200)));
    }

    #[test]
    fn a_chain_that_began_anew_does_not_block_weights() {
        let mut submission = Submission::restore(Some(included(3, 5_000)), None);
        submission.offer(4);
        assert_eq!(submission.due(&chain(2), 0), Some(4));
    }

    #[test]
    fn an_inclusion_that_nobody_heard_of_is_found_on_the_chain() {
        let mut submission = Submission::restore(None, Some(intent(4, 100)));
        assert_eq!(submission.observe(&chain(101)), None);
        let found = submission.observe(&ChainView { last_update: 101, ..chain(103) }).unwrap();
        assert_eq!((found.period, found.block), (4, 101));
        submission.offer(4);
        assert_eq!(submission.due(&chain(120), 0), None, "it is there already");
        let settled = Submission::restore(Some(included(4, 101)), Some(intent(4, 100)));
        assert!(settled.intent.is_none());
    }
}
