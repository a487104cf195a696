//! What other policies would have done to recorded flows, at both ends.

use api::flow::FlowEvent;
use policies_checker::{
    Model,
    replay::replay,
    rules::{NoRule, RuleStatus, rule_use},
};
use policies_compiler::{Source, load_objects};
use serde_json::{Value, json};

fn pod(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": address}})
}

/// A policy for the pods of `app`.
fn policy(app: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["podSelector"] = json!({"matchLabels": {"app": app}});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": app, "namespace": "shop"}, "spec": spec})
}

fn model(policies: Vec<Value>) -> Model {
    // Other addresses than those that were recorded.
    let pods = vec![pod("web", "10.244.7.1"), pod("db", "10.244.7.2")];
    let objects: Vec<Value> = pods.into_iter().chain(policies).collect();
    let origin = "here";
    let loaded = load_objects(objects.iter().map(|object| Source { origin, object }));
    Model::new(&loaded.unwrap().view)
}

/// What was recorded of a flow from `web` to `db` at one of the two.
fn recorded(direction: &str, verdict: &str) -> FlowEvent {
    let (own, peer) = if direction == "egress" {
        ("web", "db")
    } else {
        ("db", "web")
    };
    let line = json!({
        "time": "1970-01-01T00:00:00Z", "node": "n", "pod": {"namespace": "shop", "name": own},
        "direction": direction, "verdict": verdict, "decidedBy": {"rule": "of old"}, "source": "10.244.0.1",
        "destination": "10.244.0.2", "peer": {"namespace": "shop", "name": peer}, "protocol": 6,
        "sourcePort": 50_000, "destinationPort": 5432, "epoch": 1,
    });
    serde_json::from_value(line).unwrap()
}

#[test]
fn what_one_end_would_allow_and_the_other_denies_stays_denied() {
    let lets_out = || policy("web", &json!({"policyTypes": ["Egress"], "egress": [{}]}));
    let lets_nothing_out = || policy("web", &json!({"policyTypes": ["Egress"]}));
    let lets_in = || policy("db", &json!({"ingress": [{}]}));
    let lets_nothing_in = || policy("db", &json!({"policyTypes": ["Ingress"]}));
    let (out, into) = (recorded("egress", "deny"), recorded("ingress", "deny"));
    for (policies, flow, opens) in [
        (vec![lets_out(), lets_nothing_in()], &out, false),
        (vec![lets_out(), lets_in()], &out, true),
        (vec![lets_nothing_out(), lets_in()], &into, false),
        (vec![lets_out(), lets_in()], &into, true),
    ] {
        let replayed = replay(&model(policies), std::slice::from_ref(flow));
        assert_eq!(
            replayed.changes.iter().any(|change| change.allowed),
            opens,
            "{replayed:?}"
        );
        let by_other: u64 = replayed.same_because.values().sum();
        assert_eq!(by_other, u64::from(!opens), "{replayed:?}");
    }
    // What was allowed here and is denied there is told by the record of the other end.
    let closed = model(vec![lets_nothing_in()]);
    let replayed = replay(
        &closed,
        &[recorded("egress", "allow"), recorded("ingress", "allow")],
    );
    assert_eq!((replayed.same, replayed.changes.len()), (1, 1), "{replayed:?}");
    assert!(!replayed.changes[0].by_other_end, "{replayed:?}");
}

#[test]
fn what_was_allowed_at_one_end_closes_by_the_other_where_that_one_tells_nothing() {
    let out = recorded("egress", "allow");
    let into = recorded("ingress", "allow");
    let nothing_in = || policy("db", &json!({"policyTypes": ["Ingress"]}));
    let nothing_out = || policy("web", &json!({"policyTypes": ["Egress"]}));
    for (policies, flow, by) in [
        (
            vec![nothing_in()],
            &out,
            "default-deny (isolated by NetworkPolicy shop/db)",
        ),
        (
            vec![nothing_out()],
            &into,
            "default-deny (isolated by NetworkPolicy shop/web)",
        ),
    ] {
        let replayed = replay(&model(policies), std::slice::from_ref(flow));
        let [change] = &replayed.changes[..] else {
            panic!("{replayed:?}")
        };
        assert_eq!((replayed.judged, replayed.same, change.count), (1, 0, 1));
        assert!(
            change.by_other_end && change.was_allowed && !change.allowed,
            "{change:?}"
        );
        assert_eq!((change.by.as_str(), change.was_by.as_str()), (by, "of old"));
        assert_eq!(change.pod, flow.pod.to_string());
    }
    // Both ends deny: the one that judged says so.
    let replayed = replay(
        &model(vec![nothing_in(), nothing_out()]),
        std::slice::from_ref(&out),
    );
    assert!(!replayed.changes[0].by_other_end, "{replayed:?}");
    // What the other end denied all along, as it tells, is no change.
    let replayed = replay(
        &model(vec![nothing_in()]),
        &[out.clone(), recorded("ingress", "deny")],
    );
    assert_eq!((replayed.same, replayed.changes.len()), (2, 0), "{replayed:?}");
    // Another connection of the same two is another.
    let mut other = recorded("ingress", "allow");
    other.source_port = 50_001;
    let replayed = replay(&model(vec![nothing_in()]), &[out, other]);
    let by_other: Vec<(bool, u64)> = replayed
        .changes
        .iter()
        .map(|c| (c.by_other_end, c.count))
        .collect();
    assert_eq!(by_other, [(false, 1), (true, 1)], "{replayed:?}");
}

#[test]
fn a_rule_that_logs_is_hit_by_what_it_took_note_of() {
    let rules = json!([{"action": "Log"}, {"action": "Log", "protocol": "UDP"}, {"action": "Allow"}]);
    let logging = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"name": "log", "namespace": "shop"},
        "spec": {"selector": "all()", "types": ["Egress"], "egress": rules}});
    let by = |name: &str, rule: u32| {
        let policy = format!("NetworkPolicy.projectcalico.org shop/{name}");
        api::flow::DecidedBy {
            rule: format!("{policy} rule {rule}"),
            policy: Some(policy),
            tier: Some("default".to_owned()),
            index: Some(rule),
        }
    };
    let mut flow = recorded("egress", "allow");
    flow.decided_by = by("log", 2);
    flow.logged_by = vec![by("log", 0), by("gone", 0)];
    let (rules, others) = rule_use(&model(vec![logging]), &[flow.clone(), flow]);
    let hits: Vec<(&str, u64)> = rules.iter().map(|rule| (rule.action, rule.hits)).collect();
    assert_eq!(hits, [("log", 2), ("log", 0), ("allow", 2)]);
    let others: Vec<_> = others.iter().map(|other| (other.hits, other.why)).collect();
    assert_eq!(others, [(2, NoRule::PolicyGone)]);
}

/// The address of a pod that is gone may be another's, of which the record says nothing.
#[test]
fn a_flow_to_a_pod_that_is_gone_is_left_out() {
    let mut flow = recorded("egress", "allow");
    flow.destination = "10.244.7.2".parse().unwrap();
    flow.peer = Some(
        api::flow::PodRef {
            namespace: "pay".to_owned(),
            name: "gone".to_owned(),
        }
        .into(),
    );
    let replayed = replay(&model(vec![]), std::slice::from_ref(&flow));
    assert_eq!(
        (replayed.judged, replayed.left_out.values().sum::<u64>()),
        (0, 1),
        "{replayed:?}"
    );
    // The node of a host endpoint is there without the object.
    flow.destination = "192.0.2.7".parse().unwrap();
    flow.peer = Some(
        api::flow::HostRef {
            name: "gone".to_owned(),
            node: "n".to_owned(),
        }
        .into(),
    );
    assert_eq!(replay(&model(vec![]), &[flow]).same, 1);
}

#[test]
fn what_passes_flows_on_past_a_rule_shadows_it_and_nothing_behind_it_does() {
    let tier = json!({"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": "fence"},
        "spec": {"order": 50, "defaultAction": "Pass"}});
    let fence = |rules: &Value| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "fence.l"},
            "spec": {"tier": "fence", "selector": "app == 'db'", "types": ["Ingress"], "ingress": rules}})
    };
    let later = || policy("db", &json!({"ingress": [{}]}));
    let shadows = |rules: &Value, behind: Vec<Value>| {
        let policies = [tier.clone(), fence(rules)].into_iter().chain(behind).collect();
        let (rules, _) = rule_use(&model(policies), &[]);
        let dead = rules.into_iter().filter_map(|rule| match rule.status {
            RuleStatus::Shadowed { by } => Some((rule.key.rule, by.into_iter().collect::<Vec<_>>())),
            _ => None,
        });
        dead.collect::<Vec<_>>()
    };
    let name = |rule: u32| format!("GlobalNetworkPolicy fence.l rule {rule}");
    let passing = json!([{"action": "Pass"}, {"action": "Deny", "protocol": "TCP"}]);
    for behind in [vec![later()], vec![]] {
        assert_eq!(shadows(&passing, behind), [(name(1), vec![name(0)])]);
    }
    // One that passes on may be shadowed itself, and several may have a part in it.
    let several = json!([{"action": "Allow", "protocol": "UDP"}, {"action": "Pass", "protocol": "TCP"},
        {"action": "Pass", "protocol": "TCP", "destination": {"ports": [80]}}, {"action": "Pass"}, {"action": "Deny"}]);
    let all = vec![name(0), name(1), name(3)];
    assert_eq!(
        shadows(&several, vec![later()]),
        [(name(2), vec![name(1)]), (name(4), all)]
    );
}
