//! What dashboards for Kubernetes ask for: the names and labels of the kubelet's `/metrics/cadvisor`, as far as they are measured.

use std::{collections::BTreeMap, fmt, sync::atomic::AtomicU64};

use api::stats::{ContainerStats, Summary};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::metrics::seconds;

type Labels = Vec<(&'static str, String)>;
type Sums = Family<Labels, Counter<f64, AtomicU64>>;
type Levels = Family<Labels, Gauge<f64, AtomicU64>>;

/// The images of containers, by the UID of the pod and the container's name.
pub(super) type Images = BTreeMap<(String, String), String>;

/// What the machine has.
pub(super) struct Machine {
    pub(super) processors: u64,
    pub(super) memory_bytes: u64,
}

/// A level of a container: name, help, value.
type Row = (&'static str, &'static str, fn(&ContainerStats) -> Option<u64>);

const LEVELS: &[Row] = &[
    (
        "container_memory_working_set_bytes",
        "Working set of the container",
        |container| Some(container.memory?.working_set_bytes),
    ),
    (
        "container_memory_usage_bytes",
        "All memory that is charged to the container, caches included",
        |container| Some(container.memory?.usage_bytes),
    ),
    (
        "container_memory_rss",
        "Anonymous memory of the container, in bytes",
        |container| container.memory?.rss_bytes,
    ),
    (
        "container_fs_usage_bytes",
        "Bytes of the container's writable layer and logs",
        |container| {
            Some(
                container
                    .rootfs?
                    .used_bytes
                    .saturating_add(container.logs?.used_bytes),
            )
        },
    ),
    (
        "container_fs_limit_bytes",
        "Bytes of the file system that they are on",
        |container| Some(container.rootfs?.capacity_bytes),
    ),
];

/// The text. An error means that memory for it is lacking.
pub(super) fn exposition(
    summary: &Summary,
    images: &Images,
    machine: &Machine,
) -> Result<String, fmt::Error> {
    let (cpu, started) = (Sums::default(), Levels::default());
    let levels: Vec<Levels> = LEVELS.iter().map(|_row| Levels::default()).collect();
    for pod in &summary.pods {
        for container in &pod.containers {
            let image = images.get(&(pod.pod_ref.uid.clone(), container.name.clone()));
            let labels = vec![
                ("container", container.name.clone()),
                ("image", image.cloned().unwrap_or_default()),
                ("namespace", pod.pod_ref.namespace.clone()),
                ("pod", pod.pod_ref.name.clone()),
            ];
            if let Some(used) = container.cpu {
                cpu.get_or_create(&labels)
                    .inc_by(seconds(used.usage_core_nano_seconds));
            }
            if let Some(time) = container.start_time {
                started
                    .get_or_create(&labels)
                    .set(time.as_duration().as_secs_f64());
            }
            for ((_, _, value), level) in LEVELS.iter().zip(&levels) {
                if let Some(value) = value(container) {
                    level.get_or_create(&labels).set(amount(value));
                }
            }
        }
    }
    let mut registry = Registry::default();
    registry.register(
        "container_cpu_usage_seconds",
        "Processor time used by the container",
        cpu,
    );
    registry.register(
        "container_start_time_seconds",
        "When the container began, since the epoch",
        started,
    );
    for ((name, help, _), level) in LEVELS.iter().zip(levels) {
        registry.register(*name, *help, level);
    }
    let of_machine = [
        (
            "machine_cpu_cores",
            "Processors of the machine",
            machine.processors,
        ),
        (
            "machine_memory_bytes",
            "Memory of the machine",
            machine.memory_bytes,
        ),
    ];
    for (name, help, value) in of_machine {
        let gauge: Gauge<f64, AtomicU64> = Gauge::default();
        gauge.set(amount(value));
        registry.register(name, help, gauge);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "amounts are exact up to eight petabytes, and larger ones nearly"
)]
fn amount(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_of_dashboards() {
        let summary = serde_json::from_value(serde_json::json!({
            "node": {"nodeName": "n", "startTime": "2026-01-01T00:00:00Z"},
            "pods": [{"podRef": {"name": "p", "namespace": "ns", "uid": "u"}, "containers": [{
                "name": "c",
                "startTime": "1970-01-01T00:01:00Z",
                "cpu": {"time": "2026-01-01T00:00:00Z", "usageCoreNanoSeconds": 500_000_000},
                "memory": {"time": "2026-01-01T00:00:00Z", "usageBytes": 9, "workingSetBytes": 7, "rssBytes": 5},
            }]}],
        }));
        let images = [(("u".to_owned(), "c".to_owned()), "r.example/app".to_owned())].into();
        let machine = Machine {
            processors: 2,
            memory_bytes: 1024,
        };
        let text = exposition(&summary.unwrap(), &images, &machine).unwrap();
        let labels = "{container=\"c\",image=\"r.example/app\",namespace=\"ns\",pod=\"p\"}";
        let of_container = [
            ("cpu_usage_seconds_total", "0.5"),
            ("start_time_seconds", "60.0"),
            ("memory_working_set_bytes", "7.0"),
            ("memory_usage_bytes", "9.0"),
            ("memory_rss", "5.0"),
        ]
        .map(|(name, value)| format!("container_{name}{labels} {value}"));
        let of_machine = ["machine_cpu_cores 2.0", "machine_memory_bytes 1024.0"].map(str::to_owned);
        for line in of_container.iter().chain(&of_machine) {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("container_fs_usage_bytes{"), "not measured yet");
    }
}
