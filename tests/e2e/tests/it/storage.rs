//! What pods take on the node's disk is theirs within limits.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::{cluster::Cluster, shell::eventually};
use serde_json::Value;
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "storage_a_pod_over_its_limit_is_evicted",
        a_pod_over_its_limit_is_evicted,
    ),
    (
        "storage_last_words_are_kept_short_by_the_kernel",
        last_words_are_kept_short,
    ),
];

/// Two looks, and the time that a loaded machine takes for them.
const PATIENCE: Duration = Duration::from_secs(90);

fn a_pod_over_its_limit_is_evicted(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let pod = |name: &str, script: &str, resources: &str, limit: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Always\n  \
             volumes: [{{name: cache, emptyDir: {{{limit}}}}}]\n  containers:\n  - name: main\n    image: {image}\n    \
             command: [sh, -c, 'echo kept > /cache/file; {script}; sleep 1000']\n    \
             resources: {{{resources}}}\n    volumeMounts: [{{name: cache, mountPath: /cache}}]\n"
        )
    };
    let storage = "limits: {ephemeral-storage: 4Mi}";
    let write = |path: &str| format!("dd if=/dev/zero of={path} bs=1M count=6");
    let all = [
        pod("over-volume", &write("/cache/big"), "", "sizeLimit: 4Mi"),
        pod("over-layer", &write("/tmp/big"), storage, ""),
        pod("over-pod", &write("/cache/big"), storage, ""),
        pod(
            "within",
            "dd if=/dev/zero of=/tmp/big bs=1M count=2",
            storage,
            "sizeLimit: 4Mi",
        ),
    ];
    cluster.apply(&all.join("---\n"))?.ok()?;
    let evicted = |name: &str, words: &str| -> Result<()> {
        let object = eventually(PATIENCE, || {
            let object = cluster.object("default", "pods", name)?;
            match object["status"]["phase"] == "Failed" {
                true => Ok(object),
                false => bail!("{name} is not evicted: {}", object["status"]),
            }
        })?;
        let status = &object["status"];
        ensure!(status["reason"] == "Evicted", "{status}");
        let message = status["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains(words) && message.contains("bytes are used"),
            "{message}"
        );
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let disruption: Vec<&Value> = conditions.filter(|c| c["type"] == "DisruptionTarget").collect();
        ensure!(
            disruption.len() == 1 && disruption[0]["status"] == "True",
            "{status}"
        );
        cluster.kubectl(&["get", "events"])?.ok()?.says("Evicted")?;
        // What it wrote is gone, though the pod is still there to be read about.
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let volumes = cluster.state_dir.join("agent/pods").join(uid).join("volumes");
        eventually(Duration::from_secs(20), || match volumes.exists() {
            true => bail!("{} is still there", volumes.display()),
            false => Ok(()),
        })
    };
    evicted(
        "over-volume",
        "EmptyDir volume \"cache\" exceeds the limit \"4Mi\"",
    )?;
    evicted("over-layer", "limit")?;
    evicted("over-pod", "total limit of containers")?;
    let shown = cluster.kubectl(&["describe", "pod", "over-volume"])?.ok()?;
    shown.says("Evicted")?;
    let within = cluster.object("default", "pods", "within")?;
    ensure!(within["status"]["phase"] == "Running", "{}", within["status"]);
    let names = ["delete", "pod", "over-volume", "over-layer", "over-pod", "within"];
    cluster.kubectl(&names)?.ok()?;
    Ok(())
}

fn last_words_are_kept_short(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let script = "dd if=/dev/zero of=/dev/termination-log bs=1M count=1 2>/dev/null; \
        echo wrote $(stat -c %s /dev/termination-log); echo last words > /dev/termination-log";
    let log = cluster.run_pod("default", "talker", &image, &["sh", "-c", script])?;
    let size = log
        .trim()
        .strip_prefix("wrote ")
        .and_then(|size| size.parse::<u64>().ok());
    // The room for them and for the container's own files over `/etc`.
    ensure!(size.is_some_and(|size| size <= 128 * 1024), "{log}");
    let status = cluster.object("default", "pods", "talker")?["status"].clone();
    let message = &status["containerStatuses"][0]["state"]["terminated"]["message"];
    ensure!(message == "last words\n", "{status}");
    cluster.kubectl(&["delete", "pod", "talker"])?.ok()?;
    Ok(())
}
