//! The program as a process: what it reads, what it leaves behind for the shell.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs::OpenOptions,
    io::Write,
    process::{Command, Output, Stdio},
};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/shop");

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: a}}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.1}
";

const CASES: &str = "cases: [{from: watch/collector, to: pci/vault, protocol: ICMP, expect: deny}]";

fn policyctl(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_policyctl"));
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs it with something to read.
fn with_input(words: &[&str], input: &str) -> Output {
    let mut command = policyctl(words);
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    // Who has said what is wrong reads no further.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The second would find nothing, and `decide` judge no flow without a word.
#[test]
fn standard_input_stands_for_one_thing() {
    let commands: [&[&str]; 8] = [
        &["decide", "-f", "-", "--flows", "-"],
        &["diff", "-", "-"],
        &["replay", "--flows", "-", "--with", "-"],
        &["recommend", "--flows", "-", "--flows", "-"],
        &["connectivity", "-f", "-", "-f", "-"],
        &["top", "rules", "-f", "-", "--flows", "-"],
        &["test", "-", "-f", "-"],
        &["prove", "--assertions", "-", "-f", "-"],
    ];
    for words in commands {
        let input = match words[0] {
            "replay" | "recommend" | "top" => "",
            "test" => CASES,
            _ => POD,
        };
        let (code, out, error) = said(&with_input(words, input));
        assert_eq!((code, out.as_str()), (Some(1), ""), "{words:?}: {error}");
        assert!(
            error.contains("`-` is standard input, which can be named once"),
            "{words:?}: {error}"
        );
    }
    let (code, out, error) = said(&with_input(&["connectivity", "-f", "-"], POD));
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("shop/a"), "{out}");
}

#[test]
fn cases_and_assertions_are_read_from_standard_input() {
    let manifests = format!("{SHOP}/manifests");
    let (code, out, error) = said(&with_input(&["test", "-f", &manifests, "-"], CASES));
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains("1 of 1 cases pass"), "{out}");
    let assertion = "# what is stored\nno ns(pci) reaches internet\n";
    let (code, out, error) = said(&with_input(
        &["prove", "-f", &manifests, "--assertions", "-"],
        assertion,
    ));
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains("holds   no ns(pci) reaches internet"), "{out}");
}

#[test]
fn a_closed_pipe_ends_it_quietly_and_a_full_disk_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let flows = folder.path().join("flows.jsonl");
    let flow = r#"{"src": {"pod": "watch/collector"}, "dst": {"pod": "pci/vault"}, "port": 80}"#;
    std::fs::write(&flows, format!("{flow}\n").repeat(3000)).unwrap();
    let manifests = format!("{SHOP}/manifests");
    let recorded = format!("{SHOP}/flows.jsonl");
    let flows = flows.display().to_string();
    let commands: [&[&str]; 9] = [
        &["connectivity", "-f", &manifests],
        &["connectivity", "-f", &manifests, "-o", "json"],
        &["decide", "-f", &manifests, "--flows", &flows],
        &[
            "explain",
            "-f",
            &manifests,
            "--from",
            "watch/collector",
            "--to",
            "pci/vault",
            "--port",
            "80",
        ],
        &["recommend", "-f", &manifests, "--flows", &recorded],
        &["top", "rules", "-f", &manifests],
        &["version", "--client"],
        &["completions", "bash"],
        &["--help"],
    ];
    for words in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, _, error) = said(&policyctl(words).stdout(writer).output().unwrap());
        assert_eq!(code, Some(141), "{words:?}: {error}");
        // What stands beside the output is still said.
        assert!(
            error.lines().all(|line| line.starts_with("note: ")),
            "{words:?}: {error}"
        );
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, _, error) = said(&policyctl(words).stdout(full).output().unwrap());
        assert_eq!(code, Some(1), "{words:?}: {error}");
        assert!(
            error.contains("cannot write to standard output: No space left"),
            "{words:?}: {error}"
        );
    }
}

/// As the node does: what the object takes of the container's capabilities counts for the rules of its seccomp profile.
#[test]
fn profiles_are_judged_by_the_capabilities_that_they_leave() {
    let directory = tempfile::tempdir().unwrap();
    let profile = |name: &str, capabilities: &str| {
        let path = directory.path().join(name);
        let text = format!(
            "apiVersion: palisade.dev/v1alpha1
kind: SandboxProfile
metadata: {{name: p}}
spec:
{capabilities}
  seccomp:
    defaultAction: SCMP_ACT_ERRNO
    syscalls:
    - {{names: [chroot], action: SCMP_ACT_ALLOW, includes: {{caps: [CAP_SYS_CHROOT]}}}}
    - {{names: [openat2], action: SCMP_ACT_ALLOW}}
"
        );
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let all = profile("all.yaml", "");
    let few = profile("few.yaml", "  capabilities: [CAP_CHOWN]");
    let most = profile("most.yaml", "  capabilities: [CAP_CHOWN, CAP_SYS_CHROOT]");
    let run = |words: &[&str]| said(&policyctl(words).output().unwrap());
    let explain = |path: &str| run(&["profile", "explain", "chroot", "-p", path]);
    assert_eq!(explain(&all).0, Some(0));
    let (code, out, _) = explain(&few);
    assert_eq!(code, Some(2), "{out}");
    assert!(
        out.starts_with("chroot: EPERM") && out.contains("defaultAction"),
        "{out}"
    );
    let (code, out, _) = run(&["profile", "diff", &all, &few, "-o", "json"]);
    assert_eq!(code, Some(2), "{out}");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["calls"][0]["call"], "chroot", "{out}");
    assert_eq!(told["others"][0]["field"], "capabilities", "{out}");
    assert_eq!(told["others"][0]["after"], "CAP_CHOWN", "{out}");
    let (code, out, _) = run(&["profile", "diff", &all, &most]);
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("tighter") && out.contains("capabilities"), "{out}");
    let cases = directory.path().join("cases.yaml");
    let text = format!(
        "- {{name: kept, syscall: chroot, profile: {most}, expect: allow}}\n\
         - {{name: taken, syscall: chroot, profile: {few}, expect: EPERM}}\n\
         - {{name: code, write: /usr/bin/x, expect: deny}}\n\
         - {{name: own, write: /data/x, profile: strict, expect: allow}}\n\
         - {{name: image, write: /etc/x, profile: strict, expect: deny}}\n"
    );
    std::fs::write(&cases, text).unwrap();
    let cases = cases.display().to_string();
    let (code, out, err) = run(&["profile", "test", &cases, "--volume", "/data"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, out, _) = run(&["profile", "test", &cases]);
    assert!(code == Some(1) && out.contains("4 of 5 cases pass"), "{out}");
}
