//! A pod's volumes as directories on the node. What must not reach a disk is on tmpfs.
//!
//! [`create`] makes them before the pod's sandbox starts, and brings those up to date that it finds. [`update`] writes those
//! anew that mirror objects of the API ([`contents`] says what is in them) while the pod runs; containers see the change at
//! once, all files of a volume together ([`atomic`]).

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use agent_runtime::{Trash, tmpfs::Swap};
use k8s_openapi::api::core::v1::{Pod, Volume};
use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, StatxFlags};

use super::{
    atomic,
    claims::{self, Claimed},
    contents::{self, Sources},
    env::EnvError,
    fs_group::FsGroup,
    host_paths::{self, HostPathError},
    own_files,
};
use crate::policy::chain;

/// Most bytes of a tmpfs volume whose size nobody limits.
const DEFAULT_MEMORY_VOLUME_BYTES: u64 = 64 * 1024 * 1024;

/// How the volume that admission adds to pods is called.
const TOKEN_VOLUME_PREFIX: &str = "kube-api-access-";
/// How often the objects behind volumes are looked at.
const REFRESH_AFTER: Duration = Duration::from_secs(20);
/// The same for pods that have a token only: often enough for a token that lives ten minutes.
const REFRESH_TOKENS_AFTER: Duration = Duration::from_secs(60);

/// What of the owner's rights a pod's group gets: of its own volumes all, of those that mirror objects no writing.
const TO_WRITE: u32 = 0o700;
pub(super) const TO_READ: u32 = 0o500;

/// Room for the last words of one container, four times what is read of them.
const MESSAGE_BYTES: u64 = 16 * 1024;

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{kind} \"{name}\" not found")]
    Missing { kind: &'static str, name: String },
    /// Why is said where it was asked for.
    #[error("{kind} \"{name}\" could not be had from the API")]
    Unread { kind: &'static str, name: String },
    #[error("{kind} {name} has no key {key}, which volume {volume} asks for")]
    MissingKey {
        kind: &'static str,
        name: String,
        key: String,
        volume: String,
    },
    #[error("volume {volume}: path {path:?} must be relative, without '..'")]
    Path { volume: String, path: String },
    #[error(transparent)]
    HostPath(#[from] HostPathError),
    #[error(transparent)]
    NotGranted(api::host_paths::NotGranted),
    #[error("volume {0}: this kind of volume is not supported")]
    Kind(String),
    #[error("volume {volume}")]
    Field {
        volume: String,
        #[source]
        source: EnvError,
    },
    #[error("volume {volume}: size limit")]
    Size {
        volume: String,
        #[source]
        source: api::quantity::QuantityError,
    },
    #[error("cannot {operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes all volumes of `pod` below `directory`. What exists already is kept: the pod may have written to it. What mirrors
/// objects is brought up to date: nobody has looked at it while the pod had no sandbox, and its files are not waited for on disk,
/// so that a power loss may leave them empty. `own` are directories that no pod gets to see.
pub(crate) fn create(directory: &Path, sources: Sources<'_>, own: &[PathBuf]) -> Result<(), VolumeError> {
    let Some(spec) = &sources.pod.spec else {
        return Ok(());
    };
    let group = FsGroup::of(sources.pod);
    private_dir(directory)?;
    let messages = messages_of(directory);
    private_dir(&messages)?;
    // A mount is there since this boot of the machine, and it is made last.
    let made_whole = is_mount_point(&messages, directory);
    for volume in spec.volumes.iter().flatten() {
        let path = path_of(directory, &volume.name);
        // Written last: a volume with its mark is complete. (A mount point cannot be renamed into place.)
        let mark = directory.join(format!(".{}.complete", volume.name));
        if mark.exists() && (!is_mounted(volume) || is_mount_point(&path, directory)) {
            match mirror(volume, &path, sources) {
                // As while the pod runs: what is gone stays until it ends.
                Err(error) if made_whole => {
                    tracing::warn!(
                        volume = volume.name,
                        error = chain(&error),
                        "not brought up to date"
                    );
                }
                found => drop(found?),
            }
            continue;
        }
        clear(&path)?;
        if contents::is_outside(volume) {
            mount_outside(volume, &path, (sources, own), group)?;
        } else {
            private_dir(&path)?;
            fill(volume, &path, sources)?;
            if let Some(group) = group {
                let may = if contents::is_the_pods(volume) {
                    TO_WRITE
                } else {
                    TO_READ
                };
                give_to_group(&path, group.gid, may)?;
            }
        }
        fs::write(&mark, b"").map_err(|source| failed("write", &mark, source))?;
    }
    if made_whole {
        return Ok(());
    }
    let containers = spec.containers.len() + spec.init_containers.iter().flatten().count();
    let containers = u64::try_from(containers).unwrap_or(u64::MAX);
    let each = MESSAGE_BYTES + own_files::BYTES;
    tmpfs(&messages, each.saturating_mul(containers.max(1)))
}

/// Mounts what is older than the pod. A path of the node keeps its owners, as in Kubernetes.
fn mount_outside(
    volume: &Volume,
    path: &Path,
    (sources, own): (Sources<'_>, &[PathBuf]),
    group: Option<FsGroup>,
) -> Result<(), VolumeError> {
    let mut asked = sources.objects.host_paths.iter();
    if let Some(asked) = asked.find(|asked| asked.volume == volume.name) {
        return Ok(host_paths::mount_at(asked, path, own)?);
    }
    match sources.objects.claims.get(&volume.name) {
        Some(Claimed::Path(asked)) => Ok(host_paths::mount_at(asked, path, own)?),
        Some(Claimed::Own {
            directory, read_only, ..
        }) => {
            claims::make_directory(directory).map_err(|source| failed("create", directory, source))?;
            Ok(host_paths::mount_own(directory, path, *read_only, group)?)
        }
        None => Err(VolumeError::Kind(volume.name.clone())),
    }
}

/// What became of the volumes that mirror objects.
#[derive(Debug, Default)]
pub(crate) struct Updated {
    /// Names of those whose content is another now.
    pub(crate) changed: Vec<String>,
    /// Why others keep what they had.
    pub(crate) failed: Vec<VolumeError>,
}

/// Brings the volumes that mirror objects up to date. One that cannot be keeps none of the others, among which is the token.
pub(crate) fn update(directory: &Path, sources: Sources<'_>) -> Updated {
    let mut updated = Updated::default();
    for volume in sources
        .pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
    {
        match mirror(volume, &path_of(directory, &volume.name), sources) {
            Ok(true) => updated.changed.push(volume.name.clone()),
            Ok(false) => {}
            Err(error) => updated.failed.push(error),
        }
    }
    updated
}

/// Brings a volume up to date that exists; true if that was a change. One that mirrors nothing is left alone.
fn mirror(volume: &Volume, path: &Path, sources: Sources<'_>) -> Result<bool, VolumeError> {
    let group = FsGroup::of(sources.pod).map(|group| group.gid);
    match contents::of(volume, sources)? {
        Some(files) => atomic::write(path, &files, group),
        None => Ok(false),
    }
}

/// How often the objects behind the pod's volumes are looked at; `None` for a pod that has none behind them.
pub(crate) fn refresh_interval(pod: &Pod) -> Option<Duration> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mirrors = volumes.filter(|volume| !contents::is_the_pods(volume));
    mirrors
        .map(|volume| match volume.name.starts_with(TOKEN_VOLUME_PREFIX) {
            // Nearly every pod has it, and nothing in it changes but the token.
            true => REFRESH_TOKENS_AFTER,
            false => REFRESH_AFTER,
        })
        .min()
}

/// Where the volume called `name` is, below the pod's directory of volumes. Names are DNS labels, so they
/// are safe as path components; anything else cannot leave the directory either.
pub(crate) fn path_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(name.replace(['/', '.'], "-"))
}

/// Where containers leave their last words, and have files of their own over `/etc`: a tmpfs, so that the kernel keeps them
/// short. No volume is called so.
pub(crate) fn messages_of(directory: &Path) -> PathBuf {
    directory.join(".messages")
}

/// Unmounts all volumes below `directory`, then frees its path.
pub(crate) fn remove(directory: &Path, trash: &Trash) -> Result<(), VolumeError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("list", directory, source)),
    };
    for entry in entries {
        let entry = entry.map_err(|source| failed("list", directory, source))?;
        unmount(&entry.path())?;
    }
    trash
        .discard(directory)
        .map_err(|source| failed("remove", directory, source))
}

/// Whether the volume is a mount, which a reboot takes away.
fn is_mounted(volume: &Volume) -> bool {
    in_memory(volume) || contents::is_outside(volume)
}

/// Whether the volume lives on a tmpfs.
fn in_memory(volume: &Volume) -> bool {
    let medium = volume
        .empty_dir
        .as_ref()
        .and_then(|source| source.medium.as_deref());
    contents::is_secret(volume) || medium == Some("Memory")
}

/// Whether something is mounted at `path`: its mount is another one than that of `parent`, whatever the device.
fn is_mount_point(path: &Path, parent: &Path) -> bool {
    let mount = |path: &Path| {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let found = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID);
        found.map(|found| found.stx_mnt_id).ok()
    };
    mount(path) != mount(parent)
}

fn fill(volume: &Volume, path: &Path, sources: Sources<'_>) -> Result<(), VolumeError> {
    if let Some(files) = contents::of(volume, sources)? {
        if contents::is_secret(volume) {
            tmpfs(path, DEFAULT_MEMORY_VOLUME_BYTES)?;
        }
        atomic::write(path, &files, None)?;
        return mode(path, 0o755);
    }
    let Some(source) = &volume.empty_dir else {
        return Err(VolumeError::Kind(volume.name.clone()));
    };
    let limit = source
        .size_limit
        .as_ref()
        .map(|limit| api::quantity::units(&limit.0))
        .transpose();
    let limit = limit.map_err(|source| VolumeError::Size {
        volume: volume.name.clone(),
        source,
    })?;
    if source.medium.as_deref() == Some("Memory") {
        // A tmpfs of size 0 has no limit.
        let limit = limit.filter(|bytes| *bytes > 0);
        tmpfs(path, limit.unwrap_or(DEFAULT_MEMORY_VOLUME_BYTES))?;
    }
    mode(path, 0o777)
}

/// Kubernetes' rule for `fsGroup`: the group owns everything, may do of `may` what the owner may, and new files in
/// directories stay the group's.
pub(super) fn give_to_group(path: &Path, gid: u32, may: u32) -> Result<(), VolumeError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| failed("look at", path, source))?;
    let bits = metadata.permissions().mode() & 0o7777;
    let shared = bits | ((bits & may) >> 3);
    std::os::unix::fs::lchown(path, None, Some(gid))
        .map_err(|source| failed("change the group of", path, source))?;
    if metadata.is_symlink() {
        // A link has no mode of its own, and its target is met by itself.
        return Ok(());
    }
    mode(
        path,
        if metadata.is_dir() {
            shared | 0o2000
        } else {
            shared
        },
    )?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(|source| failed("list", path, source))? {
            let entry = entry.map_err(|source| failed("list", path, source))?;
            give_to_group(&entry.path(), gid, may)?;
        }
    }
    Ok(())
}

/// What is meant to be in memory only: secrets, tokens, what pods write to memory.
fn tmpfs(path: &Path, bytes: u64) -> Result<(), VolumeError> {
    static TOLD: std::sync::Once = std::sync::Once::new();
    let swap = agent_runtime::tmpfs::mount_off_swap(path, bytes, 0o755)
        .map_err(|error| failed("mount a tmpfs on", path, error))?;
    if swap == Swap::Possible {
        TOLD.call_once(|| {
            tracing::warn!(
                "this kernel may write secrets to swap (it has no tmpfs option noswap, Linux 6.4)"
            );
        });
    }
    Ok(())
}

/// Unmounts and removes `path`, whatever is there. What is mounted below is never entered.
fn clear(path: &Path) -> Result<(), VolumeError> {
    unmount(path)?;
    agent_runtime::remove_tree(path).map_err(|source| failed("remove", path, source))
}

/// Takes away what is mounted at `path`. That may be the node's own files: nothing is removed before the kernel has said that
/// there is no mount.
fn unmount(path: &Path) -> Result<(), VolumeError> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // There may be another one under it.
            Ok(()) => {}
            // Not a mount point, or not there at all.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
            Err(errno) => return Err(failed("unmount", path, errno.into())),
        }
    }
    if path
        .parent()
        .is_some_and(|parent| path.symlink_metadata().is_ok() && is_mount_point(path, parent))
    {
        return Err(failed("unmount", path, io::ErrorKind::ResourceBusy.into()));
    }
    Ok(())
}

pub(super) fn private_dir(path: &Path) -> Result<(), VolumeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| failed("create", path, source))
}

pub(super) fn mode(path: &Path, bits: u32) -> Result<(), VolumeError> {
    let permissions = fs::Permissions::from_mode(bits);
    fs::set_permissions(path, permissions).map_err(|source| failed("set the mode of", path, source))
}

pub(super) fn failed(operation: &'static str, path: &Path, source: io::Error) -> VolumeError {
    VolumeError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use serde_json::json;

    use super::{
        super::{env::Objects, resources::NodeAmounts, tokens::Wish},
        *,
    };

    #[expect(
        clippy::needless_pass_by_value,
        reason = "the callers build the value in place"
    )]
    fn pod(volumes: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {
            "containers": [], "volumes": volumes, "securityContext": {"fsGroup": 77}}}))
        .unwrap()
    }

    fn remove(directory: &Path) -> Result<(), VolumeError> {
        super::remove(directory, &Trash::new(directory.with_extension("trash")))
    }

    fn wish(audience: &str) -> Wish {
        Wish {
            audience: audience.to_owned(),
            seconds: 3600,
        }
    }

    fn objects() -> Objects {
        let config_map = serde_json::from_value(json!({"data": {"a.conf": "x", "b": "y"}})).unwrap();
        let secret = serde_json::from_value(json!({"data": {"key": "c2VjcmV0"}})).unwrap();
        Objects {
            config_maps: [("m".to_owned(), Some(config_map))].into(),
            secrets: [
                ("s".to_owned(), Some(secret)),
                ("absent".to_owned(), None),
                ("x".to_owned(), None),
            ]
            .into(),
            tokens: [(wish("vault"), "signed".to_owned())].into(),
            ..Objects::default()
        }
    }

    fn sources<'a>(pod: &'a Pod, objects: &'a Objects) -> Sources<'a> {
        let node = NodeAmounts {
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            allocatable_memory_bytes: 1 << 30,
            storage_bytes: 8 << 30,
            allocatable_storage_bytes: 8 << 30,
        };
        Sources { pod, objects, node }
    }

    fn make(pod: &Pod, root: &Path) -> Result<(), VolumeError> {
        create(root, sources(pod, &objects()), &[])
    }

    /// The names of volumes that an update changes, where nothing keeps it from doing so.
    fn changes(root: &Path, pod: &Pod, objects: &Objects) -> Vec<String> {
        let Updated { changed, failed } = update(root, sources(pod, objects));
        assert!(failed.is_empty(), "{failed:?}");
        changed
    }

    /// What the kernel says of the file system that is mounted there.
    fn super_options(path: &Path) -> String {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut at = mounts
            .lines()
            .filter(|line| line.split(' ').nth(4) == path.to_str());
        at.next().unwrap().split(' ').next_back().unwrap().to_owned()
    }

    #[test]
    fn mirrored_objects_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volumes");
        let mut pod = pod(json!([
            {"name": "all", "projected": {"defaultMode": 256, "sources": [
                {"configMap": {"name": "m", "items": [{"key": "a.conf", "path": "map/a"}]}},
                {"secret": {"name": "s"}},
                {"secret": {"name": "absent", "optional": true}},
                {"downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
        ]));
        pod.metadata.name = Some("web".to_owned());
        pod.metadata.labels = Some(
            [("b", "2\"x"), ("a", "1")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
        );
        make(&pod, &root).unwrap();
        let read = |path: &str| fs::read_to_string(root.join("all").join(path)).ok();
        assert_eq!(read("map/a").as_deref(), Some("x"));
        assert_eq!(read("key").as_deref(), Some("secret"));
        assert_eq!(read("labels").as_deref(), Some("a=\"1\"\nb=\"2\\\"x\""));
        assert_eq!(
            fs::metadata(root.join("all/name")).unwrap().mode() & 0o777,
            0o440,
            "the group reads too"
        );
        assert!(
            is_mount_point(&root.join("all"), &root),
            "what holds a secret is on a tmpfs"
        );

        let mut changed = objects();
        assert!(changes(&root, &pod, &changed).is_empty());
        let map = serde_json::from_value(json!({"data": {"a.conf": "new"}})).unwrap();
        changed.config_maps.insert("m".to_owned(), Some(map));
        pod.metadata.labels = None;
        assert_eq!(changes(&root, &pod, &changed), ["all"]);
        assert_eq!(
            (read("map/a").as_deref(), read("labels").as_deref()),
            (Some("new"), Some(""))
        );
        assert_eq!(
            fs::metadata(root.join("all/key")).unwrap().gid(),
            77,
            "the group owns what is new"
        );
        changed.secrets.insert("s".to_owned(), None);
        assert_eq!(update(&root, sources(&pod, &changed)).failed.len(), 1);
        assert_eq!(
            read("key").as_deref(),
            Some("secret"),
            "what is gone stays until the pod ends"
        );
        remove(&root).unwrap();
    }

    #[test]
    fn a_volume_that_cannot_be_refreshed_keeps_none_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volumes");
        let token = json!({"serviceAccountToken": {"path": "token", "audience": "vault"}});
        let pod = pod(json!([
            {"name": "first", "configMap": {"name": "m"}},
            {"name": "optional", "configMap": {"name": "m", "optional": true}},
            {"name": "second", "secret": {"secretName": "s"}},
            {"name": "kube-api-access-1", "projected": {"sources": [token]}},
        ]));
        make(&pod, &root).unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        let mut changed = objects();
        changed.config_maps.insert("m".to_owned(), None);
        changed.tokens.insert(wish("vault"), "renewed".to_owned());
        let updated = update(&root, sources(&pod, &changed));
        assert_eq!(updated.changed, ["optional", "kube-api-access-1"]);
        let [error] = updated.failed.as_slice() else {
            panic!("{updated:?}")
        };
        assert_eq!(error.to_string(), "configmap \"m\" not found");
        assert_eq!(read("kube-api-access-1/token").as_deref(), Some("renewed"));
        assert_eq!(read("first/b").as_deref(), Some("y"), "it keeps what it had");

        // What the API has not said of one that may be missing is not that it is.
        make(&pod, &root).unwrap();
        let unread = Objects {
            config_maps: std::collections::BTreeMap::new(),
            ..objects()
        };
        update(&root, sources(&pod, &objects()));
        let updated = update(&root, sources(&pod, &unread));
        let all_unread = updated
            .failed
            .iter()
            .all(|error| matches!(error, VolumeError::Unread { .. }));
        assert!(all_unread && updated.failed.len() == 2, "{updated:?}");
        assert_eq!(read("optional/b").as_deref(), Some("y"));
        remove(&root).unwrap();
    }

    #[test]
    fn what_mirrors_objects_is_brought_up_to_date_before_a_pod_starts_again() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volumes");
        let labels = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
        let mut pod = pod(json!([
            {"name": "config", "configMap": {"name": "m"}},
            {"name": "fields", "downwardAPI": {"items": [labels]}},
            {"name": "scratch", "emptyDir": {}},
        ]));
        make(&pod, &root).unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        fs::write(root.join("scratch/mine"), "1").unwrap();
        let map = serde_json::from_value(json!({"data": {"b": "new"}})).unwrap();
        let known = |map: Option<_>| Objects {
            config_maps: [("m".to_owned(), map)].into(),
            ..objects()
        };
        // A power loss: what was mounted is gone, and what was written never came to the disk.
        let power_loss = || {
            umount2(&messages_of(&root), MntFlags::MNT_DETACH).unwrap();
            fs::write(root.join("config/b"), "").unwrap();
        };
        power_loss();
        pod.metadata.labels = Some([("a".to_owned(), "1".to_owned())].into());
        let gone = known(None);
        for _ in 0..2 {
            let error = create(&root, sources(&pod, &gone), &[]).unwrap_err();
            assert_eq!(
                error.to_string(),
                "configmap \"m\" not found",
                "nobody reads what is empty"
            );
        }
        create(&root, sources(&pod, &known(Some(map))), &[]).unwrap();
        assert_eq!(
            (read("config/b").as_str(), read("fields/labels").as_str()),
            ("new", "a=\"1\"")
        );
        assert!(root.join("config/a.conf").symlink_metadata().is_err());
        assert_eq!(fs::metadata(root.join("config/b")).unwrap().gid(), 77);
        assert_eq!(read("scratch/mine"), "1");
        // Only its sandbox was lost.
        create(&root, sources(&pod, &gone), &[]).unwrap();
        assert_eq!(read("config/b"), "new", "what is gone stays until the pod ends");
        remove(&root).unwrap();
    }

    #[test]
    fn tokens_are_on_a_tmpfs_and_are_replaced_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volumes");
        let source =
            |audience: &str| json!({"serviceAccountToken": {"path": "t/token", "audience": audience}});
        let pod =
            pod(json!([{"name": "v", "projected": {"defaultMode": 288, "sources": [source("vault")]}}]));
        make(&pod, &root).unwrap();
        let read = || fs::read_to_string(root.join("v/t/token")).unwrap();
        assert_eq!(read(), "signed");
        assert!(is_mount_point(&root.join("v"), &root));
        let newer = agent_sandbox::oci::kernel_version() >= (6, 4);
        assert_eq!(super_options(&root.join("v")).contains(",noswap"), newer);
        let before = fs::read_link(root.join("v/..data")).unwrap();
        let mut changed = objects();
        changed.tokens.insert(wish("vault"), "renewed".to_owned());
        assert_eq!(changes(&root, &pod, &changed), ["v"]);
        assert_eq!(read(), "renewed");
        assert_ne!(fs::read_link(root.join("v/..data")).unwrap(), before);
        remove(&root).unwrap();
        let other = self::pod(json!([{"name": "v", "projected": {"sources": [source("other")]}}]));
        assert!(make(&other, &root).is_err(), "nothing starts without its token");
        remove(&root).unwrap();
    }

    #[test]
    fn a_token_is_for_those_who_read_it_only() {
        let mode_and_owners = |spec: serde_json::Value| {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("volumes");
            let mut pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            let source = json!({"serviceAccountToken": {"path": "token", "audience": "vault"}});
            let volumes =
                json!([{"name": "v", "projected": {"sources": [source, {"configMap": {"name": "m"}}]}}]);
            pod.spec.as_mut().unwrap().volumes = Some(serde_json::from_value(volumes).unwrap());
            make(&pod, &root).unwrap();
            let seen = |name: &str| {
                let found = fs::metadata(root.join("v").join(name)).unwrap();
                (found.mode() & 0o777, found.uid(), found.gid())
            };
            assert_eq!(seen("b").1, 0, "tokens only");
            let first = seen("token");
            assert!(changes(&root, &pod, &objects()).is_empty());
            let mut changed = objects();
            changed.tokens.insert(wish("vault"), "renewed".to_owned());
            assert_eq!(changes(&root, &pod, &changed), ["v"]);
            assert_eq!(seen("token"), first, "a renewed one too");
            remove(&root).unwrap();
            first
        };
        let user = |uid: u32| json!({"name": "c", "securityContext": {"runAsUser": uid}});
        let shared = json!({"containers": [user(5), user(5)]});
        assert_eq!(mode_and_owners(shared), (0o600, 5, 0));
        let of_pod = json!({"containers": [{"name": "c"}], "initContainers": [user(5)],
            "securityContext": {"runAsUser": 5, "fsGroup": 77}});
        assert_eq!(mode_and_owners(of_pod), (0o640, 5, 77));
        let group = json!({"containers": [user(5), user(6)], "securityContext": {"fsGroup": 77}});
        assert_eq!(mode_and_owners(group), (0o640, 0, 77));
        // Nobody knows who reads it.
        for containers in [json!([user(5), user(6)]), json!([user(5), {"name": "image"}])] {
            assert_eq!(
                mode_and_owners(json!({ "containers": containers })),
                (0o644, 0, 0)
            );
        }
    }

    #[test]
    fn a_path_of_the_node_is_mounted_and_outlives_the_pod() {
        let directory = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(directory.path()).unwrap();
        fs::set_permissions(&base, fs::Permissions::from_mode(0o700)).unwrap();
        let (root, theirs) = (base.join("volumes"), base.join("theirs"));
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("file"), "content").unwrap();
        let pod = pod(json!([{"name": "h", "hostPath": {"path": theirs}}]));
        let mut known = objects();
        known.host_paths = api::host_paths::asked(&pod);
        let make = || create(&root, sources(&pod, &known), &[]);
        make().unwrap();
        make().unwrap();
        assert_eq!(fs::read_to_string(root.join("h/file")).unwrap(), "content");
        // Somebody mounted it twice: what is under the first mount is no volume either.
        let again = root.join("h");
        nix::mount::mount(
            Some(&theirs),
            &again,
            None::<&str>,
            nix::mount::MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        assert_eq!(fs::read_to_string(theirs.join("file")).unwrap(), "content");
        assert_eq!(
            fs::metadata(&theirs).unwrap().permissions().mode() & 0o7777,
            0o755,
            "no fsGroup"
        );
        assert!(
            create(&root, sources(&pod, &objects()), &[]).is_err(),
            "not granted"
        );
        remove(&root).unwrap();
    }

    #[test]
    fn volumes_are_filled_kept_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volumes");
        let pod = pod(json!([
            {"name": "scratch", "emptyDir": {}},
            {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "zero", "emptyDir": {"medium": "Memory", "sizeLimit": "0"}},
            {"name": "config", "configMap": {"name": "m", "items": [{"key": "a.conf", "path": "d/x", "mode": 256}]}},
            {"name": "secret", "secret": {"secretName": "s", "defaultMode": 288}},
        ]));
        make(&pod, &root).unwrap();
        let file = |path: &str| root.join(path);
        assert_eq!(fs::read(file("config/d/x")).unwrap(), b"x");
        assert!(!file("config/b").exists(), "only the items asked for");
        assert_eq!(fs::read(file("secret/key")).unwrap(), b"secret");
        let metadata = |path: &str| fs::metadata(file(path)).unwrap();
        assert_eq!(metadata("secret/key").mode() & 0o777, 0o440);
        assert_eq!(metadata("secret/key").gid(), 77);
        assert_eq!(metadata("scratch").mode() & 0o7777, 0o2777);
        assert_ne!(
            metadata("secret").dev(),
            metadata("scratch").dev(),
            "secrets are on a tmpfs"
        );
        assert_ne!(metadata("ram").dev(), metadata("scratch").dev());
        let size = |path: &str| {
            let stat = nix::sys::statvfs::statvfs(&file(path)).unwrap();
            stat.blocks() * stat.fragment_size()
        };
        // Nothing to see on a kernel that does not know the option.
        let newer = agent_sandbox::oci::kernel_version() >= (6, 4);
        for volume in ["secret", "ram", "zero"] {
            assert_eq!(
                super_options(&file(volume)).contains(",noswap"),
                newer,
                "{volume}"
            );
        }
        assert_eq!(size("ram"), 1 << 20);
        assert_eq!(size("zero"), DEFAULT_MEMORY_VOLUME_BYTES, "not unlimited");

        fs::write(file("scratch/mine"), b"1").unwrap();
        make(&pod, &root).unwrap();
        assert!(
            file("scratch/mine").exists(),
            "a second start keeps what the pod wrote"
        );
        remove(&root).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn missing_objects_and_hostile_paths_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let attempt = |volume: serde_json::Value| {
            make(&pod(json!([volume])), &directory.path().join("v"))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            attempt(json!({"name": "v", "secret": {"secretName": "x"}})),
            "secret \"x\" not found"
        );
        for path in ["../x", "/x", "a/../../x", ""] {
            let items = json!([{"key": "b", "path": path}]);
            let error = attempt(json!({"name": "v", "configMap": {"name": "m", "items": items}}));
            assert!(error.contains("must be relative"), "{path}: {error}");
        }
        let items = json!([{"key": "none", "path": "x"}]);
        let error = attempt(json!({"name": "v", "configMap": {"name": "m", "items": items}}));
        assert!(error.contains("has no key none"), "{error}");
        assert!(attempt(json!({"name": "v", "hostPath": {"path": "/"}})).contains("not supported"));
        remove(&directory.path().join("v")).unwrap();
    }
}
