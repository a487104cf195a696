//! After `policyctl down` the host is as it was.

use std::time::Duration;

use anyhow::{Result, bail};
use e2e::{cluster::Cluster, host::Snapshot, shell::eventually};

pub(crate) fn down_leaves_nothing_behind(cluster: &Cluster, before: &Snapshot) -> Result<()> {
    // Something must be there to be removed.
    let image = cluster.push(&testkit::lab::clean()?, "clean-host/clean", "1")?;
    let pod = e2e::cluster::pod(
        "default",
        "last",
        "app: last",
        &image,
        &["sleep", "1000"],
        "restartPolicy: Always",
    );
    cluster.apply(&pod)?.ok()?;
    cluster.wait_for_phase("default", "last", "Running")?;
    let during = Snapshot::take()?.difference(before);
    for kind in [
        "mount",
        "link",
        "network namespace",
        "cgroup",
        "bpf prog",
        "nft",
        "process",
    ] {
        if !during
            .iter()
            .any(|line| line.starts_with(&format!("left behind: {kind} ")))
        {
            bail!(
                "the snapshot does not see a running pod's {kind}, so it would not see one left behind: {during:#?}"
            );
        }
    }
    cluster.stop()?;
    if cluster.state_dir.exists() || cluster.run_dir.exists() {
        bail!(
            "--purge kept {} or {}",
            cluster.state_dir.display(),
            cluster.run_dir.display()
        );
    }
    // The kernel frees namespaces and programs a moment after the last reference.
    eventually(Duration::from_secs(60), || {
        let left = Snapshot::take()?.difference(before);
        if left.is_empty() {
            Ok(())
        } else {
            bail!("{left:#?}")
        }
    })
}
