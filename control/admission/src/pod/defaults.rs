//! What Kubernetes fills into a pod. Only values that mean the same as their absence.

use api::{
    ImageRef,
    annotations::{REQUESTED_IMAGE_PREFIX, SANDBOX_STATUS},
    qos::qos_class,
};
use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use crate::{AdmissionRequest, Operation, metadata::members, pins::CONTAINER_LISTS};

/// Fills in defaults, and takes back what only an agent may write.
pub(crate) fn default(request: &AdmissionRequest<'_>, pod: &mut Value) {
    keep_sandbox_status(request, pod);
    if request.operation == Operation::Create {
        pod["status"] = json!({"phase": "Pending"});
    }
    if !pod["spec"].is_object() {
        return;
    }
    let requested = pod["metadata"]["annotations"].clone();
    let spec = &mut pod["spec"];
    if let Some(alias) = spec["serviceAccount"].as_str().map(str::to_owned) {
        set_if_empty(spec, "serviceAccountName", json!(alias));
    }
    set_if_empty(spec, "serviceAccountName", json!("default"));
    let account = spec["serviceAccountName"].clone();
    spec["serviceAccount"] = account;
    set_if_empty(spec, "restartPolicy", json!("Always"));
    set_if_empty(spec, "dnsPolicy", json!("ClusterFirst"));
    set_if_empty(spec, "schedulerName", json!("default-scheduler"));
    set_if_absent(spec, "terminationGracePeriodSeconds", json!(30));
    set_if_absent(spec, "enableServiceLinks", json!(true));
    set_if_absent(spec, "securityContext", json!({}));
    for list in CONTAINER_LISTS {
        for container in list_mut(spec, list) {
            let key = format!(
                "{REQUESTED_IMAGE_PREFIX}{}",
                container["name"].as_str().unwrap_or_default()
            );
            default_container(container, requested[key].as_str());
        }
    }
    for volume in list_mut(spec, "volumes") {
        for source in ["configMap", "downwardAPI", "projected", "secret"] {
            if let Some(source) = volume.get_mut(source).filter(|source| source.is_object()) {
                set_if_absent(source, "defaultMode", json!(0o644));
            }
        }
    }
    // Last, by the requests that were filled in. What is no spec is refused later.
    if request.operation == Operation::Create
        && let Ok(spec) = serde_json::from_value::<PodSpec>(spec.clone())
    {
        pod["status"]["qosClass"] = json!(qos_class(&spec));
    }
}

/// `requested` is the image as it was asked for, when the gate has pinned it already: the pull policy follows
/// what the user wrote, before and after pinning alike.
fn default_container(container: &mut Value, requested: Option<&str>) {
    let image = requested
        .or(container["image"].as_str())
        .and_then(|image| image.parse::<ImageRef>().ok());
    let by_latest = image.is_some_and(|image| {
        image.digest.is_none() && image.tag.as_deref().is_none_or(|tag| tag == "latest")
    });
    set_if_empty(
        container,
        "imagePullPolicy",
        json!(if by_latest { "Always" } else { "IfNotPresent" }),
    );
    set_if_absent(container, "resources", json!({}));
    set_if_empty(container, "terminationMessagePath", json!("/dev/termination-log"));
    set_if_empty(container, "terminationMessagePolicy", json!("File"));
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            default_probe(probe);
        }
    }
    for hook in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        if let Some(get) = container.pointer_mut(hook).filter(|get| get.is_object()) {
            default_http(get);
        }
    }
    for port in list_mut(container, "ports") {
        set_if_empty(port, "protocol", json!("TCP"));
    }
    for variable in list_mut(container, "env") {
        if variable
            .pointer("/valueFrom/fieldRef")
            .is_some_and(Value::is_object)
        {
            set_if_empty(&mut variable["valueFrom"]["fieldRef"], "apiVersion", json!("v1"));
        }
    }
    // A limit without a request asks for as much as it may use.
    let limits: Vec<(String, Value)> = members(&container["resources"]["limits"])
        .filter(|(key, _)| matches!(key.as_str(), "cpu" | "ephemeral-storage" | "memory"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, limit) in limits {
        set_if_absent(&mut container["resources"], "requests", json!({}));
        set_if_absent(&mut container["resources"]["requests"], &key, limit);
    }
}

fn default_probe(probe: &mut Value) {
    // Zero asks for the default, except for the delay, whose default it is.
    for (field, default) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if probe[field].as_i64().unwrap_or(0) == 0 {
            probe[field] = json!(default);
        }
    }
    if let Some(get) = probe.get_mut("httpGet").filter(|get| get.is_object()) {
        default_http(get);
    }
    if let Some(grpc) = probe.get_mut("grpc").filter(|grpc| grpc.is_object()) {
        set_if_absent(grpc, "service", json!(""));
    }
}

fn default_http(get: &mut Value) {
    set_if_empty(get, "path", json!("/"));
    set_if_empty(get, "scheme", json!("HTTP"));
}

/// The report of what was enforced is the agent's, through the status subresource.
fn keep_sandbox_status(request: &AdmissionRequest<'_>, pod: &mut Value) {
    let reported = request
        .old
        .and_then(|old| old.pointer("/metadata/annotations"))
        .and_then(|annotations| annotations.get(SANDBOX_STATUS))
        .cloned();
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    match reported {
        Some(report) => {
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(SANDBOX_STATUS.to_owned(), report);
            }
        }
        None => {
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(SANDBOX_STATUS);
            }
        }
    }
}

fn set_if_empty(object: &mut Value, key: &str, value: Value) {
    if object[key].as_str().unwrap_or_default().is_empty() {
        object[key] = value;
    }
}

fn set_if_absent(object: &mut Value, key: &str, value: Value) {
    if object[key].is_null() {
        object[key] = value;
    }
}

/// Items of a list member; unlike indexing this does not leave a null behind where there is none.
fn list_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}
