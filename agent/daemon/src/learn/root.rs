//! The root of a container, held open: what the container names is looked up there, and nowhere else.
//!
//! A path through `/proc/PID/root` would not do: it begins there, but an absolute link in it leads on from the node's root.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// Tries while somebody renames what is on the way.
const TRIES: u32 = 100;

/// The root directory of a container.
pub(super) struct Root(OwnedFd);

impl Root {
    /// That of a process.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/root")))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// What has the name in the container, links along the way followed there. A link at its end is what is found. The
    /// descriptor says which it is, and reads nothing of it.
    pub(super) fn find(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.0, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                found => return Ok(found?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn no_link_leads_out_of_the_container() {
        let base = tempfile::tempdir().unwrap();
        let (root, node) = (base.path().join("root"), base.path().join("node"));
        for directory in [root.join("bin"), node.clone()] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(root.join("bin/own"), "").unwrap();
        fs::write(node.join("secret"), "").unwrap();
        symlink(&node, root.join("absolute")).unwrap();
        symlink("../node", root.join("up")).unwrap();
        symlink("/bin", root.join("sbin")).unwrap();
        let container = Root::at(&root).unwrap();
        let inode = |name: &str| {
            let found = container.find(name).ok()?;
            Some(rustix::fs::fstat(found).unwrap().st_ino)
        };
        let own = fs::metadata(root.join("bin/own")).unwrap().ino();
        assert_eq!(inode("/bin/own"), Some(own));
        assert_eq!(inode("/sbin/own"), Some(own), "its links are its own");
        let node_root = fs::metadata(&root).unwrap().ino();
        assert_eq!((inode("/"), inode("/../..")), (Some(node_root), Some(node_root)));
        assert_eq!(inode("/absolute/secret"), None);
        assert_eq!(inode("/up/secret"), None);
        let here = Root::of(std::process::id().cast_signed()).unwrap();
        assert!(
            here.find("/proc/self/root/etc").is_err(),
            "nor one that the kernel makes"
        );
    }
}
