//! What a node knows of its chain, for Prometheus: read at each scrape, nothing to keep up to date.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Registry,
};

use super::Watch;

/// Gauges of one [`Watch`].
pub struct Metrics(Watch);

impl Metrics {
    /// `argus_chain_block`, `…_metagraph_age_seconds`, `…_failures`, `…_neurons`, `…_validators`.
    pub fn register(watch: Watch, registry: &mut Registry) {
        registry.register_collector(Box::new(Self(watch)));
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("chain::Metrics")
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let view = self.0.view();
        let neurons = view.metagraph.as_ref().map_or(0, |m| m.neurons.len());
        let validators = view.metagraph.as_ref().map_or(0, |m| m.validators().count());
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge(
            "argus_chain_block",
            "The newest block that was read",
            view.head.map_or(0.0, |h| h.block as f64),
        )?;
        // Before the first reading there is no age; a dashboard shows that as a gap.
        if let Some(age) = view.age() {
            gauge("argus_chain_metagraph_age_seconds", "Since the metagraph was read", age.as_secs_f64())?;
        }
        gauge("argus_chain_failures", "Failed readings since the last good one", f64::from(view.failures))?;
        gauge("argus_chain_neurons", "Neurons on the subnet", neurons as f64)?;
        gauge("argus_chain_validators", "Neurons with a permit", validators as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Hyperparameters, Metagraph};

    #[test]
    fn a_scrape_shows_the_view() {
        let metagraph = Metagraph {
            netuid: 1,
            block: 3,
            last_epoch: 0,
            next_epoch: 4,
            hyperparameters: Hyperparameters::default(),
            neurons: Vec::new(),
        };
        let mut registry = Registry::default();
        Metrics::register(Watch::fixed(metagraph), &mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in
            ["argus_chain_neurons 0.0", "argus_chain_failures 0.0", "argus_chain_metagraph_age_seconds "]
        {
            assert!(text.contains(line), "{text}");
        }
    }
}
