//! Profiles on the running kernel: a helper confines itself and reports what it can still do.

#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use agent_sandbox::jail::{self, JailSpec, Limits};
use agent_sandbox::{PathAccess, PathRule};

const EPERM: &str = "1";
const EACCES: &str = "13";
const ENOSYS: &str = "38";

#[test]
fn baseline_runs_the_image_and_refuses_what_was_dropped() {
    let image = image();
    let seen = outcomes(Command::new(probe()).arg("image").arg(image.path()));
    expect(
        &seen,
        "ok",
        &[
            "read-code",
            "exec-code",
            "etc-write",
            "etc-rename",
            "entry-exec",
            "app-exec",
            "app-drop",
            "app-replace",
            "tmp-drop",
            "vol-drop",
            "list",
            "memfd-sealed",
        ],
    );
    expect(
        &seen,
        EACCES,
        &[
            "write-code",
            "overwrite-code",
            "usr-bin-create",
            "top-create",
            "app-drop-exec",
            "app-replaced-exec",
            "tmp-drop-exec",
            "vol-drop-exec",
            "smuggle",
        ],
    );
    let start = &seen["start"];
    assert!(
        start.contains("NotMounted") && start.contains("/tmp/usr/bin"),
        "{start}"
    );
    refused_calls(&seen);
}

#[test]
fn a_volume_that_a_link_leads_into_code_is_refused() {
    let image = image();
    let seen = outcomes(
        Command::new(probe())
            .arg("misplaced")
            .arg(image.path())
            .arg("usr/bin/vol"),
    );
    let refused = &seen["restrict"];
    assert!(
        refused.contains("InCode") && refused.contains("/usr/bin/vol"),
        "{refused}"
    );
}

/// There is a mount where the link leads, and it may be another one than the rule is for.
#[test]
fn a_volume_that_is_not_where_its_rule_says_is_refused() {
    let image = image();
    let seen = outcomes(
        Command::new(probe())
            .arg("misplaced")
            .arg(image.path())
            .arg("usr/share/vol"),
    );
    let refused = &seen["restrict"];
    assert!(
        refused.contains("NotMounted") && refused.contains("/tmp/usr/share/vol"),
        "{refused}"
    );
}

/// Kernels of before, on this one: what they lack is left out and told, the rest is in force.
#[test]
fn best_effort_enforces_what_an_older_kernel_has() {
    for (interface, verdict, lacks) in [
        (0, "Partial", vec!["files", "TCP ports", "device commands"]),
        (1, "Partial", vec!["moving files", "TCP ports"]),
        (3, "Partial", vec!["TCP ports", "device commands"]),
        (4, "Partial", vec!["device commands"]),
        (5, "Enforced", vec![]),
    ] {
        let image = image();
        let seen = outcomes(
            Command::new(probe())
                .arg("older")
                .arg(image.path())
                .arg(interface.to_string()),
        );
        assert_eq!(seen["verdict"], verdict, "{interface}");
        for words in &lacks {
            assert!(seen["detail"].contains(words), "{interface}: {}", seen["detail"]);
        }
        let limited = |since, name: &str, errno: &str| {
            let expected = if interface >= since { errno } else { "ok" };
            assert_eq!(seen[name], expected, "{name} on interface {interface}");
        };
        limited(1, "write-code", EACCES);
        if interface > 0 {
            // Without rules the probe has overwritten the program by then.
            limited(1, "tmp-drop-exec", EACCES);
        }
        limited(4, "tcp", EACCES);
        refused_calls(&seen);
    }
}

#[test]
fn daemon_changes_only_its_state() {
    let (inside, outside) = (directory(), directory());
    fs::write(outside.path().join("secret"), "x").expect("write");
    let seen = outcomes(
        Command::new(probe())
            .arg("daemon")
            .arg(inside.path())
            .arg(outside.path()),
    );
    expect(
        &seen,
        "ok",
        &["write-inside", "read-inside", "tcp", "udp", "unix", "thread"],
    );
    expect(&seen, EACCES, &["write-outside", "read-outside", "exec-outside"]);
    expect(&seen, EPERM, &["signal-parent"]);
    refused_calls(&seen);
}

/// A list of prohibitions on top of the baseline, which it cannot open.
#[test]
fn an_imported_profile_takes_away_and_never_adds() {
    let (inside, outside) = (directory(), directory());
    let profile = outside.path().join("seccomp.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30},
        {"names": ["getrandom"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11,
         "args": [{"index": 1, "value": 8, "op": "SCMP_CMP_GT"}]},
        {"names": ["bpf", "ptrace"], "action": "SCMP_ACT_ALLOW"}]}"#;
    fs::write(&profile, text).expect("write");
    let seen = outcomes(Command::new(probe()).arg("oci").arg(&profile).arg(inside.path()));
    expect(&seen, "ok", &["write", "getrandom-8"]);
    expect(&seen, "30", &["mkdir"]);
    expect(&seen, "11", &["getrandom-9"]);
    refused_calls(&seen);
}

#[test]
fn jail_has_no_network_and_only_its_paths() {
    let (inside, outside) = (directory(), directory());
    fs::write(outside.path().join("secret"), "x").expect("write");
    let seen = outcomes(&mut jailed(&probe(), inside.path(), outside.path()));
    expect(&seen, "ok", &["write-inside", "read-inside", "thread"]);
    expect(&seen, EACCES, &["write-outside", "read-outside", "exec-outside"]);
    expect(&seen, EPERM, &["tcp", "udp", "unix", "signal-parent"]);
    refused_calls(&seen);
}

#[test]
fn jail_works_without_privileges() {
    use std::os::unix::process::CommandExt;
    let (inside, outside) = (directory(), directory());
    fs::set_permissions(inside.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    // The target directory may lie where this user cannot go.
    let program = inside.path().join("probe");
    fs::copy(probe(), &program).expect("copy");
    let seen = outcomes(
        jailed(&program, inside.path(), outside.path())
            .uid(65534)
            .gid(65534),
    );
    expect(&seen, "ok", &["write-inside"]);
    expect(&seen, EACCES, &["write-outside", "exec-outside"]);
    expect(&seen, EPERM, &["tcp"]);
}

#[test]
fn jail_gives_the_tool_exactly_its_environment_and_limits() {
    let inside = directory();
    let script = "env; ulimit -n; ulimit -f; pwd; ls -l /proc/self/fd 2>&1";
    let spec = JailSpec {
        program: "/bin/busybox".into(),
        args: ["sh", "-c", script].map(String::from).to_vec(),
        env: vec![("ONLY".into(), "this".into())],
        cwd: inside.path().into(),
        paths: vec![PathRule::new(inside.path(), PathAccess::Read)],
        limits: Limits {
            open_files: 64,
            file_bytes: 1 << 20,
            ..Limits::default()
        },
    };
    let output = run(jail::command(&probe(), &spec)
        .expect("a command")
        .env("LEAKED", "1"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("ONLY=this") && !text.contains("LEAKED"), "{text}");
    assert!(text.contains("\n64\n2048\n"), "{text}");
    assert!(
        text.contains("Permission denied"),
        "/proc is not among the paths: {text}"
    );
}

#[test]
fn jail_says_why_it_did_not_start() {
    let spec = JailSpec {
        program: "/nonexistent/tool".into(),
        args: vec![],
        env: vec![],
        cwd: "/".into(),
        paths: vec![],
        limits: Limits::default(),
    };
    let output = run(&mut jail::command(&probe(), &spec).expect("a command"));
    assert_eq!(output.status.code(), Some(jail::EXIT_NOT_STARTED));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("/nonexistent/tool") && text.contains("No such file"),
        "{text}"
    );
}

#[test]
fn a_process_with_threads_is_not_half_confined() {
    let seen = outcomes(Command::new(probe()).arg("threads"));
    assert!(seen["apply"].contains("one thread; it has 2"), "{seen:?}");
}

fn refused_calls(seen: &BTreeMap<String, String>) {
    let calls = [
        "unshare",
        "keyctl",
        "bpf",
        "mount",
        "ptrace",
        "io_uring",
        "userfaultfd",
    ];
    expect(seen, EPERM, &calls);
    expect(
        seen,
        EPERM,
        &[
            "clone-newuser",
            "clone-parent",
            "x32",
            "memfd",
            "packet",
            "af-alg",
        ],
    );
    expect(seen, ENOSYS, &["clone3", "future"]);
}

fn expect(seen: &BTreeMap<String, String>, wanted: &str, names: &[&str]) {
    for name in names {
        assert_eq!(
            seen.get(*name).map(String::as_str),
            Some(wanted),
            "{name} in {seen:#?}"
        );
    }
}

fn jailed(program: &Path, inside: &Path, outside: &Path) -> Command {
    let spec = JailSpec {
        program: program.into(),
        args: vec!["try".into(), text(inside), text(outside)],
        env: vec![],
        cwd: inside.into(),
        paths: vec![
            PathRule::new(inside, PathAccess::ReadWrite),
            PathRule::optional("/lib", PathAccess::ReadExecute),
            PathRule::optional("/lib64", PathAccess::ReadExecute),
            PathRule::optional("/etc/ld.so.cache", PathAccess::Read),
        ],
        limits: Limits::default(),
    };
    jail::command(program, &spec).expect("a command")
}

/// A small root: programs in and outside the code directories, and what an image keeps writing to.
fn image() -> tempfile::TempDir {
    let root = directory();
    for path in [
        "bin",
        "usr/bin/vol",
        "usr/share/vol",
        "etc",
        "tmp",
        "app",
        "vol",
        "lib",
        "proc",
    ] {
        fs::create_dir_all(root.path().join(path)).expect("mkdir");
    }
    symlink("/usr", root.path().join("tmp/usr")).expect("symlink");
    for path in ["bin/busybox", "app/tool"] {
        fs::copy("/bin/busybox", root.path().join(path)).expect("copy");
    }
    symlink("busybox", root.path().join("bin/sh")).expect("symlink");
    let entry = root.path().join("entry.sh");
    fs::write(&entry, "#!/bin/sh\nexit 0\n").expect("write");
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o755)).expect("chmod");
    root
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn outcomes(command: &mut Command) -> BTreeMap<String, String> {
    let output = run(command);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let pair = |line: &str| {
        line.split_once('=')
            .map(|(name, value)| (name.into(), value.into()))
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(pair)
        .collect()
}

fn run(command: &mut Command) -> Output {
    command
        .output()
        .expect("the helper starts; `cargo test` builds it as an example")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn probe() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps/<test>");
    profile.join("examples/probe")
}
