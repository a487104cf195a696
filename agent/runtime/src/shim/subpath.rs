//! A part of a volume, found without being led out of it.
//!
//! A container that writes to a volume chooses what every name in it means, also while another container of
//! the pod is being started. So nothing is looked up twice and nothing by a path of the host: the kernel walks
//! from the open volume and refuses to leave it, and the descriptor that it returns is what gets mounted.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::shim::rootfs::{RootfsError, on, on_errno};

/// Opens `sub_path` below `volume`. What is missing of it is made as directories of the pod's root.
pub(crate) fn open(volume: &Path, sub_path: &Path) -> Result<OwnedFd, RootfsError> {
    let shown = volume.join(sub_path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(volume, flags, Mode::empty()).map_err(on_errno("find", volume))?;
    let mode = rustix::fs::fstat(&top)
        .map_err(on_errno("look at", volume))?
        .st_mode;
    match beneath(&top, sub_path) {
        Err(Errno::NOENT) => {}
        found => return found.map_err(on_errno("find", &shown)),
    }
    // As open as the volume, whoever uses it.
    make(&top, sub_path, &shown, Mode::from_raw_mode(mode & 0o7777))?;
    beneath(&top, sub_path).map_err(on_errno("find", &shown))
}

/// What is at `path` below `top`, without being led out of it.
pub(crate) fn beneath(top: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    // Links may be followed as long as they stay inside.
    look_up(top, path, OFlags::PATH | OFlags::CLOEXEC)
}

/// Makes what is missing of the directories at `path` below `top`, with `mode`. The owner is root of the host, who is root of the
/// pod there, and the group comes from a directory that passes it on.
pub(crate) fn make(top: &OwnedFd, path: &Path, shown: &Path, mode: Mode) -> Result<(), RootfsError> {
    let names = names(path).ok_or_else(|| {
        let rule = "a part of a volume is relative, without '..'";
        on("find", shown)(io::Error::new(io::ErrorKind::InvalidInput, rule))
    })?;
    let mut done = PathBuf::new();
    for name in names {
        let parent = match done.as_os_str().is_empty() {
            true => beneath(top, Path::new(".")),
            false => beneath(top, &done),
        };
        let parent = parent.map_err(on_errno("find", shown))?;
        done.push(name);
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let made = look_up(top, &done, flags).map_err(on_errno("find", shown))?;
                let passed_on = rustix::fs::fstat(&made)
                    .map_err(on_errno("look at", shown))?
                    .st_mode;
                let mode = mode | (Mode::from_raw_mode(passed_on) & Mode::SGID);
                rustix::fs::fchmod(&made, mode).map_err(on_errno("open up", shown))?;
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(on_errno("create", shown)(errno)),
        }
    }
    Ok(())
}

fn look_up(top: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // The kernel asks for another try when something was renamed meanwhile; a container that does so for
    // ever keeps its own pod from starting, and gives up nothing.
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < 100 => tries += 1,
            result => return result,
        }
    }
}

fn names(path: &Path) -> Option<Vec<&OsStr>> {
    let name = |component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    };
    let names: Vec<_> = path.components().map(name).collect::<Option<_>>()?;
    (!names.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn nothing_leads_out_of_the_volume() {
        let directory = tempfile::tempdir().expect("a directory");
        let volume = directory.path().join("volume");
        let outside = directory.path().join("outside");
        for made in [&volume, &outside] {
            fs::create_dir(made).expect("mkdir");
        }
        fs::write(outside.join("secret"), "x").expect("write");
        fs::create_dir(volume.join("real")).expect("mkdir");
        symlink("real", volume.join("inside")).expect("link");
        symlink("../outside", volume.join("up")).expect("link");
        symlink(&outside, volume.join("absolute")).expect("link");
        symlink("/proc/self/root", volume.join("magic")).expect("link");
        symlink("nowhere", volume.join("dangling")).expect("link");
        let inode = |path: &Path| fs::metadata(path).expect("there").ino();
        let open = |path: &str| open(&volume, Path::new(path));
        let opened = |path: &str| rustix::fs::fstat(open(path).expect(path)).expect("stat").st_ino;
        assert_eq!(opened("real"), inode(&volume.join("real")));
        assert_eq!(opened("inside"), inode(&volume.join("real")));
        assert_eq!(opened("new/deep"), inode(&volume.join("new/deep")));
        assert_eq!(opened("inside/made"), inode(&volume.join("real/made")));
        for path in [
            "up",
            "up/secret",
            "up/made",
            "absolute",
            "magic",
            "../outside",
            "/etc",
            "",
            "dangling",
        ] {
            assert!(open(path).is_err(), "{path}");
        }
        assert!(!outside.join("made").exists());
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        assert_eq!(mode(&volume.join("new/deep")), mode(&volume));
    }

    #[test]
    fn a_race_with_links_stays_inside() {
        let directory = tempfile::tempdir().expect("a directory");
        let volume = directory.path().join("volume");
        let outside = directory.path().join("outside");
        for made in [&volume, &outside, &volume.join("a")] {
            fs::create_dir(made).expect("mkdir");
        }
        symlink("../outside", volume.join("b")).expect("link");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (a, b) = (volume.join("a"), volume.join("b"));
                    let swap = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, swap).expect("swap");
                }
            });
            let foreign = fs::metadata(&outside).expect("there").ino();
            for _attempt in 0..2000 {
                if let Ok(found) = open(&volume, Path::new("a")) {
                    assert_ne!(rustix::fs::fstat(found).expect("stat").st_ino, foreign);
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
