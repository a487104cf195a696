//! Nodes, some of which have host endpoints: the model, `decide` and `explain` say the same about what they and their pods exchange.

use std::{collections::BTreeSet, net::IpAddr};

use policies_checker::{
    Model, assertion, connectivity,
    rules::{RuleStatus, rule_use},
    space::Point,
};
use policies_compiler::{
    Book, ClusterView, ExplainError, FlowEnd, Judge, Question, Source, explain, load_objects,
};
use policies_ir::{policy::TCP, tables::Verdict};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

fn view(objects: &[Value]) -> ClusterView {
    let origin = "here";
    load_objects(objects.iter().map(|object| Source { origin, object }))
        .unwrap()
        .view
}

fn pod(name: &str, number: usize, node: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]}, "status": {"podIP": format!("10.244.0.{}", number + 1)}})
}

fn node(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{number}")},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.0.{number}")},
            {"type": "ExternalIP", "address": format!("192.168.1.{number}")}]}})
}

fn host(number: usize, interface: &str) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
        "metadata": {"name": format!("n{number}-eth0"), "labels": {"edge": "1"}},
        "spec": {"node": format!("n{number}"), "interfaceName": interface, "expectedIPs": [format!("192.168.0.{number}")]}})
}

/// The same without an address of its own.
fn host_without(number: usize, interface: &str) -> Value {
    let mut host = host(number, interface);
    host["spec"]["expectedIPs"] = json!([]);
    host
}

fn to_host(action: &str) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
        "spec": {"defaultEndpointToHostAction": action}})
}

fn policy(name: &str, selector: &str, ingress: &Value, egress: &Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": name},
        "spec": {"selector": selector, "types": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}})
}

/// What each end says about a flow between two addresses.
type Said = [Option<(bool, String)>; 2];

/// TCP between two addresses.
fn asked(from: IpAddr, to: IpAddr, (source_port, port): (u16, u16)) -> Question {
    Question {
        source: FlowEnd::Address(from),
        destination: FlowEnd::Address(to),
        protocol: TCP,
        source_port,
        port,
    }
}

fn decided(judge: &mut Judge<'_>, question: &Question) -> Said {
    let answer = judge.judge(question).unwrap();
    [answer.egress, answer.ingress]
        .map(|end| end.map(|(verdict, by)| (verdict == Verdict::Allow, by.to_string())))
}

fn explained(view: &ClusterView, question: &Question) -> Said {
    let answer = explain(view, question).unwrap();
    let allow = api::flow::FlowVerdict::Allow;
    [answer.egress, answer.ingress].map(|end| end.map(|end| (end.verdict == allow, end.decided_by.rule)))
}

fn modelled(model: &Model, from: IpAddr, to: IpAddr, (source_port, port): (u16, u16)) -> Said {
    let point = Point {
        protocol: TCP,
        source_port,
        port,
    };
    let packet = model.packet(model.place(from), model.place(to), point).unwrap();
    [packet.egress, packet.ingress].map(|end| end.map(|end| (end.allowed, end.by)))
}

/// What some rules are for.
const SOURCE_PORT: u16 = 53;

fn rules() -> impl Strategy<Value = Value> {
    let peer = select(vec!["", "has(edge)", "app == 'p0'", "has(app)"]);
    let at = prop_oneof![
        2 => Just(json!({})),
        2 => select(vec!["192.168.0.1/32", "192.168.1.0/24", "192.168.0.0/15"]).prop_map(|net| json!({"nets": [net]})),
        1 => Just(json!({"notNets": ["192.168.0.0/24"]})),
        1 => select(vec!["has(edge)", "has(app)"]).prop_map(|selector| json!({"selector": selector})),
        1 => Just(json!({"notSelector": "has(edge)"})),
    ];
    let rule = (
        select(vec!["Allow", "Deny"]),
        peer,
        at,
        select(vec![80, 443]),
        any::<bool>(),
        proptest::bool::weighted(0.2),
    );
    let rule = rule.prop_map(|(action, peer, at, port, source, of_port)| {
        let (own, other) = match source {
            true => ("destination", "source"),
            false => ("source", "destination"),
        };
        let mut rule = json!({"action": action, "protocol": "TCP", own: at, other: {"selector": peer}});
        rule["destination"]["ports"] = json!([port]);
        if of_port {
            rule["source"]["ports"] = json!([SOURCE_PORT]);
        }
        rule
    });
    vec(rule, 0..3).prop_map(|rules| json!(rules))
}

/// Two nodes, of which some have a host endpoint, pods on them or elsewhere, and policies for all of them.
fn objects() -> impl Strategy<Value = Vec<Value>> {
    let interface = || option::weighted(0.7, (select(vec!["eth0", "*"]), any::<bool>()));
    let nodes = option::of(select(vec!["n1", "n2"]));
    let selector = select(vec!["has(edge)", "has(app)", "app == 'p1'", "all()"]);
    (
        (interface(), interface()),
        vec(nodes, 1..4),
        vec((selector, rules(), rules()), 0..4),
        option::of(select(vec!["Drop", "Return", "Accept"])),
    )
        .prop_map(|((first, second), pods, policies, action)| {
            let mut objects = vec![node(1), node(2)];
            let host = |number, (interface, expects)| match expects {
                true => host(number, interface),
                false => host_without(number, interface),
            };
            objects.extend(first.map(|first| host(1, first)));
            objects.extend(second.map(|second| host(2, second)));
            let pods = pods.iter().enumerate();
            objects.extend(pods.map(|(i, node)| pod(&format!("p{i}"), i, *node)));
            let policies = policies.iter().enumerate();
            objects.extend(
                policies.map(|(i, (selector, ingress, egress))| {
                    policy(&format!("g{i}"), selector, ingress, egress)
                }),
            );
            objects.extend(action.map(to_host));
            objects
        })
}

proptest! {
    #[test]
    fn the_model_decide_and_explain_agree(objects in objects()) {
        let view = view(&objects);
        let (book, model) = (Book::new(&view), Model::new(&view));
        let mut judge = Judge::new(&book);
        let members = || view.cluster().members.into_iter();
        let outside: IpAddr = "203.0.113.9".parse().unwrap();
        let nodes: [IpAddr; 4] = ["192.168.0.1", "192.168.1.1", "192.168.0.2", "192.168.1.2"].map(|address| address.parse().unwrap());
        let has_host = |number: usize| members().any(|member| member.workload.namespace.is_empty() && member.node == format!("n{}", number / 2 + 1));
        let ends: BTreeSet<IpAddr> = members().flat_map(|member| member.addresses).chain(nodes).chain([outside]).collect();
        // A node with a host endpoint is judged by it at every address.
        let is_judged = |address: &IpAddr| match nodes.iter().position(|node| node == address) {
            Some(number) => has_host(number),
            None => *address != outside,
        };
        for from in &ends {
            for to in ends.iter().filter(|to| *to != from) {
                if !is_judged(from) && !is_judged(to) {
                    continue;
                }
                for ports in [(0, 22), (0, 80), (SOURCE_PORT, 443)] {
                    let question = asked(*from, *to, ports);
                    let said = decided(&mut judge, &question);
                    prop_assert_eq!(&explained(&view, &question), &said, "explain {:?}", question);
                    prop_assert_eq!(&modelled(&model, *from, *to, ports), &said, "model {:?}", question);
                }
            }
        }
        // What is proved of all flows is what the single flows say.
        for (number, addresses) in (1..).zip(nodes.chunks(2)) {
            // Without a host endpoint a node is asked about by its addresses.
            let node = match is_judged(&addresses[0]) {
                true => format!("host(n{number}-eth0)"),
                false => format!("cidr({}) or cidr({})", addresses[0], addresses[1]),
            };
            for member in members().filter(|member| !member.workload.namespace.is_empty()) {
                let Some(own) = member.addresses.first() else { continue };
                let name = &member.workload.name;
                let mut passes = |address, source_port| {
                    let said = decided(&mut judge, &asked(*own, address, (source_port, 80)));
                    said.iter().flatten().all(|(allowed, _)| *allowed)
                };
                let mut passes_at = |address: &IpAddr| [passes(*address, 0), passes(*address, SOURCE_PORT)];
                let passes: Vec<bool> = addresses.iter().flat_map(&mut passes_at).collect();
                let holds = |text: String| assertion::prove(&model, &assertion::parse(&text).unwrap()).holds;
                let (none, all) = (!passes.contains(&true), !passes.contains(&false));
                prop_assert_eq!(holds(format!("no pod(shop/{name}) reaches {node} on 80")), none);
                prop_assert_eq!(holds(format!("pod(shop/{name}) reaches {node} on 80")), all);
            }
        }
    }

    /// Whichever way an end is named: a pod, a node, a host endpoint, an address.
    #[test]
    fn explain_and_decide_agree_about_every_kind_of_end(
        objects in objects(),
        flows in vec((any::<[prop::sample::Index; 2]>(), select(vec![6, 17, 132, 1, 47]), select(vec![0, SOURCE_PORT, 40_000]),
            select(vec![22, 80, 443])), 1..12),
    ) {
        let view = view(&objects);
        let book = Book::new(&view);
        let mut judge = Judge::new(&book);
        let pods = view.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let others = ["host/n1", "host/n2", "host/n1-eth0", "host/n2-eth0", "192.168.0.1", "10.244.0.1", "203.0.113.9"];
        let ends: Vec<String> = pods.chain(others.map(str::to_owned)).collect();
        for ([from, to], protocol, source_port, port) in flows {
            let question = Question {
                source: from.get(&ends).parse().unwrap(),
                destination: to.get(&ends).parse().unwrap(),
                protocol,
                source_port,
                port,
            };
            match judge.judge(&question) {
                // Explaining what nobody judges is refused.
                Ok(answer) if answer.egress.is_none() && answer.ingress.is_none() => {
                    let told = explain(&view, &question);
                    prop_assert!(told.is_err() || told.is_ok_and(|told| told.egress.is_none() && told.ingress.is_none()));
                }
                Ok(_) => prop_assert_eq!(explained(&view, &question), decided(&mut judge, &question), "{:?}", question),
                Err(error) => prop_assert_eq!(explain(&view, &question).unwrap_err(), ExplainError::Flow(error)),
            }
        }
    }
}

/// A host endpoint that denies, on the node of `web`; `db` is elsewhere.
fn closed_node(interface: &str, action: &str) -> ClusterView {
    let deny = json!([{"action": "Deny"}]);
    view(&[
        pod("web", 0, Some("n1")),
        pod("db", 1, Some("n2")),
        node(1),
        node(2),
        host(1, interface),
        policy("shut", "has(edge)", &deny, &deny),
        to_host(action),
    ])
}

#[test]
fn what_a_pod_sends_to_its_own_node_no_host_endpoint_judges() {
    let (web, own_node): (IpAddr, IpAddr) = ("10.244.0.1".parse().unwrap(), "192.168.0.1".parse().unwrap());
    for interface in ["eth0", "*"] {
        for (action, egress) in [
            ("Return", (true, "no-policy")),
            ("Accept", (true, "no-policy")),
            ("Drop", (false, "to-host")),
        ] {
            let view = closed_node(interface, action);
            let (model, book) = (Model::new(&view), Book::new(&view));
            let expected = [Some((egress.0, egress.1.to_owned())), None];
            let mut judge = Judge::new(&book);
            assert_eq!(
                decided(&mut judge, &asked(web, own_node, (0, 80))),
                expected,
                "{interface} {action}"
            );
            assert_eq!(
                explained(&view, &asked(web, own_node, (0, 80))),
                expected,
                "{interface} {action}"
            );
            assert_eq!(
                modelled(&model, web, own_node, (0, 80)),
                expected,
                "{interface} {action}"
            );
            let back = decided(&mut judge, &asked(own_node, web, (0, 80)));
            assert_eq!(back, [None, Some((true, "no-policy".to_owned()))]);
            let proof = |text: &str| assertion::prove(&model, &assertion::parse(text).unwrap());
            assert_eq!(proof("no ns(shop) reaches host(n1-eth0) on 80").holds, !egress.0);
            assert!(proof("no pod(shop/db) reaches host(n1-eth0) on 80").holds);
            // A node's own packets to its pods always pass.
            assert!(!proof("no host(n1-eth0) reaches pod(shop/web)").holds);
            assert!(proof("host(n1-eth0) reaches pod(shop/web) on any").holds);
            let all = connectivity::connectivity(&model, connectivity::Grouping::Equal);
            let to_node: Vec<&str> = all
                .connections
                .iter()
                .filter(|c| c.to == "host n1-eth0" && c.text == "any")
                .map(|c| c.from.as_str())
                .collect();
            assert_eq!(to_node.contains(&"shop/web"), egress.0, "{to_node:?}");
            // Others may still use the failsafe ports.
            assert!(!to_node.contains(&"shop/db"));
        }
    }
}

/// The one that the node attaches to the interface judges, whichever is read first.
#[test]
fn an_address_of_several_host_endpoints_is_judged_as_at_its_interface() {
    let host = |name: &str, interface: Option<&str>, label: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
            "metadata": {"name": name, "labels": {"edge": label}},
            "spec": {"node": "n1", "interfaceName": interface.unwrap_or_default(), "expectedIPs": ["192.168.0.1"]}})
    };
    let named = || host("z-eth0", Some("eth0"), "named");
    let by_address = || host("m-address", None, "by-address");
    let every = || host("a-all", Some("*"), "every");
    let closed = |label: &str| {
        let deny = json!([{"action": "Deny"}]);
        policy(label, &format!("edge == '{label}'"), &deny, &deny)
    };
    let (web, address): (IpAddr, IpAddr) = ("10.244.0.1".parse().unwrap(), "192.168.0.1".parse().unwrap());
    for (hosts, judges) in [
        (vec![every(), named()], "named"),
        (vec![named(), every()], "named"),
        (vec![every(), by_address()], "by-address"),
        (vec![by_address(), named()], "named"),
        (vec![every(), by_address(), named()], "named"),
    ] {
        let mut objects = vec![pod("web", 0, None), node(1)];
        objects.extend(hosts);
        objects.extend(["named", "by-address", "every"].map(closed));
        let view = view(&objects);
        let (model, book) = (Model::new(&view), Book::new(&view));
        let question = asked(web, address, (0, 80));
        let by = Some((false, format!("GlobalNetworkPolicy {judges} rule 0")));
        let expected = [Some((true, "no-policy".to_owned())), by];
        assert_eq!(decided(&mut Judge::new(&book), &question), expected, "decide");
        assert_eq!(explained(&view, &question), expected, "explain");
        assert_eq!(modelled(&model, web, address, (0, 80)), expected, "model");
    }
}

/// At `*`, which expects no address, a rule for one of the node's is for that one: in `decide`, `explain` and proofs.
#[test]
fn a_rule_for_an_address_of_the_node_is_for_that_one() {
    let allow = |end: &Value| {
        let rules = json!([{"action": "Allow", "destination": end}]);
        let view = view(&[
            pod("web", 0, Some("n2")),
            node(1),
            host_without(1, "*"),
            policy("edge", "has(edge)", &rules, &json!([])),
        ]);
        let (model, book) = (Model::new(&view), Book::new(&view));
        let mut judge = Judge::new(&book);
        let web: IpAddr = "10.244.0.1".parse().unwrap();
        let open = ["192.168.0.1", "192.168.1.1"].map(|address| {
            let address = address.parse().unwrap();
            let said = decided(&mut judge, &asked(web, address, (0, 80)));
            assert_eq!(explained(&view, &asked(web, address, (0, 80))), said);
            assert_eq!(modelled(&model, web, address, (0, 80)), said);
            said[1].as_ref().expect("the host endpoint judges").0
        });
        let holds = |text: &str| assertion::prove(&model, &assertion::parse(text).unwrap()).holds;
        let (none, all) = (!open.contains(&true), !open.contains(&false));
        assert_eq!(
            holds("no pod(shop/web) reaches host(n1-eth0) on 80"),
            none,
            "{end}"
        );
        assert_eq!(holds("pod(shop/web) reaches host(n1-eth0) on 80"), all, "{end}");
        open
    };
    assert_eq!(allow(&json!({"nets": ["192.168.1.1/32"]})), [false, true]);
    assert_eq!(allow(&json!({"notNets": ["192.168.1.0/24"]})), [true, false]);
    assert_eq!(allow(&json!({"nets": ["192.168.0.0/16"]})), [true, true]);
    assert_eq!(
        allow(&json!({"selector": "has(edge)"})),
        [false, false],
        "it expects no address"
    );
}

/// An address of two pods is nobody's.
#[test]
fn an_address_that_two_pods_claim_stays_nobodys() {
    let twice = view(&[pod("web", 0, None), pod("db", 0, None), pod("other", 1, None)]);
    let model = Model::new(&twice);
    assert_eq!(model.owner("10.244.0.1".parse().unwrap()), None);
    assert!(model.owner("10.244.0.2".parse().unwrap()).is_some());
}

/// No event tells of what is allowed before flows are known: that a rule there has no hits says nothing of its use.
#[test]
fn what_is_allowed_before_tracking_is_not_taken_for_unused() {
    let rules = json!([
        {"action": "Log", "protocol": "TCP"},
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}},
        {"action": "Deny", "protocol": "TCP", "destination": {"ports": [81]}},
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}},
    ]);
    let statuses = |is_untracked: bool| -> Vec<RuleStatus> {
        let mut policy = policy("edge", "has(edge)", &rules, &json!([]));
        if is_untracked {
            policy["spec"]["doNotTrack"] = json!(true);
            policy["spec"]["applyOnForward"] = json!(true);
        }
        let model = Model::new(&view(&[node(1), host(1, "eth0"), policy]));
        let (uses, _) = rule_use(&model, &[]);
        uses.into_iter().map(|used| used.status).collect()
    };
    let by = ["GlobalNetworkPolicy edge rule 1".to_owned()].into();
    let shadowed = RuleStatus::Shadowed { by };
    assert_eq!(
        statuses(true),
        [
            RuleStatus::LogsDenied,
            RuleStatus::Untracked,
            RuleStatus::Live,
            shadowed.clone()
        ]
    );
    assert_eq!(
        statuses(false),
        [RuleStatus::Logs, RuleStatus::Live, RuleStatus::Live, shadowed]
    );
}
