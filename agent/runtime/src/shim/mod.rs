//! The shim: the process that is a pod, as far as the host is concerned.
//!
//! [`main`] takes over a fresh process: it moves into a session and a mount namespace of its own, makes the
//! pod's namespaces, listens on the pod's socket and says [`READY`] on standard output. From then on it is
//! one loop over descriptors in one thread ([`supervisor`]), small and without an allocator's worth of
//! anything: libcontainer, which is neither, runs in a child per container start ([`creator`]).

mod announcement;
mod attachment;
mod capture;
mod children;
mod container;
mod conversation;
mod creator;
mod executor;
mod gate;
mod holder;
mod interactive;
mod job;
mod measure;
mod pace;
pub(crate) mod program;
mod rootfs;
mod session;
mod spec;
mod subpath;
mod supervisor;
mod terminal;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::errno::Errno;
use rustix::mount::MountPropagationFlags;

use crate::config::{Launch, PodPaths};

/// What a shim says once it can be talked to.
pub(crate) const READY: &str = "ready\n";

/// Why a shim could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Called with something else than the pod's run directory and its display name.
    #[error("the shim takes the pod's run directory and its name")]
    Usage,
    /// A system call failed.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: Errno,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The launch file cannot be understood.
    #[error("the launch file is not valid")]
    Launch {
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// The pod's namespaces could not be made.
    #[error("cannot create the pod's namespaces: {reason}")]
    Holder {
        /// Which step failed.
        reason: String,
    },
}

/// Runs a shim; `args` follow the name of the program. Call it first thing, before any thread exists.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    let code = match prepare(args) {
        Ok(mut supervisor) => {
            say(READY);
            match supervisor.run() {
                Ok(()) => 0,
                Err(error) => {
                    complain(&chain(&error));
                    1
                }
            }
        }
        Err(error) => {
            say(&chain(&error));
            1
        }
    };
    std::process::exit(code)
}

fn prepare(args: impl IntoIterator<Item = OsString>) -> Result<supervisor::Supervisor, ShimError> {
    let mut args = args.into_iter();
    let (Some(run), Some(_shown), None) = (args.next(), args.next(), args.next()) else {
        return Err(ShimError::Usage);
    };
    let run = PathBuf::from(run);
    let launch_path = run.join("launch.json");
    let text = std::fs::read(&launch_path).map_err(file_error("read", &launch_path))?;
    let launch: Launch = serde_json::from_slice(&text).map_err(|source| ShimError::Launch { source })?;
    let paths = PodPaths {
        run,
        state: launch.state_dir.clone(),
    };
    if let Some(limit) = launch.open_files
        && let Err(error) = crate::open_files::set(Some(limit))
    {
        complain(&format!("the pod may open as many files as the agent: {error}"));
    }
    crate::core_dumps::forbid()
        .map_err(|errno| system("forbid core dumps")(Errno::from_raw(errno.raw_os_error())))?;

    supervisor::heed_signals().map_err(system("heed signals"))?;
    nix::unistd::setsid().map_err(system("start a session"))?;
    nix::sys::prctl::set_name(c"palisade-shim").map_err(system("name the process"))?;
    // The agent has warned if that is not allowed.
    let _not_allowed = crate::memory::spare();
    nix::sys::prctl::set_child_subreaper(true).map_err(system("become a subreaper"))?;
    let signals = supervisor::block_signals().map_err(system("receive signals by descriptor"))?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(system("create a mount namespace"))?;
    // Unmounts on the host still arrive here, so the pod does not pin file systems; nothing goes back.
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation)
        .map_err(|errno| system("detach mounts from the host")(Errno::from_raw(errno.raw_os_error())))?;

    let unprepared = |error: &dyn std::error::Error| ShimError::Holder { reason: chain(error) };
    let (holder, shared) = holder::start(&launch.pod, || {
        crate::hierarchies::set_aside().map_err(|error| unprepared(&error))?;
        hold_proc();
        rootfs::prepare().map_err(|error| unprepared(&error))
    })?;
    rootfs::keep(&shared, holder.as_raw(), launch.pod.shares_processes)
        .map_err(|error| unprepared(&error))?;
    let socket = paths.socket();
    let listener = UnixListener::bind(&socket).map_err(file_error("listen on", &socket))?;
    supervisor::Supervisor::new(launch, paths, (holder, shared), listener, signals)
}

/// Has libcontainer mount a `/proc` for itself, which a process keeps once it has one, and those that it forks. Otherwise each
/// start makes one, and the kernel waits to take that apart again before the container's program runs.
fn hold_proc() {
    // What it says of the mount is not wanted. It changes one that is shared, and none is in this namespace.
    let _each_start_makes_its_own =
        libcontainer::rootfs::Mount::new().make_parent_mount_private(std::path::Path::new("/"));
}

/// The pipe to the agent; closed afterwards by pointing standard output elsewhere.
fn say(text: &str) {
    let mut output = std::io::stdout();
    // The agent may be gone already; the shim's work does not depend on it.
    let _agent_may_be_gone = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _kept_open = nix::unistd::dup2(null.as_raw_fd(), libc::STDOUT_FILENO);
    }
}

/// Ends a forked child without running destructors or exit handlers: they belong to the shim.
fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing is touched afterwards.
    unsafe { libc::_exit(code) }
}

/// The shim's log, which is its standard error.
#[expect(clippy::print_stderr, reason = "the shim's log is its standard error")]
fn complain(text: &str) {
    eprintln!("{text}");
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Libraries often repeat the cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn system(operation: &'static str) -> impl FnOnce(Errno) -> ShimError {
    move |source| ShimError::System { operation, source }
}

fn file_error(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ShimError {
    let path = path.to_owned();
    move |source| ShimError::File {
        operation,
        path,
        source,
    }
}
