//! Confines processes: a profile becomes a Landlock ruleset and a seccomp filter.
//!
//! Three kinds of process use it: pods (through `agent-runtime`), the control daemon, and tools that read
//! untrusted data in a [`jail`]. Both layers are always installed, Landlock first so that the filter need
//! not allow what only the installation takes, and both are hard: a kernel that cannot enforce what the
//! profile asks for is an error that names the missing feature, never a weaker sandbox, unless the profile
//! itself asks for [`Enforcement::BestEffort`]. Then what is missing is told.
//!
//! Entry points: [`Profile`], [`Profile::compile`], then [`Compiled::apply`] for a process that confines
//! itself by paths, or [`ImageRuleset::build`] and [`Compiled::restrict_in_container`] for a pod.
//!
//! Not here: namespaces, capabilities and cgroups (`agent-runtime`); addresses and ports of network peers,
//! which the datapath judges.

mod cache;
pub mod compare;
pub mod explain;
mod features;
mod image;
pub mod jail;
mod landlock;
mod names;
pub mod object;
pub mod oci;
mod paths;
mod report;
mod seccomp;
pub mod syscalls;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::cache::Cache;
pub use crate::features::{Enforcement, Feature};
pub use crate::image::{ExecutableIndex, ImageError, ImageRuleset, MAX_EXECUTABLES, is_code_path};
pub use crate::landlock::{LandlockError, landlock_abi};
pub use crate::names::{name_of as call_name, number_of as call_number};
pub use crate::paths::{Paths, system_mounts};
pub use crate::report::{Finding, LandlockOutcome, Layer, Report, Verdict};
pub use crate::seccomp::{
    Action, Alternative, CallRule, Compare, CompileError, Condition, EmitError, Filter, InstallError,
    SyscallPolicy, Width,
};

/// What a process may do. Plain data; [`Profile::compile`] turns it into something enforceable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Which system calls.
    pub syscalls: SyscallSet,
    /// Which files.
    pub filesystem: Filesystem,
    /// Whether TCP may be used at all. Limits also take away the system calls that get around them.
    pub tcp: Tcp,
    /// What stops at the edge of the sandbox. The presets of pods leave this to their namespaces: an exec
    /// session has a domain of its own, and with a scope for signals it cannot signal the pod.
    #[serde(default)]
    pub scopes: Scopes,
    /// What is taken away from `filesystem`.
    #[serde(default)]
    pub limits: FileLimits,
    /// What becomes of it on a kernel that lacks a part.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Landlock interface that the kernel must have at least.
    #[serde(default)]
    pub minimum_landlock: u32,
}

/// What does not leave the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scopes {
    /// Signals to processes outside.
    pub signals: bool,
    /// Connections to abstract unix sockets that were made outside.
    pub abstract_sockets: bool,
}

impl Scopes {
    /// Both.
    pub const ALL: Self = Self {
        signals: true,
        abstract_sockets: true,
    };

    /// Whether there is one.
    pub fn any(self) -> bool {
        self.signals || self.abstract_sockets
    }
}

/// Paths to which kinds of access are limited; absent means to what the rest of the profile grants. A path stands
/// for everything beneath it. None of the lists grants anything that the rest of the profile does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLimits {
    /// What is read, beside what the next two name.
    pub read: Option<Vec<PathBuf>>,
    /// What is written, created, renamed and removed.
    pub write: Option<Vec<PathBuf>>,
    /// What is executed.
    pub execute: Option<Vec<PathBuf>>,
    /// Devices that take commands.
    pub ioctl: Option<Vec<PathBuf>>,
}

/// One of the lists in [`syscalls`], or a policy that was made from one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyscallSet {
    /// What ordinary container images need.
    Baseline,
    /// The baseline without what makes written memory executable, and without rarely needed calls.
    Strict,
    /// The baseline, where what `Strict` would refuse is logged by the kernel's audit.
    Audit,
    /// A server that starts helper processes.
    Daemon,
    /// A tool without network.
    Jail,
    /// What this policy says.
    Policy(SyscallPolicy),
}

/// How files are judged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filesystem {
    /// By the shape of the container image; see [`ImageRuleset`].
    Image,
    /// As `Image`, and nothing of the image can be written. What is mounted over it can be written or
    /// executed, never both, and the kernel maps no code from where it can be written.
    ReadOnlyImage,
    /// By these rules; everything else is refused.
    Paths(Vec<PathRule>),
}

/// Whether Landlock stops TCP `bind` and `connect`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tcp {
    /// Left to the network namespace and the datapath.
    Unrestricted,
    /// No port may be bound, none connected to.
    Denied,
    /// These ports.
    Ports(TcpPorts),
}

/// Ports of TCP that a process may use. Landlock knows ports, not addresses; those are the datapath's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpPorts {
    /// What may be bound; absent means any. Port 0, which lets the kernel choose, counts as a port.
    pub bind: Option<BTreeSet<u16>>,
    /// What may be connected to; absent means any.
    pub connect: Option<BTreeSet<u16>>,
}

/// Grants `access` to `path` and everything beneath it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// A file or directory, opened when the profile is applied.
    pub path: PathBuf,
    /// What is granted.
    pub access: PathAccess,
    /// Whether it is fine that the path does not exist. Without it nothing is granted, so this never widens.
    #[serde(default)]
    pub optional: bool,
}

impl PathRule {
    /// A rule for a path that must exist.
    pub fn new(path: impl Into<PathBuf>, access: PathAccess) -> Self {
        Self {
            path: path.into(),
            access,
            optional: false,
        }
    }

    /// A rule for a path that may be missing.
    pub fn optional(path: impl Into<PathBuf>, access: PathAccess) -> Self {
        Self {
            path: path.into(),
            access,
            optional: true,
        }
    }
}

/// When a process of a container is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before anything of the container runs: what is mounted is where it was mounted.
    Start,
    /// Afterwards: whoever runs in the container may have renamed what leads to a mount.
    Later,
}

/// The combinations of rights that profiles use. None has both write and execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathAccess {
    /// List directories, read nothing.
    List,
    /// Read files, list directories.
    Read,
    /// Read, list and execute.
    ReadExecute,
    /// Read, list, and write to what exists; create and remove nothing.
    WriteExisting,
    /// Read, write, create, rename and remove; never execute.
    ReadWrite,
    /// As `ReadWrite`, and device commands (`ioctl`).
    Devices,
}

/// The paths of a daemon's own profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonPaths {
    /// Directories it may change.
    pub writable: Vec<PathBuf>,
    /// Files and directories it may read; missing ones are passed over.
    pub readable: Vec<PathBuf>,
    /// Programs it may execute, its own binary included if it starts itself again.
    pub executable: Vec<PathBuf>,
}

impl Profile {
    /// The default of every pod: any ordinary image runs under it.
    pub fn baseline() -> Self {
        Self::outline()
    }

    /// For pods that bring all their code in the image: what can be written cannot be executed, also not
    /// in memory, the image is read-only, and TCP is limited to `ports`. Just-in-time compilers do not
    /// run under it.
    pub fn strict(ports: TcpPorts) -> Self {
        Self {
            syscalls: SyscallSet::Strict,
            filesystem: Filesystem::ReadOnlyImage,
            tcp: Tcp::Ports(ports),
            ..Self::outline()
        }
    }

    /// What the constructors have in common.
    fn outline() -> Self {
        Self {
            syscalls: SyscallSet::Baseline,
            filesystem: Filesystem::Image,
            tcp: Tcp::Unrestricted,
            scopes: Scopes::default(),
            limits: FileLimits::default(),
            enforcement: Enforcement::Required,
            minimum_landlock: 0,
        }
    }

    /// The baseline, with a record of each call that [`Profile::strict`] would refuse: to find out whether a
    /// pod could run under it. What only Landlock and mounts would refuse is not told.
    pub fn audit() -> Self {
        Self {
            syscalls: SyscallSet::Audit,
            ..Self::baseline()
        }
    }

    /// Whether the image's files are read-only and writable mounts hold no code.
    pub fn is_read_only(&self) -> bool {
        self.filesystem == Filesystem::ReadOnlyImage
    }

    /// For a server of this project: it changes only its state, executes only named programs, and its
    /// signals do not leave its own processes.
    pub fn daemon(paths: &DaemonPaths) -> Self {
        let rules = |paths: &[PathBuf], access, optional| {
            let rule = move |path: &PathBuf| PathRule {
                path: path.clone(),
                access,
                optional,
            };
            paths.iter().map(rule).collect::<Vec<_>>()
        };
        let system = [
            PathRule::optional("/dev/null", PathAccess::WriteExisting),
            PathRule::optional("/dev/urandom", PathAccess::Read),
            PathRule::optional("/proc", PathAccess::Read),
            PathRule::optional("/sys/fs/cgroup", PathAccess::Read),
            PathRule::optional("/sys/kernel/mm/transparent_hugepage", PathAccess::Read),
        ];
        // A dynamically linked program names its libraries and their cache; the kernel executes the loader.
        let libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
            .map(|path| PathRule::optional(path, PathAccess::ReadExecute));
        let resolver = [
            "/etc/ld.so.cache",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/etc/nsswitch.conf",
        ]
        .map(|path| PathRule::optional(path, PathAccess::Read));
        let time_zones =
            ["/etc/localtime", "/usr/share/zoneinfo"].map(|path| PathRule::optional(path, PathAccess::Read));
        let rules = [
            rules(&paths.writable, PathAccess::ReadWrite, false),
            rules(&paths.readable, PathAccess::Read, true),
            rules(&paths.executable, PathAccess::ReadExecute, false),
            system.to_vec(),
            libraries.to_vec(),
            resolver.to_vec(),
            time_zones.to_vec(),
        ];
        Self {
            syscalls: SyscallSet::Daemon,
            filesystem: Filesystem::Paths(rules.concat()),
            tcp: Tcp::Unrestricted,
            scopes: Scopes::ALL,
            ..Self::outline()
        }
    }

    /// For a tool that handles untrusted data: these paths, no network, nothing outside to signal.
    pub fn jail(paths: Vec<PathRule>) -> Self {
        Self {
            syscalls: SyscallSet::Jail,
            filesystem: Filesystem::Paths(paths),
            tcp: Tcp::Denied,
            scopes: Scopes::ALL,
            ..Self::outline()
        }
    }

    /// What the profile needs of Landlock and a kernel with this interface lacks: nothing, unless the profile takes
    /// less. If it does not, the error names it.
    pub fn missing_on(&self, interface: u32) -> Result<Vec<Feature>, LandlockError> {
        Ok(features::plan(self, interface)?.missing)
    }

    /// The answers to system calls: those of the set, less the ways around the limits of TCP ports.
    pub fn syscall_policy(&self) -> SyscallPolicy {
        let policy = self.syscalls.policy();
        match seccomp::detours::refused(&self.tcp) {
            Some(refused) => policy.and(&refused),
            None => policy,
        }
    }

    /// Compiles the seccomp filter; touches nothing.
    pub fn compile(&self) -> Result<Compiled, CompileError> {
        Ok(Compiled {
            filter: Filter::compile(&self.syscall_policy())?,
            profile: self.clone(),
        })
    }
}

/// A profile that is ready to be applied.
#[derive(Debug, Clone)]
pub struct Compiled {
    filter: Filter,
    profile: Profile,
}

/// Why a process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Landlock confines the calling thread only, so others would stay free.
    #[error("a sandbox must be applied while the process has one thread; it has {threads}")]
    SeveralThreads {
        /// How many there are.
        threads: usize,
    },
    /// The number of threads could not be read, so they cannot be shown to be confined.
    #[error("cannot count the threads of this process in /proc/self/task")]
    CountThreads {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A profile for images was applied outside a container, or the reverse.
    #[error("the profile judges files {wanted}, but was applied to a process that needs the other way")]
    WrongKind {
        /// What the profile is for.
        wanted: &'static str,
    },
    /// The file and network rules could not be enforced.
    #[error("cannot enforce the Landlock ruleset")]
    Landlock {
        /// Which part failed.
        #[source]
        source: LandlockError,
    },
    /// The system call filter could not be enforced.
    #[error("cannot enforce the system call filter")]
    Seccomp {
        /// Which filter failed.
        #[source]
        source: InstallError,
    },
}

impl Compiled {
    /// Confines the calling process, for good: no_new_privs, then Landlock, then seccomp.
    ///
    /// Call it before any thread is started. On an error the process may be partly confined and must exit.
    pub fn apply(&self) -> Result<(), ApplyError> {
        let Filesystem::Paths(rules) = &self.profile.filesystem else {
            return Err(ApplyError::WrongKind {
                wanted: "by the shape of an image",
            });
        };
        demand_one_thread()?;
        let plan = features::plan(&self.profile, landlock_abi());
        let restricted = plan.and_then(|plan| {
            let ruleset = landlock::create(&self.profile, &plan)?;
            let ruleset = ruleset
                .map(|ruleset| landlock::add_paths(ruleset, rules))
                .transpose()?;
            landlock::restrict(ruleset, &plan)
        });
        self.restricted(restricted)?.install_filter()
    }

    /// Takes files, ports and scopes from a container process just before it executes the image's program. The
    /// filter comes last, with what this returns.
    ///
    /// `mounts` are the paths, inside the container, of what is mounted over the image; `moment` says whether they
    /// must be there. The caller is a process of a single-threaded runtime, inside the container's root.
    pub fn restrict_in_container(
        &self,
        image: &ImageRuleset,
        mounts: &[PathRule],
        moment: Moment,
    ) -> Result<Restricted<'_>, ApplyError> {
        if let Filesystem::Paths(_) = self.profile.filesystem {
            return Err(ApplyError::WrongKind {
                wanted: "by a list of paths",
            });
        }
        let rulesets = image.rulesets(mounts, moment);
        self.restricted(rulesets.and_then(|(rulesets, plan)| landlock::restrict(rulesets, plan)))
    }

    /// The profile this was compiled from.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    fn restricted(
        &self,
        landlock: Result<LandlockOutcome, LandlockError>,
    ) -> Result<Restricted<'_>, ApplyError> {
        let landlock = landlock.map_err(|source| ApplyError::Landlock { source })?;
        Ok(Restricted {
            filter: &self.filter,
            landlock,
        })
    }
}

/// A process that Landlock restricts, and whose system calls are not filtered yet.
#[derive(Debug)]
#[must_use = "the system calls are not filtered yet"]
pub struct Restricted<'a> {
    filter: &'a Filter,
    landlock: LandlockOutcome,
}

impl Restricted<'_> {
    /// What the kernel answered.
    pub fn landlock(&self) -> &LandlockOutcome {
        &self.landlock
    }

    /// Sets no_new_privs and filters the system calls of the calling thread, for good.
    pub fn install_filter(self) -> Result<(), ApplyError> {
        self.filter
            .install()
            .map_err(|source| ApplyError::Seccomp { source })
    }
}

impl ApplyError {
    /// The layer for want of which the process is not confined.
    pub fn layer(&self) -> Layer {
        match self {
            Self::SeveralThreads { .. } | Self::CountThreads { .. } | Self::WrongKind { .. } => {
                Layer::Seccomp
            }
            Self::Landlock { .. } => Layer::Landlock,
            Self::Seccomp { source } => match source {
                InstallError::NoNewPrivileges { .. } => Layer::NoNewPrivileges,
                InstallError::Refused { .. } => Layer::Seccomp,
            },
        }
    }
}

fn demand_one_thread() -> Result<(), ApplyError> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|source| ApplyError::CountThreads { source })?;
    match tasks.count() {
        1 => Ok(()),
        threads => Err(ApplyError::SeveralThreads { threads }),
    }
}
