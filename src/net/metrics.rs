//! Counters of the net. No peer or hotkey is ever a label.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Label {
    kind: &'static str,
}

type Labelled = Family<Label, Counter>;

#[derive(Clone)]
pub(super) struct Metrics {
    queries_sent: Labelled,
    queries_received: Labelled,
    offences: Labelled,
    records: Labelled,
    lookups: Labelled,
    dropped: Labelled,
    pub(super) blocks: Counter,
    pub(super) persist_dropped: Counter,
    pub(super) inbound_streams: Gauge,
    pub(super) outbound_streams: Gauge,
    pub(super) query_seconds: Histogram,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("argus_net");
        // 1 ms to about 9 minutes.
        let query_seconds =
            Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.001, 3.0, 13));
        let metrics = Self {
            queries_sent: Family::default(),
            queries_received: Family::default(),
            offences: Family::default(),
            records: Family::default(),
            lookups: Family::default(),
            dropped: Family::default(),
            blocks: Counter::default(),
            persist_dropped: Counter::default(),
            inbound_streams: Gauge::default(),
            outbound_streams: Gauge::default(),
            query_seconds,
        };
        let m = &metrics;
        registry.register("queries_sent", "Queries asked of others, by outcome", m.queries_sent.clone());
        registry.register(
            "queries_received",
            "Query streams of others, by outcome",
            m.queries_received.clone(),
        );
        registry.register("offences", "Offences of peers, by kind", m.offences.clone());
        registry.register("records", "DHT records received, by what became of them", m.records.clone());
        registry.register("lookups", "Hotkey lookups, by outcome", m.lookups.clone());
        registry.register("dropped", "Things dropped because a bounded queue was full", m.dropped.clone());
        registry.register("blocks", "Peers blocked for their offences", m.blocks.clone());
        registry.register(
            "persist_dropped",
            "Disk writes dropped because the disk was too slow",
            m.persist_dropped.clone(),
        );
        registry.register("inbound_streams", "Query streams of others open now", m.inbound_streams.clone());
        registry.register("outbound_streams", "Own query streams open now", m.outbound_streams.clone());
        registry.register("query_seconds", "Time from asking to the receipt", m.query_seconds.clone());
        metrics
    }

    fn count(family: &Labelled, kind: &'static str) {
        family.get_or_create(&Label { kind }).inc();
    }

    pub(super) fn sent(&self, outcome: &'static str) {
        Self::count(&self.queries_sent, outcome);
    }

    pub(super) fn received(&self, outcome: &'static str) {
        Self::count(&self.queries_received, outcome);
    }

    pub(super) fn offence(&self, kind: &'static str) {
        Self::count(&self.offences, kind);
    }

    pub(super) fn record(&self, fate: &'static str) {
        Self::count(&self.records, fate);
    }

    pub(super) fn lookup(&self, outcome: &'static str) {
        Self::count(&self.lookups, outcome);
    }

    pub(super) fn dropped(&self, what: &'static str) {
        Self::count(&self.dropped, what);
    }
}

/// A gauge that counts what is open: up while this lives.
pub(super) struct Open(Gauge);

impl Open {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
