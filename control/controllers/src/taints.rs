//! Taints that follow from what a node reports, and pods that do not tolerate theirs. Pure.
//!
//! As in Kubernetes: each condition that makes a node unfit has a taint that keeps new pods away (`NoSchedule`); a node
//! that is not ready or not heard of gets one more that sends pods away (`NoExecute`), each after the time that it
//! tolerates. Taints of other names are their writers' own, and are obeyed.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Pod, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Conditions that are bad when they hold, and their taints.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// The node's taints as they should be; nothing if that is what they are.
pub(crate) fn corrected(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let present: Vec<Taint> = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten())
        .cloned()
        .collect();
    let due = due(node);
    let is_due = |taint: &Taint| {
        let mut due = due.iter();
        due.any(|(key, effect)| (taint.key.as_str(), taint.effect.as_str()) == (*key, *effect))
    };
    let mut corrected: Vec<Taint> = present
        .iter()
        .filter(|taint| !is_ours(taint) || is_due(taint))
        .cloned()
        .collect();
    for (key, effect) in due.iter().copied() {
        if !corrected
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            corrected.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: (effect == NO_EXECUTE).then_some(Time(now)),
                value: None,
            });
        }
    }
    (corrected != present).then_some(corrected)
}

/// Since when, by our clock, each node has had each taint that sends pods away.
#[derive(Debug, Default)]
pub(crate) struct Exposure {
    since: HashMap<[String; 3], Instant>,
}

impl Exposure {
    /// Takes note of taints that came and went.
    pub(crate) fn observe<'a>(&mut self, nodes: impl Iterator<Item = &'a Node>, now: Instant) {
        let mut seen = HashMap::new();
        for node in nodes {
            for taint in expelling(node) {
                let key = exposure_of(node, taint);
                let since = self.since.get(&key).copied().unwrap_or(now);
                seen.insert(key, since);
            }
        }
        self.since = seen;
    }

    /// Whether the pod's time on the node is over. What it tolerates for a time, it tolerates from when the taint came.
    /// `unstated` is what pods tolerate of nodes that are not ready without saying so.
    pub(crate) fn is_over(&self, pod: &Pod, node: &Node, unstated: Duration, now: Instant) -> bool {
        let mut over = false;
        for taint in expelling(node) {
            let Some(since) = self.since.get(&exposure_of(node, taint)) else {
                continue;
            };
            let limit = match stay(pod, taint) {
                Stay::Forever => continue,
                Stay::For(limit) => limit,
                Stay::Unstated if taint.key == NOT_READY => unstated,
                Stay::Unstated => Duration::ZERO,
            };
            over |= now.saturating_duration_since(*since) >= limit;
        }
        over
    }
}

/// A taint with another value is another taint.
fn exposure_of(node: &Node, taint: &Taint) -> [String; 3] {
    [
        node.name_any(),
        taint.key.clone(),
        taint.value.clone().unwrap_or_default(),
    ]
}

/// How long a pod stays under a taint.
enum Stay {
    /// Nothing of the pod is about this taint.
    Unstated,
    For(Duration),
    Forever,
}

/// As in Kubernetes the shortest time of all tolerations that match counts.
fn stay(pod: &Pod, taint: &Taint) -> Stay {
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let matching: Vec<&Toleration> = tolerations
        .filter(|toleration| tolerates(toleration, taint))
        .collect();
    if matching.is_empty() {
        return Stay::Unstated;
    }
    let seconds = matching
        .iter()
        .filter_map(|toleration| toleration.toleration_seconds)
        .min();
    match seconds {
        None => Stay::Forever,
        Some(seconds) => Stay::For(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !(effect.is_empty() || effect == taint.effect) {
        return false;
    }
    match text(&toleration.operator).as_str() {
        "Exists" => key.is_empty() || key == taint.key,
        "" | "Equal" => key == taint.key && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

/// Taints that send pods away. That a node is silent is the business of its heartbeat.
fn expelling(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == NO_EXECUTE && taint.key != UNREACHABLE)
}

/// Taints that the node's state calls for: key and effect.
fn due(node: &Node) -> Vec<(&'static str, &'static str)> {
    let conditions = || {
        node.status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
    };
    let is = |kind: &str, value: &str| {
        conditions().any(|condition| condition.type_ == kind && condition.status == value)
    };
    let mut due = Vec::new();
    for (status, key) in [("False", NOT_READY), ("Unknown", UNREACHABLE)] {
        if is("Ready", status) {
            due.extend([(key, NO_SCHEDULE), (key, NO_EXECUTE)]);
        }
    }
    let pressures = PRESSURES.iter().filter(|(kind, _)| is(kind, "True"));
    due.extend(pressures.map(|(_, key)| (*key, NO_SCHEDULE)));
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        due.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    due
}

fn is_ours(taint: &Taint) -> bool {
    let of_condition = PRESSURES.iter().any(|(_, key)| *key == taint.key);
    of_condition || [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(ready: &str, pressure: &str, taints: &Value) -> Node {
        let node = json!({
            "metadata": {"name": "n"},
            "spec": {"taints": taints},
            "status": {"conditions": [
                {"type": "MemoryPressure", "status": pressure}, {"type": "Ready", "status": ready},
            ]},
        });
        serde_json::from_value(node).unwrap()
    }

    fn pod(tolerations: &Value) -> Pod {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "tolerations": tolerations}});
        serde_json::from_value(pod).unwrap()
    }

    fn names(taints: Option<Vec<Taint>>) -> Vec<String> {
        let taints = taints.into_iter().flatten();
        taints
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect()
    }

    #[test]
    fn taints_follow_conditions_and_leave_those_of_others_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let own = json!([{"key": "lab/own", "effect": "NoExecute"}]);
        assert_eq!(corrected(&node("True", "False", &own), now), None);
        assert_eq!(
            names(corrected(&node("True", "True", &own), now)),
            [
                "lab/own:NoExecute",
                "node.kubernetes.io/memory-pressure:NoSchedule"
            ]
        );
        let unknown = corrected(&node("Unknown", "Unknown", &json!([])), now).unwrap();
        assert_eq!(
            names(Some(unknown.clone())),
            [
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        assert!(unknown[1].time_added.is_some());
        // Well again: ours go, and what is right already is not written again.
        let mut well = node("True", "False", &json!([]));
        well.spec.as_mut().unwrap().taints = Some(unknown.clone());
        assert_eq!(corrected(&well, now), Some(vec![]));
        let mut silent = node("Unknown", "Unknown", &json!([]));
        silent.spec.as_mut().unwrap().taints = Some(unknown);
        assert_eq!(corrected(&silent, Timestamp::now()), None);
        let mut cordoned = node("True", "False", &json!([]));
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        assert_eq!(
            names(corrected(&cordoned, now)),
            ["node.kubernetes.io/unschedulable:NoSchedule"]
        );
    }

    #[test]
    fn pods_go_when_their_time_under_a_taint_is_over() {
        let own = json!([{"key": "lab/own", "value": "x", "effect": "NoExecute"}]);
        let after = |taints: &Value, tolerations: Value, seconds: u64| {
            let node = node("True", "False", taints);
            let (mut exposure, start) = (Exposure::default(), Instant::now());
            exposure.observe([&node].into_iter(), start);
            let later = start + Duration::from_secs(seconds);
            exposure.observe([&node].into_iter(), later);
            exposure.is_over(&pod(&tolerations), &node, Duration::from_secs(300), later)
        };
        assert!(after(&own, json!([]), 0));
        let timed = json!([
            {"key": "lab/own", "operator": "Exists", "tolerationSeconds": 20},
            {"key": "lab/own", "value": "x", "effect": "NoExecute", "tolerationSeconds": 10},
        ]);
        assert!(!after(&own, timed.clone(), 9) && after(&own, timed, 10));
        assert!(!after(&own, json!([{"operator": "Exists"}]), 9999));
        assert!(
            after(&own, json!([{"key": "lab/own", "value": "y"}]), 0),
            "another value"
        );
        let not_ready = json!([{"key": NOT_READY, "effect": "NoExecute"}]);
        assert!(!after(&not_ready, json!([]), 299) && after(&not_ready, json!([]), 300));
        let silent = json!([{"key": UNREACHABLE, "effect": "NoExecute"}]);
        assert!(!after(&silent, json!([]), 9999), "the heartbeat decides");
    }
}
