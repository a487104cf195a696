//! The program as a process: what it reads, what it leaves behind for the shell.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
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

/// A cluster of two nodes, of which one does not answer, as far as its API is asked for flows. It ends with the test.
fn half_a_cluster() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // A client may open one connection more than it uses.
        for stream in listener.incoming() {
            std::thread::spawn(|| answer(stream.unwrap()));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else {
        return;
    };
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    let path = request.split(' ').nth(1).unwrap();
    let (status, body) = if path == "/api/v1/nodes" {
        let nodes = r#"{"kind": "NodeList", "apiVersion": "v1", "metadata": {},
            "items": [{"metadata": {"name": "away"}}, {"metadata": {"name": "there"}}]}"#;
        ("200 OK", nodes.to_owned())
    } else if let Some(after) = path.strip_prefix("/api/v1/nodes/there/proxy/flows?follow=true&after=") {
        // One line, and the agent starts again.
        let number = after.parse::<u64>().unwrap() + 1;
        let lost = format!(
            r#"{{"sequence":{number},"time":"2026-11-28T10:00:00Z","node":"there","lost":1,"at":"kernel"}}"#
        );
        ("200 OK", lost + "\n")
    } else if path.starts_with("/api/v1/nodes/there/proxy/flows?") {
        let flows = std::fs::read_to_string(format!("{SHOP}/flows.jsonl")).unwrap();
        ("200 OK", flows)
    } else {
        let status = r#"{"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 503,
            "reason": "ServiceUnavailable", "message": "the node does not answer"}"#;
        ("503 Service Unavailable", status.to_owned())
    };
    let length = body.len();
    let head = "Content-Type: application/json\r\nConnection: close";
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
}

/// Its kubeconfig, in this folder.
fn kubeconfig_of_half_a_cluster(folder: &Path) -> String {
    let kubeconfig = folder.join("kubeconfig");
    let cluster = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
         users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
        half_a_cluster()
    );
    std::fs::write(&kubeconfig, cluster).unwrap();
    kubeconfig.display().to_string()
}

#[test]
fn a_node_that_tells_no_more_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig_of_half_a_cluster(folder.path());
    let mut command = policyctl(&[
        "flows",
        "-f",
        "-o",
        "json",
        "--limit",
        "0",
        "--kubeconfig",
        &kubeconfig,
    ]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let numbers: Vec<u64> = lines
        .take(3)
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap()["sequence"]
                .as_u64()
                .unwrap()
        })
        .collect();
    child.kill().unwrap();
    let (_, _, error) = said(&child.wait_with_output().unwrap());
    assert_eq!(numbers, [1, 2, 3], "{error}");
    assert!(
        error.contains("note: node there tells no more; it is asked again"),
        "{error}"
    );
}

#[test]
fn a_node_that_does_not_answer_silences_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig_of_half_a_cluster(folder.path());
    let ask = |words: &[&str]| {
        let words = [words, &["--kubeconfig", &kubeconfig]].concat();
        said(&policyctl(&words).output().unwrap())
    };
    let why = "error: node away: the server refused (ServiceUnavailable): the node does not answer";
    let (code, out, error) = ask(&["flows", "-o", "json"]);
    assert_eq!((code, error.trim_end()), (Some(1), why), "{out}");
    let flows = std::fs::read_to_string(format!("{SHOP}/flows.jsonl")).unwrap();
    assert_eq!(out.lines().count(), flows.lines().count());
    // An answer about half of the record would be none.
    let manifests = format!("{SHOP}/manifests");
    for words in [["recommend", "-f"], ["replay", "--with"]] {
        let (code, out, error) = ask(&[words[0], words[1], &manifests]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
        assert!(
            error.contains("not every node told its flows (node away: "),
            "{error}"
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
