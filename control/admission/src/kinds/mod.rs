//! Defaults and checks of each kind.

mod assertions;
mod certificates;
mod cluster;
mod data;
mod disruption;
mod host_paths;
mod images;
mod policy;
mod sandbox;
mod service;
mod storage;

use control_wire::{Cause, Status};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use policies_compiler::FieldError;
use serde_json::{Value, json};

use crate::{AdmissionRequest, Operation, Problems, metadata::items, pod};

pub use policy::{TIERED, built_in_objects, refuse_deletion, tier_of};

/// Fills in what Kubernetes would.
pub(crate) fn default(request: &AdmissionRequest<'_>, object: &mut Value) {
    match (request.resource.group, request.resource.kind, request.subresource) {
        ("", "Pod", "" | "binding" | "ephemeralcontainers") => pod::default(request, object),
        ("", "Namespace", "") => cluster::default_namespace(request, object),
        ("", "PersistentVolume", "") => storage::default_volume(request, object),
        ("", "PersistentVolumeClaim", "") => storage::default_claim(request, object),
        ("storage.k8s.io", "StorageClass", "") => storage::default_class(object),
        ("", "Secret", "") => data::default_secret(object),
        ("", "Service", "") => service::default(request, object),
        ("networking.k8s.io", "NetworkPolicy", "") => default_network_policy(object),
        ("palisade.dev", "SandboxProfile", "") => sandbox::default(object),
        ("projectcalico.org", kind, "") => policy::default_calico(kind, object),
        ("policy.networking.k8s.io", "ClusterNetworkPolicy", "") => {
            policy::default_cluster_policy(request, object);
        }
        _ => {}
    }
}

/// Checks what is particular to a kind. Problems with fields are collected; `Err` is for refusals that are
/// not about a field.
pub(crate) fn check(
    request: &AdmissionRequest<'_>,
    object: &Value,
    problems: &mut Problems,
) -> Result<(), Status> {
    match (request.resource.group, request.resource.kind, request.subresource) {
        ("", "Pod", "status") => pod::check_status(object, problems),
        ("", "Pod", _) => pod::check(request, object, problems),
        ("", "ConfigMap", _) => data::check_config_map(request, object, problems),
        ("", "PersistentVolume", "") => storage::check_volume(request, object, problems),
        ("", "PersistentVolumeClaim", "") => storage::check_claim(request, object, problems),
        ("storage.k8s.io", "StorageClass", _) => storage::check_class(request, object, problems),
        ("", "Secret", _) => data::check_secret(request, object, problems),
        ("", "Service", "") => service::check(request, object, problems),
        ("", "Event", _) => cluster::check_event(object, problems),
        ("", "Node", "") => return cluster::check_node(request, object, problems),
        ("certificates.k8s.io", "CertificateSigningRequest", _) => {
            certificates::check(request, object, problems);
        }
        ("coordination.k8s.io", "Lease", _) => cluster::check_lease(object, problems),
        ("discovery.k8s.io", "EndpointSlice", _) => data::check_endpoint_slice(request, object, problems),
        ("networking.k8s.io", "NetworkPolicy", _) => check_network_policy(object, problems),
        ("policy", "PodDisruptionBudget", "") => disruption::check(object, problems),
        ("policy.networking.k8s.io" | "projectcalico.org", ..) => policy::check(object, problems),
        ("palisade.dev", "HostPathGrant", _) => host_paths::check(object, problems),
        ("palisade.dev", "ImagePolicy", _) => images::check_policy(request, object, problems),
        ("palisade.dev", "SandboxProfile", _) => sandbox::check(object, problems),
        ("palisade.dev", "ImageScan", _) => return images::check_scan(request),
        ("palisade.dev", "PolicyAssertion", _) => assertions::check(object, problems),
        _ => {}
    }
    Ok(())
}

/// Notes a problem when `field` differs from the stored object.
fn require_unchanged(request: &AdmissionRequest<'_>, object: &Value, field: &str, problems: &mut Problems) {
    if let (Operation::Update, Some(old)) = (request.operation, request.old)
        && old[field] != object[field]
    {
        problems.push(Cause::invalid(
            field,
            object[field].as_str().unwrap_or_default(),
            "field is immutable",
        ));
    }
}

fn default_network_policy(policy: &mut Value) {
    let Some(spec) = policy.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if spec
        .get("policyTypes")
        .is_none_or(|types| types.as_array().is_none_or(Vec::is_empty))
    {
        let mut types = vec!["Ingress"];
        // An empty list says nothing of egress: who wants it closed names the type.
        let rules = spec.get("egress").and_then(Value::as_array);
        if rules.is_some_and(|rules| !rules.is_empty()) {
            types.push("Egress");
        }
        spec.insert("policyTypes".to_owned(), json!(types));
    }
    for direction in ["ingress", "egress"] {
        let rules = spec.get_mut(direction).and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten() {
            for port in rule
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                if port["protocol"].as_str().unwrap_or_default().is_empty() {
                    port["protocol"] = json!("TCP");
                }
            }
        }
    }
}

fn check_network_policy(policy: &Value, problems: &mut Problems) {
    if !policy["spec"].is_object() {
        return problems.push(Cause::required(
            "spec",
            "podSelector says which pods the policy applies to",
        ));
    }
    match serde_json::from_value::<NetworkPolicy>(policy.clone()) {
        Err(error) => problems.push(Cause::invalid("spec", "", error)),
        Ok(typed) => {
            let errors = policies_compiler::validate(&typed);
            push_all(policy, errors.err().unwrap_or_default(), problems);
        }
    }
}

/// What the compiler would close instead; saying so now is kinder.
fn push_all(object: &Value, errors: Vec<FieldError>, problems: &mut Problems) {
    for error in errors {
        problems.push(Cause::invalid(
            &error.field,
            text_at_path(object, &error.field),
            format!("{}; {}", error.problem, error.fix),
        ));
    }
}

/// Text of the value at a path such as `spec.ingress[0].ports[1].port`, for messages.
fn text_at_path(object: &Value, path: &str) -> String {
    let pointer = path.replace(['.', '['], "/").replace(']', "");
    match object.pointer(&format!("/{pointer}")) {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        Some(value) => format!("{} items", items(value).count()),
        None => String::new(),
    }
}
