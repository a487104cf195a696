//! The parts of the model, from compiled answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use policies_compiler::Answers;
use policies_ir::{
    cluster::{Cluster, Member},
    tables::{Direction, EndpointId, IdentityId},
};

use crate::{
    judge::Judge,
    model::FAMILIES,
    region::{Region, range, version},
};

/// For each class and direction, the judge of each identity.
pub(crate) type Rows = HashMap<(usize, Direction), BTreeMap<IdentityId, usize>>;

/// Judges, each distinct one once, and who judges whom by which.
pub(crate) fn read_judges(answers: &Answers, classes: usize) -> (Rows, Vec<Judge>) {
    let mut numbers: HashMap<(usize, Vec<_>), usize> = HashMap::new();
    let mut judges = Vec::new();
    let mut rows = Rows::new();
    for class in 0..classes {
        let Ok(number) = u32::try_from(class + 1) else {
            continue;
        };
        let endpoint = EndpointId(number);
        let sources = answers.sources.get(&endpoint).cloned().unwrap_or_default();
        let table: Vec<_> = sources.iter().map(|(block, class)| (*block, *class)).collect();
        for direction in [Direction::Ingress, Direction::Egress] {
            let Some(row) = answers.rows.get(&(endpoint, direction)) else {
                continue;
            };
            let mut known = HashMap::new();
            let numbered = row.iter().map(|(identity, answer)| {
                let judge = *known.entry(*answer).or_insert_with(|| {
                    *numbers.entry((*answer, table.clone())).or_insert_with(|| {
                        let entries = answers.answers.get(*answer).map(Vec::as_slice);
                        judges.push(Judge::new(entries.unwrap_or_default(), &sources));
                        judges.len() - 1
                    })
                });
                (*identity, judge)
            });
            rows.insert((class, direction), numbered.collect());
        }
    }
    (rows, judges)
}

/// Workloads by the addresses that each of them alone has, or of host endpoints of one node the one that judges there.
pub(crate) fn owners(cluster: &Cluster) -> HashMap<IpAddr, usize> {
    let mut claims: HashMap<IpAddr, Vec<usize>> = HashMap::new();
    for (position, member) in cluster.members.iter().enumerate() {
        for address in &member.addresses {
            claims.entry(*address).or_default().push(position);
        }
    }
    let member = |position: usize| cluster.members.get(position);
    let owner = |claims: Vec<usize>| {
        let in_order = |position: &usize| member(*position).map(Member::host_order);
        let first = claims.iter().copied().min_by_key(in_order)?;
        let shares = |other: usize| Some(member(other)?.shares_node(member(first)?));
        let mut others = claims.iter().copied().filter(|other| *other != first);
        others.all(|other| shares(other) == Some(true)).then_some(first)
    };
    let owned = claims
        .into_iter()
        .filter_map(|(address, claims)| Some((address, owner(claims)?)));
    owned.collect()
}

/// Addresses of no workload, by identity: as they are, and by the position of the names they are taken to have, as far
/// as these make another identity of them.
pub(crate) fn outside_if_named(
    answers: &Answers,
    cluster: &Cluster,
) -> Vec<(Option<usize>, IdentityId, Region, Region)> {
    let unnamed = outside(&answers.identities, cluster);
    let mut found: Vec<_> = unnamed
        .iter()
        .cloned()
        .map(|(identity, shape, region)| (None, identity, shape, region))
        .collect();
    for (names, identities) in answers.if_named.iter().enumerate() {
        for (identity, mut shape, mut region) in outside(identities, cluster) {
            if let Some((_, same_shape, same)) = unnamed.iter().find(|(of, ..)| *of == identity) {
                shape = shape.subtract(same_shape);
                region = region.subtract(same);
            }
            if !region.is_empty() {
                found.push((Some(names), identity, shape, region));
            }
        }
    }
    found
}

/// Addresses of no workload, by identity.
fn outside(identities: &BTreeMap<IpNet, IdentityId>, cluster: &Cluster) -> Vec<(IdentityId, Region, Region)> {
    let taken: Vec<IpNet> = cluster
        .members
        .iter()
        .flat_map(|member| member.addresses.iter().copied().map(IpNet::from))
        .collect();
    let hosts: BTreeSet<&IpNet> = taken.iter().collect();
    let taken_region = Region::of(taken.iter().copied());
    let mut ranges: BTreeMap<IdentityId, Vec<_>> = BTreeMap::new();
    for version_wanted in FAMILIES {
        let nets = identities
            .iter()
            .filter(|(net, _)| version(net.addr()) == version_wanted && !hosts.contains(net));
        let mut open: Vec<(u128, IdentityId)> = Vec::new();
        let mut next = Some(0u128);
        let mut emit = |id: IdentityId, first: u128, last: u128| {
            if first <= last {
                ranges
                    .entry(id)
                    .or_default()
                    .push((version_wanted, (first, last)));
            }
        };
        // Prefixes sort before what they hold; what is open holds the current one.
        for (net, id) in nets {
            let (first, last) = range(*net);
            while let Some((end, holder)) = open.last().copied().filter(|(end, _)| *end < first) {
                if let Some(start) = next {
                    emit(holder, start, end);
                    next = end.checked_add(1).map(|after| after.max(start));
                }
                open.pop();
            }
            if let (Some((_, holder)), Some(start), Some(end)) = (open.last(), next, first.checked_sub(1)) {
                emit(*holder, start, end);
            }
            next = Some(first);
            open.push((last, *id));
        }
        while let Some((end, holder)) = open.pop() {
            if let Some(start) = next {
                emit(holder, start, end);
                next = end.checked_add(1).map(|after| after.max(start));
            }
        }
    }
    let regions = ranges.into_iter().map(|(id, ranges)| {
        let shape = Region::of_ranges(ranges);
        let region = shape.subtract(&taken_region);
        (id, shape, region)
    });
    regions.filter(|(.., region)| !region.is_empty()).collect()
}

/// By longest prefix, as the kernel does.
pub(crate) fn identity_of(identities: &BTreeMap<IpNet, IdentityId>, address: IpAddr) -> Option<IdentityId> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (0..=bits).rev().find_map(|length| {
        let net = IpNet::new(address, length).ok()?.trunc();
        identities.get(&net).copied()
    })
}
