//! The three kinds of patches, applied to JSON objects. The result is not yet valid: it goes through
//! [`crate::decode::patched`] like a body.
//!
//! All are bounded: a small patch must not blow up in memory, time or depth.

mod keys;
mod strategic;

use api::resources::Resource;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use crate::{Status, negotiate::PatchForm};

/// Operations of one RFC 6902 patch; Kubernetes' own limit.
const MAX_OPERATIONS: usize = 10_000;

/// Deepest nesting of an object, that of the JSON parser: deeper ones could not be read again.
const MAX_DEPTH: usize = 128;

/// Applies the patch in `body` to `current`.
pub fn apply(resource: &Resource, form: PatchForm, current: &Value, body: &[u8]) -> Result<Value, Status> {
    if body.len() > crate::MAX_BODY_BYTES {
        return Err(Status::too_large());
    }
    let malformed =
        |error: serde_json::Error| Status::bad_request(format!("the patch is not valid JSON: {error}"));
    match form {
        PatchForm::Json => json_patch(current, &serde_json::from_slice(body).map_err(malformed)?),
        PatchForm::Merge => {
            let patch: Value = serde_json::from_slice(body).map_err(malformed)?;
            require_object(&patch)?;
            let mut patched = current.clone();
            json_patch::merge(&mut patched, &patch);
            Ok(patched)
        }
        PatchForm::Strategic => {
            let patch: Value = serde_json::from_slice(body).map_err(malformed)?;
            require_object(&patch)?;
            // As with any kind that Kubernetes does not build in.
            if matches!(
                resource.group,
                "palisade.dev" | "policy.networking.k8s.io" | "projectcalico.org"
            ) {
                return Err(Status::unsupported_media_type(format!(
                    "strategic merge patch is not defined for {}; use application/merge-patch+json",
                    resource.kind
                )));
            }
            strategic::merge(resource.kind, current.clone(), patch)
                .map_err(|error| Status::bad_request(format!("strategic merge patch: {error}")))
        }
    }
}

fn require_object(patch: &Value) -> Result<(), Status> {
    if patch.is_object() {
        Ok(())
    } else {
        Err(Status::bad_request("the patch must be a JSON object"))
    }
}

/// RFC 6902, one operation at a time so that growth is seen before it happens: `copy` can double a document.
fn json_patch(current: &Value, patch: &Patch) -> Result<Value, Status> {
    if patch.0.len() > MAX_OPERATIONS {
        return Err(Status::bad_request(format!(
            "the patch has {} operations, at most {MAX_OPERATIONS} are allowed",
            patch.0.len()
        )));
    }
    let mut patched = current.clone();
    let mut copy_budget = crate::MAX_BODY_BYTES;
    for operation in &patch.0 {
        let added_depth = match operation {
            PatchOperation::Add(add) => depth(&add.value),
            PatchOperation::Replace(replace) => depth(&replace.value),
            PatchOperation::Move(from_to) => patched.pointer(from_to.from.as_str()).map_or(0, depth),
            PatchOperation::Copy(copy) => {
                let source = patched.pointer(copy.from.as_str());
                let size = source.map_or(0, |value| value.to_string().len());
                copy_budget = copy_budget.checked_sub(size).ok_or_else(Status::too_large)?;
                source.map_or(0, depth)
            }
            PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
        };
        if added_depth + operation.path().count() > MAX_DEPTH {
            return Err(Status::bad_request(format!(
                "the patch nests deeper than {MAX_DEPTH} levels"
            )));
        }
        json_patch::patch(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| Status::unprocessable(format!("the JSON patch does not apply: {error}")))?;
    }
    Ok(patched)
}

/// Nesting below and with `value`. Recursion is bounded, because every document stays within [`MAX_DEPTH`].
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use api::resources::by_any_name;
    use serde_json::json;

    use super::*;

    fn patch(form: PatchForm, current: &Value, body: &str) -> Result<Value, Status> {
        apply(by_any_name("configmaps").unwrap(), form, current, body.as_bytes())
    }

    #[test]
    fn merge_patch_removes_with_null() {
        let current = json!({"data": {"a": "1", "b": "2"}});
        let patched = patch(PatchForm::Merge, &current, r#"{"data":{"a":null,"c":"3"}}"#);
        assert_eq!(patched, Ok(json!({"data": {"b": "2", "c": "3"}})));
        assert_eq!(patch(PatchForm::Merge, &current, "[]").unwrap_err().code(), 400);
        assert_eq!(patch(PatchForm::Merge, &current, "{").unwrap_err().code(), 400);
    }

    #[test]
    fn json_patch_applies_or_says_why_not() {
        let current = json!({"data": {"a": "1"}});
        let body =
            r#"[{"op":"test","path":"/data/a","value":"1"},{"op":"replace","path":"/data/a","value":"2"}]"#;
        assert_eq!(
            patch(PatchForm::Json, &current, body),
            Ok(json!({"data": {"a": "2"}}))
        );
        let body = r#"[{"op":"test","path":"/data/a","value":"9"}]"#;
        assert_eq!(patch(PatchForm::Json, &current, body).unwrap_err().code(), 422);
    }

    #[test]
    fn json_patch_cannot_blow_up() {
        let current = json!({"data": {"a": "x".repeat(1000)}});
        let double = |n| format!(r#"{{"op":"copy","from":"/data","path":"/data/k{n}"}}"#);
        let body = format!("[{}]", (0..64).map(double).collect::<Vec<_>>().join(","));
        let error = patch(PatchForm::Json, &current, &body).unwrap_err();
        assert_eq!(error.code(), 413, "{error}");
        let many = r#"{"op":"test","path":"","value":{}},"#.repeat(MAX_OPERATIONS + 1);
        let body = format!("[{}]", many.trim_end_matches(','));
        assert_eq!(patch(PatchForm::Json, &json!({}), &body).unwrap_err().code(), 400);
        let mut path = String::new();
        let nested = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
        let steps: Vec<_> = (0..10)
            .map(|_| {
                path.push_str(&"/a".repeat(100));
                format!(r#"{{"op":"add","path":"{path}","value":{nested}}}"#)
            })
            .collect();
        let error = patch(
            PatchForm::Json,
            &json!({"a": 1}),
            &format!("[{}]", steps.join(",")),
        )
        .unwrap_err();
        assert!(matches!(error.code(), 400 | 422), "{error}");
    }

    #[test]
    fn own_kinds_have_no_strategic_merge() {
        for kind in [
            "imagepolicies",
            "tiers",
            "clusternetworkpolicies",
            "caliconetworkpolicies",
        ] {
            let policy = by_any_name(kind).unwrap();
            let error = apply(policy, PatchForm::Strategic, &json!({}), b"{}").unwrap_err();
            assert_eq!(error.code(), 415);
        }
    }
}
