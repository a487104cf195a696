//! Directories that a layer has files in and does not list. They belong to the layer below: `home/nonroot/app.jar` of a layer
//! that has no entry `home/nonroot/` leaves that directory its owner and mode, as in containerd.
//!
//! A layer is unpacked once for all images and does not see what is below it, so it has such directories as root's with mode
//! 0755, and a list of them. For an image where a lower layer says otherwise, a layer with just these directories goes on top.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

use crate::{ImageError, io_error, union};

/// The directories of one layer that it does not list.
pub(crate) type Implied = BTreeSet<PathBuf>;

/// Writes the list of a layer that has such directories.
pub(crate) fn write(path: &Path, implied: &Implied) -> io::Result<()> {
    // Names have any byte but zero.
    let names: Vec<&[u8]> = implied.iter().map(|path| path.as_os_str().as_bytes()).collect();
    fs::write(path, names.join(&0))
}

/// The list of a layer; empty if it has none.
pub(crate) fn read(path: &Path) -> Result<Implied, ImageError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Implied::new()),
        Err(source) => return Err(io_error("read", path, source)),
    };
    let names = bytes.split(|byte| *byte == 0);
    Ok(names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect())
}

/// What the union of `layers` (lowest first, each with its list) must show otherwise than it does, with the directories that lead
/// there; empty if nothing.
pub(crate) fn corrections(
    layers: &[PathBuf],
    lists: &[Implied],
) -> Result<BTreeMap<PathBuf, Stat>, ImageError> {
    let is_listed = |entry: &union::Entry, path: &Path| {
        let list = lists.get(entry.layer);
        entry.kind() == FileType::Directory && !list.is_some_and(|list| list.contains(path))
    };
    let mut corrections = BTreeMap::new();
    for path in lists.iter().flatten().collect::<BTreeSet<_>>() {
        let entries = union::at(layers, path)?;
        let listed = entries.iter().find(|entry| is_listed(entry, path));
        if let (Some(shown), Some(listed)) = (entries.first(), listed)
            && attributes(&shown.stat) != attributes(&listed.stat)
        {
            corrections.insert(path.clone(), listed.stat);
        }
    }
    let leading: BTreeSet<PathBuf> = corrections
        .keys()
        .flat_map(|path| path.ancestors().skip(1))
        .filter(|path| *path != Path::new("") && !corrections.contains_key(*path))
        .map(Path::to_owned)
        .collect();
    for path in leading {
        let shown = union::at(layers, &path)?.into_iter().next();
        corrections.extend(shown.map(|shown| (path, shown.stat)));
    }
    Ok(corrections)
}

/// Makes the directories of `corrections` in `root`, which is empty.
pub(crate) fn make(root: &OwnedFd, corrections: &BTreeMap<PathBuf, Stat>) -> io::Result<()> {
    // What leads to a directory comes before it.
    for (path, stat) in corrections {
        rustix::fs::mkdirat(root, path, Mode::from_raw_mode(0o700))?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(root, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(root, path, flags, Mode::empty())?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    }
    // Each new directory changes the time of the one that it is in.
    for (path, stat) in corrections.iter().rev() {
        let time = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(root, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn attributes(stat: &Stat) -> (u32, u32, u32) {
    (stat.st_mode, stat.st_uid, stat.st_gid)
}
