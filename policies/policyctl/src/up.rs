//! `policyctl up`: keys, configuration, both daemons, and a Ready node. Does only what is not done yet.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use api::Digest;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    cli::{Place, UpArgs},
    cluster,
    daemons::{Daemon, Running, sibling_binary},
    output,
};

/// Starts the cluster and waits until its node is Ready.
pub(crate) async fn run(args: &UpArgs) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("starting a cluster needs root: containers, eBPF and network links do");
    }
    let steps = Steps::new();
    let state = &args.place.state_dir;
    let binaries = Binaries {
        control: sibling_binary("palisade-control")?,
        agent: sibling_binary("palisade-agent")?,
    };

    steps.begin("preparing directories");
    directories(&args.place)?;
    let node_name = node_name(args)?;

    steps.begin("preparing the scanner");
    let scanner = scanner(args)?;

    steps.begin("making keys and configuration");
    configure(args, &node_name, &scanner)?;
    init(&binaries.control, args, &node_name)?;

    let (control, agent) = daemons(&args.place);
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    steps.begin("starting palisade-control");
    let running = control.start(&binaries.control, &state.join("control/config.toml"))?;
    let kubeconfig = cluster::admin_kubeconfig(state);
    let client = cluster::connect_with(&kubeconfig).await?;
    wait(
        &control,
        running,
        deadline,
        "the API server to answer",
        || async { cluster::get(&client, "/api/v1/namespaces/default").await.is_ok() },
    )
    .await?;

    steps.begin("starting palisade-agent");
    let running = agent.start(&binaries.agent, &state.join("agent/config.toml"))?;
    wait(&agent, running, deadline, "the node to be Ready", || {
        node_is_ready(&client, &node_name)
    })
    .await?;
    steps.end();

    output::line(&format!(
        "node {node_name} is Ready; API server on https://{}",
        args.listen
    ))?;
    output::line(&format!("\n  export KUBECONFIG={}", kubeconfig.display()))?;
    output::line("  kubectl get nodes            # or: policyctl get nodes")?;
    output::line("  policyctl flows -f           # what the kernel decides, and why")?;
    output::line("  policyctl down               # stop, and leave nothing behind")?;
    scanner.warn();
    Ok(())
}

/// Both daemons of the cluster at this place.
pub(crate) fn daemons(place: &Place) -> (Daemon, Daemon) {
    let daemon = |name| Daemon::new(name, &place.run_dir, &place.state_dir);
    (daemon("palisade-control"), daemon("palisade-agent"))
}

struct Binaries {
    control: PathBuf,
    agent: PathBuf,
}

/// The scanner and its database, as the control plane will use them.
struct Scanner {
    trivy: PathBuf,
    sha256: Digest,
    cache: PathBuf,
    lab_database: bool,
}

impl Scanner {
    fn warn(&self) {
        if self.lab_database {
            output::note(
                "\nnote: no vulnerability database was found, so the built-in laboratory one is used. It knows a few\n      \
                 invented CVEs and no real ones. Provide a real one with --trivy-db DIR, then run this again.",
            );
        }
    }
}

fn directories(place: &Place) -> Result<()> {
    let state = &place.state_dir;
    // The control user must pass through, and read the scanner; it owns `control/` only.
    for (path, mode) in [
        (state.clone(), 0o755),
        (state.join("agent"), 0o700),
        (state.join("layouts"), 0o755),
        (state.join("logs"), 0o700),
        (state.join("tools"), 0o755),
        (state.join("trivy"), 0o755),
        (state.join("trivy/db"), 0o755),
        (place.run_dir.clone(), 0o700),
    ] {
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    }
    Ok(())
}

fn node_name(args: &UpArgs) -> Result<String> {
    if let Some(name) = &args.node_name {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname().context("cannot read the host name; give one with --node-name")?;
    Ok(name.to_string_lossy().to_ascii_lowercase())
}

/// Copies the scanner and its database to where the control user may read them, and pins the scanner's
/// hash: from now on a changed binary is not run.
fn scanner(args: &UpArgs) -> Result<Scanner> {
    let state = &args.place.state_dir;
    let source = match &args.trivy {
        Some(path) => path.clone(),
        None => on_path("trivy").context(
            "no trivy on the PATH: install it, name one with --trivy FILE, or use `cargo xtask up`, which provides one",
        )?,
    };
    let trivy = state.join("tools/trivy");
    copy_if_changed(&source, &trivy, 0o755)?;
    let bytes = fs::read(&trivy).with_context(|| format!("cannot read {}", trivy.display()))?;
    let cache = state.join("trivy");
    let lab_database = database(args, &cache)?;
    Ok(Scanner {
        sha256: Digest::of(&bytes),
        trivy,
        cache,
        lab_database,
    })
}

/// Provides `db/trivy.db` and `db/metadata.json`; returns whether they are the laboratory ones.
fn database(args: &UpArgs, cache: &Path) -> Result<bool> {
    let own_cache = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/trivy/db"));
    let source = match &args.trivy_db {
        Some(directory) => Some(directory.clone()),
        None => own_cache.filter(|directory| directory.join("trivy.db").is_file()),
    };
    let lab_marker = cache.join("db/LABORATORY");
    if let Some(source) = source {
        for file in ["trivy.db", "metadata.json"] {
            copy_if_changed(&source.join(file), &cache.join("db").join(file), 0o644)?;
        }
        if lab_marker.exists() {
            fs::remove_file(&lab_marker)
                .with_context(|| format!("cannot remove {}", lab_marker.display()))?;
        }
        return Ok(false);
    }
    if cache.join("db/trivy.db").is_file() && !lab_marker.exists() {
        return Ok(false);
    }
    if !args.lab_db_if_none {
        bail!(
            "no vulnerability database: run `trivy image --download-db-only`, or name a directory with --trivy-db DIR, \
             or accept the built-in laboratory one with --lab-db-if-none"
        );
    }
    let lab = scanner_labdb::lab();
    let metadata = lab.metadata(jiff::Timestamp::now());
    for (file, bytes) in [
        ("trivy.db", lab.database()),
        ("metadata.json", metadata),
        ("LABORATORY", Vec::new()),
    ] {
        write(&cache.join("db").join(file), &bytes, 0o644)?;
    }
    Ok(true)
}

/// Keys of `palisade-control`'s configuration file.
#[derive(Serialize)]
struct ControlConfig<'a> {
    listen: std::net::SocketAddr,
    control_dir: PathBuf,
    layout_dir: PathBuf,
    uid: u32,
    gate: GateConfig<'a>,
}

#[derive(Serialize)]
struct GateConfig<'a> {
    trivy: &'a Path,
    trivy_sha256: Digest,
    trivy_cache: &'a Path,
    timeout_seconds: u64,
}

/// Keys of `palisade-agent`'s configuration file.
#[derive(Serialize)]
struct AgentConfig<'a> {
    node_name: &'a str,
    api_server: String,
    listen: std::net::SocketAddr,
    agent_dir: PathBuf,
    run_dir: &'a Path,
    layout_dir: PathBuf,
    pod_cidr: &'a str,
}

/// User and group of the control plane: a number without an entry in any user table, so that nothing else
/// runs as it.
const CONTROL_UID: u32 = 64100;
const SCAN_TIMEOUT_SECONDS: u64 = 120;

fn configure(args: &UpArgs, node_name: &str, scanner: &Scanner) -> Result<()> {
    let state = &args.place.state_dir;
    let control = ControlConfig {
        listen: args.listen,
        control_dir: state.join("control"),
        layout_dir: state.join("layouts"),
        uid: CONTROL_UID,
        gate: GateConfig {
            trivy: &scanner.trivy,
            trivy_sha256: scanner.sha256,
            trivy_cache: &scanner.cache,
            timeout_seconds: SCAN_TIMEOUT_SECONDS,
        },
    };
    let agent = AgentConfig {
        node_name,
        api_server: format!("https://{}", args.listen),
        listen: args.node_listen,
        agent_dir: state.join("agent"),
        run_dir: &args.place.run_dir,
        layout_dir: state.join("layouts"),
        pod_cidr: &args.node_cidr,
    };
    fs::create_dir_all(state.join("control")).context("cannot create the control directory")?;
    write_toml(&state.join("control/config.toml"), &control)?;
    write_toml(&state.join("agent/config.toml"), &agent)
}

/// Makes the keys and hands `control/` to its user.
fn init(control: &Path, args: &UpArgs, node_name: &str) -> Result<()> {
    let state = &args.place.state_dir;
    let output = Command::new(control)
        .arg("init")
        .arg("--state-dir")
        .arg(state)
        .arg("--node-name")
        .arg(node_name)
        .arg("--listen")
        .arg(args.listen.to_string())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", control.display()))?;
    if !output.status.success() {
        bail!(
            "palisade-control init failed: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}

async fn wait<F: Future<Output = bool>>(
    daemon: &Daemon,
    running: Running,
    deadline: Instant,
    what: &str,
    mut ready: impl FnMut() -> F,
) -> Result<()> {
    let mut pause = Duration::from_millis(20);
    while !ready().await {
        if !running.alive() {
            bail!("it ended while waiting for {what}; {}", daemon.log_tail());
        }
        if Instant::now() >= deadline {
            bail!("gave up waiting for {what}; {}", daemon.log_tail());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
    Ok(())
}

async fn node_is_ready(client: &kube::Client, name: &str) -> bool {
    let Ok(node) = cluster::get(client, &format!("/api/v1/nodes/{name}")).await else {
        return false;
    };
    let conditions = node["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A program on the PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Copies unless the target has the same size and is not older; the copy appears whole or not at all.
fn copy_if_changed(source: &Path, target: &Path, mode: u32) -> Result<()> {
    let from = fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
    if let Ok(to) = fs::metadata(target)
        && to.len() == from.len()
        && to.modified().ok() >= from.modified().ok()
    {
        return Ok(());
    }
    let partial = target.with_extension("partial");
    fs::copy(source, &partial)
        .with_context(|| format!("cannot copy {} to {}", source.display(), partial.display()))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", partial.display()))?;
    fs::rename(&partial, target).with_context(|| format!("cannot create {}", target.display()))
}

fn write_toml(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = toml::to_string(value).context("cannot write TOML")?;
    write(path, text.as_bytes(), 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Progress on standard error: a spinner on a terminal, silence elsewhere.
struct Steps(ProgressBar);

impl Steps {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn begin(&self, what: &'static str) {
        self.0.set_message(what);
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}
