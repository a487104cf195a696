//! The decision: tracked flow first, policy for what opens one, denial for the rest.
//!
//! At an interface of the host, what the host translates looks like its own: it leaves with the host's address, and its
//! answers come back to that. Whose it is tells the interface that it came in by. Such a flow is *carried*: it is tracked
//! for the endpoint of the host's address, where its answers look for it, but what is forwarded has other policies, and
//! only those judge it.

use core::{arch::asm, ptr};

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use ebpf_abi::{
    Address, AddressClass, CARRIED, DIRECTION_EGRESS, Decision, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, ENDPOINT_HAS_UNTRACKED,
    EPOCH_NONE, Endpoint, EndpointState, FAMILY_IPV4, FAMILY_IPV6, FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_REPLIED, FlowKey,
    FlowState, HostKey, IDENTITY_PREFIX_BASE, IdentityKey, InsideKey, MAX_FLOWS_PER_ENDPOINT, MAX_UNESTABLISHED,
    MAX_UNESTABLISHED_PER_BUCKET, NO_CLASS, PEER_BUCKETS, RANK_ANY, RANK_PORT, RANK_PROTOCOL, RULE_NO_MATCH, RULE_NO_POLICY, Reason,
    SOURCE_PREFIX_BASE, STATE_HAS_INSIDES, STATE_HAS_SOURCES, STATE_KEEP_ESTABLISHED, Slot, SourceKey, SplitKey, VERDICT_ALLOW,
    VERDICT_DENY, VerdictKey, base_generation, peer_bucket, protocol,
};

use crate::{
    closed, direct, fragment,
    maps::{ENDPOINTS, FLOWS, HOST_ENDPOINTS, HOSTS, IDENTITIES, INSIDES, NEW_FLOW, PEERS, SLOTS, SOURCES, SPLITS, VERDICTS},
    packet::{self, ETHERNET_BYTES, FlowPorts, PIECE_FIRST, PIECE_LATER, PIECE_WHOLE, Packet, Role},
    report, track,
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

/// What a packet at an interface of the host is to a flow of the same two ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It belongs to the flow.
    Own,
    /// It comes to the host's address, from the other end of a flow that the host carries, and asks to open one: that is
    /// for the host's own tables to say.
    Foreign,
    /// It belongs to somebody else, who has taken over the ports.
    Other,
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
/// a network learns of listeners to multicast, and DHCP.
#[inline(always)]
pub(crate) fn judge_host<const LINK: usize>(ctx: &TcContext, packet: &mut Packet, now_ns: u64) -> Option<Outcome> {
    let parsed = packet::parse::<true, LINK>(ctx, packet);
    if match parsed {
        Ok(()) => is_housekeeping(packet) || is_igmp(packet),
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

/// The endpoint of an address of the host: also of those that packets for whoever listens are sent to.
#[inline(always)]
fn host_at<'a>(ifindex: u32, address: Address) -> Option<&'a Endpoint> {
    let address = if address.is_group() { Address::GROUP } else { address };
    // SAFETY: as in `judge_pod`.
    unsafe { HOST_ENDPOINTS.get(&HostKey { ifindex, address }) }
}

/// The endpoint of what the host forwards through an interface.
#[inline(always)]
fn forwarded_at<'a>(ifindex: u32) -> Option<&'a Endpoint> {
    host_at(ifindex, Address::UNSPECIFIED)
}

/// Who brought what leaves with an address of the host's, as [`FlowState::carrier`]; 0 if the host has made it itself.
///
/// The kernel notes by which interface a packet came in, and notes none for what it makes, tunnels included: neither can
/// be forged from inside a pod. Only where it takes an IPv6 packet apart anew it forgets. What the host makes itself
/// belongs to a socket then, and what passes through belongs to none.
#[inline(always)]
fn carrier(ctx: &TcContext, packet: &Packet, is_host: bool) -> u32 {
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
fn judge_of<const HOST: bool>(own: Judge, packet: &mut Packet) -> Option<Judge> {
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

/// Solicitations and advertisements of routers and neighbours, and redirects (RFC 4861).
#[inline(always)]
fn is_neighbour_discovery(packet: &Packet) -> bool {
    packet.protocol == protocol::ICMPV6
        && packet.fragment.kind != PIECE_LATER
        && matches!(packet.service_port >> 8, 133..=137)
}

/// Neighbour discovery, multicast listener discovery and DHCP.
#[inline(always)]
fn is_housekeeping(packet: &Packet) -> bool {
    let (from, to) = (packet.source_port, packet.service_port);
    match packet.protocol {
        protocol::ICMPV6 => is_neighbour_discovery(packet) || matches!(to >> 8, 130..=132 | 143),
        protocol::UDP if packet.fragment.kind == PIECE_WHOLE => {
            matches!((from, to), (67, 68) | (68, 67) | (546, 547) | (547, 546))
        }
        _ => false,
    }
}

/// To a group, and no farther than the link: reports of IGMP's second version go to the group itself.
#[inline(always)]
fn is_igmp(packet: &Packet) -> bool {
    let to = if packet.direction == DIRECTION_EGRESS {
        packet.peer
    } else {
        packet.local
    };
    packet.protocol == protocol::IGMP && to.is_ipv4() && to.is_group() && packet.hops == 1
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
    let flow = FLOWS.get_ptr_mut(&key).map(|flow| unsafe { &mut *flow });
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
    let outcome = match flow {
        Some(flow) if part != Part::Other => tracked(&judge, &key, flow, packet, part == Part::Foreign, now_ns),
        old if packet.role == Role::Continues && !judge.is_open => {
            if HOST {
                adopt(&judge, &key, old.as_deref(), packet, now_ns)
            } else {
                deny(&judge, Reason::NoConnection)
            }
        }
        old => open(&judge, &key, old.as_deref(), packet, now_ns),
    };
    if packet.fragment.kind == PIECE_FIRST && outcome.verdict == VERDICT_ALLOW {
        fragment::remember(own.keeper.index, packet, now_ns);
    }
    Some(outcome)
}

/// Whose the packet is, told by who brought it. Addresses and ports of one who is gone are soon another's: what opens a
/// flow, or may, must not pass by the decision about the one before.
#[inline(always)]
fn part_of(flow: &FlowState, packet: &Packet) -> Part {
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

/// A packet of a flow that is known. One that asks to open a flow is
///
/// - judged anew if the flow is over or was denied, or nobody knows whether there is one: it opens another one;
/// - the flow's own if it comes from the same end: a SYN sent again, or one that a spoofing peer sends. It changes
///   nothing that is established; the receiver's stack knows what to answer;
/// - judged if it comes from the other end: policy may allow one direction only. The flow stays as it is.
///
/// Where the judge is not the flow's own, the flow keeps the decision that it has.
#[inline(always)]
fn tracked(
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
    if FlowState::is_over(flow.state) || decision.verdict != VERDICT_ALLOW || flow.is_guess() {
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
    if added & FLOW_CLOSED != 0 && exchange(&raw mut flow.closed, 1) == 0 {
        leave(endpoint, key, flow);
        closed::remember(key, packet.ifindex, now_ns);
    }
}

/// The first packet of a flow: judged by policy, tracked if allowed. `old` is a flow of the same ends that is over,
/// denied, or no more than a guess, and makes room.
#[inline(always)]
fn open(
    endpoint: &Judge,
    key: &FlowKey,
    old: Option<&FlowState>,
    packet: &Packet,
    now_ns: u64,
) -> Outcome {
    let opening = Opening::by(packet);
    let decision = opening.ask(endpoint, packet);
    if decision.verdict != VERDICT_ALLOW {
        return decided(endpoint, decision, false);
    }
    enter(endpoint, key, old, packet, &opening, decision, now_ns)
}

/// A packet in the middle of a connection that nobody tracks.
///
/// To a pod's endpoint there is none: it was there before the pod, and has seen all of it. A host's endpoint comes to a
/// host that lives, and may not cut its connections, least of all those of failsafe ports. The packet does not tell which
/// end has opened the connection. So it passes if policy allows it as the first packet of a flow, or allows the first
/// packet of the flow that it would answer; the flow is that one from now on, and judged again as such when policy
/// changes. If both are allowed, it is the one to the lower port: servers have those.
///
/// What that lets in which is not part of a connection, the receiver's stack answers with a reset: only SYN and INIT can
/// open one, and those are never adopted, nor are the answers to them, nor what would end one. What the host carries was
/// opened from inside. A flow that somebody else has, who is seen to be there, is not given up for a guess.
#[inline(always)]
fn adopt(endpoint: &Judge, key: &FlowKey, old: Option<&FlowState>, packet: &Packet, now_ns: u64) -> Outcome {
    let is_taken = match old {
        Some(old) => !old.is_guess(),
        None => false,
    };
    if is_taken || !track::is_middle(packet) {
        return deny(endpoint, Reason::NoConnection);
    }
    let mut is_answer = packet.carrier == 0 && packet.source_port < packet.service_port;
    // A loop, so that there is one copy of what asks the tables.
    for _ in 0..2 {
        let opening = if is_answer { Opening::answered_by(packet) } else { Opening::by(packet) };
        let decision = opening.ask(endpoint, packet);
        if decision.verdict == VERDICT_ALLOW {
            return enter(endpoint, key, old, packet, &opening, decision, now_ns);
        }
        if packet.carrier != 0 {
            break;
        }
        is_answer = !is_answer;
    }
    deny(endpoint, Reason::NoConnection)
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
    fn by(packet: &Packet) -> Self {
        Self {
            direction: packet.direction,
            source_port: packet.source_port,
            service_port: packet.service_port,
            is_adopted: packet.role == Role::Continues && track::is_middle(packet),
        }
    }

    /// By the other end, which the packet answers.
    #[inline(always)]
    fn answered_by(packet: &Packet) -> Self {
        Self {
            direction: packet.direction ^ DIRECTION_EGRESS,
            source_port: packet.service_port,
            service_port: packet.source_port,
            is_adopted: true,
        }
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
        Some(old) => old.closed == 0,
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
    let (sides, state) = if opening.is_adopted { track::adopted(packet) } else { (track::opened(packet), 0) };
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

/// Takes a flow off its endpoint's share.
#[inline(always)]
fn leave(endpoint: &Judge, key: &FlowKey, flow: &FlowState) {
    // SAFETY: as in `enter`.
    add(unsafe { &raw mut (*endpoint.keeper.slot).flows }, u64::MAX);
    if flow.state & FLOW_ESTABLISHED == 0 {
        count_unestablished(endpoint, flow.begun(), &key.peer, u64::MAX);
    }
}

/// Whether the endpoint may track one more flow in the packet's direction, and from its peer. The counts are what user
/// space found at its last look and what happened since; see `Slot` for why they are read as signed. What a host carries
/// may take half of the host's share, so that pods leave it the other half.
#[inline(always)]
fn has_room(endpoint: &Judge, packet: &Packet) -> bool {
    let index = (packet.direction & 1) as usize;
    let slot = endpoint.keeper.slot;
    // SAFETY: `Keeper::slot` came from the map in this run and is aligned to eight bytes; each word is read at once.
    let (flows, unestablished) = unsafe {
        (
            (&raw const (*slot).flows).read_volatile(),
            (&raw const (*slot).unestablished[index]).read_volatile(),
        )
    };
    let halved = (packet.carrier != 0) as u32;
    if flows as i64 >= (MAX_FLOWS_PER_ENDPOINT >> halved) as i64
        || unestablished as i64 >= (MAX_UNESTABLISHED >> halved) as i64
    {
        return false;
    }
    if packet.direction == DIRECTION_EGRESS {
        return true;
    }
    match PEERS.get_ptr_mut(bucket(endpoint, &packet.peer)) {
        // SAFETY: as above.
        Some(count) => (unsafe { count.read_volatile() } as i64) < MAX_UNESTABLISHED_PER_BUCKET as i64,
        None => false,
    }
}

/// Adds to the number of flows of one direction that are not established; all ones takes one off.
#[inline(always)]
fn count_unestablished(endpoint: &Judge, direction: u8, peer: &Address, amount: u64) {
    let index = (direction & 1) as usize;
    // SAFETY: as in `has_room`.
    add(unsafe { &raw mut (*endpoint.keeper.slot).unestablished[index] }, amount);
    if direction != DIRECTION_EGRESS
        && let Some(count) = PEERS.get_ptr_mut(bucket(endpoint, peer))
    {
        add(count, amount);
    }
}

#[inline(always)]
fn bucket(endpoint: &Judge, peer: &Address) -> u32 {
    endpoint.keeper.index * PEER_BUCKETS + peer_bucket(peer)
}

#[inline(always)]
fn ask_about(endpoint: &Judge, packet: &Packet) -> Decision {
    ask(endpoint, packet).1
}

/// Whether the tables say anything about the packet, and what.
#[inline(always)]
fn ask(endpoint: &Judge, packet: &Packet) -> (bool, Decision) {
    ask_tables(
        endpoint,
        packet.direction,
        &packet.inside,
        &packet.peer,
        packet.protocol,
        packet.source_port,
        packet.service_port,
    )
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

#[inline(always)]
fn current_decision(endpoint: &Judge, key: &FlowKey, flow: &mut FlowState) -> Decision {
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

/// Class of an address: what the generation has for the whole address, or else what the first of its group has, or else
/// what the longest shorter prefix has.
#[inline(always)]
fn class_of(generation: u32, address: &Address) -> Option<AddressClass> {
    let mut key = IdentityKey {
        generation,
        family: if address.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 },
        address: *address,
    };
    // SAFETY: values are never changed, only added and, when no program asks for them any more, removed.
    let mut found = unsafe { HOSTS.get(&key) };
    let base = base_generation(generation);
    if found.is_none() && base != generation {
        key.generation = base;
        // SAFETY: as above.
        found = unsafe { HOSTS.get(&key) };
        key.generation = generation;
    }
    match found {
        Some(found) if found.class != NO_CLASS => Some(*found),
        _ => IDENTITIES.get(&Key::new(IDENTITY_PREFIX_BASE + 128, key)).copied(),
    }
}

/// The class whose verdicts answer: the parent's where the endpoint does not tell the two apart.
#[inline(always)]
fn answering(endpoint: &Judge, found: AddressClass) -> u32 {
    if found.class == found.parent {
        return found.class;
    }
    let key = SplitKey {
        endpoint: endpoint.id,
        epoch: endpoint.state.epoch,
        class: found.class,
    };
    // SAFETY: only whether there is a value is looked at.
    match unsafe { SPLITS.get(&key) } {
        Some(_) => found.class,
        None => found.parent,
    }
}

/// What an address at the own end is to the endpoint's rules. One that nobody can be sure of has no entry: where rules
/// ask who is there, no verdict is about that.
#[inline(always)]
fn inside_of(endpoint: &Judge, direction: u8, local: &Address) -> u16 {
    let state = endpoint.state;
    if state.flags & STATE_HAS_INSIDES == 0 {
        return 0;
    }
    let Some(found) = class_of(state.generation, local) else {
        return 0;
    };
    let key = InsideKey {
        endpoint: endpoint.id,
        epoch: state.epoch,
        class: found.class,
    };
    // SAFETY: as in `class_of`.
    match unsafe { INSIDES.get(&key) } {
        Some(classes) => classes.of(direction),
        None => 0,
    }
}

/// Addresses to classes, source port to class, classes and destination port to verdict. Whatever is missing denies, but
/// for source ports: those that no rule tells apart have the class that needs no entry.
#[inline(always)]
fn ask_tables(
    endpoint: &Judge,
    direction: u8,
    local: &Address,
    peer: &Address,
    protocol: u8,
    source_port: u16,
    service_port: u16,
) -> (bool, Decision) {
    let state = endpoint.state;
    if endpoint.is_open {
        let open = Decision {
            change: state.change(),
            rule: RULE_NO_POLICY,
            verdict: VERDICT_ALLOW,
        };
        return (true, open);
    }
    let unknown = Decision {
        change: state.change(),
        rule: RULE_NO_MATCH,
        verdict: VERDICT_DENY,
    };
    let Some(found) = class_of(state.generation, peer) else {
        return (false, unknown);
    };
    let peer = answering(endpoint, found);
    let inside = inside_of(endpoint, direction, local);
    let mut class = 0;
    if state.flags & STATE_HAS_SOURCES != 0 {
        let source = Key::new(
            SOURCE_PREFIX_BASE + 16,
            SourceKey {
                endpoint: endpoint.id,
                epoch: state.epoch,
                protocol,
                padding: 0,
                port_be: source_port.to_be(),
            },
        );
        if let Some(&found) = SOURCES.get(&source) {
            class = found as u8;
        }
    }
    // SAFETY: a pointer that the map returned in this run, aligned to eight bytes; the word is read at once, and after
    // the state, which the loader writes after it.
    let ranks = unsafe { (&raw const (*endpoint.slot).ranks).read_volatile() };
    let mut key = VerdictKey {
        endpoint: endpoint.id,
        epoch: state.epoch,
        peer,
        side: VerdictKey::side(direction, class),
        protocol,
        port: service_port,
        rank: RANK_PORT,
        padding: 0,
        inside,
    };
    for below in 0..=RANK_PORT {
        let rank = RANK_PORT - below;
        if ranks >> rank & 1 == 0 {
            continue;
        }
        key.rank = rank;
        key.port = if rank > RANK_PROTOCOL {
            service_port & (0xffff_0000_u32 >> (rank - RANK_PROTOCOL)) as u16
        } else {
            0
        };
        if rank == RANK_ANY {
            key.protocol = 0;
        }
        // SAFETY: as above.
        if let Some(found) = unsafe { VERDICTS.get(&key) } {
            let decision = Decision {
                change: state.change(),
                rule: found.rule,
                verdict: found.verdict,
            };
            // Such an entry only takes its ports out of a wider one.
            return (found.rule != RULE_NO_MATCH, decision);
        }
    }
    (false, unknown)
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

/// Whether the frame comes from this MAC address.
#[inline(always)]
fn sent_from(packet: &Packet, mac: [u8; 6]) -> bool {
    let [a, b, c] = packet.source_mac;
    let [m0, m1, m2, m3, m4, m5] = mac;
    let word = |first, second| u16::from_ne_bytes([first, second]);
    a == word(m0, m1) && b == word(m2, m3) && c == word(m4, m5)
}

#[inline(always)]
fn owns(endpoint: &Endpoint, address: &Address) -> bool {
    if address.is_ipv4() {
        endpoint.flags & ENDPOINT_HAS_IPV4 != 0 && same(&endpoint.ipv4, address)
    } else {
        endpoint.flags & ENDPOINT_HAS_IPV6 != 0 && same(&endpoint.ipv6, address)
    }
}

#[inline(always)]
fn same(a: &Address, b: &Address) -> bool {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.words_be, b.words_be);
    a0 == b0 && a1 == b1 && a2 == b2 && a3 == b3
}

/// Adds to a word of a map value, which other CPUs may do at the same time. The target has the instruction, but
/// `core` offers no method for it because the target lacks compare-and-swap.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, amount: u64) {
    // SAFETY: callers pass an aligned word of a map value, which stays valid until the program ends.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount) };
}

/// Adds, and returns what was there before.
#[inline(always)]
pub(crate) fn fetch_add(counter: *mut u64, mut amount: u64) -> u64 {
    // SAFETY: as in `add`.
    unsafe { asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) amount, in(reg) counter) };
    amount
}

/// Writes a word of a map value, and returns what was there before: of several CPUs that write 1, one reads 0.
#[inline(always)]
fn exchange(word: *mut u32, mut value: u32) -> u32 {
    // SAFETY: as in `add`.
    unsafe { asm!("{0} = xchg32_32({1} + 0, {0})", inout(wreg) value, in(reg) word) };
    value
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
