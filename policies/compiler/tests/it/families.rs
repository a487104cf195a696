//! Files without addresses: their pods and nodes have some of both families, and a flow is of the one that it needs.

use std::collections::BTreeSet;

use api::flow::FlowVerdict;
use ipnet::IpNet;
use policies_compiler::{
    Book, ClusterView, Explanation, FlowEnd, FlowError, Judge, Question, explain, load_objects,
    parse_protocol,
};
use policies_ir::tables::Verdict;
use serde_json::{Value, json};

use crate::sources;

fn pod(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"containers": []}, "status": {"podIPs": addresses}})
}

/// A policy for `shop/db` that allows what a rule says, or each of several, and nothing else.
fn allow(rules: &Value) -> Value {
    let rules = rules.as_array().cloned().unwrap_or_else(|| vec![rules.clone()]);
    let rules = rules.into_iter().map(|mut rule| {
        rule["action"] = "Allow".into();
        rule
    });
    let rules: Vec<Value> = rules.collect();
    json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"selector": "app == 'db'", "types": ["Ingress"], "ingress": rules}})
}

fn view(objects: &[Value]) -> ClusterView {
    load_objects(sources(objects)).unwrap().view
}

fn question(from: &str, to: &str, protocol: &str) -> Question {
    let protocol = parse_protocol(protocol).unwrap();
    let (source_port, port) = match protocol {
        6 => (40000, 80),
        1 => (0, 0x0800),
        58 => (0, 0x8000),
        _ => (0, 0),
    };
    Question {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol,
        source_port,
        port,
    }
}

/// What `explain` says, where the judge of many flows says the same.
fn explained(view: &ClusterView, asked: &Question) -> Result<Explanation, FlowError> {
    let book = Book::new(view);
    let judged = Judge::new(&book).judge(asked);
    match (explain(view, asked), judged) {
        (Ok(explanation), Ok(judged)) => {
            let allowed = explanation.verdict == FlowVerdict::Allow;
            assert_eq!(allowed, judged.verdict == Verdict::Allow, "{asked:?}");
            for (told, judged) in [
                (&explanation.egress, &judged.egress),
                (&explanation.ingress, &judged.ingress),
            ] {
                let told = told.as_ref().map(|told| told.decided_by.rule.clone());
                let judged = judged.as_ref().map(|(_, by)| by.to_string());
                assert_eq!(told, judged, "{asked:?}");
            }
            Ok(explanation)
        }
        (explained, judged) => {
            let error = judged.unwrap_err();
            assert_eq!(explained.unwrap_err().to_string(), error.to_string(), "{asked:?}");
            Err(error)
        }
    }
}

/// Whether the flow is of IPv6, and whether it passes.
fn judged(view: &ClusterView, from: &str, to: &str, protocol: &str) -> (bool, bool) {
    let said = explained(view, &question(from, to, protocol)).unwrap();
    assert_eq!(said.from.address.is_ipv6(), said.to.address.is_ipv6());
    (said.to.address.is_ipv6(), said.verdict == FlowVerdict::Allow)
}

const V4: bool = false;
const V6: bool = true;

#[test]
fn a_flow_is_of_the_family_that_it_needs() {
    let objects = [pod("web", &[]), pod("db", &[])];
    let view = view(&objects);
    for (from, to, protocol, family) in [
        ("shop/web", "shop/db", "TCP", V4),
        ("shop/web", "shop/db", "ICMP", V4),
        ("shop/web", "shop/db", "47", V4),
        ("shop/web", "shop/db", "ICMPv6", V6),
        ("shop/web", "192.0.2.1", "TCP", V4),
        ("shop/web", "2001:db8::1", "TCP", V6),
        ("2001:db8::1", "shop/db", "UDP", V6),
        ("2001:db8::1", "shop/db", "ICMPv6", V6),
    ] {
        let is_v6 = judged(&view, from, to, protocol);
        assert_eq!(is_v6, (family, true), "{from} {to} {protocol}");
    }
}

/// The rule is for the packet's family, as in Calico, which renders each family on its own.
#[test]
fn rules_of_either_family_decide_about_their_own_flows() {
    let from_web = json!({"selector": "app == 'web'"});
    let of_v4 = [(V4, true), (V6, false), (V6, false)];
    let of_v6 = [(V4, false), (V6, true), (V6, true)];
    let of_both = [(V4, true), (V6, true), (V6, true)];
    for (rule, expected) in [
        (json!({"source": from_web}), [(V4, true), (V6, true), (V6, false)]),
        (json!({"ipVersion": 6}), of_v6),
        (json!({"ipVersion": 4}), of_v4),
        (json!({"protocol": "ICMPv6"}), of_v6),
        (
            json!({"protocol": "ICMPv6", "icmp": {"type": 128, "code": 0}, "source": from_web}),
            [(V4, false), (V6, true), (V6, false)],
        ),
        (
            json!({"protocol": "ICMPv6", "icmp": {"type": 129}}),
            [(V4, false), (V6, false), (V6, false)],
        ),
        (json!({"protocol": "TCP"}), [(V4, true), (V6, false), (V6, false)]),
        (json!({"source": {"nets": ["0.0.0.0/0"]}}), of_v4),
        (json!({"source": {"nets": ["::/0"]}}), of_v6),
        (
            json!([{"source": {"nets": ["0.0.0.0/0"]}}, {"source": {"nets": ["::/0"]}}]),
            of_both,
        ),
        // Networks of one family alone make a rule of that family.
        (json!({"source": {"notNets": ["10.0.0.0/8"]}}), of_v4),
        (json!({"source": {"notNets": ["2002::/16"]}}), of_v6),
        (
            json!([{"source": {"notNets": ["10.0.0.0/8"]}}, {"source": {"notNets": ["2002::/16"]}}]),
            of_both,
        ),
        (json!({"destination": {"nets": ["::/0"]}}), of_v6),
        (
            json!({"source": {"nets": ["2001:db8::/32"]}}),
            [(V4, false), (V6, false), (V6, true)],
        ),
    ] {
        let view = view(&[pod("web", &[]), pod("db", &[]), allow(&rule)]);
        let found = [
            judged(&view, "shop/web", "shop/db", "TCP"),
            judged(&view, "shop/web", "shop/db", "ICMPv6"),
            judged(&view, "2001:db8::1", "shop/db", "ICMPv6"),
        ];
        assert_eq!(found, expected, "{rule}");
    }
}

/// What is stated is all there is.
#[test]
fn a_pod_that_states_one_family_has_no_other() {
    let only_v6 = json!({"source": {"nets": ["2001:db8::/32"]}});
    let objects = [
        pod("web", &["10.0.0.1"]),
        pod("db", &["fd00::1"]),
        pod("any", &[]),
        allow(&only_v6),
    ];
    let view = view(&objects);
    let stated: Vec<usize> = view.pods.iter().map(|pod| pod.addresses.len()).collect();
    assert_eq!(stated, [1, 1, 2]);
    let asked = question("shop/web", "shop/db", "TCP");
    assert_eq!(explained(&view, &asked), Err(FlowError::NoCommonFamily));
    assert_eq!(judged(&view, "shop/web", "shop/any", "TCP"), (V4, true));
    assert_eq!(judged(&view, "shop/any", "shop/db", "TCP"), (V6, false));
    // Judged as it is asked: at the one family that both have, though no such packet exists ...
    assert_eq!(judged(&view, "shop/web", "shop/any", "ICMPv6"), (V4, true));
    // ... and for an address of the other as if the pod had one.
    for (source, allowed) in [("2001:db8::1", true), ("2001:db9::1", false)] {
        let said = explained(&view, &question(source, "shop/web", "TCP")).unwrap();
        assert_eq!(said.verdict, FlowVerdict::Allow);
        let said = explained(&view, &question(source, "shop/db", "TCP")).unwrap();
        assert_eq!(said.verdict == FlowVerdict::Allow, allowed);
    }
    let said = explained(&view, &question("192.0.2.1", "shop/db", "TCP")).unwrap();
    assert_eq!(said.verdict, FlowVerdict::Deny);
}

/// A node of which no object tells an address is met in both families too.
#[test]
fn a_node_without_addresses_has_both_families() {
    let mut on_node = pod("web", &[]);
    on_node["spec"]["nodeName"] = "n1".into();
    let mut adrift = pod("adrift", &[]);
    adrift["spec"]["hostNetwork"] = true.into();
    let host = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
        "metadata": {"name": "uplink", "labels": {"edge": "1"}}, "spec": {"node": "n2", "interfaceName": "*"}});
    let policy = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "edge"}, "spec": {"selector": "has(edge)",
        "ingress": [{"action": "Allow", "ipVersion": 6}]}});
    let view = view(&[on_node, adrift, host, policy]);
    for (to, protocol, expected) in [
        ("host/n2", "TCP", (V4, false)),
        ("host/n2", "ICMPv6", (V6, true)),
        ("shop/adrift", "TCP", (V4, true)),
        ("shop/adrift", "ICMPv6", (V6, true)),
    ] {
        assert_eq!(
            judged(&view, "shop/web", to, protocol),
            expected,
            "{to} {protocol}"
        );
    }
    let from_v6 = question("2001:db8::1", "host/n2", "TCP");
    assert_eq!(explained(&view, &from_v6).unwrap().verdict, FlowVerdict::Allow);
}

/// Addresses that files tell nobody has are nobody's: no other end's, and in no network that objects speak of.
#[test]
fn made_up_addresses_never_collide() {
    let mut objects: Vec<Value> = (0..1000).map(|i| pod(&format!("pod-{i}"), &[])).collect();
    let first = |objects: &[Value]| view(objects).pods[0].addresses.clone();
    let wanted = first(&objects);
    assert_eq!(wanted, first(&objects), "the same each time");
    let [v4, v6] = wanted.iter().copied().collect::<Vec<_>>()[..] else {
        panic!("{wanted:?}")
    };
    assert!(v4.is_ipv4() && v6.is_ipv6());
    let nets = |nets: [&str; 2]| {
        let spec = json!({"nets": nets});
        json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet", "metadata": {"name": "set"},
            "spec": spec})
    };
    let (of_v4, of_v6) = (v4.to_string(), v6.to_string());
    let others = [
        pod("squatter", &[&of_v4, &of_v6]),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "InternalIP", "address": of_v4}, {"type": "InternalIP", "address": of_v6}]}}),
        json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "h"},
            "spec": {"node": "n", "expectedIPs": [of_v4, of_v6]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
            "addressType": "IPv4", "endpoints": [{"addresses": [of_v4, of_v6]}]}),
        nets([&of_v4, &of_v6]),
        allow(&json!([{"source": {"notNets": [of_v4]}}, {"source": {"notNets": [of_v6]}}])),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {}, "egress": [{"to": [
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("{v4}/24")]}},
                {"ipBlock": {"cidr": format!("{v6}/100")}}]}]}}),
    ];
    let count = objects.len();
    for other in others {
        objects.truncate(count);
        objects.push(other.clone());
        let view = view(&objects);
        let addresses: Vec<_> = view.pods.iter().flat_map(|pod| &pod.addresses).collect();
        let distinct: BTreeSet<_> = addresses.iter().collect();
        assert_eq!(distinct.len(), addresses.len(), "{other}");
        assert!(
            view.pods[..count].iter().all(|pod| pod.addresses.len() == 2),
            "{other}"
        );
        assert!(first(&objects).is_disjoint(&wanted), "{other}");
    }
    // What holds the whole range may mean pods as well.
    objects.truncate(count);
    objects.push(nets(["198.18.0.0/15", "fc00::/7"]));
    assert_eq!(first(&objects), wanted);
}

/// Documents' networks are in many policies, and nodes without addresses are not in them for that.
#[test]
fn a_made_up_address_of_a_node_is_in_no_network_of_a_rule() {
    let documents = ["198.51.100.0/24", "fd4d:e513:bfef:1::/120"];
    let mut web = pod("web", &[]);
    web["spec"]["nodeName"] = "n1".into();
    let policy = allow(&json!(documents.map(|net| json!({"source": {"nets": [net]}}))));
    let view = view(&[web, pod("db", &[]), policy]);
    let book = Book::new(&view);
    let [(_, addresses)] = book.cluster().nodes.iter().collect::<Vec<_>>()[..] else {
        panic!("{:?}", book.cluster().nodes)
    };
    assert_eq!(addresses.len(), 2);
    for net in documents {
        let net: IpNet = net.parse().unwrap();
        assert!(!addresses.iter().any(|address| net.contains(address)), "{net}");
    }
    let asked = Question {
        source: FlowEnd::Host("n1".to_owned()),
        ..question("shop/web", "shop/db", "TCP")
    };
    assert_eq!(explained(&view, &asked).unwrap().verdict, FlowVerdict::Deny);
}
