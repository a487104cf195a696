//! Brings an image onto the machine and proves that it is the image that was asked for.
//!
//! Sources are registries ([`registry`]) and the OCI layout directories of this machine (`layout`). The
//! steps are separate because their users differ: [`Fetcher::resolve`] turns a tag into the digest of
//! this machine's manifest; [`Fetcher::describe`] fetches manifest and configuration;
//! [`Fetcher::layer`] fetches one compressed layer; [`Fetcher::fetch`] does all of it and also checks
//! every uncompressed layer against the configuration, which is what a scanner must demand. Every byte
//! is counted against [`Limits`] and hashed before anything else reads it. No privileges are needed.
//!
//! Who may have an image is the registry's to say: [`Fetcher::confirm`] asks it with the credentials of a
//! [`Keyring`], whatever is here already, and the answer says by which [`Grant`].
//!
//! Non-goals: signatures, unpacking (`agent/images`).

#![forbid(unsafe_code)]

mod auth;
mod blobs;
mod credentials;
mod error;
mod hosts;
mod layer;
mod layout;
mod locks;
mod manifest;
mod progress;
mod registry;
mod transport;

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use api::{Digest, ImageRef};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

pub use credentials::{Grant, Keyring, KeyringError};
pub use error::FetchError;
pub use hosts::{Hosts, HostsError};
pub use layer::Compression;
pub use locks::DigestLocks;
pub use manifest::ImageConfig;
pub use progress::Progress;

use blobs::{BlobCache, Lease};
use manifest::{Config, Document, Manifest};

/// How deep indexes may nest: a layout's index.json, an image index, and one to spare.
const MAX_INDEX_DEPTH: usize = 3;
/// Layers of one image that are fetched at a time.
pub const PARALLEL_DOWNLOADS: usize = 3;
/// Images and repositories of which it is remembered who may have them; past it all are asked again.
const MAX_PROOFS: usize = 4096;

/// Where images come from and where they are kept.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// Directory for verified blobs; made if absent, and used by this process only.
    pub cache_dir: PathBuf,
    /// Root of the layouts that `oci-layout.local/NAME:TAG` names.
    pub layout_root: PathBuf,
    /// PEM files with authorities to trust for registries besides those of the machine.
    pub ca_files: Vec<PathBuf>,
    /// Directory with the configuration of registries and mirrors, see [`Hosts`].
    pub hosts_dir: Option<PathBuf>,
    /// Sizes beyond which an image is refused.
    pub limits: Limits,
    /// Longest time for any one call.
    pub timeout: Duration,
    /// What the cache is for.
    pub cache: Cache,
}

/// What a cache of blobs is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Blobs stay, so they are on disk before they get their name. One that a registry sent without credentials counts as
    /// here for all repositories, one that came by a secret only for those that have sent all of it: a manifest can list
    /// what its author does not have, and a registry can say anything.
    Lasting,
    /// Layers go once they are unpacked. A blob counts as here only for the repository that sent all of it: to
    /// send it is what shows that a repository has it. Nothing waits for the disk.
    Passing,
}

/// Sizes beyond which an image is refused. Those of layers are for whoever runs a gate or a node to choose, in its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a manifest, index or configuration.
    #[serde(skip)]
    pub document_bytes: u64,
    /// Bytes of all compressed layers together.
    pub compressed_bytes: u64,
    /// Bytes of all uncompressed layers together.
    pub uncompressed_bytes: u64,
    /// Number of layers.
    #[serde(skip)]
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document_bytes: 4 << 20,
            compressed_bytes: 4 << 30,
            uncompressed_bytes: 16 << 30,
            layers: 127,
        }
    }
}

/// Fetches images into one cache directory. Shared by reference; all methods may run concurrently.
#[derive(Debug)]
pub struct Fetcher {
    config: FetchConfig,
    cache: BlobCache,
    registry: registry::Registry,
    layouts: layout::Layouts,
    /// Who may have what, as registries said since this process began: of manifests and, in a passing cache, of
    /// blobs, by repository.
    proofs: Mutex<HashMap<(String, Digest), BTreeSet<Grant>>>,
}

/// An image whose manifest and configuration are verified and on disk. The layers need not be.
#[derive(Debug)]
pub struct Image {
    /// The reference, pinned to [`Self::digest`].
    pub reference: ImageRef,
    /// Digest of the manifest for this machine.
    pub digest: Digest,
    /// What the image asks of its container.
    pub config: ImageConfig,
    /// Lowest layer first.
    pub layers: Vec<Layer>,
    /// Bytes of manifest, configuration and compressed layers.
    pub size: u64,
    /// Who may have it, if the registry was asked.
    pub grant: Option<Grant>,
    keys: Keyring,
    manifest: Vec<u8>,
    config_digest: Digest,
    /// Keep the blobs from being trimmed; held, never read.
    leases: Vec<Lease>,
}

/// When a registry is asked for a manifest although it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Always,
    /// Unless it gave the manifest to the same credentials since this process began.
    IfUnproved,
    /// Never.
    IfAbsent,
}

/// A blob that is wanted.
struct Blob {
    what: String,
    digest: Digest,
    size: u64,
    limit: u64,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Number of compressed bytes.
    pub size: u64,
    /// Digest of the uncompressed tar stream, as the configuration claims it.
    pub diff_id: Digest,
    /// How the tar stream is packed.
    pub compression: Compression,
}

/// An image of which every byte was verified: manifest, configuration, each compressed layer, and each
/// uncompressed layer against the configuration. Made only by [`Fetcher::fetch`]; while it lives, its
/// blobs stay in the cache.
#[derive(Debug)]
pub struct VerifiedImage {
    image: Image,
    blobs: Vec<(Digest, PathBuf)>,
}

impl Fetcher {
    /// Opens the cache directory and reads the configuration of registries and the machine's trust store.
    pub fn new(config: FetchConfig) -> Result<Self, FetchError> {
        let hosts = match &config.hosts_dir {
            Some(dir) => Hosts::read(dir).map_err(|source| FetchError::Hosts { source })?,
            None => Hosts::default(),
        };
        Ok(Self {
            cache: BlobCache::open(&config.cache_dir, config.cache == Cache::Lasting)?,
            registry: registry::Registry::new(&config.ca_files, hosts)?,
            layouts: layout::Layouts {
                root: config.layout_root.clone(),
            },
            proofs: Mutex::default(),
            config,
        })
    }

    /// Pins a reference to the digest of the manifest for this machine. A digest in the reference is
    /// verified; if it is an index, the result is the digest of the manifest that it lists. What is here is used
    /// only if the registry gave it to one of `keys` since this process began.
    pub async fn resolve(&self, image: &ImageRef, keys: &Keyring) -> Result<ImageRef, FetchError> {
        self.within_deadline(image, self.resolve_manifest(image, keys))
            .await
    }

    /// Manifest and configuration of a pinned image, from the cache if they are there: whether `keys` may have it
    /// is not asked.
    pub async fn describe(&self, image: &ImageRef, keys: &Keyring) -> Result<Image, FetchError> {
        self.within_deadline(image, self.describe_pinned(image, keys, Ask::IfAbsent))
            .await
    }

    /// The same, and the registry is asked with `keys` whatever is here: that it answers is the right to have it.
    pub async fn confirm(&self, image: &ImageRef, keys: &Keyring) -> Result<Image, FetchError> {
        self.within_deadline(image, self.describe_pinned(image, keys, Ask::Always))
            .await
    }

    /// The same from the cache alone; `None` if something of it is not here. Whether `keys` may have it is not asked.
    pub fn at_hand(&self, image: &ImageRef, keys: &Keyring) -> Result<Option<Image>, FetchError> {
        let limit = self.config.limits.document_bytes;
        let Some(digest) = image.digest else {
            return Err(FetchError::Unpinned {
                image: image.to_string(),
            });
        };
        let mut leases = vec![self.cache.lease(digest)];
        let Some(bytes) = self.cache.read(&digest, limit)? else {
            return Ok(None);
        };
        let manifest = self.image_manifest(&digest, &bytes)?;
        leases.push(self.cache.lease(manifest.config.digest));
        let Some(config) = self.cache.read(&manifest.config.digest, limit)? else {
            return Ok(None);
        };
        let mut image = Image::new(image.pinned(digest), digest, bytes, &manifest, &config)?;
        image.keys = keys.clone();
        image.leases = leases;
        Ok(Some(image))
    }

    /// The compressed bytes of one layer of `image`, verified; returns the file in the cache.
    pub async fn layer(
        &self,
        image: &Image,
        layer: &Layer,
        progress: Option<&Progress>,
    ) -> Result<PathBuf, FetchError> {
        self.within_deadline(&image.reference, self.layer_blob(image, layer, progress))
            .await
    }

    /// Fetches and verifies everything of a pinned image.
    pub async fn fetch(&self, image: &ImageRef, keys: &Keyring) -> Result<VerifiedImage, FetchError> {
        self.within_deadline(image, self.fetch_pinned(image, keys)).await
    }

    /// Removes a layer's compressed bytes, once they are unpacked. In use elsewhere, they stay.
    pub fn forget(&self, layer: &Digest) -> Result<(), FetchError> {
        self.cache.remove(layer)
    }

    /// Removes what was not used for longest until at most `max_bytes` of blobs remain.
    pub fn trim(&self, max_bytes: u64) -> Result<(), FetchError> {
        self.cache.trim(max_bytes)
    }

    /// Drops what is kept of downloads that broke off.
    pub fn drop_partials(&self) {
        self.cache.drop_partials();
    }

    /// Removes all blobs but the manifests and configurations of `images`, and returns the layers that
    /// those images have. Images of which nothing is here are passed over.
    pub fn retain(&self, images: &BTreeSet<Digest>) -> Result<Vec<Layer>, FetchError> {
        let limit = self.config.limits.document_bytes;
        let mut kept = Vec::new();
        let mut layers = Vec::new();
        for digest in images {
            kept.push(self.cache.lease(*digest));
            let Some(bytes) = self.cache.read(digest, limit)? else {
                continue;
            };
            let manifest = self.image_manifest(digest, &bytes)?;
            kept.push(self.cache.lease(manifest.config.digest));
            let Some(config) = self.cache.read(&manifest.config.digest, limit)? else {
                continue;
            };
            let what = format!("configuration {}", manifest.config.digest);
            layers.extend(pair_layers(digest, &manifest, &Config::parse(&what, &config)?)?);
        }
        self.cache.trim(0)?;
        Ok(layers)
    }

    async fn within_deadline<T>(
        &self,
        image: &ImageRef,
        work: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        let timeout = self.config.timeout;
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
            Err(FetchError::Timeout {
                image: image.to_string(),
                seconds: timeout.as_secs(),
            })
        })
    }

    async fn resolve_manifest(&self, image: &ImageRef, keys: &Keyring) -> Result<ImageRef, FetchError> {
        let mut digest = match (&image.digest, &image.tag) {
            (Some(digest), _) => *digest,
            (None, Some(tag)) => self.resolve_tag(image, tag, keys).await?,
            (None, None) => {
                return Err(FetchError::Unpinned {
                    image: image.to_string(),
                });
            }
        };
        for _ in 0..MAX_INDEX_DEPTH {
            let (bytes, _) = self.manifest_bytes(image, &digest, keys, Ask::IfUnproved).await?;
            match Document::parse(&format!("manifest {digest}"), &bytes)? {
                Document::Manifest(_) => return Ok(image.pinned(digest)),
                Document::Index(entries) => {
                    digest = manifest::for_this_machine(&image.to_string(), &entries)?.digest;
                }
            }
        }
        Err(FetchError::Document {
            what: format!("index of {image}"),
            problem: format!("indexes nest deeper than {MAX_INDEX_DEPTH}"),
        })
    }

    async fn resolve_tag(&self, image: &ImageRef, tag: &str, keys: &Keyring) -> Result<Digest, FetchError> {
        let limit = self.config.limits.document_bytes;
        if image.is_layout() {
            return self.layouts.tag(image, tag, limit);
        }
        if self.has_sent(image, None)
            && let Some((digest, grant)) = self.registry.head(image, tag, keys).await
            && self.has_sent(image, Some(&digest))
        {
            self.prove(image, digest, grant);
            return Ok(digest);
        }
        let (bytes, grant) = self.registry.tagged(image, tag, keys, limit).await?;
        let digest = Digest::of(&bytes);
        self.keep(&format!("manifest {digest}"), digest, &bytes)?;
        self.prove(image, digest, grant);
        Ok(digest)
    }

    async fn describe_pinned(&self, image: &ImageRef, keys: &Keyring, ask: Ask) -> Result<Image, FetchError> {
        let Some(digest) = image.digest else {
            return Err(FetchError::Unpinned {
                image: image.to_string(),
            });
        };
        let limits = &self.config.limits;
        let leases = vec![self.cache.lease(digest)];
        let (bytes, grant) = self.manifest_bytes(image, &digest, keys, ask).await?;
        let manifest = self.image_manifest(&digest, &bytes)?;
        let config_digest = manifest.config.digest;
        let lease = self.cache.lease(config_digest);
        let blob = Blob {
            what: format!("configuration {config_digest}"),
            digest: config_digest,
            size: manifest.config.size,
            limit: limits.document_bytes,
        };
        let path = self.blob(image, keys, blob, None).await?;
        let config = blobs::read_bounded(&path, limits.document_bytes)?;
        let mut described = Image::new(image.pinned(digest), digest, bytes, &manifest, &config)?;
        described.grant = grant;
        described.keys = keys.clone();
        described.leases.extend(leases);
        described.leases.push(lease);
        described.leases.extend(
            described
                .layers
                .iter()
                .map(|layer| self.cache.lease(layer.digest)),
        );
        Ok(described)
    }

    /// Parses the manifest of one image and holds it against the limits.
    fn image_manifest(&self, digest: &Digest, bytes: &[u8]) -> Result<Manifest, FetchError> {
        let limits = &self.config.limits;
        let what = format!("manifest {digest}");
        let Document::Manifest(manifest) = Document::parse(&what, bytes)? else {
            return Err(FetchError::Document {
                what,
                problem: "it is an index; resolve it first".to_owned(),
            });
        };
        if manifest.layers.len() > limits.layers {
            let layers = manifest.layers.len();
            return Err(FetchError::TooManyLayers {
                digest: *digest,
                layers,
                limit: limits.layers,
            });
        }
        let total = manifest
            .layers
            .iter()
            .fold(0u64, |sum, (layer, _)| sum.saturating_add(layer.size));
        if total > limits.compressed_bytes {
            return Err(FetchError::TooLarge {
                what: format!("image {digest}"),
                limit: limits.compressed_bytes,
            });
        }
        Ok(manifest)
    }

    async fn fetch_pinned(&self, image: &ImageRef, keys: &Keyring) -> Result<VerifiedImage, FetchError> {
        let image = self.describe_pinned(image, keys, Ask::IfAbsent).await?;
        // A list of futures rather than a mapped stream: the compiler cannot prove the latter `Send`.
        let downloads: Vec<_> = image
            .layers
            .iter()
            .map(|layer| self.layer_blob(&image, layer, None))
            .collect();
        let layers: Vec<PathBuf> = stream::iter(downloads)
            .buffered(PARALLEL_DOWNLOADS)
            .try_collect()
            .await?;
        self.verify_diff_ids(&image, &layers).await?;

        let mut blobs = vec![(image.config_digest, self.cache.path(&image.config_digest))];
        blobs.extend(image.layers.iter().map(|layer| layer.digest).zip(layers));
        Ok(VerifiedImage { image, blobs })
    }

    async fn verify_diff_ids(&self, image: &Image, blobs: &[PathBuf]) -> Result<(), FetchError> {
        let work: Vec<_> = image.layers.iter().cloned().zip(blobs.iter().cloned()).collect();
        let limit = self.config.limits.uncompressed_bytes;
        let verify = move || {
            let mut remaining = limit;
            for (layer, blob) in work {
                let (actual, bytes) = layer::diff_id(&blob, layer.digest, layer.compression, remaining)?;
                remaining -= bytes;
                if actual != layer.diff_id {
                    let what = format!("layer {}, uncompressed,", layer.digest);
                    return Err(FetchError::DigestMismatch {
                        what,
                        expected: layer.diff_id,
                        actual,
                    });
                }
            }
            Ok(())
        };
        tokio::task::spawn_blocking(verify).await.unwrap_or_else(|_| {
            Err(FetchError::Interrupted {
                what: image.reference.to_string(),
            })
        })
    }

    /// A verified manifest or index, and who may have it if the registry was asked.
    async fn manifest_bytes(
        &self,
        image: &ImageRef,
        digest: &Digest,
        keys: &Keyring,
        ask: Ask,
    ) -> Result<(Vec<u8>, Option<Grant>), FetchError> {
        let limit = self.config.limits.document_bytes;
        let is_enough = match ask {
            Ask::Always => false,
            Ask::IfUnproved => image.is_layout() || self.is_proved(image, digest, keys),
            Ask::IfAbsent => true,
        };
        if is_enough && let Some(bytes) = self.cache.read(digest, limit)? {
            return Ok((bytes, None));
        }
        if image.is_layout() {
            let bytes = self.layouts.manifest(image, digest, limit)?;
            self.keep(&format!("manifest {digest}"), *digest, &bytes)?;
            return Ok((bytes, Some(Grant::Anyone)));
        }
        // A digest that is named proves nothing; but what was sent once is still there for who may have it.
        if self.has_sent(image, Some(digest))
            && let Some(bytes) = self.cache.read(digest, limit)?
            && let Some((said, grant)) = self.registry.head(image, &digest.to_string(), keys).await
            && said == *digest
        {
            self.prove(image, *digest, grant.clone());
            return Ok((bytes, Some(grant)));
        }
        let (bytes, grant) = self.registry.manifest(image, digest, keys, limit).await?;
        self.keep(&format!("manifest {digest}"), *digest, &bytes)?;
        self.prove(image, *digest, grant.clone());
        Ok((bytes, Some(grant)))
    }

    fn prove(&self, image: &ImageRef, digest: Digest, grant: Grant) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        if proofs.len() >= MAX_PROOFS {
            proofs.clear();
        }
        proofs.entry((image.name(), digest)).or_default().insert(grant);
    }

    /// Whether the repository has sent what has this digest, or anything, since this process began.
    fn has_sent(&self, image: &ImageRef, digest: Option<&Digest>) -> bool {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        match digest {
            Some(digest) => proofs.contains_key(&(image.name(), *digest)),
            None => {
                let name = image.name();
                proofs.keys().any(|(sender, _)| *sender == name)
            }
        }
    }

    fn is_proved(&self, image: &ImageRef, digest: &Digest, keys: &Keyring) -> bool {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        let grants = proofs.get(&(image.name(), *digest));
        grants.is_some_and(|grants| keys.satisfy(image, grants))
    }

    async fn layer_blob(
        &self,
        image: &Image,
        layer: &Layer,
        progress: Option<&Progress>,
    ) -> Result<PathBuf, FetchError> {
        let blob = Blob {
            what: format!("layer {}", layer.digest),
            digest: layer.digest,
            size: layer.size,
            limit: self.config.limits.compressed_bytes,
        };
        self.blob(&image.reference, &image.keys, blob, progress).await
    }

    /// A verified blob in the cache.
    async fn blob(
        &self,
        image: &ImageRef,
        keys: &Keyring,
        blob: Blob,
        progress: Option<&Progress>,
    ) -> Result<PathBuf, FetchError> {
        let Blob {
            what,
            digest,
            size,
            limit,
        } = blob;
        let from_here = || match self.config.cache {
            _ if image.is_layout() => true,
            Cache::Lasting => self.cache.is_of(&digest, &image.name()),
            Cache::Passing => {
                let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
                proofs.contains_key(&(image.name(), digest))
            }
        };
        if self.cache.contains(&digest, size) && from_here() {
            return Ok(self.cache.path(&digest));
        }
        let mut incoming = self
            .cache
            .incoming(what.clone(), &image.name(), digest, Some(size), limit)?;
        if let Some(progress) = progress {
            incoming.tell(progress);
        }
        if !image.is_layout() {
            let grant = self.registry.blob(image, &digest, keys, &mut incoming).await?;
            let path = incoming.finish()?;
            match (self.config.cache, grant) {
                // Whoever has the manifest may have what it lists.
                (Cache::Passing, _) => self.prove(image, digest, Grant::Anyone),
                (Cache::Lasting, Grant::Anyone) => self.cache.note(&digest, blobs::ANY_REPOSITORY)?,
                (Cache::Lasting, Grant::Secret(_)) => self.cache.note(&digest, &image.name())?,
            }
            return Ok(path);
        }
        let (layouts, image) = (
            layout::Layouts {
                root: self.layouts.root.clone(),
            },
            image.clone(),
        );
        let copy = move || {
            layouts.blob(&image, &digest, &mut incoming)?;
            incoming.finish()
        };
        tokio::task::spawn_blocking(copy)
            .await
            .unwrap_or(Err(FetchError::Interrupted { what }))
    }

    fn keep(&self, what: &str, digest: Digest, bytes: &[u8]) -> Result<(), FetchError> {
        let size = bytes.len() as u64;
        let mut incoming = self.cache.incoming(
            what.to_owned(),
            "",
            digest,
            Some(size),
            self.config.limits.document_bytes,
        )?;
        incoming.write(bytes)?;
        incoming.finish().map(|_| ())
    }
}

impl VerifiedImage {
    /// Digest, configuration and layers.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Writes an OCI layout with exactly this image into `dir`, which must be empty or absent. Blobs are
    /// hard links into the cache where the file system allows it: they must be treated as read-only.
    pub fn write_layout(&self, dir: &Path) -> Result<(), FetchError> {
        let manifest = (&self.image.digest, self.image.manifest.as_slice());
        layout::write(dir, manifest, self.image.media_type(), &self.blobs)
    }
}

impl Image {
    fn new(
        reference: ImageRef,
        digest: Digest,
        manifest_bytes: Vec<u8>,
        manifest: &Manifest,
        config: &[u8],
    ) -> Result<Self, FetchError> {
        let config_digest = manifest.config.digest;
        let config = Config::parse(&format!("configuration {config_digest}"), config)?;
        Ok(Self {
            reference,
            digest,
            layers: pair_layers(&digest, manifest, &config)?,
            size: manifest.size(manifest_bytes.len()),
            grant: None,
            keys: Keyring::anonymous(),
            config: config.image,
            manifest: manifest_bytes,
            config_digest,
            leases: Vec::new(),
        })
    }

    /// Media type of the manifest: what it says itself, or OCI's.
    fn media_type(&self) -> &'static str {
        const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
        let document: Option<serde_json::Value> = serde_json::from_slice(&self.manifest).ok();
        match document
            .as_ref()
            .and_then(|document| document["mediaType"].as_str())
        {
            Some(DOCKER) => DOCKER,
            _ => "application/vnd.oci.image.manifest.v1+json",
        }
    }
}

/// Gives each layer of the manifest the diffID that the configuration lists at the same place.
fn pair_layers(digest: &Digest, manifest: &Manifest, config: &Config) -> Result<Vec<Layer>, FetchError> {
    if manifest.layers.len() != config.diff_ids.len() {
        return Err(FetchError::Document {
            what: format!("image {digest}"),
            problem: format!(
                "the manifest lists {} layers and the configuration {}",
                manifest.layers.len(),
                config.diff_ids.len()
            ),
        });
    }
    let pair = |((layer, compression), diff_id): (&(manifest::Descriptor, Compression), &Digest)| Layer {
        digest: layer.digest,
        size: layer.size,
        diff_id: *diff_id,
        compression: *compression,
    };
    Ok(manifest.layers.iter().zip(&config.diff_ids).map(pair).collect())
}
