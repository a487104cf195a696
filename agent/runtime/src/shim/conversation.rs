//! One connection of the agent to the shim: a request comes in, a response goes out, and that is all.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;

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
    pub(crate) fn answer(self, response: &Response) -> Result<(), FrameError> {
        let frame = protocol::encode(response)?;
        self.stream
            .set_nonblocking(false)
            .map_err(|source| FrameError::Connection { source })?;
        protocol::write_all(&self.stream, &frame)
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
