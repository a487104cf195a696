//! Nodes with and without host endpoints, of which objects tell some addresses, all or none: what is said about all flows is what `decide`
//! says about each.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use policies_checker::{
    Model,
    assertion::{self, Problem, Proof},
    cases::{Case, run_cases},
    connectivity::{Grouping, OWN_NODE, connectivity},
    difference::{Effect, difference},
    rules::{RuleStatus, rule_use},
    space::Point,
};
use policies_compiler::{Book, ClusterView, FlowEnd, Judge, Question, Source, is_made_up_ipv6, load_objects};
use policies_ir::{
    cluster::Member,
    decide::Standing,
    policy::{TCP, WorkloadKind},
    tables::Verdict,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

fn view(objects: &[Value]) -> ClusterView {
    let origin = "test";
    load_objects(objects.iter().map(|object| Source { origin, object }))
        .unwrap()
        .view
}

fn pod(name: &str, address: &str, node: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": []}, "status": {"podIP": address}})
}

fn node(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"node": name}},
        "status": {"addresses": addresses}})
}

fn host(name: &str, node: &str, interface: &str, addresses: &[&str]) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": name, "labels": {"edge": name}},
        "spec": {"node": node, "interfaceName": interface, "expectedIPs": addresses}})
}

fn policy(name: &str, selector: &str, ingress: &Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": name},
        "spec": {"selector": selector, "types": ["Ingress"], "ingress": ingress}})
}

fn proof(model: &Model, text: &str) -> Proof {
    assertion::prove(model, &assertion::parse(text).unwrap())
}

/// A host endpoint for an interface by its name, on a node that has an address, and rules for it.
fn edge(addresses: &[&str], rules: &Value) -> Model {
    Model::new(&view(&[
        node("n1", addresses),
        host("h", "n1", "eth0", &[]),
        pod("a", "10.244.1.1", Some("n2")),
        policy("g", "has(edge)", rules),
    ]))
}

/// The commonest form of a host endpoint expects no address. It had none in the model, so that nothing was ever said of it.
#[test]
fn a_host_endpoint_that_expects_no_address_is_at_those_of_its_node() {
    let https = json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [443]}}]);
    // Also of a node of which no object tells an address: it has some.
    for addresses in [&["192.0.3.1"][..], &[]] {
        let (narrow, wide) = (
            edge(addresses, &https),
            edge(addresses, &json!([{"action": "Allow"}])),
        );
        let changes = difference(&narrow, &wide);
        assert!(!changes.is_empty(), "{addresses:?}");
        assert!(
            changes
                .iter()
                .all(|change| change.effect == Effect::Opens && change.to == "host h")
        );
        assert!(difference(&narrow, &edge(addresses, &https)).is_empty());
        let holds = |model: &Model, text: &str| proof(model, text).holds;
        assert!(holds(&narrow, "any pod reaches host(h) on 443"));
        assert!(!holds(&narrow, "any pod reaches host(h) on 80"));
        assert!(holds(&narrow, "no internet reaches host(h) on 80"));
        assert!(
            !holds(&narrow, "no internet reaches host(h) on 22"),
            "it is a failsafe port"
        );
        assert!(!holds(&narrow, "isolated host(h)"));
        let (uses, _) = rule_use(&narrow, &[]);
        assert_eq!(uses[0].status, RuleStatus::Live);
    }
    let (narrow, wide) = (
        edge(&["192.0.3.1"], &https),
        edge(&["192.0.3.1"], &json!([{"action": "Allow"}])),
    );
    assert!(!proof(&narrow, "any pod reaches cidr(192.0.3.1/32) on 80").holds);
    assert!(proof(&wide, "any pod reaches cidr(192.0.3.1/32) on 80").holds);
}

/// An address of the node that its host endpoint does not expect is judged by it all the same.
#[test]
fn a_host_endpoint_judges_at_addresses_that_none_expects() {
    let model = Model::new(&view(&[
        node("n1", &["192.0.3.1", "203.0.113.7"]),
        host("h", "n1", "*", &["192.0.3.1"]),
        pod("a", "10.244.1.1", Some("n2")),
        policy("g", "has(edge)", &json!([])),
    ]));
    for address in ["192.0.3.1", "203.0.113.7"] {
        assert!(!proof(&model, &format!("any pod reaches cidr({address}/32) on 80")).holds);
        assert!(!proof(&model, &format!("no pod reaches cidr({address}/32) on 22")).holds);
    }
}

/// What a node sends to its own pods passes whatever policy says, so that nobody can prove that it does not.
#[test]
fn what_a_node_sends_to_its_own_pods_counts_where_it_is_asked_about() {
    let objects = |expected: &[&str]| {
        [
            node("n1", &["192.0.3.1"]),
            host("h", "n1", "eth0", expected),
            pod("near", "10.244.0.1", Some("n1")),
            pod("far", "10.244.1.1", Some("n2")),
            policy("closed", "has(app)", &json!([])),
        ]
    };
    for expected in [&["192.0.3.1"][..], &[]] {
        let model = Model::new(&view(&objects(expected)));
        for text in [
            "no host(h) reaches pod(shop/near) on 443",
            "no cidr(192.0.3.1/32) reaches pod(shop/near)",
            "never any pod reaches ns(shop)",
        ] {
            let proof = proof(&model, text);
            let Some(Problem::Counterexample(packet)) = proof.problem else {
                panic!("{text}: {proof:?}");
            };
            assert_eq!(packet.from.workload.as_deref(), Some("host h"), "{text}");
            assert_eq!(packet.to.workload.as_deref(), Some("shop/near"), "{text}");
            assert_eq!(packet.rulings(), "ingress allowed by from-host", "{text}");
        }
        assert!(proof(&model, "no host(h) reaches pod(shop/far)").holds);
        assert!(proof(&model, "host(h) reaches pod(shop/near) on any").holds);
        let only = proof(&model, "only ns(shop) reaches ns(shop)");
        assert!(only.holds && only.left_out.is_some(), "{only:?}");
        let only = proof(&model, "only ns(shop) or host(h) reaches ns(shop)");
        assert!(only.holds && only.left_out.is_none(), "{only:?}");
        assert!(proof(&model, "only ns(shop) or own-node reaches ns(shop)").holds);
        assert!(proof(&model, "own-node reaches pod(shop/near) on any").holds);
        assert!(!proof(&model, "no own-node reaches pod(shop/near)").holds);
        // Nothing tells where the other node is.
        let vacuous = |text: &str| proof(&model, text).vacuous.is_some();
        assert!(!vacuous("no own-node reaches pod(shop/far)"));
        let bare = Model::new(&view(&[pod("far", "10.244.1.1", Some("n2"))]));
        assert!(
            proof(&bare, "no own-node reaches pod(shop/far)")
                .vacuous
                .is_some()
        );
        // No policy can isolate a pod from its node, which is not what is asked; the answer says so.
        let egress = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "mute"},
            "spec": {"selector": "has(app)", "types": ["Egress"]}});
        let shut: Vec<Value> = objects(expected).into_iter().chain([egress]).collect();
        let model = Model::new(&view(&shut));
        let isolated = proof(&model, "isolated pod(shop/near)");
        assert!(isolated.holds, "{isolated:?}");
        let left_out = isolated.left_out.unwrap();
        assert!(
            left_out.starts_with("host h (192.0.3.1) to shop/near (10.244.0.1), "),
            "{left_out}"
        );
        assert_eq!(proof(&model, "isolated pod(shop/far)").left_out, None);
        // What does not hold anyhow has a better reason.
        let open = Model::new(&view(&objects(expected)));
        let broken = proof(&open, "isolated pod(shop/near)");
        assert!(!broken.holds && broken.left_out.is_none(), "{broken:?}");
    }
}

/// Two nodes without host endpoints, a pod that others may reach on 80 alone, one that nobody may reach, and what pods may send to their
/// own node.
fn bare(action: &str) -> ClusterView {
    let settings = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": {"defaultEndpointToHostAction": action}});
    let from_pods = json!([{"action": "Allow", "protocol": "TCP", "source": {"selector": "has(app)"},
        "destination": {"ports": [80]}}]);
    view(&[
        node("n1", &["172.16.0.1"]),
        node("n2", &["172.16.0.2"]),
        pod("web", "10.244.0.1", Some("n1")),
        pod("cli", "10.244.0.2", Some("n2")),
        policy("g", "app == 'web'", &from_pods),
        settings,
    ])
}

/// Without a host endpoint a node was an address like others, and what it sends its own pods was denied in proofs alone.
#[test]
fn a_node_without_a_host_endpoint_always_reaches_its_own_pods() {
    let model = Model::new(&bare("Drop"));
    let only = proof(&model, "only ns(shop) reaches pod(shop/web)");
    let left_out = only.left_out.as_deref().unwrap_or_default();
    assert!(
        only.holds && left_out.starts_with("node n1 (172.16.0.1) to shop/web"),
        "{only:?}"
    );
    for text in [
        "no cidr(172.16.0.1/32) reaches pod(shop/web)",
        "no own-node reaches pod(shop/web) on 9",
        "never outside reaches pod(shop/web)",
    ] {
        let proof = proof(&model, text);
        let Some(Problem::Counterexample(packet)) = proof.problem else {
            panic!("{text}: {proof:?}");
        };
        assert_eq!(packet.from.to_string(), "node n1 (172.16.0.1)", "{text}");
        assert_eq!(packet.rulings(), "ingress allowed by from-host", "{text}");
    }
    for text in [
        "only ns(shop) or cidr(172.16.0.1/32) reaches pod(shop/web)",
        "only ns(shop) or own-node reaches pod(shop/web)",
        "no cidr(172.16.0.2/32) reaches pod(shop/web)",
        "cidr(172.16.0.1/32) reaches pod(shop/web) on any",
        "own-node reaches any pod on any",
    ] {
        assert!(proof(&model, text).holds, "{text}");
    }
    let isolated = proof(
        &Model::new(&view(&[
            node("n1", &["172.16.0.1"]),
            pod("web", "10.244.0.1", Some("n1")),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "shut"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}),
        ])),
        "isolated ns(shop)",
    );
    assert!(isolated.holds, "{isolated:?}");
    let left_out = isolated.left_out.unwrap();
    assert!(
        left_out.starts_with("node n1 (172.16.0.1) to shop/web"),
        "{left_out}"
    );
}

#[test]
fn what_a_pod_may_send_to_its_own_node_is_the_default_action_s_to_say() {
    for (action, allowed) in [("Drop", false), ("Return", true), ("Accept", true)] {
        let model = Model::new(&bare(action));
        let holds = |text: &str| proof(&model, text).holds;
        assert_eq!(holds("pod(shop/web) reaches cidr(172.16.0.1/32) on 9"), allowed);
        assert_eq!(holds("no any pod reaches own-node"), !allowed);
        assert!(holds("pod(shop/web) reaches cidr(172.16.0.2/32) on any"));
        let all = connectivity(&model, Grouping::Equal);
        let to_own: Vec<_> = all.connections.iter().filter(|c| c.to == OWN_NODE).collect();
        assert_eq!(!to_own.is_empty(), allowed, "{to_own:?}");
        assert!(to_own.iter().all(|c| c.text == "any"));
        assert!(all.connections.iter().all(|c| c.from != OWN_NODE));
        assert_eq!(policies_checker::picture::dot(&all).contains(OWN_NODE), allowed);
        assert_eq!(policies_checker::picture::svg(&all).contains(OWN_NODE), allowed);
    }
    let (drop, accept) = (Model::new(&bare("Drop")), Model::new(&bare("Accept")));
    let opened = difference(&drop, &accept);
    assert!(!opened.is_empty());
    for change in &opened {
        assert_eq!(
            (change.effect, change.to.as_str()),
            (Effect::Opens, OWN_NODE),
            "{change:?}"
        );
        let [before, after] =
            [&change.before, &change.after].map(|packet| packet.as_ref().unwrap().rulings());
        assert!(before.starts_with("egress denied by to-host"), "{before}");
        assert!(after.starts_with("egress allowed by no-policy"), "{after}");
    }
}

/// A name may lead to a pod's own node, too.
#[test]
fn a_rule_by_name_opens_a_pod_s_own_node_as_it_does_any_address() {
    for action in ["Drop", "Accept"] {
        let by_name = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "names"},
            "spec": {"selector": "has(app)", "types": ["Egress"],
                "egress": [{"action": "Allow", "destination": {"domains": ["api.example.com"]}}]}});
        let mut view = bare(action);
        let more = [by_name];
        let loaded = load_objects(more.iter().map(|object| Source {
            origin: "test",
            object,
        }))
        .unwrap();
        view.calico.extend(loaded.view.calico);
        let model = Model::new(&view);
        let proof = proof(&model, "no pod(shop/web) reaches own-node");
        assert_eq!(proof.holds, action == "Drop", "{proof:?}");
        if let Some(Problem::Counterexample(packet)) = proof.problem {
            assert_eq!(packet.to.to_string(), "api.example.com (if at 172.16.0.1)");
        }
    }
}

/// Nothing tells an address of this node, so that it may be at any; `docs/checker.md` says so.
#[test]
fn a_node_of_which_nothing_tells_an_address_is_like_others() {
    let closed = [
        pod("web", "10.244.0.1", Some("n1")),
        policy("g", "has(app)", &json!([])),
    ];
    let model = Model::new(&view(&closed));
    assert!(proof(&model, "only ns(shop) reaches ns(shop)").holds);
    assert!(proof(&model, "pod(shop/web) reaches outside on any").holds);
    // A host endpoint that expects an address tells it, and so does a pod on the node's network.
    let on_node = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "agent"},
        "spec": {"nodeName": "n1", "hostNetwork": true, "containers": []}, "status": {"podIP": "172.16.0.1"}});
    for telling in [host("h", "n1", "eth0", &["172.16.0.1"]), on_node] {
        let model = Model::new(&view(&[&closed[..], &[telling]].concat()));
        assert!(!proof(&model, "no cidr(172.16.0.1/32) reaches pod(shop/web)").holds);
        assert!(!proof(&model, "pod(shop/web) reaches cidr(172.16.0.1/32) on 9").holds);
    }
}

/// A pod that moved may send its own node what it could before.
#[test]
fn a_pod_that_moves_to_another_node_changes_nothing() {
    let on = |node_name: &str| {
        Model::new(&view(&[
            node("n1", &["172.16.0.1"]),
            node("n2", &["172.16.0.2"]),
            pod("web", "10.244.0.1", Some(node_name)),
        ]))
    };
    assert_eq!(difference(&on("n1"), &on("n2")), vec![]);
}

/// An address of a node that a host endpoint of another expects is still the node's to its own pods.
#[test]
fn an_address_that_another_node_s_host_endpoint_expects_stays_the_node_s() {
    let view = view(&[
        node("n1", &["172.16.0.1", "172.16.1.1"]),
        node("n2", &["172.16.0.2"]),
        host("h", "n2", "eth0", &["172.16.0.1"]),
        pod("web", "10.244.0.1", Some("n1")),
        policy("g", "has(app)", &json!([])),
    ]);
    let (model, book) = (Model::new(&view), Book::new(&view));
    let mut flows = Flows::new(&book, book.speaks_of_ipv6());
    for address in ["172.16.0.1", "172.16.1.1", "172.16.0.2"] {
        let ends: [IpAddr; 2] = [address, "10.244.0.1"].map(|end| end.parse().unwrap());
        for [from, to] in [ends, [ends[1], ends[0]]] {
            let passes = flows.passes(from, to, 80);
            let text = format!("cidr({from}/32) reaches cidr({to}/32) on 80");
            assert_eq!(proof(&model, &format!("no {text}")).holds, !passes, "no {text}");
            assert_eq!(proof(&model, &text).holds, passes, "{text}");
        }
    }
}

/// Cases name nodes and host endpoints as `explain` does.
#[test]
fn cases_are_about_nodes_by_name() {
    let bare = bare("Drop");
    let with_host = view(&[
        node("n1", &["172.16.0.1"]),
        host("h", "n1", "eth0", &["172.16.0.1"]),
        pod("web", "10.244.0.1", Some("n1")),
        pod("cli", "10.244.0.2", Some("n2")),
        policy("g", "has(app)", &json!([])),
    ]);
    for (view, ends) in [
        (&bare, &["host/n1", "host/n2"][..]),
        (&with_host, &["host/n1", "host/h"]),
    ] {
        let (model, book) = (Model::new(view), Book::new(view));
        let mut judge = Judge::new(&book);
        for host in ends {
            for pod in ["shop/web", "pod/shop/cli"] {
                for [from, to] in [[*host, pod], [pod, *host]] {
                    let question = Question {
                        source: from.parse().unwrap(),
                        destination: to.parse().unwrap(),
                        protocol: TCP,
                        source_port: 40_000,
                        port: 9,
                    };
                    let allow = judge.judge(&question).unwrap().verdict == Verdict::Allow;
                    let expect = if allow { "allow" } else { "deny" };
                    let case: Case =
                        serde_json::from_value(json!({"from": from, "to": to, "port": 9, "expect": expect}))
                            .unwrap();
                    let report = run_cases(&model, &[case]);
                    assert_eq!(report.cases[0].failure, None, "{from} to {to}");
                }
            }
        }
    }
    let failure = |view: &ClusterView, from: &str| {
        let case = json!({"from": from, "to": "shop/web", "port": 9, "expect": "allow"});
        let report = run_cases(&Model::new(view), &[serde_json::from_value(case).unwrap()]);
        report.cases[0].failure.clone().unwrap()
    };
    assert!(failure(&with_host, "host/n2").contains("no object tells an address of node n2"));
    assert!(failure(&bare, "host/n3").contains("there is no node or host endpoint n3"));
    assert!(failure(&bare, "a/b/c").contains("is neither NAMESPACE/POD, POD, host/NAME"));
}

const PORTS: [u16; 2] = [80, 443];

fn rules() -> impl Strategy<Value = Value> {
    let own = prop_oneof![
        3 => Just(json!({})),
        1 => select(vec!["192.168.0.1/32", "192.168.1.0/24", "198.51.100.0/24"]).prop_map(|net| json!({"nets": [net]})),
        1 => Just(json!({"selector": "has(edge)"})),
    ];
    let peer = prop_oneof![
        2 => Just(json!({})),
        2 => select(vec!["has(edge)", "has(app)", "app == 'p0'", "edge == 'n1-eth0'"])
            .prop_map(|selector| json!({"selector": selector})),
        1 => select(vec!["192.168.0.0/16", "192.168.1.1/32", "10.244.0.0/31"]).prop_map(|net| json!({"nets": [net]})),
    ];
    let rule = (
        select(vec!["Allow", "Deny"]),
        own,
        peer,
        option::of(select(PORTS.to_vec())),
    );
    let rule = rule.prop_map(|(action, own, peer, port)| {
        let mut rule = json!({"action": action, "destination": own, "source": peer});
        if let Some(port) = port {
            rule["protocol"] = "TCP".into();
            rule["destination"]["ports"] = json!([port]);
        }
        rule
    });
    vec(rule, 0..4).prop_map(Value::from)
}

/// A rule for nodes: for those of one name, or all.
fn for_nodes() -> impl Strategy<Value = Value> {
    let selector = select(vec![json!({}), json!({"matchLabels": {"node": "n1"}})]);
    let rule = (
        select(vec!["Deny", "Accept"]),
        select(PORTS.to_vec()),
        any::<bool>(),
    );
    (selector, rule, select(vec!["Admin", "Baseline"])).prop_map(|(selector, (action, port, any), tier)| {
        let mut rule = json!({"action": action, "to": [{"nodes": selector}]});
        if !any {
            rule["protocols"] = json!([{"tcp": {"destinationPort": {"number": port}}}]);
        }
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "nodes"}, "spec": {"tier": tier, "priority": 1, "subject": {"namespaces": {}}, "egress": [rule]}})
    })
}

/// For both directions: ends change sides.
fn policies() -> impl Strategy<Value = Vec<Value>> {
    (calico_policies(), option::weighted(0.4, for_nodes())).prop_map(|(mut policies, for_nodes)| {
        policies.extend(for_nodes);
        policies
    })
}

fn calico_policies() -> impl Strategy<Value = Vec<Value>> {
    let selector = select(vec![
        "has(edge)",
        "edge == 'n1-eth0'",
        "has(app)",
        "app == 'p1'",
        "all()",
    ]);
    vec((selector, rules(), any::<bool>()), 1..4).prop_map(|policies| {
        let policies = policies.into_iter().enumerate();
        let policies = policies.map(|(i, (selector, rules, leaves))| {
            let mut policy = policy(&format!("g{i}"), selector, &rules);
            if leaves {
                let mut rules = rules;
                for rule in rules.as_array_mut().unwrap() {
                    let (source, ports) = (rule["source"].take(), rule["destination"]["ports"].take());
                    let own = rule["destination"].take();
                    rule["source"] = own;
                    rule["source"].as_object_mut().unwrap().remove("ports");
                    rule["destination"] = source;
                    if !ports.is_null() {
                        rule["destination"]["ports"] = ports;
                    }
                }
                policy["spec"]["types"] = json!(["Egress"]);
                policy["spec"]["ingress"] = json!([]);
                policy["spec"]["egress"] = rules;
            }
            policy
        });
        policies.collect()
    })
}

/// Two nodes, of which the object may tell no, one or two addresses, with host endpoints for interfaces by name, for
/// addresses and for all, which expect some, others or none; pods, and one on the network of its node.
fn ground() -> impl Strategy<Value = Vec<Value>> {
    let of_node = |number: usize| {
        let known = option::weighted(0.8, 0..3_usize);
        let hosts = (
            option::weighted(0.6, any::<bool>()),
            option::weighted(0.3, any::<bool>()),
            option::weighted(0.4, any::<bool>()),
        );
        (known, hosts).prop_map(move |(known, (first, second, every))| {
            let name = format!("n{number}");
            let address = |of: usize| format!("192.168.{of}.{number}");
            let mut objects = Vec::new();
            if let Some(known) = known {
                let known: Vec<String> = (0..known).map(address).collect();
                objects.push(node(&name, &known.iter().map(String::as_str).collect::<Vec<_>>()));
            }
            let hosts = [(first, "eth0", 0), (second, "eth1", 2), (every, "*", 1)];
            for (host_expects, interface, at) in hosts {
                let Some(expects) = host_expects else { continue };
                let expected = expects.then(|| address(at));
                let expected: Vec<&str> = expected.as_deref().into_iter().collect();
                let suffix = if interface == "*" { "all" } else { interface };
                objects.push(host(&format!("{name}-{suffix}"), &name, interface, &expected));
            }
            objects
        })
    };
    // Now and then a pod claims what another has, or a node.
    let claims = option::weighted(0.2, select(vec!["10.244.0.0", "192.168.0.1", "192.168.2.2"]));
    let pods = vec((option::of(select(vec!["n1", "n2"])), claims), 1..4);
    let on_node = option::weighted(
        0.3,
        (
            select(vec!["n1", "n2"]),
            option::weighted(0.3, Just("192.168.0.2")),
        ),
    );
    let to_host = option::of(select(vec!["Drop", "Return"]));
    (of_node(1), of_node(2), pods, on_node, to_host).prop_map(|(first, second, pods, on_node, to_host)| {
        let mut objects = [first, second].concat();
        for (i, (node, claims)) in pods.into_iter().enumerate() {
            let own = format!("10.244.0.{i}");
            objects.push(pod(&format!("p{i}"), claims.unwrap_or(&own), node));
        }
        if let Some((node, states)) = on_node {
            let mut agent = pod("agent", states.unwrap_or_default(), Some(node));
            agent["spec"]["hostNetwork"] = true.into();
            objects.push(agent);
        }
        let settings = |action| {
            json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": {"defaultEndpointToHostAction": action}})
        };
        objects.extend(to_host.map(settings));
        objects
    })
}

/// One cluster, asked flow by flow.
struct Flows<'a> {
    book: &'a Book,
    /// Whether made-up addresses of IPv6 count.
    ipv6: bool,
    judge: Judge<'a>,
}

impl<'a> Flows<'a> {
    fn new(book: &'a Book, ipv6: bool) -> Self {
        Self {
            book,
            ipv6,
            judge: Judge::new(book),
        }
    }

    fn counts(&self, address: &IpAddr) -> bool {
        self.ipv6 || !is_made_up_ipv6(address)
    }

    /// Made-up addresses of nodes without a host endpoint, which to the model are addresses like others.
    fn unknown(&self) -> BTreeSet<IpAddr> {
        let nodes = self.book.cluster().nodes.iter();
        nodes
            .filter(|(name, _)| !self.is_known(name))
            .flat_map(|(_, addresses)| addresses.iter().copied())
            .collect()
    }

    fn is_known(&self, node: &str) -> bool {
        let mut hosts = self.book.cluster().members.iter();
        let is_host = |member: &Member| member.workload.kind == WorkloadKind::HostEndpoint;
        !self.book.made_up_nodes().contains(node)
            || hosts.any(|member| is_host(member) && member.node == node)
    }

    /// Every address of a pod and of a node that has some.
    fn ends(&self) -> BTreeSet<IpAddr> {
        let cluster = self.book.cluster();
        let of_nodes = cluster.nodes.iter().filter(|(node, _)| self.is_known(node));
        let of_members = cluster.members.iter().flat_map(|member| &member.addresses);
        of_nodes
            .flat_map(|(_, addresses)| addresses)
            .chain(of_members)
            .copied()
            .filter(|address| self.counts(address))
            .collect()
    }

    /// Whether several claim the address, or a pod and a node: what is sent with it is denied, whoever sends it. Named, each is
    /// itself, and then may send what its policies allow.
    fn is_contested(&self, address: &IpAddr) -> bool {
        let nobody = Member::default();
        self.book.cluster().standing(&nobody, *address) == Standing::Contested
    }

    /// Pods on nodes without a host endpoint, at their addresses, each with those of its node that are known.
    fn on_bare_nodes(&self) -> Vec<(&'a Member, IpAddr, Vec<IpAddr>)> {
        let cluster = self.book.cluster();
        let hosts: BTreeSet<&str> = cluster
            .members
            .iter()
            .filter(|member| member.workload.kind == WorkloadKind::HostEndpoint)
            .map(|host| host.node.as_str())
            .collect();
        let pods = cluster
            .members
            .iter()
            .filter(|member| member.workload.kind == WorkloadKind::Pod);
        let on_bare = pods.filter(|pod| !pod.node.is_empty() && !hosts.contains(pod.node.as_str()));
        let located = on_bare.filter_map(|pod| {
            let node = cluster
                .nodes
                .get(&pod.node)
                .filter(|_| self.is_known(&pod.node))?;
            let node = node.iter().copied();
            let node = node.filter(|address| self.counts(address) && !self.is_contested(address));
            let own = pod.addresses.first().filter(|own| !self.is_contested(own))?;
            Some((pod, *own, node.collect()))
        });
        located.collect()
    }

    /// What each end says, as the model's packets do.
    fn said(&mut self, from: IpAddr, to: IpAddr, port: u16) -> [Option<(bool, String)>; 2] {
        let question = Question {
            source: FlowEnd::Address(from),
            destination: FlowEnd::Address(to),
            protocol: TCP,
            source_port: 40_000,
            port,
        };
        let answer = self.judge.judge(&question).unwrap();
        [answer.egress, answer.ingress]
            .map(|end| end.map(|(verdict, by)| (verdict == Verdict::Allow, by.to_string())))
    }

    fn passes(&mut self, from: IpAddr, to: IpAddr, port: u16) -> bool {
        self.said(from, to, port)
            .iter()
            .flatten()
            .all(|(allowed, _)| *allowed)
    }
}

const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

fn same_family(one: &IpAddr, other: &IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

proptest! {
    #[test]
    fn what_is_said_of_all_flows_is_what_is_decided_about_each(ground in ground(), old in policies(), new in policies()) {
        let with = |policies: &[Value]| view(&[&ground[..], policies].concat());
        let (old, new) = (with(&old), with(&new));
        let books = [Book::new(&old), Book::new(&new)];
        let models = Model::of_both(&old, &new);
        let ipv6 = books.iter().any(Book::speaks_of_ipv6);
        let mut flows = [Flows::new(&books[0], ipv6), Flows::new(&books[1], ipv6)];
        let outside = OUTSIDE.map(|address| address.parse::<IpAddr>().unwrap());
        // What was made up for a node is in no network that is spoken of, so it may be another before than after.
        let common = &flows[0].ends() & &flows[1].ends();
        let ends: Vec<IpAddr> = common.into_iter().chain(outside).collect();
        // As `docs/checker.md` says.
        let unknown = flows[0].unknown();
        let mut differ = BTreeSet::new();
        for from in &ends {
            for to in ends.iter().filter(|to| *to != from && same_family(from, to)) {
                for port in [22, 80, 443] {
                    let mut passed = Vec::new();
                    for (model, flows) in models.iter().zip(&mut flows) {
                        let said = flows.said(*from, *to, port);
                        let point = Point { protocol: TCP, source_port: 40_000, port };
                        let packet = model.packet(model.place(*from), model.place(*to), point);
                        let modelled = packet.map(|packet| [packet.egress, packet.ingress].map(|end| end.map(|end| (end.allowed, end.by))));
                        prop_assert_eq!(modelled.unwrap_or_default(), said.clone(), "{} to {}, {}", from, to, port);
                        passed.push(said.iter().flatten().all(|(allowed, _)| *allowed));
                    }
                    if passed[0] != passed[1] {
                        differ.insert((*from, *to, port));
                    }
                }
            }
        }
        // Whatever single flow differs, and nothing that does not.
        let changes = difference(&models[0], &models[1]);
        prop_assert!(differ.is_empty() || !changes.is_empty(), "{:?}", differ);
        for change in &changes {
            let (Some(before), Some(after)) = (&change.before, &change.after) else { continue };
            for (packet, which) in [(before, 0), (after, 1)] {
                let ends = [packet.from.address, packet.to.address];
                let is_known = !ends.iter().any(|end| unknown.contains(end) || flows[which].is_contested(end));
                if packet.protocol == TCP && packet.source_port != 0 && is_known {
                    let decided = flows[which].passes(packet.from.address, packet.to.address, packet.port);
                    prop_assert_eq!(decided, packet.allowed, "{}", packet);
                }
            }
        }
        // A pod's own node is an end of its own.
        for (pod, address, node) in flows[0].on_bare_nodes() {
            let mut differ_there = differ.iter().filter(|(from, to, _)| *from == address && node.contains(to));
            let own = changes.iter().filter(|change| change.to == OWN_NODE);
            let named = own.filter(|change| change.before.as_ref().and_then(|p| p.from.workload.clone()).is_some());
            prop_assert!(differ_there.next().is_none() || named.count() > 0, "{} to {:?}", address, node);
            let name = format!("shop/{}", pod.workload.name);
            let all = connectivity(&models[0], Grouping::Expanded);
            let listed = all.connections.iter().any(|c| c.from == name && c.to == OWN_NODE);
            let passing = node.iter().any(|to| [22, 80, 443].into_iter().any(|port| flows[0].passes(address, *to, port)));
            prop_assert_eq!(listed, passing, "{} to its own node", name);
            for port in PORTS {
                let passes = |flows: &mut Flows<'_>, to: &IpAddr| flows.passes(address, *to, port);
                let all = node.iter().all(|to| passes(&mut flows[0], to));
                let none = !node.iter().any(|to| passes(&mut flows[0], to));
                let holds = |text: String| proof(&models[0], &text).holds;
                prop_assert_eq!(holds(format!("pod({name}) reaches own-node on {port}")), all);
                prop_assert_eq!(holds(format!("no pod({name}) reaches own-node on {port}")), none);
                let all = node.iter().all(|from| flows[0].passes(*from, address, port));
                prop_assert_eq!(holds(format!("own-node reaches pod({name}) on {port}")), all);
            }
        }
        // Each end at its address, in sentences: the node is asked about by its addresses and by the name of what judges there.
        let (model, flows) = (&models[0], &mut flows[0]);
        for from in &ends {
            for to in ends.iter().filter(|to| *to != from && same_family(from, to)) {
                let (source, destination) = (model.owner(*from), model.owner(*to));
                if source == destination || flows.is_contested(from) || flows.is_contested(to) {
                    continue;
                }
                for port in PORTS {
                    let passes = flows.passes(*from, *to, port);
                    let (source, destination) = (IpNet::from(*from), IpNet::from(*to));
                    let text = format!("cidr({source}) reaches cidr({destination}) on {port}");
                    prop_assert_eq!(proof(model, &format!("no {text}")).holds, !passes, "no {}", text);
                    prop_assert_eq!(proof(model, &text).holds, passes, "{}", text);
                }
            }
        }
    }
}
