//! The directory of manifests. Whoever writes there starts pods on this node, so only root may.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Longest manifest, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Files that are read; more are an error rather than left out.
const MAX_FILES: usize = 256;

/// Why manifests are not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} belongs to another user than root, or others may write to it; it is not read", path.display())]
    Exposed { path: PathBuf },
    #[error("{} has more than {MAX_FILES} manifests", path.display())]
    TooMany { path: PathBuf },
    #[error("{} is no regular file of at most {MAX_BYTES} bytes", path.display())]
    Odd { path: PathBuf },
}

/// A manifest's file with its text, or with the reason why it cannot be read.
pub(crate) type Found = (PathBuf, Result<String, FilesError>);

/// All manifests by file. `None` without the directory.
pub(crate) fn read(directory: &Path) -> Result<Option<Vec<Found>>, FilesError> {
    let failed = |source| FilesError::Read {
        path: directory.to_owned(),
        source,
    };
    let flags = libc_flags() | nix::fcntl::OFlag::O_DIRECTORY.bits();
    let opened = match OpenOptions::new().read(true).custom_flags(flags).open(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    demand_private(&opened, directory)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let kind = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // Editors and package managers leave other files beside.
        if name.starts_with('.') || !matches!(kind.as_str(), "yaml" | "yml" | "json") {
            continue;
        }
        if found.len() >= MAX_FILES {
            return Err(FilesError::TooMany {
                path: directory.to_owned(),
            });
        }
        let text = read_one(&path);
        found.push((path, text));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Some(found))
}

fn read_one(path: &Path) -> Result<String, FilesError> {
    let failed = |source| FilesError::Read {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc_flags())
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(FilesError::Odd {
            path: path.to_owned(),
        });
    }
    demand_private(&file, path)?;
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// No links, and nothing that blocks when it is opened.
fn libc_flags() -> i32 {
    use nix::fcntl::OFlag;
    (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits()
}

fn demand_private(file: &File, path: &Path) -> Result<(), FilesError> {
    let metadata = file.metadata().map_err(|source| FilesError::Read {
        path: path.to_owned(),
        source,
    })?;
    let own = nix::unistd::geteuid().as_raw();
    if metadata.uid() == own && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(FilesError::Exposed {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn only_what_nobody_else_could_write_is_read() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("manifests");
        assert!(
            read(&directory).unwrap().is_none(),
            "no directory, no static pods"
        );
        fs::create_dir(&directory).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&directory, 0o755);
        for name in [
            "b.yaml",
            "a.json",
            ".hidden.yaml",
            "note.txt",
            "open.yaml",
            "large.yml",
        ] {
            fs::write(directory.join(name), name).unwrap();
            set(&directory.join(name), 0o644);
        }
        set(&directory.join("open.yaml"), 0o664);
        fs::write(directory.join("large.yml"), vec![b'x'; 2 << 20]).unwrap();
        std::os::unix::fs::symlink("b.yaml", directory.join("link.yaml")).unwrap();
        fs::create_dir(directory.join("dir.yaml")).unwrap();
        let found = read(&directory).unwrap().unwrap();
        let shown: Vec<(String, bool)> = found
            .iter()
            .map(|(path, text)| {
                (
                    path.file_name().unwrap().to_string_lossy().into_owned(),
                    text.is_ok(),
                )
            })
            .collect();
        let expected = [
            ("a.json", true),
            ("b.yaml", true),
            ("dir.yaml", false),
            ("large.yml", false),
            ("link.yaml", false),
            ("open.yaml", false),
        ];
        assert_eq!(shown, expected.map(|(name, is_read)| (name.to_owned(), is_read)));
        assert!(matches!(&found[5].1, Err(FilesError::Exposed { .. })));
        set(&directory, 0o777);
        assert!(matches!(read(&directory), Err(FilesError::Exposed { .. })));
    }
}
