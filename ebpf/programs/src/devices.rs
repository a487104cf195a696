//! Denies a control group all devices but those that hold nothing of the machine's.
//!
//! An object of its own: it is attached to the group of each pod and lives as long as that, whatever becomes of the
//! network programs. The list is the one that runc gives a container without devices, and the one that Palisade demands of
//! version 1's controller (`agent/runtime/src/devices.rs`); with none to pass, there is no map to fill or to forget.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{BPF_DEVCG_ACC_MKNOD, BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_DEV_CHAR},
    macros::cgroup_device,
    programs::DeviceContext,
};

/// The kernel lets the process go on.
const ALLOW: i32 = 1;
/// The kernel answers `EPERM`.
const DENY: i32 = 0;

#[cgroup_device]
#[inline(always)]
fn devices(ctx: DeviceContext) -> i32 {
    // SAFETY: the kernel passes a valid context, whose fields the verifier has it read.
    let (access_type, major, minor) =
        unsafe { ((*ctx.device).access_type, (*ctx.device).major, (*ctx.device).minor) };
    // As the kernel's header has it: the access in the upper half, the kind of device in the lower one.
    match is_allowed(access_type & 0xffff, access_type >> 16, major, minor) {
        true => ALLOW,
        false => DENY,
    }
}

#[inline(always)]
fn is_allowed(kind: u32, access: u32, major: u32, minor: u32) -> bool {
    // To make a node is not to use it: opening it is judged again.
    if access == BPF_DEVCG_ACC_MKNOD {
        return kind == BPF_DEVCG_DEV_CHAR || kind == BPF_DEVCG_DEV_BLOCK;
    }
    kind == BPF_DEVCG_DEV_CHAR
        && match (major, minor) {
            // null, zero, full, random, urandom
            (1, 3 | 5 | 7 | 8 | 9) => true,
            // tty, which is the terminal that the process has already, and ptmx
            (5, 0 | 2) => true,
            // Terminals, of the pod's own file system for them.
            (136, _) => true,
            _ => false,
        }
}

/// The verifier rejects an object in which this is reachable, so it never runs.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Read by the kernel, which lends some helpers only to GPL programs; none is used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
