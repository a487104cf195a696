//! Small files that outlive a crash of the agent, and a power loss if they must: whoever reads one finds what it said before
//! or what it says now, and never half of either.
//!
//! Not for the node's keys: what a killed agent leaves of a draft here goes with the directory, theirs stays.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

/// Writes a file that only its owner can read over the one with that name. It is on disk when this returns, which may take
/// a disk's time. The directory is made if it is missing, for its owner alone. Of several at a time the last one stays.
pub(crate) fn replace(directory: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let draft = draft(directory, text)?;
    draft.as_file().sync_all()?;
    draft.persist(directory.join(name))?;
    fs::File::open(directory)?.sync_all()
}

/// As [`replace`], for what means nothing after a power loss: does not wait for the disk.
pub(crate) fn replace_until_reboot(directory: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    draft(directory, text)?.persist(directory.join(name))?;
    Ok(())
}

fn draft(directory: &Path, text: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    // Its mode is 0600, its name nobody else's.
    let mut draft = tempfile::NamedTempFile::new_in(directory)?;
    draft.write_all(text)?;
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_for_its_owner_alone() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("new");
        for text in ["a longer text", "short"] {
            replace(&directory, "file", text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), text);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("file"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "no draft stays");
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_leaves_no_draft() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("file")).unwrap();
        assert!(replace(base.path(), "file", b"text").is_err());
        assert!(base.path().join("file").is_dir());
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }
}
