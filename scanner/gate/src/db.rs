//! The vulnerability database on disk, as it is at one moment.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use api::Digest;
use scanner_report::{DbMetadata, Os};

use crate::{GateError, bolt::Bolt, error::io_error};

const DATABASE: &str = "trivy.db";
const METADATA: &str = "metadata.json";
const MAX_METADATA_BYTES: u64 = 64 << 10;

/// One state of the database.
#[derive(Debug)]
pub(crate) struct Db {
    pub(crate) metadata: DbMetadata,
    /// Hash of the metadata and of the database file's identity (device, inode, size, times): hashing
    /// hundreds of megabytes for every scan would say no more, since the file is replaced, not edited.
    pub(crate) hash: Digest,
    path: PathBuf,
    file: File,
}

impl Db {
    /// Opens `trivy.db` and `metadata.json` in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, GateError> {
        let metadata_path = dir.join(METADATA);
        let mut bytes = Vec::new();
        File::open(&metadata_path)
            .and_then(|file| file.take(MAX_METADATA_BYTES).read_to_end(&mut bytes))
            .map_err(io_error("read", &metadata_path))?;
        let metadata = DbMetadata::parse(&bytes).map_err(|source| GateError::DbMetadata {
            path: dir.to_owned(),
            source,
        })?;

        let path = dir.join(DATABASE);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let stat = file.metadata().map_err(io_error("inspect", &path))?;
        let identity = [
            stat.dev().to_le_bytes(),
            stat.ino().to_le_bytes(),
            stat.size().to_le_bytes(),
            stat.mtime().to_le_bytes(),
            stat.mtime_nsec().to_le_bytes(),
        ];
        bytes.extend_from_slice(&identity.concat());
        Ok(Self {
            metadata,
            hash: Digest::of(&bytes),
            path,
            file,
        })
    }

    /// Whether there are advisories for the release of `os`.
    pub(crate) fn covers(&self, os: &Os) -> Result<bool, GateError> {
        let Some(bucket) = os.bucket() else {
            return Ok(false);
        };
        Bolt::open(&self.file)
            .and_then(|bolt| bolt.has_entries(&bucket))
            .map_err(|source| GateError::Db {
                path: self.path.clone(),
                source,
            })
    }
}
