//! From a [`SyscallPolicy`] to a classic BPF program.
//!
//! The program: the architecture is compared, then the few calls that programs make most ([`HOT`]), then a
//! balanced search over ranges of numbers with one answer each; calls whose arguments decide come last.
//! On every path to an answer that does not depend on arguments only the number and the architecture are
//! read, by comparisons alone: such calls get into the kernel's bitmap of constant answers (Linux 5.11) and
//! the program is not run for them at all.
//!
//! It is written from its end to its beginning, so that each jump's target is known when the jump is: all
//! jumps of classic BPF go forward. Conditional ones reach 255 instructions; a target that is too far gets
//! a stand-in nearby, a copy of it if it is an answer, else an unconditional jump, which reaches anywhere.

use std::collections::HashMap;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET,
    BPF_W, sock_filter,
};

use super::policy::{
    ARGUMENTS, Action, Alternative, CallRule, Compare, Condition, SyscallPolicy, Width, X32, X32_ANSWER,
};

/// What the kernel takes (`BPF_MAXINSNS`).
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// Compared before the search, for kernels without the bitmap: what busy servers call most. More would cost
/// every other call an instruction each.
#[cfg(target_arch = "x86_64")]
pub(crate) const HOT: [libc::c_long; 4] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_futex,
    libc::SYS_epoll_wait,
];
#[cfg(target_arch = "aarch64")]
pub(crate) const HOT: [libc::c_long; 4] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_futex,
    libc::SYS_epoll_pwait,
];

/// `AUDIT_ARCH_*` of this machine.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("seccomp filters are written for x86-64 and 64-bit ARM");
#[cfg(target_endian = "big")]
compile_error!("the halves of an argument are where little-endian machines keep them");

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Distance that a conditional jump reaches, less the stand-ins that may come between.
const REACH: usize = 250;

/// Why a policy has no program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// More rules than the kernel takes.
    #[error("the filter needs {length} instructions, the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong {
        /// What it would need.
        length: usize,
    },
    /// The kernel has six arguments per call.
    #[error("system call {call}: there is no argument {index}, they count from 0 to 5")]
    NoArgument {
        /// The call's number.
        call: u32,
        /// The position that was asked for.
        index: u8,
    },
    /// The number would mean another interface.
    #[error("{call:#x} is no system call number of this architecture")]
    NoCall {
        /// The number.
        call: u32,
    },
}

/// The program for `policy`.
pub(crate) fn emit(policy: &SyscallPolicy) -> Result<Vec<sock_filter>, EmitError> {
    for (&call, rule) in &policy.calls {
        if call >= X32 {
            return Err(EmitError::NoCall { call });
        }
        let mut conditions = rule
            .alternatives
            .iter()
            .flat_map(|alternative| &alternative.all_of);
        if let Some(condition) = conditions.find(|condition| condition.index >= ARGUMENTS) {
            let index = condition.index;
            return Err(EmitError::NoArgument { call, index });
        }
    }
    let mut program = Reversed::default();
    let mut next = program.search(&ranges(policy));
    for number in HOT
        .into_iter()
        .rev()
        .filter_map(|number| u32::try_from(number).ok())
    {
        let rule = policy.calls.get(&number);
        let constant = rule.map_or_else(|| Some(policy.unlisted(number)), CallRule::constant);
        if let Some(action) = constant {
            let answer = program.answer(action);
            next = program.branch(BPF_JEQ, number, answer, next);
        }
    }
    let number = program.before(load(NUMBER), next);
    let foreign = program.answer(Action::KillProcess);
    let architecture = program.branch(BPF_JEQ, ARCHITECTURE, number, foreign);
    program.before(load(ARCH), architecture);
    program.finish()
}

/// What is decided for all numbers from a start to the next range's.
enum Leaf<'a> {
    Constant(Action),
    Arguments(&'a CallRule),
}

/// All numbers there are, neighbours with the same answer together.
fn ranges(policy: &SyscallPolicy) -> Vec<(u32, Leaf<'_>)> {
    let mut ranges: Vec<(u32, Leaf<'_>)> = Vec::new();
    let mut add = |start, leaf| {
        let same = match (ranges.last(), &leaf) {
            (Some((_, Leaf::Constant(last))), Leaf::Constant(action)) => last == action,
            _ => false,
        };
        if !same {
            ranges.push((start, leaf));
        }
    };
    let first_newer = policy.newest_known.saturating_add(1);
    let mut next = 0;
    // The end of the range of numbers ends the last gap like one more call.
    let listed = policy.calls.iter().map(|(&number, rule)| (number, Some(rule)));
    for (number, rule) in listed.chain([(X32, None)]) {
        if next < number {
            add(next, Leaf::Constant(policy.unlisted(next)));
            if next < first_newer && first_newer < number {
                add(first_newer, Leaf::Constant(policy.newer));
            }
        }
        let leaf = match rule {
            None => Leaf::Constant(X32_ANSWER),
            Some(rule) => rule.constant().map_or(Leaf::Arguments(rule), Leaf::Constant),
        };
        add(number, leaf);
        next = number.saturating_add(1);
    }
    ranges
}

/// Position of an instruction, counted from the program's end.
type At = usize;

#[derive(Default)]
struct Reversed {
    code: Vec<sock_filter>,
    /// The copy of each answer that was written last.
    answers: HashMap<u32, At>,
}

impl Reversed {
    fn push(&mut self, instruction: sock_filter) -> At {
        self.code.push(instruction);
        self.code.len() - 1
    }

    /// How far an instruction that is written next would have to jump.
    fn distance(&self, target: At) -> usize {
        self.code.len() - target - 1
    }

    fn answer(&mut self, action: Action) -> At {
        self.answer_encoded(action.encoded())
    }

    fn answer_encoded(&mut self, encoded: u32) -> At {
        match self.answers.get(&encoded) {
            Some(&at) if self.distance(at) <= REACH => at,
            _ => {
                let at = self.push(instruction(BPF_RET | BPF_K, 0, 0, encoded));
                self.answers.insert(encoded, at);
                at
            }
        }
    }

    /// The target itself, or a stand-in that a conditional jump reaches.
    fn near(&mut self, target: At) -> At {
        if self.distance(target) <= REACH {
            return target;
        }
        match self.code.get(target) {
            Some(far) if u32::from(far.code) == BPF_RET | BPF_K => self.answer_encoded(far.k),
            _ => self.jump(target),
        }
    }

    fn jump(&mut self, target: At) -> At {
        let distance = u32::try_from(self.distance(target)).unwrap_or(u32::MAX);
        self.push(instruction(BPF_JMP | BPF_JA, 0, 0, distance))
    }

    /// Compares the accumulator with `value`.
    fn branch(&mut self, test: u32, value: u32, yes: At, no: At) -> At {
        let (yes, no) = (self.near(yes), self.near(no));
        // `near` leaves room for the other's stand-in, so neither distance can exceed a byte.
        let reach = |distance: usize| u8::try_from(distance).unwrap_or(u8::MAX);
        let (yes, no) = (reach(self.distance(yes)), reach(self.distance(no)));
        self.push(instruction(BPF_JMP | test | BPF_K, yes, no, value))
    }

    /// An instruction after which `next` follows.
    fn before(&mut self, before: sock_filter, next: At) -> At {
        if self.distance(next) != 0 {
            self.jump(next);
        }
        self.push(before)
    }

    fn search(&mut self, ranges: &[(u32, Leaf<'_>)]) -> At {
        match ranges {
            // The ranges cover all numbers, so there is always one.
            [] => self.answer(Action::KillProcess),
            [(_, Leaf::Constant(action))] => self.answer(*action),
            [(_, Leaf::Arguments(rule))] => self.arguments(rule),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let pivot = high.first().map_or(X32, |(start, _)| *start);
                let high = self.search(high);
                let low = self.search(low);
                self.branch(BPF_JGE, pivot, high, low)
            }
        }
    }

    fn arguments(&mut self, rule: &CallRule) -> At {
        let mut next = self.answer(rule.otherwise);
        for (position, alternative) in rule.alternatives.iter().enumerate().rev() {
            let before = position
                .checked_sub(1)
                .and_then(|before| rule.alternatives.get(before));
            let loaded = before.is_some_and(|before| leaves_loaded(before, alternative));
            let mut yes = self.answer(alternative.action);
            for (position, condition) in alternative.all_of.iter().enumerate().rev() {
                yes = self.condition(condition, yes, next, loaded && position == 0);
            }
            next = yes;
        }
        next
    }

    /// `loaded` says that the accumulator holds the argument's lower half.
    fn condition(&mut self, condition: &Condition, yes: At, no: At, loaded: bool) -> At {
        let (test, negated) = match condition.compare {
            Compare::Eq | Compare::MaskedEq(_) => (BPF_JEQ, false),
            Compare::Ne => (BPF_JEQ, true),
            Compare::Gt => (BPF_JGT, false),
            Compare::Le => (BPF_JGT, true),
            Compare::Ge => (BPF_JGE, false),
            Compare::Lt => (BPF_JGE, true),
        };
        let (yes, no) = if negated { (no, yes) } else { (yes, no) };
        let mask = match condition.compare {
            Compare::MaskedEq(mask) => mask,
            _ => u64::MAX,
        };
        let low_at = FIRST_ARGUMENT + 8 * u32::from(condition.index);
        let low = self.half(
            test,
            (low(condition.value), low(mask)),
            (yes, no),
            (!loaded).then_some(low_at),
        );
        if condition.width == Width::Word {
            return low;
        }
        let value = high(condition.value);
        match test {
            BPF_JEQ => self.half(BPF_JEQ, (value, high(mask)), (low, no), Some(low_at + 4)),
            _ => {
                let equal = self.branch(BPF_JEQ, value, low, no);
                let greater = self.branch(BPF_JGT, value, yes, equal);
                self.before(load(low_at + 4), greater)
            }
        }
    }

    /// Compares 32 bits, loaded from `from` unless the accumulator has them.
    fn half(&mut self, test: u32, (value, mask): (u32, u32), (yes, no): (At, At), from: Option<u32>) -> At {
        let tested = match mask {
            0 => return yes,
            u32::MAX => self.branch(test, value, yes, no),
            _ if value & mask == 0 => self.branch(BPF_JSET, mask, no, yes),
            _ => {
                let compared = self.branch(test, value & mask, yes, no);
                self.before(instruction(BPF_ALU | BPF_AND | BPF_K, 0, 0, mask), compared)
            }
        };
        match from {
            Some(offset) => self.before(load(offset), tested),
            None => tested,
        }
    }

    fn finish(mut self) -> Result<Vec<sock_filter>, EmitError> {
        let length = self.code.len();
        if length > MAX_INSTRUCTIONS {
            return Err(EmitError::TooLong { length });
        }
        self.code.reverse();
        Ok(self.code)
    }
}

/// Whether the accumulator still holds what `then` looks at first, when `first` does not hold.
fn leaves_loaded(first: &Alternative, then: &Alternative) -> bool {
    let ([first], [then, ..]) = (first.all_of.as_slice(), then.all_of.as_slice()) else {
        return false;
    };
    let untouched = match first.compare {
        Compare::MaskedEq(mask) => match low(mask) {
            0 => false,
            u32::MAX => true,
            mask => low(first.value) & mask == 0,
        },
        _ => true,
    };
    let words = first.width == Width::Word && then.width == Width::Word;
    words && untouched && first.index == then.index
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "classic BPF opcodes are 16 bits wide"
)]
fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}
