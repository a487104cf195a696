//! Whose a packet's own end is, and what a host or a pod does to have neighbours at all.

use ebpf_abi::{Address, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, Endpoint, protocol};

use crate::packet::{PIECE_LATER, PIECE_WHOLE, Packet};

#[inline(always)]
pub(super) fn owns(endpoint: &Endpoint, address: &Address) -> bool {
    if address.is_ipv4() {
        endpoint.flags & ENDPOINT_HAS_IPV4 != 0 && same(&endpoint.ipv4, address)
    } else {
        endpoint.flags & ENDPOINT_HAS_IPV6 != 0 && same(&endpoint.ipv6, address)
    }
}

/// Whether the frame comes from this MAC address.
#[inline(always)]
pub(super) fn sent_from(packet: &Packet, mac: [u8; 6]) -> bool {
    let [a, b, c] = packet.source_mac;
    let [m0, m1, m2, m3, m4, m5] = mac;
    let word = |first, second| u16::from_ne_bytes([first, second]);
    a == word(m0, m1) && b == word(m2, m3) && c == word(m4, m5)
}

#[inline(always)]
pub(super) fn same(a: &Address, b: &Address) -> bool {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.words_be, b.words_be);
    a0 == b0 && a1 == b1 && a2 == b2 && a3 == b3
}

/// Solicitations and advertisements of routers and neighbours, and redirects (RFC 4861).
#[inline(always)]
pub(super) fn is_neighbour_discovery(packet: &Packet) -> bool {
    packet.protocol == protocol::ICMPV6
        && packet.fragment.kind != PIECE_LATER
        && matches!(packet.service_port >> 8, 133..=137)
}

/// Neighbour discovery, multicast listener discovery and DHCP.
#[inline(always)]
pub(super) fn is_housekeeping(packet: &Packet) -> bool {
    let (from, to) = (packet.source_port, packet.service_port);
    match packet.protocol {
        protocol::ICMPV6 => is_neighbour_discovery(packet) || matches!(to >> 8, 130..=132 | 143),
        protocol::UDP if packet.fragment.kind == PIECE_WHOLE => {
            matches!((from, to), (67, 68) | (68, 67) | (546, 547) | (547, 546))
        }
        _ => false,
    }
}
