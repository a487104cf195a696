//! Network policy as the kernel enforces it, and the flows that say which rule decided.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::{
    cluster::{Cluster, HTTP_GET, pod},
    shell::eventually,
};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[(
    "network_policy_is_enforced_and_explained",
    is_enforced_and_explained,
)];

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n  \
    podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: friend}}}]\n    \
    ports: [{port: http, protocol: TCP}]\n";

fn is_enforced_and_explained(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "network/clean", "1")?;
    cluster.kubectl(&["create", "namespace", "shop"])?.ok()?;
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -p 8080 -h /tmp/www && httpd -f -p 9090 -h /tmp/www";
    let mut web = pod(
        "shop",
        "web",
        "app: web",
        &image,
        &["sh", "-c", server],
        "restartPolicy: Always",
    );
    web.push_str("    ports: [{name: http, containerPort: 8080}]\n");
    cluster.apply(&web)?.ok()?;
    for name in ["friend", "stranger"] {
        let command = ["sh", "-c", "echo ready; while true; do sleep 1; done"];
        cluster
            .apply(&pod(
                "shop",
                name,
                &format!("app: {name}"),
                &image,
                &command,
                "restartPolicy: Always",
            ))?
            .ok()?;
        cluster.wait_for_phase("shop", name, "Running")?;
    }
    let object = cluster.wait_for_phase("shop", "web", "Running")?;
    let address = object["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    // Without a policy both get through, and so does the node itself.
    ensure!(
        fetch(cluster, &image, "friend", &address, 8080)? == "welcome\n",
        "no policy, yet no answer"
    );
    ensure!(
        fetch(cluster, &image, "stranger", &address, 8080)? == "welcome\n",
        "no policy, yet no answer"
    );

    cluster.apply(POLICY)?.ok()?;
    eventually(Duration::from_secs(10), || {
        let answer = fetch(cluster, &image, "stranger", &address, 8080)?;
        if answer == "blocked\n" {
            Ok(())
        } else {
            bail!("the stranger still gets {answer:?}")
        }
    })?;
    ensure!(
        fetch(cluster, &image, "friend", &address, 8080)? == "welcome\n",
        "the friend is blocked"
    );
    ensure!(
        fetch(cluster, &image, "friend", &address, 9090)? == "blocked\n",
        "another port is open"
    );
    from_the_node(&address)?;

    let flows = cluster
        .policyctl(&["flows", "--verdict", "deny", "--pod", "shop/web", "-o", "json"])?
        .ok()?;
    let named = flows
        .stdout
        .lines()
        .any(|line| line.contains("NetworkPolicy shop/web") && line.contains("\"deny\""));
    ensure!(named, "no flow names the policy that denied: {flows}");

    let explain = |from: &str, port: &str| {
        cluster.policyctl(&["explain", "--from", from, "--to", "shop/web", "--port", port])
    };
    ensure!(
        explain("shop/friend", "8080")?
            .says("NetworkPolicy shop/web rule 0")?
            .code
            == 0,
        "allowed is exit code 0"
    );
    ensure!(
        explain("shop/stranger", "8080")?.says("denied")?.code == 2,
        "denied is exit code 2"
    );

    cluster
        .kubectl(&["delete", "networkpolicy", "web", "-n", "shop"])?
        .ok()?;
    eventually(Duration::from_secs(10), || {
        let answer = fetch(cluster, &image, "stranger", &address, 8080)?;
        if answer == "welcome\n" {
            Ok(())
        } else {
            bail!("the policy is gone, the stranger gets {answer:?}")
        }
    })?;
    cluster.kubectl(&["delete", "namespace", "shop"])?.ok()?;
    Ok(())
}

/// Fetches from a fresh pod with the label of `who`; `blocked` when there is no answer.
fn fetch(cluster: &Cluster, image: &str, who: &str, address: &str, port: u16) -> Result<String> {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("{who}-{number}");
    let port = port.to_string();
    let command = ["sh", "-c", HTTP_GET, address, &port];
    let yaml = pod(
        "shop",
        &name,
        &format!("app: {who}"),
        image,
        &command,
        "restartPolicy: Never",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("shop", &name, "Succeeded")?;
    let log = cluster.policyctl(&["logs", &name, "-n", "shop"])?.ok()?.stdout;
    let log = log
        .lines()
        .last()
        .map(|line| format!("{line}\n"))
        .unwrap_or_default();
    cluster
        .kubectl(&["delete", "pod", &name, "-n", "shop", "--now"])?
        .ok()?;
    Ok(log)
}

/// The node reaches its own pods whatever the policy, as probes must.
fn from_the_node(address: &str) -> Result<()> {
    let address = format!("{address}:8080").parse()?;
    std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    Ok(())
}
