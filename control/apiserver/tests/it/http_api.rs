//! What clients other than kubectl rely on, request by request.

use std::{net::Ipv4Addr, time::Duration};

use http::Method;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1::SendRequest,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::harness::{Client, Cluster};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Reads the JSON lines of a watch.
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) async fn open(client: &Client, path: &str) -> Self {
        let response = client.raw(Method::GET, path, None).await;
        assert_eq!(response.status(), 200, "{path}");
        Self {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }

    /// The next event, or `None` when the server ended the watch.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].take()));
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame());
            match frame.await.expect("no event in 20 s")? {
                Ok(frame) => self.buffer.extend_from_slice(frame.data_ref().unwrap()),
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn expect(&mut self, kind: &str) -> Value {
        let (found, object) = self.next().await.expect("the watch ended");
        assert_eq!(found, kind, "{object}");
        object
    }
}

/// Watches a collection from its present state on until an object fits.
pub(crate) async fn wait_for(
    client: &Client,
    collection: &str,
    fits: impl Fn(&Value) -> bool,
) -> (String, Value) {
    let mut lines = Lines::open(client, &format!("{collection}?watch=true")).await;
    loop {
        let (kind, object) = lines.next().await.expect("the watch ended");
        if fits(&object) {
            return (kind, object);
        }
    }
}

fn config_map(name: &str, labels: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_live_under_optimistic_locks() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (code, created) = admin.post(CONFIG_MAPS, &config_map("x", &json!({}))).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["metadata"]["namespace"], "default");
    assert!(created["metadata"]["uid"].is_string() && created["metadata"]["resourceVersion"].is_string());

    let path = format!("{CONFIG_MAPS}/x");
    let mut update = created.clone();
    update["data"]["a"] = json!("2");
    let (code, updated) = admin.put(&path, &update).await;
    assert_eq!((code, updated["data"]["a"].as_str()), (200, Some("2")));
    let (code, conflict) = admin.put(&path, &update).await;
    assert_eq!((code, conflict["reason"].as_str()), (409, Some("Conflict")));
    // Nothing changed: nothing is written.
    let (_, same) = admin.put(&path, &updated).await;
    assert_eq!(
        same["metadata"]["resourceVersion"],
        updated["metadata"]["resourceVersion"]
    );
    // Identity cannot be changed.
    let mut forged = updated.clone();
    forged["metadata"]["uid"] = json!("forged");
    assert_eq!(admin.put(&path, &forged).await.0, 409);

    let stale = json!({"preconditions": {"uid": "other"}});
    assert_eq!(admin.delete(&path, Some(&stale)).await.0, 409);
    let (code, deleted) = admin.delete(&path, None).await;
    assert_eq!((code, deleted["status"].as_str()), (200, Some("Success")));
    assert_eq!(admin.get(&path).await.0, 404);
    assert_eq!(admin.delete(&path, None).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_all_count() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(CONFIG_MAPS, &config_map("x", &json!({}))).await;
    let path = format!("{CONFIG_MAPS}/x");
    let patches = (0..6).map(|n| {
        let (admin, path) = (&admin, &path);
        async move {
            let body = json!({"data": {format!("k{n}"): "v"}});
            admin.patch(path, "application/merge-patch+json", &body).await.0
        }
    });
    let codes = futures::future::join_all(patches).await;
    assert!(codes.iter().all(|code| *code == 200), "{codes:?}");
    assert_eq!(admin.get(&path).await.1["data"].as_object().unwrap().len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_of_one_state() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for n in 0..7 {
        admin
            .post(
                CONFIG_MAPS,
                &config_map(&format!("x{n}"), &json!({"odd": (n % 2).to_string()})),
            )
            .await;
    }
    let (_, first) = admin.get(&format!("{CONFIG_MAPS}?limit=3")).await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&first), ["x0", "x1", "x2"]);
    admin.delete(&format!("{CONFIG_MAPS}/x4"), None).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = admin
        .get(&format!("{CONFIG_MAPS}?limit=3&continue={token}"))
        .await;
    assert_eq!(
        names(&second),
        ["x3", "x4", "x5"],
        "the page shows the state of the first one"
    );
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let (_, odd) = admin
        .get(&format!("{CONFIG_MAPS}?limit=2&labelSelector=odd%3D1"))
        .await;
    assert_eq!(names(&odd), ["x1", "x3"]);
    let token = odd["metadata"]["continue"].as_str().unwrap();
    let (_, odd) = admin
        .get(&format!(
            "{CONFIG_MAPS}?limit=2&labelSelector=odd%3D1&continue={token}"
        ))
        .await;
    assert_eq!(names(&odd), ["x5"]);
    assert!(odd["metadata"].get("continue").is_none());
    let (_, one) = admin
        .get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Dx6"))
        .await;
    assert_eq!(names(&one), ["x6"]);
    assert_eq!(
        admin
            .get(&format!("{CONFIG_MAPS}?fieldSelector=data.a%3D1"))
            .await
            .0,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_follow_selectors_without_gaps() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (_, list) = admin.get(CONFIG_MAPS).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    admin
        .post(CONFIG_MAPS, &config_map("x", &json!({"app": "web"})))
        .await;
    let path = format!("{CONFIG_MAPS}/x");
    let relabel = |app: &str| json!({"metadata": {"labels": {"app": app}}});

    // From a revision in the past: what happened since is replayed.
    let watch = format!("{CONFIG_MAPS}?watch=true&labelSelector=app%3Dweb&resourceVersion={revision}");
    let mut lines = Lines::open(&admin, &watch).await;
    assert_eq!(lines.expect("ADDED").await["metadata"]["name"], "x");
    admin
        .patch(
            &path,
            "application/merge-patch+json",
            &json!({"data": {"b": "2"}}),
        )
        .await;
    assert_eq!(lines.expect("MODIFIED").await["data"]["b"], "2");
    admin
        .patch(&path, "application/merge-patch+json", &relabel("db"))
        .await;
    lines.expect("DELETED").await;
    admin
        .patch(&path, "application/merge-patch+json", &relabel("web"))
        .await;
    let added = lines.expect("ADDED").await;
    admin.delete(&path, None).await;
    let deleted = lines.expect("DELETED").await;
    let number = |object: &Value| {
        object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(number(&deleted) > number(&added));

    // Without a revision: the present state first, marked by a bookmark when asked for.
    admin.post(CONFIG_MAPS, &config_map("y", &json!({}))).await;
    let stream = format!(
        "{CONFIG_MAPS}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true\
         &resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
    );
    let mut lines = Lines::open(&admin, &stream).await;
    lines.expect("ADDED").await;
    let bookmark = lines.expect("BOOKMARK").await;
    assert_eq!(
        bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert!(lines.next().await.is_none(), "timeoutSeconds ends the watch");

    // Who reads metadata alone is told of nothing else.
    let metadata = cluster
        .admin()
        .accepting("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let mut lines = Lines::open(&metadata, &stream).await;
    for event in ["ADDED", "BOOKMARK"] {
        let object = lines.expect(event).await;
        assert_eq!(
            (&object["kind"], &object["apiVersion"]),
            (&json!("PartialObjectMetadata"), &json!("meta.k8s.io/v1")),
            "{event}"
        );
        assert!(object["metadata"]["resourceVersion"].is_string(), "{object}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_a_forgotten_revision_says_so() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(CONFIG_MAPS, &config_map("x", &json!({}))).await;
    cluster.restart().await;
    for revision in ["1", "999999"] {
        // In the stream and not as the response's code: that is what makes clients list again.
        let (code, event) = admin
            .get(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={revision}"))
            .await;
        assert_eq!((code, event["type"].as_str()), (200, Some("ERROR")), "{event}");
        let status = &event["object"];
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&json!(410), &json!("Expired")),
            "{status}"
        );
    }
    assert_eq!(
        admin.get(&format!("{CONFIG_MAPS}/x")).await.0,
        200,
        "state survives"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_bounds_are_refused() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut big = config_map("big", &json!({}));
    big["data"]["a"] = json!("x".repeat(4 << 20));
    let (code, _) = admin.post(CONFIG_MAPS, &big).await;
    assert_eq!(code, 413);
    assert_eq!(admin.post("/api/v1/configmaps", &json!({})).await.0, 405);
    assert_eq!(
        admin
            .post(
                "/api/v1/namespaces/nosuch/configmaps",
                &config_map("x", &json!({}))
            )
            .await
            .0,
        404
    );
    assert_eq!(admin.delete("/api/v1/namespaces/default", None).await.0, 403);
    let response = admin
        .raw(Method::POST, CONFIG_MAPS, Some(("text/plain", "x".to_owned())))
        .await;
    assert_eq!(response.status(), 415);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_ends_after_its_finalizers() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (code, created) = admin
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "team"}}))
        .await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["spec"]["finalizers"], json!(["kubernetes"]));
    let (code, ending) = admin.delete("/api/v1/namespaces/team", None).await;
    assert_eq!(
        (code, ending["status"]["phase"].as_str()),
        (200, Some("Terminating"))
    );
    let (code, refusal) = admin
        .post("/api/v1/namespaces/team/configmaps", &config_map("x", &json!({})))
        .await;
    assert_eq!(code, 403);
    assert!(
        refusal["message"].as_str().unwrap().contains("being terminated"),
        "{refusal}"
    );
    let mut done = ending;
    done["spec"]["finalizers"] = json!([]);
    assert_eq!(admin.put("/api/v1/namespaces/team/finalize", &done).await.0, 200);
    assert_eq!(admin.get("/api/v1/namespaces/team").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_nothing_is_refused_before_the_body_arrives() {
    let cluster = Cluster::start().await;
    let jane = cluster.user("jane", None);
    let response = jane.announce(CONFIG_MAPS, "content-length", "1000").await;
    assert_eq!(response.status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_is_refused_and_not_ignored() {
    let cluster = Cluster::start().await;
    let response = cluster
        .admin()
        .announce(CONFIG_MAPS, "impersonate-user", "jane")
        .await;
    assert_eq!(response.status(), 403);
}

/// A request for what strangers may read too, on a connection that stays; whether it was answered.
async fn knock(client: &Client) -> (bool, SendRequest<Empty<Bytes>>) {
    let mut sender = client.connect::<Empty<Bytes>>().await;
    let request = http::Request::get("/livez")
        .header(http::header::HOST, "test")
        .body(Empty::new())
        .unwrap();
    let answered = match sender.send_request(request).await {
        Ok(response) => response.status() == 200,
        Err(_closed) => false,
    };
    (answered, sender)
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_without_a_certificate_cannot_take_all_connections() {
    let cluster = Cluster::start().await;
    let (mut held, mut refused) = (Vec::new(), 0);
    for number in 0..140u8 {
        let nobody = cluster.nobody().from(Ipv4Addr::new(127, 0, 1, number / 10));
        let (answered, sender) = knock(&nobody).await;
        refused += u32::from(!answered);
        held.push(sender);
    }
    assert!(refused >= 12, "{refused} refused");
    assert_eq!(cluster.admin().get("/version").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stranger_does_not_take_the_place_of_others() {
    let cluster = Cluster::start().await;
    let stranger = || cluster.nobody().from(Ipv4Addr::new(127, 0, 0, 2));
    let mut held = Vec::new();
    for number in 0..20 {
        let (answered, sender) = knock(&stranger()).await;
        assert_eq!(answered, number < 16, "{number}");
        held.push(sender);
    }
    let other = cluster.nobody().from(Ipv4Addr::new(127, 0, 0, 3));
    assert!(knock(&other).await.0, "another source has its own share");
    let known = cluster.admin().from(Ipv4Addr::new(127, 0, 0, 2));
    assert_eq!(known.get("/version").await.0, 200, "a certificate needs none");
    drop(held);
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while !knock(&stranger()).await.0 {
        assert!(
            tokio::time::Instant::now() < until,
            "a share comes back with its connection"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_speaks_does_not_take_the_place_of_others() {
    let cluster = Cluster::start().await;
    let silent = cluster.nobody().from(Ipv4Addr::new(127, 0, 0, 2));
    let mut held = Vec::new();
    for _ in 0..256 {
        held.push(silent.dial().await);
    }
    let mut refused = silent.dial().await;
    let ended = tokio::time::timeout(Duration::from_secs(5), refused.read(&mut [0])).await;
    assert!(!matches!(ended.expect("it is ended at once"), Ok(1..)));
    assert_eq!(cluster.admin().get("/version").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_pod_and_service_account_reach_the_gate() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str, fields: &Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "r.example/private/app:1"}]});
        for (field, value) in fields.as_object().unwrap() {
            spec[field] = value.clone();
        }
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let refused = async |fields: Value| {
        let (code, status) = admin.post(pods, &pod("refused", &fields)).await;
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(code, 403, "{status}");
        assert!(
            message.contains("refuses access without credentials"),
            "{message}"
        );
    };
    let pull = json!([{"name": "pull"}]);
    refused(json!({})).await;
    refused(json!({"imagePullSecrets": pull})).await;
    let secret = json!({
        "metadata": {"name": "pull"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": "{\"auths\": {}}"},
    });
    let (code, made) = admin.post("/api/v1/namespaces/default/secrets", &secret).await;
    assert_eq!(code, 201, "{made}");
    let (code, made) = admin
        .post(pods, &pod("own", &json!({"imagePullSecrets": pull})))
        .await;
    assert_eq!(code, 201, "{made}");
    let verdict = &made["metadata"]["annotations"]["palisade.dev/image-verdict.c"];
    assert_eq!(verdict, "signed", "the node finds the gate's word in the pod");

    // A pod that names none gets its account's, and one that names some does not.
    let account = json!({"metadata": {"name": "puller"}, "imagePullSecrets": pull});
    let (code, made) = admin
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    assert_eq!(code, 201, "{made}");
    let by_account = json!({"serviceAccountName": "puller"});
    let (code, made) = admin.post(pods, &pod("by-account", &by_account)).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["imagePullSecrets"], pull);
    let other = json!([{"name": "other"}]);
    refused(json!({"serviceAccountName": "puller", "imagePullSecrets": other})).await;
}

/// `kubectl set image`, and `apply` of a manifest with another tag.
#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_a_pod_changes_by_the_gates_word() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    const MERGE: &str = "application/strategic-merge-patch+json";
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let account = json!({"metadata": {"name": "default"}});
    admin
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "registry.example/app:1"}]}});
    let (code, before) = admin.post(PODS, &pod).await;
    assert_eq!(code, 201, "{before}");
    let path = format!("{PODS}/p");
    let image = |image: &str| json!({"spec": {"containers": [{"name": "c", "image": image}]}});
    let (code, after) = admin.patch(&path, MERGE, &image("registry.example/app:2")).await;
    assert_eq!(code, 200, "{after}");
    let pinned = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
    assert!(
        pinned(&after).starts_with("registry.example/app@sha256:"),
        "{after}"
    );
    assert_ne!(pinned(&after), pinned(&before));
    assert_eq!(after["metadata"]["generation"], 2);
    let requested = format!("{}c", api::annotations::REQUESTED_IMAGE_PREFIX);
    assert_eq!(
        after["metadata"]["annotations"][requested],
        "registry.example/app:2"
    );

    let (code, refused) = admin
        .patch(&path, MERGE, &image("registry.example/vulnerable:1"))
        .await;
    assert_eq!(code, 403, "{refused}");
    // What is refused anyway is not scanned.
    let mut other = image("registry.example/vulnerable:2");
    other["spec"]["containers"][0]["command"] = json!(["sh"]);
    let (code, refused) = admin.patch(&path, MERGE, &other).await;
    assert_eq!(code, 422, "{refused}");
    let (_, kept) = admin.get(&path).await;
    assert_eq!(kept["spec"], after["spec"]);
}
