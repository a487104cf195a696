//! The end of a pod by the node's own decision: it uses more than it may, or the node has too little left.
//!
//! Who decides that, and by which numbers, is the caller's matter; what follows is the same for all: containers get
//! the grace, nothing starts again, and the pod is `Failed` with the reason `Evicted`.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::{Deserialize, Serialize};

use crate::{
    Seen,
    conditions::{is_by_node, is_own_condition},
    pressure::is_of_file,
};

/// Why the node ends a pod, or never begins with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It, or the node, has used up too much.
    Shortage,
    /// All pods go, since the node does.
    NodeEnds,
    /// The node did not begin with it.
    Refused {
        /// Kubernetes' word for the reason, such as `OutOfcpu`.
        reason: String,
    },
}

impl Cause {
    /// Reason of the pod's status.
    pub fn reason(&self) -> &str {
        match self {
            Self::Shortage => "Evicted",
            Self::NodeEnds => "Terminated",
            Self::Refused { reason } => reason,
        }
    }

    /// Reason of the event that tells of it.
    pub fn event(&self) -> &str {
        match self {
            Self::NodeEnds => "NodeShutdown",
            Self::Shortage | Self::Refused { .. } => self.reason(),
        }
    }
}

/// Whether a pod with that status, which says that it is over, runs again all the same: its node has ended it, and has a file
/// that asks for it. As for the kubelet, one that is never started again is not.
pub fn comes_back(pod: &Pod, status: &PodStatus) -> bool {
    let reason = status.reason.as_deref();
    let by_node = [Cause::Shortage, Cause::NodeEnds];
    let cut_short = status.phase.as_deref() == Some("Failed")
        && by_node.iter().any(|cause| reason == Some(cause.reason()));
    cut_short && outlives_its_node(pod)
}

/// Whether the end of a node is not the end of the pod: the node has a file that asks for it.
pub fn outlives_its_node(pod: &Pod) -> bool {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    is_of_file(pod) && policy != Some("Never")
}

/// What a pod that [`comes_back`] keeps of its status: not when it began, and not that it is being ended. Who merges conditions
/// takes none away by leaving it out.
pub fn begin_anew(status: &mut PodStatus) {
    status.start_time = None;
    let conditions = status.conditions.iter_mut().flatten();
    for ended in conditions.filter(|condition| is_by_node(condition) && !is_own_condition(&condition.type_)) {
        ended.status = "False".to_owned();
        ended.message = None;
    }
}

/// Why and how a pod is evicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// What kind of end it is.
    pub cause: Cause,
    /// What was used up, by how much, for people: the message of the pod's status.
    pub message: String,
    /// What containers get between the stop signal and the kill.
    pub grace: SignedDuration,
    /// When it was decided: what ends later has not completed.
    pub at: Timestamp,
}

/// Evicts a pod; the first reason stays. True if it was not evicted before: then it is news.
pub fn evict(seen: &mut Seen, eviction: Eviction) -> bool {
    let first = seen.eviction.is_none();
    seen.eviction.get_or_insert(eviction);
    first
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: &Value, policy: &str) -> Pod {
        let pod = json!({"metadata": {"annotations": annotations},
            "spec": {"restartPolicy": policy, "containers": []}});
        serde_json::from_value(pod).unwrap()
    }

    fn ended(phase: &str, reason: Option<&str>) -> PodStatus {
        PodStatus {
            phase: Some(phase.to_owned()),
            reason: reason.map(str::to_owned),
            ..PodStatus::default()
        }
    }

    #[test]
    fn a_pod_of_a_file_comes_back_after_its_node_has_ended_it() {
        let of_file = json!({"kubernetes.io/config.mirror": "h"});
        let by_node = ["Terminated", "Evicted"].map(|reason| ended("Failed", Some(reason)));
        for status in &by_node {
            assert!(comes_back(&pod(&of_file, "Always"), status));
            assert!(comes_back(&pod(&of_file, "OnFailure"), status));
            assert!(!comes_back(&pod(&of_file, "Never"), status));
            assert!(!comes_back(&pod(&json!({}), "Always"), status));
        }
        let by_itself = [
            ended("Failed", None),
            ended("Failed", Some("DeadlineExceeded")),
            ended("Succeeded", None),
            ended("Running", Some("Terminated")),
        ];
        for status in &by_itself {
            assert!(!comes_back(&pod(&of_file, "Always"), status), "{status:?}");
        }
    }

    #[test]
    fn a_new_life_does_not_say_that_it_was_ended() {
        let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason});
        let mut status: PodStatus = serde_json::from_value(json!({
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [condition("Ready", ""), condition("DisruptionTarget", "TerminationByKubelet"),
                condition("example.com/own", "x")],
        }))
        .unwrap();
        begin_anew(&mut status);
        assert_eq!(status.start_time, None);
        let conditions = status.conditions.iter().flatten();
        let said: Vec<_> = conditions
            .map(|condition| (condition.type_.as_str(), condition.status.as_str()))
            .collect();
        let expected = [
            ("Ready", "True"),
            ("DisruptionTarget", "False"),
            ("example.com/own", "True"),
        ];
        assert_eq!(said, expected);
    }
}
