//! Learning: what a workload does becomes a profile under which it goes on, and nothing else does.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::{cluster::Cluster, distribution, shell::eventually};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[(
    "learn_a_workload_runs_under_what_was_learned",
    a_workload_runs_under_what_was_learned,
)];

const PATIENCE: Duration = Duration::from_secs(60);

/// Serves itself, reads, writes and runs a program, again and again.
const WORK: &str = r#"$| = 1; my $round = 0;
while (1) {
  socket(L, 2, 1, 6) or die "socket: $!"; setsockopt(L, 1, 2, pack('l', 1)) or die "setsockopt: $!";
  bind(L, pack('S n a4 x8', 2, 8080, "\0\0\0\0")) or die "bind: $!"; listen(L, 5) or die "listen: $!";
  open(F, '<', '/etc/passwd') or die "read: $!"; my @lines = <F>; close F;
  open(O, '>', "/volume/round-$round") or die "write: $!"; print O $round; close O or die "close: $!";
  system('/bin/busybox', 'true') == 0 or die "run: $!";
  socket(S, 2, 1, 6) or die "socket: $!";
  connect(S, pack('S n a4 x8', 2, 8080, "\x7f\0\0\1")) or die "connect: $!";
  accept(C, L) or die "accept: $!"; syswrite(C, "x"); sysread(S, my $b, 1) == 1 or die "read: $!"; close S; close C;
  print "round ", $round++, "\n"; select(undef, undef, undef, 0.3); close L; }"#;

/// Everything the work does not.
const OTHER: &str = r#"$| = 1; sub say { print "$_[0]: ", $_[1] ? "done" : "$!", "\n"; }
say("read", opendir(D, '/root'));
say("write", open(F, '>', '/root/x'));
say("mkdir", mkdir('/volume/directory'));
socket(S, 2, 1, 6) or die; say("connect", connect(S, pack('S n a4 x8', 2, 9999, "\x7f\0\0\1")));
socket(T, 2, 1, 6) or die; say("bind", bind(T, pack('S n a4 x8', 2, 9998, "\0\0\0\0")));
say("raw", socket(R, 2, 3, 1)); print "end\n"; sleep 1000;"#;

fn start(cluster: &Cluster, name: &str, profile: &str, script: &str) -> Result<()> {
    let image = cluster.push(&distribution::perl()?.build(), "sandbox/perl", "1")?;
    let command = serde_json::to_string(&["/usr/bin/perl", "-e", script])?;
    cluster
        .apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: learned}}\n  \
             annotations: {{palisade.dev/sandbox-profile: {profile}}}\nspec:\n  restartPolicy: Never\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: {image}\n    \
             command: {command}\n    volumeMounts: [{{name: v, mountPath: /volume}}]\n  \
             volumes: [{{name: v, emptyDir: {{}}}}]\n"
        ))?
        .ok()?;
    Ok(())
}

/// The log, once it says this.
fn says(cluster: &Cluster, name: &str, words: &str) -> Result<String> {
    eventually(PATIENCE, || {
        let log = cluster.kubectl(&["logs", name])?.ok()?.stdout;
        if !log.contains(words) {
            bail!("{words:?} is not in the log of {name}:\n{log}");
        }
        Ok(log)
    })
}

fn a_workload_runs_under_what_was_learned(cluster: &Cluster) -> Result<()> {
    start(cluster, "learning", "baseline", WORK)?;
    says(cluster, "learning", "round 1\n")?;
    let ran = cluster
        .policyctl(&["learn", "learning", "--for", "6s", "--name", "learned"])?
        .ok()?;
    ensure!(!ran.stderr.contains("LOST"), "{}", ran.stderr);
    let yaml = ran.stdout;
    for expected in [
        "kind: SandboxProfile",
        "kind: NetworkPolicy",
        "accept",
        "8080",
        "/bin/busybox",
        "/volume",
    ] {
        ensure!(yaml.contains(expected), "{expected:?} is not in:\n{yaml}");
    }
    ensure!(
        !yaml.contains("mkdir") && !yaml.contains("/root"),
        "it did no such thing:\n{yaml}"
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.kubectl(&["delete", "pod", "learning", "--wait"])?.ok()?;

    start(cluster, "replayed", "learned", WORK)?;
    let log = says(cluster, "replayed", "round 5\n")?;
    ensure!(!log.contains(" at -e line"), "the same work is refused:\n{log}");
    cluster.kubectl(&["delete", "pod", "replayed", "--wait"])?.ok()?;

    start(cluster, "other", "learned", OTHER)?;
    let log = says(cluster, "other", "end\n")?;
    for line in log.lines().filter(|line| *line != "end") {
        let refused = line.ends_with(": Permission denied") || line.ends_with(": Operation not permitted");
        ensure!(refused, "{line:?} is not refused; all of it:\n{log}");
    }
    ensure!(log.lines().count() == 7, "{log}");
    cluster.kubectl(&["delete", "pod", "other", "--wait"])?.ok()?;
    cluster
        .kubectl(&["delete", "sandboxprofile,networkpolicy", "learned"])?
        .ok()?;
    Ok(())
}
