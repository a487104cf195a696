//! Requests for certificates, and certificates that count no more.

use control_pki::requests::{self, Kind};
use serde_json::{Value, json};

use crate::harness::Cluster;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A request for the certificate of a node, as an agent sends it.
fn request(name: &str, node: &str) -> Value {
    let (_key, pem) = requests::make(node, Kind::Client, &[]).unwrap();
    json!({
        "metadata": {"name": name},
        "spec": {
            "request": k8s_openapi::ByteString(pem.into_bytes()),
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
