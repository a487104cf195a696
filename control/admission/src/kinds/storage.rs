//! Claims, volumes and classes: what nodes can honour, and nothing else.

use api::{
    host_paths::is_plain,
    quantity,
    resources::{self, Resource},
    storage::{
        CLAIM_PROTECTION, IS_DEFAULT_CLASS, LOCAL_PATH_CLASS, LOCAL_PATH_PROVISIONER, PROVISIONED_BY,
        VOLUME_PROTECTION,
    },
};
use control_wire::Cause;
use serde_json::{Map, Value, json};

use crate::{
    AdmissionRequest, Operation, Problems,
    metadata::items,
    shape::{
        self,
        Shape::{self, Any, Members, OneOf, Refused},
    },
    syntax,
};

const CLAIM: Shape = Members(&[
    ("accessModes", Any),
    ("dataSource", Refused("volumes begin empty")),
    ("dataSourceRef", Refused("volumes begin empty")),
    (
        "resources",
        Members(&[
            ("limits", Refused("a claim has no upper bound")),
            ("requests", Members(&[("storage", Any)])),
        ]),
    ),
    (
        "selector",
        Refused("volumes are found by class, size and accessModes"),
    ),
    ("storageClassName", Any),
    ("volumeMode", OneOf(&["Filesystem"])),
    ("volumeName", Any),
]);

const VOLUME: Shape = Members(&[
    ("accessModes", Any),
    ("capacity", Members(&[("storage", Any)])),
    ("claimRef", Any),
    (
        "hostPath",
        Refused("use `local`, with a nodeAffinity that names its node"),
    ),
    (
        "local",
        Members(&[("fsType", Refused("no file systems are made")), ("path", Any)]),
    ),
    (
        "mountOptions",
        Refused("directories are mounted as the sandbox demands"),
    ),
    ("nodeAffinity", Any),
    ("persistentVolumeReclaimPolicy", OneOf(&["Delete", "Retain"])),
    ("storageClassName", Any),
    ("volumeMode", OneOf(&["Filesystem"])),
]);

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce"];

/// The class that always exists.
pub(super) fn built_in_class() -> Option<(&'static Resource, Value)> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": LOCAL_PATH_CLASS, "annotations": {IS_DEFAULT_CLASS: "true"}},
        "provisioner": LOCAL_PATH_PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    Some((resources::by_kind("storage.k8s.io/v1", "StorageClass")?, class))
}

pub(super) fn default_claim(request: &AdmissionRequest<'_>, claim: &mut Value) {
    default_spec(claim, "volumeMode", "Filesystem");
    if request.operation == Operation::Create {
        claim["status"] = json!({"phase": "Pending"});
        protect(claim, CLAIM_PROTECTION);
    }
}

pub(super) fn default_volume(request: &AdmissionRequest<'_>, volume: &mut Value) {
    default_spec(volume, "volumeMode", "Filesystem");
    default_spec(volume, "persistentVolumeReclaimPolicy", "Retain");
    if request.operation == Operation::Create {
        volume["status"] = json!({"phase": "Pending"});
        protect(volume, VOLUME_PROTECTION);
    }
}

pub(super) fn default_class(class: &mut Value) {
    for (field, value) in [("reclaimPolicy", "Delete"), ("volumeBindingMode", "Immediate")] {
        if class[field].is_null() {
            class[field] = json!(value);
        }
    }
}

pub(super) fn check_claim(request: &AdmissionRequest<'_>, claim: &Value, problems: &mut Problems) {
    let spec = &claim["spec"];
    if let (Operation::Update, Some(old)) = (request.operation, request.old) {
        let mut before = old["spec"].clone();
        // Once, by the binder or by whoever knows which volume it shall be.
        if text(&before, "volumeName").is_empty() {
            before["volumeName"] = spec["volumeName"].clone();
        }
        if without_nulls(&before) != without_nulls(spec) {
            let why = "spec is immutable after creation; volumes do not grow";
            problems.push(Cause::forbidden("spec", why));
        }
        return;
    }
    shape::check(spec, &CLAIM, "spec", problems);
    check_access(spec, problems);
    let size = &spec["resources"]["requests"]["storage"];
    check_size(size, "spec.resources.requests.storage", problems);
    check_class_name(spec, problems);
}

pub(super) fn check_volume(request: &AdmissionRequest<'_>, volume: &Value, problems: &mut Problems) {
    let spec = &volume["spec"];
    if let (Operation::Update, Some(old)) = (request.operation, request.old) {
        let mut before = old["spec"].clone();
        for field in ["capacity", "claimRef", "persistentVolumeReclaimPolicy"] {
            before[field] = spec[field].clone();
        }
        if without_nulls(&before) != without_nulls(spec) {
            let why = "spec is immutable after creation, but for capacity, claimRef and persistentVolumeReclaimPolicy";
            problems.push(Cause::forbidden("spec", why));
        }
        check_capacity(spec, problems);
    } else {
        check_new_volume(spec, problems);
    }
    let ours = volume["metadata"]["annotations"][PROVISIONED_BY] == LOCAL_PATH_PROVISIONER;
    if text(spec, "persistentVolumeReclaimPolicy") == "Delete" && !ours {
        let why = "only what was provisioned is deleted with its claim; use Retain";
        problems.push(Cause::invalid(
            "spec.persistentVolumeReclaimPolicy",
            "Delete",
            why,
        ));
    }
}

fn check_new_volume(spec: &Value, problems: &mut Problems) {
    shape::check(spec, &VOLUME, "spec", problems);
    check_access(spec, problems);
    check_capacity(spec, problems);
    check_class_name(spec, problems);
    let path = spec["local"]["path"].as_str().unwrap_or_default();
    let why = "must be an absolute path without empty parts, '.' and '..', and not the root";
    problems.require(is_plain(path) && path != "/", "spec.local.path", path, why);
    let terms = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"];
    if items(terms).next().is_none() {
        let why = "a directory is on one node: name it";
        problems.push(Cause::required("spec.nodeAffinity", why));
    }
}

pub(super) fn check_class(request: &AdmissionRequest<'_>, class: &Value, problems: &mut Problems) {
    if let (Operation::Update, Some(old)) = (request.operation, request.old) {
        for field in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
            if old[field] != class[field] {
                let why = "updates to it are forbidden; make another class";
                problems.push(Cause::forbidden(field, why));
            }
        }
    }
    let provisioner = text(class, "provisioner");
    if provisioner.is_empty() {
        problems.push(Cause::required("provisioner", ""));
    }
    for (field, known) in [
        ("reclaimPolicy", &["Delete", "Retain"][..]),
        ("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
    ] {
        let value = text(class, field);
        if !known.contains(&value) {
            problems.push(Cause::not_supported(field, value, known));
        }
    }
    for (field, why) in [
        ("allowVolumeExpansion", "volumes do not grow"),
        ("allowedTopologies", "the scheduler chooses among all nodes"),
        ("mountOptions", "directories are mounted as the sandbox demands"),
    ] {
        shape::check(&class[field], &Refused(why), field, problems);
    }
    if provisioner == LOCAL_PATH_PROVISIONER {
        let parameters = class["parameters"].as_object().map_or(0, Map::len);
        problems.require(
            parameters == 0,
            "parameters",
            parameters,
            "this provisioner has none",
        );
        let mode = text(class, "volumeBindingMode");
        let why = "must be WaitForFirstConsumer: a directory is made on the node of its first pod";
        problems.require(mode == "WaitForFirstConsumer", "volumeBindingMode", mode, why);
    }
}

fn check_capacity(spec: &Value, problems: &mut Problems) {
    check_size(&spec["capacity"]["storage"], "spec.capacity.storage", problems);
}

fn check_access(spec: &Value, problems: &mut Problems) {
    const FIELD: &str = "spec.accessModes";
    if items(&spec["accessModes"]).next().is_none() {
        problems.push(Cause::required(FIELD, "at least 1 access mode is required"));
    }
    for mode in items(&spec["accessModes"]) {
        let mode = mode.as_str().unwrap_or_default();
        if !ACCESS_MODES.contains(&mode) {
            problems.push(Cause::not_supported(FIELD, mode, ACCESS_MODES));
        }
    }
}

fn check_size(size: &Value, field: &str, problems: &mut Problems) {
    match size.as_str() {
        None => problems.push(Cause::required(field, "")),
        Some(size) => match quantity::units(size) {
            Ok(bytes) => problems.require(bytes > 0, field, size, "must be greater than zero"),
            Err(error) => problems.push(Cause::invalid(field, size, error)),
        },
    }
}

fn check_class_name(spec: &Value, problems: &mut Problems) {
    let name = text(spec, "storageClassName");
    let valid = name.is_empty() || syntax::is_subdomain(name);
    problems.require(valid, "spec.storageClassName", name, syntax::SUBDOMAIN);
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn default_spec(object: &mut Value, field: &str, value: &str) {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get(field).is_none_or(Value::is_null)
    {
        spec.insert(field.to_owned(), json!(value));
    }
}

fn protect(object: &mut Value, finalizer: &str) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|own| own == finalizer)
    {
        list.push(json!(finalizer));
    }
}

/// An absent member and a null one are the same.
fn without_nulls(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    object
}
