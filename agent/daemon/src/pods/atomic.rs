//! Writes the files of a volume so that a reader sees all of them old or all of them new.
//!
//! The layout is Kubernetes': the files are in a hidden directory, `..data` is a link to it, and the names
//! that a container uses are links through `..data`. One rename of `..data` changes everything.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    contents::File,
    volumes::{self, VolumeError},
};

/// The link that is renamed.
const DATA: &str = "..data";
/// What it is called before.
const NEXT: &str = "..data_next";

/// Makes `files` the content of `directory`; false if they are that already. `group` owns what is new.
pub(super) fn write(directory: &Path, files: &[File], group: Option<u32>) -> Result<bool, VolumeError> {
    if is_current(directory, files) {
        return Ok(false);
    }
    let before = fs::read_link(directory.join(DATA)).ok();
    let name = format!("..{}", stamp());
    let fresh = directory.join(&name);
    make_directory(&fresh)?;
    for file in files {
        write_file(&fresh, file)?;
    }
    if let Some(gid) = group {
        volumes::give_to_group(&fresh, gid)?;
    }
    let next = directory.join(NEXT);
    remove_if_there(&next)?;
    symlink(&name, &next).map_err(|source| volumes::failed("link", &next, source))?;
    let data = directory.join(DATA);
    fs::rename(&next, &data).map_err(|source| volumes::failed("replace", &data, source))?;
    // New names after the switch, so that they never dangle; old ones go before what they lead to.
    let wanted = top_names(files);
    for name in &wanted {
        let link = directory.join(name);
        if link.symlink_metadata().is_err() {
            let target = Path::new(DATA).join(name);
            symlink(target, &link).map_err(|source| volumes::failed("link", &link, source))?;
        }
    }
    let entries = fs::read_dir(directory).map_err(|source| volumes::failed("list", directory, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| volumes::failed("list", directory, source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) {
            remove_if_there(&entry.path())?;
        }
    }
    if let Some(before) = before {
        let old = directory.join(before);
        match fs::remove_dir_all(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(volumes::failed("remove", &old, error));
            }
            _ => {}
        }
    }
    Ok(true)
}

fn top_names(files: &[File]) -> BTreeSet<&str> {
    let top = |file: &'_ File| -> Option<usize> { file.path.find('/') };
    files
        .iter()
        .map(|file| {
            file.path
                .get(..top(file).unwrap_or(file.path.len()))
                .unwrap_or_default()
        })
        .collect()
}

/// Whether the directory has exactly these files with these modes.
fn is_current(directory: &Path, files: &[File]) -> bool {
    let data = directory.join(DATA);
    let same = |file: &File| {
        let path = data.join(&file.path);
        let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode());
        // A group may have been given more than was asked for.
        mode.is_ok_and(|mode| mode & 0o707 == file.mode & 0o707)
            && fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
    };
    data.is_dir() && count(&data) == Some(files.len()) && files.iter().all(same)
}

/// Number of files below a directory.
fn count(directory: &Path) -> Option<usize> {
    let mut total = 0;
    for entry in fs::read_dir(directory).ok()? {
        let path = entry.ok()?.path();
        total += if path.is_dir() { count(&path)? } else { 1 };
    }
    Some(total)
}

fn write_file(directory: &Path, file: &File) -> Result<(), VolumeError> {
    let target = directory.join(&file.path);
    if let Some(parent) = target.parent() {
        make_directory(parent)?;
    }
    // Created private, then opened up: the mode of `open` is cut by the umask.
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(&target);
    let written = opened.and_then(|mut opened| io::Write::write_all(&mut opened, &file.bytes));
    written.map_err(|source| volumes::failed("write", &target, source))?;
    volumes::mode(&target, file.mode)
}

fn make_directory(path: &Path) -> Result<(), VolumeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|source| volumes::failed("create", path, source))
}

fn remove_if_there(path: &PathBuf) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(volumes::failed("remove", path, error)),
        _ => Ok(()),
    }
}

/// Unique among the directories of a volume, which one task writes.
fn stamp() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            bytes: text.as_bytes().to_vec(),
            mode: 0o640,
        }
    }

    #[test]
    fn contents_change_at_once_and_names_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        let first = [file("a", "1"), file("d/x", "2"), file("d/y", "3")];
        assert!(write(root, &first, None).unwrap());
        assert_eq!(
            (read("a"), read("d/x"), read("d/y")),
            (Some("1".into()), Some("2".into()), Some("3".into()))
        );
        assert!(!write(root, &first, None).unwrap(), "nothing changed");
        let link = fs::read_link(root.join(DATA)).unwrap();

        // Whoever holds the old directory open still reads it whole.
        let held = fs::File::open(root.join("a")).unwrap();
        assert!(write(root, &[file("d/x", "4"), file("e", "5")], None).unwrap());
        assert_ne!(fs::read_link(root.join(DATA)).unwrap(), link);
        assert_eq!(
            (read("a"), read("d/x"), read("d/y")),
            (None, Some("4".into()), None)
        );
        assert_eq!(read("e").as_deref(), Some("5"));
        assert!(!root.join(&link).exists());
        assert_eq!(io::read_to_string(held).unwrap(), "1");

        let mut other = file("e", "5");
        other.mode = 0o600;
        assert!(write(root, &[other], None).unwrap(), "a mode is content too");
        assert!(write(root, &[], None).unwrap());
        let visible = fs::read_dir(root)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name());
        let visible: Vec<_> = visible
            .filter(|name| !name.to_string_lossy().starts_with(".."))
            .collect();
        assert!(visible.is_empty(), "{visible:?}");
    }
}
