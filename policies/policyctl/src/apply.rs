//! `policyctl apply`: every object is read and validated before the first one is sent; then each is
//! created, patched or left alone, and reported by itself.
//!
//! A patch is a three-way merge, as with kubectl: what was applied last time and is gone from the manifest
//! is removed, what the manifest says is set, what others set stays.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::{
    cli::{ApplyArgs, Connection},
    cluster::{self, Failure},
    objects::{self, Manifest},
    output,
};

/// The annotation that kubectl uses too, so that both tools can be used in turn.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// Of lists of objects it changes those that it names. For pods, whose containers get mounts that no manifest has and never
/// go; a list that may lose an object has to be written whole.
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";

/// Applies and reports; exit code 1 when any object failed.
pub(crate) async fn run(connection: &Connection, args: &ApplyArgs) -> Result<ExitCode> {
    let manifests = objects::load(&args.filename, &args.namespace)?;
    validate(&manifests)?;
    let client = cluster::connect(connection).await?;
    let mut failed = false;
    for manifest in &manifests {
        let suffix = if args.dry_run { " (server dry run)" } else { "" };
        match one(&client, manifest, args.dry_run).await {
            Ok((done, object)) => match args.output {
                Some(format) => output::object(&object, format)?,
                None => output::line(&format!("{} {}{suffix}", manifest.shown(), done.word()))?,
            },
            Err(error) => {
                failed = true;
                output::complain(&format!("{} ({}): {error:#}", manifest.shown(), manifest.origin));
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What came of one object.
#[derive(Clone, Copy)]
enum Done {
    Created,
    Configured,
    Unchanged,
}

impl Done {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Judges every manifest with the server's own decoder; all problems are reported at once.
fn validate(manifests: &[Manifest]) -> Result<()> {
    let mut problems = Vec::new();
    for manifest in manifests {
        if let Err(problem) = objects::check(manifest) {
            problems.push(format!("{} ({}): {problem}", manifest.shown(), manifest.origin));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "nothing was sent, {} of {} objects are not valid:\n  {}",
        problems.len(),
        manifests.len(),
        problems.join("\n  ")
    )
}

async fn one(client: &kube::Client, manifest: &Manifest, dry_run: bool) -> Result<(Done, Value)> {
    let applied = with_last_applied(&manifest.object)?;
    let query = if dry_run { "&dryRun=All" } else { "" };
    let query = format!("fieldManager=policyctl&fieldValidation=Strict{query}");
    let path = cluster::object_path(manifest.resource, &manifest.namespace, &manifest.name);
    let current = match cluster::get(client, &path).await {
        Ok(current) => current,
        Err(Failure::NotFound) => {
            let collection = manifest.resource.collection_path(Some(&manifest.namespace));
            let body = Some(("application/json", &applied));
            let request = cluster::request("POST", &format!("{collection}?{query}"), body, None)?;
            return Ok((Done::Created, cluster::send(client, request).await?));
        }
        Err(other) => return Err(other.into()),
    };
    let original = current["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let Some(patch) = three_way(&original, &applied, &current) else {
        return Ok((Done::Unchanged, current));
    };
    let form = match manifest.resource.kind {
        "Pod" => STRATEGIC_PATCH,
        _ => MERGE_PATCH,
    };
    let request = cluster::request("PATCH", &format!("{path}?{query}"), Some((form, &patch)), None)?;
    Ok((Done::Configured, cluster::send(client, request).await?))
}

/// The manifest with itself in the annotation, from which the next apply sees what was removed.
fn with_last_applied(object: &Value) -> Result<Value> {
    let text = object.to_string() + "\n";
    let mut applied = object.clone();
    let metadata = applied["metadata"]
        .as_object_mut()
        .context("metadata: must be an object")?;
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
    let annotations = annotations
        .as_object_mut()
        .context("metadata.annotations: must be an object")?;
    annotations.insert(LAST_APPLIED.to_owned(), text.into());
    Ok(applied)
}

/// The merge patch that brings `current` to `modified`, or `None` when it is there already.
fn three_way(original: &Value, modified: &Value, current: &Value) -> Option<Value> {
    let mut patch = Map::new();
    let empty = Map::new();
    let fields = |value: &'_ Value| value.as_object().cloned().unwrap_or_default();
    let current_fields = current.as_object().unwrap_or(&empty);
    for (key, wanted) in fields(modified) {
        let found = current_fields.get(&key).unwrap_or(&Value::Null);
        if wanted.is_object() && found.is_object() {
            if let Some(inner) = three_way(&original[&key], &wanted, found) {
                patch.insert(key, inner);
            }
        } else if !covers(found, &wanted) {
            patch.insert(key, wanted);
        }
    }
    for key in fields(original).keys() {
        if modified.get(key).is_none() && current_fields.contains_key(key) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Whether the server's value says all that the manifest says: the server fills in defaults, also inside
/// the items of a list.
fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (_, Value::Null) => found.is_null(),
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| covers(found.get(key).unwrap_or(&Value::Null), value)),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| covers(f, w))
        }
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_do_when_the_server_only_added_defaults() {
        let wanted = json!({"spec": {"containers": [{"name": "a"}]}});
        let current = json!({"spec": {"containers": [{"name": "a", "tty": false}], "x": 1}, "status": {}});
        assert_eq!(three_way(&wanted, &wanted, &current), None);
    }

    #[test]
    fn removes_what_was_applied_and_is_gone_and_keeps_what_others_set() {
        let original = json!({"data": {"a": "1", "b": "2"}});
        let modified = json!({"data": {"a": "1", "c": "3"}});
        let current = json!({"data": {"a": "1", "b": "2", "others": "x"}});
        assert_eq!(
            three_way(&original, &modified, &current),
            Some(json!({"data": {"b": null, "c": "3"}}))
        );
    }

    #[test]
    fn replaces_a_list_that_differs() {
        let modified = json!({"spec": {"l": [1, 2]}});
        let current = json!({"spec": {"l": [2, 1]}});
        assert_eq!(
            three_way(&Value::Null, &modified, &current),
            Some(json!({"spec": {"l": [1, 2]}}))
        );
    }
}
