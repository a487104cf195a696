//! What the system call filter costs per call, on the running kernel.
//!
//!     cargo bench -p agent-sandbox --bench filter
//!
//! Each sample is a process of its own, since a filter is for good: without a filter, with ours, with the
//! two of seccompiler that ours replaced. They take turns, so that a busy machine is busy for all; the
//! quickest slice of each counts. `getppid` is answered from the kernel's bitmap, `socket` (of a family
//! that does not exist) is judged by its argument.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measuring tool for developers"
)]

use std::process::Command;
use std::time::Instant;

use agent_sandbox::{Action, Compare, Filter, SyscallPolicy, SyscallSet, Width};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Calls of one slice: short enough that some slices of a busy machine are not interrupted.
const CALLS: u32 = 5_000;
const SLICES: usize = 200;
const ROUNDS: usize = 15;
const FILTERS: [&str; 3] = ["none", "palisade", "seccompiler"];
const KINDS: [&str; 2] = ["getppid", "socket"];
/// What one allowed call may cost more, in nanoseconds.
const TARGET: f64 = 45.0;

fn main() {
    // `cargo bench` passes `--bench`.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    match words.as_slice() {
        [filter, kind] => println!("{}", sample(filter, kind)),
        _ => compare(),
    }
}

fn compare() {
    let own = std::env::current_exe().expect("a path");
    let policy = SyscallSet::Baseline.policy();
    let begun = Instant::now();
    for _ in 0..100 {
        Filter::compile(&policy).expect("compiles");
    }
    let compile = begun.elapsed().as_secs_f64() * 1e6 / 100.0;
    let ours = Filter::compile(&policy).expect("compiles").instructions();
    let theirs = reference(&policy).len();
    println!("instructions: {ours}, seccompiler {theirs} and 6; compiled in {compile:.0} us");
    for kind in KINDS {
        let mut best = [f64::INFINITY; FILTERS.len()];
        for _ in 0..ROUNDS {
            for (best, filter) in best.iter_mut().zip(FILTERS) {
                let output = Command::new(&own).args([filter, kind]).output().expect("runs");
                let text = String::from_utf8(output.stdout).expect("text");
                *best = best.min(text.trim().parse().expect("nanoseconds"));
            }
        }
        let [none, ours, theirs] = best;
        println!(
            "{kind}: {none:.0} ns without, {:+.0} with ours, {:+.0} with seccompiler's (target {TARGET:.0})",
            ours - none,
            theirs - none
        );
    }
}

/// Nanoseconds per call in this process.
fn sample(filter: &str, kind: &str) -> f64 {
    let policy = SyscallSet::Baseline.policy();
    match filter {
        "palisade" => Filter::compile(&policy)
            .expect("compiles")
            .install()
            .expect("installs"),
        "seccompiler" => {
            seccompiler::apply_filter(&reference(&policy)).expect("installs");
            seccompiler::apply_filter(&unknown(&policy)).expect("installs");
        }
        _ => {}
    }
    let slice = || {
        let begun = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: neither call takes a pointer; a socket of that type cannot be made.
            unsafe {
                match kind {
                    "socket" => libc::syscall(libc::SYS_socket, libc::AF_INET, 77, 0),
                    _ => libc::syscall(libc::SYS_getppid),
                }
            };
        }
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    (0..SLICES).map(|_| slice()).fold(f64::INFINITY, f64::min)
}

fn reference(policy: &SyscallPolicy) -> BpfProgram {
    let mut rules = std::collections::BTreeMap::new();
    for (number, rule) in &policy.calls {
        let alternatives = rule.alternatives.iter().map(|alternative| {
            let conditions = alternative.all_of.iter().map(|condition| {
                let width = match condition.width {
                    Width::Word => SeccompCmpArgLen::Dword,
                    Width::Double => SeccompCmpArgLen::Qword,
                };
                let compare = match condition.compare {
                    Compare::MaskedEq(mask) => SeccompCmpOp::MaskedEq(mask),
                    _ => SeccompCmpOp::Eq,
                };
                SeccompCondition::new(condition.index, width, compare, condition.value).expect("valid")
            });
            SeccompRule::new(conditions.collect()).expect("valid")
        });
        let alternatives: Vec<_> = alternatives.collect();
        if !alternatives.is_empty() || rule.otherwise == Action::Allow {
            rules.insert(i64::from(*number), alternatives);
        }
    }
    let arch = std::env::consts::ARCH.try_into().expect("known");
    SeccompFilter::new(rules, SeccompAction::Errno(1), SeccompAction::Allow, arch)
        .expect("valid")
        .try_into()
        .expect("compiles")
}

/// The second filter, of which each call ran six instructions before the kernel had a bitmap.
fn unknown(policy: &SyscallPolicy) -> BpfProgram {
    let instruction = |code: u16, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    let clone3 = u32::try_from(libc::SYS_clone3).expect("small");
    vec![
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 3, 0, clone3),
        instruction(0x35, 1, 0, 0x4000_0000),
        instruction(0x35, 1, 0, policy.newest_known + 1),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | 38),
    ]
}
