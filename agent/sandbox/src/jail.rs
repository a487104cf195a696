//! Runs a tool that reads untrusted data in a cage: named paths, no network, bounded resources, no way back.
//!
//! The parent calls [`command`] and spawns it; the child is the parent's own program, whose `jail`
//! subcommand is [`main`]: still single-threaded, it confines itself and then executes the tool. Works
//! without privileges.
//!
//! The tool dies with the *thread* that spawned it, so spawn and wait on one thread. Errors before the tool
//! runs go to standard error with exit code [`EXIT_NOT_STARTED`].

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use crate::{ApplyError, CompileError, PathAccess, PathRule, Profile};

/// The subcommand a program must route to [`main`].
pub const SUBCOMMAND: &str = "jail";

/// Exit code when the tool was never started; the reason is on standard error.
pub const EXIT_NOT_STARTED: i32 = 125;

/// What to run, and in what cage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// Absolute path of the tool; readable and executable.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its working directory, which must be among the readable or writable paths to be of use.
    pub cwd: PathBuf,
    /// Further rules. A dynamically linked tool needs its loader and libraries here.
    pub paths: Vec<PathRule>,
    /// What it may use up.
    pub limits: Limits,
}

/// Resource limits of a jailed tool; all are hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Processor time in seconds.
    pub cpu_seconds: u64,
    /// Address space in bytes. Mapped files count, and some runtimes reserve far more than they use.
    pub address_space_bytes: u64,
    /// Largest file it may write.
    pub file_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_seconds: 300,
            address_space_bytes: 16 << 30,
            file_bytes: 1 << 30,
            open_files: 1024,
        }
    }
}

/// Why the tool was not started.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The helper was called with something else than one specification.
    #[error("the jail helper takes exactly one argument, a JSON specification")]
    Usage,
    /// The specification cannot be read.
    #[error("the jail's specification is not valid")]
    Specification {
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A step of the preparation failed.
    #[error("cannot {step}")]
    Prepare {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The parent ended before the child could tie itself to it.
    #[error("the parent process is gone")]
    Orphaned,
    /// The filters cannot be compiled.
    #[error("cannot compile the jail's profile")]
    Compile {
        /// Which filter.
        #[source]
        source: CompileError,
    },
    /// The sandbox cannot be applied.
    #[error("cannot apply the jail's profile")]
    Apply {
        /// Which layer.
        #[source]
        source: ApplyError,
    },
    /// The tool itself cannot be executed.
    #[error("cannot execute {}", program.display())]
    Execute {
        /// The tool.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What travels to the child: the specification and whose child it must be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    parent: i32,
    spec: JailSpec,
}

/// The command that runs the tool, in a process group of its own, with an empty environment.
///
/// `self_exe` is a program whose `jail` subcommand calls [`main`]. The caller sets standard streams.
pub fn command(self_exe: &Path, spec: &JailSpec) -> Result<Command, JailError> {
    let envelope = Envelope {
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        spec: spec.clone(),
    };
    let text = serde_json::to_string(&envelope).map_err(|source| JailError::Specification { source })?;
    let mut command = Command::new(self_exe);
    command.arg(SUBCOMMAND).arg(text).env_clear().process_group(0);
    Ok(command)
}

/// The helper: takes the arguments after the subcommand, confines this process and becomes the tool.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    let error = match run(args) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    report(&error);
    std::process::exit(EXIT_NOT_STARTED)
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<std::convert::Infallible, JailError> {
    let mut args = args.into_iter();
    let (Some(text), None) = (args.next(), args.next()) else {
        return Err(JailError::Usage);
    };
    let Envelope { parent, spec } = serde_json::from_slice(text.as_encoded_bytes())
        .map_err(|source| JailError::Specification { source })?;

    tie_to_parent(parent)?;
    limit(&spec.limits)?;
    close_inherited()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    std::env::set_current_dir(&spec.cwd).map_err(|source| JailError::Prepare {
        step: "enter the jail's working directory",
        source,
    })?;

    let mut paths = vec![PathRule::new(&spec.program, PathAccess::ReadExecute)];
    paths.extend(
        ["/dev/null", "/dev/urandom"].map(|path| PathRule::optional(path, PathAccess::WriteExisting)),
    );
    paths.extend(spec.paths);
    let compiled = Profile::jail(paths)
        .compile()
        .map_err(|source| JailError::Compile { source })?;
    compiled.apply().map_err(|source| JailError::Apply { source })?;

    let source = Command::new(&spec.program)
        .args(&spec.args)
        .env_clear()
        .envs(spec.env)
        .exec();
    Err(JailError::Execute {
        program: spec.program,
        source,
    })
}

fn tie_to_parent(parent: i32) -> Result<(), JailError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|errno| {
        JailError::Prepare {
            step: "tie the jail to its parent",
            source: errno.into(),
        }
    })?;
    // The parent may have ended before the signal was asked for.
    match rustix::process::getppid().map(Pid::as_raw_nonzero) {
        Some(pid) if pid.get() == parent => Ok(()),
        _ => Err(JailError::Orphaned),
    }
}

fn limit(limits: &Limits) -> Result<(), JailError> {
    let wanted = [
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::As, limits.address_space_bytes),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nofile, limits.open_files),
        (Resource::Core, 0),
    ];
    for (resource, value) in wanted {
        // A limit that is lower already stays: raising it back takes a privilege.
        let most = rustix::process::getrlimit(resource)
            .maximum
            .map_or(value, |maximum| maximum.min(value));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        rustix::process::setrlimit(resource, limit).map_err(|errno| JailError::Prepare {
            step: "limit the jail's resources",
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// Descriptors above standard error are the parent's; they close when the tool is executed.
fn close_inherited() -> Result<(), JailError> {
    // SAFETY: marks descriptors close-on-exec; takes numbers only and closes none that this process uses.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if done == 0 {
        return Ok(());
    }
    Err(JailError::Prepare {
        step: "close inherited descriptors",
        source: io::Error::last_os_error(),
    })
}

#[expect(clippy::print_stderr, reason = "the helper's only channel to its parent")]
fn report(error: &JailError) {
    let mut text = format!("jail: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    eprintln!("{text}");
}
