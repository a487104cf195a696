//! One container of `/bin/true` from the same root: ours with every layer on; runc as it is by itself, with no system
//! call filter, and with the default filter of containers/common, which is Docker's with more answers; crun with that
//! filter, where crun runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent_runtime::{
    ContainerConfig, ContainerState, PodConfig, PodResources, Resources, Runtime, RuntimeConfig, Streams,
};
use agent_sandbox::Profile;
use anyhow::{Context, Result, bail, ensure};
use e2e::shell::{binaries, on_path};
use serde_json::{Value, json};

use crate::{Line, cold, show};

/// Where Debian's package `golang-github-containers-common` keeps the default filter.
const DEFAULT_FILTER: &str = "/usr/share/containers/seccomp.json";

/// Another runtime with a bundle.
struct Peer {
    name: &'static str,
    program: PathBuf,
    bundle: PathBuf,
    /// How long each round took, in milliseconds.
    times: Vec<f64>,
}

/// Measures all sides in alternating rounds.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Line>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let root = directory.path().join("image");
    make_root(&root)?;
    let program = |name| {
        on_path(name)
            .with_context(|| format!("there is no {name} on the PATH; run `cargo xtask setup --dev`"))
    };
    let runc = program("runc")?;
    let plain = bundle(&runc, directory.path(), &root, None)?;
    let filter =
        fs::read_to_string(DEFAULT_FILTER).with_context(|| format!("cannot read {DEFAULT_FILTER}"))?;
    let filter = serde_json::from_str(&filter).context("the default filter is not JSON")?;
    let filtered = bundle(&runc, directory.path(), &root, Some(&filter))?;
    let peer = |name, program: &Path, bundle: &Path| Peer {
        name,
        program: program.to_owned(),
        bundle: bundle.to_owned(),
        times: Vec::new(),
    };
    let mut peers = vec![
        peer("runc run, default filter", &runc, &filtered),
        peer("runc run, no filter", &runc, &plain),
    ];
    let crun = peer("crun run, default filter", &program("crun")?, &filtered);
    match peer_round(&crun, directory.path()) {
        Ok(_) => peers.push(crun),
        Err(error) => show(&format!("crun is left out, it does not run here: {error:#}")),
    }
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    executor.block_on(rounds_of_all(directory.path(), peers, rounds))
}

async fn rounds_of_all(directory: &Path, mut peers: Vec<Peer>, rounds: u32) -> Result<Vec<Line>> {
    let runtime = Runtime::new(RuntimeConfig {
        exe: binaries()?.join("palisade-agent"),
        state_dir: directory.join("state"),
        run_dir: directory.join("run"),
        cgroup_root: format!("palisade-bench-{}", std::process::id()),
    })?;
    let pod = |number| PodConfig {
        uid: format!("bench-{}-{number}", std::process::id()),
        namespace: "default".to_owned(),
        name: "bench".to_owned(),
        hostname: "bench".to_owned(),
        id_base: 3_000_000,
        id_count: 65_536,
        shares_processes: false,
        pids: None,
        resources: PodResources::default(),
    };
    let ms = |begun: Instant| begun.elapsed().as_secs_f64() * 1000.0;
    let standing = pod(0);
    runtime.start_pod(&standing).await?;
    let (mut container, mut whole) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        container.push(
            our_round(&runtime, &standing.uid, directory, round)
                .await?
                .as_secs_f64()
                * 1000.0,
        );
        let begun = Instant::now();
        let pod = pod(round + 1);
        runtime.start_pod(&pod).await?;
        our_round(&runtime, &pod.uid, directory, 0).await?;
        runtime.remove_pod(&pod.uid).await?;
        whole.push(ms(begun));
        for peer in &mut peers {
            let took = peer_round(peer, directory)?;
            peer.times.push(took.as_secs_f64() * 1000.0);
        }
    }
    runtime.remove_pod(&standing.uid).await?;
    let mut lines = vec![cold::measure(&runtime, directory, rounds, |round| pod(rounds + 1 + round)).await?];
    for (metric, ours) in [
        ("pod of /bin/true, sandbox made to all deleted, hardened", &whole),
        ("container of /bin/true in a pod, created to deleted", &container),
    ] {
        for peer in &peers {
            // The whole pod is what a runtime's `run` does: namespaces, program, and all removed.
            let most = match peer.name {
                name if name.contains("no filter") => None,
                name if name.starts_with("crun") => Some(1.0),
                _ => Some(0.6),
            };
            lines.push(Line::at_most(metric, "ms", ours, (peer.name, &peer.times), most));
        }
    }
    Ok(lines)
}

async fn our_round(runtime: &Runtime, pod: &str, directory: &Path, attempt: u32) -> Result<Duration> {
    run_to_end(runtime, pod, vec![directory.join("image")], directory, attempt).await
}

/// Runs `/bin/true` of `layers` in a pod and removes its container; returns how long that took.
pub(crate) async fn run_to_end(
    runtime: &Runtime,
    pod: &str,
    layers: Vec<PathBuf>,
    directory: &Path,
    attempt: u32,
) -> Result<Duration> {
    let config = ContainerConfig {
        name: "main".to_owned(),
        attempt,
        layers,
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
        oom_score_adj: 0,
        stop_signal: 15,
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

fn peer_round(peer: &Peer, directory: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let ran = Command::new(&peer.program)
        .arg("--root")
        .arg(directory.join("peers"))
        .args(["run", "--bundle"])
        .arg(&peer.bundle)
        .arg(format!("palisade-bench-{}", std::process::id()))
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", peer.program.display()))?;
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(
        ran.status.success(),
        "{}: {}: {}",
        peer.name,
        ran.status,
        said.trim()
    );
    Ok(took)
}

fn make_root(root: &Path) -> Result<()> {
    for path in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is not installed")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/true"))?;
    Ok(())
}

/// runc's own default specification for the same root, with the same limits, and with a filter.
fn bundle(runc: &Path, directory: &Path, root: &Path, filter: Option<&Value>) -> Result<PathBuf> {
    let bundle = directory.join(if filter.is_some() { "filtered" } else { "plain" });
    fs::create_dir_all(&bundle)?;
    let status = Command::new(runc)
        .arg("spec")
        .current_dir(&bundle)
        .status()
        .context("cannot start runc")?;
    if !status.success() {
        bail!("runc spec failed: {status}");
    }
    let path = bundle.join("config.json");
    let mut spec: Value =
        serde_json::from_slice(&fs::read(&path)?).context("runc wrote something other than JSON")?;
    spec["root"] = json!({ "path": root, "readonly": false });
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(["/bin/true"]);
    spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    spec["linux"]["resources"]["pids"] = json!({ "limit": 64 });
    spec["linux"]["cgroupsPath"] = format!("/palisade-bench-peer-{}", std::process::id()).into();
    if let Some(filter) = filter {
        spec["linux"]["seccomp"] = resolved(filter, &spec["process"]["capabilities"]["bounding"]);
    }
    fs::write(&path, spec.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bundle)
}

/// The filter as an engine would hand it to a runtime: without rules that are for other architectures or for
/// capabilities that the container has not.
fn resolved(filter: &Value, capabilities: &Value) -> Value {
    let listed = |list: &Value, item: &Value| list.as_array().is_some_and(|list| list.contains(item));
    let any = |list: &Value, test: &dyn Fn(&Value) -> bool| {
        list.as_array().is_some_and(|list| list.iter().any(test))
    };
    let has = |item: &Value| listed(capabilities, item);
    let applies = |rule: &&Value| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        let without = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
        (without(&includes["caps"]) || any(&includes["caps"], &has))
            && (without(&includes["arches"]) || listed(&includes["arches"], &json!("amd64")))
            && !any(&excludes["caps"], &has)
            && !listed(&excludes["arches"], &json!("amd64"))
    };
    let rules = filter["syscalls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(applies);
    let rules = rules.map(|rule| {
        let mut kept = json!({ "names": rule["names"], "action": rule["action"] });
        for optional in ["args", "errnoRet"] {
            if !rule[optional].is_null() {
                kept[optional] = rule[optional].clone();
            }
        }
        kept
    });
    json!({
        "defaultAction": filter["defaultAction"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules.collect::<Vec<_>>(),
    })
}
