//! The role matrix: who may do what on every served resource, compared with a file that a reviewer reads.
//! `UPDATE_GOLDEN=1 cargo test -p control-auth` rewrites it.

#![expect(
    clippy::unwrap_used,
    reason = "clippy sees tests only in functions marked as such, not in their helpers"
)]

use std::{fmt::Write, path::Path};

use api::resources::{RESOURCES, Resource};
use control_auth::{
    Attributes, Authenticated, NodeIndex, NodeView, ReferencedKind, ResourceTarget, authorize,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

fn who(user: &str, group: Option<&str>) -> Authenticated {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    Authenticated::from_verified_certificate(certificate.der()).unwrap()
}

/// Node `a` runs the pod `on-a`, which refers to the secret and the config map `of-a`.
fn cluster() -> NodeIndex {
    let pod = serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": "on-a"},
        "spec": {"nodeName": "a", "serviceAccountName": "of-a", "containers": [{"name": "c", "envFrom": [
            {"secretRef": {"name": "of-a"}}, {"configMapRef": {"name": "of-a"}},
        ]}]},
    }))
    .unwrap();
    [&pod].into_iter().collect()
}

/// The object of a resource that belongs to node `a`, as far as one does.
fn own_object(resource: &Resource) -> (&'static str, &'static str) {
    match resource.plural {
        "nodes" => ("", "a"),
        "leases" => ("kube-node-lease", "a"),
        // Named as the node may name pods for its files.
        "pods" => ("ns", "on-a"),
        _ if resource.namespaced() => ("ns", "of-a"),
        _ => ("", "x"),
    }
}

fn foreign_object(resource: &Resource) -> (&'static str, &'static str) {
    match resource.plural {
        "leases" => ("kube-node-lease", "b"),
        _ if resource.namespaced() => ("ns", "other"),
        _ => ("", "b"),
    }
}

fn allowed(
    who: &Authenticated,
    resource: &Resource,
    subresource: &str,
    object: (&str, &str),
) -> Vec<&'static str> {
    let cluster = cluster();
    let allowed = |verb: &&&str| {
        let target = ResourceTarget {
            group: resource.group.into(),
            resource: resource.plural.into(),
            subresource: subresource.into(),
            namespace: object.0.into(),
            name: object.1.into(),
        };
        authorize(who, Attributes::resource(**verb, target), &cluster).is_ok()
    };
    VERBS.iter().filter(allowed).copied().collect()
}

fn matrix() -> String {
    let mut text = String::from("# identity, whose object, resource: allowed verbs. Not listed: denied.\n");
    let people = [
        ("admin", who("jane", Some("system:masters"))),
        ("controllers", who("system:palisade-controllers", None)),
        ("apiserver", who("system:palisade-apiserver", None)),
        ("node a", who("system:node:a", Some("system:nodes"))),
        (
            "bootstrapper",
            who("system:bootstrap:a", Some("system:bootstrappers")),
        ),
        ("signer", who("system:palisade-signer", None)),
        ("anyone", who("joe", Some("developers"))),
    ];
    for (label, who) in &people {
        for resource in RESOURCES {
            let subresources = std::iter::once("").chain(resource.subresources.iter().map(|s| s.name));
            for subresource in subresources {
                let name = match (resource.group, subresource) {
                    ("", "") => resource.plural.to_owned(),
                    ("", sub) => format!("{}/{sub}", resource.plural),
                    (group, "") => format!("{}.{group}", resource.plural),
                    (group, sub) => format!("{}.{group}/{sub}", resource.plural),
                };
                let own = allowed(who, resource, subresource, own_object(resource));
                let foreign = allowed(who, resource, subresource, foreign_object(resource));
                for (whose, verbs) in if own == foreign {
                    vec![("any", own)]
                } else {
                    vec![("own", own), ("other", foreign)]
                } {
                    let verbs = match verbs.len() {
                        0 => continue,
                        n if n == VERBS.len() => "all".to_owned(),
                        _ => verbs.join(" "),
                    };
                    writeln!(text, "{label}, {whose} {name}: {verbs}").unwrap();
                }
            }
        }
    }
    text
}

#[test]
fn role_matrix_is_as_reviewed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/roles.txt");
    let actual = matrix();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    assert_eq!(
        actual,
        std::fs::read_to_string(&path).unwrap(),
        "see the head of this file"
    );
}

#[test]
fn a_node_cannot_reach_over_the_fence() {
    let node = who("system:node:b", Some("system:nodes"));
    let cluster = cluster();
    assert!(
        cluster.pod_on_node("a", "ns", "on-a")
            && cluster.referenced("a", ReferencedKind::Secret, "ns", "of-a")
    );
    for (verb, resource, subresource, namespace, name) in [
        ("get", "secrets", "", "ns", "of-a"),
        ("list", "secrets", "", "ns", ""),
        ("list", "secrets", "", "", ""),
        ("patch", "pods", "status", "ns", "on-a"),
        ("delete", "pods", "", "ns", "on-a"),
        ("create", "pods", "binding", "ns", "on-a"),
        ("create", "pods", "", "ns", "new"),
        ("create", "nodes", "", "", ""),
        ("create", "nodes", "", "", "a"),
        ("patch", "nodes", "status", "", "a"),
        ("get", "nodes", "proxy", "", "b"),
        ("get", "pods", "log", "ns", "on-a"),
    ] {
        let target = ResourceTarget {
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Default::default()
        };
        let answer = authorize(&node, Attributes::resource(verb, target), &cluster);
        assert!(answer.is_err(), "{answer:?}");
    }
    let target = ResourceTarget {
        resource: "secrets".into(),
        namespace: "ns".into(),
        name: "of-a".into(),
        ..Default::default()
    };
    let denied = authorize(&node, Attributes::resource("get", target), &cluster).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "User \"system:node:b\" cannot get resource \"secrets\" in API group \"\" in the namespace \"ns\": \
         no relationship found between node \"b\" and this object"
    );
}

#[test]
fn roles_do_not_leak_through_group_names() {
    // The controllers are one user; a group of that name, or a node's name without its group, is nobody.
    for who in [
        who("joe", Some("system:palisade-controllers")),
        who("system:node:a", None),
        who("system:node:a", Some("system:masters2")),
        who("system:masters", None),
    ] {
        let target = ResourceTarget {
            resource: "pods".into(),
            namespace: "ns".into(),
            ..Default::default()
        };
        assert!(
            authorize(&who, Attributes::resource("list", target), &cluster()).is_err(),
            "{who:?}"
        );
    }
}

#[test]
fn paths_are_matched_whole() {
    let joe = who("joe", None);
    let may = |verb, path| authorize(&joe, Attributes::path(verb, path), &cluster()).is_ok();
    for path in [
        "/api",
        "/api/v1",
        "/apis/",
        "/openapi/v3/api/v1",
        "/version",
        "/healthz",
        "/livez/ping",
    ] {
        assert!(may("get", path), "{path}");
        assert!(!may("post", path), "{path}");
    }
    for path in [
        "/",
        "",
        "/apiary",
        "/metrics",
        "/version/../metrics",
        "/debug/pprof",
        "version",
    ] {
        assert!(!may("get", path), "{path}");
    }
}
