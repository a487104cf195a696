//! Ends that assertions name, among those of a model.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::policy::{IpVersion, Workload};

use crate::{
    assertion::{EndTerm, Ends},
    model::{End, FAMILIES, Model, Spot},
    naming,
    packet::Place,
    region::Region,
};

/// Some of the ends of a model.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    pub(super) spots: BTreeMap<Spot, Chosen>,
    /// All addresses of them that no workload has.
    addresses: Region,
    /// Whether the own node of each pod is one of them, if it is not its addresses and host endpoints that tell.
    pub(super) own_nodes: Option<bool>,
}

/// What of a spot is chosen.
#[derive(Debug, Clone)]
pub(super) enum Chosen {
    /// These members of the class.
    Members(BTreeSet<usize>),
    /// These addresses of the region.
    Addresses(Region),
}

/// An end, and the families in which it has addresses.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) versions: BTreeSet<IpVersion>,
    pub(super) outside: bool,
}

impl Selection {
    pub(super) fn of(model: &Model, ends: &Ends) -> Self {
        let mut selection = Self::default();
        for term in &ends.0 {
            selection.add(model, term);
        }
        selection
    }

    pub(super) fn is_empty(&self, model: &Model) -> bool {
        let no_nodes = || {
            let mut classes = 0..model.classes().len();
            !classes.any(|class| nodes_of(model, class).next().is_some())
        };
        self.spots.is_empty() && (self.own_nodes != Some(true) || no_nodes())
    }

    /// Where the node that a pod is on is one of them, at one of its spots. Host endpoints that are chosen by name are not their node.
    fn own_node(&self, model: &Model, pod: usize, node: Spot) -> Option<Place> {
        match node {
            Spot::OwnNode { slot, .. } => {
                let address = model.node_address(pod, slot)?;
                let is_chosen = self.own_nodes.unwrap_or_else(|| self.addresses.contains(address));
                is_chosen.then(|| Place {
                    names: model.names_at(node),
                    ..Place::new(None, address)
                })
            }
            Spot::Class { class, slot } if self.own_nodes == Some(true) => {
                at(model, *model.classes().get(class)?.members.first()?, slot)
            }
            Spot::Class { .. } | Spot::Outside { .. } => None,
        }
    }

    fn add(&mut self, model: &Model, term: &EndTerm) {
        match term {
            EndTerm::Workloads { namespace, labels } => {
                let selected = |workload: &Workload| {
                    namespace.as_ref().is_none_or(|name| workload.namespace == *name)
                        && labels.matches(&workload.labels)
                };
                self.add_workloads(model, |member| {
                    model
                        .member(member)
                        .is_some_and(|member| selected(&member.workload))
                });
            }
            EndTerm::Workload(name) => {
                let named = model.find(name);
                self.add_workloads(model, |member| Some(member) == named);
            }
            EndTerm::Net(net) => {
                let region = Region::of([*net]);
                self.add_region(model, &region);
                for (spot, member) in workload_spots(model) {
                    let Spot::Class { slot, .. } = spot else { continue };
                    if model
                        .address(member, slot)
                        .is_some_and(|address| region.contains(address))
                    {
                        self.add_member(spot, member);
                    }
                }
            }
            EndTerm::Internet => self.add_region(model, &Region::internet()),
            EndTerm::Outside => self.add_region(model, &Region::everything()),
            EndTerm::OwnNode => self.own_nodes = Some(true),
            EndTerm::Anything => {
                self.add_workloads(model, |_| true);
                self.add_region(model, &Region::everything());
            }
        }
    }

    fn add_workloads(&mut self, model: &Model, selected: impl Fn(usize) -> bool) {
        for (spot, member) in workload_spots(model) {
            if selected(member) {
                self.add_member(spot, member);
            }
        }
    }

    fn add_member(&mut self, spot: Spot, member: usize) {
        let chosen = self
            .spots
            .entry(spot)
            .or_insert_with(|| Chosen::Members(BTreeSet::new()));
        if let Chosen::Members(members) = chosen {
            members.insert(member);
        }
    }

    fn add_region(&mut self, model: &Model, wanted: &Region) {
        self.addresses = self.addresses.union(wanted);
        for (number, region) in model.outside().iter().enumerate() {
            let inside = region.intersect(wanted);
            for version in FAMILIES.into_iter().filter(|version| inside.has(*version)) {
                let spot = Spot::Outside {
                    region: number,
                    version,
                };
                let chosen = self
                    .spots
                    .entry(spot)
                    .or_insert_with(|| Chosen::Addresses(Region::default()));
                if let Chosen::Addresses(addresses) = chosen {
                    *addresses = addresses.union(&inside);
                }
            }
        }
    }

    /// Everything else.
    pub(super) fn complement(&self, model: &Model) -> Self {
        let mut others = Self::default();
        // A workload that is chosen at one of its addresses is not somebody else at another.
        let chosen: BTreeSet<usize> = self
            .spots
            .values()
            .filter_map(|chosen| match chosen {
                Chosen::Members(members) => Some(members),
                Chosen::Addresses(_) => None,
            })
            .flatten()
            .copied()
            .collect();
        others.add_workloads(model, |member| !chosen.contains(&member));
        others.add_region(model, &Region::everything().subtract(&self.addresses));
        others.own_nodes = self.own_nodes.map(|chosen| !chosen);
        others
    }

    /// The ends by name, with their families: workloads one by one, and all addresses outside as one.
    pub(super) fn ends(&self, model: &Model) -> Vec<Named> {
        let mut workloads: BTreeMap<String, BTreeSet<IpVersion>> = BTreeMap::new();
        let (mut outside, mut versions) = (Region::default(), BTreeSet::new());
        for (spot, chosen) in &self.spots {
            let Some(version) = model.version(*spot) else {
                continue;
            };
            match chosen {
                Chosen::Members(members) => {
                    for member in members {
                        workloads.entry(model.name(*member)).or_default().insert(version);
                    }
                }
                Chosen::Addresses(addresses) => {
                    outside = outside.union(addresses);
                    versions.insert(version);
                }
            }
        }
        let mut ends: Vec<Named> = workloads
            .into_iter()
            .map(|(name, versions)| Named {
                name,
                versions,
                outside: false,
            })
            .collect();
        if !outside.is_empty() {
            ends.push(Named {
                name: naming::addresses(&outside),
                versions,
                outside: true,
            });
        }
        ends
    }
}

fn workload_spots(model: &Model) -> impl Iterator<Item = (Spot, usize)> + '_ {
    let classes = model.classes().iter().enumerate();
    classes.flat_map(|(number, class)| {
        let spots = model.spots(End::Class(number));
        spots
            .into_iter()
            .flat_map(|spot| class.members.iter().map(move |member| (spot, *member)))
    })
}

/// A place of each of two spots, which are not the same workload and of which none is the other's own node; nothing if there are no such
/// two, or no workload among them.
pub(super) fn places(model: &Model, from: (Spot, &Chosen), to: (Spot, &Chosen)) -> Option<(Place, Place)> {
    match (from, to) {
        (
            (Spot::Class { slot, .. }, Chosen::Members(from)),
            (Spot::Class { slot: to_slot, .. }, Chosen::Members(to)),
        ) => {
            let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
            let (from, to) = pairs.into_iter().find(|(from, to)| from != to)?;
            Some((at(model, from, slot)?, at(model, to, to_slot)?))
        }
        (from @ (_, Chosen::Members(_)), to @ (_, Chosen::Addresses(_))) => strangers(model, from, to),
        (from @ (_, Chosen::Addresses(_)), to @ (_, Chosen::Members(_))) => {
            let (to, from) = strangers(model, to, from)?;
            Some((from, to))
        }
        _ => None,
    }
}

/// A workload and an address that is not of the node that it is on.
fn strangers(
    model: &Model,
    (own, members): (Spot, &Chosen),
    (outside, addresses): (Spot, &Chosen),
) -> Option<(Place, Place)> {
    let (Spot::Class { slot, .. }, Spot::Outside { version, .. }) = (own, outside) else {
        return None;
    };
    let (Chosen::Members(members), Chosen::Addresses(region)) = (members, addresses) else {
        return None;
    };
    let strange = |member: &usize| Some((*member, model.stranger(*member, region, version)?));
    let (member, address) = members.iter().find_map(strange)?;
    let address = Place {
        names: model.names_at(outside),
        ..Place::new(None, address)
    };
    Some((at(model, member, slot)?, address))
}

/// Each spot of chosen pods with each of the node that they are on, and places of them, as far as one of the nodes is among `nodes`.
pub(super) fn own_nodes<'a>(
    model: &'a Model,
    pods: &'a Selection,
    nodes: &'a Selection,
) -> impl Iterator<Item = (Spot, Spot, (Place, Place))> + 'a {
    let chosen = pods
        .spots
        .iter()
        .filter_map(|(spot, chosen)| match (spot, chosen) {
            (Spot::Class { class, slot }, Chosen::Members(members)) => Some((*spot, *class, *slot, members)),
            _ => None,
        });
    chosen.flat_map(move |(spot, class, slot, members)| {
        let of_family = move |node: &Spot| model.version(*node) == model.version(spot);
        nodes_of(model, class).filter(of_family).filter_map(move |node| {
            let on_chosen = |member: &usize| Some((*member, nodes.own_node(model, *member, node)?));
            let (member, at_node) = members.iter().find_map(on_chosen)?;
            Some((spot, node, (at(model, member, slot)?, at_node)))
        })
    })
}

/// Where the node is that the pods of a class are on, and the host endpoints of it.
fn nodes_of(model: &Model, pods: usize) -> impl Iterator<Item = Spot> + '_ {
    let hosts = (0..model.classes().len()).map(End::Class);
    let hosts = hosts.filter(move |host| model.comes_from_own_node(*host, End::Class(pods)));
    model
        .node_spots(pods)
        .chain(hosts.flat_map(|host| model.spots(host)))
}

fn at(model: &Model, member: usize, slot: usize) -> Option<Place> {
    Some(Place::new(Some(member), model.address(member, slot)?))
}
