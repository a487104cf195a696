//! The model against the reference, flow by flow.

use std::{collections::BTreeSet, net::IpAddr};

use policies_checker::{End, Model, Place, Spot, space::Point};
use policies_ir::{
    cluster::Cluster,
    decide::decide,
    policy::{PolicySet, WorkloadKind},
    tables::{DecidedBy, Direction, EndpointId, Packet, Verdict},
};
use proptest::prelude::*;

use crate::clusters::{OUTSIDE, Scenario, exists, points, reference, scenario};

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        // Each case asks thousands of questions; `PROPTEST_CASES` asks for more.
        cases: default.cases.div_ceil(8),
        ..default
    }
}

fn outside() -> Vec<IpAddr> {
    OUTSIDE.iter().map(|address| address.parse().unwrap()).collect()
}

/// Whether a flow passes at both ends, by the reference.
fn passes(
    scenario: &Scenario,
    (from, source): (Option<usize>, IpAddr),
    (to, destination): (Option<usize>, IpAddr),
    point: Point,
) -> bool {
    let allows = |member: Option<usize>, direction, peer| {
        member.is_none_or(|member| reference(scenario, member, direction, peer, point).0 == Verdict::Allow)
    };
    allows(from, Direction::Egress, destination) && allows(to, Direction::Ingress, source)
}

/// Compares the model with the reference for packets at endpoints; both see the cluster from no node.
fn compare(
    mut cluster: Cluster,
    policies: &PolicySet,
    packets: &[(EndpointId, Packet)],
) -> Result<(), TestCaseError> {
    cluster.host_addresses.clear();
    cluster.host_groups.clear();
    cluster.translations.clear();
    for pod in cluster
        .members
        .iter_mut()
        .filter(|member| member.workload.kind == WorkloadKind::Pod)
    {
        pod.node.clear();
    }
    let model = Model::of(cluster.clone(), policies.clone());
    let told = packets.iter().filter(|(_, packet)| packet.inside.is_some());
    for (endpoint, packet) in told {
        let mut members = cluster
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| member.endpoint == Some(*endpoint));
        let Some((position, member)) = members.next() else {
            continue;
        };
        let decision = decide(
            &policies.for_endpoint(&member.workload),
            &cluster.flow(member, packet),
        );
        let point = Point {
            protocol: packet.protocol,
            source_port: packet.source_port,
            port: packet.port,
        };
        // Where a host endpoint is, the packet says; a pod's own address does not matter.
        let own = Place::new(Some(position), packet.inside.unwrap_or(packet.peer));
        prop_assert_eq!(
            model.decide(own, packet.direction, Place::new(None, packet.peer), point),
            (decision.verdict, decision.decided_by),
            "{} {:?}",
            model.name(position),
            packet
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn each_flow_at_each_end_is_judged_like_the_reference(scenario in scenario()) {
        let model = Model::of(scenario.cluster.clone(), scenario.policies.clone());
        let members = &scenario.cluster.members;
        let peers: Vec<IpAddr> = members.iter().flat_map(|member| member.addresses.iter().copied()).chain(outside()).collect();
        for member in 0..members.len() {
            for peer in &peers {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for point in points() {
                        prop_assert_eq!(
                            model.decide(Place::new(Some(member), *peer), direction, Place::new(None, *peer), point),
                            reference(&scenario, member, direction, *peer, point),
                            "{} {:?} {} {:?}", model.name(member), direction, peer, point
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_pair_may_exchange_is_what_the_reference_lets_through(scenario in scenario()) {
        let model = Model::of(scenario.cluster.clone(), scenario.policies.clone());
        // Each end at each of its addresses.
        let mut ends: Vec<(Spot, Option<usize>, IpAddr)> = Vec::new();
        for (class, known) in model.classes().iter().enumerate() {
            for (place, member) in known.members.iter().enumerate() {
                for (slot, address) in known.addresses(place).iter().enumerate() {
                    ends.push((Spot::Class { class, slot }, Some(*member), *address));
                }
            }
        }
        for address in outside() {
            let as_it_is = |r: &usize| model.named(*r).is_none() && model.outside()[*r].contains(address);
            let holding: Vec<usize> = (0..model.outside().len()).filter(as_it_is).collect();
            prop_assert_eq!(holding.len(), 1, "{} is in {:?}", address, holding);
            let version = policies_checker::region::version(address);
            ends.push((Spot::Outside { region: holding[0], version }, None, address));
        }
        for from in &ends {
            for to in &ends {
                let judged = from.1.is_some() || to.1.is_some();
                if !judged || from.1 == to.1 || from.2.is_ipv4() != to.2.is_ipv4() {
                    continue;
                }
                let space = model.space(model.allowed_at(from.0, to.0));
                for point in points().into_iter().filter(|point| exists(from.2, *point)) {
                    prop_assert_eq!(
                        space.contains(point),
                        passes(&scenario, (from.1, from.2), (to.1, to.2), point),
                        "{:?} {:?} {:?}: {}", from, to, point, space
                    );
                }
            }
        }
    }

    #[test]
    fn a_rule_that_decided_once_is_among_those_that_decide(scenario in scenario()) {
        let model = Model::of(scenario.cluster.clone(), scenario.policies.clone());
        let deciding = model.deciding_rules();
        let members = &scenario.cluster.members;
        for (position, _) in members.iter().enumerate() {
            let others = members.iter().enumerate().filter(|(other, _)| *other != position);
            let peers: BTreeSet<IpAddr> = others.flat_map(|(_, member)| member.addresses.iter().copied()).chain(outside()).collect();
            for peer in peers.into_iter().filter(|peer| !members[position].addresses.contains(peer)) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for point in points().into_iter().filter(|point| exists(peer, *point)) {
                        let (_, by) = reference(&scenario, position, direction, peer, point);
                        let no_family = !members[position].addresses.iter().any(|a| a.is_ipv4() == peer.is_ipv4());
                        prop_assert!(
                            no_family || matches!(by, DecidedBy::Builtin(_)) || deciding.contains(&(direction, by.clone())),
                            "{by} decides {point:?} from {peer} at {position}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn objects_of_every_kind_are_judged_like_the_reference(scenario in testkit::policies::objects()) {
        let (cluster, policies) = testkit::policies::with_host_endpoints(&scenario.view);
        compare(cluster, &policies.enforced, &scenario.packets)?;
    }

    #[test]
    fn the_ordered_form_is_judged_like_the_reference(scenario in testkit::policies::tiered()) {
        compare(scenario.cluster, &scenario.policies, &scenario.packets)?;
    }

    #[test]
    fn ends_are_all_there_is(scenario in scenario()) {
        let model = Model::of(scenario.cluster, scenario.policies);
        let members: BTreeSet<usize> = model.classes().iter().flat_map(|class| class.members.clone()).collect();
        prop_assert_eq!(members.len(), model.cluster().members.len());
        let regions: Vec<_> = (0..model.outside().len()).filter(|r| model.named(*r).is_none()).map(|r| &model.outside()[r]).collect();
        for (i, region) in regions.iter().enumerate() {
            for other in &regions[i + 1..] {
                prop_assert!(region.intersect(other).is_empty());
            }
        }
        let all = regions.iter().fold(policies_checker::region::Region::default(), |all, region| all.union(region));
        let taken = model.classes().iter().flat_map(|class| (0..class.members.len()).flat_map(move |place| class.addresses(place)));
        let taken = taken.map(|address| ipnet::IpNet::from(*address));
        let taken = policies_checker::region::Region::of(taken);
        prop_assert_eq!(all.union(&taken), policies_checker::region::Region::everything());
        prop_assert!(all.intersect(&taken).is_empty());
        let ends: Vec<End> = model.ends();
        prop_assert_eq!(ends.len(), model.classes().len() + model.outside().len());
    }
}
