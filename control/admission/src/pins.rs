//! Writing down what the image gate found: a pod that is stored names the digests that were scanned.

use std::collections::BTreeMap;

use api::{
    Digest, ImageRef,
    annotations::{IMAGE_SCAN_PREFIX, IMAGE_VERDICT_PREFIX, REQUESTED_IMAGE_PREFIX},
};
use control_wire::Status;
use serde_json::{Map, Value, json};

/// What the gate found for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Digest of the manifest that was verified and scanned.
    pub digest: Digest,
    /// Name of the `ImageScan` that records it.
    pub scan: String,
    /// The gate's signed word that the image may run in the pod's namespace.
    pub verdict: String,
}

/// Lists of containers in the specification of a pod. Names are unique among all of them.
pub const CONTAINER_LISTS: &[&str] = &["initContainers", "containers", "ephemeralContainers"];

/// Rewrites the images of the containers that `pins` names (by container name) to their digests, and notes
/// the image as it was asked for and the scan in the pod's annotations.
pub fn pin_images(pod: &mut Value, pins: &BTreeMap<String, Pin>) -> Result<(), Status> {
    let mut notes = Vec::new();
    for list in CONTAINER_LISTS {
        let containers = pod.pointer_mut(&format!("/spec/{list}"));
        let containers = containers.and_then(Value::as_array_mut);
        for (index, container) in containers.into_iter().flatten().enumerate() {
            let name = text(container, "name").to_owned();
            let Some(pin) = pins.get(&name) else { continue };
            let requested = text(container, "image").to_owned();
            let image: ImageRef = requested
                .parse()
                .map_err(|error: api::image_ref::ImageRefError| {
                    Status::bad_request(format!("spec.{list}[{index}].image: {error}"))
                })?;
            container["image"] = json!(image.pinned(pin.digest).to_string());
            notes.push((format!("{REQUESTED_IMAGE_PREFIX}{name}"), requested));
            notes.push((format!("{IMAGE_SCAN_PREFIX}{name}"), pin.scan.clone()));
            notes.push((format!("{IMAGE_VERDICT_PREFIX}{name}"), pin.verdict.clone()));
        }
    }
    let annotations = &mut pod["metadata"]["annotations"];
    if !annotations.is_object() {
        *annotations = Value::Object(Map::new());
    }
    for (key, value) in notes {
        annotations[key] = json!(value);
    }
    Ok(())
}

/// Refuses a pod with an image that the gate did not pin. Reaching this is a defect of the caller, not of the
/// request, hence 500.
pub(crate) fn require(pod: &Value) -> Result<(), Status> {
    let noted = |prefix: &str, container: &str| {
        let annotations = pod.pointer("/metadata/annotations");
        let note = annotations.and_then(|all| all.get(format!("{prefix}{container}")));
        note.and_then(Value::as_str).is_some_and(|note| !note.is_empty())
    };
    let lists = CONTAINER_LISTS
        .iter()
        .filter_map(|list| pod.pointer(&format!("/spec/{list}")));
    for container in lists.filter_map(Value::as_array).flatten() {
        let (name, image) = (text(container, "name"), text(container, "image"));
        let by_digest = image
            .parse::<ImageRef>()
            .is_ok_and(|image| image.digest.is_some());
        let notes = [REQUESTED_IMAGE_PREFIX, IMAGE_SCAN_PREFIX, IMAGE_VERDICT_PREFIX];
        if !(by_digest && notes.iter().all(|prefix| noted(prefix, name))) {
            return Err(Status::internal(format!(
                "the image of container {name:?} did not pass the image gate"
            )));
        }
    }
    Ok(())
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_pod_names_digest_request_and_scan() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "a", "image": "r.example/app:1"}, {"name": "b", "image": "busybox"}]}});
        assert_eq!(require(&pod).unwrap_err().code(), 500);
        let pin = |text: &str| Pin {
            digest: Digest::of(text.as_bytes()),
            scan: format!("scan-{text}"),
            verdict: format!("verdict-{text}"),
        };
        let a = pin("a");
        pin_images(&mut pod, &[("a".to_owned(), a.clone())].into()).unwrap();
        assert!(require(&pod).is_err(), "b is not pinned");
        pin_images(&mut pod, &[("b".to_owned(), pin("b"))].into()).unwrap();
        assert_eq!(require(&pod), Ok(()));
        assert_eq!(
            pod["spec"]["containers"][0]["image"],
            format!("r.example/app@{}", a.digest)
        );
        assert_eq!(
            pod["metadata"]["annotations"]["palisade.dev/requested-image.b"],
            "busybox"
        );
        assert_eq!(
            pod["metadata"]["annotations"]["palisade.dev/image-scan.a"],
            "scan-a"
        );
        assert_eq!(
            pod["metadata"]["annotations"]["palisade.dev/image-verdict.a"],
            "verdict-a"
        );
        let mut unsigned = pod.clone();
        unsigned["metadata"]["annotations"]["palisade.dev/image-verdict.a"] = json!("");
        assert!(require(&unsigned).is_err(), "a node would refuse it");
        let mut with_init = pod.clone();
        with_init["spec"]["initContainers"] = json!([{"name": "i", "image": "busybox"}]);
        assert!(require(&with_init).is_err(), "init containers are containers");
        pin_images(&mut with_init, &[("i".to_owned(), pin("i"))].into()).unwrap();
        assert_eq!(require(&with_init), Ok(()));
        let mut with_debug = with_init;
        with_debug["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "busybox"}]);
        assert!(require(&with_debug).is_err(), "so are ephemeral ones");
        pin_images(&mut with_debug, &[("d".to_owned(), pin("d"))].into()).unwrap();
        assert_eq!(require(&with_debug), Ok(()));
        // A digest alone is nobody's word that it was scanned.
        let bare = json!({"spec": {"containers": [{"name": "a", "image": format!("x@{}", a.digest)}]}});
        assert!(require(&bare).is_err());
    }

    #[test]
    fn a_malformed_image_is_refused() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "UPPER CASE"}]}});
        let pins = [(
            "a".to_owned(),
            Pin {
                digest: Digest::of(b""),
                scan: "s".to_owned(),
                verdict: "v".to_owned(),
            },
        )]
        .into();
        assert_eq!(pin_images(&mut pod, &pins).unwrap_err().code(), 400);
    }
}
