//! The agent's side: starts shims, has them do things, and cleans up after those that died. How it talks to them is
//! `talk`, what it finds of an earlier agent's `recovery`.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_sandbox::{ExecutableIndex, Layer};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::cgroup;
use crate::config::{
    ContainerConfig, ExecOutput, Launch, PodConfig, PodHandle, PodPaths, PodStatus, is_plain_absolute,
    is_safe_name,
};
use crate::devices::Denial;
use crate::error::RuntimeError;
use crate::executables::{self, Executables};
use crate::open_files;
use crate::placement;
use crate::protocol::{FrameError, Request, Response};
use crate::remove::remove_tree;
use crate::shim::chain;
use crate::talk::{REQUEST_TIMEOUT, unexpected};
use crate::trash::Trash;
use crate::watch::StartWatch;

/// A shim that has not reported by then is broken.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A shim that has not shut its pod down by then is killed. It gives up waiting itself after half of that.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the processes of a killed cgroup may take to go.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Layers whose executables are remembered.
const MAX_INDEXED_LAYERS: usize = 256;

/// Below the state directory; no pod is called so.
const TRASH: &str = ".trash";

/// Where the runtime keeps things and what it starts.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// The program of shims: its `main` is [`crate::shim::main`].
    pub shim: PathBuf,
    /// Writable layers go to `state_dir/<pod uid>`.
    pub state_dir: PathBuf,
    /// Sockets and state go to `run_dir/<pod uid>`.
    pub run_dir: PathBuf,
    /// The cgroup all pods are beneath, one component, such as `palisade`.
    pub cgroup_root: String,
}

/// The agent's handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime {
    config: Arc<RuntimeConfig>,
    /// Layers never change, so what was found in them is kept.
    executables: Arc<Mutex<HashMap<PathBuf, Arc<ExecutableIndex>>>>,
    devices: Arc<Denial>,
    trash: Trash,
}

/// What there is to say of a container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Whether some programs of its image cannot be executed: outside of the code directories it has more than a ruleset
    /// takes, or such that cannot be named.
    pub lacks_executables: bool,
}

impl Runtime {
    /// Nothing is touched before the first pod.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        demand_name("cgroup_root", &config.cgroup_root)?;
        Ok(Self {
            trash: Trash::new(config.state_dir.join(TRASH)),
            config: Arc::new(config),
            executables: Arc::default(),
            devices: Arc::default(),
        })
    }

    /// Starts a pod's shim, which creates its namespaces. The network namespace is empty but for `lo`.
    ///
    /// A pod whose shim lives is left as it is; what a dead one left is removed first.
    pub async fn start_pod(&self, pod: &PodConfig) -> Result<PodHandle, RuntimeError> {
        demand_name("pod uid", &pod.uid)?;
        match self.status(&pod.uid).await {
            Ok(status) => return Ok(PodHandle { netns: status.netns }),
            Err(RuntimeError::ShimGone { .. }) => self.remove_dead(&pod.uid, KILL_TIMEOUT).await?,
            Err(error) => return Err(error),
        }
        expect_moves();
        let paths = self.paths(&pod.uid);
        make_private(&self.config.run_dir)?;
        make_private(&self.config.state_dir)?;
        make_private(&paths.run)?;
        make_private(&paths.state)?;
        let (launched, ()) = tokio::join!(
            self.prepare_and_launch(pod, &paths),
            make_groups(self.cgroup(&pod.uid))
        );
        match launched {
            Ok(()) => Ok(PodHandle {
                netns: self.status(&pod.uid).await?.netns,
            }),
            Err(error) => {
                // What the failed shim left; its own error says more than a second one would.
                let _second_error = self.remove_dead(&pod.uid, KILL_TIMEOUT).await;
                Err(error)
            }
        }
    }

    /// Starts a container and returns once its program was executed.
    ///
    /// An exited container of the same name must be removed first.
    pub async fn start_container(
        &self,
        pod: &str,
        config: &ContainerConfig,
    ) -> Result<Started, RuntimeError> {
        demand_name("container name", &config.name)?;
        for (field, path) in [("cwd", &config.cwd), ("log_path", &config.log_path)]
            .into_iter()
            .chain(config.mounts.iter().map(|mount| ("mount target", &mount.target)))
        {
            if !is_plain_absolute(path) {
                let rule = "must be absolute, without '.' or '..'";
                return Err(RuntimeError::Invalid {
                    field,
                    value: path.display().to_string(),
                    rule,
                });
            }
        }
        expect_moves();
        let executables = self.executables(pod, config).await?;
        self.ask(
            pod,
            &Request::Start {
                config: Box::new(config.clone()),
                executables: executables.paths,
            },
        )
        .await?;
        if executables.truncated {
            tracing::warn!(
                pod,
                container = config.name,
                "too many files; some programs of its image are not executable"
            );
        }
        Ok(Started {
            lacks_executables: executables.truncated,
        })
    }

    /// Sends a signal to the container's first process. One that has exited is no error.
    pub async fn signal(&self, pod: &str, container: &str, signal: i32) -> Result<(), RuntimeError> {
        self.ask(
            pod,
            &Request::Signal {
                container: container.into(),
                signal,
            },
        )
        .await
    }

    /// Asks the container's first process to end, by the signal that it was started with for that. One that is gone is no
    /// error.
    pub async fn stop(&self, pod: &str, container: &str) -> Result<(), RuntimeError> {
        let status = self.status(pod).await?;
        match status.container(container) {
            Some(found) => self.signal(pod, container, found.stop_signal).await,
            None => Ok(()),
        }
    }

    /// Runs a program in a container under the same user, capabilities and sandbox, and waits for its end.
    ///
    /// After `timeout` the session is killed and reported as ended by `SIGKILL`.
    pub async fn exec(
        &self,
        pod: &str,
        container: &str,
        argv: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Exec {
            container: container.into(),
            argv: argv.into(),
            timeout_ms,
        };
        match self
            .call(pod, &request, Some(timeout.saturating_add(REQUEST_TIMEOUT)))
            .await?
        {
            Response::Exec(output) => Ok(output),
            other => Err(unexpected(pod, other)),
        }
    }

    /// Where an attempt of a container keeps what it writes over its image; for measuring, the container owns it.
    pub fn writable_layer(&self, pod: &str, container: &str, attempt: u32) -> Result<PathBuf, RuntimeError> {
        demand_name("pod uid", pod)?;
        demand_name("container name", container)?;
        Ok(self.paths(pod).writable(container, attempt).join("upper"))
    }

    /// Has processes of a container's further starts wait until they were looked at.
    pub fn watch_starts(&self, pod: &str, container: &str) -> Result<StartWatch, RuntimeError> {
        demand_name("pod uid", pod)?;
        demand_name("container name", container)?;
        let run = self.paths(pod).run;
        StartWatch::new(&run, container).map_err(file_error("wait for starts in", &run))
    }

    /// Where what pods leave goes, in `.trash` of the state directory. Others may put there what is theirs.
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// Forgets an exited container and deletes its writable layer, whose path is free then; its files go in the background.
    pub async fn remove_container(&self, pod: &str, container: &str) -> Result<(), RuntimeError> {
        demand_name("container name", container)?;
        let status = self.status(pod).await?;
        self.ask(
            pod,
            &Request::Remove {
                container: container.into(),
            },
        )
        .await?;
        match status.container(container) {
            Some(gone) => {
                let layer = self.paths(pod).writable(container, gone.attempt);
                let trash = self.trash.clone();
                delete(layer, move |layer| trash.discard(layer)).await
            }
            None => Ok(()),
        }
    }

    /// Kills whatever the pod still runs and removes all that was made for it, whether its shim lives or not. What its
    /// containers have written goes in the background.
    pub async fn remove_pod(&self, pod: &str) -> Result<(), RuntimeError> {
        demand_name("pod uid", pod)?;
        match self.call(pod, &Request::Shutdown, Some(SHUTDOWN_TIMEOUT)).await {
            Ok(Response::Done) | Err(RuntimeError::ShimGone { .. } | RuntimeError::Talk { .. }) => {}
            Ok(other) => return Err(unexpected(pod, other)),
            Err(RuntimeError::Timeout { .. }) => self.kill_shim(pod)?,
            Err(error) => return Err(error),
        }
        self.remove_dead(pod, KILL_TIMEOUT).await
    }

    /// Kills a shim that does not answer. Its containers go with it.
    pub(crate) fn kill_shim(&self, pod: &str) -> Result<(), RuntimeError> {
        let paths = self.paths(pod);
        let Some(pid) = read_json::<PodStatus>(&paths.status())?
            .and_then(|status| rustix::process::Pid::from_raw(status.shim_pid))
        else {
            return Ok(());
        };
        let failed = |errno: rustix::io::Errno| file_error("kill the shim of", &paths.run)(errno.into());
        // Held first, looked at then: what is killed is what was looked at, whatever becomes of the number.
        let process = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        let command = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        // Behind the name of the program; an earlier build's shim has a subcommand's name there, too.
        let mut words = command.split(|byte| *byte == 0).skip(1).take(2);
        if !words.any(|word| word == paths.run.as_os_str().as_bytes()) {
            return Ok(());
        }
        tracing::warn!(pod, "the shim does not shut down and is killed");
        match rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(failed(errno)),
        }
    }

    async fn prepare_and_launch(&self, pod: &PodConfig, paths: &PodPaths) -> Result<(), RuntimeError> {
        let group = self.cgroup(&pod.uid);
        let device_program = self
            .devices
            .impose(&group)
            .map_err(|error| RuntimeError::Refused {
                reason: chain(&error),
                layer: Some(Layer::Cgroup),
            })?;
        let launch = Launch {
            pod: pod.clone(),
            state_dir: paths.state.clone(),
            cgroup: group,
            device_program,
            open_files: open_files::of_pods(),
        };
        let text = serde_json::to_vec(&launch).map_err(|source| RuntimeError::Talk {
            pod: pod.uid.clone(),
            source: FrameError::Text { source },
        })?;
        std::fs::write(paths.launch(), text).map_err(file_error("write", &paths.launch()))?;
        self.launch(pod, paths).await
    }

    async fn launch(&self, pod: &PodConfig, paths: &PodPaths) -> Result<(), RuntimeError> {
        let log = std::fs::File::create(paths.shim_log()).map_err(file_error("create", &paths.shim_log()))?;
        let mut child = Command::new(&self.config.shim)
            .arg(&paths.run)
            .arg(format!("{}/{}", pod.namespace, pod.name))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(false)
            .spawn()
            .map_err(file_error("start", &self.config.shim))?;
        let failed = |reason: String| RuntimeError::ShimStart {
            pod: pod.uid.clone(),
            reason,
        };
        let Some(mut output) = child.stdout.take() else {
            return Err(failed("no pipe to it".into()));
        };
        // The shim closes its end when it is ready or has failed, after one line.
        let mut line = String::new();
        let mut bounded = (&mut output).take(64 << 10);
        match tokio::time::timeout(START_TIMEOUT, bounded.read_to_string(&mut line)).await {
            Ok(Ok(_)) if line == crate::shim::READY => Ok(()),
            Ok(Ok(_)) if line.is_empty() => {
                let log = std::fs::read_to_string(paths.shim_log()).unwrap_or_default();
                Err(failed(format!(
                    "it ended without a word; its log says: {}",
                    log.trim()
                )))
            }
            Ok(Ok(_)) => Err(failed(line.trim().into())),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_elapsed) => {
                let killed = child.kill().await;
                Err(failed(format!(
                    "not ready in {} s; killed: {}",
                    START_TIMEOUT.as_secs(),
                    killed.is_ok()
                )))
            }
        }
    }

    async fn executables(&self, pod: &str, config: &ContainerConfig) -> Result<Executables, RuntimeError> {
        let mut layers = Vec::with_capacity(config.layers.len());
        for layer in &config.layers {
            layers.push(self.layer(layer).await?);
        }
        let written = serde_json::to_vec(config).map_err(|source| RuntimeError::Talk {
            pod: pod.into(),
            source: FrameError::Text { source },
        })?;
        let room = executables::room_beside(written.len());
        Ok(executables::of_image(
            layers.iter().map(Arc::as_ref),
            config,
            room,
        ))
    }

    async fn layer(&self, path: &Path) -> Result<Arc<ExecutableIndex>, RuntimeError> {
        let known = || self.executables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = known().get(path) {
            return Ok(Arc::clone(index));
        }
        let layer = path.to_owned();
        let index = tokio::task::spawn_blocking(move || ExecutableIndex::of_layer(&layer))
            .await
            .map_err(|_cancelled| RuntimeError::Cancelled)?
            .map_err(|source| RuntimeError::Layer { source })?;
        let index = Arc::new(index);
        let mut map = known();
        if map.len() >= MAX_INDEXED_LAYERS {
            map.clear();
        }
        map.insert(path.to_owned(), Arc::clone(&index));
        Ok(index)
    }

    /// Removes what is left of a pod without a shim.
    pub(crate) async fn remove_dead(&self, pod: &str, patience: Duration) -> Result<(), RuntimeError> {
        self.kill_cgroup(pod, patience).await?;
        let paths = self.paths(pod);
        let trash = self.trash.clone();
        delete(paths.state, move |state| trash.discard(state)).await?;
        // A few files of the shim's, on another file system.
        delete(paths.run, remove_tree).await
    }

    /// Ends all processes of a pod, which may take so long, and removes its control groups.
    pub(crate) async fn kill_cgroup(&self, pod: &str, patience: Duration) -> Result<(), RuntimeError> {
        let group = self.cgroup(pod);
        let deadline = tokio::time::Instant::now() + patience;
        let mut pause = Duration::from_millis(2);
        // What can be removed has nobody in it.
        while let Err(source) = cgroup::remove_tree(&group) {
            if tokio::time::Instant::now() >= deadline {
                return Err(RuntimeError::Cgroup { source });
            }
            cgroup::kill_tree(&group).map_err(|source| RuntimeError::Cgroup { source })?;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        cgroup::remove_if_empty(&format!("/{}", self.config.cgroup_root));
        Ok(())
    }

    pub(crate) fn run_dir(&self) -> &Path {
        &self.config.run_dir
    }

    pub(crate) fn paths(&self, pod: &str) -> PodPaths {
        PodPaths {
            run: self.config.run_dir.join(pod),
            state: self.config.state_dir.join(pod),
        }
    }

    pub(crate) fn cgroup(&self, pod: &str) -> String {
        format!("/{}/{pod}", self.config.cgroup_root)
    }
}

/// Begins the kernel's wait before processes are put into groups, while others put a pod or a root together. Without it a start
/// is as right, only slower. One wait is for all that begin meanwhile. On version 1 nobody has to wait.
fn expect_moves() {
    static WAITS: AtomicBool = AtomicBool::new(false);
    if cgroup::is_unified().is_ok_and(|unified| !unified) {
        return;
    }
    if !WAITS.swap(true, Ordering::Relaxed) {
        drop(tokio::task::spawn_blocking(|| {
            let _slower = cgroup::expect_moves();
            WAITS.store(false, Ordering::Relaxed);
        }));
    }
}

/// Makes a pod's groups of version 1 while its shim starts. What cannot be made now is tried again, and told, when its first
/// container starts.
async fn make_groups(group: String) {
    let _tried_again = tokio::task::spawn_blocking(move || placement::make(&group)).await;
}

pub(crate) fn demand_name(field: &'static str, value: &str) -> Result<(), RuntimeError> {
    if is_safe_name(value) {
        return Ok(());
    }
    let rule = "must be 1 to 63 letters, digits and dashes, not starting with a dash";
    Err(RuntimeError::Invalid {
        field,
        value: value.into(),
        rule,
    })
}

fn make_private(path: &Path) -> Result<(), RuntimeError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(file_error("create", path))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RuntimeError> {
    match std::fs::read(path) {
        // A file cut short by a crash counts as absent: the pod is then treated as dead.
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", path)(error)),
    }
}

/// Has `work` free `path`, on a thread that may block.
async fn delete(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
) -> Result<(), RuntimeError> {
    let deleted = tokio::task::spawn_blocking(move || work(&path).map_err(file_error("delete", &path)));
    deleted.await.map_err(|_cancelled| RuntimeError::Cancelled)?
}

pub(crate) fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |source| RuntimeError::File {
        operation,
        path,
        source,
    }
}
