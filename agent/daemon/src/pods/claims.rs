//! Volumes that outlive their pod: from a claim to a directory of this node.
//!
//! A volume that was provisioned here is a directory of the agent's own, found by the volume's name and never by the
//! path in its object; one that an administrator wrote is a path of the node, resolved as every such path is.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_runtime::measure_tree;
use api::{
    host_paths::{Access, HostPath, HostPathKind},
    storage::{allows_node, is_local_path},
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::{Api, Client, ResourceExt as _};

/// Why a claim cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("persistentvolumeclaim {0:?} not found")]
    NoClaim(String),
    #[error("persistentvolumeclaim {0:?} is not bound")]
    Unbound(String),
    #[error("volume {volume:?} is not, or no more, the one of claim {claim:?}")]
    NotIts { volume: String, claim: String },
    #[error("volume {0:?} belongs to another node")]
    Elsewhere(String),
    #[error("volume {0:?} has a source that this node does not mount")]
    Source(String),
    #[error("volume {0:?} cannot name a directory")]
    Name(String),
    #[error(
        "the data in {} are more than the volume's capacity of {capacity}; an administrator raises spec.capacity.storage of \
         persistentvolume {volume:?}, or removes some of them",
        directory.display()
    )]
    Full {
        volume: String,
        capacity: String,
        directory: PathBuf,
    },
    #[error("cannot measure {}", directory.display())]
    Measure {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// What stands behind a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// A directory of the agent's own, made when it is mounted first.
    Own {
        directory: PathBuf,
        read_only: bool,
        capacity: Capacity,
    },
    /// A path of the node.
    Path(HostPath),
}

/// What a provisioned volume may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) bytes: u64,
    /// As it was written.
    pub(crate) written: String,
}

/// Directories of provisioned volumes that were found to hold more than they may. No pod that would write more is given one
/// before it was measured again. Cheap to clone.
///
/// An agent that was started since knows none; the first look at a pod of the volume finds it out again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Full(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Full {
    pub(super) fn note(&self, directory: PathBuf) {
        self.all().insert(directory);
    }

    /// Refuses what was full and still is. Looks at the disk: for a thread that may block.
    pub(super) fn refuse(&self, claimed: &Claimed) -> Result<(), ClaimError> {
        let Claimed::Own {
            directory,
            read_only: false,
            capacity,
        } = claimed
        else {
            return Ok(());
        };
        if !self.all().contains(directory) {
            return Ok(());
        }
        let measured = measure_tree(directory, capacity.bytes).map_err(|source| ClaimError::Measure {
            directory: directory.clone(),
            source,
        })?;
        if measured.usage.bytes().is_none_or(|bytes| bytes > capacity.bytes) {
            return Err(ClaimError::Full {
                volume: directory
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                capacity: capacity.written.clone(),
                directory: directory.clone(),
            });
        }
        self.all().remove(directory);
        Ok(())
    }

    /// Every change is one insertion or removal.
    fn all(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where provisioned volumes are on this node.
pub(crate) fn local_path(agent_dir: &Path) -> PathBuf {
    agent_dir.join("local-path")
}

/// The directory of a provisioned volume.
pub(crate) fn directory_of(agent_dir: &Path, volume: &str) -> Option<PathBuf> {
    // Names of objects are such names; what else came here must not lead anywhere.
    let plain = !volume.is_empty()
        && !volume.starts_with('.')
        && volume
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    plain.then(|| local_path(agent_dir).join(volume))
}

/// What stands behind the claims of `pod`, by name of its volume.
pub(super) async fn find(
    client: &Client,
    pod: &Pod,
    node_name: &str,
    agent_dir: &Path,
) -> Result<Vec<(String, Claimed)>, ClaimError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let mut found = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(source) = &volume.persistent_volume_claim else {
            continue;
        };
        let claim = claims.get_opt(&source.claim_name).await?;
        let claim = claim.ok_or_else(|| ClaimError::NoClaim(source.claim_name.clone()))?;
        let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let bound = bound.filter(|_| phase == Some("Bound"));
        let name = bound.ok_or_else(|| ClaimError::Unbound(source.claim_name.clone()))?;
        let behind = volumes.get_opt(&name).await?;
        let behind = behind.ok_or_else(|| ClaimError::Unbound(source.claim_name.clone()))?;
        let nodes: Api<Node> = Api::all(client.clone());
        let node = nodes.get(node_name).await?;
        found.push((
            volume.name.clone(),
            claimed(pod, volume, &claim, &behind, &node, agent_dir)?,
        ));
    }
    Ok(found)
}

/// What stands behind one claim. Pure.
fn claimed(
    pod: &Pod,
    volume: &Volume,
    claim: &PersistentVolumeClaim,
    behind: &PersistentVolume,
    node: &Node,
    agent_dir: &Path,
) -> Result<Claimed, ClaimError> {
    let name = behind.name_any();
    let spec = behind.spec.as_ref();
    let reference = spec.and_then(|spec| spec.claim_ref.as_ref());
    let its = reference.is_some_and(|reference| {
        reference.uid.is_some()
            && reference.uid == claim.metadata.uid
            && reference.namespace == claim.metadata.namespace
    });
    if !its || behind.metadata.deletion_timestamp.is_some() {
        return Err(ClaimError::NotIts {
            volume: name,
            claim: claim.name_any(),
        });
    }
    if !allows_node(behind, &node.name_any(), node.labels()) {
        return Err(ClaimError::Elsewhere(name));
    }
    let read_only = is_read_only(pod, volume, behind);
    if is_local_path(behind) {
        let directory = directory_of(agent_dir, &name).ok_or(ClaimError::Name(name))?;
        let written = spec.and_then(|spec| Some(spec.capacity.as_ref()?.get("storage")?.0.clone()));
        let written = written.unwrap_or_default();
        return Ok(Claimed::Own {
            directory,
            read_only,
            // Admission lets none through that does not parse.
            capacity: Capacity {
                bytes: api::quantity::units(&written).unwrap_or(0),
                written,
            },
        });
    }
    let local = spec.and_then(|spec| spec.local.as_ref());
    let local = local.ok_or(ClaimError::Source(name))?;
    Ok(Claimed::Path(HostPath {
        volume: volume.name.clone(),
        path: local.path.clone(),
        kind: HostPathKind::Directory,
        access: if read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
    }))
}

/// Whether nobody in the pod writes: it says so, or the volume is for reading only.
fn is_read_only(pod: &Pod, volume: &Volume, behind: &PersistentVolume) -> bool {
    let source = volume.persistent_volume_claim.as_ref();
    let modes = behind
        .spec
        .iter()
        .flat_map(|spec| spec.access_modes.iter().flatten());
    let mut writable = modes.filter(|mode| *mode != "ReadOnlyMany");
    let spec = pod.spec.as_ref();
    let inits = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let all = spec.iter().flat_map(|spec| &spec.containers).chain(inits);
    let mut mounts = all
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .filter(|mount| mount.name == volume.name);
    source.is_some_and(|source| source.read_only == Some(true))
        || writable.next().is_none()
        || mounts.all(|mount| mount.read_only == Some(true))
}

/// Makes the directory of a provisioned volume, if it is not there: open to every user of its pod, as an `emptyDir`,
/// and behind a directory that only root enters.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    if let Some(all) = directory.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(all)?;
    }
    // Complete before it has its name: an agent that dies between leaves nothing that looks made.
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = directory.with_file_name(format!(".{name}"));
    match std::fs::create_dir(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::set_permissions(&unfinished, std::fs::Permissions::from_mode(0o777))?;
    std::fs::rename(&unfinished, directory)
}

#[cfg(test)]
mod tests {
    use nix::mount::{MntFlags, umount2};
    use serde_json::{Value, json};

    use super::{super::host_paths, *};

    fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
        serde_json::from_value(object).unwrap()
    }

    fn behind(extra: &Value) -> PersistentVolume {
        let mut object = json!({
            "metadata": {"name": "pvc-1", "annotations": {"pv.kubernetes.io/provisioned-by": "palisade.dev/local-path"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "local": {"path": "/etc"}, "capacity": {"storage": "8Ki"},
                "claimRef": {"namespace": "ns", "name": "c", "uid": "u"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}},
        });
        for (section, fields) in extra.as_object().cloned().unwrap_or_default() {
            for (field, value) in fields.as_object().cloned().unwrap_or_default() {
                object[&section][field] = value;
            }
        }
        read(object)
    }

    fn found(behind: &PersistentVolume, at: &str) -> Result<Claimed, ClaimError> {
        found_by(&json!({"claimName": "c"}), behind, at)
    }

    fn found_by(source: &Value, behind: &PersistentVolume, at: &str) -> Result<Claimed, ClaimError> {
        let pod: Pod = read(json!({"metadata": {"namespace": "ns"}, "spec": {
            "containers": [{"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": source}]}}));
        let claim = read(json!({"metadata": {"namespace": "ns", "name": "c", "uid": "u"}}));
        let node = read(json!({"metadata": {"name": at, "labels": {"kubernetes.io/hostname": at}}}));
        let volume = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0].clone();
        claimed(&pod, &volume, &claim, behind, &node, Path::new("/agent"))
    }

    #[test]
    fn a_provisioned_volume_is_where_its_name_says_whatever_its_path_says() {
        let own = found(&behind(&json!({})), "n1").unwrap();
        let expected = Claimed::Own {
            directory: "/agent/local-path/pvc-1".into(),
            read_only: false,
            capacity: Capacity {
                bytes: 8192,
                written: "8Ki".to_owned(),
            },
        };
        assert_eq!(own, expected);
        for name in ["../x", "", ".", "a/b", "A"] {
            assert_eq!(directory_of(Path::new("/agent"), name), None, "{name}");
        }
    }

    #[test]
    fn a_volume_that_was_full_is_given_to_nobody_who_writes_until_it_has_room() {
        let base = tempfile::tempdir().unwrap();
        let own = |read_only, written: &str| Claimed::Own {
            directory: base.path().to_owned(),
            read_only,
            capacity: Capacity {
                bytes: api::quantity::units(written).unwrap(),
                written: written.to_owned(),
            },
        };
        std::fs::write(base.path().join("data"), vec![1; 100 << 10]).unwrap();
        let full = Full::default();
        full.refuse(&own(false, "64Ki")).unwrap();
        full.note(base.path().to_owned());
        let refused = full.refuse(&own(false, "64Ki")).unwrap_err().to_string();
        assert!(refused.contains("capacity of 64Ki"), "{refused}");
        full.refuse(&own(true, "64Ki")).unwrap();
        // Raised by an administrator, then emptied.
        full.refuse(&own(false, "1Mi")).unwrap();
        full.note(base.path().to_owned());
        std::fs::remove_file(base.path().join("data")).unwrap();
        full.refuse(&own(false, "64Ki")).unwrap();
        assert!(full.all().is_empty());
    }

    /// Needs root, as all tests of mounts do.
    #[test]
    fn nobody_writes_to_a_claim_that_is_for_reading_only() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        make_directory(&data).unwrap();
        let write = |source: &Value, target: &str| {
            let Claimed::Own { read_only, .. } = found_by(source, &behind(&json!({})), "n1").unwrap() else {
                panic!("a volume of the agent's own")
            };
            let target = base.path().join(target);
            host_paths::mount_own(&data, &target, read_only, None).unwrap();
            let written = std::fs::write(target.join("file"), "").map_err(|error| error.kind());
            umount2(&target, MntFlags::MNT_DETACH).unwrap();
            written
        };
        let refused = Err(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(
            write(&json!({"claimName": "c", "readOnly": true}), "reads"),
            refused
        );
        assert!(!data.join("file").exists());
        assert_eq!(write(&json!({"claimName": "c"}), "writes"), Ok(()));
        assert!(data.join("file").exists());
    }

    #[test]
    fn only_the_claims_own_volume_on_its_own_node_is_mounted() {
        assert!(matches!(
            found(&behind(&json!({})), "n2"),
            Err(ClaimError::Elsewhere(_))
        ));
        for reference in [
            json!(null),
            json!({"namespace": "ns", "name": "c", "uid": "other"}),
            json!({"namespace": "ns", "name": "c"}),
            json!({"namespace": "elsewhere", "name": "c", "uid": "u"}),
        ] {
            let other = behind(&json!({"spec": {"claimRef": reference}}));
            assert!(
                matches!(found(&other, "n1"), Err(ClaimError::NotIts { .. })),
                "{reference}"
            );
        }
        let going = behind(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert!(found(&going, "n1").is_err());
    }

    #[test]
    fn an_administrators_volume_is_a_path_of_the_node() {
        let by_hand =
            behind(&json!({"metadata": {"annotations": {}}, "spec": {"accessModes": ["ReadOnlyMany"]}}));
        let Claimed::Path(path) = found(&by_hand, "n1").unwrap() else {
            panic!("a path")
        };
        assert_eq!((path.path.as_str(), path.access), ("/etc", Access::ReadOnly));
        let none = behind(&json!({"metadata": {"annotations": {}}, "spec": {"local": null}}));
        assert!(matches!(found(&none, "n1"), Err(ClaimError::Source(_))));
    }
}
