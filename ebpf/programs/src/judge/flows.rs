//! Flows: opened by what policy allows, followed by what belongs to them, judged again when policy has changed.

use ebpf_abi::{
    Address, DIRECTION_EGRESS, Decision, FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_REPLIED, FlowKey, FlowState, Reason,
    STATE_KEEP_ESTABLISHED, VERDICT_ALLOW, protocol,
};

use super::{
    Judge, Outcome,
    budget::{count_unestablished, has_room, leave},
    decided, deny,
    forward::inside,
    tables::{ask_about, ask_tables},
};
use crate::{
    atomic::{add, exchange},
    closed, direct,
    maps::{FLOWS, NEW_FLOW},
    packet::{FlowPorts, Packet, Role},
    report, track,
};

/// A packet of a flow that is known. One that asks to open a flow is
///
/// - judged anew if the flow is over or was denied: it opens another one;
/// - the flow's own if it comes from the same end: a SYN sent again, or one that a spoofing peer sends. It changes
///   nothing that is established; the receiver's stack knows what to answer;
/// - judged if it comes from the other end: policy may allow one direction only. The flow stays as it is.
///
/// Where the judge is not the flow's own, the flow keeps the decision that it has.
#[inline(always)]
pub(super) fn tracked(
    endpoint: &Judge,
    key: &FlowKey,
    flow: &mut FlowState,
    packet: &Packet,
    is_foreign: bool,
    now_ns: u64,
) -> Outcome {
    let decision = if is_foreign {
        Decision::unpack(flow.decision)
    } else {
        current_decision(endpoint, key, flow)
    };
    if packet.role != Role::Opens {
        let bits = if decision.verdict == VERDICT_ALLOW {
            track::follow(flow, packet)
        } else {
            0
        };
        note(endpoint, key, flow, decision, packet, now_ns, bits);
        return Outcome {
            is_direct: direct::is_way(key, flow, packet),
            ..decided(endpoint, decision, false)
        };
    }
    if FlowState::is_over(flow.state) || decision.verdict != VERDICT_ALLOW {
        return open(endpoint, key, Some(flow), packet, now_ns);
    }
    if packet.direction == flow.origin {
        // A flow that is kept although policy has changed is no permission to open it again.
        let decision = if decision.change == endpoint.state.change() {
            decision
        } else {
            ask_about(endpoint, packet)
        };
        if decision.verdict != VERDICT_ALLOW {
            return decided(endpoint, decision, false);
        }
        if flow.state & FLOW_REPLIED == 0 {
            flow.sides = FlowState::carried(track::opened(packet), packet.carrier);
        }
        note(endpoint, key, flow, decision, packet, now_ns, 0);
        return decided(endpoint, decision, false);
    }
    let decision = ask_about(endpoint, packet);
    if decision.verdict == VERDICT_ALLOW {
        let bits = track::open_both(flow, packet);
        note(endpoint, key, flow, decision, packet, now_ns, bits);
    }
    decided(endpoint, decision, false)
}

#[inline(always)]
pub(super) fn current_decision(endpoint: &Judge, key: &FlowKey, flow: &mut FlowState) -> Decision {
    let decision = Decision::unpack(flow.decision);
    let kept = endpoint.state.flags & STATE_KEEP_ESTABLISHED != 0 && decision.verdict == VERDICT_ALLOW;
    if decision.change == endpoint.state.change() || kept {
        return decision;
    }
    let (_, decision) = ask_tables(
        endpoint,
        flow.origin,
        &inside(flow.carrier(), key.local),
        &key.peer,
        key.protocol,
        source_port(key, flow.origin),
        flow.service_port,
    );
    flow.decision = decision.pack();
    decision
}

/// Port that a tracked flow's first packet came from, as policy sees it: what ICMP keeps in the key is none.
#[inline(always)]
fn source_port(key: &FlowKey, origin: u8) -> u16 {
    match key.protocol {
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP if origin == DIRECTION_EGRESS => {
            key.local_port
        }
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP => key.peer_port,
        _ => 0,
    }
}

/// Counts the packet, and adds `bits` to the flow's state.
///
/// A flow that is denied stays tracked as denied for a minute. Were it forgotten at once, an answer still on its way
/// out could open it anew in the other direction; did it stay for as long as somebody tries, what policy allows in the
/// other direction would never be asked about.
#[inline(always)]
fn note(
    endpoint: &Judge,
    key: &FlowKey,
    flow: &mut FlowState,
    decision: Decision,
    packet: &Packet,
    now_ns: u64,
    bits: u8,
) {
    // The clock is coarse, and the flow's memory may be another CPU's a moment later: most packets need not write it.
    if decision.verdict == VERDICT_ALLOW && flow.last_seen_ns != now_ns {
        flow.last_seen_ns = now_ns;
    }
    let index = (packet.direction & 1) as usize;
    add(&raw mut flow.packets[index], 1);
    add(&raw mut flow.bytes[index], packet.length as u64);
    let added = bits & !flow.state;
    if added == 0 {
        return;
    }
    flow.state |= added & !FLOW_CLOSED;
    if added & FLOW_ESTABLISHED != 0 {
        count_unestablished(endpoint, flow.origin, &key.peer, u64::MAX);
    }
    if added & FLOW_CLOSED != 0 && exchange(&raw mut flow.closed, 1) == 0 {
        leave(endpoint, key, flow.state, flow.origin);
        closed::remember(key, packet.ifindex, now_ns);
    }
}

/// The first packet of a flow: judged by policy, tracked if allowed. `old` is a flow of the same ends that is over or
/// denied, and makes room.
#[inline(always)]
pub(super) fn open(
    endpoint: &Judge,
    key: &FlowKey,
    old: Option<&FlowState>,
    packet: &Packet,
    now_ns: u64,
) -> Outcome {
    let decision = ask_about(endpoint, packet);
    if decision.verdict != VERDICT_ALLOW {
        return decided(endpoint, decision, false);
    }
    let counted = match old {
        Some(old) => old.closed == 0,
        None => false,
    };
    if !counted && !has_room(endpoint, packet) {
        return deny(endpoint, Reason::TooManyFlows);
    }
    if let Some(old) = old {
        report::ended(key, old, packet.ifindex, now_ns);
        if counted {
            leave(endpoint, key, old.state, old.origin);
        }
    }
    let index = (packet.direction & 1) as usize;
    let Some(flow) = NEW_FLOW.get_ptr_mut(0) else {
        return deny(endpoint, Reason::TooManyFlows);
    };
    // SAFETY: the map returned a valid, aligned value of this CPU. Programs on network hooks run with softirqs disabled and
    // do not nest, so nobody else uses it until this run is over.
    let flow = unsafe { &mut *flow };
    flow.decision = decision.pack();
    flow.opened_ns = now_ns;
    flow.last_seen_ns = now_ns;
    flow.packets = [0; 2];
    flow.packets[index] = 1;
    flow.bytes = [0; 2];
    flow.bytes[index] = packet.length as u64;
    flow.sides = FlowState::carried(track::opened(packet), packet.carrier);
    flow.service_port = packet.service_port;
    flow.origin = packet.direction;
    flow.state = 0;
    flow.closed = 0;
    let flow = &*flow;
    if FLOWS.insert(key, flow, 0).is_err() {
        return deny(endpoint, Reason::TooManyFlows);
    }
    // SAFETY: `Keeper::slot` came from the map in this run and is aligned to eight bytes.
    add(unsafe { &raw mut (*endpoint.keeper.slot).flows }, 1);
    count_unestablished(endpoint, packet.direction, &packet.peer, 1);
    decided(endpoint, decision, true)
}

#[inline(always)]
pub(crate) fn flow_key(endpoint: u32, local: Address, peer: Address, protocol: u8, ports: FlowPorts) -> FlowKey {
    FlowKey {
        endpoint,
        local,
        peer,
        local_port: ports.local,
        peer_port: ports.peer,
        protocol,
        padding: [0; 3],
    }
}
