//! Two models compared, end by end.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use policies_ir::policy::IpVersion;

use crate::{
    connectivity::family_name,
    difference::{
        Change, Effect,
        ends::{BothEnd, Pair, What, addresses_of, all_ends, node_spots},
    },
    model::{End, FAMILIES, Model, SpaceId},
    packet::{Packet, Place},
    region::Region,
    space::{Point, Space},
};

/// The ends of two models, none of which either can tell apart.
pub(super) struct Both<'a> {
    old: &'a Model,
    new: &'a Model,
    pub(super) ends: Vec<BothEnd>,
    known: RefCell<HashMap<Spaces, Changed>>,
}

/// What may pass before and after; nothing where an end does not exist.
type Spaces = (Option<SpaceId>, Option<SpaceId>);

/// What opens and what closes.
type Changed = (Space, Space);

impl<'a> Both<'a> {
    pub(super) fn new(old: &'a Model, new: &'a Model) -> Self {
        Self {
            old,
            new,
            ends: all_ends(old, new),
            known: RefCell::default(),
        }
    }

    pub(super) fn judges(&self, same: bool, from: &BothEnd, to: &BothEnd) -> bool {
        let own_node =
            |model: &Model, from: Option<End>, to: Option<End>| Some(model.comes_from_own_node(from?, to?));
        let (before, after) = (
            own_node(self.old, from.old, to.old),
            own_node(self.new, from.new, to.new),
        );
        // What a node sends its pods always passes, also to pods that come or go.
        if before.or(after) == Some(true) && after.or(before) == Some(true) {
            return false;
        }
        match (&from.what, &to.what) {
            (What::OwnNode, _) | (What::Addresses(_), What::Addresses(_) | What::OwnNode) => false,
            // Names are those of destinations.
            (What::Addresses(_), What::Workloads(_)) => from.names.is_none(),
            (What::Workloads(members), What::Workloads(_)) if same => members.len() > 1,
            _ => true,
        }
    }

    pub(super) fn changes(&self, from: &BothEnd, to: &BothEnd) -> Vec<Change> {
        let mut found: BTreeMap<IpVersion, Changed> = BTreeMap::new();
        for version in FAMILIES {
            // The two models may cut the address space so that only one family is in both parts.
            let meet = match (&from.what, &to.what) {
                (What::Workloads(pairs), What::Addresses(region))
                | (What::Addresses(region), What::Workloads(pairs)) => {
                    self.strangers(pairs, region, version).is_some()
                }
                _ => true,
            };
            if !meet {
                continue;
            }
            // What one address loses another may have got: each is compared with itself.
            for spaces in self.spaces(from, to, version) {
                let (opened, closed) = self.changed(spaces);
                let known = found.entry(version).or_default();
                *known = (known.0.union(&opened), known.1.union(&closed));
            }
        }
        let mut changes = Vec::new();
        for effect in [Effect::Opens, Effect::Closes] {
            let space = |(opened, closed): &Changed| match effect {
                Effect::Opens => opened.clone(),
                Effect::Closes => closed.clone(),
            };
            let spaces: Vec<(IpVersion, Space)> =
                found.iter().map(|(v, changed)| (*v, space(changed))).collect();
            let same = match spaces.as_slice() {
                [(_, one), (_, other)] => one == other,
                _ => true,
            };
            for (version, space) in spaces.into_iter().take(if same { 1 } else { FAMILIES.len() }) {
                if let Some(point) = space.example(version) {
                    let (before, after) = self.example((from, to), effect, version, point);
                    changes.push(Change {
                        effect,
                        from: from.name.clone(),
                        to: to.name.clone(),
                        family: (!same).then(|| family_name(version)),
                        text: space.to_string(),
                        services: space.services(),
                        before,
                        after,
                    });
                }
            }
        }
        changes
    }

    /// What may pass before and after, at all that is to be compared for itself.
    fn spaces(&self, from: &BothEnd, to: &BothEnd, version: IpVersion) -> BTreeSet<Spaces> {
        let mut found = BTreeSet::new();
        let at = match to.what {
            What::OwnNode => &from.at_nodes,
            What::Workloads(_) | What::Addresses(_) => &to.at,
        };
        for (old_from, new_from) in &from.at {
            for (old_to, new_to) in at {
                let spaces = (
                    self.old.allowed_among(old_from, old_to, version),
                    self.new.allowed_among(new_from, new_to, version),
                );
                if spaces != (None, None) {
                    found.insert(spaces);
                }
            }
        }
        found
    }

    fn changed(&self, spaces: Spaces) -> Changed {
        if let Some(known) = self.known.borrow().get(&spaces) {
            return known.clone();
        }
        let space = |model: &Model, id: Option<SpaceId>| match id {
            Some(id) => model.space(id).as_ref().clone(),
            None => Space::nothing(),
        };
        let (before, after) = (space(self.old, spaces.0), space(self.new, spaces.1));
        let changed = (after.subtract(&before), before.subtract(&after));
        self.known.borrow_mut().insert(spaces, changed.clone());
        changed
    }

    /// A packet between two of the workloads or addresses, as both judge it.
    fn example(
        &self,
        (from, to): (&BothEnd, &BothEnd),
        effect: Effect,
        version: IpVersion,
        point: Point,
    ) -> (Option<Packet>, Option<Packet>) {
        let first = |end: &BothEnd, not: Option<Pair>| match &end.what {
            What::Workloads(members) => members.iter().copied().find(|pair| Some(*pair) != not),
            What::Addresses(_) | What::OwnNode => None,
        };
        let strangers = match (&from.what, &to.what) {
            (What::Workloads(pairs), What::Addresses(region))
            | (What::Addresses(region), What::Workloads(pairs)) => self.strangers(pairs, region, version),
            _ => None,
        };
        let (source, destination, outside) = match (strangers, &from.what) {
            (Some((pair, address)), What::Workloads(_)) => (Some(pair), None, Some(address)),
            (Some((pair, address)), _) => (None, Some(pair), Some(address)),
            (None, _) => {
                let source = first(from, None);
                (source, first(to, source), None)
            }
        };
        let places = |model: &Model, end: &BothEnd, member: Option<usize>| -> Vec<Place> {
            let alone = |names| {
                move |address| Place {
                    names,
                    ..Place::new(None, address)
                }
            };
            match &end.what {
                What::Addresses(_) => outside.into_iter().map(alone(end.names)).collect(),
                What::OwnNode => {
                    let nodes = member.map(|member| node_spots(model, member, version));
                    let nodes = nodes.unwrap_or_default().into_iter();
                    nodes.map(|(address, names, _)| alone(names)(address)).collect()
                }
                What::Workloads(_) => {
                    let addresses = member.map(|member| addresses_of(model, member, version));
                    let at = |address| Place::new(member, address);
                    addresses.unwrap_or_default().into_iter().map(at).collect()
                }
            }
        };
        let opens = effect == Effect::Opens;
        // Its own node is found by the pod.
        let destination = match to.what {
            What::OwnNode => source,
            What::Workloads(_) | What::Addresses(_) => destination,
        };
        let old = |pair: Option<Pair>| pair.and_then(|(old, _)| old);
        let new = |pair: Option<Pair>| pair.and_then(|(_, new)| new);
        let pairs =
            |model: &Model, source: Option<usize>, destination: Option<usize>| -> Vec<(Place, Place)> {
                let to = places(model, to, destination);
                let from = places(model, from, source).into_iter();
                from.flat_map(|from| to.iter().map(move |to| (from, *to)))
                    .collect()
            };
        let before = pairs(self.old, old(source), old(destination));
        let after = pairs(self.new, new(source), new(destination));
        let addresses = |(from, to): &(Place, Place)| (from.address, to.address);
        for (before, after) in before.iter().zip(&after) {
            let packet = |model: &Model, (from, to): (Place, Place)| model.packet(from, to, point);
            let both = (packet(self.old, *before), packet(self.new, *after));
            if let (Some(old), Some(new)) = &both
                && addresses(before) == addresses(after)
                && (old.allowed, new.allowed) == (!opens, opens)
            {
                return both;
            }
        }
        // A workload may have other addresses than before, of which one is enough where a flow is allowed.
        let judged = |model: &Model, pairs: Vec<(Place, Place)>, allowed: bool| {
            let packets: Vec<Packet> = pairs
                .into_iter()
                .filter_map(|(from, to)| model.packet(from, to, point))
                .collect();
            let wanted = packets.iter().find(|packet| packet.allowed == allowed);
            wanted.or(packets.first()).cloned()
        };
        (judged(self.old, before, !opens), judged(self.new, after, opens))
    }

    /// One of the workloads, and an address of a region that is in neither cluster of the node that it is on.
    fn strangers(&self, pairs: &[Pair], region: &Region, version: IpVersion) -> Option<(Pair, IpAddr)> {
        let example = region.example(version)?;
        let is_own = |model: &Model, member: Option<usize>, address: IpAddr| {
            member.is_some_and(|member| model.is_own_node(member, address))
        };
        let strange = |(old, new): &Pair, address: IpAddr| {
            !is_own(self.old, *old, address) && !is_own(self.new, *new, address)
        };
        if let Some(pair) = pairs.iter().find(|pair| strange(pair, example)) {
            return Some((*pair, example));
        }
        let of_nodes = |model: &Model, member: Option<usize>| {
            let own = member.map(|member| node_spots(model, member, version));
            let own = own.into_iter().flatten();
            Region::of(own.map(|(address, ..)| address.into()))
        };
        pairs.iter().find_map(|(old, new)| {
            let own = of_nodes(self.old, *old).union(&of_nodes(self.new, *new));
            Some(((*old, *new), region.subtract(&own).example(version)?))
        })
    }
}
