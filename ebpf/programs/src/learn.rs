//! Notes which system calls and capabilities the processes of one pid namespace use, for `policyctl learn`.
//!
//! An object of its own, loaded while somebody learns and gone with the loader: nothing is pinned. Raw tracepoints rather
//! than the filter's log (`SECCOMP_RET_LOG`): kernels have audit off, and its queue loses records. A call is noted after
//! the filter has let it through. Names of files are not read here: the helpers for that are for GPL programs alone.

#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_pidns_info,
    helpers::generated::bpf_get_ns_current_pid_tgid,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use ebpf_abi::{LEARN_CALLS, LEARN_CAPABILITIES, LearnNamespace};

/// Whose processes are noted; zero is nobody.
#[map]
static NAMESPACE: Array<LearnNamespace> = Array::with_max_entries(1, 0);

/// By number: 1 if the call was made.
#[map]
static CALLS: Array<u64> = Array::with_max_entries(LEARN_CALLS, 0);

/// By number: 1 if the capability was asked for and held.
#[map]
static CAPABILITIES: Array<u64> = Array::with_max_entries(LEARN_CAPABILITIES, 0);

/// 1 if a call or a capability had a number for which there is no place.
#[map]
static BEYOND: Array<u64> = Array::with_max_entries(1, 0);

/// `sys_enter(regs, id)`.
#[raw_tracepoint(tracepoint = "sys_enter")]
#[inline(always)]
fn learn_call(ctx: RawTracePointContext) -> i32 {
    if is_watched() {
        note(&CALLS, argument(&ctx, 1));
    }
    0
}

/// `cap_capable(cred, target_ns, capable_ns, cap, ret)`.
#[raw_tracepoint(tracepoint = "cap_capable")]
#[inline(always)]
fn learn_capability(ctx: RawTracePointContext) -> i32 {
    // The answer is a C integer: 0 if the capability is held.
    if argument(&ctx, 4) as u32 == 0 && is_watched() {
        note(&CAPABILITIES, argument(&ctx, 3) & 0xffff_ffff);
    }
    0
}

#[inline(always)]
fn is_watched() -> bool {
    let Some(namespace) = NAMESPACE.get(0) else {
        return false;
    };
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the helper writes `ids`, which is as long as it is told.
    let answer = unsafe {
        bpf_get_ns_current_pid_tgid(
            namespace.device,
            namespace.inode,
            &raw mut ids,
            size_of::<bpf_pidns_info>() as u32,
        )
    };
    answer == 0
}

#[inline(always)]
fn note(seen: &Array<u64>, number: u64) {
    let place = match u32::try_from(number) {
        Ok(number) => seen.get_ptr_mut(number),
        Err(_) => None,
    };
    if let Some(place) = place.or_else(|| BEYOND.get_ptr_mut(0)) {
        // SAFETY: the map returned a valid, aligned value. Several processors may write it at once, all the same number.
        unsafe {
            if *place == 0 {
                *place = 1;
            }
        }
    }
}

/// An argument of the tracepoint: each takes eight bytes.
#[inline(always)]
fn argument(ctx: &RawTracePointContext, index: usize) -> u64 {
    // SAFETY: both tracepoints have more arguments than are asked for; the verifier checks it.
    unsafe { *ctx.as_ptr().cast::<u64>().add(index) }
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
