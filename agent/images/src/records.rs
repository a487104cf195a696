//! What the store knows of each image: its layers, by which names it came, and who may have it under which.
//!
//! That an image is on the node says nothing about who may use it: it may have come with credentials of another
//! namespace. So each record says by which grant it came from which repository, and a pod whose credentials are not
//! among them has to ask the registry (Kubernetes calls this `KubeletEnsureSecretPulledImages`). Credentials are
//! not recorded, only which version of which secret held them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use api::{Digest, ImageRef};
use images_fetch::{Grant, Keyring};
use serde::{Deserialize, Serialize};

use crate::{ImageError, io_error};

/// Grants kept for one image of one repository; secrets change, and old versions are of no use.
const MAX_GRANTS: usize = 64;
/// Layers of which it is remembered who sent them.
const MAX_SENT: usize = 4096;
/// The time of the last use is written this seldom.
const USED_RESOLUTION: Duration = Duration::from_secs(60);

/// The records of one store.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    known: Mutex<BTreeMap<Digest, Record>>,
    /// Layers that repositories sent since this process began, of images that are not complete yet among them.
    sent: Mutex<BTreeMap<(String, Digest), u64>>,
}

/// What is known of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Record {
    /// Digest of the manifest.
    pub(crate) digest: Digest,
    /// Bytes as it was transferred.
    pub(crate) size: u64,
    /// Lowest first.
    pub(crate) layers: Vec<KnownLayer>,
    /// `registry/repository` to who may have it from there.
    pub(crate) repositories: BTreeMap<String, BTreeSet<Grant>>,
    /// When it came first.
    pub(crate) came_at: SystemTime,
    /// When a container last needed it, to about a minute.
    pub(crate) used_at: SystemTime,
}

/// A layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct KnownLayer {
    pub(crate) diff_id: Digest,
    /// Bytes of its files.
    pub(crate) bytes: u64,
}

impl Records {
    /// Reads all records. One that is damaged is dropped: its image comes anew.
    pub(crate) fn open(dir: &Path) -> Result<Self, ImageError> {
        let mut known = BTreeMap::new();
        let list = |source| io_error("list", dir, source);
        for entry in fs::read_dir(dir).map_err(list)? {
            let path = entry.map_err(list)?.path();
            let read = fs::read(&path).map(|bytes| serde_json::from_slice::<Record>(&bytes));
            match read.map_err(|source| io_error("read", &path, source))? {
                Ok(record) if path == file_of(dir, &record.digest) => {
                    known.insert(record.digest, record);
                }
                Ok(_) | Err(_) => {
                    tracing::warn!(path = %path.display(), "dropping a damaged record of an image");
                    fs::remove_file(&path).map_err(|source| io_error("remove", &path, source))?;
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            known: Mutex::new(known),
            sent: Mutex::default(),
        })
    }

    /// Everything that is known.
    pub(crate) fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    /// What is known of an image, if `keys` may have it by this name without asking the registry.
    pub(crate) fn permitted(&self, image: &ImageRef, keys: &Keyring) -> Option<Record> {
        let digest = image.digest?;
        let known = self.lock();
        let record = known.get(&digest)?;
        let grants = record.repositories.get(&image.name())?;
        keys.satisfy(image, grants).then(|| record.clone())
    }

    /// Whether a layer that is here may be used for an image of `repository`: it came from there, or is everybody's.
    /// A manifest that lists a layer is no proof of having it.
    pub(crate) fn may_share(&self, diff_id: &Digest, repository: &str) -> Option<KnownLayer> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = sent.get(&(repository.to_owned(), *diff_id)) {
            return Some(KnownLayer {
                diff_id: *diff_id,
                bytes: *bytes,
            });
        }
        drop(sent);
        let known = self.lock();
        let mut records = known.values();
        records.find_map(|record| {
            let layer = record.layers.iter().find(|layer| layer.diff_id == *diff_id)?;
            let public = |grants: &BTreeSet<Grant>| grants.contains(&Grant::Anyone);
            let shared =
                record.repositories.contains_key(repository) || record.repositories.values().any(public);
            shared.then_some(*layer)
        })
    }

    /// Notes that `repository` has sent all of a layer.
    pub(crate) fn sent(&self, layer: KnownLayer, repository: String) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() >= MAX_SENT {
            sent.clear();
        }
        sent.insert((repository, layer.diff_id), layer.bytes);
    }

    /// Notes that an image came from `repository` by `grant`.
    pub(crate) fn put(
        &self,
        (digest, size): (Digest, u64),
        layers: Vec<KnownLayer>,
        (repository, grant): (String, Grant),
        now: SystemTime,
    ) -> Result<(), ImageError> {
        let mut known = self.lock();
        let record = known.entry(digest).or_insert_with(|| Record {
            digest,
            size,
            layers: Vec::new(),
            repositories: BTreeMap::new(),
            came_at: now,
            used_at: now,
        });
        record.layers = layers;
        record.used_at = now;
        let grants = record.repositories.entry(repository).or_default();
        if grants.len() >= MAX_GRANTS {
            grants.clear();
        }
        grants.insert(grant);
        write(&self.dir, record)
    }

    /// Notes that an image is needed.
    pub(crate) fn touch(&self, digest: &Digest, now: SystemTime) -> Result<(), ImageError> {
        let mut known = self.lock();
        let Some(record) = known.get_mut(digest) else {
            return Ok(());
        };
        let since = now.duration_since(record.used_at).unwrap_or_default();
        if since < USED_RESOLUTION {
            return Ok(());
        }
        record.used_at = now;
        write(&self.dir, record)
    }

    /// Forgets an image.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        self.lock().remove(digest);
        let path = file_of(&self.dir, digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Record>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file_of(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(format!("{}.json", digest.hex()))
}

/// In one step, and without waiting for the disk: a record that is lost costs a question to the registry.
fn write(dir: &Path, record: &Record) -> Result<(), ImageError> {
    let path = file_of(dir, &record.digest);
    let aside = path.with_extension("new");
    // Texts, numbers and times are always JSON.
    let bytes = serde_json::to_vec(record).unwrap_or_default();
    fs::write(&aside, bytes)
        .and_then(|()| fs::rename(&aside, &path))
        .map_err(|source| io_error("write", &path, source))
}

#[cfg(test)]
mod tests {
    use api::pull_secret::{PullSecret, SecretForm};

    use super::*;

    fn keys(origin: &str) -> Keyring {
        let mut keys = Keyring::anonymous();
        keys.add(&PullSecret {
            origin: origin.to_owned(),
            form: SecretForm::Cfg,
            content: br#"{"r.example": {"username": "u", "password": "p"}}"#,
        })
        .unwrap();
        keys
    }

    #[test]
    fn an_image_is_for_those_by_whose_grant_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let digest = Digest::of(b"image");
        let image = |name: &str| -> ImageRef { format!("{name}@{digest}").parse().unwrap() };
        let layer = KnownLayer {
            diff_id: Digest::of(b"layer"),
            bytes: 7,
        };
        let came = |repository: &str, grant: Grant| {
            let by = (repository.to_owned(), grant);
            records
                .put((digest, 1), vec![layer], by, SystemTime::UNIX_EPOCH)
                .unwrap();
        };
        came("r.example/app", Grant::Secret("own/1".to_owned()));
        let (app, copy) = (image("r.example/app"), image("r.example/copy"));
        assert!(records.permitted(&app, &keys("own/1")).is_some());
        for other in [keys("own/2"), keys("other/1"), Keyring::anonymous()] {
            assert!(records.permitted(&app, &other).is_none());
        }
        assert!(
            records.permitted(&copy, &keys("own/1")).is_none(),
            "another name, another right"
        );
        assert_eq!(records.may_share(&layer.diff_id, "r.example/app"), Some(layer));
        assert_eq!(records.may_share(&layer.diff_id, "evil.example/app"), None);

        came("r.example/copy", Grant::Anyone);
        assert!(records.permitted(&copy, &Keyring::anonymous()).is_some());
        assert!(records.permitted(&app, &Keyring::anonymous()).is_none());
        assert!(
            records.may_share(&layer.diff_id, "evil.example/app").is_some(),
            "everybody's anyway"
        );

        // After a restart likewise, and what is damaged counts for nothing.
        let reopened = Records::open(dir.path()).unwrap();
        assert_eq!(reopened.all(), records.all());
        fs::write(file_of(dir.path(), &digest), "{").unwrap();
        assert_eq!(Records::open(dir.path()).unwrap().all(), []);
    }
}
