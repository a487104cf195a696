//! `metrics.k8s.io`: what nodes and pods use, as their agents measured it last. Nothing of it is stored.
//!
//! A node that does not answer is left out, as are pods that it has not measured twice. What a node says counts for itself
//! and for the pods that are bound to it.

use std::collections::BTreeMap;

use api::{
    resources::Scope,
    stats::{CpuStats, MemoryStats, PodStats, Summary},
};
use control_store::ListOptions;
use control_wire::{Status, query::ListQuery};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    Server,
    call::{Call, Outcome},
    lifecycle::seconds,
    node_proxy::{self, NodeEndpoint},
    objects::{self, metadata_text},
    read::matcher,
    streams::node_failure,
    write::store_failure,
};

/// What is measured, for refusals.
pub(crate) const SOURCE: &str = "what the nodes measure";

/// Where agents tell what they measured.
const SUMMARY: &str = "/stats/summary";
/// Nodes that are asked at the same time.
const ASKED_AT_ONCE: usize = 32;
/// Longest summary of a node.
const MAX_SUMMARY_BYTES: usize = 16 << 20;
/// What rates are averages over, for people: the agent's interval.
const WINDOW: &str = "10s";

impl Server {
    /// `GET` on the measurements of one node or pod.
    pub(crate) async fn get_measured(&self, call: &Call) -> Result<Outcome, Status> {
        let (row, name) = (call.target.resource, call.target.name());
        let object = self
            .fetch(core(call), call.target.namespace(), name)
            .await
            .map_err(|status| match status.code() {
                404 => Status::not_found(row, name),
                _ => status,
            })?;
        let measured = self.measured(call, vec![object], true).await?;
        let found = measured.into_iter().next();
        found.map(Outcome::ok).ok_or_else(|| Status::not_found(row, name))
    }

    /// `GET` on those of all, or of those whose objects a selector selects.
    pub(crate) async fn list_measured(&self, call: &Call) -> Result<Outcome, Status> {
        let row = call.target.resource;
        let query = ListQuery::parse(row, &call.parameters)?;
        let matches = matcher(&query);
        let prefix = objects::prefix(core(call), call.target.namespace.as_deref());
        let page = self.store.list(&prefix, &ListOptions::default()).await;
        let mut selected = Vec::new();
        for stored in page.map_err(|error| store_failure(&error))?.items {
            let object = objects::materialise(&stored, stored.revision).map_err(Status::internal)?;
            if matches(&object) {
                selected.push(object);
            }
        }
        let items = self.measured(call, selected, false).await?;
        Ok(Outcome::ok(json!({
            "apiVersion": row.api_version(),
            "kind": format!("{}List", row.kind),
            "metadata": {},
            "items": items,
        })))
    }

    /// Measurements of `objects`. That a node does not answer is an error only if there is nothing else to show.
    async fn measured(&self, call: &Call, objects: Vec<Value>, demanded: bool) -> Result<Vec<Value>, Status> {
        let nodes = call.target.resource.scope == Scope::Cluster;
        let mut by_node: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for object in objects {
            let node = if nodes {
                metadata_text(&object, "name").to_owned()
            } else {
                let node = object.pointer("/spec/nodeName").and_then(Value::as_str);
                node.unwrap_or_default().to_owned()
            };
            if !node.is_empty() {
                by_node.entry(node).or_default().push(object);
            }
        }
        let asked = by_node.into_iter().map(|(node, objects)| async move {
            let summary = self.summary(&node).await;
            (node, objects, summary)
        });
        let mut answers = stream::iter(asked).buffered(ASKED_AT_ONCE);
        let mut items = Vec::new();
        while let Some((node, objects, summary)) = answers.next().await {
            match summary {
                Ok(summary) if nodes => {
                    items.extend(
                        objects
                            .iter()
                            .filter_map(|object| node_metrics(call, object, &summary)),
                    );
                }
                Ok(summary) => items.extend(pods_of(call, &objects, &summary)),
                Err(status) if demanded => return Err(status),
                Err(status) => warn!(node, reason = status.message(), "not measured"),
            }
        }
        Ok(items)
    }

    async fn summary(&self, node: &str) -> Result<Summary, Status> {
        let object = self.fetch(crate::row("", "nodes"), "", node).await?;
        let body = async {
            let endpoint = NodeEndpoint::of(&object)?;
            node_proxy::fetch(&endpoint, SUMMARY, &self.node_tls, MAX_SUMMARY_BYTES).await
        };
        let body = body.await.map_err(|error| node_failure(&error))?;
        serde_json::from_slice(&body)
            .map_err(|error| Status::unavailable(format!("node {node:?} measures something else: {error}")))
    }
}

/// The row of the objects that are measured.
fn core(call: &Call) -> &'static api::resources::Resource {
    crate::row("", call.target.resource.plural)
}

fn node_metrics(call: &Call, object: &Value, summary: &Summary) -> Option<Value> {
    let (time, usage) = usage(summary.node.cpu.as_ref(), summary.node.memory.as_ref())?;
    let mut metrics = head(call, object, time);
    metrics["usage"] = usage;
    Some(metrics)
}

fn pods_of(call: &Call, objects: &[Value], summary: &Summary) -> Vec<Value> {
    let by_uid: BTreeMap<&str, &PodStats> = summary
        .pods
        .iter()
        .map(|pod| (pod.pod_ref.uid.as_str(), pod))
        .collect();
    let metrics = |object: &Value| {
        let pod = by_uid.get(metadata_text(object, "uid"))?;
        let mut time = None;
        let mut containers = Vec::new();
        for container in &pod.containers {
            // As long as one of them was not measured twice, the sum would be wrong.
            let (measured_at, usage) = usage(container.cpu.as_ref(), container.memory.as_ref())?;
            time = Some(measured_at);
            containers.push(json!({"name": container.name, "usage": usage}));
        }
        let mut metrics = head(call, object, time?);
        metrics["containers"] = json!(containers);
        Some(metrics)
    };
    objects.iter().filter_map(metrics).collect()
}

fn head(call: &Call, object: &Value, time: Timestamp) -> Value {
    let mut metadata = json!({
        "name": metadata_text(object, "name"),
        "creationTimestamp": seconds(call.now),
    });
    if let Some(labels) = object.pointer("/metadata/labels") {
        metadata["labels"] = labels.clone();
    }
    if call.target.resource.namespaced() {
        metadata["namespace"] = json!(metadata_text(object, "namespace"));
    }
    json!({
        "apiVersion": call.target.api_version(),
        "kind": call.target.resource.kind,
        "metadata": metadata,
        "timestamp": seconds(time),
        "window": WINDOW,
    })
}

/// When it was measured, and how much in the words of the metrics API; nothing before there is a rate.
fn usage(cpu: Option<&CpuStats>, memory: Option<&MemoryStats>) -> Option<(Timestamp, Value)> {
    let (cpu, memory) = (cpu?, memory?);
    let usage = json!({
        "cpu": format!("{}n", cpu.usage_nano_cores?),
        "memory": format!("{}Ki", memory.working_set_bytes / 1024),
    });
    Some((cpu.time, usage))
}
