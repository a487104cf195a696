//! Names of system calls: all of this architecture, and those of others that profiles list beside them.

use crate::syscalls::number;

/// The number of a call on this architecture, such as 0 for `read` on x86-64.
pub fn number_of(name: &str) -> Option<u32> {
    [COMMON, OLD].iter().find_map(|table| {
        let at = table.binary_search_by(|(known, _)| known.strip_prefix("SYS_").unwrap_or(known).cmp(name));
        let (_, number) = at.ok().and_then(|at| table.get(at))?;
        u32::try_from(*number).ok()
    })
}

/// The name of a call on this architecture.
pub fn name_of(number: u32) -> Option<&'static str> {
    all().find_map(|(name, own)| (own == number).then_some(name))
}

/// All calls of this architecture with their numbers.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, u32)> {
    let every = [COMMON, OLD].into_iter().flatten();
    every.filter_map(|(name, number)| {
        Some((
            name.strip_prefix("SYS_").unwrap_or(name),
            u32::try_from(*number).ok()?,
        ))
    })
}

/// Whether another architecture has a call of that name, so that it is no misspelling.
pub(crate) fn is_foreign(name: &str) -> bool {
    FOREIGN.binary_search(&name).is_ok()
        || (cfg!(not(target_arch = "x86_64")) && OLD_NAMES.binary_search(&name).is_ok())
}

/// Pairs each name with its number, so that a misspelt call does not compile. Sorted.
macro_rules! calls {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), number::$name)),*] };
}

#[rustfmt::skip]
const COMMON: &[(&str, libc::c_long)] = calls![
    SYS_accept, SYS_accept4, SYS_acct, SYS_add_key, SYS_adjtimex, SYS_bind, SYS_bpf, SYS_brk,
    SYS_cachestat, SYS_capget, SYS_capset, SYS_chdir, SYS_chroot, SYS_clock_adjtime,
    SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clock_settime, SYS_clone,
    SYS_clone3, SYS_close, SYS_close_range, SYS_connect, SYS_copy_file_range, SYS_delete_module,
    SYS_dup, SYS_dup3, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2,
    SYS_eventfd2, SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group, SYS_faccessat, SYS_faccessat2,
    SYS_fadvise64, SYS_fallocate, SYS_fanotify_init, SYS_fanotify_mark, SYS_fchdir, SYS_fchmod,
    SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr,
    SYS_file_getattr, SYS_file_setattr, SYS_finit_module, SYS_flistxattr, SYS_flock,
    SYS_fremovexattr, SYS_fsconfig, SYS_fsetxattr, SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_fstat,
    SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_futex_requeue, SYS_futex_wait,
    SYS_futex_waitv, SYS_futex_wake, SYS_get_mempolicy, SYS_get_robust_list, SYS_getcpu, SYS_getcwd,
    SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getgroups, SYS_getitimer,
    SYS_getpeername, SYS_getpgid, SYS_getpid, SYS_getppid, SYS_getpriority, SYS_getrandom,
    SYS_getresgid, SYS_getresuid, SYS_getrusage, SYS_getsid, SYS_getsockname, SYS_getsockopt,
    SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr, SYS_getxattrat, SYS_init_module,
    SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_cancel, SYS_io_destroy,
    SYS_io_getevents, SYS_io_pgetevents, SYS_io_setup, SYS_io_submit, SYS_io_uring_enter,
    SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_ioprio_get, SYS_ioprio_set, SYS_kcmp,
    SYS_kexec_file_load, SYS_kexec_load, SYS_keyctl, SYS_kill, SYS_landlock_add_rule,
    SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_lgetxattr, SYS_linkat, SYS_listen,
    SYS_listmount, SYS_listxattr, SYS_listxattrat, SYS_llistxattr, SYS_lookup_dcookie,
    SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_lsm_get_self_attr, SYS_lsm_list_modules,
    SYS_lsm_set_self_attr, SYS_madvise, SYS_map_shadow_stack, SYS_mbind, SYS_membarrier,
    SYS_memfd_create, SYS_memfd_secret, SYS_migrate_pages, SYS_mincore, SYS_mkdirat, SYS_mknodat,
    SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap, SYS_mount, SYS_mount_setattr, SYS_move_mount,
    SYS_move_pages, SYS_mprotect, SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open,
    SYS_mq_timedreceive, SYS_mq_timedsend, SYS_mq_unlink, SYS_mremap, SYS_mseal, SYS_msgctl,
    SYS_msgget, SYS_msgrcv, SYS_msgsnd, SYS_msync, SYS_munlock, SYS_munlockall, SYS_munmap,
    SYS_name_to_handle_at, SYS_nanosleep, SYS_newfstatat, SYS_nfsservctl, SYS_open_by_handle_at,
    SYS_open_tree, SYS_open_tree_attr, SYS_openat, SYS_openat2, SYS_perf_event_open,
    SYS_personality, SYS_pidfd_getfd, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pipe2,
    SYS_pivot_root, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_ppoll, SYS_prctl,
    SYS_pread64, SYS_preadv, SYS_preadv2, SYS_prlimit64, SYS_process_madvise, SYS_process_mrelease,
    SYS_process_vm_readv, SYS_process_vm_writev, SYS_pselect6, SYS_ptrace, SYS_pwrite64,
    SYS_pwritev, SYS_pwritev2, SYS_quotactl, SYS_quotactl_fd, SYS_read, SYS_readahead,
    SYS_readlinkat, SYS_readv, SYS_reboot, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg,
    SYS_remap_file_pages, SYS_removexattr, SYS_removexattrat, SYS_renameat2, SYS_request_key,
    SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigpending, SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_rt_sigtimedwait,
    SYS_rt_tgsigqueueinfo, SYS_sched_get_priority_max, SYS_sched_get_priority_min,
    SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_sched_rr_get_interval, SYS_sched_setaffinity, SYS_sched_setattr, SYS_sched_setparam,
    SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_semctl, SYS_semget, SYS_semop,
    SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_set_mempolicy,
    SYS_set_mempolicy_home_node, SYS_set_robust_list, SYS_set_tid_address, SYS_setdomainname,
    SYS_setfsgid, SYS_setfsuid, SYS_setgid, SYS_setgroups, SYS_sethostname, SYS_setitimer,
    SYS_setns, SYS_setpgid, SYS_setpriority, SYS_setregid, SYS_setresgid, SYS_setresuid,
    SYS_setreuid, SYS_setsid, SYS_setsockopt, SYS_settimeofday, SYS_setuid, SYS_setxattr,
    SYS_setxattrat, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget, SYS_shutdown, SYS_sigaltstack,
    SYS_signalfd4, SYS_socket, SYS_socketpair, SYS_splice, SYS_statfs, SYS_statmount, SYS_statx,
    SYS_swapoff, SYS_swapon, SYS_symlinkat, SYS_sync, SYS_syncfs, SYS_sysinfo, SYS_syslog, SYS_tee,
    SYS_tgkill, SYS_timer_create, SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime,
    SYS_timer_settime, SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime, SYS_times,
    SYS_tkill, SYS_truncate, SYS_umask, SYS_umount2, SYS_uname, SYS_unlinkat, SYS_unshare,
    SYS_userfaultfd, SYS_utimensat, SYS_vhangup, SYS_vmsplice, SYS_wait4, SYS_waitid, SYS_write,
    SYS_writev,
];

/// What only x86-64 has, mostly the older spellings.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD: &[(&str, libc::c_long)] = calls![
    SYS__sysctl, SYS_access, SYS_afs_syscall, SYS_alarm, SYS_arch_prctl, SYS_chmod, SYS_chown,
    SYS_creat, SYS_create_module, SYS_dup2, SYS_epoll_create, SYS_epoll_ctl_old, SYS_epoll_wait,
    SYS_epoll_wait_old, SYS_eventfd, SYS_fchmodat2, SYS_fork, SYS_futimesat, SYS_get_kernel_syms,
    SYS_get_thread_area, SYS_getdents, SYS_getpgrp, SYS_getpmsg, SYS_getrlimit, SYS_inotify_init,
    SYS_ioperm, SYS_iopl, SYS_lchown, SYS_link, SYS_lstat, SYS_mkdir, SYS_mknod, SYS_modify_ldt,
    SYS_open, SYS_pause, SYS_pipe, SYS_poll, SYS_putpmsg, SYS_query_module, SYS_readlink,
    SYS_rename, SYS_renameat, SYS_rmdir, SYS_security, SYS_select, SYS_set_thread_area,
    SYS_setrlimit, SYS_signalfd, SYS_stat, SYS_symlink, SYS_sync_file_range, SYS_sysfs, SYS_time,
    SYS_tuxcall, SYS_unlink, SYS_uretprobe, SYS_uselib, SYS_ustat, SYS_utime, SYS_utimes, SYS_vfork,
    SYS_vserver,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[(&str, libc::c_long)] = &[];

#[cfg(not(target_arch = "x86_64"))]
#[rustfmt::skip]
const OLD_NAMES: &[&str] = &[
    "_sysctl", "access", "afs_syscall", "alarm", "arch_prctl", "chmod", "chown", "creat",
    "create_module", "dup2", "epoll_create", "epoll_ctl_old", "epoll_wait", "epoll_wait_old",
    "eventfd", "fchmodat2", "fork", "futimesat", "get_kernel_syms", "get_thread_area", "getdents",
    "getpgrp", "getpmsg", "getrlimit", "inotify_init", "ioperm", "iopl", "lchown", "link", "lstat",
    "mkdir", "mknod", "modify_ldt", "open", "pause", "pipe", "poll", "putpmsg", "query_module",
    "readlink", "rename", "renameat", "rmdir", "security", "select", "set_thread_area", "setrlimit",
    "signalfd", "stat", "symlink", "sync_file_range", "sysfs", "time", "tuxcall", "unlink",
    "uretprobe", "uselib", "ustat", "utime", "utimes", "vfork", "vserver",
];
#[cfg(target_arch = "x86_64")]
const OLD_NAMES: &[&str] = &[];

/// 32-bit and other machines.
#[rustfmt::skip]
const FOREIGN: &[&str] = &[
    "_llseek", "_newselect", "arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush",
    "chown32", "clock_adjtime64", "clock_getres_time64", "clock_gettime64",
    "clock_nanosleep_time64", "clock_settime64", "fadvise64_64", "fchown32", "fcntl64", "fstat64",
    "fstatat64", "fstatfs64", "ftruncate64", "futex_time64", "getegid32", "geteuid32", "getgid32",
    "getgroups32", "getresgid32", "getresuid32", "getuid32", "io_pgetevents_time64", "ipc",
    "lchown32", "lstat64", "mmap2", "mq_timedreceive_time64", "mq_timedsend_time64", "nice",
    "oldfstat", "oldlstat", "oldstat", "olduname", "ppoll_time64", "pselect6_time64", "recv",
    "recvmmsg_time64", "riscv_flush_icache", "riscv_hwprobe", "rt_sigtimedwait_time64",
    "s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr",
    "sched_rr_get_interval_time64", "semtimedop_time64", "send", "sendfile64", "set_tls",
    "setfsgid32", "setfsuid32", "setgid32", "setgroups32", "setregid32", "setresgid32",
    "setresuid32", "setreuid32", "setuid32", "sigaction", "signal", "sigpending", "sigprocmask",
    "sigreturn", "sigsuspend", "socketcall", "stat64", "statfs64", "stime", "swapcontext",
    "sync_file_range2", "timer_gettime64", "timer_settime64", "timerfd_gettime64",
    "timerfd_settime64", "truncate64", "ugetrlimit", "umount", "utimensat_time64", "vm86",
    "vm86old", "waitpid",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_hold_every_call_of_the_lists() {
        for table in [COMMON, OLD] {
            assert!(table.is_sorted_by(|one, next| one.0 < next.0));
        }
        assert!(FOREIGN.is_sorted() && OLD_NAMES.is_sorted());
        assert_eq!(number_of("read"), u32::try_from(libc::SYS_read).ok());
        assert_eq!(number_of("file_setattr"), Some(469));
        assert_eq!(number_of("SYS_read"), None);
        assert!(is_foreign("clock_settime64") && !is_foreign("read") && !is_foreign("raed"));
        for (name, number) in crate::syscalls::BASELINE.iter().flat_map(|group| group.calls) {
            let name = name.strip_prefix("SYS_").expect("as in libc");
            assert_eq!(number_of(name), u32::try_from(*number).ok(), "{name}");
        }
    }
}
