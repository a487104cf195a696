//! Where this process finds the control groups of the host.
//!
//! Which hierarchies there are does not change while a host runs, so each process looks once. A shim takes version 1's
//! out of its mount namespace and holds them open ([`set_aside`]). libcontainer 0.7, which runs in its children, finds none
//! then, and does nothing about them: it would read the mount table and its own groups anew for each of twelve controllers,
//! some seven hundred system calls for each container, and move processes in a way for which the kernel makes it wait. What it
//! would do is done in `placement`. On version 2 it does all that itself, and it is little.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FsWord, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::cgroup::{CgroupError, error};

/// Where hosts mount them.
const MOUNT: &str = "/sys/fs/cgroup";

/// Magic number of a version 2 file system, from the kernel's `magic.h`.
const CGROUP2: FsWord = 0x6367_7270;

static OF_THIS_PROCESS: OnceLock<Hierarchies> = OnceLock::new();

/// The hierarchies of the host.
#[derive(Debug)]
pub(crate) struct Hierarchies {
    /// Whether there is only version 2.
    pub(crate) unified: bool,
    /// By name, which is that of their directory, such as `cpu,cpuacct`; version 2 has none.
    pub(crate) roots: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// As this process sees them.
    pub(crate) fn known() -> Result<&'static Self, CgroupError> {
        match OF_THIS_PROCESS.get() {
            Some(known) => Ok(known),
            None => {
                let found = Self::mounted()?;
                Ok(OF_THIS_PROCESS.get_or_init(|| found))
            }
        }
    }

    /// The root of the one that has the controller: on version 2 there is one for all.
    pub(crate) fn root_of(&self, controller: &str) -> Option<&PathBuf> {
        let has = |name: &str| name.is_empty() || name.split(',').any(|name| name == controller);
        self.roots
            .iter()
            .find_map(|(name, root)| has(name).then_some(root))
    }

    fn mounted() -> Result<Self, CgroupError> {
        let mount = Path::new(MOUNT);
        let stat = rustix::fs::statfs(mount).map_err(|errno| error("inspect", mount)(errno.into()))?;
        let mut found = Self {
            unified: stat.f_type == CGROUP2,
            roots: BTreeMap::new(),
        };
        if found.unified {
            found.roots.insert(String::new(), mount.to_owned());
            return Ok(found);
        }
        for entry in fs::read_dir(mount).map_err(error("list", mount))? {
            let entry = entry.map_err(error("list", mount))?;
            // Links name hierarchies that are mounted together, such as `cpu` for `cpu,cpuacct`.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                found.roots.insert(name, entry.path());
            }
        }
        Ok(found)
    }
}

/// Takes version 1's hierarchies out of this mount namespace, which must be the caller's own. Nothing happens on a host that
/// has only version 2. To be called before [`Hierarchies::known`].
pub(crate) fn set_aside() -> Result<(), CgroupError> {
    let mount = Path::new(MOUNT);
    let mut found = Hierarchies::mounted()?;
    if found.unified {
        return Ok(());
    }
    for root in found.roots.values_mut() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = rustix::fs::open(&*root, flags, Mode::empty())
            .map_err(|errno| error("open", root)(errno.into()))?;
        // Open for as long as this process lives, and in those that it forks until they execute a program.
        *root = PathBuf::from(format!("/proc/self/fd/{}", held.into_raw_fd()));
    }
    match rustix::mount::unmount(mount, UnmountFlags::DETACH) {
        Ok(()) => {
            // What libcontainer takes for version 1 without a controller.
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("tmpfs", mount, "tmpfs", flags, Some(c"size=4k,mode=555"))
                .map_err(|errno| error("cover", mount)(errno.into()))?;
        }
        // It may not be unmounted: libcontainer finds what the host has, which is as right, only slower.
        Err(rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(error("unmount", mount)(errno.into())),
    }
    OF_THIS_PROCESS
        .set(found)
        .map_err(|_known| error("set aside", mount)(io::Error::other("they were looked for before")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_the_one_or_several() {
        let known = Hierarchies::known().expect("mounted");
        assert!(known.roots.values().all(|root| root.is_dir()), "{known:?}");
        match known.unified {
            true => assert_eq!(known.roots[""], Path::new(MOUNT)),
            false => assert!(known.roots.len() > 1 && !known.roots.contains_key("")),
        }
    }

    #[test]
    fn a_controller_is_found_by_its_name() {
        let with = |names: &[&str]| Hierarchies {
            unified: false,
            roots: names
                .iter()
                .map(|name| ((*name).to_owned(), name.into()))
                .collect(),
        };
        let version_1 = with(&["cpu,cpuacct", "cpuset", "memory", "systemd"]);
        let root = |controller| version_1.root_of(controller).and_then(|root| root.to_str());
        assert_eq!(root("cpu"), Some("cpu,cpuacct"));
        assert_eq!(root("cpuacct"), Some("cpu,cpuacct"));
        assert_eq!(root("cpuset"), Some("cpuset"));
        assert_eq!(root("pids"), None);
        assert_eq!(with(&[""]).root_of("pids"), Some(&PathBuf::new()));
    }
}
