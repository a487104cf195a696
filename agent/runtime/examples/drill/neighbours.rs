//! Attempts on what lives beside the container: processes, sockets and memory of the host and of other pods,
//! and privileges over them.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::{Attempt, Outcome, checked, done, fact};

pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("signal-host", || signal(number("HOST_PID")?)),
    ("signal-pod", || signal(number("POD_PID")?)),
    ("pidfd-host", || {
        // SAFETY: numbers only.
        checked(unsafe { libc::syscall(libc::SYS_pidfd_open, number("HOST_PID")?, 0) }).map(done)
    }),
    ("memory-of-pod", || {
        std::fs::File::open(format!("/proc/{}/mem", fact("POD_PID"))).map(done)
    }),
    ("environment-of-host", || {
        std::fs::File::open(format!("/proc/{}/environ", fact("HOST_PID"))).map(done)
    }),
    ("setns-own", || {
        let namespace = std::fs::File::open("/proc/self/ns/uts")?;
        // SAFETY: an open descriptor and a number.
        let result = unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&namespace), 0) };
        checked(i64::from(result)).map(done)
    }),
    ("abstract-socket-host", || {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(fact("HOST_SOCKET"))?;
        UnixStream::connect_addr(&address).map(done)
    }),
    ("abstract-socket-pod", || {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(fact("POD_SOCKET"))?;
        UnixStream::connect_addr(&address).map(done)
    }),
    ("tcp-host-loopback", || {
        let port = u16::try_from(number("HOST_PORT")?).map_err(io::Error::other)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(done)
    }),
    ("shared-memory-host", || {
        // SAFETY: numbers only; without a size and flags an existing segment is looked up.
        let found = unsafe { libc::shmget(number("HOST_SHM")?, 0, 0) };
        checked(i64::from(found)).map(done)
    }),
    ("add-network-link", || netlink_new_link()),
    ("raise-limits", || {
        let limit = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the structure outlives the call.
        let result = unsafe {
            let lower = libc::rlimit {
                rlim_cur: 64,
                rlim_max: 64,
            };
            libc::setrlimit(libc::RLIMIT_NPROC, &raw const lower);
            libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit)
        };
        checked(i64::from(result)).map(done)
    }),
    ("real-time-priority", || {
        let parameters = libc::sched_param { sched_priority: 50 };
        // SAFETY: the structure outlives the call.
        let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
        checked(i64::from(result)).map(done)
    }),
    ("negative-niceness", || {
        // SAFETY: numbers only.
        checked(i64::from(unsafe {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20)
        }))
        .map(done)
    }),
    ("more-capabilities", || {
        use rustix::thread::{CapabilitySet, CapabilitySets};
        let all = CapabilitySets {
            effective: CapabilitySet::SYS_ADMIN,
            permitted: CapabilitySet::SYS_ADMIN,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, all)
            .map(done)
            .map_err(io::Error::from)
    }),
    ("lift-no-new-privs", || {
        // SAFETY: numbers only.
        checked(i64::from(unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)
        }))
        .map(done)
    }),
    #[cfg(target_arch = "x86_64")]
    ("compat-call", compat_call),
];

fn number(name: &str) -> io::Result<i32> {
    fact(name).parse().map_err(io::Error::other)
}

/// Signal 0 asks whether the process could be signalled.
fn signal(pid: i32) -> io::Result<Outcome> {
    // SAFETY: numbers only.
    checked(i64::from(unsafe { libc::kill(pid, 0) })).map(done)
}

/// A dummy interface over netlink.
fn netlink_new_link() -> io::Result<Outcome> {
    const NEW_LINK: u16 = 16;
    const REQUEST_CREATE_ACK: u16 = 0x1 | 0x400 | 0x4;
    let mut message = Vec::new();
    // Header, then an interface of family and type 0, then IFLA_LINKINFO { IFLA_INFO_KIND "dummy" }.
    let info: [&[u8]; 3] = [&16_u16.to_ne_bytes(), &18_u16.to_ne_bytes(), &[10, 0, 1, 0]];
    let kind: &[u8] = b"dummy\0\0\0";
    message.extend(52_u32.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_CREATE_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 16]);
    message.extend(info.concat());
    message.extend(kind);
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    message.splice(..4, length.to_ne_bytes());
    // SAFETY: the new descriptor is nobody else's; the buffer is valid for its length.
    let mut socket = unsafe {
        let descriptor = checked(i64::from(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)))?;
        let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
        let sent = libc::send(descriptor, message.as_ptr().cast(), message.len(), 0);
        checked(i64::try_from(sent).map_err(io::Error::other)?)?;
        <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(descriptor)
    };
    let mut answer = [0_u8; 256];
    socket.read_exact(&mut answer[..20])?;
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if error == 0 {
        return Ok(Outcome::Done);
    }
    Err(io::Error::from_raw_os_error(-error))
}

/// `getpid` through the 32-bit entry, whose numbers mean other calls.
#[cfg(target_arch = "x86_64")]
fn compat_call() -> io::Result<Outcome> {
    let mut number = 20_i64;
    // SAFETY: the call takes no arguments; the 32-bit entry may change the registers that are named.
    unsafe {
        std::arch::asm!("int 0x80", inout("rax") number, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    checked(number).map(done)
}
