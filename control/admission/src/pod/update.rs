//! What may change in a pod that exists: its metadata, more tolerations, and once, by binding, its node.

use control_wire::Cause;
use serde_json::Value;

use super::check_toleration;
use crate::{AdmissionRequest, Problems, metadata::items};

pub(super) fn check(request: &AdmissionRequest<'_>, old: &Value, new: &Value, problems: &mut Problems) {
    let (mut before, mut after) = (old["spec"].clone(), new["spec"].clone());
    check_tolerations(&before, &after, problems);
    let mut free = vec!["tolerations"];
    if request.subresource == "binding" {
        free.push("nodeName");
    }
    for spec in [&mut before, &mut after] {
        if let Some(spec) = spec.as_object_mut() {
            free.iter().for_each(|field| drop(spec.remove(*field)));
        }
    }
    if before != after {
        let changed = first_difference(&before, &after, "spec".to_owned());
        let why = "pod updates may not change fields other than `spec.tolerations` (only additions to existing \
                   tolerations); delete the pod and create it again";
        problems.push(Cause::forbidden(changed, why));
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
