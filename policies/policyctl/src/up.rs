//! `policyctl up`: keys, configuration, both daemons, and a Ready node. Does only what is not done yet.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use api::Digest;
use indicatif::{ProgressBar, ProgressStyle};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::{
    cli::{self, Place, UpArgs},
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
        shim: sibling_binary("palisade-shim")?,
    };

    steps.begin("preparing directories");
    directories(&args.place)?;
    let node_name = node_name(args)?;
    // The control plane starts itself again around Trivy, as its own user, who may not pass through the
    // directory that the build is in, such as root's home.
    let control_program = state.join("tools/palisade-control");
    copy_if_changed(&binaries.control, &control_program, 0o755)?;
    // And a build that replaces its own binaries must not change what runs.
    let agent_program = state.join("tools/palisade-agent");
    copy_if_changed(&binaries.shim, &state.join("tools/palisade-shim"), 0o755)?;
    copy_if_changed(&binaries.agent, &agent_program, 0o755)?;

    steps.begin("preparing the scanner");
    let scanner = scanner(args)?;

    let Daemons {
        control,
        signer,
        agent,
    } = daemons(&args.place);
    steps.begin("making keys and configuration");
    let changed = configure(args, &node_name, &scanner)?;
    init(&control_program, args, &node_name)?;
    for (daemon, program, changed) in [
        (&control, &control_program, changed.control),
        (&signer, &control_program, changed.signer),
        (&agent, &agent_program, changed.agent),
    ] {
        // A daemon reads its configuration once; and one whose program is another file now can no longer start itself again, as
        // the control plane does around Trivy.
        let runs_another = daemon.running().is_some_and(|running| !running.is_of(program));
        if changed || runs_another {
            daemon.stop(RESTART_PATIENCE).await?;
        }
    }
    is_free(&control, args.listen, "--listen")?;
    is_free(&agent, args.node_listen, "--node-listen")?;

    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    steps.begin("starting palisade-control");
    let running = control.start(&control_program, &state.join("control/config.toml"))?;
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

    // Nothing waits for it: certificates of nodes are asked for in good time.
    signer.start(&control_program, &state.join("signer.toml"))?;

    steps.begin("starting palisade-agent");
    let running = agent.start(&agent_program, &state.join("agent/config.toml"))?;
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

/// The daemons of a cluster.
pub(crate) struct Daemons {
    pub(crate) control: Daemon,
    pub(crate) signer: Daemon,
    pub(crate) agent: Daemon,
}

/// Those of the cluster at this place.
pub(crate) fn daemons(place: &Place) -> Daemons {
    let daemon = |name| Daemon::new(name, &place.run_dir, &place.state_dir);
    Daemons {
        control: daemon("palisade-control"),
        signer: daemon("palisade-signer").under("signer"),
        agent: daemon("palisade-agent"),
    }
}

struct Binaries {
    control: PathBuf,
    agent: PathBuf,
    shim: PathBuf,
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
    cli::node_name(&name.to_string_lossy().to_ascii_lowercase())
        .map_err(|problem| anyhow!("the host name is {name:?}: {problem}; give another with --node-name"))
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
        write(&args.place.state_dir, &cache.join("db").join(file), &bytes)?;
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
    service_cidr: Ipv4Net,
    gate: GateConfig<'a>,
}

#[derive(Serialize)]
struct GateConfig<'a> {
    trivy: &'a Path,
    trivy_sha256: Digest,
    trivy_cache: &'a Path,
    timeout_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_config_dir: Option<PathBuf>,
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
    pod_cidr: Ipv4Net,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_cidr6: Option<Ipv6Net>,
    ipv6_required: bool,
    dns_upstreams: &'a [std::net::SocketAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_config_dir: Option<PathBuf>,
    // A table, so it is the last of the keys.
    eviction: EvictionConfig,
}

/// From how little on the node is under pressure; the rest is the agent's default.
#[derive(Serialize)]
struct EvictionConfig {
    disk_available_percent: u8,
}

/// User and group of the control plane: a number without an entry in any user table, so that nothing else
/// runs as it.
const CONTROL_UID: u32 = 64100;
/// User and group of the signer, who shares nothing with the control plane.
const SIGNER_UID: u32 = 64101;
const SCAN_TIMEOUT_SECONDS: u64 = 120;
/// Addresses of a node's pods when nobody names any.
const DEFAULT_CIDR: &str = "10.244.0.0/24";
const DEFAULT_CIDR6: &str = "fd00:10:244::/64";
/// How long a daemon may take to end before it starts with another configuration.
const RESTART_PATIENCE: Duration = Duration::from_secs(15);

/// Which daemons have another configuration than before.
struct Changed {
    control: bool,
    signer: bool,
    agent: bool,
}

fn configure(args: &UpArgs, node_name: &str, scanner: &Scanner) -> Result<Changed> {
    let state = &args.place.state_dir;
    let cidrs = node_cidrs(&args.node_cidr)?;
    let registry_config_dir = match &args.registry_config {
        Some(dir) => Some(
            fs::canonicalize(dir)
                .with_context(|| format!("cannot find the directory --registry-config {}", dir.display()))?,
        ),
        None => None,
    };
    let control = ControlConfig {
        listen: args.listen,
        control_dir: state.join("control"),
        layout_dir: state.join("layouts"),
        uid: CONTROL_UID,
        service_cidr: service_cidr(args.service_cidr, &cidrs)?,
        gate: GateConfig {
            trivy: &scanner.trivy,
            trivy_sha256: scanner.sha256,
            trivy_cache: &scanner.cache,
            timeout_seconds: SCAN_TIMEOUT_SECONDS,
            registry_config_dir: registry_config_dir.clone(),
        },
    };
    let agent = AgentConfig {
        node_name,
        api_server: format!("https://{}", args.listen),
        listen: args.node_listen,
        agent_dir: state.join("agent"),
        run_dir: &args.place.run_dir,
        layout_dir: state.join("layouts"),
        pod_cidr: cidrs.v4,
        pod_cidr6: cidrs.v6,
        ipv6_required: cidrs.v6_required,
        dns_upstreams: &args.dns_upstream,
        registry_config_dir,
        eviction: EvictionConfig {
            disk_available_percent: args.disk_available_percent,
        },
    };
    fs::create_dir_all(state.join("control")).context("cannot create the control directory")?;
    let signer = SignerConfig {
        api_server: format!("https://{}", args.listen),
        state_dir: state,
        uid: SIGNER_UID,
    };
    Ok(Changed {
        signer: write_toml(state, &state.join("signer.toml"), &signer)?,
        control: write_toml(state, &state.join("control/config.toml"), &control)?,
        agent: write_toml(state, &state.join("agent/config.toml"), &agent)?,
    })
}

/// What the process with the authority's key is told.
#[derive(Serialize)]
struct SignerConfig<'a> {
    api_server: String,
    state_dir: &'a Path,
    uid: u32,
}

/// Addresses of the node's pods.
#[derive(Debug, PartialEq)]
struct NodeCidrs {
    v4: Ipv4Net,
    v6: Option<Ipv6Net>,
    /// Who names an IPv6 CIDR wants IPv6; the default does without where the host has none.
    v6_required: bool,
}

/// What the control plane takes, and apart from the addresses of pods: which of both an address is must be clear.
fn service_cidr(given: Ipv4Net, pods: &NodeCidrs) -> Result<Ipv4Net> {
    if !(12..=28).contains(&given.prefix_len()) || given.trunc() != given {
        bail!("--service-cidr {given} must be a network of /12 to /28, such as 10.96.0.0/16");
    }
    if given.contains(&pods.v4) || pods.v4.contains(&given) {
        bail!(
            "--service-cidr {given} and --node-cidr {} have addresses in common",
            pods.v4
        );
    }
    Ok(given)
}

/// One CIDR of each family at most, and IPv4 always: without any, the defaults.
fn node_cidrs(given: &[IpNet]) -> Result<NodeCidrs> {
    if given.is_empty() {
        return Ok(NodeCidrs {
            v4: DEFAULT_CIDR.parse().context("the default IPv4 CIDR")?,
            v6: Some(DEFAULT_CIDR6.parse().context("the default IPv6 CIDR")?),
            v6_required: false,
        });
    }
    let (mut v4, mut v6) = (None, None);
    for cidr in given {
        let before = match cidr {
            IpNet::V4(cidr) => v4.replace(*cidr).map(IpNet::V4),
            IpNet::V6(cidr) => v6.replace(*cidr).map(IpNet::V6),
        };
        if let Some(before) = before {
            bail!(
                "--node-cidr {before} and {cidr} are of one family: give one IPv4 and one IPv6 CIDR at most"
            );
        }
    }
    let Some(v4) = v4 else {
        bail!(
            "--node-cidr has no IPv4 CIDR: pods always have an IPv4 address; add one, such as {DEFAULT_CIDR}"
        );
    };
    if let Some(v6) = v6
        && 128 - v6.prefix_len() < 32 - v4.prefix_len()
    {
        bail!("--node-cidr {v6} has fewer addresses than {v4}: use a /64");
    }
    Ok(NodeCidrs {
        v4,
        v6,
        v6_required: v6.is_some(),
    })
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

/// Says early that another program has the address.
fn is_free(daemon: &Daemon, address: std::net::SocketAddr, option: &str) -> Result<()> {
    if daemon.running().is_none() {
        std::net::TcpListener::bind(address)
            .with_context(|| format!("cannot listen on {address}; choose another address with {option}"))?;
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

/// Returns whether the file was another before.
fn write_toml(state: &Path, path: &Path, value: &impl Serialize) -> Result<bool> {
    let text = toml::to_string(value).context("cannot write TOML")?;
    let same = fs::read_to_string(path).is_ok_and(|before| before == text);
    write(state, path, text.as_bytes())?;
    Ok(!same)
}

/// Writes a file that all may read, by way of the state directory, which is root's alone: `control/` belongs to
/// the control user, who could have planted a link there for root to write through.
fn write(state: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = state.join(".partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o644))
        .with_context(|| format!("cannot set the mode of {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot create {}", path.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_pods_have_addresses_of_their_own() {
        let pods = node_cidrs(&["10.96.4.0/24".parse().unwrap()]).unwrap();
        let judge = |cidr: &str| service_cidr(cidr.parse().unwrap(), &pods).is_ok();
        assert!(judge("10.97.0.0/16") && judge("10.96.5.0/24"));
        for bad in [
            "10.96.0.0/16",
            "10.96.4.0/24",
            "10.96.4.128/25",
            "10.0.0.0/8",
            "10.97.0.0/29",
            "10.97.0.1/16",
        ] {
            assert!(!judge(bad), "{bad}");
        }
    }

    #[test]
    fn a_cidr_of_each_family() {
        let cidrs = |texts: &[&str]| {
            let given: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
            node_cidrs(&given)
        };
        let default = cidrs(&[]).unwrap();
        assert!(default.v6.is_some() && !default.v6_required);
        assert_eq!(cidrs(&["10.1.0.0/24"]).unwrap().v6, None, "IPv4 only, by choice");
        let both = cidrs(&["fd00:1::/64", "10.1.0.0/24"]).unwrap();
        assert!(both.v6_required);
        assert_eq!(both.v4.to_string(), "10.1.0.0/24");
        for (given, complaint) in [
            (&["10.1.0.0/24", "10.2.0.0/24"][..], "of one family"),
            (&["fd00:1::/64"], "has no IPv4 CIDR"),
            (&["10.1.0.0/16", "fd00:1::/120"], "fewer addresses"),
        ] {
            let error = cidrs(given).unwrap_err().to_string();
            assert!(error.contains(complaint), "{given:?}: {error}");
        }
    }

    #[test]
    fn root_writes_through_no_planted_link() {
        let state = tempfile::tempdir().unwrap();
        let victim = state.path().join("victim");
        let config = state.path().join("config.toml");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &config).unwrap();
        write(state.path(), &config, b"new").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(&config).unwrap().is_file());
    }
}
