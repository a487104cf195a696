//! Which pod goes first when the node has too little left: the kubelet's order.

use api::annotations::CONFIG_MIRROR;
use k8s_openapi::api::core::v1::Pod;

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Memory.
    Memory,
    /// Space on the node's disk.
    Disk,
    /// File numbers of the node's disk.
    Inodes,
    /// Process numbers.
    Processes,
}

/// A pod that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its UID.
    pub uid: String,
    /// Higher ones stay longer.
    pub priority: i32,
    /// How much of what is short it asked for.
    pub requested: u64,
    /// How much it uses.
    pub used: u64,
}

/// From here on pods are the system's own, and never go for want of something: Kubernetes' number.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// Whether the node cannot do without the pod. Such pods end last and are never evicted. As for the kubelet, those of the
/// node's own files are among them; the API lets nobody but the node write their annotation.
pub fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    is_of_file(pod) || priority.unwrap_or(0) >= SYSTEM_CRITICAL
}

/// Whether the pod stands for a file of its node.
pub(crate) fn is_of_file(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(CONFIG_MIRROR))
}

/// The pod that goes first of those that may: see [`is_critical`]. Those that use more than they asked for go before others, those of lower priority before
/// those of higher, and then whoever is furthest above what it asked for. File numbers cannot be
/// asked for, so whoever uses any is above. Process numbers neither: there only priority and use count.
pub fn first_to_go(shortage: Shortage, candidates: &[Candidate]) -> Option<&Candidate> {
    let within = |candidate: &Candidate| match shortage {
        Shortage::Memory | Shortage::Disk | Shortage::Inodes => candidate.used <= candidate.requested,
        Shortage::Processes => false,
    };
    let above = |candidate: &Candidate| match shortage {
        Shortage::Memory | Shortage::Disk | Shortage::Inodes => {
            i128::from(candidate.used) - i128::from(candidate.requested)
        }
        Shortage::Processes => i128::from(candidate.used),
    };
    let order = |candidate: &&Candidate| {
        let rank = (within(candidate), candidate.priority, -above(candidate));
        (rank, candidate.uid.clone())
    };
    candidates.iter().min_by_key(order)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn first(shortage: Shortage, candidates: &[(&str, i32, u64, u64)]) -> Option<String> {
        let candidates: Vec<Candidate> = candidates
            .iter()
            .map(|(uid, priority, requested, used)| Candidate {
                uid: (*uid).to_owned(),
                priority: *priority,
                requested: *requested,
                used: *used,
            })
            .collect();
        first_to_go(shortage, &candidates).map(|candidate| candidate.uid.clone())
    }

    #[test]
    fn usage_over_request_then_priority_then_usage() {
        let memory = |candidates: &[_]| first(Shortage::Memory, candidates).unwrap();
        assert_eq!(memory(&[("within", 0, 100, 100), ("over", 9, 0, 1)]), "over");
        assert_eq!(memory(&[("high", 1, 0, 900), ("low", 0, 0, 1)]), "low");
        assert_eq!(memory(&[("small", 0, 10, 20), ("large", 0, 500, 600)]), "large");
        assert_eq!(
            memory(&[("much", 0, 500, 400), ("little", 0, 200, 190)]),
            "little",
            "within its request, the nearest to it"
        );
    }

    #[test]
    fn file_numbers_go_by_use_over_nothing_then_priority_then_use() {
        let inodes = |candidates: &[_]| first(Shortage::Inodes, candidates).unwrap();
        assert_eq!(inodes(&[("none", 0, 0, 0), ("some", 9, 0, 1)]), "some");
        assert_eq!(inodes(&[("high", 1, 0, 900), ("low", 0, 0, 1)]), "low");
        assert_eq!(inodes(&[("few", 0, 0, 20), ("many", 0, 0, 600)]), "many");
    }

    #[test]
    fn processes_are_counted_as_they_are() {
        assert_eq!(first(Shortage::Disk, &[]), None);
        let counted = [("few", 0, 0, 3), ("many", 0, 1000, 50), ("more", 1, 0, 500)];
        assert_eq!(first(Shortage::Processes, &counted).unwrap(), "many");
    }

    #[test]
    fn pods_of_the_system_and_of_files_are_critical() {
        let critical = |pod: Value| is_critical(&serde_json::from_value(pod).unwrap());
        let of_priority = |priority: i32| json!({"spec": {"containers": [], "priority": priority}});
        assert!(critical(of_priority(2_000_000_000)) && !critical(of_priority(1_999_999_999)));
        let noted = |key: &str| json!({"metadata": {"annotations": {key: "h"}}});
        assert!(critical(noted("kubernetes.io/config.mirror")));
        // Anybody may write this one.
        assert!(!critical(noted("kubernetes.io/config.source")) && !critical(json!({})));
    }
}
