//! What a change of policies, or of the workloads under them, opens and closes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use policies_ir::policy::IpVersion;
use serde::Serialize;

use crate::{
    connectivity::{OWN_NODE, family_name},
    model::{End, FAMILIES, Model, SpaceId, Spot},
    names::Names,
    naming,
    packet::{Packet, Place},
    region::Region,
    space::{Point, ServiceText, Space},
};

/// What happens to flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// They were denied, and are allowed.
    Opens,
    /// They were allowed, and are denied.
    Closes,
}

/// Flows between two groups of ends that a change opens or closes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What happens to them.
    pub effect: Effect,
    /// Source.
    pub from: String,
    /// Destination.
    pub to: String,
    /// Family of addresses, where the other family does not change alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<&'static str>,
    /// The flows, in one line.
    pub text: String,
    /// The flows.
    pub services: Vec<ServiceText>,
    /// One of them, as it was judged before; absent if an end did not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Packet>,
    /// The same, as it is judged after; absent if an end no longer exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Packet>,
}

/// Everything that `new` opens or closes, compared with `old`. Workloads are the same when their names are; those
/// that only one has are compared with nothing, and the node that a pod is on with the one that it was on. Empty exactly when the two are equivalent.
pub fn difference(old: &Model, new: &Model) -> Vec<Change> {
    let asking = [old, new].map(|model| (model.cluster(), model.policies()));
    let names = Names::of(&asking);
    let again = |model: &Model| {
        let (cluster, policies) = (model.cluster().clone(), model.policies().clone());
        (*model.names() != names).then(|| Model::with_names(cluster, policies, names.clone()))
    };
    // Names that either asks for are asked of both.
    let (old_again, new_again) = (again(old), again(new));
    let (old, new) = (
        old_again.as_ref().unwrap_or(old),
        new_again.as_ref().unwrap_or(new),
    );
    let both = Both::new(old, new);
    let mut changes = Vec::new();
    for (i, from) in both.ends.iter().enumerate() {
        for (j, to) in both.ends.iter().enumerate() {
            if both.judges(i == j, from, to) {
                let found = both.changes(from, to).into_iter();
                changes.extend(found.map(|change| Located {
                    change,
                    from: from.located(),
                    to: to.located(),
                }));
            }
        }
    }
    changes.sort_by(|a, b| a.change.cmp(&b.change));
    together(changes)
}

/// A change, and the addresses at its ends where those are not workloads.
struct Located {
    change: Change,
    from: Option<Addresses>,
    to: Option<Addresses>,
}

/// Addresses, and the names that they are taken to have.
#[derive(Clone)]
struct Addresses {
    region: Region,
    named: Option<String>,
}

impl Addresses {
    fn name(&self) -> String {
        match &self.named {
            Some(names) => naming::named_addresses(names, &self.region),
            None => naming::addresses(&self.region),
        }
    }
}

/// Puts addresses together between which and the same workloads the same happens by the same rules.
fn together(changes: Vec<Located>) -> Vec<Change> {
    let rulings = |change: &Change| {
        let of = |packet: &Option<Packet>| packet.as_ref().map(Packet::rulings);
        (of(&change.before), of(&change.after))
    };
    let mut merged: Vec<Located> = Vec::new();
    for new in changes {
        let fits = |known: &&mut Located| {
            let (a, b) = (&known.change, &new.change);
            let end = |a: &str, b: &str, known: &Option<Addresses>, new: &Option<Addresses>| {
                let same_names = |(known, new): (&Addresses, &Addresses)| known.named == new.named;
                a == b || known.as_ref().zip(new.as_ref()).is_some_and(same_names)
            };
            (a.effect, a.family, &a.text, rulings(a)) == (b.effect, b.family, &b.text, rulings(b))
                && end(&a.from, &b.from, &known.from, &new.from)
                && end(&a.to, &b.to, &known.to, &new.to)
        };
        match merged.iter_mut().find(fits) {
            Some(known) => {
                for (name, known, more) in [
                    (&mut known.change.from, &mut known.from, &new.from),
                    (&mut known.change.to, &mut known.to, &new.to),
                ] {
                    if let (Some(known), Some(more)) = (known.as_mut(), more) {
                        known.region = known.region.union(&more.region);
                        *name = known.name();
                    }
                }
            }
            None => merged.push(new),
        }
    }
    merged.into_iter().map(|located| located.change).collect()
}

/// The ends of two models, none of which either can tell apart.
struct Both<'a> {
    old: &'a Model,
    new: &'a Model,
    ends: Vec<BothEnd>,
    known: std::cell::RefCell<HashMap<Spaces, Changed>>,
}

/// Where an end is before and after: at one address of its, or, where it has others than before, at any.
type At = (Vec<Spot>, Vec<Spot>);
/// What may pass before and after; nothing where an end does not exist.
type Spaces = (Option<SpaceId>, Option<SpaceId>);
/// What opens and what closes.
type Changed = (Space, Space);

struct BothEnd {
    name: String,
    /// Of addresses, with those of workloads that lie within.
    shape: Option<Region>,
    /// Names that they are taken to have, by position in the models' sets of them.
    names: Option<usize>,
    named: Option<String>,
    old: Option<End>,
    new: Option<End>,
    what: What,
    /// All that is to be compared for itself.
    at: BTreeSet<At>,
    /// The same of the nodes that they are on.
    at_nodes: BTreeSet<At>,
}

enum What {
    /// Positions of each workload in the two clusters.
    Workloads(Vec<Pair>),
    Addresses(Region),
    /// The node that the other end is on.
    OwnNode,
}

/// Positions of a workload in the two clusters.
type Pair = (Option<usize>, Option<usize>);

impl BothEnd {
    fn located(&self) -> Option<Addresses> {
        Some(Addresses {
            region: self.shape.clone()?,
            named: self.named.clone(),
        })
    }
}

/// Addresses outside, and the region of a model that speaks about them.
pub(crate) struct Part {
    pub(crate) region: Region,
    shape: Region,
    of: usize,
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

impl<'a> Both<'a> {
    fn new(old: &'a Model, new: &'a Model) -> Self {
        let mut ends = workload_ends(old, new);
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
        Self {
            old,
            new,
            ends,
            known: std::cell::RefCell::default(),
        }
    }

    fn judges(&self, same: bool, from: &BothEnd, to: &BothEnd) -> bool {
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

    fn changes(&self, from: &BothEnd, to: &BothEnd) -> Vec<Change> {
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
fn node_spots(model: &Model, member: usize, version: IpVersion) -> Vec<(IpAddr, Option<usize>, Spot)> {
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
