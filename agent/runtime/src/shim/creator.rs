//! The short-lived child of the shim that starts a process in a container.
//!
//! libcontainer blocks, changes its caller (working directory, dumpability) and forks with raw system
//! calls, so it runs in a child of the single-threaded shim and never in the shim itself. The process it
//! starts becomes the shim's child, not this one's. This child reports in JSON lines and exits; the shim
//! kills it when it takes too long.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_sandbox::{Compiled, ImageRuleset, Report as Findings, Verdict};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Pid};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::config::{ContainerConfig, PodConfig};
use crate::memory;
use crate::placement::Entered;
use crate::protocol::{Failure, Phase};
use crate::shim::announcement::Announcement;
use crate::shim::executor::{Confinement, Word};
use crate::shim::gate::Gate;
use crate::shim::measure::{self, Expected};
use crate::shim::session::{self, Target};
use crate::shim::{ShimError, chain, complain, exit_now, spec, system};
use crate::watch;

/// What is to be started.
#[derive(Debug)]
pub(crate) enum Work<'a> {
    /// The container itself.
    Init {
        /// Directory of the OCI configuration.
        bundle: &'a Path,
        /// The pod's run directory.
        run: &'a Path,
        /// libcontainer's name for the container.
        id: String,
        /// libcontainer's directory.
        library: PathBuf,
        /// Absolute cgroup of the container.
        cgroup: String,
        /// The pod's.
        pod_cgroup: &'a str,
        pod: &'a PodConfig,
        /// First and number of the host's ids that are the pod's.
        ids: (u32, u32),
        /// Number of the program that denies devices to the pod, where a program does it.
        device_program: Option<u32>,
    },
    /// A program beside it.
    Exec { argv: &'a [String], target: Target },
}

/// A creator that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// Its reports.
    pub(crate) report: OwnedFd,
    /// The process of a program beside the container's own, from its fork on.
    pub(crate) announcement: Announcement,
}

/// Everything the child needs; it gets a copy of the shim's memory.
#[derive(Debug)]
pub(crate) struct Creation<'a> {
    pub(crate) work: Work<'a>,
    pub(crate) config: &'a Arc<ContainerConfig>,
    pub(crate) compiled: &'a Arc<Compiled>,
    pub(crate) ruleset: &'a Arc<ImageRuleset>,
    pub(crate) streams: Streams,
}

/// The ends that the process gets. With a terminal there are no others.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// Empty if there is none.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Where it sends the terminal that it makes for itself.
    pub(crate) terminal: Option<OwnedFd>,
}

/// The lines the child writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Report {
    /// The program's process is there. Not yet executed, and perhaps dead: the shim, its parent, knows.
    Forked {
        pid: i32,
    },
    /// The program was executed. For a container's first one, what was seen of its sandbox just before.
    Started {
        pid: i32,
        sandbox: Findings,
    },
    Failed(Failure),
}

/// Starts the child, which leads a process group of its own: what it leaves half done is found by that.
pub(crate) fn start(creation: Creation<'_>) -> Result<Started, ShimError> {
    let announcement = Announcement::new().map_err(system("share memory with the helper"))?;
    let (report, to_shim) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(system("create a pipe"))?;
    let shim = nix::unistd::getpid();
    // SAFETY: the process has one thread, so the child may allocate and lock as it likes.
    match unsafe { nix::unistd::fork() }.map_err(system("fork to start a process"))? {
        ForkResult::Parent { child } => {
            // By both, so that it holds from whatever happens first.
            let _child_was_faster = nix::unistd::setpgid(child, child);
            Ok(Started {
                pid: child,
                report,
                announcement,
            })
        }
        ForkResult::Child => {
            drop(report);
            let _parent_was_faster = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
            let mut to_shim = File::from(to_shim);
            let outcome = match create(creation, shim, &announcement, &mut to_shim) {
                Ok((pid, sandbox)) => Report::Started {
                    pid: pid.as_raw(),
                    sandbox,
                },
                Err(failure) => Report::Failed(failure),
            };
            let told = say(&mut to_shim, &outcome);
            exit_now(i32::from(told.is_err()))
        }
    }
}

fn say(to_shim: &mut File, report: &Report) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    to_shim.write_all(&line)
}

fn create(
    creation: Creation<'_>,
    shim: Pid,
    announcement: &Announcement,
    to_shim: &mut File,
) -> Result<(Pid, Findings), Failure> {
    let failed = |what: &str, error: &dyn std::error::Error| format!("{what}: {}", chain(error));
    let Creation {
        work,
        config,
        compiled,
        ruleset,
        mut streams,
    } = creation;
    SigSet::empty()
        .thread_set_mask()
        .map_err(|error| failed("cannot unblock signals", &error))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| failed("cannot tie to the shim", &error))?;
    if nix::unistd::getppid() != shim {
        return Err("the shim is gone".into());
    }
    demand_one_thread()?;
    // What this process starts inherits it, and cannot take less again. Where the node may not spare anybody, the agent has
    // warned of it, and who is to be spared is as the shim is.
    match memory::score(config.oom_score_adj) {
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => {
            return Err(failed("cannot say when the kernel may end it for memory", &error).into());
        }
        _ => {}
    }
    // libcontainer keeps the caller's groups when the container names none.
    nix::unistd::setgroups(&[]).map_err(|error| failed("cannot drop groups", &error))?;

    let (status, write_status) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed("cannot create a pipe", &error))?;
    // A session is confined by the same profile as its container, which was looked at.
    let gate = match &work {
        Work::Init { .. } => Some(Gate::new().map_err(|error| failed("cannot share memory", &error))?),
        Work::Exec { .. } => None,
    };
    let expected = match &work {
        Work::Init {
            run,
            cgroup,
            ids,
            device_program,
            ..
        } => {
            let expected = Expected {
                ids: *ids,
                cgroup: cgroup.clone(),
                device_program: *device_program,
                config,
            };
            Some((*run, expected))
        }
        Work::Exec { .. } => None,
    };
    let confinement = Confinement {
        config: Arc::clone(config),
        compiled: Arc::clone(compiled),
        ruleset: Arc::clone(ruleset),
        mounts: Arc::new(spec::mount_rules(config)),
        status: Arc::new(write_status),
        gate,
        terminal: streams.terminal.take().map(Arc::new),
    };
    let pid = match work {
        Work::Init {
            bundle,
            id,
            library,
            cgroup,
            pod_cgroup,
            pod,
            ..
        } => {
            let mut builder = ContainerBuilder::new(id, SyscallType::default()).with_executor(confinement);
            if let Some(stdin) = streams.stdin {
                builder = builder.with_stdin(stdin);
            }
            if let Some(stdout) = streams.stdout {
                builder = builder.with_stdout(stdout);
            }
            if let Some(stderr) = streams.stderr {
                builder = builder.with_stderr(stderr);
            }
            // What libcontainer forks begins there.
            let entered = Entered::begin(&cgroup, &config.resources)
                .map_err(|error| failed("cannot put the container into its control groups", &error))?;
            let mut container = builder
                .with_root_path(library)
                .map_err(|error| failed("cannot use the library's directory", &error))?
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .as_sibling(true)
                .build()
                .map_err(|error| failed("cannot create the container", &error))?;
            if let Some(entered) = entered {
                let _ends_soon = entered.end();
            }
            // The program of the container runs from `start` on only.
            cgroup::forbid_swap(&cgroup, config.resources.memory_bytes)
                .map_err(|error| failed("cannot keep the container out of swap", &error))?;
            cgroup::kill_as_one(&cgroup)
                .map_err(|error| failed("cannot have the container killed as one", &error))?;
            cgroup::limit_pod(pod_cgroup, pod).map_err(|error| failed("cannot limit the pod", &error))?;
            container
                .start()
                .map_err(|error| failed("cannot start the container", &error))?;
            container.pid().ok_or("the container has no process")?
        }
        Work::Exec { argv, target } => {
            let pid = session::start(&target, &confinement, argv, &streams, announcement)?;
            drop(confinement);
            pid
        }
    };
    // Whoever stops the program before it is executed does not keep it from being known, and killed.
    say(to_shim, &Report::Forked { pid: pid.as_raw() })
        .map_err(|error| failed("cannot report to the shim", &error))?;
    // The started process now holds the only other end. It closes it by executing the program or by dying; the shim, which
    // is its parent, sees every death.
    let mut words = Words::new(status);
    let sandbox = match gate.zip(expected) {
        Some((gate, (run, expected))) => look(pid, gate, &expected, run, &mut words)?,
        None => Findings::default(),
    };
    // Nothing more is said, and the pipe is closed, once the program is executed.
    match words.next()? {
        None => Ok((pid, sandbox)),
        Some(Word::Failed(failure)) => Err(failure),
        Some(Word::Landlock(_)) => Err("the program's process spoke out of turn".into()),
    }
}

/// Looks at the confined process while it waits at the gate, has whoever watches the container look at it, and lets it go if all
/// layers are as they must be.
fn look(
    pid: Pid,
    gate: Gate,
    expected: &Expected<'_>,
    run: &Path,
    words: &mut Words,
) -> Result<Findings, Failure> {
    let landlock = match words.next()? {
        Some(Word::Landlock(outcome)) => outcome,
        Some(Word::Failed(failure)) => return Err(failure),
        None => return Err("the program's process died before it was confined".into()),
    };
    while !gate.is_reached() {
        // It fails to install its filter, or dies of it: then it says so, or the pipe is closed.
        if words.is_pending() {
            return match words.next()? {
                Some(Word::Failed(failure)) => Err(failure),
                _ => Err("the program's process died while it was confined".into()),
            };
        }
        std::thread::yield_now();
    }
    let findings = measure::findings(pid, expected, &landlock)?;
    if let Some((layer, finding)) = findings.lacking().find(|(_, f)| f.verdict == Verdict::Refused) {
        return Err(Failure {
            reason: format!("the sandbox is not what it must be: {layer}: {}", finding.detail),
            layer: Some(layer),
            phase: Phase::Preparation,
        });
    }
    // Who watches may miss it, and says so; the container starts all the same.
    if let Err(error) = watch::show(run, &expected.config.name, pid.as_raw()) {
        complain(&format!(
            "the start of {} is not shown: {error}",
            expected.config.name
        ));
    }
    gate.open();
    Ok(findings)
}

/// What the process says, line by line.
struct Words {
    lines: BufReader<File>,
}

impl Words {
    fn new(pipe: OwnedFd) -> Self {
        Self {
            lines: BufReader::new(File::from(pipe)),
        }
    }

    /// The next word; none once the pipe is closed, by executing the program or by dying.
    fn next(&mut self) -> Result<Option<Word>, Failure> {
        let mut line = String::new();
        let length = (&mut self.lines)
            .take(64 << 10)
            .read_line(&mut line)
            .map_err(|error| format!("cannot learn whether the program was executed: {error}"))?;
        if length == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line)
            .map(Some)
            .map_err(|error| Failure::from(format!("the program's process spoke nonsense: {error}")))
    }

    /// Whether there is something to read, be it the end.
    fn is_pending(&self) -> bool {
        let mut fds = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
        !self.lines.buffer().is_empty()
            || nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// libcontainer forks without telling the C library, which deadlocks beside another thread.
fn demand_one_thread() -> Result<(), String> {
    let count = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    match count {
        Ok(1) => Ok(()),
        Ok(threads) => Err(format!(
            "the shim has {threads} threads; it must have one to start a process"
        )),
        Err(error) => Err(format!("cannot count the shim's threads: {error}")),
    }
}
