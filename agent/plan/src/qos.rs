//! Kubernetes' quality-of-service class of a pod.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

/// `Guaranteed`, `Burstable` or `BestEffort`, by the requests and limits of cpu and memory.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let amounts = |container: &Container| -> (Amounts, Amounts) {
        let resources = container.resources.clone().unwrap_or_default();
        (compute(resources.requests), compute(resources.limits))
    };
    let inits = spec.init_containers.iter().flatten();
    let all: Vec<(Amounts, Amounts)> = spec.containers.iter().chain(inits).map(amounts).collect();
    if all
        .iter()
        .all(|(requests, limits)| requests.is_empty() && limits.is_empty())
    {
        return "BestEffort";
    }
    // A request that is left out is the limit, as admission defaults it.
    let guaranteed = all.iter().all(|(requests, limits)| {
        limits.len() == 2
            && requests
                .iter()
                .all(|(name, amount)| limits.get(name) == Some(amount))
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

type Amounts = BTreeMap<String, String>;

fn compute(amounts: Option<BTreeMap<String, Quantity>>) -> Amounts {
    amounts
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, Quantity(amount))| matches!(name.as_str(), "cpu" | "memory") && amount != "0")
        .map(|(name, Quantity(amount))| (name, amount))
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
}
