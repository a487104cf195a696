//! The shim's loop: requests, output, deaths and deadlines, over `poll` in one thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use agent_sandbox::{Cache, Report as Findings};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::cgroup;
use crate::config::{
    ContainerConfig, ContainerState, ContainerStatus, Launch, PidNamespace, PodPaths, PodStatus,
};
use crate::memory;
use crate::protocol::{Failure, Phase, Request, Response};
use crate::shim::capture::Source;
use crate::shim::children::Unclaimed;
use crate::shim::container::{Container, Pod};
use crate::shim::conversation::Conversation;
use crate::shim::creator::Report;
use crate::shim::interactive::Interactive;
use crate::shim::job::{Forked, Job, START_TIMEOUT, Session};
use crate::shim::pace::Pace;
use crate::shim::rootfs::Shared;
use crate::shim::{ShimError, chain, complain, file_error, system};

/// Conversations at a time: the agent's few, and waiters.
const MAX_CLIENTS: usize = 32;

/// Programs beside the containers' own that keep a client waiting, at a time. The other conversations are for whoever
/// starts, signals and removes.
const MAX_WAITING: usize = 24;

/// The kernel's `_NSIG`, on all machines that this is for.
const MAX_SIGNAL: i32 = 64;

/// How long killed processes may take to leave their control groups.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a pending removal is tried again, and what is left of a container is killed; nothing announces that a control
/// group has become empty.
const RETRY: Duration = Duration::from_millis(5);

/// How long nothing must happen before memory is given back.
const QUIET: Duration = Duration::from_secs(1);

/// All the shim knows.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(super) pod: Pod,
    listener: UnixListener,
    signals: SignalFd,
    version: u64,
    pub(super) clients: BTreeMap<u64, Conversation>,
    next_client: u64,
    pub(super) containers: BTreeMap<String, Container>,
    profiles: Cache,
    pub(super) jobs: Vec<Job>,
    pub(super) interactive: Vec<Interactive>,
    pub(super) unclaimed: VecDeque<Unclaimed>,
    /// Children that died may be left to reap.
    more_are_dead: bool,
    pub(super) next_job: u64,
    /// Creators that have not been reaped, those of finished jobs included.
    pub(super) creators: BTreeSet<Pid>,
    /// What the pod's output may cost.
    pace: Pace,
    removals: Vec<(u64, String)>,
    shutdown: Option<Instant>,
    /// Whom to tell when everything has ended.
    shutdown_clients: Vec<u64>,
    /// Whether something was started since memory was last given back.
    pub(super) worked: bool,
}

/// Has no signal ignored, but SIGPIPE, which Rust ignores and [`super::program`] restores. Who starts the agent may
/// have it ignore some, as `nohup` does SIGHUP: a program in a pod would be born with that, and a shell could not even catch it.
pub(crate) fn heed_signals() -> Result<(), Errno> {
    for signal in Signal::iterator().filter(|signal| *signal != Signal::SIGPIPE) {
        // SAFETY: all zeroes is a value of this plain data, which the first call fills; the second sets no handler.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            Errno::result(libc::sigaction(signal as i32, std::ptr::null(), &raw mut now))?;
            if now.sa_sigaction == libc::SIG_IGN {
                nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl)?;
            }
        }
    }
    Ok(())
}

/// Blocks the signals the loop handles and returns the descriptor they come through.
pub(crate) fn block_signals() -> Result<SignalFd, Errno> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

impl Supervisor {
    pub(crate) fn new(
        launch: Launch,
        paths: PodPaths,
        (holder, shared): (Pid, Shared),
        listener: UnixListener,
        signals: SignalFd,
    ) -> Result<Self, ShimError> {
        listener
            .set_nonblocking(true)
            .map_err(file_error("listen on", &paths.socket()))?;
        let unified_cgroups = cgroup::is_unified().map_err(|error| ShimError::Holder {
            reason: chain(&error),
        })?;
        let pod = Pod {
            launch,
            paths,
            holder,
            shared,
            unified_cgroups,
        };
        let supervisor = Self {
            pod,
            listener,
            signals,
            version: 1,
            clients: BTreeMap::new(),
            next_client: 0,
            containers: BTreeMap::new(),
            profiles: Cache::default(),
            jobs: Vec::new(),
            interactive: Vec::new(),
            unclaimed: VecDeque::new(),
            more_are_dead: false,
            next_job: 0,
            creators: BTreeSet::new(),
            pace: Pace::begin(Instant::now()).map_err(system("read the processor time"))?,
            removals: Vec::new(),
            shutdown: None,
            shutdown_clients: Vec::new(),
            worked: true,
        };
        supervisor.save();
        Ok(supervisor)
    }

    /// Serves until the pod is shut down.
    pub(crate) fn run(&mut self) -> Result<(), ShimError> {
        loop {
            self.wait()?;
            self.read_signals()?;
            self.more_are_dead = self.reap()?;
            self.read_reports();
            self.move_output()?;
            self.advance_interactive();
            self.accept();
            self.read_clients();
            self.enforce_deadlines();
            self.kill_rests();
            self.retry_removals();
            if self.is_shut_down() {
                for client in std::mem::take(&mut self.shutdown_clients) {
                    self.answer(client, &Response::Done);
                }
                return Ok(());
            }
        }
    }

    fn wait(&mut self) -> Result<(), ShimError> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        // Who is not accepted yet would be announced again and again.
        if self.clients.len() < MAX_CLIENTS {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(
            self.clients
                .values()
                .map(|client| PollFd::new(client.fd(), PollFlags::POLLIN)),
        );
        let now = Instant::now();
        let paused = self.pace.waits_until(now);
        let output = self.containers.values().flat_map(Container::sources);
        let sessions = self
            .jobs
            .iter()
            .filter_map(|job| job.session.as_ref())
            .flat_map(|s| &s.sources);
        let output = output.chain(sessions).filter(|_source| paused.is_none());
        fds.extend(
            output
                .filter_map(Source::fd)
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        let attachments: Vec<_> = self
            .containers
            .values()
            .flat_map(Container::attachments)
            .collect();
        for attachment in &attachments {
            fds.push(PollFd::new(attachment.client(), PollFlags::POLLIN));
            fds.extend(
                attachment
                    .waiting()
                    .map(|pipe| PollFd::new(pipe, PollFlags::POLLOUT)),
            );
        }
        let interactive = self.interactive.iter().filter_map(Interactive::client);
        fds.extend(interactive.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let reports = self.jobs.iter().filter(|job| job.is_starting());
        fds.extend(reports.map(|job| PollFd::new(job.creator.report.as_fd(), PollFlags::POLLIN)));

        let stalled = attachments.iter().filter_map(|attachment| attachment.deadline());
        let deadlines = self
            .jobs
            .iter()
            .map(|job| job.deadline)
            .chain(stalled)
            .chain(paused)
            .map(|deadline| deadline.saturating_duration_since(now));
        let dying = self.containers.values().any(Container::has_rest);
        let retry = (dying || !self.removals.is_empty() || self.shutdown.is_some()).then_some(RETRY);
        let dead = self.more_are_dead.then_some(Duration::ZERO);
        let deadline = deadlines.chain(retry).chain(dead).min();
        let quiet = (deadline.is_none() && self.worked).then_some(QUIET);
        let timeout = match deadline.or(quiet) {
            // Rounded up, so that the loop does not spin through the last millisecond.
            Some(wait) => PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match nix::poll::poll(&mut fds, timeout) {
            Ok(0) if quiet.is_some() => {
                memory::give_back();
                self.worked = false;
                Ok(())
            }
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(system("wait for events")(errno)),
        }
    }

    fn read_signals(&mut self) -> Result<(), ShimError> {
        while let Some(signal) = self.signals.read_signal().map_err(system("read signals"))? {
            if i32::try_from(signal.ssi_signo) == Ok(libc::SIGTERM) {
                self.begin_shutdown();
            }
        }
        Ok(())
    }

    pub(super) fn read_reports(&mut self) {
        let mut index = 0;
        while let Some(job) = self.jobs.get_mut(index) {
            match job.is_starting().then(|| job.read_report()).flatten() {
                None => index += 1,
                Some(Report::Forked { pid }) => match self.claim(Pid::from_raw(pid)) {
                    Some(forked) => {
                        if let Some(job) = self.jobs.get_mut(index) {
                            job.forked = Some(forked);
                        }
                    }
                    None => self.fail_job(index, format!("process {pid} is no child of the shim").into()),
                },
                Some(Report::Started { pid, sandbox }) => {
                    match job.forked.take_if(|forked| forked.pid.as_raw() == pid) {
                        Some(forked) => {
                            if self.started(index, &forked, sandbox) {
                                self.jobs.remove(index);
                            } else {
                                index += 1;
                            }
                        }
                        None => self.fail_job(index, format!("process {pid} was not announced").into()),
                    }
                }
                Some(Report::Failed(failure)) => self.fail_job(index, failure),
            }
        }
        self.forget_unclaimed();
    }

    /// A process runs, or has run. True when the job is done with that.
    fn started(&mut self, index: usize, forked: &Forked, sandbox: Findings) -> bool {
        let Forked { pid, ended } = *forked;
        let Some(job) = self.jobs.get_mut(index) else {
            return false;
        };
        if let Some(session) = &mut job.session {
            session.pid = Some(pid);
            session.ended = ended;
            job.deadline = Instant::now() + session.timeout;
            return false;
        }
        let client = job.client;
        if let Some(opening) = job.opening.take() {
            let container = job.container.clone();
            self.opened(client, &container, pid, ended, &opening);
            return true;
        }
        if let Some(container) = self.containers.get_mut(&job.container) {
            container.take_terminal();
            container.sandbox = sandbox;
            container.state = ContainerState::Running {
                pid: pid.as_raw(),
                started_at: Timestamp::now(),
            };
            if let Some(ended) = ended {
                container.finish(&self.pod, ended);
            }
        }
        self.changed();
        self.answer(client, &Response::Done);
        true
    }

    pub(super) fn fail_job(&mut self, index: usize, failure: Failure) {
        let job = self.jobs.remove(index);
        job.kill();
        self.end_untold(&job);
        if job.starts_container()
            && let Some(container) = self.containers.get_mut(&job.container)
        {
            container.drain();
            container.abandon(&self.pod, &failure);
            if let Some(layer) = failure.layer {
                container.sandbox = Findings::refusal(layer, failure.reason.as_str());
            }
            self.changed();
        }
        self.answer(job.client, &Response::Failed(failure));
    }

    /// Moves what containers and sessions have written, unless too much was spent on that.
    fn move_output(&mut self) -> Result<(), ShimError> {
        let now = Instant::now();
        let reads = self.pace.waits_until(now).is_none();
        let mut moved = false;
        for container in self.containers.values_mut() {
            moved |= reads && container.drain();
            container.advance_attachments();
        }
        if reads {
            let sessions = self.jobs.iter_mut().filter_map(|job| job.session.as_mut());
            moved |= sessions.fold(false, |moved, session| session.read() | moved);
        }
        self.advance_sessions();
        let turned = self.pace.turn(now, moved);
        turned.map_err(system("read the processor time"))
    }

    fn advance_sessions(&mut self) {
        let mut index = 0;
        while let Some(job) = self.jobs.get_mut(index) {
            match job.session.as_mut().and_then(Session::advance) {
                None => index += 1,
                Some(output) => {
                    let client = job.client;
                    self.jobs.remove(index);
                    self.answer(client, &Response::Exec(output));
                }
            }
        }
    }

    fn accept(&mut self) {
        while self.clients.len() < MAX_CLIENTS {
            match self.listener.accept() {
                Ok((stream, _)) => match Conversation::admit(stream) {
                    Ok(client) => {
                        self.clients.insert(self.next_client, client);
                        self.next_client += 1;
                    }
                    Err(error) => complain(&format!("a client is turned away: {error}")),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    complain(&format!("cannot accept a client: {error}"));
                    return;
                }
            }
        }
    }

    fn read_clients(&mut self) {
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            match client.read_request() {
                Ok(None) => {}
                Ok(Some(request)) => self.serve(id, request),
                // Hung up, or not one of ours.
                Err(_) => {
                    self.clients.remove(&id);
                }
            }
        }
    }

    fn serve(&mut self, client: u64, request: Request) {
        let refusal: Result<(), Failure> = match request {
            Request::Status => return self.answer(client, &Response::Status(self.status())),
            Request::WaitChange { seen } if seen != self.version => {
                return self.answer(client, &Response::Status(self.status()));
            }
            Request::WaitChange { seen } => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.waits_from = Some(seen);
                }
                return;
            }
            Request::Shutdown => {
                self.shutdown_clients.push(client);
                return self.begin_shutdown();
            }
            Request::Start { config, executables } => self.start(client, &config, &executables),
            Request::Exec {
                container,
                argv,
                timeout_ms,
            } => self
                .exec(client, container, &argv, Duration::from_millis(timeout_ms))
                .map_err(Failure::from),
            Request::Open {
                container,
                argv,
                stdin,
                tty,
            } => self
                .open(client, container, &argv, stdin, tty)
                .map_err(Failure::from),
            Request::Attach { container, stdin } => {
                self.attach(client, &container, stdin).map_err(Failure::from)
            }
            Request::Socket { ipv6 } => self.socket(client, ipv6).map_err(Failure::from),
            Request::Network => self.network(client).map_err(Failure::from),
            Request::Signal { container, signal } => {
                self.signal(client, &container, signal).map_err(Failure::from)
            }
            Request::Remove { container } => self.remove(client, container).map_err(Failure::from),
        };
        if let Err(failure) = refusal {
            self.answer(client, &Response::Failed(failure));
        }
    }

    fn start(
        &mut self,
        client: u64,
        config: &ContainerConfig,
        executables: &[std::path::PathBuf],
    ) -> Result<(), Failure> {
        if self.shutdown.is_some() {
            return Err("the pod is being shut down".into());
        }
        let name = config.name.clone();
        if self.containers.contains_key(&name) {
            return Err(format!("container {name} exists; remove it before it is started again").into());
        }
        let processes = self.processes_of(config)?;
        let (container, creator) = Container::start(
            &self.pod,
            &mut self.profiles,
            config,
            executables,
            processes.as_ref(),
        )
        .map_err(|error| Failure {
            layer: error.layer(),
            reason: chain(&error),
            phase: Phase::Preparation,
        })?;
        self.containers.insert(name.clone(), container);
        self.changed();
        self.begin(Job::new(name, client, creator, None));
        Ok(())
    }

    /// The pid namespace that a new container joins, unless it gets one of its own.
    fn processes_of(&self, config: &ContainerConfig) -> Result<Option<fs::File>, String> {
        let path = match &config.pid_namespace {
            PidNamespace::Own => return Ok(None),
            PidNamespace::Pod if self.pod.launch.pod.shares_processes => {
                self.pod.shared.namespaces.join("pid")
            }
            PidNamespace::Pod => return Err("the pod has no pid namespace".into()),
            PidNamespace::Of(name) => {
                let target = self.containers.get(name).and_then(Container::pid);
                let target = target.ok_or_else(|| format!("container {name} does not run"))?;
                // The process is an unreaped child, so its number is still its own.
                format!("/proc/{target}/ns/pid").into()
            }
        };
        let file = fs::File::open(path);
        file.map(Some)
            .map_err(|error| format!("cannot open the pid namespace to join: {error}"))
    }

    /// Whether one more program may be started beside the containers' own.
    pub(super) fn demand_room(&self) -> Result<(), String> {
        let waiting = self.jobs.iter().filter(|job| !job.starts_container()).count();
        if waiting < MAX_WAITING {
            return Ok(());
        }
        Err(format!(
            "{waiting} programs are being waited for in the pod's containers; probes and hooks must end before others start"
        ))
    }

    fn exec(&mut self, client: u64, name: String, argv: &[String], timeout: Duration) -> Result<(), String> {
        self.demand_room()?;
        let container = self
            .containers
            .get(&name)
            .ok_or_else(|| format!("there is no container {name}"))?;
        let (sources, creator) = container.exec(&self.pod, argv).map_err(|error| chain(&error))?;
        let output = [Vec::new(), Vec::new()];
        let session = Session {
            timeout,
            pid: None,
            ended: None,
            sources,
            output,
            truncated: false,
        };
        self.begin(Job::new(name, client, creator, Some(session)));
        Ok(())
    }

    fn signal(&mut self, client: u64, name: &str, signal: i32) -> Result<(), String> {
        if !(1..=MAX_SIGNAL).contains(&signal) {
            return Err(format!("{signal} is no signal"));
        }
        let container = self
            .containers
            .get(name)
            .ok_or_else(|| format!("there is no container {name}"))?;
        container
            .kill(&self.pod, signal)
            .map_err(|errno| format!("cannot signal container {name}: {errno}"))?;
        self.answer(client, &Response::Done);
        Ok(())
    }

    fn remove(&mut self, client: u64, name: String) -> Result<(), String> {
        match self.containers.get(&name).map(|container| &container.state) {
            None => self.answer(client, &Response::Done),
            Some(ContainerState::Exited(_) | ContainerState::Failed { .. }) => {
                self.removals.push((client, name));
            }
            Some(_) => return Err(format!("container {name} has not exited")),
        }
        Ok(())
    }

    /// What is left of a container ends with it, whether somebody removes that or not.
    fn kill_rests(&mut self) {
        for container in self
            .containers
            .values_mut()
            .filter(|container| container.has_rest())
        {
            container.kill_rest(&self.pod);
        }
    }

    /// A control group may hold dying processes for a moment, so removals are tried until they succeed.
    fn retry_removals(&mut self) {
        for (client, name) in std::mem::take(&mut self.removals) {
            let Some(container) = self.containers.get_mut(&name) else {
                self.answer(client, &Response::Done);
                continue;
            };
            container.kill_rest(&self.pod);
            match container.remove(&self.pod) {
                Ok(()) => {
                    self.containers.remove(&name);
                    self.changed();
                    self.answer(client, &Response::Done);
                }
                // A client that gave up ends the attempts.
                Err(_busy) if self.clients.contains_key(&client) => self.removals.push((client, name)),
                Err(error) => complain(&format!("container {name} is not removed: {}", chain(&error))),
            }
        }
    }

    fn enforce_deadlines(&mut self) {
        let now = Instant::now();
        let mut index = 0;
        while let Some(job) = self.jobs.get_mut(index) {
            if now < job.deadline {
                index += 1;
                continue;
            }
            match job
                .session
                .as_ref()
                .and_then(|session| session.pid.zip(Some(session.ended)))
            {
                Some((pid, ended)) => {
                    // Its number is its own until `bury` has heard of its end.
                    if ended.is_none() {
                        let _may_be_dead = nix::sys::signal::kill(pid, Signal::SIGKILL);
                    }
                    job.deadline = now + START_TIMEOUT;
                    index += 1;
                }
                None => {
                    let reason = format!("not started within {} s", START_TIMEOUT.as_secs());
                    self.fail_job(index, reason.into());
                }
            }
        }
    }

    pub(super) fn begin_shutdown(&mut self) {
        if self.shutdown.is_none() {
            self.shutdown = Some(Instant::now() + SHUTDOWN_TIMEOUT);
        }
        for job in &self.jobs {
            job.kill();
        }
    }

    /// True once nothing runs and nothing is mounted or grouped any more, or it took too long; the agent
    /// clears what is left.
    fn is_shut_down(&mut self) -> bool {
        let Some(deadline) = self.shutdown else {
            return false;
        };
        // The last of them went when its groups were empty.
        if self.containers.is_empty() && self.jobs.is_empty() {
            return true;
        }
        // Again and again: a start that was under way may have brought up one more process.
        if let Err(error) = cgroup::kill_tree(&self.pod.launch.cgroup) {
            complain(&chain(&error));
        }
        let runs = self
            .containers
            .values()
            .any(|container| container.pid().is_some());
        if runs || !self.jobs.is_empty() {
            return Instant::now() >= deadline;
        }
        let name = |container: &Container| container.config.name.clone();
        for container in self.containers.values().map(name).collect::<Vec<_>>() {
            let removed = self
                .containers
                .get(&container)
                .map(|found| found.remove(&self.pod));
            if let Some(Ok(())) = removed {
                self.containers.remove(&container);
            }
        }
        self.containers.is_empty() || Instant::now() >= deadline
    }

    fn status(&self) -> PodStatus {
        let status = |(name, container): (&String, &Container)| ContainerStatus {
            name: name.clone(),
            attempt: container.config.attempt,
            state: container.state.clone(),
            sandbox: container.sandbox.clone(),
            connect: container.connect(),
            stop_signal: container.config.stop_signal,
            uid: Some(container.config.uid),
        };
        PodStatus {
            version: self.version,
            netns: format!("/proc/{}/ns/net", self.pod.holder).into(),
            holder_pid: self.pod.holder.as_raw(),
            shim_pid: nix::unistd::getpid().as_raw(),
            containers: self.containers.iter().map(status).collect(),
        }
    }

    /// Tells waiters and the disk that something is different.
    pub(super) fn changed(&mut self) {
        self.version += 1;
        self.save();
        let version = self.version;
        let due = |(id, client): (&u64, &Conversation)| {
            client
                .waits_from
                .is_some_and(|seen| seen != version)
                .then_some(*id)
        };
        for id in self.clients.iter().filter_map(due).collect::<Vec<_>>() {
            self.answer(id, &Response::Status(self.status()));
        }
    }

    /// What `recover` reads if this process dies.
    fn save(&self) {
        let path = self.pod.paths.status();
        let draft = path.with_extension("new");
        let saved = serde_json::to_vec(&self.status())
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&draft, text))
            .and_then(|()| fs::rename(&draft, &path));
        if let Err(error) = saved {
            complain(&format!("cannot save the pod's state: {error}"));
        }
    }

    fn answer(&mut self, client: u64, response: &Response) {
        let Some(client) = self.clients.remove(&client) else {
            return;
        };
        if let Err(error) = client.answer(response) {
            complain(&format!("an answer is lost: {}", chain(&error)));
        }
    }
}
