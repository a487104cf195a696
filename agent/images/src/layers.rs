//! Unpacked layers: `layers/<diffID>` holds `fs`, the directory to mount, and `bytes`, how much it has; `implied` lists the
//! directories that it has without naming them. What lower layers say of those is put in a layer of the image's own,
//! `layers/<digest of the manifest>.directories` (see [`crate::implied`]), which has no `fs` where they say nothing else.
//!
//! A layer appears under its name when all of it is unpacked and verified, not when it is on disk: starting a
//! container does not wait for that. A machine that loses power may then have a layer with empty files, so each one
//! is marked with the boot that made it (`unsettled`) until the file system was synced; one with another boot's mark
//! is not believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufReader, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use agent_runtime::Trash;
use api::Digest;
use images_fetch::Layer;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::{ImageError, UnpackLimits, create_private_dir, implied, io_error, unpack};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MARK: &str = "unsettled";
const BYTES: &str = "bytes";
const IMPLIED: &str = "implied";
/// Behind the digest of an image in the name of its own layer.
const OWN: &str = ".directories";
/// How much of a layer is decompressed at a time, and how far ahead of what is written.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 8;

/// The layers of one store.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    dir: PathBuf,
    unpacking: PathBuf,
    /// Where what is removed goes first: half-removed layers are never taken for whole ones.
    trash: Trash,
    limits: UnpackLimits,
    boot: String,
    /// One for each processor: unpacking is work.
    turns: Arc<Semaphore>,
    leases: Arc<Mutex<BTreeMap<Digest, usize>>>,
    settling: Arc<Mutex<()>>,
}

/// Keeps images and layers from being removed for as long as it lives.
#[derive(Debug)]
pub(crate) struct Leases {
    held: Vec<Digest>,
    all: Arc<Mutex<BTreeMap<Digest, usize>>>,
}

impl Layers {
    /// Opens the layers of the store in `store`, and removes what is half-done or was before a loss of power: the paths are free
    /// afterwards, the files go in the background.
    pub(crate) fn open(store: &Path, limits: UnpackLimits) -> Result<Self, ImageError> {
        let (dir, unpacking) = (store.join("layers"), store.join("unpacking"));
        let trash = Trash::new(store.join("trash"));
        let kept = |error| tracing::warn!(%error, "what was being removed of old layers stays for now");
        trash.look().unwrap_or_else(kept);
        discard(&trash, &unpacking)?;
        create_private_dir(&dir)?;
        create_private_dir(&unpacking)?;
        let boot =
            fs::read_to_string(BOOT_ID).map_err(|source| io_error("read", Path::new(BOOT_ID), source))?;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let layers = Self {
            dir,
            unpacking,
            trash,
            limits,
            boot: boot.trim().to_owned(),
            turns: Arc::new(Semaphore::new(processors)),
            leases: Arc::default(),
            settling: Arc::default(),
        };
        for path in layers.list()? {
            let mark = fs::read_to_string(path.join(MARK));
            if mark.is_ok_and(|mark| mark != layers.boot) {
                tracing::info!(path = %path.display(), "a layer was not on disk when the machine stopped");
                layers.remove(&path)?;
            }
        }
        Ok(layers)
    }

    /// Whether everything is here that is stacked of an image with these layers.
    pub(crate) fn has_all(&self, image: &Digest, diff_ids: &[Digest]) -> bool {
        let implies = |diff_id| self.implied_of(diff_id).exists();
        diff_ids.iter().all(|diff_id| self.has(diff_id))
            && (self.own(image).is_dir() || !diff_ids.iter().any(implies))
    }

    /// What is stacked of an image with these layers, lowest first, as both are given.
    pub(crate) fn stack(&self, image: &Digest, diff_ids: &[Digest]) -> Vec<PathBuf> {
        let own = self.own(image).join("fs");
        let layers = diff_ids.iter().map(|diff_id| self.path(diff_id));
        layers.chain(Some(own).filter(|own| own.is_dir())).collect()
    }

    /// Makes the layer that an image has for itself, if it takes one. Its other layers are here. One call at a time.
    pub(crate) async fn complete(&self, image: Digest, diff_ids: Vec<Digest>) -> Result<(), ImageError> {
        let layers = self.clone();
        let work = move || match layers.has_all(&image, &diff_ids) {
            true => Ok(()),
            false => layers.make_own(&image, &diff_ids),
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or(Err(ImageError::Interrupted { layer: image }))
    }

    /// Where the layer is mounted from, whether it is here or not.
    fn path(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join(diff_id.hex()).join("fs")
    }

    /// Whether it is here.
    pub(crate) fn has(&self, diff_id: &Digest) -> bool {
        self.path(diff_id).is_dir()
    }

    /// How much a layer that is here has.
    pub(crate) fn bytes(&self, diff_id: &Digest) -> Result<u64, ImageError> {
        let path = self.dir.join(diff_id.hex()).join(BYTES);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.parse().unwrap_or(0)),
            // An earlier version did not note it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(io_error("read", &path, source)),
        }
    }

    /// Protects an image and its layers, present or still to come.
    pub(crate) fn lease(&self, image: Digest, mut held: Vec<Digest>) -> Leases {
        held.push(image);
        let mut all = self.lock();
        for digest in &held {
            *all.entry(*digest).or_default() += 1;
        }
        drop(all);
        Leases {
            held,
            all: Arc::clone(&self.leases),
        }
    }

    /// Images and layers that are protected.
    pub(crate) fn held(&self) -> BTreeSet<Digest> {
        self.lock().keys().copied().collect()
    }

    /// Unpacks and verifies a layer; returns how much it has.
    pub(crate) async fn unpack(&self, blob: PathBuf, layer: Layer) -> Result<u64, ImageError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let (layers, digest) = (self.clone(), layer.digest);
        let work = move || {
            let _turn = turn;
            layers.unpack_now(&blob, &layer)
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or(Err(ImageError::Interrupted { layer: digest }))
    }

    /// Brings all layers onto the disk, and takes their marks away, beside everything else.
    pub(crate) fn settle_later(&self) {
        let layers = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = layers.settle() {
                // They stay marked, and the next pull tries again.
                tracing::warn!(%error, "layers are not on disk yet");
            }
        });
    }

    /// Removes all layers but those in `needed`, the own ones of `images`, and those that are leased.
    pub(crate) async fn remove_others(
        &self,
        needed: &BTreeSet<Digest>,
        images: &BTreeSet<Digest>,
    ) -> Result<(), ImageError> {
        let own = images.iter().map(|image| format!("{}{OWN}", image.hex()));
        let names: BTreeSet<String> = needed.iter().map(Digest::hex).chain(own).collect();
        let layers = self.clone();
        let work = move || {
            for path in layers.list()? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if !names.contains(name.as_ref()) {
                    layers.remove(&path)?;
                }
            }
            Ok(())
        };
        let clear = |source| io_error("clear", &self.dir, source);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|interrupted| clear(interrupted.into()))??;
        // Whoever asks needs the room.
        self.trash.emptied().await.map_err(clear)
    }

    /// Under the lock, so that nobody takes a lease meanwhile and finds the layer there.
    fn remove(&self, path: &Path) -> Result<(), ImageError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hex = name.strip_suffix(OWN).unwrap_or(&name);
        let digest = format!("sha256:{hex}").parse::<Digest>();
        let leases = self.lock();
        if digest.is_ok_and(|digest| leases.contains_key(&digest)) {
            return Ok(());
        }
        discard(&self.trash, path)?;
        drop(leases);
        Ok(())
    }

    fn settle(&self) -> Result<(), ImageError> {
        let _turn = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let marks: Vec<PathBuf> = self.list()?.into_iter().map(|path| path.join(MARK)).collect();
        let marks: Vec<PathBuf> = marks.into_iter().filter(|mark| mark.exists()).collect();
        if marks.is_empty() {
            return Ok(());
        }
        let dir = fs::File::open(&self.dir).map_err(|source| io_error("open", &self.dir, source))?;
        rustix::fs::syncfs(&dir).map_err(|errno| io_error("sync", &self.dir, errno.into()))?;
        for mark in marks {
            match fs::remove_file(&mark) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &mark, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn own(&self, image: &Digest) -> PathBuf {
        self.dir.join(format!("{}{OWN}", image.hex()))
    }

    fn implied_of(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join(diff_id.hex()).join(IMPLIED)
    }

    /// Beside its final place, as any layer.
    fn make_own(&self, image: &Digest, diff_ids: &[Digest]) -> Result<(), ImageError> {
        let layers: Vec<PathBuf> = diff_ids.iter().map(|diff_id| self.path(diff_id)).collect();
        let lists = diff_ids
            .iter()
            .map(|diff_id| implied::read(&self.implied_of(diff_id)));
        let corrections = implied::corrections(&layers, &lists.collect::<Result<Vec<_>, _>>()?)?;
        let ready = self.own(image);
        let temporary = self.unpacking.join(ready.file_name().unwrap_or_default());
        discard(&self.trash, &temporary)?;
        create_private_dir(&temporary)?;
        if !corrections.is_empty() {
            let (path, root) = make_root(&temporary)?;
            implied::make(&root, &corrections)
                .map_err(|source| io_error("make the directories of", &path, source))?;
        }
        let mark = temporary.join(MARK);
        fs::write(&mark, &self.boot).map_err(|source| io_error("write", &mark, source))?;
        fs::rename(&temporary, &ready).map_err(|source| io_error("rename to", &ready, source))
    }

    fn list(&self) -> Result<Vec<PathBuf>, ImageError> {
        let list = |source| io_error("list", &self.dir, source);
        let entries = fs::read_dir(&self.dir).map_err(list)?;
        entries.map(|entry| Ok(entry.map_err(list)?.path())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unpacks a layer beside its final place, verifies it, and moves it there.
    fn unpack_now(&self, blob: &Path, layer: &Layer) -> Result<u64, ImageError> {
        let name = layer.diff_id.hex();
        let (temporary, ready) = (self.unpacking.join(&name), self.dir.join(&name));
        discard(&self.trash, &temporary)?;
        create_private_dir(&temporary)?;
        let (_, root) = make_root(&temporary)?;

        let file = fs::File::open(blob).map_err(|source| io_error("open", blob, source))?;
        let compression = layer.compression;
        let (unpacked, actual) = std::thread::scope(|scope| {
            let (chunks, ahead) = mpsc::sync_channel(CHUNKS_AHEAD);
            // Decompressing is half of the work; the other half is hashing and writing.
            scope.spawn(move || {
                let packed = BufReader::with_capacity(128 << 10, file);
                decompress(compression.reader(packed), &chunks);
            });
            let mut stream = Hashing {
                inner: Ahead::of(ahead),
                hasher: Sha256::new(),
            };
            let unpacked = unpack(&mut stream, root.as_fd(), &self.limits);
            let digest = Digest::from_sha256(stream.hasher.finalize().into());
            // The chunks end here, so the thread does too, wherever unpacking stopped.
            (unpacked, digest)
        });
        let unpacked = unpacked.map_err(|source| ImageError::Unpack {
            layer: layer.digest,
            source,
        });
        let verified = unpacked.and_then(|unpacked| match actual == layer.diff_id {
            true => Ok(unpacked),
            false => Err(ImageError::DiffId {
                layer: layer.digest,
                expected: layer.diff_id,
                actual,
            }),
        });
        let unpacked = match verified {
            Ok(unpacked) => unpacked,
            Err(error) => {
                discard(&self.trash, &temporary)?;
                return Err(error);
            }
        };
        if !unpacked.implied.is_empty() {
            let path = temporary.join(IMPLIED);
            implied::write(&path, &unpacked.implied).map_err(|source| io_error("write", &path, source))?;
        }
        for (name, text) in [(MARK, self.boot.clone()), (BYTES, unpacked.bytes.to_string())] {
            let path = temporary.join(name);
            fs::write(&path, text).map_err(|source| io_error("write", &path, source))?;
        }
        fs::rename(&temporary, &ready).map_err(|source| io_error("rename to", &ready, source))?;
        let implied = unpacked.implied.len();
        tracing::debug!(layer = %layer.digest, bytes = unpacked.bytes, implied, "layer unpacked");
        Ok(unpacked.bytes)
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &self.held {
            if let Some(count) = all.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    all.remove(digest);
                }
            }
        }
    }
}

/// Reads to the end, or until nobody wants the chunks any more.
fn decompress(mut layer: impl Read, chunks: &mpsc::SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = match layer.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read,
        };
        let goes_on = matches!(read, Ok(read) if read > 0);
        let chunk = read.map(|read| {
            chunk.truncate(read);
            chunk
        });
        if chunks.send(chunk).is_err() || !goes_on {
            return;
        }
    }
}

/// What another thread reads ahead. An empty chunk is the end; without one, the end was not reached.
struct Ahead {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    current: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl Ahead {
    fn of(chunks: mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Self {
            chunks,
            current: io::Cursor::default(),
            ended: false,
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || self.ended || buffer.is_empty() {
                return Ok(read);
            }
            let chunk = self
                .chunks
                .recv()
                .map_err(|_dead| io::ErrorKind::UnexpectedEof)??;
            self.ended = chunk.is_empty();
            self.current = io::Cursor::new(chunk);
        }
    }
}

/// Hashes everything that is read through it.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// The directory of a layer that is mounted.
fn make_root(layer: &Path) -> Result<(PathBuf, OwnedFd), ImageError> {
    let path = layer.join("fs");
    fs::create_dir(&path).map_err(|source| io_error("create", &path, source))?;
    // The container's root directory takes its mode from here unless the layer says otherwise.
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(|source| io_error("set the mode of", &path, source))?;
    let root = unpack::open_root(&path).map_err(|source| io_error("open", &path, source))?;
    Ok((path, root))
}

fn discard(trash: &Trash, path: &Path) -> Result<(), ImageError> {
    trash
        .discard(path)
        .map_err(|source| io_error("remove", path, source))
}
