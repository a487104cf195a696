//! What the node and its pods use: measured every ten seconds, for `kubectl top`, for Prometheus, and for whoever must
//! decide which pod has to go when the node has too little left.

mod cadvisor;
pub(crate) mod claims;
mod kubelet;
pub(crate) mod machine;
mod metrics;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_runtime::{ContainerUsage, Measured as Tree, PodUsage, Runtime, measure_tree};
use api::stats::{
    ContainerStats, CpuStats, FsStats, MemoryStats, NodeStats, PodReference, PodStats, ProcessStats, Summary,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Cluster,
    config::Config,
    pods::{
        containers,
        directory::{Directory, Entry},
    },
    policy::chain,
};

use self::claims::Claims;
pub(crate) use self::metrics::resource_exposition;

/// How often processor time and memory are measured: the kubelet's own interval.
const EVERY: Duration = Duration::from_secs(10);
/// How often a pod's share of the disk is, once it was: every file of every container is looked at.
const DISKS_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// What lies beyond is not counted: more than any disk of a node.
const MAX_MEASURED: u64 = 1 << 50;
/// Likewise of file numbers: as many as an ext4 can have.
const MAX_FILES: u64 = 1 << 32;

/// The newest measurements. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stats {
    state: Arc<Mutex<State>>,
    measured: watch::Sender<u64>,
    claims: Claims,
}

struct State {
    node: String,
    cpu: Option<CpuStats>,
    pods: BTreeMap<String, Measured>,
    disks: BTreeMap<String, Disks>,
    config: Config,
}

/// A pod's last measurement.
struct Measured {
    entry: Entry,
    object: Option<Arc<Pod>>,
    cpu: CpuStats,
    containers: Vec<(ContainerUsage, CpuStats)>,
}

/// What a pod has on the node's disk.
#[derive(Debug, Clone, Default)]
struct Disks {
    time: Timestamp,
    layers: BTreeMap<String, Used>,
    logs: BTreeMap<String, Used>,
    volumes: Used,
}

/// A part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    bytes: u64,
    files: u64,
}

impl Stats {
    /// Measures from a task until `shutdown`.
    pub(crate) fn start(
        config: &Config,
        runtime: Runtime,
        cluster: Cluster,
        directory: Directory,
        shutdown: CancellationToken,
    ) -> Self {
        let stats = Self {
            state: Arc::new(Mutex::new(State {
                node: config.node_name.clone(),
                cpu: None,
                pods: BTreeMap::new(),
                disks: BTreeMap::new(),
                config: config.clone(),
            })),
            measured: watch::channel(0).0,
            claims: Claims::default(),
        };
        let measuring = stats.clone();
        let disks = stats.clone().keep_disks(runtime.clone(), directory.clone());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(disks));
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = shutdown.cancelled() => return,
                }
                measuring.measure(&runtime, &cluster, &directory);
            }
        });
        stats
    }

    /// What volumes of claims hold: noted by those who keep them within their capacity.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Raised with every round of measurements.
    pub(crate) fn rounds(&self) -> watch::Receiver<u64> {
        self.measured.subscribe()
    }

    /// Everything, in the kubelet's form.
    pub(crate) fn summary(&self) -> Summary {
        let now = Timestamp::now();
        let state = self.state();
        let disk = machine::file_system(&state.config.agent_dir, now);
        Summary {
            node: NodeStats {
                node_name: state.node.clone(),
                start_time: machine::booted_at(now),
                cpu: state.cpu,
                memory: machine::memory(now),
                fs: disk,
                rlimit: machine::processes(now),
            },
            pods: state
                .pods
                .values()
                .map(|measured| pod_stats(measured, state.disks.get(&measured.entry.id.uid), disk))
                .collect(),
        }
    }

    /// Containers and the machine, under cAdvisor's names.
    pub(crate) fn cadvisor_exposition(&self) -> Result<String, fmt::Error> {
        let summary = self.summary();
        let state = self.state();
        let amounts = crate::node::amounts(&state.config);
        let mut images = cadvisor::Images::new();
        for measured in state.pods.values() {
            for spec in measured.object.iter().flat_map(|pod| containers(pod)) {
                let key = (measured.entry.id.uid.clone(), spec.name.clone());
                images.insert(key, spec.image.clone().unwrap_or_default());
            }
        }
        let machine = cadvisor::Machine {
            processors: amounts.cpu_millis / 1000,
            memory_bytes: amounts.memory_bytes,
        };
        cadvisor::exposition(&summary, &images, &machine)
    }

    /// The node and how much runs on it, under the kubelet's names, without the line that ends a text.
    pub(crate) fn kubelet_exposition(&self) -> Result<String, fmt::Error> {
        let state = self.state();
        let running = state.pods.values().map(|pod| pod.containers.len());
        kubelet::exposition(&state.node, running)
    }

    fn measure(&self, runtime: &Runtime, cluster: &Cluster, directory: &Directory) {
        let objects: BTreeMap<String, Arc<Pod>> = cluster
            .pods()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pod| Some((pod.metadata.uid.clone()?, pod)))
            .collect();
        let mut before = std::mem::take(&mut self.state().pods);
        let mut pods = BTreeMap::new();
        for entry in directory.all() {
            let running = entry.containers.iter().filter(|(_, latest)| latest.running);
            let running: Vec<_> = running
                .map(|(name, latest)| (name.clone(), latest.attempt))
                .collect();
            let usage = match runtime.usage(&entry.id.uid, &running) {
                Ok(usage) => usage,
                Err(error) => {
                    tracing::warn!(pod = entry.id.name, error = chain(&error), "cannot measure a pod");
                    continue;
                }
            };
            let earlier = before.remove(&entry.id.uid);
            let object = objects.get(&entry.id.uid).cloned();
            let measured = compare(entry, object, usage, earlier.as_ref(), Timestamp::now());
            pods.insert(measured.entry.id.uid.clone(), measured);
        }
        let now = Timestamp::now();
        let mut state = self.state();
        let earlier = state.cpu;
        state.cpu = machine::cpu(now).map(|cpu| rated(now, cpu.usage_core_nano_seconds, earlier));
        state.pods = pods;
        drop(state);
        self.measured.send_modify(|round| *round += 1);
    }

    /// Measures disks, one pod after the other, on a thread that may block.
    async fn keep_disks(self, runtime: Runtime, directory: Directory) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let entries = directory.all();
            self.state()
                .disks
                .retain(|uid, _| entries.iter().any(|entry| entry.id.uid == *uid));
            for entry in entries {
                let now = Timestamp::now();
                let fresh = |disks: &Disks| now.duration_since(disks.time) < DISKS_EVERY;
                if self.state().disks.get(&entry.id.uid).is_some_and(fresh) {
                    continue;
                }
                let (runtime, config) = (runtime.clone(), self.state().config.clone());
                let uid = entry.id.uid.clone();
                let work = tokio::task::spawn_blocking(move || disks_of(&runtime, &config, &entry));
                if let Ok(disks) = work.await {
                    self.state().disks.insert(uid, disks);
                }
            }
        }
    }

    /// A panic cannot leave it half-changed: every change replaces a whole field.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a measurement beside the one before, which makes rates of sums.
fn compare(
    entry: Entry,
    object: Option<Arc<Pod>>,
    usage: PodUsage,
    earlier: Option<&Measured>,
    now: Timestamp,
) -> Measured {
    let earlier_of = |container: &ContainerUsage| {
        let mut known = earlier?.containers.iter();
        let same =
            |known: &ContainerUsage| (&known.name, known.attempt) == (&container.name, container.attempt);
        known.find(|(known, _)| same(known)).map(|(_, cpu)| *cpu)
    };
    let containers = usage.containers.into_iter().map(|container| {
        let cpu = rated(now, container.cpu_nanos, earlier_of(&container));
        (container, cpu)
    });
    Measured {
        cpu: rated(now, usage.cpu_nanos, earlier.map(|earlier| earlier.cpu)),
        containers: containers.collect(),
        entry,
        object,
    }
}

/// A sum with its rate since `earlier`. A sum that shrank began anew.
fn rated(now: Timestamp, nanos: u64, earlier: Option<CpuStats>) -> CpuStats {
    let rate = earlier.and_then(|earlier| {
        let passed = u128::try_from(now.duration_since(earlier.time).as_nanos()).ok()?;
        let used = nanos.checked_sub(earlier.usage_core_nano_seconds)?;
        let rate = (u128::from(used) * 1_000_000_000).checked_div(passed)?;
        u64::try_from(rate).ok()
    });
    CpuStats {
        time: now,
        usage_nano_cores: rate,
        usage_core_nano_seconds: nanos,
    }
}

fn pod_stats(measured: &Measured, disks: Option<&Disks>, disk: Option<FsStats>) -> PodStats {
    let Measured {
        entry,
        object,
        cpu,
        containers,
    } = measured;
    let used = |used: Used| {
        let (disk, time) = (disk?, disks?.time);
        Some(FsStats {
            time,
            used_bytes: used.bytes,
            inodes_used: Some(used.files),
            ..disk
        })
    };
    let part = |name: &str, of: fn(&Disks) -> &BTreeMap<String, Used>| used(*of(disks?).get(name)?);
    let status = object.as_ref().and_then(|pod| pod.status.as_ref());
    let started = |name: &str| {
        let inits = status
            .iter()
            .flat_map(|status| status.init_container_statuses.iter().flatten());
        let mains = status
            .iter()
            .flat_map(|status| status.container_statuses.iter().flatten());
        let found = inits.chain(mains).find(|status| status.name == name)?;
        Some(found.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)
    };
    let container = |(usage, cpu): &(ContainerUsage, CpuStats)| ContainerStats {
        name: usage.name.clone(),
        start_time: started(&usage.name),
        cpu: Some(*cpu),
        memory: Some(memory_stats(usage, cpu.time)),
        rootfs: part(&usage.name, |disks| &disks.layers),
        logs: part(&usage.name, |disks| &disks.logs),
    };
    PodStats {
        pod_ref: PodReference {
            name: entry.id.name.clone(),
            namespace: entry.id.namespace.clone(),
            uid: entry.id.uid.clone(),
        },
        start_time: status.and_then(|status| Some(status.start_time.as_ref()?.0)),
        containers: containers.iter().map(container).collect(),
        cpu: Some(*cpu),
        memory: Some(sum(containers, cpu.time)),
        ephemeral_storage: disks.and_then(|disks| used(disks.all())),
        process_stats: Some(ProcessStats {
            process_count: containers.iter().map(|(usage, _)| usage.threads).sum(),
        }),
    }
}

fn memory_stats(usage: &ContainerUsage, time: Timestamp) -> MemoryStats {
    let memory = usage.memory;
    MemoryStats {
        time,
        available_bytes: None,
        usage_bytes: memory.usage,
        working_set_bytes: memory.working_set,
        rss_bytes: Some(memory.anonymous),
        page_faults: Some(memory.page_faults),
        major_page_faults: Some(memory.major_page_faults),
    }
}

/// The pod's own group also has memory of containers that are gone: what nobody uses counts for nobody.
fn sum(containers: &[(ContainerUsage, CpuStats)], time: Timestamp) -> MemoryStats {
    let total = |of: fn(&ContainerUsage) -> u64| containers.iter().map(|(usage, _)| of(usage)).sum();
    MemoryStats {
        time,
        available_bytes: None,
        usage_bytes: total(|usage| usage.memory.usage),
        working_set_bytes: total(|usage| usage.memory.working_set),
        rss_bytes: Some(total(|usage| usage.memory.anonymous)),
        page_faults: Some(total(|usage| usage.memory.page_faults)),
        major_page_faults: Some(total(|usage| usage.memory.major_page_faults)),
    }
}

impl Disks {
    fn all(&self) -> Used {
        let parts = self.layers.values().chain(self.logs.values());
        parts.fold(self.volumes, |sum, part| Used {
            bytes: sum.bytes.saturating_add(part.bytes),
            files: sum.files.saturating_add(part.files),
        })
    }
}

impl Used {
    /// A tree that hides how large it is counts as one that is too large.
    fn of(tree: Tree) -> Self {
        match tree.usage.bytes() {
            Some(bytes) => Self {
                bytes,
                files: tree.files,
            },
            None => Self {
                bytes: MAX_MEASURED,
                files: MAX_FILES,
            },
        }
    }
}

fn disks_of(runtime: &Runtime, config: &Config, entry: &Entry) -> Disks {
    let measure = |path: &std::path::Path| {
        let tree = measure_tree(path, MAX_MEASURED).unwrap_or_else(|error| {
            tracing::debug!(path = %path.display(), %error, "not measured");
            Tree::NOTHING
        });
        Used::of(tree)
    };
    let mut disks = Disks {
        time: Timestamp::now(),
        // Each volume is a file system of its own or a directory here; only the latter are on this disk.
        volumes: measure(&entry.id.directory(config)),
        ..Disks::default()
    };
    for (name, latest) in &entry.containers {
        if let Ok(layer) = runtime.writable_layer(&entry.id.uid, name, latest.attempt) {
            disks.layers.insert(name.clone(), measure(&layer));
        }
        let logs = entry.id.logs(config).join(name);
        disks.logs.insert(name.clone(), measure(&logs));
    }
    disks
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    #[test]
    fn rates_need_two_sums_and_survive_a_new_beginning() {
        let first: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let one = rated(first, 1_000_000_000, None);
        assert_eq!(one.usage_nano_cores, None);
        let two = rated(first + 10.seconds(), 6_000_000_000, Some(one));
        assert_eq!(two.usage_nano_cores, Some(500_000_000), "half a core");
        let anew = rated(first + 20.seconds(), 1, Some(two));
        assert_eq!((anew.usage_nano_cores, anew.usage_core_nano_seconds), (None, 1));
        assert_eq!(
            rated(first, 9, Some(one)).usage_nano_cores,
            None,
            "no time has passed"
        );
    }
}
