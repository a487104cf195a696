//! Ends of flows, where they are, and which of them meet.

use std::net::IpAddr;

use policies_ir::{
    cluster::Member,
    policy::{IpVersion, WorkloadKind},
};

use crate::{
    model::{FAMILIES, Model},
    nodes::NodeSlot,
    packet::Place,
    region::Region,
};

/// An end of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Each workload of a class, by position in [`Model::classes`].
    Class(usize),
    /// Each address of a region, by position in [`Model::outside`]; for a pod, those that are not of its own node.
    Outside(usize),
    /// For each pod, the node that it is on, where no host endpoint judges.
    OwnNode,
}

/// An end at one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spot {
    /// The address in this place of each workload of a class.
    Class {
        /// The class.
        class: usize,
        /// The place.
        slot: usize,
    },
    /// Each address of one family of a region.
    Outside {
        /// The region.
        region: usize,
        /// The family.
        version: IpVersion,
    },
    /// An address of the node that each workload of a class is on.
    OwnNode {
        /// The class.
        class: usize,
        /// The address, and what names it is taken to have.
        slot: usize,
    },
}

impl From<Spot> for End {
    fn from(spot: Spot) -> Self {
        match spot {
            Spot::Class { class, .. } => Self::Class(class),
            Spot::Outside { region, .. } => Self::Outside(region),
            Spot::OwnNode { .. } => Self::OwnNode,
        }
    }
}

impl Model {
    /// Every end; each class and each region once, and own nodes where pods have some.
    pub fn ends(&self) -> Vec<End> {
        let classes = (0..self.classes.len()).map(End::Class);
        let own_nodes = self.classes.iter().any(|class| !class.node_slots.is_empty());
        classes
            .chain((0..self.outside.len()).map(End::Outside))
            .chain(own_nodes.then_some(End::OwnNode))
            .collect()
    }

    /// The addresses of an end; none of own nodes, which depend on the other end ([`Self::node_spots`]).
    pub fn spots(&self, end: End) -> Vec<Spot> {
        match end {
            End::Class(class) => {
                let slots = self.classes.get(class).map_or(0, |class| class.slots.len());
                (0..slots).map(|slot| Spot::Class { class, slot }).collect()
            }
            End::Outside(region) => {
                let has = |version: &IpVersion| self.outside.get(region).is_some_and(|r| r.has(*version));
                FAMILIES
                    .into_iter()
                    .filter(has)
                    .map(|version| Spot::Outside { region, version })
                    .collect()
            }
            End::OwnNode => Vec::new(),
        }
    }

    /// The addresses of the node that the workloads of a class are on.
    pub(crate) fn node_spots(&self, class: usize) -> impl Iterator<Item = Spot> + use<> {
        let slots = self.classes.get(class).map_or(0, |class| class.node_slots.len());
        (0..slots).map(move |slot| Spot::OwnNode { class, slot })
    }

    /// Addresses of two ends that are of one family. Where all addresses of a region are of the node that the workloads are on, that
    /// node is the end.
    pub fn pairs(&self, from: End, to: End) -> Vec<(Spot, Spot)> {
        let spots = |end, other| match (end, other) {
            (End::OwnNode, End::Class(class)) => self.node_spots(class).collect(),
            (End::Class(_) | End::Outside(_) | End::OwnNode, _) => self.spots(end),
        };
        let meet = |from: Spot, to: Spot| match (from, to) {
            (Spot::Class { class, .. }, Spot::Outside { region, version })
            | (Spot::Outside { region, version }, Spot::Class { class, .. }) => {
                self.has_strangers(class, region, version)
            }
            // Names are those of destinations.
            (from @ Spot::OwnNode { .. }, _) => self.names_at(from).is_none(),
            _ => true,
        };
        let to_spots = spots(to, from);
        let mut pairs = Vec::new();
        for from in spots(from, to) {
            let same = to_spots
                .iter()
                .filter(|to| self.version(**to) == self.version(from));
            pairs.extend(same.filter(|to| meet(from, **to)).map(|to| (from, *to)));
        }
        pairs
    }

    /// Family of an address of an end.
    pub fn version(&self, spot: Spot) -> Option<IpVersion> {
        match spot {
            Spot::Class { class, slot } => Some(self.classes.get(class)?.slots.get(slot)?.version),
            Spot::Outside { version, .. } => Some(version),
            Spot::OwnNode { class, slot } => Some(self.node_slot(class, slot)?.version),
        }
    }

    /// Address of a member of a class in this place.
    pub fn address(&self, member: usize, slot: usize) -> Option<IpAddr> {
        let (class, place) = self.places.get(member)?;
        self.classes
            .get(*class)?
            .addresses
            .get(*place)?
            .get(slot)
            .copied()
    }

    /// Names that a spot's addresses are taken to have, by position in the sets of names.
    pub(crate) fn names_at(&self, spot: Spot) -> Option<usize> {
        match spot {
            Spot::Class { .. } => None,
            Spot::Outside { region, .. } => self.names_of(region),
            Spot::OwnNode { class, slot } => self.node_slot(class, slot)?.names,
        }
    }

    /// Address of the node that a member of a class is on, at a spot of own nodes of that class.
    pub(crate) fn node_address(&self, member: usize, slot: usize) -> Option<IpAddr> {
        let (class, place) = self.places.get(member)?;
        let at = self.node_slot(*class, slot)?.place;
        let addresses = self.classes.get(*class)?.node_addresses.get(*place)?;
        addresses.get(at).copied()
    }

    /// Where a node is, by its name, or a host endpoint by one that no node has: at the addresses that the host endpoint expects,
    /// or at all that the node is known to have, IPv4 first and of each family the primary one. Nothing if there is neither.
    pub fn host(&self, name: &str) -> Option<Vec<Place>> {
        let members = || self.cluster.members.iter().enumerate();
        let is_node =
            self.cluster.nodes.contains_key(name) || members().any(|(_, member)| member.node == name);
        let hosts = members().filter(|(_, member)| member.workload.kind == WorkloadKind::HostEndpoint);
        let found = match is_node {
            true => hosts
                .filter(|(_, host)| host.node == name)
                .min_by_key(|(_, host)| host.host_order()),
            false => hosts.into_iter().find(|(_, host)| host.workload.name == name),
        };
        if found.is_none() && !is_node {
            return None;
        }
        let node = found.map_or(name, |(_, host)| host.node.as_str());
        let expected = found.map(|(_, host)| host.addresses_in_order());
        let expected = expected.filter(|addresses| !addresses.is_empty());
        let addresses = expected.or_else(|| self.cluster.addresses_of_node(node));
        let at = |address| Place::new(found.map(|(position, _)| position), address);
        Some(addresses.into_iter().flatten().map(at).collect())
    }

    /// The workload or the address alone that is at an address.
    pub fn place(&self, address: IpAddr) -> Place {
        Place::new(self.owner(address), address)
    }

    /// Whether flows from one end to the other are judged, by two different workloads or by one. Names are those of
    /// destinations.
    pub fn judges(&self, from: End, to: End) -> bool {
        match (from, to) {
            (End::OwnNode, _) | (End::Outside(_), End::Outside(_) | End::OwnNode) => false,
            (End::Outside(of), End::Class(_)) if self.names_of(of).is_some() => false,
            (End::Outside(region), End::Class(class)) | (End::Class(class), End::Outside(region)) => {
                let mut families = FAMILIES.into_iter();
                families.any(|version| self.has_strangers(class, region, version))
            }
            (End::Class(class), End::OwnNode) => self.has_own_node(class),
            (End::Class(from), End::Class(to)) if from == to => self
                .classes
                .get(from)
                .is_some_and(|class| class.members.len() > 1),
            _ => !self.comes_from_own_node(from, to),
        }
    }

    /// Whether the one is the node that the pods of the other are on, or host endpoints of it: what it sends always passes.
    pub(crate) fn comes_from_own_node(&self, from: End, to: End) -> bool {
        match (from, to) {
            (End::Class(host), End::Class(pod)) => self.is_node_of(host, pod),
            (End::OwnNode, End::Class(pod)) => self.has_own_node(pod),
            (End::Class(_) | End::Outside(_) | End::OwnNode, _) => false,
        }
    }

    /// An address of a region that is not of the node that a workload is on.
    pub(crate) fn stranger(&self, member: usize, region: &Region, version: IpVersion) -> Option<IpAddr> {
        let (class, place) = self.places.get(member)?;
        self.classes.get(*class)?.stranger(*place, region, version)
    }

    /// Whether an address is of the node that a workload is on, where no host endpoint judges.
    pub(crate) fn is_own_node(&self, member: usize, address: IpAddr) -> bool {
        let place = self.places.get(member);
        let class = place.and_then(|(class, place)| Some((self.classes.get(*class)?, *place)));
        class.is_some_and(|(class, place)| class.nodes_of(place).contains(&address))
    }

    pub(super) fn node_slot(&self, class: usize, slot: usize) -> Option<&NodeSlot> {
        self.classes.get(class)?.node_slots.get(slot)
    }

    /// Whether one class is of host endpoints of the node that the pods of the other are on.
    pub(super) fn is_node_of(&self, host: usize, pod: usize) -> bool {
        let pair = self.first(host).zip(self.first(pod));
        pair.is_some_and(|(host, pod)| host.is_node_of(pod))
    }

    fn has_own_node(&self, class: usize) -> bool {
        self.classes
            .get(class)
            .is_some_and(|class| !class.node_slots.is_empty())
    }

    /// Whether addresses of a region are not of the node that a workload of a class is on.
    fn has_strangers(&self, class: usize, region: usize, version: IpVersion) -> bool {
        let found = self.classes.get(class).zip(self.outside.get(region));
        found.is_some_and(|(class, region)| {
            let mut places = 0..class.members.len();
            places.any(|place| class.stranger(place, region, version).is_some())
        })
    }

    fn first(&self, class: usize) -> Option<&Member> {
        self.member(*self.classes.get(class)?.members.first()?)
    }
}
