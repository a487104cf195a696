//! Workloads in as few classes as policy can tell apart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member},
    policy::{
        EndMatch, FailsafeMatch, IpVersion, NamedPort, PolicySet, PortMatch, ProfileRules, Rule,
        ServiceMatch, WorkloadKind, WorkloadMatch,
    },
};

use crate::{model::shown, region::version};

/// A class on its way into the model.
pub(crate) struct Classified {
    /// Positions of the members, in order of name.
    pub(crate) members: Vec<usize>,
    /// For each member, its addresses, of which those in one place are alike.
    pub(crate) addresses: Vec<Vec<IpAddr>>,
    /// For each member, those of its own node.
    pub(crate) node_addresses: Vec<Vec<IpAddr>>,
}

/// A workload and where it is.
struct Placed<'a> {
    member: &'a Member,
    /// Its addresses, or those at which it judges.
    addresses: &'a BTreeSet<IpAddr>,
    /// Those of the node that it is on.
    node: &'a BTreeSet<IpAddr>,
}

/// Everything that policies ask about ends.
#[derive(Default)]
struct Questions<'a> {
    conditions: BTreeSet<&'a WorkloadMatch>,
    lists: Lists<'a>,
    port_names: BTreeSet<&'a str>,
}

/// The lists of networks that rules and network sets ask about, each once.
#[derive(Default)]
struct Lists<'a> {
    numbers: BTreeMap<&'a [IpNet], usize>,
    by_net: HashMap<IpNet, Vec<usize>>,
}

/// All that a policy can see of a workload. The namespace is there for people: classes do not cross it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: String,
    kind: WorkloadKind,
    /// Name of a host endpoint, which stands alone: those of one node may share addresses, where each is found beside others.
    host: String,
    /// Of a host endpoint, and of a pod on a node that one speaks for.
    node: String,
    profiles: Vec<String>,
    /// Conditions that hold, by number.
    conditions: Vec<usize>,
    named_ports: Vec<NamedPort>,
    /// Its own address of each family, which stands for a pod where it judges.
    own: Vec<(IpVersion, BTreeSet<usize>)>,
    addresses: Vec<Address>,
    /// Those of the node that it is on.
    node_addresses: Vec<Address>,
}

/// All that a policy can see of an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    version: IpVersion,
    /// The lists of networks that hold it, by number.
    lists: BTreeSet<usize>,
    names: BTreeSet<String>,
    contested: bool,
}

/// Sorted by the name of the first member. `addresses` are those of each member, or at which it judges; `nodes` those of the node that
/// it is on.
pub(crate) fn classify(
    cluster: &Cluster,
    addresses: &[BTreeSet<IpAddr>],
    nodes: &[&BTreeSet<IpAddr>],
    policies: &PolicySet,
) -> Vec<Classified> {
    let questions = Questions::of(cluster, policies);
    let mut claims: BTreeMap<IpAddr, usize> = BTreeMap::new();
    // A pod that claims a node's address is contradicted by the node.
    for address in cluster.nodes.values().flatten() {
        *claims.entry(*address).or_default() += 1;
    }
    for address in cluster.members.iter().flat_map(|member| &member.addresses) {
        *claims.entry(*address).or_default() += 1;
    }
    let mut order: Vec<(String, usize)> = cluster.members.iter().map(shown).zip(0..).collect();
    order.sort_unstable();
    let mut numbers: BTreeMap<Key, usize> = BTreeMap::new();
    let mut classes: Vec<Classified> = Vec::new();
    for (_, position) in order {
        let placed = |((member, addresses), node)| Placed {
            member,
            addresses,
            node,
        };
        let end = cluster.members.get(position).zip(addresses.get(position));
        let Some(end) = end.zip(nodes.get(position).copied()).map(placed) else {
            continue;
        };
        let (key, addresses, node_addresses) = questions.key(&end, cluster, &claims);
        let number = *numbers.entry(key).or_insert_with(|| {
            classes.push(Classified {
                members: Vec::new(),
                addresses: Vec::new(),
                node_addresses: Vec::new(),
            });
            classes.len() - 1
        });
        if let Some(class) = classes.get_mut(number) {
            class.members.push(position);
            class.addresses.push(addresses);
            class.node_addresses.push(node_addresses);
        }
    }
    classes
}

impl<'a> Questions<'a> {
    fn of(cluster: &'a Cluster, policies: &'a PolicySet) -> Self {
        let mut questions = Self::default();
        for policy in policies.tiers.iter().flat_map(|tier| &tier.policies) {
            questions.conditions.insert(&policy.applies_to);
            questions.rules(&policy.ingress);
            questions.rules(&policy.egress);
        }
        for profile in policies.profiles.values() {
            if let ProfileRules::Own { ingress, egress } = &profile.rules {
                questions.rules(ingress);
                questions.rules(egress);
            }
        }
        for FailsafeMatch { peer, service, .. } in policies
            .failsafe
            .inbound
            .iter()
            .chain(&policies.failsafe.outbound)
        {
            questions.end(peer);
            questions.service(service);
        }
        for set in &cluster.sets {
            questions.lists.add(&set.nets);
        }
        questions
    }

    fn rules(&mut self, rules: &'a [Rule]) {
        for rule in rules {
            self.end(&rule.own);
            self.end(&rule.peer);
            self.service(&rule.service);
        }
    }

    fn end(&mut self, end: &'a EndMatch) {
        self.conditions.extend(&end.workload);
        self.conditions.extend(&end.not_workload);
        self.lists.add(&end.nets);
        self.lists.add(&end.not_nets);
    }

    fn service(&mut self, service: &'a ServiceMatch) {
        let ports = service.ports.iter().chain(&service.not_ports);
        let ports = ports
            .chain(&service.source_ports)
            .chain(&service.not_source_ports);
        self.port_names.extend(ports.filter_map(|port| match port {
            PortMatch::Named(name) => Some(name.as_str()),
            PortMatch::Range(..) => None,
        }));
    }

    fn key(
        &self,
        end: &Placed<'_>,
        cluster: &Cluster,
        claims: &BTreeMap<IpAddr, usize>,
    ) -> (Key, Vec<IpAddr>, Vec<IpAddr>) {
        let member = end.member;
        let workload = &member.workload;
        let asked = |port: &&NamedPort| self.port_names.contains(port.name.as_str());
        let named_ports: BTreeSet<NamedPort> = workload.named_ports.iter().filter(asked).cloned().collect();
        let holds = self.conditions.iter().enumerate();
        let holds = holds.filter(|(_, condition)| condition.matches(workload));
        let first = |wanted: IpVersion| {
            let mut addresses = member.addresses.iter().copied();
            let first = addresses.find(|address| version(*address) == wanted)?;
            Some((wanted, self.lists.that_hold(first)))
        };
        let seen = |address: &IpAddr| Address {
            version: version(*address),
            lists: self.lists.that_hold(*address),
            names: cluster.names.get(address).cloned().unwrap_or_default(),
            contested: claims.get(address).is_some_and(|claims| *claims > 1),
        };
        let in_order = |addresses: &BTreeSet<IpAddr>| -> (Vec<Address>, Vec<IpAddr>) {
            let addresses = addresses.iter().map(|address| (seen(address), *address));
            let addresses: BTreeSet<(Address, IpAddr)> = addresses.collect();
            addresses.into_iter().unzip()
        };
        let (seen_there, addresses) = in_order(end.addresses);
        let (seen_at_node, node_addresses) = in_order(end.node);
        let key = Key {
            namespace: workload.namespace.clone(),
            kind: workload.kind,
            host: match workload.kind {
                WorkloadKind::HostEndpoint => workload.name.clone(),
                WorkloadKind::Pod | WorkloadKind::NetworkSet => String::new(),
            },
            node: member.node.clone(),
            profiles: workload.profiles.clone(),
            conditions: holds.map(|(number, _)| number).collect(),
            named_ports: named_ports.into_iter().collect(),
            own: [IpVersion::V4, IpVersion::V6]
                .into_iter()
                .filter_map(first)
                .collect(),
            addresses: seen_there,
            node_addresses: seen_at_node,
        };
        (key, addresses, node_addresses)
    }
}

impl<'a> Lists<'a> {
    fn add(&mut self, nets: &'a [IpNet]) {
        let next = self.numbers.len();
        if nets.is_empty() || self.numbers.contains_key(nets) {
            return;
        }
        self.numbers.insert(nets, next);
        for net in nets {
            self.by_net.entry(net.trunc()).or_default().push(next);
        }
    }

    /// The lists that hold `address`, by number.
    fn that_hold(&self, address: IpAddr) -> BTreeSet<usize> {
        let lengths = 0..=IpNet::from(address).max_prefix_len();
        let prefixes = lengths.filter_map(|length| Some(IpNet::new(address, length).ok()?.trunc()));
        let lists = prefixes.filter_map(|prefix| self.by_net.get(&prefix));
        lists.flatten().copied().collect()
    }
}
