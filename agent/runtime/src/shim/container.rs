//! One container from the shim's side: its start, its output, its end.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use agent_sandbox::{ImageError, ImageRuleset};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::cgroup::{self, CgroupError};
use crate::config::{ContainerConfig, ContainerState, Exit, Launch, PodPaths};
use crate::logs::{LogFile, Stream};
use crate::shim::capture::Source;
use crate::shim::creator::{self, Creation, Work};
use crate::shim::rootfs::{self, RootfsError, Shared};
use crate::shim::session::{self, Target};
use crate::shim::{ShimError, chain, complain, spec};

/// Kubernetes' code for a container whose program was never executed.
const EXIT_NOT_STARTED: i32 = 128;

/// Why a container could not be started or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("cannot put the root file system together")]
    Rootfs(#[source] RootfsError),
    #[error("cannot build the container's sandbox")]
    Sandbox(#[source] ImageError),
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
    #[error("cannot handle the container's control group")]
    Cgroup(#[source] CgroupError),
    #[error("cannot start the helper process")]
    Creator(#[source] ShimError),
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
    ruleset: Arc<ImageRuleset>,
    log: LogFile,
    log_is_full: bool,
    output: [Source; 2],
}

/// A child of the shim that is bringing a process up.
#[derive(Debug)]
pub(crate) struct Creator {
    pub(crate) pid: Pid,
    pub(crate) report: OwnedFd,
}

impl Container {
    /// Mounts the root, builds the ruleset and starts the helper that creates the container.
    pub(crate) fn start(
        pod: &Pod,
        config: &ContainerConfig,
        executables: &[PathBuf],
    ) -> Result<(Self, Creator), ContainerError> {
        let started = Self::try_start(pod, config.clone(), executables);
        if started.is_err()
            && let Err(error) = rootfs::unstage(&config.name)
        {
            complain(&chain(&error));
        }
        started
    }

    fn try_start(
        pod: &Pod,
        mut config: ContainerConfig,
        executables: &[PathBuf],
    ) -> Result<(Self, Creator), ContainerError> {
        let log = LogFile::open(&config.log_path, config.log_max_bytes, config.log_max_files)
            .map_err(ContainerError::Log)?;
        let user_namespace =
            fs::File::open(pod.shared.namespaces.join("user")).map_err(ContainerError::UserNamespace)?;
        let root = rootfs::stage(&pod.paths, &pod.launch.pod, user_namespace.as_fd(), &config)
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
            cgroup: &pod.cgroup(&config),
            unified_cgroups: pod.unified_cgroups,
        };
        fs::create_dir_all(&bundle).map_err(ContainerError::Configuration)?;
        fs::write(
            bundle.join("config.json"),
            spec::oci(&config, &surroundings).to_string(),
        )
        .map_err(ContainerError::Configuration)?;

        let (stdout, stdout_end) = Source::new(pod.owner(&config)).map_err(ContainerError::Pipe)?;
        let (stderr, stderr_end) = Source::new(pod.owner(&config)).map_err(ContainerError::Pipe)?;
        let id = library_id(&config);
        let work = Work::Init {
            bundle: &bundle,
            id,
            library: pod.paths.library(),
            cgroup: pod.cgroup(&config),
        };
        let creator = start_creator(work, &config, &ruleset, stdout_end, stderr_end)?;
        let output = [stdout, stderr];
        Ok((
            Self {
                config,
                state: ContainerState::Creating,
                ruleset,
                log,
                log_is_full: false,
                output,
            },
            creator,
        ))
    }

    /// Starts a program beside the container's own, as the same user in the same sandbox.
    pub(crate) fn exec(&self, pod: &Pod, argv: &[String]) -> Result<([Source; 2], Creator), ContainerError> {
        let pid = self.pid().ok_or(ContainerError::NotRunning)?;
        let process = session::hold(pid).map_err(ContainerError::Process)?;
        let target = Target {
            process,
            cgroup: pod.cgroup(&self.config),
        };
        let (stdout, stdout_end) = Source::new(pod.owner(&self.config)).map_err(ContainerError::Pipe)?;
        let (stderr, stderr_end) = Source::new(pod.owner(&self.config)).map_err(ContainerError::Pipe)?;
        let work = Work::Exec { argv, target };
        let creator = start_creator(work, &self.config, &self.ruleset, stdout_end, stderr_end)?;
        Ok(([stdout, stderr], creator))
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(Pid::from_raw(pid)),
            ContainerState::Creating | ContainerState::Exited(_) => None,
        }
    }

    /// The pipes to wait on.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.output.iter()
    }

    /// Moves output to the log until there is none for now.
    pub(crate) fn drain(&mut self) {
        let [stdout, stderr] = &mut self.output;
        for (source, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            // One stream must not keep the loop for itself.
            for _ in 0..16 {
                let log = &mut self.log;
                match source.read(|bytes| log.write(stream, bytes)) {
                    Ok(true) => self.log_is_full = false,
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
    }

    /// Records the end of the first process; all others of its pid namespace are gone by now.
    pub(crate) fn finish(&mut self, pod: &Pod, ended: Ended) {
        self.drain();
        if let Err(error) = self.log.finish() {
            complain(&format!(
                "the end of the output of {} is lost: {error}",
                self.config.name
            ));
        }
        let started_at = match &self.state {
            ContainerState::Running { started_at, .. } => Some(*started_at),
            ContainerState::Creating | ContainerState::Exited(_) => None,
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
    pub(crate) fn abandon(&mut self, pod: &Pod, reason: &str) {
        if let Err(error) = cgroup::kill_tree(&pod.cgroup(&self.config)) {
            complain(&chain(&error));
        }
        self.state = ContainerState::Exited(Exit {
            started_at: None,
            finished_at: Timestamp::now(),
            code: EXIT_NOT_STARTED,
            signal: None,
            oom_killed: false,
            message: reason.into(),
        });
    }

    pub(crate) fn kill(&self, pod: &Pod, signal: Signal) -> Result<(), Errno> {
        if signal == Signal::SIGKILL
            && let Err(error) = cgroup::lift_cpu_quota(&pod.cgroup(&self.config))
        {
            // It will die all the same, only later.
            complain(&chain(&error));
        }
        match self.pid() {
            // The process is an unreaped child, so its number is still its own.
            Some(pid) => nix::sys::signal::kill(pid, signal),
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
    fn owner(&self, config: &ContainerConfig) -> (u32, u32) {
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

fn start_creator(
    work: Work<'_>,
    config: &Arc<ContainerConfig>,
    ruleset: &Arc<ImageRuleset>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<Creator, ContainerError> {
    let creation = Creation {
        work,
        config,
        ruleset,
        stdout,
        stderr,
    };
    let (pid, report) = creator::start(creation).map_err(ContainerError::Creator)?;
    Ok(Creator { pid, report })
}

fn library_id(config: &ContainerConfig) -> String {
    format!("{}-{}", config.name, config.attempt)
}
