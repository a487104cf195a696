//! The decision: tracked flow first, policy for what opens one, denial for the rest.
//!
//! Top down: whom a packet is judged for is here, at a pod and at an interface of the host, and then what it is: part of a
//! flow, or an error about one. Whose its addresses are says [`local`], what becomes of a flow [`flows`], what policy says
//! [`tables`], and how a host's own packets are told from those that it passes on [`forward`].

mod budget;
mod flows;
mod forward;
mod local;
mod tables;

use core::ptr;

use aya_ebpf::programs::TcContext;
use ebpf_abi::{
    Address, DIRECTION_EGRESS, Decision, ENDPOINT_HAS_UNTRACKED, EPOCH_NONE, EndpointState, FlowKey, RULE_NO_MATCH, Reason, Slot,
    VERDICT_ALLOW, VERDICT_DENY,
};

pub(crate) use self::{
    flows::flow_key,
    forward::{inside, teller},
};
use self::{
    flows::{current_decision, open, tracked},
    forward::{Part, carrier, forwarded_at, host_at, judge_of, part_of},
    local::{is_housekeeping, is_igmp, is_neighbour_discovery, owns, same, sent_from},
    tables::ask,
};
use crate::{
    fragment,
    maps::{ENDPOINTS, FLOWS, SLOTS},
    packet::{self, ETHERNET_BYTES, PIECE_FIRST, PIECE_LATER, Packet, Role},
};

/// What was decided about a packet.
#[must_use]
pub(crate) struct Outcome {
    /// `VERDICT_*`.
    pub(crate) verdict: u32,
    /// Why.
    pub(crate) reason: Reason,
    /// Rule that decided, if the reason is policy.
    pub(crate) rule: u32,
    /// Endpoint, 0 if there is none.
    pub(crate) endpoint: u32,
    /// Change of the endpoint's tables that decided.
    pub(crate) change: u32,
    /// An allowed packet that opened a flow, and so is reported.
    pub(crate) opens_flow: bool,
    /// The flow that it opened is the other end's, and the packet an answer.
    pub(crate) is_answer: bool,
    /// An allowed packet of a pod's that may go straight to the pod at the other end.
    pub(crate) is_direct: bool,
    /// Slot of the endpoint, null if there is none.
    pub(crate) slot: *mut Slot,
}

/// An endpoint and the tables that judge it, as of one moment.
#[derive(Clone, Copy)]
struct Judge {
    /// Number of the endpoint.
    id: u32,
    state: EndpointState,
    slot: *mut Slot,
    /// There are no tables and need be none: everything is allowed.
    is_open: bool,
    /// The endpoint that flows are tracked for: another one where the host carries.
    keeper: Keeper,
}

/// Who tracks a flow, and whose share it takes from.
#[derive(Clone, Copy)]
struct Keeper {
    /// Number of the endpoint.
    id: u32,
    /// Index of its slot.
    index: u32,
    slot: *mut Slot,
}

/// Judges a packet of a pod and leaves in `packet` what could be understood of it.
#[inline(always)]
pub(crate) fn judge_pod(ctx: &TcContext, packet: &mut Packet, now_ns: u64) -> Outcome {
    let parsed = packet::parse::<false, ETHERNET_BYTES>(ctx, packet);
    // SAFETY: nothing writes to the value while it is in the map; see `Endpoint` for what follows a removal.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(packet.ifindex) }) else {
        return not_programmed(0, ptr::null_mut());
    };
    let Some(judge) = state_of(endpoint.id, endpoint.slot) else {
        return not_programmed(endpoint.id, slot_of(endpoint.slot));
    };
    if let Err(reason) = parsed {
        return deny(&judge, reason);
    }
    if packet.direction == DIRECTION_EGRESS {
        if !owns(endpoint, &packet.local) || !sent_from(packet, endpoint.mac) {
            return deny(&judge, Reason::SpoofedSource);
        }
    } else if !owns(endpoint, &packet.local) {
        return deny(&judge, Reason::WrongDestination);
    }
    if is_neighbour_discovery(packet) {
        // As ARP: a pod's neighbours are permanent, and nobody is to learn another one from it.
        return deny(&judge, Reason::NotIp);
    }
    match judge_flow::<false>(ctx, judge, packet, now_ns) {
        Some(outcome) => outcome,
        // Never: a pod always has a judge.
        None => not_programmed(endpoint.id, judge.slot),
    }
}

/// Judges a packet at an interface of the host, if there is an endpoint to ask: that of the host's address, otherwise
/// that of what is forwarded, which is also the one to ask about what the host carries. One that has no tables is none:
/// unlike a pod, a host must be reachable before them.
///
/// Not judged either is what the host needs to have an address and neighbours at all: other protocols than IP, frames
/// of a VLAN (which its interface judges; a tag that names none is none), neighbour discovery, the two protocols by which
/// a network learns of listeners to multicast, and DHCP: each as far as it is the host's, or stays on the link.
#[inline(always)]
pub(crate) fn judge_host<const LINK: usize>(ctx: &TcContext, packet: &mut Packet, now_ns: u64) -> Option<Outcome> {
    let parsed = packet::parse::<true, LINK>(ctx, packet);
    if match parsed {
        Ok(()) => is_housekeeping(ctx, packet) || is_igmp(packet),
        // Router alert, which IGMP comes with (RFC 3376, section 4).
        Err(Reason::IpOptions) => is_igmp(packet),
        Err(reason) => matches!(reason, Reason::NotIp | Reason::Vlan),
    } {
        return None;
    }
    // Whom a packet is for that cannot be read nobody knows: the host answers for it.
    let is_unread = parsed.is_err() && same(&packet.local, &Address::UNSPECIFIED);
    let host = host_at(packet.ifindex, if is_unread { Address::GROUP } else { packet.local });
    let endpoint = match host {
        Some(endpoint) => endpoint,
        None => forwarded_at(packet.ifindex)?,
    };
    if endpoint.flags & ENDPOINT_HAS_UNTRACKED != 0
        && parsed.is_ok()
        && let Some(untracked) = state_of(endpoint.untracked, endpoint.untracked_slot)
        && let Some(outcome) = judge_untracked(&untracked, packet, now_ns)
    {
        return Some(outcome);
    }
    let own = endpoint_of(endpoint.id, endpoint.slot)?;
    packet.carrier = carrier(ctx, packet, host.is_some());
    if let Err(reason) = parsed {
        let judge = judge_of::<true>(own, packet)?;
        return if judge.is_open { None } else { Some(deny(&judge, reason)) };
    }
    judge_flow::<true>(ctx, own, packet, now_ns)
}

/// What is decided before flows are known, if anything. The rest of a packet follows its first fragment.
#[inline(always)]
fn judge_untracked(untracked: &Judge, packet: &mut Packet, now_ns: u64) -> Option<Outcome> {
    let index = untracked.keeper.index;
    if packet.fragment.kind == PIECE_LATER {
        if !fragment::recall(index, packet, now_ns) {
            return None;
        }
        packet.source_port = if packet.direction == DIRECTION_EGRESS {
            packet.ports.local
        } else {
            packet.ports.peer
        };
    }
    let (true, decision) = ask(untracked, packet) else {
        return None;
    };
    if packet.fragment.kind == PIECE_FIRST && decision.verdict == VERDICT_ALLOW {
        fragment::remember(index, packet, now_ns);
    }
    Some(decided(untracked, decision, false))
}

/// A packet whose ends are known to be what they should be. None if nobody judges it.
#[inline(always)]
fn judge_flow<const HOST: bool>(ctx: &TcContext, own: Judge, packet: &mut Packet, now_ns: u64) -> Option<Outcome> {
    if packet.role == Role::Error {
        return judge_error::<HOST>(ctx, own, packet);
    }

    if packet.fragment.kind == PIECE_LATER && !fragment::recall(own.keeper.index, packet, now_ns) {
        let judge = judge_of::<HOST>(own, packet)?;
        return Some(deny(&judge, Reason::Fragment));
    }
    let key = flow_key(
        own.keeper.id,
        packet.local,
        packet.peer,
        packet.protocol,
        packet.ports,
    );
    // SAFETY: the pointer came from the map in this run and is aligned; the kernel keeps the memory valid until the
    // program ends. If user space deletes the entry meanwhile and its memory serves a new flow, what is written here
    // lands there: times, counts and state, and a decision that can only deny that flow or repeat the allowance with
    // which it was just created.
    let mut flow = FLOWS.get_ptr_mut(&key).map(|flow| unsafe { &mut *flow });
    let part = match &flow {
        Some(flow) if HOST => part_of(flow, packet),
        Some(_) => Part::Own,
        None => Part::Other,
    };
    if let Some(flow) = &flow
        && HOST
        && part == Part::Own
    {
        packet.carrier = flow.carrier();
    }
    let judge = judge_of::<HOST>(own, packet)?;
    let known = match &mut flow {
        Some(flow) if part != Part::Other => {
            tracked::<HOST>(&judge, &key, flow, packet, part == Part::Foreign, now_ns)
        }
        _ => None,
    };
    let outcome = match known {
        Some(outcome) => outcome,
        None => open::<HOST>(&judge, &key, flow.as_deref(), packet, now_ns),
    };
    if packet.fragment.kind == PIECE_FIRST && outcome.verdict == VERDICT_ALLOW {
        fragment::remember(own.keeper.index, packet, now_ns);
    }
    Some(outcome)
}

/// An ICMP error passes if it quotes a packet of an allowed flow of this endpoint. Who sends it does not matter to
/// the pod (any router may), but what a pod sends must go to the end it is about. None if nobody judges it.
#[inline(always)]
fn judge_error<const HOST: bool>(ctx: &TcContext, own: Judge, packet: &mut Packet) -> Option<Outcome> {
    let mut key = flow_key(
        own.keeper.id,
        packet.local,
        packet.peer,
        packet.protocol,
        packet.ports,
    );
    let flow = if quoted(ctx, packet, &mut key) {
        FLOWS.get_ptr_mut(&key)
    } else {
        None
    };
    // SAFETY: as in `judge_flow`.
    let flow = flow.map(|flow| unsafe { &mut *flow });
    if let Some(flow) = &flow
        && HOST
    {
        packet.carrier = flow.carrier();
    }
    let judge = judge_of::<HOST>(own, packet)?;
    let Some(flow) = flow else {
        return if judge.is_open { None } else { Some(deny(&judge, Reason::IcmpUnrelated)) };
    };
    let decision = current_decision(&judge, &key, flow);
    if decision.verdict != VERDICT_ALLOW {
        return Some(deny(&judge, Reason::IcmpUnrelated));
    }
    Some(Outcome {
        reason: Reason::IcmpRelated,
        ..decided(&judge, decision, false)
    })
}

/// Makes of `key` that of the flow which an ICMP error is about. Whether there can be one.
#[inline(always)]
fn quoted(ctx: &TcContext, packet: &Packet, key: &mut FlowKey) -> bool {
    let Ok(quoted) = packet::parse_quoted(ctx, packet) else {
        return false;
    };
    let misdirected = packet.direction == DIRECTION_EGRESS && !same(&quoted.peer, &packet.peer);
    if misdirected || !same(&quoted.local, &packet.local) {
        return false;
    }
    *key = flow_key(
        key.endpoint,
        quoted.local,
        quoted.peer,
        quoted.protocol,
        quoted.ports,
    );
    true
}

/// The endpoint with the tables that judge it; none if it has none.
#[inline(always)]
fn state_of(id: u32, index: u32) -> Option<Judge> {
    let judge = endpoint_of(id, index)?;
    if judge.state.epoch == EPOCH_NONE {
        return None;
    }
    Some(judge)
}

/// The endpoint, perhaps without tables.
#[inline(always)]
fn endpoint_of(id: u32, index: u32) -> Option<Judge> {
    let slot = SLOTS.get_ptr_mut(index)?;
    // SAFETY: a pointer that the map returned in this run, aligned to eight bytes; one load, as `Slot::state` asks.
    let state = EndpointState::unpack(unsafe { (&raw const (*slot).state).read_volatile() });
    Some(Judge {
        id,
        state,
        slot,
        is_open: false,
        keeper: Keeper { id, index, slot },
    })
}

#[inline(always)]
fn slot_of(index: u32) -> *mut Slot {
    SLOTS.get_ptr_mut(index).unwrap_or(ptr::null_mut())
}

#[inline(always)]
fn decided(endpoint: &Judge, decision: Decision, opens_flow: bool) -> Outcome {
    Outcome {
        verdict: decision.verdict,
        reason: Reason::Policy,
        rule: decision.rule,
        endpoint: endpoint.id,
        change: decision.change,
        opens_flow,
        is_answer: false,
        is_direct: false,
        slot: endpoint.slot,
    }
}

#[inline(always)]
fn deny(endpoint: &Judge, reason: Reason) -> Outcome {
    Outcome {
        verdict: VERDICT_DENY,
        reason,
        rule: RULE_NO_MATCH,
        endpoint: endpoint.id,
        change: endpoint.state.change(),
        opens_flow: false,
        is_answer: false,
        is_direct: false,
        slot: endpoint.slot,
    }
}

/// The denial of whoever has no tables.
#[inline(always)]
fn not_programmed(endpoint: u32, slot: *mut Slot) -> Outcome {
    Outcome {
        verdict: VERDICT_DENY,
        reason: Reason::NotProgrammed,
        rule: RULE_NO_MATCH,
        endpoint,
        change: EPOCH_NONE,
        opens_flow: false,
        is_answer: false,
        is_direct: false,
        slot,
    }
}
