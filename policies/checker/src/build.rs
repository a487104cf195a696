//! The parts of the model, from compiled answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use policies_compiler::Answers;
use policies_ir::{
    cluster::{Cluster, Member},
    tables::{Direction, EndpointId, IdentityId, InsideClass},
};

use crate::{
    judge::{Judge, SourceTable},
    model::FAMILIES,
    region::{Region, range, version},
};

/// For each class and direction, who judges.
pub(crate) type Rows = HashMap<(usize, Direction), Row>;

/// The judges of one class and direction.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// What addresses are at the own end, where that matters.
    insides: BTreeMap<IdentityId, InsideClass>,
    /// By what is at the own end and at the other one.
    judges: BTreeMap<(InsideClass, IdentityId), usize>,
}

impl Row {
    /// The judge of flows between addresses of these identities.
    pub(crate) fn judge(&self, own: Option<IdentityId>, peer: IdentityId) -> usize {
        let inside = own.and_then(|own| self.insides.get(&own)).copied();
        let judge = self.judges.get(&(inside.unwrap_or_default(), peer));
        judge.copied().unwrap_or(CLOSED)
    }
}

/// The judge that denies everything.
pub(crate) const CLOSED: usize = 0;

/// Judges, each distinct one once, and who judges whom by which.
pub(crate) fn read_judges(answers: &Answers, classes: usize) -> (Rows, Vec<Judge>) {
    let mut numbers: HashMap<(usize, InsideClass, Vec<_>), usize> = HashMap::new();
    let mut judges = vec![Judge::new(&[], &SourceTable::new())];
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
            let mut known: HashMap<usize, Vec<(InsideClass, usize)>> = HashMap::new();
            let mut found = Row::default();
            for (identity, number) in row {
                let Some(answer) = answers.answers.get(*number) else {
                    continue;
                };
                if answer.inside != InsideClass::default() {
                    found.insides.insert(*identity, answer.inside);
                }
                let of_answer = known.entry(*number).or_insert_with(|| {
                    let said = answer.entries.iter().map(|(inside, entries)| {
                        let key = (*number, *inside, table.clone());
                        let judge = *numbers.entry(key).or_insert_with(|| {
                            judges.push(Judge::new(entries, &sources));
                            judges.len() - 1
                        });
                        (*inside, judge)
                    });
                    said.collect()
                });
                let judges = of_answer
                    .iter()
                    .map(|(inside, judge)| ((*inside, *identity), *judge));
                found.judges.extend(judges);
            }
            rows.insert((class, direction), found);
        }
    }
    (rows, judges)
}

/// Workloads by the addresses that each of them alone has, or of host endpoints of one node the one that judges there.
pub(crate) fn owners(
    cluster: &Cluster,
    addresses: &[BTreeSet<IpAddr>],
    contested: &BTreeSet<IpAddr>,
) -> HashMap<IpAddr, usize> {
    let order = |position: &usize| cluster.members.get(*position).map(Member::host_order);
    let mut owners: HashMap<IpAddr, usize> = HashMap::new();
    for (position, addresses) in addresses.iter().enumerate() {
        for address in addresses.difference(contested) {
            let owner = owners.entry(*address).or_insert(position);
            let known = *owner;
            if order(&position) < order(&known) {
                *owner = position;
            }
        }
    }
    owners
}

/// Addresses that no workload has taken, by identity: as they are, and by the position of the names they are taken to have, as far
/// as these make another identity of them.
pub(crate) fn outside_if_named(
    answers: &Answers,
    taken: &BTreeSet<IpNet>,
) -> Vec<(Option<usize>, IdentityId, Region, Region)> {
    let unnamed = outside(&answers.identities, taken);
    let mut found: Vec<_> = unnamed
        .iter()
        .cloned()
        .map(|(identity, shape, region)| (None, identity, shape, region))
        .collect();
    for (names, identities) in answers.if_named.iter().enumerate() {
        for (identity, mut shape, mut region) in outside(identities, taken) {
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

/// Addresses that no workload has taken, by identity.
fn outside(
    identities: &BTreeMap<IpNet, IdentityId>,
    taken: &BTreeSet<IpNet>,
) -> Vec<(IdentityId, Region, Region)> {
    let taken_region = Region::of(taken.iter().copied());
    let mut ranges: BTreeMap<IdentityId, Vec<_>> = BTreeMap::new();
    for version_wanted in FAMILIES {
        let nets = identities
            .iter()
            .filter(|(net, _)| version(net.addr()) == version_wanted && !taken.contains(*net));
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
