//! Watches what a container does, for `policyctl learn`.
//!
//! System calls and capabilities come from programs on raw tracepoints (`ebpf_loader::learn`), files from fanotify on the
//! container's own mounts, ports from the socket tables of its network namespace. All of it is bounded, all of it goes when
//! the asker goes, and what was missed is counted and told.
//!
//! A learning is a thread: fanotify is read there, and the socket tables are looked at between two reads. Each slows the
//! system calls of the whole node a little, so there are at most [`AT_ONCE`].

mod files;
mod ports;
mod root;
mod sockets;
mod users;

use std::{
    os::fd::AsFd as _,
    path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use agent_runtime::{ContainerState, Runtime, StartWatch};
use api::learned::{Learned, MAX_SECONDS};
use axum::{
    body::Body,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use ebpf_loader::learn::{LearnError, Recorder};
use futures::stream;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};

use self::{files::Files, ports::Ports, sockets::Sockets};
use crate::{policy::chain, server::NodeApi};

/// Learnings at a time.
const AT_ONCE: usize = 4;
/// How often the socket tables are looked at, and the longest wait for the end of a learning.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Lets a few learn at a time. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Learner {
    runtime: Runtime,
    places: Arc<Semaphore>,
}

impl Learner {
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

/// How long is to be looked.
#[derive(Debug, Deserialize)]
pub(crate) struct Options {
    seconds: u64,
}

/// Why a learning ended without an answer.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Kernel(#[from] LearnError),
    #[error("cannot watch files: fanotify is needed")]
    Fanotify(#[source] nix::errno::Errno),
}

/// Ends the thread when nobody waits for it any more.
struct Asker(Arc<AtomicBool>);

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers at once, with a body that comes when the learning is over.
pub(crate) async fn learn(
    State(api): State<NodeApi>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let refuse = |status: StatusCode, message: String| (status, message).into_response();
    if options.seconds == 0 || options.seconds > MAX_SECONDS {
        let message = format!("seconds: must be between 1 and {MAX_SECONDS}");
        return refuse(StatusCode::BAD_REQUEST, message);
    }
    let Some(entry) = api.directory.find(&namespace, &pod) else {
        let message = format!("pod \"{namespace}/{pod}\" is not on this node");
        return refuse(StatusCode::NOT_FOUND, message);
    };
    let learner = api.learner;
    let Ok(place) = learner.places.clone().try_acquire_owned() else {
        let message = format!("{AT_ONCE} containers of this node are watched already: try again later");
        return refuse(StatusCode::BAD_REQUEST, message);
    };
    let uid = entry.id.uid;
    let Some((pid, user)) = running(&learner.runtime, &uid, &container).await else {
        let message = format!("container \"{container}\" of pod \"{pod}\" does not run");
        return refuse(StatusCode::BAD_REQUEST, message);
    };
    let (pids, runs) = watch::channel(pid);
    // Somebody else may watch it: then later runs are taken once they run, and the answer says so.
    let starts = learner.runtime.watch_starts(&uid, &container);
    let starts =
        starts.inspect_err(|error| tracing::warn!(error = chain(error), container, "starts will be missed"));
    let cancelled = Arc::new(AtomicBool::new(false));
    let asker = Asker(cancelled.clone());
    let length = Duration::from_secs(options.seconds);
    // What cannot begin is refused now, not in ten minutes.
    let watcher = match Watcher::start(runs, starts.ok(), user) {
        Ok(watcher) => watcher,
        Err(error) => {
            let message = chain(&error);
            tracing::error!(error = message, "cannot learn");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, message);
        }
    };
    let follower = tokio::spawn(follow(learner.runtime.clone(), uid, container, pids));
    let work = tokio::task::spawn_blocking(move || watcher.run(length, &cancelled));
    let body = async move {
        let learned = work.await;
        follower.abort();
        drop((asker, place));
        match learned {
            Ok(Ok(learned)) => serde_json::to_vec(&learned).map_err(std::io::Error::other),
            Ok(Err(error)) => Err(std::io::Error::other(chain(&error))),
            Err(error) => Err(std::io::Error::other(error)),
        }
    };
    let body = Body::from_stream(stream::once(body));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The container's first process, and the user that it was started as, if that is known.
async fn running(runtime: &Runtime, uid: &str, container: &str) -> Option<(i32, Option<u32>)> {
    let status = runtime.status(uid).await.ok()?;
    let container = status.container(container)?;
    match container.state {
        ContainerState::Running { pid, .. } => Some((pid, container.uid)),
        ContainerState::Creating | ContainerState::Exited(_) | ContainerState::Failed { .. } => None,
    }
}

/// Tells of each new run of the container.
async fn follow(runtime: Runtime, uid: String, container: String, pids: watch::Sender<i32>) {
    let mut seen = 0;
    while let Ok(status) = runtime.wait_change(&uid, seen).await {
        seen = status.version;
        if let Some(ContainerState::Running { pid, .. }) = status.container(&container).map(|c| &c.state) {
            pids.send_if_modified(|known| std::mem::replace(known, *pid) != *pid);
        }
    }
}

/// One learning.
struct Watcher {
    recorder: Recorder,
    files: Files,
    ports: Ports,
    sockets: Sockets,
    runs: watch::Receiver<i32>,
    /// Where runs come to before they begin.
    starts: Option<StartWatch>,
    /// The first process of the run that is followed.
    pid: i32,
    /// That the container is started as, if that is known.
    user: Option<u32>,
    learned: Learned,
}

impl Watcher {
    fn start(
        mut runs: watch::Receiver<i32>,
        starts: Option<StartWatch>,
        user: Option<u32>,
    ) -> Result<Self, WatchError> {
        let started = Timestamp::now();
        let recorder = Recorder::start()?;
        let files = Files::new(started).map_err(WatchError::Fanotify)?;
        let pid = *runs.borrow_and_update();
        let mut watcher = Self {
            recorder,
            files,
            ports: Ports::default(),
            sockets: Sockets::default(),
            runs,
            starts,
            pid,
            user,
            learned: Learned {
                started,
                ..Learned::default()
            },
        };
        watcher.follow(pid)?;
        watcher.take_running();
        Ok(watcher)
    }

    fn run(mut self, length: Duration, cancelled: &AtomicBool) -> Result<Learned, WatchError> {
        let started = Instant::now();
        loop {
            let left = length.saturating_sub(started.elapsed());
            if left.is_zero() || cancelled.load(Ordering::Relaxed) {
                break;
            }
            self.take_starts();
            self.take_runs();
            let starts = self.starts.as_ref().map(StartWatch::as_fd);
            self.files
                .read(left.min(LOOK_EVERY), starts, &mut self.learned.lost)
                .map_err(WatchError::Fanotify)?;
            self.look();
        }
        // Nobody waits for this any more.
        self.starts = None;
        self.files
            .read(Duration::ZERO, None, &mut self.learned.lost)
            .map_err(WatchError::Fanotify)?;
        self.take_running();
        let noted = self.recorder.noted()?;
        let mut learned = self.learned;
        learned.millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        learned.calls = noted.calls.into_iter().map(call).collect();
        learned.capabilities = noted
            .capabilities
            .map(|numbers| numbers.into_iter().map(capability).collect());
        learned.lost.calls = noted.beyond;
        learned.files = self.files.learned();
        learned.ports = self.ports.learned();
        Ok(learned)
    }

    /// Follows runs whose program waits to begin, from its first instruction on.
    fn take_starts(&mut self) {
        while let Some(waiting) = self.starts.as_ref().and_then(StartWatch::waiting) {
            // What it is and has open is the runtime's still.
            match self.follow(waiting.pid()) {
                Ok(()) => self.learned.starts += 1,
                Err(error) => self.missed(&error),
            }
        }
    }

    /// Follows a run that was not seen to begin.
    fn take_runs(&mut self) {
        if !self.runs.has_changed().unwrap_or(false) {
            return;
        }
        let pid = *self.runs.borrow_and_update();
        if pid == self.pid {
            return;
        }
        match self.follow(pid) {
            Ok(()) => self.take_running(),
            Err(error) => self.missed(&error),
        }
    }

    /// A run that is over already has left nothing to look at; the next one may.
    fn missed(&mut self, error: &WatchError) {
        tracing::debug!(error = chain(error), "a run was missed");
        self.learned.lost.sockets += 1;
    }

    fn follow(&mut self, pid: i32) -> Result<(), WatchError> {
        self.recorder.follow(pid)?;
        self.files.follow(pid, &mut self.learned.lost);
        self.ports.follow(pid);
        self.pid = pid;
        self.learned.runs += 1;
        Ok(())
    }

    /// What nothing tells of when it happens.
    fn look(&mut self) {
        if !path::Path::new(&format!("/proc/{}", self.pid)).exists() {
            self.files.leave();
            return;
        }
        self.ports.look(&mut self.learned.lost);
        for name in self.sockets.look(self.pid) {
            self.files.bound(&name, &mut self.learned.lost);
        }
    }

    fn take_running(&mut self) {
        self.files.take_running(self.pid, &mut self.learned.lost);
        self.learned.changes_user |= self.user.is_some_and(|user| users::changed(self.pid, user));
    }
}

fn call(number: u32) -> String {
    agent_sandbox::call_name(number).map_or_else(|| number.to_string(), str::to_owned)
}

fn capability(number: u32) -> String {
    let known = rustix::thread::CapabilitySet::from_bits(1_u64.checked_shl(number).unwrap_or(0));
    let name = known.and_then(|set| set.iter_names().next().map(|(name, _)| name));
    match name {
        Some(name) => format!("CAP_{name}"),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!(call(0), "read");
        assert_eq!(call(511), "511");
        assert_eq!(capability(0), "CAP_CHOWN");
        assert_eq!(capability(63), "63");
    }
}
