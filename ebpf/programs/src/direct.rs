//! The short way between two pods of a node: past the host's stack, from the sender's link straight into the receiver's
//! network namespace. Both ends judge each packet as on the long way.
//!
//! A flow takes it once its first packet has gone the long way and arrived unchanged: both ends then track the same flow,
//! seen from either side. What the host's stack translates, such as a port of the node that leads to a pod, never looks so,
//! and keeps going where it is translated back. So do fragments, ICMP errors, what opens a flow, and packets that no router
//! may pass on. What goes straight looks as if the host had passed it on: one hop fewer, and not the sender's MAC address.

use aya_ebpf::{bindings::TC_ACT_SHOT, helpers::bpf_redirect_peer, programs::TcContext};
use ebpf_abi::{DIRECTION_EGRESS, FlowKey, FlowState, PodLink, WAY_DIRECT, WAY_HOST, WAY_UNKNOWN};

use crate::{
    judge::flow_key,
    maps::{FLOWS, HANDOVER, PODS},
    packet::{ETHERNET_BYTES, FlowPorts, PIECE_WHOLE, Packet, load},
};

/// Offsets in IPv4's header of the time to live, which the protocol and the checksum follow, and in IPv6's of the hop limit.
const IPV4_HOPS: usize = ETHERNET_BYTES + 8;
const IPV6_HOPS: usize = ETHERNET_BYTES + 7;

/// Set to zero by the loader where packets should all go by the host's stack.
#[unsafe(no_mangle)]
static DIRECT: u32 = 1;

/// Whether the packet of a tracked flow, which has passed, may go straight to the other end.
#[inline(always)]
pub(crate) fn is_way(key: &FlowKey, flow: &mut FlowState, packet: &Packet) -> bool {
    // SAFETY: a volatile load of a valid reference, since the loader sets the value after the compiler has seen it.
    if unsafe { (&raw const DIRECT).read_volatile() } == 0 {
        return false;
    }
    if packet.direction != DIRECTION_EGRESS || packet.fragment.kind != PIECE_WHOLE || packet.hops <= 1 {
        return false;
    }
    let origin = flow.origin;
    let way = &mut flow.sides[DIRECTION_EGRESS as usize].way;
    if *way == WAY_UNKNOWN {
        *way = way_of(key, origin);
    }
    *way == WAY_DIRECT
}

/// Straight, if the other end tracks the flow too, as one that lives and came from where this end says. While it does not,
/// its first packet may be on its way still.
#[inline(always)]
fn way_of(key: &FlowKey, origin: u8) -> u8 {
    // SAFETY: values are never changed while a program may read them, see `PodLink`.
    let Some(pod) = (unsafe { PODS.get(&key.peer) }) else {
        return WAY_HOST;
    };
    let ports = FlowPorts {
        local: key.peer_port,
        peer: key.local_port,
    };
    let mirrored = flow_key(pod.endpoint, key.peer, key.local, key.protocol, ports);
    // SAFETY: only integers are read. A flow that is replaced meanwhile is one of the same two ends.
    match unsafe { FLOWS.get(&mirrored) } {
        Some(other) if other.origin != origin && !FlowState::is_over(other.state) => WAY_DIRECT,
        _ => WAY_UNKNOWN,
    }
}

/// Gives the packet to the program that asks the receiver. Returns where there is none, and the packet goes by the host's
/// stack, where the receiver is asked too.
#[inline(always)]
pub(crate) fn hand_over(ctx: &TcContext, packet: &Packet) {
    // SAFETY: as in `way_of`.
    if let Some(&PodLink { ifindex, mac, .. }) = unsafe { PODS.get(&packet.peer) } {
        let [a, b, c, d, e, f] = mac;
        // SAFETY: the context is the kernel's for as long as the program runs; the verifier checks the access.
        unsafe {
            let cb = &mut (*ctx.skb.skb).cb;
            cb[0] = ifindex;
            cb[1] = u32::from_ne_bytes([a, b, c, d]);
            cb[2] = u16::from_ne_bytes([e, f]) as u32;
            HANDOVER.tail_call(ctx, 0);
        }
    }
}

/// Host side of the receiver's link.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as in `hand_over`.
    unsafe { (*ctx.skb.skb).cb[0] }
}

/// Puts the packet, which the receiver has let pass, on the receiver's side of its link.
#[inline(always)]
pub(crate) fn deliver(ctx: &TcContext, packet: &Packet) -> i32 {
    // SAFETY: as in `hand_over`.
    let [_, first, second, ..] = unsafe { (*ctx.skb.skb).cb };
    match rewrite(ctx, packet, first, second as u16) {
        // SAFETY: the helper has no preconditions.
        Some(()) => (unsafe { bpf_redirect_peer(packet.ifindex, 0) }) as i32,
        None => TC_ACT_SHOT,
    }
}

/// Changes what a router would. None if the kernel refuses, for want of memory.
#[inline(always)]
fn rewrite(ctx: &TcContext, packet: &Packet, mac_first: u32, mac_rest: u16) -> Option<()> {
    let [router_0, router_1, router_2]: [u16; 3] = load(ctx, 0).ok()?;
    let link = [mac_first as u16, (mac_first >> 16) as u16, mac_rest, router_0, router_1, router_2];
    ctx.store(0, &link, 0).ok()?;
    let hops = packet.hops - 1;
    if !packet.peer.is_ipv4() {
        return ctx.store(IPV6_HOPS, &hops, 0).ok();
    }
    let [_, protocol, high, low]: [u8; 4] = load(ctx, IPV4_HOPS).ok()?;
    // RFC 1141: what leaves the sum comes back in its complement.
    let sum = ((high as u32) << 8 | low as u32) + 0x0100;
    let [high, low] = ((sum + (sum >= 0xffff) as u32) as u16).to_be_bytes();
    ctx.store(IPV4_HOPS, &[hops, protocol, high, low], 0).ok()
}
