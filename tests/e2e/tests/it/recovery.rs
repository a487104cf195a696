//! Daemons that are killed come back to what they left.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, pod},
    shell::eventually,
};
use testkit::lab;

use crate::{Test, crashes::processes_of};

pub(crate) const TESTS: &[Test] = &[
    (
        "agent_killed_and_restarted_loses_no_pod",
        agent_killed_and_restarted_loses_no_pod,
    ),
    (
        "control_killed_and_restarted_loses_no_object",
        control_killed_and_restarted_loses_no_object,
    ),
    (
        "a_container_starts_again_while_control_is_away",
        a_container_starts_again_while_control_is_away,
    ),
    (
        "a_node_that_was_silent_is_ready_again_with_its_pods",
        a_node_that_was_silent_is_ready_again_with_its_pods,
    ),
];

fn agent_killed_and_restarted_loses_no_pod(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "recovery/clean", "1")?;
    let script = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.2; done";
    let yaml = pod(
        "default",
        "survivor",
        "app: survivor",
        &image,
        &["sh", "-c", script],
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    let before = cluster.wait_for_phase("default", "survivor", "Running")?;

    kill(cluster.daemon_pid("agent")?)?;
    // While the agent is away, the pod lives and the kernel keeps judging; then it is found again.
    cluster.up_again()?;
    let after = eventually(Duration::from_secs(20), || {
        let object = cluster.object("default", "pods", "survivor")?;
        let fresh = object["status"]["phase"] == "Running";
        if fresh {
            Ok(object)
        } else {
            bail!("{}", object["status"])
        }
    })?;
    let container = |object: &serde_json::Value| object["status"]["containerStatuses"][0].clone();
    for field in ["containerID", "restartCount", "state"] {
        ensure!(
            container(&before)[field] == container(&after)[field],
            "{field} changed: {} to {}",
            container(&before),
            container(&after)
        );
    }
    ensure!(
        before["status"]["podIPs"] == after["status"]["podIPs"]
            && before["status"]["podIPs"].as_array().map(Vec::len) == Some(2),
        "the addresses changed: {} to {}",
        before["status"]["podIPs"],
        after["status"]["podIPs"]
    );
    // The log goes on, without a gap and without a second writer.
    let log = eventually(Duration::from_secs(10), || {
        let log = cluster.policyctl(&["logs", "survivor"])?.ok()?.stdout;
        if log.lines().count() > 20 {
            Ok(log)
        } else {
            bail!("the log does not grow: {log}")
        }
    })?;
    for (index, line) in log.lines().enumerate() {
        ensure!(
            line == format!("line {}", index + 1),
            "line {} of the log is {line:?}",
            index + 1
        );
    }
    cluster.kubectl(&["delete", "pod", "survivor"])?.ok()?;
    Ok(())
}

fn control_killed_and_restarted_loses_no_object(cluster: &Cluster) -> Result<()> {
    for number in 0..20 {
        let name = format!("kept-{number}");
        cluster
            .kubectl(&["create", "configmap", &name, "--from-literal=a=b"])?
            .ok()?;
    }
    kill(cluster.daemon_pid("control")?)?;
    cluster.up_again()?;
    let names = cluster
        .kubectl(&["get", "configmaps", "-o", "name"])?
        .ok()?
        .stdout;
    let kept = names
        .lines()
        .filter(|line| line.starts_with("configmap/kept-"))
        .count();
    ensure!(kept == 20, "{kept} of 20 objects are left:\n{names}");
    for number in 0..20 {
        cluster
            .kubectl(&["delete", "configmap", &format!("kept-{number}"), "--wait=false"])?
            .ok()?;
    }
    // The agent finds the new control plane by itself.
    let image = cluster.push(&lab::clean()?, "recovery/clean", "1")?;
    let log = cluster.run_pod("default", "afterwards", &image, &["echo", "still works"])?;
    ensure!(log == "still works\n", "{log}");
    cluster.kubectl(&["delete", "pod", "afterwards"])?.ok()?;
    Ok(())
}

fn a_container_starts_again_while_control_is_away(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "recovery/clean", "1")?;
    cluster
        .kubectl(&[
            "create",
            "secret",
            "generic",
            "words",
            "--from-literal=word=known",
        ])?
        .ok()?;
    let script = "echo the word is $WORD; exec sleep 1000";
    let mut yaml = pod(
        "default",
        "lone",
        "app: lone",
        &image,
        &["sh", "-c", script],
        "restartPolicy: Always",
    );
    yaml.push_str("    env: [{name: WORD, valueFrom: {secretKeyRef: {name: words, key: word}}}]\n");
    cluster.apply(&yaml)?.ok()?;
    let before = cluster.wait_for_phase("default", "lone", "Running")?;
    let uid = before["metadata"]["uid"].as_str().context("a UID")?;
    let old = processes_of(uid)?;
    ensure!(!old.is_empty(), "nothing runs");

    kill(cluster.daemon_pid("control")?)?;
    for pid in &old {
        kill(*pid)?;
    }
    eventually(Duration::from_secs(40), || {
        let new = processes_of(uid)?;
        match !new.is_empty() && new.iter().all(|pid| !old.contains(pid)) {
            true => Ok(()),
            false => bail!("{old:?} ran, {new:?} run"),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    cluster.up_again()?;
    eventually(Duration::from_secs(40), || {
        let status = cluster.object("default", "pods", "lone")?["status"].clone();
        let container = &status["containerStatuses"][0];
        let again = container["restartCount"] == 1 && container["state"]["running"].is_object();
        match again && status["phase"] == "Running" {
            true => Ok(()),
            false => bail!("{status}"),
        }
    })?;
    let log = cluster.kubectl(&["logs", "lone"])?.ok()?.stdout;
    ensure!(log == "the word is known\n", "{log}");
    cluster.kubectl(&["delete", "pod/lone", "secret/words"])?.ok()?;
    Ok(())
}

fn a_node_that_was_silent_is_ready_again_with_its_pods(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "recovery/clean", "1")?;
    let yaml = pod(
        "default",
        "marked",
        "app: marked",
        &image,
        &["sleep", "1000"],
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "marked", "Running")?;
    let ready = |of_node: &str, of_pod: &str| {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        for (object, expected) in [("node/lab", of_node), ("pod/marked", of_pod)] {
            let found = cluster.kubectl(&["get", object, "-o", path])?.ok()?.stdout;
            ensure!(found == expected, "{object} is ready: {found}");
        }
        Ok(())
    };
    let agent = nix::unistd::Pid::from_raw(cluster.daemon_pid("agent")?);
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGSTOP)?;
    let marked = eventually(Duration::from_secs(90), || ready("Unknown", "False"));
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGCONT)?;
    marked?;
    eventually(Duration::from_secs(30), || ready("True", "True"))?;
    cluster.kubectl(&["delete", "pod", "marked"])?.ok()?;
    Ok(())
}

pub(crate) fn kill(pid: i32) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).context("cannot kill the daemon")?;
    eventually(Duration::from_secs(5), || {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => bail!("process {pid} still runs"),
            _ => Ok(()),
        }
    })
}
