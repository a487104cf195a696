//! Requests for certificates, and certificates that count no more.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use control_pki::requests::{self, Kind, NodeRequest, Signer};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::{
    harness::{Client, Cluster, NODE},
    http_api::Lines,
};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A request for the certificate of a node, as an agent sends it.
fn request(name: &str, node: &str) -> Value {
    let (_key, pem) = requests::make(node, Kind::Client, &[]).unwrap();
    of_pem(name, &pem)
}

fn of_pem(name: &str, pem: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "request": ByteString(pem.as_bytes().to_vec()),
            "signerName": Kind::Client.signer(),
            "usages": Kind::Client.usages(),
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_certificates_are_counted() {
    let cluster = Cluster::start().await;
    let node = cluster.node();
    for number in 0..20 {
        let (code, made) = node
            .post(REQUESTS, &request(&format!("r{number}"), "node-a"))
            .await;
        assert_eq!(code, 201, "{made}");
    }
    let one_more = request("more", "node-a");
    let (code, status) = node.post(REQUESTS, &one_more).await;
    assert_eq!(
        (code, &status["reason"]),
        (429, &json!("TooManyRequests")),
        "{status}"
    );
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("of \"system:node:node-a\", and the limit is 20"),
        "{message}"
    );

    // Others have their own, and what is removed makes room.
    let (code, made) = cluster.admin().post(REQUESTS, &request("other", "node-b")).await;
    assert_eq!(code, 201, "{made}");
    cluster.admin().delete(&format!("{REQUESTS}/r7"), None).await;
    let (code, made) = node.post(REQUESTS, &one_more).await;
    assert_eq!(code, 201, "{made}");

    let mut large = request("large", "node-b");
    large["metadata"]["annotations"] = json!({"x": "x".repeat(32_000)});
    let (code, status) = cluster.admin().post(REQUESTS, &large).await;
    assert_eq!(code, 422, "nothing is stored beside a request: {status}");
}

/// Approves a request, as a person does.
async fn approve(cluster: &Cluster, name: &str) -> (u16, Value) {
    let approved =
        json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]}});
    let path = format!("{REQUESTS}/{name}/approval");
    cluster
        .admin()
        .patch(&path, "application/merge-patch+json", &approved)
        .await
}

/// Signs a request, as the signer does; the answer is what the server says to it.
async fn sign(cluster: &Cluster, name: &str, pem: &str) -> (u16, Value) {
    let usages = Kind::Client.usages().map(str::to_owned);
    let asked = NodeRequest::parse(Kind::Client, pem, &usages).unwrap();
    let signer = Signer::load(&cluster.path("")).unwrap();
    let certificate = signer
        .sign(&asked, Duration::from_secs(3600), SystemTime::now())
        .unwrap();
    let status = json!({"status": {"certificate": ByteString(certificate.into_bytes())}});
    let path = format!("{REQUESTS}/{name}/status");
    let signer = cluster.user(api::annotations::USER_SIGNER, None);
    signer.patch(&path, "application/merge-patch+json", &status).await
}

/// Gets the certificate of `node` by an invitation.
async fn join(cluster: &Cluster, invitation: &Path, node: &str) -> Client {
    let (key, pem) = requests::make(node, Kind::Client, &[]).unwrap();
    let invited = cluster.holder(invitation, "bootstrap");
    let name = format!("join-{node}");
    let (code, made) = invited.post(REQUESTS, &of_pem(&name, &pem)).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(approve(cluster, &name).await.0, 200);
    let (code, signed) = sign(cluster, &name, &pem).await;
    assert_eq!(code, 200, "{signed}");
    let ByteString(certificate) = serde_json::from_value(signed["status"]["certificate"].clone()).unwrap();
    std::fs::write(invitation.join("client.crt"), certificate).unwrap();
    std::fs::write(invitation.join("client.key"), key.as_bytes()).unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(invitation.join("client.key"), mode).unwrap();
    cluster.holder(invitation, "client")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_deleted_is_nobody() {
    let mut cluster = Cluster::start().await;
    let object = json!({"metadata": {"name": NODE}});
    let own = format!("/api/v1/nodes/{NODE}");
    let node = cluster.node();
    assert_eq!(node.post("/api/v1/nodes", &object).await.0, 201);
    // Somebody who means to stay: an old invitation, and requests on their way.
    let old_invitation = cluster.invite(NODE);
    let (_key, pem) = requests::make(NODE, Kind::Client, &[]).unwrap();
    for name in ["approved", "waiting"] {
        assert_eq!(node.post(REQUESTS, &of_pem(name, &pem)).await.0, 201);
    }
    assert_eq!(approve(&cluster, "approved").await.0, 200);
    let others = cluster.user("system:node:node-b", Some("system:nodes"));

    assert_eq!(cluster.admin().delete(&own, None).await.0, 200);
    for _ in 0..2 {
        let (code, status) = cluster.node().get(&own).await;
        assert_eq!(code, 401, "{status}");
        let message = status["message"].as_str().unwrap();
        assert!(message.contains("\"node-a\" was deleted"), "{message}");
        assert_eq!(cluster.node().post("/api/v1/nodes", &object).await.0, 401);
        let (code, status) = cluster
            .holder(old_invitation.path(), "bootstrap")
            .post(REQUESTS, &request("late", NODE))
            .await;
        assert_eq!(code, 401, "{status}");
        let (code, status) = sign(&cluster, "approved", &pem).await;
        assert_eq!(code, 403, "{status}");
        let (code, status) = approve(&cluster, "waiting").await;
        assert_eq!(code, 403, "{status}");
        // It is known on disk.
        cluster.restart().await;
    }
    assert_eq!(others.get("/api/v1/nodes").await.0, 200, "others stay");

    let invitation = cluster.invite(NODE);
    let node = join(&cluster, invitation.path(), NODE).await;
    assert_eq!(node.post("/api/v1/nodes", &object).await.0, 201);
    assert_eq!(cluster.node().get(&own).await.0, 401, "the old one stays out");
    assert_eq!(node.get(&own).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_node_has_open_ends_at_once() {
    let cluster = Cluster::start().await;
    let own = format!("/api/v1/nodes/{NODE}");
    let object = json!({"metadata": {"name": NODE}});
    assert_eq!(cluster.node().post("/api/v1/nodes", &object).await.0, 201);
    let pods = |node: &str| format!("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3D{node}");
    let others = cluster.user("system:node:node-b", Some("system:nodes"));
    let mut others = Lines::open(&others, &pods("node-b")).await;
    let mut watch = Lines::open(&cluster.node(), &pods(NODE)).await;
    assert_eq!(cluster.admin().delete(&own, None).await.0, 200);
    // Sooner than it would be looked at anyway.
    let told = tokio::time::timeout(Duration::from_secs(3), watch.next()).await;
    let (kind, status) = told.expect("it goes on").expect("it ends without a word");
    assert_eq!(
        (kind.as_str(), &status["code"]),
        ("ERROR", &json!(401)),
        "{status}"
    );
    assert_eq!(watch.next().await, None);
    let others = tokio::time::timeout(Duration::from_secs(1), others.next()).await;
    assert!(others.is_err(), "others stay: {others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_finalizers_end_is_deleted() {
    let cluster = Cluster::start().await;
    let own = format!("/api/v1/nodes/{NODE}");
    let object = json!({"metadata": {"name": NODE, "finalizers": ["lab.example/wait"]}});
    let (code, made) = cluster.admin().post("/api/v1/nodes", &object).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(cluster.admin().delete(&own, None).await.0, 200);
    assert_eq!(cluster.node().get(&own).await.0, 200, "it is still there");
    let release = json!({"metadata": {"finalizers": null}});
    let admin = cluster.admin();
    let released = admin.patch(&own, "application/merge-patch+json", &release);
    assert_eq!(released.await.0, 200);
    assert_eq!(cluster.node().get(&own).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_works_once() {
    let cluster = Cluster::start().await;
    let invitation = cluster.invite("node-c");
    let invited = || cluster.holder(invitation.path(), "bootstrap");
    let (_key, first) = requests::make("node-c", Kind::Client, &[]).unwrap();
    assert_eq!(invited().post(REQUESTS, &of_pem("first", &first)).await.0, 201);
    assert_eq!(
        invited().post(REQUESTS, &request("second", "node-c")).await.0,
        201,
        "not used yet"
    );
    let trial =
        json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Trial"}]}});
    let tried = format!("{REQUESTS}/second/approval?dryRun=All");
    let tried = cluster
        .admin()
        .patch(&tried, "application/merge-patch+json", &trial)
        .await;
    assert_eq!(tried.0, 200, "{}", tried.1);
    assert_eq!(approve(&cluster, "first").await.0, 200, "a trial uses nothing up");
    let (code, status) = approve(&cluster, "second").await;
    assert_eq!(code, 403, "{status}");
    assert!(
        status["message"].as_str().unwrap().contains("works once"),
        "{status}"
    );
    let (code, status) = invited().post(REQUESTS, &request("third", "node-c")).await;
    assert_eq!(code, 403, "{status}");
    // The agent that ended before the answer came has its key, and nobody else has.
    assert_eq!(invited().post(REQUESTS, &of_pem("again", &first)).await.0, 201);
    assert_eq!(approve(&cluster, "again").await.0, 200);
    let anew = cluster.invite("node-c");
    join(&cluster, anew.path(), "node-c").await;
}
