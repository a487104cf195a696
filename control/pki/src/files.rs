//! Files that root writes into directories which others own.
//!
//! `control/` belongs to the control plane's account. Should that account be taken over, it must not be able
//! to make root write or hand over anything else by planting links. So every step is relative to an open
//! directory and follows no link, and a file gets owner and mode before it gets its name.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, openat, renameat};
use zeroize::Zeroizing;

use crate::PkiError;

/// Certificates and keys are small.
pub(crate) const MAX_BYTES: u64 = 64 << 10;

/// An open directory.
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens `path`, the root of all further steps, and creates it where it is missing. Mode 0711: those who
    /// own a directory below may reach it, nobody may look around.
    pub(crate) fn create_all(path: &Path) -> Result<Self, PkiError> {
        use std::os::unix::fs::DirBuilderExt;
        let create = fs::DirBuilder::new().recursive(true).mode(0o711).create(path);
        create.map_err(|e| error(path, "create", e))?;
        let fd = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self {
            fd: fd.map_err(|e| error(path, "open", e.into()))?,
            path: path.to_owned(),
        })
    }

    /// Opens or creates a directory below and gives it mode and owner.
    pub(crate) fn subdir(&self, name: &str, mode: u32, owner: Option<u32>) -> Result<Self, PkiError> {
        let path = self.path.join(name);
        match mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(error(&path, "create", e.into())),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(|e| error(&path, "open", e.into()))?;
        set_owner_and_mode(&fd, owner, mode).map_err(|e| error(&path, "set owner and mode", e))?;
        Ok(Self { fd, path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Content of a file, `None` where it does not exist.
    pub(crate) fn read_text(&self, name: &str) -> Result<Option<Zeroizing<String>>, PkiError> {
        Ok(self.read(name)?.map(|(text, _)| text))
    }

    /// The same for a file that others must not be able to read.
    pub(crate) fn read_private_text(&self, name: &str) -> Result<Option<Zeroizing<String>>, PkiError> {
        match self.read(name)? {
            Some((_, mode)) if mode & 0o077 != 0 => Err(PkiError::Mode {
                path: self.path.join(name),
                mode,
            }),
            found => Ok(found.map(|(text, _)| text)),
        }
    }

    /// Content and permission bits.
    fn read(&self, name: &str) -> Result<Option<(Zeroizing<String>, u32)>, PkiError> {
        let path = self.path.join(name);
        // Without NONBLOCK a pipe in the file's place would stop us for good.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(error(&path, "open", e.into())),
        };
        let metadata = file.metadata().map_err(|e| error(&path, "stat", e))?;
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(PkiError::NotAFile { path });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|e| error(&path, "read", e))?;
        Ok(Some((text, metadata.mode() & 0o7777)))
    }

    /// Replaces a file in one step: readers see the old content or the new. Never wider than `mode`, not even
    /// while it is written.
    pub(crate) fn replace(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        owner: Option<u32>,
    ) -> Result<(), PkiError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let path = self.path.join(name);
        let aside = format!(
            ".{name}.{}.{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&self.fd, aside.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all(content)?;
            set_owner_and_mode(&file, owner, mode)?;
            file.sync_all()?;
            renameat(&self.fd, aside.as_str(), &self.fd, name)?;
            Ok(rustix::fs::fsync(&self.fd)?)
        };
        let written = write();
        if written.is_err() {
            // The cause of the failure is worth more than a failure to tidy up after it.
            rustix::fs::unlinkat(&self.fd, aside.as_str(), rustix::fs::AtFlags::empty()).ok();
        }
        written.map_err(|e| error(&path, "write", e))
    }
}

fn set_owner_and_mode(fd: impl AsFd, owner: Option<u32>, mode: u32) -> io::Result<()> {
    if let Some(id) = owner {
        fchown(fd.as_fd(), Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))?;
    }
    Ok(fchmod(fd.as_fd(), Mode::from_raw_mode(mode))?)
}

fn error(path: &Path, operation: &'static str, source: io::Error) -> PkiError {
    PkiError::File {
        path: path.to_owned(),
        operation,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn follows_no_link_that_the_owner_of_a_directory_planted() {
        let tmp = tempfile::tempdir().unwrap();
        let victim = tmp.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "precious").unwrap();
        let dir = Dir::create_all(&tmp.path().join("state")).unwrap();

        symlink(&victim, tmp.path().join("state/control")).unwrap();
        assert!(matches!(
            dir.subdir("control", 0o700, Some(1234)),
            Err(PkiError::File {
                operation: "open",
                ..
            })
        ));

        symlink(victim.join("file"), tmp.path().join("state/key")).unwrap();
        assert!(dir.read_text("key").is_err());
        dir.replace("key", b"new", 0o600, Some(1234)).unwrap();
        let metadata = fs::symlink_metadata(tmp.path().join("state/key")).unwrap();
        assert!(metadata.is_file(), "the link itself was replaced");
        assert_eq!(
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
            (1234, 1234, 0o600)
        );
        assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "precious");
        assert_eq!(
            fs::metadata(&victim).unwrap().uid(),
            rustix::process::getuid().as_raw()
        );
    }

    #[test]
    fn reads_regular_files_of_bounded_size_only() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::create_all(tmp.path()).unwrap();
        assert!(dir.read_text("none").unwrap().is_none());
        rustix::fs::mknodat(&dir.fd, "pipe", rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(dir.read_text("pipe"), Err(PkiError::NotAFile { .. })));
        fs::write(tmp.path().join("huge"), vec![b'x'; 70_000]).unwrap();
        assert!(matches!(dir.read_text("huge"), Err(PkiError::NotAFile { .. })));
    }
}
