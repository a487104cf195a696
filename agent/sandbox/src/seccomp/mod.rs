//! System call filters: what they mean ([`policy`]), the program for it ([`emit`]), its installation.
//!
//! One program gives all answers of a policy: what is allowed, `EPERM` for what is not, `ENOSYS` for
//! `clone3` and for calls newer than the list.

pub(crate) mod detours;
mod emit;
mod policy;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::Arc;

use libc::sock_filter;

use crate::SyscallSet;
use crate::syscalls::{
    BASELINE, BASELINE_CONDITIONS, CLONE3, Conditional, DAEMON, Group, JAIL, JAIL_CONDITIONS, NEWEST_KNOWN,
    STRICT_ABSENT, STRICT_CONDITIONS, STRICT_REFUSED,
};

pub use emit::EmitError;
pub(crate) use policy::X32;
pub use policy::{Action, Alternative, CallRule, Compare, Condition, SyscallPolicy, Width};

/// Why a policy could not become a filter.
#[derive(Debug, thiserror::Error)]
#[error("cannot compile the system call filter")]
pub struct CompileError {
    #[source]
    source: EmitError,
}

/// Why a filter could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Without it an unprivileged process may not filter itself.
    #[error("cannot give up the right to gain privileges (no_new_privs)")]
    NoNewPrivileges {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not take the program.
    #[error("cannot install the seccomp filter (CONFIG_SECCOMP_FILTER is needed)")]
    Refused {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A compiled filter, ready to be installed any number of times.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Arc<[sock_filter]>,
}

impl Filter {
    /// Compiles a policy; touches nothing.
    pub fn compile(policy: &SyscallPolicy) -> Result<Self, CompileError> {
        let program = emit::emit(policy).map_err(|source| CompileError { source })?;
        Ok(Self {
            program: program.into(),
        })
    }

    /// Instructions of the program; the kernel takes 4096.
    pub fn instructions(&self) -> usize {
        self.program.len()
    }

    /// Sets no_new_privs and restricts the calling thread, for good.
    pub fn install(&self) -> Result<(), InstallError> {
        rustix::thread::set_no_new_privs(true)
            .map_err(|errno| InstallError::NoNewPrivileges { source: errno.into() })?;
        // The emitter writes 4096 instructions at most; a longer program would be refused by the kernel.
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).unwrap_or(u16::MAX),
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads `len` instructions from `filter`, both of the same slice, which outlives the
        // call, and writes to neither.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        if result == 0 {
            return Ok(());
        }
        Err(InstallError::Refused {
            source: io::Error::last_os_error(),
        })
    }
}

impl SyscallSet {
    /// The list as a policy.
    pub fn policy(&self) -> SyscallPolicy {
        let (groups, conditions) = match self {
            Self::Policy(policy) => return policy.clone(),
            Self::Strict => return Self::Baseline.policy().and(&beyond_baseline(|refusal| refusal)),
            Self::Audit => return Self::Baseline.policy().and(&beyond_baseline(|_| Action::Log)),
            Self::Baseline => (BASELINE, BASELINE_CONDITIONS),
            Self::Daemon => (DAEMON, BASELINE_CONDITIONS),
            Self::Jail => (JAIL, JAIL_CONDITIONS),
        };
        allow_list(groups, conditions)
    }
}

fn allow_list(groups: &[&Group], conditions: &[Conditional]) -> SyscallPolicy {
    let free = groups
        .iter()
        .flat_map(|group| group.calls)
        .map(|(_, number)| (*number, CallRule::always(Action::Allow)));
    let conditional = conditions.iter().map(|condition| {
        (
            condition.call.1,
            rule(condition, Action::Allow, errno(libc::EPERM)),
        )
    });
    // It hides its flags behind a pointer.
    let hidden = [(CLONE3, CallRule::always(errno(libc::ENOSYS)))];
    SyscallPolicy {
        calls: free
            .chain(conditional)
            .chain(hidden)
            .filter_map(|(number, rule)| Some((u32::try_from(number).ok()?, rule)))
            .collect(),
        default: errno(libc::EPERM),
        newest_known: NEWEST_KNOWN,
        newer: errno(libc::ENOSYS),
    }
}

/// What strict pods do not get: all is allowed but that, which has the answer that `answer` makes of it.
fn beyond_baseline(answer: impl Fn(Action) -> Action) -> SyscallPolicy {
    let refused = STRICT_REFUSED.iter().flat_map(|group| group.calls);
    let refused = refused.map(|(_, number)| (*number, CallRule::always(answer(errno(libc::EPERM)))));
    let absent = STRICT_ABSENT.iter();
    let absent = absent.map(|(_, number)| (*number, CallRule::always(answer(errno(libc::ENOSYS)))));
    let conditional = STRICT_CONDITIONS.iter().map(|condition| {
        let refusal = answer(errno(libc::EPERM));
        (condition.call.1, rule(condition, refusal, Action::Allow))
    });
    SyscallPolicy {
        calls: refused
            .chain(absent)
            .chain(conditional)
            .filter_map(|(number, rule)| Some((u32::try_from(number).ok()?, rule)))
            .collect(),
        default: Action::Allow,
        newest_known: NEWEST_KNOWN,
        newer: Action::Allow,
    }
}

/// `then` if one of the condition's alternatives holds, else `otherwise`.
fn rule(condition: &Conditional, then: Action, otherwise: Action) -> CallRule {
    let tested = |argument: &crate::syscalls::Argument| Condition {
        index: argument.index,
        width: Width::Word,
        compare: match argument.mask {
            u32::MAX => Compare::Eq,
            mask => Compare::MaskedEq(mask.into()),
        },
        value: argument.value.into(),
    };
    let alternative = |arguments: &&[crate::syscalls::Argument]| Alternative {
        all_of: arguments.iter().map(tested).collect(),
        action: then,
    };
    CallRule {
        alternatives: condition.any_of.iter().map(alternative).collect(),
        otherwise,
    }
}

/// Error numbers are small and positive.
pub(crate) fn errno(number: i32) -> Action {
    Action::Errno(u16::try_from(number).unwrap_or(1))
}
