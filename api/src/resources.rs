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
    /// Where objects come from, which decides the verbs.
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

/// Where objects come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Kept in the store: all verbs.
    Yes,
    /// Computed from the request: `create` only.
    Virtual,
    /// Computed from other objects: read only.
    Derived,
    /// Asked of the nodes: read only, and never twice the same.
    Measured,
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

/// `group` and `version` of Calico's kinds.
const CALICO: (&str, &str) = ("projectcalico.org", "v3");

/// Rows of Calico's kinds differ in little. The short names are those of its API server, but for `cnp`, which
/// ClusterNetworkPolicy claims too: it names neither.
const fn calico(
    kind: &'static str,
    [plural, singular]: [&'static str; 2],
    short_names: &'static [&'static str],
    scope: Scope,
) -> Resource {
    Resource {
        group: CALICO.0,
        version: CALICO.1,
        kind,
        plural,
        singular,
        short_names,
        categories: &[],
        scope,
        stored: Stored::Yes,
        subresources: &[],
    }
}

/// Rows of the metrics API.
const fn measured(kind: &'static str, [plural, singular]: [&'static str; 2], scope: Scope) -> Resource {
    Resource {
        group: "metrics.k8s.io",
        version: "v1beta1",
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        scope,
        stored: Stored::Measured,
        subresources: &[],
    }
}

const fn status(kind: &'static str) -> Subresource {
    Subresource {
        name: "status",
        kind,
        verbs: &["get", "patch", "update"],
    }
}

/// A connection into a pod: one verb, whichever HTTP method a client's protocol begins with.
const fn session(name: &'static str, kind: &'static str) -> Subresource {
    Subresource {
        name,
        kind,
        verbs: &["create"],
    }
}

impl Subresource {
    /// Group and version of its kind, where they are not the resource's own.
    pub fn group_version(&self) -> Option<(&'static str, &'static str)> {
        match self.kind {
            "Eviction" => Some(("policy", "v1")),
            "TokenRequest" => Some(("authentication.k8s.io", "v1")),
            _ => None,
        }
    }

    /// Whether it is a connection into a pod: `exec`, `attach` or `portforward`.
    pub fn is_session(&self) -> bool {
        matches!(self.name, "attach" | "exec" | "portforward")
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
            Stored::Derived => &["get", "list", "watch"],
            Stored::Measured => &["get", "list"],
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
/// followed by `.group` or `.version.group`. Of two groups that use one name, the first in the table is meant by the
/// bare name: that is also how kubectl reads the discovery document, which has the order of the table.
pub fn by_any_name(name: &str) -> Option<&'static Resource> {
    let name = name.to_ascii_lowercase();
    let (name, qualifier) = match name.split_once('.') {
        Some((name, qualifier)) => (name, Some(qualifier)),
        None => (name.as_str(), None),
    };
    let of_group = |r: &Resource| {
        qualifier.is_none_or(|qualifier| {
            let versioned = qualifier
                .strip_prefix(r.version)
                .and_then(|rest| rest.strip_prefix('.'));
            qualifier == r.group || versioned == Some(r.group)
        })
    };
    RESOURCES.iter().find(|r| {
        let named = name == r.plural || name == r.singular || r.short_names.contains(&name);
        of_group(r) && (named || name == r.kind.to_ascii_lowercase())
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
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        categories: &[],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[status("PersistentVolume")],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[status("PersistentVolumeClaim")],
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
            session("attach", "PodAttachOptions"),
            Subresource {
                name: "ephemeralcontainers",
                kind: "Pod",
                verbs: &["get", "patch", "update"],
            },
            Subresource {
                name: "eviction",
                kind: "Eviction",
                verbs: &["create"],
            },
            session("exec", "PodExecOptions"),
            // What a container does, watched for a while. Whoever may read logs may not: it tells the names of files.
            Subresource {
                name: "learn",
                kind: "Pod",
                verbs: &["get"],
            },
            Subresource {
                name: "log",
                kind: "Pod",
                verbs: &["get"],
            },
            session("portforward", "PodPortForwardOptions"),
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
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[status("Service")],
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
        subresources: &[Subresource {
            name: "token",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
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
        group: "authentication.k8s.io",
        version: "v1",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
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
        group: "certificates.k8s.io",
        version: "v1",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        short_names: &["csr"],
        categories: &[],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[
            // Whether it is approved or denied; what the signer makes of that is in the status.
            Subresource {
                name: "approval",
                kind: "CertificateSigningRequest",
                verbs: &["get", "patch", "update"],
            },
            status("CertificateSigningRequest"),
        ],
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
    // What stands behind a service, for policies that name one.
    Resource {
        group: "discovery.k8s.io",
        version: "v1",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    // What nodes and pods use, under the bare names of nodes and pods: those mean the objects themselves, which come first.
    measured("NodeMetrics", ["nodes", "nodemetrics"], Scope::Cluster),
    measured("PodMetrics", ["pods", "podmetrics"], Scope::Namespaced),
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
        kind: "HostPathGrant",
        plural: "hostpathgrants",
        singular: "hostpathgrant",
        short_names: &["hpg"],
        categories: &["palisade"],
        scope: Scope::Cluster,
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
    Resource {
        group: "palisade.dev",
        version: "v1alpha1",
        kind: "PolicyAssertion",
        plural: "policyassertions",
        singular: "policyassertion",
        short_names: &["assertion", "assertions"],
        categories: &["palisade"],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "palisade.dev",
        version: "v1alpha1",
        kind: "SandboxProfile",
        plural: "sandboxprofiles",
        singular: "sandboxprofile",
        short_names: &["sandbox"],
        categories: &["palisade"],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[],
    },
    Resource {
        group: "policy",
        version: "v1",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        categories: &[],
        scope: Scope::Namespaced,
        stored: Stored::Yes,
        subresources: &[status("PodDisruptionBudget")],
    },
    Resource {
        group: "policy.networking.k8s.io",
        version: "v1alpha2",
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
        singular: "clusternetworkpolicy",
        short_names: &[],
        categories: &[],
        scope: Scope::Cluster,
        stored: Stored::Yes,
        subresources: &[status("ClusterNetworkPolicy")],
    },
    calico(
        "FelixConfiguration",
        ["felixconfigurations", "felixconfiguration"],
        &["felixconfig", "felixconfigs"],
        Scope::Cluster,
    ),
    calico(
        "GlobalNetworkPolicy",
        ["globalnetworkpolicies", "globalnetworkpolicy"],
        &["gnp", "cgnp", "calicoglobalnetworkpolicies"],
        Scope::Cluster,
    ),
    calico(
        "GlobalNetworkSet",
        ["globalnetworksets", "globalnetworkset"],
        &[],
        Scope::Cluster,
    ),
    calico(
        "HostEndpoint",
        ["hostendpoints", "hostendpoint"],
        &["hep", "heps"],
        Scope::Cluster,
    ),
    // Its bare names mean the one of `networking.k8s.io`, which comes first.
    calico(
        "NetworkPolicy",
        ["networkpolicies", "networkpolicy"],
        &["caliconetworkpolicy", "caliconetworkpolicies"],
        Scope::Namespaced,
    ),
    calico(
        "NetworkSet",
        ["networksets", "networkset"],
        &["netsets"],
        Scope::Namespaced,
    ),
    Resource {
        stored: Stored::Derived,
        ..calico("Profile", ["profiles", "profile"], &[], Scope::Cluster)
    },
    calico(
        "StagedGlobalNetworkPolicy",
        ["stagedglobalnetworkpolicies", "stagedglobalnetworkpolicy"],
        &["sgnp"],
        Scope::Cluster,
    ),
    calico(
        "StagedKubernetesNetworkPolicy",
        ["stagedkubernetesnetworkpolicies", "stagedkubernetesnetworkpolicy"],
        &["sknp"],
        Scope::Namespaced,
    ),
    calico(
        "StagedNetworkPolicy",
        ["stagednetworkpolicies", "stagednetworkpolicy"],
        &["snp"],
        Scope::Namespaced,
    ),
    calico("Tier", ["tiers", "tier"], &[], Scope::Cluster),
    Resource {
        group: "storage.k8s.io",
        version: "v1",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        categories: &[],
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
            // Two groups have a NetworkPolicy; the bare name means the one of Kubernetes.
            // Nodes and pods are the objects, not what is measured of them.
            let second = (r.group, r.kind) == ("projectcalico.org", "NetworkPolicy");
            let measured = r.stored == Stored::Measured;
            for name in [r.plural, r.singular] {
                assert_eq!(by_any_name(&format!("{name}.{}", r.group)), Some(r), "{name}");
                assert_eq!(by_any_name(&format!("{name}.{}.{}", r.version, r.group)), Some(r));
                if measured && name == r.plural {
                    assert_eq!(by_any_name(name).unwrap().group, "");
                } else if second {
                    assert_eq!(by_any_name(name).unwrap().group, "networking.k8s.io");
                } else {
                    assert_eq!(by_any_name(name), Some(r), "{name}");
                    assert!(seen.insert(name), "{name} names two resources");
                }
            }
            for name in r.short_names {
                assert_eq!(by_any_name(name), Some(r), "{name}");
                assert!(seen.insert(*name), "{name} names two resources");
            }
        }
        assert_eq!(
            by_any_name("NetworkPolicy.networking.k8s.io").map(|r| r.plural),
            Some("networkpolicies")
        );
        assert_eq!(by_any_name("pods.apps"), None);
        assert_eq!(by_any_name("pods.v1.apps"), None);
        assert_eq!(by_any_name("cnp"), None, "two upstream kinds claim it");
    }
}
