//! Which lists merge by key in a strategic merge patch, from the `x-kubernetes-patch-merge-key` and
//! `x-kubernetes-patch-strategy` markers of the published OpenAPI. A list that is not here is replaced.

/// How a list merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListMerge {
    /// Objects with the same value of this key are one.
    ByKey(&'static str),
    /// Plain values are a set.
    Set,
    /// The patch's list takes the place of the other.
    Replace,
}

/// Lists of every kind.
const METADATA: &[(&str, ListMerge)] = &[
    ("metadata.finalizers", ListMerge::Set),
    ("metadata.ownerReferences", ListMerge::ByKey("uid")),
];

const POD: &[(&str, ListMerge)] = &[
    ("spec.containers", ListMerge::ByKey("name")),
    ("spec.containers.env", ListMerge::ByKey("name")),
    ("spec.containers.ports", ListMerge::ByKey("containerPort")),
    ("spec.containers.volumeDevices", ListMerge::ByKey("devicePath")),
    ("spec.containers.volumeMounts", ListMerge::ByKey("mountPath")),
    ("spec.ephemeralContainers", ListMerge::ByKey("name")),
    ("spec.hostAliases", ListMerge::ByKey("ip")),
    ("spec.imagePullSecrets", ListMerge::ByKey("name")),
    ("spec.initContainers", ListMerge::ByKey("name")),
    ("spec.initContainers.env", ListMerge::ByKey("name")),
    ("spec.initContainers.ports", ListMerge::ByKey("containerPort")),
    (
        "spec.initContainers.volumeDevices",
        ListMerge::ByKey("devicePath"),
    ),
    ("spec.initContainers.volumeMounts", ListMerge::ByKey("mountPath")),
    ("spec.resourceClaims", ListMerge::ByKey("name")),
    ("spec.schedulingGates", ListMerge::ByKey("name")),
    ("spec.topologySpreadConstraints", ListMerge::ByKey("topologyKey")),
    ("spec.volumes", ListMerge::ByKey("name")),
    ("status.conditions", ListMerge::ByKey("type")),
    ("status.hostIPs", ListMerge::ByKey("ip")),
    ("status.podIPs", ListMerge::ByKey("ip")),
    ("status.resourceClaimStatuses", ListMerge::ByKey("name")),
];
const NODE: &[(&str, ListMerge)] = &[
    ("spec.podCIDRs", ListMerge::Set),
    ("status.addresses", ListMerge::ByKey("type")),
    ("status.conditions", ListMerge::ByKey("type")),
];
const NAMESPACE: &[(&str, ListMerge)] = &[("status.conditions", ListMerge::ByKey("type"))];
const SERVICE: &[(&str, ListMerge)] = &[
    ("spec.ports", ListMerge::ByKey("port")),
    ("status.conditions", ListMerge::ByKey("type")),
];
const SERVICE_ACCOUNT: &[(&str, ListMerge)] = &[
    ("imagePullSecrets", ListMerge::ByKey("name")),
    ("secrets", ListMerge::ByKey("name")),
];

/// How the list at `path` (without indices) of a kind merges.
pub(super) fn list_merge(kind: &str, path: &str) -> ListMerge {
    let own = match kind {
        "Pod" => POD,
        "Node" => NODE,
        "Namespace" => NAMESPACE,
        "Service" => SERVICE,
        "ServiceAccount" => SERVICE_ACCOUNT,
        _ => &[],
    };
    METADATA
        .iter()
        .chain(own)
        .find(|(known, _)| *known == path)
        .map_or(ListMerge::Replace, |(_, merge)| *merge)
}
