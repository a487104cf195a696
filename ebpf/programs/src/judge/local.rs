//! Whose a packet's own end is, and what a host or a pod does to have neighbours at all.

use aya_ebpf::programs::TcContext;
use ebpf_abi::{Address, DIRECTION_EGRESS, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, Endpoint, protocol};

use crate::{
    maps::PODS,
    packet::{self, PIECE_LATER, PIECE_WHOLE, Packet},
};

/// Hop limit of neighbour discovery, by which its receiver knows that no router has passed it on (RFC 4861, section 6.1).
const FROM_THE_LINK: u8 = 255;
/// Hop limit of what goes no farther than the link.
const ON_THE_LINK: u8 = 1;

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

/// Neighbour discovery and multicast listener discovery, neither of which a router passes on, and DHCP.
#[inline(always)]
pub(super) fn is_housekeeping(ctx: &TcContext, packet: &Packet) -> bool {
    match packet.protocol {
        protocol::ICMPV6 => match packet.hops {
            FROM_THE_LINK => is_neighbour_discovery(packet),
            ON_THE_LINK => matches!(packet.service_port >> 8, 130..=132 | 143),
            _ => false,
        },
        protocol::UDP if packet.fragment.kind == PIECE_WHOLE => is_dhcp(ctx, packet),
        _ => false,
    }
}

/// By which a host gets its addresses: what is sent to whoever listens on the link, what the host itself sends, and what a
/// server answers. Nobody forwards the first; of the others, what is forwarded looks the same. So what the host sends must
/// have come by no interface, and an answer goes to no pod; that it goes to the host cannot be asked, whose address may be
/// the one that is being given. Requests to a server that the host runs are for its policy to allow.
#[inline(always)]
fn is_dhcp(ctx: &TcContext, packet: &Packet) -> bool {
    let (client, server) = if packet.peer.is_ipv4() { (68, 67) } else { (546, 547) };
    let is_answer = packet.source_port == server && packet.service_port == client;
    if !is_answer && !(packet.source_port == client && packet.service_port == server) {
        return false;
    }
    if destination(packet).is_group() {
        return true;
    }
    if packet.direction == DIRECTION_EGRESS {
        return packet::came_by(ctx) == 0 && !packet.is_taken_apart();
    }
    // SAFETY: only whether there is a value is looked at.
    is_answer && unsafe { PODS.get(&packet.local) }.is_none()
}

/// To a group, and no farther than the link: reports of IGMP's second version go to the group itself.
#[inline(always)]
pub(super) fn is_igmp(packet: &Packet) -> bool {
    let to = destination(packet);
    packet.protocol == protocol::IGMP && to.is_ipv4() && to.is_group() && packet.hops == ON_THE_LINK
}

#[inline(always)]
fn destination(packet: &Packet) -> Address {
    if packet.direction == DIRECTION_EGRESS { packet.peer } else { packet.local }
}
