//! Profiles in the shape of Docker's and Podman's, and everything that is refused.

use super::*;

/// Written for these tests: the features of Docker's default profile, with fewer calls.
const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null}
    ],
    "syscalls": [
        {"names": ["read", "write", "exit_group", "futex_time64", "mseal", "newer_than_this_table"],
         "action": "SCMP_ACT_ALLOW"},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["process_vm_readv"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
        {"names": ["process_vm_writev"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.8"}},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 12, "op": "SCMP_CMP_LT"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 9, "op": "SCMP_CMP_NE"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 4294967295, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "comment": "no namespaces",
         "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
         "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"]}},
        {"names": ["clone", "mount"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["bpf"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["swapon"], "action": "SCMP_ACT_KILL"},
        {"names": ["acct"], "action": "SCMP_ACT_TRAP"},
        {"names": ["chroot"], "action": "SCMP_ACT_LOG"},
        {"name": "getpid", "action": "SCMP_ACT_ALLOW", "includes": {}, "excludes": {}},
        {"names": ["sync_file_range2"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["ppc64le"]}},
        {"names": ["getppid"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "arm64"]}},
        {"names": ["getuid"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64", "arm64"]}}
    ]
}"#;

const KERNEL: (u32, u32) = (6, 12);

fn imported(json: &str, capabilities: &[&str]) -> Result<Imported, OciError> {
    let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
    let context = Context {
        capabilities: &capabilities,
        kernel: KERNEL,
    };
    import(json, &context)
}

fn decide(imported: &Imported, name: &str, arguments: [u64; 3]) -> Action {
    let [a, b, c] = arguments;
    let number = names::number_of(name).expect("a call");
    imported.policy.decide(number, &[a, b, c, 0, 0, 0])
}

#[test]
fn a_profile_like_dockers_means_what_runc_makes_of_it() {
    let plain = imported(PROFILE, &[]).expect("valid");
    let free = |name| decide(&plain, name, [0; 3]);
    for name in [
        "read",
        "write",
        "exit_group",
        "mseal",
        "ptrace",
        "getpid",
        "getppid",
    ] {
        assert_eq!(free(name), Action::Allow, "{name}");
    }
    for name in [
        "mount",
        "reboot",
        "process_vm_readv",
        "process_vm_writev",
        "getuid",
        "kexec_load",
    ] {
        assert_eq!(free(name), Action::Errno(1), "{name}");
    }
    assert_eq!(free("clone3"), Action::Errno(38));
    assert_eq!(free("bpf"), Action::KillProcess);
    assert_eq!(free("swapon"), Action::KillThread);
    assert_eq!(free("acct"), Action::Trap);
    assert_eq!(free("chroot"), Action::Log);
    let socket = |family, protocol| decide(&plain, "socket", [family, 1, protocol]);
    assert_eq!(socket(11, 9), Action::Allow);
    assert_eq!(socket(16, 0), Action::Allow);
    assert_eq!(
        socket(16, 9),
        Action::Errno(1),
        "all arguments of a rule must match"
    );
    assert_eq!(socket(12, 0), Action::Errno(1));
    assert_eq!(socket(1 << 32, 0), Action::Errno(1), "all 64 bits count");
    assert_eq!(decide(&plain, "clone", [0x0001_0100, 0, 0]), Action::Allow);
    assert_eq!(decide(&plain, "clone", [0x1000_0000, 0, 0]), Action::Errno(1));
    assert_eq!(decide(&plain, "personality", [0xffff_ffff, 0, 0]), Action::Allow);
    assert_eq!(
        plain.policy.decide(463, &[0; 6]),
        Action::Errno(38),
        "newer than mseal"
    );
    assert_eq!(plain.policy.decide(461, &[0; 6]), Action::Errno(1));

    let notes = plain.notes.join("\n");
    for noted in ["futex_time64", "newer_than_this_table"] {
        assert!(notes.contains(noted), "{notes}");
    }
    if cfg!(target_arch = "x86_64") {
        assert!(
            notes.contains("SCMP_ARCH_X32") && !notes.contains("SCMP_ARCH_ARM"),
            "{notes}"
        );
    }

    let admin = imported(PROFILE, &["CAP_SYS_ADMIN"]).expect("valid");
    assert_eq!(decide(&admin, "clone", [0x1000_0000, 0, 0]), Action::Allow);
    assert_eq!(decide(&admin, "mount", [0; 3]), Action::Allow);
    assert_eq!(
        decide(&admin, "clone3", [0; 3]),
        Action::Errno(1),
        "the rule is not for it"
    );
}

#[test]
fn the_kernel_has_a_version() {
    let (major, minor) = kernel_version();
    assert!(
        (major, minor) >= (5, 13),
        "{major}.{minor}: older ones have no Landlock"
    );
}

#[test]
fn podmans_names_of_errors_are_understood() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS",
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": ""},
            {"names": ["bdflush"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM"},
            {"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EPERM"}]}"#;
    let imported = imported(json, &[]).expect("valid");
    assert_eq!(decide(&imported, "kexec_load", [0; 3]), Action::Errno(1));
    assert_eq!(decide(&imported, "write", [0; 3]), Action::Errno(38));
}

#[test]
fn where_rules_of_a_call_overlap_the_stricter_one_counts() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_LT"}]},
        {"names": ["ioctl"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 1, "value": 7, "op": "SCMP_CMP_EQ"}]}]}"#;
    let imported = imported(json, &[]).expect("valid");
    assert_eq!(decide(&imported, "ioctl", [1, 1, 0]), Action::Allow);
    assert_eq!(decide(&imported, "ioctl", [1, 7, 0]), Action::KillProcess);
    assert_eq!(decide(&imported, "ioctl", [5, 7, 0]), Action::KillProcess);
    assert_eq!(decide(&imported, "ioctl", [5, 1, 0]), Action::Errno(1));
}

#[test]
fn of_rules_that_contradict_each_other_the_stricter_counts_and_it_is_noted() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["setns", "ioctl", "mount"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["setns"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 21522, "op": "SCMP_CMP_EQ"}]},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
        {"names": ["bpf"], "action": "SCMP_ACT_TRAP"}]}"#;
    let imported = imported(json, &[]).expect("valid");
    assert_eq!(decide(&imported, "setns", [0; 3]), Action::Errno(1));
    assert_eq!(decide(&imported, "ioctl", [0, 1, 0]), Action::Allow);
    assert_eq!(decide(&imported, "ioctl", [0, 21522, 0]), Action::Errno(1));
    assert_eq!(decide(&imported, "bpf", [0; 3]), Action::Trap);
    assert_eq!(decide(&imported, "mount", [0; 3]), Action::Allow);
    let noted: Vec<_> = ["setns", "ioctl", "bpf", "mount"]
        .map(|name| imported.notes.iter().filter(|note| note.contains(name)).count())
        .to_vec();
    assert_eq!(noted, [1, 1, 1, 0], "{:?}", imported.notes);
}

#[test]
fn a_list_of_prohibitions_stays_open_to_newer_calls() {
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount", "clock_settime64"], "action": "SCMP_ACT_ERRNO"}]}"#;
    let imported = imported(json, &[]).expect("valid");
    assert_eq!(decide(&imported, "mount", [0; 3]), Action::Errno(1));
    assert_eq!(imported.policy.decide(400, &[0; 6]), Action::Allow);
    assert_eq!(
        imported.policy.decide(0x4000_0001, &[0; 6]),
        Action::Errno(1),
        "x32 is refused all the same"
    );
}

#[test]
fn what_cannot_be_said_is_an_error_that_names_it() {
    let rule = |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#);
    let arg = |args: &str| {
        rule(&format!(
            r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{args}]}}"#
        ))
    };
    let top = |field: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {field}}}"#);
    for (json, named) in [
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#),
            "SCMP_ACT_NOTIFY",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 1}"#),
            "SCMP_ACT_TRACE",
        ),
        (rule(r#"{"names": ["read"], "action": "allow"}"#), "allow"),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}"#),
            "no error number",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}"#),
            "4096",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2, "errno": "EPERM"}"#),
            "two error numbers",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "EWHAT"}"#),
            "EWHAT",
        ),
        (
            rule(r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#),
            "names no system call",
        ),
        (
            rule(r#"{"name": "read", "names": ["write"], "action": "SCMP_ACT_ALLOW"}"#),
            "syscalls[0]",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "arguments": []}"#),
            "arguments",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "four"}}"#),
            "minKernel",
        ),
        (
            rule(r#"{"names": ["raed"], "action": "SCMP_ACT_KILL_PROCESS"}"#),
            "raed",
        ),
        (arg(r#"{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}"#), "args[0]"),
        (
            arg(r#"{"index": 0, "value": 0, "op": "SCMP_CMP_IN"}"#),
            "SCMP_CMP_IN",
        ),
        (
            arg(r#"{"index": 0, "value": 0, "valueTwo": 1, "op": "SCMP_CMP_EQ"}"#),
            "valueTwo",
        ),
        (
            arg(
                r#"{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}"#,
            ),
            "argument 0 twice",
        ),
        (top(r#""listenerPath": "/run/agent.sock""#), "listenerPath"),
        (
            top(r#""flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#),
            "WAIT_KILLABLE_RECV",
        ),
        (
            top(r#""flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]"#),
            "SPEC_ALLOW",
        ),
        (top(r#""architectures": ["SCMP_ARCH_PDP11"]"#), "SCMP_ARCH_PDP11"),
        (
            top(r#""architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86"}]"#),
            "archMap",
        ),
        (top(r#""defaultAktion": 1"#), "defaultAktion"),
        ("x".repeat(MAX_PROFILE + 1), "bytes"),
    ] {
        let error = imported(&json, &[]).expect_err(named);
        let source = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        let text = format!("{error} {source}");
        assert!(text.contains(named), "{named:?} is not in {text:?}");
    }
}

/// What libseccomp makes of a profile, compared call by call; the program is written by `seccomp_export_bpf`
/// from rules that were added as runc adds them.
#[test]
#[ignore = "needs PALISADE_OCI_PROFILE and PALISADE_OCI_BPF, a profile and libseccomp's program for it"]
fn a_whole_profile_judges_as_libseccomps_program_does() {
    let read = |name: &str| std::fs::read(std::env::var_os(name).expect("is set")).expect("reads");
    let json = String::from_utf8(read("PALISADE_OCI_PROFILE")).expect("text");
    let imported = imported(&json, &["CAP_CHOWN"]).expect("valid");
    let program = crate::seccomp::tests::parse(&read("PALISADE_OCI_BPF"));
    let contradicts = |number| {
        let mut notes = imported.notes.iter().filter(|note| note.contains("contradicts"));
        notes.any(|note| {
            let name = note
                .split(" about ")
                .nth(1)
                .and_then(|rest| rest.split(',').next());
            name.and_then(names::number_of) == Some(number)
        })
    };
    crate::seccomp::tests::assert_alike(&imported.policy, &program, contradicts);
}
