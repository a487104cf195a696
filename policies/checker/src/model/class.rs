//! Workloads that policy cannot tell apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use policies_ir::{
    cluster::Cluster,
    policy::{IpVersion, PolicySet, WorkloadKind},
    tables::{EndpointId, IdentityId},
};

use crate::{
    build::identity_of,
    classes::{Classified, classify},
    nodes::{NodeSlot, Nodes},
    region::{Region, version},
};

/// Workloads that policy cannot tell apart.
#[derive(Debug, Clone)]
pub struct Class {
    /// Positions in the cluster's members, in order of name.
    pub members: Vec<usize>,
    /// Kinds of addresses that each member has.
    pub(super) slots: Vec<Slot>,
    /// For each member, its addresses in the order of `slots`.
    pub(super) addresses: Vec<Vec<IpAddr>>,
    /// What the class says about the node that a member is on.
    pub(super) node_slots: Vec<NodeSlot>,
    /// For each member, the addresses of that node, in the order of the places of `node_slots`.
    pub(super) node_addresses: Vec<Vec<IpAddr>>,
}

/// An address that each member of a class has, as others see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) version: IpVersion,
    /// Of the first member, for whose own policies it is the member itself.
    pub(super) identity: IdentityId,
    /// Of the other members.
    pub(super) sibling: IdentityId,
}

impl Class {
    /// Addresses of the member in this place, in the order of its spots.
    pub fn addresses(&self, place: usize) -> &[IpAddr] {
        self.addresses.get(place).map(Vec::as_slice).unwrap_or_default()
    }

    /// Addresses of the node that the member in this place is on.
    pub(crate) fn nodes_of(&self, place: usize) -> &[IpAddr] {
        self.node_addresses
            .get(place)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// An address of a region that is not of the node that the member in this place is on.
    pub(super) fn stranger(&self, place: usize, region: &Region, version: IpVersion) -> Option<IpAddr> {
        let own = self.nodes_of(place);
        let example = region.example(version)?;
        if !own.contains(&example) {
            return Some(example);
        }
        let own = Region::of(own.iter().copied().map(IpNet::from));
        region.subtract(&own).example(version)
    }

    pub(super) fn new(
        class: Classified,
        identities: &BTreeMap<IpNet, IdentityId>,
        node_slots: Vec<NodeSlot>,
    ) -> Self {
        let of = |place: usize, slot: usize| {
            let address = class.addresses.get(place)?.get(slot)?;
            identity_of(identities, *address)
        };
        let first = class.addresses.first().map(Vec::as_slice).unwrap_or_default();
        let slots = first.iter().enumerate().map(|(slot, address)| {
            // Number 0 is nobody's, and denied.
            let identity = of(0, slot).unwrap_or(IdentityId(0));
            Slot {
                version: version(*address),
                identity,
                sibling: of(1, slot).unwrap_or(identity),
            }
        });
        Self {
            slots: slots.collect(),
            members: class.members,
            addresses: class.addresses,
            node_slots,
            node_addresses: class.node_addresses,
        }
    }
}

/// The classes of a cluster, and the cluster in which the first of each has the number of its class, from 1, and which tells no
/// nodes apart but those that host endpoints speak for.
pub(super) fn one_of_each_class(
    cluster: &Cluster,
    addresses: &[BTreeSet<IpAddr>],
    nodes: &Nodes,
    policies: &PolicySet,
) -> (Vec<Classified>, Cluster) {
    let mut compiled = cluster.clone();
    for member in &mut compiled.members {
        member.endpoint = None;
        if member.workload.kind == WorkloadKind::Pod && !nodes.are_judged(&member.node) {
            member.node.clear();
        }
    }
    // What is no member's matters to pods of that node alone. Addresses of some thousand nodes would be as many cells for nothing.
    let claimed: BTreeSet<IpAddr> = cluster
        .members
        .iter()
        .flat_map(|member| member.addresses.iter().copied())
        .collect();
    for (_, addresses) in compiled
        .nodes
        .iter_mut()
        .filter(|(node, _)| !nodes.are_judged(node))
    {
        addresses.retain(|address| claimed.contains(address));
    }
    let own: Vec<&BTreeSet<IpAddr>> = cluster.members.iter().map(|member| nodes.own(member)).collect();
    let classes = classify(&compiled, addresses, &own, policies);
    for (number, class) in (1..).zip(&classes) {
        let first = class.members.first();
        if let Some(member) = first.and_then(|first| compiled.members.get_mut(*first)) {
            member.endpoint = Some(EndpointId(number));
        }
    }
    (classes, compiled)
}
