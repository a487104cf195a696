//! The short-lived child that lets libcontainer start a process, for first processes and exec sessions.
//!
//! libcontainer blocks, changes its caller (working directory, dumpability) and forks with raw system
//! calls, so it runs in a child of the single-threaded shim and never in the shim itself. The process it
//! starts becomes the shim's child, not this one's. This child reports one JSON line and exits; the shim
//! kills it when it takes too long.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use agent_sandbox::{Compiled, ImageRuleset, PathRule};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Pid};
use serde::{Deserialize, Serialize};

use crate::config::ContainerConfig;
use crate::shim::{ShimError, chain, exit_now, spec, system};

/// What is to be started.
#[derive(Debug)]
pub(crate) enum Work<'a> {
    /// The container itself, from the configuration in `bundle`.
    Init { bundle: &'a Path },
    /// A program beside it.
    Exec { argv: &'a [String] },
}

/// Everything the child needs; it gets a copy of the shim's memory.
#[derive(Debug)]
pub(crate) struct Creation<'a> {
    pub(crate) work: Work<'a>,
    /// libcontainer's name for the container.
    pub(crate) id: String,
    /// libcontainer's directory.
    pub(crate) library: PathBuf,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) ruleset: &'a Arc<ImageRuleset>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The one line the child writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Report {
    Started { pid: i32 },
    Failed { reason: String },
}

/// Starts the child; its report comes through the returned pipe.
pub(crate) fn start(creation: Creation<'_>) -> Result<(Pid, OwnedFd), ShimError> {
    let (report, to_shim) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(system("create a pipe"))?;
    let shim = nix::unistd::getpid();
    // SAFETY: the process has one thread, so the child may allocate and lock as it likes.
    match unsafe { nix::unistd::fork() }.map_err(system("fork to start a process"))? {
        ForkResult::Parent { child } => Ok((child, report)),
        ForkResult::Child => {
            drop(report);
            let outcome = match create(creation, shim) {
                Ok(pid) => Report::Started { pid: pid.as_raw() },
                Err(reason) => Report::Failed { reason },
            };
            let mut line = serde_json::to_vec(&outcome).unwrap_or_default();
            line.push(b'\n');
            let told = File::from(to_shim).write_all(&line);
            exit_now(i32::from(told.is_err()))
        }
    }
}

fn create(creation: Creation<'_>, shim: Pid) -> Result<Pid, String> {
    let failed = |what: &str, error: &dyn std::error::Error| format!("{what}: {}", chain(error));
    SigSet::empty()
        .thread_set_mask()
        .map_err(|error| failed("cannot unblock signals", &error))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| failed("cannot tie to the shim", &error))?;
    if nix::unistd::getppid() != shim {
        return Err("the shim is gone".into());
    }
    demand_one_thread()?;
    // libcontainer keeps the caller's groups when the container names none.
    nix::unistd::setgroups(&[]).map_err(|error| failed("cannot drop groups", &error))?;

    let compiled = creation
        .config
        .profile
        .compile()
        .map_err(|error| failed("cannot compile the profile", &error))?;
    let (status, write_status) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|error| failed("cannot create a pipe", &error))?;
    let executor = Sandboxed {
        compiled: Arc::new(compiled),
        ruleset: Arc::clone(creation.ruleset),
        mounts: Arc::new(spec::mount_rules(creation.config)),
        status: Arc::new(write_status),
    };
    let builder = ContainerBuilder::new(creation.id, SyscallType::default())
        .with_executor(executor)
        .with_stdout(creation.stdout)
        .with_stderr(creation.stderr)
        .with_root_path(creation.library)
        .map_err(|error| failed("cannot use the library's directory", &error))?;
    let pid = match creation.work {
        Work::Init { bundle } => {
            let mut container = builder
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .as_sibling(true)
                .build()
                .map_err(|error| failed("cannot create the container", &error))?;
            container
                .start()
                .map_err(|error| failed("cannot start the container", &error))?;
            container.pid().ok_or("the container has no process")?
        }
        Work::Exec { argv } => {
            let user = creation.config;
            builder
                .as_tenant()
                .with_detach(true)
                .as_sibling(true)
                .with_container_args(argv.to_vec())
                .with_cwd(Some(&user.cwd))
                .with_user(Some(user.uid))
                .with_group(Some(user.gid))
                .with_additional_gids(user.supplemental_gids.clone())
                .with_no_new_privs(true)
                .build()
                .map_err(|error| failed("cannot start the program", &error))?
        }
    };
    // The started process holds the only other copy, until its program is executed or it reports.
    let mut reason = String::new();
    File::from(status)
        .take(64 << 10)
        .read_to_string(&mut reason)
        .map_err(|error| failed("cannot learn whether the program was executed", &error))?;
    if reason.is_empty() { Ok(pid) } else { Err(reason) }
}

/// libcontainer forks without telling the C library, which deadlocks beside another thread.
fn demand_one_thread() -> Result<(), String> {
    let count = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    match count {
        Ok(1) => Ok(()),
        Ok(threads) => Err(format!(
            "the shim has {threads} threads; containers can be started with one only"
        )),
        Err(error) => Err(format!("cannot count the shim's threads: {error}")),
    }
}

/// Confines the process and executes the program, as the last step inside the container.
#[derive(Debug, Clone)]
struct Sandboxed {
    compiled: Arc<Compiled>,
    ruleset: Arc<ImageRuleset>,
    mounts: Arc<Vec<PathRule>>,
    /// Closed by a successful execution; carries the reason of a failed one, which libcontainer would lose.
    status: Arc<OwnedFd>,
}

impl Executor for Sandboxed {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let reason = match self.confine_and_execute(spec) {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
        let _creator_may_be_gone = rustix::io::write(self.status.as_fd(), reason.as_bytes());
        Err(ExecutorError::Other(reason))
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        // Whether the program can be executed is known when it is executed, under the sandbox.
        Ok(())
    }
}

impl Sandboxed {
    fn confine_and_execute(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let argv = spec
            .process()
            .as_ref()
            .and_then(|process| process.args().as_ref());
        let Some([program, args @ ..]) = argv.map(Vec::as_slice) else {
            return Err("no program to execute".into());
        };
        // Its parent is the shim: no container outlives the process that watches it.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|error| format!("cannot tie to the shim: {error}"))?;
        self.compiled
            .apply_in_container(&self.ruleset, &self.mounts)
            .map_err(|error| format!("cannot confine the container: {}", chain(&error)))?;
        // `exec` also restores the signal mask and SIGPIPE, which Rust programs change for themselves.
        let error = Command::new(program).args(args).exec();
        Err(format!("cannot execute {program:?}: {error}"))
    }
}
