//! The program as a process: what it reads, what it leaves behind for the shell.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    path::Path,
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
    // No cluster is asked.
    command.env("KUBECONFIG", "/nonexistent/kubeconfig");
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
        let input = if words.contains(&"replay") || words.contains(&"recommend") || words.contains(&"top") {
            ""
        } else {
            POD
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
