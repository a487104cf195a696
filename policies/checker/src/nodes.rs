//! The node that a pod is on, as the other end of flows: it always reaches its own pods, and what they may send it
//! `defaultEndpointToHostAction` says beside their policies.
//!
//! Where no host endpoint judges, all that policy sees of a node are its addresses. Pods are therefore not told apart by their node,
//! which would make nearly as many classes as there are pods, but by what the addresses of their nodes are like. Each member of a class
//! then has an own node, at addresses that are alike for all members.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use policies_compiler::Answers;
use policies_ir::{
    cluster::{Cluster, Member},
    policy::{EndpointToHost, IpVersion, WorkloadKind},
    tables::Direction,
};

use crate::{
    build::{CLOSED, Rows, identity_of},
    judge::Judge,
    region::version,
};

/// Which addresses are whose node's.
pub(crate) struct Nodes {
    /// Addresses of each node that no member has.
    own: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Nodes that host endpoints speak for.
    judged: BTreeSet<String>,
    none: BTreeSet<IpAddr>,
}

impl Nodes {
    /// `addresses` are those of each member, or at which it judges.
    pub(crate) fn of(cluster: &Cluster, addresses: &[BTreeSet<IpAddr>]) -> Self {
        let hosts = || {
            let members = cluster.members.iter();
            members.filter(|member| member.workload.kind == WorkloadKind::HostEndpoint)
        };
        let mut judged: BTreeSet<String> = hosts().map(|host| host.node.clone()).collect();
        let taken: BTreeSet<&IpAddr> = addresses.iter().flatten().collect();
        let of_hosts: BTreeSet<&IpAddr> = hosts().flat_map(|host| &host.addresses).collect();
        let mut seen = BTreeSet::new();
        let mut own = BTreeMap::new();
        for (node, addresses) in &cluster.nodes {
            // Of several nodes that say they have an address it is the first one's.
            let addresses: Vec<&IpAddr> = addresses
                .iter()
                .filter(|address| seen.insert(**address))
                .collect();
            if addresses.iter().any(|address| of_hosts.contains(address)) {
                judged.insert(node.clone());
            }
            let free = addresses.into_iter().filter(|address| !taken.contains(address));
            own.insert(node.clone(), free.copied().collect());
        }
        Self {
            own,
            judged,
            none: BTreeSet::new(),
        }
    }

    /// Whether host endpoints speak for a node, at some of its addresses at least. Its pods are told apart from all others.
    pub(crate) fn are_judged(&self, node: &str) -> bool {
        self.judged.contains(node)
    }

    /// Addresses of the node that a pod is on, as far as they are known and no member's.
    pub(crate) fn own(&self, member: &Member) -> &BTreeSet<IpAddr> {
        let is_pod = member.workload.kind == WorkloadKind::Pod;
        let own = self.own.get(&member.node).filter(|_| is_pod);
        own.unwrap_or(&self.none)
    }

    /// The node that has each address which is no member's.
    pub(crate) fn by_address(&self) -> HashMap<IpAddr, String> {
        let nodes = self.own.iter();
        let addresses = nodes.flat_map(|(node, own)| own.iter().map(|address| (*address, node.clone())));
        addresses.collect()
    }
}

/// An address that the own node of each member of a class has, as the class sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeSlot {
    pub(crate) version: IpVersion,
    /// Its place among the node's addresses.
    pub(crate) place: usize,
    /// Names that it is taken to have, as far as they change what decides.
    pub(crate) names: Option<usize>,
    /// Number of the judge of what comes from it.
    pub(crate) ingress: usize,
    /// Number of the judge of what goes to it.
    pub(crate) egress: usize,
}

/// The judges of what pods and their own nodes send each other.
#[derive(Debug)]
pub(crate) struct NodeJudges {
    to_host: EndpointToHost,
    /// By the judge that it is made of: what the pods say about the same address if it is not their node's.
    known: HashMap<(usize, Direction), usize>,
}

impl NodeJudges {
    pub(crate) fn new(to_host: EndpointToHost) -> Self {
        let known = HashMap::new();
        Self { to_host, known }
    }

    /// The judge of own nodes that stands for this one elsewhere.
    pub(crate) fn of(&self, judge: usize, direction: Direction) -> usize {
        self.known.get(&(judge, direction)).copied().unwrap_or(CLOSED)
    }

    /// All that a class says about the node of its first member, at these addresses. New judges are added to `judges`.
    pub(crate) fn slots(
        &mut self,
        class: usize,
        addresses: &[IpAddr],
        (answers, rows): (&Answers, &Rows),
        judges: &mut Vec<Judge>,
    ) -> Vec<NodeSlot> {
        let mut slots = Vec::new();
        for (place, address) in addresses.iter().enumerate() {
            let unnamed = identity_of(&answers.identities, *address);
            let if_named = answers.if_named.iter().enumerate().filter_map(|(names, of)| {
                let identity = identity_of(of, *address);
                (identity != unnamed).then_some((Some(names), identity))
            });
            for (names, identity) in std::iter::once((None, unnamed)).chain(if_named) {
                let mut judge = |direction| {
                    let row = rows.get(&(class, direction));
                    // The rules of a pod do not ask at which address it is.
                    let elsewhere = row
                        .zip(identity)
                        .map_or(CLOSED, |(row, peer)| row.judge(None, peer));
                    self.add(elsewhere, direction, judges)
                };
                slots.push(NodeSlot {
                    version: version(*address),
                    place,
                    names,
                    ingress: judge(Direction::Ingress),
                    egress: judge(Direction::Egress),
                });
            }
        }
        slots
    }

    fn add(&mut self, judge: usize, direction: Direction, judges: &mut Vec<Judge>) -> usize {
        let to_host = self.to_host;
        *self.known.entry((judge, direction)).or_insert_with(|| {
            let Some(elsewhere) = judges.get(judge) else {
                return CLOSED;
            };
            let own = elsewhere.of_own_node(direction, to_host);
            judges.push(own);
            judges.len() - 1
        })
    }
}
