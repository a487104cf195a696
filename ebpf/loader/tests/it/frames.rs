//! Frames made by hand, so that each can be wrong in one place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::POD_MAC;

/// MAC address of everything that is not the pod.
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// Source and destination of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

impl Ends {
    pub(crate) fn new(source: &str, destination: &str) -> Self {
        Self {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    pub(crate) fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }
}

/// An Ethernet frame with an IP packet that carries `payload`. Frames with the pod's MAC address as source do as
/// frames to the pod as well: only what leaves the pod is checked.
pub(crate) fn frame(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet(0x0800, &ipv4(source, destination, protocol, payload))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet(0x86dd, &ipv6(source, destination, protocol, payload))
        }
        mixed => panic!("two families: {mixed:?}"),
    }
}

pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&HOST_MAC[..], &POD_MAC, &ethertype.to_be_bytes(), payload].concat()
}

pub(crate) fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len())
        .expect("a small packet")
        .to_be_bytes();
    let header = [0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
    [&header[..], &source.octets(), &destination.octets(), payload].concat()
}

pub(crate) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len())
        .expect("a small packet")
        .to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], next, 64];
    [&header[..], &source.octets(), &destination.octets(), payload].concat()
}

pub(crate) fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    segment(source, destination, flags, 0, 0, &[])
}

/// A TCP segment without options, with a window of 65,535.
pub(crate) fn segment(
    source: u16,
    destination: u16,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend(sequence.to_be_bytes());
    header.extend(acknowledged.to_be_bytes());
    header.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header.extend(payload);
    header
}

pub(crate) fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 8, 0, 0]);
    header
}

/// An INIT that announces the tag 7.
pub(crate) fn sctp(source: u16, destination: u16) -> Vec<u8> {
    chunk(source, destination, 0, 1, 0, 7)
}

/// An SCTP packet with one chunk, of which the first four bytes are `tag`.
pub(crate) fn chunk(
    source: u16,
    destination: u16,
    verification: u32,
    kind: u8,
    flags: u8,
    tag: u32,
) -> Vec<u8> {
    let mut packet = ports(source, destination);
    packet.extend(verification.to_be_bytes());
    packet.extend([0, 0, 0, 0, kind, flags, 0, 20]);
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 12]);
    packet
}

pub(crate) fn icmp(kind: u8, code: u8, id: u16) -> Vec<u8> {
    let id = id.to_be_bytes();
    vec![kind, code, 0, 0, id[0], id[1], 0, 1]
}

/// An ICMP error that quotes a packet (an IP packet, not a frame).
pub(crate) fn icmp_error(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0, 0, 0, 0, 0][..], quoted].concat()
}

/// The IP packet in a frame.
pub(crate) fn packet_of(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}
