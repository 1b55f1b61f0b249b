//! What the gateway counts. Labels are routes, statuses and reasons: never keys, peers or prompts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub route: String,
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    pub reason: &'static str,
}

/// Cheap to clone: all clones count together.
#[derive(Clone)]
pub struct Metrics {
    pub requests: Family<RequestLabels, Counter>,
    pub refused: Family<ReasonLabels, Counter>,
    pub failed: Family<ReasonLabels, Counter>,
    pub in_flight: Gauge,
    pub connections: Gauge,
    pub images: Counter,
    pub embeddings: Counter,
    pub classifications: Counter,
    pub credits_thousandths: Counter,
    pub cancelled: Counter,
    pub image_seconds: Histogram,
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            refused: Family::default(),
            failed: Family::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            images: Counter::default(),
            embeddings: Counter::default(),
            classifications: Counter::default(),
            credits_thousandths: Counter::default(),
            cancelled: Counter::default(),
            image_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 13)),
        };
        let registry = registry.sub_registry_with_prefix("argus_gateway");
        registry.register("requests", "HTTP requests answered", metrics.requests.clone());
        registry.register("refused", "Requests turned away by key, rate or credit", metrics.refused.clone());
        registry.register("failed", "Requests let in that ended without an answer", metrics.failed.clone());
        registry.register("in_flight", "Requests for work running now", metrics.in_flight.clone());
        registry.register("connections", "Open HTTP connections", metrics.connections.clone());
        registry.register("images", "Pictures delivered", metrics.images.clone());
        registry.register("embeddings", "Pictures embedded", metrics.embeddings.clone());
        registry.register("classifications", "Pictures classified", metrics.classifications.clone());
        registry.register(
            "credits_thousandths",
            "Credits charged, thousandths",
            metrics.credits_thousandths.clone(),
        );
        registry.register("cancelled", "Requests whose client went away", metrics.cancelled.clone());
        registry.register_with_unit(
            "image",
            "From the request for one picture to its last byte",
            Unit::Seconds,
            metrics.image_seconds.clone(),
        );
        metrics
    }

    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub fn fail(&self, reason: &'static str) {
        self.failed.get_or_create(&ReasonLabels { reason }).inc();
    }
}
