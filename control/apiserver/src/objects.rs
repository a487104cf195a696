//! Objects between the store's bytes and the API's JSON.

use api::resources::Resource;
use control_store::{KeyPrefix, ObjectKey, Revision, Stored};
use serde_json::{Value, json};

use crate::lifecycle::metadata_mut;

/// A stored value that is no JSON object. The store authenticates what it returns, so this is a defect of
/// the server that wrote it, reported and never hidden.
#[derive(Debug, thiserror::Error)]
#[error("stored object {key:?} is not readable")]
pub(crate) struct Unreadable {
    key: ObjectKey,
    #[source]
    source: serde_json::Error,
}

/// Where an object is stored.
pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        resource: stored_resource(resource),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// Where the objects of a collection are stored.
pub(crate) fn prefix(resource: &Resource, namespace: Option<&str>) -> KeyPrefix {
    KeyPrefix {
        resource: stored_resource(resource),
        namespace: namespace.map(str::to_owned),
    }
}

/// A stored object as the API shows it, `revision` being its `resourceVersion`.
pub(crate) fn materialise(stored: &Stored, revision: Revision) -> Result<Value, Unreadable> {
    let mut object: Value = serde_json::from_slice(&stored.value).map_err(|source| Unreadable {
        key: stored.key.clone(),
        source,
    })?;
    set_revision(&mut object, revision);
    Ok(object)
}

/// An object as it is stored: without the revision, which is the store's to say.
pub(crate) fn serialise(object: &Value) -> Vec<u8> {
    let mut object = object.clone();
    metadata_mut(&mut object).remove("resourceVersion");
    object.to_string().into_bytes()
}

/// Writes `resourceVersion`.
pub(crate) fn set_revision(object: &mut Value, revision: Revision) {
    metadata_mut(object).insert("resourceVersion".to_owned(), json!(revision.to_string()));
}

/// A text below `metadata`, empty if absent.
pub(crate) fn metadata_text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn stored_resource(resource: &Resource) -> String {
    let group = if resource.group.is_empty() {
        "core"
    } else {
        resource.group
    };
    format!("{group}/{}", resource.plural)
}
