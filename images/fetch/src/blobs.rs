//! Content-addressed files on disk: `blobs/sha256/<hex>` below the cache directory.
//!
//! A file appears under its final name only after its digest was verified and its bytes are on disk, so
//! a download that broke off costs only the blob it was in. The directory belongs to one process.

use std::{
    collections::HashMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use api::Digest;
use sha2::{Digest as _, Sha256};

use crate::FetchError;

/// The blobs of one cache directory.
#[derive(Debug, Clone)]
pub(crate) struct BlobCache {
    blobs: PathBuf,
    incoming: PathBuf,
    leases: Arc<Mutex<HashMap<Digest, usize>>>,
}

/// Keeps one blob from being trimmed for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lease {
    digest: Digest,
    leases: Arc<Mutex<HashMap<Digest, usize>>>,
}

/// A blob that is being written: bytes are counted and hashed on their way to disk.
pub(crate) struct Incoming {
    what: String,
    expected: Digest,
    size: Option<u64>,
    limit: u64,
    written: u64,
    hasher: Sha256,
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl BlobCache {
    /// Opens the cache, making its directories with mode 0700 and dropping half-written downloads of an
    /// earlier run.
    pub(crate) fn open(dir: &Path) -> Result<Self, FetchError> {
        let cache = Self {
            blobs: dir.join("blobs/sha256"),
            incoming: dir.join("incoming"),
            leases: Arc::default(),
        };
        match fs::remove_dir_all(&cache.incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("clear", &cache.incoming)(error));
            }
            _ => {}
        }
        for path in [&cache.blobs, &cache.incoming] {
            create_private_dir(path)?;
        }
        Ok(cache)
    }

    /// Where the blob lies, whether it is there or not.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Protects the blob from [`Self::trim`], present or still to come.
    pub(crate) fn lease(&self, digest: Digest) -> Lease {
        *self
            .leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(digest)
            .or_default() += 1;
        Lease {
            digest,
            leases: Arc::clone(&self.leases),
        }
    }

    /// Whether the verified blob is here. A wrong size means that the disk lost data: the file is removed.
    pub(crate) fn contains(&self, digest: &Digest, size: u64) -> bool {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == size => {
                touch(&path);
                true
            }
            Ok(_) => {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a damaged blob");
                }
                false
            }
            Err(_) => false,
        }
    }

    /// Reads a small blob; `None` if it is not here. Verified again, because it costs nothing.
    pub(crate) fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, FetchError> {
        let path = self.path(digest);
        let bytes = match read_bounded(&path, limit) {
            Ok(bytes) => bytes,
            Err(FetchError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if Digest::of(&bytes) != *digest {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            return Ok(None);
        }
        touch(&path);
        Ok(Some(bytes))
    }

    /// Starts writing a blob of known `digest`, and of known `size` if a descriptor gave one.
    pub(crate) fn incoming(
        &self,
        what: String,
        expected: Digest,
        size: Option<u64>,
        limit: u64,
    ) -> Result<Incoming, FetchError> {
        if size.is_some_and(|size| size > limit) {
            return Err(FetchError::TooLarge { what, limit });
        }
        let file = tempfile::NamedTempFile::new_in(&self.incoming)
            .map_err(io_error("create a file in", &self.incoming))?;
        let path = self.path(&expected);
        Ok(Incoming {
            what,
            expected,
            size,
            limit,
            written: 0,
            hasher: Sha256::new(),
            file,
            path,
        })
    }

    /// Removes one blob, unless it is leased.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), FetchError> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if leases.contains_key(digest) {
            return Ok(());
        }
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes the blobs not used for longest until at most `max_bytes` remain; leased ones stay.
    pub(crate) fn trim(&self, max_bytes: u64) -> Result<(), FetchError> {
        // Held throughout: a lease taken meanwhile waits, and then finds the blob there or not.
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::new();
        let mut total = 0u64;
        for entry in fs::read_dir(&self.blobs).map_err(io_error("list", &self.blobs))? {
            let entry = entry.map_err(io_error("list", &self.blobs))?;
            let metadata = entry.metadata().map_err(io_error("inspect", &entry.path()))?;
            total += metadata.len();
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push((used, metadata.len(), entry.path()));
        }
        files.sort();
        for (_, size, path) in files {
            if total <= max_bytes {
                break;
            }
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if format!("sha256:{name}")
                .parse()
                .is_ok_and(|digest: Digest| leases.contains_key(&digest))
            {
                continue;
            }
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            total -= size;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = leases.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                leases.remove(&self.digest);
            }
        }
    }
}

impl Incoming {
    /// Takes the next bytes; refuses the first one past the expected size or the limit.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.written += bytes.len() as u64;
        match self.size {
            Some(expected) if self.written > expected => {
                return Err(FetchError::SizeMismatch {
                    what: self.what.clone(),
                    expected,
                    actual: self.written,
                });
            }
            None if self.written > self.limit => {
                return Err(FetchError::TooLarge {
                    what: self.what.clone(),
                    limit: self.limit,
                });
            }
            _ => {}
        }
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(io_error("write", self.file.path()))
    }

    /// Verifies size and digest and gives the blob its name.
    pub(crate) fn finish(self) -> Result<PathBuf, FetchError> {
        if let Some(expected) = self.size
            && expected != self.written
        {
            return Err(FetchError::SizeMismatch {
                what: self.what,
                expected,
                actual: self.written,
            });
        }
        let actual = Digest::from_sha256(self.hasher.finalize().into());
        if actual != self.expected {
            return Err(FetchError::DigestMismatch {
                what: self.what,
                expected: self.expected,
                actual,
            });
        }
        self.file
            .as_file()
            .sync_all()
            .map_err(io_error("sync", self.file.path()))?;
        self.file
            .persist(&self.path)
            .map_err(|error| io_error("rename to", &self.path)(error.error))?;
        Ok(self.path)
    }
}

/// Reads a file of at most `limit` bytes, not following a symbolic link at its end.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FetchError> {
    use std::io::Read;
    let file = open_no_follow(path)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(FetchError::TooLarge {
            what: path.display().to_string(),
            limit,
        });
    }
    Ok(bytes)
}

/// Opens a regular file; a symbolic link or a pipe in its place is an error, never followed or waited for.
pub(crate) fn open_no_follow(path: &Path) -> Result<fs::File, FetchError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| io_error("open", path)(errno.into()))?;
    let file = fs::File::from(file);
    if !file.metadata().map_err(io_error("inspect", path))?.is_file() {
        return Err(io_error("open", path)(io::Error::other("not a regular file")));
    }
    Ok(file)
}

/// Creates a directory and its parents; the directory itself is only for its owner.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), FetchError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("create", path))
}

/// Closure that wraps an I/O error with operation and path.
pub(crate) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io {
        operation,
        path,
        source,
    }
}

/// Marks a blob as used now. Failing only makes trimming choose worse, so it is not an error.
fn touch(path: &Path) {
    let touched = fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(path = %path.display(), %error, "cannot mark a blob as used");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(cache: &BlobCache, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut incoming = cache
            .incoming("test".into(), digest, Some(bytes.len() as u64), 1 << 20)
            .unwrap();
        incoming.write(bytes).unwrap();
        incoming.finish().unwrap();
        digest
    }

    #[test]
    fn only_verified_bytes_get_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path()).unwrap();
        let digest = Digest::of(b"right");
        let mut forged = cache.incoming("blob".into(), digest, Some(5), 100).unwrap();
        forged.write(b"wrong").unwrap();
        assert!(matches!(forged.finish(), Err(FetchError::DigestMismatch { .. })));
        let mut short = cache.incoming("blob".into(), digest, Some(6), 100).unwrap();
        short.write(b"right").unwrap();
        assert!(matches!(short.finish(), Err(FetchError::SizeMismatch { .. })));
        let mut long = cache.incoming("blob".into(), digest, Some(4), 100).unwrap();
        assert!(matches!(
            long.write(b"right"),
            Err(FetchError::SizeMismatch { .. })
        ));
        drop(long);
        let mut endless = cache.incoming("blob".into(), digest, None, 4).unwrap();
        assert!(matches!(
            endless.write(b"right"),
            Err(FetchError::TooLarge { .. })
        ));
        drop(endless);
        assert!(matches!(
            cache.incoming("b".into(), digest, Some(101), 100),
            Err(FetchError::TooLarge { .. })
        ));
        assert_eq!(cache.read(&digest, 100).unwrap(), None);
        assert_eq!(
            fs::read_dir(dir.path().join("incoming")).unwrap().count(),
            0,
            "temporary files are gone"
        );
    }

    #[test]
    fn a_damaged_blob_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path()).unwrap();
        let digest = store(&cache, b"content");
        fs::write(cache.path(&digest), b"c0ntent").unwrap();
        assert_eq!(cache.read(&digest, 100).unwrap(), None);
        let digest = store(&cache, b"content");
        fs::write(cache.path(&digest), b"").unwrap();
        assert!(!cache.contains(&digest, 7));
    }

    #[test]
    fn trimming_spares_what_is_leased() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path()).unwrap();
        let (kept, dropped) = (store(&cache, b"kept"), store(&cache, b"dropped"));
        let lease = cache.lease(kept);
        cache.trim(0).unwrap();
        assert!(cache.contains(&kept, 4));
        assert!(!cache.contains(&dropped, 7));
        drop(lease);
        cache.trim(0).unwrap();
        assert!(!cache.contains(&kept, 4));
    }

    #[test]
    fn links_and_pipes_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        assert!(read_bounded(&dir.path().join("link"), 100).is_err());
        assert!(read_bounded(dir.path(), 100).is_err());
    }
}
