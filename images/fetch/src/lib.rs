//! Brings an image onto the machine and proves that it is the image that was asked for.
//!
//! Sources are registries ([`registry`]) and the OCI layout directories of this machine (`layout`). The
//! steps are separate because their users differ: [`Fetcher::resolve`] turns a tag into the digest of
//! this machine's manifest; [`Fetcher::describe`] fetches manifest and configuration;
//! [`Fetcher::layer`] fetches one compressed layer; [`Fetcher::fetch`] does all of it and also checks
//! every uncompressed layer against the configuration, which is what a scanner must demand. Every byte
//! is counted against [`Limits`] and hashed before anything else reads it. No privileges are needed.
//!
//! Non-goals: credentials (anonymous pulls only), signatures, unpacking (`agent/images`).

#![forbid(unsafe_code)]

mod blobs;
mod error;
mod layer;
mod layout;
mod locks;
mod manifest;
mod registry;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use api::{Digest, ImageRef};
use futures::{StreamExt, TryStreamExt, stream};

pub use error::FetchError;
pub use layer::Compression;
pub use locks::DigestLocks;
pub use manifest::ImageConfig;

use blobs::{BlobCache, Lease};
use manifest::{Config, Document, Manifest};

/// How deep indexes may nest: a layout's index.json, an image index, and one to spare.
const MAX_INDEX_DEPTH: usize = 3;
const PARALLEL_DOWNLOADS: usize = 3;

/// Where images come from and where they are kept.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// Directory for verified blobs; made if absent, and used by this process only.
    pub cache_dir: PathBuf,
    /// Root of the layouts that `oci-layout.local/NAME:TAG` names.
    pub layout_root: PathBuf,
    /// PEM files with authorities to trust for registries besides those of the machine.
    pub ca_files: Vec<PathBuf>,
    /// Sizes beyond which an image is refused.
    pub limits: Limits,
    /// Longest time for any one call.
    pub timeout: Duration,
}

/// Sizes beyond which an image is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a manifest, index or configuration.
    pub document_bytes: u64,
    /// Bytes of all compressed layers together.
    pub compressed_bytes: u64,
    /// Bytes of all uncompressed layers together.
    pub uncompressed_bytes: u64,
    /// Number of layers.
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
    manifest: Vec<u8>,
    config_digest: Digest,
    /// Keep the blobs from being trimmed; held, never read.
    leases: Vec<Lease>,
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
    /// Opens the cache directory and reads the machine's trust store.
    pub fn new(config: FetchConfig) -> Result<Self, FetchError> {
        Ok(Self {
            cache: BlobCache::open(&config.cache_dir)?,
            registry: registry::Registry::new(&config.ca_files)?,
            layouts: layout::Layouts {
                root: config.layout_root.clone(),
            },
            config,
        })
    }

    /// Pins a reference to the digest of the manifest for this machine. A digest in the reference is
    /// verified; if it is an index, the result is the digest of the manifest that it lists.
    pub async fn resolve(&self, image: &ImageRef) -> Result<ImageRef, FetchError> {
        self.within_deadline(image, self.resolve_manifest(image)).await
    }

    /// Manifest and configuration of a pinned image, from the cache if they are there.
    pub async fn describe(&self, image: &ImageRef) -> Result<Image, FetchError> {
        self.within_deadline(image, self.describe_pinned(image)).await
    }

    /// The compressed bytes of one layer of `image`, verified; returns the file in the cache.
    pub async fn layer(&self, image: &Image, layer: &Layer) -> Result<PathBuf, FetchError> {
        self.within_deadline(&image.reference, self.layer_blob(&image.reference, layer))
            .await
    }

    /// Fetches and verifies everything of a pinned image.
    pub async fn fetch(&self, image: &ImageRef) -> Result<VerifiedImage, FetchError> {
        self.within_deadline(image, self.fetch_pinned(image)).await
    }

    /// Removes a layer's compressed bytes, once they are unpacked. In use elsewhere, they stay.
    pub fn forget(&self, layer: &Digest) -> Result<(), FetchError> {
        self.cache.remove(layer)
    }

    /// Removes what was not used for longest until at most `max_bytes` of blobs remain.
    pub fn trim(&self, max_bytes: u64) -> Result<(), FetchError> {
        self.cache.trim(max_bytes)
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

    async fn resolve_manifest(&self, image: &ImageRef) -> Result<ImageRef, FetchError> {
        let mut digest = match (&image.digest, &image.tag) {
            (Some(digest), _) => *digest,
            (None, Some(tag)) => self.resolve_tag(image, tag).await?,
            (None, None) => {
                return Err(FetchError::Unpinned {
                    image: image.to_string(),
                });
            }
        };
        for _ in 0..MAX_INDEX_DEPTH {
            let bytes = self.manifest_bytes(image, &digest).await?;
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

    async fn resolve_tag(&self, image: &ImageRef, tag: &str) -> Result<Digest, FetchError> {
        let limit = self.config.limits.document_bytes;
        if image.is_layout() {
            return self.layouts.tag(image, tag, limit);
        }
        let bytes = self.registry.manifest(image, tag, limit).await?;
        let digest = Digest::of(&bytes);
        self.keep(&format!("manifest {digest}"), digest, &bytes)?;
        Ok(digest)
    }

    async fn describe_pinned(&self, image: &ImageRef) -> Result<Image, FetchError> {
        let Some(digest) = image.digest else {
            return Err(FetchError::Unpinned {
                image: image.to_string(),
            });
        };
        let limits = &self.config.limits;
        let leases = vec![self.cache.lease(digest)];
        let bytes = self.manifest_bytes(image, &digest).await?;
        let manifest = self.image_manifest(&digest, &bytes)?;
        let config_digest = manifest.config.digest;
        let lease = self.cache.lease(config_digest);
        let what = format!("configuration {config_digest}");
        let path = self
            .blob(
                image,
                what,
                config_digest,
                manifest.config.size,
                limits.document_bytes,
            )
            .await?;
        let config = blobs::read_bounded(&path, limits.document_bytes)?;
        let mut described = Image::new(image.pinned(digest), digest, bytes, &manifest, &config)?;
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

    async fn fetch_pinned(&self, image: &ImageRef) -> Result<VerifiedImage, FetchError> {
        let image = self.describe_pinned(image).await?;
        // A list of futures rather than a mapped stream: the compiler cannot prove the latter `Send`.
        let downloads: Vec<_> = image
            .layers
            .iter()
            .map(|layer| self.layer_blob(&image.reference, layer))
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

    /// A verified manifest or index.
    async fn manifest_bytes(&self, image: &ImageRef, digest: &Digest) -> Result<Vec<u8>, FetchError> {
        let limit = self.config.limits.document_bytes;
        if let Some(bytes) = self.cache.read(digest, limit)? {
            return Ok(bytes);
        }
        let bytes = match image.is_layout() {
            true => self.layouts.manifest(image, digest, limit)?,
            false => self.registry.manifest(image, &digest.to_string(), limit).await?,
        };
        self.keep(&format!("manifest {digest}"), *digest, &bytes)?;
        Ok(bytes)
    }

    async fn layer_blob(&self, image: &ImageRef, layer: &Layer) -> Result<PathBuf, FetchError> {
        let what = format!("layer {}", layer.digest);
        self.blob(
            image,
            what,
            layer.digest,
            layer.size,
            self.config.limits.compressed_bytes,
        )
        .await
    }

    /// A verified blob in the cache.
    async fn blob(
        &self,
        image: &ImageRef,
        what: String,
        digest: Digest,
        size: u64,
        limit: u64,
    ) -> Result<PathBuf, FetchError> {
        if self.cache.contains(&digest, size) {
            return Ok(self.cache.path(&digest));
        }
        let mut incoming = self.cache.incoming(what.clone(), digest, Some(size), limit)?;
        if !image.is_layout() {
            self.registry.blob(image, &digest, &mut incoming).await?;
            return incoming.finish();
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
