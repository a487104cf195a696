//! The agent's side of interactive sessions: the ends of pipes or of a terminal, and word of the end.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::client::Runtime;
use crate::descriptors;
use crate::error::RuntimeError;
use crate::protocol::{self, FrameError, Request, Response, Streamed};
use crate::talk::unexpected;

/// The shim gives a start 30 s of its own.
const OPEN_TIMEOUT: Duration = Duration::from_secs(45);

/// A program's streams, all of them non-blocking, and its end.
#[derive(Debug)]
pub struct Session {
    /// Writing end of its standard input. With a terminal, input is written there.
    pub stdin: Option<OwnedFd>,
    /// Reading end of its standard output. An attachment to a terminal has its output here.
    pub stdout: Option<OwnedFd>,
    /// Reading end of its standard error; none with a terminal.
    pub stderr: Option<OwnedFd>,
    /// The program's terminal, from the outside: write input, set the size; and read output where there is no `stdout`.
    pub terminal: Option<OwnedFd>,
    /// How it ends.
    pub end: SessionEnd,
}

/// Knows when the program has ended. Dropping it ends an exec session and leaves an attachment.
#[derive(Debug)]
pub struct SessionEnd {
    pod: String,
    stream: UnixStream,
}

impl Runtime {
    /// Starts a program in a container, under the same user, capabilities and sandbox as its first process. With `tty`
    /// it leads a session of its own on a terminal of the container.
    pub async fn open_session(
        &self,
        pod: &str,
        container: &str,
        argv: &[String],
        stdin: bool,
        tty: bool,
    ) -> Result<Session, RuntimeError> {
        let request = Request::Open {
            container: container.into(),
            argv: argv.into(),
            stdin,
            tty,
        };
        self.open(pod, &request).await
    }

    /// Gives the streams of a container's own program: a copy of its output from now on and, if it has one and `stdin`
    /// asks for it, its input.
    pub async fn attach(&self, pod: &str, container: &str, stdin: bool) -> Result<Session, RuntimeError> {
        let request = Request::Attach {
            container: container.into(),
            stdin,
        };
        self.open(pod, &request).await
    }

    /// A TCP socket that lives in the pod's network namespace, not connected and non-blocking: who connects it reaches
    /// what the pod reaches, its loopback included.
    pub async fn pod_socket(&self, pod: &str, ipv6: bool) -> Result<OwnedFd, RuntimeError> {
        let (_stream, opened, mut descriptors) = self.request(pod, &Request::Socket { ipv6 }).await?;
        match (opened.socket, descriptors.pop()) {
            (true, Some(socket)) => Ok(socket),
            _ => Err(RuntimeError::WrongAnswer { pod: pod.into() }),
        }
    }

    /// The pod's network namespace, held open: unlike the path in [`crate::PodStatus`] it cannot come to mean another
    /// process's. The namespace lives on as long as this is held.
    pub async fn pod_network(&self, pod: &str) -> Result<OwnedFd, RuntimeError> {
        let (_stream, opened, mut descriptors) = self.request(pod, &Request::Network).await?;
        match (opened.network, descriptors.pop()) {
            (true, Some(namespace)) => Ok(namespace),
            _ => Err(RuntimeError::WrongAnswer { pod: pod.into() }),
        }
    }

    async fn open(&self, pod: &str, request: &Request) -> Result<Session, RuntimeError> {
        let (stream, opened, descriptors) = self.request(pod, request).await?;
        let wrong = || RuntimeError::WrongAnswer { pod: pod.into() };
        let expected = [opened.stdin, opened.stdout, opened.stderr, opened.terminal];
        if expected.iter().filter(|here| **here).count() != descriptors.len()
            || opened.socket
            || opened.network
        {
            return Err(wrong());
        }
        let mut descriptors = descriptors.into_iter();
        let [stdin, stdout, stderr, terminal] =
            expected.map(|here| if here { descriptors.next() } else { None });
        Ok(Session {
            stdin,
            stdout,
            stderr,
            terminal,
            end: SessionEnd {
                pod: pod.into(),
                stream,
            },
        })
    }

    async fn request(
        &self,
        pod: &str,
        request: &Request,
    ) -> Result<(UnixStream, Streamed, Vec<OwnedFd>), RuntimeError> {
        let talk = |source| RuntimeError::Talk {
            pod: pod.into(),
            source,
        };
        let conversation = async {
            let mut stream = self.connect(pod).await?;
            let frame = protocol::encode(request).map_err(talk)?;
            let sent = stream.write_all(&frame).await;
            sent.map_err(|source| talk(FrameError::Connection { source }))?;
            let (response, descriptors) = read_frame(&mut stream).await.map_err(talk)?;
            Ok::<_, RuntimeError>((stream, response, descriptors))
        };
        let (stream, response, descriptors) = tokio::time::timeout(OPEN_TIMEOUT, conversation)
            .await
            .map_err(|_elapsed| RuntimeError::Timeout {
                pod: pod.into(),
                seconds: OPEN_TIMEOUT.as_secs(),
            })??;
        match response {
            Response::Opened(streamed) => Ok((stream, streamed, descriptors)),
            other => Err(unexpected(pod, other)),
        }
    }
}

impl SessionEnd {
    /// The exit code, 128 + signal if a signal ended it.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        let answer = read_frame(&mut self.stream).await;
        match answer {
            Ok((Response::Ended { code }, _)) => Ok(code),
            Ok((other, _)) => Err(unexpected(&self.pod, other)),
            Err(source) => Err(RuntimeError::Talk {
                pod: self.pod.clone(),
                source,
            }),
        }
    }
}

/// One frame, and the descriptors that came with it.
async fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let broken = |source| FrameError::Connection { source };
    let mut header = [0; 4];
    let mut descriptors = Vec::new();
    let mut filled = 0;
    while let Some(rest) = header.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let received = stream
            .async_io(Interest::READABLE, || {
                descriptors::receive(&*stream, rest, &mut descriptors)
            })
            .await
            .map_err(broken)?;
        if received == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        filled += received;
    }
    let mut text = vec![0; protocol::frame_length(header)?];
    stream.read_exact(&mut text).await.map_err(broken)?;
    let value = serde_json::from_slice(&text).map_err(|source| FrameError::Text { source })?;
    Ok((value, descriptors))
}
