//! `kubectl debug`, and pods whose containers see each other's processes.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, kubectls, pod},
    shell::eventually,
};
use serde_json::Value;
use testkit::lab;

use crate::{Test, sessions::OnTerminal};

pub(crate) const TESTS: &[Test] = &[
    ("debug_with_every_kubectl", with_every_kubectl),
    ("debug_on_a_terminal", on_a_terminal),
    (
        "debug_containers_are_confined_as_the_pods_others_are",
        are_confined,
    ),
    (
        "debug_containers_have_no_more_than_their_target",
        no_more_than_their_target,
    ),
    ("debug_images_pass_the_gate", images_pass_the_gate),
    (
        "debug_containers_outlive_the_agent_and_never_start_again",
        outlive_the_agent,
    ),
    ("debug_a_pod_that_shares_its_processes", shared_processes),
];

const PATIENCE: Duration = Duration::from_secs(20);

/// A pod that waits, by its process's name in its own way.
fn start(cluster: &Cluster, name: &str, extra: &str) -> Result<String> {
    let image = cluster.push(&lab::clean()?, "debug/clean", "1")?;
    if cluster.kubectl(&["get", "pod", name])?.code != 0 {
        let script = "echo kept > /tmp/kept; trap 'echo reloaded' HUP; while true; do sleep 0.2; done";
        let yaml = pod(
            "default",
            name,
            "app: debugged",
            &image,
            &["sh", "-c", script],
            extra,
        );
        cluster.apply(&yaml)?.ok()?;
    }
    cluster.wait_for_phase("default", name, "Running")?;
    Ok(image)
}

/// The status of an ephemeral container.
fn status_of(cluster: &Cluster, pod: &str, container: &str) -> Result<Value> {
    let object = cluster.object("default", "pods", pod)?;
    let statuses = object["status"]["ephemeralContainerStatuses"].as_array();
    let mut statuses = statuses.into_iter().flatten();
    let found = statuses.find(|status| status["name"] == container).cloned();
    found.with_context(|| format!("no status of {container}: {}", object["status"]))
}

fn with_every_kubectl(cluster: &Cluster) -> Result<()> {
    let image = start(cluster, "debugged", "restartPolicy: Always")?;
    for (minor, program) in kubectls()? {
        debug_with(cluster, &program, minor, &image).with_context(|| format!("kubectl 1.{minor}"))?;
    }
    let object = cluster.object("default", "pods", "debugged")?;
    ensure!(object["status"]["phase"] == "Running", "{}", object["status"]);
    let ready = object["status"]["conditions"].as_array().into_iter().flatten();
    let ready: Vec<_> = ready.filter(|condition| condition["type"] == "Ready").collect();
    ensure!(ready.len() == 1 && ready[0]["status"] == "True", "{ready:?}");
    Ok(())
}

fn debug_with(cluster: &Cluster, program: &Path, minor: u32, image: &str) -> Result<()> {
    let name = format!("look-{minor}");
    let script = "read line; echo said $line; for p in /proc/[0-9]*; do cat $p/cmdline; echo; done; exit 7";
    let image_flag = format!("--image={image}");
    let arguments = [
        "debug",
        "debugged",
        "-i",
        &image_flag,
        "--target=main",
        "-c",
        &name,
        "--",
        "sh",
        "-c",
        script,
    ];
    let ran = cluster.kubectl_of(program, &arguments, "something\n")?;
    // What it ends with is not kubectl's affair; taken for a failure to attach, it would have all of it printed once more.
    ensure!(
        ran.code == 0 && ran.stdout.matches("said something\n").count() == 1,
        "{ran}"
    );
    // The processes of the container that it looks at.
    ensure!(ran.stdout.contains("echo kept"), "{ran}");
    let status = eventually(PATIENCE, || {
        let status = status_of(cluster, "debugged", &name)?;
        match status["state"]["terminated"].is_object() {
            true => Ok(status),
            false => bail!("{status}"),
        }
    })?;
    ensure!(status["state"]["terminated"]["exitCode"] == 7, "{status}");
    ensure!(
        status["ready"] == false && status["restartCount"] == 0,
        "{status}"
    );
    let logs = cluster
        .kubectl_of(program, &["logs", "debugged", "-c", &name], "")?
        .ok()?;
    ensure!(logs.stdout.contains("said something\n"), "{logs}");
    Ok(())
}

fn on_a_terminal(cluster: &Cluster) -> Result<()> {
    let image = start(cluster, "debugged", "restartPolicy: Always")?;
    let all = kubectls()?;
    for (minor, program) in all.iter().take(1).chain(all.last()) {
        let (name, image) = (format!("shell-{minor}"), format!("--image={image}"));
        let arguments = [
            "debug",
            "-it",
            "debugged",
            &image,
            "--target=main",
            "-c",
            &name,
            "--",
            "sh",
        ];
        let mut session = OnTerminal::start(cluster, program, &arguments)?;
        session.say("tty; echo me$((40+2))\n")?;
        let seen = session
            .wait_for("me42")
            .with_context(|| format!("kubectl 1.{minor}"))?;
        ensure!(
            seen.contains("/dev/pts/") || seen.contains("/dev/console"),
            "{seen}"
        );
        session.say("exit 0\n")?;
        session.end()?;
    }
    Ok(())
}

fn are_confined(cluster: &Cluster) -> Result<()> {
    let image = start(cluster, "debugged", "restartPolicy: Always")?;
    let script = "grep -E '^(Seccomp|Seccomp_filters|NoNewPrivs|Cap[A-Z][a-z][a-z]|Uid|Groups):' /proc/self/status; \
        cat /proc/self/uid_map; cp /bin/busybox /tmp/dropped; /tmp/dropped true; (echo x > /bin/evil); \
        unshare -n true; cat /proc/1/environ; ls /proc/1/root/; echo the end";
    let script = format!("({script}) 2>&1");
    let exec = cluster
        .kubectl(&["exec", "debugged", "--", "sh", "-c", &script])?
        .ok()?
        .stdout;
    let image = format!("--image={image}");
    let debug = [
        "debug",
        "debugged",
        "-q",
        &image,
        "--target=main",
        "-c",
        "confined",
        "--",
        "sh",
        "-c",
        &script,
    ];
    cluster.kubectl(&debug)?.ok()?;
    let seen = eventually(PATIENCE, || {
        let log = cluster.kubectl(&["logs", "debugged", "-c", "confined"])?;
        match log.stdout.ends_with("the end\n") {
            true => Ok(log.stdout),
            false => bail!("{log}"),
        }
    })?;
    // An exec session shares its container's Landlock domain no more than the debug container does.
    ensure!(seen == exec, "exec:\n{exec}\ndebug:\n{seen}");
    for expected in [
        "Seccomp:\t2",
        "NoNewPrivs:\t1",
        "/tmp/dropped: Permission denied",
        "can't create /bin/evil: Permission denied",
        "unshare(0x40000000): Operation not permitted",
        "/proc/1/environ': Permission denied",
    ] {
        ensure!(seen.contains(expected), "{expected} in {seen}");
    }
    Ok(())
}

fn no_more_than_their_target(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "debug/clean", "1")?;
    let security = "securityContext: {runAsUser: 1000, runAsGroup: 1001, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}";
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: hardened}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - name: main\n    image: {image}\n    command: [sh, -c, 'while true; do sleep 0.2; done']\n    {security}\n"
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "hardened", "Running")?;
    let script = "grep -E '^(Cap(Prm|Eff|Bnd)|Uid|Gid|Groups):' /proc/self/status; (echo x > /written) 2>&1; echo the end";
    let exec = cluster.kubectl(&["exec", "hardened", "--", "sh", "-c", script])?;
    let exec = exec.ok()?.stdout;
    let image = format!("--image={image}");
    for (name, target) in [("aimed", "--target=main"), ("aimless", "--target=")] {
        let debug = [
            "debug", "hardened", "-q", &image, target, "-c", name, "--", "sh", "-c", script,
        ];
        cluster.kubectl(&debug)?.ok()?;
        let seen = eventually(PATIENCE, || {
            let log = cluster.kubectl(&["logs", "hardened", "-c", name])?;
            match log.stdout.ends_with("the end\n") {
                true => Ok(log.stdout),
                false => bail!("{log}"),
            }
        })?;
        ensure!(seen == exec, "exec:\n{exec}\n{name}:\n{seen}");
        for expected in [
            "Uid:\t1000\t",
            "Gid:\t1001\t",
            "CapBnd:\t0000000000000000",
            "Read-only file system",
        ] {
            ensure!(seen.contains(expected), "{expected} in {seen}");
        }
    }
    cluster.kubectl(&["delete", "pod", "hardened", "--now"])?.ok()?;
    Ok(())
}

fn images_pass_the_gate(cluster: &Cluster) -> Result<()> {
    let clean = start(cluster, "debugged", "restartPolicy: Always")?;
    let vulnerable = cluster.push(&lab::vulnerable()?, "debug/vulnerable", "1")?;
    let debug = |image: &str, name: &str, more: &[&str]| {
        let image = format!("--image={image}");
        let arguments = ["debug", "debugged", "-q", &image, "-c", name];
        cluster.kubectl(&[&arguments, more, &["--", "true"]].concat())
    };
    debug(&vulnerable, "bad", &[])?.refused()?.says("CVE-")?;
    debug(&clean, "more", &["--profile=sysadmin"])?
        .refused()?
        .says("privileged")?;
    debug(&clean, "main", &[])?.refused()?;
    let object = cluster.object("default", "pods", "debugged")?;
    let names = |list: &Value| -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        items
            .filter_map(|item| item["name"].as_str().map(str::to_owned))
            .collect()
    };
    let listed = names(&object["spec"]["ephemeralContainers"]);
    ensure!(!listed.contains(&"bad".to_owned()), "{listed:?}");
    debug(&clean, "good", &[])?.ok()?;
    let object = cluster.object("default", "pods", "debugged")?;
    let list = object["spec"]["ephemeralContainers"]
        .as_array()
        .context("a list")?;
    let good = list
        .iter()
        .find(|item| item["name"] == "good")
        .context("it is there")?;
    ensure!(
        good["image"]
            .as_str()
            .is_some_and(|image| image.contains("@sha256:")),
        "{good}"
    );
    let annotations = &object["metadata"]["annotations"];
    ensure!(
        annotations["palisade.dev/requested-image.good"] == clean,
        "{annotations}"
    );
    ensure!(
        annotations["palisade.dev/image-scan.good"].is_string(),
        "{annotations}"
    );
    Ok(())
}

fn outlive_the_agent(cluster: &Cluster) -> Result<()> {
    let image = start(cluster, "debugged", "restartPolicy: Always")?;
    let image = format!("--image={image}");
    let debug = |name: &str, script: &str| {
        let arguments = [
            "debug",
            "debugged",
            "-q",
            &image,
            "--target=main",
            "-c",
            name,
            "--",
            "sh",
            "-c",
            script,
        ];
        cluster.kubectl(&arguments)?.ok()
    };
    debug("stays", "trap 'exit 9' TERM; while true; do sleep 0.2; done")?;
    debug("ended", "exit 3")?;
    let state = |name: &str, kind: &str| {
        eventually(PATIENCE, || {
            let status = status_of(cluster, "debugged", name)?;
            match status["state"][kind].is_object() {
                true => Ok(status),
                false => bail!("{status}"),
            }
        })
    };
    let (stays, ended) = (state("stays", "running")?, state("ended", "terminated")?);
    crate::recovery::kill(cluster.daemon_pid("agent")?)?;
    cluster.up_again()?;
    // Something new says that the agent works again.
    debug("after", "exit 0")?;
    state("after", "terminated")?;
    for (name, before) in [("stays", &stays), ("ended", &ended)] {
        let after = status_of(cluster, "debugged", name)?;
        ensure!(after == *before, "{before}\n{after}");
    }
    let own = "for p in /proc/[0-9]*; do grep -qs trap $p/cmdline && echo ${p#/proc/}; done; true";
    let ran = cluster
        .kubectl(&["exec", "debugged", "-c", "stays", "--", "sh", "-c", own])?
        .ok()?;
    ensure!(!ran.stdout.is_empty(), "{ran}");
    cluster.kubectl(&["delete", "pod", "debugged"])?.ok()?;
    Ok(())
}

fn shared_processes(cluster: &Cluster) -> Result<()> {
    let extra = "restartPolicy: Always\n  shareProcessNamespace: true";
    let image = start(cluster, "together", extra)?;
    let image = format!("--image={image}");
    // Until it has its trap the signal would end it.
    let script = "for p in /proc/[0-9]*; do grep -qs 'kep[t]' $p/cmdline || continue; \
        until grep -qs 'SigCgt:.*[13579bdf]$' $p/status || [ ! -e $p ]; do sleep 0.1; done; \
        kill -HUP ${p#/proc/}; done; cat /proc/1/comm";
    let arguments = [
        "debug", "together", "-q", &image, "-c", "knock", "--", "sh", "-c", script,
    ];
    cluster.kubectl(&arguments)?.ok()?;
    eventually(PATIENCE, || {
        let log = cluster.kubectl(&["logs", "together", "-c", "main"])?;
        match log.stdout.contains("reloaded\n") {
            true => Ok(()),
            false => bail!("{log}"),
        }
    })?;
    let log = eventually(PATIENCE, || {
        let log = cluster.kubectl(&["logs", "together", "-c", "knock"])?;
        match log.stdout.is_empty() {
            true => bail!("{log}"),
            false => Ok(log.stdout),
        }
    })?;
    ensure!(log == "palisade-pod\n", "{log}");
    cluster.kubectl(&["delete", "pod", "together"])?.ok()?;
    Ok(())
}
