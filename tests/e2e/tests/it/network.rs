//! Network policy as the kernel enforces it, and the flows that say which rule decided.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, HTTP_GET, pod},
    shell::{Ran, eventually, run},
};
use testkit::lab;

use crate::{
    Test,
    wire::{BEHIND, Wire},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "network_policy_is_enforced_and_explained",
        is_enforced_and_explained,
    ),
    ("tiers_pass_allow_and_deny_in_order", tiers_pass_allow_and_deny),
    ("ipv6_is_judged_like_ipv4", ipv6_is_judged_like_ipv4),
    ("names_open_what_they_name", names_open_what_they_name),
    (
        "a_table_that_somebody_flushes_is_there_again",
        a_flushed_table_is_there_again,
    ),
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

/// What a pod may reach by name; it has to ask for the name, too.
const BY_NAME: &str = r#"
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: by-name}
spec:
  selector: app == 'client' && projectcalico.org/namespace == 'names'
  types: [Egress]
  egress:
  - {action: Allow, protocol: UDP, destination: {nets: [169.254.1.1/32], ports: [53]}}
  - {action: Allow, protocol: TCP, destination: {domains: ["*.example.test"], ports: [8080]}}
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
    for who in ["friend", "stranger"] {
        welcomed("there is no policy", || {
            fetch(cluster, &image, who, &address, 8080)
        })?;
    }

    cluster.apply(POLICY)?.ok()?;
    eventually(Duration::from_secs(10), || {
        let answer = fetch(cluster, &image, "stranger", &address, 8080)?;
        if answer == "blocked\n" {
            Ok(())
        } else {
            bail!("the stranger still gets {answer:?}")
        }
    })?;
    welcomed("the friend is let in", || {
        fetch(cluster, &image, "friend", &address, 8080)
    })?;
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
        let get = || {
            let answer = fetch(who, port)?;
            ensure!(
                answer == expected,
                "{who} on port {port} gets {answer:?}, though {why}"
            );
            Ok(())
        };
        match expected {
            "blocked\n" => get()?,
            _ => eventually(WELCOMED_WITHIN, get)?,
        }
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
        ensure!(told["staged"] == staged, "staged: {told}");
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

fn ipv6_is_judged_like_ipv4(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "dual/clean", "1")?;
    cluster.kubectl(&["create", "namespace", "dual"])?.ok()?;
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -f -p 8080 -h /tmp/www";
    let web = pod(
        "dual",
        "web",
        "app: web",
        &image,
        &["sh", "-c", server],
        "restartPolicy: Always",
    );
    cluster.apply(&web)?.ok()?;
    let object = cluster.wait_for_phase("dual", "web", "Running")?;
    let addresses: Vec<&str> = object["status"]["podIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["ip"].as_str())
        .collect();
    let [v4, v6] = addresses.as_slice() else {
        bail!("not one address of each family: {}", object["status"]);
    };
    ensure!(
        object["status"]["podIP"] == *v4 && v4.starts_with("10.213.0.") && v6.starts_with("fd00:10:213::"),
        "podIP is the IPv4 address, the IPv6 address comes second: {}",
        object["status"]
    );
    let node = cluster.object("", "node", "lab")?;
    ensure!(
        node["spec"]["podCIDRs"] == serde_json::json!(["10.213.0.0/24", "fd00:10:213::/64"]),
        "{}",
        node["spec"]
    );
    let get = |who: &str, address: &str| fetch(cluster, "dual", &image, who, address, 8080);
    for address in [v4, v6] {
        welcomed("there is no policy", || get("stranger", address))
            .with_context(|| format!("at {address}"))?;
    }
    let policy = OWNERS.replace("namespace: yard", "namespace: dual");
    cluster.apply(&policy)?.ok()?;
    for address in [v4, v6] {
        eventually(Duration::from_secs(10), || {
            match get("stranger", address)?.as_str() {
                "blocked\n" => Ok(()),
                other => bail!("the stranger still gets {other:?} at {address}"),
            }
        })?;
        welcomed("the friend is let in", || get("friend", address))
            .with_context(|| format!("at {address}"))?;
    }
    let flows = cluster
        .policyctl(&["flows", "--verdict", "deny", "--pod", "dual/web", "-o", "json"])?
        .ok()?;
    let told = |line: &str| line.contains(*v6) && line.contains("NetworkPolicy dual/web");
    ensure!(
        flows.stdout.lines().any(told),
        "no flow tells of the denied IPv6: {flows}"
    );

    // As the friend's address, from another pod: the interface may send only as itself.
    let long = ["sh", "-c", "sleep 600"];
    for who in ["friend", "impostor"] {
        let yaml = pod(
            "dual",
            who,
            &format!("app: {who}"),
            &image,
            &long,
            "restartPolicy: Never",
        );
        cluster.apply(&yaml)?.ok()?;
    }
    let friend = cluster.wait_for_phase("dual", "friend", "Running")?;
    let impostor = cluster.wait_for_phase("dual", "impostor", "Running")?;
    let of = |object: &serde_json::Value| object["status"]["podIPs"][1]["ip"].as_str().map(str::to_owned);
    let (friend, own) = (
        of(&friend).context("the friend has no IPv6 address")?,
        of(&impostor).context("the impostor has no IPv6 address")?,
    );
    let inside = |arguments: &[&str]| in_namespace_of(&own, arguments);
    inside(&[
        "ip",
        "address",
        "add",
        &format!("{friend}/128"),
        "dev",
        "eth0",
        "nodad",
    ])?
    .ok()?;
    let ping = |from: &str| inside(&["busybox", "ping", "-6", "-c", "2", "-W", "1", "-I", from, v6]);
    cluster
        .kubectl(&["delete", "networkpolicy", "web", "-n", "dual"])?
        .ok()?;
    eventually(Duration::from_secs(10), || ping(&own)?.ok().map(drop))?;
    ensure!(
        ping(&friend)?.code != 0,
        "a pod spoke with another's IPv6 address"
    );
    let flows = cluster
        .policyctl(&[
            "flows",
            "--verdict",
            "deny",
            "--pod",
            "dual/impostor",
            "-o",
            "json",
        ])?
        .ok()?;
    ensure!(
        flows
            .stdout
            .lines()
            .any(|line| line.contains("spoofed-source") && line.contains(*v6)),
        "no flow tells of the spoofed source: {flows}"
    );
    cluster.kubectl(&["delete", "namespace", "dual"])?.ok()?;
    Ok(())
}

/// As a restart of the distribution's own nftables service does, but for the tables of others.
fn a_flushed_table_is_there_again(cluster: &Cluster) -> Result<()> {
    let nft = |words: [&str; 4]| run(std::path::Path::new("nft"), &words);
    nft(["list", "table", "inet", "palisade"])?.ok()?;
    nft(["delete", "table", "inet", "palisade"])?.ok()?;
    let is_told = || -> Result<bool> {
        let nodes = cluster.kubectl(&["get", "nodes", "-o", "json"])?.ok()?;
        Ok(nodes.stdout.contains("nftables table was removed"))
    };
    eventually(Duration::from_secs(20), || {
        ensure!(is_told()?, "no condition tells: {}", cluster.daemon_logs());
        Ok(())
    })?;
    nft(["list", "table", "inet", "palisade"])?.ok()?;
    eventually(Duration::from_secs(20), || {
        ensure!(
            !is_told()?,
            "the table is there, and the condition says that it was removed"
        );
        Ok(())
    })
}

fn names_open_what_they_name(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "names/clean", "1")?;
    cluster.kubectl(&["create", "namespace", "names"])?.ok()?;
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -f -p 8080 -h /tmp/www";
    let web = pod(
        "names",
        "web",
        "app: web",
        &image,
        &["sh", "-c", server],
        "restartPolicy: Always",
    );
    cluster.apply(&web)?.ok()?;
    let object = cluster.wait_for_phase("names", "web", "Running")?;
    let of_pod = object["status"]["podIP"].as_str().unwrap_or_default();
    // Names lead outside.
    let wire = Wire::new()?;
    wire.forwards()?;
    wire.welcomes(8080)?;
    for (name, address, ttl) in [
        ("www.example.test", BEHIND, 1),
        ("www.other.test", BEHIND, 3600),
        ("long.example.test", BEHIND, 3600),
        ("inside.example.test", of_pod, 3600),
    ] {
        cluster.upstream.set(name, address.parse()?, ttl);
    }
    let get_from = |address: &str, name: Option<&str>| {
        let lookup = name.map_or(String::new(), |name| {
            format!("nslookup -type=a {name} || {{ echo unanswered; exit 0; }}; ")
        });
        let script = format!("{lookup}{HTTP_GET}");
        // A busy machine's resolver may give up on a question; what is asked here is what an answer opens.
        eventually(Duration::from_secs(30), || {
            let got = fetch_by(cluster, "names", &image, "client", &script, address, 8080)?;
            ensure!(got != "unanswered\n", "nobody answers for {name:?}");
            Ok(got)
        })
    };
    let get = |name: Option<&str>| get_from(BEHIND, name);
    eventually(Duration::from_secs(10), || match get(None)?.as_str() {
        "welcome\n" => Ok(()),
        other => bail!("no policy, yet the answer is {other:?}"),
    })?;
    cluster.apply(BY_NAME)?.ok()?;
    eventually(Duration::from_secs(10), || match get(None)?.as_str() {
        "blocked\n" => Ok(()),
        other => bail!("nobody asked for a name, yet the answer is {other:?}"),
    })?;
    let other = get(Some("www.other.test"))?;
    ensure!(other == "blocked\n", "a name that no rule has gives {other:?}");
    let inside = get_from(of_pod, Some("inside.example.test"))?;
    ensure!(
        inside == "blocked\n",
        "a name that leads to a pod gives {inside:?}"
    );
    // Seen from a pod that says nothing: a name stays known for as long as somebody uses it, and whoever looks by a connection
    // does.
    let idle = pod(
        "names",
        "asker",
        "app: client",
        &image,
        &["sleep", "1000"],
        "restartPolicy: Never",
    );
    cluster.apply(&idle)?.ok()?;
    cluster.wait_for_phase("names", "asker", "Running")?;
    let to_the_name = [
        "explain",
        "--from",
        "names/asker",
        "--to",
        BEHIND,
        "--port",
        "8080",
    ];
    let forgotten = || {
        eventually(Duration::from_secs(60), || {
            let explained = cluster.policyctl(&to_the_name)?;
            ensure!(explained.code == 2, "the answer is too old, yet {explained}");
            Ok(())
        })?;
        eventually(Duration::from_secs(10), || match get(None)?.as_str() {
            "blocked\n" => Ok(()),
            other => bail!("the name is forgotten, yet the address gives {other:?}"),
        })
    };
    // A busy machine may need too long for it once. The next answer is the first again when this one no longer holds.
    let mut wanted = get(Some("www.example.test"))?;
    for _again in 0..2 {
        if wanted == "welcome\n" {
            break;
        }
        forgotten()?;
        wanted = get(Some("www.example.test"))?;
    }
    ensure!(
        wanted == "welcome\n",
        "the first connection after the answer gives {wanted:?}: {}",
        cluster.daemon_logs()
    );
    let flows = cluster
        .policyctl(&["flows", "--verdict", "allow", "--peer", BEHIND, "-o", "json"])?
        .ok()?;
    ensure!(flows.stdout.lines().any(|line| line.contains("8080")), "{flows}");
    // The answer holds for a second, at least ten here, and ten of grace.
    forgotten()?;
    // A resolver that is not the node's teaches nothing, and the policy does not let it be asked.
    let elsewhere = "nslookup -timeout=1 www.example.test 192.0.2.53; echo asked; ";
    let script = format!("{elsewhere}{HTTP_GET}");
    ensure!(
        fetch_by(cluster, "names", &image, "client", &script, BEHIND, 8080)? == "blocked\n",
        "another resolver opened the address"
    );
    // An agent that starts again goes on with what the one before it knew.
    welcomed("the second name opens", || get(Some("long.example.test")))?;
    cluster
        .policyctl(&to_the_name)?
        .says("GlobalNetworkPolicy by-name rule 1")?
        .ok()?;
    crate::recovery::kill(cluster.daemon_pid("agent")?)?;
    cluster.up_again()?;
    welcomed("the agent started again and knows the name", || get(None))
        .with_context(|| cluster.daemon_logs())?;
    cluster.kubectl(&["delete", "gnp", "by-name"])?.ok()?;
    cluster.kubectl(&["delete", "namespace", "names"])?.ok()?;
    Ok(())
}

/// How long an answer may take that policy allows: on a busy machine the first try may be too late.
const WELCOMED_WITHIN: Duration = Duration::from_secs(30);

/// Waits until the web server's answer comes.
pub(crate) fn welcomed(why: &str, get: impl Fn() -> Result<String>) -> Result<()> {
    eventually(WELCOMED_WITHIN, || {
        let answer = get()?;
        ensure!(answer == "welcome\n", "{why}, yet the answer is {answer:?}");
        Ok(())
    })
}

/// Runs a program of the host in the network namespace of the pod that has `address`.
fn in_namespace_of(address: &str, arguments: &[&str]) -> Result<Ran> {
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // The pod's own process list of addresses, in the kernel's form: 32 digits without colons.
        let digits: String = address
            .parse::<std::net::Ipv6Addr>()?
            .octets()
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect();
        let has = std::fs::read_to_string(format!("/proc/{pid}/net/if_inet6"));
        if !has.is_ok_and(|text| text.contains(&digits)) {
            continue;
        }
        let mut command = vec!["-t".to_owned(), pid.to_string(), "-n".to_owned()];
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        return run(std::path::Path::new("nsenter"), &command);
    }
    bail!("no process is in a network namespace with {address}")
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
    fetch_by(cluster, namespace, image, who, HTTP_GET, address, port)
}

/// Like [`fetch`], by a script that gets the address and the port.
fn fetch_by(
    cluster: &Cluster,
    namespace: &str,
    image: &str,
    who: &str,
    script: &str,
    address: &str,
    port: u16,
) -> Result<String> {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("{who}-{number}");
    let port = port.to_string();
    let command = ["sh", "-c", script, address, &port];
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
    // What netcat and nslookup say on standard error may come behind the answer: the two streams have no order.
    let log = log
        .lines()
        .rfind(|line| !line.starts_with("nc: ") && !line.starts_with("nslookup: "))
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
