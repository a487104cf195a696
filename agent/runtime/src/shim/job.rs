//! What the shim has begun and not finished: container starts and exec sessions.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::config::{ExecOutput, MAX_EXEC_OUTPUT};
use crate::shim::capture::Source;
use crate::shim::container::{Creator, Ended};
use crate::shim::creator::Report;
use crate::shim::interactive::Opening;

/// A process that is not up by then is taken down.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A start that is under way.
#[derive(Debug)]
pub(crate) struct Job {
    /// Later jobs have greater ones.
    pub(crate) number: u64,
    pub(crate) container: String,
    pub(crate) client: u64,
    pub(crate) creator: Creator,
    pub(crate) line: Vec<u8>,
    /// The program's process from when the creator told of it until it was executed.
    pub(crate) forked: Option<Forked>,
    pub(crate) deadline: Instant,
    /// For exec sessions whose output is collected.
    pub(crate) session: Option<Session>,
    /// For exec sessions whose streams go to the agent.
    pub(crate) opening: Option<Opening>,
}

/// A program's process.
#[derive(Debug)]
pub(crate) struct Forked {
    pub(crate) pid: Pid,
    pub(crate) ended: Option<Ended>,
}

/// An exec session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) timeout: Duration,
    pub(crate) pid: Option<Pid>,
    pub(crate) ended: Option<Ended>,
    pub(crate) sources: [Source; 2],
    pub(crate) output: [Vec<u8>; 2],
    pub(crate) truncated: bool,
}

impl Job {
    pub(crate) fn new(container: String, client: u64, creator: Creator, session: Option<Session>) -> Self {
        let deadline = Instant::now() + START_TIMEOUT;
        Self {
            number: 0,
            container,
            client,
            creator,
            line: Vec::new(),
            forked: None,
            deadline,
            session,
            opening: None,
        }
    }

    /// Whether it is the start of a container.
    pub(crate) fn starts_container(&self) -> bool {
        self.session.is_none() && self.opening.is_none()
    }

    /// Whether the creator has not reported yet.
    pub(crate) fn is_starting(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.pid.is_none())
    }

    /// Ends what was begun, as far as it is known to be there still.
    pub(crate) fn kill(&self) {
        self.creator.kill();
        if let Some(Forked { pid, ended: None }) = self.forked {
            let _may_be_dead = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
    }

    /// The creator's next report once it is complete.
    pub(crate) fn read_report(&mut self) -> Option<Report> {
        let mut chunk = [0; 4096];
        let dead = |what: &str| Some(Report::Failed(format!("the helper process {what}").into()));
        loop {
            if let Some(report) = self.next_line() {
                return Some(report);
            }
            let mut fds = [PollFd::new(self.creator.report.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => return None,
                Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return dead(&format!("cannot be heard: {errno}")),
            }
            match rustix::io::read(&self.creator.report, &mut chunk) {
                Ok(0) => return dead("died without a report"),
                Ok(length) => self.line.extend_from_slice(&chunk[..length]),
                Err(errno) => return dead(&format!("cannot be heard: {errno}")),
            }
        }
    }

    fn next_line(&mut self) -> Option<Report> {
        let end = self.line.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.line.drain(..=end).collect();
        Some(serde_json::from_slice(&line).unwrap_or_else(|error| {
            Report::Failed(format!("the helper process spoke nonsense: {error}").into())
        }))
    }
}

impl Session {
    /// Collects output; whether there was any.
    pub(crate) fn read(&mut self) -> bool {
        let mut moved = false;
        for (source, kept) in self.sources.iter_mut().zip(&mut self.output) {
            let take = |bytes: &[u8]| {
                let room = MAX_EXEC_OUTPUT.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                self.truncated |= room < bytes.len();
                Ok(())
            };
            let mut take = take;
            // Bounded per turn, and after the end by what the pipe still holds.
            for _ in 0..16 {
                if !source.read(&mut take).unwrap_or(false) {
                    break;
                }
                moved = true;
            }
        }
        moved
    }

    /// The result once the program has ended.
    pub(crate) fn advance(&mut self) -> Option<ExecOutput> {
        let ended = self.ended?;
        self.read();
        let [stdout, stderr] = std::mem::take(&mut self.output);
        Some(ExecOutput {
            code: ended.code(),
            stdout,
            stderr,
            truncated: self.truncated,
        })
    }
}
