//! One container from the shim's side: its start, its output, its end.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use agent_sandbox::{Cache, CompileError, Compiled, ImageError, ImageRuleset, Layer, Report, Tcp};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::cgroup::{self, CgroupError};
use crate::config::{ContainerConfig, ContainerState, Exit, Launch, PidNamespace, PodPaths};
use crate::logs::{LogFile, Stream};
use crate::protocol::{Failure, Phase};
use crate::shim::announcement::Announcement;
use crate::shim::attachment::{Attachment, Copy};
use crate::shim::capture::{self, Source};
use crate::shim::conversation::Conversation;
use crate::shim::creator::{self, Creation, Streams, Work};
use crate::shim::interactive::Opening;
use crate::shim::rootfs::{self, RootfsError, Shared};
use crate::shim::session::{self, Target};
use crate::shim::{ShimError, chain, complain, spec, terminal};

/// Kubernetes' code for a container whose program was never executed.
const EXIT_NOT_STARTED: i32 = 128;

/// Why a container could not be started or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("cannot put the root file system together")]
    Rootfs(#[source] RootfsError),
    #[error("cannot build the container's sandbox")]
    Sandbox(#[source] ImageError),
    #[error("cannot compile the profile")]
    Profile(#[source] CompileError),
    #[error("cannot open the container's log")]
    Log(#[source] std::io::Error),
    #[error("cannot write the container's configuration")]
    Configuration(#[source] std::io::Error),
    #[error("cannot remove the container's files")]
    Remove(#[source] std::io::Error),
    #[error("cannot open the pod's user namespace")]
    UserNamespace(#[source] std::io::Error),
    #[error("the container does not run")]
    NotRunning,
    #[error("cannot hold on to the container's process")]
    Process(#[source] Errno),
    #[error("cannot create the container's pipes")]
    Pipe(#[source] Errno),
    #[error("cannot share a stream of the container")]
    Stream(#[source] std::io::Error),
    #[error("cannot handle the container's control group")]
    Cgroup(#[source] CgroupError),
    #[error("cannot start the helper process")]
    Creator(#[source] ShimError),
}

impl ContainerError {
    /// The layer of the sandbox that cannot be had, if that is what is wrong.
    pub(crate) fn layer(&self) -> Option<Layer> {
        match self {
            Self::Profile(_) => Some(Layer::Seccomp),
            Self::Sandbox(ImageError::Landlock { .. }) => Some(Layer::Landlock),
            Self::Cgroup(_) => Some(Layer::Cgroup),
            Self::UserNamespace(_) => Some(Layer::UserNamespace),
            _ => None,
        }
    }
}

/// What all containers of a pod share.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) launch: Launch,
    pub(crate) paths: PodPaths,
    pub(crate) holder: Pid,
    pub(crate) shared: Shared,
    pub(crate) unified_cgroups: bool,
}

/// A container that was started and not removed.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) state: ContainerState,
    /// What was seen of its sandbox.
    pub(crate) sandbox: Report,
    compiled: Arc<Compiled>,
    ruleset: Arc<ImageRuleset>,
    log: LogFile,
    log_is_full: bool,
    /// Standard output and standard error. A terminal is the first of them.
    output: [Source; 2],
    input: Input,
    attachments: Vec<Attachment>,
    has_rest: bool,
}

/// Where input for a container goes.
#[derive(Debug)]
enum Input {
    /// Nowhere: it never had any, or it was the one client's that has it.
    None,
    Pipe(OwnedFd),
    /// The program is being started and will send its terminal.
    Promised(UnixStream),
    /// Also says how large the terminal is.
    Terminal(OwnedFd),
}

/// Standard input, standard output, standard error and terminal for a client, those that there are.
pub(crate) type Parts = [Option<OwnedFd>; 4];

/// A child of the shim that is bringing a process up.
#[derive(Debug)]
pub(crate) struct Creator {
    pub(crate) pid: Pid,
    pub(crate) report: OwnedFd,
    pub(crate) announcement: Announcement,
    /// Once it has been reaped its number may be anybody's, as that of its process group.
    pub(crate) reaped: bool,
}

impl Creator {
    /// With what libcontainer has forked for it and not yet put into the container's control group.
    pub(crate) fn kill(&self) {
        if !self.reaped {
            let _may_be_dead = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
            let _may_be_gone = nix::sys::signal::killpg(self.pid, Signal::SIGKILL);
        }
    }
}

impl Container {
    /// Mounts the root, builds the ruleset and starts the helper that creates the container.
    pub(crate) fn start(
        pod: &Pod,
        profiles: &mut Cache,
        config: &ContainerConfig,
        executables: &[PathBuf],
        processes: Option<&fs::File>,
    ) -> Result<(Self, Creator), ContainerError> {
        let compiled = profiles
            .compile(&config.profile)
            .map_err(ContainerError::Profile)?;
        let started = Self::try_start(pod, compiled, config.clone(), executables, processes);
        if started.is_err()
            && let Err(error) = rootfs::unstage(&config.name)
        {
            complain(&chain(&error));
        }
        started
    }

    fn try_start(
        pod: &Pod,
        compiled: Arc<Compiled>,
        mut config: ContainerConfig,
        executables: &[PathBuf],
        processes: Option<&fs::File>,
    ) -> Result<(Self, Creator), ContainerError> {
        let log = LogFile::open(&config.log_path, config.log_max_bytes, config.log_max_files)
            .map_err(ContainerError::Log)?;
        let user_namespace =
            fs::File::open(pod.shared.namespaces.join("user")).map_err(ContainerError::UserNamespace)?;
        let root = rootfs::stage(&pod.paths, &pod.launch.pod, user_namespace.as_fd(), &mut config)
            .map_err(ContainerError::Rootfs)?;
        let directory = fs::File::open(&root.root).map_err(ContainerError::Configuration)?;
        if !config.env.iter().any(|(name, _)| name == "HOME") {
            let home = rootfs::home_of(directory.as_fd(), config.uid).map_err(ContainerError::Rootfs)?;
            config.env.push(("HOME".into(), home));
        }
        let config = Arc::new(config);
        let ruleset = ImageRuleset::build(directory.as_fd(), executables, &config.profile)
            .map_err(ContainerError::Sandbox)?;
        let ruleset = Arc::new(ruleset);

        let bundle = pod.paths.bundle(&config.name);
        let surroundings = spec::Surroundings {
            rootfs: &root,
            shared: &pod.shared,
            processes: processes.map(AsFd::as_fd),
            cgroup: &pod.cgroup(&config),
            unified_cgroups: pod.unified_cgroups,
        };
        fs::create_dir_all(&bundle).map_err(ContainerError::Configuration)?;
        fs::write(
            bundle.join("config.json"),
            spec::oci(&config, &surroundings).to_string(),
        )
        .map_err(ContainerError::Configuration)?;

        let (streams, output, input) = connect(&config, pod.owner(&config)).map_err(ContainerError::Pipe)?;
        let id = library_id(&config);
        let work = Work::Init {
            bundle: &bundle,
            run: &pod.paths.run,
            id,
            library: pod.paths.library(),
            cgroup: pod.cgroup(&config),
            pod_cgroup: &pod.launch.cgroup,
            pod: &pod.launch.pod,
            ids: (pod.launch.pod.id_base, pod.launch.pod.id_count),
            device_program: pod.launch.device_program,
        };
        let creator = start_creator(work, &config, &compiled, &ruleset, streams)?;
        Ok((
            Self {
                config,
                compiled,
                state: ContainerState::Creating,
                sandbox: Report::default(),
                ruleset,
                log,
                log_is_full: false,
                output,
                input,
                attachments: Vec::new(),
                has_rest: false,
            },
            creator,
        ))
    }

    /// Starts a program beside the container's own, as the same user in the same sandbox.
    pub(crate) fn exec(&self, pod: &Pod, argv: &[String]) -> Result<([Source; 2], Creator), ContainerError> {
        let target = self.target(pod)?;
        let (stdout, stdout_end) = Source::new(pod.owner(&self.config)).map_err(ContainerError::Pipe)?;
        let (stderr, stderr_end) = Source::new(pod.owner(&self.config)).map_err(ContainerError::Pipe)?;
        let work = Work::Exec { argv, target };
        let streams = Streams {
            stdout: Some(stdout_end),
            stderr: Some(stderr_end),
            ..Streams::default()
        };
        let creator = start_creator(work, &self.config, &self.compiled, &self.ruleset, streams)?;
        Ok(([stdout, stderr], creator))
    }

    /// The same, with streams for the agent to hold.
    pub(crate) fn open(
        &self,
        pod: &Pod,
        argv: &[String],
        stdin: bool,
        tty: bool,
    ) -> Result<(Opening, Creator), ContainerError> {
        let target = self.target(pod)?;
        let owner = pod.owner(&self.config);
        let (mut streams, mut opening) = (Streams::default(), Opening::default());
        if tty {
            let (near, far) = terminal::channel().map_err(ContainerError::Pipe)?;
            (opening.terminal, streams.terminal) = (Some(near), Some(far));
        } else {
            let (near, far) = capture::output(owner).map_err(ContainerError::Pipe)?;
            (opening.stdout, streams.stdout) = (Some(near), Some(far));
            let (near, far) = capture::output(owner).map_err(ContainerError::Pipe)?;
            (opening.stderr, streams.stderr) = (Some(near), Some(far));
            if stdin {
                let (far, near) = capture::input(owner).map_err(ContainerError::Pipe)?;
                (opening.stdin, streams.stdin) = (Some(near), Some(far));
            }
        }
        let work = Work::Exec { argv, target };
        let creator = start_creator(work, &self.config, &self.compiled, &self.ruleset, streams)?;
        Ok((opening, creator))
    }

    fn target(&self, pod: &Pod) -> Result<Target, ContainerError> {
        let pid = self.pid().ok_or(ContainerError::NotRunning)?;
        let process = session::hold(pid).map_err(ContainerError::Process)?;
        Ok(Target {
            process,
            cgroup: pod.cgroup(&self.config),
        })
    }

    /// TCP ports that the sandbox leaves for connections, if it limits them.
    pub(crate) fn connect(&self) -> Option<BTreeSet<u16>> {
        match &self.config.profile.tcp {
            Tcp::Unrestricted => None,
            Tcp::Denied => Some(BTreeSet::new()),
            Tcp::Ports(ports) => ports.connect.clone(),
        }
    }

    /// Takes the terminal that the started program has sent.
    pub(crate) fn take_terminal(&mut self) {
        let Input::Promised(channel) = &self.input else {
            return;
        };
        let outer = terminal::take(channel);
        let copy = outer.as_ref().map(OwnedFd::try_clone);
        match (outer, copy) {
            (Some(outer), Some(Ok(copy))) => {
                self.output = [Source::of(copy), Source::none()];
                self.input = Input::Terminal(outer);
            }
            _ => {
                complain(&format!("{} was started without its terminal", self.config.name));
                self.input = Input::None;
            }
        }
    }

    /// What a client gets that attaches now: input, copies of output, terminal.
    pub(crate) fn attach(&mut self, stdin: bool) -> Result<(Parts, [Copy; 2]), ContainerError> {
        self.pid().ok_or(ContainerError::NotRunning)?;
        let (stdout_copy, stdout) = Copy::new().map_err(ContainerError::Pipe)?;
        let mut parts: Parts = [None, Some(stdout), None, None];
        let mut copies = [stdout_copy, Copy::default()];
        let cloned = |descriptor: &OwnedFd| descriptor.try_clone().map_err(ContainerError::Stream);
        if let Input::Terminal(outer) = &self.input {
            parts[3] = Some(cloned(outer)?);
            return Ok((parts, copies));
        }
        let (stderr_copy, stderr) = Copy::new().map_err(ContainerError::Pipe)?;
        parts[2] = Some(stderr);
        copies[1] = stderr_copy;
        if stdin {
            // The one client's end is the last one: when it closes it, the program's input ends.
            parts[0] = match std::mem::replace(&mut self.input, Input::None) {
                Input::Pipe(pipe) if self.config.streams.stdin_once => Some(pipe),
                Input::Pipe(pipe) => {
                    let copy = cloned(&pipe)?;
                    self.input = Input::Pipe(pipe);
                    Some(copy)
                }
                other => {
                    self.input = other;
                    None
                }
            };
        }
        Ok((parts, copies))
    }

    pub(crate) fn add_attachment(&mut self, conversation: Conversation, copies: [Copy; 2]) {
        self.attachments.push(Attachment::new(conversation, copies));
    }

    pub(crate) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.iter()
    }

    /// Goes on with what attached clients wait for.
    pub(crate) fn advance_attachments(&mut self) {
        let ended = match &self.state {
            ContainerState::Exited(exit) => Some(exit.code),
            ContainerState::Failed { .. } => Some(EXIT_NOT_STARTED),
            ContainerState::Creating | ContainerState::Running { .. } => None,
        };
        self.attachments
            .retain_mut(|attachment| attachment.advance(ended));
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(Pid::from_raw(pid)),
            ContainerState::Creating | ContainerState::Exited(_) | ContainerState::Failed { .. } => None,
        }
    }

    /// The pipes to wait on: those whose output an attached client must still read do not count.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        let free = |index| {
            !self
                .attachments
                .iter()
                .any(|attachment| attachment.is_full(index))
        };
        let numbered = self.output.iter().enumerate();
        numbered.filter_map(move |(index, source)| free(index).then_some(source))
    }

    /// Moves output to the log and to attached clients until there is none for now; whether there was any.
    pub(crate) fn drain(&mut self) -> bool {
        self.move_output(true)
    }

    fn move_output(&mut self, wait_for_clients: bool) -> bool {
        let mut moved = false;
        let attachments = &mut self.attachments;
        let streams = [Stream::Stdout, Stream::Stderr].into_iter().enumerate();
        for ((index, stream), source) in streams.zip(&mut self.output) {
            // One stream must not keep the loop for itself.
            for _ in 0..16 {
                if wait_for_clients && attachments.iter().any(|attachment| attachment.is_full(index)) {
                    break;
                }
                let log = &mut self.log;
                let mut keep = |bytes: &[u8]| {
                    for attachment in attachments.iter_mut() {
                        attachment.write(index, bytes);
                    }
                    log.write(stream, bytes)
                };
                match source.read(&mut keep) {
                    Ok(true) => {
                        self.log_is_full = false;
                        moved = true;
                    }
                    Ok(false) => break,
                    // The container goes on without a log rather than stop; said once, not per line.
                    Err(error) => {
                        if !std::mem::replace(&mut self.log_is_full, true) {
                            complain(&format!("output of {} is lost: {error}", self.config.name));
                        }
                    }
                }
            }
        }
        moved
    }

    /// Kills what is left of a container whose pid namespace is not its own: there, nothing else ends with the first process.
    /// Some may be slow to die, or have forked meanwhile; so this is to be called while [`Self::has_rest`].
    pub(crate) fn kill_rest(&mut self, pod: &Pod) {
        if self.config.pid_namespace == PidNamespace::Own {
            return;
        }
        let group = pod.cgroup(&self.config);
        let left = cgroup::kill_tree(&group).and_then(|()| cgroup::members(&group));
        self.has_rest = match left {
            Ok(left) => !left.is_empty(),
            // Said once, and tried again when the container is removed.
            Err(error) => {
                complain(&chain(&error));
                false
            }
        };
    }

    /// Whether processes of a container that has ended are left.
    pub(crate) fn has_rest(&self) -> bool {
        self.has_rest
    }

    /// Records the end of the first process. All others are gone by now with its pid namespace, or are killed here if that
    /// is not its own.
    pub(crate) fn finish(&mut self, pod: &Pod, ended: Ended) {
        self.kill_rest(pod);
        self.move_output(false);
        self.input = Input::None;
        if let Err(error) = self.log.finish() {
            complain(&format!(
                "the end of the output of {} is lost: {error}",
                self.config.name
            ));
        }
        let started_at = match &self.state {
            ContainerState::Running { started_at, .. } => Some(*started_at),
            ContainerState::Creating | ContainerState::Exited(_) | ContainerState::Failed { .. } => None,
        };
        let oom_killed = cgroup::was_oom_killed(&pod.cgroup(&self.config)).unwrap_or_else(|error| {
            complain(&chain(&error));
            false
        });
        self.state = ContainerState::Exited(Exit {
            started_at,
            finished_at: Timestamp::now(),
            code: ended.code(),
            signal: ended.signal,
            oom_killed,
            message: String::new(),
        });
    }

    /// Records that the program was never executed, and ends what was begun.
    pub(crate) fn abandon(&mut self, pod: &Pod, failure: &Failure) {
        if let Err(error) = cgroup::kill_tree(&pod.cgroup(&self.config)) {
            complain(&chain(&error));
        }
        let message = failure.reason.clone();
        self.state = match failure.phase {
            Phase::Preparation => ContainerState::Failed { message },
            Phase::Execution => ContainerState::Exited(Exit {
                started_at: None,
                finished_at: Timestamp::now(),
                code: EXIT_NOT_STARTED,
                signal: None,
                oom_killed: false,
                message,
            }),
        };
    }

    /// Sends the signal, of any number that the kernel has, to the first process.
    pub(crate) fn kill(&self, pod: &Pod, signal: i32) -> Result<(), Errno> {
        if signal == libc::SIGKILL {
            // The pod has its own again when the next container starts: until then the others have theirs.
            for group in [&pod.cgroup(&self.config), &pod.launch.cgroup] {
                if let Err(error) = cgroup::lift_cpu_quota(group) {
                    // It will die all the same, only later.
                    complain(&chain(&error));
                }
            }
        }
        match self.pid() {
            // SAFETY: numbers only. The process is an unreaped child, so its number is still its own.
            Some(pid) => Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop),
            None => Ok(()),
        }
    }

    /// Takes away what the start made, but for the writable layer, which the agent deletes.
    pub(crate) fn remove(&self, pod: &Pod) -> Result<(), ContainerError> {
        let name = &self.config.name;
        rootfs::unstage(name).map_err(ContainerError::Rootfs)?;
        for directory in [
            pod.paths.bundle(name),
            pod.paths.library().join(library_id(&self.config)),
        ] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ContainerError::Remove(error));
                }
                _ => {}
            }
        }
        cgroup::remove_tree(&pod.cgroup(&self.config)).map_err(ContainerError::Cgroup)
    }
}

impl Pod {
    /// Absolute cgroup of a container.
    pub(crate) fn cgroup(&self, config: &ContainerConfig) -> String {
        format!("{}/{}", self.launch.cgroup, library_id(config))
    }

    /// The container's user as the host sees it.
    pub(crate) fn owner(&self, config: &ContainerConfig) -> (u32, u32) {
        let base = self.launch.pod.id_base;
        (base.saturating_add(config.uid), base.saturating_add(config.gid))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) signal: Option<i32>,
}

impl Ended {
    pub(crate) fn code(self) -> i32 {
        self.signal.map_or(self.status, |signal| 128 + signal)
    }
}

/// The streams of a container's first process, and the ends of them that stay here.
fn connect(config: &ContainerConfig, owner: (u32, u32)) -> Result<(Streams, [Source; 2], Input), Errno> {
    let mut streams = Streams::default();
    if config.streams.tty {
        let (near, far) = terminal::channel()?;
        streams.terminal = Some(far);
        return Ok((streams, [Source::none(), Source::none()], Input::Promised(near)));
    }
    let (stdout, end) = Source::new(owner)?;
    streams.stdout = Some(end);
    let (stderr, end) = Source::new(owner)?;
    streams.stderr = Some(end);
    let mut input = Input::None;
    if config.streams.stdin {
        let (end, near) = capture::input(owner)?;
        (streams.stdin, input) = (Some(end), Input::Pipe(near));
    }
    Ok((streams, [stdout, stderr], input))
}

fn start_creator(
    work: Work<'_>,
    config: &Arc<ContainerConfig>,
    compiled: &Arc<Compiled>,
    ruleset: &Arc<ImageRuleset>,
    streams: Streams,
) -> Result<Creator, ContainerError> {
    let creation = Creation {
        work,
        config,
        compiled,
        ruleset,
        streams,
    };
    let started = creator::start(creation).map_err(ContainerError::Creator)?;
    Ok(Creator {
        pid: started.pid,
        report: started.report,
        announcement: started.announcement,
        reaped: false,
    })
}

fn library_id(config: &ContainerConfig) -> String {
    format!("{}-{}", config.name, config.attempt)
}
