//! What the system call filter costs per call, on the running kernel, and what it costs to compile one, which each start of a
//! container and each exec session does.
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

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use agent_sandbox::object::{self, Surroundings};
use agent_sandbox::{
    Action, Compare, Filter, Profile, SyscallPolicy, SyscallSet, TcpPorts, Width, call_name,
};
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
    for (name, profile) in profiles() {
        let compile = (0..200).map(|_| {
            let begun = Instant::now();
            profile.compile().expect("compiles");
            begun.elapsed().as_secs_f64() * 1e6
        });
        let compile = compile.fold(f64::INFINITY, f64::min);
        let filter = Filter::compile(&profile.syscall_policy()).expect("compiles");
        println!(
            "{name}: {} instructions, compiled in {compile:.0} us",
            filter.instructions()
        );
    }
    let theirs = reference(&SyscallSet::Baseline.policy()).len();
    println!("baseline by seccompiler: {theirs} instructions and 6");
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

fn profiles() -> [(&'static str, Profile); 4] {
    let strict = Profile::strict(TcpPorts {
        bind: Some([8080].into()),
        connect: Some([53, 443, 5432].into()),
    });
    let docker = docker();
    let around = Surroundings {
        declared: &BTreeSet::new(),
        egress: None,
        capabilities: &[],
        kernel: (6, 12),
        floor: 5,
    };
    let with_docker = |mut profile: Profile| {
        object::filter(&mut profile, &docker, &around).expect("imports");
        profile
    };
    [
        ("baseline", Profile::baseline()),
        ("baseline and Docker's shape", with_docker(Profile::baseline())),
        ("strict", strict.clone()),
        ("strict and Docker's shape", with_docker(strict)),
    ]
}

/// A profile with the shape of Docker's default: one rule for all harmless calls, some for arguments.
fn docker() -> String {
    let baseline = SyscallSet::Baseline.policy();
    let argued = ["socket", "personality", "clone", "clone3"];
    let names = baseline.calls.keys().filter_map(|number| call_name(*number));
    let names: Vec<_> = names.filter(|name| !argued.contains(name)).collect();
    let argument = |call: &str, index: u32, value: u64, op: &str| {
        serde_json::json!({"names": [call], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": index, "value": value, "valueTwo": 0, "op": op}]})
    };
    let personalities = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
    let personalities = personalities.map(|value| argument("personality", 0, value, "SCMP_CMP_EQ"));
    let rules = [
        serde_json::json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        argument("socket", 0, 40, "SCMP_CMP_NE"),
        argument("clone", 0, 0x7e02_0000, "SCMP_CMP_MASKED_EQ"),
        serde_json::json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
    ];
    let rules: Vec<_> = rules.into_iter().chain(personalities).collect();
    serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules})
        .to_string()
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
