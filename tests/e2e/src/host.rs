//! What a host holds that a cluster could leave behind: mounts, links, network namespaces, Palisade's cgroups, BPF
//! objects, firewall tables, sysctls, processes. Taken before and after, the difference must be empty.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

/// Everything found, one line each, prefixed with its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the host now.
    pub fn take() -> Result<Self> {
        let mut lines = BTreeSet::new();
        mounts(&mut lines)?;
        links(&mut lines)?;
        processes_and_namespaces(&mut lines)?;
        cgroups(&mut lines);
        bpf(&mut lines)?;
        firewall(&mut lines)?;
        sysctls(&mut lines)?;
        Ok(Self { lines })
    }

    /// One line for each thing that was found.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// What is here now and was not in `before`, and what was there and is gone.
    pub fn difference(&self, before: &Self) -> Vec<String> {
        let added = self
            .lines
            .difference(&before.lines)
            .map(|line| format!("left behind: {line}"));
        let removed = before
            .lines
            .difference(&self.lines)
            .map(|line| format!("taken away: {line}"));
        added.chain(removed).collect()
    }
}

/// What this host has of one pod: processes, mounts and control groups that name it, each with its kind in front.
pub fn traces(uid: &str) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    mounts(&mut found)?;
    every_cgroup(Path::new("/sys/fs/cgroup"), &mut |path| {
        found.insert(format!("cgroup {}", path.display()));
    });
    for entry in fs::read_dir("/proc").context("cannot list processes")? {
        let path = entry?.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        found.insert(format!("process {} {command}", path.display()));
    }
    found.retain(|line| line.contains(uid));
    Ok(found.into_iter().collect())
}

fn mounts(lines: &mut BTreeSet<String>) -> Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    lines.extend(
        text.lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(|point| format!("mount {point}")),
    );
    Ok(())
}

fn links(lines: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/sys/class/net").context("cannot list links")? {
        lines.insert(format!("link {}", entry?.file_name().to_string_lossy()));
    }
    Ok(())
}

/// Palisade's processes, and the network namespaces that any process is in.
fn processes_and_namespaces(lines: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/proc").context("cannot list processes")? {
        let path = entry?.path();
        // Processes come and go while we look; one that is gone has left nothing.
        if let Ok(namespace) = fs::read_link(path.join("ns/net")) {
            lines.insert(format!("network namespace {}", namespace.display()));
        }
        let Ok(exe) = fs::read_link(path.join("exe")) else {
            continue;
        };
        if exe
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("palisade-"))
        {
            lines.insert(format!("process {} {}", path.display(), exe.display()));
        }
    }
    Ok(())
}

/// Palisade's own: those of services and sessions come and go by themselves.
fn cgroups(lines: &mut BTreeSet<String>) {
    every_cgroup(Path::new("/sys/fs/cgroup"), &mut |path| {
        if path.components().any(|part| part.as_os_str() == "palisade") {
            lines.insert(format!("cgroup {}", path.display()));
        }
    });
}

fn every_cgroup(directory: &Path, found: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found(&path);
            every_cgroup(&path, found);
        }
    }
}

fn bpf(lines: &mut BTreeSet<String>) -> Result<()> {
    for kind in ["prog", "map", "link"] {
        let text = run("bpftool", &["-j", kind, "list"])?;
        let objects: Vec<serde_json::Value> =
            serde_json::from_str(&text).with_context(|| format!("bpftool {kind} list: {text}"))?;
        lines.extend(
            objects
                .iter()
                .map(|o| format!("bpf {kind} {} {}", o["id"], o["name"].as_str().unwrap_or(""))),
        );
    }
    Ok(())
}

fn firewall(lines: &mut BTreeSet<String>) -> Result<()> {
    let text = run("nft", &["list", "tables"])?;
    lines.extend(text.lines().map(|line| format!("nft {line}")));
    Ok(())
}

fn sysctls(lines: &mut BTreeSet<String>) -> Result<()> {
    for name in [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/forwarding",
        "net/ipv6/conf/all/forwarding",
    ] {
        let path = Path::new("/proc/sys").join(name);
        let value = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        lines.insert(format!("sysctl {name} = {}", value.trim()));
    }
    for entry in fs::read_dir("/sys/class/net").context("cannot list links")? {
        let link = entry?.file_name().to_string_lossy().into_owned();
        for name in [
            format!("net/ipv4/conf/{link}/forwarding"),
            format!("net/ipv6/conf/{link}/force_forwarding"),
        ] {
            // Not every kernel has the second, and links come and go.
            if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(&name)) {
                lines.insert(format!("sysctl {name} = {}", value.trim()));
            }
        }
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {arguments:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed something other than UTF-8"))
}
