//! The key file: key-encryption keys, each with an id; the first one seals, all of them open.
//!
//! One line per key, `ID KEY`, both in hexadecimal; lines that start with `#` are comments. A key leaves the
//! file only by hand, once nothing is sealed with it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ring::{
    aead::{AES_256_GCM, LessSafeKey, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use crate::seal::{KEY_BYTES, KeyId};

/// Key files are small: this bounds what is read from a wrong path.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Key-encryption keys. The bytes read from the file are wiped; the expanded form that `ring` keeps is not.
pub struct Keyring {
    keys: Vec<(KeyId, LessSafeKey)>,
}

/// Why a key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file could not be read or written.
    #[error("key file {}: {operation}", path.display())]
    File {
        /// The key file.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Others can read it.
    #[error("key file {} has mode {mode:o}; run chmod 600 on it", path.display())]
    Mode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no regular file of at most 64 KiB.
    #[error("key file {} is not a regular file of at most {MAX_FILE_BYTES} bytes", path.display())]
    NotAFile {
        /// The key file.
        path: PathBuf,
    },
    /// A line is no key.
    #[error("key file {}, line {line}: expected 16 hex digits, a space and 64 hex digits", path.display())]
    Line {
        /// The key file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
    },
    /// Two keys have one id.
    #[error("key file {}: key id {id} stands there twice", path.display())]
    Duplicate {
        /// The key file.
        path: PathBuf,
        /// The id.
        id: KeyId,
    },
    /// No key in it.
    #[error("key file {} holds no key", path.display())]
    Empty {
        /// The key file.
        path: PathBuf,
    },
    /// The system has no randomness to make a key from.
    #[error("no randomness from the system")]
    Random,
}

impl Keyring {
    /// Reads the key file, or makes one with a fresh key (mode 0600) where none exists. An existing file is
    /// never overwritten.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyringError> {
        match File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path)?;
                Self::load(path)
            }
            Err(source) => Err(file_error(path, "open", source)),
        }
    }

    /// Reads the key file.
    pub fn load(path: &Path) -> Result<Self, KeyringError> {
        Self::read(path, File::open(path).map_err(|e| file_error(path, "open", e))?)
    }

    /// A keyring of one random key that is stored nowhere.
    pub fn ephemeral() -> Result<Self, KeyringError> {
        let (id, key) = generate()?;
        Ok(Self {
            keys: vec![(id, expand(&key).ok_or(KeyringError::Random)?)],
        })
    }

    /// The key that seals, with its id.
    pub(crate) fn active(&self) -> Option<&(KeyId, LessSafeKey)> {
        self.keys.first()
    }

    /// The key with that id.
    pub(crate) fn by_id(&self, id: KeyId) -> Option<&LessSafeKey> {
        self.keys.iter().find(|(own, _)| *own == id).map(|(_, key)| key)
    }

    fn read(path: &Path, file: File) -> Result<Self, KeyringError> {
        let metadata = file.metadata().map_err(|e| file_error(path, "stat", e))?;
        if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
            return Err(KeyringError::NotAFile {
                path: path.to_owned(),
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyringError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(|e| file_error(path, "read", e))?;
        parse(path, &text)
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|(id, _)| id))
            .finish()
    }
}

fn parse(path: &Path, text: &str) -> Result<Keyring, KeyringError> {
    let mut keys: Vec<(KeyId, LessSafeKey)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (id, key) = parse_line(line).ok_or_else(|| KeyringError::Line {
            path: path.to_owned(),
            line: number + 1,
        })?;
        if keys.iter().any(|(other, _)| *other == id) {
            return Err(KeyringError::Duplicate {
                path: path.to_owned(),
                id,
            });
        }
        keys.push((id, key));
    }
    if keys.is_empty() {
        return Err(KeyringError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(Keyring { keys })
}

fn parse_line(line: &str) -> Option<(KeyId, LessSafeKey)> {
    let (id, key) = line.trim_end().split_once(' ')?;
    let id = id.parse().ok()?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    hex::decode_to_slice(key, bytes.as_mut_slice()).ok()?;
    Some((id, expand(&bytes)?))
}

fn expand(key: &[u8; KEY_BYTES]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

fn generate() -> Result<(KeyId, Zeroizing<[u8; KEY_BYTES]>), KeyringError> {
    let random = SystemRandom::new();
    let mut id = [0; KeyId::BYTES];
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    // `Unspecified` carries nothing to pass on.
    random.fill(&mut id).map_err(|_e| KeyringError::Random)?;
    random
        .fill(key.as_mut_slice())
        .map_err(|_e| KeyringError::Random)?;
    Ok((KeyId::from_bytes(id), key))
}

/// Written aside and linked into place: a reader sees the whole file or none, and two creators cannot each
/// believe in their own key.
fn create(path: &Path) -> Result<(), KeyringError> {
    let (id, key) = generate()?;
    let text = Zeroizing::new(format!(
        "# Key-encryption keys. Without this file the store is lost.\n{id} "
    ));
    let digits = Zeroizing::new(hex::encode(key.as_slice()));

    let aside = path.with_extension(format!("new-{id}"));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.write_all(digits.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match fs::hard_link(&aside, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let written = write();
    let removed = fs::remove_file(&aside);
    written.and(removed).map_err(|e| file_error(path, "create", e))?;
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| file_error(path, "sync its directory", e))
}

fn file_error(path: &Path, operation: &'static str, source: io::Error) -> KeyringError {
    KeyringError::File {
        path: path.to_owned(),
        operation,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_created_once_with_mode_0600_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        let first = Keyring::load_or_create(&path).unwrap();
        let second = Keyring::load_or_create(&path).unwrap();
        assert_eq!(first.active().unwrap().0, second.active().unwrap().0);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "the file written aside is gone"
        );
    }

    #[test]
    fn refuses_a_file_that_others_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        Keyring::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Keyring::load_or_create(&path),
            Err(KeyringError::Mode { mode: 0o640, .. })
        ));
    }

    #[test]
    fn refuses_damaged_files_and_shows_no_key() {
        let path = Path::new("kek");
        let key = "ab".repeat(32);
        for (text, problem) in [
            (String::new(), "holds no key"),
            (format!("0011223344556677 {key}00\n"), "line 1"),
            (format!("00112233445566 {key}\n"), "line 1"),
            (
                format!("0011223344556677 {key}\n0011223344556677 {key}\n"),
                "twice",
            ),
        ] {
            let error = parse(path, &text).unwrap_err().to_string();
            assert!(error.contains(problem) && !error.contains(&key), "{error}");
        }
        let ring = parse(
            path,
            &format!("# one\n0011223344556677 {key}\nffffffffffffffff {key}\n"),
        )
        .unwrap();
        assert_eq!(format!("{ring:?}"), "[0011223344556677, ffffffffffffffff]");
    }
}
