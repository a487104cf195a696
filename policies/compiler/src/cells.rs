//! Classes of addresses: which peer conditions hold for which addresses.
//!
//! The CIDRs of all rules, the pods' and the node's addresses cut the address space into cells: a cell is one
//! of these prefixes without the longer ones inside it. No rule can tell two addresses of one cell apart,
//! because each CIDR of a rule either holds a cell or does not touch it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use api::selector::Labels;
use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member},
    policy::{IpVersion, NamedPort, PeerMatch, Workload},
    tables::EndpointId,
};

/// Number of a distinct [`PeerMatch`].
pub(crate) type MatcherId = usize;

/// The distinct peer conditions of a node's rules.
#[derive(Default)]
pub(crate) struct Matchers<'a> {
    matchers: Vec<&'a PeerMatch>,
    ids: HashMap<&'a PeerMatch, MatcherId>,
}

/// All that verdicts about an address may depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Signature {
    /// Who has the address.
    pub(crate) owner: Owner,
    /// Conditions that hold, ascending.
    pub(crate) matchers: Vec<MatcherId>,
    /// Named ports of the owner that rules ask for, ascending.
    pub(crate) named_ports: Vec<NamedPort>,
}

/// Who has an address, as far as it matters beyond the conditions of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// Several workloads claim it.
    Contested,
    /// The node.
    Node,
    /// An endpoint of this node.
    Endpoint(EndpointId),
    /// Anyone else.
    Other,
}

impl<'a> Matchers<'a> {
    /// The number of `matcher`.
    pub(crate) fn id(&mut self, matcher: &'a PeerMatch) -> MatcherId {
        *self.ids.entry(matcher).or_insert_with(|| {
            self.matchers.push(matcher);
            self.matchers.len() - 1
        })
    }

    /// Cuts the address space into cells and says what holds in each. The default prefix of each family is
    /// always among them, so every address is in a cell.
    ///
    /// `port_names` are the names that egress rules ask for.
    pub(crate) fn cells(&self, cluster: &Cluster, port_names: &BTreeSet<&str>) -> BTreeMap<IpNet, Signature> {
        let index = Index::new(&self.matchers);
        let owners = owners(cluster);
        let defaults = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        let mut cells: BTreeSet<IpNet> = defaults
            .into_iter()
            .filter_map(|address| IpNet::new(address, 0).ok())
            .collect();
        for matcher in &self.matchers {
            cells.extend(matcher.nets.iter().chain(&matcher.not_nets).map(IpNet::trunc));
        }
        cells.extend(owners.keys().copied().map(IpNet::from));

        let mut selected_by_attributes = HashMap::new();
        // Prefixes sort before what they hold, so those that hold the current cell are always on the stack.
        let mut holders: Vec<IpNet> = Vec::new();
        let mut signatures = BTreeMap::new();
        for cell in cells {
            while holders.last().is_some_and(|holder| !holder.contains(&cell)) {
                holders.pop();
            }
            holders.push(cell);
            let is_address = cell.prefix_len() == cell.max_prefix_len();
            let owner = owners.get(&cell.addr()).filter(|_| is_address);
            let workload = owner
                .and_then(|(_, member)| *member)
                .map(|member| &member.workload);
            let selected = selected_by_attributes
                .entry(workload.map(attributes))
                .or_insert_with(|| index.anywhere(workload));
            let mut matchers = selected.clone();
            matchers.extend(index.somewhere(&holders, cell, workload));
            matchers.sort_unstable();
            matchers.dedup();
            let asked = |port: &&NamedPort| port_names.contains(port.name.as_str());
            let ports = workload
                .into_iter()
                .flat_map(|w| &w.named_ports)
                .filter(asked)
                .cloned();
            let named_ports: BTreeSet<NamedPort> = ports.collect();
            let owner = owner.map_or(Owner::Other, |(owner, _)| *owner);
            let signature = Signature {
                owner,
                matchers,
                named_ports: named_ports.into_iter().collect(),
            };
            signatures.insert(cell, signature);
        }
        signatures
    }
}

/// The conditions, sorted by how they can be found without trying each on each cell.
struct Index<'a> {
    matchers: &'a [&'a PeerMatch],
    /// Depend on the workload alone.
    addressless: Vec<MatcherId>,
    /// Depend on the address, but not on being inside a CIDR.
    open: Vec<MatcherId>,
    /// Hold only inside this CIDR.
    by_net: HashMap<IpNet, Vec<MatcherId>>,
}

impl<'a> Index<'a> {
    fn new(matchers: &'a [&'a PeerMatch]) -> Self {
        let mut index = Self {
            matchers,
            addressless: Vec::new(),
            open: Vec::new(),
            by_net: HashMap::new(),
        };
        for (id, matcher) in matchers.iter().enumerate() {
            for net in &matcher.nets {
                index.by_net.entry(net.trunc()).or_default().push(id);
            }
            if matcher.nets.is_empty() && matcher.not_nets.is_empty() && matcher.ip_version.is_none() {
                index.addressless.push(id);
            } else if matcher.nets.is_empty() {
                index.open.push(id);
            }
        }
        index
    }

    /// Conditions that do not depend on the address and hold for `workload`.
    fn anywhere(&self, workload: Option<&Workload>) -> Vec<MatcherId> {
        let holds = |id: &MatcherId| self.matchers.get(*id).is_some_and(|m| selects(m, workload));
        self.addressless.iter().copied().filter(holds).collect()
    }

    /// Conditions that depend on the address and hold for `workload` in `cell`.
    fn somewhere(
        &self,
        holders: &[IpNet],
        cell: IpNet,
        workload: Option<&Workload>,
    ) -> impl Iterator<Item = MatcherId> {
        let inside = holders.iter().filter_map(|net| self.by_net.get(net)).flatten();
        let holds = move |id: &MatcherId| {
            self.matchers
                .get(*id)
                .is_some_and(|m| holds_in(m, cell) && selects(m, workload))
        };
        self.open.iter().chain(inside).copied().filter(holds)
    }
}

/// Whether the conditions on the address hold in all of `cell`, given that the CIDRs of `nets` do.
fn holds_in(matcher: &PeerMatch, cell: IpNet) -> bool {
    let is_ipv4 = cell.addr().is_ipv4();
    let version = if is_ipv4 { IpVersion::V4 } else { IpVersion::V6 };
    let mut excluding = matcher
        .not_nets
        .iter()
        .filter(|net| net.addr().is_ipv4() == is_ipv4)
        .peekable();
    matcher.ip_version.is_none_or(|v| v == version)
        && (matcher.not_nets.is_empty() || excluding.peek().is_some())
        && !excluding.any(|net| net.contains(&cell))
}

fn selects(matcher: &PeerMatch, workload: Option<&Workload>) -> bool {
    matcher
        .workload
        .as_ref()
        .is_none_or(|m| workload.is_some_and(|w| m.matches(w)))
        && !matcher
            .not_workload
            .as_ref()
            .is_some_and(|m| workload.is_some_and(|w| m.matches(w)))
}

/// All that selectors can see of a workload.
fn attributes(workload: &Workload) -> (&str, &Labels, Option<&Labels>) {
    (
        &workload.namespace,
        &workload.labels,
        workload.namespace_labels.as_ref(),
    )
}

fn owners(cluster: &Cluster) -> BTreeMap<IpAddr, (Owner, Option<&Member>)> {
    let mut owners = BTreeMap::new();
    for member in &cluster.members {
        for address in &member.addresses {
            match owners.entry(*address) {
                Entry::Vacant(vacant) => {
                    let owner = member.endpoint.map_or(Owner::Other, Owner::Endpoint);
                    vacant.insert((owner, Some(member)));
                }
                Entry::Occupied(mut taken) => {
                    taken.insert((Owner::Contested, None));
                }
            }
        }
    }
    owners.extend(
        cluster
            .host_addresses
            .iter()
            .map(|address| (*address, (Owner::Node, None))),
    );
    owners
}
