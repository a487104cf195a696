//! What is a host's own, and what it passes on.
//!
//! At an interface of the host, what the host translates looks like its own: it leaves with the host's address, and its
//! answers come back to that. Whose it is tells the interface that it came in by. Such a flow is *carried*: it is tracked
//! for the endpoint of the host's address, where its answers look for it, but what is forwarded has other policies, and
//! only those judge it.

use aya_ebpf::programs::TcContext;
use ebpf_abi::{
    Address, CARRIED, DIRECTION_EGRESS, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, EPOCH_NONE, Endpoint, EndpointState, FlowState, HostKey,
};

use super::{Judge, local::owns, state_of};
use crate::{
    maps::{ENDPOINTS, HOST_ENDPOINTS},
    packet::{self, Packet, Role},
};

/// What a packet at an interface of the host is to a flow of the same two ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// It belongs to the flow.
    Own,
    /// It comes to the host's address, from the other end of a flow that the host carries, and asks to open one: that is
    /// for the host's own tables to say.
    Foreign,
    /// It belongs to somebody else, who has taken over the ports.
    Other,
}

/// The endpoint of an address of the host: also of those that packets for whoever listens are sent to.
#[inline(always)]
pub(super) fn host_at<'a>(ifindex: u32, address: Address) -> Option<&'a Endpoint> {
    let address = if address.is_group() { Address::GROUP } else { address };
    // SAFETY: as in `judge_pod`.
    unsafe { HOST_ENDPOINTS.get(&HostKey { ifindex, address }) }
}

/// The endpoint of what the host forwards through an interface.
#[inline(always)]
pub(super) fn forwarded_at<'a>(ifindex: u32) -> Option<&'a Endpoint> {
    host_at(ifindex, Address::UNSPECIFIED)
}

/// Who brought what leaves with an address of the host's, as [`FlowState::carrier`]; 0 if the host has made it itself.
///
/// The kernel notes by which interface a packet came in, and notes none for what it makes, tunnels included: neither can
/// be forged from inside a pod. Only where it takes an IPv6 packet apart anew it forgets. What the host makes itself
/// belongs to a socket then, and what passes through belongs to none.
#[inline(always)]
pub(super) fn carrier(ctx: &TcContext, packet: &Packet, is_host: bool) -> u32 {
    if packet.direction != DIRECTION_EGRESS {
        return 0;
    }
    let came_by = packet::came_by(ctx);
    if came_by == 0 {
        let is_forgotten = packet.is_taken_apart() && !packet::has_socket(ctx);
        return if is_host && is_forgotten { CARRIED } else { 0 };
    }
    // SAFETY: as in `judge_pod`.
    match unsafe { ENDPOINTS.get(came_by) } {
        Some(pod) if owns(pod, &packet.local) => 0,
        Some(_) => came_by,
        None if is_host => CARRIED,
        None => 0,
    }
}

/// The address that the packet has before it is translated, or after it was translated back: the pod's, if a pod opened
/// the flow. Of others the host does not tell.
#[inline(always)]
pub(crate) fn inside(carrier: u32, wire: Address) -> Address {
    // SAFETY: as in `judge_pod`.
    match unsafe { ENDPOINTS.get(carrier) } {
        Some(pod) if wire.is_ipv4() && pod.flags & ENDPOINT_HAS_IPV4 != 0 => pod.ipv4,
        Some(pod) if !wire.is_ipv4() && pod.flags & ENDPOINT_HAS_IPV6 != 0 => pod.ipv6,
        _ => wire,
    }
}

/// Who tells of a carried flow: the endpoint of what is forwarded, or else the one that tracks it.
#[inline(always)]
pub(crate) fn teller(ifindex: u32, keeper: u32) -> u32 {
    match forwarded_at(ifindex) {
        Some(endpoint) => endpoint.id,
        None => keeper,
    }
}

/// Whose tables judge: those of the endpoint itself, or of what is forwarded if the host carries the packet. Where no policy
/// speaks of that it is open, but the answers come to the host's address, and have to be known there. None if nobody
/// judges.
#[inline(always)]
pub(super) fn judge_of<const HOST: bool>(own: Judge, packet: &mut Packet) -> Option<Judge> {
    if !HOST {
        return Some(own);
    }
    let has_tables = own.state.epoch != EPOCH_NONE;
    if packet.carrier == 0 {
        return if has_tables { Some(own) } else { None };
    }
    packet.inside = inside(packet.carrier, packet.local);
    if let Some(forwarded) = forwarded_at(packet.ifindex)
        && let Some(judge) = state_of(forwarded.id, forwarded.slot)
    {
        return Some(Judge {
            keeper: own.keeper,
            ..judge
        });
    }
    if !has_tables {
        return None;
    }
    Some(Judge {
        state: EndpointState {
            epoch: EPOCH_NONE,
            generation: 0,
            flags: 0,
        },
        is_open: true,
        ..own
    })
}

/// Whose the packet is, told by who brought it. Addresses and ports of one who is gone are soon another's: what opens a
/// flow, or may, must not pass by the decision about the one before.
#[inline(always)]
pub(super) fn part_of(flow: &FlowState, packet: &Packet) -> Part {
    let carrier = flow.carrier();
    if packet.direction != DIRECTION_EGRESS {
        return if carrier != 0 && packet.role == Role::Opens { Part::Foreign } else { Part::Own };
    }
    let is_answer = flow.origin != DIRECTION_EGRESS && packet.role != Role::Opens;
    // The host's stack refuses what comes for a flow that its translation has forgotten.
    let is_refusal = packet.carrier == 0 && packet.role == Role::Continues;
    // Of pieces the kernel may have forgotten who brought them.
    let is_piece = packet.carrier == CARRIED && carrier != 0 && packet.is_taken_apart();
    if carrier == packet.carrier || is_answer || is_refusal || is_piece {
        Part::Own
    } else {
        Part::Other
    }
}
