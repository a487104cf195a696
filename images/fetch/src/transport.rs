//! HTTP clients, what they trust, and bodies of bounded size.

use std::{path::PathBuf, sync::Arc, time::Duration};

use reqwest::{Client, Response, Url, redirect};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::FetchError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;

/// A client that speaks TLS only and trusts `roots`.
pub(crate) fn tls(roots: RootCertStore) -> Result<Client, FetchError> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls_config(roots)?)
        .https_only(true)
        .redirect(redirect::Policy::limited(MAX_REDIRECTS));
    build(builder)
}

/// A client for plain HTTP, which follows no redirect.
pub(crate) fn plain() -> Result<Client, FetchError> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls_config(RootCertStore::empty())?)
        .redirect(redirect::Policy::none());
    build(builder)
}

/// The machine's trust store, and `ca_files` besides.
pub(crate) fn with_machines(ca_files: &[PathBuf]) -> Result<RootCertStore, FetchError> {
    let mut roots = only(ca_files)?;
    // A machine without a trust store can still pull from loopback and from configured CAs; anything
    // else then fails with an unknown issuer.
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "the machine's certificate store is incomplete");
    }
    roots.add_parsable_certificates(native.certs);
    Ok(roots)
}

/// The authorities of `ca_files`.
pub(crate) fn only(ca_files: &[PathBuf]) -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    for path in ca_files {
        let unusable = |problem: String| FetchError::CaFile {
            path: path.clone(),
            problem,
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(error.to_string()))?;
        if certificates.is_empty() {
            return Err(unusable("it holds no PEM certificate".to_owned()));
        }
        for certificate in certificates {
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
        }
    }
    Ok(roots)
}

pub(crate) async fn read_bounded(
    mut response: Response,
    limit: u64,
    what: &str,
) -> Result<Vec<u8>, FetchError> {
    let url = shown(response.url());
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| http(&url, source))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLarge {
                what: what.to_owned(),
                limit,
            });
        }
    }
    Ok(bytes)
}

/// A URL as it is told: a registry may redirect to one whose query is a password for a while.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

pub(crate) fn http(url: &str, source: reqwest::Error) -> FetchError {
    // reqwest repeats the URL in its own text.
    FetchError::Http {
        url: url.to_owned(),
        source: source.without_url(),
    }
}

fn tls_config(roots: RootCertStore) -> Result<rustls::ClientConfig, FetchError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| FetchError::Tls { source })?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn build(builder: reqwest::ClientBuilder) -> Result<Client, FetchError> {
    builder
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("palisade/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|source| FetchError::Client { source })
}
