//! Pods: what the agent honours, and nothing else.

mod account;
mod containers;
mod defaults;
mod ephemeral;
mod fields;
mod health;
mod host_ports;
mod mirror;
mod names;
mod references;
mod security;
mod update;
mod volumes;

use api::{
    annotations::{CONTAINER_SANDBOX_PROFILE_PREFIX, ESTABLISHED, SANDBOX_PROFILE},
    selector::{is_label_key, is_label_value},
};
use control_wire::Cause;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use serde_json::Value;

use crate::{AdmissionRequest, Operation, Problems, metadata::members, shape, syntax};

pub use account::{TOKEN_VOLUME_PREFIX, account_of, mount_token};
pub(crate) use defaults::default;

/// Annotations that ask for a weaker or another sandbox in Kubernetes' older way.
const FOREIGN_PROFILES: &[&str] = &[
    "container.apparmor.security.beta.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
];

/// Checks a pod that is created, changed or bound.
pub(crate) fn check(request: &AdmissionRequest<'_>, object: &Value, problems: &mut Problems) {
    check_annotations(object, problems);
    mirror::check(request, object, problems);
    if let (Operation::Update, Some(old)) = (request.operation, request.old) {
        // Everything but what may change was checked when the pod was created. Checking it again could make
        // a pod of an older version impossible to label or to delete.
        return update::check(request, old, object, problems);
    }
    shape::check(&object["spec"], &fields::SPEC, "spec", problems);
    for (index, volume) in crate::metadata::items(&object["spec"]["volumes"]).enumerate() {
        volumes::check_source(volume, &format!("spec.volumes[{index}]"), problems);
    }
    match serde_json::from_value::<Pod>(object.clone()) {
        Ok(Pod { spec: Some(spec), .. }) => check_spec(&spec, problems),
        Ok(_) => problems.push(Cause::required("spec", "")),
        Err(error) => problems.push(Cause::invalid("spec", "", error)),
    }
}

/// Checks what an agent reports.
pub(crate) fn check_status(object: &Value, problems: &mut Problems) {
    const PHASES: &[&str] = &["Pending", "Running", "Succeeded", "Failed", "Unknown"];
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    if !phase.is_empty() && !PHASES.contains(&phase) {
        problems.push(Cause::not_supported("status.phase", phase, PHASES));
    }
}

fn check_annotations(object: &Value, problems: &mut Problems) {
    for (key, value) in members(&object["metadata"]["annotations"]) {
        let field = format!("metadata.annotations[{key}]");
        let value = value.as_str().unwrap_or_default();
        if let Some(container) = sandboxed(key) {
            // Presets are such names too. Whether a profile of that name exists is seen when a container starts.
            problems.require(syntax::is_subdomain(value), &field, value, syntax::SUBDOMAIN);
            let why = "must end in the name of a container or init container; ephemeral containers have the profile of \
                       their target, or the pod's";
            let known = container.is_none_or(|name| is_lasting(&object["spec"], name));
            problems.require(known, &field, value, why);
        } else if key == ESTABLISHED && value != "keep" {
            problems.push(Cause::not_supported(field, value, &["keep"]));
        } else if FOREIGN_PROFILES.iter().any(|prefix| key.starts_with(prefix)) && value != "runtime/default"
        {
            let why = "every container runs under Palisade's own profile";
            problems.push(shape::unsupported(&field, why));
        }
    }
}

/// Of which container a key names the sandbox profile: nothing inside for the pod's. Nothing for other keys.
fn sandboxed(key: &str) -> Option<Option<&str>> {
    if key == SANDBOX_PROFILE {
        return Some(None);
    }
    key.strip_prefix(CONTAINER_SANDBOX_PROFILE_PREFIX).map(Some)
}

/// Whether a pod has a container of that name, other than an ephemeral one.
fn is_lasting(spec: &Value, name: &str) -> bool {
    let lists = [&spec["containers"], &spec["initContainers"]];
    let mut all = lists.into_iter().flat_map(crate::metadata::items);
    all.any(|container| container["name"] == name)
}

fn check_spec(spec: &PodSpec, problems: &mut Problems) {
    let volumes = volumes::check(spec, problems);
    containers::check(spec, &volumes, problems);
    security::check_pod(spec, problems);
    names::check(spec, problems);
    if let Some(hostname) = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
        problems.require(
            syntax::is_label(hostname),
            "spec.hostname",
            hostname,
            syntax::LABEL,
        );
    }
    for (field, name) in [
        ("spec.serviceAccountName", &spec.service_account_name),
        ("spec.nodeName", &spec.node_name),
    ] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            problems.require(syntax::is_subdomain(name), field, name, syntax::SUBDOMAIN);
        }
    }
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let field = format!("spec.imagePullSecrets[{index}].name");
        problems.require(
            syntax::is_subdomain(&secret.name),
            &field,
            &secret.name,
            syntax::SUBDOMAIN,
        );
    }
    if let Some(seconds) = spec.termination_grace_period_seconds {
        let field = "spec.terminationGracePeriodSeconds";
        problems.require(seconds >= 0, field, seconds, "must be greater than or equal to 0");
    }
    if let Some(seconds) = spec.active_deadline_seconds {
        check_deadline(seconds, problems);
    }
    for (key, value) in spec.node_selector.iter().flatten() {
        let valid = is_label_key(key) && is_label_value(value);
        problems.require(
            valid,
            "spec.nodeSelector",
            format!("{key}={value}"),
            "must be a label key and value",
        );
    }
    for (index, toleration) in spec.tolerations.iter().flatten().enumerate() {
        check_toleration(toleration, &format!("spec.tolerations[{index}]"), problems);
    }
}

fn check_deadline(seconds: i64, problems: &mut Problems) {
    let why = "must be between 1 and 2147483647, inclusive";
    let valid = (1..=i64::from(i32::MAX)).contains(&seconds);
    problems.require(valid, "spec.activeDeadlineSeconds", seconds, why);
}

fn check_toleration(toleration: &Toleration, field: &str, problems: &mut Problems) {
    const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (key, value, effect) = (
        text(&toleration.key),
        text(&toleration.value),
        text(&toleration.effect),
    );
    problems.require(
        key.is_empty() || is_label_key(&key),
        &format!("{field}.key"),
        &key,
        "must be a qualified name",
    );
    match text(&toleration.operator).as_str() {
        "" | "Equal" if key.is_empty() => {
            let why = "must be Exists when `key` is empty, which means \"match all values and all keys\"";
            problems.push(Cause::invalid(
                format!("{field}.operator"),
                text(&toleration.operator),
                why,
            ));
        }
        "" | "Equal" => {
            problems.require(
                is_label_value(&value),
                &format!("{field}.value"),
                &value,
                "must be a label value",
            );
        }
        "Exists" => problems.require(
            value.is_empty(),
            &format!("{field}.value"),
            &value,
            "must be empty when `operator` is Exists",
        ),
        other => problems.push(Cause::not_supported(
            format!("{field}.operator"),
            other,
            &["Equal", "Exists"],
        )),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect.as_str()) {
        problems.push(Cause::not_supported(format!("{field}.effect"), &effect, EFFECTS));
    }
    if toleration.toleration_seconds.is_some() {
        let why = "effect must be NoExecute when `tolerationSeconds` is set";
        problems.require(effect == "NoExecute", &format!("{field}.effect"), &effect, why);
    }
}
