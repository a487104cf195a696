//! The directory of pins: a BPF file system of our own, one agent at a time.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock, statfs},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::DatapathError;

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pin directory, locked against a second agent.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    /// Whether the file system is ours and new, so that nothing of an earlier agent goes with it.
    is_new: bool,
    _lock: File,
}

impl Pins {
    /// Mounts a BPF file system on `root` unless it is one already, and locks it.
    pub(crate) fn open(root: &Path) -> Result<Self, DatapathError> {
        make_directory(root)?;
        let is_new = !is_bpf_fs(root)?;
        if is_new {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("bpf", root, "bpf", flags, Some(c"mode=0700"))
                .map_err(|source| failed("mount a BPF file system on", root)(source.into()))?;
        }
        let lock = lock(root).inspect_err(|_| abandon(root, is_new))?;
        let pins = Self {
            root: root.to_owned(),
            is_new,
            _lock: lock,
        };
        if let Err(error) = make_directory(&pins.maps()).and_then(|()| make_directory(&pins.links())) {
            pins.abandon();
            return Err(error);
        }
        Ok(pins)
    }

    /// Takes back what [`Pins::open`] did, for an agent that cannot begin. What an earlier one left stays as it is.
    pub(crate) fn abandon(self) {
        abandon(&self.root, self.is_new);
    }

    /// Directory of the pinned maps.
    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Directory of the pinned links.
    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Removes all pins, and the mount if `root` is one.
    pub(crate) fn remove(self) -> Result<(), DatapathError> {
        for directory in [self.links(), self.maps()] {
            fs::remove_dir_all(&directory).map_err(failed("remove", &directory))?;
        }
        let Self {
            root, _lock: lock, ..
        } = self;
        drop(lock);
        // Detached rather than plainly unmounted: a child that some thread has just forked, and that has not called
        // `exec` yet, holds a copy of our descriptors for a moment.
        if is_mount_point(&root)? {
            unmount(&root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|source| failed("unmount", &root)(source.into()))?;
        }
        fs::remove_dir(&root).map_err(failed("remove", &root))
    }
}

/// Turns an I/O error into one that names the operation and the path.
pub(crate) fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Pins {
        operation,
        path: path.clone(),
        source,
    }
}

/// Locks the directory against a second agent.
fn lock(root: &Path) -> Result<File, DatapathError> {
    let lock = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(root)
        .map_err(failed("open", root))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DatapathError::InUse {
            path: root.to_owned(),
        }),
        Err(source) => Err(failed("lock", root)(source.into())),
    }
}

/// Unmounts the file system if it `is_new`. The caller hears why it is needed; that this fails too leaves an empty one.
fn abandon(root: &Path, is_new: bool) {
    if is_new {
        let _left_behind = unmount(root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

fn make_directory(path: &Path) -> Result<(), DatapathError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))
}

fn is_bpf_fs(path: &Path) -> Result<bool, DatapathError> {
    let stat = statfs(path).map_err(|source| failed("inspect", path)(source.into()))?;
    Ok(stat.f_type == BPF_FS_MAGIC)
}

fn is_mount_point(path: &Path) -> Result<bool, DatapathError> {
    let device = |path: &Path| {
        fs::metadata(path)
            .map(|meta| meta.dev())
            .map_err(failed("inspect", path))
    };
    Ok(device(path)? != device(&path.join(".."))?)
}
