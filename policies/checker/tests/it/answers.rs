//! Connectivity, differences, assertions, shadowed rules, replay and recommendations against brute force.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::flow::{FlowDirection, FlowEvent, PodRef};
use policies_checker::{
    End, Model, Place,
    assertion::{self, Problem},
    connectivity::{Grouping, connectivity},
    difference::{Effect, difference},
    recommend::{Dialect, RecommendError, recommend},
    rules::{RuleStatus, rule_use},
    space::Point,
};
use policies_compiler::{Book, ClusterView, FlowEnd, Judge, Question};
use policies_ir::tables::{Direction, Verdict};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::clusters::{OUTSIDE, Scenario, exists, points, reference, scenario};

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.div_ceil(8),
        ..default
    }
}

/// An end by brute force: a member at one address, or an address alone.
type Where = (Option<usize>, IpAddr);

/// Every end of a scenario that the pools can tell apart.
fn places(scenario: &Scenario) -> Vec<Where> {
    let members = scenario.cluster.members.iter().enumerate();
    let members = members.flat_map(|(i, member)| member.addresses.iter().map(move |a| (Some(i), *a)));
    let outside = OUTSIDE.iter().map(|address| (None, address.parse().unwrap()));
    members.chain(outside).collect()
}

/// Pairs of ends between which flows are judged.
fn pairs(scenario: &Scenario) -> Vec<(Where, Where)> {
    let places = places(scenario);
    let all = places
        .iter()
        .flat_map(|from| places.iter().map(move |to| (*from, *to)));
    all.filter(|(from, to)| {
        (from.0.is_some() || to.0.is_some()) && from.0 != to.0 && from.1.is_ipv4() == to.1.is_ipv4()
    })
    .collect()
}

fn passes(scenario: &Scenario, (from, to): (Where, Where), point: Point) -> bool {
    let allows = |member: Option<usize>, direction, peer| {
        member.is_none_or(|member| reference(scenario, member, direction, peer, point).0 == Verdict::Allow)
    };
    exists(from.1, point)
        && allows(from.0, Direction::Egress, to.1)
        && allows(to.0, Direction::Ingress, from.1)
}

fn model(scenario: &Scenario) -> Model {
    Model::of(scenario.cluster.clone(), scenario.policies.clone())
}

/// The scenario in which an address has these names beside its own.
fn with_names(scenario: &Scenario, address: IpAddr, named: Option<&str>) -> Scenario {
    let mut scenario = scenario.clone();
    let names = named
        .into_iter()
        .flat_map(|names| names.split(", "))
        .map(str::to_owned);
    let known = &mut scenario.cluster.names;
    known.entry(address).or_default().extend(names);
    scenario
}

/// Names by which the pools' rules and sets can be met: neither, the set's, and both.
const NAMES: [Option<&str>; 3] = [None, Some("mail.example.org"), Some("www.example.org")];

/// Turns one policy into another, so that two scenarios differ in something.
fn changed(mut scenario: Scenario, other: &Scenario) -> Scenario {
    scenario.policies = other.policies.clone();
    scenario
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_difference_is_empty_exactly_when_no_flow_changes(a in scenario(), b in scenario()) {
        let after = changed(a.clone(), &b);
        let changes = difference(&model(&a), &model(&after));
        let mut found: BTreeSet<bool> = BTreeSet::new();
        for pair in pairs(&a) {
            for point in points() {
                let (was, is) = (passes(&a, pair, point), passes(&after, pair, point));
                if was != is {
                    found.insert(is);
                }
            }
        }
        let told: BTreeSet<bool> = changes.iter().map(|change| change.effect == Effect::Opens).collect();
        // The points are at every edge, but a set may open and close between addresses that only the model visits.
        prop_assert!(found.is_subset(&told), "{found:?} {told:?}");
        for change in &changes {
            let (before, after) = (change.before.as_ref().unwrap(), change.after.as_ref().unwrap());
            prop_assert_eq!(before.allowed, change.effect == Effect::Closes, "{:?}", change);
            prop_assert_eq!(after.allowed, change.effect == Effect::Opens, "{:?}", change);
        }
        prop_assert_eq!(difference(&model(&a), &model(&a)), vec![]);
    }

    #[test]
    fn a_rule_by_name_may_match_any_address_outside(scenario in scenario()) {
        let model = model(&scenario);
        for address in OUTSIDE {
            let place: Where = (None, address.parse().unwrap());
            let named = NAMES.map(|names| with_names(&scenario, place.1, names));
            for (position, member) in scenario.cluster.members.iter().enumerate() {
                let text = format!("no pod(shop/{0}) or pod(pay/{0}) reaches cidr({address}) on 80", member.workload.name);
                let proof = assertion::prove(&model, &assertion::parse(&text).unwrap());
                let from = member.addresses.iter().map(|own| (Some(position), *own));
                let from: Vec<Where> = from.filter(|from| from.1.is_ipv4() == place.1.is_ipv4()).collect();
                let tcp80 = || points().into_iter().filter(|point| point.protocol == 6 && point.port == 80);
                let refuted = named.iter().any(|scenario| {
                    from.iter().any(|from| tcp80().any(|point| passes(scenario, (*from, place), point)))
                });
                prop_assert!(!(proof.holds && refuted), "{text}");
                if let Some(Problem::Counterexample(packet)) = &proof.problem {
                    let scenario = with_names(&scenario, place.1, packet.to.named.as_deref());
                    let from = (Some(position), packet.from.address);
                    let point = Point { protocol: packet.protocol, source_port: packet.source_port, port: packet.port };
                    prop_assert!(passes(&scenario, (from, place), point), "{text}: {packet}");
                }
            }
        }
    }

    #[test]
    fn what_only_names_tell_apart_is_a_difference(a in scenario(), b in scenario()) {
        let after = changed(a.clone(), &b);
        let changes = difference(&model(&a), &model(&after));
        let told: BTreeSet<bool> = changes.iter().map(|change| change.effect == Effect::Opens).collect();
        for address in OUTSIDE {
            let address: IpAddr = address.parse().unwrap();
            for names in NAMES {
                let (was, is) = (with_names(&a, address, names), with_names(&after, address, names));
                for pair in pairs(&a).into_iter().filter(|(_, to)| *to == (None, address)) {
                    for point in points() {
                        let (was, is) = (passes(&was, pair, point), passes(&is, pair, point));
                        prop_assert!(was == is || told.contains(&is), "{pair:?} {point:?} {names:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_example_of_a_change_is_judged_like_the_reference(a in scenario(), b in scenario()) {
        let after = changed(a.clone(), &b);
        let find = |name: &Option<String>| {
            let name = name.as_ref()?;
            let shown = |w: &policies_ir::policy::Workload| format!("{}/{}", w.namespace, w.name);
            a.cluster.members.iter().position(|member| shown(&member.workload) == *name)
        };
        for change in difference(&model(&a), &model(&after)) {
            for (scenario, packet) in [(&a, change.before.unwrap()), (&after, change.after.unwrap())] {
                let point = Point { protocol: packet.protocol, source_port: packet.source_port, port: packet.port };
                let from = (find(&packet.from.workload), packet.from.address);
                let to = (find(&packet.to.workload), packet.to.address);
                let scenario = with_names(scenario, packet.to.address, packet.to.named.as_deref());
                prop_assert_eq!(packet.allowed, passes(&scenario, (from, to), point), "{}", packet);
            }
        }
    }

    #[test]
    fn an_assertion_holds_exactly_when_no_packet_speaks_against_it(scenario in scenario()) {
        let model = model(&scenario);
        let members = &scenario.cluster.members;
        let is = |place: Where, key: &str, value: &str| {
            place.0.is_some_and(|m| members[m].workload.labels.get(key).is_some_and(|v| v == value))
        };
        let shop = |place: Where| place.0.is_some_and(|m| members[m].workload.namespace == "shop");
        type Wanted<'a> = Box<dyn Fn(Where, Where, Point) -> bool + 'a>;
        let tcp80 = |p: Point| p.protocol == 6 && p.port == 80;
        // Each with the flows that speak against it when they pass.
        let negative: Vec<(&str, Wanted<'_>)> = vec![
            ("no ns(shop) reaches labels(app=db) on 80", Box::new(move |f, t, p| shop(f) && is(t, "app", "db") && tcp80(p))),
            ("only labels(app=web) reaches ns(shop)", Box::new(move |f, t, _| !is(f, "app", "web") && shop(t))),
            ("isolated ns(shop)", Box::new(move |f, t, _| shop(f) != shop(t))),
            ("no pod reaches anything on ICMP, ICMPv6", Box::new(|f: Where, _, p: Point| f.0.is_some() && matches!(p.protocol, 1 | 58))),
            ("no pod reaches outside on UDP", Box::new(|f: Where, t: Where, p: Point| f.0.is_some() && t.0.is_none() && p.protocol == 17)),
            ("never cidr(192.0.2.7) reaches any pod on 53", Box::new(|f: Where, _, p: Point| f.1.to_string() == "192.0.2.7" && p.protocol == 6 && p.port == 53)),
        ];
        for (text, against) in negative {
            let proof = assertion::prove(&model, &assertion::parse(text).unwrap());
            let refuted = pairs(&scenario).into_iter().any(|(from, to)| {
                points().into_iter().any(|point| against(from, to, point) && passes(&scenario, (from, to), point))
            });
            prop_assert!(!(proof.holds && refuted), "{text}");
            if let Some(Problem::Counterexample(packet)) = &proof.problem {
                let point = Point { protocol: packet.protocol, source_port: packet.source_port, port: packet.port };
                prop_assert!(packet.allowed && exists(packet.from.address, point), "{text}: {packet}");
            }
            prop_assert_eq!(proof.holds, proof.problem.is_none());
        }
        let text = "ns(shop) reaches labels(app=db) on 80";
        let proof = assertion::prove(&model, &assertion::parse(text).unwrap());
        let refuted = pairs(&scenario).into_iter().any(|(from, to)| {
            shop(from) && is(to, "app", "db")
                && points().into_iter().any(|p| tcp80(p) && !passes(&scenario, (from, to), p))
        });
        prop_assert!(!(proof.holds && refuted), "{text}");
        if let Some(Problem::Counterexample(packet)) = &proof.problem {
            prop_assert!(!packet.allowed, "{text}: {packet}");
        }
    }

    #[test]
    fn connectivity_lists_exactly_what_passes(scenario in scenario()) {
        let model = model(&scenario);
        for grouping in [Grouping::Equal, Grouping::Expanded] {
            let all = connectivity(&model, grouping);
            // Every workload stands in one group.
            let members: Vec<&String> = all.workloads.iter().flat_map(|group| &group.members).collect();
            prop_assert_eq!(members.len(), scenario.cluster.members.len());
            let group_of = |place: Where| match place.0 {
                Some(member) => {
                    let name = model.name(member);
                    all.workloads.iter().find(|group| group.members.contains(&name)).map(|group| group.name.clone())
                }
                None => all.outside.iter().filter(|group| group.named.is_none()).find(|group| {
                    group.cidrs.iter().any(|net| net.contains(&place.1)) && !group.except.iter().any(|net| net.contains(&place.1))
                }).map(|group| group.name.clone()),
            };
            let names: BTreeSet<String> = all.workloads.iter().map(|g| g.name.clone()).chain(all.outside.iter().map(|g| g.name.clone())).collect();
            prop_assert_eq!(names.len(), all.workloads.len() + all.outside.len(), "names are unique");
            // Pods with several addresses of a family, or one that another claims, are told apart by address only in
            // the model itself.
            for (from, to) in pairs(&scenario) {
                let (Some(from_group), Some(to_group)) = (group_of(from), group_of(to)) else {
                    return Err(TestCaseError::fail(format!("{from:?} or {to:?} is in no group")));
                };
                let version = policies_checker::region::version(from.1);
                let end = |place: Where| match place.0 {
                    Some(member) => End::Class(model.class_of(member).unwrap()),
                    None => End::Outside((0..model.outside().len()).find(|r| model.outside()[*r].contains(place.1)).unwrap()),
                };
                // What the model says about the pair is held to the reference elsewhere; here it must be what is listed.
                let allowed = model.allowed(end(from), end(to), version).unwrap();
                let family = if version == policies_ir::policy::IpVersion::V4 { "IPv4" } else { "IPv6" };
                let listed: Vec<&str> = all.connections.iter()
                    .filter(|c| c.from == from_group && c.to == to_group && c.family.is_none_or(|f| f == family))
                    .map(|c| c.text.as_str())
                    .collect();
                let text = model.space(allowed).to_string();
                let expected = if model.space(allowed).is_empty() { vec![] } else { vec![text.as_str()] };
                prop_assert_eq!(listed, expected, "{} -> {} {:?}", from_group, to_group, version);
            }
            // The order in which things were read does not matter.
            let mut turned = scenario.clone();
            turned.cluster.members.reverse();
            turned.policies.tiers.reverse();
            turned.policies.tiers.iter_mut().for_each(|tier| tier.policies.reverse());
            prop_assert_eq!(&connectivity(&Model::of(turned.cluster, turned.policies), grouping), &all);
        }
    }

    #[test]
    fn a_shadowed_rule_never_decides(scenario in scenario()) {
        let model = model(&scenario);
        let (uses, _) = rule_use(&model, &[]);
        let mut decided: BTreeSet<(Direction, String)> = BTreeSet::new();
        for (from, to) in pairs(&scenario) {
            for point in points().into_iter().filter(|point| exists(from.1, *point)) {
                for (own, direction, peer) in [(from.0, Direction::Egress, to.1), (to.0, Direction::Ingress, from.1)] {
                    if let Some(own) = own {
                        let by = reference(&scenario, own, direction, peer, point).1;
                        decided.insert((direction, by.to_string()));
                    }
                }
            }
        }
        for used in uses {
            let direction = match used.key.direction.word() {
                "ingress" => Direction::Ingress,
                _ => Direction::Egress,
            };
            let hit = decided.contains(&(direction, used.key.rule.clone()));
            prop_assert!(!hit || used.status == RuleStatus::Live, "{:?}", used);
            if let RuleStatus::Shadowed { by } = &used.status {
                prop_assert!(!by.is_empty(), "{:?}", used);
            }
        }
    }

    #[test]
    fn recommendations_allow_what_was_recorded(scenario in scenario(), picks in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..12)) {
        // Pods of the scenario as objects would give them, each with addresses of its own.
        let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
        let view = ClusterView {
            pods: scenario.cluster.members.iter().map(|member| policies_compiler::PodView {
                namespace: member.workload.namespace.clone(),
                name: member.workload.name.clone(),
                labels: member.workload.labels.clone(),
                addresses: member.addresses.iter().copied().filter(|address| seen.insert(*address)).collect(),
                ..policies_compiler::PodView::default()
            }).collect(),
            namespaces: BTreeMap::from(["shop", "pay"].map(|name| {
                (name.to_owned(), [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into())
            })),
            ..ClusterView::default()
        };
        let scenario = Scenario { cluster: view.cluster(), policies: policies_ir::policy::PolicySet::default() };
        let (pairs, points) = (pairs(&scenario), points());
        let mut flows = Vec::new();
        for (pair, point) in picks {
            let ((from, source), (to, destination)) = *pair.get(&pairs);
            let point = *point.get(&points);
            if !exists(source, point) {
                continue;
            }
            let pod = |member: usize| {
                let workload = &scenario.cluster.members[member].workload;
                PodRef { namespace: workload.namespace.clone(), name: workload.name.clone() }
            };
            for (own, other, direction) in [(from, to, FlowDirection::Egress), (to, from, FlowDirection::Ingress)] {
                let Some(own) = own else { continue };
                // As a recorded line: what recorders add later does not matter here.
                let line = serde_json::json!({
                    "time": "1970-01-01T00:00:00Z", "node": "node", "pod": pod(own), "direction": direction,
                    "verdict": "allow", "decidedBy": {"rule": "no-policy"}, "source": source,
                    "destination": destination, "peer": other.map(pod), "protocol": point.protocol,
                    "sourcePort": point.source_port, "destinationPort": point.port, "epoch": 1,
                });
                flows.push(serde_json::from_value::<FlowEvent>(line).unwrap());
            }
        }
        for dialect in [Dialect::Kubernetes, Dialect::Calico] {
            // That nothing else is allowed is proved inside; here it must succeed, and allow what was seen.
            let recommendation = match recommend(&view, &flows, dialect) {
                Ok(recommendation) => recommendation,
                Err(RecommendError::NothingToAllow { .. }) => {
                    let is_expressible = |flow: &FlowEvent| match [6, 17, 132].contains(&flow.protocol) {
                        true => flow.destination_port != 0,
                        false => dialect == Dialect::Calico,
                    };
                    prop_assert!(!flows.iter().any(is_expressible), "{dialect:?} {flows:?}");
                    continue;
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            let sources = recommendation.objects.iter().map(|object| policies_compiler::Source { origin: "it", object });
            let loaded = policies_compiler::load_objects(sources).unwrap().view;
            let mut after = view.clone();
            after.policies = loaded.policies;
            after.calico = loaded.calico;
            let model = Model::new(&after);
            for flow in &flows {
                let has_ports = [6, 17, 132].contains(&flow.protocol);
                let expressible = if has_ports { flow.destination_port != 0 } else { dialect == Dialect::Calico };
                let direction = match flow.direction {
                    FlowDirection::Ingress => Direction::Ingress,
                    FlowDirection::Egress => Direction::Egress,
                };
                let peer = if direction == Direction::Ingress { flow.source } else { flow.destination };
                let point = Point { protocol: flow.protocol, source_port: flow.source_port, port: flow.destination_port };
                let member = model.find(&flow.pod.to_string()).unwrap();
                let own = Place::new(Some(member), if direction == Direction::Ingress { flow.destination } else { flow.source });
                let (verdict, by) = model.decide(own, direction, Place::new(None, peer), point);
                prop_assert!(!expressible || verdict == Verdict::Allow, "{dialect:?} {flow:?} {by}");
            }
            // Nothing of it is there for nothing.
            let with = |objects: &[Value]| {
                let sources = objects.iter().map(|object| policies_compiler::Source { origin: "less", object });
                let loaded = policies_compiler::load_objects(sources).unwrap().view;
                ClusterView { policies: loaded.policies, calico: loaded.calico, ..view.clone() }
            };
            let whole = allowed(&with(&recommendation.objects), &flows);
            for less in smaller(&recommendation.objects) {
                let left = allowed(&with(&less), &flows);
                prop_assert!(left < whole, "{dialect:?}: {whole} flows of {flows:?} pass with {}, and with {}",
                    json!(recommendation.objects), json!(less));
            }
        }
    }
}

/// How many of the flows pass.
fn allowed(view: &ClusterView, flows: &[FlowEvent]) -> usize {
    let book = Book::new(view);
    let mut judge = Judge::new(&book);
    let passes = flows.iter().filter(|flow| {
        let question = Question {
            source: FlowEnd::Address(flow.source),
            destination: FlowEnd::Address(flow.destination),
            protocol: flow.protocol,
            source_port: flow.source_port,
            port: flow.destination_port,
        };
        judge.judge(&question).unwrap().verdict == Verdict::Allow
    });
    passes.count()
}

/// The objects without one of them, a rule, an end of a rule, an address range or a range of ports; but for the defaults,
/// which are there for pods that come later.
fn smaller(objects: &[Value]) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for (i, object) in objects.iter().enumerate() {
        if object["metadata"]["name"] == "default-deny" {
            continue;
        }
        let mut without = objects.to_vec();
        without.remove(i);
        all.push(without);
        for list in lists(&object["spec"], "/spec") {
            let items = object
                .pointer(&list)
                .and_then(Value::as_array)
                .map_or(0, Vec::len);
            let is_rules = list == "/spec/ingress" || list == "/spec/egress";
            // A list that is empty would not be one that matches nothing.
            for item in 0..if items > 1 || is_rules { items } else { 0 } {
                let mut without = objects.to_vec();
                let list = without[i].pointer_mut(&list).and_then(Value::as_array_mut);
                list.unwrap().remove(item);
                all.push(without);
            }
        }
    }
    all
}

/// Places of all lists but that of the directions.
fn lists(value: &Value, at: &str) -> Vec<String> {
    let below = |key: String, value: &Value| lists(value, &format!("{at}/{key}"));
    match value {
        Value::Array(items) => {
            let below = items
                .iter()
                .enumerate()
                .flat_map(|(i, item)| below(i.to_string(), item));
            std::iter::once(at.to_owned()).chain(below).collect()
        }
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, _)| !["types", "policyTypes", "matchExpressions"].contains(&key.as_str()))
            .flat_map(|(key, field)| below(key.clone(), field))
            .collect(),
        _ => Vec::new(),
    }
}
