//! Static pods: files on the node's disk, the image gate, and a node that starts without an API.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, alive},
    shell::{binaries, eventually},
};
use serde_json::Value;
use testkit::{image::Image, lab};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("static_pods_follow_their_files", follow_their_files),
    ("static_pods_pass_the_image_gate", pass_the_gate),
    ("static_pods_start_without_the_api", start_without_the_api),
    (
        "static_pods_are_back_after_an_orderly_shutdown",
        back_after_a_shutdown,
    ),
];

const PATIENCE: Duration = Duration::from_secs(40);

/// Pushes an image and names it by its digest.
fn by_digest(cluster: &Cluster, image: &Image, repository: &str) -> Result<String> {
    let reference = cluster.push(image, repository, "1")?;
    let (name, _tag) = reference.rsplit_once(':').context("a tag")?;
    Ok(format!("{name}@{}", image.digest()))
}

fn file(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let directory = cluster.state_dir.join("agent/manifests");
    fs::create_dir_all(&directory)?;
    Ok(directory.join(name))
}

fn manifest(name: &str, namespace: &str, image: &str, script: &str) -> String {
    let command = serde_json::json!(["sh", "-c", script]);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{app: static}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {image}\n    command: {command}\n"
    )
}

fn gone(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    eventually(PATIENCE, || {
        match cluster.kubectl(&["get", "pod", name, "-n", namespace])?.code {
            0 => bail!("{name} is still there"),
            _ => Ok(()),
        }
    })
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// Waits for a run of the pod that is not the one with this uid.
fn another(cluster: &Cluster, name: &str, before: &str) -> Result<Value> {
    eventually(PATIENCE, || {
        let object = cluster.object("kube-system", "pods", name)?;
        match uid(&object) != before && object["status"]["phase"] == "Running" {
            true => Ok(object),
            false => bail!("{}", object["status"]),
        }
    })
}

fn follow_their_files(cluster: &Cluster) -> Result<()> {
    let image = by_digest(cluster, &lab::clean()?, "static/clean")?;
    let path = file(cluster, "web.yaml")?;
    let loop_of = |word: &str| format!("while true; do echo {word}; sleep 0.2; done");
    fs::write(&path, manifest("web", "kube-system", &image, &loop_of("one")))?;
    let object = eventually(PATIENCE, || cluster.object("kube-system", "pods", "web-lab"))?;
    ensure!(object["spec"]["nodeName"] == "lab", "{object}");
    let object = cluster.wait_for_phase("kube-system", "web-lab", "Running")?;
    let notes = &object["metadata"]["annotations"];
    ensure!(
        notes["kubernetes.io/config.source"] == "file"
            && notes["kubernetes.io/config.mirror"] == notes["kubernetes.io/config.hash"]
            && notes["palisade.dev/image-scan.main"].is_string(),
        "{notes}"
    );
    let kubectl = |arguments: &[&str]| cluster.kubectl(&[&["-n", "kube-system"], arguments].concat());
    eventually(PATIENCE, || {
        kubectl(&["logs", "web-lab", "--tail=1"])?.ok()?.says("one")
    })?;
    kubectl(&["exec", "web-lab", "--", "true"])?.ok()?;
    kubectl(&["debug", "web-lab", "-q", "--image", &image, "--", "true"])?
        .refused()?
        .says("static pods do not support ephemeral containers")?;
    // Deleted by the API it comes back, with another file it is another pod, without the file it goes.
    kubectl(&["delete", "pod", "web-lab", "--wait=false"])?.ok()?;
    let again = another(cluster, "web-lab", &uid(&object))?;
    fs::write(&path, manifest("web", "kube-system", &image, &loop_of("two")))?;
    another(cluster, "web-lab", &uid(&again))?;
    eventually(PATIENCE, || {
        kubectl(&["logs", "web-lab", "--tail=1"])?
            .ok()?
            .says("two")
            .map(drop)
    })?;
    fs::remove_file(&path)?;
    gone(cluster, "kube-system", "web-lab")
}

fn pass_the_gate(cluster: &Cluster) -> Result<()> {
    let vulnerable = by_digest(cluster, &lab::vulnerable()?, "static/vulnerable")?;
    let clean = by_digest(cluster, &lab::clean()?, "static/clean")?;
    let tagged = cluster.push(&lab::clean()?, "static/clean", "1")?;
    let forever = "while true; do sleep 1; done";
    let said = |words: &str| {
        eventually(PATIENCE, || {
            let log = fs::read_to_string(cluster.state_dir.join("logs/agent.log"))?;
            match log.contains(words) {
                true => Ok(()),
                false => bail!("{words:?} is not in the agent's log"),
            }
        })
    };
    let cases = [
        ("bad", "kube-system", &vulnerable, 0o644, "CVE-"),
        ("tagged", "kube-system", &tagged, 0o644, "must name its digest"),
        (
            "elsewhere",
            "default",
            &clean,
            0o644,
            "static pods live in namespace kube-system",
        ),
        ("exposed", "kube-system", &clean, 0o666, "others may write to it"),
    ];
    for (name, namespace, image, mode, words) in cases {
        use std::os::unix::fs::PermissionsExt as _;
        let path = file(cluster, &format!("{name}.yaml"))?;
        fs::write(&path, manifest(name, namespace, image, forever))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        said(words).with_context(|| name.to_owned())?;
        let stored = cluster.kubectl(&["get", "pod", &format!("{name}-lab"), "-n", namespace])?;
        ensure!(stored.code != 0, "{name}: {stored}");
        fs::remove_file(&path)?;
    }
    // Nobody else makes such pods.
    let forged = manifest("forged", "kube-system", &clean, forever).replace(
        "  labels:",
        "  annotations: {kubernetes.io/config.mirror: x}\n  labels:",
    );
    cluster
        .apply(&forged)?
        .refused()?
        .says("static pods are made by their node")?;
    Ok(())
}

/// Ends a process that this test started.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _may_be_dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn start_without_the_api(cluster: &Cluster) -> Result<()> {
    let image = by_digest(cluster, &lab::clean()?, "static/clean")?;
    let path = file(cluster, "lone.yaml")?;
    let script = "echo began; while true; do sleep 0.2; done";
    fs::write(&path, manifest("lone", "kube-system", &image, script))?;
    eventually(PATIENCE, || cluster.object("kube-system", "pods", "lone-lab"))?;
    let object = cluster.wait_for_phase("kube-system", "lone-lab", "Running")?;
    let kept = cluster.state_dir.join("agent/admitted/kube-system_lone-lab.json");
    eventually(PATIENCE, || {
        fs::metadata(&kept).context("what was admitted is kept")
    })?;

    // As after a reboot of a node whose API does not come back: nothing runs, and nobody answers.
    crate::recovery::kill(cluster.daemon_pid("agent")?)?;
    crate::recovery::kill(cluster.daemon_pid("control")?)?;
    let status = cluster
        .run_dir
        .join("pods")
        .join(uid(&object))
        .join("status.json");
    let status: Value = serde_json::from_slice(&fs::read(&status)?)?;
    let shim = status["shim_pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok());
    crate::recovery::kill(shim.context("a shim")?)?;

    let log = fs::File::create(cluster.state_dir.join("logs/alone.log"))?;
    let config = cluster.state_dir.join("agent/config.toml");
    let mut agent = Command::new(binaries()?.join("palisade-agent"));
    agent
        .arg("run")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stderr(log);
    let agent = Ended(agent.spawn().context("cannot start the agent")?);
    let directory = format!("kube-system_lone-lab_{}", uid(&object));
    let logs = cluster.state_dir.join("agent/logs").join(directory).join("main");
    let runs = || -> usize {
        let files = fs::read_dir(&logs).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.map(|text| text.matches("began").count()).sum()
    };
    let before = runs();
    eventually(PATIENCE, || match runs() > before {
        true => Ok(()),
        false => bail!(
            "it does not start: {}",
            fs::read_to_string(cluster.state_dir.join("logs/alone.log")).unwrap_or_default()
        ),
    })?;
    // Its network is closed: no policy is known, and so nothing may pass.
    drop(agent);
    cluster.up_again()?;
    let after = eventually(PATIENCE, || {
        let object = cluster.object("kube-system", "pods", "lone-lab")?;
        let ready = object["status"]["containerStatuses"][0]["ready"] == true;
        match ready && object["status"]["phase"] == "Running" {
            true => Ok(object),
            false => bail!("{}", object["status"]),
        }
    })?;
    ensure!(uid(&after) == uid(&object), "it is still the same pod");
    fs::remove_file(&path)?;
    gone(cluster, "kube-system", "lone-lab")?;
    eventually(PATIENCE, || match kept.exists() {
        true => bail!("what was admitted is still kept"),
        false => Ok(()),
    })
}

/// Asks the agent for the orderly end of the node, and waits for it.
fn shut_down(cluster: &Cluster) -> Result<()> {
    let agent = cluster.daemon_pid("agent")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent),
        nix::sys::signal::Signal::SIGPWR,
    )?;
    eventually(PATIENCE, || match alive(agent) {
        true => bail!("the agent does not end"),
        false => Ok(()),
    })
    .with_context(|| cluster.daemon_logs())
}

fn back_after_a_shutdown(cluster: &Cluster) -> Result<()> {
    let image = by_digest(cluster, &lab::clean()?, "static/clean")?;
    let path = file(cluster, "back.yaml")?;
    let script = "echo began; trap 'exit 0' TERM; while true; do sleep 0.2; done";
    fs::write(&path, manifest("back", "kube-system", &image, script))?;
    let object = |name: &str| cluster.object("kube-system", "pods", name);
    eventually(PATIENCE, || object("back-lab"))?;
    let before = cluster.wait_for_phase("kube-system", "back-lab", "Running")?;

    shut_down(cluster)?;
    let ended = object("back-lab")?;
    ensure!(
        ended["status"]["phase"] == "Failed" && ended["status"]["reason"] == "Terminated",
        "{}",
        ended["status"]
    );
    cluster.start_agent("")?;
    let running = |least: i64| {
        eventually(PATIENCE, || {
            let object = object("back-lab")?;
            let container = &object["status"]["containerStatuses"][0];
            let again = container["restartCount"].as_i64() >= Some(least) && container["ready"] == true;
            let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            let ends = conditions
                .any(|condition| condition["type"] == "DisruptionTarget" && condition["status"] == "True");
            match again && object["status"]["phase"] == "Running" && !ends {
                true => Ok(object),
                false => bail!("{}", object["status"]),
            }
        })
        .with_context(|| cluster.daemon_logs())
    };
    let after = running(1)?;
    ensure!(uid(&after) == uid(&before), "it is still the same pod");

    // The same, with an API server that hears of none of it before the pod runs again.
    crate::recovery::kill(cluster.daemon_pid("control")?)?;
    shut_down(cluster)?;
    let directory = cluster.state_dir.join("agent/pods").join(uid(&before));
    ensure!(directory.join("ended.json").exists(), "its end is kept");
    cluster.start_agent("")?;
    eventually(PATIENCE, || {
        match cluster.run_dir.join("pods").join(uid(&before)).exists() {
            true => Ok(()),
            false => bail!("it does not start: {}", cluster.daemon_logs()),
        }
    })?;
    cluster.up_again()?;
    // An agent that the API server had told nothing counts from the beginning.
    running(0)?;
    fs::remove_file(&path)?;
    gone(cluster, "kube-system", "back-lab")
}
