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

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use agent_runtime::{ContainerState, Runtime};
use api::learned::{Learned, MAX_SECONDS};
use axum::{
    body::Body,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use ebpf_loader::learn::{LearnError, Recorder};
use futures::stream;
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};

use self::{files::Files, ports::Ports};
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
    let Some(pid) = pid_of(&learner.runtime, &uid, &container).await else {
        let message = format!("container \"{container}\" of pod \"{pod}\" does not run");
        return refuse(StatusCode::BAD_REQUEST, message);
    };
    let (pids, runs) = watch::channel(pid);
    let cancelled = Arc::new(AtomicBool::new(false));
    let asker = Asker(cancelled.clone());
    let length = Duration::from_secs(options.seconds);
    // What cannot begin is refused now, not in ten minutes.
    let watcher = match Watcher::start(runs) {
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

async fn pid_of(runtime: &Runtime, uid: &str, container: &str) -> Option<i32> {
    let status = runtime.status(uid).await.ok()?;
    match status.container(container)?.state {
        ContainerState::Running { pid, .. } => Some(pid),
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
    runs: watch::Receiver<i32>,
    learned: Learned,
}

impl Watcher {
    fn start(mut runs: watch::Receiver<i32>) -> Result<Self, WatchError> {
        let recorder = Recorder::start()?;
        let files = Files::new().map_err(WatchError::Fanotify)?;
        let pid = *runs.borrow_and_update();
        let mut watcher = Self {
            recorder,
            files,
            ports: Ports::default(),
            runs,
            learned: Learned::default(),
        };
        watcher.follow(pid)?;
        Ok(watcher)
    }

    fn run(mut self, length: Duration, cancelled: &AtomicBool) -> Result<Learned, WatchError> {
        let started = Instant::now();
        loop {
            let left = length.saturating_sub(started.elapsed());
            if left.is_zero() || cancelled.load(Ordering::Relaxed) {
                break;
            }
            if self.runs.has_changed().unwrap_or(false) {
                let pid = *self.runs.borrow_and_update();
                // A run that is over already has left nothing to look at; the next one may.
                if let Err(error) = self.follow(pid) {
                    tracing::debug!(error = chain(&error), "a run was missed");
                    self.learned.lost.sockets += 1;
                }
            }
            self.files
                .read(left.min(LOOK_EVERY), &mut self.learned.lost)
                .map_err(WatchError::Fanotify)?;
            self.ports.look(&mut self.learned.lost);
        }
        self.files
            .read(Duration::ZERO, &mut self.learned.lost)
            .map_err(WatchError::Fanotify)?;
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

    fn follow(&mut self, pid: i32) -> Result<(), WatchError> {
        self.recorder.follow(pid)?;
        self.files.follow(pid, &mut self.learned.lost);
        self.ports.follow(pid);
        self.learned.runs += 1;
        Ok(())
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
