//! The table of served resources: one row per resource, read by discovery, routing, authorization,
//! storage keys and `policyctl`. A resource that is not here does not exist.

/// One served resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version, such as `v1`.
    pub version: &'static str,
    /// Kind, such as `Pod`.
    pub kind: &'static str,
    /// Plural name as it stands in URLs.
    pub plural: &'static str,
    /// Singular name that kubectl accepts.
    pub singular: &'static str,
    /// Short names that kubectl accepts.
    pub short_names: &'static [&'static str],
    /// Categories, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub scope: Scope,
    /// Whether objects are stored; a virtual resource answers `create` only.
    pub stored: Stored,
    /// Subresources with their verbs.
    pub subresources: &'static [Subresource],
}

/// Whether objects live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One per namespace and name.
    Namespaced,
    /// One per name.
    Cluster,
}

/// Whether objects are stored or only computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Kept in the store: all verbs.
    Yes,
    /// Computed from the request: `create` only.
    Virtual,
}

/// A subresource, such as `pods/status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subresource {
    /// Last path segment, such as `status`.
    pub name: &'static str,
    /// Kind of the body, such as `Pod` or `Binding`.
    pub kind: &'static str,
    /// Verbs it answers.
    pub verbs: &'static [&'static str],
}

/// Verbs of a stored resource, in the order discovery prints them.
pub const STORED_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

const fn status(kind: &'static str) -> Subresource {
    Subresource {
        name: "status",
        kind,
        verbs: &["get", "patch", "update"],
    }
}

impl Resource {
    /// `group/version`, or only the version for the core group: the `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Verbs that the resource itself answers.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.stored {
            Stored::Yes => STORED_VERBS,
            Stored::Virtual => &["create"],
        }
    }

    /// Whether objects live in a namespace.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// `/api/v1` or `/apis/GROUP/VERSION`.
    pub fn base_path(&self) -> String {
        match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    /// URL path of the collection; `namespace` is ignored for cluster-scoped resources.
    pub fn collection_path(&self, namespace: Option<&str>) -> String {
        match (self.scope, namespace) {
            (Scope::Namespaced, Some(namespace)) => {
                format!("{}/namespaces/{namespace}/{}", self.base_path(), self.plural)
            }
            _ => format!("{}/{}", self.base_path(), self.plural),
        }
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }
}

/// The row for a group, version and plural name, as they stand in a URL.
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The row for an object's `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    RESOURCES
        .iter()
        .find(|r| r.group == group && r.version == version && r.kind == kind)
}

/// The row a person means: plural, singular, kind or short name, without regard to case, optionally
/// followed by `.group`.
pub fn by_any_name(name: &str) -> Option<&'static Resource> {
    let name = name.to_ascii_lowercase();
    RESOURCES.iter().find(|r| {
        let spellings = [r.plural, r.singular]
            .into_iter()
            .chain(r.short_names.iter().copied());
        spellings.into_iter().any(|s| {
            name == s || name.strip_prefix(s).and_then(|rest| rest.strip_prefix('.')) == Some(r.group)
        }) || name == r.kind.to_ascii_lowercase()
    })
}

/// Everything that is served.
pub const RESOURCES: &[Resource] = &[
    Resource {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        categories: &[],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[
            // Sets only `spec.finalizers`; the namespace goes once it is terminating and none are left.
            Subresource {
                name: "finalize",
                kind: "Namespace",
                verbs: &["update"],
            },
            status("Namespace"),
        ],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        categories: &[],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[
            status("Node"),
            Subresource {
                name: "proxy",
                kind: "NodeProxyOptions",
                verbs: &["get"],
            },
        ],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[
            Subresource {
                name: "binding",
                kind: "Binding",
                verbs: &["create"],
            },
            Subresource {
                name: "log",
                kind: "Pod",
                verbs: &["get"],
            },
            status("Pod"),
        ],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "authentication.k8s.io",
        version: "v1",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        short_names: &[],
        categories: &[],
        scope: Scope::Cluster,
        stored: Stored::Virtual,
        subresources: &[],
    },
    Resource {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        short_names: &[],
        categories: &[],
        scope: Scope::Cluster,
        stored: Stored::Virtual,
        subresources: &[],
    },
    Resource {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "networking.k8s.io",
        version: "v1",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "palisade.dev",
        version: "v1alpha1",
        kind: "ImagePolicy",
        plural: "imagepolicies",
        singular: "imagepolicy",
        short_names: &["imgpol"],
        categories: &["palisade"],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "palisade.dev",
        version: "v1alpha1",
        kind: "ImageScan",
        plural: "imagescans",
        singular: "imagescan",
        short_names: &["scan"],
        categories: &["palisade"],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_resource_is_unambiguous() {
        let mut seen = std::collections::BTreeSet::new();
        for r in RESOURCES {
            assert_eq!(by_path(r.group, r.version, r.plural), Some(r));
            assert_eq!(by_kind(&r.api_version(), r.kind), Some(r));
            for name in [r.plural, r.singular].iter().chain(r.short_names) {
                assert_eq!(by_any_name(name), Some(r), "{name}");
                assert!(seen.insert(*name), "{name} names two resources");
            }
        }
        assert_eq!(
            by_any_name("NetworkPolicy.networking.k8s.io").map(|r| r.plural),
            Some("networkpolicies")
        );
        assert_eq!(by_any_name("pods.apps"), None);
    }
}
