//! What a node may do: its own node object and lease, the pods bound to it, what those refer to, and the
//! read access that compiling network policy takes.

use crate::{Decision, ResourceTarget};

/// Namespace of the nodes' heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Calico's resources that a node compiles. Profiles are computed from namespaces and service accounts, which it
/// reads itself.
const POLICY_RESOURCES: &[&str] = &[
    "felixconfigurations",
    "globalnetworkpolicies",
    "globalnetworksets",
    "hostendpoints",
    "networkpolicies",
    "networksets",
    "stagedglobalnetworkpolicies",
    "stagedkubernetesnetworkpolicies",
    "stagednetworkpolicies",
    "tiers",
];

/// What the authorizer has to know about pods and nodes. [`crate::NodeIndex`] is the implementation.
pub trait NodeView {
    /// Whether the pod exists and is bound to the node.
    fn pod_on_node(&self, node: &str, namespace: &str, pod: &str) -> bool;

    /// Whether the volume was provisioned on the node.
    fn volume_on_node(&self, node: &str, volume: &str) -> bool;

    /// Whether a pod bound to the node, which has not ended, refers to the object.
    fn referenced(&self, node: &str, kind: ReferencedKind, namespace: &str, name: &str) -> bool;
}

/// Kinds that pods refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReferencedKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
    /// The ServiceAccount that a pod runs as.
    ServiceAccount,
    /// A PersistentVolumeClaim.
    Claim,
}

/// Decides for the node `node`.
pub(crate) fn decide(node: &str, verb: &str, target: &ResourceTarget, view: &dyn NodeView) -> Decision {
    let own_name = target.name == node;
    let own_pod = || match view.pod_on_node(node, &target.namespace, &target.name) {
        true => Decision::Allow,
        false => Decision::Deny(format!("can only change pods that are bound to node {node:?}")),
    };
    let reference = |kind| match view.referenced(node, kind, &target.namespace, &target.name) {
        true => Decision::Allow,
        false => Decision::Deny(format!(
            "no relationship found between node {node:?} and this object"
        )),
    };
    let own_node = |allowed: bool| match (allowed, own_name) {
        (true, false) => Decision::Deny(format!("node {node:?} can only access its own node and lease")),
        (allowed, _) => Decision::allow_if(allowed),
    };

    let full = target.full_resource();
    match (target.group.as_str(), full.as_str(), verb) {
        // Policies name nodes by label: their addresses are part of what is compiled.
        ("", "nodes", "get" | "list" | "watch") => Decision::Allow,
        ("", "nodes", verb) => own_node(matches!(verb, "create" | "update" | "patch")),
        ("", "nodes/status", verb) => own_node(matches!(verb, "get" | "update" | "patch")),
        ("coordination.k8s.io", "leases", verb) if target.namespace == LEASE_NAMESPACE => {
            own_node(matches!(verb, "create" | "get" | "update" | "patch"))
        }

        // Compiling policy takes the labels and addresses of all pods, wherever they run, the labels of what they
        // belong to, and every policy.
        ("", "pods" | "namespaces" | "serviceaccounts", "get" | "list" | "watch") => Decision::Allow,
        ("discovery.k8s.io", "endpointslices", "get" | "list" | "watch") => Decision::Allow,
        ("networking.k8s.io", "networkpolicies", "get" | "list" | "watch") => Decision::Allow,
        // The node decides again about paths of its own.
        ("palisade.dev", "hostpathgrants", "get" | "list" | "watch") => Decision::Allow,
        // Pods name their sandbox; it holds no secrets.
        ("palisade.dev", "sandboxprofiles", "get" | "list" | "watch") => Decision::Allow,
        ("policy.networking.k8s.io", "clusternetworkpolicies", "get" | "list" | "watch") => Decision::Allow,
        ("projectcalico.org", resource, "get" | "list" | "watch") => {
            Decision::allow_if(POLICY_RESOURCES.contains(&resource))
        }

        // What a file of the node asks for. That it is bound to the node and refers to nothing is admission's to see.
        ("", "pods", "create") => match target.name.ends_with(&format!("-{node}")) {
            true => Decision::Allow,
            false => Decision::Deny(format!("can only create pods whose name ends with \"-{node}\"")),
        },
        ("", "pods", "delete") => own_pod(),
        ("", "pods/status", "get" | "update" | "patch") => own_pod(),

        // A list or watch of one object by name reads no more than a get.
        ("", "secrets", "get" | "list" | "watch") => reference(ReferencedKind::Secret),
        ("", "configmaps", "get" | "list" | "watch") => reference(ReferencedKind::ConfigMap),
        ("", "persistentvolumeclaims", "get" | "list" | "watch") => reference(ReferencedKind::Claim),
        // Which volumes are its own it finds by their affinity. Of those it says that the data are removed.
        ("", "persistentvolumes", "get" | "list" | "watch") => Decision::Allow,
        ("", "persistentvolumes/status", "get" | "update" | "patch") => {
            match view.volume_on_node(node, &target.name) {
                true => Decision::Allow,
                false => Decision::Deny(format!("can only change volumes that are on node {node:?}")),
            }
        }
        // What the token is bound to, and whom it is for, is checked against the pod when it is made.
        ("", "serviceaccounts/token", "create") => reference(ReferencedKind::ServiceAccount),

        // Its own next certificate. What requests say is no secret, and who approves looks at who asked.
        ("certificates.k8s.io", "certificatesigningrequests", "create" | "get" | "list" | "watch") => {
            Decision::Allow
        }

        ("", "events", "create" | "update" | "patch") => Decision::Allow,
        _ => Decision::NO_ROLE,
    }
}
