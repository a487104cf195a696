//! What user space hears: each flow that opens, each that makes room for another one, and what is denied, told so that a
//! flood hides nobody else. How other flows end, user space finds itself.
//!
//! Packets that are denied alike (same ends, ports, direction and reason) are told once per [`REPORT_EVERY_NS`] and
//! counted meanwhile; user space collects what a flood leaves behind when it ends, and finds by the endpoint's sums what
//! the map of counts has forgotten. An endpoint whose packets are denied in ever new ways may tell [`REPORTS_PER_SECOND`]
//! of them in a second; the rest are a number.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP};
use ebpf_abi::{
    COUNTER_LOST_EVENTS, DIRECTION_EGRESS, DIRECTION_INGRESS, Decision, Denial, DenialKey, END_CLOSED,
    END_DENIED, END_NONE, END_RESET, END_SILENT, FLOW_RESET, FlowKey, FlowRecord, FlowState, RECORD_DENIED, RECORD_END,
    RECORD_START, RING_HURRY_BYTES, Reason, VERDICT_ALLOW, VERDICT_DENY, protocol,
};

use crate::{
    atomic::{add, add_half, exchange},
    count,
    judge::{Outcome, inside, teller},
    maps::{DENIALS, EVENTS},
    packet::Packet,
};

/// How long packets that are denied alike are only counted; 0 tells each. Set by the loader.
#[unsafe(no_mangle)]
static REPORT_EVERY_NS: u64 = 1_000_000_000;
/// Denials that one endpoint may have told in a second; 0 is no limit. Set by the loader.
#[unsafe(no_mangle)]
static REPORTS_PER_SECOND: u64 = 512;

const SECOND_NS: u64 = 1_000_000_000;

/// Tells of a flow that opened.
#[inline(always)]
pub(crate) fn opened(packet: &Packet, outcome: &Outcome, now_ns: u64) {
    submit(packet, outcome, now_ns, 1, packet.length as u64);
}

/// Tells of a flow that makes room for another one.
#[inline(always)]
pub(crate) fn ended(key: &FlowKey, flow: &FlowState, ifindex: u32, now_ns: u64) {
    let Some(mut entry) = EVENTS.reserve::<FlowRecord>(0) else {
        count(COUNTER_LOST_EVENTS);
        return;
    };
    let decision = Decision::unpack(flow.decision);
    let allowed = decision.verdict == VERDICT_ALLOW;
    let has_ports = matches!(
        key.protocol,
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP
    );
    let from_pod = flow.origin == DIRECTION_EGRESS;
    let (mut local, mut endpoint) = (key.local, key.endpoint);
    if flow.carrier() != 0 {
        local = inside(flow.carrier(), key.local);
        endpoint = teller(ifindex, key.endpoint);
    }
    let record = entry.as_mut_ptr();
    // Field by field: put together on the stack it would not fit there.
    // SAFETY: the ring returned room for a record, aligned; every field is written.
    unsafe {
        (*record).time_ns = now_ns;
        (*record).opened_ns = flow.opened_ns;
        if from_pod {
            (*record).source = local;
            (*record).destination = key.peer;
            (*record).source_port = key.local_port;
        } else {
            (*record).source = key.peer;
            (*record).destination = local;
            (*record).source_port = key.peer_port;
        }
        if !has_ports {
            (*record).source_port = 0;
        }
        (*record).packets = flow.packets;
        (*record).bytes = flow.bytes;
        (*record).ifindex = ifindex;
        (*record).endpoint = endpoint;
        (*record).epoch = decision.change;
        (*record).rule = decision.rule;
        (*record).destination_port = flow.service_port;
        (*record).protocol = key.protocol;
        (*record).direction = flow.origin;
        (*record).verdict = allowed as u8;
        (*record).reason = Reason::Policy as u8;
        (*record).kind = RECORD_END;
        (*record).end = if !allowed {
            END_DENIED
        } else if flow.state & FLOW_RESET != 0 {
            END_RESET
        } else if matches!(key.protocol, protocol::TCP | protocol::SCTP) {
            END_CLOSED
        } else {
            END_SILENT
        };
        (*record).padding = [0; 6];
    }
    entry.submit(wake_up());
}

/// Tells of a packet that was denied, or counts it.
#[inline(always)]
pub(crate) fn denied(packet: &Packet, outcome: &Outcome, now_ns: u64) {
    // SAFETY: a valid reference; volatile, since the loader sets the value after the compiler has seen it.
    let interval = unsafe { (&raw const REPORT_EVERY_NS).read_volatile() };
    let (mut packets, mut bytes) = (1, packet.length as u64);
    if interval != 0 {
        let key = DenialKey {
            ifindex: packet.ifindex,
            endpoint: outcome.endpoint,
            local: packet.inside,
            peer: packet.peer,
            local_port: packet.ports.local,
            peer_port: packet.ports.peer,
            protocol: packet.protocol,
            direction: packet.direction,
            reason: outcome.reason as u8,
            padding: 0,
        };
        let decision = Decision {
            change: outcome.change,
            rule: outcome.rule,
            verdict: VERDICT_DENY,
        }
        .pack();
        match DENIALS.get_ptr_mut(&key) {
            Some(known) => {
                // SAFETY: the map returned a valid, aligned value. It may come to serve another kind of denial while it
                // is read here; then a packet is counted there.
                let known = unsafe { &mut *known };
                if known.decision != decision {
                    // A change of policy: the last packet stands for what is counted, as in a report.
                    known.decision = decision;
                }
                if now_ns.wrapping_sub(known.reported_ns) < interval || !may_report(outcome, now_ns) {
                    add(&raw mut known.packets, 1);
                    add(&raw mut known.bytes, bytes);
                    if !outcome.slot.is_null() {
                        // SAFETY: as in `may_report`.
                        add_half(unsafe { &raw mut (*outcome.slot).counted }, 1);
                    }
                    return;
                }
                // Whatever another CPU counts, or tells, at the same time is told once.
                let held = exchange(&raw mut known.packets, 0);
                packets += held;
                bytes += exchange(&raw mut known.bytes, 0);
                known.reported_ns = now_ns;
                if !outcome.slot.is_null() {
                    // SAFETY: as in `may_report`.
                    add_half(unsafe { &raw mut (*outcome.slot).settled }, held as u32);
                }
            }
            None => {
                if !may_report(outcome, now_ns) {
                    unreported(outcome);
                    return;
                }
                let denial = Denial {
                    reported_ns: now_ns,
                    packets: 0,
                    bytes: 0,
                    decision,
                    source_port: packet.source_port,
                    destination_port: packet.service_port,
                    padding: [0; 4],
                };
                // Without room the next packet like it is told again.
                let _ = DENIALS.insert(&key, &denial, 0);
            }
        }
    } else if !may_report(outcome, now_ns) {
        unreported(outcome);
        return;
    }
    submit(packet, outcome, now_ns, packets, bytes);
}

/// Whether the endpoint has told few enough denials in this second.
#[inline(always)]
fn may_report(outcome: &Outcome, now_ns: u64) -> bool {
    // SAFETY: as in `denied`.
    let limit = unsafe { (&raw const REPORTS_PER_SECOND).read_volatile() };
    if limit == 0 || outcome.slot.is_null() {
        return true;
    }
    // SAFETY: the slot came from the map in this run and is aligned; other CPUs count at the same time, which makes the
    // limit inexact, no more.
    let slot = unsafe { &mut *outcome.slot };
    let second = (now_ns / SECOND_NS) as u32;
    if slot.report_second != second {
        slot.report_second = second;
        slot.reports = 0;
    }
    slot.reports += 1;
    slot.reports as u64 <= limit
}

#[inline(always)]
fn unreported(outcome: &Outcome) {
    if !outcome.slot.is_null() {
        // SAFETY: as in `may_report`.
        add(unsafe { &raw mut (*outcome.slot).unreported }, 1);
    }
}

/// Writes a record; a full ring is counted.
#[inline(always)]
fn submit(packet: &Packet, outcome: &Outcome, now_ns: u64, packets: u64, bytes: u64) {
    let Some(mut entry) = EVENTS.reserve::<FlowRecord>(0) else {
        count(COUNTER_LOST_EVENTS);
        return;
    };
    let ingress = packet.direction == DIRECTION_INGRESS;
    // Of an answer the flow is told that it answers.
    let (source, destination) = if ingress != outcome.is_answer {
        (packet.peer, packet.inside)
    } else {
        (packet.inside, packet.peer)
    };
    let (source_port, destination_port) = if outcome.is_answer {
        (packet.service_port, packet.source_port)
    } else {
        (packet.source_port, packet.service_port)
    };
    let pair = |amount| if ingress { [amount, 0] } else { [0, amount] };
    let allowed = outcome.verdict == VERDICT_ALLOW;
    entry.write(FlowRecord {
        time_ns: now_ns,
        opened_ns: if allowed { now_ns } else { 0 },
        source,
        destination,
        packets: pair(packets),
        bytes: pair(bytes),
        ifindex: packet.ifindex,
        endpoint: outcome.endpoint,
        epoch: outcome.change,
        rule: outcome.rule,
        source_port,
        destination_port,
        protocol: packet.protocol,
        direction: packet.direction ^ outcome.is_answer as u8,
        verdict: if allowed {
            VERDICT_ALLOW as u8
        } else {
            VERDICT_DENY as u8
        },
        reason: outcome.reason as u8,
        kind: if allowed { RECORD_START } else { RECORD_DENIED },
        end: END_NONE,
        padding: [0; 6],
    });
    entry.submit(wake_up());
}

/// How to tell the reader of a record. By default the kernel wakes it when it has read all that came before; a reader
/// that lets records gather is also woken when there are many. Not for each of those: some records from the mark on, as
/// many as may come from other CPUs in the same moment.
#[inline(always)]
fn wake_up() -> u64 {
    const AT_ONCE: u64 = 64;
    let held = EVENTS.query(BPF_RB_AVAIL_DATA as u64);
    let beyond = held.wrapping_sub(RING_HURRY_BYTES as u64);
    if beyond < AT_ONCE * size_of::<FlowRecord>() as u64 {
        BPF_RB_FORCE_WAKEUP as u64
    } else {
        0
    }
}
