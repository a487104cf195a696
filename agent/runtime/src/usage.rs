//! Measures what containers have written: blocks and file numbers of the disk, however hostile the tree is.
//!
//! As the remover, this walk looks up every name in an open directory, follows no link and leaves no file system, and it
//! holds a few descriptors however deep the tree is, and a few names of each level however wide: the rest of a directory is
//! read when these were looked into. It stops as soon as it has seen enough, so a limit bounds its work: every file counts
//! for something. What it cannot see is a file without a name that a process still holds open.

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Stat},
    io::Errno,
};

/// Directories that are kept open: the deepest ones of the present branch.
const MAX_OPEN: usize = 16;
/// A tree that is deeper is not measured to its end.
const MAX_DEPTH: usize = 512;
/// Names of directories that are kept of a level: with the longest names and all levels some 20 MB.
const MAX_PENDING: usize = 128;
/// Files with several names that are remembered: some 35 MB.
const MAX_LINKED: usize = 1 << 20;
/// A tree with more entries is not measured to its end. Where whoever renames files in it can show them to this walk again
/// and again, it ends all the same.
const MAX_ENTRIES: u64 = 1 << 26;
/// Bytes of a directory that are read at a time.
const BUFFER: usize = 8 << 10;
/// Bytes of a block as `stat` counts them, and the least that a file counts for.
const BLOCK: u64 = 512;

/// What a tree takes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Bytes of all of it.
    Whole(u64),
    /// At least so many bytes, which was enough to know, or all that could be seen of a tree with too many entries.
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
    /// File numbers that were seen, as far as `usage` is of the whole: a file with several names has one, the first million of
    /// them at least. The top itself counts as little for them as for the bytes, unless it is no directory.
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
    let mut walk = Walk::new(enough);
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

/// A directory of the present branch whose files were counted, or some of them.
struct Level {
    /// What it is called in the level above.
    name: CString,
    /// What is next in it.
    batch: Batch,
    /// Open unless too many below it are.
    open: Option<OwnedFd>,
}

/// A piece of a directory.
#[derive(Default)]
struct Batch {
    /// Directories in it that were not looked into yet.
    pending: Vec<CString>,
    /// Where the directory goes on.
    rest: Option<u64>,
}

struct Walk {
    bytes: u64,
    files: u64,
    enough: u64,
    entries: u64,
    /// Files with several names that were counted, as many as may be remembered.
    linked: HashSet<(u64, u64)>,
    max_linked: usize,
}

impl Walk {
    fn new(enough: u64) -> Self {
        Self {
            bytes: 0,
            files: 0,
            enough,
            entries: 0,
            linked: HashSet::new(),
            max_linked: MAX_LINKED,
        }
    }

    fn run(&mut self, top: &OwnedFd) -> io::Result<Usage> {
        let mut levels = vec![Level {
            name: CString::default(),
            batch: self.count(top.as_fd())?,
            open: None,
        }];
        while let Some(depth) = levels.len().checked_sub(1) {
            if self.is_over() {
                return Ok(Usage::AtLeast(self.bytes));
            }
            let batch = &mut levels[depth].batch;
            let name = batch.pending.pop();
            let rest = batch.rest.take_if(|_rest| name.is_none());
            if name.is_none() && rest.is_none() {
                levels.pop();
                continue;
            }
            if name.is_some() && depth + 1 >= MAX_DEPTH {
                return Ok(Usage::TooDeep);
            }
            if !reopen(top, &mut levels)? {
                continue;
            }
            let here = levels[depth].open.as_ref().unwrap_or(top).as_fd();
            let Some(name) = name else {
                rustix::fs::seek(here, SeekFrom::Start(rest.unwrap_or_default()))?;
                let next = self.count(here)?;
                levels[depth].batch = next;
                continue;
            };
            let Some(below) = open_in(here, &name)? else {
                continue;
            };
            let batch = self.count(below.as_fd())?;
            if batch.pending.is_empty() && batch.rest.is_none() {
                continue;
            }
            if let Some(far) = levels.len().checked_sub(MAX_OPEN) {
                levels[far].open = None;
            }
            levels.push(Level {
                name,
                batch,
                open: Some(below),
            });
        }
        match self.is_over() {
            true => Ok(Usage::AtLeast(self.bytes)),
            false => Ok(Usage::Whole(self.bytes)),
        }
    }

    fn is_over(&self) -> bool {
        self.bytes > self.enough || self.entries > MAX_ENTRIES
    }

    /// Counts what is in a directory, from where it stands, until [`MAX_PENDING`] directories were found.
    fn count(&mut self, here: BorrowedFd<'_>) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
        let mut entries = RawDir::new(here, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory itself is gone.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(errno.into()),
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            // Gone meanwhile: it takes nothing any more.
            let Ok(stat) = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if let Some(bytes) = self.part_of(&stat, is_directory) {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(bytes);
            }
            if is_directory {
                batch.pending.push(name.to_owned());
            }
            if self.is_over() {
                break;
            }
            if batch.pending.len() >= MAX_PENDING {
                batch.rest = Some(entry.next_entry_cookie());
                break;
            }
        }
        Ok(batch)
    }

    /// What a name stands for; nothing if its file was counted by another name.
    fn part_of(&mut self, stat: &Stat, is_directory: bool) -> Option<u64> {
        if is_directory || stat.st_nlink <= 1 {
            return Some(bytes_of(stat));
        }
        let file = (stat.st_dev, stat.st_ino);
        if self.linked.contains(&file) {
            return None;
        }
        if self.linked.len() < self.max_linked {
            self.linked.insert(file);
            return Some(bytes_of(stat));
        }
        // One that cannot be remembered is counted by all of its names, in equal parts.
        Some(bytes_of(stat).div_ceil(wide(stat.st_nlink)))
    }
}

/// Opens the deepest level again if it is not open; false if it cannot be found any more.
fn reopen(top: &OwnedFd, levels: &mut [Level]) -> io::Result<bool> {
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
                levels[deepest].batch = Batch::default();
                return Ok(false);
            }
        }
    }
    if let Some(fd) = here {
        levels[deepest].open = Some(fd);
    }
    Ok(true)
}

/// Opens a directory of another one; nothing if it is one no more, or if somebody mounted something there.
fn open_in(here: BorrowedFd<'_>, name: &CString) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(here, name, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Architectures have other widths.
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
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
    fn a_wide_directory_is_held_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        // Wide far below, where levels above are closed meanwhile, and at the top.
        let mut deep = directory.path().to_owned();
        (0..2 * MAX_OPEN).for_each(|_level| deep.push("d"));
        let number = 3 * MAX_PENDING + 7;
        for wide in [directory.path(), &deep] {
            for index in 0..number {
                let below = wide.join(format!("{index}-{}", "x".repeat(200)));
                fs::create_dir_all(&below).unwrap();
                fs::write(below.join("file"), b"").unwrap();
            }
        }
        let measured = measure_tree(directory.path(), MANY).unwrap();
        let wanted = 2 * MAX_OPEN + 2 * 2 * number;
        assert_eq!(measured.files, u64::try_from(wanted).unwrap());

        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let top = rustix::fs::open(directory.path(), flags, Mode::empty()).unwrap();
        let mut walk = Walk::new(MANY);
        let mut sizes = Vec::new();
        loop {
            let batch = walk.count(top.as_fd()).unwrap();
            sizes.push(batch.pending.len());
            match batch.rest {
                Some(rest) => rustix::fs::seek(&top, SeekFrom::Start(rest)).unwrap(),
                None => break,
            };
        }
        assert_eq!(sizes, [MAX_PENDING, MAX_PENDING, MAX_PENDING, 7 + 1]);
    }

    #[test]
    fn files_with_names_that_nobody_remembers_are_counted_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["a", "b", "c"] {
            fs::write(directory.path().join(file), vec![1; 3 << 20]).unwrap();
            for name in 0..2 {
                fs::hard_link(
                    directory.path().join(file),
                    directory.path().join(format!("{file}{name}")),
                )
                .unwrap();
            }
        }
        let exact = seen(directory.path());
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        for max_linked in 0..4 {
            let top = rustix::fs::open(directory.path(), flags, Mode::empty()).unwrap();
            let mut walk = Walk {
                max_linked,
                ..Walk::new(MANY)
            };
            let Usage::Whole(bytes) = walk.run(&top).unwrap() else {
                panic!("nobody said enough");
            };
            assert!(walk.linked.len() <= max_linked);
            assert!((exact..exact + 9).contains(&bytes), "{bytes}, all but {exact}");
        }
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
