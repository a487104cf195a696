//! Which devices a control group lets root of the machine open.

use std::{fmt::Write as _, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// Kind and numbers of null, zero, full, random, urandom, tty, ptmx and a terminal: what every container may open.
pub const ALLOWED: [&str; 8] = [
    "c 1 3", "c 1 5", "c 1 7", "c 1 8", "c 1 9", "c 5 0", "c 5 2", "c 136 0",
];

/// The kernel's log, the console, neighbours of those that are allowed, tunnels, FUSE, the control of loop devices, one of
/// those, and blocks by the numbers of null. Not memory: a kernel that is locked down keeps it from everybody.
pub const DENIED: [&str; 11] = [
    "c 1 11", "c 5 1", "c 5 3", "c 10 200", "c 10 229", "c 10 237", "c 135 0", "c 137 0", "b 7 0", "b 1 3",
    "b 136 0",
];

/// Makes a node for each of these devices and opens it, and returns those that were answered with `EPERM`. It is done by a
/// process of its own as whoever calls, in the group whose directory is given. Whatever else a driver says, or that there
/// is none, does not count.
pub fn denied(group: Option<&Path>) -> Result<Vec<&'static str>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let mut script = String::new();
    if let Some(group) = group {
        writeln!(script, "echo $$ > {}/cgroup.procs || exit 9", group.display())?;
    }
    for device in ALLOWED.iter().chain(&DENIED) {
        writeln!(script, "mknod node {device} || exit 8")?;
        writeln!(script, "echo \"{device}: $( (: < node) 2>&1)\"; rm node")?;
    }
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(directory.path())
        .output()
        .context("cannot run a shell")?;
    ensure!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !said.contains("Permission denied"),
        "nodes cannot be opened here: {said}"
    );
    let mut denied = Vec::new();
    for device in ALLOWED.iter().chain(&DENIED) {
        let begins = format!("{device}:");
        let line = said.lines().find(|line| line.starts_with(&begins));
        let line = line.with_context(|| format!("{device} was not tried: {said}"))?;
        if line.contains("Operation not permitted") {
            denied.push(*device);
        }
    }
    Ok(denied)
}
