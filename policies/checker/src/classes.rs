//! Workloads in as few classes as policy can tell apart.

use std::{
    collections::{BTreeMap, BTreeSet},
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
}

/// Everything that policies ask about ends.
#[derive(Default)]
struct Questions<'a> {
    conditions: BTreeSet<&'a WorkloadMatch>,
    nets: BTreeSet<IpNet>,
    port_names: BTreeSet<&'a str>,
}

/// All that a policy can see of a workload. The namespace is there for people: classes do not cross it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: String,
    kind: WorkloadKind,
    /// Name of a host endpoint, which stands alone: those of one node may share addresses, where each is found beside others.
    host: String,
    /// Of a host endpoint, and of a pod whose node is known.
    node: String,
    profiles: Vec<String>,
    /// Conditions that hold, by number.
    conditions: Vec<usize>,
    named_ports: Vec<NamedPort>,
    /// Its own address of each family, which stands for a pod where it judges.
    own: Vec<(IpVersion, IpNet)>,
    addresses: Vec<Address>,
}

/// All that a policy can see of an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    version: IpVersion,
    /// The smallest prefix of a rule or network set that holds it.
    cell: IpNet,
    names: BTreeSet<String>,
    contested: bool,
}

/// Sorted by the name of the first member. `addresses` are those of each member, or at which it judges.
pub(crate) fn classify(
    cluster: &Cluster,
    addresses: &[BTreeSet<IpAddr>],
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
        let Some(end) = cluster.members.get(position).zip(addresses.get(position)) else {
            continue;
        };
        let (key, addresses) = questions.key(end, cluster, &claims);
        let number = *numbers.entry(key).or_insert_with(|| {
            classes.push(Classified {
                members: Vec::new(),
                addresses: Vec::new(),
            });
            classes.len() - 1
        });
        if let Some(class) = classes.get_mut(number) {
            class.members.push(position);
            class.addresses.push(addresses);
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
        let nets = cluster.sets.iter().flat_map(|set| &set.nets);
        questions.nets.extend(nets.map(IpNet::trunc));
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
        self.nets
            .extend(end.nets.iter().chain(&end.not_nets).map(IpNet::trunc));
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
        (member, addresses): (&Member, &BTreeSet<IpAddr>),
        cluster: &Cluster,
        claims: &BTreeMap<IpAddr, usize>,
    ) -> (Key, Vec<IpAddr>) {
        let workload = &member.workload;
        let asked = |port: &&NamedPort| self.port_names.contains(port.name.as_str());
        let named_ports: BTreeSet<NamedPort> = workload.named_ports.iter().filter(asked).cloned().collect();
        let holds = self.conditions.iter().enumerate();
        let holds = holds.filter(|(_, condition)| condition.matches(workload));
        let first = |wanted: IpVersion| {
            let mut addresses = member.addresses.iter().copied();
            let first = addresses.find(|address| version(*address) == wanted)?;
            Some((wanted, self.cell(first)))
        };
        let seen = |address: &IpAddr| Address {
            version: version(*address),
            cell: self.cell(*address),
            names: cluster.names.get(address).cloned().unwrap_or_default(),
            contested: claims.get(address).is_some_and(|claims| *claims > 1),
        };
        let mut addresses: Vec<(Address, IpAddr)> = addresses
            .iter()
            .map(|address| (seen(address), *address))
            .collect();
        addresses.sort();
        let (seen, addresses) = addresses.into_iter().unzip();
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
            addresses: seen,
        };
        (key, addresses)
    }

    /// The smallest prefix that holds `address`; the whole family where there is none.
    fn cell(&self, address: IpAddr) -> IpNet {
        let whole = IpNet::from(address);
        let lengths = (0..=whole.max_prefix_len()).rev();
        let mut prefixes = lengths.filter_map(|length| Some(IpNet::new(address, length).ok()?.trunc()));
        let found = prefixes.find(|prefix| prefix.prefix_len() == 0 || self.nets.contains(prefix));
        found.unwrap_or(whole)
    }
}
