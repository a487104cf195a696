//! Judges every packet of every pod, on the host side of the pod's link.
//!
//! Five programs share all code. [`from_pod`] runs where packets leave the pod (tcx ingress of the host side) and
//! asks egress policy; [`to_pod`] runs where packets enter it (tcx egress) and asks ingress policy. What goes straight from
//! one pod to another ([`direct`]) the first hands over to [`to_peer`] instead. [`from_host`] and [`to_host`] do the same on
//! interfaces of the host, where only what some endpoint is asked about is judged. A packet takes a constant number of
//! map lookups, whatever the number of policies: endpoint, tracked flow, and for a new flow address class and verdict.
//!
//! Everything denies unless something allows: a lookup that fails, a header that does not parse, a code that is
//! not known. There is one exit, [`run`], which counts and reports what [`judge`] found.
//!
//! What a packet means for its flow is [`track`]; what becomes of flows that are closed, [`closed`]; what is told, [`report`].
//!
//! Non-goals: no address translation, no load balancing, no reassembly.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod closed;
mod direct;
mod fragment;
mod judge;
mod maps;
mod packet;
mod report;
mod track;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_ktime_get_coarse_ns,
    macros::classifier,
    programs::TcContext,
};
use ebpf_abi::{COUNTER_ALLOWED, COUNTER_DENIED, DIRECTION_EGRESS, DIRECTION_INGRESS, VERDICT_ALLOW};

use crate::{
    judge::{judge_host, judge_pod},
    maps::{COUNTERS, PACKET},
    packet::{Packet, ifindex},
};

/// Lets the host's stack pass the packet on. "No opinion" rather than "accept": programs that others attached after ours
/// still run.
const BY_HOST: i32 = TC_ACT_UNSPEC;

/// Every packet that a pod sends.
// Inlined, here and below: the name of a function of its own would hold a hash of where the program was built.
#[classifier]
#[inline(always)]
fn from_pod(ctx: TcContext) -> i32 {
    run::<false>(&ctx, DIRECTION_EGRESS, ifindex(&ctx), |packet, is_direct| {
        if is_direct {
            direct::hand_over(&ctx, packet);
        }
        BY_HOST
    })
}

/// Every packet that is sent to a pod, by way of the host's stack.
#[classifier]
#[inline(always)]
fn to_pod(ctx: TcContext) -> i32 {
    run::<false>(&ctx, DIRECTION_INGRESS, ifindex(&ctx), |_, _| BY_HOST)
}

/// Every packet that `from_pod` hands over: it goes straight to another pod, which is asked here.
#[classifier]
#[inline(always)]
fn to_peer(ctx: TcContext) -> i32 {
    run::<false>(&ctx, DIRECTION_INGRESS, direct::ifindex(&ctx), |packet, _| {
        direct::deliver(&ctx, packet)
    })
}

/// Every packet that leaves through an interface of the host.
#[classifier]
#[inline(always)]
fn from_host(ctx: TcContext) -> i32 {
    run::<true>(&ctx, DIRECTION_EGRESS, ifindex(&ctx), |_, _| BY_HOST)
}

/// Every packet that arrives at an interface of the host.
#[classifier]
#[inline(always)]
fn to_host(ctx: TcContext) -> i32 {
    run::<true>(&ctx, DIRECTION_INGRESS, ifindex(&ctx), |_, _| BY_HOST)
}

/// The one way a packet passes is the last line of this function: `pass` says where it goes, told whether it may go
/// straight to another pod. What no endpoint of a host is asked about is not judged at all.
#[inline(always)]
fn run<const HOST: bool>(
    ctx: &TcContext,
    direction: u8,
    ifindex: u32,
    pass: impl FnOnce(&Packet, bool) -> i32,
) -> i32 {
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let Some(packet) = PACKET.get_ptr_mut(0) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the map returned a valid, aligned value of this CPU. Programs on network hooks run with softirqs disabled and
    // do not nest, so nobody else uses it until this run is over.
    let packet = unsafe {
        packet.write(Packet::unparsed(direction, ifindex));
        &mut *packet
    };
    let outcome = if HOST {
        match judge_host(ctx, packet, now_ns) {
            Some(outcome) => outcome,
            None => return TC_ACT_UNSPEC,
        }
    } else {
        judge_pod(ctx, packet, now_ns)
    };

    if outcome.verdict != VERDICT_ALLOW {
        count(COUNTER_DENIED + outcome.reason as u32);
        report::denied(packet, &outcome, now_ns);
        return TC_ACT_SHOT;
    }
    count(COUNTER_ALLOWED);
    if outcome.opens_flow {
        report::opened(packet, &outcome, now_ns);
    }
    pass(packet, outcome.is_direct)
}


#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the map returned a valid, aligned slot of this CPU, which nothing else writes meanwhile.
        unsafe { *counter += 1 };
    }
}

/// The verifier rejects an object in which this is reachable, so it never runs.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Read by the kernel, which lends some helpers only to GPL programs; none of those is used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
