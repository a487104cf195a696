//! Columns of nodes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Column,
    columns::{AGE, NAME, text, text_at, wide},
};
use crate::age::human_duration;

/// Labels of this form name the roles of a node.
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text(
        "Status",
        "Ready or not, and whether pods may be placed.",
        |node, _| json!(status(node)),
    ),
    text("Roles", "Roles of the node.", |node, _| json!(roles(node))),
    AGE,
    text("Version", "Version of the agent.", |node, _| {
        json!(text_at(node, "/status/nodeInfo/kubeletVersion"))
    }),
    wide("Internal-IP", "Address inside the cluster.", |node, now| {
        address(node, "InternalIP", now)
    }),
    wide("External-IP", "Address outside the cluster.", |node, now| {
        address(node, "ExternalIP", now)
    }),
    wide("OS-Image", "Operating system.", |node, _| {
        unknown_if_empty(text_at(node, "/status/nodeInfo/osImage"))
    }),
    wide("Kernel-Version", "Kernel.", |node, _| {
        unknown_if_empty(text_at(node, "/status/nodeInfo/kernelVersion"))
    }),
    wide("Container-Runtime", "Container runtime.", |node, _| {
        unknown_if_empty(text_at(node, "/status/nodeInfo/containerRuntimeVersion"))
    }),
];

/// Requests for certificates, which are those of nodes.
pub(super) const CERTIFICATE_REQUEST: &[Column] = &[
    NAME,
    AGE,
    text("SignerName", "Whose signature is asked for.", |request, _| {
        json!(text_at(request, "/spec/signerName"))
    }),
    text("Requestor", "Who asks.", |request, _| {
        json!(text_at(request, "/spec/username"))
    }),
    text(
        "RequestedDuration",
        "How long it shall be valid.",
        |request, _| {
            let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
            seconds.map_or_else(|| json!("<none>"), |seconds| json!(human_duration(seconds)))
        },
    ),
    text("Condition", "What became of it.", |request, _| {
        json!(outcome(request))
    }),
];

/// `Approved,Issued`, as Kubernetes says it.
fn outcome(request: &Value) -> String {
    let conditions = request.pointer("/status/conditions").and_then(Value::as_array);
    let is = |kind: &str| {
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == kind)
    };
    let mut words = Vec::new();
    match (is("Denied"), is("Approved")) {
        (true, _) => words.push("Denied"),
        (false, true) => words.push("Approved"),
        (false, false) => words.push("Pending"),
    }
    if is("Failed") {
        words.push("SignerValidationFailure");
    }
    if !text_at(request, "/status/certificate").is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

/// What a node uses.
pub(super) const METRICS: &[Column] = &[
    NAME,
    text("CPU", "Cores in use.", |node, _| {
        json!(text_at(node, "/usage/cpu"))
    }),
    text(
        "Memory",
        "Memory that cannot be taken back at once.",
        |node, _| json!(text_at(node, "/usage/memory")),
    ),
    text("Window", "What the average is over.", |node, _| {
        json!(text_at(node, "/window"))
    }),
];

fn status(node: &Value) -> String {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    let mut words = vec![match ready {
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node["spec"]["unschedulable"] == true {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Value) -> String {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    }
}

fn address(node: &Value, kind: &str, _now: Timestamp) -> Value {
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let found = addresses
        .into_iter()
        .flatten()
        .find(|address| address["type"] == kind);
    found.map_or_else(|| json!("<none>"), |address| address["address"].clone())
}

fn unknown_if_empty(text: &str) -> Value {
    if text.is_empty() {
        json!("<unknown>")
    } else {
        json!(text)
    }
}
