//! Paths of the node in pods: resolved once, by descriptors, without links, and mounted from there.
//!
//! The API server has refused pods without grants; the node reads the grants and decides again, for it is the node's
//! files that are given away. [`mount_at`] works on a private copy of one mount: nothing else that is mounted below the
//! path comes along, nothing in it can be executed, no device opened and no setuid bit honoured.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use api::host_paths::{Access, HostPath, HostPathGrant, HostPathGrantSpec, HostPathKind, covers};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject},
};
use nix::mount::{MsFlags, mount};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat, StatVfsMountFlags},
    io::Errno,
};

use super::fs_group::FsGroup;

/// Why a path is not mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    #[error(transparent)]
    NotGranted(#[from] api::host_paths::NotGranted),
    #[error("{path} belongs to Palisade itself and is given to no pod")]
    Own { path: PathBuf },
    #[error("{path}: {what} is a link; links are not followed, name what it leads to")]
    Link { path: PathBuf, what: String },
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    Kind { path: PathBuf, wanted: &'static str },
    #[error(
        "{path} would be writable where other users of the node reach it, and they would honour setuid bits that a \
         pod sets there; put it below a directory that only root may enter, or on a file system mounted nosuid"
    )]
    Reachable { path: PathBuf },
    #[error("cannot {operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The grants, if the pod needs any.
pub(super) async fn grants(client: &Client, pod: &Pod) -> Result<Vec<HostPathGrantSpec>, kube::Error> {
    if api::host_paths::asked(pod).is_empty() {
        return Ok(Vec::new());
    }
    let resource = ApiResource {
        group: "palisade.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: api::palisade::API_VERSION.to_owned(),
        kind: "HostPathGrant".to_owned(),
        plural: "hostpathgrants".to_owned(),
    };
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut grants = Vec::new();
    for object in all.list(&ListParams::default()).await? {
        let typed = serde_json::to_value(object).and_then(serde_json::from_value);
        let grant: HostPathGrant = typed.map_err(kube::Error::SerdeError)?;
        if grant.metadata.deletion_timestamp.is_none() {
            grants.push(grant.spec);
        }
    }
    Ok(grants)
}

/// Mounts a path at `target`, which does not exist yet. `own` are the directories that are given to nobody.
pub(super) fn mount_at(asked: &HostPath, target: &Path, own: &[PathBuf]) -> Result<(), HostPathError> {
    let path = Path::new(&asked.path);
    let overlaps = |own: &PathBuf| {
        let own = own.to_string_lossy();
        covers(&own, &asked.path) || covers(&asked.path, &own)
    };
    if own.iter().any(overlaps) {
        return Err(HostPathError::Own {
            path: path.to_owned(),
        });
    }
    let found = resolve(path, asked.kind)?;
    if asked.access == Access::ReadWrite && !found.hidden && !is_nosuid(&found.fd) {
        return Err(HostPathError::Reachable {
            path: path.to_owned(),
        });
    }
    bind(
        &found.fd,
        target,
        found.directory,
        asked.access == Access::ReadOnly,
    )
}

/// Mounts a directory of the agent's own at `target`, likewise. What is in it is given to `group` first, unless nobody will
/// write to it.
pub(super) fn mount_own(
    directory: &Path,
    target: &Path,
    read_only: bool,
    group: Option<FsGroup>,
) -> Result<(), HostPathError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|errno| failed("open", directory)(errno.into()))?;
    if let Some(group) = group.filter(|_group| !read_only) {
        group.take(&fd).map_err(failed("give to the group", directory))?;
    }
    bind(&fd, target, true, read_only)
}

fn bind(found: &OwnedFd, target: &Path, directory: bool, read_only: bool) -> Result<(), HostPathError> {
    let failed = |operation| failed(operation, target);
    match directory {
        true => std::fs::create_dir(target).map_err(failed("create"))?,
        false => std::fs::File::create_new(target)
            .map(drop)
            .map_err(failed("create"))?,
    }
    // The descriptor is what was checked; its name may lead elsewhere by now.
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    let none = None::<&str>;
    mount(Some(source.as_str()), target, none, MsFlags::MS_BIND, none)
        .map_err(|errno| failed("mount")(errno.into()))?;
    let mut flags =
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(none, target, none, flags, none).map_err(|errno| failed("restrict")(errno.into()))?;
    // What is mounted there is no news for others, and theirs is none for it.
    mount(none, target, none, MsFlags::MS_PRIVATE, none).map_err(|errno| failed("separate")(errno.into()))
}

struct Found {
    fd: OwnedFd,
    directory: bool,
    /// Some directory above it lets nobody but root in.
    hidden: bool,
}

/// Goes down to the path, name by name: each is opened in the directory before it, and none is a link.
fn resolve(path: &Path, kind: HostPathKind) -> Result<Found, HostPathError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = rustix::fs::open("/", flags | OFlags::DIRECTORY, Mode::empty())
        .map_err(|errno| failed("open", Path::new("/"))(errno.into()))?;
    let mut stat = look(&here, path)?;
    let mut hidden = false;
    let names: Vec<_> = path.components().skip(1).collect();
    for (index, name) in names.iter().enumerate() {
        let last = index + 1 == names.len();
        hidden |= lets_root_in_only(&stat);
        let open = || {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(here.as_fd(), name.as_os_str(), flags, Mode::empty(), resolve)
        };
        let opened = match open() {
            Err(Errno::NOENT) => {
                make(&here, name.as_os_str(), last, kind)
                    .map_err(|errno| failed("create", path)(errno.into()))?;
                open()
            }
            opened => opened,
        };
        here = opened.map_err(|errno| match errno {
            Errno::LOOP => HostPathError::Link {
                path: path.to_owned(),
                what: name.as_os_str().to_string_lossy().into_owned(),
            },
            errno => failed("find", path)(errno.into()),
        })?;
        stat = look(&here, path)?;
        // With O_PATH a link is opened itself where it is the last name.
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            return Err(HostPathError::Link {
                path: path.to_owned(),
                what: name.as_os_str().to_string_lossy().into_owned(),
            });
        }
    }
    let wanted = |wanted| HostPathError::Kind {
        path: path.to_owned(),
        wanted,
    };
    let directory = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => false,
        _ => return Err(wanted("directory or regular file")),
    };
    match (kind, directory) {
        (HostPathKind::Directory | HostPathKind::DirectoryOrCreate, false) => Err(wanted("directory")),
        (HostPathKind::File | HostPathKind::FileOrCreate, true) => Err(wanted("file")),
        _ => Ok(Found {
            fd: here,
            directory,
            hidden,
        }),
    }
}

/// Whether root alone enters the directory. Where others do by an access list, the group's bits are its mask.
fn lets_root_in_only(directory: &Stat) -> bool {
    directory.st_uid == 0 && directory.st_mode & 0o011 == 0
}

/// Makes what is missing, if the kind says so. As in Kubernetes, a file's directories are not made.
fn make(here: &OwnedFd, name: &std::ffi::OsStr, last: bool, kind: HostPathKind) -> rustix::io::Result<()> {
    match kind {
        HostPathKind::DirectoryOrCreate => rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o755)),
        HostPathKind::FileOrCreate if last => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(here, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
        _ => Err(Errno::NOENT),
    }
}

fn look(fd: &OwnedFd, path: &Path) -> Result<Stat, HostPathError> {
    rustix::fs::fstat(fd).map_err(|errno| failed("look at", path)(errno.into()))
}

fn is_nosuid(fd: &OwnedFd) -> bool {
    rustix::fs::fstatvfs(fd).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NOSUID))
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> HostPathError {
    let path = path.to_owned();
    move |source| HostPathError::Io {
        operation,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use nix::mount::{MntFlags, umount2};

    use super::*;

    /// A directory whose name has no link in it; below one that only root enters, unless `open`.
    fn place(open: bool) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let mode = if open { 0o755 } else { 0o700 };
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
        fs::create_dir(root.join("data")).unwrap();
        fs::write(root.join("data/file"), "content").unwrap();
        (directory, root)
    }

    fn asked(path: &Path, kind: HostPathKind, access: Access) -> HostPath {
        HostPath {
            volume: "v".to_owned(),
            path: path.to_string_lossy().into_owned(),
            kind,
            access,
        }
    }

    #[test]
    fn links_lead_nowhere_wherever_they_stand() {
        let (_directory, root) = place(false);
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("data"), root.join("data/self")).unwrap();
        for path in ["link", "link/ssl", "data/self", "data/self/file"] {
            let found = resolve(&root.join(path), HostPathKind::Any);
            assert!(matches!(found, Err(HostPathError::Link { .. })), "{path}");
        }
        assert!(resolve(&root.join("data/file"), HostPathKind::File).is_ok());
    }

    #[test]
    fn kinds_are_kept_and_made_where_they_may_be() {
        let (_directory, root) = place(false);
        let (data, file) = (root.join("data"), root.join("data/file"));
        let fails = |path: &Path, kind| resolve(path, kind).is_err();
        assert!(fails(&file, HostPathKind::Directory) && fails(&data, HostPathKind::File));
        for kind in [HostPathKind::Any, HostPathKind::Directory, HostPathKind::File] {
            assert!(fails(&root.join("none"), kind));
        }
        assert!(fails(&root.join("none/file"), HostPathKind::FileOrCreate));
        resolve(&root.join("a/b"), HostPathKind::DirectoryOrCreate).unwrap();
        resolve(&root.join("a/b/f"), HostPathKind::FileOrCreate).unwrap();
        assert!(root.join("a/b/f").is_file());
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(fails(&root.join("pipe"), HostPathKind::Any));
    }

    #[test]
    fn what_is_palisades_own_is_nobodys() {
        let (_directory, root) = place(false);
        let own = root.join("data/state");
        for path in ["data", "data/state", "data/state/pods"] {
            let asked = asked(
                &root.join(path),
                HostPathKind::DirectoryOrCreate,
                Access::ReadOnly,
            );
            let refused = mount_at(&asked, &root.join("target"), std::slice::from_ref(&own));
            assert!(matches!(refused, Err(HostPathError::Own { .. })), "{path}");
        }
    }

    /// Needs root, as all tests of mounts do.
    #[test]
    fn a_mount_is_what_was_resolved_and_nothing_in_it_is_executed() {
        let (_directory, root) = place(false);
        let target = root.join("target");
        let asked = asked(&root.join("data"), HostPathKind::Directory, Access::ReadOnly);
        mount_at(&asked, &target, &[]).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "content");
        let refused = fs::write(target.join("file"), "changed").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let flags = nix::sys::statvfs::statvfs(&target).unwrap().flags();
        for flag in ["ST_NOEXEC", "ST_NOSUID", "ST_NODEV"] {
            assert!(format!("{flags:?}").contains(flag), "{flags:?}");
        }
        umount2(&target, MntFlags::MNT_DETACH).unwrap();
    }

    #[test]
    fn a_directory_that_a_group_or_an_owner_enters_hides_nothing() {
        let (_directory, root) = place(false);
        let hidden = |mode, owner: u32| {
            fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(&root, Some(owner), None).unwrap();
            resolve(&root.join("data"), HostPathKind::Directory)
                .unwrap()
                .hidden
        };
        assert!(hidden(0o700, 0) && hidden(0o744, 0));
        assert!(!hidden(0o750, 0), "its group");
        assert!(!hidden(0o701, 0), "others");
        assert!(!hidden(0o700, 1000), "its owner");
        std::os::unix::fs::chown(&root, Some(0), None).unwrap();
    }

    #[test]
    fn what_others_reach_is_not_given_for_writing() {
        let (_directory, root) = place(true);
        let mut asked = asked(&root.join("data"), HostPathKind::Directory, Access::ReadWrite);
        let refused = mount_at(&asked, &root.join("target"), &[]);
        assert!(
            matches!(refused, Err(HostPathError::Reachable { .. })),
            "{refused:?}"
        );
        asked.access = Access::ReadOnly;
        mount_at(&asked, &root.join("target"), &[]).unwrap();
        umount2(&root.join("target"), MntFlags::MNT_DETACH).unwrap();
    }
}
