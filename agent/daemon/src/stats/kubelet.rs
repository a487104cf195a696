//! The node and how much runs on it, for Prometheus, under the names of the kubelet's `/metrics`.

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::text::encode_registry,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

type Count = Gauge<u64, AtomicU64>;

/// The text for pods that have so many containers that run each, without the line that ends one.
pub(super) fn exposition(node: &str, running: impl Iterator<Item = usize>) -> Result<String, fmt::Error> {
    let (names, pods): (Family<_, Count>, Count) = Default::default();
    let containers: Family<_, Count> = Family::default();
    names.get_or_create(&[("node", node.to_owned())]).set(1);
    let of_pods = running.filter(|containers| *containers > 0);
    let running = containers.get_or_create_owned(&[("container_state", "running")]);
    for containers in of_pods {
        pods.inc();
        running.inc_by(u64::try_from(containers).unwrap_or(u64::MAX));
    }
    let mut registry = Registry::with_prefix("kubelet");
    registry.register("node_name", "The node's name; the count is always 1", names);
    registry.register("running_pods", "Pods of which a container runs", pods);
    registry.register("running_containers", "Containers that run", containers);
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_count_while_a_container_runs() {
        let text = exposition("n", [2, 0, 1].into_iter()).unwrap();
        for line in [
            "kubelet_node_name{node=\"n\"} 1",
            "kubelet_running_pods 2",
            "kubelet_running_containers{container_state=\"running\"} 3",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("# EOF"), "more may follow");
    }
}
