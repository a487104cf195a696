//! Proof that written objects allow what was seen and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use policies_compiler::{ClusterView, Source, load_objects};
use policies_ir::policy::IpVersion;
use serde_json::Value;

use crate::{
    model::{End, FAMILIES, Model, Spot},
    recommend::{
        RecommendError,
        observe::{Observed, Side},
    },
    region::{Region, version},
    space::Space,
};

/// Compares what the objects allow with what was seen, for every pair of pods and every address. Says what they allow and
/// something else denies.
pub(super) fn verify(
    bare: &ClusterView,
    observed: &Observed,
    objects: &[Value],
) -> Result<BTreeSet<String>, RecommendError> {
    let origin = "the recommendation";
    let sources = objects.iter().map(|object| Source { origin, object });
    let loaded = load_objects(sources).map_err(|error| RecommendError::NotExact(error.to_string()))?;
    let mut view = bare.clone();
    view.policies.extend(loaded.view.policies);
    view.calico.extend(loaded.view.calico);
    let model = Model::new(&view);
    if let Some(exceeded) = model.exceeded() {
        return Err(RecommendError::NotExact(exceeded.to_string()));
    }
    let mut seen: BTreeMap<(Side, Side), Space> = BTreeMap::new();
    for connection in &observed.connections {
        let known = seen.entry((connection.from, connection.to)).or_default();
        *known = known.union(&connection.service.space());
    }
    let mut sides: BTreeMap<usize, Side> = BTreeMap::new();
    for (number, workload) in observed.workloads.iter().enumerate() {
        for member in &workload.members {
            // All of a class are of one workload, as its policies select by all that tells workloads apart.
            let class = model.class_of(*member);
            sides.extend(class.map(|class| (class, Side::Workload(number))));
        }
    }
    for from in model.ends() {
        for to in model.ends() {
            if model.judges(from, to) {
                check(&model, observed, &sides, &seen, from, to)?;
            }
        }
    }
    Ok(dropped_to_nodes(&model, observed, &sides, &seen))
}

/// What was seen from pods to their own nodes and would not pass: no policy decides about that alone.
fn dropped_to_nodes(
    model: &Model,
    observed: &Observed,
    sides: &BTreeMap<usize, Side>,
    seen: &BTreeMap<(Side, Side), Space>,
) -> BTreeSet<String> {
    let mut dropped = BTreeSet::new();
    for (class, own) in sides {
        let from = End::Class(*class);
        if !model.judges(from, End::OwnNode) {
            continue;
        }
        let pairs = model.pairs(from, End::OwnNode);
        for family in FAMILIES {
            for (spot, address) in own_node_addresses(model, *class, family) {
                let Some(seen) = seen.get(&(*own, Side::Address(address))) else {
                    continue;
                };
                for (from, to) in pairs.iter().filter(|(_, to)| *to == spot) {
                    let passes = model.space(model.allowed_at(*from, *to));
                    let closed = seen.clone().of_family(family).subtract(&passes);
                    if !closed.is_empty() {
                        dropped.insert(format!(
                            "{closed} from {} to {address}: the policies allow it, and defaultEndpointToHostAction of \
                             FelixConfiguration drops what a pod sends to its own node",
                            observed.name(*own)
                        ));
                    }
                }
            }
        }
    }
    dropped
}

fn check(
    model: &Model,
    observed: &Observed,
    sides: &BTreeMap<usize, Side>,
    seen: &BTreeMap<(Side, Side), Space>,
    from: End,
    to_end: End,
) -> Result<(), RecommendError> {
    let nothing = Space::nothing();
    for family in FAMILIES {
        let Some(allowed) = model.allowed(from, to_end, family) else {
            continue;
        };
        let allowed = model.space(allowed);
        let wrong = |from: Side, to: Side, expected: &Space| {
            let (from, to) = (observed.name(from), observed.name(to));
            RecommendError::NotExact(format!(
                "from {from} to {to} they allow {allowed}, and {expected} was seen"
            ))
        };
        match (from, to_end) {
            (End::Class(from), End::Class(to)) => {
                let (Some(from), Some(to)) = (sides.get(&from), sides.get(&to)) else {
                    continue;
                };
                let expected = seen.get(&(*from, *to)).unwrap_or(&nothing);
                if *allowed != expected.clone().of_family(family) {
                    return Err(wrong(*from, *to, expected));
                }
            }
            (End::Class(class), End::Outside(region)) | (End::Outside(region), End::Class(class)) => {
                let Some(own) = sides.get(&class) else { continue };
                let leaves = matches!(from, End::Class(_));
                let ordered = |address: IpAddr| match leaves {
                    true => (*own, Side::Address(address)),
                    false => (Side::Address(address), *own),
                };
                let region = model.outside().get(region).cloned().unwrap_or_default();
                let inside = seen.keys().filter_map(|(from, to)| match (from, to, leaves) {
                    (side, Side::Address(address), true) | (Side::Address(address), side, false)
                        if side == own && region.contains(*address) && version(*address) == family =>
                    {
                        Some(*address)
                    }
                    _ => None,
                });
                let inside: Vec<IpAddr> = inside.collect();
                for address in &inside {
                    let (from, to) = ordered(*address);
                    let expected = seen.get(&(from, to)).unwrap_or(&nothing);
                    if *allowed != expected.clone().of_family(family) {
                        return Err(wrong(from, to, expected));
                    }
                }
                let known = Region::of(inside.into_iter().map(ipnet::IpNet::from));
                let unseen = region.subtract(&known);
                if let Some(address) = unseen.example(family)
                    && !allowed.is_empty()
                {
                    let (from, to) = ordered(address);
                    return Err(wrong(from, to, &nothing));
                }
            }
            // What goes to a pod's own node may be dropped though policies allow it, but nothing else passes.
            (End::Class(class), End::OwnNode) => {
                let Some(own) = sides.get(&class) else { continue };
                for (spot, address) in own_node_addresses(model, class, family) {
                    let to = Side::Address(address);
                    let expected = seen.get(&(*own, to)).unwrap_or(&nothing);
                    let passes = model
                        .pairs(from, to_end)
                        .into_iter()
                        .filter(|(_, to)| *to == spot);
                    let mut passes = passes.map(|(from, to)| model.space(model.allowed_at(from, to)));
                    if passes.any(|passes| !passes.subtract(expected).is_empty()) {
                        return Err(wrong(*own, to, expected));
                    }
                }
            }
            (End::OwnNode, _) | (End::Outside(_), End::Outside(_) | End::OwnNode) => {}
        }
    }
    Ok(())
}

/// Each address of a family of the nodes that the workloads of a class are on.
fn own_node_addresses(
    model: &Model,
    class: usize,
    family: IpVersion,
) -> impl Iterator<Item = (Spot, IpAddr)> + '_ {
    let spots = model.node_spots(class);
    let of_family = spots.filter(move |spot| model.version(*spot) == Some(family));
    of_family.flat_map(move |spot| {
        let members = model.classes().get(class).map(|class| class.members.as_slice());
        let addresses = members
            .unwrap_or_default()
            .iter()
            .filter_map(move |member| match spot {
                Spot::OwnNode { slot, .. } => model.node_address(*member, slot),
                Spot::Class { .. } | Spot::Outside { .. } => None,
            });
        addresses.map(move |address| (spot, address))
    })
}
