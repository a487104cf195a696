//! Builds OCI images in memory, well-formed or deliberately broken, and writes them as layouts.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};
use api::Digest;
use serde_json::{Value, json};

/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of Docker's manifest list, which is older and says the same.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Plain tar.
    Tar,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// One layer: a tar archive that is being written.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
    packing: Packing,
}

/// An image that is being put together.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    layers: Vec<Blob>,
    diff_ids: Vec<Digest>,
    container: Value,
    architecture: &'static str,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// Layers, lowest first.
    pub layers: Vec<Blob>,
}

/// Bytes with media type and digest.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Media type.
    pub media_type: String,
    /// Digest under which the blob is stored; that of `bytes` unless a test forged it.
    pub digest: Digest,
    /// Content.
    pub bytes: Vec<u8>,
}

impl Layer {
    /// An empty layer.
    pub fn new(packing: Packing) -> Self {
        Self {
            tar: tar::Builder::new(Vec::new()),
            packing,
        }
    }

    /// Adds a directory of root's.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, path, mode, "", b"")
    }

    /// Adds a file of root's.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, path, mode, "", content)
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, 0o777, target, b"")
    }

    /// Adds a hard link.
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, path, 0o644, target, b"")
    }

    /// Adds any entry. Path and link target go into the header as they are, hostile or not; they must fit
    /// its 100 bytes.
    pub fn entry(mut self, kind: tar::EntryType, path: &str, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        let raw = header.as_old_mut();
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.raw(&header, content);
        self
    }

    /// Adds an entry whose path may have any length, as tar programs do.
    pub fn append(&mut self, header: &mut tar::Header, path: &Path, content: &[u8]) -> Result<()> {
        header.set_size(content.len() as u64);
        self.tar
            .append_data(header, path, content)
            .with_context(|| format!("cannot add {}", path.display()))
    }

    /// Adds a symbolic link whose path and target may have any length.
    pub fn link(&mut self, header: &mut tar::Header, path: &Path, target: &Path) -> Result<()> {
        header.set_size(0);
        self.tar
            .append_link(header, path, target)
            .with_context(|| format!("cannot add {}", path.display()))
    }

    /// Adds a header and content exactly as given.
    pub fn raw(&mut self, header: &tar::Header, content: &[u8]) {
        self.tar
            .append(header, content)
            .unwrap_or_else(|error| unreachable!("writing to memory: {error}"));
    }

    /// The tar stream.
    pub fn tar(self) -> Vec<u8> {
        self.tar
            .into_inner()
            .unwrap_or_else(|error| unreachable!("writing to memory: {error}"))
    }
}

impl ImageBuilder {
    /// An image without layers for this machine.
    pub fn new() -> Self {
        let architecture = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        Self {
            layers: Vec::new(),
            diff_ids: Vec::new(),
            container: json!({}),
            architecture,
        }
    }

    /// Puts a layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        let packing = layer.packing;
        let tar = layer.tar();
        self.diff_ids.push(Digest::of(&tar));
        let (suffix, bytes) = match packing {
            Packing::Tar => ("", tar),
            Packing::Gzip => ("+gzip", gzip(&tar)),
            Packing::Zstd => (
                "+zstd",
                ruzstd::encoding::compress_to_vec(&tar[..], ruzstd::encoding::CompressionLevel::Fastest),
            ),
        };
        self.layers.push(Blob::new(
            &format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            bytes,
        ));
        self
    }

    /// Sets what the container runs, such as `json!({"Entrypoint": ["/bin/sh"]})`.
    pub fn container(mut self, container: Value) -> Self {
        self.container = container;
        self
    }

    /// Claims another content for the layer at `index` than it has.
    pub fn forge_diff_id(mut self, index: usize, claimed: Digest) -> Self {
        self.diff_ids[index] = claimed;
        self
    }

    /// Says that the image is for another architecture.
    pub fn architecture(mut self, architecture: &'static str) -> Self {
        self.architecture = architecture;
        self
    }

    /// Finishes the image in Docker's older format (schema 2), which most registries still serve. Layers
    /// must be packed with gzip, the only way it knows.
    pub fn build_docker(self) -> Image {
        const TYPES: [(&str, &str); 3] = [
            ("oci.image.config.v1+json", "docker.container.image.v1+json"),
            ("oci.image.layer.v1.tar+gzip", "docker.image.rootfs.diff.tar.gzip"),
            (
                "oci.image.manifest.v1+json",
                "docker.distribution.manifest.v2+json",
            ),
        ];
        let translate = |text: &str| {
            TYPES
                .iter()
                .fold(text.to_owned(), |text, (oci, docker)| text.replace(oci, docker))
        };
        let Image {
            manifest,
            mut config,
            mut layers,
        } = self.build();
        for blob in layers.iter_mut().chain([&mut config]) {
            blob.media_type = translate(&blob.media_type);
        }
        let text = translate(&String::from_utf8_lossy(&manifest.bytes));
        Image {
            manifest: Blob::new(&translate(&manifest.media_type), text.into_bytes()),
            config,
            layers,
        }
    }

    /// Finishes the image.
    pub fn build(self) -> Image {
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.container,
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        let config = Blob::new(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().into_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": self.layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().into_bytes(),
        );
        Image {
            manifest,
            config,
            layers: self.layers,
        }
    }
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl Image {
    /// Digest of the manifest.
    pub fn digest(&self) -> Digest {
        self.manifest.digest
    }

    /// Everything but the manifest.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// Writes an OCI layout into `dir` with this image under `tag`.
    pub fn write_layout(&self, dir: &Path, tag: &str) -> Result<()> {
        let mut descriptor = self.manifest.descriptor();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.write_layout_with(dir, &[descriptor], &[])
    }

    /// Writes an OCI layout whose index lists `entries`, with further `blobs`.
    pub fn write_layout_with(&self, dir: &Path, entries: &[Value], blobs: &[Blob]) -> Result<()> {
        let blob_dir = dir.join("blobs/sha256");
        fs::create_dir_all(&blob_dir).with_context(|| format!("cannot create {}", blob_dir.display()))?;
        for blob in self.blobs().chain([&self.manifest]).chain(blobs) {
            let path = blob_dir.join(blob.digest.hex());
            fs::write(&path, &blob.bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let index = index(OCI_INDEX, entries);
        fs::write(dir.join("index.json"), index.to_string()).context("cannot write index.json")?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .context("cannot write oci-layout")
    }
}

impl Blob {
    /// A blob under its own digest.
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(&bytes),
            bytes,
        }
    }

    /// OCI descriptor.
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// A list of images in the format that the media type names.
pub fn index(media_type: &str, entries: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries })
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(data)
        .and_then(|()| encoder.finish())
        .unwrap_or_else(|error| unreachable!("writing to memory: {error}"))
}
