//! The emitted programs against what policies mean, and against seccompiler's output for the same lists.
//!
//! Both are run by a small interpreter of classic BPF, so that each call number and argument can be asked.

use std::collections::BTreeMap;

use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::emit::{self, ARCHITECTURE, HOT};
use super::policy::X32;
use super::*;

/// Lists that seccompiler can express.
const SETS: [SyscallSet; 3] = [SyscallSet::Baseline, SyscallSet::Daemon, SyscallSet::Jail];
const I386: u32 = 0x4000_0003;

/// What an interpreted program did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    answer: u32,
    /// Whether only the number and the architecture were read, as the kernel's bitmap demands.
    constant: bool,
    steps: usize,
}

/// The instructions that filters use; everything else, and leaving the program, is a defect.
fn run(program: &[sock_filter], arch: u32, number: u32, arguments: &[u64; 6]) -> Run {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        _ => {
            let argument = arguments[usize::try_from((offset - 16) / 8).expect("small")];
            u32::try_from(argument >> (offset % 8 * 8) & u64::from(u32::MAX)).expect("masked")
        }
    };
    let (mut accumulator, mut at, mut constant, mut steps) = (0, 0, true, 0);
    loop {
        let next = program[at];
        steps += 1;
        at += 1;
        let code = u32::from(next.code);
        let mut jump = |taken: bool| at += usize::from(if taken { next.jt } else { next.jf });
        match code {
            _ if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                constant &= next.k < 8;
                accumulator = word(next.k);
            }
            _ if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => accumulator &= next.k,
            _ if code == libc::BPF_JMP | libc::BPF_JA => at += usize::try_from(next.k).expect("small"),
            _ if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => jump(accumulator == next.k),
            _ if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => jump(accumulator > next.k),
            _ if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => jump(accumulator >= next.k),
            _ if code == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => jump(accumulator & next.k != 0),
            _ if code == libc::BPF_RET | libc::BPF_K => {
                return Run {
                    answer: next.k,
                    constant,
                    steps,
                };
            }
            other => panic!("instruction {other:#x} at {}", at - 1),
        }
    }
}

/// What the kernel makes of several filters, oldest first: the most restrictive answer, of equal ones the
/// newest (`seccomp_run_filters`).
fn stacked(programs: &[Vec<sock_filter>], arch: u32, number: u32, arguments: &[u64; 6]) -> u32 {
    let severity = |answer: u32| (answer & 0xffff_0000).cast_signed();
    programs
        .iter()
        .rev()
        .map(|program| run(program, arch, number, arguments).answer)
        .reduce(|kept, older| {
            if severity(older) < severity(kept) {
                older
            } else {
                kept
            }
        })
        .expect("a program")
}

/// Every number that could be treated differently: all known ones and their surroundings, the edges of the
/// x32 range and some within, the extremes.
fn numbers() -> impl Iterator<Item = u32> {
    (0..1024).chain(X32 - 2..X32 + 1024).chain([
        u32::MAX,
        u32::MAX - 1,
        0x7fff_ffff,
        0x8000_0000,
        0xc000_0000,
        100_000,
    ])
}

/// The vectors of arguments that are tried for a number: around each value that its conditions name the value
/// itself, its neighbours and others that differ in the upper half or outside of the mask, each in the
/// condition's place alone and in all places.
fn arguments(policy: &SyscallPolicy, number: u32) -> Vec<[u64; 6]> {
    let mut vectors = vec![[0; 6], [u64::MAX; 6]];
    let conditions = policy.calls.get(&number).into_iter();
    for condition in conditions.flat_map(|rule| rule.alternatives.iter().flat_map(|other| &other.all_of)) {
        let mask = match condition.compare {
            Compare::MaskedEq(mask) => mask,
            _ => u64::MAX,
        };
        let value = condition.value;
        let near = [value.wrapping_add(1), value.wrapping_sub(1)];
        let far = [
            value ^ (1 << 32),
            value ^ (1 << 63),
            value | !mask,
            value & mask,
            mask,
            !mask,
        ];
        for value in [value].into_iter().chain(near).chain(far) {
            let mut one = [0; 6];
            one[usize::from(condition.index)] = value;
            vectors.extend([[value; 6], one]);
        }
    }
    vectors
}

/// The reference: seccompiler's allow-list and, installed after it, six instructions by hand for what one
/// of its programs cannot say.
fn reference(policy: &SyscallPolicy) -> [Vec<sock_filter>; 2] {
    let errno = |action| match action {
        Action::Errno(number) => u32::from(number),
        other => panic!("{other:?} is no refusal of the lists"),
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (number, rule) in &policy.calls {
        if rule.alternatives.is_empty() && rule.otherwise == Action::Allow {
            rules.insert(i64::from(*number), vec![]);
        }
        let alternatives: Vec<_> = rule.alternatives.iter().map(reference_rule).collect();
        if !alternatives.is_empty() {
            rules.insert(i64::from(*number), alternatives);
        }
    }
    let arch = std::env::consts::ARCH.try_into().expect("known");
    let default = SeccompAction::Errno(errno(policy.default));
    let filter = SeccompFilter::new(rules, default, SeccompAction::Allow, arch).expect("valid");
    let allow: BpfProgram = filter.try_into().expect("compiles");

    let clone3 = u32::try_from(CLONE3).expect("small");
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let unknown = [
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        (equal, 3, 0, clone3),
        (at_least, 1, 0, X32),
        (at_least, 1, 0, policy.newest_known + 1),
        (answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        (answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno(policy.newer)),
    ];
    let convert = |(code, jt, jf, k)| sock_filter {
        code: u16::try_from(code).expect("16 bits"),
        jt,
        jf,
        k,
    };
    let allow = allow
        .iter()
        .map(|i| convert((u32::from(i.code), i.jt, i.jf, i.k)));
    [allow.collect(), unknown.map(convert).to_vec()]
}

fn reference_rule(alternative: &Alternative) -> SeccompRule {
    let conditions = alternative.all_of.iter().map(|condition| {
        let width = match condition.width {
            Width::Word => SeccompCmpArgLen::Dword,
            Width::Double => SeccompCmpArgLen::Qword,
        };
        let compare = match condition.compare {
            Compare::Eq => SeccompCmpOp::Eq,
            Compare::Ne => SeccompCmpOp::Ne,
            Compare::Lt => SeccompCmpOp::Lt,
            Compare::Le => SeccompCmpOp::Le,
            Compare::Gt => SeccompCmpOp::Gt,
            Compare::Ge => SeccompCmpOp::Ge,
            Compare::MaskedEq(mask) => SeccompCmpOp::MaskedEq(mask),
        };
        SeccompCondition::new(condition.index, width, compare, condition.value).expect("valid")
    });
    SeccompRule::new(conditions.collect()).expect("valid")
}

#[test]
fn built_in_profiles_judge_like_seccompilers_two_filters() {
    for set in SETS {
        let policy = set.policy();
        let (ours, theirs) = (emit::emit(&policy).expect("compiles"), reference(&policy));
        for number in numbers() {
            for arguments in arguments(&policy, number) {
                let wanted = stacked(&theirs, ARCHITECTURE, number, &arguments);
                let answer = run(&ours, ARCHITECTURE, number, &arguments).answer;
                assert_eq!(answer, wanted, "{set:?}: {number:#x} {arguments:x?}");
                assert_eq!(
                    answer,
                    policy.decide(number, &arguments).encoded(),
                    "{set:?}: {number:#x}"
                );
            }
        }
        for arch in [I386, 0, ARCHITECTURE ^ 1] {
            assert_eq!(
                run(&ours, arch, 0, &[0; 6]).answer,
                libc::SECCOMP_RET_KILL_PROCESS
            );
            assert_eq!(stacked(&theirs, arch, 0, &[0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
}

#[test]
fn what_no_argument_decides_reads_no_argument() {
    for set in SETS {
        let policy = set.policy();
        let program = emit::emit(&policy).expect("compiles");
        for number in numbers() {
            let decided = policy
                .calls
                .get(&number)
                .is_none_or(|rule| rule.constant().is_some());
            assert_eq!(
                run(&program, ARCHITECTURE, number, &[0; 6]).constant,
                decided,
                "{set:?}: {number}"
            );
        }
    }
}

/// Bounds with room for some more calls: what a new list may cost is looked at, not discovered.
#[test]
fn programs_are_short_and_paths_through_them_too() {
    for (set, length, longest) in [
        (SyscallSet::Baseline, 230, 20),
        (SyscallSet::Daemon, 230, 20),
        (SyscallSet::Jail, 230, 20),
    ] {
        let policy = set.policy();
        let program = emit::emit(&policy).expect("compiles");
        let theirs: usize = reference(&policy).iter().map(Vec::len).sum();
        let steps = |number| run(&program, ARCHITECTURE, number, &[0; 6]).steps;
        let most = numbers().map(steps).max().expect("some");
        assert!(
            program.len() <= length,
            "{set:?}: {} instructions, {theirs} by seccompiler",
            program.len()
        );
        assert!(
            program.len() * 5 < theirs,
            "{set:?}: {} instructions, {theirs} by seccompiler",
            program.len()
        );
        assert!(most <= longest, "{set:?}: {most} instructions on one path");
        for hot in HOT {
            let steps = steps(u32::try_from(hot).expect("small"));
            assert!(steps <= 4 + HOT.len(), "{set:?}: {steps} instructions for {hot}");
        }
    }
}

#[test]
fn strict_takes_from_the_baseline_and_audit_logs_that() {
    let [baseline, strict, audit] =
        [SyscallSet::Baseline, SyscallSet::Strict, SyscallSet::Audit].map(|set| set.policy());
    let programs = [&strict, &audit].map(|policy| emit::emit(policy).expect("compiles"));
    let mut refused = std::collections::BTreeSet::new();
    for number in numbers() {
        for arguments in arguments(&strict, number) {
            let [before, then, told] =
                [&baseline, &strict, &audit].map(|policy| policy.decide(number, &arguments));
            let [with_strict, with_audit] =
                [0, 1].map(|index| run(&programs[index], ARCHITECTURE, number, &arguments).answer);
            assert_eq!(
                (with_strict, with_audit),
                (then.encoded(), told.encoded()),
                "{number}"
            );
            if before == then {
                assert_eq!(told, before, "{number} {arguments:x?}");
            } else {
                assert_eq!(
                    (before, told),
                    (Action::Allow, Action::Log),
                    "{number} {arguments:x?}"
                );
                refused.insert(number);
            }
        }
    }
    assert!(refused.len() >= 11, "{refused:?}");
    let protect = u32::try_from(libc::SYS_mprotect).expect("small");
    assert_eq!(strict.decide(protect, &[0, 0, 4, 0, 0, 0]), Action::Errno(1));
    assert_eq!(strict.decide(protect, &[0, 0, 3, 0, 0, 0]), Action::Allow);
}

/// The parent of a program that was started beside a container's own is the shim.
#[test]
fn no_process_gets_children_for_its_parent() {
    const PARENT: u64 = 0x8000;
    const SIGCHLD: u64 = 17;
    // As the C library makes threads, and as it and Go start programs.
    let usual = [SIGCHLD, 0x3d_0f00, 0x4100 | SIGCHLD, 0x0120_0000 | SIGCHLD];
    let clone = u32::try_from(libc::SYS_clone).expect("small");
    for set in [
        SyscallSet::Baseline,
        SyscallSet::Strict,
        SyscallSet::Audit,
        SyscallSet::Daemon,
    ] {
        let policy = set.policy();
        for flags in usual {
            let decide = |flags| policy.decide(clone, &[flags, 0, 0, 0, 0, 0]);
            assert_eq!(decide(flags), Action::Allow, "{set:?}: {flags:#x}");
            assert_eq!(decide(flags | PARENT), Action::Errno(1), "{set:?}: {flags:#x}");
        }
    }
}

/// Whatever is asked for in pairs is asked for as what it is.
#[test]
fn pairs_of_sockets_are_of_the_unix_family_only() {
    let [socket, pair] =
        [libc::SYS_socket, libc::SYS_socketpair].map(|number| u32::try_from(number).expect("small"));
    for set in [SyscallSet::Baseline, SyscallSet::Strict, SyscallSet::Daemon] {
        let policy = set.policy();
        for family in 0..=64 {
            let arguments = [family, 1, 0, 0, 0, 0];
            let wanted = match family {
                1 => Action::Allow,
                _ => Action::Errno(1),
            };
            assert_eq!(policy.decide(pair, &arguments), wanted, "{set:?}: {family}");
            let single = policy.decide(socket, &arguments) == Action::Allow;
            assert_eq!(single, [1, 2, 10, 16].contains(&family), "{set:?}: {family}");
        }
    }
    let jail = SyscallSet::Jail.policy();
    assert_eq!(jail.decide(pair, &[1, 1, 0, 0, 0, 0]), Action::Errno(1));
}

/// Shared memory has more than one mapping, of which one is written to and another one called.
#[test]
fn strict_maps_code_privately_only() {
    const READ: u64 = 1;
    const WRITE: u64 = 2;
    const EXECUTE: u64 = 4;
    const PRIVATE: u64 = 0x2;
    const ANONYMOUS: u64 = 0x20;
    let [strict, audit] = [SyscallSet::Strict, SyscallSet::Audit].map(|set| set.policy());
    let map = u32::try_from(libc::SYS_mmap).expect("small");
    let answers = |protection, flags| {
        let arguments = [0, 4096, protection, flags, 0, 0];
        [&strict, &audit].map(|policy| policy.decide(map, &arguments))
    };
    // MAP_SHARED and MAP_SHARED_VALIDATE, of files and of nothing.
    for flags in [0x1, 0x3, 0x1 | ANONYMOUS, 0x3 | ANONYMOUS, 0x1 | (1 << 32)] {
        for protection in [EXECUTE, READ | EXECUTE, READ | WRITE | EXECUTE] {
            assert_eq!(
                answers(protection, flags),
                [Action::Errno(1), Action::Log],
                "{flags:x}"
            );
        }
        assert_eq!(answers(READ | WRITE, flags), [Action::Allow; 2], "{flags:x}");
    }
    for flags in [PRIVATE, PRIVATE | ANONYMOUS, PRIVATE | 0x10] {
        assert_eq!(answers(READ | EXECUTE, flags), [Action::Allow; 2], "{flags:x}");
    }
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let policy = |call, index| SyscallPolicy {
        calls: [(call, conditional(index))].into(),
        ..SyscallSet::Jail.policy()
    };
    assert_eq!(
        emit::emit(&policy(7, 6)).map(drop),
        Err(EmitError::NoArgument { call: 7, index: 6 })
    );
    assert_eq!(
        emit::emit(&policy(X32, 0)).map(drop),
        Err(EmitError::NoCall { call: X32 })
    );
    let long = SyscallPolicy {
        calls: (0..2000).map(|call| (call, conditional(0))).collect(),
        ..SyscallSet::Jail.policy()
    };
    assert!(matches!(emit::emit(&long), Err(EmitError::TooLong { length }) if length > 4096));
}

fn conditional(index: u8) -> CallRule {
    CallRule {
        alternatives: vec![Alternative {
            all_of: vec![Condition {
                index,
                width: Width::Double,
                compare: Compare::Gt,
                value: 7,
            }],
            action: Action::Allow,
        }],
        otherwise: Action::Errno(1),
    }
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        (0_u16..4096).prop_map(Action::Errno),
        Just(Action::Trap),
        Just(Action::KillThread),
        Just(Action::KillProcess),
    ]
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let value = prop_oneof![
        0_u64..4,
        any::<u32>().prop_map(u64::from),
        any::<u64>(),
        Just(u64::MAX),
        any::<u32>().prop_map(|high| u64::from(high) << 32),
    ];
    let compare = prop_oneof![
        Just(Compare::Eq),
        Just(Compare::Ne),
        Just(Compare::Lt),
        Just(Compare::Le),
        Just(Compare::Gt),
        Just(Compare::Ge),
        value.clone().prop_map(Compare::MaskedEq),
    ];
    let width = prop_oneof![Just(Width::Word), Just(Width::Double)];
    (0_u8..6, width, compare, value).prop_map(|(index, width, compare, value)| Condition {
        index,
        width,
        compare,
        value,
    })
}

fn any_rule() -> impl Strategy<Value = CallRule> {
    let alternative = (prop::collection::vec(any_condition(), 0..4), any_action())
        .prop_map(|(all_of, action)| Alternative { all_of, action });
    (prop::collection::vec(alternative, 0..4), any_action()).prop_map(|(alternatives, otherwise)| CallRule {
        alternatives,
        otherwise,
    })
}

fn any_policy() -> impl Strategy<Value = SyscallPolicy> {
    let calls = prop::collection::btree_map(0_u32..520, any_rule(), 0..120);
    (calls, any_action(), 0_u32..520, any_action()).prop_map(|(calls, default, newest_known, newer)| {
        SyscallPolicy {
            calls,
            default,
            newest_known,
            newer,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Policies with all actions, up to the longest programs: jumps over more than 255 instructions are common.
    #[test]
    fn programs_mean_what_their_policies_say(policy in any_policy(), sampled: [u64; 6]) {
        match emit::emit(&policy) {
            Err(error) => prop_assert!(matches!(error, EmitError::TooLong { .. }), "{error}"),
            Ok(program) => {
                for number in (0..540).chain(X32 - 2..X32 + 2).chain([u32::MAX]) {
                    for arguments in arguments(&policy, number).into_iter().chain([sampled]) {
                        let wanted = policy.decide(number, &arguments).encoded();
                        let answer = run(&program, ARCHITECTURE, number, &arguments).answer;
                        prop_assert_eq!(answer, wanted, "{:#x} {:x?}", number, arguments);
                    }
                }
                prop_assert_eq!(run(&program, I386, 0, &sampled).answer, libc::SECCOMP_RET_KILL_PROCESS);
            }
        }
    }

    /// What seccompiler can say: one answer for what matches, one for the rest.
    #[test]
    fn random_allow_lists_judge_like_seccompiler(
        lists in prop::collection::btree_map(0_u32..480, prop::collection::vec(
            prop::collection::vec(any_condition(), 1..4), 0..4), 0..60),
        refusal in 1_u16..4096,
        sampled: [u64; 6],
    ) {
        let rule = |alternatives: Vec<Vec<Condition>>| {
            if alternatives.is_empty() {
                return CallRule::always(Action::Allow);
            }
            let allow = |all_of| Alternative { all_of, action: Action::Allow };
            CallRule {
                alternatives: alternatives.into_iter().map(allow).collect(),
                otherwise: Action::Errno(refusal),
            }
        };
        let mut policy = SyscallPolicy {
            calls: lists.into_iter().map(|(number, alternatives)| (number, rule(alternatives))).collect(),
            default: Action::Errno(refusal),
            newest_known: NEWEST_KNOWN,
            newer: Action::Errno(38),
        };
        let hidden = u32::try_from(CLONE3).expect("small");
        policy.calls.retain(|number, _| *number <= NEWEST_KNOWN);
        policy.calls.insert(hidden, CallRule::always(Action::Errno(38)));
        let theirs = reference(&policy);
        let ours = emit::emit(&policy).expect("short enough");
        // What we answer to x32 calls is ours alone: always EPERM.
        for number in numbers().filter(|number| *number < X32) {
            for arguments in arguments(&policy, number).into_iter().chain([sampled]) {
                let wanted = stacked(&theirs, ARCHITECTURE, number, &arguments);
                let answer = run(&ours, ARCHITECTURE, number, &arguments).answer;
                prop_assert_eq!(answer, wanted, "{:#x} {:x?}", number, arguments);
            }
        }
    }
}

/// A program as the kernel keeps it.
pub(crate) fn parse(bytes: &[u8]) -> Vec<sock_filter> {
    let instruction = |bytes: &[u8]| sock_filter {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    bytes.chunks_exact(8).map(instruction).collect()
}

/// Compares our program for a policy with another one, for the calls that the policy's author knew: runc adds
/// the answer to newer ones to libseccomp's program. Where the profile contradicts itself ours may be stricter.
pub(crate) fn assert_alike(
    policy: &SyscallPolicy,
    theirs: &[sock_filter],
    contradicts: impl Fn(u32) -> bool,
) {
    let ours = emit::emit(policy).expect("compiles");
    let mut compared = 0;
    for number in 0..=policy.newest_known {
        for arguments in arguments(policy, number) {
            let wanted = run(theirs, ARCHITECTURE, number, &arguments).answer;
            let answer = run(&ours, ARCHITECTURE, number, &arguments).answer;
            let stricter = contradicts(number) && answer & 0xffff_0000 < wanted & 0xffff_0000;
            assert!(
                answer == wanted || stricter,
                "{number} {arguments:x?}: {answer:#x}, {wanted:#x}"
            );
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// What the kernel would make of both filters, one after the other.
    #[test]
    fn both_policies_together_allow_what_both_allow(one in any_policy(), other in any_policy(), sampled: [u64; 6]) {
        let both = one.and(&other);
        for number in (0..540).chain([X32 - 1, X32, u32::MAX]) {
            let near = arguments(&one, number).into_iter().chain(arguments(&other, number));
            for arguments in near.chain([sampled]) {
                let wanted = one.decide(number, &arguments).and(other.decide(number, &arguments));
                prop_assert_eq!(both.decide(number, &arguments), wanted, "{} {:x?}", number, arguments);
            }
        }
    }
}
