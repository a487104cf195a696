//! The node's own check that an image may run: the gate's signature, not the control plane's word for it.
//!
//! A pod's object says which digest to run; whoever can write it past admission could name another one. So each
//! image needs the verdict that the gate signed for exactly this digest in exactly this namespace.
//!
//! A verdict has an end, after which nothing starts by it for the first time: a pod of today is not let in by what
//! yesterday's database knew. What was let in here in time is noted on this node's disk, beside the pod's volumes, and goes
//! on being restarted whatever the time and wherever the gate is.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use api::{Digest, ImageRef, annotations::IMAGE_VERDICT_PREFIX, image_ref::ImageRefError};
use control_pki::verdict::{VerdictError, Verifier};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::durable;

/// What was let in, in the pod's directory.
const NOTE: &str = "cleared.json";

/// A pinned image that the gate lets run in its pod's namespace. Made only by [`clear`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cleared {
    image: ImageRef,
    digest: Digest,
    not_after: Timestamp,
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
    #[error(
        "the image gate's verdict about {image} ended at {not_after}, before the container started here; \
         create the pod anew to have it judged by today's database"
    )]
    Late { image: String, not_after: Timestamp },
    #[error("{}: cannot note what was let in", path.display())]
    Note {
        path: PathBuf,
        #[source]
        source: io::Error,
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

/// Demands the gate's verdict about the image of a pod's container, in time: now, or when the pod came to this node.
/// `directory` is the pod's.
pub(super) fn clear(
    verifier: &Verifier,
    directory: &Path,
    pod: &Pod,
    (container, image): (&str, &str),
    now: Timestamp,
) -> Result<Cleared, Uncleared> {
    let cleared = demand(verifier, pod, container, image)?;
    let mut noted = read_note(directory);
    if noted.get(container) == Some(&cleared.digest) {
        return Ok(cleared);
    }
    if now > cleared.not_after {
        return Err(Uncleared::Late {
            image: image.to_owned(),
            not_after: cleared.not_after,
        });
    }
    // The others too: one that starts after a long-running init container comes with the pod all the same.
    for (container, image) in images(pod) {
        if let Ok(other) = demand(verifier, pod, container, image)
            && now <= other.not_after
        {
            noted.insert(container.to_owned(), other.digest);
        }
    }
    write_note(directory, &noted).map_err(|source| Uncleared::Note {
        path: directory.join(NOTE),
        source,
    })?;
    Ok(cleared)
}

/// Containers and their images.
fn images(pod: &Pod) -> impl Iterator<Item = (&str, &str)> {
    let spec = pod.spec.iter();
    let plain = spec.clone().flat_map(|spec| {
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.map(|container| (container.name.as_str(), container.image.as_deref()))
    });
    let ephemeral = spec.flat_map(|spec| {
        let all = spec.ephemeral_containers.iter().flatten();
        all.map(|container| (container.name.as_str(), container.image.as_deref()))
    });
    plain
        .chain(ephemeral)
        .filter_map(|(name, image)| Some((name, image?)))
}

/// Digests by container. What cannot be read says nothing.
fn read_note(directory: &Path) -> BTreeMap<String, Digest> {
    let text = fs::read(directory.join(NOTE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// It matters most after a power loss.
fn write_note(directory: &Path, noted: &BTreeMap<String, Digest>) -> io::Result<()> {
    durable::replace(directory, NOTE, &serde_json::to_vec(noted)?)
}

fn demand(verifier: &Verifier, pod: &Pod, container: &str, image: &str) -> Result<Cleared, Uncleared> {
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
        not_after: verdict.not_after,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use api::verdict::Verdict;
    use control_pki::{InitOptions, verdict::Signer};
    use jiff::SignedDuration;
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
            not_after: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24),
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

    #[test]
    fn a_verdict_of_yesterday_starts_nothing_new_and_what_ran_goes_on() {
        let (own, node) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (signer, verifier) = cluster(own.path());
        let [first, second, other] = [&b"first"[..], b"second", b"other"].map(Digest::of);
        let image = |digest: Digest| format!("r.example/app@{digest}");
        let signed = |digest: Digest| signer.sign(&verdict("shop", digest));
        let pod = |second_image: Digest| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": "p", "annotations": {
                    format!("{IMAGE_VERDICT_PREFIX}init"): signed(first),
                    format!("{IMAGE_VERDICT_PREFIX}main"): signed(second_image),
                }},
                "spec": {
                    "initContainers": [{"name": "init", "image": image(first)}],
                    "containers": [{"name": "main", "image": image(second_image)}],
                },
            }))
            .unwrap()
        };
        let ask = |directory: &str, pod: &Pod, container: &str, digest: Digest, hours: i64| {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
            let wanted = (container, image(digest));
            clear(
                &verifier,
                &node.path().join(directory),
                pod,
                (wanted.0, &wanted.1),
                now,
            )
        };
        let late = |asked: Result<Cleared, Uncleared>| matches!(asked, Err(Uncleared::Late { .. }));
        let own = pod(second);
        assert!(late(ask("new", &own, "init", first, 25)));
        assert!(ask("ran", &own, "init", first, 24).is_ok());
        assert!(ask("ran", &own, "init", first, 1000).is_ok(), "it runs again");
        assert!(
            ask("ran", &own, "main", second, 1000).is_ok(),
            "it came with the pod"
        );
        // Neither another image nor another pod lives on that.
        assert!(late(ask("ran", &pod(other), "main", other, 1000)));
        assert!(late(ask("new", &own, "main", second, 1000)));
        let forged = "v2.7b7d.00";
        let mut altered = own.clone();
        altered.metadata.annotations =
            Some([(format!("{IMAGE_VERDICT_PREFIX}main"), forged.to_owned())].into());
        assert!(
            ask("ran", &altered, "main", second, 1).is_err(),
            "the signature is demanded as before"
        );
        fs::write(node.path().join("ran").join(NOTE), "garbage").unwrap();
        assert!(
            late(ask("ran", &own, "main", second, 1000)),
            "what cannot be read says nothing"
        );
    }
}
