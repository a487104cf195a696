//! From root to the control plane's own user, with no way back.

use nix::{
    errno::Errno,
    sys::prctl,
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

/// A step that failed; the daemon does not go on without it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    /// A system call was refused.
    #[error("{step}")]
    Step {
        /// What was attempted.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Errno,
    },
    /// The daemon was started by a user that is neither root nor the one it is configured to be.
    #[error("started as user {actual}: start as root, or as user {configured} which owns the state")]
    WrongUser {
        /// Effective user id.
        actual: u32,
        /// User id of the configuration.
        configured: u32,
    },
    /// Root again after giving it up.
    #[error("root could be regained after dropping to user {configured}")]
    Regained {
        /// User id of the configuration.
        configured: u32,
    },
}

/// Becomes user and group `uid`, without supplementary groups, without new privileges through `exec`, and
/// not readable through `/proc` or `ptrace` by other processes of that user. Single-threaded callers only.
pub(crate) fn drop_to(uid: u32) -> Result<(), PrivilegeError> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    let step = |step| move |source| PrivilegeError::Step { step, source };
    if Uid::effective().is_root() && !user.is_root() {
        setgroups(&[]).map_err(step("clear the supplementary groups"))?;
        setresgid(group, group, group).map_err(step("set the group"))?;
        setresuid(user, user, user).map_err(step("set the user"))?;
        if setresuid(Uid::from_raw(u32::MAX), Uid::from_raw(0), Uid::from_raw(u32::MAX)).is_ok() {
            return Err(PrivilegeError::Regained { configured: uid });
        }
    } else if Uid::effective() != user {
        return Err(PrivilegeError::WrongUser {
            actual: Uid::effective().as_raw(),
            configured: uid,
        });
    }
    prctl::set_no_new_privs().map_err(step("set no_new_privs"))?;
    prctl::set_dumpable(false).map_err(step("become undumpable"))
}
