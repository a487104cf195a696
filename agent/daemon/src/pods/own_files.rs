//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container that may write to its root, as images' entry points do.
//!
//! Copies of its own for each run, so that nobody says for the pod's others where names lead; on the pod's small tmpfs, so that
//! they stay short. (The kubelet has one of each for the pod, on the node's disk, and writes them anew with each start too.)

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::container::POD_FILES;

/// Room for those of one container.
pub(super) const BYTES: u64 = 64 * 1024;

/// Copies `files` for a new run of a container to `small`, the pod's tmpfs. Nothing if they find no room there, which what
/// containers wrote may have taken: then the container has those of the pod, to read.
pub(super) fn make(files: &Path, small: &Path, container: &str) -> io::Result<Option<PathBuf>> {
    let own = small.join(format!("{container}.etc"));
    remove(&own)?;
    let copied = copy(files, &own);
    or_none(own, copied)
}

fn or_none(own: PathBuf, copied: io::Result<()>) -> io::Result<Option<PathBuf>> {
    match copied {
        Ok(()) => Ok(Some(own)),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            remove(&own)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn remove(own: &Path) -> io::Result<()> {
    match fs::remove_dir_all(own) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn copy(files: &Path, own: &Path) -> io::Result<()> {
    fs::create_dir_all(own)?;
    for file in POD_FILES {
        let target = own.join(file);
        // Root's, who is the container's root where they are mounted.
        fs::write(&target, fs::read(files.join(file))?)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_pod() -> tempfile::TempDir {
        let files = tempfile::tempdir().unwrap();
        for file in POD_FILES {
            fs::write(files.path().join(file), format!("the pod's {file}\n")).unwrap();
        }
        files
    }

    #[test]
    fn each_run_has_copies_that_are_its_own() {
        let (files, small) = (of_pod(), tempfile::tempdir().unwrap());
        let make = |container: &str| make(files.path(), small.path(), container).unwrap().unwrap();
        let (a, b) = (make("a"), make("b"));
        fs::write(a.join("hosts"), "mine").unwrap();
        fs::write(a.join("more"), "mine").unwrap();
        let hosts = |own: &Path| fs::read_to_string(own.join("hosts")).unwrap();
        assert_eq!(hosts(&b), "the pod's hosts\n");
        assert_eq!(hosts(files.path()), "the pod's hosts\n");
        let mode = fs::metadata(a.join("hosts")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let again = make("a");
        assert_eq!(hosts(&again), "the pod's hosts\n");
        assert!(!again.join("more").exists());
    }

    /// Whoever filled the tmpfs still starts.
    #[test]
    fn without_room_there_are_those_of_the_pod() {
        let small = tempfile::tempdir().unwrap();
        let own = small.path().join("c.etc");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("hosts"), "half").unwrap();
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(or_none(own.clone(), Err(full)).unwrap(), None);
        assert!(!own.exists(), "half of them are none");
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(or_none(own, Err(other)).is_err());
    }
}
