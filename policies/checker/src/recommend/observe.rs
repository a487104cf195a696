//! From recorded flows to connections between workloads.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::{
    flow::{FlowDirection, FlowEvent, FlowVerdict},
    selector::Labels,
};
use policies_ir::policy::{ICMP_PROTOCOLS, PORT_PROTOCOLS, WorkloadKind};

use crate::{
    model::Model,
    recommend::{Dialect, write::DEFAULT_DENY},
    replay,
    space::{Point, Space},
};

/// Labels that controllers give each pod or each revision of a workload, so that no policy should select by them.
const VOLATILE: [&str; 11] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "controller-uid",
    "job-name",
    "rollouts-pod-template-hash",
];
/// Last type of ICMP that a rule of Calico's may name.
const MAX_ICMP_TYPE: u8 = 254;
/// Labels that name a workload, best first.
const NAMING: [&str; 6] = [
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "app.kubernetes.io/component",
    "name",
    "component",
];

/// What was seen.
#[derive(Debug)]
pub(super) struct Observed {
    /// Workloads by namespace and name.
    pub(super) workloads: Vec<Workload>,
    /// Connections that were allowed.
    pub(super) connections: BTreeSet<Connection>,
    pub(super) left_out: Vec<String>,
    /// Labels of the network sets of each namespace.
    sets: BTreeMap<String, Vec<Labels>>,
}

/// Pods of a namespace whose stable labels are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) namespace: String,
    /// Unique in the namespace, and a name for an object.
    pub(super) name: String,
    /// What selects exactly these pods of the namespace.
    pub(super) selector: PodSelector,
    /// Positions in the cluster's members.
    pub(super) members: BTreeSet<usize>,
}

/// Labels that a pod must have, and those that it must not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct PodSelector {
    pub(super) labels: Labels,
    pub(super) absent: BTreeSet<String>,
}

/// A connection of workloads or addresses; at least one end is a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Connection {
    pub(super) from: Side,
    pub(super) to: Side,
    pub(super) service: Service,
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// A workload, by position.
    Workload(usize),
    /// An address that is no pod's.
    Address(IpAddr),
}

/// Protocol and destination port, for ICMP `type << 8 | code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    pub(super) protocol: u8,
    pub(super) port: u16,
}

impl Observed {
    pub(super) fn new(model: &Model, flows: &[FlowEvent]) -> Self {
        let workloads = workloads(model);
        let side_of: BTreeMap<usize, usize> = workloads
            .iter()
            .enumerate()
            .flat_map(|(number, workload)| workload.members.iter().map(move |member| (*member, number)))
            .collect();
        let mut sets: BTreeMap<String, Vec<Labels>> = BTreeMap::new();
        for set in model.cluster().sets.iter().map(|set| &set.workload) {
            let of_namespace = sets.entry(set.namespace.clone()).or_default();
            of_namespace.push(set.labels.clone());
        }
        let mut observed = Self {
            workloads,
            connections: BTreeSet::new(),
            left_out: Vec::new(),
            sets,
        };
        let placed: Vec<(&FlowEvent, Result<Seen, &str>)> = flows
            .iter()
            .map(|flow| {
                let seen = match replay::without_policy(flow) {
                    Some(reason) => Err(reason),
                    None => Seen::of(model, flow),
                };
                (flow, seen)
            })
            .collect();
        // What one end let out and the other did not let in was no connection.
        let denied: BTreeSet<Seen> = placed
            .iter()
            .filter(|(flow, _)| flow.verdict == FlowVerdict::Deny)
            .filter_map(|(_, seen)| seen.ok())
            .collect();
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for (flow, seen) in placed {
            let reason = match seen {
                Err(reason) => reason,
                Ok(seen) if denied.contains(&seen) => "they were denied, at one end at least",
                Ok(_) if flow.pod.host().is_some() => {
                    "they were judged at a host endpoint, and policies are for pods"
                }
                Ok(seen) => {
                    observed.connections.insert(seen.connection(&side_of));
                    continue;
                }
            };
            *reasons.entry(reason).or_default() += 1;
        }
        let told = reasons
            .into_iter()
            .map(|(reason, count)| format!("{count} recorded flow(s): {reason}"));
        observed.left_out.extend(told);
        observed
    }

    /// Takes out what the dialect has no words for: protocols without ports in Kubernetes' kind, port 0 in both, and in
    /// Calico's the type of ICMP that it does not let a rule name.
    pub(super) fn keep_expressible(&mut self, dialect: Dialect) {
        let expressible = |connection: &Connection| {
            let Service { protocol, port } = connection.service;
            let [icmp_type, _] = port.to_be_bytes();
            match PORT_PROTOCOLS.contains(&protocol) {
                true => port != 0,
                false if ICMP_PROTOCOLS.contains(&protocol) => {
                    dialect == Dialect::Calico && icmp_type <= MAX_ICMP_TYPE
                }
                false => dialect == Dialect::Calico && protocol != 0,
            }
        };
        let (kept, others): (_, BTreeSet<Connection>) = std::mem::take(&mut self.connections)
            .into_iter()
            .partition(expressible);
        self.connections = kept;
        let kind = match dialect {
            Dialect::Kubernetes => "Kubernetes",
            Dialect::Calico => "Calico",
        };
        let told = others.iter().map(|connection| {
            format!(
                "{} from {} to {}: NetworkPolicy of {kind} has no rule for this and nothing else",
                connection.service.point(),
                self.name(connection.from),
                self.name(connection.to)
            )
        });
        let told: Vec<String> = told.collect();
        self.left_out.extend(told);
    }

    /// Labels of the network sets of a namespace.
    pub(super) fn sets(&self, namespace: &str) -> &[Labels] {
        self.sets.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn name(&self, side: Side) -> String {
        match side {
            Side::Address(address) => address.to_string(),
            Side::Workload(number) => match self.workloads.get(number) {
                Some(workload) => format!("{}/{}", workload.namespace, workload.name),
                None => String::new(),
            },
        }
    }
}

/// A flow between the ends that its record names, as they are now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    from: Who,
    to: Who,
    service: Service,
}

/// An end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// A pod or host endpoint, by position, with its address as it was recorded.
    Member(usize, IpAddr),
    /// An address that is neither's.
    Address(IpAddr),
}

impl Seen {
    /// Or why it is none between ends that are there.
    fn of(model: &Model, flow: &FlowEvent) -> Result<Self, &'static str> {
        let (own_address, peer_address) = match flow.direction {
            FlowDirection::Egress => (flow.source, flow.destination),
            FlowDirection::Ingress => (flow.destination, flow.source),
        };
        let own = match replay::find(model, &flow.pod) {
            Some(member) => Who::Member(member, own_address),
            None if flow.pod.host().is_some() => Who::Address(own_address),
            None => return Err("the pod is not among the objects"),
        };
        let peer = match replay::peer(model, flow)? {
            Some(member) => Who::Member(member, peer_address),
            None => Who::Address(peer_address),
        };
        let (from, to) = match flow.direction {
            FlowDirection::Egress => (own, peer),
            FlowDirection::Ingress => (peer, own),
        };
        let service = Service {
            protocol: flow.protocol,
            port: flow.destination_port,
        };
        Ok(Self { from, to, service })
    }

    fn connection(self, side_of: &BTreeMap<usize, usize>) -> Connection {
        let side = |who| match who {
            Who::Address(address) => Side::Address(address),
            // A host endpoint is none that policies for pods select: to them it is its address.
            Who::Member(member, address) => side_of
                .get(&member)
                .map_or(Side::Address(address), |number| Side::Workload(*number)),
        };
        Connection {
            from: side(self.from),
            to: side(self.to),
            service: self.service,
        }
    }
}

impl Service {
    /// Every flow to it.
    pub(super) fn space(self) -> Space {
        let has_ports = PORT_PROTOCOLS.contains(&self.protocol) || ICMP_PROTOCOLS.contains(&self.protocol);
        match has_ports {
            true => Space::of_ports(self.protocol, [(self.port, self.port)]),
            false => Space::of_protocol(self.protocol),
        }
    }

    fn point(self) -> Point {
        Point {
            protocol: self.protocol,
            source_port: 0,
            port: self.port,
        }
    }
}

/// What selects the workload of a pod, which has these labels if it is not there any more.
pub(super) fn selector_of(model: &Model, namespace: &str, pod: &str, labels: &Labels) -> PodSelector {
    let members = model.cluster().members.iter().map(|member| &member.workload);
    let pods = members.filter(|member| member.kind == WorkloadKind::Pod && member.namespace == namespace);
    let own = pods.clone().find(|member| member.name == pod);
    // Those in the model are also what profiles give it.
    let own = stable(own.map_or(labels, |member| &member.labels));
    let others: BTreeSet<Labels> = pods
        .map(|member| stable(&member.labels))
        .filter(|labels| *labels != own)
        .collect();
    selector(&own, &others.iter().collect::<Vec<_>>())
}

/// Pods in workloads, by namespace and name.
fn workloads(model: &Model) -> Vec<Workload> {
    let mut groups: BTreeMap<(String, Labels), BTreeSet<usize>> = BTreeMap::new();
    for (position, member) in model.cluster().members.iter().enumerate() {
        let workload = &member.workload;
        if workload.kind == WorkloadKind::Pod {
            let key = (workload.namespace.clone(), stable(&workload.labels));
            groups.entry(key).or_default().insert(position);
        }
    }
    let labels: Vec<(String, Labels)> = groups.keys().cloned().collect();
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    let mut workloads: Vec<Workload> = groups
        .into_iter()
        .map(|((namespace, own), members)| {
            let others: Vec<&Labels> = labels
                .iter()
                .filter(|(of, labels)| *of == namespace && *labels != own)
                .map(|(_, labels)| labels)
                .collect();
            let wanted = object_name(&own, &members, model);
            let numbered = (2..).map(|number| format!("{wanted}-{number}"));
            let mut names = std::iter::once(wanted.clone()).chain(numbered);
            let name =
                names.find(|name| name != DEFAULT_DENY && used.insert((namespace.clone(), name.clone())));
            Workload {
                selector: selector(&own, &others),
                name: name.unwrap_or(wanted),
                namespace,
                members,
            }
        })
        .collect();
    workloads.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    workloads
}

fn stable(labels: &Labels) -> Labels {
    let mut labels = labels.clone();
    labels.retain(|key, _| !VOLATILE.contains(&key.as_str()));
    labels
}

/// The shortest selector that finds pods with the labels `own` and none with those of `others`: few labels, and as a
/// last resort labels that must be absent.
fn selector(own: &Labels, others: &[&Labels]) -> PodSelector {
    let rank = |key: &String| {
        NAMING
            .iter()
            .position(|naming| naming == key)
            .unwrap_or(NAMING.len())
    };
    let mut keys: Vec<&String> = own.keys().collect();
    keys.sort_by_key(|key| (rank(key), (*key).clone()));
    let unlike = |labels: &Labels| {
        let finds = |other: &&&Labels| labels.iter().all(|(key, value)| other.get(key) == Some(value));
        !others.iter().any(|other| finds(&other))
    };
    let pick = |keys: &[&String]| -> Labels {
        let pairs = keys
            .iter()
            .filter_map(|key| Some(((*key).clone(), own.get(*key)?.clone())));
        pairs.collect()
    };
    let ones = keys.iter().map(|key| vec![*key]);
    let twos = keys
        .iter()
        .enumerate()
        .flat_map(|(i, a)| keys.iter().skip(i + 1).map(move |b| vec![*a, *b]));
    let mut few = ones.chain(twos).map(|keys| pick(&keys));
    if let Some(labels) = few.find(|labels| unlike(labels)) {
        return PodSelector {
            labels,
            absent: BTreeSet::new(),
        };
    }
    // Pods with all of these labels and more differ by what they have more.
    let mut above: Vec<&&Labels> = others
        .iter()
        .filter(|other| own.iter().all(|(key, value)| other.get(key) == Some(value)))
        .collect();
    let mut absent = BTreeSet::new();
    // Each time the key that most of them have.
    while let Some(key) = most_frequent(above.iter().flat_map(|other| other.keys()), own) {
        above.retain(|other| !other.contains_key(&key));
        absent.insert(key);
    }
    let mut selector = PodSelector {
        labels: own.clone(),
        absent,
    };
    // The labels that name a workload stay longest, and one at least: without any it would find whatever comes later.
    for key in keys.iter().skip(1).rev() {
        let Some((key, value)) = selector.labels.remove_entry(*key) else {
            continue;
        };
        if others.iter().any(|other| selector.finds(other)) {
            selector.labels.insert(key, value);
        }
    }
    for key in selector.absent.clone() {
        selector.absent.remove(&key);
        if others.iter().any(|other| selector.finds(other)) {
            selector.absent.insert(key);
        }
    }
    selector
}

/// Of the keys that `own` does not have, the one that comes most often; the first by name of several.
fn most_frequent<'k>(keys: impl Iterator<Item = &'k String>, own: &Labels) -> Option<String> {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for key in keys.filter(|key| !own.contains_key(*key)) {
        *counts.entry(key).or_default() += 1;
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map(|(key, _)| key.clone())
}

impl PodSelector {
    pub(super) fn finds(&self, labels: &Labels) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.labels.iter().all(has) && !self.absent.iter().any(|key| labels.contains_key(key))
    }
}

/// A name for objects: from a label that names the workload, or from the pods' names.
fn object_name(labels: &Labels, members: &BTreeSet<usize>, model: &Model) -> String {
    let label = NAMING.iter().find_map(|key| labels.get(*key)).cloned();
    let of_pods = || {
        let names: Vec<&str> = members
            .iter()
            .filter_map(|member| Some(model.member(*member)?.workload.name.as_str()))
            .collect();
        let first: Vec<&str> = names
            .first()
            .map(|name| name.split('-').collect())
            .unwrap_or_default();
        let common = (0..first.len()).take_while(|i| {
            let part = first.get(*i).copied();
            names.iter().all(|name| name.split('-').nth(*i) == part)
        });
        let common = common.count();
        first.into_iter().take(common).collect::<Vec<_>>().join("-")
    };
    let text = label.unwrap_or_else(of_pods).to_lowercase();
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = text.chars().map(allowed).take(40).collect();
    match name.trim_matches('-') {
        "" => "pods".to_owned(),
        name => name.to_owned(),
    }
}
