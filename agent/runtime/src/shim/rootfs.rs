//! A container's root: image layers and host directories, their owners shifted into the pod's id range.
//!
//! Layers on disk belong to host root and are never changed: each is mounted through an id-mapped mount of
//! the pod's user namespace, read-only, and overlayfs stacks them. The writable layer is an ordinary
//! directory whose files belong to the pod's host ids, so nothing a container writes is root's on the host.
//! All of it happens in the shim's mount namespace and goes with it. The staging area is a file system over
//! [`STAGING`] there: the pod's root must be able to walk to its own root, which it could not below the
//! run directory, and the name exists on every host.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use agent_sandbox::is_code_path;
use nix::errno::Errno;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::config::{ContainerConfig, Mount, PodConfig, PodPaths};
use crate::remove::remove_tree;
use crate::shim::subpath;
use crate::tmpfs;

/// Why a root could not be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("a container needs at least one image layer")]
    NoLayers,
    #[error("cannot {operation} {}", path.display())]
    Path {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot shift the owners of {}: its file system does not support id-mapped mounts (ext4, xfs, \
         btrfs and tmpfs do)",
        path.display()
    )]
    NoIdMapping { path: PathBuf },
    #[error("the list of layers is too long for one overlay mount")]
    TooManyLayers,
    #[error("{} cannot be executable: the same files are also mounted writable", target.display())]
    WritableAndExecutable { target: PathBuf },
    #[error("{} is, or leads to, the root of the container, over which nothing can be mounted", target.display())]
    OverRoot { target: PathBuf },
    #[error(
        "the working directory {} (workingDir) is not in what is mounted at {}, and cannot be made there: the mount is \
         read-only; name one that exists, or mount something else",
        directory.display(),
        target.display()
    )]
    NoWorkingDirectory { directory: PathBuf, target: PathBuf },
}

/// The root of one container in the shim's mount namespace.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// What the container will see as `/`.
    pub(crate) root: PathBuf,
    /// Where each of the configured mounts is staged, in order.
    pub(crate) mounts: Vec<PathBuf>,
    /// The same of the image's volumes.
    pub(crate) volumes: Vec<PathBuf>,
}

/// Where mounts are staged, seen in the shim's mount namespace only.
const STAGING: &str = "/dev/shm";

/// What the runtime mounts in every container, over whatever the image has there.
const OF_THE_RUNTIME: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Longest option string `mount` takes: one page, of which some is the other options.
const MAX_OVERLAY_OPTIONS: usize = 4000;

/// What all containers of a pod use, in the shim's mount namespace.
#[derive(Debug)]
pub(crate) struct Shared {
    /// A directory with one file per namespace of the pod, named as below `/proc/<pid>/ns`. The pod's root
    /// may open these; through `/proc` the kernel would let it see the holder only if the holder could be
    /// traced.
    pub(crate) namespaces: PathBuf,
    /// The pod's shared memory, common to its containers as the IPC namespace is.
    pub(crate) memory: PathBuf,
}

/// Prepares the staging area, whose directory of namespaces is still empty.
pub(crate) fn prepare() -> Result<Shared, RootfsError> {
    let staging = Path::new(STAGING);
    mount_tmpfs(staging, 1 << 20, 0o711)?;
    // No container is called like these: their names have no dot.
    let memory = staging.join(".memory");
    fs::create_dir(&memory).map_err(on("create", &memory))?;
    mount_tmpfs(&memory, 64 << 20, 0o1777)?;
    let namespaces = staging.join(".namespaces");
    fs::create_dir(&namespaces).map_err(on("create", &namespaces))?;
    rustix::fs::chmod(&namespaces, Mode::from_raw_mode(0o711)).map_err(on_errno("open up", &namespaces))?;
    Ok(Shared { namespaces, memory })
}

/// Keeps the namespaces of the holder there.
pub(crate) fn keep(shared: &Shared, holder: i32, shares_processes: bool) -> Result<(), RootfsError> {
    // The holder itself is outside of the pid namespace that it has made.
    let pid = shares_processes.then_some(("pid", "pid_for_children"));
    let others = ["user", "net", "ipc", "uts"].map(|name| (name, name));
    for (name, of_holder) in others.into_iter().chain(pid) {
        let file = shared.namespaces.join(name);
        fs::File::create(&file).map_err(on("create", &file))?;
        let source = PathBuf::from(format!("/proc/{holder}/ns/{of_holder}"));
        rustix::mount::mount_bind(&source, &file).map_err(on_errno("keep", &source))?;
    }
    Ok(())
}

/// Mounts everything a container needs below its staging directory. The mounts and the image's volumes of `config` are put where
/// the image's links lead, in the order in which they can be made.
pub(crate) fn stage(
    paths: &PodPaths,
    pod: &PodConfig,
    user_namespace: BorrowedFd<'_>,
    config: &mut ContainerConfig,
) -> Result<Rootfs, RootfsError> {
    if config.layers.is_empty() {
        return Err(RootfsError::NoLayers);
    }
    demand_no_writable_code(&config.mounts)?;
    let staging = staging_of(&config.name);
    fs::create_dir(&staging).map_err(on("create", &staging))?;
    mount_tmpfs(&staging, 1 << 20, 0o711)?;

    let mut lower = Vec::new();
    for (index, layer) in config.layers.iter().enumerate() {
        let name = format!("l{index}");
        fs::create_dir(staging.join(&name)).map_err(on("create", &staging))?;
        let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
        bind_shifted(layer, &staging.join(&name), user_namespace, attributes)?;
        lower.push(name);
    }
    let writable = make_writable(paths, pod, config)?;
    let root = overlay(&staging, &lower, &writable)?;

    place(&root, &mut config.mounts)?;
    place_volumes(&root, config)?;
    make_working_directory(&root, pod, config)?;
    let mut volumes = Vec::new();
    for (index, volume) in config.image_volumes.iter().enumerate() {
        make_directory(&root, volume, pod)?;
        let staged = staging.join(format!("v{index}"));
        stage_volume(&root, volume, &staged)?;
        volumes.push(staged);
    }
    let mut mounts = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        let staged = staging.join(format!("m{index}"));
        stage_mount(mount, &staged, user_namespace)?;
        mounts.push(staged);
    }
    Ok(Rootfs {
        root,
        mounts,
        volumes,
    })
}

/// Takes all mounts of a container away again. What is not there is no error.
pub(crate) fn unstage(container: &str) -> Result<(), RootfsError> {
    let staging = staging_of(container);
    match rustix::mount::unmount(&staging, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(on_errno("unmount", &staging)(errno)),
    }
    match fs::remove_dir(&staging) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(on("remove", &staging)(error)),
    }
}

fn staging_of(container: &str) -> PathBuf {
    Path::new(STAGING).join(container)
}

fn mount_tmpfs(path: &Path, bytes: u64, mode: u32) -> Result<(), RootfsError> {
    tmpfs::mount(path, bytes, mode).map_err(on("mount a temporary file system at", path))
}

fn overlay(staging: &Path, lower: &[String], writable: &Path) -> Result<PathBuf, RootfsError> {
    let root = staging.join("root");
    fs::create_dir(&root).map_err(on("create", &root))?;
    // Relative names keep many layers within the page that mount options get. Topmost first.
    let lower: Vec<_> = lower.iter().rev().map(String::as_str).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        lower.join(":"),
        writable.join("upper").display(),
        writable.join("work").display()
    );
    let options = CString::new(options)
        .ok()
        .filter(|text| text.as_bytes().len() <= MAX_OVERLAY_OPTIONS);
    let options = options.ok_or(RootfsError::TooManyLayers)?;
    // The shim has one thread and uses absolute paths only, so its working directory is free to use.
    std::env::set_current_dir(staging).map_err(on("enter", staging))?;
    let mounted = rustix::mount::mount(
        "overlay",
        "root",
        "overlay",
        MountFlags::NODEV,
        Some(options.as_c_str()),
    );
    std::env::set_current_dir("/").map_err(on("enter", Path::new("/")))?;
    mounted.map_err(on_errno("mount an overlay at", &root))?;
    Ok(root)
}

/// The upper directory becomes the container's `/`, so it belongs to the container's root.
fn make_writable(
    paths: &PodPaths,
    pod: &PodConfig,
    config: &ContainerConfig,
) -> Result<PathBuf, RootfsError> {
    let writable = paths.writable(&config.name, config.attempt);
    remove_tree(&writable).map_err(on("clear the old", &writable))?;
    for directory in [&writable, &writable.join("upper"), &writable.join("work")] {
        fs::create_dir(directory).map_err(on("create", directory))?;
    }
    let upper = writable.join("upper");
    std::os::unix::fs::chown(&upper, Some(pod.id_base), Some(pod.id_base))
        .map_err(on("give away", &upper))?;
    rustix::fs::chmod(&upper, Mode::from_raw_mode(0o755)).map_err(on_errno("open up", &upper))?;
    Ok(writable)
}

/// Makes what is missing of the working directory where the container will find it: in the image, or in what is mounted over
/// it. Everything else that keeps the program from entering it is for the kernel to say.
fn make_working_directory(root: &Path, pod: &PodConfig, config: &ContainerConfig) -> Result<(), RootfsError> {
    let targets = config.mounts.iter().map(|mount| mount.target.clone());
    let covered: Vec<PathBuf> = OF_THE_RUNTIME
        .map(PathBuf::from)
        .into_iter()
        .chain(targets)
        .collect();
    let found = resolve(root, &config.cwd, &covered)?;
    // What is mounted last is on top.
    let below = |mount: &&Mount| found.starts_with(&mount.target);
    let Some(mount) = config.mounts.iter().rev().find(below) else {
        return make_directory(root, &config.cwd, pod);
    };
    let rest = found.strip_prefix(&mount.target).unwrap_or(Path::new(""));
    if rest.as_os_str().is_empty() {
        return Ok(());
    }
    let source = source_of(mount)?;
    match subpath::beneath(&source, rest) {
        Err(rustix::io::Errno::NOENT) if mount.read_only => Err(RootfsError::NoWorkingDirectory {
            directory: config.cwd.clone(),
            target: mount.target.clone(),
        }),
        Err(rustix::io::Errno::NOENT) => {
            let mode = Mode::from_raw_mode(0o755);
            subpath::make(&source, rest, &mount.source.join(rest), mode)
        }
        _ => Ok(()),
    }
}

fn source_of(mount: &Mount) -> Result<OwnedFd, RootfsError> {
    match &mount.sub_path {
        Some(sub_path) => subpath::open(&mount.source, sub_path),
        None => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::open(&mount.source, flags, Mode::empty()).map_err(on_errno("find", &mount.source))
        }
    }
}

fn stage_mount(mount: &Mount, staged: &Path, user_namespace: BorrowedFd<'_>) -> Result<(), RootfsError> {
    let source = source_of(mount)?;
    let kind = rustix::fs::fstat(&source).map_err(on_errno("look at", &mount.source))?;
    if FileType::from_raw_mode(kind.st_mode) == FileType::Directory {
        fs::create_dir(staged).map_err(on("create", staged))?;
    } else {
        fs::File::create(staged).map_err(on("create", staged))?;
    }
    let mut attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
    if mount.read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    // Inside a code directory the image's rule would let its files be executed. Elsewhere Landlock keeps them from being so,
    // and code may be mapped from them, as programs that unpack their own libraries do.
    //
    // Links in volumes are not seen here; the sandbox refuses what they lead into code ([`agent_sandbox::ImageRuleset`]).
    if is_code_path(&mount.target) && !may_execute(mount) {
        attributes |= libc::MOUNT_ATTR_NOEXEC;
    }
    bind_shifted_fd(
        (source.as_fd(), &mount.source),
        staged,
        user_namespace,
        attributes,
    )
}

/// Brings mounts into the order in which what lies in another comes after it, and their targets to where the image's links
/// lead: the sandbox grants nothing at the end of a link, and what is mounted there is not below the name that was asked for.
///
/// What has the same target as a later one is hidden by it.
fn place(root: &Path, mounts: &mut [Mount]) -> Result<(), RootfsError> {
    // Mounts before their parts: the image's links below a mount do not count.
    let depth = |mount: &Mount| mount.target.components().count();
    mounts.sort_by_key(depth);
    let mut covered: Vec<PathBuf> = OF_THE_RUNTIME.map(PathBuf::from).into();
    for mount in &mut *mounts {
        let found = resolve(root, &mount.target, &covered)?;
        if found == Path::new("/") {
            return Err(RootfsError::OverRoot {
                target: mount.target.clone(),
            });
        }
        covered.push(found.clone());
        mount.target = found;
    }
    mounts.sort_by_key(depth);
    Ok(())
}

/// Brings the image's volumes to where its links lead, those that others are in first, and leaves out what something else is
/// mounted at or over.
fn place_volumes(root: &Path, config: &mut ContainerConfig) -> Result<(), RootfsError> {
    let targets = config.mounts.iter().map(|mount| mount.target.clone());
    let covered: Vec<PathBuf> = OF_THE_RUNTIME
        .map(PathBuf::from)
        .into_iter()
        .chain(targets)
        .collect();
    let mut placed = Vec::new();
    for volume in &config.image_volumes {
        let found = resolve(root, volume, &covered)?;
        let is_free = !covered.iter().any(|other| found.starts_with(other));
        if is_free && found != Path::new("/") && !placed.contains(&found) {
            placed.push(found);
        }
    }
    placed.sort_by_key(|path| path.components().count());
    config.image_volumes = placed;
    Ok(())
}

/// A directory of the root by itself: the root can be made read-only, and this stays as it is. What is written is in the container's
/// writable layer.
fn stage_volume(root: &Path, volume: &Path, staged: &Path) -> Result<(), RootfsError> {
    // No component of it is a link.
    let source = root.join(volume.strip_prefix("/").unwrap_or(volume));
    fs::create_dir(staged).map_err(on("create", staged))?;
    rustix::mount::mount_bind(&source, staged).map_err(on_errno("mount", &source))?;
    let mut flags = MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID;
    if is_code_path(volume) {
        flags |= MountFlags::NOEXEC;
    }
    rustix::mount::mount_remount(staged, flags, c"").map_err(on_errno("restrict", staged))
}

/// Where the links of an image lead from a path in it, the last component included, whether or not there is anything. Nothing
/// of the container runs yet, so the image says the same until all is mounted. Below `covered` lies something else than the
/// image.
fn resolve(root: &Path, path: &Path, covered: &[PathBuf]) -> Result<PathBuf, RootfsError> {
    // As many as the kernel follows.
    const MAX_LINKS: usize = 40;
    let names = |path: &Path| -> Vec<PathBuf> {
        let names = path.components().rev();
        names.map(|name| PathBuf::from(name.as_os_str())).collect()
    };
    let mut found = PathBuf::from("/");
    let mut pending = names(path);
    let mut links = 0;
    while let Some(name) = pending.pop() {
        match name.components().next() {
            Some(Component::ParentDir) => {
                found.pop();
                continue;
            }
            Some(Component::Normal(_)) => {}
            _ => continue,
        }
        let next = found.join(&name);
        let link = match covered.iter().any(|other| found.starts_with(other)) {
            true => None,
            // No component of `found` is a link.
            false => link_at(&root.join(next.strip_prefix("/").unwrap_or(&next)))?,
        };
        let Some(link) = link else {
            found = next;
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(on_errno("find", path)(rustix::io::Errno::LOOP));
        }
        if link.is_absolute() {
            found = PathBuf::from("/");
        }
        pending.extend(names(&link));
    }
    Ok(found)
}

/// What a link says; nothing if there is no link.
fn link_at(path: &Path) -> Result<Option<PathBuf>, RootfsError> {
    match fs::read_link(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOENT | libc::ENOTDIR) => Ok(None),
            _ => Err(on("find", path)(error)),
        },
    }
}

/// The sandbox knows files, not paths: what one mount makes executable is so through every other mount.
fn demand_no_writable_code(mounts: &[Mount]) -> Result<(), RootfsError> {
    for code in mounts.iter().filter(|mount| may_execute(mount)) {
        let overlaps = |other: &&Mount| {
            let (a, b) = (&code.source, &other.source);
            !other.read_only && (a.starts_with(b) || b.starts_with(a))
        };
        if mounts.iter().any(|other| overlaps(&other)) {
            return Err(RootfsError::WritableAndExecutable {
                target: code.target.clone(),
            });
        }
    }
    Ok(())
}

/// What can be written is never executable.
pub(crate) fn may_execute(mount: &Mount) -> bool {
    mount.executable && mount.read_only
}

/// Mounts `source` at `target` so that on-disk owner 0 is the pod's root, 1 its user 1, and so on.
fn bind_shifted(
    source: &Path,
    target: &Path,
    user_namespace: BorrowedFd<'_>,
    attributes: u64,
) -> Result<(), RootfsError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::open(source, flags, Mode::empty()).map_err(on_errno("find", source))?;
    bind_shifted_fd((opened.as_fd(), source), target, user_namespace, attributes)
}

/// The same for what is open already: between look and mount nothing can take its place.
fn bind_shifted_fd(
    (opened, source): (BorrowedFd<'_>, &Path),
    target: &Path,
    user_namespace: BorrowedFd<'_>,
    attributes: u64,
) -> Result<(), RootfsError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = flags | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(opened, "", flags).map_err(on_errno("open", source))?;
    match set_attributes(tree.as_fd(), attributes | libc::MOUNT_ATTR_IDMAP, user_namespace) {
        Ok(()) => {}
        Err(Errno::EINVAL) => return Err(RootfsError::NoIdMapping { path: source.into() }),
        Err(errno) => return Err(on("shift the owners of", source)(errno.into())),
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, target, flags).map_err(on_errno("mount at", target))
}

fn set_attributes(
    tree: BorrowedFd<'_>,
    attributes: u64,
    user_namespace: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    // SAFETY: the path is an empty C string, the structure is complete and its size is its own; both
    // outlive the call, which keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// The home directory of a user, as the image's `/etc/passwd` says; `/` if it does not.
pub(crate) fn home_of(root: BorrowedFd<'_>, uid: u32) -> Result<String, RootfsError> {
    const MAX_PASSWD: u64 = 1 << 20;
    let path = Path::new("etc/passwd");
    // Not blocking, in case the image has a pipe there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => fs::File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok("/".into());
        }
        Err(errno) => return Err(on_errno("read", path)(errno)),
    };
    let mut text = Vec::new();
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        file.take(MAX_PASSWD)
            .read_to_end(&mut text)
            .map_err(on("read", path))?;
    }
    let text = String::from_utf8_lossy(&text);
    let home = text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let is_user = fields.next()?.parse() == Ok(uid);
        is_user
            .then(|| fields.nth(2))
            .flatten()
            .filter(|home| !home.is_empty())
    });
    Ok(home.unwrap_or("/").into())
}

/// Creates a directory in the container's root, resolving the image's links as the container would.
fn make_directory(root: &Path, path: &Path, pod: &PodConfig) -> Result<(), RootfsError> {
    let top = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(on_errno("open", root))?;
    let open = |path: &Path| -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(
            &top,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let mut done = PathBuf::from("/");
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        let parent = open(&done).map_err(on_errno("open", &done))?;
        done.push(name);
        match open(&done) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
                    .map_err(on_errno("create", &done))?;
                let (owner, group) = (Uid::from_raw(pod.id_base), Gid::from_raw(pod.id_base));
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&parent, name, Some(owner), Some(group), flags)
                    .map_err(on_errno("give away", &done))?;
            }
            Err(errno) => return Err(on_errno("open", &done)(errno)),
        }
    }
    Ok(())
}

pub(super) fn on(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    let path = path.to_owned();
    move |source| RootfsError::Path {
        operation,
        path,
        source,
    }
}

pub(super) fn on_errno(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(rustix::io::Errno) -> RootfsError {
    let error = on(operation, path);
    move |errno| error(errno.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mount(target: &str) -> Mount {
        Mount {
            source: "/host".into(),
            sub_path: None,
            target: target.into(),
            read_only: false,
            executable: false,
        }
    }

    fn placed(root: &Path, targets: &[&str]) -> Result<Vec<String>, RootfsError> {
        let mut mounts: Vec<Mount> = targets.iter().map(|target| mount(target)).collect();
        place(root, &mut mounts)?;
        let target = |mount: Mount| mount.target.to_str().expect("text").to_owned();
        Ok(mounts.into_iter().map(target).collect())
    }

    #[test]
    fn what_lies_in_another_mount_comes_after_it() {
        let root = tempfile::tempdir().expect("a directory");
        let placed = |targets: &[&str]| placed(root.path(), targets).expect("placed");
        assert_eq!(
            placed(&[
                "/etc/hosts",
                "/a/b/c",
                "/data/part",
                "/a",
                "/data",
                "/a/b",
                "/etc"
            ]),
            [
                "/a",
                "/data",
                "/etc",
                "/etc/hosts",
                "/data/part",
                "/a/b",
                "/a/b/c"
            ]
        );
    }

    #[test]
    fn targets_are_where_the_images_links_lead() {
        let root = tempfile::tempdir().expect("a directory");
        let path = |path: &str| root.path().join(path);
        for directory in ["var", "etc", "usr/bin", "srv/real", "dev"] {
            fs::create_dir_all(path(directory)).expect("mkdir");
        }
        for (target, link) in [
            // Neither is in the image.
            ("/run", "var/run"),
            ("../run/resolve/stub.conf", "etc/resolv.conf"),
            ("usr/bin", "bin"),
            ("real/../../../..", "srv/up"),
            ("/srv/up/usr/bin", "srv/twice"),
            ("loop", "srv/loop"),
            ("..", "srv/root"),
            ("/usr/bin", "dev/code"),
            ("/usr/bin", "usr/hidden"),
        ] {
            symlink(target, path(link)).expect("link");
        }
        let placed = |targets: &[&str]| placed(root.path(), targets);
        for (target, found) in [
            ("/var/run", "/run"),
            ("/var/run/app", "/run/app"),
            ("/etc/resolv.conf", "/run/resolve/stub.conf"),
            ("/bin/vol", "/usr/bin/vol"),
            ("/srv/up/etc", "/etc"),
            ("/srv/twice/x", "/usr/bin/x"),
            ("/not/there", "/not/there"),
            ("/dev/code/x", "/dev/code/x"),
        ] {
            assert_eq!(placed(&[target]).expect(target), [found], "{target}");
        }
        assert_eq!(
            placed(&["/var/run/deep", "/srv/real/a", "/var/run"]).expect("placed"),
            ["/run", "/run/deep", "/srv/real/a"],
            "ordered by where they are"
        );
        assert_eq!(
            placed(&["/usr/hidden/x", "/usr"]).expect("placed"),
            ["/usr", "/usr/hidden/x"],
            "what lies over the image is not the image"
        );
        assert!(placed(&["/srv/loop"]).is_err());
        for over in ["/srv/root", "/srv/up", "/"] {
            assert!(
                matches!(placed(&[over]), Err(RootfsError::OverRoot { .. })),
                "{over}"
            );
        }
    }
}
