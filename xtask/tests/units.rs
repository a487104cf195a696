//! The systemd units that come with Palisade: systemd takes them, and they keep what the daemons rely on.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Command, Output},
};

const AGENT: &str = "palisade-agent.service";
const AT_SHUTDOWN: &str = "palisade-node-shutdown.service";

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd")
}

/// Text of each unit by its name.
fn units() -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory()).expect("the units");
    let units: BTreeMap<String, String> = entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("a plain name");
            (name, fs::read_to_string(entry.path()).expect("text"))
        })
        .collect();
    assert_eq!(units.len(), 4, "{:?}", units.keys());
    units
}

/// Values of an option, in the order of the lines.
fn values<'a>(unit: &'a str, option: &str) -> Vec<&'a str> {
    let lines = unit.lines();
    lines
        .filter_map(|line| line.strip_prefix(option)?.strip_prefix('='))
        .collect()
}

/// A program that ends well, instead of those that are installed elsewhere.
fn verify(units: &BTreeMap<String, String>) -> Option<Output> {
    let copies = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").arg("--man=no");
    for (name, text) in units {
        let path = copies.path().join(name);
        let text = text.replace("/var/lib/palisade/tools/palisade-agent", "/bin/true");
        fs::write(
            &path,
            text.replace("/var/lib/palisade/tools/palisade-control", "/bin/true"),
        )
        .expect("a copy");
        command.arg(path);
    }
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        ran => Some(ran.expect("systemd-analyze runs")),
    }
}

#[test]
fn systemd_takes_the_units() {
    let mut units = units();
    let Some(ran) = verify(&units) else {
        eprintln!("SKIPPED: systemd_takes_the_units, there is no systemd-analyze on this machine");
        return;
    };
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success() && said.is_empty(), "{said}");
    // What it does not know it only says.
    units.get_mut(AGENT).unwrap().push_str("Unheard=of\n");
    let ran = verify(&units).unwrap();
    assert!(!ran.stderr.is_empty(), "an unknown option goes unnoticed");
}

/// Pods outlive the agent: what it mounts is for the next one too, and what filters it would filter them.
#[test]
fn the_agents_unit_changes_nothing_for_pods() {
    let units = units();
    let agent = &units[AGENT];
    let options = agent.lines().filter_map(|line| line.split_once('='));
    for (option, _value) in options.filter(|(option, _)| !option.starts_with('#')) {
        let takes_mounts = [
            "Protect",
            "Private",
            "ReadOnly",
            "ReadWrite",
            "Inaccessible",
            "TemporaryFile",
            "Bind",
            "Root",
        ];
        let filters = [
            "Restrict",
            "SystemCall",
            "MemoryDenyWriteExecute",
            "LockPersonality",
            "CapabilityBounding",
        ];
        let harmful = [&takes_mounts[..], &filters[..]].concat();
        assert!(
            !harmful.iter().any(|prefix| option.starts_with(prefix)),
            "{option}"
        );
    }
    for (option, value) in [
        ("KillMode", "process"),
        ("OOMPolicy", "continue"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("TasksMax", "infinity"),
        ("Restart", "on-failure"),
    ] {
        assert_eq!(values(agent, option), [value], "{option}");
    }
}

#[test]
fn pods_get_their_time_before_network_and_control_plane_go() {
    let units = units();
    let agent_after = values(&units[AGENT], "After").join(" ");
    assert!(
        agent_after.contains("network-online.target") && agent_after.contains("palisade-control.service")
    );
    assert_eq!(values(&units[AT_SHUTDOWN], "After"), [AGENT]);
    // Of `[node_shutdown]`, with what the agent adds: 20 + 3, 10 + 3, and 3 for the last statuses.
    let patience: u32 = values(&units[AT_SHUTDOWN], "TimeoutStopSec")[0].parse().unwrap();
    assert!(patience > 39, "{patience}");
}

/// Runs the command as systemd would, with a `systemctl` that knows one process.
#[test]
fn the_unit_tells_the_agent_and_waits_for_its_end() {
    let units = units();
    let line = values(&units[AT_SHUTDOWN], "ExecStop")[0];
    let script = line
        .strip_prefix("/bin/sh -c '")
        .unwrap()
        .strip_suffix('\'')
        .unwrap();
    let script = script.replace("$$", "$");
    let tools = tempfile::tempdir().unwrap();
    let systemctl = tools.path().join("systemctl");
    let run = |pid: u32| {
        fs::write(&systemctl, format!("#!/bin/sh\necho {pid}\n")).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", tools.path().display());
        let ran = Command::new("/bin/sh")
            .arg("-c")
            .arg(&script)
            .env("PATH", path)
            .output();
        ran.unwrap()
    };
    let mut agent = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = agent.id();
    let ended = std::thread::spawn(move || agent.wait().unwrap());
    let ran = run(pid);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(ended.join().unwrap().signal(), Some(30), "SIGPWR");
    assert!(run(0).status.success(), "there is no agent");
}
