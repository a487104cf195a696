//! A whole cluster: how long from apply to Running, alone and in crowds, how long a session takes to begin, and what it
//! costs when idle.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use e2e::cluster::{Cluster, pod};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Config,
    api::{AttachParams, ListParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use testkit::lab;
use tokio::runtime::Runtime;

use crate::{Line, Report, median, percentile, proportional_mb, resident_mb};

/// Longest time for what is waited for; a benchmark that hangs is worse than one that fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pods that start together, and pods that stay.
const CROWD: u32 = 100;
const IDLE: u32 = 110;
/// Fewest samples that have a slowest one in a hundred.
const SAMPLES: u32 = 100;
/// How long idle pods are watched.
const WATCHED: Duration = Duration::from_secs(20);
/// How long memory is watched after that, and how often: what a burst needed is given back after some seconds, and what
/// idleness needs comes back in the minute after.
const REMEMBERED: Duration = Duration::from_secs(100);
const LOOK: Duration = Duration::from_secs(5);

/// Starts a cluster, measures, stops it.
pub(crate) fn measure(rounds: u32) -> Result<Report> {
    let cluster = Cluster::start()?;
    let lines = lines(&cluster, rounds);
    cluster.stop()?;
    Ok(Report {
        name: "cluster",
        how: format!("p50 and p99 of {} rounds, the rest once", rounds.max(SAMPLES)),
        lines: lines?,
    })
}

fn lines(cluster: &Cluster, rounds: u32) -> Result<Vec<Line>> {
    let samples = rounds.max(SAMPLES);
    let image = cluster.push(&lab::clean()?, "bench/clean", "1")?;
    let yaml = |name: &str| {
        let command = ["sleep", "100000"];
        pod(
            "default",
            name,
            "app: bench",
            &image,
            &command,
            "restartPolicy: Always",
        )
    };
    let watcher = Watcher::connect(cluster)?;
    let agent = cluster.daemon_pid("agent")?;
    let control = cluster.daemon_pid("control")?;

    // The first pod pays for the pull, the unpacking and the scan.
    let cold = watcher.until_running(cluster, &["cold".to_owned()], &yaml)?.whole;
    let (mut whole, mut admitted) = (Vec::new(), Vec::new());
    for number in 0..samples {
        let name = format!("warm-{number}");
        let took = watcher.until_running(cluster, std::slice::from_ref(&name), &yaml)?;
        whole.push(took.whole);
        admitted.push(took.accepted);
        cluster
            .policyctl(&["delete", "pod", &name, "--grace-period", "0"])?
            .ok()?;
    }
    let sessions = watcher.sessions("cold", samples)?;
    let idle_control = resident_mb(control)?;
    let idle_agent = resident_mb(agent)?;

    let names = |from: u32, to: u32| {
        (from..to)
            .map(|number| format!("crowd-{number}"))
            .collect::<Vec<_>>()
    };
    let crowd = watcher.until_running(cluster, &names(0, CROWD), &yaml)?;
    // One pod of before is among them.
    watcher.until_running(cluster, &names(CROWD, IDLE - 1), &yaml)?;
    // Idle is what the line says: the pods' start must be over for a while.
    std::thread::park_timeout(Duration::from_secs(10));
    let before = processor_ms(agent)?;
    std::thread::park_timeout(WATCHED);
    let used = processor_ms(agent)? - before;
    let crowded = Resident::most(control, agent)?;
    let shims = shims(agent)?;
    let of_shims = |memory: fn(i32) -> Result<f64>| -> Result<f64> {
        Ok(median(
            shims.iter().map(|pid| memory(*pid)).collect::<Result<_>>()?,
        ))
    };
    Ok(vec![
        Line::alone(
            "apply to Running, image present, p50",
            "ms",
            percentile(&whole, 50),
            Some(120.0),
        ),
        Line::alone(
            "apply to Running, image present, p99",
            "ms",
            percentile(&whole, 99),
            Some(400.0),
        ),
        Line::alone(
            "  of it until the API accepted the pod",
            "ms",
            median(admitted),
            None,
        ),
        Line::alone("apply to Running, image absent and unscanned", "ms", cold, None),
        Line::alone(
            "100 pods applied together, until all run",
            "ms",
            crowd.whole,
            Some(8000.0),
        ),
        Line::alone("  of it until the API accepted them", "ms", crowd.accepted, None),
        Line::alone(
            "exec of true, asked to ended, p50",
            "ms",
            percentile(&sessions, 50),
            Some(30.0),
        ),
        Line::alone(
            "exec of true, asked to ended, p99",
            "ms",
            percentile(&sessions, 99),
            None,
        ),
        Line::alone(
            "memory of palisade-control, one pod",
            "MB",
            idle_control,
            Some(100.0),
        ),
        Line::alone("memory of palisade-agent, one pod", "MB", idle_agent, None),
        Line::alone(
            "memory of palisade-control, 110 idle pods, most",
            "MB",
            crowded.control,
            None,
        ),
        Line::alone(
            "memory of palisade-agent, 110 idle pods, most",
            "MB",
            crowded.agent,
            Some(40.0),
        ),
        Line::alone(
            "palisade-agent, 110 idle pods, of one core",
            "%",
            used / WATCHED.as_secs_f64() / 10.0,
            Some(2.0),
        ),
        Line::alone(
            "memory of a shim, its share of shared pages",
            "MB",
            of_shims(proportional_mb)?,
            Some(3.0),
        ),
        Line::alone("memory of a shim, resident", "MB", of_shims(resident_mb)?, None),
    ])
}

/// Resident memory of the two daemons, in MB.
struct Resident {
    control: f64,
    agent: f64,
}

impl Resident {
    /// The most of either in the time that memory is watched.
    fn most(control: i32, agent: i32) -> Result<Self> {
        let mut most = Self {
            control: 0.0,
            agent: 0.0,
        };
        let begun = Instant::now();
        while begun.elapsed() < REMEMBERED {
            most.control = most.control.max(resident_mb(control)?);
            most.agent = most.agent.max(resident_mb(agent)?);
            std::thread::park_timeout(LOOK);
        }
        Ok(most)
    }
}

/// How long pods took from the start of the command, in milliseconds.
struct Took {
    /// Until the command ended, so until the API had accepted all.
    accepted: f64,
    /// Until a watch said that all run.
    whole: f64,
}

/// A client that is told of changes, so that waiting costs the machine nothing.
struct Watcher {
    runtime: Runtime,
    pods: Api<Pod>,
}

impl Watcher {
    fn connect(cluster: &Cluster) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let config = Kubeconfig::read_from(cluster.kubeconfig()).context("cannot read the kubeconfig")?;
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
            anyhow::Ok(api_client::connect(config)?)
        })?;
        let pods = Api::namespaced(client, "default");
        Ok(Self { runtime, pods })
    }

    /// Applies pods with one command and waits until all run.
    fn until_running(
        &self,
        cluster: &Cluster,
        names: &[String],
        yaml: &dyn Fn(&str) -> String,
    ) -> Result<Took> {
        let manifest: Vec<String> = names.iter().map(|name| yaml(name)).collect();
        let before = self
            .runtime
            .block_on(self.pods.list(&ListParams::default().limit(1)))?;
        let version = before
            .metadata
            .resource_version
            .context("a list without a version")?;
        let start = Instant::now();
        cluster
            .policyctl_with_input(&["apply", "-f", "-"], &manifest.join("---\n"))?
            .ok()?;
        let accepted = ms(start);
        let wanted = names.iter().cloned().collect();
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, self.running(&version, wanted)).await })
            .with_context(|| format!("not all of {} pods run\n{}", names.len(), cluster.daemon_logs()))??;
        Ok(Took {
            accepted,
            whole: ms(start),
        })
    }

    async fn running(&self, version: &str, mut wanted: BTreeSet<String>) -> Result<()> {
        let mut events = self.pods.watch(&WatchParams::default(), version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
                continue;
            };
            let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
            if phase == "Running" {
                wanted.remove(&pod.metadata.name.unwrap_or_default());
            }
            if wanted.is_empty() {
                return Ok(());
            }
        }
        bail!("the watch ended")
    }

    /// How long each of some sessions took, from the request to its outcome, in milliseconds.
    fn sessions(&self, pod: &str, rounds: u32) -> Result<Vec<f64>> {
        let options = AttachParams::default().stderr(false);
        let one = async || -> Result<f64> {
            let start = Instant::now();
            let mut process = self.pods.exec(pod, ["true"], &options).await?;
            let outcome = process.take_status().context("a session without an outcome")?;
            let status = outcome.await.context("the session broke off")?;
            if status.status.as_deref() != Some("Success") {
                bail!("true ended with {status:?}");
            }
            let took = ms(start);
            process.join().await?;
            Ok(took)
        };
        self.runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..rounds {
                times.push(one().await?);
            }
            Ok(times)
        })
    }
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Processor time of a process so far, its own and the kernel's on its behalf.
fn processor_ms(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in brackets, may hold anything; user and system time are fields 14 and 15.
    let (_name, rest) = text.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("a short line")?.parse::<f64>()?) };
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok((ticks(11)? + ticks(12)?) * 1000.0 / per_second as f64)
}

/// The shims: processes that run the program beside the agent's, and that are not the first process of a pod, which its
/// shim forks.
fn shims(agent: i32) -> Result<Vec<i32>> {
    let program =
        std::fs::read_link(format!("/proc/{agent}/exe")).context("cannot find the agent's program")?;
    let program = program.with_file_name("palisade-shim");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("cannot list processes")? {
        let path = entry?.path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.trim_end() == "palisade-shim"
            && std::fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program)
        {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            found.push(
                name.parse()
                    .with_context(|| format!("{name:?} is not a process id"))?,
            );
        }
    }
    if found.is_empty() {
        bail!("no shim of agent {agent} runs");
    }
    Ok(found)
}
