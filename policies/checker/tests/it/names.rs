//! Rules by name, as the person who asks sees them.

use api::flow::FlowEvent;
use policies_checker::{
    Model, assertion,
    cases::{Case, CaseReport, run_cases},
    connectivity::{Grouping, connectivity},
    difference::difference,
    replay::replay,
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

/// A recorded flow of the vault to an address outside.
fn recorded(verdict: &str, port: u16) -> FlowEvent {
    let line = json!({
        "time": "1970-01-01T00:00:00Z", "node": "n", "pod": {"namespace": "pci", "name": "vault"},
        "direction": "egress", "verdict": verdict, "decidedBy": {"rule": "of old"}, "source": "10.244.0.5",
        "destination": "203.0.113.9", "protocol": 6, "sourcePort": 50_000, "destinationPort": port, "epoch": 1,
    });
    serde_json::from_value(line).unwrap()
}

#[test]
fn replay_does_not_say_that_a_name_changes_what_it_may_leave() {
    let model = model(vec![egress(&json!([by_name()]))]);
    let replayed = replay(
        &model,
        &[
            recorded("allow", 443),
            recorded("deny", 443),
            recorded("allow", 80),
            recorded("deny", 80),
        ],
    );
    assert_eq!((replayed.judged, replayed.same), (4, 3), "{replayed:?}");
    // Both of port 443 depend on the name, and of port 80 none does.
    let because: Vec<u64> = replayed.same_because.values().copied().collect();
    assert_eq!(because, [2], "{replayed:?}");
    let [change] = &replayed.changes[..] else {
        panic!("{replayed:?}")
    };
    assert_eq!((change.service.as_str(), change.allowed), ("TCP 80", false));
}

fn cases(model: &Model, cases: &Value) -> CaseReport {
    run_cases(
        model,
        &serde_json::from_value::<Vec<Case>>(cases.clone()).unwrap(),
    )
}

#[test]
fn a_case_by_name_covers_a_rule_by_name() {
    let first = https("Deny", json!({"nets": ["198.51.100.0/24"]}));
    let rules = egress(&json!([first, by_name()]));
    let vault = |to: &str, port: u16, expect: &str| json!({"from": "pci/vault", "to": to, "port": port, "expect": expect});
    let of_name = "NetworkPolicy.projectcalico.org pci/e rule 1";
    let report = cases(
        &model(vec![rules.clone()]),
        &json!([
            vault("dns:API.example.com.@203.0.113.9", 443, "allow"),
            vault("dns:api.example.com@203.0.113.9", 80, "deny"),
            vault("dns:api.example.com@198.51.100.9", 443, "deny"),
            vault("dns:api.example.org", 443, "deny"),
            // An address that nobody named has no name.
            vault("203.0.113.9", 443, "deny"),
        ]),
    );
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(report.covered.iter().any(|key| key.rule == of_name), "{report:?}");

    let report = cases(
        &model(vec![rules]),
        &json!([
            // Not wherever the name may lead.
            vault("dns:api.example.com", 443, "allow"),
            vault("203.0.113.9", 443, "allow"),
            vault("dns:*.example.com", 443, "allow"),
            vault("dns:api.example.com@10.244.0.5", 443, "allow"),
        ]),
    );
    let failures: Vec<&str> = report
        .cases
        .iter()
        .filter_map(|case| case.failure.as_deref())
        .collect();
    let said = [
        "at 198.51.100.10; `dns:api.example.com@ADDRESS`",
        "if a resolver had given the name *.example.com for the address",
        "is not a name",
        "is the address of pci/vault",
    ];
    assert_eq!(failures.len(), said.len(), "{failures:?}");
    for (failure, said) in failures.iter().zip(said) {
        assert!(failure.contains(said), "{failure}");
    }
    let open = model(vec![egress(&json!([by_name()]))]);
    let anywhere = cases(&open, &json!([vault("dns:api.example.com", 443, "allow")]));
    assert_eq!(anywhere.failed, 0, "{anywhere:?}");
}

/// Names of the pools fit one pattern each; a case may ask for one that fits two.
#[test]
fn a_case_may_ask_for_a_name_that_no_rule_names() {
    let set = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
        "metadata": {"name": "gs", "labels": {"s": "1"}}, "spec": {"allowedEgressDomains": ["api.*.com"]}});
    let of_set = https(
        "Deny",
        json!({"selector": "s == '1'", "namespaceSelector": "global()"}),
    );
    let model = model(vec![set, egress(&json!([of_set, by_name()]))]);
    let case = |to: &str, expect: &str| json!({"from": "pci/vault", "to": to, "port": 443, "expect": expect});
    let report = cases(
        &model,
        &json!([
            case("dns:www.example.com", "allow"),
            case("dns:api.example.com", "deny"),
            case("dns:api.example.net", "deny"),
        ]),
    );
    assert_eq!(report.failed, 0, "{report:?}");
}
