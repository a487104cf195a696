//! What the compiler reads: pods, namespaces, policies and the node's addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::selector::Labels;
use k8s_openapi::api::{
    core::v1::{ContainerPort, Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use policies_ir::{
    cluster::{Cluster, Member},
    policy::{NamedPort, Workload},
    tables::EndpointId,
};

use crate::kubernetes::protocol_number;

/// The objects of a cluster that network policy depends on, seen from one node. Order does not matter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterView {
    /// Pods of all nodes.
    pub pods: Vec<PodView>,
    /// Labels of each namespace. Pods of a namespace that is not here match no namespace selector.
    pub namespaces: BTreeMap<String, Labels>,
    /// Policies of all namespaces.
    pub policies: Vec<NetworkPolicy>,
    /// Addresses of this node.
    pub host_addresses: BTreeSet<IpAddr>,
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
    /// Addresses; empty until it has some.
    pub addresses: BTreeSet<IpAddr>,
    /// Container ports that have a name.
    pub named_ports: Vec<NamedPort>,
    /// Its endpoint, if it runs on this node.
    pub endpoint: Option<EndpointId>,
}

impl ClusterView {
    /// The same cluster in the words of the reference.
    pub fn cluster(&self) -> Cluster {
        let members = self.pods.iter().map(|pod| Member {
            workload: Workload {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                labels: pod.labels.clone(),
                namespace_labels: self.namespaces.get(&pod.namespace).cloned(),
                named_ports: pod.named_ports.clone(),
            },
            addresses: pod.addresses.clone(),
            endpoint: pod.endpoint,
        });
        Cluster {
            members: members.collect(),
            host_addresses: self.host_addresses.clone(),
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
            addresses: addresses
                .filter_map(|a| a.parse::<IpAddr>().ok())
                .map(|a| a.to_canonical())
                .collect(),
            named_ports: ports.filter_map(named_port).collect(),
            endpoint,
        })
    }
}

fn named_port(port: &ContainerPort) -> Option<NamedPort> {
    Some(NamedPort {
        name: port.name.clone()?,
        protocol: protocol_number(port.protocol.as_deref().unwrap_or("TCP"))?,
        port: u16::try_from(port.container_port).ok()?,
    })
}
