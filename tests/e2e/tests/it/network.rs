//! Network policy as the kernel enforces it, and the flows that say which rule decided.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, HTTP_GET, pod},
    shell::eventually,
};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "network_policy_is_enforced_and_explained",
        is_enforced_and_explained,
    ),
    ("tiers_pass_allow_and_deny_in_order", tiers_pass_allow_and_deny),
];

/// What the owner of the namespace allows.
const OWNERS: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: yard}\nspec:\n  \
    podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: friend}}}]\n";

/// What comes before that.
const FENCE: &str = r#"
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: fence}
spec: {order: 50}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: fence.edge}
spec:
  tier: fence
  selector: app == 'web' && projectcalico.org/namespace == 'yard'
  types: [Ingress]
  ingress:
  - {action: Pass, protocol: TCP, source: {selector: app == 'friend'}, destination: {ports: [8080]}}
  - {action: Allow, protocol: TCP, source: {selector: app == 'auditor'}}
  - {action: Deny, source: {selector: app == 'stranger'}}
"#;

/// What would take its place.
const STAGED: &str = r#"
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: fence.edge}
spec: {tier: fence, selector: app == 'web', types: [Ingress], ingress: [{action: Deny}]}
"#;

/// Asked after the fence and before the namespace's own.
const ADMIN: &str = r#"
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-friends}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: yard}}}
  ingress:
  - name: none
    action: Deny
    from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: friend}}}}]
"#;

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n  \
    podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: friend}}}]\n    \
    ports: [{port: http, protocol: TCP}]\n";

fn is_enforced_and_explained(cluster: &Cluster) -> Result<()> {
    let fetch = |cluster: &Cluster, image: &str, who: &str, address: &str, port: u16| {
        fetch(cluster, "shop", image, who, address, port)
    };
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

fn tiers_pass_allow_and_deny(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "tiers/clean", "1")?;
    cluster.kubectl(&["create", "namespace", "yard"])?.ok()?;
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -p 8080 -h /tmp/www && httpd -f -p 9090 -h /tmp/www";
    let web = pod(
        "yard",
        "web",
        "app: web",
        &image,
        &["sh", "-c", server],
        "restartPolicy: Always",
    );
    cluster.apply(&web)?.ok()?;
    let object = cluster.wait_for_phase("yard", "web", "Running")?;
    let address = object["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let fetch = |who: &str, port| fetch(cluster, "yard", &image, who, &address, port);
    cluster.apply(OWNERS)?.ok()?;
    eventually(Duration::from_secs(10), || {
        match fetch("auditor", 8080)?.as_str() {
            "blocked\n" => Ok(()),
            other => bail!("the namespace's own policy is in force, the auditor gets {other:?}"),
        }
    })?;

    // Before a policy that names it, the tier; the server says so.
    let (tier, policy) = FENCE.split_once("---").unwrap_or_default();
    let refused = cluster.apply(policy)?;
    ensure!(
        refused.code != 0 && refused.to_string().contains("spec.tier"),
        "a policy without its tier was stored: {refused}"
    );
    for document in [tier, policy, STAGED] {
        cluster
            .policyctl_with_input(&["apply", "-f", "-"], document)?
            .ok()?;
    }
    cluster.policyctl(&["get", "gnp"])?.ok()?.says("fence.edge")?;
    eventually(Duration::from_secs(10), || {
        match fetch("auditor", 8080)?.as_str() {
            "welcome\n" => Ok(()),
            other => bail!("the first tier allows the auditor, who gets {other:?}"),
        }
    })?;
    for (who, port, expected, why) in [
        (
            "friend",
            8080,
            "welcome\n",
            "passed on, then allowed by the namespace's own policy",
        ),
        (
            "friend",
            9090,
            "blocked\n",
            "selected by the first tier and decided by none of its rules",
        ),
        ("stranger", 8080, "blocked\n", "denied by a rule"),
    ] {
        let answer = fetch(who, port)?;
        ensure!(
            answer == expected,
            "{who} on port {port} gets {answer:?}, though {why}"
        );
    }

    let flows = cluster
        .policyctl(&["flows", "--pod", "yard/web", "-o", "json"])?
        .ok()?;
    let flows: Vec<serde_json::Value> = flows
        .stdout
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let fence = "GlobalNetworkPolicy fence.edge";
    for (verdict, rule, policy, tier) in [
        ("deny", format!("{fence} rule 2"), fence, "fence"),
        (
            "deny",
            format!("default-deny (isolated by {fence})"),
            fence,
            "fence",
        ),
        ("allow", format!("{fence} rule 1"), fence, "fence"),
        (
            "allow",
            "NetworkPolicy yard/web rule 0".to_owned(),
            "NetworkPolicy yard/web",
            "default",
        ),
    ] {
        let mut decided = serde_json::json!({"rule": rule, "policy": policy, "tier": tier});
        if let Some((_, index)) = rule.split_once(" rule ") {
            decided["index"] = serde_json::from_str(index)?;
        }
        let told = flows.iter().find(|flow| {
            flow["verdict"] == verdict && flow["direction"] == "ingress" && flow["decidedBy"] == decided
        });
        let told = told.with_context(|| format!("no flow says {verdict} by {decided}: {flows:#?}"))?;
        // With the staged policy nobody would get through.
        let staged = serde_json::json!({"verdict": "deny", "decidedBy": {
            "rule": "StagedGlobalNetworkPolicy fence.edge rule 0", "policy": "StagedGlobalNetworkPolicy fence.edge",
            "tier": "fence", "index": 0,
        }});
        let expected = if verdict == "allow" {
            &staged
        } else {
            &serde_json::Value::Null
        };
        ensure!(&told["staged"] == expected, "staged: {told}");
    }
    let long = |who: &str| {
        let command = ["sh", "-c", "while true; do sleep 1; done"];
        let yaml = pod(
            "yard",
            who,
            &format!("app: {who}"),
            &image,
            &command,
            "restartPolicy: Never",
        );
        cluster.apply(&yaml)?.ok()?;
        cluster.wait_for_phase("yard", who, "Running")
    };
    long("stranger")?;
    let explained = cluster.policyctl(&[
        "explain",
        "--from",
        "yard/stranger",
        "--to",
        "yard/web",
        "--port",
        "8080",
    ])?;
    ensure!(
        explained.says("GlobalNetworkPolicy fence.edge rule 2")?.code == 2,
        "denied is exit code 2"
    );

    cluster.apply(ADMIN)?.ok()?;
    eventually(Duration::from_secs(10), || {
        match fetch("friend", 8080)?.as_str() {
            "blocked\n" => Ok(()),
            other => bail!("the administrators' policy denies, the friend gets {other:?}"),
        }
    })?;
    for object in [
        "clusternetworkpolicy/no-friends",
        "gnp/fence.edge",
        "sgnp/fence.edge",
        "tier/fence",
    ] {
        cluster.kubectl(&["delete", object])?.ok()?;
    }
    eventually(Duration::from_secs(10), || {
        match fetch("friend", 8080)?.as_str() {
            "welcome\n" => Ok(()),
            other => bail!("only the namespace's own policy is left, the friend gets {other:?}"),
        }
    })?;
    cluster.kubectl(&["delete", "namespace", "yard"])?.ok()?;
    Ok(())
}

/// Fetches from a fresh pod with the label of `who`; `blocked` when there is no answer.
pub(crate) fn fetch(
    cluster: &Cluster,
    namespace: &str,
    image: &str,
    who: &str,
    address: &str,
    port: u16,
) -> Result<String> {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("{who}-{number}");
    let port = port.to_string();
    let command = ["sh", "-c", HTTP_GET, address, &port];
    let yaml = pod(
        namespace,
        &name,
        &format!("app: {who}"),
        image,
        &command,
        "restartPolicy: Never",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase(namespace, &name, "Succeeded")?;
    let log = cluster.policyctl(&["logs", &name, "-n", namespace])?.ok()?.stdout;
    // What netcat says on standard error may come behind the answer: the two streams have no order.
    let log = log
        .lines()
        .rfind(|line| !line.starts_with("nc: "))
        .map(|line| format!("{line}\n"))
        .unwrap_or_default();
    cluster
        .kubectl(&["delete", "pod", &name, "-n", namespace, "--now"])?
        .ok()?;
    Ok(log)
}

/// The node reaches its own pods whatever the policy, as probes must.
fn from_the_node(address: &str) -> Result<()> {
    let address = format!("{address}:8080").parse()?;
    std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    Ok(())
}
