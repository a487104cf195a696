//! A veth pair on which nobody speaks but the test: what comes out at the other end is what the programs let through.
//!
//! Neither end has an address and neither stack answers, so each frame that arrives is one that was sent. Frames are heard
//! behind the programs: where they leave the pod, by sockets for one ethertype each, which the kernel serves after tcx and
//! clsact (a socket for all of them is served before).

use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{MsgFlags, SockaddrStorage, recvfrom, send},
};
use policies_ir::tables::Direction;

use crate::link::run;

/// IPv4, IPv6, ARP, LLDP, and two kinds of tags.
const ETHERTYPES: [u16; 6] = [0x0800, 0x86dd, 0x0806, 0x88cc, 0x8100, 0x88a8];

/// The pod's link: `palhost` in the network namespace of the test, `eth0` in one that nobody is in.
pub(crate) struct Wire {
    /// Interface number of the host's end.
    pub(crate) ifindex: u32,
    host: End,
    pod: End,
}

/// Sockets for one ethertype each, on one end.
struct End(Vec<OwnedFd>);

impl Wire {
    pub(crate) fn new() -> Self {
        let host = File::open("/proc/thread-self/ns/net").expect("the host's namespace");
        be_silent();
        unshare(CloneFlags::CLONE_NEWNET).expect("the pod's namespace");
        be_silent();
        let host_name = format!("/proc/{}/fd/{}", std::process::id(), host.as_raw_fd());
        run(
            "ip link add eth0 address 02:00:00:00:00:01 type veth peer name palhost address 02:00:00:00:00:fe",
        );
        run(&format!("ip link set palhost netns {host_name}"));
        run("ip link set eth0 up");
        let pod = End::open("eth0");
        setns(&host, CloneFlags::CLONE_NEWNET).expect("come back");
        run("ip link set palhost up");
        let wire = Self {
            ifindex: nix::net::if_::if_nametoindex("palhost").expect("the host's end"),
            host: End::open("palhost"),
            pod,
        };
        wire.wait();
        wire
    }

    /// Until frames pass both ways: a link that has just come up drops some.
    fn wait(&self) {
        let frame = [&[2; 12][..], &[8, 0], &[0; 46]].concat();
        let moment = Duration::from_millis(5);
        for direction in [Direction::Egress, Direction::Ingress] {
            let mut attempts = 0;
            while self.receive(direction, moment).is_none() {
                self.send(direction, &frame);
                attempts += 1;
                assert!(attempts < 2000, "the link does not come up");
            }
            while self.receive(direction, moment).is_some() {}
        }
    }

    /// Sends a frame from the pod ([`Direction::Egress`]) or to it.
    pub(crate) fn send(&self, direction: Direction, frame: &[u8]) {
        let (from, _) = self.ends(direction);
        let socket = from.0.first().expect("an end has sockets");
        match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(sent) => assert_eq!(sent, frame.len()),
            // What is dropped on the way out of an interface, its sender hears of.
            Err(error) => assert_eq!(error, Errno::ENOBUFS, "send the frame"),
        }
    }

    /// The next frame that came out at the end where those of `direction` do, if one comes soon enough.
    pub(crate) fn receive(&self, direction: Direction, patience: Duration) -> Option<Vec<u8>> {
        let (_, to) = self.ends(direction);
        let mut waiting: Vec<PollFd<'_>> =
            to.0.iter()
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                .collect();
        let patience = PollTimeout::try_from(patience).expect("a short time");
        if poll(&mut waiting, patience).expect("poll") == 0 {
            return None;
        }
        let mut frame = vec![0; 2048];
        to.0.iter().find_map(|socket| {
            let (length, _) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut frame).ok()?;
            Some(frame[..length].to_vec())
        })
    }

    fn ends(&self, direction: Direction) -> (&End, &End) {
        match direction {
            Direction::Egress => (&self.pod, &self.host),
            Direction::Ingress => (&self.host, &self.pod),
        }
    }
}

impl End {
    fn open(interface: &str) -> Self {
        let ifindex = nix::net::if_::if_nametoindex(interface).expect("the interface");
        let open = |ethertype: u16| {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: three integers; the result is checked before it is used. Protocol 0 hears nothing before `bind`.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
            assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
            // SAFETY: the descriptor was just opened and belongs to nobody else.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
            address.sll_protocol = ethertype.to_be();
            address.sll_ifindex = i32::try_from(ifindex).expect("a small number");
            let length = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("a small number");
            // SAFETY: the address is valid for `length` bytes while the call lasts.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(bound, 0, "bind: {}", std::io::Error::last_os_error());
            socket
        };
        Self(ETHERTYPES.map(open).into())
    }
}

/// IPv6 would ask for neighbours and report groups as soon as a link is up.
fn be_silent() {
    for which in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").expect("turn IPv6 off");
    }
}
