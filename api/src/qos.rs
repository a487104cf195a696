//! Kubernetes' quality-of-service class of a pod.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::quantity;

/// The class that the pod was given when it was made; what its spec says of one that was given none.
pub fn class_of(pod: &Pod) -> &str {
    let given = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    let given = given.filter(|class| !class.is_empty());
    given.unwrap_or_else(|| pod.spec.as_ref().map_or("BestEffort", qos_class))
}

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

/// Thousandths, or the text of what is no amount, which equals only itself.
type Amounts = BTreeMap<String, Result<u128, String>>;

/// What counts of `amounts`: nothing of zero does.
fn compute(amounts: BTreeMap<String, Quantity>) -> Amounts {
    amounts
        .into_iter()
        .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"))
        .map(|(name, Quantity(text))| (name, quantity::exact_thousandths(&text).map_err(|_odd| text)))
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
}
