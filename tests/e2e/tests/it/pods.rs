//! Ordinary images run unchanged, end as they should and are restarted as they should.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::{
    cluster::{Cluster, HTTP_GET, pod},
    distribution,
    shell::eventually,
};
use testkit::{
    image::{Layer, Packing},
    lab::{self, LabOs},
};

use crate::{Test, sessions::Follower};

pub(crate) const TESTS: &[Test] = &[
    (
        "pod_runs_busybox_with_configuration",
        runs_busybox_with_configuration,
    ),
    ("pod_runs_an_unchanged_python", runs_an_unchanged_python),
    ("pod_runs_an_unchanged_nginx", runs_an_unchanged_nginx),
    ("pod_is_restarted_with_back_off", is_restarted_with_back_off),
    ("pod_takes_another_image", takes_another_image),
    ("pod_ends_gracefully", ends_gracefully),
    ("pod_stays_within_its_limits", stays_within_its_limits),
];

fn runs_busybox_with_configuration(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let yaml = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{greeting: hello, file.txt: from-the-map}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: token}}\nstringData: {{token: from-the-secret}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: configured, labels: {{app: configured}}}}\nspec:\n  restartPolicy: Never\n  \
         containers:\n  - name: main\n    image: {image}\n    \
         command: [sh, -c, 'echo $GREETING $WHO; cat /settings/file.txt; echo; cat /token/token; echo; echo kept > /data/x && cat /data/x; hostname']\n    \
         env:\n    - {{name: GREETING, valueFrom: {{configMapKeyRef: {{name: settings, key: greeting}}}}}}\n    \
         - {{name: WHO, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}\n    \
         volumeMounts:\n    - {{name: s, mountPath: /settings}}\n    - {{name: t, mountPath: /token, readOnly: true}}\n    - {{name: d, mountPath: /data}}\n  \
         volumes:\n  - {{name: s, configMap: {{name: settings}}}}\n  - {{name: t, secret: {{secretName: token}}}}\n  - {{name: d, emptyDir: {{}}}}\n"
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "configured", "Succeeded")?;
    let log = cluster.kubectl(&["logs", "configured"])?.ok()?.stdout;
    let expected = "hello configured\nfrom-the-map\nfrom-the-secret\nkept\nconfigured\n";
    ensure!(log == expected, "{log:?} is not {expected:?}");
    cluster
        .kubectl(&["delete", "pod/configured", "cm/settings", "secret/token"])?
        .ok()?;
    Ok(())
}

fn runs_an_unchanged_python(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&distribution::python()?.build(), "pods/python", "1")?;
    let script = "import json, os, pathlib, socket, ssl, sqlite3, subprocess, tempfile, threading\n\
        t = threading.Thread(target=lambda: print('thread')); t.start(); t.join()\n\
        print(subprocess.run(['/bin/echo', 'subprocess'], capture_output=True, text=True).stdout, end='')\n\
        p = pathlib.Path('/root/file'); p.write_text('written'); print(p.read_text())\n\
        print(len(tempfile.NamedTemporaryFile().name) > 0, os.getuid(), json.dumps({'a': 1}))\n";
    let log = cluster.run_pod("default", "python", &image, &["/usr/bin/python3", "-c", script])?;
    ensure!(log == "thread\nsubprocess\nwritten\nTrue 0 {\"a\": 1}\n", "{log}");
    cluster.kubectl(&["delete", "pod", "python"])?.ok()?;
    Ok(())
}

fn runs_an_unchanged_nginx(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&distribution::nginx()?.build(), "pods/nginx", "1")?;
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: nginx, labels: {{app: nginx}}}}\nspec:\n  terminationGracePeriodSeconds: 5\n  \
         containers:\n  - {{name: nginx, image: \"{image}\", ports: [{{containerPort: 80, name: http}}]}}\n"
    );
    cluster.apply(&yaml)?.ok()?;
    let object = cluster.wait_for_phase("default", "nginx", "Running")?;
    let address = object["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let client = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let log = cluster.run_pod(
        "default",
        "client",
        &client,
        &["sh", "-c", HTTP_GET, &address, "80"],
    )?;
    ensure!(
        log.contains("HTTP/1.1 200 OK") && log.ends_with("it works\n"),
        "{log}"
    );
    cluster.kubectl(&["delete", "pod", "nginx", "client"])?.ok()?;
    Ok(())
}

fn is_restarted_with_back_off(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let yaml = pod(
        "default",
        "failing",
        "app: x",
        &image,
        &["sh", "-c", "echo again; exit 3"],
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    eventually(Duration::from_secs(40), || {
        let status = cluster.object("default", "pods", "failing")?["status"]["containerStatuses"][0].clone();
        let restarted = status["restartCount"].as_u64() >= Some(1);
        let waiting = status["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        let code = status["lastState"]["terminated"]["exitCode"] == 3;
        if restarted && waiting && code {
            Ok(())
        } else {
            bail!("{status}")
        }
    })?;
    cluster.kubectl(&["get", "events"])?.ok()?.says("BackOff")?;
    cluster.kubectl(&["delete", "pod", "failing"])?.ok()?;
    Ok(())
}

/// `kubectl set image`: another container of the same pod, also where nothing is started again.
fn takes_another_image(cluster: &Cluster) -> Result<()> {
    let image = |tag: &str| {
        let own = Layer::new(Packing::Gzip).file("etc/pushed-as", 0o644, tag.as_bytes());
        let image = lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?.layer(own);
        cluster.push(&image.build(), "pods/another", tag)
    };
    let (before, after) = (image("one")?, image("two")?);
    let yaml = pod(
        "default",
        "another",
        "app: x",
        &before,
        &["sh", "-c", "cat /etc/pushed-as; echo; exec sleep 1000"],
        "restartPolicy: Never",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "another", "Running")?;
    let change = format!("main={after}");
    cluster.kubectl(&["set", "image", "pod/another", &change])?.ok()?;
    eventually(Duration::from_secs(60), || {
        let pod = cluster.object("default", "pods", "another")?;
        let status = &pod["status"]["containerStatuses"][0];
        let named = status["imageID"] == pod["spec"]["containers"][0]["image"];
        let runs = status["state"]["running"].is_object();
        match status["restartCount"] == 1 && named && runs {
            true => Ok(()),
            false => bail!("{status}"),
        }
    })?;
    eventually(Duration::from_secs(10), || {
        let log = cluster.kubectl(&["logs", "another"])?.ok()?.stdout;
        ensure!(log == "two\n", "{log:?}");
        Ok(())
    })?;
    cluster
        .kubectl(&["get", "events"])?
        .ok()?
        .says("definition changed")?;
    cluster.kubectl(&["delete", "pod", "another"])?.ok()?;
    Ok(())
}

fn ends_gracefully(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let script = "trap 'echo got the signal; exit 0' TERM; echo ready; while true; do sleep 0.1; done";
    let yaml = pod(
        "default",
        "graceful",
        "app: x",
        &image,
        &["sh", "-c", script],
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    cluster.wait_for_phase("default", "graceful", "Running")?;
    eventually(Duration::from_secs(10), || {
        cluster.kubectl(&["logs", "graceful"])?.ok()?.says("ready")
    })?;
    let follower = Follower::start(cluster, &["graceful"], "ready")?;
    let deleted = cluster.kubectl(&["delete", "pod", "graceful"])?.ok()?;
    ensure!(deleted.took < Duration::from_secs(15), "{deleted}");
    let rest = follower.rest()?;
    ensure!(rest.iter().any(|line| line == "got the signal"), "{rest:?}");
    Ok(())
}

fn stays_within_its_limits(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "pods/clean", "1")?;
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: greedy, labels: {{app: x}}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: main\n    image: {image}\n    command: [sh, -c, 'x=a; while true; do x=$x$x; done']\n    \
         resources: {{limits: {{memory: 32Mi, cpu: 500m}}}}\n"
    );
    cluster.apply(&yaml)?.ok()?;
    let object = cluster.wait_for_phase("default", "greedy", "Failed")?;
    let terminated = &object["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(
        terminated["reason"] == "OOMKilled" && terminated["exitCode"] == 137,
        "{terminated}"
    );
    cluster.kubectl(&["delete", "pod", "greedy"])?.ok()?;
    Ok(())
}
