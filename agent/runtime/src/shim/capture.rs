//! Pipes the shim reads from: output of containers and of exec sessions.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

/// What one read takes at most.
const CHUNK: usize = 16 << 10;

/// A pipe for output: the reading end, which does not block, and the writing end for a container process.
pub(crate) fn output(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    do_not_block(&read)?;
    give(&write, owner)?;
    Ok((read, write))
}

/// A pipe for input: the reading end for a container process, and the writing end, which does not block.
pub(crate) fn input(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    do_not_block(&write)?;
    give(&read, owner)?;
    Ok((read, write))
}

fn do_not_block(end: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fcntl_setfl(end, rustix::fs::OFlags::NONBLOCK)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// To a process that may want to open it again through `/dev/stdin` or `/dev/stdout`.
fn give(end: &OwnedFd, owner: (u32, u32)) -> Result<(), Errno> {
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(owner.0),
        rustix::fs::Gid::from_raw(owner.1),
    );
    rustix::fs::fchown(end, Some(uid), Some(gid)).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// The reading end of a pipe or a terminal whose other end a container process holds.
#[derive(Debug)]
pub(crate) struct Source {
    pipe: Option<std::fs::File>,
}

impl Source {
    /// A pipe, and its writing end, which belongs to `owner` so that the container may open it again
    /// through `/dev/stdout`.
    pub(crate) fn new(owner: (u32, u32)) -> Result<(Self, OwnedFd), Errno> {
        let (read, write) = output(owner)?;
        Ok((Self::of(read), write))
    }

    /// Reads from a descriptor that does not block.
    pub(crate) fn of(descriptor: OwnedFd) -> Self {
        Self {
            pipe: Some(descriptor.into()),
        }
    }

    /// Has ended before it began.
    pub(crate) fn none() -> Self {
        Self { pipe: None }
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
            // The end of a terminal that no process holds any more.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                self.pipe = None;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}
