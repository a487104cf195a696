//! The keys that sign tokens of service accounts: a PEM file of the control plane's own, beside the key of its store.

use std::path::Path;

use control_auth::token::{TokenKeyError, TokenKeys};
use rcgen::{KeyPair, PKCS_ED25519};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};

use crate::{API_SERVER_NAME, PkiError, files::Dir};

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] PkiError),
    /// It is no PEM file.
    #[error(
        "{path}: not a PEM file of private keys; remove it to get a new key (tokens in use end with the old one)"
    )]
    Pem {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A key in it cannot be used.
    #[error("{path}")]
    Key {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: TokenKeyError,
    },
    /// No key could be made.
    #[error("make a key that signs tokens")]
    Make(#[source] rcgen::Error),
}

/// The issuer of this cluster's tokens, and their audience unless they ask for others.
pub fn token_issuer() -> String {
    format!("https://{API_SERVER_NAME}")
}

/// Reads the keys in `name` below `dir`, or makes a key (mode 0600) where there is no such file. To replace a key, put
/// a new one in front of it: the first one signs, all of them verify.
pub fn load_or_create(dir: &Path, name: &str) -> Result<TokenKeys, TokenFileError> {
    let path = dir.join(name).display().to_string();
    let dir = Dir::create_all(dir)?;
    let text = match dir.read_private_text(name)? {
        Some(text) => text,
        None => {
            let key = KeyPair::generate_for(&PKCS_ED25519).map_err(TokenFileError::Make)?;
            let text = zeroize::Zeroizing::new(key.serialize_pem());
            dir.replace(name, text.as_bytes(), 0o600, None)?;
            text
        }
    };
    let keys = PrivatePkcs8KeyDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(|source| TokenFileError::Pem {
        path: path.clone(),
        source,
    })?;
    let documents = keys.iter().map(PrivatePkcs8KeyDer::secret_pkcs8_der);
    TokenKeys::new(&token_issuer(), documents).map_err(|source| TokenFileError::Key { path, source })
}
