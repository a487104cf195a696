//! Interfaces of the host whose packets have no link header, such as tunnels: tun, which every kernel has.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    time::{Duration, Instant},
};

use ebpf_loader::{Datapath, DatapathError, HostLink};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use policies_ir::tables::Verdict;

use crate::{
    frames::{self, Ends, UDP, udp},
    host::{ALLOW, CLIENT, DENY, EGRESS, HOST, INGRESS, LOCAL, endpoint, port, tables},
    lab::{Lab, attached_both_ways, ip},
    link::run,
};

const HOST6: &str = "2001:db8:1::1";
const CLIENT6: &str = "2001:db8:7::7";
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(100);

/// A tun device of the test's network namespace, and its far end.
struct Tun {
    ifindex: u32,
    far: File,
}

impl Tun {
    fn new() -> Self {
        // include/uapi/linux/if_tun.h.
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        let far = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("the device for tunnels");
        // SAFETY: all-zero bytes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(b"tun7") {
            *place = byte.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("small flags");
        // SAFETY: the descriptor is open, and the request valid while the call lasts.
        let made = unsafe { libc::ioctl(far.as_raw_fd(), TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "make the device: {}", std::io::Error::last_os_error());
        Self {
            ifindex: nix::net::if_::if_nametoindex("tun7").expect("the device"),
            far,
        }
    }

    fn configure(&self) {
        run(&format!("ip addr add {HOST}/24 dev tun7"));
        run(&format!("ip -6 addr add {HOST6}/64 dev tun7 nodad"));
        run("ip link set tun7 up");
        run("ip route add default dev tun7");
        run("ip -6 route add default dev tun7");
    }

    /// Makes it a device of another type; it must be down.
    fn pose_as(&self, device_type: libc::c_ulong) {
        const TUNSETLINK: libc::c_ulong = 0x4004_54cd;
        // SAFETY: the descriptor is open; the argument is a number.
        let set = unsafe { libc::ioctl(self.far.as_raw_fd(), TUNSETLINK, device_type) };
        assert_eq!(set, 0, "set the type: {}", std::io::Error::last_os_error());
    }

    fn link(&self) -> HostLink {
        let addresses = [HOST, HOST6].map(|address| (ip(address), endpoint(LOCAL)));
        HostLink {
            ifindex: self.ifindex,
            addresses: addresses.into(),
            forward: None,
        }
    }

    /// Sends a datagram to the host from outside.
    fn send(&self, ends: Ends, port: u16) {
        let sent = (&self.far).write(&datagram(ends, port)).expect("send");
        assert!(sent > 0);
    }

    /// Whether a datagram to this port comes out; the kernel's own talk of groups and routers may too.
    fn hears(&self, port: u16, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut packet = [0; 2048];
        loop {
            match (&self.far).read(&mut packet) {
                Ok(_) => {
                    let (protocol, transport) = match packet[0] >> 4 {
                        4 => (packet[9], 20),
                        _ => (packet[6], 40),
                    };
                    if protocol == UDP && packet[transport + 2..transport + 4] == port.to_be_bytes() {
                        return true;
                    }
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut waiting = [PollFd::new(self.far.as_fd(), PollFlags::POLLIN)];
            poll(&mut waiting, PollTimeout::try_from(left).expect("a short time")).expect("poll");
        }
    }
}

/// An IP packet that a real stack takes: with its checksums.
fn datagram(ends: Ends, port: u16) -> Vec<u8> {
    let mut payload = udp(1000, port);
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = frames::ipv4(source, destination, UDP, &payload);
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let pseudo = [
                &source.octets()[..],
                &destination.octets(),
                &[0, 0, 0, 8, 0, 0, 0, UDP],
                &payload,
            ];
            let sum = checksum(&pseudo.concat());
            payload[6..8].copy_from_slice(&sum);
            frames::ipv6(source, destination, UDP, &payload)
        }
        mixed => panic!("two families: {mixed:?}"),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from(folded & 0xffff).expect("folded")).to_be_bytes()
}

/// Sends a whole packet through the device, as root of the host may, and calls it `protocol`.
fn send_as(ifindex: u32, protocol: u16, packet: &[u8]) {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: three integers; the result is checked before it is used. Protocol 0 hears nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(ifindex).expect("a small number");
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("a small number");
    // What is dropped on the way out, its sender may hear of.
    // SAFETY: packet and address are valid while the call lasts, and as long as said.
    let _ = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    };
}

attached_both_ways! {
    fn packets_without_a_link_header_are_judged(attachment) {
        let mut lab = Lab::attached(attachment);
        let tun = Tun::new();
        tun.configure();
        lab.kernel().attach_host(&tun.link()).expect("attach");
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [tun.link()]);
        let entries = [(INGRESS, port(UDP, 53), ALLOW), (EGRESS, port(UDP, 123), ALLOW)];
        lab.kernel().sync(&tables(&[(LOCAL, &entries)])).expect("sync");
        for (own, client) in [(HOST, CLIENT), (HOST6, CLIENT6)] {
            let ends = Ends::new(client, own);
            for (port, expected) in [(53, ALLOW), (54, DENY)] {
                let ear = UdpSocket::bind((own, port)).expect("listen");
                let patience = if expected == ALLOW { PATIENCE } else { SILENCE };
                ear.set_read_timeout(Some(patience)).expect("a time limit");
                tun.send(ends, port);
                let verdict = match ear.recv(&mut [0; 8]) {
                    Ok(_) => Verdict::Allow,
                    Err(_) => Verdict::Deny,
                };
                assert_eq!(verdict, expected, "to {own}, port {port}");
                // The answer is the flow's, or nobody's.
                ear.send_to(b"", (client, 1000)).expect("answer");
                assert_eq!(tun.hears(1000, patience), expected == ALLOW, "from {own}, port {port}");
            }
            let mouth = UdpSocket::bind((own, 2000)).expect("a socket");
            for (port, patience) in [(123, PATIENCE), (124, SILENCE)] {
                mouth.send_to(b"", (client, port)).expect("send");
                assert_eq!(tun.hears(port, patience), port == 123, "from {own} to port {port}");
            }
            // Only bytes go out: what they are called does not help.
            for (name, port) in [(0x0800, 124), (0x86dd, 124), (0x8100, 124), (0x1234, 124)] {
                send_as(tun.ifindex, name, &datagram(ends.reversed(), port));
                assert!(!tun.hears(port, SILENCE), "{own}: called {name:#x}");
            }
        }
        lab.restart();
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [tun.link()]);
        let ear = UdpSocket::bind((HOST, 54)).expect("listen");
        ear.set_read_timeout(Some(SILENCE)).expect("a time limit");
        tun.send(Ends::new(CLIENT, HOST), 54);
        assert!(ear.recv(&mut [0; 8]).is_err(), "another agent");
        lab.kernel().attach_host(&HostLink::none(tun.ifindex)).expect("detach");
        tun.send(Ends::new(CLIENT, HOST), 54);
        ear.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        ear.recv(&mut [0; 8]).expect("nobody judges any more");
    }

    /// An interface of which nobody knows where its packets' IP header is would be one at which nothing is judged.
    fn interfaces_that_cannot_be_read_are_refused(attachment) {
        const GRE: u16 = 778;
        let mut lab = Lab::attached(attachment);
        let tun = Tun::new();
        tun.pose_as(GRE.into());
        let refused = lab.kernel().attach_host(&tun.link()).expect_err("refused");
        assert!(
            matches!(&refused, DatapathError::LinkLayer { name, device_type: GRE } if name == "tun7"),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("tun7 is of device type 778"), "{refused}");
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), []);
        // What it had before it keeps, and another type has other programs.
        tun.pose_as(1);
        lab.kernel().attach_host(&tun.link()).expect("attach");
        tun.pose_as(GRE.into());
        lab.kernel().attach_host(&tun.link()).expect_err("refused");
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [tun.link()]);
        tun.pose_as(0xfffe);
        lab.kernel().attach_host(&tun.link()).expect("attach");
        let pins = std::fs::read_dir(lab.pins.join("links")).expect("the pins");
        let mut names: Vec<_> = pins.map(|pin| pin.expect("a pin").file_name()).collect();
        names.sort();
        let wanted = ["from-host-l3", "to-host-l3"].map(|hook| std::ffi::OsString::from(format!("{}-{hook}", tun.ifindex)));
        assert_eq!(names, wanted);
    }
}
