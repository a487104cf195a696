//! Logs and flows come through the API server from the node's agent, and from nobody who only claims to be.

use std::{path::Path, sync::Arc, time::Duration};

use control_pki::tls::{ClientCertificate, Credentials, peer, server_config};
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{Client, Cluster, NODE};

/// What reached the agent: who asked, and the request line.
type Seen = mpsc::Receiver<(String, String)>;

/// An agent that answers every request with two lines, the second one after `more` fires.
async fn agent(tls_dir: &Path, name: &str, mut more: mpsc::Receiver<()>) -> (u16, Seen) {
    let credentials = Credentials::load(tls_dir, name).unwrap();
    let tls = server_config(&credentials, ClientCertificate::Required, &[b"http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::clone(&tls));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let user = peer(stream.get_ref().1).unwrap().unwrap().identity().user.clone();
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            seen.send((user, head.lines().next().unwrap_or_default().to_owned()))
                .await
                .unwrap();
            let start = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst\n\r\n";
            stream.write_all(start.as_bytes()).await.unwrap();
            if more.recv().await.is_some() {
                stream.write_all(b"7\r\nsecond\n\r\n0\r\n\r\n").await.unwrap();
            }
            let _closed = stream.shutdown().await;
        }
    });
    (port, receiver)
}

pub(crate) async fn register(admin: &Client, port: u16) {
    let node = json!({
        "metadata": {"name": NODE},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        },
    });
    assert_eq!(admin.post("/api/v1/nodes", &node).await.0, 201);
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "registry.example/app:1"}]},
    });
    assert_eq!(admin.post("/api/v1/namespaces/default/pods", &pod).await.0, 201);
    let binding = json!({"target": {"name": NODE}});
    assert_eq!(
        admin
            .post("/api/v1/namespaces/default/pods/p/binding", &binding)
            .await
            .0,
        201
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_arrive_as_the_agent_sends_them() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (go, more) = mpsc::channel(4);
    let (port, mut seen) = agent(&cluster.path("agent/tls"), "server", more).await;
    register(&admin, port).await;

    for (path, line) in [
        (
            "/api/v1/namespaces/default/pods/p/log?follow=true&tailLines=5",
            "GET /containerLogs/default/p/c?follow=true&tailLines=5 HTTP/1.1",
        ),
        (
            "/api/v1/nodes/node-a/proxy/flows?follow=true",
            "GET /flows?follow=true HTTP/1.1",
        ),
    ] {
        let mut response = admin.raw(Method::GET, path, None).await;
        assert_eq!(response.status(), 200);
        let (user, request) = seen.recv().await.unwrap();
        assert_eq!(
            (user.as_str(), request.as_str()),
            (api::annotations::USER_APISERVER, line)
        );
        let first = tokio::time::timeout(Duration::from_secs(10), response.body_mut().frame()).await;
        let first = first.expect("the first line is held back").unwrap().unwrap();
        assert_eq!(first.data_ref().unwrap().as_ref(), b"first\n");
        go.send(()).await.unwrap();
        let rest = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(rest.as_ref(), b"second\n");
    }
    assert_eq!(admin.get("/api/v1/nodes/node-a/proxy/healthz").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_of_the_cluster_is_not_believed() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (_go, more) = mpsc::channel(4);
    // The API server's own certificate is of the same authority, but names no node.
    let (port, _seen) = agent(&cluster.path("control/tls"), "server", more).await;
    register(&admin, port).await;
    let (code, status) = admin.get("/api/v1/namespaces/default/pods/p/log").await;
    assert_eq!(code, 503, "{status}");
    assert!(
        status["message"].as_str().unwrap().contains("certificate"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_ends_with_the_certificate_of_its_reader() {
    let cluster = Cluster::start().await;
    let (_go, more) = mpsc::channel(4);
    let (port, mut seen) = agent(&cluster.path("agent/tls"), "server", more).await;
    register(&cluster.admin(), port).await;
    let validity = Duration::from_secs(10);
    let reader = cluster.user_for("jane", Some(api::annotations::GROUP_MASTERS), validity);
    let log = "/api/v1/namespaces/default/pods/p/log?follow=true";
    let mut response = reader.raw(Method::GET, log, None).await;
    assert_eq!(response.status(), 200);
    seen.recv().await.unwrap();
    let first = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(first.data_ref().unwrap().as_ref(), b"first\n");
    let rest = tokio::time::timeout(Duration::from_secs(25), response.into_body().collect()).await;
    let rest = rest.expect("it goes on");
    assert!(rest.is_err(), "what has come is not all of it: {rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_server() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (_go, more) = mpsc::channel(4);
    let (port, mut seen) = agent(&cluster.path("agent/tls"), "server", more).await;
    register(&admin, port).await;
    let log = admin
        .raw(
            Method::GET,
            "/api/v1/namespaces/default/pods/p/log?follow=true",
            None,
        )
        .await;
    let watch = admin.raw(Method::GET, "/api/v1/pods?watch=true", None).await;
    seen.recv().await.unwrap();
    cluster.stop().await;
    // Both were cut off rather than left hanging; whether cleanly is the reader's to see.
    let ends = async { (log.into_body().collect().await, watch.into_body().collect().await) };
    assert!(tokio::time::timeout(Duration::from_secs(10), ends).await.is_ok());
}
