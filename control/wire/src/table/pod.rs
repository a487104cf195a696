//! Columns of pods. The status column is a summary that Kubernetes never specified but everybody reads:
//! the most telling reason among pod, containers and deletion.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Column,
    columns::{AGE, NAME, number, text, text_at, text_or_none, wide},
};
use crate::age::age;

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Containers that are ready, of all.", |pod, _| {
        let summary = Summary::of(pod);
        json!(format!("{}/{}", summary.ready, summary.all))
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

/// What a pod uses. The columns are those of nodes; sums are `kubectl top`'s work.
pub(super) const METRICS: &[Column] = &[
    NAME,
    text("Containers", "Those that were measured.", |pod, _| {
        let containers = pod["containers"].as_array().map_or(0, Vec::len);
        json!(containers.to_string())
    }),
    text("Window", "What the averages are over.", |pod, _| {
        json!(text_at(pod, "/window"))
    }),
];

/// How many pods of a kind must stay.
pub(super) const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    text("Min Available", "Pods that must stay available.", |budget, _| {
        amount(budget, "/spec/minAvailable")
    }),
    text("Max Unavailable", "Pods that may be missing.", |budget, _| {
        amount(budget, "/spec/maxUnavailable")
    }),
    number(
        "Allowed Disruptions",
        "Pods that may be evicted now.",
        |budget, _| json!(budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0)),
    ),
    AGE,
];

/// A number or a share.
fn amount(budget: &Value, pointer: &str) -> Value {
    match budget.pointer(pointer) {
        Some(Value::String(share)) => json!(share),
        Some(Value::Number(number)) => json!(number.to_string()),
        _ => json!("N/A"),
    }
}

fn status(pod: &Value) -> String {
    if pod["metadata"]["deletionTimestamp"].is_null() {
        return Summary::of(pod).reason;
    }
    match text_at(pod, "/status/reason") {
        // The node is gone, so nobody knows whether the pod still runs.
        "NodeLost" => "Unknown".to_owned(),
        _ if matches!(text_at(pod, "/status/phase"), "Succeeded" | "Failed") => Summary::of(pod).reason,
        _ => "Terminating".to_owned(),
    }
}

/// What the containers of a pod amount to. Sidecars count like main containers; while a pod initializes
/// only the first init container that is not done has a say.
struct Summary {
    reason: String,
    ready: usize,
    all: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let inits: Vec<&Value> = list(pod, "/spec/initContainers").collect();
        let is_sidecar = |name: &Value| {
            let mut sidecars = inits.iter().filter(|init| init["restartPolicy"] == "Always");
            sidecars.any(|sidecar| sidecar["name"] == *name)
        };
        let sidecars = inits.iter().filter(|init| is_sidecar(&init["name"])).count();
        let mut summary = Self {
            reason: match text_at(pod, "/status/reason") {
                "" => text_at(pod, "/status/phase").to_owned(),
                reason => reason.to_owned(),
            },
            ready: 0,
            all: list(pod, "/spec/containers").count() + sidecars,
            restarts: 0,
            last_restart: None,
        };
        let mut of_sidecars = (0, None);
        let mut initializing = None;
        for (index, status) in list(pod, "/status/initContainerStatuses").enumerate() {
            summary.count_restarts(status);
            let sidecar = is_sidecar(&status["name"]);
            if sidecar {
                of_sidecars.0 += status["restartCount"].as_i64().unwrap_or(0);
                of_sidecars.1 = of_sidecars.1.max(last_end(status));
            }
            let state = &status["state"];
            if state["terminated"].is_object() && state["terminated"]["exitCode"] == 0 {
                continue;
            }
            if sidecar && status["started"] == true {
                summary.ready += usize::from(status["ready"] == true);
                continue;
            }
            let waiting = text_at(state, "/waiting/reason");
            initializing = Some(if state["terminated"].is_object() {
                format!("Init:{}", terminated_summary(&state["terminated"]))
            } else if !matches!(waiting, "" | "PodInitializing") {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", inits.len())
            });
            break;
        }
        match initializing {
            Some(reason) if !condition_holds(pod, "Initialized") => summary.reason = reason,
            _ => {
                (summary.restarts, summary.last_restart) = of_sidecars;
                summary.add_mains(pod);
            }
        }
        summary
    }

    /// Reason of the first container that has something to say.
    fn add_mains(&mut self, pod: &Value) {
        let mut any_ready_and_running = false;
        let statuses: Vec<&Value> = list(pod, "/status/containerStatuses").collect();
        // Backwards, so that the first container has the last word.
        for status in statuses.into_iter().rev() {
            self.count_restarts(status);
            let state = &status["state"];
            let waiting = text_at(state, "/waiting/reason");
            let terminated = &state["terminated"];
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if terminated.is_object() {
                self.reason = terminated_summary(terminated);
            } else if status["ready"] == true && state["running"].is_object() {
                any_ready_and_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && any_ready_and_running {
            self.reason = match condition_holds(pod, "Ready") {
                true => "Running".to_owned(),
                false => "NotReady".to_owned(),
            };
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        self.last_restart = self.last_restart.max(last_end(status));
    }
}

/// When the container's run before the present one ended.
fn last_end(status: &Value) -> Option<Timestamp> {
    text_at(status, "/lastState/terminated/finishedAt").parse().ok()
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
    let summary = Summary::of(pod);
    match summary.last_restart {
        Some(last) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, age(last, now)),
        _ => summary.restarts.to_string(),
    }
}

fn condition_holds(pod: &Value, name: &str) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == name && c["status"] == "True")
}

fn list<'a>(pod: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    pod.pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}
