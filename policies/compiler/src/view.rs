//! What the compiler reads: workloads, policies and what they refer to, and how that becomes the ordered form.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use api::{calico, cluster_policy::ClusterNetworkPolicy, selector::Labels};
use k8s_openapi::api::{
    core::v1::{ContainerPort, Namespace, Node, Pod, ServiceAccount as ServiceAccountObject},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use policies_ir::{
    cluster::{Cluster, Member, NetworkSet},
    policy::{
        DefaultAction, NamedPort, Order, Policy, PolicySet, Profile, ProfileRules, ServiceAccount, Staged,
        Tier, Workload, WorkloadKind,
    },
    tables::{Direction, EndpointId},
};

use crate::{
    calico::{
        BUILT_IN_TIERS, DEFAULT_TIER, RuleScope, Scope, Services, StagedAction, close_over, is_tier_name,
        read_configuration, read_host_endpoint, read_network_set, read_policy, read_rules,
        read_staged_action, read_tier, shown_name,
    },
    cluster_policy::{self, NodeView, Nodes},
    field::{Errors, FieldError},
    kubernetes::{self, protocol_number},
    load::add_slice,
};

/// Profile that allows everything, for host endpoints that nobody restricts.
const ALLOW_PROFILE: &str = "projectcalico-default-allow";
/// Beginnings of the names of profiles that nobody writes.
const COMPUTED_PROFILES: [&str; 2] = ["kns.", "ksa."];
/// Name of the settings that count.
const CONFIGURATION: &str = "default";

/// The objects of a cluster that network policy depends on, seen from one node. Order does not matter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterView {
    /// Pods of all nodes.
    pub pods: Vec<PodView>,
    /// Labels of each namespace. Pods of a namespace that is not here match no namespace selector.
    pub namespaces: BTreeMap<String, Labels>,
    /// Labels of each service account, by namespace and name.
    pub service_accounts: BTreeMap<(String, String), Labels>,
    /// Labels and addresses of each node.
    pub nodes: Nodes,
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
    /// Container ports that have a name.
    pub named_ports: Vec<NamedPort>,
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
        self.inherit_labels(&mut members);
        let mut nodes: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for (name, node) in &self.nodes {
            nodes.insert(name.clone(), node.addresses.clone());
        }
        let hosts = members
            .iter()
            .filter(|member| member.workload.kind == WorkloadKind::HostEndpoint);
        for host in hosts.filter(|host| !host.node.is_empty()) {
            nodes
                .entry(host.node.clone())
                .or_default()
                .extend(&host.addresses);
        }
        Cluster {
            members,
            sets,
            host_addresses: self.host_addresses.clone(),
            nodes,
            names: self.names.clone(),
        }
    }

    /// All policies. Calls `report` with the name of the object for each thing that could not be understood; what
    /// the result says there is closed.
    pub fn policy_set(&self, mut report: impl FnMut(&str, FieldError)) -> Policies {
        let mut tiers: BTreeMap<String, Tier> = BTreeMap::new();
        for (name, order, default_action) in BUILT_IN_TIERS {
            let tier = Tier {
                name: name.to_owned(),
                order: Order(Some(order)),
                default_action,
                policies: Vec::new(),
            };
            tiers.insert(name.to_owned(), tier);
        }
        let mut errors = Errors::new();
        for object in &self.calico {
            if let CalicoObject::Tier(object) = object {
                let tier = read_tier(object, &mut errors);
                flush(&format!("Tier {}", tier.name), &mut errors, &mut report);
                tiers.insert(tier.name.clone(), tier);
            }
        }
        let mut enforce = |tier: String, policy: Policy| {
            let missing = || Tier {
                // Nobody said when it comes, nor how it ends: it comes last, and denies. What is no name of a tier
                // may have been meant to be any; its policies deny everything, and come first.
                name: tier.clone(),
                order: Order((!is_tier_name(&tier)).then_some(f64::NEG_INFINITY)),
                default_action: DefaultAction::Deny,
                policies: Vec::new(),
            };
            let tier = tiers.entry(tier.clone()).or_insert_with(missing);
            tier.policies.push(Arc::new(policy));
        };
        for object in &self.policies {
            let policy = kubernetes::read(object, &mut errors);
            flush(&policy.name, &mut errors, &mut report);
            enforce(DEFAULT_TIER.to_owned(), policy);
        }
        for object in &self.cluster_policies {
            let (tier, policy) = cluster_policy::read(object, &self.nodes, &mut errors);
            flush(&policy.name, &mut errors, &mut report);
            enforce(tier, policy);
        }
        let mut staged = Vec::new();
        let (mut endpoint_to_host, mut failsafe) = read_configuration(&Default::default(), &mut errors);
        let mut profiles = self.profiles();
        for object in &self.calico {
            let enforced = match object {
                CalicoObject::NetworkPolicy(object) => Some(read_policy(
                    "NetworkPolicy",
                    Scope::Namespace,
                    object,
                    &self.services,
                    &mut errors,
                )),
                CalicoObject::GlobalNetworkPolicy(object) => {
                    let kind = "GlobalNetworkPolicy";
                    Some(read_policy(
                        kind,
                        Scope::Cluster,
                        object,
                        &self.services,
                        &mut errors,
                    ))
                }
                CalicoObject::FelixConfiguration(object) => {
                    if object.metadata.name.as_deref() == Some(CONFIGURATION) {
                        (endpoint_to_host, failsafe) = read_configuration(&object.spec, &mut errors);
                        flush("FelixConfiguration default", &mut errors, &mut report);
                    }
                    None
                }
                CalicoObject::Profile(object) => {
                    let profile = self.read_profile(object, &mut errors);
                    flush(&format!("Profile {}", profile.name), &mut errors, &mut report);
                    profiles.entry(profile.name.clone()).or_insert(profile);
                    None
                }
                _ => {
                    staged.extend(self.read_staged(object, &mut errors));
                    // What is wrong with it closes nothing that is enforced, but it is not what was meant.
                    flush(&staged_name(object), &mut errors, &mut report);
                    None
                }
            };
            if let Some((tier, policy)) = enforced {
                flush(&policy.name, &mut errors, &mut report);
                enforce(tier, policy);
            }
        }
        let mut enforced = PolicySet {
            tiers: tiers.into_values().collect(),
            profiles,
            failsafe,
            endpoint_to_host,
        };
        close_over(&mut enforced, &self.doubtful());
        Policies { enforced, staged }
    }

    /// Gives host endpoints the labels of profiles that they name: their own come first, then those of the first
    /// profile that has one. Pods have no profiles but their namespace's, whose labels selectors see as such.
    fn inherit_labels(&self, members: &mut [Member]) {
        let mut labels: BTreeMap<&str, &BTreeMap<String, String>> = BTreeMap::new();
        for object in &self.calico {
            if let CalicoObject::Profile(profile) = object {
                let name = profile.metadata.name.as_deref().unwrap_or_default();
                labels.insert(name, &profile.spec.labels_to_apply);
            }
        }
        for member in members {
            if member.workload.kind == WorkloadKind::HostEndpoint {
                let inherited = member.workload.profiles.iter();
                let inherited = inherited.filter_map(|profile| labels.get(profile.as_str()));
                for (key, value) in inherited.flat_map(|labels| labels.iter()) {
                    let slot = member.workload.labels.entry(key.clone());
                    slot.or_insert_with(|| value.clone());
                }
            }
        }
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
        let addresses = node
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let view = NodeView {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            addresses: addresses
                .filter_map(|address| address.address.parse::<IpAddr>().ok())
                .map(|address| address.to_canonical())
                .collect(),
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
                named_ports: pod.named_ports.clone(),
            },
            addresses: pod.addresses.clone(),
            endpoint: pod.endpoint,
            node: pod.node.clone(),
            ..Member::default()
        }
    }

    /// Network sets and host endpoints of which a part could not be understood.
    fn doubtful(&self) -> Vec<Workload> {
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
        self.calico.iter().filter_map(read).collect()
    }

    /// Those that exist without being written: one for each namespace, and the one that host endpoints can have.
    fn profiles(&self) -> BTreeMap<String, Profile> {
        let of_pods = self.pods.iter().map(|pod| pod.namespace.as_str());
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

    fn read_profile(&self, object: &calico::Profile, errors: &mut Errors) -> Profile {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        if COMPUTED_PROFILES.iter().any(|prefix| name.starts_with(prefix)) || name == ALLOW_PROFILE {
            errors.push(FieldError {
                field: "metadata.name".to_owned(),
                problem: format!("{name:?} is computed from namespaces and service accounts, so this object would not count"),
                fix: "leave the object out, or give the profile another name".to_owned(),
            });
        }
        let scope = RuleScope {
            namespace: "",
            services: &self.services,
            stateless: false,
        };
        let spec = &object.spec;
        Profile {
            name: object.metadata.name.clone().unwrap_or_default(),
            rules: ProfileRules::Own {
                ingress: read_rules(&spec.ingress, Direction::Ingress, scope, errors),
                egress: read_rules(&spec.egress, Direction::Egress, scope, errors),
            },
        }
    }

    /// The change that a staged policy would be; nothing for other objects, and for one that would change nothing.
    fn read_staged(&self, object: &CalicoObject, errors: &mut Errors) -> Option<Staged> {
        let (kind, enforced_kind, scope, object) = match object {
            CalicoObject::StagedNetworkPolicy(object) => {
                ("StagedNetworkPolicy", "NetworkPolicy", Scope::Namespace, object)
            }
            CalicoObject::StagedGlobalNetworkPolicy(object) => {
                let kind = "StagedGlobalNetworkPolicy";
                (kind, "GlobalNetworkPolicy", Scope::Cluster, object)
            }
            CalicoObject::StagedKubernetesNetworkPolicy(object) => {
                return read_staged_kubernetes(object, errors);
            }
            _ => return None,
        };
        let metadata = &object.metadata;
        let namespace = match scope {
            Scope::Namespace => metadata.namespace.as_deref().unwrap_or_default(),
            Scope::Cluster => "",
        };
        let name = metadata.name.as_deref().unwrap_or_default();
        let action = read_staged_action(object.spec.staged_action.as_deref(), errors);
        let (tier, policy) = read_policy(kind, scope, object, &self.services, errors);
        let policy = match action {
            StagedAction::Nothing => return None,
            StagedAction::Set => Some(Arc::new(policy)),
            StagedAction::Delete => {
                check_deletes_only(&object.spec, errors);
                None
            }
        };
        Some(Staged {
            tier,
            replaces: shown_name(enforced_kind, namespace, name),
            policy,
        })
    }
}

impl PodView {
    /// What policy sees of `pod`. Nothing for pods that have no addresses of their own: those that finished
    /// (their address may already be another's) and those on the node's network.
    pub fn from_pod(pod: &Pod, endpoint: Option<EndpointId>) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let finished = matches!(
            status.and_then(|s| s.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        if finished || spec.host_network == Some(true) {
            return None;
        }
        let first = status.and_then(|s| s.pod_ip.as_deref());
        let all = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
        let addresses = first.into_iter().chain(all.iter().map(|a| a.ip.as_str()));
        let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
        Some(Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            service_account: spec.service_account_name.clone().unwrap_or_default(),
            node: spec.node_name.clone().unwrap_or_default(),
            addresses: addresses
                .filter_map(|a| a.parse::<IpAddr>().ok())
                .map(|a| a.to_canonical())
                .collect(),
            named_ports: ports.filter_map(named_port).collect(),
            endpoint,
        })
    }
}

fn read_staged_kubernetes(
    object: &calico::StagedKubernetesNetworkPolicy,
    errors: &mut Errors,
) -> Option<Staged> {
    let spec = &object.spec;
    let action = read_staged_action(spec.staged_action.as_deref(), errors);
    let mut policy = NetworkPolicy {
        metadata: object.metadata.clone(),
        spec: None,
    };
    let replaces = kubernetes::read(&policy, &mut Errors::new()).name;
    policy.spec = Some(k8s_openapi::api::networking::v1::NetworkPolicySpec {
        pod_selector: spec.pod_selector.clone(),
        ingress: spec.ingress.clone(),
        egress: spec.egress.clone(),
        policy_types: spec.policy_types.clone(),
    });
    let mut read = kubernetes::read(&policy, errors);
    read.name = format!(
        "Staged{}",
        read.name.replacen("NetworkPolicy", "KubernetesNetworkPolicy", 1)
    );
    let policy = match action {
        StagedAction::Nothing => return None,
        StagedAction::Set => Some(Arc::new(read)),
        StagedAction::Delete => None,
    };
    Some(Staged {
        tier: DEFAULT_TIER.to_owned(),
        replaces,
        policy,
    })
}

/// Name of a staged policy for people; empty for other objects.
fn staged_name(object: &CalicoObject) -> String {
    let (kind, metadata) = match object {
        CalicoObject::StagedNetworkPolicy(object) => ("StagedNetworkPolicy", &object.metadata),
        CalicoObject::StagedGlobalNetworkPolicy(object) => ("StagedGlobalNetworkPolicy", &object.metadata),
        CalicoObject::StagedKubernetesNetworkPolicy(object) => {
            ("StagedKubernetesNetworkPolicy", &object.metadata)
        }
        _ => return String::new(),
    };
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    shown_name(kind, namespace, metadata.name.as_deref().unwrap_or_default())
}

/// What is deleted has no other fields: whoever wrote some expected them to count.
fn check_deletes_only(spec: &calico::PolicySpec, errors: &mut Errors) {
    let empty = calico::PolicySpec {
        staged_action: spec.staged_action.clone(),
        tier: spec.tier.clone(),
        ..calico::PolicySpec::default()
    };
    if *spec != empty {
        errors.push(FieldError {
            field: "spec".to_owned(),
            problem: "a policy that is to be deleted has no fields but tier and stagedAction".to_owned(),
            fix: "leave the others out".to_owned(),
        });
    }
}

fn flush(name: &str, errors: &mut Errors, report: &mut impl FnMut(&str, FieldError)) {
    errors.drain(..).for_each(|error| report(name, error));
}

fn namespace_profile(namespace: &str) -> String {
    format!("kns.{namespace}")
}

fn named_port(port: &ContainerPort) -> Option<NamedPort> {
    Some(NamedPort {
        name: port.name.clone()?,
        protocol: protocol_number(port.protocol.as_deref().unwrap_or("TCP"))?,
        port: u16::try_from(port.container_port).ok()?,
    })
}
