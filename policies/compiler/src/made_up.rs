//! Addresses for pods and nodes of which no object tells any: one of each family, from ranges of their own.
//!
//! None is somebody's, and none is in a network that the objects speak of, unless that network holds the whole range.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, NetworkSet},
    policy::{ICMPV6, IpVersion, PolicySet, Rule},
};

use crate::judge::rules;

/// Where the addresses of pods come from, which depend on their names: 198.18.0.0/15, which RFC 2544 keeps for tests, and
/// the first part of a network that is local to this (RFC 4193).
pub(crate) const PODS: [Range; 2] = [
    Range::v4([198, 18, 0, 0], 1 << 17),
    Range::v6([LOCAL[0], LOCAL[1], LOCAL[2], 0, 0, 0, 0, 0], 1 << 32),
];
/// Where those of nodes come from, one after another: 198.51.100.0/24 and up, of which RFC 5737 keeps the first for
/// documents, and the second part of that network.
const NODES: [Range; 2] = [
    Range::v4([198, 51, 100, 1], MAX_NODES),
    Range::v6([LOCAL[0], LOCAL[1], LOCAL[2], 1, 0, 0, 0, 1], MAX_NODES),
];

/// The network that made-up addresses of IPv6 are in. Its number is a random one, as RFC 4193 asks.
const LOCAL: [u16; 3] = [0xfd4d, 0xe513, 0xbfef];
const MAX_NODES: u64 = u16::MAX as u64;

/// Addresses one behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    first: IpAddr,
    count: u64,
}

/// A range of which addresses are given, each once.
pub(crate) struct Supply {
    range: Range,
    /// Parts that are not given, by the first place of each up to and with its last. Between two is a place that is.
    taken: BTreeMap<u64, u64>,
}

impl Range {
    const fn v4([a, b, c, d]: [u8; 4], count: u64) -> Self {
        let first = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        Self { first, count }
    }

    const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], count: u64) -> Self {
        let first = IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h));
        Self { first, count }
    }

    fn at(self, place: u64) -> IpAddr {
        match self.first {
            // The ranges end within their families.
            IpAddr::V4(first) => {
                let place = u32::try_from(place).unwrap_or_default();
                Ipv4Addr::from(u32::from(first).wrapping_add(place)).into()
            }
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(place.into())).into(),
        }
    }

    /// First and last place of what a network holds of the range; nothing where that is none of it, or all.
    fn part(self, net: &IpNet) -> Option<(u64, u64)> {
        if net.network().is_ipv4() != self.first.is_ipv4() {
            return None;
        }
        let (from, to) = (number(net.network()), number(net.broadcast()));
        let (first, last) = (
            number(self.first),
            number(self.first) + u128::from(self.count) - 1,
        );
        let outside = to < first || last < from;
        let whole = from <= first && last <= to;
        if outside || whole {
            return None;
        }
        let place = |number: u128| u64::try_from(number - first).ok();
        Some((place(from.max(first))?, place(to.min(last))?))
    }
}

impl Supply {
    /// All of `range` but what these networks hold.
    pub(crate) fn new<'n>(range: Range, nets: impl IntoIterator<Item = &'n IpNet>) -> Self {
        let mut parts: Vec<(u64, u64)> = nets.into_iter().filter_map(|net| range.part(net)).collect();
        parts.sort_unstable();
        let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
        for (from, to) in parts {
            match taken.last_entry() {
                Some(mut before) if from <= *before.get() + 1 => {
                    let last = to.max(*before.get());
                    before.insert(last);
                }
                _ => drop(taken.insert(from, to)),
            }
        }
        Self { range, taken }
    }

    /// The address in this place of the range, or the first behind it that is still to be had; behind the last comes the
    /// first again. Nothing if none is left.
    pub(crate) fn take(&mut self, wanted: u64) -> Option<IpAddr> {
        let place = self.free_from(wanted % self.range.count);
        let place = place.or_else(|| self.free_from(0))?;
        // Joined with what is taken beside it, so that a long part is passed in one step.
        let last = self.taken.remove(&(place + 1)).unwrap_or(place);
        let before = self.taken.range_mut(..place).next_back();
        match before.filter(|(_, to)| **to + 1 == place) {
            Some((_, to)) => *to = last,
            None => drop(self.taken.insert(place, last)),
        }
        Some(self.range.at(place))
    }

    fn free_from(&self, place: u64) -> Option<u64> {
        let before = self.taken.range(..=place).next_back();
        let place = match before {
            Some((_, to)) if place <= *to => to + 1,
            _ => place,
        };
        (place < self.range.count).then_some(place)
    }
}

/// Gives each node that the cluster speaks of and that has no address one of each family, stable for the same set of nodes
/// and in none of the networks `stated`. Says which these are.
pub(crate) fn place_nodes(cluster: &mut Cluster, stated: &[IpNet]) -> BTreeSet<String> {
    mention_nodes(cluster);
    let without = cluster.nodes.iter().filter(|(_, of)| of.is_empty());
    let without: BTreeSet<String> = without.map(|(node, _)| node.clone()).collect();
    if without.is_empty() {
        return without;
    }
    let of_members = cluster.members.iter().flat_map(|member| &member.addresses);
    let addresses = of_members.chain(cluster.nodes.values().flatten()).copied();
    let addresses: Vec<IpNet> = addresses.map(IpNet::from).collect();
    let mut supplies = NODES.map(|range| Supply::new(range, addresses.iter().chain(stated)));
    for (place, node) in (0..).zip(&without) {
        let given = supplies.iter_mut().filter_map(|supply| supply.take(place));
        cluster.nodes.entry(node.clone()).or_default().extend(given);
    }
    without
}

/// A node that only a pod or a host endpoint names exists.
pub(crate) fn mention_nodes(cluster: &mut Cluster) {
    let of_members = cluster.members.iter().map(|member| &member.node);
    let of_pods = cluster.node_pods.values().map(|pod| &pod.node);
    let mentioned: BTreeSet<&String> = of_members
        .chain(of_pods)
        .filter(|node| !node.is_empty())
        .collect();
    for node in mentioned {
        cluster.nodes.entry(node.clone()).or_default();
    }
}

/// The networks that policies and network sets speak of.
pub(crate) fn stated<'p>(policies: &'p PolicySet, sets: &'p [NetworkSet]) -> impl Iterator<Item = &'p IpNet> {
    let of_rules = rules(policies).flat_map(|(rule, _)| nets(rule));
    let failsafe = policies
        .failsafe
        .inbound
        .iter()
        .chain(&policies.failsafe.outbound);
    let of_failsafe = failsafe.flat_map(|open| &open.peer.nets);
    let of_sets = sets.iter().flat_map(|set| &set.nets);
    of_rules.chain(of_failsafe).chain(of_sets)
}

/// Whether anything speaks of IPv6 but made-up addresses: an address that somebody states, a network, a rule of that family.
pub(crate) fn speaks_of_ipv6(cluster: &Cluster, policies: &PolicySet) -> bool {
    let of_members = cluster.members.iter().flat_map(|member| &member.addresses);
    let mut addresses = of_members.chain(cluster.nodes.values().flatten());
    // A rule for nodes, or for what is behind a service, is for made-up addresses where theirs are.
    let is_v6 = |address: IpAddr| address.is_ipv6() && !is_made_up_ipv6(&address);
    let is_for_v6 = |rule: &Rule| {
        let ends = [&rule.own, &rule.peer];
        let service = &rule.service;
        ends.iter().any(|end| end.ip_version == Some(IpVersion::V6))
            || [service.protocol, service.not_protocol].contains(&Some(ICMPV6))
    };
    addresses.any(|address| is_v6(*address))
        || stated(policies, &cluster.sets).any(|net| is_v6(net.network()))
        || rules(policies).any(|(rule, _)| is_for_v6(rule))
}

/// Whether it is one of those that pods or nodes are given.
pub fn is_made_up_ipv6(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.segments().starts_with(&LOCAL),
    }
}

/// Those that a rule speaks of.
fn nets(rule: &Rule) -> impl Iterator<Item = &IpNet> {
    [&rule.own, &rule.peer]
        .into_iter()
        .flat_map(|end| end.nets.iter().chain(&end.not_nets))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn taken(range: Range, held: &[&str], wanted: &[u64]) -> Vec<String> {
        let mut supply = Supply::new(range, &nets(held));
        let taken = wanted.iter().filter_map(|place| supply.take(*place));
        taken.map(|address| address.to_string()).collect()
    }

    #[test]
    fn what_is_held_is_not_given_and_nothing_is_given_twice() {
        let few = Range::v4([10, 0, 0, 254], 4);
        assert_eq!(
            taken(few, &[], &[2, 2, 2, 2, 2]),
            ["10.0.1.0", "10.0.1.1", "10.0.0.254", "10.0.0.255"]
        );
        assert_eq!(taken(few, &["10.0.1.0/32"], &[2, 6]), ["10.0.1.1", "10.0.0.254"]);
        assert_eq!(
            taken(few, &["10.0.0.0/24", "10.0.0.255/32"], &[0, 0, 0]),
            ["10.0.1.0", "10.0.1.1"]
        );
        assert!(taken(few, &["10.0.0.0/24", "10.0.1.0/24"], &[0]).is_empty());
        // Of a network that holds all of the range there is no way out, and it may be meant so.
        assert_eq!(taken(few, &["10.0.0.0/8", "::/0"], &[1]), ["10.0.0.255"]);
        let [_, v6] = PODS;
        let half = "fd4d:e513:bfef::/97";
        assert_eq!(taken(v6, &[half], &[7]), ["fd4d:e513:bfef::8000:0"]);
        assert_eq!(taken(v6, &["0.0.0.0/0"], &[1 << 33]), ["fd4d:e513:bfef::"]);
    }
}
