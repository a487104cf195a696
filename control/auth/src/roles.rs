//! The fixed roles. `tests/golden/roles.txt` is what they add up to, resource by resource.

use api::{
    annotations::{GROUP_BOOTSTRAPPERS, GROUP_MASTERS, USER_CONTROLLERS, USER_SIGNER},
    resources::{RESOURCES, Stored},
};

use crate::{Attributes, Decision, Identity, NodeView, ResourceTarget, Target, node};

/// Verbs on one resource, or resource/subresource, in any namespace.
struct Rule {
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
/// What it takes to empty a namespace of a kind.
const EMPTY: &[&str] = &["deletecollection", "list"];

/// The control plane's own loops. Emptying a terminating namespace is why they may list and delete every
/// kind that lives in one.
const CONTROLLERS: &[Rule] = &[
    // The configuration that holds the cluster's authority is theirs in every namespace.
    rule(
        "",
        "configmaps",
        &["create", "deletecollection", "get", "list", "update", "watch"],
    ),
    rule(
        "",
        "events",
        &[
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ],
    ),
    rule("", "namespaces", READ),
    rule("", "namespaces/finalize", &["update"]),
    rule("", "namespaces/status", &["patch", "update"]),
    // Taints follow from what a node reports; a node itself may not write them.
    rule("", "nodes", &["get", "list", "patch", "watch"]),
    rule("", "nodes/status", &["patch", "update"]),
    rule(
        "",
        "persistentvolumeclaims",
        &["deletecollection", "get", "list", "patch", "watch"],
    ),
    rule("", "persistentvolumeclaims/status", &["patch", "update"]),
    rule(
        "",
        "persistentvolumes",
        &["create", "delete", "get", "list", "patch", "watch"],
    ),
    rule("", "persistentvolumes/status", &["patch", "update"]),
    rule(
        "",
        "pods",
        &["delete", "deletecollection", "get", "list", "watch"],
    ),
    rule("", "pods/binding", &["create"]),
    rule("", "pods/status", &["patch", "update"]),
    rule("", "secrets", EMPTY),
    rule("", "services", &["deletecollection", "get", "list", "watch"]),
    rule(
        "",
        "serviceaccounts",
        &["create", "deletecollection", "get", "list", "watch"],
    ),
    rule(
        "certificates.k8s.io",
        "certificatesigningrequests",
        &["delete", "get", "list", "watch"],
    ),
    rule(
        "certificates.k8s.io",
        "certificatesigningrequests/approval",
        &["patch", "update"],
    ),
    rule(
        "coordination.k8s.io",
        "leases",
        &["deletecollection", "get", "list", "watch"],
    ),
    rule(
        "discovery.k8s.io",
        "endpointslices",
        &[
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "update",
            "watch",
        ],
    ),
    rule("networking.k8s.io", "networkpolicies", EMPTY),
    rule("palisade.dev", "sandboxprofiles", EMPTY),
    rule(
        "policy",
        "poddisruptionbudgets",
        &["deletecollection", "get", "list", "watch"],
    ),
    rule("policy", "poddisruptionbudgets/status", &["patch", "update"]),
    rule("projectcalico.org", "networkpolicies", EMPTY),
    rule("projectcalico.org", "networksets", EMPTY),
    rule("projectcalico.org", "stagedkubernetesnetworkpolicies", EMPTY),
    rule("projectcalico.org", "stagednetworkpolicies", EMPTY),
    rule("storage.k8s.io", "storageclasses", READ),
];

/// What the garbage collector, one of these loops, does with objects of every kind but events: those whose owners are gone it
/// deletes. Of a patch with no other right than this one only owners and finalizers count: see [`only_collects`].
const COLLECTOR: &[&str] = &["delete", "get", "list", "patch", "watch"];

/// Whoever brings a node in: asks for its certificate and waits for it.
const BOOTSTRAPPERS: &[Rule] = &[rule(
    "certificates.k8s.io",
    "certificatesigningrequests",
    &["create", "get", "list", "watch"],
)];

/// The process that holds the authority's key: it signs what is approved, and cannot approve.
const SIGNER: &[Rule] = &[
    rule("certificates.k8s.io", "certificatesigningrequests", READ),
    rule(
        "certificates.k8s.io",
        "certificatesigningrequests/status",
        &["patch", "update"],
    ),
];

/// Everybody with a valid certificate: asking about oneself.
const AUTHENTICATED: &[Rule] = &[
    rule("authentication.k8s.io", "selfsubjectreviews", &["create"]),
    rule("authorization.k8s.io", "selfsubjectaccessreviews", &["create"]),
];

/// Paths that everybody with a valid certificate may read, each with all that lies below it.
const AUTHENTICATED_PATHS: &[&str] = &[
    "/api", "/apis", "/healthz", "/livez", "/openapi", "/readyz", "/version",
];

const fn rule(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Rule {
    Rule {
        group,
        resource,
        verbs,
    }
}

/// Asks every role the identity has; the first that allows decides.
pub(crate) fn decide(identity: &Identity, attributes: &Attributes, nodes: &dyn NodeView) -> Decision {
    if identity.in_group(GROUP_MASTERS) {
        return Decision::Allow;
    }
    let verb = attributes.verb.as_str();
    let target = match &attributes.target {
        Target::Path(path) => return Decision::allow_if(verb == "get" && readable_path(path)),
        Target::Resource(target) => target,
    };
    if allows(AUTHENTICATED, verb, target) {
        return Decision::Allow;
    }
    if identity.user == USER_CONTROLLERS && (allows(CONTROLLERS, verb, target) || collects(verb, target)) {
        return Decision::Allow;
    }
    if identity.user == USER_SIGNER && allows(SIGNER, verb, target) {
        return Decision::Allow;
    }
    if identity.in_group(GROUP_BOOTSTRAPPERS) && allows(BOOTSTRAPPERS, verb, target) {
        return Decision::Allow;
    }
    match identity.node() {
        Some(name) => node::decide(name, verb, target, nodes),
        None => Decision::NO_ROLE,
    }
}

/// Whether whatever the identity may write of a kind's objects is their owners and finalizers.
pub fn only_collects(identity: &Identity, group: &str, plural: &str) -> bool {
    let of_kind = |rule: &&Rule| rule.group == group && rule.resource == plural;
    let writes = |rule: &Rule| rule.verbs.iter().any(|verb| matches!(*verb, "patch" | "update"));
    identity.user == USER_CONTROLLERS
        && !identity.in_group(GROUP_MASTERS)
        && !CONTROLLERS.iter().filter(of_kind).any(writes)
}

fn collects(verb: &str, target: &ResourceTarget) -> bool {
    let mut stored = RESOURCES.iter().filter(|row| row.stored == Stored::Yes);
    let known = stored.any(|row| row.group == target.group && row.plural == target.full_resource());
    known && COLLECTOR.contains(&verb)
}

fn allows(rules: &[Rule], verb: &str, target: &ResourceTarget) -> bool {
    let resource = target.full_resource();
    rules
        .iter()
        .any(|rule| rule.group == target.group && rule.resource == resource && rule.verbs.contains(&verb))
}

fn readable_path(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    // `..` is no path of ours, whatever a router may make of it.
    !path.split('/').any(|segment| segment == "..")
        && AUTHENTICATED_PATHS.iter().any(|allowed| {
            path.strip_prefix(allowed)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}
