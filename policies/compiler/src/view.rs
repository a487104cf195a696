//! What the compiler reads: workloads, policies and what they refer to, and how that becomes the ordered form.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::{
    calico,
    cluster_policy::ClusterNetworkPolicy,
    host_ports::{self, HostPort},
    selector::Labels,
};
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{
        Container, ContainerPort, Namespace, Node, NodeAddress, Pod, Service,
        ServiceAccount as ServiceAccountObject,
    },
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policies_ir::{
    cluster::{Cluster, Member, NetworkSet, NodePod, Translation, primary},
    policy::{NamedPort, PolicySet, Profile, ProfileRules, ServiceAccount, Staged, Workload, WorkloadKind},
    tables::EndpointId,
};

use crate::{
    calico::{Services, read_host_endpoint, read_network_set},
    cluster_policy::{NodeView, Nodes},
    field::{Errors, FieldError},
    kubernetes::protocol_number,
    load::{add_service, add_slice},
    reading::{Reading, put_together},
};

/// Profile that allows everything, for host endpoints that nobody restricts.
pub(crate) const ALLOW_PROFILE: &str = "projectcalico-default-allow";
/// What stands before a namespace's name in that of its profile.
pub(crate) const NAMESPACE_PROFILE: &str = "kns.";
/// Begins the name of the profile of a service account.
pub(crate) const ACCOUNT_PROFILE: &str = "ksa.";

/// The objects of a cluster that network policy depends on, seen from one node. Order does not matter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterView {
    /// Pods of all nodes.
    pub pods: Vec<PodView>,
    /// Pods on the network of their node, which as ends of flows are their node. The datapath has no need of them.
    pub node_pods: Vec<PodView>,
    /// Labels of each namespace. Pods of a namespace that is not here match no namespace selector.
    pub namespaces: BTreeMap<String, Labels>,
    /// Labels of each service account, by namespace and name.
    pub service_accounts: BTreeMap<(String, String), Labels>,
    /// Labels and addresses of each node.
    pub nodes: Nodes,
    /// Addresses that nodes of which no object tells any are taken to have where flows are judged from no node. No tables
    /// are made of them.
    pub assumed_nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// What is behind each service, by namespace and name.
    pub services: Services,
    /// Policies of Kubernetes.
    pub policies: Vec<NetworkPolicy>,
    /// Policies that administrators set for the whole cluster.
    pub cluster_policies: Vec<ClusterNetworkPolicy>,
    /// Objects of Calico's kinds.
    pub calico: Vec<CalicoObject>,
    /// Node that the view is from; empty offline, where it is from none.
    pub node: String,
    /// Addresses of this node.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Where it listens with others: groups, and broadcasts of its networks.
    pub host_groups: BTreeSet<IpNet>,
    /// Numbers of this node's host endpoints, by name. One without numbers gets no tables.
    pub host_endpoints: BTreeMap<String, HostEndpointIds>,
    /// Names that the trusted resolver gave for addresses.
    pub names: BTreeMap<IpAddr, BTreeSet<String>>,
}

/// An object of one of Calico's kinds.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the kind of its name")]
pub enum CalicoObject {
    Tier(calico::Tier),
    NetworkPolicy(calico::NetworkPolicy),
    GlobalNetworkPolicy(calico::GlobalNetworkPolicy),
    StagedNetworkPolicy(calico::StagedNetworkPolicy),
    StagedGlobalNetworkPolicy(calico::StagedGlobalNetworkPolicy),
    StagedKubernetesNetworkPolicy(calico::StagedKubernetesNetworkPolicy),
    NetworkSet(calico::NetworkSet),
    GlobalNetworkSet(calico::GlobalNetworkSet),
    HostEndpoint(calico::HostEndpoint),
    Profile(calico::Profile),
    FelixConfiguration(calico::FelixConfiguration),
}

/// What policy needs to know about a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Name of its service account; empty means `default`.
    pub service_account: String,
    /// Node it runs on; empty until it has one.
    pub node: String,
    /// Addresses; empty until it has some.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports that have a name, of containers and sidecars.
    pub named_ports: Vec<NamedPort>,
    /// The same of init containers that end: rules mean them, and services do not lead there.
    pub init_ports: Vec<NamedPort>,
    /// Ports of its node that lead to it.
    pub host_ports: Vec<HostPort>,
    /// Its endpoint, if it runs on this node.
    pub endpoint: Option<EndpointId>,
}

/// Numbers of what judges a host endpoint of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostEndpointIds {
    /// Flows that begin or end at the node.
    pub local: EndpointId,
    /// Flows that the node forwards. Has tables only if a policy applies to them.
    pub forwarded: EndpointId,
    /// Packets before flows are known. Has tables only if a policy applies to them; what these do not decide is the
    /// others' to judge.
    pub untracked: EndpointId,
}

/// All policy of a view, and what of it is only staged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policies {
    /// What is enforced.
    pub enforced: PolicySet,
    /// What would be.
    pub staged: Vec<Staged>,
}

impl ClusterView {
    /// The same cluster in the words of the reference.
    pub fn cluster(&self) -> Cluster {
        self.read_cluster(|_, _| {})
    }

    /// The same, calling `report` with the name of the object for each thing that could not be understood.
    pub(crate) fn read_cluster(&self, mut report: impl FnMut(&str, FieldError)) -> Cluster {
        let mut errors = Errors::new();
        let mut members: Vec<Member> = self.pods.iter().map(|pod| self.member(pod)).collect();
        let mut sets: Vec<NetworkSet> = Vec::new();
        for object in &self.calico {
            let name = match object {
                CalicoObject::HostEndpoint(object) => {
                    let mut member = read_host_endpoint(object, &mut errors);
                    let ids = self.host_endpoints.get(&member.workload.name);
                    if let Some(ids) = ids.filter(|_| member.node == self.node) {
                        member.endpoint = Some(ids.local);
                        member.forwarded = Some(ids.forwarded);
                        member.untracked = Some(ids.untracked);
                    }
                    let name = format!("HostEndpoint {}", member.workload.name);
                    members.push(member);
                    name
                }
                CalicoObject::NetworkSet(object) => {
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    let labels = self.namespaces.get(namespace).cloned();
                    let set = read_network_set("NetworkSet", object, labels, &mut errors);
                    let name = format!("NetworkSet {namespace}/{}", set.workload.name);
                    sets.push(set);
                    name
                }
                CalicoObject::GlobalNetworkSet(object) => {
                    let set = read_network_set("GlobalNetworkSet", object, None, &mut errors);
                    let name = format!("GlobalNetworkSet {}", set.workload.name);
                    sets.push(set);
                    name
                }
                _ => continue,
            };
            flush(&name, &mut errors, &mut report);
        }
        self.inherit_labels(members.iter_mut().map(|member| &mut member.workload));
        let nodes = self.node_addresses(&members);
        let node_pods = self.node_pods.iter().map(|pod| {
            let at = NodePod {
                node: pod.node.clone(),
                addresses: pod.addresses.clone(),
            };
            ((pod.namespace.clone(), pod.name.clone()), at)
        });
        Cluster {
            translations: Translation::of(&members),
            primary: self.primary_addresses(&members),
            members,
            node_pods: node_pods.collect(),
            sets,
            host_addresses: self.host_addresses.clone(),
            host_groups: self.host_groups.clone(),
            nodes,
            names: self.names.clone(),
        }
    }

    /// Addresses of each node. The one that the view is from knows its own, and what others say that it has is not its own
    /// for that. Of another, addresses that a host endpoint expects or a pod on its network has are too, unless a Node object
    /// gives them to somebody else.
    fn node_addresses(&self, members: &[Member]) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let of_objects = self.nodes.iter();
        let mut nodes: BTreeMap<String, BTreeSet<IpAddr>> = of_objects
            .map(|(name, node)| (name.clone(), node.addresses.clone()))
            .collect();
        let given: BTreeSet<&IpAddr> = self.nodes.values().flat_map(|node| &node.addresses).collect();
        let hosts = members
            .iter()
            .filter(|member| member.workload.kind == WorkloadKind::HostEndpoint);
        let of_hosts = hosts.map(|host| (&host.node, &host.addresses));
        let of_pods = self.node_pods.iter().map(|pod| (&pod.node, &pod.addresses));
        for (node, addresses) in of_hosts.chain(of_pods).filter(|(node, _)| !node.is_empty()) {
            let addresses = addresses.iter().filter(|address| !given.contains(address));
            nodes.entry(node.clone()).or_default().extend(addresses);
        }
        if !self.node.is_empty() {
            nodes.insert(self.node.clone(), self.host_addresses.clone());
        }
        nodes
    }

    /// Where each node is meant by its name: as its object says, or else the first of its host endpoints that expects any.
    fn primary_addresses(&self, members: &[Member]) -> BTreeMap<String, Vec<IpAddr>> {
        let of_objects = self.nodes.iter().filter(|(_, node)| !node.primary.is_empty());
        let mut primary: BTreeMap<String, Vec<IpAddr>> = of_objects
            .map(|(name, node)| (name.clone(), node.primary.clone()))
            .collect();
        let hosts = members.iter().filter(|member| !member.primary.is_empty());
        let mut hosts: Vec<&Member> = hosts.collect();
        hosts.sort_by_key(|host| host.host_order());
        for host in hosts {
            let known = primary.entry(host.node.clone());
            known.or_insert_with(|| host.primary.clone());
        }
        primary
    }

    /// All policies. Calls `report` with the name of the object for each thing that could not be understood; what
    /// the result says there is closed.
    pub fn policy_set(&self, report: impl FnMut(&str, FieldError)) -> Policies {
        self.policies_with(&self.nodes, &self.services, report)
    }

    /// The same where these are the nodes and what is behind services.
    pub(crate) fn policies_with(
        &self,
        nodes: &Nodes,
        services: &Services,
        mut report: impl FnMut(&str, FieldError),
    ) -> Policies {
        let of_kubernetes = self.policies.iter().map(Reading::of_kubernetes);
        let of_cluster = self.cluster_policies.iter();
        let of_cluster = of_cluster.map(|object| Reading::of_cluster_policy(object, nodes));
        let of_calico = self.calico.iter();
        let of_calico = of_calico.map(|object| Reading::of_calico(object, services));
        let readings: Vec<Reading> = of_kubernetes.chain(of_cluster).chain(of_calico).collect();
        let (tiers, others): (Vec<&Reading>, Vec<&Reading>) = readings.iter().partition(|r| r.is_tier());
        for (name, error) in tiers.iter().chain(&others).flat_map(|reading| reading.errors()) {
            report(name, error.clone());
        }
        put_together(readings.iter(), self.profiles(), &self.doubtful())
    }

    /// Gives host endpoints the labels of profiles that they name: their own come first, then those of the first
    /// profile that has one. Pods have no profiles but their namespace's, whose labels selectors see as such.
    fn inherit_labels<'w>(&self, workloads: impl Iterator<Item = &'w mut Workload>) {
        let mut labels: BTreeMap<&str, &BTreeMap<String, String>> = BTreeMap::new();
        for object in &self.calico {
            if let CalicoObject::Profile(profile) = object {
                let name = profile.metadata.name.as_deref().unwrap_or_default();
                labels.insert(name, &profile.spec.labels_to_apply);
            }
        }
        for workload in workloads.filter(|workload| workload.kind == WorkloadKind::HostEndpoint) {
            let inherited = workload.profiles.iter();
            let inherited = inherited.filter_map(|profile| labels.get(profile.as_str()));
            for (key, value) in inherited.flat_map(|labels| labels.iter()) {
                let slot = workload.labels.entry(key.clone());
                slot.or_insert_with(|| value.clone());
            }
        }
    }

    /// Whether some rule or network set asks for the names of addresses, which no object of the cluster tells.
    pub fn asks_for_names(&self) -> bool {
        let policies = self.policy_set(|_, _| {}).enforced;
        let mut rules = policies
            .tiers
            .iter()
            .flat_map(|tier| &tier.policies)
            .flat_map(|policy| &policy.egress);
        let mut sets = self.cluster().sets.into_iter();
        rules.any(|rule| !rule.peer.domains.is_empty()) || sets.any(|set| !set.domains.is_empty())
    }

    /// Adds or replaces the labels of a namespace.
    pub fn add_namespace(&mut self, namespace: &Namespace) {
        let Some(name) = namespace.metadata.name.clone() else {
            return;
        };
        let mut labels = namespace.metadata.labels.clone().unwrap_or_default();
        // The server sets this on every namespace and lets nobody change it; objects from a file lack it.
        labels.insert(api::annotations::NAMESPACE_NAME_LABEL.to_owned(), name.clone());
        self.namespaces.insert(name, labels);
    }

    /// Adds or replaces a node.
    pub fn add_node(&mut self, node: &Node) {
        let Some(name) = node.metadata.name.clone() else {
            return;
        };
        let stated = node
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let mut stated: Vec<&NodeAddress> = stated.collect();
        // As the kubelet chooses the addresses of pods on the node's network.
        stated.sort_by_key(|address| match address.type_.as_str() {
            "InternalIP" => 0,
            "ExternalIP" => 1,
            _ => 2,
        });
        let addresses = stated
            .into_iter()
            .filter_map(|address| address.address.parse::<IpAddr>().ok())
            .map(|address| address.to_canonical());
        let addresses: Vec<IpAddr> = addresses.collect();
        let view = NodeView {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            primary: primary(addresses.iter().copied()),
            addresses: addresses.into_iter().collect(),
        };
        self.nodes.insert(name, view);
    }

    /// Adds or replaces the labels of a service account.
    pub fn add_service_account(&mut self, account: &ServiceAccountObject) {
        let metadata = &account.metadata;
        let Some(name) = metadata.name.clone() else { return };
        let key = (metadata.namespace.clone().unwrap_or_default(), name);
        self.service_accounts
            .insert(key, metadata.labels.clone().unwrap_or_default());
    }

    /// Adds addresses and ports to those behind the service that the slice names.
    pub fn add_endpoint_slice(&mut self, slice: &EndpointSlice) {
        add_slice(&mut self.services, slice);
    }

    /// Adds what will be behind a service once its slices are written: those of the pods here, and of
    /// `on_node_network`, that it selects.
    pub fn add_service(&mut self, service: &Service, on_node_network: &[PodView]) {
        add_service(&mut self.services, service, [&*self.pods, on_node_network]);
    }

    pub(crate) fn member(&self, pod: &PodView) -> Member {
        let account = match pod.service_account.as_str() {
            "" => "default",
            name => name,
        };
        let key = (pod.namespace.clone(), account.to_owned());
        Member {
            workload: Workload {
                kind: WorkloadKind::Pod,
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                labels: pod.labels.clone(),
                namespace_labels: self.namespaces.get(&pod.namespace).cloned(),
                service_account: Some(ServiceAccount {
                    name: account.to_owned(),
                    labels: self.service_accounts.get(&key).cloned().unwrap_or_default(),
                }),
                profiles: vec![namespace_profile(&pod.namespace)],
                named_ports: pod.named_ports.iter().chain(&pod.init_ports).cloned().collect(),
            },
            addresses: pod.addresses.clone(),
            endpoint: pod.endpoint,
            node: pod.node.clone(),
            host_ports: pod.host_ports.clone(),
            ..Member::default()
        }
    }

    /// Network sets and host endpoints of which a part could not be understood.
    pub(crate) fn doubtful(&self) -> Vec<Workload> {
        let read = |object: &CalicoObject| {
            let mut errors = Errors::new();
            let workload = match object {
                CalicoObject::HostEndpoint(object) => read_host_endpoint(object, &mut errors).workload,
                CalicoObject::NetworkSet(object) => {
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    let labels = self.namespaces.get(namespace).cloned();
                    read_network_set("NetworkSet", object, labels, &mut errors).workload
                }
                CalicoObject::GlobalNetworkSet(object) => {
                    read_network_set("GlobalNetworkSet", object, None, &mut errors).workload
                }
                _ => return None,
            };
            (!errors.is_empty()).then_some(workload)
        };
        let mut doubtful: Vec<Workload> = self.calico.iter().filter_map(read).collect();
        self.inherit_labels(doubtful.iter_mut());
        doubtful
    }

    /// Those that exist without being written: one for each namespace, and the one that host endpoints can have.
    fn profiles(&self) -> BTreeMap<String, Profile> {
        self.profiles_with(self.pods.iter().map(|pod| pod.namespace.as_str()))
    }

    /// The same, when these are the namespaces of pods.
    pub(crate) fn profiles_with<'p>(
        &'p self,
        of_pods: impl Iterator<Item = &'p str>,
    ) -> BTreeMap<String, Profile> {
        let namespaces: BTreeSet<&str> = self
            .namespaces
            .keys()
            .map(String::as_str)
            .chain(of_pods)
            .collect();
        let names = namespaces.into_iter().map(namespace_profile);
        let profile = |name: String| Profile {
            name,
            rules: ProfileRules::AllowAll,
        };
        names
            .chain([ALLOW_PROFILE.to_owned()])
            .map(|name| (name.clone(), profile(name)))
            .collect()
    }
}

impl CalicoObject {
    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tier(_) => "Tier",
            Self::NetworkPolicy(_) => "NetworkPolicy",
            Self::GlobalNetworkPolicy(_) => "GlobalNetworkPolicy",
            Self::StagedNetworkPolicy(_) => "StagedNetworkPolicy",
            Self::StagedGlobalNetworkPolicy(_) => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy(_) => "StagedKubernetesNetworkPolicy",
            Self::NetworkSet(_) => "NetworkSet",
            Self::GlobalNetworkSet(_) => "GlobalNetworkSet",
            Self::HostEndpoint(_) => "HostEndpoint",
            Self::Profile(_) => "Profile",
            Self::FelixConfiguration(_) => "FelixConfiguration",
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Tier(object) => &object.metadata,
            Self::NetworkPolicy(object)
            | Self::GlobalNetworkPolicy(object)
            | Self::StagedNetworkPolicy(object)
            | Self::StagedGlobalNetworkPolicy(object) => &object.metadata,
            Self::StagedKubernetesNetworkPolicy(object) => &object.metadata,
            Self::NetworkSet(object) | Self::GlobalNetworkSet(object) => &object.metadata,
            Self::HostEndpoint(object) => &object.metadata,
            Self::Profile(object) => &object.metadata,
            Self::FelixConfiguration(object) => &object.metadata,
        }
    }

    /// Kind, namespace and name.
    pub(crate) fn key(&self) -> (&'static str, String, String) {
        let metadata = self.metadata();
        let own = |text: &Option<String>| text.clone().unwrap_or_default();
        // A policy of Kubernetes may have the same kind and name.
        let kind = match self {
            Self::NetworkPolicy(_) => "NetworkPolicy.projectcalico.org",
            _ => self.kind(),
        };
        (kind, own(&metadata.namespace), own(&metadata.name))
    }

    /// Whether a rule asks for what is behind a service.
    pub(crate) fn asks_for_services(&self) -> bool {
        let rules = match self {
            Self::NetworkPolicy(object)
            | Self::GlobalNetworkPolicy(object)
            | Self::StagedNetworkPolicy(object)
            | Self::StagedGlobalNetworkPolicy(object) => [&object.spec.ingress, &object.spec.egress],
            Self::Profile(object) => [&object.spec.ingress, &object.spec.egress],
            _ => return false,
        };
        let mut rules = rules.into_iter().flatten();
        rules.any(|rule| {
            let mut ends = rule.source.iter().chain(&rule.destination);
            ends.any(|end| end.services.is_some())
        })
    }
}

impl PodView {
    /// What policy sees of `pod`. Nothing for pods that have no addresses of their own: those that finished
    /// (their address may already be another's) and those on the node's network.
    pub fn from_pod(pod: &Pod, endpoint: Option<EndpointId>) -> Option<Self> {
        Self::read(pod, endpoint).filter(|_| !is_on_node_network(pod))
    }

    /// A pod on its node's network, which has not finished; nothing for others.
    pub fn on_node_network(pod: &Pod) -> Option<Self> {
        Self::read(pod, None).filter(|_| is_on_node_network(pod))
    }

    fn read(pod: &Pod, endpoint: Option<EndpointId>) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let finished = matches!(
            status.and_then(|s| s.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        if finished {
            return None;
        }
        let first = status.and_then(|s| s.pod_ip.as_deref());
        let all = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
        let addresses = first.into_iter().chain(all.iter().map(|a| a.ip.as_str()));
        // Init containers are gone when a service leads to the pod; sidecars are not.
        let inits = spec.init_containers.iter().flatten();
        let is_sidecar = |init: &&Container| init.restart_policy.as_deref() == Some("Always");
        let (sidecars, inits): (Vec<&Container>, Vec<&Container>) = inits.partition(is_sidecar);
        // The second is what the first was called once; the API server makes them one.
        let accounts = [&spec.service_account_name, &spec.service_account];
        let mut accounts = accounts
            .into_iter()
            .flatten()
            .filter(|account| !account.is_empty());
        Some(Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            service_account: accounts.next().cloned().unwrap_or_default(),
            node: spec.node_name.clone().unwrap_or_default(),
            addresses: addresses
                .filter_map(|a| a.parse::<IpAddr>().ok())
                .map(|a| a.to_canonical())
                .collect(),
            named_ports: named_ports(spec.containers.iter().chain(sidecars)),
            init_ports: named_ports(inits),
            host_ports: host_ports::of(pod),
            endpoint,
        })
    }
}

fn is_on_node_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

fn flush(name: &str, errors: &mut Errors, report: &mut impl FnMut(&str, FieldError)) {
    errors.drain(..).for_each(|error| report(name, error));
}

fn namespace_profile(namespace: &str) -> String {
    format!("{NAMESPACE_PROFILE}{namespace}")
}

fn named_ports<'c>(containers: impl IntoIterator<Item = &'c Container>) -> Vec<NamedPort> {
    let ports = containers.into_iter().flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(named_port).collect()
}

fn named_port(port: &ContainerPort) -> Option<NamedPort> {
    Some(NamedPort {
        name: port.name.clone()?,
        protocol: protocol_number(port.protocol.as_deref().unwrap_or("TCP"))?,
        port: u16::try_from(port.container_port).ok()?,
    })
}
