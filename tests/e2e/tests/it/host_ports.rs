//! Ports of the node that lead to pods.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, HTTP_GET, pod},
    shell::eventually,
};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "host_ports_lead_to_their_pod_and_policy_judges",
        lead_to_their_pod,
    ),
    ("host_ports_are_given_once", are_given_once),
];

const PATIENCE: Duration = Duration::from_secs(60);

fn server(cluster: &Cluster, name: &str, port: u16) -> Result<String> {
    let image = cluster.push(&lab::clean()?, "ports/clean", "1")?;
    let script =
        "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
    let mut yaml = pod(
        "ports",
        name,
        "app: web",
        &image,
        &["sh", "-c", script],
        "restartPolicy: Always",
    );
    yaml.push_str(&format!(
        "    ports: [{{containerPort: 8080, hostPort: {port}}}]\n"
    ));
    Ok(yaml)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

fn get(address: &str, port: u16) -> Result<String> {
    let address: SocketAddr = format!("{address}:{port}").parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn lead_to_their_pod(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "ports"])?.ok()?;
    let port = free_port()?;
    cluster.apply(&server(cluster, "web", port)?)?.ok()?;
    let object = cluster.wait_for_phase("ports", "web", "Running")?;
    let node = object["status"]["hostIP"].as_str().context("a node")?.to_owned();
    let image = cluster.push(&lab::clean()?, "ports/clean", "1")?;
    for name in ["friend", "stranger"] {
        let command = ["sh", "-c", "while true; do sleep 1; done"];
        let label = format!("app: {name}");
        let yaml = pod("ports", name, &label, &image, &command, "restartPolicy: Always");
        cluster.apply(&yaml)?.ok()?;
        cluster.wait_for_phase("ports", name, "Running")?;
    }
    let from_pod = |name: &str| -> Result<String> {
        let number = port.to_string();
        let arguments = [
            "exec", name, "-n", "ports", "--", "sh", "-c", HTTP_GET, &node, &number,
        ];
        Ok(cluster.kubectl(&arguments)?.ok()?.stdout)
    };
    let is_welcome = |name: &str| {
        eventually(PATIENCE, || {
            let answer = from_pod(name)?;
            ensure!(answer.contains("welcome"), "the {name} gets {answer:?}");
            Ok(())
        })
    };
    for address in ["127.0.0.1", &node] {
        let answer = eventually(PATIENCE, || get(address, port)).with_context(|| address.to_owned())?;
        ensure!(answer.contains("welcome"), "{address}: {answer}");
    }
    for name in ["friend", "stranger"] {
        is_welcome(name)?;
    }
    // Policy sees who asks, also by way of the node's port.
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: ports}\nspec:\n  \
        podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: friend}}}]\n";
    cluster.apply(policy)?.ok()?;
    eventually(PATIENCE, || match from_pod("stranger")?.as_str() {
        "blocked\n" => Ok(()),
        other => bail!("the stranger gets {other:?}"),
    })?;
    is_welcome("friend")?;
    // It outlives the agent, and goes with the pod.
    crate::recovery::kill(cluster.daemon_pid("agent")?)?;
    cluster.up_again()?;
    is_welcome("friend").with_context(|| format!("after a restart: {}", cluster.daemon_logs()))?;
    cluster.kubectl(&["delete", "pod", "web", "-n", "ports"])?.ok()?;
    ensure!(get("127.0.0.1", port).is_err(), "the port leads somewhere still");
    TcpListener::bind(("0.0.0.0", port)).context("the port is not free")?;
    Ok(())
}

fn are_given_once(cluster: &Cluster) -> Result<()> {
    let port = free_port()?;
    cluster.apply(&server(cluster, "first", port)?)?.ok()?;
    cluster.wait_for_phase("ports", "first", "Running")?;
    cluster.apply(&server(cluster, "second", port)?)?.ok()?;
    let why = "node(s) didn't have free ports for the requested pod ports";
    eventually(PATIENCE, || {
        let events = cluster.kubectl(&["get", "events", "-n", "ports"])?.ok()?;
        match events.stdout.contains(why) {
            true => Ok(()),
            false => bail!("{events}"),
        }
    })?;
    let second = cluster.object("ports", "pods", "second")?;
    ensure!(second["status"]["phase"] == "Pending", "{}", second["status"]);
    cluster
        .kubectl(&["delete", "pod", "first", "-n", "ports"])?
        .ok()?;
    cluster.wait_for_phase("ports", "second", "Running")?;
    // What the node serves itself is not taken away from it.
    let service = TcpListener::bind("0.0.0.0:0")?;
    let taken = service.local_addr()?.port();
    cluster.apply(&server(cluster, "third", taken)?)?.ok()?;
    eventually(PATIENCE, || {
        let events = cluster.kubectl(&["get", "events", "-n", "ports"])?.ok()?;
        match events
            .stdout
            .contains(&format!("port {taken}/TCP of the node cannot lead to the pod"))
        {
            true => Ok(()),
            false => bail!("{events}"),
        }
    })?;
    cluster.kubectl(&["delete", "namespace", "ports"])?.ok()?;
    Ok(())
}
