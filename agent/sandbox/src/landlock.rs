//! Rulesets: which rights each kind of access means, and their installation without any fallback.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use landlock::{
    AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxAttributes, StatxFlags,
};

use crate::features::{Feature, Plan, linux_of};
use crate::image::is_code_path;
use crate::report::LandlockOutcome;
use crate::{FileLimits, Moment, PathAccess, PathRule, Profile, Tcp};

/// Rights that mean something on a file that is not a directory.
const ON_FILES: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{Execute | WriteFile | ReadFile | Truncate | IoctlDev});

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// What changes a file or a directory.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    WriteFile | Truncate | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym
    | MakeChar | MakeBlock | Refer
});

/// Why a ruleset could not be made or enforced.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The running kernel lacks what the profile needs.
    #[error(
        "the kernel lacks {}: Landlock interface {needed} (Linux {}) is needed, this kernel has {found} (0 means \
         Landlock is off: add landlock to the lsm= boot parameter)",
        listed(features),
        linux_of(*needed)
    )]
    Missing {
        /// What is missing.
        features: Vec<Feature>,
        /// The interface version that is needed.
        needed: u32,
        /// What the kernel has.
        found: u32,
    },
    /// The kernel refused to make the ruleset.
    #[error("cannot create a Landlock ruleset")]
    Create {
        /// What the library said.
        #[source]
        source: RulesetError,
    },
    /// A path of the profile cannot be opened.
    #[error("cannot open {} for a Landlock rule", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a rule.
    #[error("cannot add the Landlock rule for {}", path.display())]
    Rule {
        /// The path.
        path: PathBuf,
        /// What the library said.
        #[source]
        source: RulesetError,
    },
    /// The ruleset could not be handed to another process.
    #[error("cannot duplicate the Landlock ruleset")]
    Duplicate {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A volume lies where its files could be executed.
    #[error(
        "{} lies in the code directory {} without the flag noexec: its files would be executable; a link in another volume \
         leads its mount point there",
        path.display(),
        found.display()
    )]
    InCode {
        /// Where it was to be mounted.
        path: PathBuf,
        /// Where it is.
        found: PathBuf,
    },
    /// What was mounted over the image is not there.
    #[error("nothing is mounted at {}: a link in a volume leads its mount point elsewhere", path.display())]
    NotMounted {
        /// Where it was to be mounted.
        path: PathBuf,
    },
    /// The kernel refused to enforce the ruleset.
    #[error("cannot restrict this process with Landlock")]
    Restrict {
        /// What the library said.
        #[source]
        source: RulesetError,
    },
    /// The kernel took the ruleset but left part of it out.
    #[error("the kernel enforces only part of the Landlock ruleset")]
    Partial,
}

/// The Landlock interface version of the running kernel; 0 when Landlock is absent or off.
pub fn landlock_abi() -> u32 {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes a null attribute of size zero and only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// A ruleset that grows, and the rights on files that it judges.
#[derive(Debug)]
pub(crate) struct Rules {
    ruleset: RulesetCreated,
    rights: BitFlags<AccessFs>,
}

impl Rules {
    pub(crate) fn try_clone(&self) -> Result<Self, LandlockError> {
        let ruleset = self
            .ruleset
            .try_clone()
            .map_err(|source| LandlockError::Duplicate { source })?;
        Ok(Self {
            ruleset,
            rights: self.rights,
        })
    }
}

/// A ruleset for no path yet: it refuses all files, and TCP but for the ports that are named. Nothing on a kernel
/// without Landlock, which `plan` has accepted.
pub(crate) fn create(profile: &Profile, plan: &Plan) -> Result<Option<Rules>, LandlockError> {
    if !plan.has(Feature::Files) {
        return Ok(None);
    }
    let rights = plan.file_rights();
    let none = BTreeSet::new();
    let build = || {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(rights)?;
        let (bind, connect) = match &profile.tcp {
            _ if !plan.has(Feature::TcpPorts) => (None, None),
            Tcp::Unrestricted => (None, None),
            Tcp::Denied => (Some(&none), Some(&none)),
            Tcp::Ports(ports) => (ports.bind.as_ref(), ports.connect.as_ref()),
        };
        let limited = [(AccessNet::BindTcp, bind), (AccessNet::ConnectTcp, connect)];
        let limited = limited.map(|(access, ports)| ports.map(|ports| (access, ports)));
        for (access, _) in limited.iter().flatten() {
            ruleset = ruleset.handle_access(*access)?;
        }
        if plan.has(Feature::Scopes) {
            let wanted = [
                (profile.scopes.signals, Scope::Signal),
                (profile.scopes.abstract_sockets, Scope::AbstractUnixSocket),
            ];
            for (_, scope) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
                ruleset = ruleset.scope(scope)?;
            }
        }
        let mut ruleset = ruleset.create()?;
        for (access, ports) in limited.into_iter().flatten() {
            for port in ports {
                ruleset = ruleset.add_rule(NetPort::new(*port, access))?;
            }
        }
        Ok(ruleset)
    };
    let ruleset = build().map_err(|source| LandlockError::Create { source })?;
    Ok(Some(Rules { ruleset, rights }))
}

/// A second ruleset, which takes from the first what the lists do not name; nothing if there are no lists.
pub(crate) fn create_less(limits: &FileLimits, plan: &Plan) -> Result<Option<Rules>, LandlockError> {
    let lists = [
        (&limits.read, READ),
        (&limits.write, WRITE),
        (&limits.execute, AccessFs::Execute.into()),
        (&limits.ioctl, AccessFs::IoctlDev.into()),
    ];
    let listed = lists.into_iter().filter(|(list, _)| list.is_some());
    let rights = listed.fold(BitFlags::EMPTY, |all, (_, rights)| all | rights) & plan.file_rights();
    if rights.is_empty() {
        return Ok(None);
    }
    // A ruleset that does not judge moves refuses all of them.
    let rights = rights | (plan.file_rights() & AccessFs::Refer);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(rights)
        .and_then(Ruleset::create)
        .map_err(|source| LandlockError::Create { source })?;
    Ok(Some(Rules { ruleset, rights }))
}

/// What the lists grant on each of their paths.
pub(crate) fn grants(limits: &FileLimits) -> impl Iterator<Item = (&Path, BitFlags<AccessFs>)> {
    let lists = [
        (&limits.read, READ),
        (&limits.write, READ | WRITE),
        (&limits.execute, READ | AccessFs::Execute),
        (&limits.ioctl, AccessFs::IoctlDev.into()),
    ];
    // Where the lists do not limit writing, they do not limit moves.
    let moves = limits
        .write
        .is_none()
        .then(|| (Path::new("/"), AccessFs::Refer.into()));
    let listed = lists.into_iter().flat_map(|(list, rights)| {
        let paths = list.iter().flatten();
        paths.map(move |path| (path.as_path(), rights))
    });
    listed.chain(moves)
}

/// Adds rules for paths of this process's own view, following symbolic links.
pub(crate) fn add_paths(mut ruleset: Rules, rules: &[PathRule]) -> Result<Rules, LandlockError> {
    for rule in rules {
        match open(&rule.path, OFlags::PATH) {
            Ok(fd) => ruleset = add(ruleset, fd, rights(rule.access), &rule.path)?,
            Err(rustix::io::Errno::NOENT) if rule.optional => {}
            Err(errno) => {
                return Err(LandlockError::Open {
                    path: rule.path.clone(),
                    source: errno.into(),
                });
            }
        }
    }
    Ok(ruleset)
}

/// Adds rules for what is mounted over an image, from inside the container.
///
/// What is hidden from this user gets no rule and stays refused. So does, once the container runs, what is missing or no mount:
/// whoever runs in it renames what leads to a mount, and puts a link to something else in its place. Before that a mount that is
/// not where it was made is an error: a container would start that can use nothing of it. A link at the end of the path is not
/// followed: it belongs to the image or to whoever wrote to it since.
pub(crate) fn add_mounts(
    mut ruleset: Rules,
    rules: &[PathRule],
    moment: Moment,
) -> Result<Rules, LandlockError> {
    let must_be_there = |rule: &PathRule| moment == Moment::Start && !rule.optional;
    for rule in rules {
        match open(&rule.path, OFlags::PATH | OFlags::NOFOLLOW) {
            // Those are parts of what the kernel shows of itself, below no name that can be changed.
            Ok(fd) if rule.optional || is_own_mount(&fd, rule)? => {
                ruleset = add(ruleset, fd, rights(rule.access), &rule.path)?;
            }
            Ok(_) | Err(rustix::io::Errno::NOENT) if must_be_there(rule) => {
                let path = rule.path.clone();
                return Err(LandlockError::NotMounted { path });
            }
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => {}
            Err(errno) => {
                return Err(LandlockError::Open {
                    path: rule.path.clone(),
                    source: errno.into(),
                });
            }
        }
    }
    Ok(ruleset)
}

/// Whether what was found at the path of a rule is something that is mounted at that very path. Wherever it is, its files must not
/// be executable by the rule of a code directory that it lies in.
fn is_own_mount(fd: &OwnedFd, rule: &PathRule) -> Result<bool, LandlockError> {
    let failed = |errno: rustix::io::Errno| LandlockError::Open {
        path: rule.path.clone(),
        source: errno.into(),
    };
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE).map_err(failed)?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    let link = rustix::fs::readlinkat(proc_descriptors()?, fd.as_raw_fd().to_string(), Vec::new());
    let found = PathBuf::from(OsString::from_vec(link.map_err(failed)?.into_bytes()));
    let flags = rustix::fs::fstatvfs(fd).map_err(failed)?.f_flag;
    let is_for_code = rule.access == PathAccess::ReadExecute || flags.contains(StatVfsMountFlags::NOEXEC);
    if is_code_path(&found) && !is_for_code {
        return Err(LandlockError::InCode {
            path: rule.path.clone(),
            found,
        });
    }
    // What a link led to is another's mount, or the system's, or not where the container looks for it.
    Ok(found == rule.path)
}

/// The kernel's own list of this process's descriptors, not what somebody mounted over it.
fn proc_descriptors() -> Result<OwnedFd, LandlockError> {
    let path = Path::new("/proc/self/fd");
    let failed = |errno: rustix::io::Errno| LandlockError::Open {
        path: path.into(),
        source: errno.into(),
    };
    let descriptors = open(path, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
    let kind = rustix::fs::fstatfs(&descriptors).map_err(failed)?.f_type;
    match kind == rustix::fs::PROC_SUPER_MAGIC {
        true => Ok(descriptors),
        false => Err(failed(rustix::io::Errno::NODEV)),
    }
}

/// Adds the grants of the lists on what is mounted over the image, from inside the container. Their links belong to
/// whoever writes there, so that a path with one in it grants nothing, as one that is missing.
pub(crate) fn add_mounted_grants(
    mut ruleset: Rules,
    limits: &FileLimits,
    mounts: &[PathRule],
) -> Result<Rules, LandlockError> {
    let is_mounted = |path: &Path| mounts.iter().any(|mount| path.starts_with(&mount.path));
    for (path, rights) in grants(limits).filter(|(path, _)| is_mounted(path)) {
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve) {
            Ok(fd) => ruleset = add(ruleset, fd, rights, path)?,
            Err(errno) if grants_nothing(errno) => {}
            Err(errno) => {
                return Err(LandlockError::Open {
                    path: path.into(),
                    source: errno.into(),
                });
            }
        }
    }
    Ok(ruleset)
}

/// Whether a path that cannot be opened for this reason is one that there is nothing to grant on.
pub(crate) fn grants_nothing(errno: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(
        errno,
        Errno::NOENT | Errno::ACCESS | Errno::LOOP | Errno::NOTDIR | Errno::XDEV
    )
}

/// Adds one rule for an open file or directory, with the rights that make sense for its type.
pub(crate) fn add(
    mut ruleset: Rules,
    fd: OwnedFd,
    rights: BitFlags<AccessFs>,
    path: &Path,
) -> Result<Rules, LandlockError> {
    let open_error = |errno: rustix::io::Errno| LandlockError::Open {
        path: path.into(),
        source: errno.into(),
    };
    let rights = rights & ruleset.rights;
    let rights = match file_type(fd.as_fd()).map_err(open_error)? {
        FileType::Directory => rights,
        _ => rights & ON_FILES,
    };
    if rights.is_empty() {
        return Ok(ruleset);
    }
    ruleset.ruleset = ruleset
        .ruleset
        .add_rule(PathBeneath::new(fd, rights))
        .map_err(|source| LandlockError::Rule {
            path: path.into(),
            source,
        })?;
    Ok(ruleset)
}

/// Restricts this thread by each of the rulesets, for good, and tells what the kernel answered.
pub(crate) fn restrict(
    rulesets: impl IntoIterator<Item = Rules>,
    plan: &Plan,
) -> Result<LandlockOutcome, LandlockError> {
    let mut outcome = LandlockOutcome {
        interface: plan.found,
        rulesets: 0,
        missing: plan.missing.clone(),
    };
    for rules in rulesets {
        let status = rules
            .ruleset
            .restrict_self()
            .map_err(|source| LandlockError::Restrict { source })?;
        match status.ruleset {
            RulesetStatus::FullyEnforced => outcome.rulesets += 1,
            RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => {
                return Err(LandlockError::Partial);
            }
        }
    }
    Ok(outcome)
}

fn listed(features: &[Feature]) -> String {
    if features.is_empty() {
        return "what this node takes at least".into();
    }
    features
        .iter()
        .map(Feature::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

pub(crate) fn rights(access: PathAccess) -> BitFlags<AccessFs> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = make_bitflags!(AccessFs::{WriteFile | Truncate});
    // Device nodes are left out: a pod's user namespace could not use them, and nothing else makes any.
    let change = make_bitflags!(AccessFs::{
        RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym | Refer
    });
    match access {
        PathAccess::List => AccessFs::ReadDir.into(),
        PathAccess::Read => read,
        PathAccess::ReadExecute => read | AccessFs::Execute,
        PathAccess::WriteExisting => read | write,
        PathAccess::ReadWrite => read | write | change,
        PathAccess::Devices => read | write | change | AccessFs::IoctlDev,
    }
}

pub(crate) fn file_type(fd: impl AsFd) -> rustix::io::Result<FileType> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(FileType::from_raw_mode(stat.stx_mode.into()))
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use landlock::{ABI, Access};

    use super::*;

    #[test]
    fn no_access_both_writes_and_executes() {
        for access in [
            PathAccess::List,
            PathAccess::Read,
            PathAccess::ReadExecute,
            PathAccess::WriteExisting,
            PathAccess::ReadWrite,
            PathAccess::Devices,
        ] {
            let rights = rights(access);
            assert!(
                !(rights.contains(AccessFs::Execute) && rights.contains(AccessFs::WriteFile)),
                "{access:?}"
            );
            assert!(
                AccessFs::from_all(ABI::V5).contains(rights),
                "{access:?} asks for unhandled rights"
            );
        }
    }
}
