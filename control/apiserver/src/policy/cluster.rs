//! The cluster as policy sees it, from what is stored.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use api::{
    cluster_policy::ClusterNetworkPolicy,
    resources::{RESOURCES, Resource},
};
use control_store::{ListOptions, ObjectKey, Revision, Store, StoreError};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use policies_compiler::{CalicoObject, ClusterView, PodView};
use serde::de::DeserializeOwned;

use crate::objects;

/// Addresses for pods that have none yet; RFC 2544 keeps 198.18.0.0/15 for tests.
const ASSUMED: u32 = u32::from_be_bytes([198, 18, 0, 0]);

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
        Ok(Objects { parts })
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
        match part {
            Some(part) => self.parts.insert(key, Arc::new(part)),
            None => self.parts.remove(&key),
        };
        self
    }

    /// As the compiler and the checker read it.
    pub(super) fn view(&self) -> ClusterView {
        let mut view = ClusterView::default();
        for part in self.parts.values() {
            match &**part {
                Part::Pod(pod) => view.pods.extend(pod.clone()),
                Part::Namespace(namespace) => view.add_namespace(namespace),
                Part::Node(node) => view.add_node(node),
                Part::ServiceAccount(account) => view.add_service_account(account),
                Part::EndpointSlice(slice) => view.add_endpoint_slice(slice),
                Part::NetworkPolicy(policy) => view.policies.push(policy.clone()),
                Part::ClusterPolicy(policy) => view.cluster_policies.push(policy.clone()),
                Part::Calico(object) => view.calico.push(object.clone()),
            }
        }
        assume_addresses(&mut view.pods);
        view
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
        ("", "Pod") => |object| typed(object, |pod: Pod| Part::Pod(PodView::from_pod(&pod, None))),
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
