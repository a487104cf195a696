//! The directory of manifests. Whoever writes there starts pods on this node, so only root may.

use std::path::{Path, PathBuf};

use crate::operator_files::{self, FileError};

/// Files that are read; more are an error rather than left out.
const MAX_FILES: usize = 256;

/// Why manifests are not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} has more than {MAX_FILES} manifests", path.display())]
    TooMany { path: PathBuf },
}

/// A manifest's file with its text, or with the reason why it cannot be read.
pub(crate) type Found = (PathBuf, Result<String, FileError>);

/// All manifests by file. `None` without the directory.
pub(crate) fn read(directory: &Path) -> Result<Option<Vec<Found>>, FilesError> {
    if operator_files::directory(directory)?.is_none() {
        return Ok(None);
    }
    let failed = |source| FileError::Read {
        path: directory.to_owned(),
        source,
    };
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
        let text = operator_files::text(&path);
        found.push((path, text));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Some(found))
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
        assert!(matches!(&found[5].1, Err(FileError::Exposed { .. })));
        set(&directory, 0o777);
        assert!(matches!(
            read(&directory),
            Err(FilesError::File(FileError::Exposed { .. }))
        ));
    }
}
