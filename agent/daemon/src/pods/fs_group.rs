//! `fsGroup` on a volume that is older than the pod: its group owns what is there, and new files stay the group's.
//!
//! What is there was written by pods and may be hostile, also while it is looked at. Every name is looked up in an open
//! directory, never through a link or a mount, and what was looked at is what is changed, so nothing outside of the volume is
//! met. The top comes last: a walk that ended half-way is none.

use std::{
    ffi::CStr,
    fs::Permissions,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
};

use k8s_openapi::api::core::v1::Pod;
use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

/// Directories in one another, each of which holds a descriptor.
const MAX_DEPTH: usize = 128;

/// What the group may at least, and that what is made in a directory is the group's.
const OF_FILES: u32 = 0o660;
const OF_DIRECTORIES: u32 = 0o2770;

/// The group that a pod wants its volumes to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FsGroup {
    pub(super) gid: u32,
    /// Whether a volume whose top is the group's already is left as it is.
    pub(super) on_root_mismatch: bool,
}

impl FsGroup {
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        Some(Self {
            gid: u32::try_from(context.fs_group?).ok()?,
            on_root_mismatch: context.fs_group_change_policy.as_deref() == Some("OnRootMismatch"),
        })
    }

    /// Gives the directory `top`, with all that is below it, to the group.
    pub(super) fn take(self, top: &OwnedFd) -> io::Result<()> {
        let found = rustix::fs::fstat(top)?;
        if self.on_root_mismatch && self.fits(&found) {
            return Ok(());
        }
        self.walk(top)?;
        self.change(top.as_fd(), &found)
    }

    /// Kubernetes' `requiresPermissionChange`, the other way round.
    fn fits(self, top: &Stat) -> bool {
        top.st_gid == self.gid && top.st_mode & OF_DIRECTORIES == OF_DIRECTORIES
    }

    fn walk(self, top: &OwnedFd) -> io::Result<()> {
        let mut levels = vec![Dir::read_from(top)?];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.read() else {
                levels.pop();
                continue;
            };
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let here = level.fd()?;
            let Some(found) = open_below(here, name, OFlags::PATH)? else {
                continue;
            };
            let stat = rustix::fs::fstat(&found)?;
            self.change(found.as_fd(), &stat)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                && let Some(opened) = open_below(here, name, OFlags::RDONLY | OFlags::DIRECTORY)?
            {
                if levels.len() >= MAX_DEPTH {
                    let why = format!("it has more than {MAX_DEPTH} directories in one another");
                    return Err(io::Error::other(why));
                }
                levels.push(Dir::new(opened)?);
            }
        }
        Ok(())
    }

    /// What is open becomes the group's, which may read and write it. Setuid bits of files go, as with any change of
    /// owners: mounts of volumes do not honour them.
    fn change(self, open: BorrowedFd<'_>, found: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(found.st_mode);
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(open, c"", None, Some(Gid::from_raw(self.gid)), flags)?;
        let bits = match kind {
            // A link has no mode of its own.
            FileType::Symlink => return Ok(()),
            FileType::Directory => found.st_mode & 0o1777 | OF_DIRECTORIES,
            _ => found.st_mode & 0o777 | OF_FILES,
        };
        // By the descriptor, which may be one that only names; this link leads to nothing else.
        let path = format!("/proc/self/fd/{}", open.as_raw_fd());
        std::fs::set_permissions(path, Permissions::from_mode(bits))
    }
}

/// None for what is not there any more, or became something else.
fn open_below(here: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(here, name, flags, Mode::empty(), resolve) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
        path::Path,
    };

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    fn group(gid: u32, on_root_mismatch: bool) -> FsGroup {
        FsGroup {
            gid,
            on_root_mismatch,
        }
    }

    /// Group and mode.
    fn seen(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.gid(), found.mode() & 0o7777)
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_volume_whose_top_is_the_groups_is_walked_only_if_that_is_asked() {
        let base = tempfile::tempdir().unwrap();
        let top = base.path().join("volume");
        fs::create_dir_all(top.join("a/b")).unwrap();
        let file = top.join("a/b/file");
        fs::write(&file, "x").unwrap();
        set(&top, 0o700);
        set(&top.join("a"), 0o1755);
        set(&file, 0o4640);
        group(77, true).take(&open(&top)).unwrap();
        assert_eq!(seen(&top), (77, 0o2770), "it was not the group's");
        assert_eq!(seen(&top.join("a")), (77, 0o3775));
        assert_eq!(seen(&file), (77, 0o660), "and no setuid bit");

        let foreign = || {
            std::os::unix::fs::chown(&file, None, Some(5)).unwrap();
            set(&file, 0o600);
        };
        foreign();
        group(77, true).take(&open(&top)).unwrap();
        assert_eq!(seen(&file), (5, 0o600), "the top is the group's");
        group(77, false).take(&open(&top)).unwrap();
        assert_eq!(seen(&file), (77, 0o660), "always");

        // Neither the group alone nor the mode alone is enough.
        for spoil in [
            &(|| set(&top, 0o770)) as &dyn Fn(),
            &|| set(&top, 0o2750),
            &|| std::os::unix::fs::chown(&top, None, Some(5)).unwrap(),
        ] {
            foreign();
            spoil();
            group(77, true).take(&open(&top)).unwrap();
            assert_eq!((seen(&file).0, seen(&top)), (77, (77, 0o2770)));
        }
    }

    #[test]
    fn nothing_outside_of_the_volume_is_met_and_the_top_comes_last() {
        let base = tempfile::tempdir().unwrap();
        let (top, outside) = (base.path().join("volume"), base.path().join("outside"));
        fs::create_dir_all(&top).unwrap();
        fs::create_dir(&outside).unwrap();
        set(&outside, 0o700);
        fs::write(outside.join("file"), "x").unwrap();
        let before = (seen(&outside), seen(&outside.join("file")));
        symlink(&outside, top.join("directory")).unwrap();
        symlink(outside.join("file"), top.join("file")).unwrap();
        symlink("/proc/self/fd/0", top.join("magic")).unwrap();
        group(77, false).take(&open(&top)).unwrap();
        assert_eq!((seen(&outside), seen(&outside.join("file"))), before);
        assert_eq!(seen(&top.join("directory")).0, 77, "the link itself");

        let mut deep = top.clone();
        deep.extend(std::iter::repeat_n("d", MAX_DEPTH + 1));
        fs::create_dir_all(&deep).unwrap();
        let error = group(78, true).take(&open(&top)).unwrap_err().to_string();
        assert!(error.contains("128 directories"), "{error}");
        assert_eq!(seen(&top).0, 77, "a walk that did not end is none");
    }
}
