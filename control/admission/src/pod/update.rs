//! What may change in a pod that exists: its metadata, except for what names its sandbox, the images of its containers, more
//! tolerations, an earlier deadline, once, by binding, its node, and by a subresource of their own more ephemeral containers.

use std::collections::BTreeSet;

use api::annotations::CONFIG_MIRROR;
use control_wire::Cause;
use serde_json::Value;

use super::{check_toleration, ephemeral, sandboxed};
use crate::{
    AdmissionRequest, Problems,
    metadata::{items, members},
};

pub(super) fn check(request: &AdmissionRequest<'_>, old: &Value, new: &Value, problems: &mut Problems) {
    check_profiles(
        &old["metadata"]["annotations"],
        &new["metadata"]["annotations"],
        problems,
    );
    let (mut before, mut after) = (old["spec"].clone(), new["spec"].clone());
    check_tolerations(&before, &after, problems);
    check_deadline(
        &before["activeDeadlineSeconds"],
        &after["activeDeadlineSeconds"],
        problems,
    );
    let mut free = vec!["tolerations", "activeDeadlineSeconds"];
    if request.subresource == "binding" {
        free.push("nodeName");
    }
    if request.subresource == "ephemeralcontainers" {
        free = vec!["ephemeralContainers"];
        ephemeral::check(old, new, problems);
    } else if old["metadata"]["annotations"][CONFIG_MIRROR].is_null() {
        // Of a static pod the file says what runs.
        allow_images(&mut before, &after);
    }
    for spec in [&mut before, &mut after] {
        if let Some(spec) = spec.as_object_mut() {
            free.iter().for_each(|field| drop(spec.remove(*field)));
        }
    }
    if before != after {
        let changed = first_difference(&before, &after, "spec".to_owned());
        let why = "pod updates may not change fields other than `spec.containers[*].image`, \
                   `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` and `spec.tolerations` (only additions \
                   to existing tolerations); delete the pod and create it again";
        problems.push(Cause::forbidden(changed, why));
    }
}

/// Gives each container of `before` the image that it has in `after`, which the image gate judges.
fn allow_images(before: &mut Value, after: &Value) {
    for list in ["containers", "initContainers"] {
        let containers = before.get_mut(list).and_then(Value::as_array_mut);
        let containers = containers.into_iter().flatten();
        for (container, changed) in containers.zip(items(&after[list])) {
            if container["name"] == changed["name"] && changed["image"].is_string() {
                container["image"] = changed["image"].clone();
            }
        }
    }
}

/// The next start of a container would follow, so who may write to a pod's metadata could loosen its sandbox.
fn check_profiles(before: &Value, after: &Value, problems: &mut Problems) {
    let keys = members(before).chain(members(after)).map(|(key, _value)| key);
    let named: BTreeSet<&String> = keys.filter(|key| sandboxed(key).is_some()).collect();
    for key in named {
        if before[key] != after[key] {
            let why = "the sandbox profile of a pod that exists stays; delete the pod and create it again";
            problems.push(Cause::forbidden(format!("metadata.annotations[{key}]"), why));
        }
    }
}

/// The first deadline, or an earlier one.
fn check_deadline(before: &Value, after: &Value, problems: &mut Problems) {
    const FIELD: &str = "spec.activeDeadlineSeconds";
    let (before, after) = (before.as_i64(), after.as_i64());
    match (before, after) {
        _ if before == after => {}
        (Some(_), None) => {
            let why = "must not update from a positive integer to nil value";
            problems.push(Cause::invalid(FIELD, "", why));
        }
        (Some(before), Some(after)) if after > before => {
            let why = "must be less than or equal to previous value";
            problems.push(Cause::invalid(FIELD, after, why));
        }
        (_, Some(after)) => super::check_deadline(after, problems),
        (None, None) => {}
    }
}

fn check_tolerations(before: &Value, after: &Value, problems: &mut Problems) {
    const FIELD: &str = "spec.tolerations";
    if before[FIELD_NAME] == after[FIELD_NAME] {
        return;
    }
    if items(&before[FIELD_NAME]).any(|toleration| !items(&after[FIELD_NAME]).any(|kept| kept == toleration))
    {
        problems.push(Cause::forbidden(
            FIELD,
            "existing tolerations must stay as they are",
        ));
    }
    for (index, toleration) in items(&after[FIELD_NAME]).enumerate() {
        match serde_json::from_value(toleration.clone()) {
            Ok(toleration) => check_toleration(&toleration, &format!("{FIELD}[{index}]"), problems),
            Err(error) => problems.push(Cause::invalid(format!("{FIELD}[{index}]"), "", error)),
        }
    }
}

const FIELD_NAME: &str = "tolerations";

/// Path of the first difference, so that the message names what was changed.
fn first_difference(before: &Value, after: &Value, path: String) -> String {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys());
            match keys.into_iter().find(|key| a.get(*key) != b.get(*key)) {
                Some(key) => match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => first_difference(a, b, format!("{path}.{key}")),
                    _ => format!("{path}.{key}"),
                },
                None => path,
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            match a.iter().zip(b).enumerate().find(|(_, (a, b))| a != b) {
                Some((index, (a, b))) => first_difference(a, b, format!("{path}[{index}]")),
                None => path,
            }
        }
        _ => path,
    }
}
