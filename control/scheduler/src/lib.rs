//! Which node a pod goes to: filter, score, decide.
//!
//! Pure: objects in, a decision out. The loop that watches pods and writes bindings is in
//! `control/controllers`. Non-goals: preemption, affinity between pods, several schedulers.
//!
//! Start at [`schedule`].

#![forbid(unsafe_code)]

mod bound;
mod filter;
mod resources;
mod volumes;

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use api::host_ports::{self, HostPort};
use k8s_openapi::api::core::v1::{Node, Pod};

pub use bound::{Refusal, refusal};
pub use resources::Resources;
pub use volumes::{Needs, Storage};

/// A node as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    node: &'a Node,
    allocatable: Resources,
    used: Resources,
    /// Ports of the node that lead to pods.
    ports: Vec<HostPort>,
}

/// Where a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Name of the node.
    pub node: String,
}

/// Why a pod goes nowhere. The text is that of Kubernetes' FailedScheduling events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Unschedulable {
    /// Nodes that were looked at.
    pub nodes: usize,
    /// How many of them each reason ruled out; a node that lacks two resources counts under both.
    pub reasons: BTreeMap<String, usize>,
}

impl<'a> Candidate<'a> {
    /// A node and the pods that are bound to it. Pods that have ended take no room.
    pub fn new<'p>(node: &'a Node, pods: impl IntoIterator<Item = &'p Pod>) -> Self {
        let mut candidate = Self {
            node,
            allocatable: Resources::allocatable(node),
            used: Resources::default(),
            ports: Vec::new(),
        };
        for pod in pods.into_iter().filter(|pod| !ended(pod)) {
            candidate.add(pod);
        }
        candidate
    }

    /// Accounts for one more pod.
    pub fn add(&mut self, pod: &Pod) {
        self.used = self.used + Resources::requested(pod);
        self.ports.extend(host_ports::of(pod));
    }

    /// Name of the node.
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }
}

/// Decides. Of the nodes that pass every filter, the one that stays the emptiest takes the pod. `needs` is what its
/// claims ask of the node.
pub fn schedule(
    pod: &Pod,
    needs: &Needs<'_>,
    candidates: &[Candidate<'_>],
) -> Result<Placement, Unschedulable> {
    let mut reasons = BTreeMap::new();
    let mut best = None;
    for candidate in candidates {
        let mut against = filter::reasons_against(pod, candidate);
        if against.is_empty() {
            against.extend(needs.against(candidate.node).map(str::to_owned));
        }
        if against.is_empty() {
            let rank = rank(pod, candidate);
            if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                best = Some((rank, candidate.name().to_owned()));
            }
        }
        for reason in against {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    match best {
        Some((_, node)) => Ok(Placement { node }),
        None => Err(Unschedulable {
            nodes: candidates.len(),
            reasons,
        }),
    }
}

/// Smaller is better: fewest soft taints, then most room left, then by name so that the answer is stable.
fn rank<'a>(pod: &Pod, candidate: &'a Candidate<'_>) -> (usize, Reverse<u64>, &'a str) {
    let after = candidate.used + Resources::requested(pod);
    let free = after.free_permille(candidate.allocatable);
    (
        filter::soft_taints(pod, candidate.node),
        Reverse(free),
        candidate.name(),
    )
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, n)| format!("{n} {reason}"))
            .collect();
        reasons.sort_unstable();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn fields_of(object: Value) -> serde_json::Map<String, Value> {
        serde_json::from_value(object).unwrap()
    }

    fn node(name: &str, cpu: &str, extra: Value) -> Node {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"disk": "ssd", "kubernetes.io/hostname": name}},
            "spec": {},
            "status": {
                "allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "10"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        for (section, fields) in fields_of(extra) {
            for (field, value) in fields_of(fields) {
                node[&section][field] = value;
            }
        }
        serde_json::from_value(node).unwrap()
    }

    fn pod(cpu: &str, spec: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}}]},
        });
        for (field, value) in fields_of(spec) {
            pod["spec"][field] = value;
        }
        serde_json::from_value(pod).unwrap()
    }

    fn outcome(pod: &Pod, nodes: &[Node]) -> String {
        let candidates: Vec<_> = nodes.iter().map(|node| Candidate::new(node, [])).collect();
        match schedule(pod, &Needs::default(), &candidates) {
            Ok(placement) => placement.node,
            Err(unschedulable) => unschedulable.to_string(),
        }
    }

    #[test]
    fn a_port_of_the_node_is_given_once() {
        let node = node("n", "4", json!({}));
        let asking = |ports: Value| {
            let container = json!({"name": "c", "ports": ports});
            pod("1", json!({"containers": [container]}))
        };
        let holder = asking(json!([{"containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.1"}]));
        let mut done = holder.clone();
        done.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        let words = |pod: &Pod, pods: &[Pod]| match schedule(
            pod,
            &Needs::default(),
            &[Candidate::new(&node, pods)],
        ) {
            Ok(placement) => placement.node,
            Err(unschedulable) => unschedulable.to_string(),
        };
        let refused =
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
        let (all, same) = (
            asking(json!([{"containerPort": 1, "hostPort": 80}])),
            holder.clone(),
        );
        for pod in [&all, &same] {
            assert_eq!(words(pod, std::slice::from_ref(&holder)), refused);
            assert_eq!(
                words(pod, std::slice::from_ref(&done)),
                "n",
                "ended pods hold no ports"
            );
        }
        for ports in [
            json!([{"containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.2"}]),
            json!([{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]),
            json!([{"containerPort": 80}]),
        ] {
            assert_eq!(words(&asking(ports), std::slice::from_ref(&holder)), "n");
        }
        let mut candidate = Candidate::new(&node, []);
        candidate.add(&holder);
        assert!(
            schedule(&all, &Needs::default(), &[candidate]).is_err(),
            "those of pods that were just placed count"
        );
    }

    #[test]
    fn each_filter_has_its_words() {
        let tainted = json!({"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}});
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        let full = json!({"status": {"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "0"}}});
        for (extra, cpu, spec, expected) in [
            (json!({}), "1", json!({}), "n"),
            (
                json!({}),
                "5",
                json!({}),
                "0/1 nodes are available: 1 Insufficient cpu.",
            ),
            (full, "1", json!({}), "0/1 nodes are available: 1 Too many pods."),
            (
                json!({"status": {"allocatable": {"pods": "10"}}}),
                "1",
                json!({}),
                "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
            ),
            (
                json!({"spec": {"unschedulable": true}}),
                "1",
                json!({}),
                "0/1 nodes are available: 1 node(s) were unschedulable.",
            ),
            (
                unready,
                "1",
                json!({}),
                "0/1 nodes are available: 1 node(s) were not ready.",
            ),
            (
                json!({"status": {"conditions": []}}),
                "1",
                json!({}),
                "0/1 nodes are available: 1 node(s) were not ready.",
            ),
            (
                json!({}),
                "1",
                json!({"nodeSelector": {"disk": "hdd"}}),
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
            ),
            (json!({}), "1", json!({"nodeSelector": {"disk": "ssd"}}), "n"),
            (
                tainted.clone(),
                "1",
                json!({}),
                "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.",
            ),
            (
                tainted.clone(),
                "1",
                json!({"tolerations": [{"key": "gpu", "value": "yes"}]}),
                "n",
            ),
            (
                tainted.clone(),
                "1",
                json!({"tolerations": [{"operator": "Exists"}]}),
                "n",
            ),
            (
                tainted,
                "1",
                json!({"tolerations": [{"key": "gpu", "value": "yes", "effect": "NoExecute"}]}),
                "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.",
            ),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                "1",
                json!({}),
                "0/1 nodes are available: 1 node(s) were unschedulable.",
            ),
        ] {
            assert_eq!(
                outcome(&pod(cpu, spec), &[node("n", "4", extra.clone())]),
                expected,
                "{extra}"
            );
        }
        assert_eq!(
            outcome(&pod("1", json!({})), &[]),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn reasons_add_up_over_nodes() {
        let nodes = [
            node("a", "1", json!({})),
            node("b", "1", json!({})),
            node("c", "8", json!({"spec": {"unschedulable": true}})),
        ];
        assert_eq!(
            outcome(&pod("2", json!({})), &nodes),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."
        );
    }

    #[test]
    fn the_emptiest_node_wins_and_names_break_ties() {
        let nodes = [
            node("b", "4", json!({})),
            node("a", "4", json!({})),
            node("c", "8", json!({})),
        ];
        assert_eq!(outcome(&pod("1", json!({})), &nodes), "c");
        assert_eq!(outcome(&pod("1", json!({})), &nodes[..2]), "a");
        let soft = json!({"spec": {"taints": [{"key": "x", "effect": "PreferNoSchedule"}]}});
        assert_eq!(
            outcome(&pod("1", json!({})), &[nodes[0].clone(), node("z", "8", soft)]),
            "b"
        );
    }

    #[test]
    fn pods_that_ended_take_no_room_and_added_ones_do() {
        let node = node("n", "2", json!({}));
        let mut done = pod("2", json!({}));
        done.status = Some(Default::default());
        done.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        let mut candidate = Candidate::new(&node, [&done]);
        assert!(
            schedule(
                &pod("2", json!({})),
                &Needs::default(),
                std::slice::from_ref(&candidate)
            )
            .is_ok()
        );
        candidate.add(&pod("1", json!({})));
        assert!(schedule(&pod("2", json!({})), &Needs::default(), &[candidate]).is_err());
    }

    #[test]
    fn a_quantity_that_is_none_fits_nowhere() {
        assert_eq!(
            outcome(&pod("lots", json!({})), &[node("n", "4", json!({}))]),
            "0/1 nodes are available: 1 Insufficient cpu."
        );
    }

    proptest! {
        #[test]
        fn never_overcommits(cpus in proptest::collection::vec(1u64..3000, 0..60), sizes in proptest::collection::vec(0u64..8000, 1..5)) {
            let nodes: Vec<_> = sizes.iter().enumerate().map(|(n, size)| node(&format!("n{n}"), &format!("{size}m"), json!({}))).collect();
            let mut candidates: Vec<_> = nodes.iter().map(|node| Candidate::new(node, [])).collect();
            let mut placed = vec![(0u64, 0u64); nodes.len()];
            for cpu in cpus {
                let pod = pod(&format!("{cpu}m"), json!({}));
                if let Ok(placement) = schedule(&pod, &Needs::default(), &candidates) {
                    let index = candidates.iter().position(|c| c.name() == placement.node).unwrap();
                    candidates[index].add(&pod);
                    placed[index].0 += cpu;
                    placed[index].1 += 1;
                }
            }
            for ((cpu, pods), size) in placed.iter().zip(&sizes) {
                prop_assert!(cpu <= size && *pods <= 10);
            }
        }
    }

    #[test]
    fn want_of_memory_keeps_away_those_who_asked_for_none() {
        let short = json!({"spec": {"taints": [{"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}]}});
        let of_class = |class: &str| {
            let mut pod = pod("1", json!({}));
            pod.status = serde_json::from_value(json!({"qosClass": class})).unwrap();
            outcome(&pod, &[node("a", "4", short.clone())])
        };
        assert_eq!(
            (of_class("Guaranteed"), of_class("Burstable")),
            ("a".into(), "a".into())
        );
        assert!(of_class("BestEffort").contains("memory-pressure"));
        assert_eq!(of_class(""), "a", "of no class: its spec requests");
        let idle: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}]}})).unwrap();
        assert!(outcome(&idle, &[node("a", "4", short)]).contains("memory-pressure"));
    }
}
