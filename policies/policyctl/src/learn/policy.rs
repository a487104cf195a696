//! The flows of a pod as one NetworkPolicy. Pure: what is allowed decides the checker, which proves it.

use anyhow::Result;
use api::{flow::FlowEvent, selector::Labels};
use policies_checker::recommend::{Dialect, RecommendError, pod_selector, recommend};
use policies_compiler::ClusterView;
use serde_json::{Value, json};

use super::Written;

/// Writes the policy of one pod: what it sent and received, and nothing else. `flows` are those that it is an end of, with
/// what was denied.
pub(super) fn policy(name: &str, pod: &Value, view: &ClusterView, flows: &[FlowEvent]) -> Result<Written> {
    let metadata = &pod["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let labels: Labels = serde_json::from_value(metadata["labels"].clone()).unwrap_or_default();
    let pod_name = metadata["name"].as_str().unwrap_or_default();
    let selector = pod_selector(view, namespace, pod_name, &labels);
    let mut notes = Vec::new();
    if selector.get("matchLabels").is_none() {
        notes.push(
            "the pod has no labels but those of its revision: the policy selects every pod of its namespace of which that is true"
                .to_owned(),
        );
    }
    let rules = rules(view, flows, namespace, &selector, &mut notes)?;
    let is_closed = rules.iter().all(|(_, rules)| rules.is_empty());
    if is_closed {
        notes.push("the policy allows the pod nothing in either direction".to_owned());
    }
    // Also the direction in which nothing was seen is closed.
    let mut spec = json!({"podSelector": selector, "policyTypes": ["Ingress", "Egress"]});
    for (direction, rules) in rules {
        if !rules.is_empty() {
            spec[direction] = Value::Array(rules);
        }
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

/// Rules for each direction of the workload that is selected so.
fn rules(
    view: &ClusterView,
    flows: &[FlowEvent],
    namespace: &str,
    selector: &Value,
    notes: &mut Vec<String>,
) -> Result<[(&'static str, Vec<Value>); 2]> {
    let mut rules = ["ingress", "egress"].map(|direction| (direction, Vec::new()));
    if flows.is_empty() {
        notes.push("no flow of the pod was recorded while it was watched".to_owned());
        return Ok(rules);
    }
    let objects = match recommend(view, flows, Dialect::Kubernetes) {
        Ok(recommendation) => {
            notes.extend(recommendation.left_out);
            recommendation.objects
        }
        Err(RecommendError::NothingToAllow { left_out }) => {
            notes.extend(left_out);
            Vec::new()
        }
        Err(error @ RecommendError::NoPods) => {
            notes.push(error.to_string());
            Vec::new()
        }
        Err(error @ RecommendError::NotExact(_)) => return Err(error.into()),
    };
    let own = objects.iter().filter(|object| {
        object["metadata"]["namespace"] == namespace && object["spec"]["podSelector"] == *selector
    });
    // One that denies by default has no rules; a workload with more of them than a policy may have has several policies.
    for object in own {
        for (direction, rules) in &mut rules {
            rules.extend(
                object["spec"][*direction]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use policies_compiler::{Source, load_objects};

    use super::*;

    fn pod(name: &str, address: &str, labels: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": address}})
    }

    fn view(pods: &[Value]) -> ClusterView {
        let origin = "here";
        let loaded = load_objects(pods.iter().map(|object| Source { origin, object }));
        loaded.unwrap().view
    }

    /// What was decided at one end of a flow from `a` to `b`.
    fn flow(end: &str, verdict: &str, rule: &str) -> FlowEvent {
        let (direction, peer) = match end {
            "a" => ("egress", "b"),
            _ => ("ingress", "a"),
        };
        let kind = if verdict == "deny" { "denied" } else { "start" };
        let line = json!({
            "kind": kind, "time": "1970-01-01T00:00:00Z", "node": "n", "pod": {"namespace": "shop", "name": end},
            "peer": {"namespace": "shop", "name": peer}, "direction": direction, "verdict": verdict,
            "decidedBy": {"rule": rule}, "source": "10.244.0.1", "destination": "10.244.0.2", "protocol": 6,
            "sourcePort": 40000, "destinationPort": 80, "epoch": 1,
        });
        serde_json::from_value(line).unwrap()
    }

    fn two() -> [Value; 2] {
        [
            pod("a", "10.244.0.1", &json!({"app": "shop", "component": "api"})),
            pod("b", "10.244.0.2", &json!({"app": "shop"})),
        ]
    }

    #[test]
    fn a_pod_that_said_nothing_is_closed_in_every_revision() {
        let labels = json!({"app": "web", "pod-template-hash": "1", "controller-revision-hash": "x"});
        let pod = pod("web-1", "10.244.0.1", &labels);
        let written = policy("web", &pod, &ClusterView::default(), &[]).unwrap();
        let expected = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
        });
        assert_eq!(written.object["spec"], expected);
        assert!(written.notes[0].contains("no flow"), "{:?}", written.notes);
    }

    /// Each has the labels of the other, or would be found by them.
    #[test]
    fn the_policy_is_that_of_the_pod_and_of_no_other_workload() {
        let pods = two();
        let view = view(&pods);
        let flows = [flow("a", "allow", "no-policy"), flow("b", "allow", "no-policy")];
        let [of_a, of_b] =
            [&pods[0], &pods[1]].map(|pod| policy("x", pod, &view, &flows).unwrap().object["spec"].clone());
        let only_a = json!({"matchLabels": {"component": "api"}});
        let only_b = json!({"matchLabels": {"app": "shop"},
            "matchExpressions": [{"key": "component", "operator": "DoesNotExist"}]});
        assert_eq!((&of_a["podSelector"], &of_b["podSelector"]), (&only_a, &only_b));
        assert_eq!(of_a["egress"][0]["to"][0]["podSelector"], only_b);
        assert_eq!(of_b["ingress"][0]["from"][0]["podSelector"], only_a);
        assert!(of_a.get("ingress").is_none() && of_b.get("egress").is_none());
        let closed = policy("x", &pods[1], &view, &[]).unwrap().object;
        assert_eq!(
            closed["spec"]["podSelector"], only_b,
            "nor does a closed one close the other"
        );
    }

    #[test]
    fn flows_that_no_policy_can_allow_are_told_and_the_rest_is_closed() {
        let pods = two();
        let flows = [flow("b", "allow", "from-host")];
        let written = policy("x", &pods[1], &view(&pods), &flows).unwrap();
        assert!(written.object["spec"].get("ingress").is_none());
        for words in ["own node", "allows the pod nothing"] {
            let found = written.notes.iter().any(|note| note.contains(words));
            assert!(found, "{words}: {:?}", written.notes);
        }
    }

    #[test]
    fn what_the_other_end_denied_is_not_allowed() {
        let pods = two();
        let flows = [flow("a", "allow", "no-policy"), flow("b", "deny", "shop/closed")];
        let written = policy("x", &pods[0], &view(&pods), &flows).unwrap();
        assert!(
            written.object["spec"].get("egress").is_none(),
            "{}",
            written.object
        );
    }
}
