//! What only pods have: binding to a node, and logs read through the node's agent. The decisions are pure
//! functions of the objects.

use api::{annotations::STATIC_PODS, learned::MAX_SECONDS, resources::Resource};
use control_wire::{
    Cause, Status,
    query::{LogQuery, Parameters},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{lifecycle::seconds, objects::metadata_text};

/// Where a pod's log is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogSource {
    /// The pod is on no node yet: its log is empty.
    Unscheduled,
    /// The agent of `node` has it under `path_and_query`.
    Node {
        /// Node name.
        node: String,
        /// Path and query of the agent's API.
        path_and_query: String,
    },
}

/// Binds `pod` to the node that `binding` names.
pub(crate) fn bind(pod: &mut Value, binding: &Value, row: &Resource, now: Timestamp) -> Result<(), Status> {
    let name = metadata_text(pod, "name").to_owned();
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    let kind = target["kind"].as_str().unwrap_or("Node");
    if node.is_empty() {
        return Err(Status::invalid(
            row,
            &name,
            vec![Cause::required("target.name", "")],
        ));
    }
    if kind != "Node" {
        let cause = Cause::not_supported("target.kind", kind, &["Node"]);
        return Err(Status::invalid(row, &name, vec![cause]));
    }
    let uid = metadata_text(binding, "uid");
    if !uid.is_empty() && uid != metadata_text(pod, "uid") {
        return Err(Status::conflict(
            row,
            &name,
            format!("the UID in the precondition is {uid}"),
        ));
    }
    if pod
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|stamp| !stamp.is_null())
    {
        return Err(Status::conflict(
            row,
            &name,
            format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    if let Some(bound) = pod
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .filter(|node| !node.is_empty())
    {
        return Err(Status::conflict(
            row,
            &name,
            format!("pod {name} is already assigned to node {bound:?}"),
        ));
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Err(Status::internal("stored pod without a spec"));
    };
    spec.insert("nodeName".to_owned(), json!(node));
    // Annotations of the binding are left out: whoever may bind a pod may not say under which profile it runs, or what the
    // image gate found.
    set_condition(
        pod,
        json!({
            "type": "PodScheduled",
            "status": "True",
            "lastProbeTime": null,
            "lastTransitionTime": seconds(now),
        }),
    );
    Ok(())
}

/// Refuses a static pod where nobody has allowed them: a node chooses the labels of its pods, and policies of the namespace
/// may trust labels.
pub(crate) fn demand_static_namespace(namespace: &Value, row: &Resource) -> Result<(), Status> {
    let name = metadata_text(namespace, "name");
    let labels = namespace.pointer("/metadata/labels");
    let label = labels
        .and_then(|labels| labels.get(STATIC_PODS))
        .and_then(Value::as_str);
    if name == "kube-system" || label == Some("allowed") {
        return Ok(());
    }
    let message = format!(
        "static pods live in namespace kube-system, or in one with the label {STATIC_PODS}=allowed; namespace {name:?} has none"
    );
    Err(Status::forbidden(row, "", message))
}

/// Name of the container that is meant: the one asked for, or the only one.
pub(crate) fn container_of<'a>(pod: &'a Value, asked: Option<&str>) -> Result<&'a str, Status> {
    let name = metadata_text(pod, "name");
    let names = |list: &str| -> Vec<&'a str> {
        let containers = pod.pointer(list).and_then(Value::as_array);
        let names = containers
            .into_iter()
            .flatten()
            .map(|container| &container["name"]);
        names.filter_map(Value::as_str).collect()
    };
    let containers = names("/spec/containers");
    let inits = names("/spec/initContainers");
    let ephemeral = names("/spec/ephemeralContainers");
    match (asked, containers.as_slice()) {
        (Some(asked), _) => containers
            .iter()
            .chain(&inits)
            .chain(&ephemeral)
            .find(|known| **known == asked)
            .copied()
            .ok_or_else(|| Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        (None, [only]) => Ok(only),
        (None, many) => {
            let list = many.join(" ");
            let inits = match inits.as_slice() {
                [] => String::new(),
                inits => format!(" or one of the init containers: [{}]", inits.join(" ")),
            };
            Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{list}]{inits}"
            )))
        }
    }
}

/// Decides where a log is read, or why it cannot be.
pub(crate) fn log_source(pod: &Value, query: &LogQuery) -> Result<LogSource, Status> {
    let name = metadata_text(pod, "name");
    let container = container_of(pod, query.container.as_deref())?;
    let node = pod
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if node.is_empty() {
        return Ok(LogSource::Unscheduled);
    }
    let options = [
        ("follow", query.follow.then(|| "true".to_owned())),
        ("previous", query.previous.then(|| "true".to_owned())),
        ("timestamps", query.timestamps.then(|| "true".to_owned())),
        ("sinceSeconds", query.since_seconds.map(|n| n.to_string())),
        ("sinceTime", query.since_time.map(|time| time.to_string())),
        ("tailLines", query.tail_lines.map(|n| n.to_string())),
        ("limitBytes", query.limit_bytes.map(|n| n.to_string())),
    ];
    // Numbers, flags and a time in UTC: nothing here needs escaping in a query string.
    let options = options
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", value?)));
    let query = options.collect::<Vec<_>>().join("&");
    let namespace = metadata_text(pod, "namespace");
    Ok(LogSource::Node {
        node: node.to_owned(),
        path_and_query: format!("/containerLogs/{namespace}/{name}/{container}?{query}"),
    })
}

/// Node, and path and query of the request to it, that watches a container.
pub(crate) fn learn_source(pod: &Value, parameters: &Parameters) -> Result<(String, String), Status> {
    let name = metadata_text(pod, "name");
    let container = container_of(pod, parameters.text("container"))?;
    let seconds = parameters
        .number::<u64>("seconds")?
        .filter(|seconds| (1..=MAX_SECONDS).contains(seconds))
        .ok_or_else(|| {
            Status::bad_request(format!("parameter seconds: must be between 1 and {MAX_SECONDS}"))
        })?;
    let node = pod
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} is on no node yet")));
    }
    let namespace = metadata_text(pod, "namespace");
    Ok((
        node.to_owned(),
        format!("/learn/{namespace}/{name}/{container}?seconds={seconds}"),
    ))
}

/// Path and query of a request that is passed to a node, or `None` where nodes answer nothing.
pub(crate) fn node_path(rest: &str, parameters: &Parameters) -> Result<Option<String>, Status> {
    match rest {
        "flows" => {
            let mut path = format!("/flows?follow={}", parameters.flag("follow"));
            if let Some(since) = parameters.text("since") {
                let since: Timestamp = since.parse().map_err(|_not_a_time| {
                    Status::bad_request(format!("parameter since: {since:?} is not an RFC 3339 time"))
                })?;
                // In UTC, so nothing in it needs escaping.
                path.push_str(&format!("&since={since}"));
            }
            for name in ["after", "limit"] {
                if let Some(number) = parameters.number::<u64>(name)? {
                    path.push_str(&format!("&{name}={number}"));
                }
            }
            Ok(Some(path))
        }
        "policy" => Ok(Some("/policy".to_owned())),
        "metrics" => Ok(Some("/metrics".to_owned())),
        "metrics/cadvisor" => Ok(Some("/metrics/cadvisor".to_owned())),
        "metrics/resource" => Ok(Some("/metrics/resource".to_owned())),
        "stats/summary" => Ok(Some("/stats/summary".to_owned())),
        _ => Ok(None),
    }
}

/// Replaces the condition of the same type, or adds it.
pub(crate) fn set_condition(pod: &mut Value, condition: Value) {
    let status = &mut pod["status"];
    if !status.is_object() {
        *status = json!({});
    }
    let conditions = &mut status["conditions"];
    match conditions.as_array_mut() {
        Some(list) => {
            list.retain(|existing| existing["type"] != condition["type"]);
            list.push(condition);
        }
        None => *conditions = json!([condition]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> &'static Resource {
        api::resources::by_any_name("pods").unwrap()
    }

    fn pod(containers: &[&str]) -> Value {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
        json!({
            "metadata": {"name": "p", "namespace": "a", "uid": "u1"},
            "spec": {"containers": containers},
        })
    }

    fn parameters(query: &str) -> Parameters {
        Parameters::parse(query).unwrap()
    }

    fn log(pod: &Value, query: &str) -> Result<LogSource, Status> {
        log_source(pod, &LogQuery::parse(&parameters(query)).unwrap())
    }

    #[test]
    fn a_pod_is_bound_once() {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let binding = json!({"target": {"kind": "Node", "name": "n1"}});
        let mut bound = pod(&["c"]);
        bind(&mut bound, &binding, pods(), now).unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n1");
        assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
        assert_eq!(bind(&mut bound, &binding, pods(), now).unwrap_err().code(), 409);

        let mut other = pod(&["c"]);
        let stale = json!({"metadata": {"uid": "u0"}, "target": {"name": "n1"}});
        assert_eq!(bind(&mut other, &stale, pods(), now).unwrap_err().code(), 409);
        assert_eq!(bind(&mut other, &json!({}), pods(), now).unwrap_err().code(), 422);
        other["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(bind(&mut other, &binding, pods(), now).unwrap_err().code(), 409);
    }

    #[test]
    fn static_pods_live_where_somebody_has_allowed_them() {
        let allowed = |name: &str, labels: Value| {
            let namespace = json!({"metadata": {"name": name, "labels": labels}});
            demand_static_namespace(&namespace, pods()).is_ok()
        };
        assert!(allowed("kube-system", json!({})));
        assert!(allowed("edge", json!({"palisade.dev/static-pods": "allowed"})));
        for labels in [
            json!(null),
            json!({}),
            json!({"palisade.dev/static-pods": "denied"}),
        ] {
            assert!(!allowed("default", labels));
        }
    }

    #[test]
    fn logs_need_a_container_of_the_pod() {
        let mut one = pod(&["c"]);
        assert_eq!(log(&one, ""), Ok(LogSource::Unscheduled));
        one["spec"]["nodeName"] = json!("n1");
        let source = log(
            &one,
            "follow=true&tailLines=1&evil=1&sinceTime=2026-01-02T03:04:05%2B01:00",
        )
        .unwrap();
        assert_eq!(
            source,
            LogSource::Node {
                node: "n1".into(),
                path_and_query: "/containerLogs/a/p/c?follow=true&sinceTime=2026-01-02T02:04:05Z&tailLines=1"
                    .into(),
            }
        );
        assert_eq!(log(&one, "container=../x").unwrap_err().code(), 400);
        assert!(
            log(&pod(&["a", "b"]), "")
                .unwrap_err()
                .message()
                .contains("choose one of: [a b]")
        );
    }

    #[test]
    fn learning_needs_a_container_and_a_time() {
        let mut one = pod(&["c"]);
        let ask = |pod: &Value, query: &str| learn_source(pod, &parameters(query));
        assert!(ask(&one, "seconds=5").unwrap_err().message().contains("no node"));
        one["spec"]["nodeName"] = json!("n1");
        let (node, path) = ask(&one, "seconds=5").unwrap();
        assert_eq!((node.as_str(), path.as_str()), ("n1", "/learn/a/p/c?seconds=5"));
        for bad in [
            "",
            "seconds=0",
            "seconds=86401",
            "seconds=x",
            "seconds=5&container=../x",
        ] {
            assert_eq!(ask(&one, bad).unwrap_err().code(), 400, "{bad}");
        }
    }

    #[test]
    fn nodes_answer_about_flows_policy_and_usage_only() {
        let path = |rest: &str, query: &str| node_path(rest, &parameters(query)).unwrap();
        assert_eq!(path("flows", "follow=true").unwrap(), "/flows?follow=true");
        assert_eq!(
            path(
                "flows",
                "limit=5&after=7&evil=1&since=2026-01-02T03:04:05%2B01:00"
            )
            .unwrap(),
            "/flows?follow=false&since=2026-01-02T02:04:05Z&after=7&limit=5"
        );
        assert_eq!(path("policy", "evil=1").unwrap(), "/policy");
        for whole in ["metrics", "metrics/cadvisor", "metrics/resource", "stats/summary"] {
            assert_eq!(path(whole, "evil=1").unwrap(), format!("/{whole}"));
        }
        for other in [
            "",
            "healthz",
            "flows/x",
            "policy/x",
            "metrics/x",
            "containerLogs/a/p/c",
        ] {
            assert_eq!(path(other, ""), None, "{other}");
        }
        for bad in ["since=today", "limit=-1", "after=x"] {
            let refused = node_path("flows", &parameters(bad)).unwrap_err();
            assert_eq!(refused.code(), 400, "{bad}");
        }
    }
}
