//! The judge of single flows against the reference.

use std::{collections::BTreeMap, net::IpAddr};

use policies_compiler::{Book, FlowEnd, Judge, Question};
use policies_ir::{
    cluster::Member,
    decide::decide,
    policy::WorkloadKind,
    tables::{DecidedBy, Direction, Packet, Verdict},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use testkit::policies::{Scenario, kubernetes, objects};

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
    let owner = |address: IpAddr| cluster.members.iter().find(|m| m.addresses.contains(&address));
    let expected = |at: Option<&Member>, direction, peer, question: &Question| {
        at.map(|member| {
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
        if of_host(&packet.peer) || of_host(&own) {
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
        let egress = expected(owner(from), Direction::Egress, to, &question);
        let ingress = expected(owner(to), Direction::Ingress, from, &question);
        let denied = |judged: &Option<(Verdict, DecidedBy)>| matches!(judged, Some((Verdict::Deny, _)));
        let verdict = if denied(&egress) || denied(&ingress) {
            Verdict::Deny
        } else {
            Verdict::Allow
        };
        *met.entry(format!("{verdict:?} {}", ingress.is_some() && egress.is_some()))
            .or_default() += 1;
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
    for _ in 0..60 {
        let scenario = objects().new_tree(&mut runner).expect("a scenario").current();
        for (what, count) in compare(&scenario).expect("they agree") {
            *met.entry(what).or_default() += count;
        }
    }
    println!("{met:?}");
    for what in ["Allow true", "Allow false", "Deny true", "Deny false"] {
        assert!(met.get(what).is_some_and(|count| *count >= 10), "{what}: {met:?}");
    }
}
