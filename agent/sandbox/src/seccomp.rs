//! Compiles the lists of [`crate::syscalls`] into the two stacked filters of a profile.
//!
//! Two, because one program has one answer for a refused call: the first allows the list and answers
//! `EPERM` to the rest; the second, installed later so that its answer wins, turns `clone3` and calls newer
//! than the list into `ENOSYS`. Calls of a foreign architecture kill the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use crate::SyscallSet;
use crate::syscalls::{
    BASELINE, BASELINE_CONDITIONS, CLONE3, Conditional, DAEMON, Group, JAIL, JAIL_CONDITIONS, NEWEST_KNOWN,
};

/// Why a list of calls could not become a filter. Only a defect in the lists causes these.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The kernel or the compiler does not know this machine.
    #[error("seccomp filters are not available for architecture {arch}")]
    Architecture {
        /// The architecture this program was built for.
        arch: &'static str,
        /// What the filter compiler said.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The lists contradict themselves or are too long.
    #[error("cannot compile the seccomp filter of profile {set:?}")]
    Filter {
        /// Which list.
        set: SyscallSet,
        /// What the filter compiler said.
        #[source]
        source: seccompiler::BackendError,
    },
}

/// Why a filter could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the {filter} seccomp filter (CONFIG_SECCOMP_FILTER is needed)")]
pub struct InstallError {
    filter: &'static str,
    #[source]
    source: seccompiler::Error,
}

/// The compiled filters of one profile, ready to be installed any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    allow: BpfProgram,
    unknown: BpfProgram,
}

impl Filters {
    pub(crate) fn compile(set: SyscallSet) -> Result<Self, CompileError> {
        let (groups, conditions) = match set {
            SyscallSet::Baseline => (BASELINE, BASELINE_CONDITIONS),
            SyscallSet::Daemon => (DAEMON, BASELINE_CONDITIONS),
            SyscallSet::Jail => (JAIL, JAIL_CONDITIONS),
        };
        Ok(Self {
            allow: allow_list(set, groups, conditions)?,
            unknown: unknown_calls().to_vec(),
        })
    }

    /// Restricts the calling thread. The order matters: see the module's text.
    pub(crate) fn install(&self) -> Result<(), InstallError> {
        seccompiler::apply_filter(&self.allow).map_err(|source| InstallError {
            filter: "allow-list",
            source,
        })?;
        seccompiler::apply_filter(&self.unknown).map_err(|source| InstallError {
            filter: "unknown-call",
            source,
        })
    }
}

fn allow_list(
    set: SyscallSet,
    groups: &[&Group],
    conditions: &[Conditional],
) -> Result<BpfProgram, CompileError> {
    let filter_error = |source| CompileError::Filter { set, source };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = groups
        .iter()
        .flat_map(|group| group.calls)
        .map(|(_, number)| (*number, Vec::new()))
        .collect();
    for condition in conditions {
        let alternatives = condition.any_of.iter().map(|argument| {
            let op = SeccompCmpOp::MaskedEq(u64::from(argument.mask));
            SeccompCondition::new(
                argument.index,
                SeccompCmpArgLen::Dword,
                op,
                u64::from(argument.value),
            )
            .and_then(|condition| SeccompRule::new(vec![condition]))
        });
        rules.insert(
            condition.call.1,
            alternatives.collect::<Result<_, _>>().map_err(filter_error)?,
        );
    }
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|source| CompileError::Architecture {
            arch: std::env::consts::ARCH,
            source,
        })?;
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(errno(libc::EPERM)),
        SeccompAction::Allow,
        arch,
    )
    .and_then(BpfProgram::try_from)
    .map_err(filter_error)
}

/// Six instructions by hand: the filter compiler knows single numbers only, not "newer than".
#[expect(
    clippy::cast_possible_truncation,
    reason = "classic BPF opcodes are 16 bits wide"
)]
fn unknown_calls() -> [sock_filter; 6] {
    /// From here on numbers mean the x32 interface, which the allow-list refuses.
    const X32: u32 = 0x4000_0000;

    let opcode = |parts: u32| parts as u16;
    let load_number = opcode(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
    let equal = opcode(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let at_least = opcode(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K);
    let answer = opcode(libc::BPF_RET | libc::BPF_K);
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        instruction(load_number, 0, 0, 0),
        instruction(equal, 3, 0, clone3()),
        instruction(at_least, 1, 0, X32),
        instruction(at_least, 1, 0, NEWEST_KNOWN + 1),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno(libc::ENOSYS)),
    ]
}

#[expect(clippy::cast_possible_truncation, reason = "a small call number")]
const fn clone3() -> u32 {
    CLONE3 as u32
}

#[expect(clippy::cast_sign_loss, reason = "error numbers are positive")]
const fn errno(number: i32) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_compiles_within_the_kernels_limit() {
        for set in [SyscallSet::Baseline, SyscallSet::Daemon, SyscallSet::Jail] {
            let filters = Filters::compile(set).expect("compiles");
            assert!(filters.allow.len() < 4096, "{set:?}: {}", filters.allow.len());
        }
    }

    #[test]
    fn unknown_calls_jump_where_they_say() {
        // A tiny interpreter for the five kinds of instruction used: the answer for a call number.
        let answer = |number: u32| {
            let program = unknown_calls();
            let mut at = 1;
            loop {
                let i = &program[at];
                let taken = match u32::from(i.code) {
                    c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => number == i.k,
                    c if c == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => number >= i.k,
                    _ => return i.k,
                };
                at += 1 + usize::from(if taken { i.jt } else { i.jf });
            }
        };
        let enosys = libc::SECCOMP_RET_ERRNO | errno(libc::ENOSYS);
        assert_eq!(answer(clone3()), enosys);
        assert_eq!(answer(NEWEST_KNOWN + 1), enosys);
        assert_eq!(answer(NEWEST_KNOWN), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answer(0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answer(0x4000_0000), libc::SECCOMP_RET_ALLOW);
    }
}
