//! How the agent talks to the shim of a pod, and what of a conversation that fails means that there is no shim.
//!
//! A pod is taken apart when its shim is gone, so nothing else may look like that: neither the agent's own want of
//! descriptors nor a shim that is busy.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::client::{Runtime, demand_name};
use crate::config::PodStatus;
use crate::error::RuntimeError;
use crate::protocol::{self, Failure, FrameError, Phase, Request, Response};

/// Longest answer to an ordinary request; starting a container has its own deadline inside the shim.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(45);

/// Pauses between attempts that may succeed later: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Runtime {
    /// The pod as it is now.
    pub async fn status(&self, pod: &str) -> Result<PodStatus, RuntimeError> {
        self.ask_status(pod, &Request::Status, Some(REQUEST_TIMEOUT))
            .await
    }

    /// The pod as soon as it differs from version `seen`; waits as long as that takes.
    pub async fn wait_change(&self, pod: &str, seen: u64) -> Result<PodStatus, RuntimeError> {
        self.ask_status(pod, &Request::WaitChange { seen }, None).await
    }

    /// As [`Self::wait_change`], asking again for as long as there may be a shim: the only error is that it is gone.
    pub async fn next_change(&self, pod: &str, seen: u64) -> Result<PodStatus, RuntimeError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.wait_change(pod, seen).await {
                Err(error) if !error.is_final() => error,
                told => return told,
            };
            // A conversation also breaks off because the shim dies: the next attempt tells.
            if pause > FIRST_PAUSE {
                tracing::warn!(
                    pod,
                    error = crate::shim::chain(&error),
                    "cannot follow the pod, will retry"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    pub(crate) async fn ask(&self, pod: &str, request: &Request) -> Result<(), RuntimeError> {
        match self.call(pod, request, Some(REQUEST_TIMEOUT)).await? {
            Response::Done => Ok(()),
            other => Err(unexpected(pod, other)),
        }
    }

    async fn ask_status(
        &self,
        pod: &str,
        request: &Request,
        timeout: Option<Duration>,
    ) -> Result<PodStatus, RuntimeError> {
        match self.call(pod, request, timeout).await? {
            Response::Status(status) => Ok(status),
            other => Err(unexpected(pod, other)),
        }
    }

    pub(crate) async fn call(
        &self,
        pod: &str,
        request: &Request,
        timeout: Option<Duration>,
    ) -> Result<Response, RuntimeError> {
        let conversation = async {
            let mut stream = self.connect(pod).await?;
            converse(&mut stream, request)
                .await
                .map_err(|source| RuntimeError::Talk {
                    pod: pod.into(),
                    source,
                })
        };
        match timeout {
            None => conversation.await,
            Some(limit) => tokio::time::timeout(limit, conversation)
                .await
                .unwrap_or_else(|_elapsed| {
                    Err(RuntimeError::Timeout {
                        pod: pod.into(),
                        seconds: limit.as_secs(),
                    })
                }),
        }
    }

    /// A connection to a pod's shim. While the shim does not accept, this waits, without an end of its own.
    pub(crate) async fn connect(&self, pod: &str) -> Result<UnixStream, RuntimeError> {
        demand_name("pod uid", pod)?;
        let socket = self.paths(pod).socket();
        let mut pause = FIRST_PAUSE;
        loop {
            let source = match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(stream),
                Err(source) => source,
            };
            match source.raw_os_error() {
                Some(libc::ENOENT | libc::ECONNREFUSED) => {
                    return Err(RuntimeError::ShimGone {
                        pod: pod.into(),
                        source,
                    });
                }
                // As many wait to be accepted as may: a socket that blocks would wait here (unix(7), connect(2)).
                Some(libc::EAGAIN) => tokio::time::sleep(pause).await,
                _ => {
                    return Err(RuntimeError::Unreachable {
                        pod: pod.into(),
                        source,
                    });
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

async fn converse<T: Serialize, A: DeserializeOwned>(
    stream: &mut UnixStream,
    request: &T,
) -> Result<A, FrameError> {
    let broken = |source| FrameError::Connection { source };
    stream
        .write_all(&protocol::encode(request)?)
        .await
        .map_err(broken)?;
    let mut header = [0; 4];
    stream.read_exact(&mut header).await.map_err(broken)?;
    let mut text = vec![0; protocol::frame_length(header)?];
    stream.read_exact(&mut text).await.map_err(broken)?;
    serde_json::from_slice(&text).map_err(|source| FrameError::Text { source })
}

/// The error that an answer to something else is.
pub(crate) fn unexpected(pod: &str, response: Response) -> RuntimeError {
    match response {
        Response::Failed(Failure {
            reason,
            phase: Phase::Execution,
            ..
        }) => RuntimeError::NotExecutable { reason },
        Response::Failed(Failure { reason, layer, .. }) => RuntimeError::Refused { reason, layer },
        Response::Done
        | Response::Status(_)
        | Response::Exec(_)
        | Response::Opened(_)
        | Response::Ended { .. } => RuntimeError::WrongAnswer { pod: pod.into() },
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::path::Path;

    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use tokio::net::UnixListener;

    use super::*;
    use crate::client::RuntimeConfig;

    const POD: &str = "pod";

    /// A runtime that finds what is made here in place of a pod's shim.
    fn runtime(directory: &Path) -> Runtime {
        std::fs::create_dir_all(directory.join(POD)).unwrap();
        Runtime::new(RuntimeConfig {
            shim: "/none".into(),
            state_dir: directory.into(),
            run_dir: directory.into(),
            cgroup_root: "none".into(),
        })
        .unwrap()
    }

    fn status(version: u64) -> PodStatus {
        PodStatus {
            version,
            netns: "/none".into(),
            holder_pid: 1,
            shim_pid: 1,
            containers: Vec::new(),
        }
    }

    async fn answer(stream: &mut UnixStream, version: u64) {
        let mut header = [0; 4];
        stream.read_exact(&mut header).await.unwrap();
        let mut request = vec![0; protocol::frame_length(header).unwrap()];
        stream.read_exact(&mut request).await.unwrap();
        let response = protocol::encode(&Response::Status(status(version))).unwrap();
        stream.write_all(&response).await.unwrap();
    }

    /// A socket of that kind where the shim's would be, accepting nothing.
    fn bound(runtime: &Runtime, kind: SockType) -> OwnedFd {
        let made = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new(&runtime.paths(POD).socket()).unwrap();
        bind(made.as_raw_fd(), &address).unwrap();
        made
    }

    #[tokio::test]
    async fn a_shim_is_gone_where_nobody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = runtime(directory.path());
        let gone = |error| matches!(error, RuntimeError::ShimGone { .. });
        assert!(gone(runtime.status(POD).await.unwrap_err()), "no socket");
        assert!(gone(runtime.next_change(POD, 0).await.unwrap_err()), "no socket");
        drop(UnixListener::bind(runtime.paths(POD).socket()).unwrap());
        assert!(gone(runtime.status(POD).await.unwrap_err()), "nobody's socket");
        assert!(
            gone(runtime.next_change(POD, 0).await.unwrap_err()),
            "nobody's socket"
        );
    }

    #[tokio::test]
    async fn what_fails_otherwise_says_nothing_of_the_shim() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = runtime(directory.path());
        let _of_another_kind = bound(&runtime, SockType::Datagram);
        let error = runtime.status(POD).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_shim_that_is_too_busy_to_accept_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = runtime(directory.path());
        let listener = bound(&runtime, SockType::Stream);
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let _first_in_line = UnixStream::connect(runtime.paths(POD).socket()).await.unwrap();
        let asked = tokio::spawn({
            let runtime = runtime.clone();
            async move { runtime.status(POD).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!asked.is_finished());
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let (_first, _) = listener.accept().await.unwrap();
        let (mut second, _) = listener.accept().await.unwrap();
        answer(&mut second, 7).await;
        assert_eq!(asked.await.unwrap().unwrap(), status(7));
    }

    #[tokio::test]
    async fn a_change_is_asked_for_until_the_shim_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = runtime(directory.path());
        let listener = UnixListener::bind(runtime.paths(POD).socket()).unwrap();
        let asked = |seen| {
            let runtime = runtime.clone();
            tokio::spawn(async move { runtime.next_change(POD, seen).await })
        };
        let first = asked(0);
        // Broken off, and not understood.
        drop(listener.accept().await.unwrap());
        let (mut odd, _) = listener.accept().await.unwrap();
        odd.write_all(b"\0\0\0\x02{}").await.unwrap();
        drop(odd);
        let (mut stream, _) = listener.accept().await.unwrap();
        answer(&mut stream, 3).await;
        assert_eq!(first.await.unwrap().unwrap(), status(3));
        // It dies while it is waited for.
        let last = asked(3);
        let (stream, _) = listener.accept().await.unwrap();
        drop((listener, stream));
        let error = last.await.unwrap().unwrap_err();
        assert!(matches!(error, RuntimeError::ShimGone { .. }), "{error:?}");
    }
}
