//! Rulesets: which rights each kind of access means, and their installation without any fallback.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

use crate::{PathAccess, PathRule, Tcp};

/// File rights up to device commands. A later interface adds rights; handling them needs rules for them.
const FILE_RIGHTS: ABI = ABI::V5;

/// Rights that mean something on a file that is not a directory.
const ON_FILES: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{Execute | WriteFile | ReadFile | Truncate | IoctlDev});

/// Why a ruleset could not be made or enforced.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The running kernel lacks what the profile needs.
    #[error(
        "the kernel lacks {feature}: Landlock interface {needed} (Linux {linux}) is needed, this kernel \
         has {found} (0 means Landlock is off: add landlock to the lsm= boot parameter)"
    )]
    Missing {
        /// What is missing, in words.
        feature: &'static str,
        /// The interface version that brings it.
        needed: u32,
        /// The kernel version that brought it.
        linux: &'static str,
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

/// A ruleset for no path yet: it refuses all files, and TCP but for the ports that are named.
pub(crate) fn create(tcp: &Tcp, scoped: bool) -> Result<RulesetCreated, LandlockError> {
    let found = landlock_abi();
    let demand = |feature, needed, linux| {
        if found >= needed {
            Ok(())
        } else {
            Err(LandlockError::Missing {
                feature,
                needed,
                linux,
                found,
            })
        }
    };
    demand("Landlock rules for files and device commands", 5, "6.10")?;
    if scoped {
        demand("Landlock scopes for signals and abstract sockets", 6, "6.12")?;
    }
    let none = BTreeSet::new();
    let build = || {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(FILE_RIGHTS))?;
        let (bind, connect) = match tcp {
            Tcp::Unrestricted => (None, None),
            Tcp::Denied => (Some(&none), Some(&none)),
            Tcp::Ports(ports) => (ports.bind.as_ref(), ports.connect.as_ref()),
        };
        let limited = [(AccessNet::BindTcp, bind), (AccessNet::ConnectTcp, connect)];
        let limited = limited.map(|(access, ports)| ports.map(|ports| (access, ports)));
        for (access, _) in limited.iter().flatten() {
            ruleset = ruleset.handle_access(*access)?;
        }
        if scoped {
            ruleset = ruleset.scope(Scope::from_all(ABI::V6))?;
        }
        let mut ruleset = ruleset.create()?;
        for (access, ports) in limited.into_iter().flatten() {
            for port in ports {
                ruleset = ruleset.add_rule(NetPort::new(*port, access))?;
            }
        }
        Ok(ruleset)
    };
    build().map_err(|source| LandlockError::Create { source })
}

/// Adds rules for paths of this process's own view, following symbolic links.
pub(crate) fn add_paths(
    mut ruleset: RulesetCreated,
    rules: &[PathRule],
) -> Result<RulesetCreated, LandlockError> {
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
/// What is missing, or hidden from this user, gets no rule and stays refused. Links are not followed: they
/// belong to the image or to whoever wrote to it since.
pub(crate) fn add_mounts(
    mut ruleset: RulesetCreated,
    rules: &[PathRule],
) -> Result<RulesetCreated, LandlockError> {
    for rule in rules {
        match open(&rule.path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => ruleset = add(ruleset, fd, rights(rule.access), &rule.path)?,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => {}
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

/// Adds one rule for an open file or directory, with the rights that make sense for its type.
pub(crate) fn add(
    ruleset: RulesetCreated,
    fd: OwnedFd,
    rights: BitFlags<AccessFs>,
    path: &Path,
) -> Result<RulesetCreated, LandlockError> {
    let open_error = |errno: rustix::io::Errno| LandlockError::Open {
        path: path.into(),
        source: errno.into(),
    };
    let rights = match file_type(fd.as_fd()).map_err(open_error)? {
        FileType::Directory => rights,
        _ => rights & ON_FILES,
    };
    if rights.is_empty() {
        return Ok(ruleset);
    }
    ruleset
        .add_rule(PathBeneath::new(fd, rights))
        .map_err(|source| LandlockError::Rule {
            path: path.into(),
            source,
        })
}

pub(crate) fn restrict(ruleset: RulesetCreated) -> Result<(), LandlockError> {
    let status = ruleset
        .restrict_self()
        .map_err(|source| LandlockError::Restrict { source })?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(LandlockError::Partial),
    }
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
                AccessFs::from_all(FILE_RIGHTS).contains(rights),
                "{access:?} asks for unhandled rights"
            );
        }
    }
}
