//! Terminals: made inside the container, by the process that will live on them, from the container's own
//! `/dev/pts`. The other end goes to the shim through a socket.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use rustix::fs::{CWD, FsWord, Mode, OFlags, ResolveFlags};
use rustix::pty::OpenptFlags;

use crate::descriptors;

/// Opened directly and not through `/dev/ptmx`, which the container may replace.
const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// Magic number of a pseudo-terminal file system, from the kernel's `magic.h`.
const DEVPTS: FsWord = 0x1cd1;

/// A pair of sockets for one terminal: the shim's, and the one the process gets.
pub(crate) fn channel() -> Result<(UnixStream, OwnedFd), Errno> {
    let pair = UnixStream::pair().and_then(|(near, far)| near.set_nonblocking(true).map(|()| (near, far)));
    pair.map(|(near, far)| (near, OwnedFd::from(far)))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// The terminal that a started process has sent.
pub(crate) fn take(channel: &UnixStream) -> Option<OwnedFd> {
    let (mut byte, mut received) = ([0], Vec::new());
    descriptors::receive(channel, &mut byte, &mut received).ok()?;
    received.pop()
}

/// Makes a terminal, sends its outer end away and lives on it: it controls this session and is its standard streams. The
/// caller leads a session without a terminal and already is the container's user, who so owns the terminal.
pub(crate) fn settle(to_shim: &OwnedFd) -> Result<(), String> {
    let step = |name: &'static str| move |errno: rustix::io::Errno| format!("cannot {name}: {errno}");
    // Not blocking, in case there is something else; and for the shim, which reads without blocking.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let outer = rustix::fs::openat2(CWD, MULTIPLEXER, flags, Mode::empty(), resolve)
        .map_err(step("open /dev/pts/ptmx for a terminal"))?;
    let system = rustix::fs::fstatfs(&outer).map_err(step("inspect /dev/pts"))?;
    if system.f_type != DEVPTS {
        return Err("/dev/pts of the container has no terminals".into());
    }
    rustix::pty::unlockpt(&outer).map_err(step("unlock the terminal"))?;
    let inner = rustix::pty::ioctl_tiocgptpeer(&outer, OpenptFlags::RDWR | OpenptFlags::NOCTTY)
        .map_err(step("open the terminal"))?;
    rustix::process::ioctl_tiocsctty(&inner).map_err(step("control the session by the terminal"))?;
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        nix::unistd::dup2(inner.as_raw_fd(), stream)
            .map_err(|errno| format!("cannot connect the terminal: {errno}"))?;
    }
    descriptors::send(to_shim, b"t", &[outer.as_fd()])
        .map(drop)
        .map_err(|error| format!("cannot hand over the terminal: {error}"))
}
