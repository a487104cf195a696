//! Measures what containers have written: blocks and file numbers of the disk, however hostile the tree is.
//!
//! As the remover, this walk looks up every name in an open directory, follows no link and leaves no file system, and it
//! holds a few descriptors however deep the tree is. It stops as soon as it has seen enough, so a limit bounds its work:
//! every file counts for something. What it cannot see is a file without a name that a process still holds open.

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

/// Directories that are kept open: the deepest ones of the present branch.
const MAX_OPEN: usize = 16;
/// A tree that is deeper is not measured to its end.
const MAX_DEPTH: usize = 512;
/// Bytes of a block as `stat` counts them, and the least that a file counts for.
const BLOCK: u64 = 512;

/// What a tree takes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Bytes of all of it.
    Whole(u64),
    /// At least so many bytes, which was enough to know.
    AtLeast(u64),
    /// More directories in one another than are looked into (512); nothing ordinary has that.
    TooDeep,
}

impl Usage {
    /// Bytes that were seen.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Whole(bytes) | Self::AtLeast(bytes) => Some(bytes),
            Self::TooDeep => None,
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::TooDeep, _) | (_, Self::TooDeep) => Self::TooDeep,
            (Self::Whole(a), Self::Whole(b)) => Self::Whole(a.saturating_add(b)),
            (Self::Whole(a) | Self::AtLeast(a), Self::Whole(b) | Self::AtLeast(b)) => {
                Self::AtLeast(a.saturating_add(b))
            }
        }
    }
}

/// What was found in one walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Its bytes.
    pub usage: Usage,
    /// File numbers that were seen, as far as `usage` is of the whole: a file with several names has one. The top itself
    /// counts as little for them as for the bytes, unless it is no directory.
    pub files: u64,
}

/// Measures `path` and all that is below it, until more than `enough` bytes were seen. Nothing there takes nothing.
///
/// # Errors
///
/// When a directory cannot be read for another reason than that it is gone.
pub fn measure_tree(path: &Path, enough: u64) -> io::Result<Measured> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(Measured::NOTHING),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW);
            return Ok(stat.map_or(Measured::NOTHING, |stat| Measured {
                usage: Usage::Whole(bytes_of(&stat)),
                files: 1,
            }));
        }
        Err(errno) => return Err(errno.into()),
    };
    let mut walk = Walk {
        bytes: 0,
        files: 0,
        enough,
        linked: HashSet::new(),
    };
    let usage = walk.run(&top)?;
    Ok(Measured {
        usage,
        files: walk.files,
    })
}

impl Measured {
    /// What is not there.
    pub const NOTHING: Self = Self {
        usage: Usage::Whole(0),
        files: 0,
    };
}

/// A directory of the present branch whose files were counted.
struct Level {
    /// What it is called in the level above.
    name: CString,
    /// Directories in it that were not looked into yet.
    pending: Vec<CString>,
    /// Open unless too many below it are.
    open: Option<OwnedFd>,
}

struct Walk {
    bytes: u64,
    files: u64,
    enough: u64,
    /// Files with several names that were counted.
    linked: HashSet<(u64, u64)>,
}

impl Walk {
    fn run(&mut self, top: &OwnedFd) -> io::Result<Usage> {
        let mut levels = vec![Level {
            name: CString::default(),
            pending: self.count(top.as_fd())?,
            open: None,
        }];
        while let Some(depth) = levels.len().checked_sub(1) {
            if self.bytes > self.enough {
                return Ok(Usage::AtLeast(self.bytes));
            }
            let Some(name) = levels[depth].pending.pop() else {
                levels.pop();
                continue;
            };
            if depth + 1 >= MAX_DEPTH {
                return Ok(Usage::TooDeep);
            }
            let Some(fd) = open_below(top, &mut levels, &name)? else {
                continue;
            };
            let pending = self.count(fd.as_fd())?;
            if pending.is_empty() {
                continue;
            }
            if let Some(far) = levels.len().checked_sub(MAX_OPEN) {
                levels[far].open = None;
            }
            levels.push(Level {
                name,
                pending,
                open: Some(fd),
            });
        }
        match self.bytes > self.enough {
            true => Ok(Usage::AtLeast(self.bytes)),
            false => Ok(Usage::Whole(self.bytes)),
        }
    }

    /// Counts what is in a directory; the directories in it.
    fn count(&mut self, here: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
        let mut directories = Vec::new();
        let mut entries = Dir::read_from(here)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            // Gone meanwhile: it takes nothing any more.
            let Ok(stat) = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.push(name.to_owned());
            } else if stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            self.files += 1;
            self.bytes = self.bytes.saturating_add(bytes_of(&stat));
            if self.bytes > self.enough {
                break;
            }
        }
        Ok(directories)
    }
}

/// Opens a directory of the deepest level; nothing if it is one no more, or if somebody mounted something there.
fn open_below(top: &OwnedFd, levels: &mut [Level], name: &CString) -> io::Result<Option<OwnedFd>> {
    let deepest = levels.len().saturating_sub(1);
    // The nearest level that is open; the walk begins there.
    let from = (0..=deepest)
        .rev()
        .find(|index| *index == 0 || levels[*index].open.is_some());
    let from = from.unwrap_or(0);
    let mut here: Option<OwnedFd> = None;
    for index in from + 1..=deepest {
        let above = here.as_ref().or(levels[from].open.as_ref()).unwrap_or(top);
        match open_in(above.as_fd(), &levels[index].name)? {
            Some(fd) => here = Some(fd),
            None => {
                // The branch was moved away under the walk: nothing of it can be found any more.
                levels[deepest].pending.clear();
                return Ok(None);
            }
        }
    }
    if let Some(fd) = here {
        levels[deepest].open = Some(fd);
    }
    let above = match deepest {
        0 => top,
        _ => levels[deepest].open.as_ref().unwrap_or(top),
    };
    open_in(above.as_fd(), name)
}

fn open_in(here: BorrowedFd<'_>, name: &CString) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(here, name, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn bytes_of(stat: &Stat) -> u64 {
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0).max(1);
    blocks.saturating_mul(BLOCK)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MANY: u64 = u64::MAX;

    fn seen(path: &Path) -> u64 {
        match measure_tree(path, MANY).unwrap().usage {
            Usage::Whole(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn blocks_are_counted_once_and_links_lead_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let outside = directory.path().join("outside");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(&outside, vec![1; 1 << 20]).unwrap();
        let empty = seen(&root);
        assert!(empty < 64 << 10, "{empty}");
        fs::write(root.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        let one = seen(&root);
        assert!(
            (1 << 20..(1 << 20) + (64 << 10)).contains(&(one - empty)),
            "{one} {empty}"
        );
        fs::hard_link(root.join("a/b/file"), root.join("a/again")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        std::os::unix::fs::symlink(directory.path(), root.join("up")).unwrap();
        assert!(seen(&root) - one < 64 << 10, "one file with two names, and links");
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert!(
            seen(&root) - one < 64 << 10,
            "a file with holes takes what it takes"
        );
        assert_eq!(seen(&root.join("nothing")), 0);
        assert!(seen(&outside) >= 1 << 20);
    }

    #[test]
    fn file_numbers_are_counted_once_whatever_they_are_of() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let files = |path: &Path| measure_tree(path, MANY).unwrap().files;
        assert_eq!(files(&root), 0);
        fs::create_dir_all(root.join("a/b")).unwrap();
        for number in 0..50 {
            fs::write(root.join("a/b").join(number.to_string()), b"").unwrap();
        }
        fs::hard_link(root.join("a/b/0"), root.join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", root.join("link")).unwrap();
        assert_eq!(
            files(&root),
            2 + 50 + 1,
            "directories, files, a link that leads nowhere"
        );
        assert_eq!(files(&root.join("a/b/1")), 1);
        assert_eq!(files(&root.join("link")), 1);
    }

    #[test]
    fn enough_is_enough_and_empty_files_count() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..100 {
            fs::write(directory.path().join(number.to_string()), b"").unwrap();
        }
        assert_eq!(seen(directory.path()), 100 * BLOCK);
        assert_eq!(
            measure_tree(directory.path(), 10 * BLOCK).unwrap(),
            Measured {
                usage: Usage::AtLeast(11 * BLOCK),
                files: 11,
            }
        );
    }

    #[test]
    fn wide_and_deep_trees_are_walked_with_few_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let mut here = directory.path().to_owned();
        // Two branches on each of many levels: every one of them is opened again from far above.
        for _ in 0..60 {
            fs::create_dir_all(here.join("x/y")).unwrap();
            fs::write(here.join("x/y/f"), b"").unwrap();
            here = here.join("d");
            fs::create_dir(&here).unwrap();
            fs::write(here.join("f"), b"").unwrap();
        }
        let directories = 3 * 60;
        let directory_bytes = seen(directory.path()) - 2 * 60 * BLOCK;
        let least = directories * BLOCK;
        assert!(
            directory_bytes >= least && directory_bytes.is_multiple_of(BLOCK),
            "{directory_bytes}"
        );
        let files = 2 * 60 * BLOCK;
        let per_directory = {
            let one = tempfile::tempdir().unwrap();
            fs::create_dir(one.path().join("d")).unwrap();
            seen(one.path())
        };
        assert_eq!(seen(directory.path()), files + directories * per_directory);
    }

    #[test]
    fn a_tree_that_is_too_deep_is_said_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut here = rustix::fs::open(directory.path(), flags, Mode::empty()).unwrap();
        for _ in 0..MAX_DEPTH + 1 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, "d", flags, Mode::empty()).unwrap();
        }
        assert_eq!(
            measure_tree(directory.path(), MANY).unwrap().usage,
            Usage::TooDeep
        );
        assert_eq!(Usage::TooDeep.and(Usage::Whole(1)), Usage::TooDeep);
    }
}
