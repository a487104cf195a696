//! Paths of the node are in pods only where an administrator has granted them, and then as files and nothing more.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Result, bail, ensure};
use e2e::{cluster::Cluster, shell::eventually};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[(
    "host_paths_need_a_grant_and_give_nothing_but_files",
    need_a_grant_and_give_nothing_but_files,
)];

fn pod(image: &str, name: &str, path: &Path, read_only: bool, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         volumes: [{{name: host, hostPath: {{path: {}, type: Directory}}}}]\n  containers:\n  - name: main\n    \
         image: {image}\n    command: [sh, -c, '{script}']\n    \
         volumeMounts: [{{name: host, mountPath: /host, readOnly: {read_only}}}]\n",
        path.display()
    )
}

fn need_a_grant_and_give_nothing_but_files(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let directory = tempfile::Builder::new().prefix("palisade-e2e-host-").tempdir()?;
    let base = fs::canonicalize(directory.path())?;
    // Only root enters: else setuid bits that a pod sets would count for the node's users.
    fs::set_permissions(&base, fs::Permissions::from_mode(0o700))?;
    let data = base.join("data");
    fs::create_dir(&data)?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777))?;
    fs::write(data.join("file"), "from-the-node\n")?;

    let reader = pod(
        &image,
        "reader",
        &data,
        true,
        "cat /host/file; echo x > /host/new || echo refused",
    );
    cluster
        .apply(&reader)?
        .refused()?
        .says("no HostPathGrant gives")?;
    let grant = |access: &str, namespace: &str| {
        format!(
            "apiVersion: palisade.dev/v1alpha1\nkind: HostPathGrant\nmetadata: {{name: data}}\n\
             spec: {{path: {}, access: {access}, namespaces: [{namespace}]}}\n",
            base.display()
        )
    };
    cluster.apply(&grant("ReadOnly", "kube-public"))?.ok()?;
    cluster.apply(&reader)?.refused()?.says("namespace \"default\"")?;
    cluster.apply(&grant("ReadOnly", "default"))?.ok()?;
    cluster
        .kubectl(&["get", "hostpathgrants"])?
        .ok()?
        .says("ReadOnly")?;
    cluster.apply(&reader)?.ok()?;
    cluster.wait_for_phase("default", "reader", "Succeeded")?;
    let log = cluster.kubectl(&["logs", "reader"])?.ok()?.stdout;
    ensure!(log.contains("from-the-node") && log.contains("refused"), "{log}");

    let script = "cp /bin/busybox /host/program; chmod 4755 /host/program; /host/program true && echo ran; \
        echo written > /host/new; ln -s /etc/shadow /host/link; cat /host/link || true";
    let writer = pod(&image, "writer", &data, false, script);
    cluster.apply(&writer)?.refused()?.says("ReadWrite")?;
    cluster.apply(&grant("ReadWrite", "default"))?.ok()?;
    cluster.apply(&writer)?.ok()?;
    cluster.wait_for_phase("default", "writer", "Succeeded")?;
    let log = cluster.kubectl(&["logs", "writer"])?.ok()?.stdout;
    ensure!(!log.contains("ran"), "what was written was executed: {log}");
    ensure!(fs::read_to_string(data.join("new"))? == "written\n");

    // The way there is a link by now: it is not followed.
    fs::rename(&data, base.join("moved"))?;
    std::os::unix::fs::symlink("/etc", &data)?;
    let curious = pod(&image, "curious", &data, true, "ls /host");
    cluster.apply(&curious)?.ok()?;
    eventually(Duration::from_secs(30), || {
        let status = cluster.object("default", "pods", "curious")?["status"].clone();
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        match message.contains("links are not followed") {
            true => Ok(()),
            false => bail!("{status}"),
        }
    })?;
    for name in ["reader", "writer", "curious"] {
        cluster.kubectl(&["delete", "pod", name, "--now"])?.ok()?;
    }
    ensure!(
        base.join("moved/new").exists(),
        "the node's files went with the pod"
    );
    cluster.kubectl(&["delete", "hostpathgrant", "data"])?.ok()?;
    Ok(())
}
