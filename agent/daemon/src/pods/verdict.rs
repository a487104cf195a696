//! The node's own check that an image may run: the gate's signature, not the control plane's word for it.
//!
//! A pod's object says which digest to run; whoever can write it past admission could name another one. So each
//! image needs the verdict that the gate signed for exactly this digest in exactly this namespace. A verdict does
//! not expire: a pod that was admitted goes on being restarted, and whether it still should run is asked of the
//! present database and policies elsewhere.

use api::{Digest, ImageRef, annotations::IMAGE_VERDICT_PREFIX, image_ref::ImageRefError};
use control_pki::verdict::{VerdictError, Verifier};
use k8s_openapi::api::core::v1::Pod;

/// A pinned image that the gate lets run in its pod's namespace. Made only by [`demand`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cleared {
    image: ImageRef,
    digest: Digest,
}

/// Why an image does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum Uncleared {
    #[error("the image reference")]
    Reference(#[from] ImageRefError),
    #[error("image {0} is not pinned to a digest; only what was scanned runs")]
    NotPinned(String),
    #[error(
        "image {image} has no verdict of the image gate (annotation {IMAGE_VERDICT_PREFIX}{container}); \
         create the pod anew to have it judged"
    )]
    Missing { image: String, container: String },
    #[error("the verdict about image {image} is not believed")]
    Forged {
        image: String,
        #[source]
        source: VerdictError,
    },
    #[error("the image gate's verdict is about {actual} in namespace {namespace:?}, not about {image} here")]
    Other {
        image: String,
        actual: Digest,
        namespace: String,
    },
}

impl Cleared {
    /// The image, pinned.
    pub(super) fn image(&self) -> &ImageRef {
        &self.image
    }

    /// The digest that was judged.
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }
}

/// Demands the gate's verdict about the image of a pod's container.
pub(super) fn demand(
    verifier: &Verifier,
    pod: &Pod,
    container: &str,
    image: &str,
) -> Result<Cleared, Uncleared> {
    let reference: ImageRef = image.parse()?;
    let Some(digest) = reference.digest else {
        return Err(Uncleared::NotPinned(image.to_owned()));
    };
    let annotations = pod.metadata.annotations.as_ref();
    let said = annotations.and_then(|all| all.get(&format!("{IMAGE_VERDICT_PREFIX}{container}")));
    let said = said.ok_or_else(|| Uncleared::Missing {
        image: image.to_owned(),
        container: container.to_owned(),
    })?;
    let verdict = verifier.verify(said).map_err(|source| Uncleared::Forged {
        image: image.to_owned(),
        source,
    })?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if (verdict.digest, verdict.namespace.as_str()) != (digest, namespace) {
        return Err(Uncleared::Other {
            image: image.to_owned(),
            actual: verdict.digest,
            namespace: verdict.namespace,
        });
    }
    Ok(Cleared {
        image: reference,
        digest,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use api::verdict::Verdict;
    use control_pki::{InitOptions, verdict::Signer};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    /// The keys of a cluster of its own.
    fn cluster(state: &Path) -> (Signer, Verifier) {
        let options = InitOptions {
            control_uid: rustix::process::getuid().as_raw(),
            node_name: "n".to_owned(),
            api_names: vec![],
            node_names: vec![],
            api_url: "https://127.0.0.1:6443".to_owned(),
        };
        control_pki::init(state, &options).unwrap();
        let signer = Signer::load(&state.join("control/tls")).unwrap();
        (signer, Verifier::load(&state.join("agent/tls")).unwrap())
    }

    fn verdict(namespace: &str, digest: Digest) -> Verdict {
        Verdict {
            namespace: namespace.to_owned(),
            digest,
            db_hash: Digest::of(b"db"),
            policy_hash: Digest::of(b"policy"),
            judged_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn pod(verdict: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "p",
            "annotations": {format!("{IMAGE_VERDICT_PREFIX}c"): verdict}}}))
        .unwrap()
    }

    #[test]
    fn an_image_without_the_gates_own_word_does_not_run() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (signer, verifier) = cluster(own.path());
        let (forger, _) = cluster(other.path());
        let digest = Digest::of(b"image");
        let image = format!("r.example/app@{digest}");
        let ask = |pod: &Pod, image: &str| demand(&verifier, pod, "c", image);

        let good = pod(&signer.sign(&verdict("shop", digest)));
        let cleared = ask(&good, &image).unwrap();
        assert_eq!(
            (cleared.digest(), cleared.image().to_string()),
            (digest, image.clone())
        );

        let forged = pod(&forger.sign(&verdict("shop", digest)));
        assert!(matches!(ask(&forged, &image), Err(Uncleared::Forged { .. })));
        let elsewhere = pod(&signer.sign(&verdict("lab", digest)));
        assert!(matches!(ask(&elsewhere, &image), Err(Uncleared::Other { .. })));
        let another = format!("r.example/app@{}", Digest::of(b"another"));
        assert!(matches!(ask(&good, &another), Err(Uncleared::Other { .. })));
        assert!(matches!(
            ask(&good, "r.example/app:1"),
            Err(Uncleared::NotPinned(_))
        ));
        assert!(matches!(ask(&good, "UPPER"), Err(Uncleared::Reference(_))));
        assert!(matches!(
            demand(&verifier, &good, "d", &image),
            Err(Uncleared::Missing { .. })
        ));
    }
}
