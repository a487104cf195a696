//! What the API server needs from the image gate. The gate itself lives in `scanner/gate`; the daemon joins
//! the two, so that this crate does not know how images are fetched or scanned.

use api::{
    Digest, ImageRef,
    palisade::{ImagePolicy, ImageScan},
};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;

/// Judges images before pods with them are admitted.
#[async_trait]
pub trait ImageGate: Send + Sync + 'static {
    /// Resolves, verifies, scans and judges `image` for a pod in `namespace` under all of `policies` that
    /// apply there; registries are shown what `secrets`, those of the pod, hold for them. Everything that is not
    /// a clear pass is a [`Refusal`], failures of the gate included.
    async fn judge(
        &self,
        namespace: &str,
        image: &ImageRef,
        policies: &[ImagePolicy],
        secrets: &[Secret],
    ) -> Result<Judgement, Refusal>;
}

/// An image that may run.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// Digest of the manifest that was verified and scanned; the pod is pinned to it.
    pub pinned: Digest,
    /// The scan, recorded as an object.
    pub scan: ImageScan,
    /// The same, signed by the gate: what the node demands. See [`api::verdict`].
    pub verdict: String,
}

/// An image that may not run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why, for the person who asked: the image, and findings with package and fixed version or what could
    /// not be done.
    pub message: String,
    /// The scan, if there was one; recorded as an object all the same.
    pub scan: Option<ImageScan>,
}
