//! Whether the node has too little left, and what is done about it: a condition, and one pod after the other has to go,
//! for want of disk only after the images that nobody uses.
//!
//! Looked at with every round of measurements. What decides is pure: [`Levels::shortages`], [`step`] and
//! `agent_plan::first_to_go`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_plan::{Candidate, Cause, Eviction, Shortage, first_to_go, is_critical};
use api::stats::{ContainerStats, PodStats, Summary};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Thresholds,
    images::Collector,
    pods::{evictions::Evictions, roster::Roster},
    policy::chain,
    stats::Stats,
};

/// What there is too little of, for the node's conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pressures {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) processes: bool,
}

/// How much is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Levels {
    memory_bytes: Option<u64>,
    disk: Option<Share>,
    inodes: Option<Share>,
    processes: Option<Share>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    left: u64,
    of: u64,
}

/// Watches until `shutdown`; the receiver says what the node is short of.
pub(crate) fn start(
    thresholds: Thresholds,
    stats: Stats,
    collector: Collector,
    roster: Roster,
    evictions: Evictions,
    shutdown: CancellationToken,
) -> watch::Receiver<Pressures> {
    let (sender, pressures) = watch::channel(Pressures::default());
    tokio::spawn(async move {
        let mut rounds = stats.rounds();
        let mut seen = Seen::default();
        let mut removal: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                Ok(()) = rounds.changed() => {}
                () = shutdown.cancelled() => return,
                else => return,
            }
            let summary = stats.summary();
            let objects = roster.pods();
            evictions.keep(|uid| objects.contains_key(uid));
            let shortages = Levels::of(&summary).shortages(thresholds);
            let now = Instant::now();
            let pressures = seen.take(&shortages, transition(thresholds), now);
            sender.send_if_modified(|known| std::mem::replace(known, pressures) != pressures);
            // As long as one that has to go is still there, its share will come back: one at a time, but for one that does
            // not end.
            let at = Timestamp::now();
            let waits = summary
                .pods
                .iter()
                .any(|pod| evictions.is_awaited(&pod.pod_ref.uid, at) && !pod.containers.is_empty());
            let images = Images::of(removal.as_ref());
            // What was removed shows in this round, and this round only.
            removal = removal.filter(|_| images == Images::Going);
            let next = shortages.first().filter(|_| !waits);
            let Some((shortage, words)) = next.filter(|(shortage, _)| seen.may_order(*shortage, now)) else {
                continue;
            };
            match step(*shortage, images) {
                Step::RemoveImages => removal = Some(remove_images(collector.clone(), shutdown.clone())),
                Step::Wait => {}
                Step::Evict => {
                    if relieve(*shortage, words, &summary, &objects, &evictions) {
                        seen.ordered(now);
                    }
                }
            }
        }
    });
    pressures
}

/// How far the removal of images is that comes before evictions for want of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Images {
    NotAsked,
    Going,
    /// It ended before this round's measurements.
    Gone,
}

impl Images {
    fn of(removal: Option<&JoinHandle<()>>) -> Self {
        match removal {
            None => Self::NotAsked,
            Some(removal) if removal.is_finished() => Self::Gone,
            Some(_) => Self::Going,
        }
    }
}

/// What is done about a shortage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    RemoveImages,
    Wait,
    Evict,
}

/// As the kubelet: no pod goes for what images that nobody uses take up. They are not waited for by other shortages.
fn step(shortage: Shortage, images: Images) -> Step {
    match (shortage, images) {
        (Shortage::Memory | Shortage::Processes, _) | (_, Images::Gone) => Step::Evict,
        (Shortage::Disk | Shortage::Inodes, Images::NotAsked) => Step::RemoveImages,
        (Shortage::Disk | Shortage::Inodes, Images::Going) => Step::Wait,
    }
}

fn remove_images(collector: Collector, shutdown: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let removed = shutdown.run_until_cancelled(collector.remove_unused()).await;
        if let Some(Err(error)) = removed {
            tracing::warn!(error = chain(&error), "unused images could not be removed");
        }
    })
}

fn transition(thresholds: Thresholds) -> Duration {
    Duration::from_secs(thresholds.transition_seconds.into())
}

/// Orders the pod to go whose turn it is. Whether there is one.
fn relieve(
    shortage: Shortage,
    words: &str,
    summary: &Summary,
    objects: &BTreeMap<String, Arc<Pod>>,
    evictions: &Evictions,
) -> bool {
    let may_go = summary
        .pods
        .iter()
        .filter(|pod| !evictions.is_ordered(&pod.pod_ref.uid));
    let candidates: Vec<Candidate> = may_go
        .filter_map(|pod| candidate(shortage, pod, objects.get(&pod.pod_ref.uid)?))
        .collect();
    let Some(chosen) = first_to_go(shortage, &candidates) else {
        tracing::warn!(
            ?shortage,
            "the node has too little left, and no pod that could go"
        );
        return false;
    };
    let pod = summary.pods.iter().find(|pod| pod.pod_ref.uid == chosen.uid);
    let (Some(pod), Some(object)) = (pod, objects.get(&chosen.uid)) else {
        return false;
    };
    let message = format!("{words}{}", blame(shortage, pod, object));
    tracing::warn!(
        pod = pod.pod_ref.name,
        namespace = pod.pod_ref.namespace,
        message,
        "has to go"
    );
    let eviction = Eviction {
        cause: Cause::Shortage,
        message,
        // As for the kubelet's hard thresholds: as little as there is.
        grace: SignedDuration::ZERO,
        at: Timestamp::now(),
    };
    evictions.order(&chosen.uid, eviction);
    true
}

/// Kubernetes' word for what is short, as resources are named.
fn resource(shortage: Shortage) -> &'static str {
    match shortage {
        Shortage::Memory => "memory",
        Shortage::Disk => "ephemeral-storage",
        Shortage::Inodes => "inodes",
        Shortage::Processes => "pids",
    }
}

/// The pod as one that could go; nothing for one that may not.
fn candidate(shortage: Shortage, pod: &PodStats, object: &Pod) -> Option<Candidate> {
    let spec = object.spec.as_ref()?;
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let running = |name: &str| pod.containers.iter().any(|container| container.name == name);
    let requested = containers
        .filter(|container| running(&container.name))
        .map(|container| requested(shortage, container));
    let used = match shortage {
        Shortage::Memory => pod.memory.map_or(0, |memory| memory.working_set_bytes),
        Shortage::Disk => pod.ephemeral_storage.map_or(0, |disk| disk.used_bytes),
        Shortage::Inodes => pod
            .ephemeral_storage
            .and_then(|disk| disk.inodes_used)
            .unwrap_or(0),
        Shortage::Processes => pod.process_stats.map_or(0, |processes| processes.process_count),
    };
    // Nothing comes back from a pod that does not run.
    (!pod.containers.is_empty() && !is_critical(object)).then(|| Candidate {
        uid: pod.pod_ref.uid.clone(),
        priority: spec.priority.unwrap_or(0),
        requested: requested.fold(0, u64::saturating_add),
        used,
    })
}

fn requested(shortage: Shortage, container: &Container) -> u64 {
    // Nobody can ask for these, so that nobody is kept by it.
    if matches!(shortage, Shortage::Inodes | Shortage::Processes) {
        return 0;
    }
    let requests = container
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    let amount = requests.and_then(|requests| requests.get(resource(shortage)));
    amount
        .and_then(|amount| api::quantity::units(&amount.0).ok())
        .unwrap_or(0)
}

/// Which containers use more than they asked for, in Kubernetes' words.
fn blame(shortage: Shortage, pod: &PodStats, object: &Pod) -> String {
    let used = |container: &ContainerStats| match shortage {
        Shortage::Memory => container.memory.map(|memory| memory.working_set_bytes),
        Shortage::Disk => container
            .rootfs
            .zip(container.logs)
            .map(|(a, b)| a.used_bytes + b.used_bytes),
        // As for the kubelet: they may be a volume's, which is no container's.
        Shortage::Inodes | Shortage::Processes => None,
    };
    let specs = object.spec.iter().flat_map(|spec| &spec.containers);
    let mut text = String::new();
    for spec in specs {
        let stats = pod
            .containers
            .iter()
            .find(|container| container.name == spec.name);
        let asked = requested(shortage, spec);
        if let Some(used) = stats.and_then(used).filter(|used| *used > asked) {
            let (name, word) = (&spec.name, resource(shortage));
            text.push_str(&format!(
                "Container {name} was using {}Ki, request is {}, has larger consumption of {word}. ",
                used / 1024,
                if asked == 0 {
                    "0".to_owned()
                } else {
                    format!("{}Ki", asked / 1024)
                },
            ));
        }
    }
    text
}

impl Levels {
    fn of(summary: &Summary) -> Self {
        let fs = summary.node.fs;
        Self {
            memory_bytes: summary.node.memory.and_then(|memory| memory.available_bytes),
            disk: fs.map(|fs| Share {
                left: fs.available_bytes,
                of: fs.capacity_bytes,
            }),
            // File systems without a fixed number of files report none.
            inodes: fs.filter(|fs| fs.inodes > 0).map(|fs| Share {
                left: fs.inodes_free,
                of: fs.inodes,
            }),
            processes: summary.node.rlimit.map(|processes| Share {
                left: processes.maxpid.saturating_sub(processes.curproc),
                of: processes.maxpid,
            }),
        }
    }

    /// What there is too little of, most urgent first, with Kubernetes' words about it. What cannot be measured is not
    /// short.
    fn shortages(self, thresholds: Thresholds) -> Vec<(Shortage, String)> {
        let mut found = Vec::new();
        let words = |resource: &str, threshold: String, available: String| {
            format!(
                "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. "
            )
        };
        if let Some(left) = self
            .memory_bytes
            .filter(|left| *left < thresholds.memory_available_bytes)
        {
            let threshold = format!("{}Ki", thresholds.memory_available_bytes / 1024);
            found.push((
                Shortage::Memory,
                words("memory", threshold, format!("{}Ki", left / 1024)),
            ));
        }
        let mut share = |share: Option<Share>, percent: u64, shortage| {
            if let Some(Share { left, of }) = share
                && u128::from(left) * 100 < u128::from(of) * u128::from(percent)
            {
                let word = resource(shortage);
                found.push((shortage, words(word, format!("{percent}%"), left.to_string())));
            }
        };
        share(self.disk, thresholds.disk_available_percent, Shortage::Disk);
        share(self.inodes, thresholds.inodes_free_percent, Shortage::Inodes);
        share(
            self.processes,
            thresholds.processes_free_percent,
            Shortage::Processes,
        );
        found
    }
}

/// How long after an eviction nobody else goes for want of disk: its data takes a while to be removed, and how much of the
/// disk each pod has is known by the minute only.
const DISK_SETTLES: Duration = Duration::from_secs(70);

/// When each shortage was last there, and when a pod was last told to go.
#[derive(Debug, Default)]
struct Seen {
    last: [Option<Instant>; 4],
    ordered: Option<Instant>,
}

impl Seen {
    /// Whether what the last eviction frees would show by now.
    fn may_order(&self, shortage: Shortage, now: Instant) -> bool {
        let settles = match shortage {
            Shortage::Disk | Shortage::Inodes => DISK_SETTLES,
            Shortage::Memory | Shortage::Processes => Duration::ZERO,
        };
        self.ordered
            .is_none_or(|ordered| now.saturating_duration_since(ordered) >= settles)
    }

    fn ordered(&mut self, now: Instant) {
        self.ordered = Some(now);
    }

    /// A condition outlasts its shortage for a while, so that it does not flap while pods come and go.
    fn take(&mut self, shortages: &[(Shortage, String)], lasts: Duration, now: Instant) -> Pressures {
        let kinds = [
            Shortage::Memory,
            Shortage::Disk,
            Shortage::Inodes,
            Shortage::Processes,
        ];
        let mut holds = [false; 4];
        for ((kind, last), holds) in kinds.into_iter().zip(&mut self.last).zip(&mut holds) {
            let short = shortages.iter().any(|(shortage, _)| *shortage == kind);
            if short {
                *last = Some(now);
            }
            *holds = short || last.is_some_and(|last| now.saturating_duration_since(last) < lasts);
        }
        let [memory, disk, inodes, processes] = holds;
        Pressures {
            memory,
            disk: disk || inodes,
            processes,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLENTY: Levels = Levels {
        memory_bytes: Some(1 << 30),
        disk: Some(Share { left: 50, of: 100 }),
        inodes: Some(Share { left: 50, of: 100 }),
        processes: Some(Share { left: 50, of: 100 }),
    };

    fn short(levels: Levels) -> Vec<Shortage> {
        let found = levels.shortages(Thresholds::default());
        found.into_iter().map(|(shortage, _)| shortage).collect()
    }

    #[test]
    fn one_eviction_for_want_of_disk_is_waited_for() {
        let now = Instant::now();
        let mut seen = Seen::default();
        assert!(seen.may_order(Shortage::Disk, now));
        seen.ordered(now);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(
            !seen.may_order(Shortage::Disk, later(60)),
            "numbers may be of before"
        );
        assert!(seen.may_order(Shortage::Memory, later(1)));
        assert!(seen.may_order(Shortage::Disk, later(70)));
    }

    #[tokio::test]
    async fn no_pod_goes_for_want_of_disk_before_the_images_that_nobody_uses() {
        for shortage in [Shortage::Disk, Shortage::Inodes] {
            assert_eq!(step(shortage, Images::NotAsked), Step::RemoveImages);
            assert_eq!(step(shortage, Images::Going), Step::Wait);
            assert_eq!(step(shortage, Images::Gone), Step::Evict, "it was not enough");
        }
        for shortage in [Shortage::Memory, Shortage::Processes] {
            for images in [Images::NotAsked, Images::Going, Images::Gone] {
                assert_eq!(step(shortage, images), Step::Evict);
            }
        }
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let removal = tokio::spawn(async { drop(ended.await) });
        assert_eq!(Images::of(None), Images::NotAsked);
        assert_eq!(Images::of(Some(&removal)), Images::Going);
        end.send(()).unwrap();
        while !removal.is_finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!(Images::of(Some(&removal)), Images::Gone);
    }

    #[test]
    fn thresholds_are_kubernetes() {
        assert_eq!(short(PLENTY), []);
        let share = |left| Some(Share { left, of: 100 });
        let memory = |memory_bytes| Levels {
            memory_bytes,
            ..PLENTY
        };
        assert_eq!(short(memory(Some(100 << 20))), []);
        assert_eq!(short(memory(Some((100 << 20) - 1))), [Shortage::Memory]);
        assert_eq!(short(memory(None)), []);
        assert_eq!(
            short(Levels {
                disk: share(10),
                ..PLENTY
            }),
            []
        );
        assert_eq!(
            short(Levels {
                disk: share(9),
                inodes: share(4),
                ..PLENTY
            }),
            [Shortage::Disk, Shortage::Inodes]
        );
        assert_eq!(
            short(Levels {
                inodes: share(4),
                ..PLENTY
            }),
            [Shortage::Inodes]
        );
        assert_eq!(
            short(Levels {
                processes: share(4),
                ..PLENTY
            }),
            [Shortage::Processes]
        );
    }

    #[test]
    fn a_condition_outlasts_its_shortage() {
        let (mut seen, start, lasts) = (Seen::default(), Instant::now(), Duration::from_secs(300));
        let memory = [(Shortage::Memory, String::new())];
        assert!(!seen.take(&[], lasts, start).memory);
        assert!(seen.take(&memory, lasts, start).memory);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(seen.take(&[], lasts, later(299)).memory);
        let over = seen.take(&[], lasts, later(300));
        assert_eq!(over, Pressures::default());
        let inodes = seen.take(&[(Shortage::Inodes, String::new())], lasts, later(301));
        assert!(inodes.disk, "Kubernetes has one condition for both");
    }

    #[test]
    fn whoever_has_the_most_files_goes_for_want_of_file_numbers() {
        let pod = |uid: &str, bytes: u64, files: u64| -> PodStats {
            let now = "2026-01-01T00:00:00Z";
            let disk = json!({"time": now, "availableBytes": 0, "capacityBytes": 0, "usedBytes": bytes,
                "inodesFree": 1, "inodes": 100, "inodesUsed": files});
            serde_json::from_value(json!({
                "podRef": {"name": uid, "namespace": "ns", "uid": uid},
                "containers": [{"name": "c", "rootfs": disk, "logs": disk}],
                "ephemeral-storage": disk,
            }))
            .unwrap()
        };
        let object: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "c", "resources": {"requests": {"ephemeral-storage": "1Gi", "inodes": "1G"}}},
        ]}}))
        .unwrap();
        let pods = [pod("large", 2 << 30, 3), pod("many", 1 << 20, 1_000_000)];
        let first = |shortage| {
            let candidate = |pod| candidate(shortage, pod, &object).unwrap();
            let candidates: Vec<Candidate> = pods.iter().map(candidate).collect();
            first_to_go(shortage, &candidates).unwrap().clone()
        };
        assert_eq!(first(Shortage::Disk).uid, "large");
        let many = first(Shortage::Inodes);
        assert_eq!(
            (many.uid.as_str(), many.requested, many.used),
            ("many", 0, 1_000_000)
        );
        assert_eq!(blame(Shortage::Inodes, &pods[1], &object), "");
        let levels = Levels {
            inodes: Some(Share { left: 4, of: 100 }),
            ..PLENTY
        };
        let (_, words) = levels.shortages(Thresholds::default()).remove(0);
        assert_eq!(
            words,
            "The node was low on resource: inodes. Threshold quantity: 5%, available: 4. "
        );
    }

    #[test]
    fn the_message_names_who_used_more_than_it_asked_for() {
        let now = "2026-01-01T00:00:00Z";
        let pod: PodStats = serde_json::from_value(json!({
            "podRef": {"name": "p", "namespace": "ns", "uid": "u"},
            "memory": {"time": now, "usageBytes": 0, "workingSetBytes": 6 << 20},
            "containers": [
                {"name": "a", "memory": {"time": now, "usageBytes": 0, "workingSetBytes": 4 << 20}},
                {"name": "b", "memory": {"time": now, "usageBytes": 0, "workingSetBytes": 2 << 20}},
            ],
        }))
        .unwrap();
        let object: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"memory": "1Mi"}}},
            {"name": "b", "resources": {"requests": {"memory": "9Mi"}}},
            {"name": "ended", "resources": {"requests": {"memory": "90Mi"}}},
        ]}}))
        .unwrap();
        assert_eq!(
            blame(Shortage::Memory, &pod, &object),
            "Container a was using 4096Ki, request is 1024Ki, has larger consumption of memory. "
        );
        let mut critical = object.clone();
        let mirror = ("kubernetes.io/config.mirror".to_owned(), "h".to_owned());
        critical.metadata.annotations = Some([mirror].into());
        assert_eq!(candidate(Shortage::Memory, &pod, &critical), None, "it stays");
        let candidate = candidate(Shortage::Memory, &pod, &object).unwrap();
        assert_eq!((candidate.requested, candidate.used), (10 << 20, 6 << 20));
    }
}
