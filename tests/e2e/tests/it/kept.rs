//! What a change of policy does to flows that go on: what `palisade.dev/established` says on the pod.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    cluster::{Cluster, pod},
    distribution,
    shell::eventually,
};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[(
    "established_connections_outlive_a_policy_where_the_pod_asks",
    established_connections,
)];

const PATIENCE: Duration = Duration::from_secs(20);

/// Sends back what it gets, on port 8080.
const ECHO: &str = r#"socket(L, 2, 1, 6) or die; setsockopt(L, 1, 2, pack('l', 1)) or die;
bind(L, pack('S n a4 x8', 2, 8080, "\0\0\0\0")) or die "bind: $!"; listen(L, 5) or die; $| = 1; print "listens\n"; $SIG{CHLD} = 'IGNORE';
while (accept(C, L)) { unless (fork) { while (sysread(C, my $b, 1)) { syswrite(C, $b); } exit; } close C; }"#;

/// Sends to a server ten times a second over one connection, and says how often something came back.
const ASK: &str = r#"$| = 1; my ($name, $address) = @ARGV; socket(S, 2, 1, 6) or die;
my $to = pack('S n a4 x8', 2, 8080, pack('C4', split /\./, $address)); connect(S, $to) or die "connect: $!";
while (1) { syswrite(S, 'x') or die; sysread(S, my $b, 1) == 1 or die; print "$name\n"; select(undef, undef, undef, 0.1); }"#;

/// One new connection.
const CONNECT: &str = r#"my ($address) = @ARGV; $SIG{ALRM} = sub { print "blocked\n"; exit }; alarm 2;
socket(S, 2, 1, 6) or die; connect(S, pack('S n a4 x8', 2, 8080, pack('C4', split /\./, $address))) or die "connect: $!";
print "connected\n";"#;

const DENY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: shut, namespace: kept}\n\
    spec: {podSelector: {matchLabels: {app: echo}}, policyTypes: [Ingress]}\n";

fn established_connections(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&distribution::perl()?.build(), "kept/perl", "1")?;
    cluster.kubectl(&["create", "namespace", "kept"])?.ok()?;
    let run = |name: &str, app: &str, annotation: &str, command: &[&str]| -> Result<()> {
        let yaml = pod(
            "kept",
            name,
            &format!("app: {app}"),
            &image,
            &[&["/usr/bin/perl", "-e"], command].concat(),
            "restartPolicy: Never",
        );
        let yaml = yaml.replacen(
            "metadata:\n",
            &format!("metadata:\n  annotations: {{{annotation}}}\n"),
            1,
        );
        cluster.apply(&yaml)?.ok()?;
        Ok(())
    };
    let keep = "palisade.dev/established: keep";
    let servers = [("keeps", keep), ("cuts", "")];
    for (server, annotation) in servers {
        run(server, "echo", annotation, &[ECHO])?;
    }
    let mut addresses = Vec::new();
    for (server, _) in servers {
        let object = cluster.wait_for_phase("kept", server, "Running")?;
        let address = object["status"]["podIP"]
            .as_str()
            .context("no address")?
            .to_owned();
        let asks = format!("asks-{server}");
        eventually(PATIENCE, || {
            cluster
                .kubectl(&["logs", "-n", "kept", server])?
                .ok()?
                .says("listens")
                .map(drop)
        })?;
        run(&asks, "asks", "", &[ASK, server, &address])?;
        eventually(PATIENCE, || {
            ensure!(answers(cluster, server)? > 3, "no answers yet");
            Ok(())
        })?;
        addresses.push(address);
    }
    let kept = addresses.first().context("no server")?;
    cluster.apply(DENY)?.ok()?;
    silent(cluster, "cuts").context("the pod does not keep its flows")?;
    let before = answers(cluster, "keeps")?;
    eventually(PATIENCE, || {
        ensure!(answers(cluster, "keeps")? > before + 10, "no more answers");
        Ok(())
    })
    .context("the pod keeps its flows")?;
    let connects = [
        "exec",
        "-n",
        "kept",
        "asks-cuts",
        "--",
        "/usr/bin/perl",
        "-e",
        CONNECT,
        kept,
    ];
    let new = cluster.kubectl(&connects)?.ok()?;
    ensure!(new.stdout == "blocked\n", "a new connection is not kept: {new}");

    // The pod no longer asks for it: the same connection is judged as any other.
    let annotation = "palisade.dev/established-";
    cluster
        .kubectl(&["annotate", "pod", "-n", "kept", "keeps", annotation])?
        .ok()?;
    silent(cluster, "keeps").context("the annotation is gone")?;
    cluster.kubectl(&["delete", "namespace", "kept"])?.ok()?;
    Ok(())
}

/// How often the server answered its client.
fn answers(cluster: &Cluster, server: &str) -> Result<usize> {
    let log = cluster
        .kubectl(&["logs", "-n", "kept", &format!("asks-{server}")])?
        .ok()?;
    Ok(log.stdout.lines().count())
}

/// Waits until nothing comes back for a second.
fn silent(cluster: &Cluster, server: &str) -> Result<()> {
    let mut last = answers(cluster, server)?;
    let mut since = std::time::Instant::now();
    eventually(PATIENCE, || {
        let now = answers(cluster, server)?;
        if now != last {
            (last, since) = (now, std::time::Instant::now());
        }
        ensure!(since.elapsed() > Duration::from_secs(1), "{server} still answers");
        Ok(())
    })
}
