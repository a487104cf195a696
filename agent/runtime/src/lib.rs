//! Runs pods: one small single-threaded shim process per pod, which outlives the agent.
//!
//! The agent's side is [`Runtime`]; the shim's side is [`shim::main`], which the agent's program must call
//! for its `shim` subcommand before it starts any thread. They talk over a unix socket in the pod's run
//! directory. The shim creates the pod's namespaces, mounts each container's root, lets libcontainer start
//! it in a short-lived child, applies the sandbox to the first process and to exec sessions alike, keeps
//! its output in CRI log files and remembers how it ended. Interactive sessions and attachments get their
//! pipes or their terminal as descriptors ([`Session`]); the shim passes no data on for exec sessions.
//!
//! What dies with what: containers die with their shim (nothing runs unsupervised), the shim dies with
//! nothing. A restarted agent finds its pods again with [`Runtime::recover`].
//!
//! Not here: which pod should run, images and their unpacking, addresses and routes, what `/etc/hosts`
//! says. Those are the agent's other crates; they hand in directories and a network namespace's path goes
//! out.

mod cgroup;
mod client;
mod config;
mod consumption;
mod core_dumps;
mod descriptors;
mod devices;
mod error;
mod executables;
mod hierarchies;
mod logs;
pub mod memory;
pub mod open_files;
mod placement;
mod protocol;
mod recovery;
mod remove;
mod session;
pub mod shim;
mod talk;
pub mod tmpfs;
mod trash;
mod usage;
mod watch;

pub use crate::cgroup::CgroupError;
pub use crate::client::{Runtime, RuntimeConfig, Started};
pub use crate::config::{
    ContainerConfig, ContainerState, ContainerStatus, ExecOutput, Exit, MAX_EXEC_OUTPUT, MAX_POD_PIDS,
    MIN_POD_PIDS, Mount, PidNamespace, PodConfig, PodHandle, PodResources, PodStatus, RecoveredPod,
    Resources, Streams,
};
pub use crate::consumption::{ContainerUsage, MemoryUsage, PodUsage};
pub use crate::error::RuntimeError;
pub use crate::protocol::FrameError;
pub use crate::remove::remove_tree;
pub use crate::session::{Session, SessionEnd};
pub use crate::trash::Trash;
pub use crate::usage::{Measured, Usage, measure_tree};
pub use crate::watch::{StartWatch, Waiting};
