//! What cases leave unsaid.

use policies_checker::{
    Model,
    cases::{CaseFile, run_cases},
};
use policies_compiler::{Source, load_objects};
use serde_json::json;

#[test]
fn a_case_of_icmp_without_a_type_is_an_echo_request() {
    let pod = |name: &str, addresses: [&str; 2]| {
        let ips = addresses.map(|ip| json!({"ip": ip}));
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
            "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": addresses[0], "podIPs": ips}})
    };
    let rules = [("ICMP", 8), ("ICMPv6", 128)]
        .map(|(protocol, kind)| json!({"action": "Allow", "protocol": protocol, "icmp": {"type": kind}}));
    let pings = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "p"},
        "spec": {"selector": "app == 'b'", "types": ["Ingress"], "ingress": rules}});
    let objects = [
        pod("a", ["10.0.0.1", "fd00::1"]),
        pod("b", ["10.0.0.2", "fd00::2"]),
        pings,
    ];
    let origin = "here";
    let loaded = load_objects(objects.iter().map(|object| Source { origin, object }));
    let model = Model::new(&loaded.unwrap().view);
    let case = |protocol: &str, more: &[(&str, serde_json::Value)], expect: &str| {
        let mut case = json!({"from": "shop/a", "to": "shop/b", "protocol": protocol, "expect": expect});
        case.as_object_mut()
            .unwrap()
            .extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        case
    };
    let reply = |kind: u8| [("port", json!(kind))];
    let file = json!({"cases": [
        case("ICMP", &[], "allow"),
        case("ICMPv6", &[], "allow"),
        case("ICMP", &reply(0), "deny"),
        case("ICMPv6", &reply(129), "deny"),
        case("47", &[], "deny"),
    ]});
    let cases: CaseFile = serde_json::from_value(file).unwrap();
    let report = run_cases(&model, &cases.cases);
    let failures: Vec<_> = report
        .cases
        .iter()
        .filter_map(|case| case.failure.as_ref())
        .collect();
    assert!(failures.is_empty(), "{failures:?}");
    let ports: Vec<u16> = report
        .cases
        .iter()
        .filter_map(|case| Some(case.packet.as_ref()?.port))
        .collect();
    assert_eq!(ports, [0x0800, 0x8000, 0, 0x8100, 0]);
}

#[test]
fn a_rule_that_lets_in_what_was_never_let_out_is_not_covered() {
    let pod = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
            "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": address}})
    };
    let policy = |name: &str, app: &str, mut spec: serde_json::Value| {
        spec["podSelector"] = json!({"matchLabels": {"app": app}});
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    };
    let into = policy("in", "b", json!({"ingress": [{"ports": [{"port": 80}]}]}));
    let nothing_out = policy("out", "a", json!({"policyTypes": ["Egress"]}));
    let case = |expect: &str| {
        let file = json!({"cases": [{"from": "shop/a", "to": "shop/b", "port": 80, "expect": expect}]});
        serde_json::from_value::<CaseFile>(file).unwrap().cases
    };
    let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
    for (policies, expect, covered) in [
        (vec![into.clone()], "allow", 1),
        (vec![into, nothing_out], "deny", 0),
    ] {
        let objects: Vec<_> = pods.iter().chain(&policies).collect();
        let origin = "here";
        let loaded = load_objects(objects.into_iter().map(|object| Source { origin, object }));
        let report = run_cases(&Model::new(&loaded.unwrap().view), &case(expect));
        assert_eq!(
            (report.failed, report.covered.len(), report.uncovered.len()),
            (0, covered, 1 - covered)
        );
    }
}

/// Readers of JUnit know cases by their names: of two with one, a result may be lost.
#[test]
fn every_case_has_a_name_of_its_own() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": "10.0.0.1"}});
    let loaded = load_objects([Source {
        origin: "here",
        object: &pod,
    }])
    .unwrap();
    let case = |more: &serde_json::Value| {
        let mut case = json!({"from": "shop/a", "to": "192.0.2.7", "port": 80, "expect": "allow"});
        case.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        case
    };
    let file = json!({"cases": [
        case(&json!({})),
        case(&json!({"sourcePort": 53})),
        case(&json!({"to": "shop/gone"})),
        case(&json!({"to": "shop/gone", "protocol": "UDP", "port": 53})),
        case(&json!({"name": "twice"})),
        case(&json!({"name": "twice"})),
    ]});
    let cases: CaseFile = serde_json::from_value(file).unwrap();
    let report = run_cases(&Model::new(&loaded.view), &cases.cases);
    let names: Vec<&str> = report.cases.iter().map(|case| case.name.as_str()).collect();
    let wanted = [
        "shop/a to 192.0.2.7, TCP 80",
        "shop/a to 192.0.2.7, TCP 80 from source port 53",
        "shop/a to shop/gone, 80",
        "shop/a to shop/gone, UDP 53",
        "twice",
        "twice",
    ];
    assert_eq!(names, wanted);
    let junit = report.junit();
    for name in ["twice (case 5)", "twice (case 6)", "shop/a to shop/gone, 80"] {
        assert_eq!(junit.matches(&format!("name=\"{name}\"")).count(), 1, "{junit}");
    }
}
