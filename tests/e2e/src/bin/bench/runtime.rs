//! One container of `/bin/true` from the same root: ours with every layer on; runc as it is by itself, with no system
//! call filter, and with the default filter of containers/common, which is Docker's with more answers; crun likewise.
//!
//! crun refuses a machine that has control groups of both versions. There it is shown version 2 alone, in a mount
//! namespace that is made before its time begins. The controllers are version 1's then, so it sets no limits and denies
//! no devices; ours does both.
//!
//! What a runtime keeps of its containers is in memory on all sides, as below `/run` of an ordinary machine; what containers
//! write is on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use agent_runtime::{
    ContainerConfig, ContainerState, PodConfig, PodResources, Resources, Runtime, RuntimeConfig, Streams,
};
use agent_sandbox::Profile;
use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::shell::{binaries, on_path};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};

use crate::{Line, Report, calls, cold, show};

/// Where Debian's package `golang-github-containers-common` keeps the default filter.
const DEFAULT_FILTER: &str = "/usr/share/containers/seccomp.json";

/// Another runtime with a bundle.
struct Peer {
    name: String,
    program: PathBuf,
    bundle: PathBuf,
    sees: Sees,
}

/// Which control groups a runtime finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// Those of the machine.
    All,
    /// The version 2 hierarchy where the machine has both, and so no limits.
    Version2,
}

/// A directory in memory, for as long as this lives.
struct Memory(PathBuf);

impl Memory {
    fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let (kind, options) = (Some("tmpfs"), Some("size=64m,mode=700"));
        mount(kind, &path, kind, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)
            .with_context(|| format!("cannot mount memory on {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _may_be_unmounted = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// How long each round took, in milliseconds.
#[derive(Default)]
struct Times {
    /// A container in a pod that is there.
    container: Vec<f64>,
    /// A pod with a container.
    whole: Vec<f64>,
    peers: Vec<Vec<f64>>,
}

/// Measures all sides in alternating rounds.
pub(crate) fn measure(rounds: u32) -> Result<Report> {
    let mut lines = containers(rounds)?;
    lines.extend(calls::measure()?);
    Ok(Report {
        name: "runtime",
        how: format!(
            "medians of {rounds} rounds, cold start {}, calls of {} programs",
            cold::rounds(rounds),
            calls::CHILDREN
        ),
        lines,
    })
}

fn containers(rounds: u32) -> Result<Vec<Line>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let directory = directory.path();
    let _memory = Memory::mount(directory.join("run"))?;
    make_root(&directory.join("image"))?;
    let mut all = peers("runc", Sees::All, directory)?;
    all.extend(crun(directory)?);
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    executor.block_on(async {
        let runtime = Runtime::new(RuntimeConfig {
            shim: binaries()?.join("palisade-shim"),
            state_dir: directory.join("state"),
            run_dir: directory.join("run/palisade"),
            cgroup_root: format!("palisade-bench-{}", std::process::id()),
        })?;
        let mut lines =
            vec![cold::measure(&runtime, directory, rounds, |round| pod(rounds + 1 + round)).await?];
        let times = rounds_of_all(&runtime, directory, &all, rounds).await?;
        lines.extend(beside(&times, &all));
        Ok(lines)
    })
}

/// crun as it runs on this machine; nothing if it does not.
fn crun(directory: &Path) -> Result<Vec<Peer>> {
    let mut refusals = Vec::new();
    for sees in [Sees::All, Sees::Version2] {
        let peers = peers("crun", sees, directory)?;
        match peers.iter().find_map(|peer| peer_round(peer, directory).err()) {
            None => return Ok(peers),
            Some(error) => refusals.push(format!("{error:#}")),
        }
    }
    show(&format!(
        "crun is left out, it does not run here: {}",
        refusals.join("; ")
    ));
    Ok(Vec::new())
}

fn beside(times: &Times, peers: &[Peer]) -> Vec<Line> {
    let ours = [
        (
            "pod of /bin/true, sandbox made to all deleted, hardened",
            &times.whole,
        ),
        (
            "container of /bin/true in a pod, created to deleted",
            &times.container,
        ),
    ];
    let mut lines = Vec::new();
    for (metric, ours) in ours {
        for (peer, theirs) in peers.iter().zip(&times.peers) {
            // The whole pod is what a runtime's `run` does: namespaces, program, and all removed.
            let most = match peer.name.as_str() {
                name if name.contains("no filter") => None,
                name if name.starts_with("crun") => Some(1.0),
                _ => Some(0.6),
            };
            lines.push(Line::at_most(metric, "ms", ours, (&peer.name, theirs), most));
        }
    }
    lines
}

fn pod(number: u32) -> PodConfig {
    PodConfig {
        uid: format!("bench-{}-{number}", std::process::id()),
        namespace: "default".to_owned(),
        name: "bench".to_owned(),
        hostname: "bench".to_owned(),
        id_base: 3_000_000,
        id_count: 65_536,
        shares_processes: false,
        pids: None,
        resources: PodResources::default(),
    }
}

/// What every side's container may have, where there are limits.
fn limits() -> Resources {
    Resources {
        memory_bytes: Some(64 << 20),
        pids: Some(64),
        ..Resources::default()
    }
}

async fn rounds_of_all(runtime: &Runtime, directory: &Path, peers: &[Peer], rounds: u32) -> Result<Times> {
    let ms = |begun: Instant| begun.elapsed().as_secs_f64() * 1000.0;
    let layers = || vec![directory.join("image")];
    let standing = pod(0);
    runtime.start_pod(&standing).await?;
    let mut times = Times {
        peers: vec![Vec::new(); peers.len()],
        ..Times::default()
    };
    for round in 0..rounds {
        let begun = Instant::now();
        run_to_end(runtime, &standing.uid, layers(), directory, round).await?;
        times.container.push(ms(begun));
        let begun = Instant::now();
        let pod = pod(round + 1);
        runtime.start_pod(&pod).await?;
        run_to_end(runtime, &pod.uid, layers(), directory, 0).await?;
        runtime.remove_pod(&pod.uid).await?;
        times.whole.push(ms(begun));
        for (peer, took) in peers.iter().zip(&mut times.peers) {
            took.push(peer_round(peer, directory)?.as_secs_f64() * 1000.0);
        }
    }
    runtime.remove_pod(&standing.uid).await?;
    Ok(times)
}

/// Runs `/bin/true` of `layers` in a pod and removes its container.
pub(crate) async fn run_to_end(
    runtime: &Runtime,
    pod: &str,
    layers: Vec<PathBuf>,
    directory: &Path,
    attempt: u32,
) -> Result<()> {
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
        image_volumes: Vec::new(),
        capabilities: vec![],
        streams: Streams::default(),
        resources: limits(),
        oom_score_adj: 0,
        stop_signal: 15,
        profile: Profile::baseline(),
        log_path: directory.join("log"),
        log_max_bytes: 1 << 20,
        log_max_files: 2,
        pid_namespace: agent_runtime::PidNamespace::Own,
    };
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
    Ok(())
}

/// A runtime with the default filter, and with none.
fn peers(name: &str, sees: Sees, directory: &Path) -> Result<Vec<Peer>> {
    let program = |name| {
        on_path(name)
            .with_context(|| format!("there is no {name} on the PATH; run `cargo xtask setup --dev`"))
    };
    let filter =
        fs::read_to_string(DEFAULT_FILTER).with_context(|| format!("cannot read {DEFAULT_FILTER}"))?;
    let filter = serde_json::from_str(&filter).context("the default filter is not JSON")?;
    let (runc, image) = (program("runc")?, directory.join("image"));
    let (limits, condition) = match sees {
        Sees::All => (limits(), ""),
        Sees::Version2 => (Resources::default(), ", no limits"),
    };
    let peer = |with: &str, filter| {
        let bundle_dir = directory.join(format!("{name} {with}{condition}"));
        bundle(&runc, &bundle_dir, &image, filter, &limits)?;
        anyhow::Ok(Peer {
            name: format!("{name} run, {with}{condition}"),
            program: program(name)?,
            bundle: bundle_dir,
            sees,
        })
    };
    Ok(vec![
        peer("default filter", Some(&filter))?,
        peer("no filter", None)?,
    ])
}

/// One container of a peer, from the start of its program to its end.
fn peer_round(peer: &Peer, directory: &Path) -> Result<Duration> {
    match peer.sees {
        Sees::All => timed(peer, directory),
        // A mount namespace is a thread's own, and its programs' after it.
        Sees::Version2 => thread::scope(|scope| {
            let round = scope.spawn(|| see_version_2().and_then(|()| timed(peer, directory)));
            round.join().map_err(|_panic| anyhow!("the thread panicked"))?
        }),
    }
}

fn see_version_2() -> Result<()> {
    const GROUPS: &str = "/sys/fs/cgroup";
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("cannot detach mounts")?;
    umount2(GROUPS, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {GROUPS}"))?;
    mount(none, GROUPS, Some("cgroup2"), MsFlags::empty(), none)
        .with_context(|| format!("cannot mount version 2 on {GROUPS}"))
}

fn timed(peer: &Peer, directory: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let ran = Command::new(&peer.program)
        .arg("--root")
        .arg(directory.join("run/peers"))
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
fn bundle(runc: &Path, bundle: &Path, root: &Path, filter: Option<&Value>, limits: &Resources) -> Result<()> {
    fs::create_dir_all(bundle)?;
    let status = Command::new(runc)
        .arg("spec")
        .current_dir(bundle)
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
    match (limits.memory_bytes, limits.pids) {
        (None, None) => spec["linux"]["resources"] = json!({}),
        (memory, pids) => {
            spec["linux"]["resources"]["memory"] = json!({ "limit": memory });
            spec["linux"]["resources"]["pids"] = json!({ "limit": pids });
        }
    }
    spec["linux"]["cgroupsPath"] = format!("/palisade-bench-peer-{}", std::process::id()).into();
    if let Some(filter) = filter {
        spec["linux"]["seccomp"] = resolved(filter, &spec["process"]["capabilities"]["bounding"]);
    }
    fs::write(&path, spec.to_string()).with_context(|| format!("cannot write {}", path.display()))
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
