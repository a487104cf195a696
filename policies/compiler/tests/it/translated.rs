//! Ports of the node that lead to its pods: what comes there is forwarded, whatever the node's own policy says.

use std::net::IpAddr;

use api::host_ports::{HostPort, Transport};
use policies_compiler::{HostEndpointIds, PodView, Session, compile, compile_policies};
use policies_ir::{
    cluster::{Cluster, Translation},
    decide::decide,
    policy::{PolicySet, WorkloadKind},
    tables::{BuiltinRule, DecidedBy, Direction::Ingress, EndpointId, NodeTables, Packet, Verdict, lookup},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};
use testkit::policies::{TieredScenario, tiered, with_host_endpoints};

use crate::lab::{HOST, Lab, OUTSIDE, OUTSIDE_V6, TCP, UDP, WEB, global, host, set, tier};

/// Another address of the node.
const SECOND: &str = "10.0.0.253";
const HOST_V6: &str = "fd00::fe";

fn port(host_ip: Option<&str>, port: u16, container_port: u16) -> HostPort {
    HostPort {
        protocol: Transport::Tcp,
        host_ip: host_ip.map(|address| address.parse().unwrap()),
        port,
        container_port,
    }
}

/// A host endpoint that is closed, and `shop/web` behind these ports of the node.
struct Node {
    cluster: Cluster,
    policies: PolicySet,
    tables: NodeTables,
}

impl Node {
    fn new(ports: &[HostPort], objects: &[Value]) -> Self {
        let edge = host(&json!({"edge": ""}), &[]);
        let objects: Vec<Value> = objects.iter().cloned().chain([edge]).collect();
        let mut lab = Lab::new(&objects);
        lab.view.host_addresses = [HOST.1, SECOND, HOST_V6].map(|ip| ip.parse().unwrap()).into();
        lab.view.pods[0].host_ports = ports.to_vec();
        let cluster = with_host_endpoints(&lab.view).0;
        Self {
            tables: compile_policies(&cluster, &lab.policies),
            policies: lab.policies,
            cluster,
        }
    }

    /// What decides about a packet to an address of the node, by the reference and by the tables.
    #[track_caller]
    fn by(&self, (node, peer): (&str, &str), protocol: u8, port: u16) -> String {
        let packet = Packet {
            direction: Ingress,
            peer: peer.parse().unwrap(),
            inside: Some(node.parse().unwrap()),
            protocol,
            source_port: 40_000,
            port,
        };
        let at = |member: &&policies_ir::cluster::Member| member.endpoint == Some(EndpointId(HOST.0));
        let member = self.cluster.members.iter().find(at).unwrap();
        let policy = self.policies.for_endpoint(&member.workload);
        let reference = decide(&policy, &self.cluster.flow(member, &packet));
        let entry = lookup(&self.tables, EndpointId(HOST.0), &packet);
        assert_eq!(
            (entry.verdict, self.tables.decided_by(entry.rule)),
            (reference.verdict, Some(reference.decided_by.clone())),
            "the tables and the reference differ: {packet:?}\n{reference:#?}"
        );
        format!("{:?} by {}", reference.verdict, reference.decided_by)
    }

    #[track_caller]
    fn tcp(&self, port: u16) -> String {
        self.by((HOST.1, OUTSIDE), TCP, port)
    }
}

/// A policy of the edge about flows to it.
fn edge(name: &str, flags: &Value, rules: &Value) -> Value {
    let mut spec = json!({"selector": "has(edge)", "types": ["Ingress"], "ingress": rules});
    spec.as_object_mut()
        .unwrap()
        .extend(flags.as_object().unwrap().clone());
    global(name, &spec)
}

fn forward() -> Value {
    json!({"applyOnForward": true})
}

fn early() -> Value {
    json!({"applyOnForward": true, "preDNAT": true})
}

const CLOSED: &str = "Deny by no-match";
const OPEN: &str = "Allow by no-policy";

#[test]
fn a_port_that_leads_to_a_pod_is_open_where_no_policy_speaks_of_what_is_forwarded() {
    let node = Node::new(&[port(None, 8080, 80)], &[]);
    assert_eq!(node.tcp(8080), OPEN);
    assert_eq!(node.by((HOST_V6, OUTSIDE_V6), TCP, 8080), OPEN);
    assert_eq!(node.by((HOST.1, OUTSIDE), UDP, 8080), CLOSED);
    assert_eq!([node.tcp(80), node.tcp(8081)], [CLOSED, CLOSED]);
    assert_eq!(node.tcp(22), "Allow by failsafe");
    // What is only for the node itself does not speak of it, and neither do profiles.
    let own = edge("p", &json!({}), &json!([{"action": "Deny"}]));
    let node = Node::new(&[port(None, 8080, 80)], &[own]);
    assert_eq!(node.tcp(8080), OPEN);
    assert_eq!(node.tcp(8081), "Deny by GlobalNetworkPolicy p rule 0");
}

#[test]
fn policies_for_what_is_forwarded_judge_the_pod_and_its_port() {
    let allow =
        |destination: Value| json!([{"action": "Allow", "protocol": "TCP", "destination": destination}]);
    for (destination, passes) in [
        (json!({"ports": [80]}), true),
        (json!({"ports": [8080]}), false),
        (json!({"notPorts": [8080]}), true),
        (json!({"notPorts": [80]}), false),
        (json!({"ports": ["api"]}), false),
        (json!({"selector": "app == 'web'"}), true),
        (json!({"selector": "app == 'db'"}), false),
        (json!({"selector": "has(edge)"}), false),
        (json!({"namespaceSelector": "team == 'a'", "ports": [80]}), true),
        (json!({"nets": [format!("{}/32", WEB.1)]}), true),
        (json!({"nets": [format!("{}/32", HOST.1)]}), false),
        (json!({"notNets": [format!("{}/32", WEB.1)]}), false),
        (json!({"selector": "set == 'pods'"}), true),
    ] {
        let pods = set(
            "GlobalNetworkSet",
            "pods",
            &json!({"set": "pods"}),
            &json!({"nets": ["10.0.0.0/24"]}),
        );
        let rule = edge("p", &forward(), &allow(destination.clone()));
        let by = Node::new(&[port(None, 8080, 80)], &[pods, rule]).tcp(8080);
        let expected = match passes {
            true => "Allow by GlobalNetworkPolicy p rule 0",
            false => "Deny by default-deny (isolated by GlobalNetworkPolicy p)",
        };
        assert_eq!(by, expected, "{destination}");
    }
    // Names of ports are the pod's: 8001 is its `api`.
    let named = edge("p", &forward(), &allow(json!({"ports": ["api"]})));
    let node = Node::new(&[port(None, 8080, 8001)], &[named]);
    assert_eq!(node.tcp(8080), "Allow by GlobalNetworkPolicy p rule 0");
    // The failsafe ports are the node's own.
    let shut = edge("p", &forward(), &json!([{"action": "Deny"}]));
    let node = Node::new(&[port(None, 22, 80)], &[shut]);
    assert_eq!(node.tcp(22), "Deny by GlobalNetworkPolicy p rule 0");
    assert_eq!(node.tcp(6443), "Allow by failsafe");
    // Who asks counts as ever.
    let friends = json!([{"action": "Deny", "source": {"nets": ["203.0.113.0/24"]}}, {"action": "Allow"}]);
    let node = Node::new(&[port(None, 8080, 80)], &[edge("p", &forward(), &friends)]);
    assert_eq!(node.tcp(8080), "Deny by GlobalNetworkPolicy p rule 0");
    assert_eq!(
        node.by((HOST.1, "192.0.2.9"), TCP, 8080),
        "Allow by GlobalNetworkPolicy p rule 1"
    );
}

#[test]
fn policies_before_translation_judge_what_is_on_the_wire_and_come_first() {
    let about = |port: u16, action: &str| json!([{"action": action, "protocol": "TCP", "destination": {"ports": [port]}}]);
    let ports = [port(None, 8080, 80)];
    let node = Node::new(&ports, &[edge("e", &early(), &about(8080, "Deny"))]);
    assert_eq!(node.tcp(8080), "Deny by GlobalNetworkPolicy e rule 0");
    let node = Node::new(&ports, &[edge("e", &early(), &about(80, "Deny"))]);
    assert_eq!(node.tcp(8080), OPEN);
    // What they allow, those for what is forwarded are not asked about.
    let shut = edge("p", &forward(), &json!([{"action": "Deny"}]));
    let node = Node::new(
        &ports,
        &[edge("e", &early(), &about(8080, "Allow")), shut.clone()],
    );
    assert_eq!(node.tcp(8080), "Allow by GlobalNetworkPolicy e rule 0");
    // What they pass on, or say nothing about, those are.
    for action in ["Pass", "Log"] {
        let node = Node::new(&ports, &[edge("e", &early(), &about(8080, action)), shut.clone()]);
        assert_eq!(node.tcp(8080), "Deny by GlobalNetworkPolicy p rule 0");
    }
    // Of untracked packets too the port is that on the wire.
    let untracked = json!({"applyOnForward": true, "doNotTrack": true});
    for (wire, by) in [(8080, "Deny by GlobalNetworkPolicy u rule 0"), (80, OPEN)] {
        let node = Node::new(&ports, &[edge("u", &untracked, &about(wire, "Deny"))]);
        assert_eq!(node.tcp(8080), by);
    }
    // Tiers end as they do elsewhere, each phase for itself.
    for (end, by) in [
        ("Deny", "Deny by default-deny (isolated by GlobalNetworkPolicy p)"),
        ("Pass", OPEN),
    ] {
        let mut other = edge("p", &forward(), &about(81, "Allow"));
        other["spec"]["tier"] = json!("fence");
        let node = Node::new(&ports, &[tier("fence", Some(1.0), end), other]);
        assert_eq!(node.tcp(8080).replace("fence.", ""), by, "{end}");
    }
}

#[test]
fn a_port_of_one_address_is_the_nodes_own_at_the_others() {
    let shut = edge(
        "p",
        &forward(),
        &json!([{"action": "Deny", "destination": {"selector": "app == 'web'"}}]),
    );
    let own = edge(
        "own",
        &json!({"order": 1}),
        &json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}}]),
    );
    let node = Node::new(
        &[port(Some(SECOND), 8080, 80), port(Some(HOST_V6), 8081, 80)],
        &[own, shut],
    );
    assert_eq!(
        node.by((SECOND, OUTSIDE), TCP, 8080),
        "Deny by GlobalNetworkPolicy p rule 0"
    );
    assert_eq!(node.tcp(8080), "Allow by GlobalNetworkPolicy own rule 0");
    assert_eq!(
        node.by((HOST_V6, OUTSIDE_V6), TCP, 8080),
        "Allow by GlobalNetworkPolicy own rule 0"
    );
    assert_eq!(
        node.by((HOST_V6, OUTSIDE_V6), TCP, 8081),
        "Deny by GlobalNetworkPolicy p rule 0"
    );
    assert_eq!(node.by((HOST_V6, OUTSIDE_V6), TCP, 22), "Allow by failsafe");
    assert_eq!(
        node.by((SECOND, OUTSIDE), TCP, 8081),
        "Deny by default-deny (isolated by several policies of tier default)"
    );
}

/// Where no rule asks who is at the node, it has no more kinds of addresses than ports are of.
#[test]
fn a_port_of_one_address_tells_nothing_but_that_address_apart() {
    let own = edge(
        "own",
        &json!({"order": 1}),
        &json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}}]),
    );
    let node = Node::new(&[port(Some(SECOND), 8080, 80)], &[own]);
    let insides = &node.tables.endpoints[&EndpointId(HOST.0)].insides;
    let kinds: std::collections::BTreeSet<_> = insides.values().map(|inside| inside.ingress).collect();
    assert_eq!(
        kinds.len(),
        3,
        "that address, others of its family, and of the other: {insides:?}"
    );
    let node = Node::new(&[port(None, 8080, 80)], &[]);
    assert!(node.tables.endpoints[&EndpointId(HOST.0)].insides.is_empty());
}

#[test]
fn only_pods_of_the_node_with_an_interface_are_behind_its_ports() {
    let mut lab = Lab::new(&[host(&json!({}), &[])]);
    for pod in &mut lab.view.pods {
        pod.host_ports = vec![port(None, 8080, 80)];
        pod.endpoint = None;
    }
    assert_eq!(lab.view.cluster().translations, []);
    let v4 = PodView {
        endpoint: Some(EndpointId(1)),
        addresses: [WEB.1.parse().unwrap()].into(),
        host_ports: vec![port(None, 8080, 80), port(Some(HOST_V6), 8081, 80)],
        ..lab.view.pods[0].clone()
    };
    lab.view.pods[0] = v4;
    let found = lab.view.cluster().translations;
    let [only] = &found[..] else { panic!("{found:?}") };
    assert_eq!((only.protocol, only.port, only.workload_port), (TCP, 8080, 80));
    assert_eq!(only.address.to_string(), WEB.1);
}

/// A session follows ports without starting anew.
#[test]
fn a_session_follows_pods_behind_ports() {
    let ids = HostEndpointIds {
        local: EndpointId(901),
        forwarded: EndpointId(902),
        untracked: EndpointId(903),
    };
    let web = json!([{"action": "Allow", "protocol": "TCP", "destination": {"selector": "app == 'web'", "ports": [80]}}]);
    let mut view = Lab::new(&[host(&json!({"edge": ""}), &[]), edge("p", &forward(), &web)]).view;
    view.host_endpoints.insert("here-eth0".to_owned(), ids);
    let mut session = Session::new(view.clone(), NodeTables::default());
    session.settle();
    let say = |tables: &NodeTables, port| {
        let packet = Packet {
            direction: Ingress,
            peer: OUTSIDE.parse().unwrap(),
            inside: Some(HOST.1.parse().unwrap()),
            protocol: TCP,
            source_port: 40_000,
            port,
        };
        let entry = lookup(tables, ids.local, &packet);
        let by = tables.decided_by(entry.rule).unwrap();
        assert_eq!(by == DecidedBy::Builtin(BuiltinRule::NoMatch), port == 81);
        entry.verdict
    };
    let first = view.pods[0].clone();
    let with = |ports: &[HostPort], app: &str| {
        let mut pod = first.clone();
        pod.host_ports = ports.to_vec();
        pod.labels.insert("app".to_owned(), app.to_owned());
        pod
    };
    let both = [port(None, 8080, 80), port(None, 22, 80)];
    let denied = "Deny";
    for (now, expected) in [
        (Some(with(&both, "web")), ["Allow", "Allow"]),
        (Some(with(&both, "other")), [denied, denied]),
        (Some(with(&both[..1], "web")), ["Allow", "Allow"]),
        (
            Some(PodView {
                endpoint: None,
                ..with(&both, "web")
            }),
            [denied, "Allow"],
        ),
        (Some(with(&both, "other")), [denied, denied]),
        (None, [denied, "Allow"]),
    ] {
        session.set_pod("shop", "web", now.clone());
        assert_eq!(session.settle().anew, None, "{now:?}");
        view.pods
            .retain(|pod| pod.name != first.name || pod.namespace != first.namespace);
        view.pods.extend(now.clone());
        let compiled = compile(&view).tables;
        assert_eq!(
            policies_ir::difference::differences(session.tables(), &compiled, 9),
            []
        );
        let found = [8080, 22].map(|port| format!("{:?}", say(session.tables(), port)));
        assert_eq!(found, expected, "{now:?}");
    }
}

/// A node whose ports are of all its addresses, of one, or of one that it has not, and packets to them.
fn of_single_addresses(mut scenario: TieredScenario) -> TieredScenario {
    let own = scenario.cluster.host_addresses.clone();
    let others = scenario.cluster.nodes.values().flatten().copied();
    let others: Vec<IpAddr> = others.filter(|address| !own.contains(address)).collect();
    for (translation, turn) in scenario.cluster.translations.iter_mut().zip(0..) {
        let is_v4 = translation.address.is_ipv4();
        let mut addresses = match turn % 3 {
            1 => own.iter().copied().collect(),
            2 => others.clone(),
            _ => Vec::new(),
        };
        addresses.retain(|address| address.is_ipv4() == is_v4);
        translation.at = addresses.first().copied();
    }
    let translations = &scenario.cluster.translations;
    for ((_, packet), turn) in scenario.packets.iter_mut().zip(0..) {
        let is_v4 = packet.peer.is_ipv4();
        packet.inside = own.iter().copied().find(|address| address.is_ipv4() == is_v4);
        if let Some(translation) = translations.iter().cycle().nth(turn).filter(|_| turn % 3 > 0) {
            (packet.protocol, packet.port) = (translation.protocol, translation.port);
            packet.direction = Ingress;
        }
    }
    scenario
}

type Judgement = (Verdict, Option<DecidedBy>);

/// What tables and reference say about each packet at the node, and whether that leads to a pod.
fn at_the_node(scenario: &TieredScenario) -> Vec<(bool, Judgement, Judgement)> {
    let (cluster, policies) = (&scenario.cluster, &scenario.policies);
    let tables = compile_policies(cluster, policies);
    let hosts = cluster.members.iter().filter(|member| {
        let is_single = |id| {
            cluster
                .members
                .iter()
                .filter(|other| other.endpoint == Some(id))
                .count()
                == 1
        };
        member.workload.kind == WorkloadKind::HostEndpoint && member.endpoint.is_some_and(is_single)
    });
    let at = hosts.flat_map(|host| scenario.packets.iter().map(move |(_, packet)| (host, packet)));
    at.map(|(host, packet)| {
        let flow = cluster.flow(host, packet);
        let reference = decide(&policies.for_endpoint(&host.workload), &flow);
        let entry = lookup(&tables, host.endpoint.unwrap(), packet);
        (
            flow.translated.is_some(),
            (entry.verdict, tables.decided_by(entry.rule)),
            (reference.verdict, Some(reference.decided_by)),
        )
    })
    .collect()
}

proptest! {
    #[test]
    fn tables_and_reference_agree_about_ports_of_the_node(scenario in tiered().prop_map(of_single_addresses)) {
        for (leads_to_pod, tables, reference) in at_the_node(&scenario) {
            prop_assert_eq!(tables, reference, "leads to a pod: {}", leads_to_pod);
        }
    }
}

/// The property meets every kind of answer.
#[test]
fn ports_of_the_node_are_decided_about_in_every_way() {
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..800 {
        let scenario = tiered()
            .prop_map(of_single_addresses)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        for (_, _, (verdict, by)) in at_the_node(&scenario).into_iter().filter(|(leads, ..)| *leads) {
            let by = match by.unwrap() {
                DecidedBy::Builtin(rule) => rule.word(),
                DecidedBy::Rule(_) => "rule",
            };
            *seen.entry(format!("{verdict:?} by {by}")).or_default() += 1;
        }
    }
    for wanted in ["Allow by no-policy", "Allow by rule", "Deny by rule"] {
        assert!(
            seen.get(wanted).is_some_and(|count| *count >= 20),
            "{wanted} is too rare in {seen:#?}"
        );
    }
}

/// Two pods cannot have one port; should a list say so, the first has it, as with the node's translation.
#[test]
fn the_first_of_two_has_the_port() {
    let mut node = Node::new(
        &[port(None, 8080, 80)],
        &[edge(
            "p",
            &forward(),
            &json!([{"action": "Deny", "protocol": "TCP", "destination": {"ports": [81]}}]),
        )],
    );
    let mut second: Vec<Translation> = node.cluster.translations.clone();
    second
        .iter_mut()
        .for_each(|translation| translation.workload_port = 81);
    node.cluster.translations.extend(second);
    node.tables = compile_policies(&node.cluster, &node.policies);
    assert_eq!(
        node.tcp(8080),
        "Deny by default-deny (isolated by GlobalNetworkPolicy p)"
    );
}
