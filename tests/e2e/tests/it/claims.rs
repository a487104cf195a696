//! Data that outlive pods, and go when their claim does.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{cluster::Cluster, shell::eventually};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "claims_data_outlive_pods_and_agents_and_go_with_the_claim",
        data_outlive_pods_and_agents_and_go_with_the_claim,
    ),
    (
        "claims_that_are_over_their_capacity_are_given_to_nobody_who_writes",
        over_their_capacity_they_are_given_to_nobody_who_writes,
    ),
];

const PATIENCE: Duration = Duration::from_secs(60);

const CLAIM: &str = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\n\
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}\n";

fn pod(image: &str, name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 1\n  securityContext: {{runAsUser: 1000, fsGroup: 2000}}\n  \
         volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]\n  containers:\n  - name: main\n    \
         image: {image}\n    command: [sh, -c, '{script}']\n    volumeMounts: [{{name: data, mountPath: /data}}]\n"
    )
}

fn shown(cluster: &Cluster, arguments: &[&str], words: &str) -> Result<()> {
    eventually(PATIENCE, || {
        cluster.kubectl(arguments)?.ok()?.says(words).map(drop)
    })
}

fn data_outlive_pods_and_agents_and_go_with_the_claim(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    cluster
        .kubectl(&["get", "storageclass"])?
        .ok()?
        .says("local-path (default)")?;
    cluster.apply(CLAIM)?.ok()?;
    shown(cluster, &["get", "pvc", "data"], "Pending")?;
    let class =
        cluster.object("default", "persistentvolumeclaims", "data")?["spec"]["storageClassName"].clone();
    ensure!(class == "local-path", "{class}");

    cluster
        .apply(&pod(
            &image,
            "writer",
            "id -G; echo precious > /data/file; stat -c %g /data/file",
        ))?
        .ok()?;
    cluster.wait_for_phase("default", "writer", "Succeeded")?;
    let log = cluster.kubectl(&["logs", "writer"])?.ok()?.stdout;
    ensure!(log.ends_with("2000\n"), "the group owns what is new: {log}");
    shown(cluster, &["get", "pvc", "data"], "Bound")?;
    let claim = cluster.object("default", "persistentvolumeclaims", "data")?;
    let volume = claim["spec"]["volumeName"]
        .as_str()
        .context("a volume")?
        .to_owned();
    let listed = cluster.kubectl(&["get", "pv", &volume])?.ok()?;
    listed.says("default/data")?.says("RWO")?.says("Delete")?;
    cluster.kubectl(&["delete", "pod", "writer"])?.ok()?;

    // What belongs to another group is given to the pod's, unless the top says that this was done.
    let directory: PathBuf = cluster.state_dir.join("agent/local-path").join(&volume);
    let group_seen_by = |name: &str, policy: &str| {
        std::os::unix::fs::chown(directory.join("file"), None, Some(7))?;
        let pod = pod(&image, name, "stat -c %g /data/file").replace("fsGroup: 2000", policy);
        cluster.apply(&pod)?.ok()?;
        cluster.wait_for_phase("default", name, "Succeeded")?;
        let log = cluster.kubectl(&["logs", name])?.ok()?.stdout;
        cluster.kubectl(&["delete", "pod", name])?.ok()?;
        Ok::<_, anyhow::Error>(log)
    };
    let skipped = group_seen_by("skips", "fsGroup: 2000, fsGroupChangePolicy: OnRootMismatch")?;
    ensure!(skipped == "7\n", "{skipped:?}");
    let other = group_seen_by("differs", "fsGroup: 3000, fsGroupChangePolicy: OnRootMismatch")?;
    ensure!(other == "3000\n", "{other:?}");
    let always = group_seen_by("always", "fsGroup: 3000, fsGroupChangePolicy: Always")?;
    ensure!(always == "3000\n", "{always:?}");

    // Who asks for reading only gets no more.
    let reader = pod(&image, "reader", "cat /data/file && ! (echo new > /data/new)")
        .replace("claimName: data", "claimName: data, readOnly: true");
    cluster.apply(&reader)?.ok()?;
    cluster.wait_for_phase("default", "reader", "Succeeded")?;
    ensure!(!directory.join("new").exists(), "it was written to");
    cluster.kubectl(&["delete", "pod", "reader"])?.ok()?;

    // Another pod finds the data, also when the agent has been killed under it.
    cluster
        .apply(&pod(&image, "keeper", "cat /data/file; sleep 1000"))?
        .ok()?;
    cluster.wait_for_phase("default", "keeper", "Running")?;
    let agent = cluster.daemon_pid("agent")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    cluster.up_again()?;
    let read = || {
        cluster
            .kubectl(&["exec", "keeper", "--", "cat", "/data/file"])?
            .ok()?
            .says("precious")
    };
    eventually(PATIENCE, || read().map(drop))?;

    // While a pod uses it, the claim stays.
    cluster
        .kubectl(&["delete", "pvc", "data", "--wait=false"])?
        .ok()?;
    shown(cluster, &["get", "pvc", "data"], "Terminating")?;
    read()?;
    ensure!(directory.join("file").exists(), "{}", directory.display());
    cluster.kubectl(&["delete", "pod", "keeper"])?.ok()?;
    eventually(PATIENCE, || {
        cluster.kubectl(&["get", "pvc", "data"])?.refused()?;
        cluster.kubectl(&["get", "pv", &volume])?.refused()?;
        match directory.exists() {
            true => bail!("{} is still there", directory.display()),
            false => Ok(()),
        }
    })
}

fn over_their_capacity_they_are_given_to_nobody_who_writes(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    cluster.apply(CLAIM)?.ok()?;
    let fill = "head -c 25165824 /dev/zero > /data/big; sleep 1000";
    cluster.apply(&pod(&image, "filler", fill))?.ok()?;
    let filler = cluster.wait_for_phase("default", "filler", "Failed")?;
    let status = &filler["status"];
    ensure!(status["reason"] == "Evicted", "{status}");
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(message.contains("exceeds the capacity \"16Mi\""), "{message}");
    cluster.kubectl(&["delete", "pod", "filler"])?.ok()?;

    let clean = "rm /data/big; sleep 1000";
    cluster.apply(&pod(&image, "cleaner", clean))?.ok()?;
    shown(
        cluster,
        &["get", "events"],
        "more than the volume's capacity of 16Mi",
    )?;
    let waiting = cluster.object("default", "pods", "cleaner")?;
    ensure!(waiting["status"]["phase"] == "Pending", "{}", waiting["status"]);
    // Whoever may answer for the disk lets it in.
    let claim = cluster.object("default", "persistentvolumeclaims", "data")?;
    let volume = claim["spec"]["volumeName"]
        .as_str()
        .context("a volume")?
        .to_owned();
    let raise = r#"{"spec": {"capacity": {"storage": "64Mi"}}}"#;
    cluster
        .kubectl(&["patch", "pv", &volume, "--type", "merge", "-p", raise])?
        .ok()?;
    cluster.wait_for_phase("default", "cleaner", "Running")?;
    for (kind, name) in [("pod", "cleaner"), ("pvc", "data")] {
        cluster.kubectl(&["delete", kind, name])?.ok()?;
    }
    Ok(())
}
