//! Flows: opened by what policy allows, followed by what belongs to them, judged again when policy has changed.

use core::mem;

use ebpf_abi::{
    Address, CLOSED, DIRECTION_EGRESS, Decision, FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_FIN_EGRESS, FLOW_FIN_INGRESS, FLOW_REPLIED,
    FLOW_RESET, FlowKey, FlowState, Reason, STATE_KEEP_ESTABLISHED, VERDICT_ALLOW, protocol,
};

use super::{
    Judge, Outcome,
    budget::{count_unestablished, has_room, leave, rejoin},
    decided, deny,
    forward::inside,
    tables::{ask_about, ask_tables},
};
use crate::{
    atomic::{add, exchange_half},
    closed, direct,
    maps::{FLOWS, NEW_FLOW},
    packet::{FlowPorts, Packet, Role},
    report, track,
};

/// A packet of a flow that is known. One that asks to open a flow is
///
/// - judged anew if the flow is over or was denied, or nobody knows whether there is one: it opens another one, and nothing
///   is decided here;
/// - the flow's own if it comes from the same end: a SYN sent again, or one that a spoofing peer sends. It changes
///   nothing that is established; the receiver's stack knows what to answer;
/// - judged if it comes from the other end: policy may allow one direction only. The flow stays as it is.
///
/// One that may open a flow, and finds one that has been silent for its time, opens another: user space, which forgets
/// flows, may have been gone for as long, and what somebody was answered once is no leave to speak for ever.
///
/// Where the judge is not the flow's own, the flow keeps the decision that it has.
#[inline(always)]
pub(super) fn tracked<const HOST: bool>(
    endpoint: &Judge,
    key: &FlowKey,
    flow: &mut FlowState,
    packet: &Packet,
    is_foreign: bool,
    now_ns: u64,
) -> Option<Outcome> {
    if packet.role == Role::Either && flow.is_silent(packet.protocol, now_ns) {
        return None;
    }
    let decision = if is_foreign {
        Decision::unpack(flow.decision)
    } else {
        current_decision(endpoint, key, flow)
    };
    if packet.role != Role::Opens {
        let bits = if decision.verdict != VERDICT_ALLOW {
            0
        } else if flow.is_closed() {
            if track::lives_on(flow, packet) {
                reopen(endpoint, key, flow);
            }
            0
        } else {
            track::follow::<HOST>(flow, packet)
        };
        note(endpoint, key, flow, decision, packet, now_ns, bits);
        return Some(Outcome {
            is_direct: direct::is_way(key, flow, packet),
            ..decided(endpoint, decision, false)
        });
    }
    if FlowState::is_over(flow.state) || decision.verdict != VERDICT_ALLOW || (HOST && flow.is_guess()) {
        return None;
    }
    if packet.direction == flow.origin {
        // A flow that is kept although policy has changed is no permission to open it again.
        let decision = if decision.change == endpoint.state.change() {
            decision
        } else {
            ask_about(endpoint, packet)
        };
        if decision.verdict != VERDICT_ALLOW {
            return Some(decided(endpoint, decision, false));
        }
        if flow.state & FLOW_REPLIED == 0 {
            flow.sides = FlowState::carried(track::opened(packet), packet.carrier);
        }
        note(endpoint, key, flow, decision, packet, now_ns, 0);
        return Some(decided(endpoint, decision, false));
    }
    let decision = ask_about(endpoint, packet);
    if decision.verdict == VERDICT_ALLOW {
        let bits = track::open_both(flow, packet);
        note(endpoint, key, flow, decision, packet, now_ns, bits);
    }
    Some(decided(endpoint, decision, false))
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
        count_unestablished(endpoint, flow.begun(), &key.peer, u64::MAX);
    }
    if added & FLOW_CLOSED != 0 && exchange_half(&raw mut flow.closed, CLOSED) & CLOSED == 0 {
        leave(endpoint, key, flow);
        closed::remember(key, packet.ifindex, now_ns);
    }
}

/// Takes back that a flow is closed: it counts again, and nobody is told of an end that was none.
#[inline(always)]
fn reopen(endpoint: &Judge, key: &FlowKey, flow: &mut FlowState) {
    if exchange_half(&raw mut flow.closed, 0) & CLOSED != 0 {
        flow.state &= !(FLOW_RESET | FLOW_FIN_INGRESS | FLOW_FIN_EGRESS);
        rejoin(endpoint, key, flow);
    }
}

/// The first packet of a flow, or of a host's flow the first that is seen: judged by policy, tracked if allowed. `old` is a
/// flow of the same ends that is over, silent, denied, somebody else's, or no more than a guess, and makes room.
///
/// A packet in the middle of a connection that nobody tracks belongs to none at a pod's endpoint, which was there before
/// the pod and has seen all of it. A host's endpoint comes to a host that lives, and may not cut its connections, least of
/// all those of failsafe ports: it *adopts* them. The packet does not tell which end has opened the connection. So it
/// passes if policy allows it as the first packet of a flow, or allows the first packet of the flow that it would answer;
/// the flow is that one from now on, and judged again as such when policy changes. If both are allowed, it is the one to
/// the lower port: servers have those.
///
/// What that lets in which is not part of a connection, the receiver's stack answers with a reset: only SYN and INIT can
/// open one, and those are never adopted, nor are the answers to them, nor what would end one. What the host carries was
/// opened from inside.
#[inline(always)]
pub(super) fn open<const HOST: bool>(
    endpoint: &Judge,
    key: &FlowKey,
    old: Option<&FlowState>,
    packet: &Packet,
    now_ns: u64,
) -> Outcome {
    let mut opening = Opening::by::<HOST>(packet);
    if packet.role == Role::Continues && !endpoint.is_open {
        if !opening.is_adopted || is_taken(old) {
            return deny(endpoint, Reason::NoConnection);
        }
        if packet.carrier == 0 && packet.source_port < packet.service_port {
            opening.turn();
        }
    }
    let mut decision = opening.ask(endpoint, packet);
    if opening.is_adopted && decision.verdict != VERDICT_ALLOW {
        if packet.carrier == 0 {
            opening.turn();
            decision = opening.ask(endpoint, packet);
        }
        if decision.verdict != VERDICT_ALLOW {
            return deny(endpoint, Reason::NoConnection);
        }
    }
    if decision.verdict != VERDICT_ALLOW {
        return decided(endpoint, decision, false);
    }
    enter(endpoint, key, old, packet, &opening, decision, now_ns)
}

/// A flow of somebody else's, who is seen to be there, is not given up for a guess.
#[inline(always)]
fn is_taken(old: Option<&FlowState>) -> bool {
    match old {
        Some(old) => !old.is_guess(),
        None => false,
    }
}

/// How a flow was opened, as far as policy is asked about that.
struct Opening {
    /// `DIRECTION_*` of the first packet.
    direction: u8,
    source_port: u16,
    service_port: u16,
    /// Whether the packet in hand is not the first one, but from the middle of the flow.
    is_adopted: bool,
}

impl Opening {
    /// By the packet, or another one like it.
    #[inline(always)]
    fn by<const HOST: bool>(packet: &Packet) -> Self {
        Self {
            direction: packet.direction,
            source_port: packet.source_port,
            service_port: packet.service_port,
            is_adopted: HOST && packet.role == Role::Continues && track::is_middle(packet),
        }
    }

    /// By the other end, which the packet answers.
    #[inline(always)]
    fn turn(&mut self) {
        self.direction ^= DIRECTION_EGRESS;
        mem::swap(&mut self.source_port, &mut self.service_port);
    }

    #[inline(always)]
    fn ask(&self, endpoint: &Judge, packet: &Packet) -> Decision {
        let (_, decision) = ask_tables(
            endpoint,
            self.direction,
            &packet.inside,
            &packet.peer,
            packet.protocol,
            self.source_port,
            self.service_port,
        );
        decision
    }
}

/// Tracks a flow that is allowed, if there is room.
#[inline(always)]
fn enter(
    endpoint: &Judge,
    key: &FlowKey,
    old: Option<&FlowState>,
    packet: &Packet,
    opening: &Opening,
    decision: Decision,
    now_ns: u64,
) -> Outcome {
    let counted = match old {
        Some(old) => !old.is_closed(),
        None => false,
    };
    if !counted && !has_room(endpoint, packet) {
        return deny(endpoint, Reason::TooManyFlows);
    }
    if let Some(old) = old {
        report::ended(key, old, packet.ifindex, now_ns);
        if counted {
            leave(endpoint, key, old);
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
    let (sides, state) = if opening.is_adopted {
        track::adopted(packet)
    } else {
        (track::opened(packet), 0)
    };
    flow.sides = FlowState::carried(sides, packet.carrier);
    flow.service_port = opening.service_port;
    flow.origin = opening.direction;
    flow.state = state;
    flow.closed = 0;
    let flow = &*flow;
    if FLOWS.insert(key, flow, 0).is_err() {
        return deny(endpoint, Reason::TooManyFlows);
    }
    // SAFETY: `Keeper::slot` came from the map in this run and is aligned to eight bytes.
    add(unsafe { &raw mut (*endpoint.keeper.slot).flows }, 1);
    count_unestablished(endpoint, packet.direction, &packet.peer, 1);
    Outcome {
        is_answer: opening.direction != packet.direction,
        ..decided(endpoint, decision, true)
    }
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
