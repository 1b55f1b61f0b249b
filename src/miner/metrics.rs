//! What a miner tells Prometheus. No peers and no hotkeys in labels.

use std::time::Duration;

use argus_protocols::{Reason, TaskKind};
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

type Labels = [(&'static str, &'static str); 1];

/// Counters of a miner's work.
pub struct Metrics {
    answered: Family<Labels, Counter>,
    withheld: Counter,
    refused: Family<Labels, Counter>,
    broken: Family<Labels, Counter>,
    challenges: Family<Labels, Counter>,
    seconds: Histogram,
    at_work: Gauge,
    waiting: Gauge,
    held: Gauge,
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            answered: Family::default(),
            withheld: Counter::default(),
            refused: Family::default(),
            broken: Family::default(),
            challenges: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.05, 2.0, 12)),
            at_work: Gauge::default(),
            waiting: Gauge::default(),
            held: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("argus_miner");
        registry.register("answered", "Queries answered, by task", metrics.answered.clone());
        registry.register("withheld", "Answers whose picture was NSFW", metrics.withheld.clone());
        registry.register("refused", "Queries refused, by reason", metrics.refused.clone());
        registry.register("broken", "Queries whose stream ended early, by reason", metrics.broken.clone());
        registry.register(
            "challenges",
            "Answers with a commitment, by what the validator did then",
            metrics.challenges.clone(),
        );
        registry.register("answer_seconds", "From admission to receipt", metrics.seconds.clone());
        registry.register("at_work", "Queries at work now", metrics.at_work.clone());
        registry.register("waiting", "Queries waiting for their turn", metrics.waiting.clone());
        registry.register("held", "Places taken", metrics.held.clone());
        metrics
    }

    pub(super) fn answered(&self, task: Option<TaskKind>, took: Duration, withheld: bool) {
        let task = task.map_or("unknown", TaskKind::label);
        self.answered.get_or_create(&[("task", task)]).inc();
        self.withheld.inc_by(withheld.into());
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&[("reason", reason.label())]).inc();
    }

    pub(super) fn challenged(&self, outcome: &'static str) {
        self.challenges.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn broken(&self, reason: &'static str) {
        self.broken.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn load(&self, at_work: usize, waiting: usize, held: u32) {
        self.at_work.set(at_work as i64);
        self.waiting.set(waiting as i64);
        self.held.set(held.into());
    }
}
