//! Reasons why a node cannot take a pod, in the words of Kubernetes' scheduler. As there, the first filter
//! that fails speaks for the node.

use api::{host_ports, qos};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

use crate::{Candidate, Resources};

const NOT_READY_TAINT: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE_TAINT: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";
/// What Kubernetes says of a node whose ports others have.
pub(crate) const NO_PORTS: &str = "node(s) didn't have free ports for the requested pod ports";
const MEMORY_TAINT: &str = "node.kubernetes.io/memory-pressure";

/// Empty when the node can take the pod.
pub(crate) fn reasons_against(pod: &Pod, candidate: &Candidate<'_>) -> Vec<String> {
    let node = candidate.node;
    if !schedulable(pod, node) {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if !ready(node) {
        return vec!["node(s) were not ready".to_owned()];
    }
    if let Some(taint) = taints(node).find(|taint| hard(taint) && !tolerated(pod, taint)) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!(
            "node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        )];
    }
    if !selected(pod, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    if !has_ports(pod, candidate) {
        return vec![NO_PORTS.to_owned()];
    }
    lacking(pod, candidate)
}

/// Taints that would rather not have the pod.
pub(crate) fn soft_taints(pod: &Pod, node: &Node) -> usize {
    taints(node)
        .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerated(pod, taint))
        .count()
}

fn schedulable(pod: &Pod, node: &Node) -> bool {
    let cordoned = node
        .spec
        .as_ref()
        .and_then(|spec| spec.unschedulable)
        .unwrap_or_default();
    let as_taint = Taint {
        key: UNSCHEDULABLE_TAINT.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    node.metadata.deletion_timestamp.is_none() && (!cordoned || tolerated(pod, &as_taint))
}

fn ready(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(crate) fn selected(pod: &Pod, node: &Node) -> bool {
    let wanted = pod
        .spec
        .iter()
        .flat_map(|spec| spec.node_selector.iter().flatten());
    let labels = node.metadata.labels.as_ref();
    wanted
        .into_iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether the ports of the node that lead to the pod lead to no other.
pub(crate) fn has_ports(pod: &Pod, candidate: &Candidate<'_>) -> bool {
    let is_taken = |port| candidate.ports.iter().any(|taken| taken.conflicts_with(port));
    !host_ports::of(pod).iter().any(is_taken)
}

/// Whether the pod would be sent away as soon as it were there. Of what the cluster says of nodes that it does not hear of, pods
/// tolerate a while without saying so.
pub(crate) fn is_expelled(pod: &Pod, node: &Node) -> bool {
    let unstated = |taint: &Taint| matches!(taint.key.as_str(), NOT_READY_TAINT | UNREACHABLE_TAINT);
    let expelling = taints(node).filter(|taint| taint.effect == "NoExecute" && !unstated(taint));
    expelling.into_iter().any(|taint| !tolerated(pod, taint))
}

/// The node's pressures that the pod does not tolerate.
pub(crate) fn pressures_against<'a>(pod: &Pod, node: &'a Node) -> Vec<&'a str> {
    const TAINTS: [(&str, &str); 3] = [
        ("MemoryPressure", MEMORY_TAINT),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ];
    let untolerated = |condition: &&str| {
        let mut taints = TAINTS.iter();
        let taint = taints.find(|(kind, _)| kind == condition).map(|(_, key)| Taint {
            key: (*key).to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
        taint.is_some_and(|taint| !tolerated(pod, &taint))
    };
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let holding = conditions.filter(|condition| condition.status == "True");
    holding
        .map(|condition| condition.type_.as_str())
        .filter(untolerated)
        .collect()
}

fn lacking(pod: &Pod, candidate: &Candidate<'_>) -> Vec<String> {
    let wanted = Resources::requested(pod);
    let after = candidate.used + wanted;
    let offered = candidate.allocatable;
    let mut reasons = Vec::new();
    if after.pods > offered.pods {
        reasons.push("Too many pods".to_owned());
    }
    // A pod that asks for none of a resource fits however little there is.
    if wanted.cpu_millis > 0 && after.cpu_millis > offered.cpu_millis {
        reasons.push("Insufficient cpu".to_owned());
    }
    if wanted.memory_bytes > 0 && after.memory_bytes > offered.memory_bytes {
        reasons.push("Insufficient memory".to_owned());
    }
    if wanted.storage_bytes > 0 && after.storage_bytes > offered.storage_bytes {
        reasons.push("Insufficient ephemeral-storage".to_owned());
    }
    reasons
}

fn taints(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten())
}

/// Every effect but the soft one, so that an unknown effect keeps pods away.
fn hard(taint: &Taint) -> bool {
    taint.effect != "PreferNoSchedule"
}

/// As in Kubernetes, want of memory keeps away those who asked for nothing; the others were promised theirs.
fn tolerated(pod: &Pod, taint: &Taint) -> bool {
    if taint.key == MEMORY_TAINT && matches!(qos::class_of(pod), "Guaranteed" | "Burstable") {
        return true;
    }
    let mut tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.any(|toleration| tolerates(toleration, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let any_or =
        |wanted: &Option<String>, actual: &str| wanted.as_deref().is_none_or(|w| w.is_empty() || w == actual);
    if !any_or(&toleration.effect, &taint.effect) {
        return false;
    }
    let key_is_any = toleration.key.as_deref().unwrap_or_default().is_empty();
    match toleration.operator.as_deref() {
        Some("Exists") => key_is_any || toleration.key.as_deref() == Some(&taint.key),
        None | Some("" | "Equal") => {
            toleration.key.as_deref() == Some(&taint.key)
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}
