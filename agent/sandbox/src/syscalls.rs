//! The system calls each profile allows, as data: groups of calls, each with the reason it is there.
//!
//! Everything absent is refused with `EPERM`. Among the absent, on purpose: `ptrace` and `process_vm_*`
//! (reading a neighbour's memory), `io_uring_*` (work that no filter sees), `keyctl` and friends (keys are
//! not namespaced well), `bpf`, `userfaultfd`, `perf_event_open` (kernel attack surface), every `mount`,
//! `setns`, `unshare` and module call. Beside the groups stand the few calls whose arguments decide.

/// Pairs each name with its number, so that a misspelt call does not compile.
macro_rules! calls {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), number::$name)),*] };
}

/// A named set of system calls that are allowed whatever their arguments.
#[derive(Debug)]
pub struct Group {
    /// Short name, unique.
    pub name: &'static str,
    /// Why an ordinary program needs these calls, or why they do no harm.
    pub reason: &'static str,
    /// `(name, number)` on this architecture.
    pub calls: &'static [(&'static str, i64)],
}

/// A call that is allowed only when one of the alternatives holds for its arguments.
#[derive(Debug)]
pub struct Conditional {
    /// `(name, number)` on this architecture.
    pub call: (&'static str, i64),
    /// Why the arguments matter.
    pub reason: &'static str,
    /// Any one is enough, of each all.
    pub any_of: &'static [&'static [Argument]],
}

/// A test of one 32-bit argument: `argument & mask == value`.
#[derive(Debug)]
pub struct Argument {
    /// Position, from 0.
    pub index: u8,
    /// Bits that are looked at.
    pub mask: u32,
    /// What these bits must be.
    pub value: u32,
}

/// The newest call number the lists were written against (Linux 6.18). A newer one answers `ENOSYS`, so
/// that libraries which probe for it fall back, instead of `EPERM`, which they take for a real refusal.
pub(crate) const NEWEST_KNOWN: u32 = 470;

/// `clone3` hides its flags behind a pointer where no filter can read them; `ENOSYS` makes libraries use
/// `clone`, whose flags are judged.
pub(crate) const CLONE3: i64 = libc::SYS_clone3;

/// What every pod gets.
pub(crate) const BASELINE: &[&Group] = &[
    &MEMORY,
    &FILES,
    &FILES_OLD,
    &XATTRS,
    &POLL,
    &POLL_OLD,
    &PROCESSES,
    &PROCESSES_OLD,
    &IDENTITY,
    &SIGNALS,
    &TIME,
    &THREADS,
    &SOCKETS,
    &SYSTEM_V,
    &POSIX_QUEUES,
    &OLD_AIO,
    &SELF_SANDBOX,
    &CONTAINER_ROOT,
    &CONTAINER_ROOT_OLD,
];

/// What the control daemon gets: a server that runs a helper, never one that changes users or devices.
pub(crate) const DAEMON: &[&Group] = &[
    &MEMORY,
    &FILES,
    &FILES_OLD,
    &POLL,
    &POLL_OLD,
    &PROCESSES,
    &PROCESSES_OLD,
    &SIGNALS,
    &TIME,
    &THREADS,
    &SOCKETS,
    &SELF_SANDBOX,
];

/// What a jailed tool gets: files, memory, threads; no sockets of any family.
pub(crate) const JAIL: &[&Group] = &[
    &MEMORY,
    &FILES,
    &FILES_OLD,
    &POLL,
    &POLL_OLD,
    &PROCESSES,
    &PROCESSES_OLD,
    &SIGNALS,
    &TIME,
    &THREADS,
    &SELF_SANDBOX,
];

/// Argument rules of [`BASELINE`] and [`DAEMON`].
pub(crate) const BASELINE_CONDITIONS: &[Conditional] =
    &[CLONE, PERSONALITY, MEMFD, NETWORK_SOCKETS, SOCKET_PAIRS];

/// What strict pods do not get of the baseline, whatever the arguments.
pub(crate) const STRICT_REFUSED: &[&Group] = &[&STRICT, &STRICT_OLD];

/// What strict pods do not get of the baseline with certain arguments.
pub(crate) const STRICT_CONDITIONS: &[Conditional] = &[
    WRITABLE_CODE,
    MADE_CODE,
    MADE_CODE_WITH_KEY,
    SHARED_CODE,
    EXECUTE_DESCRIPTOR,
];

/// What makes a strict pod's `memfd_create` refuse: a library falls back to a file, which cannot be mapped
/// as code. A sealed anonymous file can, and be written through a second mapping.
pub(crate) const STRICT_ABSENT: &[(&str, i64)] = calls![SYS_memfd_create];

/// Argument rules of [`JAIL`].
pub(crate) const JAIL_CONDITIONS: &[Conditional] = &[CLONE, MEMFD];

const WRITABLE_CODE: Conditional = Conditional {
    call: ("mmap", libc::SYS_mmap),
    reason: "memory that is writable and executable, or executable and shared: a second mapping of that, of a child \
             or made by mremap, would be written to",
    any_of: &[
        // PROT_WRITE and PROT_EXEC.
        &[Argument {
            index: 2,
            mask: 0x6,
            value: 0x6,
        }],
        // MAP_SHARED and MAP_SHARED_VALIDATE have this bit, MAP_PRIVATE, by which loaders map code, has not.
        &[
            EXECUTABLE,
            Argument {
                index: 3,
                mask: 0x1,
                value: 0x1,
            },
        ],
    ],
};

const MADE_CODE: Conditional = Conditional {
    call: ("mprotect", libc::SYS_mprotect),
    reason: "memory that becomes executable, having been written before",
    any_of: &[&[EXECUTABLE]],
};

const MADE_CODE_WITH_KEY: Conditional = Conditional {
    call: ("pkey_mprotect", libc::SYS_pkey_mprotect),
    reason: "the same under another name",
    any_of: &[&[EXECUTABLE]],
};

/// PROT_EXEC.
const EXECUTABLE: Argument = Argument {
    index: 2,
    mask: 0x4,
    value: 0x4,
};

const SHARED_CODE: Conditional = Conditional {
    call: ("shmat", libc::SYS_shmat),
    reason: "shared memory as code",
    // SHM_EXEC.
    any_of: &[&[Argument {
        index: 2,
        mask: 0x8000,
        value: 0x8000,
    }]],
};

const EXECUTE_DESCRIPTOR: Conditional = Conditional {
    call: ("execveat", libc::SYS_execveat),
    reason: "programs that have no path any more",
    // AT_EMPTY_PATH.
    any_of: &[&[Argument {
        index: 4,
        mask: 0x1000,
        value: 0x1000,
    }]],
};

const STRICT: Group = Group {
    name: "strict",
    reason: "seldom needed, and each another way to odd memory or files",
    calls: calls![
        SYS_memfd_secret,
        SYS_name_to_handle_at,
        SYS_personality,
        SYS_remap_file_pages,
        SYS_vmsplice
    ],
};

#[cfg(target_arch = "x86_64")]
const STRICT_OLD: Group = Group {
    name: "strict-old",
    reason: "segments of 16-bit programs",
    calls: calls![SYS_modify_ldt],
};

#[cfg(not(target_arch = "x86_64"))]
const STRICT_OLD: Group = Group {
    name: "strict-old",
    reason: "absent on this architecture",
    calls: &[],
};

const CLONE: Conditional = Conditional {
    call: ("clone", libc::SYS_clone),
    reason: "threads and processes, but no new namespaces: each opens kernel code meant for root; and nobody else's children, \
             which only the shim could take away",
    // CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; CLONE_PARENT: the parent of a program beside a
    // container's own is the shim.
    any_of: &[&[Argument {
        index: 0,
        mask: 0x7e02_8000,
        value: 0,
    }]],
};

const PERSONALITY: Conditional = Conditional {
    call: ("personality", libc::SYS_personality),
    reason: "reading and the Linux personalities; not READ_IMPLIES_EXEC or a fixed address layout",
    any_of: &[
        &[whole(0, 0)],
        &[whole(0, 0x0008)],
        &[whole(0, 0x2_0000)],
        &[whole(0, 0x2_0008)],
        &[whole(0, u32::MAX)],
    ],
};

const MEMFD: Conditional = Conditional {
    call: ("memfd_create", libc::SYS_memfd_create),
    reason: "anonymous files sealed against execution; others would run code that no path rule sees",
    // MFD_NOEXEC_SEAL.
    any_of: &[&[Argument {
        index: 1,
        mask: 0x8,
        value: 0x8,
    }]],
};

const NETWORK_SOCKETS: Conditional = Conditional {
    call: ("socket", libc::SYS_socket),
    reason: "unix, IPv4, IPv6 and netlink; packet, vsock, AF_ALG and rare families are kernel attack surface",
    any_of: &[
        &[whole(0, 1)],
        // Of IPv4 the kernel makes a packet socket if the type is SOCK_PACKET (10); all other types are below 8.
        &[
            whole(0, 2),
            Argument {
                index: 1,
                mask: 0x8,
                value: 0,
            },
        ],
        &[whole(0, 10)],
        &[whole(0, 16)],
    ],
};

const SOCKET_PAIRS: Conditional = Conditional {
    call: ("socketpair", libc::SYS_socketpair),
    reason: "pairs of unix sockets; for any other family the kernel loads its module and runs its code before it refuses",
    any_of: &[&[whole(0, 1)]],
};

/// All bits of an argument.
const fn whole(index: u8, value: u32) -> Argument {
    Argument {
        index,
        mask: u32::MAX,
        value,
    }
}

/// Call numbers: those of `libc`, and those it lacks; numbers above 402 are the same on all architectures.
#[expect(non_upper_case_globals, reason = "spelt as the kernel's headers spell them")]
pub(crate) mod number {
    pub(crate) use libc::*;
    #[cfg(target_arch = "x86_64")]
    pub(crate) const SYS_io_pgetevents: c_long = 333;
    #[cfg(target_arch = "aarch64")]
    pub(crate) const SYS_io_pgetevents: c_long = 292;
    /// Gone from the kernel, but profiles name them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const SYS_create_module: c_long = 174;
    #[cfg(target_arch = "x86_64")]
    pub(crate) const SYS_get_kernel_syms: c_long = 177;
    #[cfg(target_arch = "x86_64")]
    pub(crate) const SYS_query_module: c_long = 178;
    #[cfg(target_arch = "x86_64")]
    pub(crate) const SYS_uretprobe: c_long = 335;
    pub(crate) const SYS_cachestat: c_long = 451;
    pub(crate) const SYS_map_shadow_stack: c_long = 453;
    pub(crate) const SYS_futex_wake: c_long = 454;
    pub(crate) const SYS_futex_wait: c_long = 455;
    pub(crate) const SYS_futex_requeue: c_long = 456;
    pub(crate) const SYS_statmount: c_long = 457;
    pub(crate) const SYS_listmount: c_long = 458;
    pub(crate) const SYS_lsm_get_self_attr: c_long = 459;
    pub(crate) const SYS_lsm_set_self_attr: c_long = 460;
    pub(crate) const SYS_lsm_list_modules: c_long = 461;
    pub(crate) const SYS_setxattrat: c_long = 463;
    pub(crate) const SYS_getxattrat: c_long = 464;
    pub(crate) const SYS_listxattrat: c_long = 465;
    pub(crate) const SYS_removexattrat: c_long = 466;
    pub(crate) const SYS_open_tree_attr: c_long = 467;
    pub(crate) const SYS_file_getattr: c_long = 468;
    pub(crate) const SYS_file_setattr: c_long = 469;
}

const MEMORY: Group = Group {
    name: "memory",
    reason: "the process's own address space",
    calls: calls![
        SYS_brk,
        SYS_madvise,
        SYS_map_shadow_stack,
        SYS_membarrier,
        SYS_memfd_secret,
        SYS_mincore,
        SYS_mlock,
        SYS_mlock2,
        SYS_mlockall,
        SYS_mmap,
        SYS_mprotect,
        SYS_mremap,
        SYS_mseal,
        SYS_msync,
        SYS_munlock,
        SYS_munlockall,
        SYS_munmap,
        SYS_pkey_alloc,
        SYS_pkey_free,
        SYS_pkey_mprotect,
        SYS_remap_file_pages
    ],
};

const FILES: Group = Group {
    name: "files",
    reason: "files and directories; Landlock and file modes decide which",
    calls: calls![
        SYS_cachestat,
        SYS_chdir,
        SYS_close,
        SYS_close_range,
        SYS_copy_file_range,
        SYS_dup,
        SYS_dup3,
        SYS_faccessat,
        SYS_faccessat2,
        SYS_fadvise64,
        SYS_fallocate,
        SYS_fanotify_mark,
        SYS_fchdir,
        SYS_fchmod,
        SYS_fchmodat,
        SYS_fchmodat2,
        SYS_fchown,
        SYS_fchownat,
        SYS_fcntl,
        SYS_fdatasync,
        SYS_flock,
        SYS_fstat,
        SYS_fstatfs,
        SYS_fsync,
        SYS_ftruncate,
        SYS_getcwd,
        SYS_getdents64,
        SYS_inotify_add_watch,
        SYS_inotify_init1,
        SYS_inotify_rm_watch,
        SYS_ioctl,
        SYS_linkat,
        SYS_lseek,
        SYS_mkdirat,
        SYS_name_to_handle_at,
        SYS_newfstatat,
        SYS_openat,
        SYS_openat2,
        SYS_pipe2,
        SYS_pread64,
        SYS_preadv,
        SYS_preadv2,
        SYS_pwrite64,
        SYS_pwritev,
        SYS_pwritev2,
        SYS_read,
        SYS_readahead,
        SYS_readlinkat,
        SYS_readv,
        SYS_renameat,
        SYS_renameat2,
        SYS_sendfile,
        SYS_splice,
        SYS_statfs,
        SYS_statx,
        SYS_symlinkat,
        SYS_sync,
        SYS_sync_file_range,
        SYS_syncfs,
        SYS_tee,
        SYS_truncate,
        SYS_umask,
        SYS_unlinkat,
        SYS_utimensat,
        SYS_vmsplice,
        SYS_write,
        SYS_writev
    ],
};

#[cfg(target_arch = "x86_64")]
const FILES_OLD: Group = Group {
    name: "files-old",
    reason: "the older spellings of the file calls, which C libraries still use on x86-64",
    calls: calls![
        SYS_access,
        SYS_chmod,
        SYS_chown,
        SYS_creat,
        SYS_dup2,
        SYS_futimesat,
        SYS_getdents,
        SYS_inotify_init,
        SYS_lchown,
        SYS_link,
        SYS_lstat,
        SYS_mkdir,
        SYS_open,
        SYS_pipe,
        SYS_readlink,
        SYS_rename,
        SYS_rmdir,
        SYS_stat,
        SYS_symlink,
        SYS_unlink,
        SYS_utime,
        SYS_utimes
    ],
};

#[cfg(not(target_arch = "x86_64"))]
const FILES_OLD: Group = Group {
    name: "files-old",
    reason: "absent on this architecture",
    calls: &[],
};

const XATTRS: Group = Group {
    name: "xattrs",
    reason: "extended attributes; the kernel demands the capability for the privileged ones",
    calls: calls![
        SYS_fgetxattr,
        SYS_flistxattr,
        SYS_fremovexattr,
        SYS_fsetxattr,
        SYS_getxattr,
        SYS_getxattrat,
        SYS_lgetxattr,
        SYS_listxattr,
        SYS_listxattrat,
        SYS_llistxattr,
        SYS_lremovexattr,
        SYS_lsetxattr,
        SYS_removexattr,
        SYS_removexattrat,
        SYS_setxattr,
        SYS_setxattrat
    ],
};

const POLL: Group = Group {
    name: "poll",
    reason: "waiting for descriptors",
    calls: calls![
        SYS_epoll_create1,
        SYS_epoll_ctl,
        SYS_epoll_pwait,
        SYS_epoll_pwait2,
        SYS_eventfd2,
        SYS_ppoll,
        SYS_pselect6,
        SYS_signalfd4
    ],
};

#[cfg(target_arch = "x86_64")]
const POLL_OLD: Group = Group {
    name: "poll-old",
    reason: "the older spellings on x86-64",
    calls: calls![
        SYS_epoll_create,
        SYS_epoll_wait,
        SYS_eventfd,
        SYS_poll,
        SYS_select,
        SYS_signalfd
    ],
};

#[cfg(not(target_arch = "x86_64"))]
const POLL_OLD: Group = Group {
    name: "poll-old",
    reason: "absent on this architecture",
    calls: &[],
};

const PROCESSES: Group = Group {
    name: "processes",
    reason: "starting, waiting for and limiting one's own processes; pids are namespaced",
    calls: calls![
        SYS_capget,
        SYS_execve,
        SYS_execveat,
        SYS_exit,
        SYS_exit_group,
        SYS_getcpu,
        SYS_getegid,
        SYS_geteuid,
        SYS_getgid,
        SYS_getgroups,
        SYS_getpgid,
        SYS_getpid,
        SYS_getppid,
        SYS_getpriority,
        SYS_getrandom,
        SYS_getresgid,
        SYS_getresuid,
        SYS_getrlimit,
        SYS_getrusage,
        SYS_getsid,
        SYS_gettid,
        SYS_getuid,
        SYS_ioprio_get,
        SYS_ioprio_set,
        SYS_kill,
        SYS_pidfd_open,
        SYS_pidfd_send_signal,
        SYS_prctl,
        SYS_prlimit64,
        SYS_process_mrelease,
        SYS_setpgid,
        SYS_setpriority,
        SYS_setrlimit,
        SYS_setsid,
        SYS_sysinfo,
        SYS_tgkill,
        SYS_times,
        SYS_tkill,
        SYS_uname,
        SYS_wait4,
        SYS_waitid
    ],
};

#[cfg(target_arch = "x86_64")]
const PROCESSES_OLD: Group = Group {
    name: "processes-old",
    reason: "the older spellings on x86-64, and its segment and descriptor-table registers",
    calls: calls![
        SYS_alarm,
        SYS_arch_prctl,
        SYS_fork,
        SYS_getpgrp,
        SYS_modify_ldt,
        SYS_pause,
        SYS_time,
        SYS_vfork
    ],
};

#[cfg(not(target_arch = "x86_64"))]
const PROCESSES_OLD: Group = Group {
    name: "processes-old",
    reason: "absent on this architecture",
    calls: &[],
};

const IDENTITY: Group = Group {
    name: "identity",
    reason: "changing user within what the capabilities and the user namespace allow",
    calls: calls![
        SYS_capset,
        SYS_setfsgid,
        SYS_setfsuid,
        SYS_setgid,
        SYS_setgroups,
        SYS_setregid,
        SYS_setresgid,
        SYS_setresuid,
        SYS_setreuid,
        SYS_setuid
    ],
};

const SIGNALS: Group = Group {
    name: "signals",
    reason: "handling one's own signals",
    calls: calls![
        SYS_restart_syscall,
        SYS_rt_sigaction,
        SYS_rt_sigpending,
        SYS_rt_sigprocmask,
        SYS_rt_sigqueueinfo,
        SYS_rt_sigreturn,
        SYS_rt_sigsuspend,
        SYS_rt_sigtimedwait,
        SYS_rt_tgsigqueueinfo,
        SYS_sigaltstack
    ],
};

const TIME: Group = Group {
    name: "time",
    reason: "reading clocks and timers; setting the clock takes a capability no pod gets",
    calls: calls![
        SYS_adjtimex,
        SYS_clock_adjtime,
        SYS_clock_getres,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_getitimer,
        SYS_gettimeofday,
        SYS_nanosleep,
        SYS_setitimer,
        SYS_timer_create,
        SYS_timer_delete,
        SYS_timer_getoverrun,
        SYS_timer_gettime,
        SYS_timer_settime,
        SYS_timerfd_create,
        SYS_timerfd_gettime,
        SYS_timerfd_settime
    ],
};

const THREADS: Group = Group {
    name: "threads",
    reason: "threads, locks and their scheduling",
    calls: calls![
        SYS_futex,
        SYS_futex_requeue,
        SYS_futex_wait,
        SYS_futex_waitv,
        SYS_futex_wake,
        SYS_get_robust_list,
        SYS_rseq,
        SYS_sched_get_priority_max,
        SYS_sched_get_priority_min,
        SYS_sched_getaffinity,
        SYS_sched_getattr,
        SYS_sched_getparam,
        SYS_sched_getscheduler,
        SYS_sched_rr_get_interval,
        SYS_sched_setaffinity,
        SYS_sched_setattr,
        SYS_sched_setparam,
        SYS_sched_setscheduler,
        SYS_sched_yield,
        SYS_set_robust_list,
        SYS_set_tid_address
    ],
};

const SOCKETS: Group = Group {
    name: "sockets",
    reason: "using sockets; which families may be opened is a condition, who may be reached is the datapath's",
    calls: calls![
        SYS_accept,
        SYS_accept4,
        SYS_bind,
        SYS_connect,
        SYS_getpeername,
        SYS_getsockname,
        SYS_getsockopt,
        SYS_listen,
        SYS_recvfrom,
        SYS_recvmmsg,
        SYS_recvmsg,
        SYS_sendmmsg,
        SYS_sendmsg,
        SYS_sendto,
        SYS_setsockopt,
        SYS_shutdown
    ],
};

const SYSTEM_V: Group = Group {
    name: "system-v-ipc",
    reason: "System V queues, semaphores and shared memory, within the pod's IPC namespace",
    calls: calls![
        SYS_msgctl,
        SYS_msgget,
        SYS_msgrcv,
        SYS_msgsnd,
        SYS_semctl,
        SYS_semget,
        SYS_semop,
        SYS_semtimedop,
        SYS_shmat,
        SYS_shmctl,
        SYS_shmdt,
        SYS_shmget
    ],
};

const POSIX_QUEUES: Group = Group {
    name: "posix-queues",
    reason: "POSIX message queues, within the pod's IPC namespace",
    calls: calls![
        SYS_mq_getsetattr,
        SYS_mq_notify,
        SYS_mq_open,
        SYS_mq_timedreceive,
        SYS_mq_timedsend,
        SYS_mq_unlink
    ],
};

const OLD_AIO: Group = Group {
    name: "aio",
    reason: "the old asynchronous file interface, which databases use where io_uring is refused",
    calls: calls![
        SYS_io_cancel,
        SYS_io_destroy,
        SYS_io_getevents,
        SYS_io_pgetevents,
        SYS_io_setup,
        SYS_io_submit
    ],
};

const SELF_SANDBOX: Group = Group {
    name: "self-sandbox",
    reason: "a process may always restrict itself further; the profile's own second filter needs it too",
    calls: calls![
        SYS_landlock_add_rule,
        SYS_landlock_create_ruleset,
        SYS_landlock_restrict_self,
        SYS_seccomp
    ],
};

const CONTAINER_ROOT: Group = Group {
    name: "container-root",
    reason: "calls that demand a capability, held within the pod's user namespace only",
    calls: calls![SYS_chroot, SYS_mknodat],
};

#[cfg(target_arch = "x86_64")]
const CONTAINER_ROOT_OLD: Group = Group {
    name: "container-root-old",
    reason: "the older spelling on x86-64",
    calls: calls![SYS_mknod],
};

#[cfg(not(target_arch = "x86_64"))]
const CONTAINER_ROOT_OLD: Group = Group {
    name: "container-root-old",
    reason: "absent on this architecture",
    calls: &[],
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const NEVER: &[i64] = &[
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_pivot_root,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_clone3,
    ];

    #[test]
    fn no_profile_allows_a_dangerous_call() {
        for groups in [BASELINE, DAEMON, JAIL] {
            for (name, number) in groups.iter().flat_map(|g| g.calls) {
                assert!(!NEVER.contains(number), "{name} is allowed");
            }
        }
    }

    #[test]
    fn each_call_stands_once_and_each_group_has_a_reason() {
        for (groups, conditions) in [
            (BASELINE, BASELINE_CONDITIONS),
            (DAEMON, BASELINE_CONDITIONS),
            (JAIL, JAIL_CONDITIONS),
        ] {
            let mut seen = HashSet::new();
            for group in groups {
                assert!(!group.reason.is_empty(), "{} has no reason", group.name);
                for (name, number) in group.calls {
                    assert!(seen.insert(*number), "{name} stands twice");
                }
            }
            for condition in conditions {
                assert!(
                    seen.insert(condition.call.1),
                    "{} is both free and conditional",
                    condition.call.0
                );
                assert!(!condition.any_of.is_empty());
            }
            assert!(seen.iter().all(|number| *number <= i64::from(NEWEST_KNOWN)));
        }
    }
}
