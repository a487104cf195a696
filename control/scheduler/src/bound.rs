//! What a node itself says of a pod that is bound to it, whoever bound it: the kubelet's admission, in its words.
//!
//! The scheduler keeps to the same rules before it binds. `spec.nodeName` passes it by.

use k8s_openapi::api::core::v1::Pod;

use crate::{Candidate, Resources, filter};

/// Why a node does not begin with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Kubernetes' word for it, such as `OutOfcpu`.
    pub reason: String,
    /// What is wanted and what there is, for people.
    pub message: String,
}

/// Why the node, with the pods that it has, does not begin with this one; nothing if it does.
pub fn refusal(pod: &Pod, candidate: &Candidate<'_>) -> Option<Refusal> {
    let refusal = |reason: &str, message: String| {
        Some(Refusal {
            reason: reason.to_owned(),
            message,
        })
    };
    let pressures = filter::pressures_against(pod, candidate.node);
    if !pressures.is_empty() {
        let message = format!("The node had condition: [{}]. ", pressures.join(" "));
        return refusal("Evicted", message);
    }
    if !filter::selected(pod, candidate.node) {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return refusal("NodeAffinity", message.to_owned());
    }
    let (wanted, used, offered) = (Resources::requested(pod), candidate.used, candidate.allocatable);
    let amounts = [
        ("pods", wanted.pods, used.pods, offered.pods),
        ("cpu", wanted.cpu_millis, used.cpu_millis, offered.cpu_millis),
        (
            "memory",
            wanted.memory_bytes,
            used.memory_bytes,
            offered.memory_bytes,
        ),
        (
            "ephemeral-storage",
            wanted.storage_bytes,
            used.storage_bytes,
            offered.storage_bytes,
        ),
    ];
    let lacking = |(_, wanted, used, offered): &(&str, u64, u64, u64)| {
        *wanted > 0 && used.saturating_add(*wanted) > *offered
    };
    if let Some((resource, wanted, used, offered)) = amounts.into_iter().find(lacking) {
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {offered}"
        );
        return refusal(&format!("OutOf{resource}"), message);
    }
    if !filter::has_ports(pod, candidate) {
        return refusal(
            "NodePorts",
            format!("Predicate NodePorts failed: {}", filter::NO_PORTS),
        );
    }
    if filter::is_expelled(pod, candidate.node) {
        let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        return refusal("TaintToleration", message.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_begins_only_with_what_it_has_room_for() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1Gi", "pods": "2"}},
        }))
        .unwrap();
        let pod = |requests: Value, spec: Value| -> Pod {
            let mut pod =
                json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}});
            for (field, value) in spec.as_object().unwrap() {
                pod["spec"][field] = value.clone();
            }
            serde_json::from_value(pod).unwrap()
        };
        let half = pod(json!({"cpu": "1500m"}), json!({}));
        let one = Candidate::new(&node, [&half]);
        let said = |candidate: &Candidate<'_>, pod: &Pod| {
            let refusal = refusal(pod, candidate)?;
            Some(format!("{}: {}", refusal.reason, refusal.message))
        };
        assert_eq!(said(&one, &pod(json!({"cpu": "500m"}), json!({}))), None);
        assert_eq!(
            said(&one, &pod(json!({"cpu": "501m"}), json!({}))).unwrap(),
            "OutOfcpu: Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000"
        );
        let free = Candidate::new(&node, []);
        for (requests, reason) in [
            (json!({"memory": "2Gi"}), "OutOfmemory"),
            (json!({"ephemeral-storage": "2Gi"}), "OutOfephemeral-storage"),
        ] {
            let said = said(&free, &pod(requests, json!({}))).unwrap();
            assert!(said.starts_with(&format!("{reason}: ")), "{said}");
        }
        let selecting = |value| pod(json!({}), json!({"nodeSelector": {"disk": value}}));
        assert_eq!(said(&free, &selecting("ssd")), None);
        assert!(
            said(&free, &selecting("tape"))
                .unwrap()
                .starts_with("NodeAffinity: ")
        );
        let small = pod(json!({}), json!({}));
        let full = Candidate::new(&node, [&small, &small]);
        assert_eq!(
            said(&full, &small).unwrap(),
            "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"
        );
    }

    #[test]
    fn a_node_begins_with_nobody_whose_ports_are_taken_or_whom_it_would_send_away() {
        let port = |host: u16| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": host}]}]});
        let pod = |spec: Value| -> Pod { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let node = |taints: Value| -> Node {
            let node = json!({"spec": {"taints": taints}, "status": {"allocatable": {"pods": "9"}}});
            serde_json::from_value(node).unwrap()
        };
        let plain = node(json!([]));
        let other = pod(port(8080));
        let candidate = Candidate::new(&plain, [&other]);
        let refused = refusal(&pod(port(8080)), &candidate).unwrap();
        assert_eq!(refused.reason, "NodePorts");
        assert_eq!(
            refused.message,
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
        );
        assert_eq!(refusal(&pod(port(8081)), &candidate), None);

        let said = |key: &str, effect: &str, spec: Value| {
            let node = node(json!([{"key": key, "effect": effect}]));
            refusal(&pod(spec), &Candidate::new(&node, [])).map(|refusal| refusal.reason)
        };
        let any = || json!({"containers": []});
        assert_eq!(
            said("gone", "NoExecute", any()).as_deref(),
            Some("TaintToleration")
        );
        assert_eq!(
            said("gone", "NoSchedule", any()),
            None,
            "whoever names the node knows"
        );
        let tolerant = json!({"containers": [], "tolerations": [{"key": "gone", "operator": "Exists"}]});
        assert_eq!(said("gone", "NoExecute", tolerant), None);
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            assert_eq!(
                said(key, "NoExecute", any()),
                None,
                "{key}: tolerated for a while"
            );
        }
    }

    #[test]
    fn a_node_under_pressure_begins_with_nobody_but_who_tolerates_it() {
        let of = |condition: &str, class: &str, spec: Value| {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {
                "allocatable": {"memory": "1Gi", "pods": "9"}, "conditions": [{"type": condition, "status": "True"}]}}))
            .unwrap();
            let pod = json!({"spec": spec, "status": {"qosClass": class}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            refusal(&pod, &Candidate::new(&node, []))
        };
        let plain = || json!({"containers": []});
        let requesting = json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1"}}}]});
        let tolerant = json!({"containers": [], "tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]});
        assert_eq!(of("Ready", "BestEffort", plain()), None);
        assert_eq!(of("MemoryPressure", "Burstable", plain()), None);
        assert_eq!(
            of("MemoryPressure", "", requesting),
            None,
            "of no class: its spec requests"
        );
        assert_eq!(of("MemoryPressure", "BestEffort", tolerant), None);
        for (condition, class) in [
            ("MemoryPressure", "BestEffort"),
            ("DiskPressure", "Guaranteed"),
            ("PIDPressure", "Burstable"),
        ] {
            let refused = of(condition, class, plain()).unwrap();
            assert_eq!(refused.reason, "Evicted");
            assert_eq!(
                refused.message,
                format!("The node had condition: [{condition}]. ")
            );
        }
    }
}
