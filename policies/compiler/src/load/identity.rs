//! Which objects are one and the same, however they are written.

use api::calico;
use serde_json::Value;

use crate::load::{DEFAULT_NAMESPACE, stored};

/// Kinds that have a namespace. What one of the others says of a namespace means nothing.
pub(super) const NAMESPACED_KINDS: [&str; 8] = [
    "Pod",
    "Service",
    "ServiceAccount",
    "EndpointSlice",
    "NetworkPolicy",
    "StagedNetworkPolicy",
    "StagedKubernetesNetworkPolicy",
    "NetworkSet",
];

/// What tells an object that network policy depends on from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// `Kind.group`.
    kind: String,
    /// Empty for an object of the cluster.
    namespace: String,
    name: String,
}

/// The identity of an object, alike for two ways to write one: a namespace that is not there or empty is the default one, and
/// what Calico keeps under a group and a name of its own is the object of its API.
pub fn identity(object: &Value) -> Identity {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let (api_version, name) = match api_version {
        stored::API_VERSION => (calico::API_VERSION, stored::name_in_api(object)),
        other => (other, text("/metadata/name").to_owned()),
    };
    let namespace = match (NAMESPACED_KINDS.contains(&kind), text("/metadata/namespace")) {
        (false, _) => "",
        (true, "") => DEFAULT_NAMESPACE,
        (true, namespace) => namespace,
    };
    Identity {
        kind: format!("{kind}.{}", group_of(api_version)),
        namespace: namespace.to_owned(),
        name,
    }
}

/// The group of an `apiVersion`; that of `v1` has no name.
pub(super) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}
