//! Policy for the node itself: an interface of the host that the test makes, with a machine behind it that is a network
//! namespace.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, pod},
    shell::eventually,
};
use serde_json::{Value, json};
use testkit::lab;

use crate::{
    Test,
    wire::{BEHIND, HOST, LINK, WELCOME, Wire},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "host_endpoints_are_judged_and_verified",
        host_endpoints_are_judged_and_verified,
    ),
    (
        "an_interface_that_comes_later_is_judged_at_once",
        an_interface_that_comes_later_is_judged_at_once,
    ),
    (
        "what_passes_through_the_node_is_judged_as_forwarded",
        what_passes_through_is_judged_as_forwarded,
    ),
    (
        "policies_before_translation_and_tracking_judge_what_comes_and_goes",
        before_translation_and_tracking,
    ),
    (
        "what_a_port_of_the_node_leads_to_a_pod_is_judged_as_forwarded",
        what_a_port_leads_to_a_pod_is_judged_as_forwarded,
    ),
];

const PATIENCE: Duration = Duration::from_secs(40);

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
    let _servers = [listen(8080)?, listen(8081)?, listen(FAILSAFE)?];
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
    let verify = || cluster.policyctl(&["verify", "--live", "--settle", "20"])?.ok();
    verify()?.says("1 host endpoints")?;
    for (verdict, port, rule) in [("deny", "8080", "rule 0"), ("allow", "8081", "rule 1")] {
        let told = eventually(PATIENCE, || {
            // A look that came before the policy may have been too slow to get through.
            wire.reaches(port.parse()?)?;
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
            // A connection that was begun before the host endpoint came is denied as well, without a rule.
            for line in told.stdout.lines() {
                let told: Value = serde_json::from_str(line)?;
                if told["decidedBy"]["rule"] == format!("GlobalNetworkPolicy wire {rule}") {
                    return Ok(told);
                }
            }
            bail!("no flow that {rule} decided: {told}")
        })?;
        let shown = (&told["pod"], &told["podLabels"]);
        let end = json!({"hostEndpoint": "wire", "node": node});
        ensure!(shown == (&end, &json!({"wire": "test"})), "{told}");
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

/// Looked for every five seconds it would sometimes be judged as soon, but not nearly each time.
fn an_interface_that_comes_later_is_judged_at_once(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?.ok()?;
    let node = nodes.stdout.trim().trim_start_matches("node/").to_owned();
    // Without a policy that allows anything.
    let host = format!(
        "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: wire, labels: {{wire: test}}}}\n\
         spec: {{node: {node}, interfaceName: {LINK}}}\n"
    );
    cluster.apply(&host)?.ok()?;
    let mut open_for = Vec::new();
    for round in 0..8 {
        let wire = Wire::new()?;
        let _server = listen(8080)?;
        let (begun, mut asked) = (Instant::now(), Instant::now());
        eventually(PATIENCE, || {
            asked = Instant::now();
            ensure!(!wire.reaches(8080)?, "port 8080 is open");
            Ok(())
        })
        .with_context(|| format!("round {round}: {}", cluster.daemon_logs()))?;
        open_for.push(asked - begun);
    }
    // Whoever only looks every five seconds is as fast as that six times of eight once in twenty.
    let at_once = open_for.iter().filter(|time| **time < Duration::from_secs(2));
    ensure!(at_once.count() >= 6, "{open_for:?}: {}", cluster.daemon_logs());
    cluster.kubectl(&["delete", "hostendpoint", "wire"])?.ok()?;
    Ok(())
}

/// A policy for the host endpoint of these tests.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{selector: wire == 'test', {spec}}}\n"
    )
}

/// A host endpoint that is open where no policy selects it.
fn open_host(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?.ok()?;
    let node = nodes.stdout.trim().trim_start_matches("node/");
    let host = format!(
        "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: wire, labels: {{wire: test}}}}\n\
         spec: {{node: {node}, interfaceName: {LINK}, profiles: [projectcalico-default-allow]}}\n"
    );
    cluster.apply(&host)?.ok().map(drop)
}

fn delete(cluster: &Cluster, objects: &[(&str, &str)]) -> Result<()> {
    for (kind, name) in objects {
        cluster.kubectl(&["delete", kind, name])?.ok()?;
    }
    Ok(())
}

/// A pod leaves by the link with the node's address: what is said of the node is not said of it, and the other way around.
fn what_passes_through_is_judged_as_forwarded(cluster: &Cluster) -> Result<()> {
    let wire = Wire::new()?;
    wire.forwards()?;
    wire.welcomes(8080)?;
    let image = cluster.push(&lab::clean()?, "through/clean", "1")?;
    cluster.kubectl(&["create", "namespace", "through"])?.ok()?;
    let command = ["sh", "-c", "while true; do sleep 1; done"];
    let yaml = pod(
        "through",
        "sender",
        "app: sender",
        &image,
        &command,
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("through", "sender", "Running")?;
    let expect = |expected: [bool; 2], when: &str| {
        eventually(PATIENCE, || {
            let script = "sleep 1 | nc -w 2 $0 $1 || true";
            let arguments = [
                "exec", "sender", "-n", "through", "--", "sh", "-c", script, BEHIND, "8080",
            ];
            let by_pod = cluster.kubectl(&arguments)?.ok()?.stdout.contains(WELCOME);
            let found = [by_pod, is_welcome(BEHIND, 8080)];
            ensure!(found == expected, "pod and node get through: {found:?}");
            Ok(())
        })
        .with_context(|| format!("{when}: {}", cluster.daemon_logs()))
    };
    expect([true, true], "before there is a host endpoint")?;
    open_host(cluster)?;
    let own = policy("wire-own", "order: 5, types: [Egress], egress: [{action: Deny}]");
    cluster.apply(&own)?.ok()?;
    expect([true, false], "with a policy for the node")?;
    let through = |action: &str| {
        let spec = format!(
            "order: 9, applyOnForward: true, types: [Egress], \
             egress: [{{action: {action}, protocol: TCP, destination: {{ports: [8080]}}}}]"
        );
        cluster.apply(&policy("wire-through", &spec))?.ok()
    };
    through("Deny")?;
    expect([false, false], "with a policy for what is forwarded")?;
    through("Allow")?;
    expect([true, false], "with one that allows it")?;
    through("Deny")?;
    cluster
        .kubectl(&["delete", "globalnetworkpolicy", "wire-own"])?
        .ok()?;
    expect([false, false], "it is for the node as well")?;
    delete(cluster, &[("globalnetworkpolicy", "wire-through")])?;
    expect([true, true], "after the policies were deleted")?;
    delete(cluster, &[("hostendpoint", "wire"), ("namespace", "through")])
}

/// Starts a pod in a new namespace that serves at its port 8080, to which this port of the node leads.
fn serve_at(cluster: &Cluster, namespace: &str, port: u16) -> Result<()> {
    let image = cluster.push(&lab::clean()?, &format!("{namespace}/clean"), "1")?;
    cluster.kubectl(&["create", "namespace", namespace])?.ok()?;
    let command = [
        "sh",
        "-c",
        "mkdir -p /tmp/www && exec httpd -f -p 8080 -h /tmp/www",
    ];
    let mut yaml = pod(
        namespace,
        "web",
        "app: web",
        &image,
        &command,
        "restartPolicy: Always",
    );
    yaml.push_str(&format!(
        "    ports: [{{containerPort: 8080, hostPort: {port}}}]\n"
    ));
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase(namespace, "web", "Running").map(drop)
}

/// The node is closed; a pod behind one of its ports is for other policies to close, and they see the pod.
fn what_a_port_leads_to_a_pod_is_judged_as_forwarded(cluster: &Cluster) -> Result<()> {
    let wire = Wire::new()?;
    wire.forwards()?;
    let _server = listen(8081)?;
    let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
    serve_at(cluster, "behind", port)?;
    open_host(cluster)?;
    cluster
        .apply(&policy("wire-shut", "order: 5, types: [Ingress]"))?
        .ok()?;
    wire.expect(&[(8081, false), (port, true)])
        .context("with a policy that allows the node nothing")?;
    let verify = || cluster.policyctl(&["verify", "--live", "--settle", "20"])?.ok();
    verify()?.says("1 host endpoints")?;
    let through = |destination: &str| {
        let spec = format!(
            "order: 1, applyOnForward: true, types: [Ingress], \
             ingress: [{{action: Deny, protocol: TCP, destination: {{{destination}}}}}, {{action: Allow}}]"
        );
        cluster.apply(&policy("wire-through", &spec))?.ok()
    };
    through("selector: app == 'web', ports: [8080]")?;
    wire.expect(&[(port, false), (8081, true)])
        .context("denied by the pod and its port")?;
    verify()?.says("1 host endpoints")?;
    through(&format!("ports: [{port}]"))?;
    wire.expect(&[(port, true)])
        .context("denied by the port on the wire, which is none of the pod's")?;
    delete(cluster, &[("globalnetworkpolicy", "wire-through")])?;
    wire.expect(&[(port, true), (8081, false)])
        .context("after the policy was deleted")?;

    // The port outlives the agent, and is the node's own again when the pod has gone.
    crate::recovery::kill(cluster.daemon_pid("agent")?)?;
    cluster.up_again()?;
    wire.expect(&[(port, true), (8081, false)])
        .context("after a restart of the agent")?;
    cluster.kubectl(&["delete", "pod", "web", "-n", "behind"])?.ok()?;
    let _own = listen(port).context("the port is not free")?;
    wire.expect(&[(port, false)]).context("after the pod went")?;
    verify()?.says("1 host endpoints")?;
    delete(
        cluster,
        &[
            ("globalnetworkpolicy", "wire-shut"),
            ("hostendpoint", "wire"),
            ("namespace", "behind"),
        ],
    )?;
    Ok(())
}

fn before_translation_and_tracking(cluster: &Cluster) -> Result<()> {
    let wire = Wire::new()?;
    wire.forwards()?;
    wire.welcomes(8080)?;
    let _server = listen(8081)?;
    let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
    serve_at(cluster, "early", port)?;
    wire.expect(&[(port, true), (8081, true)])
        .context("before there is a host endpoint")?;

    // The port of the node, before it becomes one of the pod.
    open_host(cluster)?;
    let early = format!(
        "order: 1, preDNAT: true, applyOnForward: true, types: [Ingress], \
         ingress: [{{action: Deny, protocol: TCP, destination: {{ports: [{port}]}}}}]"
    );
    cluster.apply(&policy("wire-early", &early))?.ok()?;
    wire.expect(&[(port, false), (8081, true)])
        .context("denied before translation")?;
    cluster
        .kubectl(&["delete", "globalnetworkpolicy", "wire-early"])?
        .ok()?;
    wire.expect(&[(port, true)])
        .context("no longer denied before translation")?;

    // Nothing is tracked: what is allowed to come is answered only if the answer is allowed too.
    cluster
        .apply(&policy("wire-shut", "order: 5, types: [Ingress, Egress]"))?
        .ok()?;
    wire.expect(&[(port, true), (8081, false)])
        .context("with a policy that allows the node nothing")?;
    let untracked = |egress: &str| {
        let spec = format!(
            "order: 1, doNotTrack: true, applyOnForward: true, types: [Ingress, Egress], \
             ingress: [{{action: Allow, protocol: TCP, destination: {{ports: [8081]}}}}], egress: [{egress}]"
        );
        cluster.apply(&policy("wire-untracked", &spec))?.ok()
    };
    untracked("{action: Allow, protocol: TCP, source: {ports: [8081]}}")?;
    wire.expect(&[(8081, true), (port, true)])
        .context("allowed both ways before tracking")?;
    untracked("")?;
    wire.expect(&[(8081, false)]).context("allowed one way")?;
    cluster
        .kubectl(&["delete", "globalnetworkpolicy", "wire-shut"])?
        .ok()?;
    eventually(PATIENCE, || {
        ensure!(is_welcome(BEHIND, 8080), "the node does not get through");
        Ok(())
    })?;
    untracked("{action: Deny, protocol: TCP, destination: {ports: [8080]}}")?;
    eventually(PATIENCE, || {
        ensure!(!is_welcome(BEHIND, 8080), "the node gets through");
        Ok(())
    })
    .context("denied before tracking")?;
    delete(
        cluster,
        &[
            ("globalnetworkpolicy", "wire-untracked"),
            ("hostendpoint", "wire"),
            ("namespace", "early"),
        ],
    )
}

/// Whether somebody there lets the caller in.
fn is_welcome(address: &str, port: u16) -> bool {
    let Ok(address) = format!("{address}:{port}").parse::<SocketAddr>() else {
        return false;
    };
    let patience = Duration::from_secs(1);
    let read = TcpStream::connect_timeout(&address, patience).and_then(|mut stream| {
        stream.set_read_timeout(Some(patience))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    read.is_ok_and(|text| text == WELCOME)
}

/// Listens at the host's end of the link. Nobody accepts, and there is room for far more callers than come: the first that
/// found none would find the port as silent as one that policy closes.
fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((HOST, port)).context("cannot listen")?;
    rustix::net::listen(&listener, 4096)?;
    Ok(listener)
}
