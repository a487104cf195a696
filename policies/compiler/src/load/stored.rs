//! Objects as Calico keeps them in a Kubernetes cluster. Their fields are those of its API; labels, and the names of
//! policies, stand in an annotation.
//!
//! The source is `ConvertK8sResourceToCalicoResource` in `libcalico-go/lib/backend/k8s/resources/resources.go`.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::{
    field::FieldError,
    load::{metadata, objects::settle_nulls},
};

/// The `apiVersion` under which they are kept.
pub(super) const API_VERSION: &str = "crd.projectcalico.org/v1";
/// Annotation with the metadata that the object has in Calico's API, as JSON. Older versions keep no labels there, and no
/// names.
const METADATA: &str = "projectcalico.org/metadata";
/// Where it stands, for people.
const FIELD: &str = "metadata.annotations[projectcalico.org/metadata]";
/// What stands before the names of policies of the default tier.
const TIER_PREFIX: &str = "default.";

/// The object as Calico reads it: with the labels of the annotation over its own, and its name if it has one. Other
/// objects are what they are.
pub(super) fn restored(object: &Value) -> Result<Cow<'_, Value>, Vec<FieldError>> {
    let Some(kept) = kept_metadata(object)? else {
        return Ok(Cow::Borrowed(object));
    };
    let mut errors = Vec::new();
    metadata::labels(FIELD, kept.labels.as_ref(), &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut restored = object.clone();
    let metadata = &mut restored["metadata"];
    if let Some(name) = kept.name {
        metadata["name"] = json!(name);
    }
    let labels = &mut metadata["labels"];
    if labels.is_null() {
        *labels = json!({});
    }
    // Anything else is an error of the object, which its reader tells.
    if let Some(labels) = labels.as_object_mut() {
        let kept = kept.labels.into_iter().flatten();
        labels.extend(kept.map(|(key, value)| (key, json!(value))));
    }
    Ok(Cow::Owned(restored))
}

/// The name that the object has in Calico's API, as far as it tells.
pub(super) fn name_in_api(object: &Value) -> String {
    let kept = kept_metadata(object).ok().flatten();
    if let Some(name) = kept.and_then(|kept| kept.name) {
        return name;
    }
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let name = text("/metadata/name").unwrap_or_default();
    let is_policy = text("/kind").is_some_and(|kind| kind.ends_with("NetworkPolicy"));
    let own = name.strip_prefix(TIER_PREFIX).filter(|_| is_policy);
    own.unwrap_or(name).to_owned()
}

/// What the annotation says, if this is an object that Calico keeps and has one.
fn kept_metadata(object: &Value) -> Result<Option<ObjectMeta>, Vec<FieldError>> {
    if object["apiVersion"] != API_VERSION {
        return Ok(None);
    }
    let Some(text) = object["metadata"]["annotations"][METADATA].as_str() else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(text).and_then(|mut metadata| {
        settle_nulls(&mut metadata);
        serde_json::from_value::<ObjectMeta>(metadata)
    });
    let mut kept = parsed.map_err(|error| {
        vec![FieldError {
            field: FIELD.to_owned(),
            problem: format!("is not the metadata of an object: {error}"),
            fix: "export the object again, or take it from projectcalico.org/v3".to_owned(),
        }]
    })?;
    kept.name = kept.name.filter(|name| !name.is_empty());
    Ok(Some(kept))
}
