//! Removes what containers have written, however deep it is.
//!
//! The trees are hostile: a container may nest directories until a walk that holds one descriptor or one stack frame for
//! each level has no more of either. This walk holds at most [`MAX_OPEN`]; a directory below that is moved up to the top
//! of the tree and has its turn there. Every name is looked up in an open directory and never through a link, so nothing
//! outside of the tree is met whatever changes meanwhile; what is mounted in it is left alone, and is an error.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};

/// Directories of one tree that are open at a time.
const MAX_OPEN: usize = 16;

/// Passes over a tree that somebody still writes to.
const MAX_PASSES_IN_VAIN: u32 = 64;

/// Removes `path` with all that is below it, whatever it is. That nothing is there is not an error.
///
/// # Errors
///
/// When something cannot be removed, such as what is mounted there.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return or_gone(rustix::fs::unlink(path)),
        Err(errno) => return Err(errno.into()),
    };
    Walk::default().empty(&top)?;
    or_gone(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR))
}

/// A directory that is being emptied.
struct Level {
    entries: Dir,
    /// What it is called in the level above.
    name: CString,
}

#[derive(Debug, Default)]
struct Walk {
    /// Directories moved to the top, which numbers their names.
    moved: u64,
}

impl Walk {
    fn empty(&mut self, top: &OwnedFd) -> io::Result<()> {
        let mut in_vain = 0;
        loop {
            let before = self.moved;
            if self.pass(top)? == 0 {
                return Ok(());
            }
            // What was moved here makes the tree less deep, so that there is an end. Anything else was written meanwhile.
            if self.moved == before {
                in_vain += 1;
            }
            if in_vain > MAX_PASSES_IN_VAIN {
                return Err(Errno::NOTEMPTY.into());
            }
        }
    }

    /// Goes over the tree once; how many entries the top had.
    fn pass(&mut self, top: &OwnedFd) -> io::Result<u64> {
        let mut found = 0;
        let mut levels = vec![Level {
            entries: Dir::read_from(top)?,
            name: CString::default(),
        }];
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else {
                return Ok(found);
            };
            let Some(entry) = level.entries.read() else {
                let done = levels.pop();
                if let (Some(done), Some(above)) = (done, levels.last()) {
                    remove_directory(above.entries.fd()?, &done.name)?;
                }
                continue;
            };
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if depth == 1 {
                found += 1;
            }
            let here = level.entries.fd()?;
            if entry.file_type() != FileType::Directory {
                match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            if depth >= MAX_OPEN {
                self.move_up(here, name, top)?;
            } else if let Some(entries) = open_below(here, name)? {
                let name = name.to_owned();
                levels.push(Level { entries, name });
            }
        }
    }

    /// Moves a directory that is too far down to the top.
    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr, top: &OwnedFd) -> io::Result<()> {
        match rustix::fs::unlinkat(from, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        loop {
            self.moved += 1;
            let free = format!(".removed-{}", self.moved);
            match rustix::fs::renameat_with(from, name, top.as_fd(), free, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The container may have made one of that name.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// None when it is no directory any more; the next pass sees what it is.
fn open_below(here: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Dir>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(here, name, flags, Mode::empty(), resolve) {
        Ok(opened) => Ok(Some(Dir::new(opened)?)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn remove_directory(above: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
        // Written to or replaced meanwhile: for the next pass.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn or_gone(removed: Result<(), Errno>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let base = tempfile::tempdir().unwrap();
        let (outside, tree) = (base.path().join("outside"), base.path().join("tree"));
        fs::create_dir_all(outside.join("kept")).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink("../../../outside", tree.join("a/b/up")).unwrap();
        symlink("nowhere", tree.join("a/dangling")).unwrap();
        fs::hard_link(outside.join("file"), tree.join("a/hard")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());

        let link = base.path().join("link");
        symlink(&outside, &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(link.symlink_metadata().is_err());
        assert!(outside.join("kept").is_dir());
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
        remove_tree(&base.path().join("absent")).unwrap();
    }

    #[test]
    fn wide_and_deep_trees_go_with_names_that_are_in_the_way() {
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        for branch in 0..20 {
            let mut path = tree.join(format!(".removed-{branch}"));
            for level in 0..40 {
                path = path.join(format!("{level}"));
                fs::create_dir_all(&path).unwrap();
                fs::write(path.join("file"), "").unwrap();
            }
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
