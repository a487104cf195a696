//! Writes the files of a volume so that a reader sees all of them old or all of them new.
//!
//! The layout is Kubernetes': the files are in a hidden directory, `..data` is a link to it, and the names
//! that a container uses are links through `..data`. One rename of `..data` changes everything.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
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
    let data = directory.join(DATA);
    let before = fs::read_link(&data).ok();
    remove_stale(directory, before.as_deref())?;
    if is_current(directory, files) {
        // An agent that ended right after the switch has left the names of before.
        tidy(directory, files)?;
        return Ok(false);
    }
    let name = format!("..{}", stamp());
    let fresh = directory.join(&name);
    if let Err(error) = fill(&fresh, files, group).and_then(|()| switch(directory, &name)) {
        // It is tried again soon, and each try has a name of its own; what is left now is removed then.
        let _error_is_reported = agent_runtime::remove_tree(&fresh);
        return Err(error);
    }
    tidy(directory, files)?;
    if let Some(before) = before {
        remove(&directory.join(before))?;
    }
    Ok(true)
}

/// Writes the files into a new directory.
fn fill(fresh: &Path, files: &[File], group: Option<u32>) -> Result<(), VolumeError> {
    make_directory(fresh)?;
    for file in files {
        write_file(fresh, file)?;
    }
    match group {
        Some(gid) => volumes::give_to_group(fresh, gid, volumes::TO_READ),
        None => Ok(()),
    }
}

/// Makes the directory called `name` the content.
fn switch(directory: &Path, name: &str) -> Result<(), VolumeError> {
    let next = directory.join(NEXT);
    remove_if_there(&next)?;
    symlink(name, &next).map_err(|source| volumes::failed("link", &next, source))?;
    let data = directory.join(DATA);
    fs::rename(&next, &data).map_err(|source| volumes::failed("replace", &data, source))
}

/// Makes the names that a container uses lead to what is there now. Only links that were made here are touched: the runtime
/// makes what a `subPath` names and is missing, and that may be in use.
fn tidy(directory: &Path, files: &[File]) -> Result<(), VolumeError> {
    // New names after the switch, so that they never dangle; old ones go before what they lead to.
    let wanted = top_names(files);
    for name in &wanted {
        let link = directory.join(name);
        if is_own(&link) {
            continue;
        }
        // Nothing is lost with a directory that is empty; anything else that has the name is somebody's.
        let _stays_if_it_is_in_use = fs::remove_dir(&link);
        let target = Path::new(DATA).join(name);
        symlink(target, &link).map_err(|source| volumes::failed("link", &link, source))?;
    }
    let entries = fs::read_dir(directory).map_err(|source| volumes::failed("list", directory, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| volumes::failed("list", directory, source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_own(&entry.path()) && !wanted.contains(name.as_str()) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether it is a link to something in [`DATA`].
fn is_own(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target != Path::new(DATA) && target.starts_with(DATA))
}

/// Removes the directories that writes which failed or were interrupted have left: those that are not `current`.
fn remove_stale(directory: &Path, current: Option<&Path>) -> Result<(), VolumeError> {
    let entries = fs::read_dir(directory).map_err(|source| volumes::failed("list", directory, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| volumes::failed("list", directory, source))?;
        let name = entry.file_name();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && name.to_string_lossy().starts_with("..") && current != Some(Path::new(&name)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), VolumeError> {
    agent_runtime::remove_tree(path).map_err(|source| volumes::failed("remove", path, source))
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

/// Whether the directory has exactly these files with these modes and owners.
fn is_current(directory: &Path, files: &[File]) -> bool {
    let data = directory.join(DATA);
    let same = |file: &File| {
        let path = data.join(&file.path);
        // A group may have been given more than was asked for.
        let fits = |found: &fs::Metadata| {
            found.permissions().mode() & 0o707 == file.mode & 0o707
                && file.owner.is_none_or(|owner| owner == found.uid())
        };
        fs::metadata(&path).is_ok_and(|found| fits(&found))
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
    if let Some(owner) = file.owner {
        std::os::unix::fs::lchown(&target, Some(owner), None)
            .map_err(|source| volumes::failed("change the owner of", &target, source))?;
    }
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
            owner: None,
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

    #[test]
    fn names_are_made_true_by_the_next_agent_if_one_ends_before_that() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, &[file("old", "1"), file("kept", "2")], None).unwrap();
        let new = [file("kept", "2"), file("new", "3")];
        fill(&root.join("..1"), &new, None).unwrap();
        switch(root, "..1").unwrap();
        assert!(!root.join("new").exists() && root.join("old").symlink_metadata().is_ok());
        assert!(!write(root, &new, None).unwrap(), "the content was switched");
        assert_eq!(fs::read_to_string(root.join("new")).unwrap(), "3");
        assert!(root.join("old").symlink_metadata().is_err(), "it leads nowhere");
    }

    #[test]
    fn what_others_made_in_the_volume_stays_and_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, &[file("a", "1"), file("b", "1")], None).unwrap();
        // What `subPath: typo.conf` makes, and what a container may have made in it.
        fs::create_dir_all(root.join("typo.conf/theirs")).unwrap();
        fs::create_dir(root.join("later")).unwrap();
        symlink("elsewhere", root.join("link")).unwrap();
        assert!(write(root, &[file("a", "2")], None).unwrap());
        assert!(!write(root, &[file("a", "2")], None).unwrap());
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "2");
        assert!(root.join("b").symlink_metadata().is_err());
        assert!(root.join("typo.conf/theirs").is_dir() && root.join("link").symlink_metadata().is_ok());
        // The key comes after all.
        assert!(write(root, &[file("a", "2"), file("later", "3")], None).unwrap());
        assert_eq!(fs::read_to_string(root.join("later")).unwrap(), "3");
        let error = write(root, &[file("typo.conf", "4")], None).unwrap_err();
        assert!(error.to_string().contains("typo.conf"), "{error}");
    }

    #[test]
    fn what_failed_writes_leave_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let hidden = || {
            let entries = fs::read_dir(root).unwrap().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let mut names: Vec<_> = names.filter(|name| name.starts_with("..")).collect();
            names.sort();
            names
        };
        assert!(write(root, &[file("a", "1")], None).unwrap());
        let good = hidden();
        assert_eq!(good.len(), 2, "{good:?}");
        // A name that is a file and a directory cannot be written.
        for _ in 0..3 {
            write(root, &[file("b", "2"), file("b/c", "3")], None).unwrap_err();
            assert_eq!(hidden(), good);
        }
        // An agent that ended in the middle.
        fs::create_dir_all(root.join("..123/d")).unwrap();
        fs::write(root.join("..123/d/x"), "half").unwrap();
        assert!(!write(root, &[file("a", "1")], None).unwrap());
        assert_eq!(hidden(), good);
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
    }
}
