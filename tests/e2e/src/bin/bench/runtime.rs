//! One container of `/bin/true` from the same root: ours with every layer on, runc with none and with
//! Docker's seccomp profile left out, since that is what runc does by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent_runtime::{ContainerConfig, ContainerState, PodConfig, Resources, Runtime, RuntimeConfig, Streams};
use agent_sandbox::Profile;
use anyhow::{Context, Result, bail, ensure};
use e2e::shell::{binaries, on_path};

use crate::{Line, median_ms};

/// Measures both sides in alternating rounds.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Line>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    make_root(&directory.path().join("image"))?;
    let runc = on_path("runc").context("there is no runc on the PATH; run `cargo xtask setup --dev`")?;
    make_bundle(&runc, directory.path())?;
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    executor.block_on(rounds_of_both(directory.path(), &runc, rounds))
}

async fn rounds_of_both(directory: &Path, runc: &Path, rounds: u32) -> Result<Vec<Line>> {
    let runtime = Runtime::new(RuntimeConfig {
        exe: binaries()?.join("palisade-agent"),
        state_dir: directory.join("state"),
        run_dir: directory.join("run"),
        cgroup_root: format!("palisade-bench-{}", std::process::id()),
    })?;
    let pod = PodConfig {
        uid: format!("bench-{}", std::process::id()),
        namespace: "default".to_owned(),
        name: "bench".to_owned(),
        hostname: "bench".to_owned(),
        id_base: 3_000_000,
        id_count: 65_536,
        shares_processes: false,
    };
    let begun = Instant::now();
    runtime.start_pod(&pod).await?;
    let pod_start = begun.elapsed();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        ours.push(our_round(&runtime, &pod.uid, directory, round).await?);
        theirs.push(runc_round(runc, directory)?);
    }
    runtime.remove_pod(&pod.uid).await?;
    Ok(vec![
        Line::beside(
            "container of /bin/true, create to deleted, hardened",
            "ms",
            median_ms(ours),
            ("runc run, no seccomp", median_ms(theirs)),
            Some(1.0),
        ),
        Line::alone(
            "pod sandbox (namespaces and shim), once per pod",
            "ms",
            median_ms(vec![pod_start]),
            None,
        ),
    ])
}

async fn our_round(runtime: &Runtime, pod: &str, directory: &Path, attempt: u32) -> Result<Duration> {
    let config = ContainerConfig {
        name: "main".to_owned(),
        attempt,
        layers: vec![directory.join("image")],
        argv: vec!["/bin/true".to_owned()],
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        supplemental_gids: vec![],
        mounts: vec![],
        read_only_root: false,
        capabilities: vec![],
        streams: Streams::default(),
        resources: Resources {
            memory_bytes: Some(64 << 20),
            pids: Some(64),
            ..Resources::default()
        },
        profile: Profile::baseline(),
        log_path: directory.join("log"),
        log_max_bytes: 1 << 20,
        log_max_files: 2,
        pid_namespace: agent_runtime::PidNamespace::Own,
    };
    let begun = Instant::now();
    runtime.start_container(pod, &config).await?;
    let mut status = runtime.status(pod).await?;
    loop {
        let container = status.container("main").context("the container is unknown")?;
        if let ContainerState::Exited(exit) = &container.state {
            ensure!(exit.code == 0, "/bin/true ended with {exit:?}");
            break;
        }
        status = runtime.wait_change(pod, status.version).await?;
    }
    runtime.remove_container(pod, "main").await?;
    Ok(begun.elapsed())
}

fn runc_round(runc: &Path, directory: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let status = Command::new(runc)
        .arg("--root")
        .arg(directory.join("runc"))
        .args(["run", "--bundle"])
        .arg(directory)
        .arg(format!("palisade-bench-{}", std::process::id()))
        .stdin(Stdio::null())
        .status()
        .context("cannot start runc")?;
    ensure!(status.success(), "runc run failed: {status}");
    Ok(begun.elapsed())
}

fn make_root(root: &Path) -> Result<()> {
    for path in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is not installed")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/true"))?;
    Ok(())
}

/// runc's own default specification for the same root, with the same limits.
fn make_bundle(runc: &Path, directory: &Path) -> Result<()> {
    let status = Command::new(runc)
        .arg("spec")
        .current_dir(directory)
        .status()
        .context("cannot start runc")?;
    if !status.success() {
        bail!("runc spec failed: {status}");
    }
    let path: PathBuf = directory.join("config.json");
    let mut spec: serde_json::Value =
        serde_json::from_slice(&fs::read(&path)?).context("runc wrote something other than JSON")?;
    spec["root"] = serde_json::json!({ "path": "image", "readonly": false });
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 64 << 20 });
    spec["linux"]["resources"]["pids"] = serde_json::json!({ "limit": 64 });
    spec["linux"]["cgroupsPath"] = format!("/palisade-bench-runc-{}", std::process::id()).into();
    fs::write(&path, spec.to_string()).with_context(|| format!("cannot write {}", path.display()))
}
