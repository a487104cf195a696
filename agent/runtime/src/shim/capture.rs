//! Pipes the shim reads from: output of containers and of exec sessions.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

/// What one read takes at most.
const CHUNK: usize = 16 << 10;

/// The reading end of a pipe whose writing end a container process holds.
#[derive(Debug)]
pub(crate) struct Source {
    pipe: Option<std::fs::File>,
}

impl Source {
    /// A pipe, and its writing end, which belongs to `owner` so that the container may open it again
    /// through `/dev/stdout`.
    pub(crate) fn new(owner: (u32, u32)) -> Result<(Self, OwnedFd), Errno> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let flags = rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&read, flags).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(owner.0),
            rustix::fs::Gid::from_raw(owner.1),
        );
        rustix::fs::fchown(&write, Some(uid), Some(gid))
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        Ok((
            Self {
                pipe: Some(read.into()),
            },
            write,
        ))
    }

    /// For `poll`; none after the end.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Hands one chunk to `take`. False when nothing is there now or ever.
    pub(crate) fn read(&mut self, take: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(false);
        };
        let mut chunk = [0; CHUNK];
        match pipe.read(&mut chunk) {
            Ok(0) => {
                self.pipe = None;
                Ok(false)
            }
            Ok(length) => take(&chunk[..length]).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}
