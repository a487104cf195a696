//! Ephemeral containers: what may be added to a pod that exists, and never changed or taken back.

use std::collections::BTreeSet;

use control_wire::Cause;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

use super::{containers, fields, security};
use crate::{Problems, metadata::items, shape, syntax};

/// Ephemeral containers of one pod. They stay in its spec for ever.
const MAX_EPHEMERAL: usize = 32;

const LIST: &str = "spec.ephemeralContainers";

/// Checks what the subresource `ephemeralcontainers` makes of a pod: the old list, and more behind or between.
pub(super) fn check(old: &Value, new: &Value, problems: &mut Problems) {
    if super::mirror::hash(old).is_some() {
        return problems.push(Cause::forbidden(
            LIST,
            "static pods do not support ephemeral containers",
        ));
    }
    let before: Vec<&Value> = items(&old["spec"]["ephemeralContainers"]).collect();
    let after: Vec<&Value> = items(&new["spec"]["ephemeralContainers"]).collect();
    for known in &before {
        let kept = after.iter().find(|container| container["name"] == known["name"]);
        let name = known["name"].as_str().unwrap_or_default();
        let why = match kept {
            Some(kept) if kept == known => continue,
            Some(_) => "existing ephemeral containers may not be changed",
            None => "existing ephemeral containers may not be removed",
        };
        problems.push(Cause::forbidden(LIST, format!("{why}: {name:?}")));
    }
    problems.require(
        after.len() <= MAX_EPHEMERAL,
        LIST,
        after.len(),
        "at most 32 ephemeral containers",
    );
    let Ok(Pod { spec: Some(spec), .. }) = serde_json::from_value::<Pod>(new.clone()) else {
        return problems.push(Cause::invalid("spec", "", "is not the specification of a pod"));
    };
    let volumes: BTreeSet<String> = spec.volumes.iter().flatten().map(|v| v.name.clone()).collect();
    let inits = spec.init_containers.iter().flatten();
    let others: BTreeSet<&str> = inits
        .chain(&spec.containers)
        .map(|container| container.name.as_str())
        .collect();
    let mut names = others.clone();
    for (index, value) in after.iter().enumerate() {
        let field = format!("{LIST}[{index}]");
        let name = value["name"].as_str().unwrap_or_default();
        if !names.insert(name) {
            problems.push(Cause::duplicate(format!("{field}.name"), name));
        }
        if before.contains(value) {
            continue;
        }
        check_one(value, &field, problems);
        // What both kinds have in common has the same names.
        match serde_json::from_value::<Container>((*value).clone()) {
            Ok(container) => {
                containers::check_container(&container, &volumes, &field, problems);
                containers::check_resource_fields(&spec, &container, &field, problems);
                security::check_container(&spec, &container, &field, problems);
            }
            Err(error) => problems.push(Cause::invalid(&field, "", error)),
        }
        let target = value["targetContainerName"].as_str().unwrap_or_default();
        problems.require(
            target.is_empty() || others.contains(target),
            &format!("{field}.targetContainerName"),
            target,
            "must be the name of a container or init container of the pod",
        );
    }
}

fn check_one(value: &Value, field: &str, problems: &mut Problems) {
    shape::check(value, &fields::EPHEMERAL_CONTAINER, field, problems);
    match value["name"].as_str().unwrap_or_default() {
        "" => problems.push(Cause::required(format!("{field}.name"), "")),
        name => problems.require(
            syntax::is_label(name),
            &format!("{field}.name"),
            name,
            syntax::LABEL,
        ),
    }
}
