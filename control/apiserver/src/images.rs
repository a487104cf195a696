//! The image gate's place in the request path: every image of a pod is judged and pinned before the pod is
//! stored, and a stored pod's image cannot change without being judged again.

use std::collections::BTreeMap;

use api::{
    ImageRef,
    annotations::{CONFIG_MIRROR, IMAGE_SCAN_PREFIX, IMAGE_VERDICT_PREFIX, REQUESTED_IMAGE_PREFIX},
    palisade::{ImagePolicy, ImageScan, image_scan_name},
};
use control_admission::{CONTAINER_LISTS, Pin, pin_images};
use control_store::ListOptions;
use control_wire::{Cause, Status};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tracing::{error, info};

use crate::{
    Server,
    call::Call,
    gate::{Judgement, Refusal},
    lifecycle::{self, Part, metadata_mut},
    objects::{self, metadata_text},
    write::store_failure,
};

impl Server {
    /// Judges and pins every image of `pod` that is not pinned in `old` already.
    pub(crate) async fn gate_images(
        &self,
        call: &Call,
        old: Option<&Value>,
        mut pod: Value,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let row = call.target.resource;
        if (row.group, row.plural) != ("", "pods") {
            return Ok(pod);
        }
        // A static pod has no account; what a node puts into the cluster must not spend the secrets of one.
        let is_mirror = pod
            .pointer("/metadata/annotations")
            .is_some_and(|annotations| !annotations[CONFIG_MIRROR].is_null());
        if old.is_none() && !is_mirror {
            self.adopt_pull_secrets(call, &mut pod).await?;
        }
        let wanted = settle_pins(old, &mut pod);
        if wanted.is_empty() {
            return Ok(pod);
        }
        if let Some(old) = old.filter(|_old| call.target.subresource().is_empty()) {
            // What is not valid anyway is not worth a scan.
            let mut changed = pod.clone();
            lifecycle::carry_over(old, &mut changed, row, Part::Main);
            self.review_change(call, old, &changed)?;
        }
        let name = metadata_text(&pod, "name").to_owned();
        let policies = self.image_policies().await?;
        let secrets = self.pull_secrets(call, &pod).await?;
        let mut pins: BTreeMap<String, Pin> = BTreeMap::new();
        let mut judged: BTreeMap<ImageRef, Pin> = BTreeMap::new();
        for Wanted {
            container,
            field,
            image,
        } in wanted
        {
            let reference: ImageRef = image.parse().map_err(|problem| {
                Status::invalid(row, &name, vec![Cause::invalid(field, &image, problem)])
            })?;
            let pin = match judged.get(&reference) {
                Some(pin) => pin.clone(),
                None => {
                    let under = (policies.as_slice(), secrets.as_slice());
                    self.judge(call, &name, &reference, under, dry_run).await?
                }
            };
            judged.insert(reference, pin.clone());
            pins.insert(container, pin);
        }
        pin_images(&mut pod, &pins)?;
        Ok(pod)
    }

    async fn judge(
        &self,
        call: &Call,
        pod: &str,
        image: &ImageRef,
        (policies, secrets): (&[ImagePolicy], &[Secret]),
        dry_run: bool,
    ) -> Result<Pin, Status> {
        let namespace = call.target.namespace();
        let judged = self.gate.judge(namespace, image, policies, secrets).await;
        let scan = match &judged {
            Ok(judgement) => Some(&judgement.scan),
            Err(refusal) => refusal.scan.as_ref(),
        };
        if let Some(scan) = scan.filter(|_| !dry_run) {
            // A pod without the record of its scan would be admitted on nobody's word.
            self.record_scan(call, scan).await?;
        }
        match judged {
            Ok(Judgement {
                pinned,
                scan,
                verdict,
            }) => Ok(Pin {
                digest: pinned,
                scan: image_scan_name(&scan.spec.digest),
                verdict,
            }),
            Err(Refusal { message, .. }) => {
                info!(target: "audit", %image, namespace, pod, user = call.who.identity().user, why = message, "image refused");
                Err(Status::forbidden(call.target.resource, pod, message))
            }
        }
    }

    /// A pod that names no secrets for registries gets those of its service account, as in Kubernetes. In the pod,
    /// they are what the node may read.
    async fn adopt_pull_secrets(&self, call: &Call, pod: &mut Value) -> Result<(), Status> {
        let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
            return Ok(());
        };
        let named = |field: &str| {
            spec.get(field)
                .and_then(Value::as_str)
                .filter(|name| !name.is_empty())
        };
        let account = named("serviceAccountName")
            .or(named("serviceAccount"))
            .unwrap_or("default");
        let own = spec.get("imagePullSecrets").and_then(Value::as_array);
        if own.is_some_and(|own| !own.is_empty()) {
            return Ok(());
        }
        let row = crate::row("", "serviceaccounts");
        let account = match self.fetch(row, call.target.namespace(), account).await {
            Ok(account) => account,
            Err(status) if status.code() == 404 => return Ok(()),
            Err(status) => return Err(status),
        };
        if let Some(secrets @ Value::Array(_)) = account.get("imagePullSecrets") {
            spec.insert("imagePullSecrets".to_owned(), secrets.clone());
        }
        Ok(())
    }

    /// The secrets that a pod names for registries. One that does not exist is passed over, as a kubelet does: the
    /// image may be everybody's.
    async fn pull_secrets(&self, call: &Call, pod: &Value) -> Result<Vec<Secret>, Status> {
        let row = crate::row("", "secrets");
        let named = pod.pointer("/spec/imagePullSecrets").and_then(Value::as_array);
        let mut secrets = Vec::new();
        for name in named
            .into_iter()
            .flatten()
            .filter_map(|named| named["name"].as_str())
        {
            match self.fetch(row, call.target.namespace(), name).await {
                // The error would quote what it stumbled over.
                Ok(secret) => secrets
                    .push(serde_json::from_value(secret).map_err(|_malformed| {
                        Status::internal(format!("secret {name:?} is not readable"))
                    })?),
                Err(status) if status.code() == 404 => {}
                Err(status) => return Err(status),
            }
        }
        Ok(secrets)
    }

    /// The policies in force. One that cannot be read refuses all images: leaving it out could admit one
    /// that it refuses.
    async fn image_policies(&self) -> Result<Vec<ImagePolicy>, Status> {
        let prefix = objects::prefix(crate::row("palisade.dev", "imagepolicies"), None);
        let page = self
            .store
            .list(&prefix, &ListOptions::default())
            .await
            .map_err(|e| store_failure(&e))?;
        let policies = page.items.iter().map(|stored| {
            serde_json::from_slice(&stored.value).map_err(|error| {
                error!(policy = stored.key.name, %error, "image policy");
                Status::internal(format!("image policy {:?} is not readable", stored.key.name))
            })
        });
        policies.collect()
    }

    /// Stores the record of a scan, unless exactly this one is stored already.
    async fn record_scan(&self, call: &Call, scan: &ImageScan) -> Result<(), Status> {
        let row = crate::row("palisade.dev", "imagescans");
        let scan = serde_json::to_value(scan).map_err(Status::internal)?;
        let name = metadata_text(&scan, "name").to_owned();
        self.put_own(row, &name, call.now, |old| {
            let same = old.is_some_and(|old| old["spec"] == scan["spec"] && old["status"] == scan["status"]);
            (!same).then(|| scan.clone())
        })
        .await
    }
}

/// A container whose image has to be judged.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    container: String,
    /// Path of its image.
    field: String,
    image: String,
}

/// Puts the pins of `old` back where the image did not really change, and returns the containers whose image
/// is new. The annotations that record pins are the gate's: whatever a client says about them is dropped.
fn settle_pins(old: Option<&Value>, pod: &mut Value) -> Vec<Wanted> {
    restore_annotations(old, pod);
    let mut wanted = Vec::new();
    for list in CONTAINER_LISTS {
        let containers = pod.pointer_mut(&format!("/spec/{list}"));
        let containers = containers.and_then(Value::as_array_mut);
        for (index, container) in containers.into_iter().flatten().enumerate() {
            let text = |field: &str| container[field].as_str().unwrap_or_default().to_owned();
            let (name, image) = (text("name"), text("image"));
            match old.and_then(|old| pinned(old, &name)) {
                Some((pinned, _)) if pinned == image => {}
                // A client that applies its manifest again sends the tag; the pod keeps the digest that the
                // tag meant when it was admitted.
                Some((pinned, requested)) if requested == image => container["image"] = json!(pinned),
                _ => wanted.push(Wanted {
                    container: name,
                    field: format!("spec.{list}[{index}].image"),
                    image,
                }),
            }
        }
    }
    wanted
}

/// Pinned and requested image of a container of a stored pod.
fn pinned<'a>(pod: &'a Value, container: &str) -> Option<(&'a str, &'a str)> {
    let lists = CONTAINER_LISTS
        .iter()
        .filter_map(|list| pod.pointer(&format!("/spec/{list}")));
    let mut containers = lists.filter_map(Value::as_array).flatten();
    let image = containers.find(|c| c["name"] == container)?["image"].as_str()?;
    let requested = pod
        .pointer("/metadata/annotations")?
        .get(format!("{REQUESTED_IMAGE_PREFIX}{container}"))?;
    Some((image, requested.as_str()?))
}

fn restore_annotations(old: Option<&Value>, pod: &mut Value) {
    let prefixes = [REQUESTED_IMAGE_PREFIX, IMAGE_SCAN_PREFIX, IMAGE_VERDICT_PREFIX];
    let is_own = |key: &String| prefixes.iter().any(|prefix| key.starts_with(prefix));
    let kept: Vec<(String, Value)> = old
        .and_then(|old| old.pointer("/metadata/annotations"))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(key, _)| is_own(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let metadata = metadata_mut(pod);
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !is_own(key));
    }
    if !kept.is_empty() {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.extend(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Value {
        json!({
            "metadata": {"name": "p", "annotations": {
                "mine": "x",
                format!("{REQUESTED_IMAGE_PREFIX}c"): "r.example/app:1",
                format!("{IMAGE_SCAN_PREFIX}c"): "sha256-1",
                format!("{IMAGE_VERDICT_PREFIX}c"): "v1.x.y",
            }},
            "spec": {"containers": [{"name": "c", "image": "r.example/app@sha256:1"}]},
        })
    }

    #[test]
    fn applying_the_same_manifest_again_keeps_the_pin() {
        let mut again = stored();
        again["spec"]["containers"][0]["image"] = json!("r.example/app:1");
        again["metadata"]["annotations"] = json!({"mine": "x"});
        assert_eq!(settle_pins(Some(&stored()), &mut again), []);
        assert_eq!(again, stored());
    }

    #[test]
    fn another_image_has_to_be_judged() {
        let mut changed = stored();
        changed["spec"]["containers"][0]["image"] = json!("r.example/app:2");
        let wanted = settle_pins(Some(&stored()), &mut changed);
        assert_eq!(
            wanted,
            [Wanted {
                container: "c".into(),
                field: "spec.containers[0].image".to_owned(),
                image: "r.example/app:2".into()
            }]
        );
    }

    #[test]
    fn a_client_cannot_forge_a_pin() {
        let mut forged = stored();
        let wanted = settle_pins(None, &mut forged);
        assert_eq!(wanted.len(), 1, "a new pod's digest is judged like any image");
        assert_eq!(forged["metadata"]["annotations"], json!({"mine": "x"}));

        let mut retagged = stored();
        retagged["metadata"]["annotations"][format!("{REQUESTED_IMAGE_PREFIX}c")] = json!("evil:1");
        retagged["spec"]["containers"][0]["image"] = json!("evil:1");
        assert_eq!(settle_pins(Some(&stored()), &mut retagged).len(), 1);
    }
}
