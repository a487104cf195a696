//! Ends of flows: by name or by address, and who judges between two of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use policies_ir::{
    cluster::{Cluster, Member, NodePod},
    policy::{ICMPV6, WorkloadKind},
};

/// One end of a flow, as it is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum End {
    /// A pod, which on the network of its node is that node.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A node, by name: its host endpoint, if it has one. Or a host endpoint, by a name that no node has.
    Host(String),
    /// Whoever has the address.
    Address(IpAddr),
}

/// Why a flow cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// No such pod.
    #[error("there is no pod {namespace}/{name}")]
    UnknownPod {
        /// The namespace asked for.
        namespace: String,
        /// The name asked for.
        name: String,
    },
    /// No such node, and no such host endpoint.
    #[error(
        "there is no node or host endpoint {0}: no Node and no HostEndpoint is called so, and no pod is on it"
    )]
    UnknownHost(String),
    /// The end has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// One end is IPv4 only, the other IPv6 only.
    #[error("the two ends have no address family in common")]
    NoCommonFamily,
}

/// An end, found.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Position of the endpoint that judges there.
    pub(crate) member: Option<usize>,
    /// It was given by its address.
    by_address: bool,
    /// It was given by an address by which nobody is known: whoever it is may neither send nor receive with that.
    pub(crate) is_contested: bool,
    /// In the order in which they are meant.
    addresses: Vec<IpAddr>,
}

/// Members by what they are asked for.
pub(crate) struct Ends<'a> {
    cluster: &'a Cluster,
    pods: HashMap<(&'a str, &'a str), usize>,
    hosts: BTreeMap<&'a str, Vec<usize>>,
    by_address: HashMap<IpAddr, usize>,
    contested: BTreeSet<IpAddr>,
}

impl<'a> Ends<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        let mut ends = Self {
            cluster,
            pods: HashMap::new(),
            hosts: BTreeMap::new(),
            by_address: cluster.stand_ins().into_iter().collect(),
            contested: cluster.contested(),
        };
        for (position, member) in cluster.members.iter().enumerate() {
            let workload = &member.workload;
            match workload.kind {
                WorkloadKind::HostEndpoint => ends.hosts.entry(&member.node).or_default().push(position),
                WorkloadKind::Pod | WorkloadKind::NetworkSet => {
                    ends.pods
                        .insert((workload.namespace.as_str(), workload.name.as_str()), position);
                }
            }
            // Host endpoints of one node may share an address, where one of them judges.
            let comes_before = |known: usize| {
                let known = cluster.members.get(known);
                known.is_some_and(|known| {
                    member.shares_node(known) && member.host_order() < known.host_order()
                })
            };
            for address in member.addresses.difference(&ends.contested) {
                let owner = ends.by_address.entry(*address).or_insert(position);
                if comes_before(*owner) {
                    *owner = position;
                }
            }
        }
        for hosts in ends.hosts.values_mut() {
            hosts.sort_by_key(|position| cluster.members.get(*position).map(Member::host_order));
        }
        ends
    }

    pub(crate) fn resolve(&self, end: &End) -> Result<Resolved, FlowError> {
        match end {
            End::Pod { namespace, name } => {
                let found = self.pods.get(&(namespace.as_str(), name.as_str())).copied();
                let member = found.and_then(|position| Some((position, self.cluster.members.get(position)?)));
                let Some((position, member)) = member else {
                    let key = (namespace.clone(), name.clone());
                    if let Some(pod) = self.cluster.node_pods.get(&key) {
                        let at_node = self.at_node(pod);
                        return at_node
                            .ok_or_else(|| FlowError::NoAddress(format!("pod {namespace}/{name}")));
                    }
                    let (namespace, name) = key;
                    return Err(FlowError::UnknownPod { namespace, name });
                };
                if member.addresses.is_empty() {
                    return Err(FlowError::NoAddress(format!("pod {namespace}/{name}")));
                }
                Ok(resolved(position, member))
            }
            End::Host(name) => {
                let (position, of_node) = self
                    .host(name)
                    .ok_or_else(|| FlowError::UnknownHost(name.clone()))?;
                let of_member = position
                    .and_then(|position| self.cluster.members.get(position))
                    .map(Member::addresses_in_order)
                    .filter(|addresses| !addresses.is_empty());
                let addresses = of_member.unwrap_or(of_node);
                if addresses.is_empty() {
                    return Err(FlowError::NoAddress(format!("host {name}")));
                }
                Ok(Resolved {
                    member: position,
                    by_address: false,
                    is_contested: false,
                    addresses,
                })
            }
            End::Address(address) => {
                let address = address.to_canonical();
                Ok(Resolved {
                    member: self.by_address.get(&address).copied(),
                    by_address: true,
                    is_contested: self.contested.contains(&address),
                    addresses: vec![address],
                })
            }
        }
    }

    /// The node of a pod on its network: at the addresses that the pod says it has there, or at the node's.
    fn at_node(&self, pod: &NodePod) -> Option<Resolved> {
        let addresses = match pod.addresses.is_empty() {
            true => self.cluster.addresses_of_node(&pod.node)?,
            false => pod.addresses.iter().copied().collect(),
        };
        let owned = addresses
            .iter()
            .find_map(|address| self.by_address.get(address).copied());
        let of_node = || self.hosts.get(pod.node.as_str())?.first().copied();
        (!addresses.is_empty()).then(|| Resolved {
            member: owned.or_else(of_node),
            by_address: false,
            is_contested: false,
            addresses,
        })
    }

    /// The endpoint that judges at `own` what comes from or goes to `peer`: all but a host endpoint where `peer` is a pod
    /// of its node. What a pod may send there `defaultEndpointToHostAction` says, and the pod's own policies.
    pub(crate) fn judging(&self, own: &Resolved, peer: &Resolved) -> Option<usize> {
        let member = |end: &Resolved| self.cluster.members.get(end.member?);
        let unseen = |(own, peer): (&Member, &Member)| own.is_node_of(peer);
        own.member
            .filter(|_| !member(own).zip(member(peer)).is_some_and(unseen))
    }

    /// The host endpoint that judges for a node, or the one of this name, and the addresses of the node.
    fn host(&self, name: &str) -> Option<(Option<usize>, Vec<IpAddr>)> {
        if let Some(of_node) = self.cluster.addresses_of_node(name) {
            let hosts = self.hosts.get(name);
            return Some((hosts.and_then(|hosts| hosts.first()).copied(), of_node));
        }
        let named = |position: &&usize| {
            let member = self.cluster.members.get(**position);
            member.is_some_and(|member| member.workload.name == name)
        };
        let position = *self.hosts.values().flatten().find(named)?;
        let node = &self.cluster.members.get(position)?.node;
        Some((Some(position), self.cluster.addresses_of_node(node)?))
    }
}

/// The pair of addresses that the flow is between: of one family, IPv4 first unless the protocol is ICMPv6, and of that the
/// first of each end. An end that is given by its address alone decides the family, also if the other has none of it: what
/// is asked about is whoever has the name, with an address that no object tells.
pub(crate) fn addresses(
    source: &Resolved,
    destination: &Resolved,
    protocol: u8,
) -> Result<(IpAddr, IpAddr), FlowError> {
    let pairs = source
        .addresses
        .iter()
        .flat_map(|from| destination.addresses.iter().map(move |to| (*from, *to)));
    let prefers_v6 = protocol == ICMPV6;
    let same_family = |(from, to): &(IpAddr, IpAddr)| from.is_ipv4() == to.is_ipv4();
    let any_family = source.by_address || destination.by_address;
    pairs
        .filter(|pair| any_family || same_family(pair))
        .min_by_key(|pair| (!same_family(pair), pair.0.is_ipv4() == prefers_v6))
        .ok_or(FlowError::NoCommonFamily)
}

fn resolved(position: usize, member: &Member) -> Resolved {
    Resolved {
        member: Some(position),
        by_address: false,
        is_contested: false,
        addresses: member.addresses_in_order(),
    }
}
