//! What files leave unsaid is what they would have said: whoever states the addresses that were assumed gets the same answers,
//! and so does who reads the files in another order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use policies_compiler::{
    Answer, Book, CalicoObject, ClusterView, FlowEnd, FlowError, Judge, Question, explain, load_objects,
};
use policies_ir::{
    cluster::primary,
    policy::WorkloadKind,
    tables::{BuiltinRule, DecidedBy, Packet, Verdict},
};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};
use testkit::policies::{Scenario, as_written, define_what_is_mentioned, objects};

use crate::sources;

/// Questions of each cluster.
const FLOWS: usize = 60;

type Answered = Result<Answer, FlowError>;

/// The cluster as files tell it in which the `silent` pods state no address.
fn told(scenario: &Scenario, silent: &[bool]) -> ClusterView {
    let mut view = scenario.view.clone();
    for (pod, _) in view.pods.iter_mut().zip(silent).filter(|(_, silent)| **silent) {
        pod.addresses.clear();
    }
    define_what_is_mentioned(&mut view);
    for object in &mut view.calico {
        if let CalicoObject::HostEndpoint(host) = object {
            // What is another node's address is so as its object says, which would then say more.
            let own = [["10.0.0.254", "fd00::1:fe"], ["10.0.0.253", "fd00::1:fd"]];
            let own = own[usize::from(host.spec.node == "node-2")];
            host.spec
                .expected_ips
                .retain(|address| own.contains(&address.as_str()));
        }
    }
    view
}

/// The objects that make this view, with a service in each namespace that leads to one of the pods on their nodes' networks. A
/// node that says nothing is not written.
fn files(view: &ClusterView, on_nodes: &[policies_compiler::PodView]) -> Vec<Value> {
    let mut written = view.clone();
    written
        .nodes
        .retain(|_, node| !node.addresses.is_empty() || !node.labels.is_empty());
    let mut files = as_written(&written);
    let labelled = on_nodes.iter().filter(|pod| !pod.labels.is_empty());
    let first: BTreeMap<&String, _> = labelled.map(|pod| (&pod.namespace, &pod.labels)).collect();
    for (namespace, selector) in first {
        files.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": "web"},
            "spec": {"selector": selector, "ports": [{"port": 80}], "ipFamilies": ["IPv4", "IPv6"]}}));
    }
    files
}

fn load(files: &[Value]) -> ClusterView {
    load_objects(sources(files)).expect("the objects load").view
}

/// The view in which everybody states where it was taken to be.
fn stated(told: &ClusterView, read: &ClusterView) -> ClusterView {
    let book = Book::new(read);
    let cluster = book.cluster();
    let mut stated = told.clone();
    for pod in &mut stated.pods {
        let same = |other: &&policies_compiler::PodView| {
            (&other.namespace, &other.name) == (&pod.namespace, &pod.name)
        };
        pod.addresses
            .clone_from(&read.pods.iter().find(same).expect("it was read").addresses);
    }
    for (name, addresses) in &cluster.nodes {
        let node = stated.nodes.entry(name.clone()).or_default();
        if node.addresses.is_empty() {
            node.addresses.clone_from(addresses);
            node.primary = primary(cluster.addresses_of_node(name).unwrap());
        }
    }
    for pod in &mut stated.node_pods {
        if pod.addresses.is_empty() {
            let of_node = cluster.addresses_of_node(&pod.node);
            pod.addresses.extend(primary(of_node.into_iter().flatten()));
        }
        if pod.addresses.is_empty() {
            // One that is on no node has an address of its own.
            let key = (pod.namespace.clone(), pod.name.clone());
            pod.addresses.clone_from(&cluster.node_pods[&key].addresses);
        }
    }
    stated
}

/// Everybody who has a name, and the addresses of the packets.
fn ends(view: &ClusterView, packets: &[&Packet]) -> Vec<FlowEnd> {
    let pods = view.pods.iter().chain(&view.node_pods).map(|pod| FlowEnd::Pod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
    });
    let hosts = view.calico.iter().filter_map(|object| match object {
        CalicoObject::HostEndpoint(host) => host.metadata.name.clone(),
        _ => None,
    });
    let nodes = view.nodes.keys().cloned().chain(hosts);
    let addresses = packets.iter().map(|packet| FlowEnd::Address(packet.peer));
    pods.chain(nodes.map(FlowEnd::Host)).chain(addresses).collect()
}

fn questions(scenario: &Scenario, view: &ClusterView) -> Vec<Question> {
    let packets: Vec<&Packet> = scenario.packets.iter().map(|(_, packet)| packet).collect();
    let ends = ends(view, &packets);
    // Which meet is as random as their number.
    let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
    let step = (ends.len() * ends.len() / FLOWS).max(1);
    let asked = pairs.step_by(step).zip(packets.iter().cycle());
    asked
        .map(|((from, to), packet)| Question {
            source: from.clone(),
            destination: to.clone(),
            protocol: packet.protocol,
            source_port: packet.source_port,
            port: packet.port,
        })
        .collect()
}

fn answers(view: &ClusterView, questions: &[Question]) -> Vec<Answered> {
    let book = Book::new(view);
    let mut judge = Judge::new(&book);
    questions.iter().map(|question| judge.judge(question)).collect()
}

/// Compares the answers, and counts what they were about.
fn compare(scenario: &Scenario, silent: &[bool]) -> Result<BTreeMap<String, usize>, TestCaseError> {
    let told = told(scenario, silent);
    let silent = files(&told, &told.node_pods);
    let read = load(&silent);
    let stated = stated(&told, &read);
    let questions = questions(scenario, &told);
    let expected = answers(&load(&files(&stated, &told.node_pods)), &questions);
    let turned: Vec<Value> = silent.iter().rev().cloned().collect();
    let (found, turned) = (answers(&read, &questions), answers(&load(&turned), &questions));
    let mut met: BTreeMap<String, usize> = BTreeMap::new();
    for (number, question) in questions.iter().enumerate() {
        prop_assert_eq!(&found[number], &expected[number], "stated, {:?}", question);
        prop_assert_eq!(
            &found[number],
            &turned[number],
            "in another order, {:?}",
            question
        );
        let kind = |end: &FlowEnd| match end {
            FlowEnd::Host(name) if told.nodes.get(name).is_some_and(|node| node.addresses.is_empty()) => {
                "silent node"
            }
            FlowEnd::Pod { name, .. } if name.starts_with("agent") => "node pod",
            _ => "other",
        };
        if let Ok(answer) = &found[number] {
            let way = format!("{} to {}", kind(&question.source), kind(&question.destination));
            for (_, by) in answer.egress.iter().chain(&answer.ingress) {
                let DecidedBy::Rule(rule) = by else { continue };
                if rule.policy.starts_with("ClusterNetworkPolicy") {
                    *met.entry(format!("{way} by a cluster policy")).or_default() += 1;
                }
            }
            *met.entry(way).or_default() += 1;
        }
    }
    Ok(met)
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        // Each case reads its files four times.
        cases: default.cases.div_ceil(2),
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn to_state_what_is_assumed_changes_nothing(
        scenario in objects(),
        silent in vec(prop::bool::weighted(0.5), 8),
    ) {
        compare(&scenario, &silent)?;
    }

    /// An address of several, or of a pod and a node, is nobody's: decide and explain deny what is said to come from there or
    /// to go there, whoever is first among those that claim it.
    #[test]
    fn what_nobody_is_known_by_is_denied_both_ways(scenario in objects(), turn in any::<bool>()) {
        let mut view = ClusterView { node: String::new(), ..scenario.view };
        view.host_addresses.clear();
        view.host_groups.clear();
        if turn {
            view.pods.reverse();
        }
        let book = Book::new(&view);
        let (cluster, mut judge) = (book.cluster(), Judge::new(&book));
        let claims = |address: &IpAddr| {
            let members = cluster.members.iter().filter(|member| member.addresses.contains(address));
            let pods = members.clone().filter(|member| member.workload.kind == WorkloadKind::Pod).count();
            let nodes = cluster.nodes.values().filter(|of| of.contains(address)).count();
            let hosts: BTreeSet<&String> = members.filter(|m| m.workload.kind == WorkloadKind::HostEndpoint).map(|m| &m.node).collect();
            (pods, nodes, hosts.len())
        };
        let all: BTreeSet<IpAddr> = cluster.members.iter().flat_map(|member| member.addresses.iter().copied()).collect();
        for (number, address) in all.into_iter().enumerate() {
            let (pods, nodes, hosts) = claims(&address);
            let is_contested = pods > 1 || hosts > 1 || (pods == 1 && nodes + hosts > 0);
            let outside = if address.is_ipv4() { "203.0.113.9" } else { "2001:db8::9" };
            let [own, peer] = [address, outside.parse().unwrap()].map(FlowEnd::Address);
            let packet = scenario.packets[number % scenario.packets.len()].1;
            for (source, destination) in [(own.clone(), peer.clone()), (peer, own)] {
                let leaves = source == FlowEnd::Address(address);
                let question = Question {
                    source, destination, protocol: packet.protocol, source_port: packet.source_port, port: packet.port,
                };
                let answer = judge.judge(&question).unwrap();
                let said = if leaves { answer.egress } else { answer.ingress };
                let nobody = Some((Verdict::Deny, DecidedBy::Builtin(BuiltinRule::NoMatch)));
                prop_assert!(!is_contested || said == nobody, "{:?} {:?}", question, said);
                let explained = explain(&view, &question).unwrap();
                let explained = if leaves { explained.egress } else { explained.ingress };
                let explained = explained.map(|explained| explained.decided_by.rule);
                prop_assert_eq!(explained, said.map(|(_, by)| by.to_string()), "{:?}", question);
            }
        }
    }
}

/// A comparison in which the silent are not met would prove nothing.
#[test]
fn who_states_nothing_is_met_at_both_ends() {
    let mut runner = TestRunner::deterministic();
    let mut met: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..300 {
        let scenario = objects().new_tree(&mut runner).expect("a scenario").current();
        for (what, count) in compare(&scenario, &[true, false, true, false, true]).expect("they agree") {
            *met.entry(what).or_default() += count;
        }
    }
    println!("{met:#?}");
    for (what, least) in [
        ("silent node to other", 10),
        ("other to silent node", 10),
        ("other to silent node by a cluster policy", 1),
        ("node pod to other", 10),
        ("other to node pod", 10),
        ("other to node pod by a cluster policy", 2),
    ] {
        assert!(
            met.get(what).is_some_and(|count| *count >= least),
            "{what}: {met:?}"
        );
    }
}
