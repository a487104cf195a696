//! The judge of single flows against the reference.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use policies_compiler::{Book, FlowEnd, Judge, Question, load_objects};
use policies_ir::{
    cluster::Member,
    decide::{Standing, decide},
    policy::WorkloadKind,
    tables::{BuiltinRule, DecidedBy, Direction, Packet, Verdict},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};
use testkit::policies::{Scenario, kubernetes, objects};

use crate::sources;

/// Judges each packet of the scenario from each pod's address, and to it; how often each verdict was met.
fn compare(scenario: &Scenario) -> Result<BTreeMap<String, usize>, TestCaseError> {
    let book = Book::new(&scenario.view);
    let mut judge = Judge::new(&book);
    let cluster = book.cluster();
    let pods: Vec<&Member> = cluster
        .members
        .iter()
        .filter(|member| member.workload.kind == WorkloadKind::Pod && !member.addresses.is_empty())
        .collect();
    // What a host endpoint sees of its own node's traffic depends on the way, which the reference does not know.
    let of_host = |address: &IpAddr| {
        let hosts = cluster
            .members
            .iter()
            .filter(|m| m.workload.kind != WorkloadKind::Pod);
        hosts.flat_map(|host| &host.addresses).any(|a| a == address)
            || cluster.nodes.values().flatten().any(|a| a == address)
    };
    let nobody = Member::default();
    let is_contested = |address: IpAddr| cluster.standing(&nobody, address) == Standing::Contested;
    let owner = |address: IpAddr| cluster.members.iter().find(|m| m.addresses.contains(&address));
    let expected = |own: IpAddr, direction, peer, question: &Question| {
        if is_contested(own) {
            return Some((Verdict::Deny, DecidedBy::Builtin(BuiltinRule::NoMatch)));
        }
        owner(own).map(|member| {
            let packet = Packet {
                direction,
                peer,
                inside: None,
                protocol: question.protocol,
                source_port: question.source_port,
                port: question.port,
            };
            let decision = decide(
                &book.policies().for_endpoint(&member.workload),
                &cluster.flow(member, &packet),
            );
            (decision.verdict, decision.decided_by)
        })
    };
    let mut met: BTreeMap<String, usize> = BTreeMap::new();
    for (turn, (_, packet)) in scenario.packets.iter().enumerate() {
        let Some(pod) = pods.get(turn % pods.len().max(1)) else {
            continue;
        };
        let same_family = |address: &&IpAddr| address.is_ipv4() == packet.peer.is_ipv4();
        let Some(own) = pod.addresses.iter().find(same_family).copied() else {
            continue;
        };
        let ends = [own, packet.peer];
        if ends.iter().any(|end| of_host(end) && !is_contested(*end)) {
            continue;
        }
        let (from, to) = match packet.direction {
            Direction::Egress => (own, packet.peer),
            Direction::Ingress => (packet.peer, own),
        };
        let question = Question {
            source: FlowEnd::Address(from),
            destination: FlowEnd::Address(to),
            protocol: packet.protocol,
            source_port: packet.source_port,
            port: packet.port,
        };
        let answer = judge.judge(&question).expect("addresses can be judged");
        let egress = expected(from, Direction::Egress, to, &question);
        let ingress = expected(to, Direction::Ingress, from, &question);
        let denied = |judged: &Option<(Verdict, DecidedBy)>| matches!(judged, Some((Verdict::Deny, _)));
        let verdict = if denied(&egress) || denied(&ingress) {
            Verdict::Deny
        } else {
            Verdict::Allow
        };
        *met.entry(format!("{verdict:?} {}", ingress.is_some() && egress.is_some()))
            .or_default() += 1;
        for (end, way) in [(from, "from"), (to, "to")] {
            *met.entry(format!("{way} a contested address")).or_default() += usize::from(is_contested(end));
        }
        prop_assert_eq!(&answer.egress, &egress, "{:?}", question);
        prop_assert_eq!(&answer.ingress, &ingress, "{:?}", question);
        prop_assert_eq!(answer.verdict, verdict, "{:?}", question);
    }
    Ok(met)
}

proptest! {
    #[test]
    fn the_judge_agrees_with_the_reference(scenario in objects()) {
        compare(&scenario)?;
    }

    #[test]
    fn the_judge_agrees_about_kubernetes_policies(scenario in kubernetes()) {
        compare(&scenario)?;
    }
}

/// A comparison of what is always denied, or never between pods, would prove little.
#[test]
fn both_verdicts_are_met_with_one_and_with_two_pods() {
    let mut runner = TestRunner::deterministic();
    let mut met: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..200 {
        let scenario = objects().new_tree(&mut runner).expect("a scenario").current();
        for (what, count) in compare(&scenario).expect("they agree") {
            *met.entry(what).or_default() += count;
        }
    }
    println!("{met:?}");
    for what in [
        "Allow true",
        "Allow false",
        "Deny true",
        "Deny false",
        "from a contested address",
        "to a contested address",
    ] {
        assert!(met.get(what).is_some_and(|count| *count >= 10), "{what}: {met:?}");
    }
}

/// An end that is an address of nobody must not cost a look at every node.
#[test]
fn an_address_of_a_node_is_found_among_many_and_one_of_nobody_as_fast() {
    // The best of several: the machine has other things to do.
    let took = |nodes| (0..5).map(|_| asks_about_nobody(nodes)).min().unwrap();
    let (few, many) = (took(20), took(2_000));
    assert!(many < few * 10, "{few:?} among 20 nodes, {many:?} among 2,000");
}

/// How long it takes to judge a thousand flows from addresses that none of `nodes` has.
fn asks_about_nobody(nodes: usize) -> Duration {
    let node = |i: usize| {
        serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{i:04}")}, "status": {"addresses": [
            {"type": "InternalIP", "address": format!("10.{}.{}.1", i / 250, i % 250)}]}})
    };
    let last = nodes - 1;
    let mut objects: Vec<_> = (0..nodes).map(node).collect();
    objects.push(
        serde_json::json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
        "metadata": {"name": "uplink"}, "spec": {"node": format!("n{last:04}"), "interfaceName": "eth0"}}),
    );
    objects.push(
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a", "name": "p"},
        "spec": {"containers": []}, "status": {"podIP": "10.200.0.1"}}),
    );
    let view = load_objects(sources(&objects)).unwrap().view;
    let book = Book::new(&view);
    let mut judge = Judge::new(&book);
    let mut from = |address: Ipv4Addr| {
        let question = Question {
            source: FlowEnd::Address(address.into()),
            destination: FlowEnd::Pod {
                namespace: "a".to_owned(),
                name: "p".to_owned(),
            },
            protocol: 6,
            source_port: 40_000,
            port: 80,
        };
        judge.judge(&question).unwrap()
    };
    let octet = |number: usize| u8::try_from(number).unwrap();
    let address_of = |node: usize| Ipv4Addr::new(10, octet(node / 250), octet(node % 250), 1);
    assert!(
        from(address_of(last)).egress.is_some(),
        "its host endpoint judges"
    );
    assert!(from(address_of(last - 1)).egress.is_none());
    let start = Instant::now();
    for i in 0..1_000 {
        let outside = Ipv4Addr::from(u32::from_be_bytes([203, 0, 0, 0]) + i);
        assert!(from(outside).egress.is_none());
    }
    start.elapsed()
}

/// The port that a flow goes by which names none, by the source ports that rules ask for.
#[test]
fn a_source_port_that_no_rule_means() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "c", "ports": [
            {"name": "rtp", "containerPort": 49152}, {"name": "other", "containerPort": 49153}]}]}});
    let unmeant = |ends: &[Value]| {
        let rules: Vec<Value> = ends
            .iter()
            .map(|source| json!({"action": "Deny", "protocol": "TCP", "source": source}))
            .collect();
        let policy = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
            "metadata": {"name": "p"}, "spec": {"selector": "all()", "ingress": rules}});
        let loaded = load_objects(sources(&[pod.clone(), policy])).expect("the objects load");
        Book::new(&loaded.view).unmeant_source_port()
    };
    let ports = |ports: Value| json!({"ports": ports});
    for (rules, expected) in [
        (vec![], 49152),
        (vec![ports(json!([53, "1:1023"]))], 49152),
        (vec![ports(json!(["49152:60000"]))], 60001),
        (vec![ports(json!(["1024:65535"]))], 1023),
        (vec![json!({"notPorts": [49152, "49153"]})], 49154),
        (vec![ports(json!(["rtp"]))], 49153),
        // Any port at all is not one port more than another.
        (vec![ports(json!(["1:65535"]))], 49152),
        (vec![ports(json!(["1:65535"])), ports(json!([49152]))], 49153),
        // Every port is meant.
        (
            vec![ports(json!(["1:1023"])), ports(json!(["1024:65535"]))],
            49152,
        ),
    ] {
        assert_eq!(unmeant(&rules), expected, "{rules:?}");
    }
}
