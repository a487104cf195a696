//! Images on a node: from a pinned reference to directories that overlayfs can stack.
//!
//! [`ImageStore::pull`] asks the registry for an image, fetches what is missing (`images/fetch` verifies it), unpacks
//! each layer once into `layers/<diffID>/fs`, completes the stack by what no layer can say alone (`implied`), and
//! returns the directories and the image's configuration; [`ImageStore::look`] does without the registry, for those to
//! whom it gave the image before (`records`). A layer appears under its name only when all of it is unpacked and its
//! uncompressed bytes have the digest that the image configuration claims; images share layers as far as their readers
//! have them anyway. [`ImageStore::collect`] removes what nobody needs. [`unpack()`] is the part that reads hostile
//! archives; it knows nothing of the rest.
//!
//! Non-goals: mounting (`agent/runtime`), deciding what is needed (`agent/plan`), tags: only pinned
//! references are accepted, because what runs must be what was scanned.

#![forbid(unsafe_code)]

mod archive;
mod collect;
mod implied;
mod layers;
mod pax;
mod records;
mod union;
mod unpack;
mod user;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use api::{Digest, ImageRef};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use images_fetch::{
    Cache, DigestLocks, FetchConfig, FetchError, Fetcher, Grant, Image, Layer, PARALLEL_DOWNLOADS,
};
use tokio::sync::Semaphore;

pub use collect::GcPolicy;
pub use images_fetch::{ImageConfig, Keyring, KeyringError, Limits, Progress};
pub use unpack::{UnpackError, UnpackLimits, Unpacked, unpack};
pub use user::UserIds;

use layers::{Layers, Leases};
use records::{KnownLayer, Record, Records};

/// Images that are brought in at a time; others wait.
const PARALLEL_PULLS: usize = 4;

/// Where images are kept and come from.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Directory of this store; made if absent, and used by this process only.
    pub dir: PathBuf,
    /// Root of the layouts that `oci-layout.local/NAME:TAG` names.
    pub layout_root: PathBuf,
    /// PEM files with authorities to trust for registries besides those of the machine.
    pub ca_files: Vec<PathBuf>,
    /// Directory with the configuration of registries and mirrors, see `images_fetch::Hosts`.
    pub hosts_dir: Option<PathBuf>,
    /// Sizes beyond which an image is refused.
    pub limits: Limits,
    /// Longest time to fetch one manifest or one layer.
    pub timeout: Duration,
}

/// The images of one node. Shared by reference; all methods may run concurrently.
#[derive(Debug)]
pub struct ImageStore {
    fetcher: Fetcher,
    layers: Layers,
    records: Records,
    /// Held, by diffID, by whoever brings in a layer; by digest of the manifest, by whoever completes an image.
    busy: DigestLocks,
    pulls: Semaphore,
}

/// An image that is ready to be mounted. While it lives, nothing of it is removed.
#[derive(Debug, Clone)]
pub struct RootfsLayers {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Unpacked layers, lowest first, as overlayfs lower directories: each once, and perhaps one of the image's own.
    pub layers: Vec<PathBuf>,
    /// What the image asks of its container.
    pub config: ImageConfig,
    /// Held, never read.
    _leases: Arc<Leases>,
}

/// An image that a registry gave.
#[derive(Debug)]
pub struct Pulled {
    /// The image.
    pub rootfs: RootfsLayers,
    /// Its bytes as they are transferred, whether they were or not.
    pub size: u64,
    /// Time that it took.
    pub took: Duration,
    /// The same with the time before, while others were brought in.
    pub with_waiting: Duration,
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownImage {
    /// References by which it came, each with the digest.
    pub names: Vec<String>,
    /// Bytes as it was transferred.
    pub size: u64,
}

/// What became of a collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that were removed.
    pub images: usize,
    /// Bytes of layers that were removed.
    pub bytes: u64,
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
        let known = config.dir.join("known");
        for dir in [&config.dir, &known] {
            create_private_dir(dir)?;
        }
        let limits = UnpackLimits {
            bytes: config.limits.uncompressed_bytes,
            ..UnpackLimits::default()
        };
        let fetch = FetchConfig {
            cache_dir: config.dir.join("blobs"),
            layout_root: config.layout_root,
            ca_files: config.ca_files,
            hosts_dir: config.hosts_dir,
            limits: config.limits,
            timeout: config.timeout,
            cache: Cache::Passing,
        };
        let fetcher = Fetcher::new(fetch).map_err(|source| ImageError::Fetch {
            image: "(opening the store)".to_owned(),
            source,
        })?;
        Ok(Self {
            fetcher,
            layers: Layers::open(&config.dir, limits)?,
            records: Records::open(&known)?,
            busy: DigestLocks::default(),
            pulls: Semaphore::new(PARALLEL_PULLS),
        })
    }

    /// The image, if all of it is here and a registry gave it to one of `keys` by this name. Needs no network.
    pub fn look(&self, image: &ImageRef, keys: &Keyring) -> Result<Option<RootfsLayers>, ImageError> {
        Ok(self.find(image, keys)?.map(|(rootfs, _)| rootfs))
    }

    /// Notes the use of an image. A disk that is full is why images are to be removed, so that it cannot be written down is
    /// no reason to stop.
    fn touch(&self, digest: &Digest, now: SystemTime) {
        if let Err(error) = self.records.touch(digest, now) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(%digest, error, "the use of an image is not written down");
        }
    }

    fn find(&self, image: &ImageRef, keys: &Keyring) -> Result<Option<(RootfsLayers, u64)>, ImageError> {
        let Some(record) = self.records.permitted(image, keys) else {
            return Ok(None);
        };
        // Before anything is looked at, so that nothing of it goes meanwhile.
        let leases = self.layers.lease(record.digest, diff_ids(&record));
        let found = self.fetcher.at_hand(image, keys).map_err(failed(image))?;
        let is_whole = |found: &Image| self.layers.has_all(&found.digest, &distinct(&found.layers));
        let Some(found) = found.filter(is_whole) else {
            return Ok(None);
        };
        self.touch(&record.digest, SystemTime::now());
        Ok(Some((self.rootfs(&found, leases), record.size)))
    }

    /// Asks the registry for the image with `keys`, and brings in what is missing of it. `progress` counts the
    /// compressed bytes of layers. Unless `always`, what came while others were waited for is used without asking.
    pub async fn pull(
        &self,
        image: &ImageRef,
        keys: &Keyring,
        always: bool,
        progress: &Progress,
    ) -> Result<Pulled, ImageError> {
        let waiting = Instant::now();
        // Never closed; without a turn the pull would go on all the same.
        let _turn = self.pulls.acquire().await;
        let begun = Instant::now();
        if !always && let Some((rootfs, size)) = self.find(image, keys)? {
            return Ok(Pulled {
                rootfs,
                size,
                took: begun.elapsed(),
                with_waiting: waiting.elapsed(),
            });
        }
        let confirmed = self.fetcher.confirm(image, keys).await.map_err(failed(image))?;
        let ids = confirmed.layers.iter().map(|layer| layer.diff_id).collect();
        let leases = self.layers.lease(confirmed.digest, ids);
        let brought = self.bring_all(&confirmed, progress).await;
        // The unpacked form replaces the compressed one. Until here `confirmed` held on to its blobs.
        let (rootfs, size) = (self.rootfs(&confirmed, leases), confirmed.size);
        let blobs: Vec<Digest> = confirmed.layers.iter().map(|layer| layer.digest).collect();
        let grant = confirmed.grant.clone().unwrap_or(Grant::Anyone);
        drop(confirmed);
        for blob in blobs {
            self.fetcher.forget(&blob).map_err(failed(image))?;
        }
        let by = (image.name(), grant);
        self.records
            .put((rootfs.digest, size), brought?, by, SystemTime::now())?;
        self.layers.settle_later();
        Ok(Pulled {
            rootfs,
            size,
            took: begun.elapsed(),
            with_waiting: waiting.elapsed(),
        })
    }

    /// The images of the node, the largest first.
    pub fn images(&self) -> Vec<KnownImage> {
        let names = |record: &Record| {
            let repositories = record.repositories.keys();
            repositories
                .map(|name| format!("{name}@{}", record.digest))
                .collect()
        };
        let known = |record: Record| KnownImage {
            names: names(&record),
            size: record.size,
        };
        let mut images: Vec<_> = self.records.all().into_iter().map(known).collect();
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.names.cmp(&b.names)));
        images
    }

    /// Removes images until `to_free` bytes of layers are gone: those that nobody has needed for longest, and none
    /// that are in use, listed in `needed` (manifest digests), or that were used within `min_age`. Layers that no
    /// image has go too, whatever is asked: an earlier run left them.
    pub async fn collect(
        &self,
        needed: &BTreeSet<Digest>,
        to_free: u64,
        min_age: Duration,
    ) -> Result<Collected, ImageError> {
        let now = SystemTime::now();
        let held = self.layers.held();
        let in_use: BTreeSet<Digest> = needed.union(&held).copied().collect();
        for digest in &in_use {
            self.touch(digest, now);
        }
        let doomed = collect::choose(&self.records.all(), &in_use, to_free, min_age, now);
        for digest in &doomed.images {
            self.records.remove(digest)?;
        }
        let records = self.records.all();
        let mut kept: BTreeSet<Digest> = records.iter().map(|record| record.digest).collect();
        kept.extend(&in_use);
        // What an image needs that runs but has no record is known from its manifest.
        let of_manifests = self.fetcher.retain(&kept).map_err(|source| ImageError::Fetch {
            image: "(removing unused images)".to_owned(),
            source,
        })?;
        let mut layers: BTreeSet<Digest> = of_manifests.iter().map(|layer| layer.diff_id).collect();
        layers.extend(records.iter().flat_map(diff_ids));
        self.layers.remove_others(&layers, &kept).await?;
        for digest in &doomed.images {
            tracing::info!(%digest, "removed an image that nobody uses");
        }
        Ok(Collected {
            images: doomed.images.len(),
            bytes: doomed.bytes,
        })
    }

    fn rootfs(&self, image: &Image, leases: Leases) -> RootfsLayers {
        RootfsLayers {
            digest: image.digest,
            layers: self.layers.stack(&image.digest, &distinct(&image.layers)),
            config: image.config.clone(),
            _leases: Arc::new(leases),
        }
    }

    async fn bring_all(&self, image: &Image, progress: &Progress) -> Result<Vec<KnownLayer>, ImageError> {
        // A list of futures rather than a mapped stream: the compiler cannot prove the latter `Send`.
        let layers: Vec<_> = image
            .layers
            .iter()
            .map(|layer| self.bring(image, layer, progress))
            .collect();
        let brought: Vec<KnownLayer> = stream::iter(layers)
            .buffered(PARALLEL_DOWNLOADS)
            .try_collect()
            .await?;
        let _working = self.busy.lock(image.digest).await;
        self.layers
            .complete(image.digest, distinct(&image.layers))
            .await?;
        Ok(brought)
    }

    async fn bring(
        &self,
        image: &Image,
        layer: &Layer,
        progress: &Progress,
    ) -> Result<KnownLayer, ImageError> {
        let _working = self.busy.lock(layer.diff_id).await;
        let here = self.layers.has(&layer.diff_id);
        let shared = self.records.may_share(&layer.diff_id, &image.reference.name());
        if let Some(known) = shared.filter(|_known| here) {
            return Ok(known);
        }
        progress.expect(layer.size);
        let blob = self.fetcher.layer(image, layer, Some(progress)).await;
        let blob = blob.map_err(failed(&image.reference))?;
        let bytes = match here {
            // Somebody else's until now. That this repository has all of it was shown by sending it.
            true => self.layers.bytes(&layer.diff_id)?,
            false => self.layers.unpack(blob, layer.clone()).await?,
        };
        let known = KnownLayer {
            diff_id: layer.diff_id,
            bytes,
        };
        self.records.sent(known, image.reference.name());
        Ok(known)
    }
}

impl PartialEq for RootfsLayers {
    fn eq(&self, other: &Self) -> bool {
        (self.digest, &self.layers, &self.config) == (other.digest, &other.layers, &other.config)
    }
}

impl RootfsLayers {
    /// Resolves `user[:group]`, names or numbers, in this image's own account files.
    pub fn user(&self, spec: &str) -> Result<UserIds, ImageError> {
        user::resolve(&self.layers, spec)
    }

    /// The user of that number, with the groups that its account has in this image, if there is one.
    pub fn user_of_number(&self, uid: u32) -> Result<UserIds, ImageError> {
        user::of_number(&self.layers, uid)
    }
}

/// What is stacked of an image, lowest first: of a layer that it lists repeatedly (BuildKit's empty one) the topmost. That has
/// all that a lower copy has, marks of what was removed among it, so the union is the same; one directory twice is what
/// overlayfs refuses.
fn distinct(layers: &[Layer]) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    let mut stacked: Vec<Digest> = layers
        .iter()
        .rev()
        .map(|layer| layer.diff_id)
        .filter(|diff_id| seen.insert(*diff_id))
        .collect();
    stacked.reverse();
    stacked
}

fn diff_ids(record: &Record) -> Vec<Digest> {
    record.layers.iter().map(|layer| layer.diff_id).collect()
}

fn failed(image: &ImageRef) -> impl FnOnce(FetchError) -> ImageError + use<> {
    let image = image.to_string();
    move |source| ImageError::Fetch { image, source }
}

fn create_private_dir(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| io_error("create", path, source))
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> ImageError {
    ImageError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
