//! What the agent asks for and what it is told: plain data, the same on both sides of the shim's socket.
//!
//! A shim may be of another version than the agent that finds it. What it is asked for it has to know all of, since a field
//! that it passes over may be a restriction: of these types unknown fields are an error. Of what a shim tells, and what
//! was written down when a pod began, unknown fields are passed over: who does not understand it would take a pod that lives
//! for dead. A field that is added there needs a default.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use agent_sandbox::{Profile, Report};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One pod, as far as the runtime is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodConfig {
    /// Unique; names directories and cgroups: letters, digits and dashes.
    pub uid: String,
    /// For people reading the process list and the state.
    pub namespace: String,
    /// As `namespace`.
    pub name: String,
    /// Host name inside the pod, at most 64 bytes.
    pub hostname: String,
    /// First host id of the pod's range: user and group 0 inside.
    pub id_base: u32,
    /// How many ids the pod has; must cover every id its images use.
    pub id_count: u32,
    /// Whether the pod has a pid namespace of its own, for containers with [`PidNamespace::Pod`].
    #[serde(default)]
    pub shares_processes: bool,
    /// Processes and threads of all its containers together, at least [`MIN_POD_PIDS`]; absent means no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// What all its containers may use up together, and its part of the processors beside other pods.
    #[serde(default, skip_serializing_if = "PodResources::is_default")]
    pub resources: PodResources,
}

/// Processors and memory of a pod as a whole; absent means no limit of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodResources {
    /// Processor time per period, in microseconds.
    pub cpu_quota_us: Option<i64>,
    /// Length of the period, in microseconds; only with a quota.
    pub cpu_period_us: Option<u64>,
    /// Weight beside other pods (1024 is one processor). Those of its containers count among themselves only.
    pub cpu_shares: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
}

impl PodResources {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The least that a pod can have: some containers, what the start of one takes beside it for a moment, and a probe.
pub const MIN_POD_PIDS: u32 = 16;
/// The most that a control group can have: the kernel's own bound of process numbers, `PID_MAX_LIMIT`.
pub const MAX_POD_PIDS: u32 = 4 << 20;

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerConfig {
    /// Unique within the pod; a DNS label.
    pub name: String,
    /// How often it was started before. A new attempt takes the place of an exited one.
    pub attempt: u32,
    /// Unpacked image layers, lowest first; at least one. They are mounted, never changed.
    pub layers: Vec<PathBuf>,
    /// Program and arguments; a program without a slash is looked for in `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment. `HOME` is added from the user if absent.
    pub env: Vec<(String, String)>,
    /// Absolute working directory; created if the image lacks it.
    pub cwd: PathBuf,
    /// User inside the pod.
    pub uid: u32,
    /// Group inside the pod.
    pub gid: u32,
    /// Further groups inside the pod.
    pub supplemental_gids: Vec<u32>,
    /// What is mounted over the image.
    pub mounts: Vec<Mount>,
    /// Whether the image's own files are read-only.
    pub read_only_root: bool,
    /// Directories of the image that can be written all the same, absolute; made if the image lacks them. What is mounted at or
    /// over one takes its place.
    // Left out where it can be: the shims of an agent before this one do not know it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_volumes: Vec<PathBuf>,
    /// Names such as `CAP_CHOWN`; held within the pod's user namespace only.
    pub capabilities: Vec<String>,
    /// Whose processes it sees, and they its.
    // Left out where it can be, as above.
    #[serde(default, skip_serializing_if = "PidNamespace::is_own")]
    pub pid_namespace: PidNamespace,
    /// What its standard streams are.
    #[serde(default)]
    pub streams: Streams,
    /// What it may use up.
    pub resources: Resources,
    /// How readily the kernel ends its processes when memory is used up, -1000 to 1000.
    // Left out where it can be, as above.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oom_score_adj: i32,
    /// What [`crate::Runtime::stop`] sends; kept here for an agent that knows no more than what runs.
    // Left out where it can be, as above.
    #[serde(default = "sigterm", skip_serializing_if = "is_sigterm")]
    pub stop_signal: i32,
    /// System calls and files.
    pub profile: Profile,
    /// Where its output goes, in the CRI log format; the directory exists.
    pub log_path: PathBuf,
    /// Size at which the log is rotated.
    pub log_max_bytes: u64,
    /// How many log files are kept, the current one included; at least 1.
    pub log_max_files: u32,
}

// The form of the serializer's: by reference.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

fn sigterm() -> i32 {
    libc::SIGTERM
}

// As above.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_sigterm(signal: &i32) -> bool {
    *signal == libc::SIGTERM
}

/// Whose processes a container sees, and they its. It may signal those that its user may; Landlock keeps all containers
/// from tracing one another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PidNamespace {
    /// Its own only. Its first process is number 1, and all others end with it.
    #[default]
    Own,
    /// Those of all containers of the pod that say the same. Number 1 is the runtime's, and outlives them.
    Pod,
    /// Those of the container of this name, which must run. When that one ends, this one ends too.
    Of(String),
}

impl PidNamespace {
    pub(crate) fn is_own(&self) -> bool {
        *self == Self::Own
    }
}

/// The standard streams of a container's first process. Output always goes to the log as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// Whether it has a standard input that attached clients write to; otherwise it is empty.
    pub stdin: bool,
    /// Whether its input ends when the first attached client's does.
    pub stdin_once: bool,
    /// Whether the three streams are one terminal.
    pub tty: bool,
}

/// A host file or directory that appears in a container, its owners shifted into the pod's id range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// What of the source is mounted, relative and without `..`. It is looked up by the kernel in one step that
    /// cannot leave the source, whatever links the container has put there. A directory that is missing is made.
    #[serde(default)]
    pub sub_path: Option<PathBuf>,
    /// Absolute, in the container.
    pub target: PathBuf,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether files in it may be executed; only together with `read_only`.
    #[serde(default)]
    pub executable: bool,
}

/// Limits of one container; absent means no limit of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processor time per period, in microseconds.
    pub cpu_quota_us: Option<i64>,
    /// Length of the period, in microseconds.
    pub cpu_period_us: Option<u64>,
    /// Relative weight (1024 is one processor).
    pub cpu_shares: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
    /// Number of processes and threads.
    pub pids: Option<i64>,
}

/// A pod that has been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodHandle {
    /// Path of the pod's network namespace, good while the pod lives.
    pub netns: PathBuf,
}

/// A pod as its shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Grows with every change; for `wait_change`.
    pub version: u64,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// The process that holds the pod's namespaces.
    pub holder_pid: i32,
    /// The pod's shim.
    pub shim_pid: i32,
    /// All containers that were started and not removed, by name.
    pub containers: Vec<ContainerStatus>,
}

impl PodStatus {
    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|container| container.name == name)
    }
}

/// One container as its shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// As configured.
    pub name: String,
    /// As configured.
    pub attempt: u32,
    /// What became of it.
    pub state: ContainerState,
    /// What was seen of its sandbox before its program ran; empty before that.
    #[serde(default)]
    pub sandbox: Report,
    /// TCP ports that its sandbox lets it connect to; absent if that leaves all.
    #[serde(default)]
    pub connect: Option<BTreeSet<u16>>,
    /// As configured.
    #[serde(default = "sigterm", skip_serializing_if = "is_sigterm")]
    pub stop_signal: i32,
    /// As configured; unknown of shims of earlier agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// The life of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Being put together; its program does not run yet.
    Creating,
    /// Its program runs.
    Running {
        /// On the host.
        pid: i32,
        /// When the program was executed.
        started_at: Timestamp,
    },
    /// Its program ended, or cannot be executed.
    Exited(Exit),
    /// It never came to its program, for a reason that is not the program's. It counts as not started; what there is of it
    /// waits for being removed.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When the program was executed; absent if it never was.
    pub started_at: Option<Timestamp>,
    /// When the end was seen.
    pub finished_at: Timestamp,
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed one of its processes for lack of memory.
    pub oom_killed: bool,
    /// Why it never started or ended, for people; may be empty.
    pub message: String,
}

/// What a program run by `exec` left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutput {
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// Standard output, at most [`MAX_EXEC_OUTPUT`] bytes.
    #[serde(with = "as_base64")]
    pub stdout: Vec<u8>,
    /// Standard error, at most [`MAX_EXEC_OUTPUT`] bytes.
    #[serde(with = "as_base64")]
    pub stderr: Vec<u8>,
    /// Whether more was written and thrown away.
    pub truncated: bool,
}

/// How much of each stream of an exec session is kept.
pub const MAX_EXEC_OUTPUT: usize = 1 << 20;

/// A pod found again after the agent was restarted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredPod {
    /// As given to `start_pod`.
    pub config: PodConfig,
    /// Its state. Containers of a pod whose shim died have exited.
    pub status: PodStatus,
    /// Whether the shim lives. A dead pod can only be removed.
    pub alive: bool,
}

/// Where a pod and its containers keep things; used by both sides.
#[derive(Debug, Clone)]
pub(crate) struct PodPaths {
    /// Under the run directory: sockets, state, staging. Gone with the pod.
    pub(crate) run: PathBuf,
    /// Under the state directory: writable layers. Gone with the pod.
    pub(crate) state: PathBuf,
}

impl PodPaths {
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("shim.sock")
    }

    pub(crate) fn launch(&self) -> PathBuf {
        self.run.join("launch.json")
    }

    pub(crate) fn status(&self) -> PathBuf {
        self.run.join("status.json")
    }

    pub(crate) fn shim_log(&self) -> PathBuf {
        self.run.join("shim.log")
    }

    /// The OCI configuration of a container.
    pub(crate) fn bundle(&self, container: &str) -> PathBuf {
        self.run.join("bundles").join(container)
    }

    /// The container library's own state.
    pub(crate) fn library(&self) -> PathBuf {
        self.run.join("oci")
    }

    /// The writable layer of one attempt.
    pub(crate) fn writable(&self, container: &str, attempt: u32) -> PathBuf {
        self.state.join(format!("{container}-{attempt}"))
    }
}

/// What the shim reads when it starts; kept for `recover`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) pod: PodConfig,
    pub(crate) state_dir: PathBuf,
    /// Absolute cgroup of the pod, such as `/palisade/<uid>`.
    pub(crate) cgroup: String,
    /// Number of the program that denies devices to that cgroup, where a program does it.
    #[serde(default)]
    pub(crate) device_program: Option<u32>,
    /// Files that a process of the pod may have open, if not as many as the agent.
    #[serde(default)]
    pub(crate) open_files: Option<u64>,
}

/// Whether a name is safe as one component of a path and of a cgroup: letters, digits, inner dashes.
pub(crate) fn is_safe_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !name.is_empty() && name.len() <= 63 && !name.starts_with('-') && name.bytes().all(allowed)
}

/// Whether a path is absolute and has no `..`.
pub(crate) fn is_plain_absolute(path: &Path) -> bool {
    use std::path::Component;
    path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

mod as_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A container that asks for nothing in particular.
    pub(crate) fn container(profile: Profile) -> ContainerConfig {
        ContainerConfig {
            name: "main".into(),
            attempt: 0,
            layers: vec!["/layer".into()],
            argv: vec!["sh".into()],
            env: Vec::new(),
            cwd: "/".into(),
            uid: 0,
            gid: 0,
            supplemental_gids: Vec::new(),
            mounts: Vec::new(),
            read_only_root: false,
            image_volumes: Vec::new(),
            capabilities: Vec::new(),
            streams: Streams::default(),
            resources: Resources::default(),
            oom_score_adj: 0,
            stop_signal: libc::SIGTERM,
            profile,
            pid_namespace: PidNamespace::default(),
            log_path: "/log".into(),
            log_max_bytes: 1,
            log_max_files: 1,
        }
    }
}
