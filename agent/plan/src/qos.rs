//! Kubernetes' quality-of-service class of a pod, and what it means when memory runs out.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

/// `Guaranteed`, `Burstable` or `BestEffort`, by the requests and limits of cpu and memory.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let amounts = |container: &Container| -> (Amounts, Amounts) {
        let resources = container.resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        let mut requests = resources.requests.unwrap_or_default();
        // A request that is left out is the limit, as admission defaults it. One of zero is not left out.
        for (name, limit) in &limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
        (compute(requests), compute(limits))
    };
    let inits = spec.init_containers.iter().flatten();
    let all: Vec<(Amounts, Amounts)> = spec.containers.iter().chain(inits).map(amounts).collect();
    if all
        .iter()
        .all(|(requests, limits)| requests.is_empty() && limits.is_empty())
    {
        return "BestEffort";
    }
    let mut all = all.iter();
    let guaranteed = all.all(|(requests, limits)| limits.len() == 2 && requests == limits);
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

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

/// Thousandths, or the text of what is no amount, which equals only itself.
type Amounts = BTreeMap<String, Result<u128, String>>;

/// What counts of `amounts`: nothing of zero does.
fn compute(amounts: BTreeMap<String, Quantity>) -> Amounts {
    amounts
        .into_iter()
        .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"))
        .map(|(name, Quantity(text))| (name, api::quantity::exact_thousandths(&text).map_err(|_odd| text)))
        .filter(|(_, amount)| *amount != Ok(0))
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ResourceRequirements;

    use super::*;

    fn class(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> &'static str {
        let amounts = |list: &[(&str, &str)]| {
            Some(
                list.iter()
                    .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
                    .collect(),
            )
        };
        let resources = ResourceRequirements {
            requests: amounts(requests),
            limits: amounts(limits),
            ..ResourceRequirements::default()
        };
        let container = Container {
            resources: Some(resources),
            ..Container::default()
        };
        qos_class(&PodSpec {
            containers: vec![container],
            ..PodSpec::default()
        })
    }

    #[test]
    fn follows_requests_and_limits() {
        assert_eq!(class(&[], &[]), "BestEffort");
        assert_eq!(class(&[("cpu", "1")], &[]), "Burstable");
        assert_eq!(class(&[], &[("cpu", "1"), ("memory", "1Gi")]), "Guaranteed");
        assert_eq!(
            class(&[("cpu", "500m")], &[("cpu", "1"), ("memory", "1Gi")]),
            "Burstable"
        );
        assert_eq!(class(&[], &[("cpu", "1")]), "Burstable");
    }

    #[test]
    fn amounts_count_not_their_text() {
        assert_eq!(class(&[("cpu", "0m")], &[("memory", "0Mi")]), "BestEffort");
        assert_eq!(
            class(
                &[("cpu", "1000m"), ("memory", "1Gi")],
                &[("cpu", "1"), ("memory", "1024Mi")]
            ),
            "Guaranteed"
        );
    }

    #[test]
    fn who_requests_nothing_is_not_guaranteed_by_a_limit() {
        let limits = [("cpu", "1"), ("memory", "1Gi")];
        assert_eq!(class(&[("cpu", "0")], &limits), "Burstable");
        assert_eq!(class(&[("cpu", "0"), ("memory", "1Gi")], &limits), "Burstable");
        assert_eq!(class(&[("memory", "1Gi")], &limits), "Guaranteed");
    }

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
