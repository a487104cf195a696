//! The ends that are compared: workloads by name, and addresses outside that neither model tells apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use policies_ir::policy::IpVersion;

use crate::{
    connectivity::OWN_NODE,
    difference::together::Addresses,
    model::{End, FAMILIES, Model, Spot},
    naming,
    region::Region,
};

/// Where an end is before and after: at one address of its, or, where it has others than before, at any.
pub(super) type At = (Vec<Spot>, Vec<Spot>);

/// An end before and after.
pub(super) struct BothEnd {
    pub(super) name: String,
    /// Of addresses, with those of workloads that lie within.
    pub(super) shape: Option<Region>,
    /// Names that they are taken to have, by position in the models' sets of them.
    pub(super) names: Option<usize>,
    pub(super) named: Option<String>,
    pub(super) old: Option<End>,
    pub(super) new: Option<End>,
    pub(super) what: What,
    /// All that is to be compared for itself.
    pub(super) at: BTreeSet<At>,
    /// The same of the nodes that they are on.
    pub(super) at_nodes: BTreeSet<At>,
}

/// What an end is of.
pub(super) enum What {
    /// Positions of each workload in the two clusters.
    Workloads(Vec<Pair>),
    Addresses(Region),
    /// The node that the other end is on.
    OwnNode,
}

/// Positions of a workload in the two clusters.
pub(super) type Pair = (Option<usize>, Option<usize>);

/// Addresses outside, and the region of a model that speaks about them.
pub(crate) struct Part {
    pub(crate) region: Region,
    shape: Region,
    of: usize,
}

impl BothEnd {
    pub(super) fn located(&self) -> Option<Addresses> {
        Some(Addresses {
            region: self.shape.clone()?,
            named: self.named.clone(),
        })
    }
}

/// All ends of the two, of which neither tells apart what is in one.
pub(super) fn all_ends(old: &Model, new: &Model) -> Vec<BothEnd> {
    let mut ends = workload_ends(old, new);
    ends.extend(outside_ends(old, new));
    ends.push(BothEnd {
        name: OWN_NODE.to_owned(),
        shape: None,
        names: None,
        named: None,
        old: Some(End::OwnNode),
        new: Some(End::OwnNode),
        what: What::OwnNode,
        at: BTreeSet::new(),
        at_nodes: BTreeSet::new(),
    });
    ends
}

/// Addresses outside, with each set of names that they may have.
fn outside_ends(old: &Model, new: &Model) -> Vec<BothEnd> {
    let mut ends = Vec::new();
    let sets = 0..old.names().sets().len();
    for names in std::iter::once(None).chain(sets.map(Some)) {
        let after = parts(new, names);
        for old_part in parts(old, names) {
            for new_part in &after {
                // Without names both have been compared.
                let has_names = old.names_of(old_part.of).or(new.names_of(new_part.of));
                let region = old_part.region.intersect(&new_part.region);
                if region.is_empty() || has_names != names {
                    continue;
                }
                let addresses = Addresses {
                    region: old_part.shape.intersect(&new_part.shape),
                    named: names.and_then(|names| old.names_text(names)),
                };
                ends.push(BothEnd {
                    name: addresses.name(),
                    shape: Some(addresses.region),
                    names,
                    named: addresses.named,
                    old: Some(End::Outside(old_part.of)),
                    new: Some(End::Outside(new_part.of)),
                    what: What::Addresses(region),
                    at: FAMILIES
                        .map(|version| {
                            let at = |region| vec![Spot::Outside { region, version }];
                            (at(old_part.of), at(new_part.of))
                        })
                        .into(),
                    at_nodes: BTreeSet::new(),
                });
            }
        }
    }
    ends
}

/// All addresses outside as a model sees them, if they have these names. Most it sees as if they had none.
pub(crate) fn parts(model: &Model, names: Option<usize>) -> Vec<Part> {
    let regions = || model.outside().iter().zip(model.shapes()).enumerate();
    let of_names = |wanted: Option<usize>| regions().filter(move |(i, _)| model.names_of(*i) == wanted);
    let mut parts: Vec<Part> = Vec::new();
    let (mut seen, mut seen_shape) = (Region::default(), Region::default());
    if names.is_some() {
        for (of, (region, shape)) in of_names(names) {
            (seen, seen_shape) = (seen.union(region), seen_shape.union(shape));
            let (region, shape) = (region.clone(), shape.clone());
            parts.push(Part { region, shape, of });
        }
    }
    for (of, (region, shape)) in of_names(None) {
        let (region, shape) = (region.subtract(&seen), shape.subtract(&seen_shape));
        parts.push(Part { region, shape, of });
    }
    parts
}

/// Workloads of both by name, together when each model has them in one class.
fn workload_ends(old: &Model, new: &Model) -> Vec<BothEnd> {
    let positions = |model: &Model| -> BTreeMap<String, usize> {
        let members = 0..model.cluster().members.len();
        members.map(|member| (model.name(member), member)).collect()
    };
    let (before, after) = (positions(old), positions(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut classes: BTreeMap<(Option<usize>, Option<usize>), Vec<&String>> = BTreeMap::new();
    for name in names {
        let class =
            |model: &Model, positions: &BTreeMap<String, usize>| model.class_of(*positions.get(name)?);
        let key = (class(old, &before), class(new, &after));
        classes.entry(key).or_default().push(name);
    }
    let mut short: Vec<String> = Vec::new();
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    for names in classes.values() {
        let names: Vec<String> = names.iter().map(|name| (*name).clone()).collect();
        let name = naming::of_names(&names, 0);
        *uses.entry(name.clone()).or_default() += 1;
        short.push(name);
    }
    let ends = classes
        .into_iter()
        .zip(short)
        .map(|(((of_old, of_new), names), short)| BothEnd {
            name: match uses.get(&short) {
                Some(1) => short,
                _ => names
                    .iter()
                    .map(|name| name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            },
            shape: None,
            names: None,
            named: None,
            old: of_old.map(End::Class),
            new: of_new.map(End::Class),
            at: names
                .iter()
                .flat_map(|name| {
                    at_addresses(
                        (old, before.get(*name).copied()),
                        (new, after.get(*name).copied()),
                    )
                })
                .collect(),
            at_nodes: names
                .iter()
                .flat_map(|name| {
                    at_own_nodes(
                        (old, before.get(*name).copied()),
                        (new, after.get(*name).copied()),
                    )
                })
                .collect(),
            what: What::Workloads(
                names
                    .into_iter()
                    .map(|name| (before.get(name).copied(), after.get(name).copied()))
                    .collect(),
            ),
        });
    ends.collect()
}

/// Each address of a workload for itself, if it has the same before and after.
fn at_addresses(old: (&Model, Option<usize>), new: (&Model, Option<usize>)) -> Vec<At> {
    let spots = |(model, member): (&Model, Option<usize>)| -> BTreeMap<IpAddr, Spot> {
        let class = member.and_then(|member| Some((member, model.class_of(member)?)));
        let spots = class.into_iter().flat_map(|(member, class)| {
            let slots = 0..model.spots(End::Class(class)).len();
            slots.filter_map(move |slot| Some((model.address(member, slot)?, Spot::Class { class, slot })))
        });
        spots.collect()
    };
    same_or_any(spots(old), spots(new))
}

/// The same of the node that a workload is on. Nothing where one of the two does not know the node of a workload that is in both: to it
/// these are addresses like others.
fn at_own_nodes(old: (&Model, Option<usize>), new: (&Model, Option<usize>)) -> Vec<At> {
    let spots = |(model, member): (&Model, Option<usize>)| -> BTreeMap<(IpAddr, Option<usize>), Spot> {
        let of_family = |version| member.map(|member| node_spots(model, member, version));
        let spots = FAMILIES.into_iter().filter_map(of_family).flatten();
        spots
            .map(|(address, names, spot)| ((address, names), spot))
            .collect()
    };
    let (before, after) = (spots(old), spots(new));
    let is_unknown = |member: Option<usize>, spots: &BTreeMap<_, _>| member.is_some() && spots.is_empty();
    if is_unknown(old.1, &before) || is_unknown(new.1, &after) {
        return Vec::new();
    }
    same_or_any(before, after)
}

/// Addresses of a family of the node that a workload is on, with the names that they are taken to have.
pub(super) fn node_spots(
    model: &Model,
    member: usize,
    version: IpVersion,
) -> Vec<(IpAddr, Option<usize>, Spot)> {
    let spots = model
        .class_of(member)
        .into_iter()
        .flat_map(|class| model.node_spots(class));
    let of_family = spots.filter(|spot| model.version(*spot) == Some(version));
    let located = of_family.filter_map(|spot| match spot {
        Spot::OwnNode { slot, .. } => Some((model.node_address(member, slot)?, model.names_at(spot), spot)),
        Spot::Class { .. } | Spot::Outside { .. } => None,
    });
    located.collect()
}

/// Each spot beside what it was, if there are the same before and after, or all beside all.
fn same_or_any<K: Ord>(before: BTreeMap<K, Spot>, after: BTreeMap<K, Spot>) -> Vec<At> {
    match before.keys().eq(after.keys()) {
        true => before
            .into_values()
            .zip(after.into_values())
            .map(|(before, after)| (vec![before], vec![after]))
            .collect(),
        false => vec![(before.into_values().collect(), after.into_values().collect())],
    }
}

/// The addresses of a family that a workload has.
pub(crate) fn addresses_of(model: &Model, member: usize, version: IpVersion) -> Vec<IpAddr> {
    let spots = model.class_of(member).map(|class| model.spots(End::Class(class)));
    let addresses = spots.into_iter().flatten().filter_map(|spot| match spot {
        Spot::Class { slot, .. } if model.version(spot) == Some(version) => model.address(member, slot),
        _ => None,
    });
    addresses.collect()
}
