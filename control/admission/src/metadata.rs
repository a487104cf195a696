//! Metadata of every kind.

use std::collections::HashSet;

use api::selector::{is_label_key, is_label_value};
use control_wire::Cause;
use serde_json::Value;

use crate::{AdmissionRequest, Operation, Problems, syntax};

/// All annotations of an object together, keys and values, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Finalizers of an object.
const MAX_FINALIZERS: usize = 64;

/// Checks names, labels, annotations, owners and finalizers.
pub(crate) fn check(request: &AdmissionRequest<'_>, object: &Value, problems: &mut Problems) {
    let metadata = &object["metadata"];
    check_name(request, metadata, problems);
    for (key, value) in members(&metadata["labels"]) {
        let field = "metadata.labels";
        problems.require(
            is_label_key(key),
            field,
            key,
            "must be a qualified name: [prefix/]name of at most 63 characters",
        );
        let value = value.as_str().unwrap_or_default();
        problems.require(
            is_label_value(value),
            field,
            value,
            "must be at most 63 characters, alphanumeric at both ends, with '-', '_', '.' between",
        );
    }
    let mut size = 0;
    for (key, value) in members(&metadata["annotations"]) {
        size += key.len() + value.as_str().map_or(0, str::len);
        // Unlike a label's, the prefix and name of an annotation may have upper case letters.
        let is_key = is_label_key(&key.to_ascii_lowercase());
        problems.require(
            is_key,
            "metadata.annotations",
            key,
            "must be a qualified name: [prefix/]name of at most 63 characters",
        );
    }
    if size > MAX_ANNOTATIONS {
        problems.push(Cause::too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
    check_owners(metadata, problems);
    check_finalizers(request, metadata, problems);
}

fn check_name(request: &AdmissionRequest<'_>, metadata: &Value, problems: &mut Problems) {
    let name = metadata["name"].as_str().unwrap_or_default();
    let (is_name, why): (fn(&str) -> bool, &str) = match request.resource.kind {
        "Namespace" => (syntax::is_label, syntax::LABEL),
        "Service" => (syntax::is_service_name, syntax::SERVICE_NAME),
        _ => (syntax::is_subdomain, syntax::SUBDOMAIN),
    };
    if name.is_empty() {
        problems.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        problems.require(is_name(name), "metadata.name", name, why);
    }
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    match (request.resource.namespaced(), namespace) {
        (true, "") => problems.push(Cause::required("metadata.namespace", "")),
        (true, namespace) => {
            problems.require(
                syntax::is_label(namespace),
                "metadata.namespace",
                namespace,
                syntax::LABEL,
            );
        }
        (false, "") => {}
        (false, _) => problems.push(Cause::forbidden("metadata.namespace", "not allowed on this type")),
    }
}

fn check_owners(metadata: &Value, problems: &mut Problems) {
    let mut controllers = 0;
    for (index, owner) in items(&metadata["ownerReferences"]).enumerate() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner[key].as_str().unwrap_or_default().is_empty() {
                problems.push(Cause::required(
                    format!("metadata.ownerReferences[{index}].{key}"),
                    "",
                ));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    problems.require(
        controllers <= 1,
        "metadata.ownerReferences",
        controllers,
        "only one reference can have controller set to true",
    );
}

fn check_finalizers(request: &AdmissionRequest<'_>, metadata: &Value, problems: &mut Problems) {
    const FIELD: &str = "metadata.finalizers";
    let finalizers: Vec<&str> = items(&metadata["finalizers"]).filter_map(Value::as_str).collect();
    problems.require(
        finalizers.len() <= MAX_FINALIZERS,
        FIELD,
        finalizers.len(),
        "at most 64 finalizers",
    );
    for finalizer in &finalizers {
        // Two of Kubernetes' own have no prefix; for others it says who removes them.
        let known = matches!(*finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
        let qualified = is_label_key(finalizer) && finalizer.contains('/');
        problems.require(
            known || qualified,
            FIELD,
            finalizer,
            "must be a qualified name: prefix/name",
        );
    }
    if request.operation == Operation::Update && metadata["deletionTimestamp"].is_string() {
        let old: HashSet<&str> = request
            .old
            .into_iter()
            .flat_map(|old| items(&old["metadata"]["finalizers"]))
            .filter_map(Value::as_str)
            .collect();
        if finalizers.iter().any(|finalizer| !old.contains(finalizer)) {
            let why = "no new finalizers can be added if the object is being deleted";
            problems.push(Cause::forbidden(FIELD, why));
        }
    }
}

/// Members of an object; none for anything else.
pub(crate) fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Items of a list; none for anything else.
pub(crate) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
