//! Attempts to use TCP ports that were not declared, which the profile `strict` stops. Each is made by its name.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::{Attempt, Outcome, checked, done};

const DECLARED: u16 = 8080;
const OTHER: u16 = 8081;

pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("bind-declared", || {
        TcpListener::bind(("0.0.0.0", DECLARED)).map(done)
    }),
    ("bind-other", || TcpListener::bind(("0.0.0.0", OTHER)).map(done)),
    ("connect-declared", || connect(DECLARED)),
    ("connect-other", || connect(OTHER)),
    ("bind-multipath", || {
        let socket = stream(libc::IPPROTO_MPTCP)?;
        let (address, length) = loopback(OTHER);
        // SAFETY: the address is of that length and outlives the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        checked(i64::from(bound)).map(done)
    }),
    ("connect-multipath", || {
        let socket = stream(libc::IPPROTO_MPTCP)?;
        let (address, length) = loopback(OTHER);
        // SAFETY: as above.
        let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
        checked(i64::from(connected)).map(done)
    }),
    ("connect-sctp", || stream(libc::IPPROTO_SCTP).map(done)),
    ("connect-sendto", || {
        let socket = stream(0)?;
        let (address, length) = loopback(OTHER);
        let to = (&raw const address).cast();
        // SAFETY: one byte is read, and an address of that length; both outlive the call.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                c"x".as_ptr().cast(),
                1,
                libc::MSG_FASTOPEN,
                to,
                length,
            )
        };
        checked(i64::try_from(sent).map_err(io::Error::other)?).map(done)
    }),
    ("connect-sendmsg", || {
        with_message(|socket, message| {
            // SAFETY: what the message points to outlives the call.
            let sent = unsafe { libc::sendmsg(socket, message, libc::MSG_FASTOPEN) };
            i64::try_from(sent).unwrap_or(-1)
        })
    }),
    ("connect-sendmmsg", || {
        with_message(|socket, message| {
            let mut several = libc::mmsghdr {
                msg_hdr: *message,
                msg_len: 0,
            };
            // SAFETY: one message is read, and its length written; what it points to outlives the call.
            i64::from(unsafe { libc::sendmmsg(socket, &raw mut several, 1, libc::MSG_FASTOPEN) })
        })
    }),
    ("connect-later", || {
        let socket = stream(0)?;
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
        let (address, address_length) = loopback(OTHER);
        // SAFETY: an integer of that length is read, and an address; one byte is read.
        unsafe {
            let (level, option) = (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT);
            let set = libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), length);
            checked(i64::from(set))?;
            let address = (&raw const address).cast();
            checked(i64::from(libc::connect(
                socket.as_raw_fd(),
                address,
                address_length,
            )))?;
            let sent = libc::send(socket.as_raw_fd(), c"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL);
            checked(i64::try_from(sent).map_err(io::Error::other)?).map(done)
        }
    }),
    ("raw-ping", || raw(libc::IPPROTO_ICMP).map(done)),
    ("raw-tcp", || raw(libc::IPPROTO_TCP).map(done)),
    ("raw-multipath", || raw(libc::IPPROTO_MPTCP).map(done)),
    ("raw-any", || raw(libc::IPPROTO_RAW).map(done)),
    ("raw-header", || {
        let socket = raw(libc::IPPROTO_ICMP)?;
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
        let (level, option) = (libc::IPPROTO_IP, libc::IP_HDRINCL);
        // SAFETY: an integer of that length is read.
        let set =
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), length) };
        checked(i64::from(set)).map(done)
    }),
    ("become-other-protocol", || {
        let socket = stream(0)?;
        let name = c"smc";
        // SAFETY: three bytes are read.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_ULP,
                name.as_ptr().cast(),
                3,
            )
        };
        checked(i64::from(set)).map(done)
    }),
    ("listen-unbound", || {
        let socket = stream(0)?;
        // SAFETY: numbers only.
        checked(i64::from(unsafe { libc::listen(socket.as_raw_fd(), 1) })).map(done)
    }),
];

/// Nobody listens: that it may try shows in the error.
fn connect(port: u16) -> io::Result<Outcome> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(done)
}

fn stream(protocol: libc::c_int) -> io::Result<OwnedFd> {
    socket(libc::SOCK_STREAM, protocol)
}

fn raw(protocol: libc::c_int) -> io::Result<OwnedFd> {
    socket(libc::SOCK_RAW, protocol)
}

fn socket(kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the new descriptor is nobody else's.
    unsafe {
        let socket = checked(i64::from(libc::socket(libc::AF_INET, kind, protocol)))?;
        Ok(OwnedFd::from_raw_fd(
            i32::try_from(socket).map_err(io::Error::other)?,
        ))
    }
}

fn loopback(port: u16) -> (libc::sockaddr_in, libc::socklen_t) {
    let address = libc::sockaddr_in {
        sin_family: 2,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes([127, 0, 0, 1]),
        },
        sin_zero: [0; 8],
    };
    (address, 16)
}

/// A byte for a port that is not among the allowed ones.
fn with_message(send: impl FnOnce(i32, &libc::msghdr) -> i64) -> io::Result<Outcome> {
    let socket = stream(0)?;
    let (mut address, length) = loopback(OTHER);
    let mut byte = [0_u8; 1];
    let mut vector = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: all zeros are a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = length;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    checked(send(socket.as_raw_fd(), &message)).map(done)
}
