//! TLS 1.3 with certificates on both sides, from the files that [`crate::init`] made.
//!
//! No session resumption: every connection proves its certificate anew.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use control_auth::{Authenticated, IdentityError};
use rustls::{
    ClientConfig, CommonState, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::files::MAX_BYTES;

/// ALPN names of HTTP, the better one first.
pub const ALPN_HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Whom to trust, and who we are.
pub struct Credentials {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Whether a client may connect without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// The handshake fails without one.
    Required,
    /// The handshake succeeds; [`peer`] then returns `None` and the server must refuse what is not public. A
    /// certificate that is shown must be valid all the same.
    Optional,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("{}: {operation}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is far larger than what belongs there.
    #[error("{} is no file of at most {MAX_BYTES} bytes", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others can read the private key.
    #[error("{} has mode {mode:o}; run chmod 600 on it", path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds no certificate or key.
    #[error("{} holds no usable {what}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
        /// What is wrong.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not go together, or the authority's certificate is unusable.
    #[error("TLS settings")]
    Settings(#[source] rustls::Error),
    /// The verifier of client certificates could not be built.
    #[error("TLS settings: client certificates")]
    Verifier(#[source] VerifierBuilderError),
}

impl Credentials {
    /// Reads `ca.crt`, `NAME.crt` and `NAME.key` from `dir`, such as `server` in `control/tls`.
    pub fn load(dir: &Path, name: &str) -> Result<Self, TlsError> {
        let file = |suffix| dir.join(format!("{name}.{suffix}"));
        Self::from_files(&dir.join("ca.crt"), &file("crt"), &file("key"))
    }

    /// Reads the three PEM files.
    pub fn from_files(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(TlsError::Settings)?;
        }
        Ok(Self {
            roots: Arc::new(roots),
            chain: certificates(certificate)?,
            key: private_key(key)?,
        })
    }

    /// Addresses for which our certificate is issued: by these, clients know us.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let own = self.chain.first();
        own.map(|own| crate::authority::addresses(own))
            .unwrap_or_default()
    }
}

/// Settings of a server that talks to holders of our certificates. `alpn` as in [`ALPN_HTTP`].
pub fn server_config(
    credentials: &Credentials,
    clients: ClientCertificate,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&credentials.roots), provider());
    let verifier = match clients {
        ClientCertificate::Required => verifier,
        ClientCertificate::Optional => verifier.allow_unauthenticated(),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Settings)?
        .with_client_cert_verifier(verifier.build().map_err(TlsError::Verifier)?)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())
        .map_err(TlsError::Settings)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Settings of a client that shows its certificate. Verify [`crate::API_SERVER_NAME`] or
/// [`crate::node_server_name`], not an address.
pub fn client_config(credentials: &Credentials, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Settings)?
        .with_root_certificates(Arc::clone(&credentials.roots))
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
        .map_err(TlsError::Settings)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Who is at the other end of a connection that a [`server_config`] accepted; `None` without a certificate.
pub fn peer(connection: &CommonState) -> Result<Option<Authenticated>, IdentityError> {
    match connection.peer_certificates().and_then(<[_]>::first) {
        Some(leaf) => Authenticated::from_verified_certificate(leaf).map(Some),
        None => Ok(None),
    }
}

/// Named, so that no other crate's choice of a process-wide default can replace it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let (text, _) = read(path)?;
    let pem = |source| TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        source,
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(pem)?;
    if found.is_empty() {
        return Err(pem(rustls_pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let (text, mode) = read(path)?;
    if mode & 0o077 != 0 {
        return Err(TlsError::KeyMode {
            path: path.to_owned(),
            mode,
        });
    }
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        what: "private key",
        source,
    })
}

/// Content and permission bits.
fn read(path: &Path) -> Result<(Zeroizing<String>, u32), TlsError> {
    let failed = |operation| {
        move |source| TlsError::File {
            path: path.to_owned(),
            operation,
            source,
        }
    };
    let file = File::open(path).map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("stat"))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(TlsError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(failed("read"))?;
    Ok((text, metadata.mode() & 0o7777))
}
