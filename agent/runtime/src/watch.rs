//! Who is there when a program begins: the agent, while it learns what a container does.
//!
//! A container's process waits, confined, before its program is executed. A socket in the pod's run directory, which is
//! root's alone, says that somebody wants to look at it then: the process's number is told there, and it is let go when the
//! other side closes the connection. No watch keeps a container from starting: after [`PATIENCE`] it does. Shims of earlier
//! agents look for no such socket, so whoever watches must take runs that were not told as well.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use rustix::fs::{CWD, Mode, OFlags};

/// How long a program waits for who watches it.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long who watches waits for the number, which is sent at once.
const WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells of a container's starts for as long as it is kept.
#[derive(Debug)]
pub struct StartWatch {
    listener: UnixListener,
    directory: OwnedFd,
    name: String,
}

/// A process that waits with its program until this is dropped.
#[derive(Debug)]
pub struct Waiting {
    pid: i32,
    _connection: UnixStream,
}

impl StartWatch {
    pub(crate) fn new(run: &Path, container: &str) -> io::Result<Self> {
        let directory = open(run)?;
        let name = name(container);
        let path = within(&directory, &name);
        let listener = match UnixListener::bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(&path) => {
                fs::remove_file(&path)?;
                UnixListener::bind(&path)
            }
            bound => bound,
        }?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            directory,
            name,
        })
    }

    /// A process that waits now, if one does.
    pub fn waiting(&self) -> Option<Waiting> {
        while let Ok((connection, _)) = self.listener.accept() {
            // Another watch may have asked whether this one is there.
            if let Ok(waiting) = Waiting::of(connection) {
                return Some(waiting);
            }
        }
        None
    }
}

impl AsFd for StartWatch {
    /// For `poll`: readable when a process waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for StartWatch {
    fn drop(&mut self) {
        let _gone_with_its_pod = fs::remove_file(within(&self.directory, &self.name));
    }
}

impl Waiting {
    fn of(mut connection: UnixStream) -> io::Result<Self> {
        let peer = nix::sys::socket::getsockopt(&connection, PeerCredentials)?;
        // The directory's mode keeps others out already; this does not depend on it.
        if peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        connection.set_read_timeout(Some(WORD_TIMEOUT))?;
        let mut number = [0; size_of::<i32>()];
        connection.read_exact(&mut number)?;
        Ok(Self {
            pid: i32::from_ne_bytes(number),
            _connection: connection,
        })
    }

    /// The process, as the host numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

/// Shows a process that waits to whoever watches its container, if anybody does.
pub(crate) fn show(run: &Path, container: &str, pid: i32) -> io::Result<()> {
    let directory = open(run)?;
    let mut connection = match UnixStream::connect(within(&directory, &name(container))) {
        Ok(connection) => connection,
        Err(error) if is_nobody(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(&pid.to_ne_bytes())?;
    // Its end, or the end of patience.
    let _closed = connection.read(&mut [0]);
    Ok(())
}

fn open(run: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, run, flags, Mode::empty())?)
}

fn name(container: &str) -> String {
    format!("watch-{container}")
}

/// A path that is short enough for a socket's, wherever the directory is.
fn within(directory: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).into()
}

/// Whether an agent that has ended left it.
fn is_left_over(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| is_nobody(&error))
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// As long as it may be.
    const CONTAINER: &str = "a-container-with-a-name-as-long-as-a-label-may-be-and-no-longer";

    fn watched(watch: &StartWatch) -> Waiting {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(waiting) = watch.waiting() {
                return waiting;
            }
            assert!(Instant::now() < until, "nobody came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_waits_while_it_is_looked_at_and_for_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory
            .path()
            .join("a-directory-of-pods-that-is-somewhere-deep-down-in-the-tree-of-the-node");
        fs::create_dir(&run).unwrap();
        show(&run, CONTAINER, 7).unwrap();
        let watch = StartWatch::new(&run, CONTAINER).unwrap();
        assert!(watch.waiting().is_none());
        let shown = {
            let run = run.clone();
            std::thread::spawn(move || show(&run, CONTAINER, 7))
        };
        let waiting = watched(&watch);
        assert_eq!(waiting.pid(), 7);
        assert!(!shown.is_finished());
        drop(waiting);
        shown.join().unwrap().unwrap();

        let taken = StartWatch::new(&run, CONTAINER).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(watch.waiting().is_none(), "who asked for the place is no process");
        // Nor does a program wait for ever for one who does not look.
        let began = Instant::now();
        show(&run, CONTAINER, 7).unwrap();
        assert!(began.elapsed() >= PATIENCE);
        drop(watch);
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
        // An agent that was killed leaves its socket.
        drop(UnixListener::bind(within(&open(&run).unwrap(), &name(CONTAINER))).unwrap());
        show(&run, CONTAINER, 7).unwrap();
        StartWatch::new(&run, CONTAINER).unwrap();
    }
}
