//! Fragments: the first one shows the ports and is judged; those that follow belong to its flow.
//!
//! Fragments that come before the first one are denied as well: nobody can tell what they belong to. So is one that
//! would overwrite a part of the first, where ports and flags are.

use ebpf_abi::{FRAGMENT_TIMEOUT_NS, FRAGMENTS_PER_ENDPOINT, Fragment};

use crate::{
    maps::FRAGMENTS,
    packet::{FlowPorts, Packet},
};

/// Notes what a first fragment, which has passed, showed.
#[inline(always)]
pub(crate) fn remember(slot: u32, packet: &Packet, now_ns: u64) {
    let Some(place) = FRAGMENTS.get_ptr_mut(place(slot, packet)) else {
        return;
    };
    let fragment = Fragment {
        time_ns: now_ns,
        peer: packet.peer,
        id: packet.fragment.id,
        local_port: packet.ports.local,
        peer_port: packet.ports.peer,
        end: packet.fragment.boundary,
        service_port: packet.service_port,
        protocol: packet.protocol,
        direction: packet.direction,
        next: packet.fragment.next,
        padding: 0,
    };
    // SAFETY: the map returned a valid, aligned value; see its comment for what two writers can do.
    unsafe { place.write(fragment) };
}

/// Gives a later fragment the protocol and ports of its first one. Whether there was one, not long ago.
#[inline(always)]
pub(crate) fn recall(slot: u32, packet: &mut Packet, now_ns: u64) -> bool {
    let Some(first) = FRAGMENTS.get(place(slot, packet)) else {
        return false;
    };
    let [a, b] = [first.peer.words_be, packet.peer.words_be];
    let same = first.id == packet.fragment.id
        && first.next == packet.fragment.next
        && first.direction == packet.direction
        && a[0] == b[0]
        && a[1] == b[1]
        && a[2] == b[2]
        && a[3] == b[3];
    let fresh = first.time_ns != 0 && now_ns.wrapping_sub(first.time_ns) < FRAGMENT_TIMEOUT_NS;
    if !same || !fresh || packet.fragment.boundary < first.end {
        return false;
    }
    packet.protocol = first.protocol;
    packet.ports = FlowPorts {
        local: first.local_port,
        peer: first.peer_port,
    };
    packet.service_port = first.service_port;
    true
}

/// Where the fragments of one packet are remembered. Identifications mostly count up, so neighbours get neighbouring
/// places.
#[inline(always)]
fn place(slot: u32, packet: &Packet) -> u32 {
    let mixed = packet.fragment.id ^ packet.peer.words_be[3].wrapping_mul(0x9e37_79b1) >> 28;
    slot * FRAGMENTS_PER_ENDPOINT + mixed % FRAGMENTS_PER_ENDPOINT
}
