//! Columns of each kind.

use std::collections::BTreeMap;

use api::resources::Resource;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, node, pod, policy, storage};
use crate::age::age_of;

/// Columns of a resource's objects; name and age for one that has none of its own.
pub(super) fn of(resource: &Resource) -> &'static [Column] {
    match (resource.group, resource.kind) {
        ("", "ConfigMap") => CONFIG_MAP,
        ("", "Event") => EVENT,
        ("", "Namespace") => NAMESPACE,
        ("", "Node") => node::COLUMNS,
        ("", "PersistentVolume") => storage::VOLUME,
        ("", "PersistentVolumeClaim") => storage::CLAIM,
        ("", "Pod") => pod::COLUMNS,
        ("", "Secret") => SECRET,
        ("", "Service") => SERVICE,
        ("", "ServiceAccount") => SERVICE_ACCOUNT,
        ("certificates.k8s.io", "CertificateSigningRequest") => node::CERTIFICATE_REQUEST,
        ("coordination.k8s.io", "Lease") => LEASE,
        ("discovery.k8s.io", "EndpointSlice") => ENDPOINT_SLICE,
        ("metrics.k8s.io", "NodeMetrics") => node::METRICS,
        ("metrics.k8s.io", "PodMetrics") => pod::METRICS,
        ("networking.k8s.io", "NetworkPolicy") => NETWORK_POLICY,
        ("policy", "PodDisruptionBudget") => pod::DISRUPTION_BUDGET,
        ("policy.networking.k8s.io" | "projectcalico.org", kind) => policy::of(kind),
        ("storage.k8s.io", "StorageClass") => storage::CLASS,
        ("palisade.dev", "HostPathGrant") => HOST_PATH_GRANT,
        ("palisade.dev", "ImagePolicy") => IMAGE_POLICY,
        ("palisade.dev", "ImageScan") => IMAGE_SCAN,
        ("palisade.dev", "PolicyAssertion") => policy::ASSERTION,
        ("palisade.dev", "SandboxProfile") => SANDBOX_PROFILE,
        _ => PLAIN,
    }
}

/// A column of text that is always shown.
pub(super) const fn text(
    name: &'static str,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 0,
        description,
        cell,
    }
}

/// The same, only with `-o wide`.
pub(super) const fn wide(
    name: &'static str,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 1,
        description,
        cell,
    }
}

pub(super) const fn number(
    name: &'static str,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column {
        name,
        kind: "integer",
        format: "",
        priority: 0,
        description,
        cell,
    }
}

pub(super) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    description: "Name of the object, unique in its namespace.",
    cell: |object, _| object["metadata"]["name"].clone(),
};

pub(super) const AGE: Column = text("Age", "Time since the object was created.", |object, now| {
    json!(age_of(object["metadata"]["creationTimestamp"].as_str(), now))
});

/// Text at a pointer; empty when there is none.
pub(super) fn text_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Text at a pointer, or `<none>`.
pub(super) fn text_or_none(object: &Value, pointer: &str) -> Value {
    match text_at(object, pointer) {
        "" => json!("<none>"),
        text => json!(text),
    }
}

pub(super) fn members(object: &Value, key: &str) -> usize {
    match &object[key] {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    }
}

pub(super) const PLAIN: &[Column] = &[NAME, AGE];

const CONFIG_MAP: &[Column] = &[
    NAME,
    number("Data", "Number of entries.", |object, _| {
        json!(members(object, "data") + members(object, "binaryData"))
    }),
    AGE,
];

const SECRET: &[Column] = &[
    NAME,
    text("Type", "What the entries are for.", |object, _| {
        json!(text_at(object, "/type"))
    }),
    number("Data", "Number of entries.", |object, _| {
        json!(members(object, "data"))
    }),
    AGE,
];

const NAMESPACE: &[Column] = &[
    NAME,
    text(
        "Status",
        "Active, or Terminating while its contents are deleted.",
        |object, _| json!(text_at(object, "/status/phase")),
    ),
    AGE,
];

const SERVICE_ACCOUNT: &[Column] = &[
    NAME,
    number("Secrets", "Number of secrets.", |object, _| {
        json!(members(object, "secrets"))
    }),
    AGE,
];

const SERVICE: &[Column] = &[
    NAME,
    text("Type", "ClusterIP or ExternalName.", |service, _| {
        json!(text_at(service, "/spec/type"))
    }),
    text("Cluster-IP", "Its address, or None.", |service, _| {
        text_or_none(service, "/spec/clusterIP")
    }),
    text("External-IP", "The name that it stands for.", |service, _| {
        text_or_none(service, "/spec/externalName")
    }),
    text("Port(s)", "Its ports.", |service, _| {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let ports: Vec<String> = ports
            .map(|port| {
                let protocol = text_at(port, "/protocol");
                format!("{}/{protocol}", port["port"].as_i64().unwrap_or_default())
            })
            .collect();
        json!(match ports.is_empty() {
            true => "<none>".to_owned(),
            false => ports.join(","),
        })
    }),
    AGE,
    wide("Selector", "Pods that stand behind it.", |service, _| {
        let selector = json!({"matchLabels": service["spec"]["selector"]});
        json!(label_selector(&selector))
    }),
];

const LEASE: &[Column] = &[
    NAME,
    text("Holder", "Who holds the lease.", |object, _| {
        json!(text_at(object, "/spec/holderIdentity"))
    }),
    AGE,
];

const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    text("AddressType", "Family of the addresses.", |slice, _| {
        json!(text_at(slice, "/addressType"))
    }),
    text("Ports", "Ports of each endpoint.", |slice, _| {
        let ports = slice["ports"].as_array().into_iter().flatten();
        json!(listed(ports.map(|port| match port["port"].as_i64() {
            Some(port) => port.to_string(),
            None => "*".to_owned(),
        })))
    }),
    text("Endpoints", "Addresses.", |slice, _| {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let addresses = endpoints.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
        json!(listed(addresses.filter_map(Value::as_str).map(str::to_owned)))
    }),
    AGE,
];

/// The first three, and how many more there are; `<unset>` for none.
fn listed(all: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 3;
    let mut all: Vec<String> = all.collect();
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    match (all.is_empty(), more) {
        (true, _) => "<unset>".to_owned(),
        (false, 0) => all.join(","),
        (false, more) => format!("{} + {more} more...", all.join(",")),
    }
}

const NETWORK_POLICY: &[Column] = &[
    NAME,
    text("Pod-Selector", "Pods that the policy applies to.", |object, _| {
        json!(label_selector(&object["spec"]["podSelector"]))
    }),
    AGE,
];

const EVENT: &[Column] = &[
    text(
        "Last Seen",
        "Time since the event was last seen.",
        |event, now| json!(age_of(last_seen(event), now)),
    ),
    text("Type", "Normal or Warning.", |event, _| {
        json!(text_at(event, "/type"))
    }),
    text("Reason", "Why, in one word.", |event, _| {
        json!(text_at(event, "/reason"))
    }),
    text("Object", "What it is about.", |event, _| {
        let kind = text_at(event, "/involvedObject/kind").to_lowercase();
        json!(format!("{kind}/{}", text_at(event, "/involvedObject/name")))
    }),
    wide("Subobject", "Which part of it.", |event, _| {
        json!(text_at(event, "/involvedObject/fieldPath"))
    }),
    wide("Source", "Who reports it.", |event, _| {
        let component = match text_at(event, "/source/component") {
            "" => text_at(event, "/reportingComponent"),
            component => component,
        };
        let host = text_at(event, "/source/host");
        json!(
            [component, host]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(", ")
        )
    }),
    text("Message", "What happened.", |event, _| {
        json!(text_at(event, "/message").trim())
    }),
    wide(
        "First Seen",
        "Time since the event was first seen.",
        |event, now| json!(age_of(first_seen(event), now)),
    ),
    wide("Count", "How often it was seen.", |event, _| {
        let series = event.pointer("/series/count").and_then(Value::as_i64);
        json!(series.or(event["count"].as_i64()).unwrap_or(1).max(1).to_string())
    }),
    Column { priority: 1, ..NAME },
];

fn first_seen(event: &Value) -> Option<&str> {
    ["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .into_iter()
        .find_map(|pointer| event.pointer(pointer).and_then(Value::as_str))
}

fn last_seen(event: &Value) -> Option<&str> {
    ["/series/lastObservedTime", "/lastTimestamp"]
        .into_iter()
        .find_map(|pointer| event.pointer(pointer).and_then(Value::as_str))
        .or_else(|| first_seen(event))
}

const HOST_PATH_GRANT: &[Column] = &[
    NAME,
    text("Path", "The path that is granted with all below.", |grant, _| {
        json!(text_at(grant, "/spec/path"))
    }),
    text("Access", "ReadOnly or ReadWrite.", |grant, _| {
        json!(text_at(grant, "/spec/access"))
    }),
    text("Namespaces", "Whose pods may mount it.", |grant, _| {
        json!(joined(&grant["spec"]["namespaces"], "<none>"))
    }),
    text("Accounts", "Service accounts whose pods may.", |grant, _| {
        json!(joined(&grant["spec"]["serviceAccounts"], "<all>"))
    }),
    AGE,
];

/// Texts of a list with commas, or what stands for an empty one.
fn joined(list: &Value, none: &str) -> String {
    let texts: Vec<&str> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match texts.is_empty() {
        true => none.to_owned(),
        false => texts.join(","),
    }
}

const IMAGE_POLICY: &[Column] = &[
    NAME,
    text(
        "Threshold",
        "Findings of this severity and above refuse an image.",
        |policy, _| json!(text_at(policy, "/spec/severityThreshold")),
    ),
    text(
        "Unfixed",
        "Whether findings without a fixed version count.",
        |policy, _| {
            json!(if policy["spec"]["ignoreUnfixed"] == true {
                "ignored"
            } else {
                "counted"
            })
        },
    ),
    text(
        "Inconclusive",
        "What happens to an image of which nothing could be checked.",
        |policy, _| json!(text_at(policy, "/spec/inconclusive")),
    ),
    number(
        "Exemptions",
        "Number of exemptions, expired ones included.",
        |policy, _| json!(members(&policy["spec"], "exemptions")),
    ),
    wide("Namespaces", "Namespaces it judges.", |policy, _| {
        json!(match policy["spec"]["namespaces"].as_array() {
            Some(names) if !names.is_empty() => {
                names
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(",")
            }
            _ => "<all>".to_owned(),
        })
    }),
    AGE,
];

const SANDBOX_PROFILE: &[Column] = &[
    NAME,
    text("Preset", "What the sandbox starts from.", |profile, _| {
        json!(text_at(profile, "/spec/preset"))
    }),
    number("Rules", "Rules of its own about system calls.", |profile, _| {
        let rules = profile
            .pointer("/spec/seccomp/syscalls")
            .and_then(Value::as_array);
        json!(rules.map_or(0, Vec::len))
    }),
    AGE,
];

const IMAGE_SCAN: &[Column] = &[
    NAME,
    text("Image", "The image as it was asked for.", |scan, _| {
        json!(text_at(scan, "/spec/image"))
    }),
    text("Verdict", "Pass, Refused or Inconclusive.", |scan, _| {
        json!(text_at(scan, "/status/verdict"))
    }),
    number("Critical", "Critical findings.", |scan, _| {
        count(scan, "CRITICAL")
    }),
    number("High", "High findings.", |scan, _| count(scan, "HIGH")),
    text("Scanned", "Time since the scan.", |scan, now| {
        json!(age_of(
            scan.pointer("/status/scannedAt").and_then(Value::as_str),
            now
        ))
    }),
    wide("OS", "Operating system in the image.", |scan, _| {
        text_or_none(scan, "/status/os")
    }),
    wide("Packages", "Packages that were checked.", |scan, _| {
        json!(scan["status"]["packages"].as_u64().unwrap_or(0).to_string())
    }),
    wide(
        "DB",
        "Time since the vulnerability database was made.",
        |scan, now| {
            json!(age_of(
                scan.pointer("/status/dbUpdatedAt").and_then(Value::as_str),
                now
            ))
        },
    ),
    AGE,
];

fn count(scan: &Value, severity: &str) -> Value {
    json!(scan["status"]["counts"][severity].as_u64().unwrap_or(0))
}

/// A label selector in the text form; `<none>` when it selects everything.
fn label_selector(selector: &Value) -> String {
    let labels: BTreeMap<&String, &Value> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .collect();
    let mut terms: Vec<String> = labels
        .into_iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = text_at(expression, "/key");
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        terms.push(match text_at(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    if terms.is_empty() {
        "<none>".to_owned()
    } else {
        terms.join(",")
    }
}
