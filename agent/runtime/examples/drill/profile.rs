//! What a profile's lists and scopes take away and the baseline leaves.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;

use crate::{Attempt, Outcome, fact};

pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read-unlisted", || done(fs::File::open("/app/tool"))),
    ("list-unlisted", || done(fs::read_dir("/config"))),
    ("write-unlisted", || done(fs::write("/tmp/unlisted", "x"))),
    ("remove-unlisted", || done(fs::remove_file("/app/setuid"))),
    ("run-unlisted", || {
        done(Command::new("/bin/busybox").arg("true").status())
    }),
    ("ioctl-device", || {
        let null = fs::File::open("/dev/null")?;
        let mut room = [0_u8; 64];
        // SAFETY: TCGETS fills a `termios`, which is smaller than the room.
        match unsafe { libc::ioctl(null.as_raw_fd(), libc::TCGETS, room.as_mut_ptr()) } {
            0 => Ok(Outcome::Done),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("abstract-socket-container", || {
        let address = SocketAddr::from_abstract_name(fact("OWN_SOCKET"))?;
        done(UnixStream::connect_addr(&address))
    }),
];

fn done<T>(result: io::Result<T>) -> io::Result<Outcome> {
    result.map(|_value| Outcome::Done)
}
