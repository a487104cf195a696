//! The escape drills as data: what is attempted, and which layer stops it. `docs/drills.md` is written from
//! this, and each row is proved by `main.rs`.

use self::Layer::{
    Capabilities, CgroupFiles, IpcNamespace, Landlock, LogRotation, MaskedPath, MemoryLimit, MountNamespace,
    NetworkNamespace, NoExecMount, NoNewPrivileges, OwnAccount, PidNamespace, PidsLimit, ReadOnlyMount,
    RootedPaths, SealedMemory, Seccomp, TmpfsFiles, TmpfsSize, UserNamespace,
};

/// What stops an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    Seccomp,
    Landlock,
    Capabilities,
    NoNewPrivileges,
    UserNamespace,
    PidNamespace,
    NetworkNamespace,
    IpcNamespace,
    MountNamespace,
    ReadOnlyMount,
    NoExecMount,
    MaskedPath,
    CgroupFiles,
    SealedMemory,
    PidsLimit,
    MemoryLimit,
    TmpfsSize,
    TmpfsFiles,
    LogRotation,
    RootedPaths,
    OwnAccount,
}

impl Layer {
    /// For the table.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Seccomp => "seccomp",
            Landlock => "Landlock",
            Capabilities => "dropped capabilities",
            NoNewPrivileges => "no_new_privs",
            UserNamespace => "user namespace",
            PidNamespace => "pid namespace",
            NetworkNamespace => "network namespace",
            IpcNamespace => "IPC namespace",
            MountNamespace => "mount namespace",
            ReadOnlyMount => "read-only mount",
            NoExecMount => "noexec mount",
            MaskedPath => "masked path",
            CgroupFiles => "no writable cgroup files",
            SealedMemory => "memory sealed against execution",
            PidsLimit => "pids limit",
            MemoryLimit => "memory limit",
            TmpfsSize => "size of the tmpfs",
            TmpfsFiles => "number of files of the tmpfs",
            LogRotation => "log rotation",
            RootedPaths => "paths resolved inside the root",
            OwnAccount => "an account of the pod's own",
        }
    }

    /// What the table says about the proof.
    pub(crate) fn proof(self) -> &'static str {
        match self {
            Seccomp => "the answer changes with the filter's error number, or the filter kills",
            Landlock => "EACCES, and another answer without Landlock and seccomp",
            Capabilities => "no longer refused with all capabilities of the pod's user namespace",
            NoNewPrivileges => "no longer refused without no_new_privs; or taking it back is",
            UserNamespace => "refused to the pod's root even with all its capabilities, and no other layer",
            MountNamespace => {
                "not found from inside; files are there for the host, device nodes are not made"
            }
            PidNamespace | NetworkNamespace | IpcNamespace => {
                "it is there for the host, or for the other pod, and is not found from inside"
            }
            ReadOnlyMount => "EROFS",
            NoExecMount => {
                "EACCES with and without Landlock, on a mount with that flag; EPERM to map code from it"
            }
            MaskedPath => "there is nothing to read",
            CgroupFiles => "none can be opened for writing, with and without the other layers",
            SealedMemory => "EACCES, with and without Landlock and seccomp",
            PidsLimit => "EAGAIN at the limit",
            MemoryLimit => "the container is killed and `OOMKilled` is reported",
            TmpfsSize => "ENOSPC at the size",
            TmpfsFiles => "ENOSPC at the number, with room left",
            LogRotation => "what is on the disk stays below size times number of files",
            RootedPaths => "the host's directory is as before, and nothing in it is seen",
            OwnAccount => "EMFILE or EAGAIN for the pod, and for nobody else",
        }
    }
}

/// One attempt.
#[derive(Debug)]
pub(crate) struct Drill {
    pub(crate) name: &'static str,
    /// What an attacker wants.
    pub(crate) attempt: &'static str,
    pub(crate) stopped_by: Layer,
    /// What would stop it if Landlock and seccomp were not there, where that does not depend on the kernel.
    pub(crate) behind: Option<Layer>,
}

/// Drills of one kind.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) title: &'static str,
    pub(crate) drills: &'static [Drill],
}

const fn drill(name: &'static str, attempt: &'static str, stopped_by: Layer) -> Drill {
    Drill {
        name,
        attempt,
        stopped_by,
        behind: None,
    }
}

const fn twice(name: &'static str, attempt: &'static str, stopped_by: Layer, behind: Layer) -> Drill {
    Drill {
        name,
        attempt,
        stopped_by,
        behind: Some(behind),
    }
}

pub(crate) const CORPUS: &[Family] = &[
    Family {
        title: "Namespaces and mounts",
        drills: &[
            drill(
                "unshare-user",
                "a user namespace of its own, the door to code meant for root",
                Seccomp,
            ),
            twice(
                "unshare-mount",
                "a mount namespace of its own",
                Seccomp,
                Capabilities,
            ),
            twice(
                "unshare-network",
                "a network namespace of its own",
                Seccomp,
                Capabilities,
            ),
            drill(
                "clone3",
                "namespaces by the call whose flags no filter can read",
                Seccomp,
            ),
            drill(
                "clone-parent",
                "a child of its parent, which may be the shim: that alone could take its death away",
                Seccomp,
            ),
            twice(
                "setns-own",
                "join a namespace through /proc",
                Seccomp,
                Capabilities,
            ),
            twice("sethostname", "another host name", Seccomp, Capabilities),
            twice("mount-tmpfs", "mount a file system", Seccomp, Capabilities),
            twice(
                "mount-bind",
                "mount the root somewhere else",
                Seccomp,
                Capabilities,
            ),
            twice("mount-remount", "make /proc/sys writable", Seccomp, Capabilities),
            twice(
                "umount-mask",
                "take the mask off a file of /proc",
                Seccomp,
                Capabilities,
            ),
            twice("fsopen", "mount by the new interface", Seccomp, Capabilities),
            twice("open-tree-clone", "copy a tree of mounts", Seccomp, Capabilities),
            twice(
                "mount-setattr",
                "change the flags of a mount",
                Seccomp,
                Capabilities,
            ),
            twice("pivot-root", "another root", Seccomp, Capabilities),
        ],
    },
    Family {
        title: "Files of the host",
        drills: &[
            drill("host-file", "a file of the host by its path", MountNamespace),
            drill(
                "host-file-symlink",
                "the same through a link in a volume",
                MountNamespace,
            ),
            drill("host-file-dotdot", "the same by climbing up", MountNamespace),
            drill(
                "host-file-proc-root",
                "the same through /proc/self/root",
                MountNamespace,
            ),
            drill(
                "host-file-chroot",
                "the same by the second root below the first",
                MountNamespace,
            ),
            drill(
                "open-by-handle",
                "any file of the file system by its number (\"shocker\")",
                Seccomp,
            ),
            drill("volume-read-only", "write to a read-only volume", ReadOnlyMount),
            drill(
                "chown-outside",
                "give a file to a user outside of the pod",
                UserNamespace,
            ),
            drill(
                "mount-target-symlink",
                "an image whose links lead a volume's mount point to the host",
                RootedPaths,
            ),
            drill(
                "session-directory",
                "make a link to what the shim has open of the directory that sessions begin in",
                RootedPaths,
            ),
            drill(
                "subpath-race",
                "swap a part of a volume for a link to the host while another container with that `subPath` starts",
                RootedPaths,
            ),
        ],
    },
    Family {
        title: "/proc, /sys and control groups",
        drills: &[
            drill(
                "proc-core-pattern",
                "a program that the host runs at the next crash",
                UserNamespace,
            ),
            drill(
                "proc-modprobe",
                "a program that the host runs to load a module",
                UserNamespace,
            ),
            drill(
                "proc-host-setting",
                "a setting of the whole machine",
                UserNamespace,
            ),
            drill("proc-sysrq", "reboot through /proc/sysrq-trigger", UserNamespace),
            drill("proc-kcore", "the kernel's memory", MaskedPath),
            drill("proc-keys", "the keys of others", MaskedPath),
            drill("proc-timer-list", "kernel addresses", MaskedPath),
            drill(
                "proc-oom-score",
                "never be chosen when memory is short",
                UserNamespace,
            ),
            drill("proc-uid-map", "another map of users", UserNamespace),
            drill(
                "sys-uevent-helper",
                "a program that the host runs for devices",
                UserNamespace,
            ),
            drill("sys-firmware", "firmware tables", MaskedPath),
            drill("sys-debug", "the kernel's debugging files", MaskedPath),
            drill("sys-notes", "which kernel runs, to the build", Landlock),
            twice(
                "mount-cgroup",
                "mount control groups of version 1, for their release agent",
                Seccomp,
                Capabilities,
            ),
            twice(
                "mount-cgroup2",
                "mount control groups of version 2",
                Seccomp,
                Capabilities,
            ),
            drill(
                "cgroup-release-agent",
                "a program that the host runs when a group is empty",
                CgroupFiles,
            ),
            drill("cgroup-limits", "lift its own limits", CgroupFiles),
            drill("cgroup-move", "leave its control group", CgroupFiles),
        ],
    },
    Family {
        title: "Devices",
        drills: &[
            twice(
                "device-node-disk",
                "make a node for the host's disk",
                Landlock,
                UserNamespace,
            ),
            twice(
                "device-node-memory",
                "make a node for the machine's memory",
                Landlock,
                UserNamespace,
            ),
            drill("device-memory", "/dev/mem", MountNamespace),
            drill("device-log", "/dev/kmsg", MountNamespace),
            drill("device-kvm", "/dev/kvm", MountNamespace),
            drill("device-fuse", "/dev/fuse", MountNamespace),
            #[cfg(target_arch = "x86_64")]
            drill("iopl", "the machine's ports, by level", Seccomp),
            #[cfg(target_arch = "x86_64")]
            drill("ioperm", "the machine's ports, one by one", Seccomp),
        ],
    },
    Family {
        title: "Other processes",
        drills: &[
            drill("signal-host", "a signal to a process of the host", PidNamespace),
            drill("signal-pod", "a signal to a process of another pod", PidNamespace),
            drill("pidfd-host", "hold a process of the host", PidNamespace),
            drill(
                "memory-of-pod",
                "the memory of another pod's process",
                PidNamespace,
            ),
            drill(
                "environment-of-host",
                "the environment of a process of the host",
                PidNamespace,
            ),
            drill("ptrace-attach", "trace another process", Seccomp),
            drill("process-vm-readv", "read another process's memory", Seccomp),
            drill("process-vm-writev", "write another process's memory", Seccomp),
            drill("pidfd-getfd", "take a descriptor out of another process", Seccomp),
            drill("kcmp", "compare what processes share", Seccomp),
        ],
    },
    Family {
        title: "Networks and memory beside the pod",
        drills: &[
            drill(
                "abstract-socket-host",
                "an abstract socket of the host",
                NetworkNamespace,
            ),
            drill(
                "abstract-socket-pod",
                "an abstract socket of another pod",
                NetworkNamespace,
            ),
            drill(
                "tcp-host-loopback",
                "a server on the host's loopback",
                NetworkNamespace,
            ),
            drill("shared-memory-host", "shared memory of the host", IpcNamespace),
            drill("add-network-link", "an interface of its own", Capabilities),
            drill("socket-raw", "packets with any header", Capabilities),
            twice("socket-packet", "all packets of a link", Seccomp, Capabilities),
            twice(
                "socket-packet-old",
                "the same as a type of IPv4 sockets, which the kernel still takes",
                Seccomp,
                Capabilities,
            ),
            drill("socket-alg", "the kernel's crypto interface", Seccomp),
            drill("socket-vsock", "the machine's hypervisor", Seccomp),
            twice(
                "socket-xdp",
                "packets past the network stack",
                Seccomp,
                Capabilities,
            ),
            drill(
                "socketpair-tipc",
                "a rare family by the call that makes two sockets",
                Seccomp,
            ),
        ],
    },
    Family {
        title: "Parts of the kernel that were written for root",
        drills: &[
            drill("keyctl", "the session's keyring", Seccomp),
            drill("add-key", "a key", Seccomp),
            drill("request-key", "a key of someone else", Seccomp),
            drill("bpf", "a program in the kernel", Seccomp),
            drill("perf-event-open", "performance counters", Seccomp),
            drill("io-uring", "work that no filter sees", Seccomp),
            drill("userfaultfd", "stop the kernel in the middle of a copy", Seccomp),
            drill("init-module", "load a module", Seccomp),
            drill("finit-module", "load a module from a file", Seccomp),
            drill("delete-module", "unload a module", Seccomp),
            drill("kexec-load", "another kernel", Seccomp),
            twice("reboot", "reboot", Seccomp, Capabilities),
            drill("swapon", "swap to a file of its own", Seccomp),
            twice("acct", "process accounting", Seccomp, UserNamespace),
            drill("quotactl", "disk quotas", Seccomp),
            drill("syslog", "the kernel's log", Seccomp),
            twice("settimeofday", "another time", Seccomp, UserNamespace),
            drill("fanotify", "watch a file system", Seccomp),
            drill("lookup-dcookie", "paths by profiling cookies", Seccomp),
            twice(
                "vhangup",
                "hang up the terminal of others",
                Seccomp,
                UserNamespace,
            ),
        ],
    },
    Family {
        title: "Around the filter",
        drills: &[
            drill("x32-call", "a call by its x32 number", Seccomp),
            #[cfg(target_arch = "x86_64")]
            drill("compat-call", "a call by the 32-bit entry", Seccomp),
            drill("unknown-call", "a call newer than the filter", Seccomp),
            drill("read-implies-exec", "all memory executable", Seccomp),
            drill("fixed-addresses", "no random addresses", Seccomp),
        ],
    },
    Family {
        title: "Code",
        drills: &[
            drill("code-overwrite", "write to a program of the image", Landlock),
            drill("code-truncate", "empty a program of the image", Landlock),
            drill("code-remove", "remove a program of the image", Landlock),
            drill("code-create", "a new program in /bin", Landlock),
            drill("code-smuggle", "the same by renaming one from /tmp", Landlock),
            drill("library-overwrite", "write to a library of the image", Landlock),
            drill("top-create", "a new directory in /", Landlock),
            drill(
                "self-exe-overwrite",
                "overwrite the program of a process through /proc (CVE-2019-5736)",
                Landlock,
            ),
            drill("exec-tmp", "run a program that was written to /tmp", Landlock),
            drill(
                "exec-volume",
                "run a program that was written to a volume",
                Landlock,
            ),
            drill(
                "exec-app",
                "run a program that was written beside the image's own",
                Landlock,
            ),
            drill(
                "exec-replaced",
                "run a program that took the place of the image's own",
                Landlock,
            ),
            drill(
                "exec-script",
                "run a script that was written to /tmp, by its first line",
                Landlock,
            ),
            drill("exec-unlinked", "run a file that has no name any more", Landlock),
            drill(
                "exec-shm",
                "run a program that was written to shared memory",
                NoExecMount,
            ),
            drill(
                "exec-volume-linked",
                "run a program that was written to a volume whose mount point a link of the image leads into a code directory",
                NoExecMount,
            ),
            drill("memfd-plain", "an anonymous file that can be executed", Seccomp),
            drill(
                "exec-memfd-sealed",
                "execute an anonymous file all the same",
                SealedMemory,
            ),
        ],
    },
    Family {
        title: "Privileges",
        drills: &[
            drill(
                "setuid-program",
                "another user by a set-uid program of the image",
                NoNewPrivileges,
            ),
            drill(
                "lift-no-new-privs",
                "take back that nothing can be gained",
                NoNewPrivileges,
            ),
            drill(
                "setuid-outside",
                "become a user outside of the pod",
                UserNamespace,
            ),
            drill("more-capabilities", "a capability that was dropped", Capabilities),
            drill("raise-limits", "raise a hard resource limit", UserNamespace),
            drill("real-time-priority", "run before everyone else", UserNamespace),
            drill(
                "negative-niceness",
                "a larger share of the processors",
                UserNamespace,
            ),
        ],
    },
    Family {
        title: "Using up what is shared",
        drills: &[
            drill("fork-bomb", "all process numbers", PidsLimit),
            drill("memory-bomb", "all memory", MemoryLimit),
            drill("fill-shared-memory", "all memory, through /dev/shm", TmpfsSize),
            drill("fill-dev", "all memory, through /dev", TmpfsSize),
            drill(
                "fill-memory-volume",
                "all memory, through an emptyDir in memory",
                TmpfsSize,
            ),
            drill(
                "inode-bomb",
                "all memory, through a million empty files in /dev/shm",
                TmpfsFiles,
            ),
            drill("inode-bomb-dev", "the same in /dev", TmpfsFiles),
            drill(
                "inode-bomb-memory-volume",
                "the same in an emptyDir in memory",
                TmpfsFiles,
            ),
            drill("log-flood", "the disk, through standard output", LogRotation),
            drill(
                "inotify-instances",
                "all instances of inotify that one user of the node may have, with which others watch files",
                OwnAccount,
            ),
            drill(
                "queued-signals",
                "all signals that may be queued for one user of the node, of which timers of others need some",
                OwnAccount,
            ),
        ],
    },
];

/// What the baseline leaves open and `strict` stops.
pub(crate) const STRICT: Family = Family {
    title: "Under the profile `strict` only",
    drills: &[
        drill(
            "map-writable-code",
            "memory that is writable and executable",
            Seccomp,
        ),
        drill(
            "make-code",
            "memory that is written, then made executable",
            Seccomp,
        ),
        drill(
            "map-anonymous-file",
            "a sealed anonymous file, written and mapped as code",
            Seccomp,
        ),
        drill(
            "map-shared-code-fork",
            "shared memory that is executable here and written by a child",
            Seccomp,
        ),
        drill(
            "map-shared-code-remap",
            "the same by a second mapping of this process (mremap)",
            Seccomp,
        ),
        drill("map-shared-code-zero", "the same of /dev/zero", Seccomp),
        drill("attach-code", "shared memory as code", Seccomp),
        drill(
            "exec-descriptor",
            "run a file by its descriptor, with or without a name",
            Seccomp,
        ),
        drill(
            "make-code-by-memory-file",
            "write to its own code through /proc/self/mem",
            Landlock,
        ),
        drill(
            "map-volume",
            "a library that was written to a volume",
            NoExecMount,
        ),
        drill(
            "loader-volume",
            "a program that was written to a volume, by the image's own loader",
            NoExecMount,
        ),
        drill(
            "map-temporary-file",
            "a library that was written to /tmp of the image",
            ReadOnlyMount,
        ),
        drill("write-image", "a file of the image", ReadOnlyMount),
        drill(
            "bind-other",
            "serve on a port that the pod does not declare",
            Landlock,
        ),
        drill(
            "connect-other",
            "connect to a port that is not among the allowed ones",
            Landlock,
        ),
        drill(
            "bind-multipath",
            "serve on such a port with Multipath TCP, which Landlock does not judge",
            Seccomp,
        ),
        drill("connect-multipath", "connect to one with Multipath TCP", Seccomp),
        drill("connect-sctp", "a stream of another protocol with ports", Seccomp),
        drill(
            "connect-sendto",
            "connect to one while sending (MSG_FASTOPEN), which Landlock does not judge",
            Seccomp,
        ),
        drill("connect-sendmsg", "the same with sendmsg", Seccomp),
        drill("connect-sendmmsg", "the same with sendmmsg", Seccomp),
        drill(
            "connect-later",
            "connect to one with the first byte (TCP_FASTOPEN_CONNECT)",
            Landlock,
        ),
        drill(
            "become-other-protocol",
            "make a TCP socket one of a protocol that Landlock does not judge (TCP_ULP)",
            Seccomp,
        ),
        drill(
            "raw-tcp",
            "a TCP of its own, with NET_RAW, from and to any port",
            Seccomp,
        ),
        drill(
            "raw-multipath",
            "the same by a number of which the header keeps a byte",
            Seccomp,
        ),
        drill("raw-any", "the same of whatever the header says", Seccomp),
        drill(
            "raw-header",
            "the same by a socket for ICMP that sends headers made by hand",
            Seccomp,
        ),
    ],
};

/// What a profile's lists and scopes stop, and the baseline allows.
pub(crate) const PROFILE: Family = Family {
    title: "Under a SandboxProfile with lists and scopes only",
    drills: &[
        drill("read-unlisted", "read a file that is not listed", Landlock),
        drill("list-unlisted", "list a directory that is not listed", Landlock),
        drill(
            "write-unlisted",
            "create a file where none is to be written",
            Landlock,
        ),
        drill(
            "remove-unlisted",
            "remove a file where none is to be written",
            Landlock,
        ),
        drill(
            "run-unlisted",
            "run a program of the image that is not listed",
            Landlock,
        ),
        drill("ioctl-device", "a command to a device that takes none", Landlock),
        drill(
            "abstract-socket-container",
            "connect to an abstract socket of another container of the pod",
            Landlock,
        ),
    ],
};
