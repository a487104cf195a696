//! OCI layout directories: reading images from the layouts of this machine, and writing one that holds
//! exactly one image.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use api::{Digest, ImageRef};
use serde_json::json;

use crate::{
    FetchError,
    blobs::{self, Incoming, io_error},
    manifest::{Descriptor, Document},
};

const LAYOUT_FILE: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The layouts below one root directory; `oci-layout.local/NAME` is the directory `NAME`.
#[derive(Debug)]
pub(crate) struct Layouts {
    pub(crate) root: PathBuf,
}

impl Layouts {
    /// Digest of the manifest or index that the layout lists under `tag`.
    pub(crate) fn tag(&self, image: &ImageRef, tag: &str, limit: u64) -> Result<Digest, FetchError> {
        let dir = self.dir(image);
        let bytes = blobs::read_bounded(&dir.join("index.json"), limit)
            .map_err(not_found(|| format!("OCI layout for tag {tag}"), &dir))?;
        let what = format!("index.json of {}", image.name());
        let Document::Index(entries) = Document::parse(&what, &bytes)? else {
            return Err(FetchError::Document {
                what,
                problem: "it is not an index".to_owned(),
            });
        };
        let mut found = entries.iter().filter(|entry| entry.ref_name() == Some(tag));
        match (found.next(), found.next()) {
            (Some(Descriptor { digest, .. }), None) => Ok(*digest),
            (Some(_), Some(_)) => Err(FetchError::Document {
                what,
                problem: format!("tag {tag:?} is listed more than once"),
            }),
            (None, _) => Err(FetchError::NotFound {
                what: format!("tag {tag}"),
                place: dir.display().to_string(),
            }),
        }
    }

    /// A whole manifest, not yet verified.
    pub(crate) fn manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let dir = self.dir(image);
        blobs::read_bounded(&blob_path(&dir, digest), limit)
            .map_err(not_found(|| format!("manifest {digest}"), &dir))
    }

    /// Copies a blob into `incoming`, which verifies it.
    pub(crate) fn blob(
        &self,
        image: &ImageRef,
        digest: &Digest,
        incoming: &mut Incoming,
    ) -> Result<(), FetchError> {
        let dir = self.dir(image);
        let path = blob_path(&dir, digest);
        let mut file = blobs::open_no_follow(&path).map_err(not_found(|| format!("blob {digest}"), &dir))?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match file.read(&mut buffer).map_err(io_error("read", &path))? {
                0 => return Ok(()),
                read => incoming.write(&buffer[..read])?,
            }
        }
    }

    fn dir(&self, image: &ImageRef) -> PathBuf {
        // A repository is made of components that start with a letter or digit, so it cannot climb.
        self.root.join(&image.repository)
    }
}

/// Writes a layout with one manifest into the empty directory `dir`. Blobs are hard links to `sources`
/// (digest and file), or copies where the file systems differ.
pub(crate) fn write(
    dir: &Path,
    manifest: (&Digest, &[u8]),
    media_type: &str,
    sources: &[(Digest, PathBuf)],
) -> Result<(), FetchError> {
    let blobs_dir = dir.join("blobs/sha256");
    blobs::create_private_dir(&blobs_dir)?;
    for (digest, source) in sources {
        let target = blob_path(dir, digest);
        match fs::hard_link(source, &target) {
            Ok(()) => {}
            // The same layer may be listed twice.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                fs::copy(source, &target).map_err(io_error("copy a blob to", &target))?;
            }
            Err(error) => return Err(io_error("link a blob to", &target)(error)),
        }
    }
    let (digest, bytes) = manifest;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{ "mediaType": media_type, "digest": digest, "size": bytes.len() }],
    });
    for (path, content) in [
        (blob_path(dir, digest), bytes),
        (dir.join("index.json"), index.to_string().as_bytes()),
        (dir.join("oci-layout"), LAYOUT_FILE.as_bytes()),
    ] {
        fs::write(&path, content).map_err(io_error("write", &path))?;
    }
    Ok(())
}

fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

/// Turns "no such file" into an answer about the image, and leaves other errors alone.
fn not_found(what: impl FnOnce() -> String, dir: &Path) -> impl FnOnce(FetchError) -> FetchError {
    let place = dir.display().to_string();
    move |error| match error {
        FetchError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            FetchError::NotFound { what: what(), place }
        }
        other => other,
    }
}
