//! The same for Prometheus, under the names of the kubelet's `/metrics/resource`.

use std::{fmt, sync::atomic::AtomicU64};

use api::stats::Summary;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

type Labels = Vec<(&'static str, String)>;
type Seconds = Family<Labels, Counter<f64, AtomicU64>>;
type Bytes = Family<Labels, Gauge<u64, AtomicU64>>;
type Times = Family<Labels, Gauge<f64, AtomicU64>>;

/// The text. An error means that memory for it is lacking.
pub(crate) fn resource_exposition(summary: &Summary) -> Result<String, fmt::Error> {
    let (cpu, memory, started) = (Seconds::default(), Bytes::default(), Times::default());
    let (pod_cpu, pod_memory) = (Seconds::default(), Bytes::default());
    for pod in &summary.pods {
        let of_pod = vec![
            ("namespace", pod.pod_ref.namespace.clone()),
            ("pod", pod.pod_ref.name.clone()),
        ];
        if let Some(used) = pod.cpu {
            pod_cpu
                .get_or_create(&of_pod)
                .inc_by(seconds(used.usage_core_nano_seconds));
        }
        if let Some(used) = pod.memory {
            pod_memory.get_or_create(&of_pod).set(used.working_set_bytes);
        }
        for container in &pod.containers {
            let mut labels = vec![("container", container.name.clone())];
            labels.extend(of_pod.iter().cloned());
            if let Some(used) = container.cpu {
                cpu.get_or_create(&labels)
                    .inc_by(seconds(used.usage_core_nano_seconds));
            }
            if let Some(used) = container.memory {
                memory.get_or_create(&labels).set(used.working_set_bytes);
            }
            if let Some(time) = container.start_time {
                started
                    .get_or_create(&labels)
                    .set(time.as_duration().as_secs_f64());
            }
        }
    }
    let node_cpu: Counter<f64, AtomicU64> = Counter::default();
    let node_memory: Gauge<u64, AtomicU64> = Gauge::default();
    if let Some(used) = summary.node.cpu {
        node_cpu.inc_by(seconds(used.usage_core_nano_seconds));
    }
    if let Some(used) = summary.node.memory {
        node_memory.set(used.working_set_bytes);
    }
    let mut registry = Registry::default();
    let in_seconds = || Unit::Seconds;
    registry.register_with_unit(
        "container_cpu_usage",
        "Processor time used by the container",
        in_seconds(),
        cpu,
    );
    registry.register_with_unit(
        "container_memory_working_set",
        "Working set of the container",
        Unit::Bytes,
        memory,
    );
    registry.register_with_unit(
        "container_start_time",
        "When the container began, since the epoch",
        in_seconds(),
        started,
    );
    registry.register_with_unit(
        "pod_cpu_usage",
        "Processor time used by the pod",
        in_seconds(),
        pod_cpu,
    );
    registry.register_with_unit(
        "pod_memory_working_set",
        "Working set of the pod",
        Unit::Bytes,
        pod_memory,
    );
    registry.register_with_unit(
        "node_cpu_usage",
        "Processor time used on the node",
        in_seconds(),
        node_cpu,
    );
    registry.register_with_unit(
        "node_memory_working_set",
        "Working set of the node",
        Unit::Bytes,
        node_memory,
    );
    // What cannot be measured is left out, here as there.
    let error: Gauge<u64, AtomicU64> = Gauge::default();
    registry.register("resource_scrape_error", "1 if nothing could be measured", error);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum of 104 days is exact to the nanosecond, a longer one nearly"
)]
pub(super) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kubelets() {
        let summary = serde_json::from_value(serde_json::json!({
            "node": {"nodeName": "n", "startTime": "2026-01-01T00:00:00Z",
                "cpu": {"time": "2026-01-01T00:00:00Z", "usageCoreNanoSeconds": 2_500_000_000_u64}},
            "pods": [{"podRef": {"name": "p", "namespace": "ns", "uid": "u"}, "containers": [{
                "name": "c",
                "cpu": {"time": "2026-01-01T00:00:00Z", "usageCoreNanoSeconds": 500_000_000},
                "memory": {"time": "2026-01-01T00:00:00Z", "usageBytes": 9, "workingSetBytes": 7},
            }]}],
        }));
        let text = resource_exposition(&summary.unwrap()).unwrap();
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"} 0.5",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"p\"} 7",
            "node_cpu_usage_seconds_total 2.5",
            "resource_scrape_error 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
