//! Image references: `[registry/]repository[:tag][@digest]`, with Docker's defaults.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Registry host that stands for OCI layout directories on the machine instead of a network registry:
/// `oci-layout.local/NAME:TAG` is the layout `NAME` below the configured layout root.
pub const LAYOUT_REGISTRY: &str = "oci-layout.local";

const MAX_LENGTH: usize = 512;

/// A parsed image reference. A reference without tag and digest means the tag `latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// Host and optional port, such as `127.0.0.1:5000`; Docker Hub is `docker.io`.
    pub registry: String,
    /// Path inside the registry, such as `library/busybox`.
    pub repository: String,
    /// Tag, absent when only a digest was given.
    pub tag: Option<String>,
    /// Digest of the manifest or index.
    pub digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// Empty, or longer than 512 bytes.
    #[error("image reference must have 1 to 512 characters")]
    Length,
    /// A path component is not `[a-z0-9]+([._-]+[a-z0-9]+)*`.
    #[error(
        "image {0:?}: repository must be lower-case path components of letters, digits, '.', '_' and '-'"
    )]
    Repository(String),
    /// The tag is not `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
    #[error("image {0:?}: tag must be 1 to 128 letters, digits, '.', '_' and '-'")]
    Tag(String),
    /// The registry is not a host with an optional port.
    #[error("image {0:?}: registry must be a host name or address with an optional port")]
    Registry(String),
    /// The part behind `@` is not a SHA-256 digest.
    #[error("image {image:?}: {source}")]
    Digest {
        /// The whole reference.
        image: String,
        /// What is wrong with its digest.
        source: crate::digest::DigestError,
    },
}

impl ImageRef {
    /// Same repository, pinned to `digest`; the tag is dropped, because it no longer decides anything.
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// `registry/repository` without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Whether the registry is this machine's loopback, the only place where plain HTTP is spoken.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }

    /// Whether the reference names an OCI layout directory on the machine, see [`LAYOUT_REGISTRY`].
    pub fn is_layout(&self) -> bool {
        self.registry == LAYOUT_REGISTRY
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(ImageRefError::Length);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest.parse().map_err(|source| ImageRefError::Digest {
                    image: text.to_owned(),
                    source,
                })?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (registry, path) = match name.split_once('/') {
            // Docker's rule: the first component is a host only if it looks like one.
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host.to_owned(), rest),
            Some(_) => ("docker.io".to_owned(), name),
            None => ("docker.io".to_owned(), name),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (path, None),
        };
        if !is_host(&registry) {
            return Err(ImageRefError::Registry(text.to_owned()));
        }
        if repository.is_empty() || !repository.split('/').all(is_path_component) {
            return Err(ImageRefError::Repository(text.to_owned()));
        }
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(ImageRefError::Tag(text.to_owned()));
        }
        let repository = match registry.as_str() {
            "docker.io" if !repository.contains('/') => format!("library/{repository}"),
            _ => repository.to_owned(),
        };
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag,
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ImageRefError;

    fn try_from(text: String) -> Result<Self, ImageRefError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_host(text: &str) -> bool {
    let host_chars = |host: &str| {
        !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
    };
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    match text.split_once(':') {
        Some((host, port)) => host_chars(host) && is_port(port),
        None => host_chars(text),
    }
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
        && bytes
            .iter()
            .all(|b| alphanumeric(*b) || matches!(b, b'.' | b'_' | b'-'))
        && !text.contains("..")
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(|b| word(*b))
        && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, shown: &str) {
        let parsed: ImageRef = text.parse().unwrap();
        assert_eq!(parsed.to_string(), shown, "{text}");
        assert_eq!(shown.parse::<ImageRef>().unwrap(), parsed, "{text} round trip");
    }

    #[test]
    fn applies_dockers_defaults() {
        check("busybox", "docker.io/library/busybox:latest");
        check("grafana/loki:3", "docker.io/grafana/loki:3");
        check("127.0.0.1:5000/lab/clean:1", "127.0.0.1:5000/lab/clean:1");
        check("localhost/x", "localhost/x:latest");
        check("[::1]:5000/x:y", "[::1]:5000/x:y");
    }

    #[test]
    fn digest_without_tag_stays_without_tag() {
        let digest = Digest::of(b"x");
        check(&format!("a.b/c@{digest}"), &format!("a.b/c@{digest}"));
        let pinned = "a.b/c:1".parse::<ImageRef>().unwrap().pinned(digest);
        assert_eq!(pinned.to_string(), format!("a.b/c@{digest}"));
    }

    #[test]
    fn refuses_what_could_mean_another_path() {
        for bad in [
            "",
            "a.b/../c",
            "a.b/C",
            "a.b/c:",
            "a.b/c:-x",
            "a.b//c",
            "a.b:0/c",
            "a.b/c@sha256:00",
            "A B",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn loopback_is_by_address_not_by_prefix() {
        assert!("127.0.0.1:5000/x".parse::<ImageRef>().unwrap().is_loopback());
        assert!("[::1]:5000/x".parse::<ImageRef>().unwrap().is_loopback());
        assert!(
            !"127.0.0.1.example.com/x"
                .parse::<ImageRef>()
                .unwrap()
                .is_loopback()
        );
    }
}
