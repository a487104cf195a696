//! Whether the node begins with a pod that is bound to it: the scheduler has asked the same, but not everybody asks the scheduler.

use agent_plan::{Cause, Eviction, is_critical};
use control_scheduler::{Candidate, refusal};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

/// Whether no node has begun with the pod. One that has begun is not judged again: it has its place.
pub(super) fn never_began(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().is_none_or(|status| {
            status.start_time.is_none() && matches!(status.phase.as_deref(), None | Some("Pending"))
        })
}

/// Why the node does not begin with it; nothing if it does. Pods of the node's own directory and those that the cluster cannot do
/// without are begun with in any case: the kubelet would end others for them.
pub(super) fn refused(pod: &Pod, candidate: &Candidate<'_>, now: Timestamp) -> Option<Eviction> {
    if is_critical(pod) {
        return None;
    }
    let refusal = refusal(pod, candidate)?;
    Some(Eviction {
        cause: Cause::Refused {
            reason: refusal.reason,
        },
        message: format!("Pod was rejected: {}", refusal.message),
        grace: SignedDuration::ZERO,
        at: now,
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn who_began_has_its_place_and_who_is_needed_gets_one() {
        let pod = |metadata: Value, priority: i32, status: Value| -> Pod {
            let pod = json!({"metadata": metadata, "status": status, "spec": {"priority": priority,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "9"}}}]}});
            serde_json::from_value(pod).unwrap()
        };
        let status = json!({"phase": "Pending"});
        let began = json!({"phase": "Pending", "startTime": "2026-01-01T00:00:00Z"});
        assert!(never_began(&pod(json!({}), 0, status.clone())));
        assert!(!never_began(&pod(json!({}), 0, began)));
        assert!(!never_began(&pod(json!({}), 0, json!({"phase": "Failed"}))));
        let node = json!({"status": {"allocatable": {"cpu": "1", "pods": "1"}}});
        let node: Node = serde_json::from_value(node).unwrap();
        let candidate = Candidate::new(&node, []);
        let said = |metadata: Value, priority| {
            let pod = pod(metadata, priority, status.clone());
            refused(&pod, &candidate, Timestamp::UNIX_EPOCH)
        };
        let refused = said(json!({}), 0).unwrap();
        assert_eq!(
            (refused.cause.reason(), refused.cause.event()),
            ("OutOfcpu", "OutOfcpu")
        );
        assert!(
            refused
                .message
                .starts_with("Pod was rejected: Node didn't have enough resource: cpu"),
            "{}",
            refused.message
        );
        assert_eq!(said(json!({}), 2_000_000_000), None);
        let noted = |key: &str| said(json!({"annotations": {key: "file"}}), 0);
        assert_eq!(noted("kubernetes.io/config.mirror"), None);
        assert!(
            noted("kubernetes.io/config.source").is_some(),
            "anybody may write that"
        );
    }
}
