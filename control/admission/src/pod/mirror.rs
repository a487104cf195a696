//! Pods that stand for files of a node. Nodes make no others, and nobody else makes these.

use api::annotations::{CONFIG_MIRROR, USER_NODE_PREFIX};
use control_wire::Cause;
use serde_json::Value;

use crate::{AdmissionRequest, Operation, Problems};

/// Members anywhere in the volumes and containers of a pod that name another object of its namespace. A node may read what
/// its pods refer to, so it must not be able to refer to what it wants.
const REFERENCES: &[&str] = &[
    "configMap",
    "configMapKeyRef",
    "configMapRef",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "secretKeyRef",
    "secretRef",
];

/// The hash of the file that the pod stands for.
pub(super) fn hash(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"][CONFIG_MIRROR].as_str()
}

pub(super) fn check(request: &AdmissionRequest<'_>, pod: &Value, problems: &mut Problems) {
    let field = format!("metadata.annotations[{CONFIG_MIRROR}]");
    if let (Operation::Update, Some(old)) = (request.operation, request.old) {
        if hash(old) != hash(pod) {
            problems.push(Cause::invalid(
                field,
                hash(pod).unwrap_or_default(),
                "field is immutable",
            ));
        }
        return;
    }
    match (request.user.strip_prefix(USER_NODE_PREFIX), hash(pod)) {
        (None, None) => {}
        (None, Some(_)) => {
            let why = "static pods are made by their node, from files in its directory of manifests";
            problems.push(Cause::forbidden(field, why));
        }
        (Some(_), None | Some("")) => {
            problems.push(Cause::required(field, "a node creates pods for its files only"));
        }
        (Some(node), Some(_)) => check_of_node(node, pod, problems),
    }
}

fn check_of_node(node: &str, pod: &Value, problems: &mut Problems) {
    let spec = &pod["spec"];
    let mut require = |ok: bool, field: &str, why: &str| {
        if !ok {
            problems.push(Cause::forbidden(field, why));
        }
    };
    let bound = spec["nodeName"].as_str();
    require(
        bound == Some(node),
        "spec.nodeName",
        "must be the node that creates the pod",
    );
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let unowned = owners.is_none_or(Vec::is_empty);
    require(
        unowned,
        "metadata.ownerReferences",
        "a static pod belongs to its file",
    );
    let account = spec["serviceAccountName"].as_str().unwrap_or_default();
    let no_account = matches!(account, "" | "default");
    require(
        no_account,
        "spec.serviceAccountName",
        "a static pod has no account",
    );
    let secrets = spec["imagePullSecrets"].as_array();
    let no_secrets = secrets.is_none_or(Vec::is_empty);
    require(
        no_secrets,
        "spec.imagePullSecrets",
        "a static pod refers to no other objects",
    );
    for list in ["volumes", "containers", "initContainers"] {
        let clean = !refers(&spec[list]);
        require(
            clean,
            &format!("spec.{list}"),
            "a static pod refers to no other objects",
        );
    }
}

fn refers(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(name, member)| {
            (REFERENCES.contains(&name.as_str()) && !member.is_null()) || refers(member)
        }),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}
