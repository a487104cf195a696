//! NetworkPolicy as Kubernetes documents it, case by case. Each question is put to the reference and to the
//! compiled tables, for IPv4 and IPv6, and both must give the expected answer.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use policies_compiler::{
    CalicoObject, ClusterView, Diagnostic, PodView, compile, load_objects, reference, validate,
};
use policies_ir::tables::{Direction, EndpointId, Packet, Verdict, lookup};
use serde_json::{Value, json};

use crate::sources;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const SCTP: u8 = 132;

const OUTSIDE: &str = "203.0.113.9";
const OUTSIDE_V6: &str = "2001:db8::9";
const NODE: &str = "10.0.0.254";

/// Pods with an IPv4 and an IPv6 address that end in the same number, each an endpoint of that number:
/// shop/web 1, shop/db 2, shop/job 3, pay/web 4, lost/web 5 (whose namespace is not known).
fn lab(policies: &[Value]) -> ClusterView {
    let pods = [
        ("shop", "web"),
        ("shop", "db"),
        ("shop", "job"),
        ("pay", "web"),
        ("lost", "web"),
    ];
    let pods = pods.iter().zip(1u8..).map(|((namespace, app), number)| {
        json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"namespace": namespace, "name": app, "labels": {"app": app}},
            "spec": {"containers": [{"name": "main", "ports": [
                {"name": "api", "containerPort": 8000 + u16::from(number)},
                {"name": "api", "containerPort": 9000, "protocol": "UDP"}]}]},
            "status": {"podIP": v4(number).to_string(),
                "podIPs": [{"ip": v4(number).to_string()}, {"ip": v6(number).to_string()}]}})
    });
    let namespaces = [("shop", "a"), ("pay", "b")].map(
        |(name, team)| json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": {"team": team}}}),
    );
    let objects: Vec<Value> = namespaces.into_iter().chain(pods).collect();
    let mut view = load_objects(sources(&objects)).expect("the lab loads").view;
    view.namespaces.remove("lost");
    // Past the loader, which takes no policy that is not valid.
    let typed = |policy: &Value| serde_json::from_value(policy.clone()).expect("a policy");
    view.policies.extend(policies.iter().map(typed));
    for (pod, number) in view.pods.iter_mut().zip(1..) {
        pod.endpoint = Some(EndpointId(number));
    }
    view.host_addresses = [NODE.parse().unwrap()].into();
    // What a pod may send to its own node beyond its policies is another matter.
    let to_host = json!({"metadata": {"name": "default"}, "spec": {"defaultEndpointToHostAction": "Return"}});
    let to_host = serde_json::from_value(to_host).unwrap();
    view.calico.push(CalicoObject::FelixConfiguration(to_host));
    view
}

/// A policy in namespace `shop`.
fn policy(spec: &Value) -> Value {
    json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
}

fn v4(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn v6(number: u8) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number.into()])
}

#[track_caller]
fn ask(
    view: &ClusterView,
    endpoint: u32,
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: u16,
) -> bool {
    let packet = Packet {
        direction,
        peer,
        inside: None,
        protocol,
        source_port: 40000,
        port,
    };
    let tables = lookup(&compile(view).tables, EndpointId(endpoint), &packet).verdict;
    let reference = reference(view, EndpointId(endpoint), &packet).expect("the endpoint exists");
    assert_eq!(
        reference.verdict, tables,
        "the reference and the tables differ: {packet:?}\n{reference:#?}"
    );
    tables == Verdict::Allow
}

/// Whether the pod lets in a TCP connection from another.
#[track_caller]
fn lets_in(view: &ClusterView, pod: u8, from: u8, port: u16) -> bool {
    let answers = [v4(from), v6(from)].map(|peer| ask(view, pod.into(), Direction::Ingress, peer, TCP, port));
    assert_eq!(answers[0], answers[1], "IPv4 and IPv6 differ");
    answers[0]
}

/// Whether the pod lets out a TCP connection to another.
#[track_caller]
fn lets_out(view: &ClusterView, pod: u8, to: u8, port: u16) -> bool {
    let answers = [v4(to), v6(to)].map(|peer| ask(view, pod.into(), Direction::Egress, peer, TCP, port));
    assert_eq!(answers[0], answers[1], "IPv4 and IPv6 differ");
    answers[0]
}

#[track_caller]
fn lets_in_from(view: &ClusterView, pod: u32, from: &str) -> bool {
    ask(view, pod, Direction::Ingress, from.parse().unwrap(), TCP, 80)
}

#[test]
fn without_policy_everything_is_allowed() {
    let view = lab(&[]);
    assert!(lets_in(&view, 2, 1, 80) && lets_in(&view, 2, 4, 80) && lets_out(&view, 2, 4, 80));
    assert!(lets_in_from(&view, 2, OUTSIDE) && lets_in_from(&view, 2, OUTSIDE_V6));
    assert!(ask(&view, 2, Direction::Ingress, v4(1), 47, 0));
}

#[test]
fn default_deny_isolates_one_direction_of_one_namespace() {
    let view = lab(&[policy(&json!({"podSelector": {}}))]);
    assert!(!lets_in(&view, 2, 1, 80) && !lets_in_from(&view, 2, OUTSIDE));
    assert!(lets_out(&view, 2, 1, 80));
    assert!(lets_in(&view, 4, 1, 80));
}

#[test]
fn an_empty_rule_allows_everything() {
    let view = lab(&[policy(&json!({"podSelector": {}, "ingress": [{}]}))]);
    assert!(lets_in(&view, 2, 4, 80) && lets_in_from(&view, 2, OUTSIDE));
    assert!(ask(&view, 2, Direction::Ingress, v4(1), ICMP, 0x0800));
    let view = lab(&[policy(
        &json!({"podSelector": {}, "ingress": [{"from": [], "ports": []}]}),
    )]);
    assert!(lets_in(&view, 2, 4, 80));
}

#[test]
fn pod_selector_alone_means_the_own_namespace() {
    let view = lab(&[policy(&json!({"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]}))]);
    assert!(lets_in(&view, 2, 1, 80));
    assert!(!lets_in(&view, 2, 3, 80) && !lets_in(&view, 2, 4, 80) && !lets_in_from(&view, 2, OUTSIDE));
    assert!(lets_in(&view, 3, 4, 80), "the policy does not select job");
}

#[test]
fn selectors_in_one_peer_must_both_hold_and_in_two_either() {
    let team_b = json!({"matchLabels": {"team": "b"}});
    let db = json!({"matchLabels": {"app": "db"}});
    let one = lab(&[policy(&json!({"podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": team_b, "podSelector": db}]}]}))]);
    assert!(!lets_in(&one, 3, 4, 80) && !lets_in(&one, 3, 2, 80));
    let two = lab(&[policy(&json!({"podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": team_b}, {"podSelector": db}]}]}))]);
    assert!(lets_in(&two, 3, 4, 80) && lets_in(&two, 3, 2, 80));
    assert!(!lets_in(&two, 3, 1, 80));
}

#[test]
fn an_empty_namespace_selector_selects_pods_but_not_addresses() {
    let view = lab(&[policy(
        &json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}),
    )]);
    assert!(lets_in(&view, 2, 4, 80) && !lets_in_from(&view, 2, OUTSIDE));
}

#[test]
fn a_namespace_that_is_not_known_is_not_selected_by_what_it_lacks() {
    let lacks = json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]});
    let view = lab(&[policy(
        &json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": lacks}]}]}),
    )]);
    assert!(!lets_in(&view, 2, 5, 80));
    assert_eq!(
        compile(&view).diagnostics,
        [Diagnostic::UnknownNamespace("lost".to_owned())]
    );
}

#[test]
fn ip_blocks_hold_pods_and_leave_out_exceptions() {
    let view = lab(&[policy(&json!({"podSelector": {}, "ingress": [{"from": [
        {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.4/32"]}},
        {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"]}},
        {"ipBlock": {"cidr": "2001:db8::/32"}}]}]}))]);
    assert!(lets_in_from(&view, 2, "10.0.0.1") && !lets_in_from(&view, 2, "10.0.0.4"));
    assert!(lets_in_from(&view, 2, OUTSIDE) && !lets_in_from(&view, 2, "203.0.113.200"));
    assert!(lets_in_from(&view, 2, OUTSIDE_V6) && !lets_in_from(&view, 2, "2001:db9::9"));
    assert!(
        !lets_in_from(&view, 2, "fd00::1"),
        "the pod's other address is in no block"
    );
    let any_v4 = lab(&[policy(
        &json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}),
    )]);
    assert!(lets_in_from(&any_v4, 2, OUTSIDE) && !lets_in_from(&any_v4, 2, OUTSIDE_V6));
    let excepted = lab(&[policy(&json!({"podSelector": {}, "ingress": [{"from": [
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.4/32"]}}, {"ipBlock": {"cidr": "10.0.0.4/31"}}]}]}))]);
    assert!(
        lets_in_from(&excepted, 2, "10.0.0.4"),
        "an exception does not bind other peers"
    );
}

#[test]
fn ports_ranges_and_protocols() {
    let view = lab(&[policy(&json!({"podSelector": {}, "ingress": [{"ports": [
        {"port": 80}, {"port": 1000, "endPort": 2000}, {"protocol": "UDP", "port": 53}, {"protocol": "SCTP"}]}]}))]);
    for (protocol, port, expected) in [
        (TCP, 80, true),
        (TCP, 81, false),
        (UDP, 80, false),
        (TCP, 999, false),
        (TCP, 1000, true),
        (TCP, 1535, true),
        (TCP, 2000, true),
        (TCP, 2001, false),
        (UDP, 53, true),
        (TCP, 53, false),
        (SCTP, 7, true),
        (ICMP, 0x0800, false),
        (47, 0, false),
    ] {
        let allowed = ask(&view, 2, Direction::Ingress, v4(1), protocol, port);
        assert_eq!(allowed, expected, "protocol {protocol} port {port}");
    }
}

#[test]
fn named_ports_are_those_of_the_destination() {
    let named = json!([{"port": "api"}]);
    let view = lab(&[policy(
        &json!({"podSelector": {}, "ingress": [{"ports": named}], "egress": [{"ports": named}]}),
    )]);
    assert!(lets_in(&view, 2, 1, 8002) && !lets_in(&view, 2, 1, 8001) && !lets_in(&view, 2, 1, 9000));
    assert!(lets_out(&view, 2, 1, 8001) && !lets_out(&view, 2, 1, 8002) && lets_out(&view, 2, 4, 8004));
    assert!(!ask(
        &view,
        2,
        Direction::Egress,
        OUTSIDE.parse().unwrap(),
        TCP,
        8001
    ));
    assert!(
        !ask(&view, 2, Direction::Egress, v4(1), UDP, 9000),
        "the name is asked for with TCP"
    );
}

#[test]
fn policy_types_say_what_is_isolated() {
    let egress_only = lab(&[policy(
        &json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}),
    )]);
    assert!(lets_in(&egress_only, 2, 1, 80) && !lets_out(&egress_only, 2, 1, 80));
    let by_rules = lab(&[policy(
        &json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}]}]}),
    )]);
    assert!(!lets_in(&by_rules, 2, 1, 80) && lets_out(&by_rules, 2, 1, 80) && !lets_out(&by_rules, 2, 4, 80));
    let no_rules = lab(&[policy(&json!({"podSelector": {}, "egress": []}))]);
    assert!(!lets_in(&no_rules, 2, 1, 80) && lets_out(&no_rules, 2, 1, 80));
    let literal = lab(&[policy(
        &json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 1}]}]}),
    )]);
    assert!(lets_out(&literal, 2, 1, 80));
}

#[test]
fn policies_add_up() {
    let allow = |name: &str, app: &str| {
        let mut policy = policy(&json!({"podSelector": {}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]}));
        policy["metadata"]["name"] = json!(name);
        policy
    };
    let view = lab(&[
        allow("a", "web"),
        allow("b", "job"),
        policy(&json!({"podSelector": {}})),
    ]);
    assert!(lets_in(&view, 2, 1, 80) && lets_in(&view, 2, 3, 80) && !lets_in(&view, 2, 4, 80));
}

#[test]
fn the_node_and_the_pod_itself_are_always_let_in() {
    let view = lab(&[policy(
        &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    )]);
    assert!(lets_in_from(&view, 2, NODE));
    assert!(
        !ask(&view, 2, Direction::Egress, NODE.parse().unwrap(), TCP, 80),
        "egress to the node is judged"
    );
    assert!(lets_in(&view, 2, 2, 80) && lets_out(&view, 2, 2, 80));
    assert!(!lets_in(&view, 2, 1, 80));
}

#[test]
fn an_address_of_two_pods_is_denied() {
    let mut view = lab(&[]);
    view.pods[3].addresses.insert(v4(1));
    assert!(!lets_in_from(&view, 2, "10.0.0.1") && lets_in_from(&view, 2, "fd00::1"));
    let pods = vec!["pay/web".to_owned(), "shop/web".to_owned()];
    assert!(
        compile(&view)
            .diagnostics
            .contains(&Diagnostic::ContestedAddress { address: v4(1), pods })
    );
    view.pods[3].addresses.insert(NODE.parse().unwrap());
    assert!(
        lets_in_from(&view, 2, NODE),
        "the node's address stays the node's"
    );
}

#[test]
fn two_pods_with_one_endpoint_are_denied() {
    let mut view = lab(&[]);
    view.pods[3].endpoint = Some(EndpointId(1));
    let compiled = compile(&view);
    assert!(
        compiled
            .diagnostics
            .contains(&Diagnostic::DuplicateEndpoint(EndpointId(1)))
    );
    assert!(!compiled.tables.endpoints.contains_key(&EndpointId(1)));
}

#[test]
fn pods_without_addresses_of_their_own_are_no_peers() {
    for (path, value) in [
        ("/spec/hostNetwork", json!(true)),
        ("/status/phase", json!("Succeeded")),
    ] {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "shop"},
            "spec": {"containers": [], "hostNetwork": false}, "status": {"podIP": "10.0.0.9", "phase": "Running"}});
        let parse = |pod: &Value| PodView::from_pod(&serde_json::from_value(pod.clone()).unwrap(), None);
        assert_eq!(parse(&pod).map(|pod| pod.addresses), Some([v4(9)].into()));
        *pod.pointer_mut(path).unwrap() = value;
        assert_eq!(parse(&pod), None, "{path}");
    }
}

/// Fields that mean nothing are refused by name, and where they are stored nevertheless they allow nothing.
#[test]
fn what_is_not_valid_is_named_and_allows_nothing() {
    let from = |peer: Value| json!({"podSelector": {}, "ingress": [{"from": [peer]}]});
    let port = |port: Value| json!({"podSelector": {}, "ingress": [{"ports": [port]}]});
    let near = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    let cases = [
        (json!({"podSelector": near, "ingress": [{}]}), "spec.podSelector"),
        (
            json!({"podSelector": {}, "policyTypes": ["Both"]}),
            "spec.policyTypes[0]",
        ),
        (from(json!({})), "spec.ingress[0].from[0]"),
        (
            from(json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}})),
            "spec.ingress[0].from[0]",
        ),
        (
            from(json!({"podSelector": near})),
            "spec.ingress[0].from[0].podSelector",
        ),
        (
            from(json!({"namespaceSelector": near})),
            "spec.ingress[0].from[0].namespaceSelector",
        ),
        (
            from(json!({"ipBlock": {"cidr": "010.0.0.0/8"}})),
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0"}})),
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            from(json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}})),
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}})),
            "spec.ingress[0].from[0].ipBlock.except[1]",
        ),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}})),
            "spec.ingress[0].from[0].ipBlock.except[0]",
        ),
        (port(json!({"port": 0})), "spec.ingress[0].ports[0].port"),
        (port(json!({"port": 65616})), "spec.ingress[0].ports[0].port"),
        (port(json!({"port": -1})), "spec.ingress[0].ports[0].port"),
        (port(json!({"port": "80"})), "spec.ingress[0].ports[0].port"),
        (port(json!({"port": "Web"})), "spec.ingress[0].ports[0].port"),
        (
            port(json!({"port": 80, "endPort": 79})),
            "spec.ingress[0].ports[0].endPort",
        ),
        (
            port(json!({"port": "web", "endPort": 80})),
            "spec.ingress[0].ports[0].endPort",
        ),
        (port(json!({"endPort": 80})), "spec.ingress[0].ports[0].endPort"),
        (
            port(json!({"port": 80, "protocol": "tcp"})),
            "spec.ingress[0].ports[0].protocol",
        ),
    ];
    for (spec, field) in cases {
        let object = policy(&spec);
        let typed: NetworkPolicy = serde_json::from_value(object.clone()).unwrap();
        let errors = validate(&typed).expect_err("the policy is not valid");
        assert_eq!(
            errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(),
            [field],
            "{spec}: {errors:?}"
        );
        let view = lab(&[object]);
        assert!(
            !lets_in(&view, 2, 1, 80) && !lets_in_from(&view, 2, OUTSIDE),
            "{spec}"
        );
        let reported = compile(&view).diagnostics;
        assert!(
            reported
                .iter()
                .any(|d| matches!(d, Diagnostic::Policy { error, .. } if error.field == field))
        );
    }
}

/// Found by a property test: covering both directions for safety's sake must not wake rules that slept.
#[test]
fn an_unknown_type_does_not_bring_rules_into_force() {
    let mut isolating = policy(&json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    isolating["metadata"]["name"] = json!("isolating");
    let sleeping = |types: &[&str]| policy(&json!({"podSelector": {}, "policyTypes": types, "egress": [{}]}));
    assert!(!lets_out(
        &lab(&[isolating.clone(), sleeping(&["Ingress"])]),
        2,
        1,
        80
    ));
    assert!(!lets_out(
        &lab(&[isolating, sleeping(&["Ingress", "Both"])]),
        2,
        1,
        80
    ));
}

/// Such as the published ranges of a cloud: Kubernetes bounds the object alone.
#[test]
fn long_lists_are_read_whole() {
    let block = |i: usize| format!("172.{}.{}.0/28", 16 + i / 256, i % 256);
    let count = 1500;
    let blocks: Vec<Value> = (0..count)
        .map(|i| json!({"ipBlock": {"cidr": block(i)}}))
        .collect();
    let except: Vec<String> = (0..count).map(block).collect();
    let ports: Vec<Value> = (0..count).map(|i| json!({"port": 2 * i + 1})).collect();
    let rules: Vec<Value> = (0..count)
        .map(|i| json!({"from": [blocks[i]], "ports": [ports[i]]}))
        .collect();
    for (ingress, inside, outside) in [
        (json!([{"from": blocks, "ports": [{"port": 2999}]}]), true, false),
        (
            json!([{"from": [{"ipBlock": {"cidr": "172.16.0.0/12", "except": except}}]}]),
            false,
            true,
        ),
        (json!([{"ports": ports}]), true, true),
        (json!(rules), true, false),
    ] {
        let policy = policy(&json!({"podSelector": {}, "ingress": ingress}));
        let typed: NetworkPolicy = serde_json::from_value(policy.clone()).unwrap();
        assert_eq!(validate(&typed), Ok(()));
        let view = lab(&[policy]);
        // The last of each list, and what is beside it.
        let asked =
            |from: &str, port: u16| ask(&view, 1, Direction::Ingress, from.parse().unwrap(), TCP, port);
        assert_eq!(asked("172.21.219.1", 2999), inside);
        assert_eq!(asked("172.21.219.17", 2999), outside);
    }
}

#[test]
fn sizes_are_bounded() {
    let many = |count: usize, value: &Value| vec![value.clone(); count];
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8"}});
    let cases = [
        (
            json!({"podSelector": {}, "ingress": many(65_537, &json!({}))}),
            "spec.ingress",
        ),
        (
            json!({"podSelector": {}, "ingress": [{"from": many(65_537, &block)}]}),
            "spec.ingress[0].from",
        ),
        (
            json!({"podSelector": {}, "egress": [{"ports": many(65_537, &json!({"port": 1}))}]}),
            "spec.egress[0].ports",
        ),
        (
            json!({"podSelector": {}, "ingress": [{"from": [
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": many(65_537, &json!("10.1.0.0/16"))}}]}]}),
            "spec.ingress[0].from[0].ipBlock.except",
        ),
    ];
    for (spec, field) in cases {
        let typed: NetworkPolicy = serde_json::from_value(policy(&spec)).unwrap();
        let errors = validate(&typed).expect_err("too large");
        assert_eq!(
            errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(),
            [field]
        );
    }
}
