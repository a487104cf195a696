//! Every route, tried by those who may not use it. The routes come from the resource table, so a new
//! resource is covered the moment it is served.

use std::time::Duration;

use api::resources::{RESOURCES, Resource, Stored};
use http::Method;
use serde_json::json;

use crate::{
    harness::{Client, Cluster, NODE},
    http_api::Lines,
};

/// Method and path of everything that the table serves.
fn routes() -> Vec<(Method, String)> {
    RESOURCES.iter().flat_map(routes_of).collect()
}

fn routes_of(row: &Resource) -> Vec<(Method, String)> {
    let collection = row.collection_path(row.namespaced().then_some("default"));
    let object = format!("{collection}/x");
    let mut routes = match row.stored {
        Stored::Yes | Stored::Virtual => vec![(Method::POST, collection.clone())],
        // Answers no other method, whoever asks.
        Stored::Derived | Stored::Measured => {
            vec![(Method::GET, collection.clone()), (Method::GET, object.clone())]
        }
    };
    if row.stored == Stored::Yes {
        routes.push((Method::GET, collection.clone()));
        routes.push((Method::GET, format!("{collection}?watch=true")));
        routes.push((Method::GET, format!("{}?limit=1", row.collection_path(None))));
        routes.push((Method::DELETE, collection));
        for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE] {
            routes.push((method, object.clone()));
        }
    }
    for sub in row.subresources {
        for verb in sub.verbs {
            let method = match *verb {
                "get" => Method::GET,
                "create" => Method::POST,
                "update" => Method::PUT,
                "patch" => Method::PATCH,
                other => panic!("no method for {other}"),
            };
            let rest = if sub.name == "proxy" { "/flows" } else { "" };
            let path = format!("{object}/{}{rest}", sub.name);
            if sub.is_session() {
                // A WebSocket begins with GET.
                routes.push((Method::GET, path.clone()));
            }
            routes.push((method, path));
        }
    }
    routes
}

const DOCUMENTS: &[&str] = &[
    "/api",
    "/apis",
    "/api/v1",
    "/apis/palisade.dev",
    "/apis/palisade.dev/v1alpha1",
    "/version",
    "/healthz",
    "/openapi/v3",
];

async fn code(client: &Client, method: &Method, path: &str) -> u16 {
    let kind = if *method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let body = json!({"metadata": {"name": "x"}}).to_string();
    let body = (*method != Method::GET).then_some((kind, body));
    client.raw(method.clone(), path, body).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_nothing_but_health() {
    let cluster = Cluster::start().await;
    let nobody = cluster.nobody();
    for path in ["/livez", "/readyz"] {
        assert_eq!(nobody.get(path).await, (200, json!("ok")), "{path}");
    }
    let documents = DOCUMENTS.iter().map(|path| (Method::GET, (*path).to_owned()));
    let unknown = [(Method::GET, "/nosuch".to_owned()), (Method::GET, "/".to_owned())];
    for (method, path) in routes().into_iter().chain(documents).chain(unknown) {
        assert_eq!(code(&nobody, &method, &path).await, 401, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_user_learns_about_the_api_and_about_themselves() {
    let cluster = Cluster::start().await;
    let user = cluster.user("jane", None);
    for path in DOCUMENTS {
        assert_eq!(code(&user, &Method::GET, path).await, 200, "{path}");
    }
    for (method, path) in routes() {
        let own = path.contains("/selfsubject");
        let expected = if own {
            [201, 400].as_slice()
        } else {
            [403].as_slice()
        };
        let found = code(&user, &method, &path).await;
        assert!(expected.contains(&found), "{method} {path}: {found}");
    }
    let (_, denied) = user.get("/api/v1/namespaces/default/secrets").await;
    let message = denied["message"].as_str().unwrap();
    assert!(
        message.contains(
            r#"User "jane" cannot list resource "secrets" in API group "" in the namespace "default""#
        ),
        "{message}"
    );
    // A name that only looks like a node's gives nothing.
    for impostor in [
        cluster.user("system:node:node-a", None),
        cluster.user("x", Some("system:nodes")),
    ] {
        assert_eq!(code(&impostor, &Method::GET, "/api/v1/pods").await, 403);
    }
}

/// What a node may reach on objects that are not its own. All other routes must be refused.
fn open_to_nodes(row: &Resource, method: &Method, path: &str) -> bool {
    let read = *method == Method::GET;
    match row.plural {
        "profiles" => false,
        // What is measured is for people.
        _ if row.stored == Stored::Measured => false,
        // Its next certificate; approving and signing are others' work.
        "certificatesigningrequests" => {
            let collection = !path.contains("/certificatesigningrequests/");
            (read && !path.ends_with("/approval") && !path.ends_with("/status"))
                || (*method == Method::POST && collection)
        }
        _ if matches!(row.group, "projectcalico.org" | "policy.networking.k8s.io") => {
            read && !path.ends_with("/status")
        }
        "pods" | "namespaces" | "networkpolicies" | "serviceaccounts" | "endpointslices" => {
            let subresources = [
                "/status",
                "/learn",
                "/log",
                "/exec",
                "/attach",
                "/portforward",
                "/ephemeralcontainers",
            ];
            read && !subresources.iter().any(|end| path.ends_with(end))
        }
        "sandboxprofiles" | "hostpathgrants" => read,
        "persistentvolumes" => read && !path.ends_with("/status"),
        // The addresses of all nodes are part of policy; their agents' streams are not.
        "nodes" => read && !["/status", "/proxy"].iter().any(|end| path.contains(end)),
        "events" => matches!(*method, Method::POST | Method::PUT | Method::PATCH),
        "selfsubjectreviews" | "selfsubjectaccessreviews" => true,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_touch_what_is_not_its_own() {
    let cluster = Cluster::start().await;
    let node = cluster.node();
    for row in RESOURCES {
        for (method, path) in routes_of(row) {
            let found = code(&node, &method, &path).await;
            match open_to_nodes(row, &method, &path) {
                true => assert_ne!(found, 403, "{method} {path}"),
                false => assert_eq!(found, 403, "{method} {path}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_the_right_to_it() {
    let cluster = Cluster::start().await;
    let (admin, node) = (cluster.admin(), cluster.node());
    let core = "/api/v1/namespaces/default";
    for name in ["gone", "stays"] {
        let secret = json!({"metadata": {"name": name}});
        assert_eq!(admin.post(&format!("{core}/secrets"), &secret).await.0, 201);
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "containers": [{"name": "c", "image": "registry.example/app:1"}],
                "volumes": [{"name": "v", "secret": {"secretName": name}}],
            },
        });
        let (code, created) = admin.post(&format!("{core}/pods"), &pod).await;
        assert_eq!(code, 201, "{created}");
        let binding = json!({"target": {"name": NODE}});
        let bound = admin.post(&format!("{core}/pods/{name}/binding"), &binding).await;
        assert_eq!(bound.0, 201);
    }
    let watch = |name: &str| format!("{core}/secrets?watch=true&fieldSelector=metadata.name%3D{name}");
    let mut gone = Lines::open(&node, &watch("gone")).await;
    let mut stays = Lines::open(&node, &watch("stays")).await;
    assert_eq!(gone.next().await.unwrap().0, "ADDED");
    assert_eq!(stays.next().await.unwrap().0, "ADDED");
    let now = json!({"gracePeriodSeconds": 0});
    assert_eq!(
        admin.delete(&format!("{core}/pods/gone"), Some(&now)).await.0,
        200
    );
    let told = tokio::time::timeout(Duration::from_secs(10), gone.next()).await;
    let (kind, status) = told.expect("it goes on").expect("it ends without a word");
    assert_eq!(
        (kind.as_str(), &status["code"]),
        ("ERROR", &json!(403)),
        "{status}"
    );
    assert_eq!(gone.next().await, None);
    let stays = tokio::time::timeout(Duration::from_secs(6), stays.next()).await;
    assert!(stays.is_err(), "the other is allowed: {stays:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reaches_exactly_what_its_pods_refer_to() {
    let cluster = Cluster::start().await;
    let (admin, node) = (cluster.admin(), cluster.node());
    let other = cluster.user("system:node:node-b", Some("system:nodes"));
    let core = "/api/v1/namespaces/default";
    for name in ["used", "unused"] {
        admin
            .post(&format!("{core}/secrets"), &json!({"metadata": {"name": name}}))
            .await;
    }
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {
            "containers": [{
                "name": "c", "image": "registry.example/app:1",
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "used", "key": "k"}}}],
            }],
        },
    });
    let (code, created) = admin.post(&format!("{core}/pods"), &pod).await;
    assert_eq!(code, 201, "{created}");
    let used = format!("{core}/secrets/used");
    assert_eq!(node.get(&used).await.0, 403, "the pod is not on the node yet");
    admin
        .post(
            &format!("{core}/pods/p/binding"),
            &json!({"target": {"name": NODE}}),
        )
        .await;
    assert_eq!(node.get(&used).await.0, 200);
    assert_eq!(node.get(&format!("{used}?watch=true")).await.0, 200);
    assert_eq!(node.get(&format!("{core}/secrets/unused")).await.0, 403);
    assert_eq!(node.get(&format!("{core}/secrets")).await.0, 403);
    assert_eq!(other.get(&used).await.0, 403);

    let status = json!({"status": {"phase": "Running"}, "spec": {"nodeName": "elsewhere"}});
    let path = format!("{core}/pods/p/status");
    assert_eq!(
        other
            .patch(&path, "application/merge-patch+json", &status)
            .await
            .0,
        403
    );
    let (code, patched) = node.patch(&path, "application/merge-patch+json", &status).await;
    assert_eq!(
        (code, patched["spec"]["nodeName"].as_str()),
        (200, Some(NODE)),
        "{patched}"
    );
    assert_eq!(other.delete(&format!("{core}/pods/p"), None).await.0, 403);

    // Registration: a node makes itself and nobody else.
    let nodes = "/api/v1/nodes";
    assert_eq!(
        node.post(nodes, &json!({"metadata": {"name": "node-z"}})).await.0,
        403
    );
    assert_eq!(
        node.post(nodes, &json!({"metadata": {"generateName": "node-"}}))
            .await
            .0,
        403
    );
    assert_eq!(
        node.post(nodes, &json!({"metadata": {"name": NODE}})).await.0,
        201
    );

    // Static pods: named after the node, where they are allowed, and by nobody else.
    let named = format!("static-{NODE}");
    let mirror = |name: &str, hash: Option<&str>| {
        let annotations = hash.map(|hash| json!({"kubernetes.io/config.mirror": hash}));
        let container = json!({"name": "c", "image": "registry.example/app:1"});
        json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": NODE, "containers": [container]},
        })
    };
    let (system, default) = ("/api/v1/namespaces/kube-system/pods", format!("{core}/pods"));
    assert_eq!(node.post(system, &mirror("static", Some("h"))).await.0, 403);
    assert_eq!(other.post(system, &mirror(&named, Some("h"))).await.0, 403);
    assert_eq!(node.post(&default, &mirror(&named, Some("h"))).await.0, 403);
    assert_eq!(node.post(system, &mirror(&named, None)).await.0, 422);
    assert_eq!(admin.post(system, &mirror(&named, Some("h"))).await.0, 422);
    assert_eq!(node.post(system, &mirror(&named, Some("h"))).await.0, 201);

    let done = json!({"gracePeriodSeconds": 0});
    assert_eq!(node.delete(&format!("{core}/pods/p"), Some(&done)).await.0, 200);
    assert_eq!(node.get(&used).await.0, 403, "the right ends with the pod");
}
