//! Images on a node: from a pinned reference to directories that overlayfs can stack.
//!
//! [`ImageStore::ensure`] fetches what is missing (`images/fetch` verifies it), unpacks each layer once
//! into `layers/<diffID>/fs`, and returns the directories and the image's configuration. A layer
//! appears under its name only when all of it is unpacked, on disk, and its uncompressed bytes have the
//! digest that the image configuration claims; images share layers. [`unpack()`] is the part that reads
//! hostile archives; it knows nothing of the rest.
//!
//! Non-goals: mounting (`agent/runtime`), deciding what is needed (`agent/plan`), tags: only pinned
//! references are accepted, because what runs must be what was scanned.

#![forbid(unsafe_code)]

mod archive;
mod unpack;
mod user;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufReader, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use api::{Digest, ImageRef};
use images_fetch::{DigestLocks, FetchConfig, FetchError, Fetcher, Image, Layer};
use sha2::{Digest as _, Sha256};

pub use images_fetch::{ImageConfig, Limits};
pub use unpack::{UnpackError, UnpackLimits, Unpacked, unpack};
pub use user::UserIds;

/// Where images are kept and come from.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Directory of this store; made if absent, and used by this process only.
    pub dir: PathBuf,
    /// Root of the layouts that `oci-layout.local/NAME:TAG` names.
    pub layout_root: PathBuf,
    /// PEM files with authorities to trust for registries besides those of the machine.
    pub ca_files: Vec<PathBuf>,
    /// Sizes beyond which an image is refused.
    pub limits: Limits,
    /// Longest time to fetch one manifest or one layer.
    pub timeout: Duration,
}

/// The images of one node. Shared by reference; all methods may run concurrently.
#[derive(Debug)]
pub struct ImageStore {
    fetcher: Fetcher,
    layers: PathBuf,
    unpacking: PathBuf,
    limits: UnpackLimits,
    /// Held, by diffID, by whoever unpacks a layer.
    busy: DigestLocks,
    /// Held for reading while images are brought in, for writing while unused ones are removed.
    removal: tokio::sync::RwLock<()>,
}

/// An image that is ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsLayers {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Unpacked layers, lowest first, as overlayfs lower directories.
    pub layers: Vec<PathBuf>,
    /// What the image asks of its container.
    pub config: ImageConfig,
}

/// Why an image is not ready.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It could not be fetched or verified.
    #[error("cannot fetch image {image}")]
    Fetch {
        /// The reference.
        image: String,
        /// What failed.
        #[source]
        source: FetchError,
    },
    /// A layer could not be unpacked.
    #[error("cannot unpack layer {layer}")]
    Unpack {
        /// Digest of the compressed layer.
        layer: Digest,
        /// What failed.
        #[source]
        source: UnpackError,
    },
    /// A layer's content is not what the image configuration claims.
    #[error("layer {layer} unpacks to {actual}, but the image configuration claims {expected}")]
    DiffId {
        /// Digest of the compressed layer.
        layer: Digest,
        /// The claim.
        expected: Digest,
        /// The truth.
        actual: Digest,
    },
    /// The image names a user or group that it does not have.
    #[error("the image runs as {user:?}, but has no such {what}")]
    UnknownUser {
        /// `USER` of the image.
        user: String,
        /// `user` or `group`.
        what: &'static str,
    },
    /// A file operation of the store failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Unpacking was cancelled, which happens when the process shuts down.
    #[error("unpacking layer {layer} was interrupted")]
    Interrupted {
        /// Digest of the compressed layer.
        layer: Digest,
    },
}

impl ImageStore {
    /// Opens the store and removes what an earlier run left half-done.
    pub fn open(config: StoreConfig) -> Result<Self, ImageError> {
        let (layers, unpacking) = (config.dir.join("layers"), config.dir.join("unpacking"));
        create_private_dir(&config.dir)?;
        remove_tree(&unpacking)?;
        create_private_dir(&layers)?;
        create_private_dir(&unpacking)?;
        let limits = UnpackLimits {
            bytes: config.limits.uncompressed_bytes,
            ..UnpackLimits::default()
        };
        let fetch = FetchConfig {
            cache_dir: config.dir.join("blobs"),
            layout_root: config.layout_root,
            ca_files: config.ca_files,
            limits: config.limits,
            timeout: config.timeout,
        };
        let fetcher = Fetcher::new(fetch).map_err(|source| ImageError::Fetch {
            image: "(opening the store)".to_owned(),
            source,
        })?;
        Ok(Self {
            fetcher,
            layers,
            unpacking,
            limits,
            busy: DigestLocks::default(),
            removal: tokio::sync::RwLock::default(),
        })
    }

    /// Makes a pinned image ready to be mounted. Needs no network when it was ready before.
    pub async fn ensure(&self, image: &ImageRef) -> Result<RootfsLayers, ImageError> {
        let _reading = self.removal.read().await;
        let failed = |source| ImageError::Fetch {
            image: image.to_string(),
            source,
        };
        let described = self.fetcher.describe(image).await.map_err(failed)?;
        let mut layers = Vec::with_capacity(described.layers.len());
        for layer in &described.layers {
            layers.push(self.ensure_layer(&described, layer).await?);
        }
        let rootfs = RootfsLayers {
            digest: described.digest,
            layers,
            config: described.config.clone(),
        };
        // The unpacked form replaces the compressed one. Until here `described` held on to its blobs.
        let blobs: Vec<Digest> = described.layers.iter().map(|layer| layer.digest).collect();
        drop(described);
        for blob in blobs {
            self.fetcher.forget(&blob).map_err(failed)?;
        }
        Ok(rootfs)
    }

    /// Removes every image and layer that none of `in_use` (manifest digests) needs. An image whose
    /// [`Self::ensure`] has returned but is not listed is removed too.
    pub async fn retain(&self, in_use: &BTreeSet<Digest>) -> Result<(), ImageError> {
        let _removing = self.removal.write().await;
        let failed = |source| ImageError::Fetch {
            image: "(removing unused images)".to_owned(),
            source,
        };
        let layers = self.fetcher.retain(in_use).map_err(failed)?;
        let needed: BTreeSet<String> = layers.iter().map(|layer| layer.diff_id.hex()).collect();
        let list = |source| ImageError::Io {
            operation: "list",
            path: self.layers.clone(),
            source,
        };
        for entry in fs::read_dir(&self.layers).map_err(list)? {
            let entry = entry.map_err(list)?;
            if entry
                .file_name()
                .to_str()
                .is_none_or(|name| !needed.contains(name))
            {
                // Renamed first, so that a half-removed layer is never taken for a whole one.
                let doomed = self.unpacking.join(entry.file_name());
                fs::rename(entry.path(), &doomed).map_err(|source| ImageError::Io {
                    operation: "remove",
                    path: entry.path(),
                    source,
                })?;
                remove_tree(&doomed)?;
            }
        }
        Ok(())
    }

    async fn ensure_layer(&self, image: &Image, layer: &Layer) -> Result<PathBuf, ImageError> {
        let _working = self.busy.lock(layer.diff_id).await;
        let ready = self.layers.join(layer.diff_id.hex()).join("fs");
        if ready.is_dir() {
            return Ok(ready);
        }
        let failed = |source| ImageError::Fetch {
            image: image.reference.to_string(),
            source,
        };
        let blob = self.fetcher.layer(image, layer).await.map_err(failed)?;
        let (layer, limits) = (layer.clone(), self.limits);
        let (unpacking, layers) = (self.unpacking.clone(), self.layers.clone());
        let digest = layer.digest;
        tokio::task::spawn_blocking(move || unpack_layer(&blob, &layer, &limits, &unpacking, &layers))
            .await
            .unwrap_or(Err(ImageError::Interrupted { layer: digest }))?;
        Ok(ready)
    }
}

impl RootfsLayers {
    /// Resolves `user[:group]`, names or numbers, in this image's own account files.
    pub fn user(&self, spec: &str) -> Result<UserIds, ImageError> {
        user::resolve(&self.layers, spec)
    }
}

/// Unpacks a layer beside its final place, verifies it, and moves it there.
fn unpack_layer(
    blob: &Path,
    layer: &Layer,
    limits: &UnpackLimits,
    unpacking: &Path,
    layers: &Path,
) -> Result<(), ImageError> {
    let name = layer.diff_id.hex();
    let (temporary, ready) = (unpacking.join(&name), layers.join(&name));
    remove_tree(&temporary)?;
    let root_path = temporary.join("fs");
    create_private_dir(&temporary)?;
    fs::create_dir(&root_path).map_err(|source| io_error("create", &root_path, source))?;
    // The container's root directory takes its mode from here unless the layer says otherwise.
    fs::set_permissions(&root_path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(|source| io_error("set the mode of", &root_path, source))?;
    let root = unpack::open_root(&root_path).map_err(|source| io_error("open", &root_path, source))?;

    let file = fs::File::open(blob).map_err(|source| io_error("open", blob, source))?;
    let mut stream = Hashing {
        inner: layer
            .compression
            .reader(BufReader::with_capacity(128 << 10, file)),
        hasher: Sha256::new(),
    };
    let unpacked = unpack(&mut stream, root.as_fd(), limits).map_err(|source| ImageError::Unpack {
        layer: layer.digest,
        source,
    });
    let actual = Digest::from_sha256(stream.hasher.finalize().into());
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
            remove_tree(&temporary)?;
            return Err(error);
        }
    };
    // A machine that loses power must not find a layer whose files are empty.
    rustix::fs::syncfs(&root).map_err(|errno| io_error("sync", &root_path, errno.into()))?;
    fs::rename(&temporary, &ready).map_err(|source| io_error("rename to", &ready, source))?;
    tracing::debug!(layer = %layer.digest, ?unpacked, "layer unpacked");
    Ok(())
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

fn create_private_dir(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| io_error("create", path, source))
}

/// Removes a directory tree; `std` does so without following links.
fn remove_tree(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, error)),
        _ => Ok(()),
    }
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> ImageError {
    ImageError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
