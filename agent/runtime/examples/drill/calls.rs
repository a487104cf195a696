//! Attempts that are one system call with plain arguments.

use std::io;

use crate::{Outcome, checked, done};

/// Name, number, arguments. A string stands for its address.
pub(crate) struct Call(pub(crate) &'static str, i64, [Argument; 5]);

#[derive(Clone, Copy)]
enum Argument {
    Number(u64),
    Text(&'static std::ffi::CStr),
    /// Bytes of zeros, to read from or write to.
    Room,
}

use Argument::{Number, Room, Text};

const NO: Argument = Number(0);
const X32: i64 = 0x4000_0000;

pub(crate) const CALLS: &[Call] = &[
    // Namespaces.
    Call(
        "unshare-user",
        libc::SYS_unshare,
        [Number(0x1000_0000), NO, NO, NO, NO],
    ),
    Call(
        "unshare-mount",
        libc::SYS_unshare,
        [Number(0x0002_0000), NO, NO, NO, NO],
    ),
    Call(
        "unshare-network",
        libc::SYS_unshare,
        [Number(0x4000_0000), NO, NO, NO, NO],
    ),
    Call("clone3", libc::SYS_clone3, [Room, Number(64), NO, NO, NO]),
    // With SIGCHLD, as by fork.
    Call(
        "clone-parent",
        libc::SYS_clone,
        [Number(0x8000 | 17), NO, NO, NO, NO],
    ),
    Call(
        "sethostname",
        libc::SYS_sethostname,
        [Text(c"drill"), Number(5), NO, NO, NO],
    ),
    // Mounts.
    Call(
        "mount-tmpfs",
        libc::SYS_mount,
        [Text(c"x"), Text(c"/tmp"), Text(c"tmpfs"), NO, NO],
    ),
    Call(
        "mount-bind",
        libc::SYS_mount,
        [Text(c"/"), Text(c"/tmp"), NO, Number(libc::MS_BIND), NO],
    ),
    Call(
        "mount-remount",
        libc::SYS_mount,
        [
            NO,
            Text(c"/proc/sys"),
            NO,
            Number(libc::MS_BIND | libc::MS_REMOUNT),
            NO,
        ],
    ),
    Call(
        "mount-cgroup",
        libc::SYS_mount,
        [Text(c"x"), Text(c"/tmp"), Text(c"cgroup"), NO, Text(c"memory")],
    ),
    Call(
        "mount-cgroup2",
        libc::SYS_mount,
        [Text(c"x"), Text(c"/tmp"), Text(c"cgroup2"), NO, NO],
    ),
    Call(
        "umount-mask",
        libc::SYS_umount2,
        [Text(c"/proc/keys"), Number(2), NO, NO, NO],
    ),
    Call("fsopen", libc::SYS_fsopen, [Text(c"proc"), NO, NO, NO, NO]),
    Call(
        "open-tree-clone",
        libc::SYS_open_tree,
        [Number(u64::MAX - 99), Text(c"/"), Number(1), NO, NO],
    ),
    Call(
        "mount-setattr",
        libc::SYS_mount_setattr,
        [Number(u64::MAX - 99), Text(c"/proc/sys"), NO, Room, Number(32)],
    ),
    Call(
        "pivot-root",
        libc::SYS_pivot_root,
        [Text(c"/"), Text(c"/tmp"), NO, NO, NO],
    ),
    // Other processes.
    Call(
        "ptrace-attach",
        libc::SYS_ptrace,
        [Number(16), Number(1), NO, NO, NO],
    ),
    Call(
        "process-vm-readv",
        libc::SYS_process_vm_readv,
        [Number(1), Room, Number(1), Room, Number(1)],
    ),
    Call(
        "process-vm-writev",
        libc::SYS_process_vm_writev,
        [Number(1), Room, Number(1), Room, Number(1)],
    ),
    Call("pidfd-getfd", libc::SYS_pidfd_getfd, [Number(0), NO, NO, NO, NO]),
    Call("kcmp", libc::SYS_kcmp, [Number(1), Number(1), Number(1), NO, NO]),
    // Keys.
    Call(
        "keyctl",
        libc::SYS_keyctl,
        [NO, Number(u64::MAX - 3), Number(1), NO, NO],
    ),
    Call(
        "add-key",
        libc::SYS_add_key,
        [
            Text(c"user"),
            Text(c"drill"),
            Text(c"x"),
            Number(1),
            Number(u64::MAX - 1),
        ],
    ),
    Call(
        "request-key",
        libc::SYS_request_key,
        [Text(c"user"), Text(c"drill"), NO, NO, NO],
    ),
    // Parts of the kernel that were written for root.
    Call("bpf", libc::SYS_bpf, [NO, Room, Number(32), NO, NO]),
    Call(
        "perf-event-open",
        libc::SYS_perf_event_open,
        [Room, NO, Number(u64::MAX), Number(u64::MAX), NO],
    ),
    Call(
        "io-uring",
        libc::SYS_io_uring_setup,
        [Number(1), Room, NO, NO, NO],
    ),
    Call("userfaultfd", libc::SYS_userfaultfd, [Number(1), NO, NO, NO, NO]),
    Call(
        "init-module",
        libc::SYS_init_module,
        [Room, Number(64), Text(c""), NO, NO],
    ),
    Call(
        "finit-module",
        libc::SYS_finit_module,
        [NO, Text(c""), NO, NO, NO],
    ),
    Call(
        "delete-module",
        libc::SYS_delete_module,
        [Text(c"drill"), NO, NO, NO, NO],
    ),
    Call("kexec-load", libc::SYS_kexec_load, [NO, NO, NO, NO, NO]),
    // The magic numbers are missing: nothing would come of it anywhere.
    Call("reboot", libc::SYS_reboot, [NO, NO, NO, NO, NO]),
    Call("swapon", libc::SYS_swapon, [Text(c"/tmp/swap"), NO, NO, NO, NO]),
    Call("acct", libc::SYS_acct, [Text(c"/tmp/acct"), NO, NO, NO, NO]),
    Call("quotactl", libc::SYS_quotactl, [NO, NO, NO, NO, NO]),
    Call("syslog", libc::SYS_syslog, [Number(3), Room, Number(64), NO, NO]),
    Call("settimeofday", libc::SYS_settimeofday, [Room, NO, NO, NO, NO]),
    Call("fanotify", libc::SYS_fanotify_init, [NO, NO, NO, NO, NO]),
    Call(
        "open-by-handle",
        libc::SYS_open_by_handle_at,
        [NO, Room, NO, NO, NO],
    ),
    Call(
        "lookup-dcookie",
        libc::SYS_lookup_dcookie,
        [NO, Room, Number(64), NO, NO],
    ),
    Call("vhangup", libc::SYS_vhangup, [NO, NO, NO, NO, NO]),
    #[cfg(target_arch = "x86_64")]
    Call("iopl", libc::SYS_iopl, [Number(3), NO, NO, NO, NO]),
    #[cfg(target_arch = "x86_64")]
    Call(
        "ioperm",
        libc::SYS_ioperm,
        [Number(0x80), Number(1), Number(1), NO, NO],
    ),
    // Around the filter.
    Call("x32-call", X32 | libc::SYS_getpid, [NO, NO, NO, NO, NO]),
    Call("unknown-call", 471, [NO, NO, NO, NO, NO]),
    Call(
        "read-implies-exec",
        libc::SYS_personality,
        [Number(0x0040_0000), NO, NO, NO, NO],
    ),
    Call(
        "fixed-addresses",
        libc::SYS_personality,
        [Number(0x0004_0000), NO, NO, NO, NO],
    ),
    // Sockets.
    Call(
        "socket-packet",
        libc::SYS_socket,
        [Number(17), Number(3), NO, NO, NO],
    ),
    Call(
        "socket-packet-old",
        libc::SYS_socket,
        [Number(2), Number(10), Number(0x300), NO, NO],
    ),
    Call(
        "socket-alg",
        libc::SYS_socket,
        [Number(38), Number(5), NO, NO, NO],
    ),
    Call(
        "socket-vsock",
        libc::SYS_socket,
        [Number(40), Number(1), NO, NO, NO],
    ),
    Call(
        "socket-xdp",
        libc::SYS_socket,
        [Number(44), Number(3), NO, NO, NO],
    ),
    Call(
        "socketpair-tipc",
        libc::SYS_socketpair,
        [Number(30), Number(5), NO, Room, NO],
    ),
    Call(
        "socket-raw",
        libc::SYS_socket,
        [Number(2), Number(3), Number(1), NO, NO],
    ),
    // Privileges.
    Call(
        "setuid-outside",
        libc::SYS_setuid,
        [Number(70_000), NO, NO, NO, NO],
    ),
    Call(
        "memfd-plain",
        libc::SYS_memfd_create,
        [Text(c"drill"), NO, NO, NO, NO],
    ),
];

pub(crate) fn make(call: &Call) -> io::Result<Outcome> {
    let mut room = [0_u8; 4096];
    let room = room.as_mut_ptr() as u64;
    let [a, b, c, d, e] = call.2.map(|argument| match argument {
        Number(number) => number,
        Text(text) => text.as_ptr() as u64,
        Room => room,
    });
    // SAFETY: pointers are to strings or to room enough for what the call reads or writes; a call that succeeds
    // changes this process only, which ends right after, or the container.
    let result = checked(unsafe { libc::syscall(call.1, a, b, c, d, e, 0_u64) })?;
    if [libc::SYS_clone, libc::SYS_clone3].contains(&call.1) && result == 0 {
        // SAFETY: ends the child, which has nothing to tell.
        unsafe { libc::_exit(0) };
    }
    Ok(done(result))
}
