//! Classes of addresses: which conditions on the other end hold for which addresses.
//!
//! The CIDRs of all rules and network sets, the workloads' and the node's addresses and those that have names cut
//! the address space into cells: a cell is one of these prefixes without the longer ones inside it. No rule can
//! tell two addresses of one cell apart, because each of the prefixes either holds a cell or does not touch it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member, NetworkSet},
    policy::{EndMatch, IpVersion, NamedPort, Workload, WorkloadKind, WorkloadMatch},
    tables::{Direction, EndpointId},
};

/// Number of a distinct condition on the other end.
pub(crate) type MatcherId = usize;

/// The distinct conditions of a node's rules on the other end of their flows.
pub(crate) struct Matchers {
    matchers: Vec<(Arc<EndMatch>, ByName)>,
    /// Their numbers.
    ids: HashMap<Arc<EndMatch>, MatcherId>,
    ids_by_name: HashMap<Arc<EndMatch>, MatcherId>,
    /// Whether any network set holds addresses by their names.
    sets_by_name: bool,
}

/// Whether network sets hold addresses by their names: they do where flows leave an endpoint.
pub(crate) type ByName = bool;

/// All that verdicts about an address may depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Signature {
    /// Family of the address.
    pub(crate) family: IpVersion,
    /// Who has the address.
    pub(crate) owner: Owner,
    /// Conditions that hold, ascending.
    pub(crate) matchers: Vec<MatcherId>,
    /// Workloads there that declare a named port which rules ask for.
    pub(crate) declares: Vec<Declares>,
}

/// A workload and those of its named ports that rules ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Declares {
    /// Ascending.
    pub(crate) ports: Vec<NamedPort>,
    /// Conditions whose positive selector finds the workload, ascending.
    pub(crate) selected_by: Vec<MatcherId>,
}

/// Who has an address, as far as it matters beyond the conditions of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// Several workloads claim it.
    Contested,
    /// The node that the cluster is seen from.
    Node,
    /// Another node, by its place among all.
    NodeAt(usize),
    /// Whoever listens there, that node among them.
    Group,
    /// An endpoint of this node.
    Endpoint(EndpointId),
    /// Anyone else.
    Other,
}

impl Matchers {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self {
            matchers: Vec::new(),
            ids: HashMap::new(),
            ids_by_name: HashMap::new(),
            sets_by_name: cluster.sets.iter().any(|set| !set.domains.is_empty()),
        }
    }

    /// The number of `matcher`, asked about flows of `direction`.
    pub(crate) fn id(&mut self, matcher: &EndMatch, direction: Direction) -> MatcherId {
        let by_name: ByName = self.sets_by_name && direction == Direction::Egress;
        let ids = match by_name {
            true => &mut self.ids_by_name,
            false => &mut self.ids,
        };
        if let Some(known) = ids.get(matcher) {
            return *known;
        }
        let matcher = Arc::new(matcher.clone());
        let id = self.matchers.len();
        self.matchers.push((Arc::clone(&matcher), by_name));
        ids.insert(matcher, id);
        id
    }

    /// All of them; the position of each is its number.
    pub(crate) fn all(&self) -> &[(Arc<EndMatch>, ByName)] {
        &self.matchers
    }
}

/// A cell and what is there.
pub(crate) struct Place<'a, 'h> {
    pub(crate) cell: IpNet,
    /// Prefixes that hold it.
    pub(crate) holders: &'h [IpNet],
    pub(crate) owner: Owner,
    pub(crate) workloads: Vec<&'a Workload>,
    /// Positions of the sets that hold it by address.
    pub(crate) sets: Vec<usize>,
    /// Positions of those that hold it by name alone.
    pub(crate) sets_by_name: Vec<usize>,
    pub(crate) names: Option<Cow<'a, BTreeSet<String>>>,
}

/// On what it depends whether a condition holds at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depends {
    /// On what is there alone.
    Workloads,
    /// On the address, but not on being inside a CIDR.
    Address,
    /// On being inside one of its CIDRs, and then perhaps on more.
    Nets,
}

impl Depends {
    pub(crate) fn of(matcher: &EndMatch) -> Self {
        let by_labels =
            matcher.not_nets.is_empty() && matcher.ip_version.is_none() && matcher.domains.is_empty();
        match (matcher.nets.is_empty(), by_labels) {
            (false, _) => Self::Nets,
            (true, false) => Self::Address,
            (true, true) => Self::Workloads,
        }
    }
}

/// What holds at a place whatever its address is.
#[derive(Clone)]
pub(crate) struct AtRest {
    matchers: Vec<MatcherId>,
    declares: Vec<Declares>,
}

/// What is known of places by their attributes.
pub(crate) type KnownPlaces<'a> = HashMap<Attributes<'a>, AtRest>;

/// All that selectors can see of a place.
type Attributes<'a> = (Vec<WorkloadAttributes<'a>>, Vec<usize>, Vec<usize>);
/// All that selectors can see of a workload but its name.
pub(crate) type WorkloadAttributes<'a> = (
    WorkloadKind,
    &'a str,
    &'a api::selector::Labels,
    Option<&'a api::selector::Labels>,
    Option<&'a policies_ir::policy::ServiceAccount>,
    &'a [NamedPort],
);

impl<'a> Place<'a, '_> {
    fn attributes(&self) -> Attributes<'a> {
        (
            self.workloads.iter().copied().map(attributes).collect(),
            self.sets.clone(),
            self.sets_by_name.clone(),
        )
    }

    pub(crate) fn family(&self) -> IpVersion {
        if self.cell.addr().is_ipv4() {
            IpVersion::V4
        } else {
            IpVersion::V6
        }
    }
}

/// The conditions, sorted by how they can be found without trying each on each cell.
pub(crate) struct Index<'a> {
    matchers: Vec<(Arc<EndMatch>, ByName)>,
    cluster: &'a Cluster,
    owners: BTreeMap<IpAddr, Owned<'a>>,
    port_names: BTreeSet<String>,
    /// Depend on labels alone.
    addressless: Vec<MatcherId>,
    /// Depend on the address, but not on being inside a CIDR.
    open: Vec<MatcherId>,
    /// Hold only inside this CIDR.
    by_net: HashMap<IpNet, Vec<MatcherId>>,
    sets: Sets,
}

/// Network sets, by what they hold.
pub(crate) struct Sets {
    /// Positions of the sets that hold this CIDR.
    by_net: HashMap<IpNet, Vec<usize>>,
    /// Positions of the sets that hold addresses by name.
    with_domains: Vec<usize>,
}

impl Sets {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        let mut sets = Self {
            by_net: HashMap::new(),
            with_domains: Vec::new(),
        };
        for (position, set) in cluster.sets.iter().enumerate() {
            for net in &set.nets {
                sets.by_net.entry(net.trunc()).or_default().push(position);
            }
            if !set.domains.is_empty() {
                sets.with_domains.push(position);
            }
        }
        sets
    }

    /// Positions of the sets that hold what lies in all of these.
    pub(crate) fn at(&self, holders: &[IpNet]) -> Vec<usize> {
        let found = holders.iter().filter_map(|net| self.by_net.get(net));
        let sets: BTreeSet<usize> = found.flatten().copied().collect();
        sets.into_iter().collect()
    }

    /// Positions of those that hold an address of these names by name and are not among `known`.
    pub(crate) fn named(&self, names: &BTreeSet<String>, known: &[usize], cluster: &Cluster) -> Vec<usize> {
        let named = |position: &usize| {
            let set = cluster.sets.get(*position);
            let matches = |name: &String| set.is_some_and(|set| set.domains.iter().any(|d| d.matches(name)));
            names.iter().any(matches)
        };
        let others = self.with_domains.iter().copied();
        others
            .filter(|position| known.binary_search(position).is_err() && named(position))
            .collect()
    }
}

impl<'a> Index<'a> {
    pub(crate) fn new(matchers: &Matchers, cluster: &'a Cluster, port_names: BTreeSet<String>) -> Self {
        let matchers = matchers.matchers.clone();
        let mut index = Self {
            matchers: Vec::new(),
            cluster,
            owners: owners(cluster),
            port_names,
            addressless: Vec::new(),
            open: Vec::new(),
            by_net: HashMap::new(),
            sets: Sets::new(cluster),
        };
        for (id, (matcher, _)) in matchers.iter().enumerate() {
            for net in &matcher.nets {
                index.by_net.entry(net.trunc()).or_default().push(id);
            }
            match Depends::of(matcher) {
                Depends::Workloads => index.addressless.push(id),
                Depends::Address => index.open.push(id),
                Depends::Nets => {}
            }
        }
        index.matchers = matchers;
        index
    }

    /// Cuts the address space into cells and says what holds in each. The default prefix of each family is
    /// always among them, so every address is in a cell.
    pub(crate) fn cells(&self) -> BTreeMap<IpNet, Signature> {
        self.cells_if_named(&BTreeSet::new())
    }

    /// The same if every address had these names beside those that it has.
    pub(crate) fn cells_if_named(&self, names: &BTreeSet<String>) -> BTreeMap<IpNet, Signature> {
        let mut known = HashMap::new();
        // Prefixes sort before what they hold, so those that hold the current cell are always on the stack.
        let mut holders: Vec<IpNet> = Vec::new();
        let mut signatures = BTreeMap::new();
        for cell in self.prefixes() {
            while holders.last().is_some_and(|holder| !holder.contains(&cell)) {
                holders.pop();
            }
            holders.push(cell);
            signatures.insert(
                cell,
                self.signature_of(&self.place(&holders, cell, names), &mut known),
            );
        }
        signatures
    }

    /// The prefixes whose differences are the cells.
    pub(crate) fn prefixes(&self) -> BTreeSet<IpNet> {
        let mut cells = self.fixed_prefixes();
        cells.extend(self.owners.keys().copied().map(IpNet::from));
        cells
    }

    /// Those of them that are there whoever has which address.
    pub(crate) fn fixed_prefixes(&self) -> BTreeSet<IpNet> {
        let defaults = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        let mut cells: BTreeSet<IpNet> = defaults
            .into_iter()
            .filter_map(|address| IpNet::new(address, 0).ok())
            .collect();
        for (matcher, _) in &self.matchers {
            cells.extend(matcher.nets.iter().chain(&matcher.not_nets).map(IpNet::trunc));
        }
        let sets = &self.cluster.sets;
        cells.extend(sets.iter().flat_map(|set| &set.nets).map(IpNet::trunc));
        cells.extend(self.cluster.names.keys().copied().map(IpNet::from));
        let of_nodes = self.cluster.nodes.values().flatten();
        cells.extend(
            of_nodes
                .chain(&self.cluster.host_addresses)
                .copied()
                .map(IpNet::from),
        );
        cells.extend(self.cluster.host_groups.iter().map(IpNet::trunc));
        cells
    }

    /// All that verdicts about addresses of `cell` may depend on. `holders` are the prefixes that hold it.
    pub(crate) fn signature(&self, holders: &[IpNet], cell: IpNet, known: &mut KnownPlaces<'a>) -> Signature {
        self.signature_of(&self.place(holders, cell, &BTreeSet::new()), known)
    }

    fn signature_of(&self, place: &Place<'a, '_>, known: &mut KnownPlaces<'a>) -> Signature {
        let at_rest = known
            .entry(place.attributes())
            .or_insert_with(|| self.anywhere(place))
            .clone();
        let mut matchers = at_rest.matchers;
        matchers.extend(self.somewhere(place));
        matchers.sort_unstable();
        matchers.dedup();
        Signature {
            family: place.family(),
            owner: place.owner,
            matchers,
            declares: at_rest.declares,
        }
    }

    fn place<'h>(&self, holders: &'h [IpNet], cell: IpNet, more_names: &BTreeSet<String>) -> Place<'a, 'h> {
        let is_address = cell.prefix_len() == cell.max_prefix_len();
        let owned = self.owners.get(&cell.addr()).filter(|_| is_address);
        let sets = self.sets.at(holders);
        let own_names = self.cluster.names.get(&cell.addr()).filter(|_| is_address);
        let names = match (own_names, more_names.is_empty()) {
            (own, true) => own.map(Cow::Borrowed),
            (None, false) => Some(Cow::Owned(more_names.clone())),
            (Some(own), false) => Some(Cow::Owned(own | more_names)),
        };
        let sets_by_name = match &names {
            Some(names) => self.sets.named(names, &sets, self.cluster),
            None => Vec::new(),
        };
        Place {
            cell,
            holders,
            owner: owner_at(self.cluster, &cell, owned.map(|owned| owned.owner)),
            workloads: owned.map(|owned| owned.workloads.clone()).unwrap_or_default(),
            sets,
            sets_by_name,
            names,
        }
    }

    /// What holds at `place` whatever its address is.
    fn anywhere(&self, place: &Place<'a, '_>) -> AtRest {
        let holds = |id: &MatcherId| self.selects(*id, place);
        let of = |workload: &&Workload| Declares::of(workload, &self.port_names, &self.matchers);
        AtRest {
            matchers: self.addressless.iter().copied().filter(holds).collect(),
            declares: place.workloads.iter().filter_map(of).collect(),
        }
    }

    /// Conditions that depend on the address and hold at `place`.
    fn somewhere(&self, place: &Place<'a, '_>) -> impl Iterator<Item = MatcherId> {
        let inside = place
            .holders
            .iter()
            .filter_map(|net| self.by_net.get(net))
            .flatten();
        let holds = move |id: &MatcherId| {
            let matcher = self.matchers.get(*id);
            matcher.is_some_and(|(matcher, _)| holds_at(matcher, place)) && self.selects(*id, place)
        };
        self.open.iter().chain(inside).copied().filter(holds)
    }

    fn selects(&self, id: MatcherId, place: &Place<'a, '_>) -> bool {
        let matcher = self.matchers.get(id);
        matcher.is_some_and(|matcher| selects(matcher, place, &self.cluster.sets))
    }
}

impl Declares {
    /// What `workload` declares of the ports that rules ask for; nothing if that is nothing.
    pub(crate) fn of(
        workload: &Workload,
        port_names: &BTreeSet<String>,
        matchers: &[(Arc<EndMatch>, ByName)],
    ) -> Option<Self> {
        let asked = |port: &&NamedPort| port_names.contains(&port.name);
        let ports: BTreeSet<NamedPort> = workload.named_ports.iter().filter(asked).cloned().collect();
        let finds = |(_, (matcher, _)): &(MatcherId, &(Arc<EndMatch>, ByName))| {
            matcher.workload.as_ref().is_none_or(|m| m.matches(workload))
        };
        let selected = matchers.iter().enumerate().filter(finds);
        (!ports.is_empty()).then(|| Self {
            ports: ports.into_iter().collect(),
            selected_by: selected.map(|(id, _)| id).collect(),
        })
    }
}

pub(crate) fn attributes(workload: &Workload) -> WorkloadAttributes<'_> {
    (
        workload.kind,
        workload.namespace.as_str(),
        &workload.labels,
        workload.namespace_labels.as_ref(),
        workload.service_account.as_ref(),
        workload.named_ports.as_slice(),
    )
}

/// Whether the conditions on what is there hold at `place`.
pub(crate) fn selects(
    (matcher, by_name): &(Arc<EndMatch>, ByName),
    place: &Place<'_, '_>,
    sets: &[NetworkSet],
) -> bool {
    let any = |condition: &WorkloadMatch| {
        let by_name = by_name.then_some(&place.sets_by_name).into_iter().flatten();
        let of_sets = place.sets.iter().chain(by_name);
        let mut of_sets = of_sets.filter_map(|position| sets.get(*position));
        place.workloads.iter().any(|workload| condition.matches(workload))
            || of_sets.any(|set| condition.matches(&set.workload))
    };
    matcher.workload.as_ref().is_none_or(any) && !matcher.not_workload.as_ref().is_some_and(any)
}

/// Whether the conditions on the address hold in all of the place's cell, given that the CIDRs of `nets` do.
pub(crate) fn holds_at(matcher: &EndMatch, place: &Place<'_, '_>) -> bool {
    let is_ipv4 = place.cell.addr().is_ipv4();
    let mut excluding = matcher
        .not_nets
        .iter()
        .filter(|net| net.addr().is_ipv4() == is_ipv4)
        .peekable();
    let named = |names: &BTreeSet<String>| {
        names
            .iter()
            .any(|name| matcher.domains.iter().any(|d| d.matches(name)))
    };
    matcher.ip_version.is_none_or(|version| version == place.family())
        && (matcher.not_nets.is_empty() || excluding.peek().is_some())
        && !excluding.any(|net| net.contains(&place.cell))
        && (matcher.domains.is_empty() || place.names.as_deref().is_some_and(named))
}

/// Whether the conditions hold at an end that has this address and at which selectors find these.
pub(crate) fn end_holds(matcher: &EndMatch, address: Option<IpAddr>, known: &[&Workload]) -> bool {
    let on_address = matcher.ip_version.is_some() || !matcher.nets.is_empty() || !matcher.not_nets.is_empty();
    let address_fits = match address {
        None => !on_address,
        Some(address) => {
            let of_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
            let version = if address.is_ipv4() {
                IpVersion::V4
            } else {
                IpVersion::V6
            };
            let mut excluding = matcher.not_nets.iter().filter(of_family).peekable();
            matcher.ip_version.is_none_or(|wanted| wanted == version)
                && (matcher.nets.is_empty() || matcher.nets.iter().any(|net| net.contains(&address)))
                && (matcher.not_nets.is_empty() || excluding.peek().is_some())
                && !excluding.any(|net| net.contains(&address))
        }
    };
    let any = |condition: &WorkloadMatch| known.iter().any(|workload| condition.matches(workload));
    address_fits
        && matcher.workload.as_ref().is_none_or(any)
        && !matcher.not_workload.as_ref().is_some_and(any)
}

/// Who has an address.
pub(crate) struct Owned<'a> {
    pub(crate) owner: Owner,
    workloads: Vec<&'a Workload>,
}

/// Who has all of `cell`, if this is who claims it.
pub(crate) fn owner_at(cluster: &Cluster, cell: &IpNet, claimed: Option<Owner>) -> Owner {
    match claimed {
        Some(Owner::Contested) => Owner::Contested,
        Some(Owner::Node) => Owner::Node,
        _ if cluster.in_host_group(cell) => Owner::Group,
        Some(owner) => owner,
        None => Owner::Other,
    }
}

fn owners(cluster: &Cluster) -> BTreeMap<IpAddr, Owned<'_>> {
    let mut claims: BTreeMap<IpAddr, Vec<&Member>> = BTreeMap::new();
    for member in &cluster.members {
        for address in &member.addresses {
            claims.entry(*address).or_default().push(member);
        }
    }
    let nodes = node_addresses(cluster);
    let of_hosts = nodes.keys().chain(&cluster.host_addresses);
    let mut addresses: BTreeSet<IpAddr> = of_hosts.copied().collect();
    addresses.extend(claims.keys());
    let owned = addresses.into_iter().filter_map(|address| {
        let claims = claims.get(&address).map_or(&[][..], Vec::as_slice);
        let node = nodes.get(&address).copied();
        let own = cluster.host_addresses.contains(&address);
        Some((address, Owned::of(claims, node, own)?))
    });
    owned.collect()
}

/// Place of the node that has each address.
pub(crate) fn node_addresses(cluster: &Cluster) -> BTreeMap<IpAddr, usize> {
    let mut places = BTreeMap::new();
    for (place, addresses) in cluster.nodes.values().enumerate() {
        for address in addresses {
            places.entry(*address).or_insert(place);
        }
    }
    places
}

impl<'a> Owned<'a> {
    /// Who has an address that these members claim and that is this node's, or the one's that the cluster is seen
    /// from. Nothing if it is nobody's.
    pub(crate) fn of(claims: &[&'a Member], node: Option<usize>, own: bool) -> Option<Self> {
        let hosts = |member: &&&Member| member.workload.kind == WorkloadKind::HostEndpoint;
        if own {
            // The node's own addresses are the node's, whichever pod claims them.
            return Some(Self {
                owner: Owner::Node,
                workloads: claims
                    .iter()
                    .filter(hosts)
                    .map(|member| &member.workload)
                    .collect(),
            });
        }
        let (first, others) = claims
            .split_first()
            .map_or((None, claims), |(first, others)| (Some(*first), others));
        let shared = others
            .iter()
            .all(|other| first.is_some_and(|first| first.shares_node(other)));
        // A host endpoint has its node's address; a pod that claims it as well is contradicted.
        let of_pod = claims
            .iter()
            .any(|member| member.workload.kind == WorkloadKind::Pod);
        let owner = match (first, node) {
            (None, None) => return None,
            _ if !shared || (of_pod && node.is_some()) => Owner::Contested,
            (_, Some(place)) => Owner::NodeAt(place),
            // A host endpoint is its node, which need not have what somebody expects of it.
            (Some(_), None) if !of_pod => Owner::Other,
            (Some(first), None) => first.endpoint.map_or(Owner::Other, Owner::Endpoint),
        };
        Some(Self {
            owner,
            workloads: claims.iter().map(|member| &member.workload).collect(),
        })
    }
}

/// The prefixes whose differences are the cells, by length.
pub(crate) struct Prefixes {
    nets: BTreeSet<IpNet>,
    lengths_v4: BTreeSet<u8>,
    lengths_v6: BTreeSet<u8>,
}

impl Prefixes {
    pub(crate) fn new(nets: &BTreeSet<IpNet>) -> Self {
        let lengths = |v4: bool| {
            let of_family = nets.iter().filter(move |net| net.addr().is_ipv4() == v4);
            of_family.map(IpNet::prefix_len).collect()
        };
        Self {
            nets: nets.clone(),
            lengths_v4: lengths(true),
            lengths_v6: lengths(false),
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &IpNet> {
        self.nets.iter()
    }

    pub(crate) fn contains(&self, net: &IpNet) -> bool {
        self.nets.contains(net)
    }

    pub(crate) fn insert(&mut self, net: IpNet) {
        self.nets.insert(net);
        match net {
            IpNet::V4(net) => self.lengths_v4.insert(net.prefix_len()),
            IpNet::V6(net) => self.lengths_v6.insert(net.prefix_len()),
        };
    }

    /// From the widest to the narrowest.
    pub(crate) fn that_hold(&self, address: IpAddr) -> Vec<IpNet> {
        let lengths = match address {
            IpAddr::V4(_) => &self.lengths_v4,
            IpAddr::V6(_) => &self.lengths_v6,
        };
        let nets = lengths
            .iter()
            .filter_map(|length| Some(IpNet::new(address, *length).ok()?.trunc()));
        nets.filter(|net| self.nets.contains(net)).collect()
    }
}
