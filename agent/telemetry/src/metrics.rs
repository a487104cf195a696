//! What the datapath counts, as text that Prometheus reads: OpenMetrics 1.0. `docs/flows.md` lists the metrics.

use std::{fmt, sync::atomic::AtomicU64};

use ebpf_loader::{Counters, Reason};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Media type of [`exposition`].
pub const METRICS_MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One label and its value.
type Labels = [(&'static str, &'static str); 1];
type Gauges = Family<Labels, Gauge<u64, AtomicU64>>;
type Sums = Family<Labels, Counter>;

/// The text. An error means that memory for it is lacking.
pub fn exposition(counters: &Counters) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("palisade_datapath");
    let (entries, capacity) = (Gauges::default(), Gauges::default());
    for fill in &counters.fill {
        let labels = [("map", fill.map)];
        entries.get_or_create(&labels).set(fill.entries);
        capacity.get_or_create(&labels).set(fill.capacity);
    }
    registry.register("map_entries", "Entries of a bounded map", entries);
    registry.register("map_capacity_entries", "Entries that fit into the map", capacity);

    let allowed: Counter = Counter::default();
    allowed.inc_by(counters.allowed);
    registry.register("packets_allowed", "Packets that passed", allowed);

    // Also those that never occurred: a rate needs a beginning.
    let denied = Sums::default();
    for reason in Reason::ALL {
        let packets = counters.denied.get(&reason).copied().unwrap_or(0);
        denied.get_or_create(&[("reason", reason.word())]).inc_by(packets);
    }
    registry.register("packets_denied", "Packets that were dropped, by reason", denied);

    let lost: Counter = Counter::default();
    lost.inc_by(counters.lost_events);
    registry.register(
        "flow_events_lost",
        "Flow events for which the kernel's ring had no room",
        lost,
    );
    let unreported: Counter = Counter::default();
    unreported.inc_by(
        counters
            .unreported
            .values()
            .fold(0, |sum, packets| sum.saturating_add(*packets)),
    );
    registry.register(
        "packets_denied_unreported",
        "Denied packets without a flow event, since their pod had too many others denied; pods that are gone do not count",
        unreported,
    );
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use ebpf_loader::Fill;
    use policies_ir::tables::EndpointId;

    use super::*;

    #[test]
    fn every_count_is_in_the_text() {
        let counters = Counters {
            allowed: 12,
            denied: [(Reason::Policy, 3), (Reason::TooManyFlows, 4)].into(),
            lost_events: 5,
            unreported: [(EndpointId(1), 6), (EndpointId(2), 7)].into(),
            fill: vec![Fill {
                map: "FLOWS",
                entries: 8,
                capacity: 131_072,
            }],
        };
        let text = exposition(&counters).unwrap();
        for line in [
            "# TYPE palisade_datapath_map_entries gauge",
            "palisade_datapath_map_entries{map=\"FLOWS\"} 8",
            "palisade_datapath_map_capacity_entries{map=\"FLOWS\"} 131072",
            "palisade_datapath_packets_allowed_total 12",
            "# TYPE palisade_datapath_packets_denied counter",
            "palisade_datapath_packets_denied_total{reason=\"policy\"} 3",
            "palisade_datapath_packets_denied_total{reason=\"too-many-flows\"} 4",
            "palisade_datapath_packets_denied_total{reason=\"spoofed-source\"} 0",
            "palisade_datapath_flow_events_lost_total 5",
            "palisade_datapath_packets_denied_unreported_total 13",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
