//! Why an image could not be fetched. Every variant names the operation that failed and the limit or
//! value that was expected, because the text reaches the user through pod events and refusals.

use std::{path::PathBuf, time::Duration};

use api::Digest;

/// Why an image could not be resolved, fetched or verified.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Fetching by tag would let the image change between check and use.
    #[error("image {image} is not pinned to a digest; resolve it first")]
    Unpinned {
        /// The reference as given.
        image: String,
    },
    /// The registry or layout does not have it.
    #[error("{what} not found in {place}")]
    NotFound {
        /// What was asked for, such as `tag 1.2` or `blob sha256:...`.
        what: String,
        /// Registry repository or layout directory.
        place: String,
    },
    /// The registry wants credentials, or others.
    #[error("registry {registry} refuses access to {repository} {access}")]
    Unauthorized {
        /// Registry host.
        registry: String,
        /// Repository in it.
        repository: String,
        /// What it was asked with.
        access: &'static str,
    },
    /// By configuration, nobody may say what a tag means.
    #[error(
        "no host that is configured for registry {registry} may resolve a tag; add \"resolve\" to its capabilities"
    )]
    NoPlace {
        /// Registry host.
        registry: String,
    },
    /// A server did not go on where it was asked to.
    #[error("GET {url} answered with another range than was asked for")]
    Range {
        /// Address that was asked.
        url: String,
    },
    /// The configuration of registries and mirrors cannot be used.
    #[error("the configuration of registries")]
    Hosts {
        /// What is wrong, in which file.
        #[source]
        source: crate::HostsError,
    },
    /// An answer with an unexpected status code.
    ///
    /// The body is left out: a registry may redirect to an address that only this machine reaches, and
    /// the text of this error is shown to whoever named the image.
    #[error("GET {url} answered {status}{}", later(*retry_after))]
    Status {
        /// Address that was asked.
        url: String,
        /// HTTP status code.
        status: u16,
        /// When it wants to be asked again, if it says so.
        retry_after: Option<Duration>,
    },
    /// Connecting, TLS or reading failed.
    #[error("GET {url} failed")]
    Http {
        /// Address that was asked.
        url: String,
        /// What went wrong below.
        #[source]
        source: reqwest::Error,
    },
    /// The registry's authentication challenge cannot be followed.
    #[error("registry {registry} sent an authentication challenge that cannot be followed: {problem}")]
    Challenge {
        /// Registry host.
        registry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Something is larger than its limit.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was too large.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// There are more layers than allowed.
    #[error("image {digest} has {layers} layers, the limit is {limit}")]
    TooManyLayers {
        /// Manifest digest.
        digest: Digest,
        /// Layers that it lists.
        layers: usize,
        /// The limit.
        limit: usize,
    },
    /// Bytes do not have the digest under which they were asked for.
    #[error("{what} does not match its digest: expected {expected}, received {actual}")]
    DigestMismatch {
        /// What was verified.
        what: String,
        /// Digest that was asked for.
        expected: Digest,
        /// Digest of what arrived.
        actual: Digest,
    },
    /// A blob is longer or shorter than its descriptor says.
    #[error("{what} has {actual} bytes, its descriptor says {expected}")]
    SizeMismatch {
        /// What was verified.
        what: String,
        /// Size in the descriptor.
        expected: u64,
        /// Bytes that arrived (for longer blobs: bytes seen until reading stopped).
        actual: u64,
    },
    /// A document is not the JSON it should be.
    #[error("{what} is not valid")]
    Json {
        /// Which document.
        what: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A document is JSON, but breaks a rule of the OCI image specification.
    #[error("{what} is not a valid image document: {problem}")]
    Document {
        /// Which document.
        what: String,
        /// The rule that it breaks.
        problem: String,
    },
    /// No manifest for this machine.
    #[error("{image} has no image for {wanted}; it offers {offered}")]
    Platform {
        /// The reference or digest.
        image: String,
        /// `os/architecture` of this machine.
        wanted: String,
        /// What is there instead.
        offered: String,
    },
    /// A layer cannot be decompressed.
    #[error("layer {digest} cannot be decompressed")]
    Decompress {
        /// Digest of the compressed layer.
        digest: Digest,
        /// What the decoder says.
        #[source]
        source: std::io::Error,
    },
    /// A local file operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted, such as `read`.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A configured CA file has no usable certificate.
    #[error("CA file {} has no usable certificate: {problem}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The TLS settings of the HTTP client are not possible.
    #[error("cannot set up TLS for registry access")]
    Tls {
        /// What rustls says.
        #[source]
        source: rustls::Error,
    },
    /// The HTTP client cannot be built.
    #[error("cannot set up the HTTP client for registry access")]
    Client {
        /// What reqwest says.
        #[source]
        source: reqwest::Error,
    },
    /// The whole operation took too long.
    #[error("{image} did not arrive within {seconds} s")]
    Timeout {
        /// The reference.
        image: String,
        /// The limit in seconds.
        seconds: u64,
    },
    /// A blocking task was cancelled, which happens when the process shuts down.
    #[error("verification of {what} was interrupted")]
    Interrupted {
        /// What was being verified.
        what: String,
    },
}

impl FetchError {
    /// Whether the same may well succeed in a moment: the network or the server failed, nothing was refused.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            // Nobody listens: it takes longer than a moment until somebody does.
            Self::Http { source, .. } => {
                !source.is_connect() && !source.is_builder() && !source.is_redirect()
            }
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Range { .. } => true,
            _ => false,
        }
    }

    /// Whether what arrived is not what was asked for.
    pub(crate) fn is_about_content(&self) -> bool {
        matches!(
            self,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::TooLarge { .. }
        )
    }
}

fn later(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!(", to be asked again in {} s", wait.as_secs()),
        None => String::new(),
    }
}
