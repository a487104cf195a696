//! Content-addressed files on disk: `blobs/sha256/<hex>` below the cache directory.
//!
//! A file appears under its final name only after its digest was verified, so a download that broke off costs
//! only the blob it was in. What arrived of that one is kept for the next attempt of the same process, which goes on
//! from there. The directory belongs to one process.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use api::Digest;
use sha2::{Digest as _, Sha256};

use crate::{FetchError, Progress};

/// Stands for all repositories in what is known of a blob; no repository is called that.
pub(crate) const ANY_REPOSITORY: &str = "*";
/// Repositories that are known of a blob; past it the blob is transferred again for others.
const MAX_REPOSITORIES: usize = 256;
/// Beginnings of blobs that are kept; past it the oldest goes.
const MAX_PARTIALS: usize = 16;

/// The blobs of one cache directory.
#[derive(Debug, Clone)]
pub(crate) struct BlobCache {
    blobs: PathBuf,
    incoming: PathBuf,
    /// Which repositories have sent a blob, by its digest.
    senders: PathBuf,
    /// Whether a blob is on disk, and not only in memory, before it gets its name.
    durable: bool,
    partials: Partials,
    leases: Arc<Mutex<HashMap<Digest, usize>>>,
}

/// Keeps one blob from being trimmed for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lease {
    digest: Digest,
    leases: Arc<Mutex<HashMap<Digest, usize>>>,
}

/// Beginnings of blobs whose download broke off, by the repository they came from and their digest. Another
/// repository's is not gone on with: to have all of a blob is what shows that a repository has it.
type Partials = Arc<Mutex<HashMap<(String, Digest), Partial>>>;

/// The beginning of a blob.
#[derive(Debug)]
pub(crate) struct Partial {
    file: tempfile::NamedTempFile,
    hasher: Sha256,
    written: u64,
    /// Who sent it, and what it called this version of it.
    tag: Option<(String, String)>,
    since: SystemTime,
}

/// A blob that is being written: bytes are counted and hashed on their way to disk.
pub(crate) struct Incoming {
    what: String,
    repository: String,
    expected: Digest,
    size: Option<u64>,
    limit: u64,
    path: PathBuf,
    durable: bool,
    /// Parts of it came at different times.
    resumed: bool,
    progress: Option<Progress>,
    /// Gone once the blob has its name.
    partial: Option<Partial>,
    partials: Partials,
}

impl BlobCache {
    /// Opens the cache, making its directories with mode 0700 and dropping half-written downloads of an
    /// earlier run.
    pub(crate) fn open(dir: &Path, durable: bool) -> Result<Self, FetchError> {
        let cache = Self {
            blobs: dir.join("blobs/sha256"),
            incoming: dir.join("incoming"),
            senders: dir.join("senders"),
            durable,
            partials: Arc::default(),
            leases: Arc::default(),
        };
        match fs::remove_dir_all(&cache.incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("clear", &cache.incoming)(error));
            }
            _ => {}
        }
        for path in [&cache.blobs, &cache.incoming, &cache.senders] {
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

    /// Whether the repository has sent all of the blob, or any has to whoever asked. What cannot be read says nothing.
    pub(crate) fn is_of(&self, digest: &Digest, repository: &str) -> bool {
        let senders = self.senders_of(digest);
        senders.contains(repository) || senders.contains(ANY_REPOSITORY)
    }

    /// Notes that the repository, or [`ANY_REPOSITORY`], has sent all of the blob.
    pub(crate) fn note(&self, digest: &Digest, repository: &str) -> Result<(), FetchError> {
        let path = self.senders.join(digest.hex());
        // One at a time, and none while blobs are trimmed.
        let _turn = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let mut senders = self.senders_of(digest);
        if senders.len() >= MAX_REPOSITORIES {
            senders.clear();
        }
        senders.insert(repository.to_owned());
        let written = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.incoming)?;
            file.write_all(&serde_json::to_vec(&senders)?)?;
            file.persist(&path).map_err(|error| error.error).map(drop)
        };
        written().map_err(io_error("write", &path))
    }

    fn senders_of(&self, digest: &Digest) -> BTreeSet<String> {
        let text = fs::read(self.senders.join(digest.hex())).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
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

    /// Starts writing a blob of known `digest`, and of known `size` if a descriptor gave one, or goes on with what
    /// an earlier attempt left of it.
    pub(crate) fn incoming(
        &self,
        what: String,
        repository: &str,
        expected: Digest,
        size: Option<u64>,
        limit: u64,
    ) -> Result<Incoming, FetchError> {
        if size.is_some_and(|size| size > limit) {
            return Err(FetchError::TooLarge { what, limit });
        }
        let key = (repository.to_owned(), expected);
        let begun = self
            .partials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key);
        let partial = match begun {
            Some(partial) => partial,
            None => Partial {
                file: tempfile::NamedTempFile::new_in(&self.incoming)
                    .map_err(io_error("create a file in", &self.incoming))?,
                hasher: Sha256::new(),
                written: 0,
                tag: None,
                since: SystemTime::now(),
            },
        };
        Ok(Incoming {
            what,
            repository: key.0,
            expected,
            size,
            limit,
            path: self.path(&expected),
            durable: self.durable,
            resumed: partial.written > 0,
            progress: None,
            partial: Some(partial),
            partials: Arc::clone(&self.partials),
        })
    }

    /// Drops the beginnings of blobs whose download broke off.
    pub(crate) fn drop_partials(&self) {
        self.partials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Removes one blob, unless it is leased.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), FetchError> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if leases.contains_key(digest) {
            return Ok(());
        }
        remove_if_there(&self.path(digest))?;
        remove_if_there(&self.senders.join(digest.hex()))
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
            remove_if_there(&self.senders.join(name))?;
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
    /// Tells `progress` of every byte from now on, and of those that are there.
    pub(crate) fn tell(&mut self, progress: &Progress) {
        progress.add(self.written());
        self.progress = Some(progress.clone());
    }

    /// Bytes that are there.
    pub(crate) fn written(&self) -> u64 {
        self.partial.as_ref().map_or(0, |partial| partial.written)
    }

    /// Whether parts of it came at different times.
    pub(crate) fn was_resumed(&self) -> bool {
        self.resumed
    }

    /// What the sender `base` called the version of which there is a beginning.
    pub(crate) fn tag_of(&self, base: &str) -> Option<&str> {
        let (sender, tag) = self.partial.as_ref()?.tag.as_ref()?;
        (sender == base).then_some(tag)
    }

    /// Notes what the sender calls the version that it sends.
    pub(crate) fn set_tag(&mut self, base: &str, tag: Option<&str>) {
        if let Some(partial) = &mut self.partial {
            partial.tag = tag.map(|tag| (base.to_owned(), tag.to_owned()));
        }
    }

    /// Notes that what comes now is another part.
    pub(crate) fn resume(&mut self) {
        self.resumed = true;
    }

    /// Forgets everything that was written.
    pub(crate) fn restart(&mut self) -> Result<(), FetchError> {
        use std::io::Seek as _;
        if let Some(progress) = &self.progress {
            progress.take_back(self.written());
        }
        self.resumed = false;
        let Some(partial) = &mut self.partial else {
            return Ok(());
        };
        (partial.hasher, partial.written, partial.tag) = (Sha256::new(), 0, None);
        let file = partial.file.as_file_mut();
        let emptied = file.set_len(0).and_then(|()| file.rewind());
        emptied.map_err(io_error("empty", partial.file.path()))
    }

    /// Takes the next bytes; refuses the first one past the expected size or the limit.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let Some(partial) = &mut self.partial else {
            return Ok(());
        };
        partial.written += bytes.len() as u64;
        match self.size {
            Some(expected) if partial.written > expected => {
                return Err(FetchError::SizeMismatch {
                    what: self.what.clone(),
                    expected,
                    actual: partial.written,
                });
            }
            None if partial.written > self.limit => {
                return Err(FetchError::TooLarge {
                    what: self.what.clone(),
                    limit: self.limit,
                });
            }
            _ => {}
        }
        partial.hasher.update(bytes);
        let written = partial.file.write_all(bytes);
        written.map_err(io_error("write", partial.file.path()))?;
        if let Some(progress) = &self.progress {
            progress.add(bytes.len() as u64);
        }
        Ok(())
    }

    /// Whether size and digest of what is there are right.
    pub(crate) fn verify(&self) -> Result<(), FetchError> {
        let written = self.written();
        if let Some(expected) = self.size
            && expected != written
        {
            return Err(FetchError::SizeMismatch {
                what: self.what.clone(),
                expected,
                actual: written,
            });
        }
        let hasher = self.partial.as_ref().map(|partial| partial.hasher.clone());
        let actual = Digest::from_sha256(hasher.unwrap_or_default().finalize().into());
        match actual == self.expected {
            true => Ok(()),
            false => Err(FetchError::DigestMismatch {
                what: self.what.clone(),
                expected: self.expected,
                actual,
            }),
        }
    }

    /// Verifies size and digest and gives the blob its name.
    pub(crate) fn finish(mut self) -> Result<PathBuf, FetchError> {
        let verified = self.verify();
        let Some(partial) = self.partial.take() else {
            return Ok(self.path.clone());
        };
        verified?;
        if self.durable {
            let synced = partial.file.as_file().sync_all();
            synced.map_err(io_error("sync", partial.file.path()))?;
        }
        partial
            .file
            .persist(&self.path)
            .map_err(|error| io_error("rename to", &self.path)(error.error))?;
        Ok(self.path.clone())
    }
}

impl Drop for Incoming {
    /// What broke off is kept; what came of it is judged by the digest of the whole.
    fn drop(&mut self) {
        let Some(partial) = self.partial.take() else {
            return;
        };
        // Too long means that it is wrong from the beginning.
        let usable = self.size.is_some_and(|size| partial.written < size);
        if partial.written == 0 || !usable {
            return;
        }
        let mut all = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_PARTIALS {
            let oldest = all.iter().min_by_key(|(_, partial)| partial.since);
            let oldest = oldest.map(|(key, _)| key.clone());
            oldest.map(|key| all.remove(&key));
        }
        all.insert((self.repository.clone(), self.expected), partial);
    }
}

fn remove_if_there(path: &Path) -> Result<(), FetchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
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
            .incoming("test".into(), "r/x", digest, Some(bytes.len() as u64), 1 << 20)
            .unwrap();
        incoming.write(bytes).unwrap();
        incoming.finish().unwrap();
        digest
    }

    #[test]
    fn only_verified_bytes_get_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path(), true).unwrap();
        let digest = Digest::of(b"right");
        let mut forged = cache
            .incoming("blob".into(), "r/x", digest, Some(5), 100)
            .unwrap();
        forged.write(b"wrong").unwrap();
        assert!(matches!(forged.finish(), Err(FetchError::DigestMismatch { .. })));
        let mut short = cache
            .incoming("blob".into(), "r/x", digest, Some(6), 100)
            .unwrap();
        short.write(b"right").unwrap();
        assert!(matches!(short.finish(), Err(FetchError::SizeMismatch { .. })));
        let mut long = cache
            .incoming("blob".into(), "r/x", digest, Some(4), 100)
            .unwrap();
        assert!(matches!(
            long.write(b"right"),
            Err(FetchError::SizeMismatch { .. })
        ));
        drop(long);
        let mut endless = cache.incoming("blob".into(), "r/x", digest, None, 4).unwrap();
        assert!(matches!(
            endless.write(b"right"),
            Err(FetchError::TooLarge { .. })
        ));
        drop(endless);
        assert!(matches!(
            cache.incoming("b".into(), "r/x", digest, Some(101), 100),
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
    fn a_beginning_is_gone_on_with_in_its_own_repository_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path(), false).unwrap();
        let digest = Digest::of(b"content");
        let begin = |repository: &str| {
            cache
                .incoming("blob".into(), repository, digest, Some(7), 100)
                .unwrap()
        };
        let mut first = begin("r/x");
        first.write(b"cont").unwrap();
        first.set_tag("https://r", Some("\"1\""));
        drop(first);
        assert_eq!(begin("r/y").written(), 0, "who has not all of it has nothing");
        let mut second = begin("r/x");
        assert_eq!((second.written(), second.was_resumed()), (4, true));
        assert_eq!(
            (second.tag_of("https://r"), second.tag_of("https://m")),
            (Some("\"1\""), None)
        );
        second.write(b"ent").unwrap();
        second.finish().unwrap();
        assert_eq!(cache.read(&digest, 100).unwrap().unwrap(), b"content");

        // A wrong beginning costs one attempt.
        let mut wrong = begin("r/x");
        wrong.write(b"kont").unwrap();
        drop(wrong);
        let mut again = begin("r/x");
        again.write(b"ent").unwrap();
        assert!(matches!(again.verify(), Err(FetchError::DigestMismatch { .. })));
        again.restart().unwrap();
        again.write(b"content").unwrap();
        again.finish().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_blob_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path(), true).unwrap();
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
        let cache = BlobCache::open(dir.path(), true).unwrap();
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
