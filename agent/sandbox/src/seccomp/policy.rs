//! What a seccomp filter means, as data, and the function that says it: [`SyscallPolicy::decide`].
//!
//! The emitted program is compared with this function in the tests, and with another compiler's output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Numbers from here on mean the x32 interface on x86-64, a second way to nearly every call. Always refused.
pub(crate) const X32: u32 = 0x4000_0000;

/// The answer to x32 calls, whatever the policy says of other calls.
pub(crate) const X32_ANSWER: Action = Action::Errno(1);

/// Arguments of a system call.
pub(crate) const ARGUMENTS: u8 = 6;

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Runs it.
    Allow,
    /// Runs it and writes an audit record, if audit is on.
    Log,
    /// Refuses it with this error number, at most 4095.
    Errno(u16),
    /// Sends SIGSYS to the thread.
    Trap,
    /// Kills the thread.
    KillThread,
    /// Kills the process.
    KillProcess,
}

impl Action {
    /// The kernel's encoding, `SECCOMP_RET_*`.
    pub(crate) fn encoded(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Log => libc::SECCOMP_RET_LOG,
            Self::Errno(number) => libc::SECCOMP_RET_ERRNO | u32::from(number),
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

impl Action {
    /// How little the process can do afterwards; the kernel's order of precedence.
    pub fn severity(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Log => 1,
            Self::Errno(_) => 2,
            Self::Trap => 3,
            Self::KillThread => 4,
            Self::KillProcess => 5,
        }
    }

    /// The more restrictive of two answers; of equally restrictive ones this.
    pub fn and(self, other: Self) -> Self {
        if other.severity() > self.severity() {
            other
        } else {
            self
        }
    }
}

/// How much of an argument counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Width {
    /// The lower 32 bits, for what the kernel declares as `int`.
    Word,
    /// All 64.
    Double,
}

/// How an argument is compared with the condition's value; unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Equal in the bits of this mask; other bits of the value do not count either.
    MaskedEq(u64),
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Position, from 0 to 5.
    pub index: u8,
    /// How much of it counts.
    pub width: Width,
    /// The comparison.
    pub compare: Compare,
    /// What it is compared with; of a [`Width::Word`] only the lower 32 bits count.
    pub value: u64,
}

impl Condition {
    pub(crate) fn holds(&self, arguments: &[u64; 6]) -> bool {
        let Some(argument) = arguments.get(usize::from(self.index)) else {
            return false;
        };
        let cut = match self.width {
            Width::Word => u64::from(u32::MAX),
            Width::Double => u64::MAX,
        };
        let (argument, value) = (argument & cut, self.value & cut);
        match self.compare {
            Compare::Eq => argument == value,
            Compare::Ne => argument != value,
            Compare::Lt => argument < value,
            Compare::Le => argument <= value,
            Compare::Gt => argument > value,
            Compare::Ge => argument >= value,
            Compare::MaskedEq(mask) => argument & mask == value & mask,
        }
    }
}

/// An answer that is given when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// All must hold; none means always.
    pub all_of: Vec<Condition>,
    /// The answer.
    pub action: Action,
}

/// What a policy says of one call: the first alternative that holds, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRule {
    /// In order of precedence.
    pub alternatives: Vec<Alternative>,
    /// When none holds.
    pub otherwise: Action,
}

impl CallRule {
    /// The same answer for all arguments.
    pub fn always(action: Action) -> Self {
        Self {
            alternatives: Vec::new(),
            otherwise: action,
        }
    }

    /// The answer to a call with these arguments.
    pub(crate) fn decide(&self, arguments: &[u64; 6]) -> Action {
        let holds = |alternative: &&Alternative| {
            let mut all = alternative.all_of.iter();
            all.all(|condition| condition.holds(arguments))
        };
        self.alternatives
            .iter()
            .find(holds)
            .map_or(self.otherwise, |alternative| alternative.action)
    }

    /// Each pair of alternatives, in an order in which the first that holds is the pair of the first that hold.
    fn and(&self, other: &Self) -> Self {
        fn all(rule: &CallRule) -> impl Iterator<Item = (&[Condition], Action)> {
            let listed = rule.alternatives.iter();
            let listed = listed.map(|alternative| (alternative.all_of.as_slice(), alternative.action));
            listed.chain([(&[][..], rule.otherwise)])
        }
        let mut alternatives = Vec::new();
        for (these, action) in all(self) {
            for (those, other) in all(other) {
                alternatives.push(Alternative {
                    all_of: [these, those].concat(),
                    action: action.and(other),
                });
            }
        }
        // The last pair is that of both rules' `otherwise`, without conditions.
        alternatives.pop();
        Self {
            alternatives,
            otherwise: self.otherwise.and(other.otherwise),
        }
    }

    /// The answer if it does not depend on arguments.
    pub(crate) fn constant(&self) -> Option<Action> {
        let first = self
            .alternatives
            .first()
            .map_or(self.otherwise, |first| first.action);
        let unconditional = self
            .alternatives
            .first()
            .is_some_and(|first| first.all_of.is_empty());
        let same = self.otherwise == first && self.alternatives.iter().all(|other| other.action == first);
        (unconditional || same).then_some(first)
    }
}

/// A whole filter. Calls of another architecture kill the process and x32 calls are refused, always.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyscallPolicy {
    /// By call number, all below the x32 range.
    pub calls: BTreeMap<u32, CallRule>,
    /// Calls that are not listed.
    pub default: Action,
    /// The newest call that the policy's author could know.
    pub newest_known: u32,
    /// Calls that are newer than that and not listed. `ENOSYS` lets libraries that probe fall back, where
    /// `EPERM` would be taken for a real refusal.
    pub newer: Action,
}

impl SyscallPolicy {
    /// The answer to one call of this machine's architecture.
    pub fn decide(&self, number: u32, arguments: &[u64; 6]) -> Action {
        if number >= X32 {
            return X32_ANSWER;
        }
        match self.calls.get(&number) {
            Some(rule) => rule.decide(arguments),
            None => self.unlisted(number),
        }
    }

    /// The policy that allows what both allow: for each call the more restrictive answer, of equally
    /// restrictive ones this policy's.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let newest_known = self.newest_known.max(other.newest_known);
        let mut calls: BTreeMap<u32, CallRule> = BTreeMap::new();
        for &number in self.calls.keys().chain(other.calls.keys()) {
            calls.entry(number).or_insert_with(|| {
                let rule = |policy: &Self| {
                    let listed = policy.calls.get(&number).cloned();
                    listed.unwrap_or_else(|| CallRule::always(policy.unlisted(number)))
                };
                rule(self).and(&rule(other))
            });
        }
        // Between the two newest calls one policy says `newer` and the other `default`.
        let older = self.newest_known.min(other.newest_known);
        for number in older.saturating_add(1)..=newest_known {
            let answer = self.unlisted(number).and(other.unlisted(number));
            calls.entry(number).or_insert_with(|| CallRule::always(answer));
        }
        Self {
            calls,
            default: self.default.and(other.default),
            newest_known,
            newer: self.newer.and(other.newer),
        }
    }

    pub(crate) fn unlisted(&self, number: u32) -> Action {
        if number > self.newest_known {
            self.newer
        } else {
            self.default
        }
    }
}
