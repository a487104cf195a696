//! The compiled tables against the reference, over random clusters, policies and packets.

use std::collections::BTreeMap;

use policies_compiler::{
    ClusterView, PodView, Policies, compile, compile_policies, reference, validate, validate_object,
};
use policies_ir::{
    cluster::{Cluster, Member},
    decide::{Standing, decide},
    policy::{EndMatch, PortMatch, TCP, Workload, WorkloadKind},
    ports::{PortSet, egress_tcp},
    selector::Expression,
    tables::{
        BuiltinRule, DecidedBy, Direction, EndpointId, NodeTables, Packet, RuleName, Service, SourceClass,
        Verdict, lookup,
    },
};
use proptest::{prelude::*, sample::Index, strategy::ValueTree, test_runner::TestRunner};
use testkit::policies::{
    Scenario, TieredScenario, break_field, break_object, cluster_policy_value, expression, kubernetes,
    object_value, objects, packet, tiered, valid_network_policy, with_host_endpoints,
};

use crate::spec;

type Judgement = (Verdict, DecidedBy);

/// At least a thousand cases of up to 40 packets; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(1024),
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn tables_of_kubernetes_policies_agree_with_the_reference(scenario in kubernetes()) {
        let Scenario { view, packets } = scenario;
        let tables = compile(&view).tables;
        for (endpoint, packet) in packets {
            let (tables, reference) = (judged(&tables, endpoint, &packet)?, expected(&view, endpoint, &packet));
            prop_assert_eq!(tables, reference, "{:?} {:?}", endpoint, packet);
        }
    }

    #[test]
    fn tables_of_tiers_agree_with_the_reference(scenario in tiered()) {
        let tables = compile_policies(&scenario.cluster, &scenario.policies);
        for (endpoint, packet) in &scenario.packets {
            if let Some(reference) = expected_of_tiers(&scenario, *endpoint, packet) {
                let tables = judged(&tables, *endpoint, packet)?;
                prop_assert_eq!(tables, reference, "{:?} {:?}", endpoint, packet);
            }
        }
    }

    /// What knows ports and no peers must not refuse what the policy allows.
    #[test]
    fn a_port_that_is_allowed_to_somebody_is_in_the_bound(scenario in tiered()) {
        for (endpoint, packet) in &scenario.packets {
            let members = &scenario.cluster.members;
            let own = members.iter().find(|member| member.endpoint == Some(*endpoint));
            let Some(own) = own.filter(|own| own.workload.kind == WorkloadKind::Pod) else { continue };
            let Some((Verdict::Allow, by)) = expected_of_tiers(&scenario, *endpoint, packet) else { continue };
            let itself = by == DecidedBy::Builtin(BuiltinRule::SelfTraffic);
            if packet.protocol != TCP || packet.direction != Direction::Egress || itself {
                continue;
            }
            let named = |name: &str| {
                let mut ports = PortSet::none();
                let all = members.iter().flat_map(|member| &member.workload.named_ports);
                all.filter(|port| port.name == name).for_each(|port| ports.insert(port.port, port.port));
                ports
            };
            let bound = egress_tcp(&scenario.policies.for_endpoint(&own.workload), named);
            prop_assert!(bound.contains(packet.port), "{:?} is allowed by {:?}", packet, by);
        }
    }

    #[test]
    fn parts_of_host_endpoints_agree_with_the_reference(scenario in tiered()) {
        for (_, tables, reference) in parts_of_hosts(scenario)? {
            prop_assert_eq!(tables, reference);
        }
    }

    #[test]
    fn expressions_read_as_they_are_written(
        expression in expression(),
        labels in proptest::collection::btree_map(
            proptest::sample::select(vec!["app", "in", "has", "0", "projectcalico.org/namespace", "pcns.app"]),
            proptest::sample::select(vec!["", "web", "in", "pci", "eb"]),
            0..4,
        ),
    ) {
        let label = |key: &str| labels.get(key).copied();
        let read = Expression::parse(&expression.to_string());
        prop_assert!(read.is_ok(), "{} is not read: {:?}", expression, read);
        let read = read.unwrap_or(Expression::All);
        prop_assert_eq!(read.matches(&label), expression.matches(&label), "{}", expression);
        prop_assert_eq!(Expression::parse(&read.to_string()), Ok(read));
    }

    #[test]
    fn tables_of_objects_agree_with_the_reference(scenario in objects()) {
        let scenario = as_tiers(&scenario);
        let tables = compile_policies(&scenario.cluster, &scenario.policies);
        for (endpoint, packet) in &scenario.packets {
            if let Some(reference) = expected_of_tiers(&scenario, *endpoint, packet) {
                let tables = judged(&tables, *endpoint, packet)?;
                prop_assert_eq!(tables, reference, "{:?} {:?}", endpoint, packet);
            }
        }
    }

    /// The conversion of objects is judged by who does not use it.
    #[test]
    fn the_reference_agrees_with_the_objects_themselves(scenario in objects()) {
        let cluster = with_host_endpoints(&scenario.view);
        for (pod, packet, by_objects) in judged_by_objects(&scenario.view, &scenario.packets) {
            let by_reference = verdict_of(&cluster, pod, packet);
            prop_assert_eq!(by_reference, by_objects, "{} {:?}", pod.name, packet);
        }
    }

    #[test]
    fn expressions_are_read_as_the_grammar_says(
        expression in expression(),
        labels in proptest::collection::btree_map(
            proptest::sample::select(vec!["app", "in", "has", "0", "projectcalico.org/namespace", "pcns.app"]),
            proptest::sample::select(vec!["", "web", "in", "pci", "eb"]),
            0..4,
        ),
    ) {
        let text = expression.to_string();
        let owned = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let read = Expression::parse(&text).unwrap().matches(&|key: &str| labels.get(key).copied());
        prop_assert_eq!(read, spec::selects(&text, "", true, &owned), "{}", text);
    }

    #[test]
    fn valid_objects_of_every_kind_are_taken_whole(scenario in objects()) {
        let view = &scenario.view;
        for object in &view.calico {
            let value = object_value(object);
            prop_assert_eq!(validate_object(&value), Ok(()), "{}", value);
        }
        for policy in &view.cluster_policies {
            let value = cluster_policy_value(policy);
            prop_assert_eq!(validate_object(&value), Ok(()), "{}", value);
        }
        let mut reported = Vec::new();
        let _ = view.policy_set(|name, error| reported.push((name.to_owned(), error)));
        prop_assert_eq!(reported, vec![]);
    }

    #[test]
    fn a_broken_object_is_refused_and_never_allows_more(
        scenario in objects(),
        packets in proptest::collection::vec(packet(), 20..40),
        which in any::<Index>(),
        kind in any::<u8>(),
        place in any::<Index>(),
    ) {
        let mut broken = scenario.view.clone();
        let Some(value) = break_object(&mut broken, which, kind, place) else { return Ok(()) };
        prop_assert!(validate_object(&value).is_err(), "{} was accepted", value);
        let tables = |view: &ClusterView| {
            let (cluster, policies) = with_host_endpoints(view);
            compile_policies(&cluster, &policies.enforced)
        };
        let (before, after) = (tables(&scenario.view), tables(&broken));
        let clusters = [&scenario.view, &broken].map(|view| with_host_endpoints(view).0);
        for (endpoint, packet) in scenario.packets.into_iter().chain(packets) {
            // Whose rules ask for an address that nobody knows denies everything; whose rules no longer do has nothing to deny it for.
            let at = |cluster: &Cluster| {
                let mut members = cluster.members.iter();
                let member = members.find(|member| member.endpoint == Some(endpoint));
                member.is_some_and(|member| cluster.flow(member, &packet).own.is_unknown)
            };
            if clusters.iter().any(at) {
                continue;
            }
            let (before, after) = (lookup(&before, endpoint, &packet), lookup(&after, endpoint, &packet));
            prop_assert!(
                before.verdict == Verdict::Allow || after.verdict == Verdict::Deny,
                "{:?} {:?} was denied and is allowed now that this is broken: {}", endpoint, packet, value
            );
        }
    }

    #[test]
    fn order_of_objects_does_not_matter(scenario in kubernetes(), turn in any::<Index>()) {
        let view = scenario.view;
        let mut turned = view.clone();
        turned.pods.rotate_left(turn.index(view.pods.len()));
        turned.policies.reverse();
        prop_assert_eq!(compile(&view).tables, compile(&turned).tables);
    }

    #[test]
    fn tables_hold_nothing_in_vain(scenario in tiered()) {
        let tables = compile_policies(&scenario.cluster, &scenario.policies);
        let used: std::collections::BTreeSet<_> = tables.identities.values().copied().collect();
        prop_assert!(used.iter().map(|identity| identity.0).eq(1..=used.len().try_into().unwrap()));
        for endpoint in tables.endpoints.values() {
            for (key, entry) in endpoint.verdicts.iter() {
                prop_assert!(used.contains(&key.peer), "{:?} is no identity", key);
                prop_assert!(tables.decided_by(entry.rule).is_some(), "{:?} has no name", entry);
                if let Service::Ports { port, prefix_bits, .. } = key.service {
                    prop_assert!((1..=16).contains(&prefix_bits), "{:?}", key);
                    prop_assert_eq!(port & u16::MAX.checked_shr(prefix_bits.into()).unwrap_or(0), 0, "{:?}", key);
                }
            }
        }
        for net in tables.identities.keys() {
            prop_assert_eq!(*net, net.trunc());
        }
    }

    #[test]
    fn valid_policies_compile_without_diagnostics(policy in valid_network_policy()) {
        prop_assert_eq!(validate(&policy), Ok(()));
        let view = ClusterView { policies: vec![policy], ..ClusterView::default() };
        prop_assert_eq!(compile(&view).diagnostics, vec![]);
    }

    #[test]
    fn a_broken_field_is_refused_and_never_allows_more(
        scenario in kubernetes(),
        packets in proptest::collection::vec(packet(), 20..40),
        which in any::<Index>(),
        kind in any::<u8>(),
        place in any::<Index>(),
    ) {
        let mut view = scenario.view;
        if view.policies.is_empty() {
            return Ok(());
        }
        let before = compile(&view).tables;
        let which = which.index(view.policies.len());
        break_field(&mut view.policies[which], kind, place);
        prop_assert!(validate(&view.policies[which]).is_err(), "{:?} was accepted", view.policies[which]);
        let after = compile(&view).tables;
        for (endpoint, packet) in packets {
            let (before, after) = (lookup(&before, endpoint, &packet), lookup(&after, endpoint, &packet));
            // Whose rules ask for an address that nobody told denies even itself; whose rules do not, never does.
            let is_itself = after.rule == BuiltinRule::SelfTraffic.id();
            prop_assert!(
                before.verdict == Verdict::Allow || after.verdict == Verdict::Deny || is_itself,
                "{:?} {:?} was denied and is allowed now", endpoint, packet
            );
        }
    }
}

proptest! {
    /// Aligning tables with others, related or not, changes no judgement.
    #[test]
    fn aligned_tables_judge_alike(scenario in objects(), other in objects()) {
        let tables = compile(&scenario.view).tables;
        let mut changed = scenario.view.clone();
        changed.policies.pop();
        changed.calico.pop();
        changed.pods.rotate_left(1);
        for previous in [compile(&other.view).tables, compile(&changed).tables, tables.clone()] {
            let aligned = tables.clone().aligned_with(&previous);
            for (endpoint, packet) in &scenario.packets {
                let (one, two) = (judged(&aligned, *endpoint, packet)?, judged(&tables, *endpoint, packet)?);
                prop_assert_eq!(one, two, "{:?} {:?}", endpoint, packet);
            }
        }
        prop_assert_eq!(tables.clone().aligned_with(&tables), tables);
    }

    /// A policy that applies to nobody leaves every endpoint as it is, though its rules are named before others.
    #[test]
    fn what_concerns_nobody_changes_no_endpoint(scenario in kubernetes(), policy in valid_network_policy()) {
        let before = compile(&scenario.view).tables;
        let mut view = scenario.view;
        let mut policy = policy;
        policy.metadata.name = Some("a-first".to_owned());
        policy.metadata.namespace = Some("a-namespace-without-pods".to_owned());
        view.policies.insert(0, policy);
        let after = compile(&view).tables.aligned_with(&before);
        prop_assert_eq!(after.endpoints, before.endpoints);
    }
}

/// Which part, whether its own end mattered, and what tables and reference say.
type Part = ([&'static str; 2], Judgement, Judgement);

/// What tables and reference say about packets at a host: its own, those that it forwards, and those before flows are known.
fn parts_of_hosts(mut scenario: TieredScenario) -> Result<Vec<Part>, TestCaseError> {
    for member in &mut scenario.cluster.members {
        if let (WorkloadKind::HostEndpoint, Some(EndpointId(own))) = (member.workload.kind, member.endpoint) {
            member.forwarded = Some(EndpointId(1000 + own));
            member.untracked = Some(EndpointId(2000 + own));
        }
    }
    let (cluster, policies) = (&scenario.cluster, &scenario.policies);
    let speaks = |member: &Member| {
        member.untracked.is_some() && !policies.for_forwarded(&member.workload).tiers.is_empty()
    };
    if !cluster.members.iter().any(speaks) {
        return Ok(Vec::new());
    }
    let tables = compile_policies(cluster, policies);
    let mut parts = Vec::new();
    for member in &cluster.members {
        let workload = &member.workload;
        let found = [
            (
                "own",
                member.untracked.and(member.endpoint),
                policies.for_endpoint(workload),
            ),
            ("forwarded", member.forwarded, policies.for_forwarded(workload)),
            ("untracked", member.untracked, policies.for_untracked(workload)),
        ];
        for (name, endpoint, policy) in found {
            let Some(endpoint) = endpoint else { continue };
            if policy.tiers.is_empty() && Some(endpoint) != member.endpoint {
                prop_assert!(
                    !tables.endpoints.contains_key(&endpoint),
                    "{} has nothing to say",
                    name
                );
                continue;
            }
            for (position, (_, packet)) in scenario.packets.iter().enumerate() {
                // Of what passes through, the own end is whoever the next packet of the family is from or to.
                let others = scenario.packets.iter().cycle().skip(position + 1);
                let others = others.take(scenario.packets.len()).map(|(_, other)| other.peer);
                let mut of_family = others.filter(|other| other.is_ipv4() == packet.peer.is_ipv4());
                let packet = Packet {
                    inside: if name == "own" {
                        packet.inside
                    } else {
                        of_family.next()
                    },
                    ..*packet
                };
                let flow = cluster.flow(member, &packet);
                let decision = decide(&policy, &flow);
                let asks = policy.asks_own(packet.direction);
                let own = match (asks, flow.own.is_unknown) {
                    (true, true) => "unknown own end",
                    (true, false) => "own end asked for",
                    (false, _) => "any own end",
                };
                let reference = (decision.verdict, decision.decided_by);
                parts.push(([name, own], judged(&tables, endpoint, &packet)?, reference));
            }
        }
    }
    Ok(parts)
}

/// The property about host endpoints meets every kind of answer.
#[test]
fn parts_of_host_endpoints_decide_in_every_way() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..5000 {
        let scenario = tiered().new_tree(&mut runner).expect("a scenario").current();
        for ([name, own], _, (verdict, by)) in parts_of_hosts(scenario).expect("tables with names") {
            let by = match by {
                DecidedBy::Builtin(rule) => rule.word(),
                DecidedBy::Rule(_) => "rule",
            };
            for kind in [name.to_owned(), format!("{name}, {own},")] {
                *seen.entry(format!("{kind} {verdict:?} by {by}")).or_default() += 1;
            }
        }
    }
    for wanted in [
        "forwarded Allow by no-policy",
        "forwarded Allow by rule",
        "forwarded Deny by rule",
        "untracked Allow by rule",
        "untracked Deny by no-match",
        "untracked Deny by rule",
        "forwarded, own end asked for, Allow by rule",
        "forwarded, own end asked for, Deny by rule",
        "forwarded, own end asked for, Allow by no-policy",
        "forwarded, unknown own end, Deny by no-match",
        "own, own end asked for, Allow by rule",
        "own, own end asked for, Deny by rule",
        "own, own end asked for, Allow by failsafe",
        "own, unknown own end, Deny by no-match",
        "own, unknown own end, Allow by failsafe",
        "untracked, own end asked for, Deny by rule",
    ] {
        assert!(
            seen.get(wanted).is_some_and(|count| *count >= 10),
            "{wanted} is too rare in {seen:#?}"
        );
    }
}

/// Each packet at each pod of the node that the second evaluator has an answer for.
fn judged_by_objects<'a>(
    view: &'a ClusterView,
    packets: &'a [(EndpointId, Packet)],
) -> impl Iterator<Item = (&'a PodView, &'a Packet, Verdict)> {
    let pods = view.pods.iter().filter(|pod| pod.endpoint.is_some());
    pods.flat_map(move |pod| {
        packets.iter().filter_map(move |(_, packet)| {
            spec::judge(view, pod, packet).map(|verdict| (pod, packet, verdict))
        })
    })
}

fn verdict_of((cluster, policies): &(Cluster, Policies), pod: &PodView, packet: &Packet) -> Verdict {
    let own = cluster
        .members
        .iter()
        .find(|member| member.endpoint == pod.endpoint);
    let own = own.expect("the pod is a member");
    let policy = policies.enforced.for_endpoint(&own.workload);
    decide(&policy, &cluster.flow(own, packet)).verdict
}

/// The second evaluator has answers for most, and they are not all alike.
#[test]
fn the_objects_themselves_say_much() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<(Direction, Verdict), usize> = BTreeMap::new();
    for _ in 0..500 {
        let scenario = objects().new_tree(&mut runner).expect("a scenario").current();
        for (_, packet, verdict) in judged_by_objects(&scenario.view, &scenario.packets) {
            *seen.entry((packet.direction, verdict)).or_default() += 1;
        }
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        for verdict in [Verdict::Allow, Verdict::Deny] {
            let count = seen.get(&(direction, verdict)).copied().unwrap_or_default();
            assert!(count > 1000, "{direction:?} {verdict:?} is too rare: {seen:?}");
        }
    }
    println!("{seen:?}");
}

/// A property over packets that are all decided alike would prove nothing.
#[test]
fn random_packets_reach_every_kind_of_decision() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let word = |kind: &str, direction: Direction, (verdict, decided_by): Judgement| {
        let by = match decided_by {
            DecidedBy::Builtin(rule) => rule.word(),
            DecidedBy::Rule(RuleName { rule: Some(_), .. }) => "rule",
            DecidedBy::Rule(RuleName { rule: None, .. }) => "end of tier",
        };
        format!("{kind} {direction:?} {verdict:?} by {by}")
    };
    for turn in 0..2500 {
        let scenario = kubernetes().new_tree(&mut runner).expect("a scenario").current();
        for (endpoint, packet) in &scenario.packets {
            let judgement = expected(&scenario.view, *endpoint, packet);
            *seen
                .entry(word("kubernetes", packet.direction, judgement))
                .or_default() += 1;
        }
        let tiered = tiered().new_tree(&mut runner).expect("a scenario").current();
        let objects = objects().new_tree(&mut runner).expect("a scenario").current();
        for (kind, scenario) in [("tiers", tiered), ("objects", as_tiers(&objects))] {
            // Putting tables together takes most of the time.
            let tables = (turn % 13 == 0).then(|| compile_policies(&scenario.cluster, &scenario.policies));
            for (endpoint, packet) in &scenario.packets {
                let Some(judgement) = expected_of_tiers(&scenario, *endpoint, packet) else {
                    continue;
                };
                *seen.entry(word(kind, packet.direction, judgement)).or_default() += 1;
                for what in circumstances(&scenario, *endpoint, packet) {
                    *seen.entry(format!("{kind} of {what}")).or_default() += 1;
                }
                let own = tables.as_ref().and_then(|tables| tables.endpoints.get(endpoint));
                let class = own.map(|own| own.source_class(packet.protocol, packet.source_port));
                if class.is_some_and(|class| class != SourceClass::default()) {
                    *seen
                        .entry(format!("{kind} of from a source class of its own"))
                        .or_default() += 1;
                }
            }
        }
    }
    println!("{seen:#?}");
    let reached = |kind: &str, direction: &str, decision: &str| {
        let name = format!("{kind} {direction} {decision}");
        assert!(
            seen.get(&name).is_some_and(|count| *count >= 10),
            "{name} is too rare in {seen:#?}"
        );
    };
    let both = [
        "Allow by rule",
        "Allow by self-traffic",
        "Allow by no-policy",
        "Deny by end of tier",
        "Deny by no-match",
    ];
    for kind in ["kubernetes", "objects", "tiers"] {
        for decision in both {
            reached(kind, "Ingress", decision);
            reached(kind, "Egress", decision);
        }
        reached(kind, "Ingress", "Allow by from-host");
        reached(kind, "Egress", "Deny by to-host");
    }
    for kind in ["objects", "tiers"] {
        for direction in ["Ingress", "Egress"] {
            reached(kind, direction, "Deny by rule");
            reached(kind, direction, "Allow by failsafe");
        }
        for decision in [
            "by a profile's rule",
            "at a host endpoint",
            "by a rule for the own end",
            "by a rule for source ports",
            "by a rule for named ports",
            "by a rule for names",
            "of a network set",
            "from a source class of its own",
            "of a contested address",
            "of a group",
        ] {
            reached(kind, "of", decision);
        }
    }
}

/// What a decision had to do with, beyond its verdict.
fn circumstances(scenario: &TieredScenario, endpoint: EndpointId, packet: &Packet) -> Vec<&'static str> {
    let cluster = &scenario.cluster;
    let Some(member) = cluster
        .members
        .iter()
        .find(|member| member.endpoint == Some(endpoint))
    else {
        return Vec::new();
    };
    let policy = scenario.policies.for_endpoint(&member.workload);
    let flow = cluster.flow(member, packet);
    let decision = decide(&policy, &flow);
    let mut found = Vec::new();
    let mut note = |holds: bool, what| found.extend(holds.then_some(what));
    note(
        member.workload.kind == WorkloadKind::HostEndpoint,
        "at a host endpoint",
    );
    note(flow.standing == Standing::Contested, "of a contested address");
    note(flow.standing == Standing::Group, "of a group");
    let of_set = |known: &&Workload| known.kind == WorkloadKind::NetworkSet;
    note(flow.peer.known.iter().any(of_set), "of a network set");
    let DecidedBy::Rule(RuleName {
        tier,
        policy: name,
        rule: Some(index),
    }) = &decision.decided_by
    else {
        return found;
    };
    note(tier == RuleName::PROFILE_TIER, "by a profile's rule");
    let rules = policy.tiers.iter().flat_map(|tier| &tier.policies);
    let rules = rules
        .filter(|policy| policy.name == *name)
        .filter_map(|policy| policy.rules(packet.direction));
    let Some(rule) = rules.flatten().find(|rule| rule.index == *index) else {
        return found;
    };
    let service = &rule.service;
    let named = |ports: &[PortMatch]| ports.iter().any(|port| matches!(port, PortMatch::Named(_)));
    note(rule.own != EndMatch::default(), "by a rule for the own end");
    note(
        !service.source_ports.is_empty() || !service.not_source_ports.is_empty(),
        "by a rule for source ports",
    );
    note(
        [
            &service.ports,
            &service.not_ports,
            &service.source_ports,
            &service.not_source_ports,
        ]
        .into_iter()
        .any(|ports| named(ports)),
        "by a rule for named ports",
    );
    note(!rule.peer.domains.is_empty(), "by a rule for names");
    found
}

/// What the tables say, in the words of the reference.
fn judged(tables: &NodeTables, endpoint: EndpointId, packet: &Packet) -> Result<Judgement, TestCaseError> {
    let entry = lookup(tables, endpoint, packet);
    let name = tables
        .decided_by(entry.rule)
        .ok_or_else(|| TestCaseError::fail("a rule has no name"))?;
    Ok((entry.verdict, name))
}

/// What the reference says; an endpoint that does not exist is denied everything.
fn expected(view: &ClusterView, endpoint: EndpointId, packet: &Packet) -> Judgement {
    match reference(view, endpoint, packet) {
        Some(decision) => (decision.verdict, decision.decided_by),
        None => (Verdict::Deny, DecidedBy::Builtin(BuiltinRule::NoMatch)),
    }
}

/// Objects as the ordered form, host endpoints included.
fn as_tiers(scenario: &Scenario) -> TieredScenario {
    let (cluster, policies) = with_host_endpoints(&scenario.view);
    TieredScenario {
        cluster,
        policies: policies.enforced,
        packets: scenario.packets.clone(),
    }
}

fn expected_of_tiers(scenario: &TieredScenario, endpoint: EndpointId, packet: &Packet) -> Option<Judgement> {
    let cluster = &scenario.cluster;
    let member = cluster
        .members
        .iter()
        .find(|member| member.endpoint == Some(endpoint))?;
    let policy = scenario.policies.for_endpoint(&member.workload);
    let decision = decide(&policy, &cluster.flow(member, packet));
    Some((decision.verdict, decision.decided_by))
}
