//! What a pod's quality-of-service class means when memory runs out.

use api::qos::qos_class;
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// How readily the kernel ends a container's processes when the node's memory is used up, its `oom_score_adj`, as the kubelet
/// has it (`GetContainerOOMScoreAdjust` of `pkg/kubelet/qos/policy.go`): last those that are guaranteed or critical to the
/// node, first those that request nothing, and in between the earlier the less memory they request of `node_memory_bytes`.
pub fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory_bytes: u64) -> i32 {
    if spec.priority_class_name.as_deref() == Some("system-node-critical") {
        return GUARANTEED_OOM_SCORE;
    }
    let own = match qos_class(spec) {
        "Guaranteed" => return GUARANTEED_OOM_SCORE,
        "BestEffort" => return BEST_EFFORT_OOM_SCORE,
        _ => burstable(container, node_memory_bytes),
    };
    // A sidecar goes no earlier than what it is there for.
    if container.restart_policy.as_deref() != Some("Always") {
        return own;
    }
    let others = spec
        .containers
        .iter()
        .map(|other| burstable(other, node_memory_bytes));
    others.min().map_or(own, |others| own.min(others))
}

/// Of the kubelet's policy; the kernel takes -1000 to 1000.
const GUARANTEED_OOM_SCORE: i32 = -997;
const BEST_EFFORT_OOM_SCORE: i32 = 1000;

/// After what is guaranteed, before what requests nothing.
fn burstable(container: &Container, node_memory_bytes: u64) -> i32 {
    let requests = container
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    let requested = requests.and_then(|requests| api::quantity::units(&requests.get("memory")?.0).ok());
    let thousandths = u128::from(requested.unwrap_or(0)) * 1000 / u128::from(node_memory_bytes.max(1));
    let score = 1000 - i32::try_from(thousandths).unwrap_or(i32::MAX);
    score.clamp(1000 + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_requests_less_goes_first() {
        const NODE: u64 = 8 << 30;
        let score = |resources: serde_json::Value, class: &str| {
            let spec: PodSpec = serde_json::from_value(serde_json::json!({
                "priorityClassName": class,
                "containers": [{"name": "a", "resources": resources}]}))
            .unwrap();
            oom_score_adj(&spec, &spec.containers[0], NODE)
        };
        let requests = |memory: &str| serde_json::json!({"requests": {"memory": memory}});
        assert_eq!(score(serde_json::json!({}), ""), 1000);
        assert_eq!(score(serde_json::json!({}), "system-node-critical"), -997);
        assert_eq!(
            score(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), ""),
            -997
        );
        assert_eq!(score(requests("1Gi"), ""), 875);
        assert_eq!(score(requests("1Ki"), ""), 999);
        assert_eq!(score(requests("8Gi"), ""), 3);
        assert_eq!(score(requests("80Gi"), ""), 3);
        assert_eq!(score(serde_json::json!({"requests": {"cpu": "1"}}), ""), 999);
    }

    #[test]
    fn a_sidecar_goes_no_earlier_than_what_it_is_there_for() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
            "containers": [{"name": "a", "resources": {"requests": {"memory": "4Gi"}}}]}))
        .unwrap();
        let inits = spec.init_containers.clone().unwrap();
        let scores = inits.iter().map(|init| oom_score_adj(&spec, init, 8 << 30));
        assert_eq!(scores.collect::<Vec<_>>(), [500, 999]);
    }
}
