//! Cold start: an image of 100 MB that is only in a registry on this machine, until a program of it has run. Ours
//! pulls, verifies and unpacks with the node's image store and runs under every layer; the peer is `ctr image pull`
//! and `ctr run` with a containerd of its own. Between rounds both forget everything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent_images::{ImageStore, Keyring, Limits, Progress, StoreConfig};
use agent_runtime::{PodConfig, Runtime};
use anyhow::{Context, Result, bail, ensure};
use api::ImageRef;
use e2e::shell::on_path;
use testkit::{
    image::{Image, Layer, Packing},
    lab::{self, LabOs},
    registry::Registry,
};

use crate::{Line, runtime::run_to_end};

/// Bytes of the image as it is transferred, about.
const IMAGE_BYTES: usize = 100 << 20;
const LAYERS: usize = 4;
/// A round takes seconds; more of them say nothing new.
const MAX_ROUNDS: u32 = 7;
/// Longest time until containerd answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many there are where so many are asked for.
pub(crate) fn rounds(wanted: u32) -> u32 {
    wanted.clamp(1, MAX_ROUNDS)
}

/// Measures both sides in alternating rounds, ours in a new pod each time.
pub(crate) async fn measure(
    runtime: &Runtime,
    directory: &Path,
    rounds: u32,
    pod: impl Fn(u32) -> PodConfig,
) -> Result<Line> {
    let registry = Registry::start()?;
    let built = image()?;
    let image = registry.push(&built, "bench/large", "1").await?;
    let pinned = image.pinned(built.digest());
    let peer = Containerd::start(&directory.join("containerd"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..self::rounds(rounds) {
        let store = directory.join(format!("store-{round}"));
        ours.push(
            our_round(runtime, &pod(round), &store, &pinned)
                .await?
                .as_secs_f64()
                * 1000.0,
        );
        agent_runtime::remove_tree(&store).context("cannot empty the store")?;
        theirs.push(peer.round(&image)?.as_secs_f64() * 1000.0);
    }
    Ok(Line::at_most(
        "cold start of a 100 MB image, pull to exit",
        "ms",
        &ours,
        ("ctr image pull, ctr run", &theirs),
        Some(1.0),
    ))
}

async fn our_round(runtime: &Runtime, pod: &PodConfig, dir: &Path, image: &ImageRef) -> Result<Duration> {
    let store = ImageStore::open(StoreConfig {
        dir: dir.to_owned(),
        layout_root: dir.join("layouts"),
        ca_files: Vec::new(),
        hosts_dir: None,
        limits: Limits::default(),
        timeout: Duration::from_secs(120),
    })?;
    let (nobody, progress) = (Keyring::anonymous(), Progress::default());
    let begun = Instant::now();
    // As the agent does: the pod is made while its image comes.
    let started = async { runtime.start_pod(pod).await.context("cannot start a pod") };
    let pulled = async { Ok(store.pull(image, &nobody, true, &progress).await?) };
    let (_, pulled) = tokio::try_join!(started, pulled)?;
    run_to_end(runtime, &pod.uid, pulled.rootfs.layers.clone(), dir, 0).await?;
    runtime.remove_pod(&pod.uid).await?;
    Ok(begun.elapsed())
}

/// Content that compresses to about a half, as programs do, in layers of equal size, on a system that runs.
fn image() -> Result<Image> {
    let mut builder = lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for number in 0..LAYERS {
        let mut content = Vec::with_capacity(2 * IMAGE_BYTES / LAYERS);
        while content.len() < 2 * IMAGE_BYTES / LAYERS {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Eight bytes that do not compress, and eight that were here before.
            content.extend_from_slice(&state.to_le_bytes());
            content.extend_from_slice(b"mov eax,");
        }
        let mut layer = Layer::new(Packing::Gzip).dir("data/", 0o755);
        // Files as large as programs and libraries are.
        for (part, bytes) in content.chunks(2 << 20).enumerate() {
            layer = layer.file(&format!("data/{number}-{part}"), 0o755, bytes);
        }
        builder = builder.layer(layer);
    }
    Ok(builder.build())
}

/// A containerd with state of its own, which ends with the value.
struct Containerd {
    process: Child,
    ctr: PathBuf,
    socket: PathBuf,
}

impl Containerd {
    fn start(dir: &Path) -> Result<Self> {
        let find = |program: &str| {
            on_path(program)
                .with_context(|| format!("there is no {program} on the PATH; run `cargo xtask setup --dev`"))
        };
        fs::create_dir_all(dir)?;
        let (config, socket) = (dir.join("config.toml"), dir.join("containerd.sock"));
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{0}/containerd.sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{0}/opt\"\n",
            dir.display()
        );
        fs::write(&config, text)?;
        let log = fs::File::create(dir.join("log"))?;
        let process = Command::new(find("containerd")?)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let peer = Self {
            process,
            ctr: find("ctr")?,
            socket,
        };
        let begun = Instant::now();
        while peer.ctr(&["version"]).is_err() {
            if begun.elapsed() > PATIENCE {
                let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
                bail!("containerd does not answer:\n{log}");
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(peer)
    }

    fn round(&self, image: &ImageRef) -> Result<Duration> {
        let name = image.to_string();
        let begun = Instant::now();
        self.ctr(&["image", "pull", "--plain-http", &name])?;
        let id = format!("bench-{}", std::process::id());
        self.ctr(&["run", "--rm", &name, &id, "/bin/true"])?;
        let took = begun.elapsed();
        // Content and snapshots go with it.
        self.ctr(&["image", "rm", "--sync", &name])?;
        Ok(took)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.ctr)
            .arg("--address")
            .arg(&self.socket)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot start ctr")?;
        ensure!(
            output.status.success(),
            "ctr {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.process.id()).unwrap_or(i32::MAX));
        // Asked to end, so that its shims and mounts go; both fail only when it is gone already.
        let _asked = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _reaped = self.process.wait();
    }
}
