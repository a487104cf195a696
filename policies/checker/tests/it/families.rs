//! Each family of addresses has its own ICMP: the kernel drops the other's unasked, so no answer is about it.

use policies_checker::{
    Model,
    assertion::{self, Problem},
    connectivity::{Grouping, connectivity},
    difference::difference,
    rules::{RuleStatus, rule_use},
};
use policies_compiler::{Source, load_objects};
use serde_json::{Value, json};

/// `shop/web` and `shop/db` with addresses of these families, under a policy for both with these rules.
fn model(families: &[u8], rules: &Value) -> Model {
    let pod = |name: &str, last: u8| {
        let addresses = families.iter().map(|family| match family {
            4 => json!({"ip": format!("10.244.0.{last}")}),
            _ => json!({"ip": format!("fd00::{last}")}),
        });
        let addresses: Vec<Value> = addresses.collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"podIP": addresses[0]["ip"], "podIPs": addresses}})
    };
    let policy = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"selector": "all()", "types": ["Ingress", "Egress"], "ingress": rules, "egress": rules}});
    let objects = [pod("web", 1), pod("db", 2), policy];
    let origin = "here";
    let loaded = load_objects(objects.iter().map(|object| Source { origin, object }));
    Model::new(&loaded.unwrap().view)
}

fn allow(protocol: &str) -> Value {
    json!([{"action": "Allow", "protocol": protocol}])
}

fn everything_but(protocol: &str) -> Value {
    json!([{"action": "Deny", "protocol": protocol}, {"action": "Allow"}])
}

/// What speaks against an assertion; nothing if it holds.
fn against(model: &Model, text: &str) -> Option<String> {
    let proof = assertion::prove(model, &assertion::parse(text).unwrap());
    Some(match proof.problem? {
        Problem::Counterexample(packet) => packet.to_string(),
        other => other.text().unwrap(),
    })
}

#[test]
fn no_assertion_is_refuted_by_the_other_familys_icmp() {
    let (icmp, icmp_v6) = (allow("ICMP"), allow("ICMPv6"));
    assert_eq!(against(&model(&[4], &icmp_v6), "no pod reaches pod"), None);
    assert_eq!(against(&model(&[6], &icmp), "no pod reaches pod"), None);
    assert_eq!(
        against(&model(&[6], &icmp_v6), "no pod reaches pod").as_deref(),
        Some("shop/web (fd00::1) to shop/db (fd00::2), ICMPv6 type 0 code 0")
    );
    // Of two families it is the right one.
    let both = model(&[4, 6], &icmp_v6);
    assert_eq!(
        against(&both, "no pod reaches pod on ICMPv6").as_deref(),
        Some("shop/web (fd00::1) to shop/db (fd00::2), ICMPv6 type 0 code 0")
    );
    assert_eq!(against(&both, "no pod reaches pod on ICMP"), None);
    assert_eq!(against(&both, "pod reaches pod on ICMPv6"), None);
    // What a family cannot carry nobody needs to allow, but then it does not reach anybody either.
    assert_eq!(
        against(&model(&[4], &everything_but("ICMPv6")), "pod reaches pod on any"),
        None
    );
    assert_eq!(
        against(
            &model(&[4], &json!([{"action": "Allow"}])),
            "pod reaches pod on ICMPv6, TCP"
        )
        .as_deref(),
        Some("shop/db and shop/web have no addresses in common that carry ICMPv6")
    );
}

#[test]
fn lines_and_differences_are_of_packets_that_exist() {
    let lines = |model: &Model| -> Vec<String> {
        let lines = connectivity(model, Grouping::Equal).lines();
        lines.iter().map(|line| line.join(" | ")).collect()
    };
    let open = json!([{"action": "Allow"}]);
    assert_eq!(
        lines(&model(&[4], &everything_but("ICMPv6"))),
        lines(&model(&[4], &open))
    );
    assert!(lines(&model(&[4], &allow("ICMPv6"))).is_empty());
    let (of_v4, of_both) = (model(&[4], &open), model(&[4, 6], &open));
    assert!(difference(&of_v4, &model(&[4], &everything_but("ICMPv6"))).is_empty());
    let closed = difference(&of_both, &model(&[4, 6], &everything_but("ICMPv6")));
    let of_pods = closed
        .iter()
        .find(|change| change.from.starts_with("shop") && change.to.starts_with("shop"));
    let of_pods = of_pods.unwrap();
    assert_eq!((of_pods.family, of_pods.text.as_str()), (Some("IPv6"), "ICMPv6"));
}

#[test]
fn a_rule_for_the_other_familys_icmp_matches_nothing() {
    let status = |families: &[u8]| {
        let (rules, _) = rule_use(&model(families, &allow("ICMPv6")), &[]);
        // To and from addresses outside, a pod has what it can address.
        rules[0].status.clone()
    };
    assert_eq!(status(&[4]), RuleStatus::MatchesNothing);
    assert_eq!(status(&[6]), RuleStatus::Live);
}
