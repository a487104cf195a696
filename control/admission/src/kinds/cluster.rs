//! Namespaces, nodes, leases and events.

use api::annotations::{NAMESPACE_NAME_LABEL, USER_NODE_PREFIX};
use control_wire::{Cause, Status};
use serde_json::{Value, json};

use crate::{
    AdmissionRequest, Operation, Problems,
    metadata::{items, members},
};

/// Labels with these prefixes say where a cluster's owner wants pods to run; a node must not attract them by
/// labelling itself.
const OWNER_LABELS: &[&str] = &["node-restriction.kubernetes.io/", "node-role.kubernetes.io/"];

/// Finalizer that holds a namespace until its contents are gone.
const NAMESPACE_FINALIZER: &str = "kubernetes";

pub(super) fn default_namespace(request: &AdmissionRequest<'_>, namespace: &mut Value) {
    let labels = &mut namespace["metadata"]["labels"];
    if !labels.is_object() {
        *labels = json!({});
    }
    // Policies select namespaces by this label, so nobody may take another namespace's name.
    labels[NAMESPACE_NAME_LABEL] = json!(request.name);
    if request.operation == Operation::Create {
        if items(&namespace["spec"]["finalizers"]).next().is_none() {
            namespace["spec"]["finalizers"] = json!([NAMESPACE_FINALIZER]);
        }
        namespace["status"] = json!({"phase": "Active"});
    }
}

pub(super) fn check_node(
    request: &AdmissionRequest<'_>,
    node: &Value,
    problems: &mut Problems,
) -> Result<(), Status> {
    for (index, taint) in items(&node["spec"]["taints"]).enumerate() {
        let effect = taint["effect"].as_str().unwrap_or_default();
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !effects.contains(&effect) {
            problems.push(Cause::not_supported(
                format!("spec.taints[{index}].effect"),
                effect,
                &effects,
            ));
        }
    }
    if !request.user.starts_with(USER_NODE_PREFIX) {
        return Ok(());
    }
    let refuse = |what: String| Err(Status::forbidden(request.resource, request.name, what));
    if let Some(old) = request.old {
        for field in ["taints", "unschedulable"] {
            if old["spec"][field] != node["spec"][field] {
                return refuse(format!("a node is not allowed to change its own spec.{field}"));
            }
        }
    }
    // Also when it registers: it may be a node that somebody knows by those labels.
    let nothing = Value::Null;
    let (before, after) = (
        request.old.map_or(&nothing, |old| &old["metadata"]["labels"]),
        &node["metadata"]["labels"],
    );
    let is_owners = |label: &str| OWNER_LABELS.iter().any(|prefix| label.starts_with(prefix));
    let changed = members(after)
        .chain(members(before))
        .map(|(label, _)| label)
        .find(|label| is_owners(label) && before[label.as_str()] != after[label.as_str()]);
    match changed {
        Some(label) => refuse(format!("a node is not allowed to change its own label {label:?}")),
        None => Ok(()),
    }
}

pub(super) fn check_lease(lease: &Value, problems: &mut Problems) {
    for field in ["leaseDurationSeconds", "leaseTransitions"] {
        if let Some(value) = lease["spec"][field].as_i64() {
            let least = i64::from(field == "leaseDurationSeconds");
            problems.require(
                value >= least,
                &format!("spec.{field}"),
                value,
                "must be greater than zero",
            );
        }
    }
}

pub(super) fn check_event(event: &Value, problems: &mut Problems) {
    let involved = &event["involvedObject"];
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let expected = match involved["namespace"].as_str().unwrap_or_default() {
        // Events about cluster-scoped objects stand in the default namespace.
        "" => "default",
        namespace => namespace,
    };
    problems.require(
        namespace == expected,
        "involvedObject.namespace",
        involved["namespace"].as_str().unwrap_or_default(),
        "must be the namespace of the event",
    );
}
