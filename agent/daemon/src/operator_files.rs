//! Files that the node's operator lays down for the agent. Whoever could write them could speak for the operator, so only
//! root may: what others could write is not read, and links are not followed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use nix::fcntl::OFlag;

/// Longest file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file or directory is not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} belongs to another user than root, or others may write to it; it is not read", path.display())]
    Exposed { path: PathBuf },
    #[error("{} is no regular file of at most {MAX_BYTES} bytes", path.display())]
    Odd { path: PathBuf },
    #[error("{} is not a path below the directory, without '..'", path.display())]
    Outside { path: PathBuf },
}

/// An open directory; nothing where there is none.
pub(crate) fn directory(path: &Path) -> Result<Option<File>, FileError> {
    match open(path, OFlag::O_DIRECTORY) {
        Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// The text of a file.
pub(crate) fn text(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = open(path, OFlag::empty())?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(FileError::Odd {
            path: path.to_owned(),
        });
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The text of the file `name` below a directory. Each directory on the way is as closed as the file, so that nobody else
/// could have put it there.
pub(crate) fn text_below(directory: &Path, name: &Path) -> Result<String, FileError> {
    let mut path = directory.to_owned();
    for part in name.components() {
        let Component::Normal(part) = part else {
            return Err(FileError::Outside {
                path: name.to_owned(),
            });
        };
        // Checked by its path and no longer held: who could exchange it afterwards is root.
        open(&path, OFlag::O_DIRECTORY)?;
        path.push(part);
    }
    text(&path)
}

/// Opens what only this process' user may write. No links, and nothing that blocks when it is opened.
fn open(path: &Path, flags: OFlag) -> Result<File, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = opened.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let own = nix::unistd::geteuid().as_raw();
    // What is neither file nor directory is told as such by whoever wants one.
    if metadata.uid() == own && metadata.mode() & 0o022 == 0 {
        return Ok(file);
    }
    Err(FileError::Exposed {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_file_below_a_directory_is_reached_by_closed_directories_only() {
        let base = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let below = base.path().join("profiles");
        fs::create_dir(&below).unwrap();
        set(&below, 0o755);
        let file = below.join("a.json");
        fs::write(&file, "{}").unwrap();
        set(&file, 0o644);
        let read = |name: &str| text_below(base.path(), Path::new(name));
        assert_eq!(read("profiles/a.json").unwrap(), "{}");
        for outside in ["../a.json", "/profiles/a.json", "profiles/../profiles/a.json"] {
            assert!(
                matches!(read(outside), Err(FileError::Outside { .. })),
                "{outside}"
            );
        }
        assert!(matches!(read("profiles"), Err(FileError::Odd { .. })));
        assert!(read("").is_err());
        assert!(matches!(read("profiles/b.json"), Err(FileError::Read { .. })));
        std::os::unix::fs::symlink("profiles", base.path().join("link")).unwrap();
        assert!(matches!(read("link/a.json"), Err(FileError::Read { .. })));
        set(&below, 0o777);
        assert!(matches!(read("profiles/a.json"), Err(FileError::Exposed { .. })));
        set(&below, 0o755);
        set(&file, 0o664);
        assert!(matches!(read("profiles/a.json"), Err(FileError::Exposed { .. })));
    }
}
