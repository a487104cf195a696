//! Columns of pods. The status column is a summary that Kubernetes never specified but everybody reads:
//! the most telling reason among pod, containers and deletion.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Column,
    columns::{AGE, NAME, text, text_at, text_or_none, wide},
};
use crate::age::age;

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Containers that are ready, of all.", |pod, _| {
        let ready = container_statuses(pod)
            .filter(|status| status["ready"] == true)
            .count();
        let all = pod
            .pointer("/spec/containers")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        json!(format!("{ready}/{all}"))
    }),
    text(
        "Status",
        "The most telling state of the pod or of one of its containers.",
        |pod, _| json!(status(pod)),
    ),
    text(
        "Restarts",
        "How often its containers were restarted, and when last.",
        |pod, now| json!(restarts(pod, now)),
    ),
    AGE,
    wide("IP", "Address of the pod.", |pod, _| {
        match text_at(pod, "/status/podIPs/0/ip") {
            "" => text_or_none(pod, "/status/podIP"),
            ip => json!(ip),
        }
    }),
    wide("Node", "Node that it runs on.", |pod, _| {
        text_or_none(pod, "/spec/nodeName")
    }),
    wide("Nominated Node", "Node that is being freed for it.", |pod, _| {
        text_or_none(pod, "/status/nominatedNodeName")
    }),
    wide(
        "Readiness Gates",
        "Conditions that must hold beside the containers.",
        |pod, _| {
            let gates = pod.pointer("/spec/readinessGates").and_then(Value::as_array);
            let Some(gates) = gates.filter(|gates| !gates.is_empty()) else {
                return json!("<none>");
            };
            let met = gates
                .iter()
                .filter(|gate| condition_holds(pod, text_at(gate, "/conditionType")))
                .count();
            json!(format!("{met}/{}", gates.len()))
        },
    ),
];

fn status(pod: &Value) -> String {
    let own = text_at(pod, "/status/reason");
    let summary = match own {
        "" => container_summary(pod),
        reason => reason.to_owned(),
    };
    if pod["metadata"]["deletionTimestamp"].is_null() {
        return summary;
    }
    match own {
        // The node is gone, so nobody knows whether the pod still runs.
        "NodeLost" => "Unknown".to_owned(),
        _ if matches!(text_at(pod, "/status/phase"), "Succeeded" | "Failed") => summary,
        _ => "Terminating".to_owned(),
    }
}

/// Reason of the first container that has something to say, else the phase.
fn container_summary(pod: &Value) -> String {
    let mut summary = text_at(pod, "/status/phase").to_owned();
    let mut any_ready_and_running = false;
    let statuses: Vec<&Value> = container_statuses(pod).collect();
    // Backwards, so that the first container has the last word.
    for container in statuses.into_iter().rev() {
        let state = &container["state"];
        let waiting = text_at(state, "/waiting/reason");
        let terminated = &state["terminated"];
        if !waiting.is_empty() {
            summary = waiting.to_owned();
        } else if terminated.is_object() {
            summary = terminated_summary(terminated);
        } else if container["ready"] == true && state["running"].is_object() {
            any_ready_and_running = true;
        }
    }
    if summary == "Completed" && any_ready_and_running {
        summary = if condition_holds(pod, "Ready") {
            "Running".to_owned()
        } else {
            "NotReady".to_owned()
        };
    }
    summary
}

fn terminated_summary(terminated: &Value) -> String {
    match (
        text_at(terminated, "/reason"),
        terminated["signal"].as_i64().unwrap_or(0),
    ) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let count: i64 = container_statuses(pod)
        .filter_map(|status| status["restartCount"].as_i64())
        .sum();
    let last = container_statuses(pod)
        .filter_map(|status| {
            text_at(status, "/lastState/terminated/finishedAt")
                .parse::<Timestamp>()
                .ok()
        })
        .max();
    match last {
        Some(last) if count > 0 => format!("{count} ({} ago)", age(last, now)),
        _ => count.to_string(),
    }
}

fn condition_holds(pod: &Value, name: &str) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == name && c["status"] == "True")
}

fn container_statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.pointer("/status/containerStatuses")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}
