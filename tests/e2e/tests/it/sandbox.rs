//! What a pod may not do, asked from inside a pod with an image's own Perl.

use anyhow::{Context, Result, bail, ensure};
use e2e::{cluster::Cluster, distribution};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sandbox_layers_are_on", layers_are_on),
    ("sandbox_stops_system_calls", stops_system_calls),
    (
        "sandbox_stops_paths_and_dropped_binaries",
        stops_paths_and_dropped_binaries,
    ),
    ("sandbox_status_is_reported", status_is_reported),
];

/// Prints `NAME: result` for each system call it tries.
const SYSTEM_CALLS: &str = r#"
sub try { my ($name, $number, @rest) = @_; my $r = syscall($number, @rest); print "$name: ", $r == -1 ? "$!" : "done", "\n"; }
my $path = "/tmp/x"; my $buffer = "\0" x 128;
try("unshare user namespace", 272, 0x10000000);
try("keyctl", 250, 0, -3, 0);
try("add_key", 248, "user", "name", "payload", 7, -3);
try("bpf", 321, 0, $buffer, 128);
try("mount", 165, "none", $path, "tmpfs", 0, 0);
try("userfaultfd", 323, 0);
try("io_uring_setup", 425, 1, $buffer);
try("ptrace", 101, 0, 0, 0, 0);
try("process_vm_readv", 310, 1, 0, 0, 0, 0, 0);
try("perf_event_open", 298, $buffer, 0, -1, -1, 0);
try("memfd_create unsealed", 319, $path, 0);
try("socket AF_ALG", 41, 38, 5, 0);
try("setns", 308, 0, 0);
try("pivot_root", 155, "/", "/");
try("init_module", 175, $buffer, 0, $path);
try("kexec_load", 246, 0, 0, 0, 0);
try("clone3", 435, $buffer, 88);
try("getpid", 39);
"#;

const REFUSED: &str = "Operation not permitted";

fn perl(cluster: &Cluster, name: &str, script: &str) -> Result<String> {
    let image = cluster.push(&distribution::perl()?.build(), "sandbox/perl", "1")?;
    let log = cluster.run_pod("default", name, &image, &["/usr/bin/perl", "-e", script])?;
    cluster.kubectl(&["delete", "pod", name])?.ok()?;
    Ok(log)
}

fn stops_system_calls(cluster: &Cluster) -> Result<()> {
    let log = perl(cluster, "calls", SYSTEM_CALLS)?;
    for line in log.lines() {
        let (name, result) = line
            .split_once(": ")
            .with_context(|| format!("unexpected line {line:?}"))?;
        let expected = match name {
            // The C library falls back to clone, which can be judged by its arguments.
            "clone3" => "Function not implemented",
            "getpid" => "done",
            _ => REFUSED,
        };
        ensure!(
            result == expected,
            "{name} gave {result:?}, expected {expected:?}; all of it:\n{log}"
        );
    }
    ensure!(
        log.lines().count() == SYSTEM_CALLS.matches("\ntry(").count(),
        "some calls are missing:\n{log}"
    );
    Ok(())
}

fn layers_are_on(cluster: &Cluster) -> Result<()> {
    let script = "open(F, '/proc/self/status'); print grep { /^(Seccomp|NoNewPrivs|CapEff|CapBnd)/ } <F>; \
                  open(M, '/proc/self/uid_map'); print 'uid_map', <M>";
    let log = perl(cluster, "layers", script)?;
    let value = |name: &str| {
        let line = log.lines().find(|line| line.starts_with(name))?;
        Some(line[name.len()..].trim_start_matches(':').trim().to_owned())
    };
    ensure!(value("Seccomp:").as_deref() == Some("2"), "{log}");
    ensure!(value("NoNewPrivs").as_deref() == Some("1"), "{log}");
    let map = value("uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    let (inside, outside) = (words.next(), words.next().unwrap_or("0"));
    ensure!(
        inside == Some("0") && outside != "0",
        "uid 0 of the pod is uid {outside} of the host"
    );
    Ok(())
}

/// Tries paths, then writes a program where it may write and tries to run it.
const PATHS: &str = r#"
sub say { print "$_[0]: ", $_[1] ? "done" : "$!", "\n"; }
say("write /proc/sys/kernel/core_pattern", open(F, '>', '/proc/sys/kernel/core_pattern'));
say("write /proc/sysrq-trigger", open(F, '>', '/proc/sysrq-trigger'));
say("read /proc/kcore", open(F, '<', '/proc/kcore') && sysread(F, my $b, 1));
say("list /sys/firmware", opendir(D, '/sys/firmware') && grep({ !/^\./ } readdir(D)));
say("write /sys/kernel/uevent_helper", open(F, '>', '/sys/kernel/uevent_helper'));
say("overwrite /bin/busybox", open(F, '+<', '/bin/busybox'));
say("create /usr/bin/new", open(F, '>', '/usr/bin/new'));
sub drop { my $path = shift; open(I, '<', '/bin/busybox'); open(O, '>', $path) or return print "drop $path: $!\n";
  binmode I; binmode O; print O $_ while sysread(I, $_, 65536); close O; chmod 0755, $path;
  my $r = system($path, 'true'); print "run dropped $path: ", $r == -1 ? "$!" : "ran", "\n"; }
drop('/tmp/dropped'); drop('/root/dropped'); drop('/volume/dropped'); drop('/dev/shm/dropped');
say("write /root/file", open(F, '>', '/root/file'));
say("run /bin/true", system('/bin/true') == 0);
"#;

fn stops_paths_and_dropped_binaries(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&distribution::perl()?.build(), "sandbox/perl", "1")?;
    let command = serde_json::to_string(&["/usr/bin/perl", "-e", PATHS])?;
    cluster
        .apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: paths}}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: main\n    \
             image: {image}\n    command: {command}\n    volumeMounts: [{{name: v, mountPath: /volume}}]\n  \
             volumes: [{{name: v, emptyDir: {{}}}}]\n"
        ))?
        .ok()?;
    cluster.wait_for_phase("default", "paths", "Succeeded")?;
    let log = cluster.kubectl(&["logs", "paths"])?.ok()?.stdout;
    cluster.kubectl(&["delete", "pod", "paths"])?.ok()?;
    let allowed = ["write /root/file", "run /bin/true"];
    for line in log.lines() {
        let Some((what, result)) = line.split_once(": ") else {
            bail!("unexpected line {line:?} in:\n{log}")
        };
        let done = matches!(result, "done" | "ran");
        ensure!(
            done == allowed.contains(&what),
            "{what} gave {result:?}; all of it:\n{log}"
        );
        if what.starts_with("run dropped") {
            ensure!(result == "Permission denied", "{what} gave {result:?}");
        }
    }
    ensure!(log.lines().count() == 13, "some attempts are missing:\n{log}");
    Ok(())
}

fn status_is_reported(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&testkit::lab::clean()?, "sandbox/clean", "1")?;
    let yaml = e2e::cluster::pod(
        "default",
        "reported",
        "app: x",
        &image,
        &["sleep", "1000"],
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    let object = cluster.wait_for_phase("default", "reported", "Running")?;
    let status = object["metadata"]["annotations"]["palisade.dev/sandbox-status"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        status.contains("seccomp=Enforced") && status.contains("landlock=Enforced"),
        "{status:?}"
    );
    let mut unconfined = yaml.replace("name: reported", "name: unconfined");
    unconfined.push_str("    securityContext: {seccompProfile: {type: Unconfined}}\n");
    cluster.apply(&unconfined)?.refused()?.says("seccompProfile")?;
    let mut privileged = yaml.replace("name: reported", "name: privileged");
    privileged.push_str("    securityContext: {privileged: true}\n");
    cluster.apply(&privileged)?.refused()?.says("privileged")?;
    cluster.kubectl(&["delete", "pod", "reported"])?.ok()?;
    Ok(())
}
