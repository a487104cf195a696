//! The decision: tracked flow first, policy for what opens one, denial for the rest.

use core::{arch::asm, ptr};

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use ebpf_abi::{
    Address, AddressClass, DIRECTION_EGRESS, Decision, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, ENDPOINT_HAS_UNTRACKED,
    EPOCH_NONE, Endpoint, EndpointState, FAMILY_IPV4, FAMILY_IPV6, FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_REPLIED, FlowKey,
    FlowState, HostKey, IDENTITY_PREFIX_BASE, IdentityKey, InsideKey, MAX_FLOWS_PER_ENDPOINT, MAX_UNESTABLISHED,
    MAX_UNESTABLISHED_PER_BUCKET, NO_CLASS, PEER_BUCKETS, RANK_ANY, RANK_PORT, RANK_PROTOCOL, RULE_NO_MATCH, Reason,
    SOURCE_PREFIX_BASE, STATE_HAS_INSIDES, STATE_HAS_SOURCES, STATE_KEEP_ESTABLISHED, Slot, SourceKey, SplitKey, VERDICT_ALLOW,
    VERDICT_DENY, VerdictKey, base_generation, peer_bucket, protocol,
};

use crate::{
    closed, direct, fragment,
    maps::{ENDPOINTS, FLOWS, HOST_ENDPOINTS, HOSTS, IDENTITIES, INSIDES, NEW_FLOW, PEERS, SLOTS, SOURCES, SPLITS, VERDICTS},
    packet::{self, FlowPorts, PIECE_FIRST, PIECE_LATER, PIECE_WHOLE, Packet, Role},
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
    /// An allowed packet of a pod's that may go straight to the pod at the other end.
    pub(crate) is_direct: bool,
    /// Slot of the endpoint, null if there is none.
    pub(crate) slot: *mut Slot,
}

/// An endpoint and the tables that judge it, as of one moment.
struct Judge {
    /// Number of the endpoint.
    id: u32,
    /// Index of its slot.
    index: u32,
    state: EndpointState,
    slot: *mut Slot,
}

/// Judges a packet of a pod and leaves in `packet` what could be understood of it.
#[inline(always)]
pub(crate) fn judge_pod(ctx: &TcContext, packet: &mut Packet, now_ns: u64) -> Outcome {
    let parsed = packet::parse(ctx, packet);
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
    judge_flow(ctx, &judge, packet, now_ns)
}

/// Judges a packet at an interface of the host, if there is an endpoint to ask: that of the host's address, otherwise
/// that of what is forwarded. One that has no tables is none: unlike a pod, a host must be reachable before them.
///
/// Not judged either is what the host needs to have an address and neighbours at all: other protocols than IP, tagged
/// frames (which the interface of the VLAN judges), neighbour and multicast listener discovery, and DHCP.
#[inline(always)]
pub(crate) fn judge_host(ctx: &TcContext, packet: &mut Packet, now_ns: u64) -> Option<Outcome> {
    let parsed = packet::parse(ctx, packet);
    if matches!(parsed, Err(Reason::NotIp | Reason::Vlan)) || (parsed.is_ok() && is_housekeeping(packet)) {
        return None;
    }
    let mut key = HostKey {
        ifindex: packet.ifindex,
        address: packet.local,
    };
    // SAFETY: as in `judge_pod`.
    let mut endpoint = unsafe { HOST_ENDPOINTS.get(&key) };
    if endpoint.is_none() {
        key.address = Address::UNSPECIFIED;
        // SAFETY: as in `judge_pod`.
        endpoint = unsafe { HOST_ENDPOINTS.get(&key) };
    }
    let endpoint = endpoint?;
    if endpoint.flags & ENDPOINT_HAS_UNTRACKED != 0
        && parsed.is_ok()
        && packet.fragment.kind != PIECE_LATER
        && let Some(untracked) = state_of(endpoint.untracked, endpoint.untracked_slot)
        && let (true, decision) = ask(&untracked, packet)
    {
        return Some(decided(&untracked, decision, false));
    }
    let judge = state_of(endpoint.id, endpoint.slot)?;
    Some(match parsed {
        Ok(()) => judge_flow(ctx, &judge, packet, now_ns),
        Err(reason) => deny(&judge, reason),
    })
}

/// The endpoint with the tables that judge it; none if it has none.
#[inline(always)]
fn state_of(id: u32, index: u32) -> Option<Judge> {
    let slot = SLOTS.get_ptr_mut(index)?;
    // SAFETY: a pointer that the map returned in this run, aligned to eight bytes; one load, as `Slot::state` asks.
    let state = EndpointState::unpack(unsafe { (&raw const (*slot).state).read_volatile() });
    if state.epoch == EPOCH_NONE {
        return None;
    }
    Some(Judge {
        id,
        index,
        state,
        slot,
    })
}

#[inline(always)]
fn slot_of(index: u32) -> *mut Slot {
    SLOTS.get_ptr_mut(index).unwrap_or(ptr::null_mut())
}

/// Neighbour discovery, multicast listener discovery and DHCP.
#[inline(always)]
fn is_housekeeping(packet: &Packet) -> bool {
    let (from, to) = (packet.source_port, packet.service_port);
    match packet.protocol {
        // Types 130 to 132 and 143, and 133 to 137.
        protocol::ICMPV6 => matches!(to >> 8, 130..=137 | 143),
        protocol::UDP if packet.fragment.kind == PIECE_WHOLE => {
            matches!((from, to), (67, 68) | (68, 67) | (546, 547) | (547, 546))
        }
        _ => false,
    }
}

/// A packet whose ends are known to be what they should be.
#[inline(always)]
fn judge_flow(ctx: &TcContext, endpoint: &Judge, packet: &mut Packet, now_ns: u64) -> Outcome {
    if packet.role == Role::Error {
        return judge_error(ctx, endpoint, packet);
    }

    if packet.fragment.kind == PIECE_LATER && !fragment::recall(endpoint.index, packet, now_ns) {
        return deny(endpoint, Reason::Fragment);
    }
    let key = flow_key(
        endpoint.id,
        packet.local,
        packet.peer,
        packet.protocol,
        packet.ports,
    );
    let outcome = match FLOWS.get_ptr_mut(&key) {
        // SAFETY: the pointer came from the map in this run and is aligned; the kernel keeps the memory valid until
        // the program ends. If user space deletes the entry meanwhile and its memory serves a new flow, what is
        // written here lands there: times, counts and state, and a decision that can only deny that flow or repeat the
        // allowance with which it was just created.
        Some(flow) => tracked(endpoint, &key, unsafe { &mut *flow }, packet, now_ns),
        None if packet.role == Role::Continues => deny(endpoint, Reason::NoConnection),
        None => open(endpoint, &key, None, packet, now_ns),
    };
    if packet.fragment.kind == PIECE_FIRST && outcome.verdict == VERDICT_ALLOW {
        fragment::remember(endpoint.index, packet, now_ns);
    }
    outcome
}

/// A packet of a flow that is known. One that asks to open a flow is
///
/// - judged anew if the flow is over or was denied: it opens another one;
/// - the flow's own if it comes from the same end: a SYN sent again, or one that a spoofing peer sends. It changes
///   nothing that is established; the receiver's stack knows what to answer;
/// - judged if it comes from the other end: policy may allow one direction only. The flow stays as it is.
#[inline(always)]
fn tracked(endpoint: &Judge, key: &FlowKey, flow: &mut FlowState, packet: &Packet, now_ns: u64) -> Outcome {
    let decision = current_decision(endpoint, key, flow);
    if packet.role != Role::Opens {
        let bits = if decision.verdict == VERDICT_ALLOW {
            track::follow(flow, packet)
        } else {
            0
        };
        note(endpoint, key, flow, packet, now_ns, bits);
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
            flow.sides = track::opened(packet);
        }
        note(endpoint, key, flow, packet, now_ns, 0);
        return decided(endpoint, decision, false);
    }
    let decision = ask_about(endpoint, packet);
    if decision.verdict == VERDICT_ALLOW {
        let bits = track::open_both(flow, packet);
        note(endpoint, key, flow, packet, now_ns, bits);
    }
    decided(endpoint, decision, false)
}

/// Counts the packet, and adds `bits` to the flow's state.
///
/// A flow that is denied stays tracked as denied until it falls silent. Were it forgotten, an answer still on its way
/// out could open it anew in the other direction.
#[inline(always)]
fn note(endpoint: &Judge, key: &FlowKey, flow: &mut FlowState, packet: &Packet, now_ns: u64, bits: u8) {
    // The clock is coarse, and the flow's memory may be another CPU's a moment later: most packets need not write it.
    if flow.last_seen_ns != now_ns {
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
fn open(
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
    flow.sides = track::opened(packet);
    flow.service_port = packet.service_port;
    flow.origin = packet.direction;
    flow.state = 0;
    flow.closed = 0;
    let flow = &*flow;
    if FLOWS.insert(key, flow, 0).is_err() {
        return deny(endpoint, Reason::TooManyFlows);
    }
    // SAFETY: `Judge::slot` came from the map in this run and is aligned to eight bytes.
    add(unsafe { &raw mut (*endpoint.slot).flows }, 1);
    count_unestablished(endpoint, packet.direction, &packet.peer, 1);
    decided(endpoint, decision, true)
}

/// Takes a flow off its endpoint's share.
#[inline(always)]
fn leave(endpoint: &Judge, key: &FlowKey, state: u8, origin: u8) {
    // SAFETY: as in `open`.
    add(unsafe { &raw mut (*endpoint.slot).flows }, u64::MAX);
    if state & FLOW_ESTABLISHED == 0 {
        count_unestablished(endpoint, origin, &key.peer, u64::MAX);
    }
}

/// Whether the endpoint may track one more flow in the packet's direction, and from its peer. The counts are what user
/// space found at its last look and what happened since; see `Slot` for why they are read as signed.
#[inline(always)]
fn has_room(endpoint: &Judge, packet: &Packet) -> bool {
    let index = (packet.direction & 1) as usize;
    // SAFETY: `Judge::slot` came from the map in this run and is aligned to eight bytes; each word is read at once.
    let (flows, unestablished) = unsafe {
        (
            (&raw const (*endpoint.slot).flows).read_volatile(),
            (&raw const (*endpoint.slot).unestablished[index]).read_volatile(),
        )
    };
    if flows as i64 >= MAX_FLOWS_PER_ENDPOINT as i64 || unestablished as i64 >= MAX_UNESTABLISHED as i64 {
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
    add(unsafe { &raw mut (*endpoint.slot).unestablished[index] }, amount);
    if direction != DIRECTION_EGRESS
        && let Some(count) = PEERS.get_ptr_mut(bucket(endpoint, peer))
    {
        add(count, amount);
    }
}

#[inline(always)]
fn bucket(endpoint: &Judge, peer: &Address) -> u32 {
    endpoint.index * PEER_BUCKETS + peer_bucket(peer)
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
        &packet.local,
        &packet.peer,
        packet.protocol,
        packet.source_port,
        packet.service_port,
    )
}

/// An ICMP error passes if it quotes a packet of an allowed flow of this endpoint. Who sends it does not matter to
/// the pod (any router may), but what a pod sends must go to the end it is about.
#[inline(always)]
fn judge_error(ctx: &TcContext, endpoint: &Judge, packet: &Packet) -> Outcome {
    let Ok(quoted) = packet::parse_quoted(ctx, packet) else {
        return deny(endpoint, Reason::IcmpUnrelated);
    };
    let misdirected = packet.direction == DIRECTION_EGRESS && !same(&quoted.peer, &packet.peer);
    if misdirected || !same(&quoted.local, &packet.local) {
        return deny(endpoint, Reason::IcmpUnrelated);
    }
    let key = flow_key(
        endpoint.id,
        quoted.local,
        quoted.peer,
        quoted.protocol,
        quoted.ports,
    );
    let Some(flow) = FLOWS.get_ptr_mut(&key) else {
        return deny(endpoint, Reason::IcmpUnrelated);
    };
    // SAFETY: as in `judge`.
    let decision = current_decision(endpoint, &key, unsafe { &mut *flow });
    if decision.verdict != VERDICT_ALLOW {
        return deny(endpoint, Reason::IcmpUnrelated);
    }
    Outcome {
        reason: Reason::IcmpRelated,
        ..decided(endpoint, decision, false)
    }
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
        &key.local,
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
        is_direct: false,
        slot,
    }
}
