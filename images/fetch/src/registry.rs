//! The pull half of the OCI distribution API: manifests and blobs, anonymous access.
//!
//! TLS everywhere but for registries on this machine's loopback, where plain HTTP is spoken. Every body
//! is read up to a limit; redirects never leave TLS. Written here rather than taken from a client crate
//! because those read manifests and tokens without a limit.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{Digest, ImageRef};
use reqwest::{Client, Response, StatusCode, Url, header, redirect};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;

use crate::{FetchError, blobs::Incoming, manifest};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// Tokens kept for repositories; past it all are dropped and asked for again.
const MAX_TOKENS: usize = 256;

/// Client for all registries.
#[derive(Debug)]
pub(crate) struct Registry {
    tls: Client,
    plain: Client,
    /// Bearer token by `registry/repository`.
    tokens: Mutex<HashMap<String, String>>,
}

impl Registry {
    /// Builds the HTTP clients. The machine's trust store is read here, once, so that it need not be
    /// readable later; `ca_files` are trusted besides.
    pub(crate) fn new(ca_files: &[PathBuf]) -> Result<Self, FetchError> {
        let tls = Client::builder()
            .tls_backend_preconfigured(tls_config(ca_files)?)
            .https_only(true)
            .redirect(redirect::Policy::limited(MAX_REDIRECTS));
        let plain = Client::builder()
            .tls_backend_preconfigured(tls_config(&[])?)
            .redirect(redirect::Policy::none());
        let build = |builder: reqwest::ClientBuilder| {
            builder
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .user_agent(concat!("palisade/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|source| FetchError::Client { source })
        };
        Ok(Self {
            tls: build(tls)?,
            plain: build(plain)?,
            tokens: Mutex::default(),
        })
    }

    /// The manifest or index under a tag or digest, not yet verified.
    pub(crate) async fn manifest(
        &self,
        image: &ImageRef,
        reference: &str,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let response = self
            .send(image, &format!("manifests/{reference}"), Some(manifest::ACCEPT))
            .await?;
        read_bounded(
            response,
            limit,
            &format!("manifest {reference} of {}", image.name()),
        )
        .await
    }

    /// Streams a blob into `incoming`, which verifies it.
    pub(crate) async fn blob(
        &self,
        image: &ImageRef,
        digest: &Digest,
        incoming: &mut Incoming,
    ) -> Result<(), FetchError> {
        let mut response = self.send(image, &format!("blobs/{digest}"), None).await?;
        let url = response.url().to_string();
        while let Some(chunk) = response.chunk().await.map_err(|source| http(&url, source))? {
            incoming.write(&chunk)?;
        }
        Ok(())
    }

    async fn send(&self, image: &ImageRef, path: &str, accept: Option<&str>) -> Result<Response, FetchError> {
        let name = image.name();
        let token = self
            .tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&name)
            .cloned();
        let response = self.get(image, path, accept, token.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accepted(response, image, path);
        }
        let token = self.token(image, &response).await?;
        let response = self.get(image, path, accept, Some(&token)).await?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.clear();
        }
        tokens.insert(name, token);
        drop(tokens);
        accepted(response, image, path)
    }

    async fn get(
        &self,
        image: &ImageRef,
        path: &str,
        accept: Option<&str>,
        token: Option<&str>,
    ) -> Result<Response, FetchError> {
        let (client, scheme) = if image.is_loopback() {
            (&self.plain, "http")
        } else {
            (&self.tls, "https")
        };
        let host = if image.registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            &image.registry
        };
        let url = format!("{scheme}://{host}/v2/{}/{path}", image.repository);
        let mut request = client.get(&url);
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.map_err(|source| http(&url, source))
    }

    /// Follows a Bearer challenge: asks the named authorization server for an anonymous token.
    async fn token(&self, image: &ImageRef, refused: &Response) -> Result<String, FetchError> {
        let challenge = |problem| FetchError::Challenge {
            registry: image.registry.clone(),
            problem,
        };
        let unauthorized = || FetchError::Unauthorized {
            registry: image.registry.clone(),
            repository: image.repository.clone(),
        };
        let Some(value) = refused.headers().get(header::WWW_AUTHENTICATE) else {
            return Err(unauthorized());
        };
        let value = value.to_str().map_err(|_text| challenge("it is not text"))?;
        // Any other scheme (Basic) needs credentials, which we do not have.
        let Some(parameters) = bearer_parameters(value) else {
            return Err(unauthorized());
        };
        let realm = parameters
            .get("realm")
            .ok_or_else(|| challenge("it has no realm"))?;
        let mut url = Url::parse(realm).map_err(|_text| challenge("its realm is not a URL"))?;
        let client = match url.scheme() {
            "https" => &self.tls,
            "http" if image.is_loopback() && is_loopback_url(&url) => &self.plain,
            _ => return Err(challenge("its realm is not https")),
        };
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = parameters.get("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:pull", image.repository));
        }
        let address = url.to_string();
        let response = client
            .get(url)
            .send()
            .await
            .map_err(|source| http(&address, source))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(unauthorized()),
            status => {
                return Err(FetchError::Status {
                    url: address,
                    status: status.as_u16(),
                });
            }
        }
        let what = format!("token answer of {}", image.registry);
        let body = read_bounded(response, MAX_TOKEN_BYTES, &what).await?;
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|source| FetchError::Json { what, source })?;
        answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| challenge("the answer has no token"))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn accepted(response: Response, image: &ImageRef, path: &str) -> Result<Response, FetchError> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::NOT_FOUND => Err(FetchError::NotFound {
            what: path.to_owned(),
            place: image.name(),
        }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(FetchError::Unauthorized {
            registry: image.registry.clone(),
            repository: image.repository.clone(),
        }),
        status => Err(FetchError::Status {
            url: response.url().to_string(),
            status: status.as_u16(),
        }),
    }
}

async fn read_bounded(mut response: Response, limit: u64, what: &str) -> Result<Vec<u8>, FetchError> {
    let url = response.url().to_string();
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

/// Parameters of a `Bearer name="value",...` challenge (RFC 9110, 11.2); `None` for another scheme.
fn bearer_parameters(challenge: &str) -> Option<HashMap<String, String>> {
    let (scheme, mut rest) = challenge.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = HashMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => (
                after.split(',').next().unwrap_or_default(),
                after.find(',').map_or("", |at| &after[at..]),
            ),
        };
        parameters.insert(name.trim().to_ascii_lowercase(), value.to_owned());
        rest = after.trim_start().trim_start_matches(',');
    }
    Some(parameters)
}

fn is_loopback_url(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    })
}

fn tls_config(ca_files: &[PathBuf]) -> Result<rustls::ClientConfig, FetchError> {
    let mut roots = rustls::RootCertStore::empty();
    // A machine without a trust store can still pull from loopback and from configured CAs; anything
    // else then fails with an unknown issuer.
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "the machine's certificate store is incomplete");
    }
    roots.add_parsable_certificates(native.certs);
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| FetchError::Tls { source })?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn http(url: &str, source: reqwest::Error) -> FetchError {
    // reqwest repeats the URL in its own text.
    FetchError::Http {
        url: url.to_owned(),
        source: source.without_url(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bearer_challenges() {
        let text = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        let parameters = bearer_parameters(text).unwrap();
        assert_eq!(parameters["realm"], "https://auth.example/token");
        assert_eq!(parameters["scope"], "repository:a/b:pull,push");
        assert_eq!(
            bearer_parameters("bearer realm=x, service=y").unwrap()["service"],
            "y"
        );
        assert_eq!(bearer_parameters("Basic realm=\"x\""), None);
        assert_eq!(bearer_parameters("Bearer realm=\"open"), None);
    }
}
