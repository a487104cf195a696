//! Who has which address: what turns the address in a packet into the end that rules speak about.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use api::host_ports::HostPort;
use ipnet::IpNet;

use crate::{
    decide::{Flow, Side, Standing, Translated},
    policy::{DomainMatch, Workload, WorkloadKind},
    tables::{Direction, EndpointId, Packet},
};

/// Everything that has an address, seen from one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cluster {
    /// All pods and host endpoints, of this and other nodes.
    pub members: Vec<Member>,
    /// Labelled lists of addresses.
    pub sets: Vec<NetworkSet>,
    /// Addresses of the node that the cluster is seen from.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Where that node listens with others: groups, and broadcasts of its networks.
    pub host_groups: BTreeSet<IpNet>,
    /// Ports of that node that lead to its pods.
    pub translations: Vec<Translation>,
    /// Addresses of each node, for members that say which node they are on.
    pub nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Of each node of which an object tells addresses, the [`primary`] ones.
    pub primary: BTreeMap<String, Vec<IpAddr>>,
    /// Pods on the network of their node, by namespace and name. No policy is about them; as ends of flows they are their
    /// node.
    pub node_pods: BTreeMap<(String, String), NodePod>,
    /// Names that the trusted resolver last gave for an address, in lower case without the final dot.
    pub names: BTreeMap<IpAddr, BTreeSet<String>>,
}

/// A workload and where it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Member {
    /// The workload.
    pub workload: Workload,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Of a host endpoint, the [`primary`] ones.
    pub primary: Vec<IpAddr>,
    /// Its endpoint, if it is on this node.
    pub endpoint: Option<EndpointId>,
    /// Of a host endpoint on this node: judges flows that the node forwards.
    pub forwarded: Option<EndpointId>,
    /// Of a host endpoint on this node: judges packets before flows are known.
    pub untracked: Option<EndpointId>,
    /// The node it is on; empty if that is not known.
    pub node: String,
    /// Ports of that node that lead to it.
    pub host_ports: Vec<HostPort>,
    /// Of a host endpoint: which interfaces of the node it is for.
    pub interface: HostInterface,
}

/// A port of a node that leads to one of its pods: the node gives what comes there the pod's address and port, and so
/// forwards it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// IP protocol number.
    pub protocol: u8,
    /// The one address of the node that has the port; absent means all of the family.
    pub at: Option<IpAddr>,
    /// The node's port.
    pub port: u16,
    /// The pod.
    pub workload: Arc<Workload>,
    /// The pod's address. It is the node that sends there, and that gave it to the pod: it is nobody else's, whoever claims it.
    pub address: IpAddr,
    /// The pod's port.
    pub workload_port: u16,
}

/// A pod without a network of its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodePod {
    /// The node it is on; empty if that is not known.
    pub node: String,
    /// Addresses of that node which it says are its own.
    pub addresses: BTreeSet<IpAddr>,
}

/// How a host endpoint says which interfaces it is for. Of several for one interface the first in this order judges there,
/// and of several alike the first by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostInterface {
    /// By the interface's name.
    #[default]
    Named,
    /// By the addresses that it expects there.
    ByAddress,
    /// All that no other host endpoint is for: `*`.
    Every,
}

/// A NetworkSet or GlobalNetworkSet: selectors find it like a workload, at each of its addresses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NetworkSet {
    /// Name and labels.
    pub workload: Workload,
    /// Its addresses.
    pub nets: Vec<IpNet>,
    /// Addresses with one of these names belong to it too, for flows that leave an endpoint.
    pub domains: Vec<DomainMatch>,
}

/// Of addresses in the order in which they are stated, the first of each family: whoever has them is meant there where it is
/// given by name.
pub fn primary(stated: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut primary: Vec<IpAddr> = Vec::new();
    for address in stated {
        if !primary.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            primary.push(address);
        }
    }
    primary
}

impl Cluster {
    /// Everything that selectors can find at `address`. Sets that hold it by name alone count for the far end
    /// of a flow that leaves an endpoint.
    pub fn known(&self, address: IpAddr, direction: Direction) -> Vec<&Workload> {
        // The node's own addresses are the node's, whichever pod claims them.
        let of_node = self.host_addresses.contains(&address);
        let claims = self.members.iter().filter(|member| {
            member.addresses.contains(&address)
                && (!of_node || member.workload.kind == WorkloadKind::HostEndpoint)
        });
        let workloads = claims.map(|member| &member.workload);
        let named = |set: &NetworkSet| direction == Direction::Egress && self.is_named(address, &set.domains);
        let sets = self.sets.iter().filter(|set| set.holds(address) || named(set));
        workloads.chain(sets.map(|set| &set.workload)).collect()
    }

    /// Whether the resolver gave `address` a name that one of `domains` matches.
    pub fn is_named(&self, address: IpAddr, domains: &[DomainMatch]) -> bool {
        let names = self.names.get(&address);
        names.is_some_and(|names| names.iter().any(|name| domains.iter().any(|d| d.matches(name))))
    }

    /// What `address` is to `member`, apart from labels.
    pub fn standing(&self, member: &Member, address: IpAddr) -> Standing {
        if self.host_addresses.contains(&address) {
            return match member.workload.kind {
                WorkloadKind::HostEndpoint if member.endpoint.is_some() => Standing::Itself,
                _ => Standing::OwnNode,
            };
        }
        let mut claims = self.members.iter().filter(|m| m.addresses.contains(&address));
        let first = claims.next();
        // Several interfaces of one node may have its address.
        let second = claims.find(|second| !first.is_some_and(|first| first.shares_node(second)));
        let node = self
            .nodes
            .iter()
            .find(|(_, addresses)| addresses.contains(&address));
        // A host endpoint has its node's address; a pod that claims it as well is contradicted.
        let of_pod = first.is_some_and(|member| member.workload.kind == WorkloadKind::Pod);
        if second.is_some() || (of_pod && node.is_some()) {
            return Standing::Contested;
        }
        if self.in_host_group(&address.into()) {
            return Standing::Group;
        }
        // A host endpoint is its node, which need not have what somebody expects of it.
        if member.workload.kind == WorkloadKind::Pod && member.addresses.contains(&address) {
            return Standing::Itself;
        }
        match node {
            Some((name, _)) if *name == member.node => match member.workload.kind {
                WorkloadKind::HostEndpoint => Standing::Itself,
                WorkloadKind::Pod | WorkloadKind::NetworkSet => Standing::OwnNode,
            },
            _ => Standing::Other,
        }
    }

    /// Addresses by which nobody is known: several claim them, or a pod claims what is a node's.
    pub fn contested(&self) -> BTreeSet<IpAddr> {
        let of_nodes: BTreeSet<&IpAddr> = self.nodes.values().flatten().collect();
        let mut first: BTreeMap<IpAddr, &Member> = BTreeMap::new();
        let mut contested = BTreeSet::new();
        for member in &self.members {
            let is_pod = member.workload.kind == WorkloadKind::Pod;
            for address in &member.addresses {
                let is_shared = match first.entry(*address) {
                    Entry::Vacant(entry) => {
                        entry.insert(member);
                        true
                    }
                    Entry::Occupied(entry) => entry.get().shares_node(member),
                };
                if !is_shared || (is_pod && of_nodes.contains(address)) {
                    contested.insert(*address);
                }
            }
        }
        // The node that the cluster is seen from knows its own.
        contested.retain(|address| !self.host_addresses.contains(address));
        contested
    }

    /// Addresses of a node, in the order in which it is meant where it is given by name: IPv4 first, and of each family the
    /// primary one. Nothing if there is no such node.
    pub fn addresses_of_node(&self, node: &str) -> Option<Vec<IpAddr>> {
        let primary = self.primary.get(node).map(Vec::as_slice);
        Some(in_order(self.nodes.get(node)?, primary.unwrap_or_default()))
    }

    /// Who judges for nodes at addresses that no member has: of each node's host endpoints the first.
    pub fn stand_ins(&self) -> BTreeMap<IpAddr, usize> {
        let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
        for (position, member) in self.members.iter().enumerate() {
            if member.workload.kind == WorkloadKind::HostEndpoint && !member.node.is_empty() {
                let first = hosts.entry(&member.node).or_insert(position);
                let known = self.members.get(*first);
                if known.is_some_and(|known| member.host_order() < known.host_order()) {
                    *first = position;
                }
            }
        }
        let taken: BTreeSet<&IpAddr> = self.members.iter().flat_map(|member| &member.addresses).collect();
        let mut found = BTreeMap::new();
        // Of several nodes that say they have an address it is the first one's, and nobody judges if that has no host endpoint.
        for (node, addresses) in &self.nodes {
            for address in addresses.iter().filter(|address| !taken.contains(address)) {
                found
                    .entry(*address)
                    .or_insert_with(|| hosts.get(node.as_str()).copied());
            }
        }
        let judged = found
            .into_iter()
            .filter_map(|(address, host)| Some((address, host?)));
        judged.collect()
    }

    /// Whether all of `net` is where the node listens with others.
    pub fn in_host_group(&self, net: &IpNet) -> bool {
        self.host_groups.iter().any(|group| group.contains(net))
    }

    /// The flow that `packet` would start at the interface of `member`.
    pub fn flow<'a>(&'a self, member: &'a Member, packet: &Packet) -> Flow<'a> {
        Flow {
            direction: packet.direction,
            own: match member.workload.owns_any() {
                true => self.inside(packet.inside),
                false => self.own(member, packet.peer.is_ipv4()),
            },
            peer: Side {
                address: Some(packet.peer),
                known: self.known(packet.peer, packet.direction),
                is_unknown: false,
            },
            names: self.names.get(&packet.peer),
            standing: self.standing(member, packet.peer),
            protocol: packet.protocol,
            source_port: packet.source_port,
            port: packet.port,
            translated: self.translated(member, packet),
            leads_by_address: self.leads(member, packet) && self.translations.iter().any(|t| t.at.is_some()),
        }
    }

    /// What becomes of the destination of a packet to the node that the cluster is seen from.
    fn translated<'a>(&'a self, member: &'a Member, packet: &Packet) -> Option<Translated<'a>> {
        if !self.leads(member, packet) {
            return None;
        }
        let found = self.translations.iter().find(|translation| {
            translation.protocol == packet.protocol
                && translation.port == packet.port
                && translation.address.is_ipv4() == packet.peer.is_ipv4()
                && translation.at.is_none_or(|at| packet.inside == Some(at))
        })?;
        let sets = self.sets.iter().filter(|set| set.holds(found.address));
        Some(Translated {
            node: self.own(member, packet.peer.is_ipv4()),
            own: Side {
                address: Some(found.address),
                known: std::iter::once(&*found.workload)
                    .chain(sets.map(|set| &set.workload))
                    .collect(),
                is_unknown: false,
            },
            port: found.workload_port,
        })
    }

    /// Whether ports of the node may lead packets like this one to pods.
    fn leads(&self, member: &Member, packet: &Packet) -> bool {
        let is_own_host = member.workload.kind == WorkloadKind::HostEndpoint && member.endpoint.is_some();
        is_own_host && packet.direction == Direction::Ingress
    }

    /// The endpoint itself, at its own end of a flow.
    fn own<'a>(&'a self, member: &'a Member, is_ipv4: bool) -> Side<'a> {
        let of_family = |address: &&IpAddr| address.is_ipv4() == is_ipv4;
        let address = member.addresses.iter().find(of_family).copied();
        let holds = |set: &&NetworkSet| address.is_some_and(|address| set.holds(address));
        let sets = self.sets.iter().filter(holds);
        Side {
            address,
            known: std::iter::once(&member.workload)
                .chain(sets.map(|set| &set.workload))
                .collect(),
            is_unknown: false,
        }
    }

    /// Whoever has `address`, at the own end of a flow at a host endpoint. Sets hold it by address alone: names are learned
    /// of what is asked for, which is the other end.
    fn inside(&self, address: Option<IpAddr>) -> Side<'_> {
        let nobody = Member::default();
        let is_sure = |address: &IpAddr| self.standing(&nobody, *address) != Standing::Contested;
        let known = address.filter(is_sure);
        Side {
            address,
            known: known.map_or_else(Vec::new, |address| self.known(address, Direction::Ingress)),
            is_unknown: known.is_none(),
        }
    }
}

impl Member {
    /// Whether this is a host endpoint of the node that `pod` is on. What the two send each other crosses the pod's link, to
    /// which no host endpoint is attached, not even one for `*`: it is judged at the pod alone.
    pub fn is_node_of(&self, pod: &Self) -> bool {
        self.workload.kind == WorkloadKind::HostEndpoint
            && pod.workload.kind == WorkloadKind::Pod
            && !self.node.is_empty()
            && self.node == pod.node
    }

    /// Whether both are host endpoints of one node, which may share addresses.
    pub fn shares_node(&self, other: &Self) -> bool {
        let host = |member: &Self| member.workload.kind == WorkloadKind::HostEndpoint;
        host(self) && host(other) && !self.node.is_empty() && self.node == other.node
    }

    /// Its addresses, in the order in which it is meant where it is given by name: IPv4 first, and of each family the primary
    /// one.
    pub fn addresses_in_order(&self) -> Vec<IpAddr> {
        in_order(&self.addresses, &self.primary)
    }

    /// Order of the host endpoints of one node, of which the first speaks for the node, and for an address that several
    /// of them have. Where both have addresses it is the order in which interfaces get theirs; one with addresses says most
    /// about the node's traffic.
    pub fn host_order(&self) -> (bool, bool, HostInterface, &str) {
        let every = self.interface == HostInterface::Every;
        let name = self.workload.name.as_str();
        (every, self.addresses.is_empty(), self.interface, name)
    }
}

impl Translation {
    /// What of these members leads to them, on the node that the cluster is seen from.
    pub fn of<'m>(members: impl IntoIterator<Item = &'m Member>) -> Vec<Self> {
        let publish = |member: &&Member| member.endpoint.is_some() && !member.host_ports.is_empty();
        let local = members.into_iter().filter(publish);
        local.flat_map(Self::of_member).collect()
    }

    /// A port leads to the first address of each family, of those that the port is of.
    fn of_member(member: &Member) -> Vec<Self> {
        let workload = Arc::new(member.workload.clone());
        let first = |v4: bool| member.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        let addresses: Vec<IpAddr> = [true, false].into_iter().filter_map(first).collect();
        let of_port = |port: &HostPort| {
            let at = port.host_ip;
            let of_family = |a: &&IpAddr| at.is_none_or(|at| at.is_ipv4() == a.is_ipv4());
            let ends = addresses.iter().filter(of_family);
            let made = ends.map(|address| Self {
                protocol: port.protocol.number(),
                at,
                port: port.port,
                workload: Arc::clone(&workload),
                address: *address,
                workload_port: port.container_port,
            });
            made.collect::<Vec<_>>()
        };
        member.host_ports.iter().flat_map(of_port).collect()
    }
}

impl NetworkSet {
    /// Whether `address` is one of the set's.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.nets.iter().any(|net| net.contains(&address))
    }
}

/// IPv4 before IPv6, primary addresses before others, and those in order of number.
fn in_order(addresses: &BTreeSet<IpAddr>, primary: &[IpAddr]) -> Vec<IpAddr> {
    let mut ordered: Vec<IpAddr> = addresses.iter().copied().collect();
    ordered.sort_by_key(|address| (address.is_ipv6(), !primary.contains(address)));
    ordered
}
