//! The shim's children: whose death is whose, and which numbers still mean a child.
//!
//! A number may be signalled, or believed in a report, only while its process is a child that was not reaped: afterwards
//! it may mean any process of the host. So every death is given to somebody, or kept while somebody may still ask for it.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::shim::container::Ended;
use crate::shim::job::{Forked, Job, Session};
use crate::shim::supervisor::Supervisor;
use crate::shim::{ShimError, complain, system};

/// The death of a process that nobody has claimed yet: a program may end before its creator told of it. Kept as long as a
/// job that began before it may still claim it, and no more than [`MAX_UNCLAIMED`]: what is started beside a container's own
/// program is a child of the shim, and could give it more if its filter let it.
#[derive(Debug)]
pub(super) struct Unclaimed {
    pid: Pid,
    ended: Ended,
    /// Jobs from this number on began later.
    next_job: u64,
}

/// Deaths that are kept for starts under way, which are a few dozen of a few processes each. What a start claims beyond
/// that is no child for it, and it fails.
const MAX_UNCLAIMED: usize = 1024;

/// Deaths that are heard of in one turn, so that whoever has children die without end keeps nobody else waiting.
const DEATHS_PER_TURN: usize = 64;

impl Supervisor {
    /// Takes note of dead children. Whether there may be more.
    pub(super) fn reap(&mut self) -> Result<bool, ShimError> {
        for _ in 0..DEATHS_PER_TURN {
            let dead = match dead_child() {
                Ok(Some(dead)) => dead,
                Ok(None) | Err(Errno::ECHILD) => return Ok(false),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(system("look for dead children")(errno)),
            };
            if self.creators.contains(&dead) {
                // While it is not reaped its number still names its process group.
                self.end_start_of(dead);
            }
            let options = rustix::process::WaitOptions::NOHANG;
            let number = rustix::process::Pid::from_raw(dead.as_raw());
            let status = match rustix::process::waitpid(number, options) {
                Ok(Some((_, status))) => status,
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(false),
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(system("wait for children")(Errno::from_raw(errno.raw_os_error()))),
            };
            let ended = Ended {
                status: status.exit_status().unwrap_or(0),
                signal: status.terminating_signal(),
            };
            self.bury(dead, ended);
        }
        Ok(true)
    }

    /// Hears what a dead creator had to say. If that was not all, its start has failed, and what it left goes too: the
    /// other ends of its pipe may be in processes that would wait for it for ever.
    fn end_start_of(&mut self, creator: Pid) {
        self.read_reports();
        let mut jobs = self.jobs.iter();
        let at = jobs.position(|job| job.creator.pid == creator && !job.creator.reaped && job.is_starting());
        if let Some(index) = at {
            self.fail_job(
                index,
                "the helper process died without a report".to_owned().into(),
            );
        }
    }

    /// Gives a death to whom it concerns.
    fn bury(&mut self, pid: Pid, ended: Ended) {
        if self.creators.remove(&pid) {
            for job in self.jobs.iter_mut().filter(|job| job.creator.pid == pid) {
                job.creator.reaped = true;
            }
        } else if let Some(container) = self.containers.values_mut().find(|c| c.pid() == Some(pid)) {
            container.finish(&self.pod, ended);
            self.changed();
        } else if let Some(session) = self.session_of(pid) {
            session.ended = Some(ended);
        } else if let Some(forked) = self.forked(pid) {
            forked.ended = Some(ended);
        } else if let Some(session) = self
            .interactive
            .iter_mut()
            .find(|session| session.pid == pid && session.ended.is_none())
        {
            session.ended = Some(ended);
        } else if pid == self.pod.holder {
            complain("the namespace holder died; the pod cannot go on");
            self.begin_shutdown();
        } else if self.jobs.iter().any(Job::is_starting) && self.unclaimed.len() < MAX_UNCLAIMED {
            self.unclaimed.push(Unclaimed {
                pid,
                ended,
                next_job: self.next_job,
            });
        }
    }

    /// Takes note of a started job and of its creator, whose death is to be told from the program's.
    pub(super) fn begin(&mut self, mut job: Job) {
        job.number = self.next_job;
        self.next_job += 1;
        self.worked = true;
        self.creators.insert(job.creator.pid);
        self.jobs.push(job);
    }

    /// How the process of a creator's report stands: none if it is no child of the shim, and its death was not seen either.
    /// Then the number may be anybody's, and nothing may be done with it.
    pub(super) fn claim(&mut self, pid: Pid) -> Option<Forked> {
        use rustix::process::{WaitId, WaitIdOptions};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let dead = self.unclaimed.iter().position(|death| death.pid == pid);
        let dead = dead.map(|at| self.unclaimed.swap_remove(at).ended);
        let number = rustix::process::Pid::from_raw(pid.as_raw());
        let is_child = !self.creators.contains(&pid)
            && number.is_some_and(|number| rustix::process::waitid(WaitId::Pid(number), options).is_ok());
        // A death of a process that had the number before is not this one's.
        let ended = if is_child { None } else { Some(dead?) };
        Some(Forked { pid, ended })
    }

    /// Ends the process of a start that was given up before its creator told of it.
    pub(super) fn end_untold(&mut self, job: &Job) {
        if let (None, Some(pid)) = (&job.forked, job.creator.announcement.forked())
            && let Some(Forked { pid, ended: None }) = self.claim(pid)
        {
            let _may_be_dead = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
    }

    fn forked(&mut self, pid: Pid) -> Option<&mut Forked> {
        self.jobs
            .iter_mut()
            .filter_map(|job| job.forked.as_mut())
            .find(|forked| forked.pid == pid && forked.ended.is_none())
    }

    fn session_of(&mut self, pid: Pid) -> Option<&mut Session> {
        self.jobs
            .iter_mut()
            .filter_map(|job| job.session.as_mut())
            .find(|session| session.pid == Some(pid) && session.ended.is_none())
    }

    /// Lets go of the deaths that no start can claim any more.
    pub(super) fn forget_unclaimed(&mut self) {
        let starting = self.jobs.iter().filter(|job| job.is_starting());
        let first = starting.map(|job| job.number).min().unwrap_or(u64::MAX);
        self.unclaimed.retain(|death| first < death.next_job);
    }
}

/// A dead child, which stays to be reaped.
///
/// Not by nix: for it a death by a realtime signal is an error, and any program that is started beside a container's own can
/// die so.
fn dead_child() -> Result<Option<Pid>, Errno> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all zeroes is a value of this plain data, which the call fills and does not keep; what `si_pid` reads is the
    // number of a child that it has told of, or still zero.
    let pid = unsafe {
        let mut told: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(libc::P_ALL, 0, &raw mut told, flags))?;
        told.si_pid()
    };
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}
