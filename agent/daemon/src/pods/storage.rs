//! What a pod takes on the node's disk, against what it may: limits of volumes (`emptyDir.sizeLimit`), of containers
//! and of the pod (`ephemeral-storage`), and of the provisioned volumes behind its claims (their capacity). A pod that is
//! over one is evicted, as the kubelet does.
//!
//! [`Limits::of`] and [`Limits::excess`] are pure; [`measure`] walks directories and belongs on a thread that may block.
//!
//! The kernel offers no quota for directories of an ordinary ext4, so use is measured: between two looks a pod may write
//! as much as the disk takes. Volumes in memory have a size that the kernel keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_runtime::{Usage, measure_tree};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::{
    claims::{Capacity, Claimed},
    limits::{at_once, is_sidecar},
    volumes,
};
use crate::stats::claims::Filled;

/// Time between two looks at a pod: the kubelet's.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A look that took long is followed by a pause this many times as long: a tenth of a disk's time at most.
const PAUSE_FACTOR: u32 = 9;

/// What a pod may take, in bytes; only what is limited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// By volume, with the limit as it was written.
    volumes: BTreeMap<String, (u64, String)>,
    /// By container, likewise.
    containers: BTreeMap<String, (u64, String)>,
    /// What the pod may take, if any of its containers has a limit.
    pod: Option<u64>,
    /// Volumes on the disk, which count for the pod.
    on_disk: Vec<String>,
    /// All containers of the pod.
    names: Vec<String>,
    /// Provisioned volumes that it may write to, by their names in the pod. They outlive it, so they do not count for it.
    claims: BTreeMap<String, (PathBuf, Capacity)>,
}

/// What is over its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excess {
    /// In Kubernetes' words, with the numbers.
    pub(super) message: String,
    /// The directory of a provisioned volume, if that is what is full.
    pub(super) full: Option<PathBuf>,
}

/// What a pod takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken {
    volumes: BTreeMap<String, Usage>,
    containers: BTreeMap<String, Usage>,
    /// Of these what an init container that has ended left behind: the pod's limit is for what is there at one time.
    left: BTreeSet<String>,
    claims: BTreeMap<String, Usage>,
}

/// Where a container's writing goes.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// Below it, the pod's volumes.
    pub(super) volumes: PathBuf,
    /// By container: its writable layer and its logs.
    pub(super) containers: BTreeMap<String, [PathBuf; 2]>,
    /// Init containers that have ended.
    pub(super) ended: BTreeSet<String>,
}

impl Limits {
    /// The limits of a pod, or nothing if it has none. What does not parse limits to nothing: admission lets none
    /// through.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let parsed = |quantity: &str| (api::quantity::units(quantity).unwrap_or(0), quantity.to_owned());
        let mut limits = Self::default();
        for volume in spec.volumes.iter().flatten() {
            let Some(source) = &volume.empty_dir else { continue };
            if source.medium.as_deref() == Some("Memory") {
                continue;
            }
            limits.on_disk.push(volume.name.clone());
            // As in Kubernetes, zero is no limit.
            let is_zero = |limit: &str| api::quantity::units(limit).is_ok_and(|bytes| bytes == 0);
            if let Some(limit) = source.size_limit.as_ref().filter(|limit| !is_zero(&limit.0)) {
                limits.volumes.insert(volume.name.clone(), parsed(&limit.0));
            }
        }
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        for container in spec.containers.iter().chain(inits) {
            limits.names.push(container.name.clone());
            if let Some(limit) = limit_of(container) {
                limits.containers.insert(container.name.clone(), parsed(limit));
            }
        }
        if !limits.containers.is_empty() {
            let bytes = |container: &Container| limit_of(container).map_or(0, |limit| parsed(limit).0);
            let inits = inits.iter().map(|init| (is_sidecar(init), bytes(init)));
            limits.pod = Some(at_once(spec.containers.iter().map(bytes), inits));
        }
        // Those for debugging have no limits of their own, but what they write is the pod's.
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        limits
            .names
            .extend(ephemeral.map(|container| container.name.clone()));
        let claims = spec.volumes.iter().flatten();
        let mut claims = claims.filter(|volume| volume.persistent_volume_claim.is_some());
        let any = !limits.volumes.is_empty() || !limits.containers.is_empty() || claims.next().is_some();
        any.then_some(limits)
    }

    /// The same with what stands behind the pod's claims, which its object does not say.
    pub(super) fn with_claims(mut self, found: &[(String, Claimed)]) -> Self {
        for (volume, claimed) in found {
            if let Claimed::Own {
                directory,
                read_only: false,
                capacity,
            } = claimed
            {
                self.claims
                    .insert(volume.clone(), (directory.clone(), capacity.clone()));
            }
        }
        self
    }

    /// As much as is worth knowing of anything: more than any limit.
    fn enough(&self) -> u64 {
        let volumes = self.volumes.values().map(|(limit, _)| *limit);
        volumes.chain(self.pod).max().unwrap_or(0)
    }

    /// What is over its limit; nothing if nothing is.
    pub(super) fn excess(&self, taken: &Taken) -> Option<Excess> {
        for (name, (directory, capacity)) in &self.claims {
            if let Some(found) = over(taken.claims.get(name), capacity.bytes) {
                let written = &capacity.written;
                return Some(Excess {
                    message: format!(
                        "Usage of PersistentVolumeClaim volume \"{name}\" exceeds the capacity \"{written}\": {found}."
                    ),
                    full: Some(directory.clone()),
                });
            }
        }
        let message = self.excess_of_pod(taken)?;
        Some(Excess { message, full: None })
    }

    /// How full the volumes of claims are, by the pod's names for them. One that hides how much it holds counts as full.
    pub(super) fn filled(&self, taken: &Taken) -> BTreeMap<String, Filled> {
        let filled = |(name, (_, capacity)): (&String, &(PathBuf, Capacity))| {
            let usage = *taken.claims.get(name)?;
            let filled = Filled {
                used_bytes: usage.bytes().unwrap_or(capacity.bytes),
                capacity_bytes: capacity.bytes,
            };
            Some((name.clone(), filled))
        };
        self.claims.iter().filter_map(filled).collect()
    }

    /// The same of what ends with the pod.
    fn excess_of_pod(&self, taken: &Taken) -> Option<String> {
        for (name, (limit, written)) in &self.volumes {
            if let Some(found) = over(taken.volumes.get(name), *limit) {
                return Some(format!(
                    "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{written}\": {found}."
                ));
            }
        }
        if let Some(limit) = self.pod {
            let volumes = taken.volumes.iter();
            let volumes = volumes.filter(|(name, _)| self.on_disk.contains(name));
            let containers = taken.containers.iter();
            let containers = containers.filter(|(name, _)| !taken.left.contains(*name));
            let all = volumes.chain(containers).map(|(_, usage)| usage);
            let sum = all.fold(Usage::Whole(0), |sum, usage| sum.and(*usage));
            if let Some(found) = over(Some(&sum), limit) {
                return Some(format!(
                    "Pod ephemeral local storage usage exceeds the total limit of containers {limit}: {found}."
                ));
            }
        }
        for (name, (limit, written)) in &self.containers {
            if let Some(found) = over(taken.containers.get(name), *limit) {
                return Some(format!(
                    "Container {name} exceeded its local ephemeral storage limit \"{written}\": {found}."
                ));
            }
        }
        None
    }

    /// Names of all containers.
    pub(super) fn containers(&self) -> &[String] {
        &self.names
    }
}

/// Looks at the disk.
pub(super) fn measure(limits: &Limits, places: &Places) -> io::Result<Taken> {
    let enough = limits.enough();
    let mut taken = Taken::default();
    for name in &limits.on_disk {
        let usage = measure_tree(&volumes::path_of(&places.volumes, name), enough)?.usage;
        taken.volumes.insert(name.clone(), usage);
    }
    for (name, (directory, capacity)) in &limits.claims {
        let usage = measure_tree(directory, capacity.bytes)?.usage;
        taken.claims.insert(name.clone(), usage);
    }
    // Without a limit of containers theirs is nobody's business.
    if limits.containers.is_empty() {
        return Ok(taken);
    }
    taken.left.clone_from(&places.ended);
    for (name, paths) in &places.containers {
        let mut usage = Usage::Whole(0);
        for path in paths {
            usage = usage.and(measure_tree(Path::new(path), enough)?.usage);
        }
        taken.containers.insert(name.clone(), usage);
    }
    Ok(taken)
}

/// When to look again after a look that took `took`.
pub(super) fn pause(took: Duration) -> Duration {
    LOOK_EVERY.max(took.saturating_mul(PAUSE_FACTOR))
}

fn over(usage: Option<&Usage>, limit: u64) -> Option<String> {
    match usage? {
        Usage::Whole(bytes) if *bytes > limit => Some(format!("{bytes} bytes are used")),
        Usage::AtLeast(bytes) if *bytes > limit => Some(format!("at least {bytes} bytes are used")),
        // Whoever hides behind depth has no limit else.
        Usage::TooDeep => {
            Some("it has more than 512 directories in one another, which are not measured".to_owned())
        }
        _ => None,
    }
}

fn limit_of(container: &Container) -> Option<&str> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    limits.get("ephemeral-storage").map(|limit| limit.0.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn limits(volumes: &Value, storage: &[Option<&str>]) -> Option<Limits> {
        let container = |(index, limit): (usize, &Option<&str>)| {
            let limits = limit.map(|limit| json!({"ephemeral-storage": limit}));
            json!({"name": format!("c{index}"), "resources": {"limits": limits}})
        };
        let containers: Vec<Value> = storage.iter().enumerate().map(container).collect();
        let pod = json!({"spec": {"containers": containers, "volumes": volumes}});
        Limits::of(&serde_json::from_value(pod).unwrap())
    }

    fn taken(volumes: &[(&str, u64)], containers: &[(&str, u64)]) -> Taken {
        let all = |pairs: &[(&str, u64)]| {
            pairs
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), Usage::Whole(*bytes)))
                .collect()
        };
        Taken {
            volumes: all(volumes),
            containers: all(containers),
            ..Taken::default()
        }
    }

    #[test]
    fn pods_without_limits_are_not_looked_at() {
        assert_eq!(limits(&json!([{"name": "v", "emptyDir": {}}]), &[None]), None);
        let memory = json!([{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
        assert_eq!(limits(&memory, &[None]), None, "the kernel keeps it");
        for zero in ["0", "0Gi", "0Mi", "0.0", "0e3"] {
            let zero = json!([{"name": "v", "emptyDir": {"sizeLimit": zero}}]);
            assert_eq!(limits(&zero, &[None]), None, "{zero}");
        }
    }

    #[test]
    fn volumes_containers_and_pods_have_kubernetes_words_and_the_numbers() {
        let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Ki"}}, {"name": "w", "emptyDir": {}}]);
        let limits = limits(&volumes, &[Some("2k"), Some("3k"), None]).unwrap();
        let excess = |volumes: &[(&str, u64)], containers: &[(&str, u64)]| {
            let excess = limits.excess(&taken(volumes, containers));
            excess.map(|excess| excess.message).unwrap_or_default()
        };
        assert_eq!(
            excess(&[("v", 1024), ("w", 10)], &[("c0", 2000), ("c1", 1000)]),
            ""
        );
        assert_eq!(
            excess(&[("v", 1025)], &[]),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\": 1025 bytes are used."
        );
        assert_eq!(
            excess(&[], &[("c0", 2001)]),
            "Container c0 exceeded its local ephemeral storage limit \"2k\": 2001 bytes are used."
        );
        assert_eq!(
            excess(&[("w", 1000)], &[("c0", 2000), ("c1", 2001)]),
            "Pod ephemeral local storage usage exceeds the total limit of containers 5000: 5001 bytes are used."
        );
        assert_eq!(
            excess(&[], &[("c2", 4000)]),
            "",
            "no limit of its own, and within the pod's"
        );
        let deep = Taken {
            volumes: [("v".to_owned(), Usage::TooDeep)].into(),
            ..Taken::default()
        };
        assert!(limits.excess(&deep).unwrap().message.contains("512 directories"));
    }

    #[test]
    fn a_pods_limit_is_what_its_containers_may_take_at_one_time() {
        let container = |name: &str, limit: &str, policy: Option<&str>| json!({"name": name, "restartPolicy": policy, "resources": {"limits": {"ephemeral-storage": limit}}});
        let limit = |main: &str, inits: &[Value]| {
            let pod =
                json!({"spec": {"containers": [container("main", main, None)], "initContainers": inits}});
            Limits::of(&serde_json::from_value(pod).unwrap()).unwrap()
        };
        let init = |limit: &str| container("init", limit, None);
        let sidecar = container("side", "2k", Some("Always"));
        for (main, inits, expected) in [
            ("1k", vec![init("10k")], 10_000),
            ("1k", vec![init("1k")], 1000),
            ("1k", vec![sidecar.clone(), init("10k")], 12_000),
            ("1k", vec![init("2500"), sidecar], 3000),
        ] {
            assert_eq!(limit(main, &inits).pod, Some(expected), "{main} {inits:?}");
        }
        let limits = limit("1k", &[init("2k")]);
        let mut both = taken(&[], &[("main", 1000), ("init", 1500)]);
        assert!(
            limits
                .excess(&both)
                .unwrap()
                .message
                .contains("of containers 2000")
        );
        both.left.insert("init".to_owned());
        assert_eq!(limits.excess(&both), None, "it has ended and made room");
        both.containers.insert("init".to_owned(), Usage::Whole(2001));
        let own = limits.excess(&both).unwrap().message;
        assert!(own.starts_with("Container init exceeded"), "{own}");
    }

    #[test]
    fn what_is_written_is_found_where_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let write = |path: &str, bytes: usize| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; bytes]).unwrap();
        };
        write("volumes/v/file", 100 << 10);
        write("layer/file", 200 << 10);
        write("logs/0.log", 10 << 10);
        let places = Places {
            volumes: root.join("volumes"),
            containers: [("c0".to_owned(), [root.join("layer"), root.join("logs")])].into(),
            ended: BTreeSet::new(),
        };
        let volumes = json!([{"name": "v", "emptyDir": {}}]);
        let of_container = |limit: &str| {
            let limits = limits(&volumes, &[Some(limit)]).unwrap();
            limits.excess(&measure(&limits, &places).unwrap())
        };
        assert_eq!(of_container("400Ki"), None);
        assert!(
            of_container("300Ki")
                .unwrap()
                .message
                .starts_with("Pod ephemeral")
        );
        assert!(of_container("250Ki").is_some());
    }

    #[test]
    fn a_claims_volume_is_measured_against_its_capacity_by_who_may_write_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("data"), vec![1; 100 << 10]).unwrap();
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        let places = Places {
            volumes: directory.path().join("none"),
            containers: BTreeMap::new(),
            ended: BTreeSet::new(),
        };
        let look = |bytes: u64, read_only| {
            let own = Claimed::Own {
                directory: directory.path().to_owned(),
                read_only,
                capacity: Capacity {
                    bytes,
                    written: "some".to_owned(),
                },
            };
            let limits = limits(&volumes, &[None]).unwrap();
            let limits = limits.with_claims(&[("v".to_owned(), own)]);
            let taken = measure(&limits, &places).unwrap();
            (limits.excess(&taken), limits.filled(&taken).remove("v"))
        };
        let excess = |bytes, read_only| look(bytes, read_only).0;
        let over = excess(64 << 10, false).unwrap();
        assert!(
            over.message
                .starts_with("Usage of PersistentVolumeClaim volume \"v\" exceeds the capacity \"some\""),
            "{}",
            over.message
        );
        assert_eq!(over.full.as_deref(), Some(directory.path()));
        assert_eq!(excess(200 << 10, false), None);
        assert_eq!(excess(64 << 10, true), None, "it is not this pod that fills it");
        let filled = |bytes, read_only| look(bytes, read_only).1;
        let known = filled(1 << 20, false).unwrap();
        assert_eq!(known.capacity_bytes, 1 << 20);
        assert!((100 << 10..200 << 10).contains(&known.used_bytes), "{known:?}");
        assert!(filled(64 << 10, false).unwrap().used_bytes > 64 << 10);
        assert_eq!(filled(1 << 20, true), None, "nobody looks at it");
    }

    #[test]
    fn long_looks_are_rare() {
        assert_eq!(pause(Duration::from_millis(1)), LOOK_EVERY);
        assert_eq!(pause(Duration::from_secs(10)), Duration::from_secs(90));
    }
}
