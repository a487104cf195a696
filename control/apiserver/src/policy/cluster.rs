//! The cluster as policy sees it, from what is stored.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use api::{
    calico::HostEndpoint,
    cluster_policy::ClusterNetworkPolicy,
    resources::{RESOURCES, Resource},
};
use control_store::{ListOptions, ObjectKey, Revision, Store, StoreError};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use policies_compiler::{CalicoObject, ClusterView, PodView};
use serde::de::DeserializeOwned;

use crate::objects;

/// Addresses for pods that have none yet; RFC 2544 keeps 198.18.0.0/15 for tests.
const ASSUMED: u32 = u32::from_be_bytes([198, 18, 0, 0]);

/// Label that says who writes a slice.
const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What it says on those that the control plane derives from services and pods.
const SLICE_MANAGER: &str = "endpointslice-controller.k8s.io";

/// A stored object that cannot be read as what it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the store")]
    Store(#[from] StoreError),
    #[error("{key}")]
    Object {
        key: Box<ObjectKey>,
        #[source]
        source: serde_json::Error,
    },
}

/// What policy sees of one object.
#[derive(Debug)]
pub(super) enum Part {
    /// Nothing if the pod has no addresses of its own.
    Pod(Option<PodView>),
    /// On its node's network: nothing but a service makes policy see it.
    NodePod(PodView),
    Service(Box<Service>),
    Namespace(Namespace),
    Node(Box<Node>),
    ServiceAccount(ServiceAccount),
    EndpointSlice(EndpointSlice),
    NetworkPolicy(NetworkPolicy),
    ClusterPolicy(ClusterNetworkPolicy),
    Calico(CalicoObject),
}

/// Parts of objects by their key, with the revision that they were read at: most objects did not change since the
/// last look.
#[derive(Debug, Default)]
pub(super) struct Parts {
    known: HashMap<ObjectKey, (Revision, Arc<Part>)>,
}

/// All objects that policy depends on.
#[derive(Debug, Clone, Default)]
pub(super) struct Objects {
    parts: HashMap<ObjectKey, Arc<Part>>,
    /// What is judged: a slice is judged as it is written, whoever will write it again.
    written: Option<ObjectKey>,
}

impl Parts {
    /// Reads what changed.
    pub(super) async fn read(&mut self, store: &dyn Store) -> Result<Objects, ReadError> {
        let mut known = HashMap::with_capacity(self.known.len());
        let mut parts = HashMap::with_capacity(self.known.len());
        for row in RESOURCES.iter().filter(|row| reader(row).is_some()) {
            let prefix = objects::prefix(row, None);
            for stored in store.list(&prefix, &ListOptions::default()).await?.items {
                let part = match self.known.remove(&stored.key) {
                    Some((revision, part)) if revision == stored.revision => part,
                    _ => match Part::read(row, &stored.value) {
                        Ok(Some(part)) => Arc::new(part),
                        Ok(None) => continue,
                        Err(source) => {
                            let key = Box::new(stored.key);
                            return Err(ReadError::Object { key, source });
                        }
                    },
                };
                known.insert(stored.key.clone(), (stored.revision, Arc::clone(&part)));
                parts.insert(stored.key, part);
            }
        }
        self.known = known;
        Ok(Objects { parts, written: None })
    }
}

impl Part {
    /// What policy sees of an object; nothing for kinds that it does not look at.
    pub(super) fn read(row: &Resource, object: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        reader(row).map(|read| read(object)).transpose()
    }
}

impl Objects {
    /// The same with one object replaced, added or taken away.
    pub(super) fn with(mut self, key: ObjectKey, part: Option<Part>) -> Self {
        self.written = Some(key.clone());
        match part {
            Some(part) => self.parts.insert(key, Arc::new(part)),
            None => self.parts.remove(&key),
        };
        self
    }

    /// HostEndpoints and nodes, each in the order of their names.
    pub(super) fn hosts(&self) -> (Vec<&HostEndpoint>, Vec<&Node>) {
        let parts: BTreeMap<_, _> = self.parts.iter().collect();
        let (mut hosts, mut nodes) = (Vec::new(), Vec::new());
        for part in parts.into_values() {
            match &**part {
                Part::Calico(CalicoObject::HostEndpoint(host)) => hosts.push(host),
                Part::Node(node) => nodes.push(&**node),
                _ => {}
            }
        }
        (hosts, nodes)
    }

    /// As the compiler and the checker read it. What is behind services is what their slices will say: whoever
    /// writes services and labels of pods decides it, although it is a controller that writes it down.
    pub(super) fn view(&self) -> ClusterView {
        let mut view = ClusterView::default();
        let (mut services, mut on_node_network) = (Vec::new(), Vec::new());
        // In order, so that equal objects give equal views.
        let parts: BTreeMap<_, _> = self.parts.iter().collect();
        for (key, part) in parts {
            match &**part {
                Part::Pod(pod) => view.pods.extend(pod.clone()),
                Part::NodePod(pod) => on_node_network.push(pod.clone()),
                Part::Service(service) => services.push(service),
                Part::Namespace(namespace) => view.add_namespace(namespace),
                Part::Node(node) => view.add_node(node),
                Part::ServiceAccount(account) => view.add_service_account(account),
                Part::EndpointSlice(slice) if is_derived(slice) && self.written.as_ref() != Some(key) => {}
                Part::EndpointSlice(slice) => view.add_endpoint_slice(slice),
                Part::NetworkPolicy(policy) => view.policies.push(policy.clone()),
                Part::ClusterPolicy(policy) => view.cluster_policies.push(policy.clone()),
                Part::Calico(object) => view.calico.push(object.clone()),
            }
        }
        assume_addresses(&mut view.pods);
        view.node_pods.clone_from(&on_node_network);
        // Nobody knows yet which node's addresses these will have.
        let of_nodes: BTreeSet<IpAddr> = view
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().copied())
            .collect();
        for pod in on_node_network.iter_mut().filter(|pod| pod.addresses.is_empty()) {
            pod.addresses.clone_from(&of_nodes);
        }
        for service in services {
            view.add_service(service, &on_node_network);
        }
        view
    }
}

/// Whether the control plane writes the slice from a service and pods.
fn is_derived(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(SLICE_MANAGED_BY))
        .map(String::as_str)
        == Some(SLICE_MANAGER)
}

fn read_pod(pod: &Pod) -> Part {
    match PodView::on_node_network(pod) {
        Some(pod) => Part::NodePod(pod),
        None => Part::Pod(PodView::from_pod(pod, None)),
    }
}

/// A pod that was just admitted will have an address, and what it may do then is what is asked about.
fn assume_addresses(pods: &mut [PodView]) {
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let taken: BTreeSet<IpAddr> = pods
        .iter()
        .flat_map(|pod| pod.addresses.iter().copied())
        .collect();
    let mut free = (ASSUMED..)
        .map(|address| IpAddr::V4(Ipv4Addr::from(address)))
        .filter(|address| !taken.contains(address));
    for pod in pods.iter_mut().filter(|pod| pod.addresses.is_empty()) {
        pod.addresses.extend(free.next());
    }
}

type Read = fn(&[u8]) -> Result<Part, serde_json::Error>;

/// How objects of a kind are read; nothing for kinds that policy does not look at. What is only staged decides
/// nothing.
fn reader(row: &Resource) -> Option<Read> {
    fn typed<T: DeserializeOwned>(object: &[u8], part: fn(T) -> Part) -> Result<Part, serde_json::Error> {
        serde_json::from_slice(object).map(part)
    }
    fn calico<T: DeserializeOwned>(
        object: &[u8],
        part: fn(T) -> CalicoObject,
    ) -> Result<Part, serde_json::Error> {
        serde_json::from_slice(object).map(|object| Part::Calico(part(object)))
    }
    let reader: Read = match (row.group, row.kind) {
        ("", "Pod") => |object| typed(object, |pod: Pod| read_pod(&pod)),
        ("", "Service") => |object| typed(object, |service| Part::Service(Box::new(service))),
        ("", "Namespace") => |object| typed(object, Part::Namespace),
        ("", "Node") => |object| typed(object, |node| Part::Node(Box::new(node))),
        ("", "ServiceAccount") => |object| typed(object, Part::ServiceAccount),
        ("discovery.k8s.io", "EndpointSlice") => |object| typed(object, Part::EndpointSlice),
        ("networking.k8s.io", "NetworkPolicy") => |object| typed(object, Part::NetworkPolicy),
        ("policy.networking.k8s.io", "ClusterNetworkPolicy") => |object| typed(object, Part::ClusterPolicy),
        ("projectcalico.org", kind) => match kind {
            "FelixConfiguration" => |object| calico(object, CalicoObject::FelixConfiguration),
            "GlobalNetworkPolicy" => |object| calico(object, CalicoObject::GlobalNetworkPolicy),
            "GlobalNetworkSet" => |object| calico(object, CalicoObject::GlobalNetworkSet),
            "HostEndpoint" => |object| calico(object, CalicoObject::HostEndpoint),
            "NetworkPolicy" => |object| calico(object, CalicoObject::NetworkPolicy),
            "NetworkSet" => |object| calico(object, CalicoObject::NetworkSet),
            "Tier" => |object| calico(object, CalicoObject::Tier),
            _ => return None,
        },
        _ => return None,
    };
    Some(reader)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(resource: &str, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(resource, namespace, name)
    }

    fn part(resource: &str, object: &serde_json::Value) -> Option<Part> {
        let row = api::resources::by_any_name(resource).unwrap();
        Part::read(row, object.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn pods_without_an_address_get_one_that_nobody_has() {
        let pod = |name: &str, address: Option<&str>| {
            let status = address.map(|address| json!({"podIP": address}));
            part(
                "pods",
                &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a"},
                    "spec": {"containers": []}, "status": status.unwrap_or_else(|| json!({}))}),
            )
        };
        let objects = Objects::default()
            .with(key("core/pods", "a", "x"), pod("x", None))
            .with(key("core/pods", "a", "y"), pod("y", Some("198.18.0.0")))
            .with(key("core/pods", "a", "z"), pod("z", None));
        let addresses: Vec<String> = objects
            .view()
            .pods
            .iter()
            .flat_map(|pod| pod.addresses.iter().map(ToString::to_string))
            .collect();
        assert_eq!(addresses, ["198.18.0.1", "198.18.0.0", "198.18.0.2"]);
        let without = objects.with(key("core/pods", "a", "y"), None);
        assert_eq!(without.view().pods.len(), 2);
    }

    #[test]
    fn what_is_behind_a_service_follows_from_it_and_the_pods() {
        let pod = |name: &str, on_node: bool, address: &str| {
            part(
                "pods",
                &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "labels": {"app": "web"}},
                    "spec": {"containers": [], "hostNetwork": on_node}, "status": {"podIP": address}}),
            )
        };
        let slice = |manager: &str, address: &str| {
            part(
                "endpointslices",
                &json!({"metadata": {"name": manager, "namespace": "a", "labels": {
                    "kubernetes.io/service-name": "web", SLICE_MANAGED_BY: manager}},
                    "addressType": "IPv4", "endpoints": [{"addresses": [address]}]}),
            )
        };
        let service = json!({"metadata": {"name": "web", "namespace": "a"},
            "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"]}});
        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"}]}});
        let slices = |name: &str| key("discovery.k8s.io/endpointslices", "a", name);
        let objects = Objects::default()
            .with(key("core/nodes", "", "n"), part("nodes", &node))
            .with(slices("ours"), slice(SLICE_MANAGER, "10.0.0.8"))
            .with(slices("theirs"), slice("them", "10.0.0.9"))
            .with(key("core/pods", "a", "x"), pod("x", false, "10.0.0.1"))
            .with(key("core/pods", "a", "y"), pod("y", true, "192.0.2.7"))
            .with(key("core/pods", "a", "z"), pod("z", true, ""))
            .with(key("core/services", "a", "web"), part("services", &service));
        let behind = |objects: &Objects| {
            let view = objects.view();
            let behind = view.services.values().flatten();
            behind
                .map(|endpoint| endpoint.address.to_string())
                .collect::<BTreeSet<_>>()
        };
        let derived = ["10.0.0.1", "10.0.0.9", "192.0.2.1", "192.0.2.7"];
        assert!(behind(&objects).iter().eq(derived), "{:?}", behind(&objects));
        let rewritten = objects
            .clone()
            .with(slices("ours"), slice(SLICE_MANAGER, "10.0.0.8"));
        assert!(behind(&rewritten).contains("10.0.0.8"));
        let without = objects.with(key("core/services", "a", "web"), None);
        assert!(behind(&without).iter().eq(["10.0.0.9"]));
    }

    /// Whatever decides packets is read: a kind that the compiler knows and this table does not would be judged as
    /// if it were not there.
    #[test]
    fn every_kind_that_decides_is_read() {
        let unread: Vec<&str> = RESOURCES
            .iter()
            .filter(|row| row.group.starts_with("policy.") || row.group.starts_with("projectcalico."))
            .filter(|row| reader(row).is_none())
            .map(|row| row.kind)
            .collect();
        assert_eq!(
            unread,
            [
                "Profile",
                "StagedGlobalNetworkPolicy",
                "StagedKubernetesNetworkPolicy",
                "StagedNetworkPolicy"
            ]
        );
    }
}
