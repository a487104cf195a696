//! Kills a process in the middle of what it does: at its n-th system call that changes something.
//!
//! A program that may die anywhere is tried by walking: run once to count the steps, then once for each step and die there.
//! The kernel's tracing does it from outside (`ptrace`, so the test must be root), and the program needs no hooks that a
//! release could be caught with.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The process that is followed, with all its threads.
    Itself,
    /// Whichever process it has forked makes the step, until that one executes a program.
    Offspring,
}

/// Whose steps count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// Everything that changes files, mounts, processes, namespaces, or what another process hears.
    All,
    /// The same without plain writes and messages: for a process that speaks to others all the time.
    Outward,
}

/// Where the victim dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fatal {
    /// Nowhere: its steps are counted.
    Nowhere,
    /// At its step of this number, counted from 1 over all its threads and processes.
    Step(usize),
    /// Between a fork and the next write of who forked: before it can tell of it. What was forked is stopped.
    BeforeWord,
}

/// A process that is being followed, by another process: in this one, whoever waits for children would take the tracer's
/// news away.
pub struct Walk {
    tracer: Child,
    news: BufReader<ChildStdout>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Steps that the victim took, the fatal one included.
    pub steps: usize,
    /// The one that it died at.
    pub killed: Option<Step>,
    /// What was forked and stopped.
    pub stopped: Option<i32>,
}

/// One step that the victim is about to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Counted from 1 over all its threads and processes.
    pub ordinal: usize,
    /// Number of the system call.
    pub call: i64,
    /// Who takes it.
    pub process: i32,
}

/// Follows `pid` from now on, and kills the victim at the fatal step. With the kill the following ends. `program` is
/// whatever calls [`main`] with the arguments after its subcommand `walk`.
///
/// # Errors
///
/// When the process is gone or may not be traced.
pub fn follow(program: &Path, pid: i32, victim: Victim, steps: Steps, fatal: Fatal) -> io::Result<Walk> {
    let fatal = match fatal {
        Fatal::Nowhere => "nowhere".to_owned(),
        Fatal::Step(number) => number.to_string(),
        Fatal::BeforeWord => "before-word".to_owned(),
    };
    let mut tracer = Command::new(program)
        .arg("walk")
        .arg(pid.to_string())
        .arg(if victim == Victim::Itself {
            "itself"
        } else {
            "offspring"
        })
        .arg(if steps == Steps::All { "all" } else { "outward" })
        .arg(fatal)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let news = tracer.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut news = BufReader::new(news);
    let mut line = String::new();
    news.read_line(&mut line)?;
    match line.trim() {
        FOLLOWING => Ok(Walk { tracer, news }),
        other => Err(io::Error::other(format!("cannot follow {pid}: {other}"))),
    }
}

impl Walk {
    /// Stops following; the process goes on by itself.
    pub fn stop(&mut self) {
        self.tracer.stdin = None;
    }

    /// What came of it. Without [`Walk::stop`] that waits for the end of the process.
    ///
    /// # Errors
    ///
    /// When the tracer has died.
    pub fn outcome(mut self) -> io::Result<Outcome> {
        let mut line = String::new();
        self.news.read_line(&mut line)?;
        self.tracer.wait()?;
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}

/// What the tracer says once it follows.
const FOLLOWING: &str = "following";

/// The tracer: a process with nothing else to do.
///
/// # Errors
///
/// When the arguments are not those of [`follow`], or the process may not be traced.
pub fn main(arguments: &[String]) -> io::Result<()> {
    let [pid, victim, steps, fatal] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let pid = pid.parse().map_err(io::Error::other)?;
    let victim = if victim == "itself" {
        Victim::Itself
    } else {
        Victim::Offspring
    };
    let steps = if steps == "all" {
        Steps::All
    } else {
        Steps::Outward
    };
    let fatal = match fatal.as_str() {
        "nowhere" => Fatal::Nowhere,
        "before-word" => Fatal::BeforeWord,
        number => Fatal::Step(number.parse().map_err(io::Error::other)?),
    };
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let mut tracer = Tracer::new(Pid::from_raw(pid), victim, steps, fatal, outcome.clone());
    tracer.attach()?;
    let mut output = io::stdout();
    writeln!(output, "{FOLLOWING}")?;
    output.flush()?;
    // The end of the input is the word to stop; with this process the following ends.
    std::thread::spawn(move || {
        let _ended = io::stdin().read_to_end(&mut Vec::new());
        let told = tell(&outcome);
        std::process::exit(i32::from(told.is_err()))
    });
    tracer.run();
    tell(&tracer.outcome)
}

fn tell(outcome: &Mutex<Outcome>) -> io::Result<()> {
    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
    let text = serde_json::to_string(&*outcome).map_err(io::Error::other)?;
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    output.flush()
}

/// Which steps to die at when `of` are known: all of them if the environment has `PALISADE_TEST_WALK=all`, otherwise about
/// `some`, spread evenly and beginning at another one each day.
pub fn chosen(of: usize, some: usize) -> Vec<usize> {
    let stride = match std::env::var("PALISADE_TEST_WALK") {
        Ok(text) if text == "all" => 1,
        _ => of.div_ceil(some.max(1)).max(1),
    };
    let day = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_secs() / 86_400);
    let first = usize::try_from(day).unwrap_or(0) % stride;
    (1..=of).skip(first).step_by(stride).collect()
}

struct Tracer {
    root: Pid,
    victim: Victim,
    steps: Steps,
    fatal: Fatal,
    /// What each process has forked last.
    forked: HashMap<Pid, Pid>,
    /// Threads that are inside a system call.
    inside: HashSet<Pid>,
    /// Process of each thread.
    groups: HashMap<Pid, Pid>,
    /// Processes that execute a program by now.
    programs: HashSet<Pid>,
    outcome: Arc<Mutex<Outcome>>,
}

impl Tracer {
    fn new(root: Pid, victim: Victim, steps: Steps, fatal: Fatal, outcome: Arc<Mutex<Outcome>>) -> Self {
        Self {
            root,
            victim,
            steps,
            fatal,
            forked: HashMap::new(),
            inside: HashSet::new(),
            groups: HashMap::new(),
            programs: HashSet::new(),
            outcome,
        }
    }

    fn attach(&self) -> Result<(), Errno> {
        let mut options =
            Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC;
        if self.victim == Victim::Offspring {
            options |= Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
        }
        let tasks = fs::read_dir(format!("/proc/{}/task", self.root)).map_err(|_gone| Errno::ESRCH)?;
        for task in tasks.flatten() {
            let Some(task) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let task = Pid::from_raw(task);
            match ptrace::seize(task, options).and_then(|()| ptrace::interrupt(task)) {
                // A thread may end after it was listed.
                Err(Errno::ESRCH) if task != self.root => {}
                followed => followed?,
            }
        }
        Ok(())
    }

    fn run(&mut self) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = match waitpid(None, Some(flags)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                // Nobody is left.
                Err(_) => return,
            };
            let (task, signal) = match status {
                WaitStatus::PtraceSyscall(task) => {
                    if self.system_call(task) {
                        return;
                    }
                    (task, None)
                }
                WaitStatus::PtraceEvent(task, _, event) => {
                    match event {
                        libc::PTRACE_EVENT_EXEC => drop(self.programs.insert(task)),
                        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                            self.note_fork(task);
                        }
                        _ => {}
                    }
                    (task, None)
                }
                WaitStatus::Stopped(task, signal) => (task, Some(signal)),
                WaitStatus::Exited(task, _) | WaitStatus::Signaled(task, ..) => {
                    self.inside.remove(&task);
                    if task == self.root {
                        return;
                    }
                    continue;
                }
                _ => continue,
            };
            // Of who cannot be the victim only forks matter. A task that was killed meanwhile is gone.
            let watched =
                self.victim == Victim::Itself || (task != self.root && !self.programs.contains(&task));
            let _gone = match watched {
                true => ptrace::syscall(task, signal),
                false => ptrace::cont(task, signal),
            };
        }
    }

    /// True when the victim was killed.
    fn system_call(&mut self, task: Pid) -> bool {
        if self.inside.remove(&task) {
            return false;
        }
        self.inside.insert(task);
        let group = *self.groups.entry(task).or_insert_with(|| process_of(task));
        let counts = match self.victim {
            Victim::Itself => group == self.root,
            Victim::Offspring => group != self.root && !self.programs.contains(&group),
        };
        let number = number_of(task).filter(|number| counts && is_step(*number, self.steps));
        let Some(number) = number else { return false };
        let shared = self.outcome.clone();
        let mut outcome = shared.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.steps += 1;
        let step = Step {
            ordinal: outcome.steps,
            call: number,
            process: group.as_raw(),
        };
        let fatal = match self.fatal {
            Fatal::Nowhere => false,
            Fatal::Step(number) => step.ordinal == number,
            Fatal::BeforeWord => {
                let forked = self.forked.get(&group).filter(|_| step.call == libc::SYS_write);
                if let Some(forked) = forked {
                    let _gone = kill(*forked, Signal::SIGSTOP);
                    outcome.stopped = Some(forked.as_raw());
                }
                forked.is_some()
            }
        };
        if fatal {
            outcome.killed = Some(step);
            let _gone = kill(group, Signal::SIGKILL);
        }
        fatal
    }

    fn note_fork(&mut self, task: Pid) {
        let forked = ptrace::getevent(task)
            .ok()
            .and_then(|pid| i32::try_from(pid).ok());
        if let Some(forked) = forked {
            self.forked.insert(process_of(task), Pid::from_raw(forked));
        }
    }
}

fn process_of(task: Pid) -> Pid {
    let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    group
        .and_then(|group| group.trim().parse().ok())
        .map_or(task, Pid::from_raw)
}

/// Number of the system call that a stopped task is in.
#[cfg(target_arch = "x86_64")]
fn number_of(task: Pid) -> Option<i64> {
    ptrace::getregs(task)
        .ok()
        .map(|registers| registers.orig_rax.cast_signed())
}

#[cfg(not(target_arch = "x86_64"))]
fn number_of(task: Pid) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{task}/syscall")).ok()?;
    text.split(' ').next()?.parse().ok()
}

fn is_step(number: i64, steps: Steps) -> bool {
    let outward = [
        libc::SYS_bind,
        libc::SYS_bpf,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_execve,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_fsmount,
        libc::SYS_kill,
        libc::SYS_linkat,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_pivot_root,
        libc::SYS_renameat2,
        libc::SYS_sendmsg,
        libc::SYS_setns,
        libc::SYS_symlinkat,
        libc::SYS_umount2,
        libc::SYS_unlinkat,
        libc::SYS_unshare,
    ];
    #[cfg(target_arch = "x86_64")]
    let older = [
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_fork,
        libc::SYS_mkdir,
        libc::SYS_mknod,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_rmdir,
        libc::SYS_symlink,
        libc::SYS_unlink,
        libc::SYS_vfork,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let older = [libc::SYS_renameat];
    let inward = [
        libc::SYS_exit_group,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_sendto,
        libc::SYS_setresuid,
        libc::SYS_setsid,
        libc::SYS_write,
    ];
    outward.contains(&number) || older.contains(&number) || (steps == Steps::All && inward.contains(&number))
}
