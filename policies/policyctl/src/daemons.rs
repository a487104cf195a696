//! The daemons as processes: start detached, find again, end by process id.
//!
//! A process id alone may belong to somebody else by now, so the file beside it also holds the process's
//! start time; both must match before anything is signalled.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One daemon of the cluster on this machine.
pub(crate) struct Daemon {
    name: &'static str,
    /// The subcommand of its program.
    verb: &'static str,
    pid_file: PathBuf,
    log_file: PathBuf,
}

/// A running daemon.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    pid: i32,
    start_ticks: u64,
}

impl Daemon {
    /// The daemon called `name`, with its files below the two directories.
    pub(crate) fn new(name: &'static str, run_dir: &Path, state_dir: &Path) -> Self {
        let short = name.trim_start_matches("palisade-");
        Self {
            name,
            verb: "run",
            pid_file: run_dir.join(format!("{short}.pid")),
            log_file: state_dir.join("logs").join(format!("{short}.log")),
        }
    }

    /// The same for a daemon that another one's program is, under a subcommand.
    pub(crate) fn under(self, verb: &'static str) -> Self {
        Self { verb, ..self }
    }

    /// The daemon's process, if the one that was started still runs.
    pub(crate) fn running(&self) -> Option<Running> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, start_ticks) = text.trim().split_once(' ')?;
        let running = Running {
            pid: pid.parse().ok()?,
            start_ticks: start_ticks.parse().ok()?,
        };
        running.alive().then_some(running)
    }

    /// Starts the daemon in its own process group with its output in the log file, unless it runs.
    pub(crate) fn start(&self, binary: &Path, config: &Path) -> Result<Running> {
        if let Some(running) = self.running() {
            return Ok(running);
        }
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .with_context(|| format!("cannot open {}", self.log_file.display()))?;
        let child = Command::new(binary)
            .arg(self.verb)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot duplicate the log file")?)
            .stderr(log)
            .current_dir("/")
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let pid = i32::try_from(child.id()).context("process id out of range")?;
        let start_ticks = start_ticks(pid)
            .with_context(|| format!("{} ended at once; see {}", self.name, self.log_file.display()))?;
        fs::write(&self.pid_file, format!("{pid} {start_ticks}\n"))
            .with_context(|| format!("cannot write {}", self.pid_file.display()))?;
        Ok(Running { pid, start_ticks })
    }

    /// Asks the daemon to end, waits, and kills it when it does not. Returns whether it was running.
    pub(crate) async fn stop(&self, patience: Duration) -> Result<bool> {
        let Some(running) = self.running() else {
            remove_if_there(&self.pid_file)?;
            return Ok(false);
        };
        running.signal(Signal::SIGTERM)?;
        if !running.ended_within(patience).await {
            running.signal(Signal::SIGKILL)?;
            if !running.ended_within(Duration::from_secs(5)).await {
                bail!(
                    "{} (process {}) does not end, even when killed",
                    self.name,
                    running.pid
                );
            }
        }
        remove_if_there(&self.pid_file)?;
        Ok(true)
    }

    /// The last lines of the log, for messages.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log_file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        let tail: Vec<&str> = lines.into_iter().rev().collect();
        format!(
            "last lines of {}:\n  {}",
            self.log_file.display(),
            tail.join("\n  ")
        )
    }
}

impl Running {
    /// Whether the process still runs and is the one that was started.
    pub(crate) fn alive(self) -> bool {
        start_ticks(self.pid).is_some_and(|ticks| ticks == self.start_ticks)
    }

    /// Whether it runs the file that is at `program` now. One that nobody can ask runs another.
    pub(crate) fn is_of(self, program: &Path) -> bool {
        let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let own = file(Path::new(&format!("/proc/{}/exe", self.pid)));
        own.is_ok_and(|own| file(program).is_ok_and(|other| own == other))
    }

    fn signal(self, signal: Signal) -> Result<()> {
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    async fn ended_within(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

/// The binary called `name` beside this one.
pub(crate) fn sibling_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find my own path")?;
    let path = own.with_file_name(name);
    if !path.is_file() {
        bail!(
            "{} is missing: install or build it beside {}",
            path.display(),
            own.display()
        );
    }
    Ok(path)
}

/// Start time of a process that is not a zombie, in clock ticks since boot: field 22 of `/proc/PID/stat`.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also spaces and parentheses.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // `state` is field 3, so field 22 is the nineteenth after it; one was taken.
    fields.nth(18)?.parse().ok()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sleep");
        let place = |text: &str| {
            let partial = directory.path().join(text);
            fs::copy("/bin/sleep", &partial).unwrap();
            fs::rename(&partial, &program).unwrap();
        };
        place("first");
        let mut child = Command::new(&program).arg("100").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let running = Running {
            pid,
            start_ticks: start_ticks(pid).unwrap(),
        };
        assert!(running.is_of(&program));
        place("second");
        assert!(!running.is_of(&program));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_same_id_is_not_ours() {
        let me = i32::try_from(std::process::id()).unwrap();
        let ticks = start_ticks(me).unwrap();
        assert!(
            Running {
                pid: me,
                start_ticks: ticks
            }
            .alive()
        );
        assert!(
            !Running {
                pid: me,
                start_ticks: ticks + 1
            }
            .alive()
        );
    }
}
