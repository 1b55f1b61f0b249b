//! The validator's core against hundreds of simulated miners: a discrete-event simulation in which one seed
//! decides everything. A failure names its seed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use argus_protocols::{Capability, Commitment, Reason, Signature, SignedReceipt};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::{
        period::{self, Tallies},
        round::{Reply, Score, ScoreRow},
        weights::Included,
    },
    *,
};
use crate::verify::{Comparison, score::HIGHEST, trajectory::Finding};

const MODEL: &str = "simulated";
/// Steps of a picture.
const RUN: u32 = 20;
const TICK_MS: u64 = 500;
const BLOCK_MS: u64 = 12_000;
const START_MS: u64 = 1_700_000_123_000;

/// What a miner does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Habit {
    Honest {
        mean_ms: u64,
    },
    /// Noise, at once.
    Noise,
    /// A picture made before, of another seed.
    Cached,
    /// Half the steps in half the time.
    FewerSteps,
    /// The same wrong answer as the other colluders.
    Colluding,
    /// Hands on what a rival answers, and has no device of its own.
    Relaying,
    /// The same, but busy when there is nothing to hand on.
    Declining,
    /// Takes so many of the [`RUN`] steps without asking the network.
    Skipping {
        skipped: u32,
    },
    Dead,
    /// Answers three of ten, and lets the others time out.
    Flaky,
    AlwaysBusy,
    /// Honest, but refuses as an unknown validator for the first while.
    LateToHear,
}

/// What a simulated answer is: two are the same if their `content` is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Answer {
    content: u64,
    similarity: f32,
}

const RIGHT: Answer = Answer { content: 0, similarity: 1.0 };

impl Habit {
    fn is_cheat(self) -> bool {
        CHEATS.contains(&self)
    }

    /// Whether any of these steps is among those that it skips.
    fn skips(self, steps: &[u32]) -> bool {
        matches!(self, Habit::Skipping { skipped } if steps.iter().any(|step| *step < skipped))
    }

    fn commits(self) -> bool {
        !matches!(self, Habit::Relaying | Habit::Declining)
    }

    /// `alone`: nobody else got the request.
    fn act(self, since_start_ms: u64, alone: bool, rng: &mut StdRng) -> (u64, Result<Answer, Failure>) {
        let unique = rng.random_range(2..u64::MAX);
        let wrong = |similarity| Ok(Answer { content: unique, similarity });
        match self {
            Habit::Honest { mean_ms } => (rng.random_range(mean_ms * 9 / 10..mean_ms * 11 / 10), Ok(RIGHT)),
            Habit::LateToHear if since_start_ms < 5_000 => (5, Err(Failure::Rejected(Reason::Unauthorised))),
            Habit::LateToHear => (rng.random_range(1_800..2_200), Ok(RIGHT)),
            // The rival's answer; where there is none to copy, something.
            Habit::Relaying if alone => (2_000, wrong(0.1)),
            Habit::Declining if alone => (20, Err(Failure::Busy { retry_after_ms: 1_000 })),
            Habit::Relaying | Habit::Declining => (rng.random_range(1_900..2_300), Ok(RIGHT)),
            // So well that its picture passes for the right one, in less time.
            Habit::Skipping { skipped } => (2_000 * u64::from(RUN - skipped) / u64::from(RUN), Ok(RIGHT)),
            Habit::Noise => (50, wrong(rng.random_range(0.0..0.02))),
            Habit::Cached => (20, wrong(rng.random_range(0.0..0.2))),
            Habit::FewerSteps => (1_000, wrong(rng.random_range(0.2..0.49))),
            Habit::Colluding => (100, Ok(Answer { content: 1, similarity: 0.1 })),
            Habit::Dead => (100, Err(Failure::Unreachable)),
            Habit::Flaky if rng.random_bool(0.3) => (2_000, Ok(RIGHT)),
            Habit::Flaky => (20_000, Err(Failure::TimedOut)),
            Habit::AlwaysBusy => (5, Err(Failure::Busy { retry_after_ms: 1_000 })),
        }
    }
}

/// What outlives a restart.
#[derive(Default)]
struct Disk {
    rows: BTreeMap<PeriodId, Vec<ScoreRow>>,
    receipts: usize,
    periods: BTreeMap<PeriodId, Tallies>,
    included: Option<Included>,
    intent: Option<Intent>,
    full: bool,
}

impl Disk {
    fn restored(&self) -> Restored {
        let open = |(period, rows): (&PeriodId, &Vec<ScoreRow>)| {
            (!self.periods.contains_key(period)).then(|| rows.clone())
        };
        Restored {
            closed: self.periods.clone(),
            scores: self.rows.iter().filter_map(open).flatten().collect(),
            included: self.included.clone(),
            intent: self.intent.clone(),
        }
    }
}

struct Simulation {
    seed: u64,
    rng: StdRng,
    settings: Settings,
    core: Core,
    now_ms: u64,
    /// (time, order, life of the process, event)
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, (u32, Event)>,
    order: u64,
    life: u32,
    miners: BTreeMap<Hotkey, Habit>,
    answers: BTreeMap<(RoundId, Hotkey), Answer>,
    asked: BTreeMap<Hotkey, u64>,
    /// Whether the query that is being sent goes to nobody else.
    alone: bool,
    disk: Disk,
    chain_down: bool,
    alarms: usize,
    weight_sets: Vec<Included>,
    /// The chance of a client's query at each tick.
    clients: f64,
    /// Clients' queries by the habit of the miner that was picked.
    served: BTreeMap<Habit, u64>,
}

impl Simulation {
    fn new(seed: u64, settings: Settings, habits: &[Habit]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let miners = habits.iter().map(|&habit| (Hotkey::from_bytes(rng.random()), habit)).collect();
        let core = Core::new(settings.clone(), rng.random(), Restored::default());
        let mut simulation = Self {
            seed,
            rng,
            settings,
            core,
            now_ms: START_MS,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            order: 0,
            life: 0,
            miners,
            answers: BTreeMap::new(),
            asked: BTreeMap::new(),
            alone: false,
            disk: Disk::default(),
            chain_down: false,
            alarms: 0,
            weight_sets: Vec::new(),
            clients: 0.0,
            served: BTreeMap::new(),
        };
        simulation.boot();
        simulation
    }

    fn boot(&mut self) {
        self.schedule(0, Event::Tick);
        let chain = self.chain_event();
        self.schedule(0, chain);
    }

    /// As after `kill -9`: only what was stored is left.
    fn restart(&mut self) {
        self.life += 1;
        self.answers.clear();
        self.core = Core::new(self.settings.clone(), self.rng.random(), self.disk.restored());
        self.boot();
    }

    fn schedule(&mut self, after_ms: u64, event: Event) {
        self.queue.push(Reverse((self.now_ms + after_ms, self.order)));
        self.events.insert(self.order, (self.life, event));
        self.order += 1;
    }

    fn chain_event(&self) -> Event {
        let view = ChainView {
            block: (self.now_ms - START_MS) / BLOCK_MS + 1,
            tempo: 10,
            rate_limit: 5,
            version_key: 0,
            last_update: self.weight_sets.last().map_or(0, |i| i.block),
            permitted: true,
        };
        let uids = self.miners.keys().copied().zip(1..).collect();
        Event::Chain { view, rules: Rules { min_entries: 1, max_share: u16::MAX }, uids }
    }

    fn run_until(&mut self, end_ms: u64) {
        while let Some(&Reverse((at, order))) = self.queue.peek() {
            if at > end_ms {
                break;
            }
            self.queue.pop();
            let (life, event) = self.events.remove(&order).unwrap();
            if life != self.life {
                continue;
            }
            self.now_ms = at;
            match &event {
                Event::Tick => {
                    self.schedule(TICK_MS, Event::Tick);
                    if self.rng.random_bool(self.clients) {
                        self.ask_as_client();
                    }
                }
                Event::Chain { .. } => {
                    let next = self.chain_event();
                    self.schedule(BLOCK_MS, next);
                }
                _ => {}
            }
            // The view as it is now, not as it was when it was scheduled.
            let event = if matches!(event, Event::Chain { .. }) { self.chain_event() } else { event };
            for action in self.core.handle(event, at) {
                self.act(action);
            }
        }
        self.now_ms = end_ms;
        self.check_always();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::LookUp(miner) => {
                let capability = Capability {
                    model: MODEL.into(),
                    tasks: TaskKind::ALL.map(TaskKind::code).to_vec(),
                    work_units_per_second: 1.0,
                    concurrency: 2,
                };
                self.schedule(20, Event::LookedUp { miner, found: Ok(Some(vec![capability])) });
            }
            Action::Ask { round, miners, .. } => {
                self.alone = miners.len() == 1;
                miners.into_iter().for_each(|miner| self.ask(round, miner));
                self.alone = false;
            }
            Action::Audit { round, miner, steps, .. } => {
                let right = self.answers.get(&(round, miner)).is_some_and(|answer| answer.content == 0);
                let skipped = self.miners[&miner].skips(&steps);
                let found = match right && !skipped {
                    true => Finding::Sound,
                    false if self.rng.random_bool(0.5) => Finding::Unopened,
                    false => Finding::False("simulated"),
                };
                // Now and then this validator's own engine fails.
                let found = (!self.rng.random_bool(0.01)).then_some(found);
                self.schedule(200, Event::Audited { round, found });
            }
            Action::Compare(round) => {
                let answers = self.answers_of(round);
                let agree = answers.windows(2).all(|pair| pair[0].1.content == pair[1].1.content);
                self.schedule(50, Event::Compared { round, agree, withheld: false });
            }
            Action::Reference(round) => {
                let compare = |answer: Answer| {
                    let same = answer.content == RIGHT.content;
                    Some(Comparison { same, similarity: answer.similarity })
                };
                let found = self.answers_of(round).into_iter().map(|(m, a)| (m, compare(a))).collect();
                // Now and then this validator's own engine fails.
                let found = (!self.rng.random_bool(0.01)).then_some(found);
                self.schedule(800, Event::Referenced { round, found });
            }
            Action::Store(scores) if self.disk.full => self.schedule(5, Event::NotStored(scores)),
            Action::Store(scores) => {
                for Score { row, receipt } in &scores {
                    let range = format!("seed {}: a score of {}", self.seed, row.score);
                    assert!((0.0..=HIGHEST).contains(&row.score), "{range}");
                    let answered = ["right", "wrong", "unopened"].contains(&row.verdict.as_str());
                    assert_eq!(receipt.is_some(), answered, "seed {}: {row:?}", self.seed);
                    self.disk.receipts += usize::from(receipt.is_some());
                    self.disk.rows.entry(row.period).or_default().push(row.clone());
                }
                self.schedule(5, Event::Stored(scores));
            }
            Action::StorePeriod { period, .. } if self.disk.full => {
                self.schedule(5, Event::PeriodNotStored(period))
            }
            Action::StorePeriod { period, tallies, oldest } => {
                self.disk.periods.insert(period, tallies);
                self.disk.periods = self.disk.periods.split_off(&oldest);
                self.disk.rows = self.disk.rows.split_off(&oldest);
                self.schedule(5, Event::PeriodStored(period));
            }
            Action::Forget(round) => self.answers.retain(|(of, _), _| *of != round),
            Action::SetWeights(intent) => self.set_weights(intent),
            Action::StoreIncluded(included) => self.disk.included = Some(included),
            Action::Alarm { .. } => self.alarms += 1,
        }
    }

    fn ask(&mut self, round: RoundId, miner: Hotkey) {
        *self.asked.entry(miner).or_default() += 1;
        let habit = self.miners[&miner];
        let (after, answer) = habit.act(self.now_ms - START_MS, self.alone, &mut self.rng);
        let receipt = SignedReceipt { receipt: Vec::new(), signature: Signature([0; 64]) };
        let outcome = answer.map(|answer| {
            self.answers.insert((round, miner), answer);
            let trajectory = habit.commits().then_some(Commitment { root: [0; 32], states: RUN + 1 });
            Reply { elapsed: Duration::from_millis(after), receipt: Arc::new(receipt), trajectory }
        });
        self.schedule(after, Event::Answered { round, miner, outcome });
    }

    /// A client's query; one in ten clients goes away at once.
    fn ask_as_client(&mut self) {
        let picked = self.core.organic(TaskKind::TextToImage, MODEL, &BTreeSet::new(), self.now_ms);
        let Ok(OrganicPick { round, miner, rival, .. }) = picked else { return };
        if self.rng.random_bool(0.1) {
            self.schedule(0, Event::Abandoned { round, miner });
        } else {
            self.ask(round, miner);
        }
        *self.served.entry(self.miners[&miner]).or_default() += 1;
        if let Some(rival) = rival {
            self.ask(round, rival);
        }
    }

    fn answers_of(&self, round: RoundId) -> Vec<(Hotkey, Answer)> {
        self.answers.iter().filter(|((of, _), _)| *of == round).map(|((_, m), a)| (*m, *a)).collect()
    }

    fn set_weights(&mut self, intent: Intent) {
        self.disk.intent = Some(intent.clone());
        if self.chain_down || self.rng.random_bool(0.2) {
            self.schedule(3_000, Event::WeightsFailed("simulated".into()));
            return;
        }
        let Intent { period, block, weights, .. } = intent;
        let included = Included { period, block: block + 1, hash: String::new(), weights };
        if let Some(last) = self.weight_sets.last() {
            assert!(included.block >= last.block + 5, "seed {}: the rate limit was broken", self.seed);
        }
        self.weight_sets.push(included.clone());
        if self.rng.random_bool(0.2) {
            self.schedule(BLOCK_MS, Event::WeightsFailed("its fate is unknown".into()));
            return;
        }
        self.disk.included = Some(included.clone());
        self.schedule(BLOCK_MS, Event::WeightsIncluded(included));
    }

    fn check_always(&self) {
        let seed = self.seed;
        assert!(self.core.rounds() <= ROUNDS, "seed {seed}: {} rounds", self.core.rounds());
        let sum: f64 = self.core.shares().values().sum();
        assert!(sum == 0.0 || (sum - 1.0).abs() < 1e-9, "seed {seed}: shares add up to {sum}");
        assert!(self.answers.len() <= 2 * ROUNDS, "seed {seed}: answers are kept");
    }

    fn end_of_period(&self, after: u64) -> u64 {
        let length = u64::from(self.settings.periods.seconds) * 1000;
        (START_MS / length + 1 + after) * length
    }

    fn share(&self, shares: &Shares, miner: &Hotkey) -> f64 {
        shares.get(miner).copied().unwrap_or(0.0)
    }

    fn assert_cheats_are_below(&self, when: &str) {
        let shares = self.core.shares();
        let of = |cheat: bool| {
            let chosen = self.miners.iter().filter(move |(_, habit)| habit.is_cheat() == cheat);
            let chosen = chosen.filter(|(_, habit)| **habit != Habit::Flaky);
            chosen.map(|(miner, habit)| (self.share(&shares, miner), *habit)).collect::<Vec<_>>()
        };
        let honest = of(false).into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let cheat = of(true).into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, Habit::Dead));
        let seed = self.seed;
        assert!(cheat.0 < honest.0, "seed {seed}, {when}: {cheat:?} is not below {honest:?}");
    }
}

fn settings(seconds: u32) -> Settings {
    let task =
        |task, incentive, interval_ms| TaskSettings { task, model: MODEL.into(), incentive, interval_ms };
    Settings {
        tasks: vec![task(TaskKind::TextToImage, 0.7, 1_000), task(TaskKind::ImageEmbedding, 0.3, 2_000)],
        periods: period::Settings { seconds, kept: 5 },
        checked_agreements: 0.1,
        ..Settings::default()
    }
}

const CHEATS: [Habit; 6] =
    [Habit::Noise, Habit::Cached, Habit::FewerSteps, Habit::Colluding, Habit::Dead, Habit::AlwaysBusy];

/// `honest` of equal hardware, `each` of every cheat.
fn population(honest: usize, each: usize) -> Vec<Habit> {
    let cheats = CHEATS.into_iter().flat_map(|cheat| std::iter::repeat_n(cheat, each));
    let flaky = std::iter::repeat_n(Habit::Flaky, each);
    std::iter::repeat_n(Habit::Honest { mean_ms: 2_000 }, honest).chain(flaky).chain(cheats).collect()
}

#[test]
fn cheats_end_below_every_honest_miner_after_the_first_full_period() {
    for seed in 0..6 {
        let mut simulation = Simulation::new(seed, settings(1200), &population(200, 8));
        simulation.run_until(simulation.end_of_period(1) + 40_000);
        simulation.assert_cheats_are_below("after the first full period");
        simulation.run_until(simulation.end_of_period(4) + 40_000);
        simulation.assert_cheats_are_below("after four periods");
        assert!(!simulation.weight_sets.is_empty(), "seed {seed}: no weights went out");
    }
}

#[test]
fn nobody_starves_and_equal_miners_are_paid_about_equally() {
    for seed in 10..14 {
        let mut simulation = Simulation::new(seed, settings(1200), &population(64, 4));
        simulation.run_until(simulation.end_of_period(4) + 40_000);
        let shares = simulation.core.shares();
        let equal = |habit: &Habit| matches!(habit, Habit::Honest { .. });
        let honest = || simulation.miners.iter().filter(|(_, habit)| equal(habit)).map(|(m, _)| *m);
        let asked = honest().map(|m| simulation.asked.get(&m).copied().unwrap_or(0));
        let (least, most) = asked.fold((u64::MAX, 0), |(l, m), n| (l.min(n), m.max(n)));
        assert!(least > 40 && most < 2 * least, "seed {seed}: asked {least} to {most} times");
        let paid = honest().map(|m| simulation.share(&shares, &m));
        let (low, high) = paid.fold((f64::MAX, 0.0f64), |(l, h), s| (l.min(s), h.max(s)));
        assert!(high < 1.35 * low, "seed {seed}: equal miners are paid {low} to {high}");
    }
}

#[test]
fn restarts_and_a_full_disk_lose_nothing_that_counted() {
    for seed in 20..26 {
        let mut simulation = Simulation::new(seed, settings(300), &population(40, 2));
        for _ in 0..12 {
            let pause = simulation.rng.random_range(30_000..250_000);
            simulation.run_until(simulation.now_ms + pause);
            let before: Vec<_> = TaskKind::ALL.map(|t| simulation.core.periods().standings(t)).into();
            let counted = simulation.core.periods().open().clone();
            simulation.disk.full = simulation.rng.random_bool(0.3);
            if simulation.disk.full {
                continue;
            }
            simulation.restart();
            let after: Vec<_> = TaskKind::ALL.map(|t| simulation.core.periods().standings(t)).into();
            // Closed periods stand as they stood; of the open ones the disk may know more than was counted.
            for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
                assert_eq!(before.0, after.0, "seed {seed}");
                assert!((before.1 - after.1).abs() < 1e-6, "seed {seed}: {before:?} became {after:?}");
            }
            for (period, tallies) in counted {
                let now = &simulation.core.periods().open()[&period];
                for (key, tally) in tallies {
                    assert!(now[&key].count >= tally.count, "seed {seed}: scores of {period} were lost");
                }
            }
        }
        simulation.disk.full = false;
        simulation.run_until(simulation.now_ms + 700_000);
        simulation.assert_cheats_are_below("after twelve restarts and pauses");
        assert_eq!(simulation.core.counters().lost_rows, 0);
    }
}

#[test]
fn the_same_seed_replays_the_same_run() {
    let run = |seed| {
        let mut simulation = Simulation::new(seed, settings(300), &population(40, 2));
        simulation.run_until(START_MS + 900_000);
        let shares: Vec<_> = simulation.core.shares().into_iter().collect();
        (shares, simulation.order, simulation.disk.receipts)
    };
    assert_eq!(run(30), run(30));
    assert_ne!(run(30).0, run(31).0);
}

#[test]
fn a_chain_that_refuses_weights_raises_the_alarm_and_gets_them_in_the_end() {
    let mut simulation = Simulation::new(40, settings(120), &population(10, 1));
    simulation.chain_down = true;
    simulation.run_until(START_MS + 240_000);
    assert!(simulation.weight_sets.is_empty());
    simulation.run_until(START_MS + 240_000 + 25 * BLOCK_MS);
    assert!(simulation.alarms > 0, "two tempos passed without weights");
    simulation.chain_down = false;
    simulation.run_until(simulation.now_ms + 300_000);
    assert!(!simulation.weight_sets.is_empty());
    assert!(!simulation.core.submission().alarm(simulation.core.chain()));
}

#[test]
fn miners_that_hear_late_of_a_permit_are_excused() {
    let mut habits = population(20, 0);
    habits.push(Habit::LateToHear);
    let mut simulation = Simulation::new(50, settings(300), &habits);
    simulation.run_until(simulation.end_of_period(1) + 40_000);
    let failures = |h: &Hotkey| simulation.core.miners().get(h).unwrap().failures().clone();
    let late = simulation.miners.iter().find(|(_, h)| **h == Habit::LateToHear).unwrap().0;
    let zeros = simulation.disk.rows.values().flatten().filter(|r| r.miner == *late && r.score == 0.0);
    assert_eq!(zeros.count(), 0, "{:?}", failures(late));
}

#[test]
fn when_everybody_is_unreachable_nobody_is_blamed() {
    let mut simulation = Simulation::new(60, settings(300), &[Habit::Dead; 12]);
    simulation.run_until(START_MS + 120_000);
    assert!(simulation.asked.values().sum::<u64>() > 12);
    assert!(simulation.disk.rows.is_empty(), "this node may be the one that is offline");
}

#[test]
fn clients_get_honest_miners_and_leave_nothing_behind() {
    for seed in 70..74 {
        let mut simulation = Simulation::new(seed, settings(300), &population(40, 3));
        simulation.clients = 0.8;
        simulation.run_until(simulation.end_of_period(1));
        simulation.served.clear();
        simulation.run_until(simulation.end_of_period(3));
        let all: u64 = simulation.served.values().sum();
        let cheated: u64 = CHEATS.iter().filter_map(|cheat| simulation.served.get(cheat)).sum();
        assert!(all > 500 && cheated * 50 < all, "seed {seed}: {:?}", simulation.served);
        simulation.clients = 0.0;
        simulation.core.settings.synthetic = false;
        simulation.run_until(simulation.now_ms + 120_000);
        assert_eq!(simulation.core.rounds(), 0, "seed {seed}: rounds never end");
        assert!(
            simulation.core.miners().iter().all(|(_, m)| m.in_flight() == 0),
            "seed {seed}: queries never end"
        );
        assert!(simulation.answers.is_empty(), "seed {seed}: answers are kept");
    }
}

#[path = "simulation_audits.rs"]
mod audits;
