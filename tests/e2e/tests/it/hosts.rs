//! Policy for the node itself: an interface of the host that the test makes, with a machine behind it that is a network
//! namespace.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::Cluster,
    shell::{eventually, run},
};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "host_endpoints_are_judged_and_verified",
        host_endpoints_are_judged_and_verified,
    ),
    (
        "an_interface_that_comes_later_is_judged_at_once",
        an_interface_that_comes_later_is_judged_at_once,
    ),
];

/// Interface of the host.
const LINK: &str = "e2ewire0";
/// Its address, and the one behind it: RFC 5737 keeps them for documents, so no cluster and no machine has them.
const HOST: &str = "203.0.113.9";
const BEHIND: &str = "203.0.113.10";
/// How long a packet that nobody answers is waited for.
const SILENCE: &str = "2";
const PATIENCE: Duration = Duration::from_secs(20);

/// A port that stays open whatever policy says.
const FAILSAFE: u16 = 6666;

const CLOSED: &str = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: wire}\n\
    spec:\n  selector: wire == 'test'\n  types: [Ingress]\n  ingress:\n  \
    - {action: Deny, protocol: TCP, destination: {ports: [8080]}}\n  \
    - {action: Allow, protocol: TCP, destination: {ports: [8081]}}\n";

const DENY_ALL: &str = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: wire-shut}\n\
    spec: {selector: wire == 'test', order: 1, types: [Ingress], ingress: [{action: Deny}]}\n";

fn host_endpoints_are_judged_and_verified(cluster: &Cluster) -> Result<()> {
    let wire = Wire::new()?;
    let _servers = [8080, 8081, FAILSAFE].map(|port| TcpListener::bind((HOST, port)));
    for server in &_servers {
        ensure!(server.is_ok(), "cannot listen: {server:?}");
    }
    wire.expect(&[(8080, true), (8081, true), (FAILSAFE, true)])
        .context("before there is any policy")?;

    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?.ok()?;
    let node = nodes.stdout.trim().trim_start_matches("node/").to_owned();
    let host = format!(
        "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: wire, labels: {{wire: test}}}}\n\
         spec: {{node: {node}, interfaceName: {LINK}}}\n"
    );
    cluster.apply(CLOSED)?.ok()?;
    cluster.apply(&host)?.ok()?;
    wire.expect(&[(8080, false), (8081, true), (FAILSAFE, true)])
        .context("with a policy that closes one port")?;
    let verify = || cluster.policyctl(&["verify", "--live", "--settle", "5"])?.ok();
    verify()?.says("1 host endpoints")?;
    for (verdict, port, rule) in [("deny", "8080", "rule 0"), ("allow", "8081", "rule 1")] {
        let told = eventually(PATIENCE, || {
            let of = [
                "--host",
                "wire",
                "--peer",
                BEHIND,
                "--verdict",
                verdict,
                "--port",
                port,
            ];
            let told = cluster
                .policyctl(&[&["flows", "-o", "json"], &of[..]].concat())?
                .ok()?;
            let line = told
                .stdout
                .lines()
                .last()
                .context("no flow of the host endpoint")?;
            Ok(serde_json::from_str::<Value>(line)?)
        })?;
        let shown = (&told["pod"], &told["podLabels"], &told["decidedBy"]["rule"]);
        let end = json!({"hostEndpoint": "wire", "node": node});
        let rule = json!(format!("GlobalNetworkPolicy wire {rule}"));
        ensure!(shown == (&end, &json!({"wire": "test"}), &rule), "{told}");
        ensure!(
            told["direction"] == "ingress" && told["forwarded"].is_null(),
            "{told}"
        );
    }
    cluster
        .policyctl(&["flows", "--host", &node])?
        .ok()?
        .says("host wire (203.0.113.9)")?;

    cluster.apply(DENY_ALL)?.ok()?;
    wire.expect(&[(8080, false), (8081, false), (FAILSAFE, true)])
        .context("with a policy that closes everything")?;
    verify()?.says("1 host endpoints")?;

    for (kind, name) in [
        ("globalnetworkpolicy", "wire-shut"),
        ("globalnetworkpolicy", "wire"),
        ("hostendpoint", "wire"),
    ] {
        cluster.kubectl(&["delete", kind, name])?.ok()?;
    }
    wire.expect(&[(8080, true), (8081, true), (FAILSAFE, true)])
        .context("after everything was deleted")?;
    let after = verify()?;
    ensure!(!after.stdout.contains("host endpoints"), "{after}");
    Ok(())
}

/// Looked for every five seconds it would sometimes be judged as soon, but not each time.
fn an_interface_that_comes_later_is_judged_at_once(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?.ok()?;
    let node = nodes.stdout.trim().trim_start_matches("node/").to_owned();
    // Without a policy that allows anything.
    let host = format!(
        "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: wire, labels: {{wire: test}}}}\n\
         spec: {{node: {node}, interfaceName: {LINK}}}\n"
    );
    cluster.apply(&host)?.ok()?;
    for round in 0..5 {
        let wire = Wire::new()?;
        let server = TcpListener::bind((HOST, 8080))?;
        eventually(Duration::from_secs(1), || {
            ensure!(!wire.reaches(8080)?, "port 8080 is open");
            Ok(())
        })
        .with_context(|| format!("round {round}: {}", cluster.daemon_logs()))?;
        drop(server);
    }
    cluster.kubectl(&["delete", "hostendpoint", "wire"])?.ok()?;
    Ok(())
}

/// A link between the host and a network namespace, which lives for as long as its process does.
struct Wire {
    behind: Child,
}

impl Wire {
    fn new() -> Result<Self> {
        let mut behind = Command::new("unshare");
        let behind = behind
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn();
        let wire = Self {
            behind: behind.context("cannot start unshare")?,
        };
        let pid = wire.behind.id();
        let own = std::fs::read_link("/proc/self/ns/net")?;
        eventually(PATIENCE, || {
            let other = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
            ensure!(other != own, "process {pid} is still in the host's namespace");
            Ok(())
        })?;
        let pid = pid.to_string();
        let ip = |arguments: &[&str]| run(Path::new("ip"), arguments)?.ok();
        ip(&[
            "link", "add", LINK, "type", "veth", "peer", "name", "wire", "netns", &pid,
        ])?;
        ip(&["address", "add", &format!("{HOST}/30"), "dev", LINK])?;
        ip(&["link", "set", LINK, "up"])?;
        wire.inside(&["ip", "address", "add", &format!("{BEHIND}/30"), "dev", "wire"])?
            .ok()?;
        wire.inside(&["ip", "link", "set", "wire", "up"])?.ok()?;
        Ok(wire)
    }

    fn inside(&self, command: &[&str]) -> Result<e2e::shell::Ran> {
        let pid = self.behind.id().to_string();
        let arguments = [&["--target", &pid, "--net"], command].concat();
        run(Path::new("nsenter"), &arguments)
    }

    /// Whether a connection from behind the link comes to be. Denied means that nobody answers.
    fn reaches(&self, port: u16) -> Result<bool> {
        let connect = format!("exec 3<>/dev/tcp/{HOST}/{port}");
        let tried = self.inside(&["timeout", SILENCE, "bash", "-c", &connect])?;
        match tried.code {
            0 => Ok(true),
            124 => Ok(false),
            _ => bail!("neither answered nor silent: {tried}"),
        }
    }

    fn expect(&self, ports: &[(u16, bool)]) -> Result<()> {
        eventually(PATIENCE, || {
            for (port, open) in ports {
                ensure!(
                    self.reaches(*port)? == *open,
                    "port {port} is {}open",
                    if *open { "not " } else { "" }
                );
            }
            Ok(())
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The other end, and the namespace, go with it.
        drop(run(Path::new("ip"), &["link", "delete", LINK]));
        drop(self.behind.kill());
        drop(self.behind.wait());
    }
}
