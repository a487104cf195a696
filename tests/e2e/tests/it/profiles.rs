//! Presets and SandboxProfiles through a whole cluster: what they take from a pod's first process and from sessions,
//! and what is told of their layers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{cluster::Cluster, distribution, shell::eventually};
use serde_json::Value;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "profiles_what_is_written_is_not_executed",
        what_is_written_is_not_executed,
    ),
    (
        "profiles_audit_refuses_no_more_than_the_baseline",
        audit_refuses_no_more,
    ),
    ("profiles_lists_of_paths_hold_in_sessions", lists_of_paths_hold),
    ("profiles_missing_features_are_told", missing_features_are_told),
    (
        "profiles_connections_follow_egress_policy",
        connections_follow_policy,
    ),
    (
        "profiles_containers_choose_their_own",
        containers_choose_their_own,
    ),
];

const PATIENCE: Duration = Duration::from_secs(60);
const LAYERS: &str = "seccomp=Enforced,landlock=Enforced,no-new-privileges=Enforced,capabilities=Enforced,\
                      user-namespace=Enforced,namespaces=Enforced,cgroup=Enforced,network-policy=Enforced";

/// Everything by which written bytes could become code, `NAME: result` each.
const WRITE_XOR_EXECUTE: &str = r#"
sub say { print "$_[0]: ", $_[1] ? "done" : "$!", "\n"; }
sub call { my ($name, $number, @rest) = @_; my $r = syscall($number, @rest); say($name, $r != -1); return $r; }
sub drop { my $path = shift; open(I, '<', '/bin/busybox'); open(O, '>', $path) or return say("write $path", 0);
  binmode I; binmode O; print O $_ while sysread(I, $_, 65536); close O; chmod 0755, $path; say("write $path", 1);
  my $r = system { $path } 'busybox', 'true'; say("run $path", $r == 0); }
drop('/root/dropped'); drop('/volume/dropped'); drop('/dev/shm/dropped');
my $name = "x"; call("memfd_create", 319, $name, 0); call("memfd_create sealed", 319, $name, 8);
call("mmap writable code", 9, 0, 4096, 7, 0x22, -1, 0);
my $page = syscall(9, 0, 4096, 3, 0x22, -1, 0); call("mprotect to code", 10, $page, 4096, 5);
open(V, '<', '/volume/dropped'); call("mmap written file as code", 9, 0, 4096, 5, 2, fileno(V), 0);
open(B, '<', '/bin/busybox'); call("mmap image file as code", 9, 0, 4096, 5, 2, fileno(B), 0);
say("overwrite /bin/busybox", open(F, '+<', '/bin/busybox'));
say("write own memory", open(F, '+<', '/proc/self/mem'));
say("run /bin/busybox", system('/bin/busybox', 'true') == 0);
"#;

/// A pod of the image with Perl and a volume that can be written, which runs `script` and goes on.
fn pod(cluster: &Cluster, name: &str, profile: &str, script: &str, extra: &str) -> Result<()> {
    let image = cluster.push(&distribution::perl()?.build(), "sandbox/perl", "1")?;
    let script = format!("$| = 1; {script}; print \"end\\n\"; sleep 1000;");
    let command = serde_json::to_string(&["/usr/bin/perl", "-e", &script])?;
    cluster
        .apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\n  \
             annotations: {{palisade.dev/sandbox-profile: {profile}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n  - name: main\n    image: {image}\n    command: {command}\n    \
             volumeMounts: [{{name: v, mountPath: /volume}}]\n{extra}  volumes: [{{name: v, emptyDir: {{}}}}]\n"
        ))?
        .ok()?;
    Ok(())
}

/// What the first process said, once it has said all.
fn first(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.wait_for_phase("default", name, "Running")?;
    eventually(PATIENCE, || {
        let log = cluster.kubectl(&["logs", name])?.ok()?.stdout;
        match log.strip_suffix("end\n") {
            Some(said) => Ok(said.to_owned()),
            None => anyhow::bail!("it has not said all:\n{log}"),
        }
    })
}

/// What the same script says in a session.
fn session(cluster: &Cluster, name: &str, script: &str) -> Result<String> {
    Ok(cluster
        .kubectl(&["exec", name, "--", "/usr/bin/perl", "-e", script])?
        .ok()?
        .stdout)
}

fn expect(said: &str, expected: &[(&str, &str)]) -> Result<()> {
    for (name, result) in expected {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let line = line.with_context(|| format!("nothing is said of {name}:\n{said}"))?;
        ensure!(
            line == *result,
            "{name} gave {line:?}, expected {result:?}; all of it:\n{said}"
        );
    }
    ensure!(
        said.lines().count() == expected.len(),
        "more is said than expected:\n{said}"
    );
    Ok(())
}

fn delete(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["delete", "pod", name, "--wait"])?.ok()?;
    Ok(())
}

fn condition(cluster: &Cluster, name: &str, kind: &str) -> Result<Value> {
    let object = cluster.object("default", "pods", name)?;
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind);
    found.with_context(|| format!("no condition {kind}: {}", object["status"]["conditions"]))
}

fn has_event(cluster: &Cluster, name: &str, reason: &str, says: &str) -> Result<()> {
    eventually(PATIENCE, || {
        let field = format!("involvedObject.name={name},reason={reason}");
        let events = cluster
            .kubectl(&[
                "get",
                "events",
                "--field-selector",
                &field,
                "-o",
                "jsonpath={.items[*].message}",
            ])?
            .ok()?
            .stdout;
        ensure!(
            events.contains(says),
            "{says:?} is in no event {reason}: {events:?}"
        );
        Ok(())
    })
}

fn what_is_written_is_not_executed(cluster: &Cluster) -> Result<()> {
    pod(cluster, "wx", "strict", WRITE_XOR_EXECUTE, "")?;
    let init = first(cluster, "wx")?;
    let (refused, denied, absent, done) = (
        "Operation not permitted",
        "Permission denied",
        "Function not implemented",
        "done",
    );
    let read_only = "Read-only file system";
    let expected = [
        ("write /root/dropped", denied),
        ("write /volume/dropped", done),
        ("run /volume/dropped", denied),
        ("write /dev/shm/dropped", done),
        ("run /dev/shm/dropped", denied),
        ("memfd_create", refused),
        ("memfd_create sealed", absent),
        ("mmap writable code", refused),
        ("mprotect to code", refused),
        ("mmap written file as code", refused),
        ("mmap image file as code", done),
        ("overwrite /bin/busybox", denied),
        ("write own memory", denied),
        ("run /bin/busybox", done),
    ];
    // Of two layers that refuse a write to the image either may be asked first.
    let alike = |said: &str| said.replace(read_only, denied);
    expect(&alike(&init), &expected)?;
    let told = session(cluster, "wx", WRITE_XOR_EXECUTE)?;
    ensure!(
        alike(&told) == alike(&init),
        "a session is confined otherwise:\n{told}\nnot as\n{init}"
    );

    let object = cluster.object("default", "pods", "wx")?;
    let status = &object["metadata"]["annotations"]["palisade.dev/sandbox-status"];
    ensure!(status == LAYERS, "{status}");
    let sandboxed = condition(cluster, "wx", "palisade.dev/Sandboxed")?;
    ensure!(
        sandboxed["status"] == "True" && sandboxed["reason"] == "Enforced",
        "{sandboxed}"
    );
    has_event(cluster, "wx", "SandboxEnforced", "landlock=Enforced")?;
    delete(cluster, "wx")
}

fn audit_refuses_no_more(cluster: &Cluster) -> Result<()> {
    let mut said = Vec::new();
    for profile in ["baseline", "audit"] {
        pod(cluster, profile, profile, WRITE_XOR_EXECUTE, "")?;
        said.push(first(cluster, profile)?);
        let status = session(
            cluster,
            profile,
            "open(F, '/proc/self/status'); print grep { /^(Seccomp|NoNew)/ } <F>",
        )?;
        ensure!(
            status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"),
            "{status}"
        );
        delete(cluster, profile)?;
    }
    ensure!(
        said[0] == said[1],
        "audit refuses otherwise:\n{}\nthan the baseline:\n{}",
        said[1],
        said[0]
    );
    ensure!(said[0].contains("mprotect to code: done"), "{}", said[0]);
    ensure!(
        said[0].contains("run /volume/dropped: Permission denied"),
        "{}",
        said[0]
    );
    Ok(())
}

const LISTS: &str = r#"
sub say { print "$_[0]: ", $_[1] ? "done" : "$!", "\n"; }
say("read /etc/passwd", open(F, '<', '/etc/passwd'));
say("read /root", opendir(D, '/root'));
say("write /volume/a", open(F, '>', '/volume/a'));
say("write /root/a", open(F, '>', '/root/a'));
say("run perl", system('/usr/bin/perl', '-e', '1') == 0);
say("run busybox", system('/bin/busybox', 'true') == 0);
my $self = readlink('/proc/self'); say("signal self", kill(0, $self));
"#;

fn lists_of_paths_hold(cluster: &Cluster) -> Result<()> {
    let profile = "apiVersion: palisade.dev/v1alpha1\nkind: SandboxProfile\nmetadata: {name: listed}\nspec:\n  \
                   landlock:\n    scopes: [Signals]\n    paths:\n      read: [/usr, /lib, /lib64, /etc, /dev, /proc]\n      \
                   write: [/volume, /dev/null]\n      execute: [/usr/bin/perl, /usr/lib, /lib, /lib64]\n";
    cluster
        .apply(&profile.replace("[/volume, /dev/null]", "[volume]"))?
        .refused()?
        .says("spec.landlock.paths.write[0]")?
        .says("must be absolute: begin it with /")?;
    cluster
        .apply(&profile.replace("Signals", "Network"))?
        .refused()?
        .says("Network")?;
    cluster.apply(profile)?.ok()?;
    pod(cluster, "listed", "listed", LISTS, "")?;
    let init = first(cluster, "listed")?;
    let denied = "Permission denied";
    expect(
        &init,
        &[
            ("read /etc/passwd", "done"),
            ("read /root", denied),
            ("write /volume/a", "done"),
            ("write /root/a", denied),
            ("run perl", "done"),
            ("run busybox", denied),
            ("signal self", "done"),
        ],
    )?;
    let told = session(cluster, "listed", LISTS)?;
    ensure!(
        told == init,
        "a session is confined otherwise:\n{told}\nnot as\n{init}"
    );
    let signal = session(cluster, "listed", "print kill(0, 1) ? 'done' : \"$!\"")?;
    ensure!(
        signal == "Operation not permitted",
        "the scope of signals: {signal:?}"
    );
    delete(cluster, "listed")?;
    cluster.kubectl(&["delete", "sandboxprofile", "listed"])?.ok()?;
    Ok(())
}

fn missing_features_are_told(cluster: &Cluster) -> Result<()> {
    let profile = |name: &str, enforcement: &str| {
        format!(
            "apiVersion: palisade.dev/v1alpha1\nkind: SandboxProfile\nmetadata: {{name: {name}}}\n\
             spec: {{minimumLandlockABI: 99, enforcement: {enforcement}}}\n"
        )
    };
    cluster.apply(&profile("whole", "Required"))?.ok()?;
    cluster.apply(&profile("effort", "BestEffort"))?.ok()?;
    pod(cluster, "whole", "whole", "", "")?;
    has_event(cluster, "whole", "SandboxRefused", "Landlock interface 99")?;
    let refused = eventually(PATIENCE, || {
        let refused = condition(cluster, "whole", "palisade.dev/Sandboxed")?;
        ensure!(refused["reason"] == "Refused", "{refused}");
        Ok(refused)
    })?;
    ensure!(refused["status"] == "False", "{refused}");
    let object = cluster.object("default", "pods", "whole")?;
    let waiting = &object["status"]["containerStatuses"][0]["state"]["waiting"];
    ensure!(
        waiting["reason"] == "CreateContainerConfigError",
        "{}",
        object["status"]
    );
    ensure!(
        waiting["message"].to_string().contains("Landlock interface 99"),
        "{waiting}"
    );

    pod(cluster, "effort", "effort", "", "")?;
    first(cluster, "effort")?;
    let partial = condition(cluster, "effort", "palisade.dev/Sandboxed")?;
    ensure!(
        partial["status"] == "False" && partial["reason"] == "Partial",
        "{partial}"
    );
    ensure!(
        partial["message"].to_string().contains("Landlock interface 99"),
        "{partial}"
    );
    let object = cluster.object("default", "pods", "effort")?;
    let status = object["metadata"]["annotations"]["palisade.dev/sandbox-status"].to_string();
    ensure!(
        status.contains("landlock=Partial") && status.contains("seccomp=Enforced"),
        "{status}"
    );
    has_event(cluster, "effort", "SandboxPartial", "lacks Landlock interface 99")?;
    for name in ["whole", "effort"] {
        delete(cluster, name)?;
        cluster.kubectl(&["delete", "sandboxprofile", name])?.ok()?;
    }
    Ok(())
}

/// Tries ports of the pod's own loopback, which no packet filter judges: what is denied there, Landlock denies.
const CONNECT: &str = r#"
for my $port (8080, 5432, 9999) { socket(S, 2, 1, 6) or die;
  my $r = connect(S, pack('S n a4 x8', 2, $port, "\x7f\0\0\1")); print "connect $port: ", $r ? "done" : "$!", "\n"; close S }
for my $port (8080, 5432) { socket(S, 2, 1, 6) or die;
  my $r = bind(S, pack('S n a4 x8', 2, $port, "\0\0\0\0")); print "bind $port: ", $r ? "done" : "$!", "\n"; close S }
"#;

fn connections_follow_policy(cluster: &Cluster) -> Result<()> {
    let policy = |ports: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: egress}}\nspec:\n  \
             podSelector: {{matchLabels: {{app: bounded}}}}\n  policyTypes: [Egress]\n  \
             egress: [{{ports: {ports}, to: [{{ipBlock: {{cidr: 192.0.2.0/24}}}}]}}]\n"
        )
    };
    cluster.apply(&policy("[{port: 5432}]"))?.ok()?;
    pod(
        cluster,
        "bounded",
        "strict",
        CONNECT,
        "    ports: [{containerPort: 8080}]\n",
    )?;
    let init = first(cluster, "bounded")?;
    let (open, denied) = ("Connection refused", "Permission denied");
    let as_started = [
        ("connect 8080", open),
        ("connect 5432", open),
        ("connect 9999", denied),
        ("bind 8080", "done"),
        ("bind 5432", denied),
    ];
    expect(&init, &as_started)?;
    expect(&session(cluster, "bounded", CONNECT)?, &as_started)?;
    let becomes = |reason: &str, says: &str| {
        eventually(PATIENCE, || {
            let current = condition(cluster, "bounded", "palisade.dev/SandboxCurrent")?;
            ensure!(current["reason"] == reason, "{current}");
            ensure!(current["message"].to_string().contains(says), "{current}");
            Ok(())
        })
    };
    becomes("AsPolicy", "as policy has it")?;
    // Landlock is for good: what policy adds is told, and there after a restart.
    cluster.apply(&policy("[{port: 5432}, {port: 9999}]"))?.ok()?;
    becomes("PolicyWidened", "main (9999)")?;
    has_event(cluster, "bounded", "SandboxOutdated", "restart")?;
    expect(&session(cluster, "bounded", CONNECT)?, &as_started)?;
    cluster.apply(&policy("[]"))?.ok()?;
    becomes("PolicyWidened", "all ports")?;
    cluster.apply(&policy("[{port: 443}]"))?.ok()?;
    becomes("PolicyWidened", "main (443)")?;
    cluster.apply(&policy("[{port: 5432, protocol: UDP}]"))?.ok()?;
    becomes("PolicyNarrowed", "main (5432)")?;
    cluster.apply(&policy("[{port: 5432}, {port: 9999}]"))?.ok()?;
    delete(cluster, "bounded")?;
    pod(
        cluster,
        "bounded",
        "strict",
        CONNECT,
        "    ports: [{containerPort: 8080}]\n",
    )?;
    let again = first(cluster, "bounded")?;
    ensure!(again.contains("connect 9999: Connection refused"), "{again}");
    delete(cluster, "bounded")?;
    cluster.kubectl(&["delete", "networkpolicy", "egress"])?.ok()?;
    Ok(())
}

/// What the node's file refuses, and what `strict` does.
const CHOSEN: &str = r#"
sub say { print "$_[0]: ", $_[1] ? "done" : "$!", "\n"; }
say("mkdir", mkdir('/dev/shm/made')); rmdir('/dev/shm/made');
my $page = syscall(9, 0, 4096, 3, 0x22, -1, 0); say("mprotect to code", syscall(10, $page, 4096, 5) != -1);
"#;

fn containers_choose_their_own(cluster: &Cluster) -> Result<()> {
    let directory = cluster.state_dir.join("agent/seccomp");
    std::fs::create_dir_all(directory.join("profiles"))?;
    let rule = r#"[{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]"#;
    std::fs::write(
        directory.join("profiles/no-mkdir.json"),
        format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {rule}}}"#),
    )?;
    std::fs::write(
        directory.join("notify.json"),
        r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#,
    )?;

    let image = cluster.push(&distribution::perl()?.build(), "sandbox/perl", "1")?;
    let script = format!("$| = 1; {CHOSEN}; print \"end\\n\"; sleep 1000;");
    let command = serde_json::to_string(&["/usr/bin/perl", "-e", &script])?;
    let container = |name: &str, extra: &str| {
        format!("  - name: {name}\n    image: {image}\n    command: {command}\n{extra}")
    };
    let local = |file: &str| {
        format!("    securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: {file}}}}}\n")
    };
    let pod = |name: &str, annotations: &str, containers: &[String]| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{{annotations}}}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n{}",
            containers.concat()
        )
    };
    let containers = [
        "  initContainers:\n".to_owned(),
        container("side", "    restartPolicy: Always\n"),
        "  containers:\n".to_owned(),
        container("open", ""),
        container("shut", &local("profiles/no-mkdir.json")),
    ];
    let yaml = pod("chosen", "palisade.dev/sandbox-profile.side: strict", &containers);
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "chosen", "Running")?;
    let (done, refused, of_file) = ("done", "Operation not permitted", "Protocol error");
    for (name, mkdir, code) in [
        ("side", done, refused),
        ("open", done, done),
        ("shut", of_file, done),
    ] {
        let said = eventually(PATIENCE, || {
            let log = cluster.kubectl(&["logs", "chosen", "-c", name])?.ok()?.stdout;
            let said = log.strip_suffix("end\n").map(str::to_owned);
            said.with_context(|| format!("{name} has not said all:\n{log}"))
        })?;
        let expected = [("mkdir", mkdir), ("mprotect to code", code)];
        expect(&said, &expected).with_context(|| format!("container {name}"))?;
        let exec = ["exec", "chosen", "-c", name, "--", "/usr/bin/perl", "-e", CHOSEN];
        let session = cluster.kubectl(&exec)?.ok()?.stdout;
        expect(&session, &expected).with_context(|| format!("a session in {name}"))?;
    }
    let sandboxed = condition(cluster, "chosen", "palisade.dev/Sandboxed")?;
    for name in ["side", "open", "shut"] {
        let told = format!("{name}: seccomp=Enforced,landlock=Enforced");
        ensure!(sandboxed["message"].to_string().contains(&told), "{sandboxed}");
    }

    // A debug container has the profile of its target, and what its own context takes away beside.
    let debug = [
        "debug",
        "chosen",
        "--image",
        &image,
        "--target=shut",
        "--container=look",
    ];
    let program = ["--profile=baseline", "--", "/usr/bin/perl", "-e", CHOSEN];
    cluster.kubectl(&[&debug[..], &program[..]].concat())?.ok()?;
    eventually(PATIENCE, || {
        let log = cluster.kubectl(&["logs", "chosen", "-c", "look"])?.ok()?.stdout;
        expect(&log, &[("mkdir", of_file), ("mprotect to code", done)])
    })?;
    let looser = "palisade.dev/sandbox-profile.side=baseline";
    cluster
        .kubectl(&["annotate", "--overwrite", "pod", "chosen", looser])?
        .refused()?
        .says("delete the pod and create it again")?;
    delete(cluster, "chosen")?;

    let containers = [
        "  containers:\n".to_owned(),
        container("main", &local("notify.json")),
    ];
    cluster.apply(&pod("notify", "", &containers))?.ok()?;
    has_event(cluster, "notify", "SandboxRefused", "SCMP_ACT_NOTIFY")?;
    eventually(PATIENCE, || {
        let object = cluster.object("default", "pods", "notify")?;
        let waiting = &object["status"]["containerStatuses"][0]["state"]["waiting"];
        ensure!(waiting["reason"] == "CreateContainerConfigError", "{waiting}");
        ensure!(
            waiting["message"].to_string().contains("notify.json"),
            "{waiting}"
        );
        Ok(())
    })?;
    delete(cluster, "notify")?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
