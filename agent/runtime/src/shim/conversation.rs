//! One connection of the agent to the shim: a request comes in, a response goes out, and that is all.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;

use crate::descriptors;
use crate::protocol::{self, FrameError, Request, Response};

/// How long one answer may take to be accepted by the agent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// One conversation.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: UnixStream,
    received: Vec<u8>,
    /// Set while it waits for the version to leave this one.
    pub(crate) waits_from: Option<u64>,
}

impl Conversation {
    /// Takes a connection of this process's own user, and no other.
    pub(crate) fn admit(stream: UnixStream) -> io::Result<Self> {
        let peer = nix::sys::socket::getsockopt(&stream, PeerCredentials)?;
        // The directory's mode keeps others out already; this does not depend on it.
        if peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        stream.set_nonblocking(true)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self {
            stream,
            received: Vec::new(),
            waits_from: None,
        })
    }

    /// For `poll`.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sends the one response.
    pub(crate) fn answer(mut self, response: &Response) -> Result<(), FrameError> {
        self.say(response)
    }

    /// Sends a response after which there may be another.
    pub(crate) fn say(&mut self, response: &Response) -> Result<(), FrameError> {
        self.hand_over(response, &[])
    }

    /// Sends a response and descriptors with it.
    pub(crate) fn hand_over(
        &mut self,
        response: &Response,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrameError> {
        let frame = protocol::encode(response)?;
        let broken = |source| FrameError::Connection { source };
        self.stream.set_nonblocking(false).map_err(broken)?;
        let sent = descriptors::send(&self.stream, &frame, descriptors).map_err(broken)?;
        protocol::write_all(&self.stream, frame.get(sent..).unwrap_or_default())?;
        self.stream.set_nonblocking(true).map_err(broken)
    }

    /// Whether the agent has hung up. After its one request it has nothing more to say.
    pub(crate) fn is_over(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(_end_or_nonsense) => true,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }

    /// The request, once it is complete.
    pub(crate) fn read_request(&mut self) -> io::Result<Option<Request>> {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            match protocol::decode(&self.received) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    self.received = Vec::new();
                    return Ok(Some(request));
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}
