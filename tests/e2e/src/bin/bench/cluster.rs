//! A whole cluster: how long from apply to Running, and what it costs when idle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::cluster::{Cluster, pod};
use testkit::lab;

use crate::{Line, median_ms, resident_mb};

/// Longest time for one pod; a benchmark that hangs is worse than one that fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a cluster, measures, stops it.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Line>> {
    let cluster = Cluster::start()?;
    let lines = lines(&cluster, rounds);
    cluster.stop()?;
    lines
}

fn lines(cluster: &Cluster, rounds: u32) -> Result<Vec<Line>> {
    let image = cluster.push(&lab::clean()?, "bench/clean", "1")?;
    let yaml = |name: &str| {
        pod(
            "default",
            name,
            "app: bench",
            &image,
            &["sleep", "1000"],
            "restartPolicy: Always",
        )
    };
    // The first pod pays for the pull, the unpacking and the scan.
    let start = Instant::now();
    apply_and_wait(cluster, "cold", &yaml("cold"))?;
    let cold = start.elapsed();
    let (mut whole, mut admitted) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        let name = format!("warm-{number}");
        let start = Instant::now();
        let accepted = apply_and_wait(cluster, &name, &yaml(&name))?;
        whole.push(start.elapsed());
        admitted.push(accepted);
        cluster
            .policyctl(&["delete", "pod", &name, "--grace-period", "0"])?
            .ok()?;
    }
    let shim = shim_pid(cluster.daemon_pid("agent")?)?;
    // Idle is what the line says: the pod's start must be over for a while.
    std::thread::park_timeout(Duration::from_secs(3));
    Ok(vec![
        Line::alone(
            "apply to Running, image present",
            "ms",
            median_ms(whole),
            Some(250.0),
        ),
        Line::alone(
            "  of it until the API accepted the pod",
            "ms",
            median_ms(admitted),
            None,
        ),
        Line::alone(
            "apply to Running, image absent and unscanned",
            "ms",
            median_ms(vec![cold]),
            None,
        ),
        Line::alone(
            "idle memory of palisade-control",
            "MB",
            resident_mb(cluster.daemon_pid("control")?)?,
            Some(100.0),
        ),
        Line::alone(
            "idle memory of palisade-agent",
            "MB",
            resident_mb(cluster.daemon_pid("agent")?)?,
            Some(60.0),
        ),
        Line::alone("idle memory of a shim", "MB", resident_mb(shim)?, Some(6.0)),
    ])
}

/// Applies a pod and waits until the API says Running; returns how long the apply command took.
fn apply_and_wait(cluster: &Cluster, name: &str, yaml: &str) -> Result<Duration> {
    let applied = cluster.policyctl_with_input(&["apply", "-f", "-"], yaml)?.ok()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let object = cluster.object("default", "pods", name)?;
        if object["status"]["phase"] == "Running" {
            return Ok(applied.took);
        }
        if Instant::now() > deadline {
            bail!(
                "{name} does not run: {}\n{}",
                object["status"],
                cluster.daemon_logs()
            );
        }
    }
}

/// A shim: a process that runs the agent's program with the word `shim`.
fn shim_pid(agent: i32) -> Result<i32> {
    let program =
        std::fs::read_link(format!("/proc/{agent}/exe")).context("cannot find the agent's program")?;
    for entry in std::fs::read_dir("/proc").context("cannot list processes")? {
        let path = entry?.path();
        let Ok(command) = std::fs::read_to_string(path.join("cmdline")) else {
            continue;
        };
        let is_shim = command.split('\0').nth(1) == Some("shim");
        if is_shim && std::fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program) {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            return name
                .parse()
                .with_context(|| format!("{name:?} is not a process id"));
        }
    }
    bail!("no shim of agent {agent} runs")
}
