//! Kill -9 of the agent in the middle of the steps of a pod's start and end, and a host that went down without a word.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, alive, pod},
    host::Snapshot,
    shell::eventually,
};
use testkit::{
    lab,
    walk::{Fatal, Outcome, Steps, Victim, chosen, follow},
};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("an_agent_may_die_at_any_step", an_agent_may_die_at_any_step),
    (
        "a_host_that_went_down_comes_back",
        a_host_that_went_down_comes_back,
    ),
];

/// Points of a walk that an ordinary run visits; `PALISADE_TEST_WALK=all` visits all of them.
const SOME: usize = 7;
/// For a pod to start or to go, with an agent that has to be started in between.
const PATIENCE: Duration = Duration::from_secs(60);

fn an_agent_may_die_at_any_step(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "crashes/clean", "1")?;
    let yaml = pod(
        "default",
        "walked",
        "app: walked",
        &image,
        &["sleep", "1000"],
        "restartPolicy: Always",
    );
    let before = remains()?;
    // The first brings the image, which nobody does again; the second is counted.
    let mut points: Vec<(usize, usize)> = vec![(usize::MAX, usize::MAX); 2];
    let (mut counted, mut died) = (false, 0);
    while let Some((start, end)) = points.pop() {
        let running = || match &cluster.object("default", "pods", "walked")?["status"]["phase"] {
            phase if phase == "Running" => Ok(()),
            phase => bail!("{phase}"),
        };
        let started = walk(cluster, start, || cluster.apply(&yaml)?.ok().map(drop), running)?;
        let object = cluster
            .wait_for_phase("default", "walked", "Running")
            .with_context(|| format!("{started:?}"))?;
        let uid = object["metadata"]["uid"].as_str().context("a UID")?.to_owned();
        let status = &object["status"]["containerStatuses"][0];
        ensure!(
            status["restartCount"].as_u64() <= Some(1) && object["status"]["podIP"].is_string(),
            "{started:?}: {}",
            object["status"]
        );
        let programs = programs_of(&uid)?;
        ensure!(
            programs == 1,
            "{started:?}: {programs} processes run: {}",
            object["status"]
        );
        // The agent may have told of the pod and not listen yet.
        eventually(Duration::from_secs(20), || {
            let said = cluster.kubectl(&["exec", "walked", "--", "echo", "here"])?.ok()?;
            ensure!(said.stdout == "here\n", "{said}");
            Ok(())
        })?;

        let delete = || {
            let deleted = cluster.kubectl(&["delete", "pod", "walked", "--wait=false"])?;
            deleted.ok().map(drop)
        };
        let gone = || match leftovers(cluster, &uid)?.is_empty() {
            true => Ok(()),
            false => bail!("it is still there"),
        };
        let ended = walk(cluster, end, delete, gone)?;
        eventually(PATIENCE, || {
            let names = cluster.kubectl(&["get", "pods", "-o", "name"])?.ok()?.stdout;
            match names.contains("walked") {
                true => bail!("{ended:?}: it does not go"),
                false => Ok(()),
            }
        })
        .with_context(|| cluster.daemon_logs())?;
        eventually(PATIENCE, || {
            let left = leftovers(cluster, &uid)?;
            let difference = difference(&before, &remains()?);
            ensure!(
                left.is_empty() && difference.is_empty(),
                "{left:?} {difference:?}"
            );
            Ok(())
        })
        .with_context(|| format!("{started:?} {ended:?}"))?;
        died += usize::from(started.killed.is_some()) + usize::from(ended.killed.is_some());
        if points.is_empty() && !std::mem::replace(&mut counted, true) {
            ensure!(started.steps > 20 && ended.steps > 5, "{started:?} {ended:?}");
            points = pairs(&chosen(started.steps, SOME), &chosen(ended.steps, SOME));
        }
    }
    // A later walk may be shorter than the one that was counted, not all of them.
    ensure!(died >= SOME, "only {died} times an agent died");
    Ok(())
}

/// Each point of either list at least once; the first is at the end.
fn pairs(starts: &[usize], ends: &[usize]) -> Vec<(usize, usize)> {
    let at = |list: &[usize], index: usize| list.get(index).copied().unwrap_or(usize::MAX);
    let longest = starts.len().max(ends.len());
    (0..longest)
        .rev()
        .map(|index| (at(starts, index), at(ends, index)))
        .collect()
}

/// Does `work` while the agent is followed and killed at its step `point`, or until it is `done`; then there is an agent
/// again.
fn walk(
    cluster: &Cluster,
    point: usize,
    work: impl FnOnce() -> Result<()>,
    done: impl Fn() -> Result<()>,
) -> Result<Outcome> {
    let agent = cluster.daemon_pid("agent")?;
    let fatal = match point {
        usize::MAX => Fatal::Nowhere,
        point => Fatal::Step(point),
    };
    let tracer = e2e::shell::binaries()?.join("walk");
    let mut walk =
        follow(&tracer, agent, Victim::Itself, Steps::Outward, fatal).context("cannot follow the agent")?;
    work()?;
    let died = || match alive(agent) {
        true => bail!("it lives"),
        false => Ok(()),
    };
    // Whether it was done is for those to say who asked for it.
    drop(eventually(PATIENCE, || died().or_else(|_lives| done())));
    // What it does after all is done are steps too.
    drop(eventually(Duration::from_millis(500), died));
    walk.stop();
    let outcome = walk.outcome()?;
    if !alive(agent) {
        cluster.start_agent("")?;
    }
    Ok(outcome)
}

fn a_host_that_went_down_comes_back(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "crashes/clean", "1")?;
    let before = remains()?;
    let mut uids = Vec::new();
    for (name, restart) in [("again", "Always"), ("once", "Never"), ("gone", "Always")] {
        let policy = format!("restartPolicy: {restart}");
        let yaml = pod(
            "default",
            name,
            "app: rebooted",
            &image,
            &["sleep", "1000"],
            &policy,
        );
        cluster.apply(&yaml)?.ok()?;
        let object = cluster.wait_for_phase("default", name, "Running")?;
        uids.push(object["metadata"]["uid"].as_str().context("a UID")?.to_owned());
    }
    let during = remains()?;
    go_down(cluster, &before, &during)?;
    // Nobody is there to tell: what is left of it on disk must be found by looking.
    cluster
        .kubectl(&["delete", "pod", "gone", "--grace-period=0", "--force"])?
        .ok()?;
    cluster.start_agent("")?;
    let again = eventually(PATIENCE, || {
        let object = cluster.object("default", "pods", "again")?;
        let status = &object["status"]["containerStatuses"][0];
        match status["restartCount"] == 1 && status["state"]["running"].is_object() {
            true => Ok(object.clone()),
            false => bail!("{}", object["status"]),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    let last = &again["status"]["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last.is_object(), "{}", again["status"]);
    let once = cluster.wait_for_phase("default", "once", "Failed")?;
    let ended = &once["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["reason"].is_string(), "{}", once["status"]);
    let uid = again["metadata"]["uid"].as_str().context("a UID")?;
    let programs = programs_of(uid)?;
    ensure!(programs == 1, "{programs} processes run");
    // Those of before went with the host.
    let (told, held) = (&again["status"]["podIPs"], addresses_of(cluster, uid)?);
    ensure!(*told == held, "{told} are told, {held} are the pod's");
    for name in ["again", "once"] {
        cluster.kubectl(&["delete", "pod", name])?.ok()?;
    }
    eventually(PATIENCE, || {
        let difference = difference(&before, &remains()?);
        ensure!(difference.is_empty(), "{difference:?}");
        for uid in &uids {
            let left = leftovers(cluster, uid)?;
            ensure!(left.is_empty(), "{left:?}");
        }
        Ok(())
    })
}

/// The addresses that the node has given to a pod, as its status should have them.
fn addresses_of(cluster: &Cluster, uid: &str) -> Result<serde_json::Value> {
    let leases = fs::read(cluster.state_dir.join("agent/network.json")).context("no leases")?;
    let leases: serde_json::Value = serde_json::from_slice(&leases)?;
    let lease = &leases["leases"][uid];
    let addresses = [&lease["address"], &lease["address6"]].into_iter();
    Ok(addresses
        .filter(|address| address.is_string())
        .map(|address| serde_json::json!({"ip": address}))
        .collect())
}

/// What a reset does to a host: processes, links, control groups and everything in `/run` go at once, whatever is on
/// disk stays.
fn go_down(cluster: &Cluster, before: &Remains, during: &Remains) -> Result<()> {
    let pods = cluster.run_dir.join("pods");
    let mut victims = vec![cluster.daemon_pid("agent")?];
    for entry in fs::read_dir(&pods)? {
        let text = fs::read(entry?.path().join("status.json"))?;
        let status: serde_json::Value = serde_json::from_slice(&text)?;
        victims.push(i32::try_from(status["shim_pid"].as_i64().context("a shim")?)?);
    }
    for victim in &victims {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*victim),
            nix::sys::signal::Signal::SIGKILL,
        )?;
    }
    eventually(Duration::from_secs(20), || {
        match victims.iter().any(|pid| alive(*pid)) {
            true => bail!("not all are dead"),
            false => Ok(()),
        }
    })?;
    let added = during.lines.iter().filter(|line| !before.lines.contains(line));
    let added: Vec<&String> = added.collect();
    for link in added.iter().filter_map(|line| line.strip_prefix("link ")) {
        // Its namespace may have taken it along already.
        drop(Command::new("ip").args(["link", "delete", link]).output()?);
    }
    eventually(Duration::from_secs(20), || {
        // Deepest first.
        for group in added.iter().rev().filter_map(|line| line.strip_prefix("cgroup ")) {
            match fs::remove_dir(group) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("{group}: {error}"),
                _ => {}
            }
        }
        Ok(())
    })?;
    let bpf = cluster.run_dir.join("bpf");
    let unmounted = Command::new("umount").arg(&bpf).output()?;
    ensure!(unmounted.status.success(), "cannot unmount {}", bpf.display());
    for directory in [pods, bpf] {
        fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
    }
    fs::remove_file(cluster.run_dir.join("agent.pid"))?;
    Ok(())
}

/// What pods leave on a host, without what agents come and go with.
struct Remains {
    lines: Vec<String>,
    /// How many of each kind whose names mean nothing.
    counts: BTreeMap<String, usize>,
}

fn remains() -> Result<Remains> {
    let mut counts = BTreeMap::new();
    let mut lines = Vec::new();
    for line in Snapshot::take()?.lines() {
        let kind = line.split(' ').next().unwrap_or_default();
        match kind {
            "mount" | "link" | "cgroup" => lines.push(line.to_owned()),
            // Their numbers are new after a reboot, also those of pods that stay.
            "network" => *counts.entry("network namespaces".to_owned()).or_default() += 1,
            "process" => {
                *counts
                    .entry(line.rsplit('/').next().unwrap_or_default().to_owned())
                    .or_default() += 1;
            }
            _ if line.starts_with("bpf link") || line.starts_with("bpf prog") => {
                *counts.entry("bpf".to_owned()).or_default() += 1;
            }
            _ => {}
        }
    }
    Ok(Remains { lines, counts })
}

fn difference(before: &Remains, after: &Remains) -> Vec<String> {
    let added = after.lines.iter().filter(|line| !before.lines.contains(line));
    let mut found: Vec<String> = added.cloned().collect();
    let more = after
        .counts
        .iter()
        .filter(|(kind, count)| before.counts.get(*kind) < Some(*count));
    found.extend(more.map(|(kind, count)| format!("{count} of {kind}, were {:?}", before.counts.get(kind))));
    found
}

fn programs_of(uid: &str) -> Result<usize> {
    processes_of(uid).map(|processes| processes.len())
}

/// Processes in the control groups of the pod's containers.
pub(crate) fn processes_of(uid: &str) -> Result<Vec<i32>> {
    let mut most: Vec<i32> = Vec::new();
    for hierarchy in hierarchies()? {
        let pod = hierarchy.join("palisade").join(uid);
        let Ok(groups) = fs::read_dir(&pod) else { continue };
        let mut members = Vec::new();
        for group in groups.flatten() {
            let text = fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default();
            members.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        if members.len() > most.len() {
            most = members;
        }
    }
    Ok(most)
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    let mount = Path::new("/sys/fs/cgroup");
    let entries = fs::read_dir(mount)?.flatten().map(|entry| entry.path());
    Ok(entries
        .filter(|path| path.is_dir())
        .chain([mount.to_owned()])
        .collect())
}

/// Files in the agent's directories that still speak of the pod.
fn leftovers(cluster: &Cluster, uid: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let agent = cluster.state_dir.join("agent");
    for directory in [
        agent.join("pods"),
        agent.join("writable"),
        agent.join("logs"),
        cluster.run_dir.join("pods"),
    ] {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().contains(uid) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let leases = fs::read_to_string(agent.join("network.json")).context("no leases")?;
    if leases.contains(uid) {
        found.push("a lease of an address".to_owned());
    }
    Ok(found)
}
