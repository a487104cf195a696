//! Rules by name, as the person who asks sees them.

use policies_checker::{
    Model, assertion,
    connectivity::{Grouping, connectivity},
    difference::difference,
    rules::{RuleStatus, rule_use},
};
use policies_compiler::{Source, load_objects};
use serde_json::{Value, json};

/// The pod `pci/vault` under these objects.
fn model(objects: Vec<Value>) -> Model {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vault", "namespace": "pci"},
        "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": "10.244.0.5"}});
    let objects: Vec<Value> = std::iter::once(pod).chain(objects).collect();
    let origin = "here";
    let loaded = load_objects(objects.iter().map(|object| Source { origin, object }));
    Model::new(&loaded.unwrap().view)
}

/// A Calico policy with these egress rules.
fn egress(rules: &Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"name": "e", "namespace": "pci"},
        "spec": {"selector": "all()", "types": ["Egress"], "egress": rules}})
}

/// A rule that does this with TCP 443 to a destination.
fn https(action: &str, mut destination: Value) -> Value {
    destination["ports"] = json!([443]);
    json!({"action": action, "protocol": "TCP", "destination": destination})
}

fn by_name() -> Value {
    https("Allow", json!({"domains": ["*.example.com"]}))
}

/// What speaks against an assertion; nothing if it holds.
fn against(model: &Model, text: &str) -> Option<String> {
    let proof = assertion::prove(model, &assertion::parse(text).unwrap());
    match proof.problem? {
        assertion::Problem::Counterexample(packet) => Some(packet.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rule_by_name_opens_what_the_name_may_lead_to() {
    let model = model(vec![egress(&json!([by_name()]))]);
    for ends in ["internet", "outside", "anything"] {
        assert_eq!(
            against(&model, &format!("no pod in ns(pci) reaches {ends}")).as_deref(),
            Some("pci/vault (10.244.0.5) to *.example.com (if at 203.0.113.10), TCP 443"),
            "{ends}"
        );
    }
    assert_eq!(
        against(&model, "no pod in ns(pci) reaches cidr(192.168.7.9) on 443").as_deref(),
        Some("pci/vault (10.244.0.5) to *.example.com (if at 192.168.7.9), TCP 443")
    );
    assert_eq!(against(&model, "no pod in ns(pci) reaches internet on 80"), None);
    // An address without the name stays closed.
    assert_eq!(
        against(&model, "ns(pci) reaches cidr(203.0.113.10) on 443").as_deref(),
        Some("pci/vault (10.244.0.5) to 203.0.113.10, TCP 443")
    );
    // Names are those of destinations.
    assert_eq!(against(&model, "internet reaches ns(pci) on any"), None);
    let lines = connectivity(&model, Grouping::Equal).lines();
    let lines: Vec<String> = lines.iter().map(|line| line.join(" | ")).collect();
    assert_eq!(
        lines,
        [
            "pci/vault | *.example.com | TCP 443",
            "any address | pci/vault | any"
        ]
    );
    let (rules, _) = rule_use(&model, &[]);
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0].status, RuleStatus::Live);
}

#[test]
fn what_an_earlier_rule_closes_no_name_opens() {
    let first = https("Deny", json!({"nets": ["10.0.0.0/8"]}));
    let model = model(vec![egress(&json!([first, by_name()]))]);
    assert_eq!(
        against(&model, "no pod in ns(pci) reaches cidr(10.0.0.0/8)"),
        None
    );
    assert!(against(&model, "no pod in ns(pci) reaches cidr(11.0.0.0/8)").is_some());
}

#[test]
fn a_rule_by_name_that_goes_or_becomes_another_is_a_difference() {
    let rule = |domain: &str| egress(&json!([https("Allow", json!({"domains": [domain]}))]));
    let old = model(vec![rule("*.example.com")]);
    let shown = |new: &Model| -> Vec<String> {
        let changes = difference(&old, new);
        let one = |c: &policies_checker::difference::Change| {
            format!("{:?} {} -> {}: {}", c.effect, c.from, c.to, c.text)
        };
        changes.iter().map(one).collect()
    };
    let denied = model(vec![egress(&json!([https("Deny", json!({}))]))]);
    assert_eq!(shown(&denied), ["Closes pci/vault -> *.example.com: TCP 443"]);
    let other = model(vec![rule("api.example.org")]);
    assert_eq!(
        shown(&other),
        [
            "Opens pci/vault -> api.example.org: TCP 443",
            "Closes pci/vault -> *.example.com: TCP 443"
        ]
    );
    let narrower = model(vec![rule("api.example.com")]);
    assert_eq!(shown(&narrower), ["Closes pci/vault -> *.example.com: TCP 443"]);
    assert!(shown(&model(vec![rule("*.example.com")])).is_empty());
}

/// Sets hold addresses by name, and cluster policies ask for names too.
#[test]
fn names_of_sets_and_of_cluster_policies_count() {
    let set = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
        "metadata": {"name": "gs", "labels": {"s": "1"}}, "spec": {"allowedEgressDomains": ["api.example.org"]}});
    let of_set = https(
        "Allow",
        json!({"selector": "s == '1'", "namespaceSelector": "global()"}),
    );
    let model_of_set = model(vec![set.clone(), egress(&json!([of_set]))]);
    assert_eq!(
        against(&model_of_set, "no ns(pci) reaches internet").as_deref(),
        Some("pci/vault (10.244.0.5) to api.example.org (if at 203.0.113.10), TCP 443")
    );
    // An address may have a name that is denied and one that is allowed.
    let denied = https(
        "Deny",
        json!({"selector": "s == '1'", "namespaceSelector": "global()"}),
    );
    let late = model(vec![set.clone(), egress(&json!([by_name(), denied]))]);
    let early = model(vec![set, egress(&json!([denied, by_name()]))]);
    let changes = difference(&late, &early);
    let ends: Vec<&str> = changes.iter().map(|change| change.to.as_str()).collect();
    assert_eq!(ends, ["*.example.com, api.example.org"]);

    let cluster_policy = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "c"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
        "egress": [{"action": "Accept", "to": [{"domainNames": ["*.example.net"]}]},
            {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]}]}});
    assert_eq!(
        against(&model(vec![cluster_policy]), "no ns(pci) reaches internet on 80").as_deref(),
        Some("pci/vault (10.244.0.5) to *.example.net (if at 203.0.113.10), TCP 80")
    );
}
