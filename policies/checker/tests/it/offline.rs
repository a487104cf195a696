//! Files whose pods state no addresses, or some of one family: whoever answers for single flows between pods that are given
//! by name means the same packet, and says what the reference says about it.

use std::{collections::BTreeMap, net::IpAddr};

use policies_checker::{
    Model,
    assertion::{self, Problem},
    cases::{Case, CaseResult, Expected, PortText, run_cases},
    connectivity::{Grouping, connectivity},
    space::Point,
};
use policies_compiler::{
    Book, ClusterView, ExplainError, FlowEnd, FlowError, Judge, Question, Source, explain, load_objects,
};
use policies_ir::{
    cluster::Member,
    decide::decide,
    policy::{ICMP, ICMPV6, PORT_PROTOCOLS, TCP, UDP, WorkloadKind},
    tables::{DecidedBy, Direction, Packet, Verdict},
};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};
use testkit::policies::{as_written, define_what_is_mentioned, objects};

use crate::clusters::exists;

const POINTS: [(u8, u16); 7] = [
    (TCP, 80),
    (UDP, 53),
    (ICMP, 0x0800),
    (ICMPV6, 0x8000),
    (ICMPV6, 0x0100),
    (47, 0),
    (0, 0),
];
/// Pods that flows are asked about in each cluster.
const PODS: usize = 5;

fn load(objects: &[Value]) -> ClusterView {
    let origin = "a file";
    let loaded = load_objects(objects.iter().map(|object| Source { origin, object }));
    loaded.unwrap().view
}

/// The pair of addresses that a flow between two pods is of: of a family that both have, where it exists if there is one.
fn pair(from: &Member, to: &Member, protocol: u8) -> Option<(IpAddr, IpAddr)> {
    let of = |member: &Member, v6: bool| {
        let mut addresses = member.addresses.iter().copied();
        addresses.find(|address| address.is_ipv6() == v6)
    };
    let families = match protocol {
        ICMPV6 => [true, false],
        _ => [false, true],
    };
    let mut pairs = families
        .into_iter()
        .filter_map(|v6| Some((of(from, v6)?, of(to, v6)?)));
    pairs.next()
}

/// How often a verdict was met, by whether the packet is of IPv6, its protocol and whether it passes.
type Met = BTreeMap<(bool, u8, bool), usize>;
/// What the reference says where a flow leaves and where it arrives.
type Judged = [(Verdict, DecidedBy); 2];

/// Asks the judge of many flows, `explain` and cases about flows between pods of which the `silent` state no address.
fn compare(mut view: ClusterView, silent: &[bool]) -> Result<Met, TestCaseError> {
    for (pod, _) in view.pods.iter_mut().zip(silent).filter(|(_, silent)| **silent) {
        pod.addresses.clear();
    }
    define_what_is_mentioned(&mut view);
    let view = load(&as_written(&view));
    let book = Book::new(&view);
    let mut judge = Judge::new(&book);
    let members = book.cluster().members.iter();
    let pods = members.filter(|member| member.workload.kind == WorkloadKind::Pod);
    let pods: Vec<&Member> = pods.take(PODS).collect();
    let mut met = Met::new();
    let (mut cases, mut expected) = (Vec::new(), Vec::new());
    for from in &pods {
        for to in pods.iter().filter(|to| to.workload.name != from.workload.name) {
            for point in POINTS.map(point) {
                let asked = question(from, to, point);
                let Some((source, destination)) = pair(from, to, point.protocol) else {
                    prop_assert_eq!(judge.judge(&asked), Err(FlowError::NoCommonFamily));
                    continue;
                };
                let judged = [
                    reference(&book, from, (Direction::Egress, destination), point),
                    reference(&book, to, (Direction::Ingress, source), point),
                ];
                let answer = judge.judge(&asked).unwrap();
                let [egress, ingress] = judged.clone();
                prop_assert_eq!((answer.egress, answer.ingress), (Some(egress), Some(ingress)));
                let allowed = judged.iter().all(|(verdict, _)| *verdict == Verdict::Allow);
                *met.entry((source.is_ipv6(), point.protocol, allowed))
                    .or_default() += 1;
                cases.push(case(from, to, point, allowed));
                expected.push((source, destination, judged));
            }
            let asked = question(from, to, point((ICMPV6, 0x8000)));
            let explained = explain(&view, &asked);
            let expected = pair(from, to, ICMPV6).ok_or(ExplainError::Flow(FlowError::NoCommonFamily));
            let explained = explained.map(|told| (told.from.address, told.to.address));
            prop_assert_eq!(explained, expected);
        }
    }
    let report = run_cases(&Model::new(&view), &cases);
    for ((result, case), expected) in report.cases.into_iter().zip(&cases).zip(expected) {
        same_case(case, &result, &expected)?;
    }
    Ok(met)
}

/// A case is of the same packet with the same answer, and an error if there is no such packet.
fn same_case(
    case: &Case,
    result: &CaseResult,
    (source, destination, judged): &(IpAddr, IpAddr, Judged),
) -> Result<(), TestCaseError> {
    let Some(PortText::Number(protocol)) = case.protocol else {
        return Err(TestCaseError::fail("the case has a protocol"));
    };
    if !exists(*source, point((u8::try_from(protocol).unwrap(), 0))) {
        let failure = result.failure.clone().unwrap_or_default();
        prop_assert!(
            failure.contains("no addresses in common that carry"),
            "{}",
            failure
        );
        return Ok(());
    }
    prop_assert_eq!(&result.failure, &None, "{:?}", case);
    let packet = result.packet.as_ref().unwrap();
    prop_assert_eq!((packet.from.address, packet.to.address), (*source, *destination));
    let told = [&packet.egress, &packet.ingress].map(|ruling| ruling.as_ref().unwrap().by.clone());
    prop_assert_eq!(told, judged.clone().map(|(_, by)| by.to_string()), "{:?}", case);
    Ok(())
}

fn reference(
    book: &Book,
    own: &Member,
    (direction, peer): (Direction, IpAddr),
    point: Point,
) -> (Verdict, DecidedBy) {
    let packet = Packet {
        direction,
        peer,
        inside: None,
        protocol: point.protocol,
        source_port: point.source_port,
        port: point.port,
    };
    let decision = decide(
        &book.policies().for_endpoint(&own.workload),
        &book.cluster().flow(own, &packet),
    );
    (decision.verdict, decision.decided_by)
}

fn point((protocol, port): (u8, u16)) -> Point {
    let has_ports = PORT_PROTOCOLS.contains(&protocol);
    Point {
        protocol,
        source_port: if has_ports { 49152 } else { 0 },
        port,
    }
}

fn question(from: &Member, to: &Member, point: Point) -> Question {
    let end = |member: &Member| FlowEnd::Pod {
        namespace: member.workload.namespace.clone(),
        name: member.workload.name.clone(),
    };
    Question {
        source: end(from),
        destination: end(to),
        protocol: point.protocol,
        source_port: point.source_port,
        port: point.port,
    }
}

fn case(from: &Member, to: &Member, point: Point, allowed: bool) -> Case {
    let name = |member: &Member| format!("{}/{}", member.workload.namespace, member.workload.name);
    let [kind, code] = point.port.to_be_bytes();
    Case {
        name: None,
        from: name(from),
        to: name(to),
        port: match point.protocol {
            ICMP | ICMPV6 => Some(PortText::Text(format!("{kind}.{code}"))),
            _ if point.source_port != 0 => Some(PortText::Number(point.port)),
            _ => None,
        },
        protocol: Some(PortText::Number(point.protocol.into())),
        source_port: Some(point.source_port).filter(|port| *port != 0),
        expect: if allowed { Expected::Allow } else { Expected::Deny },
        rule: None,
    }
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        // Each case asks hundreds of questions; `PROPTEST_CASES` asks for more.
        cases: default.cases.div_ceil(4),
        ..default
    }
}

fn silent() -> impl Strategy<Value = Vec<bool>> {
    vec(prop::bool::weighted(0.7), PODS)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn pods_by_name_are_judged_like_the_reference(scenario in objects(), silent in silent()) {
        compare(scenario.view, &silent)?;
    }
}

/// A comparison of what is always denied, or never of IPv6, would prove little.
#[test]
fn both_verdicts_are_met_in_both_families() {
    let mut runner = TestRunner::deterministic();
    let mut met = Met::new();
    for _ in 0..30 {
        let (scenario, silent) = (objects(), silent()).new_tree(&mut runner).unwrap().current();
        for (what, count) in compare(scenario.view, &silent).unwrap() {
            *met.entry(what).or_default() += count;
        }
    }
    println!("{met:?}");
    for what in [
        (true, ICMPV6, true),
        (true, ICMPV6, false),
        (false, TCP, true),
        (false, TCP, false),
        (false, ICMP, true),
        (false, ICMP, false),
        // Of pods one of which has only that family.
        (true, TCP, true),
        (true, TCP, false),
    ] {
        assert!(
            met.get(&what).is_some_and(|count| *count >= 10),
            "{what:?}: {met:?}"
        );
    }
}

/// Pods of which nothing tells a family may have either: all questions are asked about both.
#[test]
fn pods_without_addresses_are_asked_about_in_both_families() {
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c"}]},
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}}})
    };
    let model = |ingress: Value| {
        let policy = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"selector": "app == 'db'", "types": ["Ingress"], "ingress": ingress}});
        Model::new(&load(&[pod("web"), pod("db"), policy]))
    };
    let against = |model: &Model, text: &str| {
        let proof = assertion::prove(model, &assertion::parse(text).unwrap());
        match proof.problem {
            None => None,
            Some(Problem::Counterexample(packet)) => Some((packet.from.address.is_ipv6(), packet.allowed)),
            Some(other) => panic!("{other:?}"),
        }
    };
    let (reaches, never) = (
        "pod(shop/web) reaches pod(shop/db)",
        "no pod(shop/web) reaches pod(shop/db)",
    );
    let on = |text: &str, services: &str| format!("{text} on {services}");
    let of_v6 = model(json!([{"action": "Allow", "protocol": "ICMPv6"}]));
    assert_eq!(against(&of_v6, &on(reaches, "ICMPv6")), None);
    assert_eq!(against(&of_v6, &on(never, "ICMP")), None);
    assert_eq!(against(&of_v6, never), Some((true, true)));
    let lines = connectivity(&of_v6, Grouping::Equal).lines();
    let between = |line: &&[String; 3]| line[0] == "shop/web" && line[1] == "shop/db";
    let between: Vec<&str> = lines
        .iter()
        .filter(between)
        .map(|line| line[2].as_str())
        .collect();
    assert_eq!(between, ["ICMPv6 (IPv6)"]);
    let of_v4 = model(json!([{"action": "Allow", "source": {"nets": ["0.0.0.0/0"]}}]));
    assert_eq!(against(&of_v4, &on(reaches, "ICMP")), None);
    assert_eq!(against(&of_v4, &on(never, "ICMPv6")), None);
    // Nothing speaks of IPv6, so a cluster without it is meant; a network of it anywhere says otherwise.
    assert_eq!(against(&of_v4, &on(reaches, "443")), None);
    let of_both = model(json!([
        {"action": "Allow", "source": {"nets": ["0.0.0.0/0"]}},
        {"action": "Deny", "source": {"nets": ["2001:db8::/32"]}},
    ]));
    assert_eq!(against(&of_both, &on(reaches, "443")), Some((true, false)));
}
