//! What a validator tells Prometheus. No peers and no hotkeys in labels.

use std::time::Duration;

use argus_protocols::TaskKind;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::core::{Core, Event};

type Labels = [(&'static str, &'static str); 1];

pub(super) struct Metrics {
    answers: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    scores: Family<Labels, Counter>,
    unstored: Counter,
    weight_sets: Counter,
    weight_failures: Counter,
    alarms: Counter,
    served: Counter,
    not_served: Counter,
    trajectories: Family<Labels, Counter>,
    audit_seconds: Histogram,
    answer_seconds: Histogram,
    served_seconds: Histogram,
    rounds: Gauge,
    references: Gauge,
    audits: Gauge,
    audits_failed: Gauge,
    steps_retaken: Gauge,
    steps_audited: Gauge,
    disagreements: Gauge,
    unjudged: Gauge,
    periods: Gauge,
    weights_block: Gauge,
    chain_block: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.05, 2.0, 12))
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            answers: Family::default(),
            failures: Family::default(),
            scores: Family::default(),
            unstored: Counter::default(),
            weight_sets: Counter::default(),
            weight_failures: Counter::default(),
            alarms: Counter::default(),
            served: Counter::default(),
            not_served: Counter::default(),
            trajectories: Family::default(),
            audit_seconds: seconds(),
            answer_seconds: seconds(),
            served_seconds: seconds(),
            rounds: Gauge::default(),
            references: Gauge::default(),
            audits: Gauge::default(),
            audits_failed: Gauge::default(),
            steps_retaken: Gauge::default(),
            steps_audited: Gauge::default(),
            disagreements: Gauge::default(),
            unjudged: Gauge::default(),
            periods: Gauge::default(),
            weights_block: Gauge::default(),
            chain_block: Gauge::default(),
        };
        metrics.register(registry.sub_registry_with_prefix("argus_validator"));
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("answers", "Answers of miners, by task", self.answers.clone());
        registry.register("failures", "Queries without an answer, by reason", self.failures.clone());
        registry.register("scores", "Scores stored, by verdict", self.scores.clone());
        registry.register("unstored", "Scores that waited for the disk", self.unstored.clone());
        registry.register("weight_sets", "Weight vectors included by the chain", self.weight_sets.clone());
        registry.register(
            "weight_failures",
            "Attempts to set weights that failed",
            self.weight_failures.clone(),
        );
        registry.register("weight_alarms", "Two tempos without weights", self.alarms.clone());
        registry.register("organic_served", "Clients' queries answered", self.served.clone());
        registry.register("organic_failed", "Clients' queries without an answer", self.not_served.clone());
        registry.register("answer_seconds", "Time to a miner's answer", self.answer_seconds.clone());
        registry.register("organic_seconds", "Time to a client's answer", self.served_seconds.clone());
        registry.register("rounds_under_way", "Rounds under way", self.rounds.clone());
        registry.register("references", "Answers made here to settle rounds", self.references.clone());
        registry.register("trajectories", "Trajectory audits, by what they found", self.trajectories.clone());
        registry.register("audit_seconds", "Opening and checking a trajectory", self.audit_seconds.clone());
        registry.register("audits", "Solo audits that came to a verdict", self.audits.clone());
        registry.register("audits_failed", "Solo audits that were failed", self.audits_failed.clone());
        registry.register(
            "audit_steps_retaken",
            "Steps taken again in trajectory audits",
            self.steps_retaken.clone(),
        );
        registry.register(
            "audit_steps_covered",
            "Steps of the runs that trajectory audits were about",
            self.steps_audited.clone(),
        );
        registry.register("disagreements", "Rounds whose answers differed", self.disagreements.clone());
        registry.register("unjudged", "Rounds without a reference", self.unjudged.clone());
        registry.register("periods_kept", "Closed periods kept", self.periods.clone());
        registry.register("weights_block", "Block of the last weights", self.weights_block.clone());
        registry.register("chain_block", "Newest block known", self.chain_block.clone());
    }

    pub(super) fn event(&self, event: &Event) {
        match event {
            Event::Answered { outcome: Err(failure), .. } => {
                self.failures.get_or_create(&[("reason", failure.label())]).inc();
            }
            Event::Stored(scores) => {
                for score in scores {
                    let verdict = match score.row.verdict.as_str() {
                        "right" => "right",
                        "wrong" => "wrong",
                        _ => "failed",
                    };
                    self.scores.get_or_create(&[("verdict", verdict)]).inc();
                }
            }
            Event::NotStored(scores) => _ = self.unstored.inc_by(scores.len() as u64),
            Event::WeightsIncluded(_) => _ = self.weight_sets.inc(),
            Event::WeightsFailed(_) => _ = self.weight_failures.inc(),
            _ => {}
        }
    }

    pub(super) fn core(&self, core: &Core) {
        let counters = core.counters();
        self.rounds.set(core.rounds() as i64);
        self.references.set(counters.references as i64);
        self.audits.set(counters.audits as i64);
        self.audits_failed.set(counters.audits_failed as i64);
        self.steps_retaken.set(counters.steps_retaken as i64);
        self.steps_audited.set(counters.steps_audited as i64);
        self.disagreements.set(counters.disagreements as i64);
        self.unjudged.set(counters.unjudged as i64);
        self.periods.set(core.periods().closed().len() as i64);
        self.chain_block.set(core.chain().block as i64);
        self.weights_block.set(core.submission().last_included().map_or(0, |i| i.block) as i64);
    }

    pub(super) fn answered(&self, task: TaskKind, took: Duration) {
        self.answers.get_or_create(&[("task", task.label())]).inc();
        self.answer_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn audited(&self, found: &'static str, took: Duration) {
        self.trajectories.get_or_create(&[("found", found)]).inc();
        self.audit_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn alarm(&self) {
        self.alarms.inc();
    }

    pub(super) fn served(&self, took: Duration) {
        self.served.inc();
        self.served_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn not_served(&self) {
        self.not_served.inc();
    }
}
