//! The flows of a pod as one NetworkPolicy. Pure: what is allowed decides the checker, which proves it.

use anyhow::Result;
use api::flow::{FlowEvent, FlowVerdict};
use policies_checker::recommend::{Dialect, recommend};
use policies_compiler::ClusterView;
use serde_json::{Value, json};

use super::Written;

/// Writes the policy of one pod: what it sent and received, and nothing else.
pub(super) fn policy(name: &str, pod: &Value, view: &ClusterView, flows: &[FlowEvent]) -> Result<Written> {
    let labels = pod
        .pointer("/metadata/labels")
        .cloned()
        .unwrap_or_else(|| json!({}));
    let namespace = pod
        .pointer("/metadata/namespace")
        .cloned()
        .unwrap_or_else(|| json!("default"));
    let allowed: Vec<FlowEvent> = flows
        .iter()
        .filter(|flow| flow.verdict == FlowVerdict::Allow)
        .cloned()
        .collect();
    let mut notes = Vec::new();
    let mut spec = json!({"podSelector": {"matchLabels": labels}});
    if !allowed.is_empty() {
        let recommendation = recommend(view, &allowed, Dialect::Kubernetes)?;
        notes.extend(recommendation.left_out);
        let own = recommendation.objects.into_iter().find(|object| {
            object.pointer("/metadata/namespace") == Some(&namespace) && selects(object, &labels)
        });
        if let Some(own) = own {
            spec = own["spec"].clone();
        }
    }
    // Also the direction in which nothing was seen is closed.
    spec["policyTypes"] = json!(["Ingress", "Egress"]);
    if labels.as_object().is_none_or(serde_json::Map::is_empty) {
        notes.push("the pod has no labels: the policy selects every pod of its namespace".to_owned());
    }
    Ok(Written {
        object: json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }),
        notes,
    })
}

/// Whether a policy is that of the workload with these labels, and not the one that denies by default.
fn selects(policy: &Value, labels: &Value) -> bool {
    let wanted = policy
        .pointer("/spec/podSelector/matchLabels")
        .and_then(Value::as_object);
    wanted.is_some_and(|wanted| {
        !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_said_nothing_is_closed() {
        let pod = json!({"metadata": {"name": "a", "namespace": "shop", "labels": {"app": "web"}}});
        let written = policy("web", &pod, &ClusterView::default(), &[]).unwrap();
        let expected = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
        });
        assert_eq!(written.object["spec"], expected);
        assert_eq!(written.notes, Vec::<String>::new());
    }

    #[test]
    fn the_policy_of_the_workload_is_told_from_the_others() {
        let labels = json!({"app": "web", "pod-template-hash": "1"});
        let with = |selector: Value| json!({"spec": {"podSelector": selector}});
        assert!(selects(&with(json!({"matchLabels": {"app": "web"}})), &labels));
        assert!(!selects(&with(json!({"matchLabels": {"app": "db"}})), &labels));
        assert!(!selects(&with(json!({})), &labels));
    }
}
