//! Node lifecycle: a node whose heartbeat stops is marked, its pods are marked, then evicted. Taints follow from what a
//! node reports, and send pods away that do not tolerate them.
//!
//! Age is counted on our own clock from the moment a heartbeat was first seen, so a node whose clock is
//! wrong is not dead, and one that was silent before this process started gets the full time again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod, Taint},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};

use crate::{
    Timing,
    cache::Cache,
    recorder::{Recorder, Severity},
    taints::{self, Exposure, UNREACHABLE},
};

/// What a condition of a silent node says.
const SILENT_REASON: &str = "NodeStatusUnknown";
const SILENT_MESSAGE: &str = "The node's agent stopped posting its heartbeat.";

/// What the loop looks at.
pub(crate) struct Caches {
    pub(crate) nodes: Cache<Node>,
    pub(crate) leases: Cache<Lease>,
    pub(crate) pods: Cache<Pod>,
}

/// Runs for ever.
pub(crate) async fn run(client: Client, recorder: Recorder, timing: Timing, caches: Caches) {
    let mut heartbeats = Heartbeats::default();
    let mut exposure = Exposure::default();
    loop {
        if let (Some(nodes), Some(leases), Some(pods)) = (
            caches.nodes.objects(),
            caches.leases.objects(),
            caches.pods.objects(),
        ) {
            let now = Instant::now();
            heartbeats.observe(&nodes, &leases, &pods, now);
            exposure.observe(nodes.iter().map(|node| &**node), now);
            let mut actions = actions(&nodes, &pods, &heartbeats, timing, now);
            actions.extend(by_taints(&nodes, &pods, &exposure, timing, now));
            for action in actions {
                act(&client, &recorder, action).await;
            }
        }
        tokio::time::sleep(timing.node_interval).await;
    }
}

/// When each node was last heard of, by our clock.
#[derive(Debug, Default)]
struct Heartbeats {
    last: HashMap<String, Heartbeat>,
}

#[derive(Debug)]
struct Heartbeat {
    renewed: Option<Timestamp>,
    seen: Instant,
}

/// One thing to do.
enum Action {
    /// The node is silent and its conditions do not say so yet.
    MarkNode(Arc<Node>),
    /// The pod runs on a silent node and still counts as ready.
    MarkPod(Arc<Pod>),
    /// The pod's time on a silent node is over.
    Evict(Arc<Pod>, String),
    /// The pod's node is gone: nobody is left to end it.
    Remove(Arc<Pod>, String),
    /// The node's taints are not what its state calls for.
    Taint(Arc<Node>, Vec<Taint>),
    /// The pod does not tolerate a taint of its node, or not any more.
    Expel(Arc<Pod>),
}

impl Heartbeats {
    /// Takes note of renewed leases. Nodes without a lease, and nodes that only pods still speak of, count as
    /// heard of when they first turn up.
    fn observe(&mut self, nodes: &[Arc<Node>], leases: &[Arc<Lease>], pods: &[Arc<Pod>], now: Instant) {
        let renewals: HashMap<String, Timestamp> = leases
            .iter()
            .filter_map(|lease| Some((lease.name_any(), lease.spec.as_ref()?.renew_time.as_ref()?.0)))
            .collect();
        let names = nodes.iter().map(|node| node.name_any());
        let names: Vec<_> = names
            .chain(pods.iter().filter_map(|pod| node_of(pod).map(str::to_owned)))
            .collect();
        for name in &names {
            let renewed = renewals.get(name).copied();
            let heartbeat = self
                .last
                .entry(name.clone())
                .or_insert(Heartbeat { renewed, seen: now });
            if heartbeat.renewed != renewed {
                *heartbeat = Heartbeat { renewed, seen: now };
            }
        }
        self.last.retain(|name, _| names.contains(name));
    }

    /// How long the node has been silent.
    fn silence(&self, node: &str, now: Instant) -> Duration {
        self.last.get(node).map_or(Duration::ZERO, |heartbeat| {
            now.saturating_duration_since(heartbeat.seen)
        })
    }
}

/// What the state of the cluster calls for.
fn actions(
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    heartbeats: &Heartbeats,
    timing: Timing,
    now: Instant,
) -> Vec<Action> {
    let silence = |node: &str| heartbeats.silence(node, now);
    let known: HashMap<String, &Arc<Node>> = nodes.iter().map(|node| (node.name_any(), node)).collect();
    let mut actions: Vec<_> = nodes
        .iter()
        .filter(|node| silence(&node.name_any()) > timing.heartbeat_limit && !is_marked(node))
        .map(|node| Action::MarkNode(Arc::clone(node)))
        .collect();
    for pod in pods {
        let Some(name) = node_of(pod) else { continue };
        let silence = silence(name);
        if silence <= timing.heartbeat_limit {
            continue;
        }
        let (pod, name) = (Arc::clone(pod), name.to_owned());
        if !known.contains_key(&name) {
            actions.push(Action::Remove(pod, name));
            continue;
        }
        let over = evict_after(&pod, timing).is_some_and(|limit| silence > timing.heartbeat_limit + limit);
        if over && pod.metadata.deletion_timestamp.is_none() && !ended(&pod) {
            actions.push(Action::Evict(Arc::clone(&pod), name.clone()));
        } else if is_ready(&pod) {
            actions.push(Action::MarkPod(pod));
        }
    }
    actions
}

/// What the nodes' taints call for.
fn by_taints(
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    exposure: &Exposure,
    timing: Timing,
    now: Instant,
) -> Vec<Action> {
    let wrong = nodes.iter().filter_map(|node| {
        let corrected = taints::corrected(node, Timestamp::now())?;
        Some(Action::Taint(Arc::clone(node), corrected))
    });
    let mut actions: Vec<_> = wrong.collect();
    let known: HashMap<String, &Arc<Node>> = nodes.iter().map(|node| (node.name_any(), node)).collect();
    for pod in pods {
        if let Some(node) = node_of(pod).and_then(|name| known.get(name))
            && pod.metadata.deletion_timestamp.is_none()
            && !ended(pod)
            && exposure.is_over(pod, node, timing.evict_after, now)
        {
            actions.push(Action::Expel(Arc::clone(pod)));
        }
    }
    actions
}

/// How long the pod stays on a silent node; `None` for as long as it takes. As in Kubernetes the shortest
/// matching toleration counts.
fn evict_after(pod: &Pod, timing: Timing) -> Option<Duration> {
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let matching: Vec<_> = tolerations
        .filter(|t| {
            let key = t.key.as_deref().unwrap_or_default();
            let exists = t.operator.as_deref() == Some("Exists");
            let effect = t.effect.as_deref().unwrap_or_default();
            (key == UNREACHABLE || (key.is_empty() && exists)) && matches!(effect, "" | "NoExecute")
        })
        .collect();
    if matching.is_empty() {
        return Some(timing.evict_after);
    }
    let seconds = matching.iter().filter_map(|t| t.toleration_seconds).min()?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

async fn act(client: &Client, recorder: &Recorder, action: Action) {
    let outcome = match &action {
        Action::MarkNode(node) => mark_node(client, recorder, node).await,
        Action::MarkPod(pod) => mark_pod(client, recorder, pod).await,
        Action::Evict(pod, node) => evict(client, recorder, pod, node).await,
        Action::Remove(pod, node) => remove(client, recorder, pod, node).await,
        Action::Taint(node, taints) => taint(client, node, taints).await,
        Action::Expel(pod) => expel(client, recorder, pod).await,
    };
    match outcome {
        Ok(()) => {}
        // It changed or went while we looked; the next look knows better.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            match &action {
                Action::MarkNode(node) | Action::Taint(node, _) => {
                    tracing::warn!(
                        error,
                        node = node.name_any(),
                        "node was not marked, will be retried"
                    );
                }
                Action::MarkPod(pod)
                | Action::Evict(pod, _)
                | Action::Remove(pod, _)
                | Action::Expel(pod) => {
                    let (namespace, pod) = (namespace(pod), pod.name_any());
                    tracing::warn!(
                        error,
                        namespace,
                        pod,
                        "pod of an unfit node was not changed, will be retried"
                    );
                }
            }
        }
    }
}

async fn mark_node(client: &Client, recorder: &Recorder, node: &Arc<Node>) -> Result<(), kube::Error> {
    let name = node.name_any();
    let api: Api<Node> = Api::all(client.clone());
    let patch = Patch::Strategic(silent_conditions(node, Timestamp::now()));
    api.patch_status(&name, &PatchParams::default(), &patch).await?;
    tracing::warn!(node = name, "node is silent, marked as not ready");
    let message = format!("Node {name} status is now: NodeNotReady");
    recorder
        .record(&**node, Severity::Normal, "NodeNotReady", &message)
        .await;
    Ok(())
}

async fn mark_pod(client: &Client, recorder: &Recorder, pod: &Arc<Pod>) -> Result<(), kube::Error> {
    let patch = json!({
        "metadata": {"uid": pod.uid()},
        "status": {"conditions": [{
            "type": "Ready",
            "status": "False",
            "reason": "NodeNotReady",
            "lastTransitionTime": Time(Timestamp::now()),
        }]},
    });
    pods_of(client, pod)
        .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    recorder
        .record(&**pod, Severity::Warning, "NodeNotReady", "Node is not ready")
        .await;
    Ok(())
}

async fn evict(client: &Client, recorder: &Recorder, pod: &Arc<Pod>, node: &str) -> Result<(), kube::Error> {
    let patch = json!({
        "metadata": {"uid": pod.uid()},
        "status": {
            "reason": "NodeLost",
            "message": format!("Node {node} which was running pod {} is unresponsive", pod.name_any()),
        },
    });
    let api = pods_of(client, pod);
    api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    // With its grace period: only the agent knows when the containers are really gone, so until it is back,
    // or somebody forces it, the pod stays as terminating.
    api.delete(&pod.name_any(), &DeleteParams::default().preconditions(same(pod)))
        .await?;
    let message = format!(
        "Marking for deletion Pod {}/{}: node {node} is silent",
        namespace(pod),
        pod.name_any()
    );
    recorder
        .record(&**pod, Severity::Warning, "NodeLost", &message)
        .await;
    Ok(())
}

async fn remove(client: &Client, recorder: &Recorder, pod: &Arc<Pod>, node: &str) -> Result<(), kube::Error> {
    let deletion = DeleteParams::default().grace_period(0).preconditions(same(pod));
    pods_of(client, pod).delete(&pod.name_any(), &deletion).await?;
    let message = format!("Node {node} no longer exists, its pod is deleted");
    recorder
        .record(&**pod, Severity::Warning, "NodeGone", &message)
        .await;
    Ok(())
}

/// The version makes sure that no taint of somebody else's is overwritten.
async fn taint(client: &Client, node: &Arc<Node>, taints: &[Taint]) -> Result<(), kube::Error> {
    let patch = json!({
        "metadata": {"resourceVersion": node.resource_version()},
        "spec": {"taints": taints},
    });
    let api: Api<Node> = Api::all(client.clone());
    api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
}

async fn expel(client: &Client, recorder: &Recorder, pod: &Arc<Pod>) -> Result<(), kube::Error> {
    let message = "Taint manager: deleting due to NoExecute taint";
    let patch = json!({
        "metadata": {"uid": pod.uid()},
        "status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": message,
            "lastTransitionTime": Time(Timestamp::now()),
        }]},
    });
    let api = pods_of(client, pod);
    api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    api.delete(&pod.name_any(), &DeleteParams::default().preconditions(same(pod)))
        .await?;
    let message = format!("Marking for deletion Pod {}/{}", namespace(pod), pod.name_any());
    recorder
        .record(&**pod, Severity::Normal, "TaintManagerEviction", &message)
        .await;
    Ok(())
}

fn pods_of(client: &Client, pod: &Pod) -> Api<Pod> {
    Api::namespaced(client.clone(), &namespace(pod))
}

fn namespace(pod: &Pod) -> String {
    pod.namespace().unwrap_or_default()
}

fn same(pod: &Pod) -> Preconditions {
    Preconditions {
        uid: pod.uid(),
        resource_version: None,
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|node| !node.is_empty())
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn is_marked(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
}

/// Every condition the node reports, and `Ready` in any case, becomes unknown. The version makes sure that
/// no report of the node itself is overwritten.
fn silent_conditions(node: &Node, now: Timestamp) -> Value {
    let reported = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut types: Vec<_> = reported.map(|condition| condition.type_.as_str()).collect();
    if !types.contains(&"Ready") {
        types.push("Ready");
    }
    let condition = |type_: &&str| {
        json!({
            "type": type_,
            "status": "Unknown",
            "reason": SILENT_REASON,
            "message": SILENT_MESSAGE,
            "lastTransitionTime": Time(now),
        })
    };
    json!({
        "metadata": {"resourceVersion": node.resource_version()},
        "status": {"conditions": types.iter().map(condition).collect::<Vec<_>>()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str) -> Arc<Node> {
        let node = json!({
            "metadata": {"name": "n", "resourceVersion": "7"},
            "status": {"conditions": [
                {"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready},
            ]},
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn pod(node: &str, ready: &str, tolerations: &Value) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"nodeName": node, "containers": [], "tolerations": tolerations},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn lease(renewed: &str) -> Arc<Lease> {
        let lease = json!({"metadata": {"name": "n"}, "spec": {"renewTime": renewed}});
        Arc::new(serde_json::from_value(lease).unwrap())
    }

    fn named(actions: &[Action]) -> Vec<&'static str> {
        actions
            .iter()
            .map(|action| match action {
                Action::MarkNode(_) => "mark node",
                Action::MarkPod(_) => "mark pod",
                Action::Evict(..) => "evict",
                Action::Remove(..) => "remove",
                Action::Taint(..) => "taint",
                Action::Expel(..) => "expel",
            })
            .collect()
    }

    /// What is done after `seconds` of silence.
    fn after(seconds: u64, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Vec<&'static str> {
        let start = Instant::now();
        let mut heartbeats = Heartbeats::default();
        let leases = [lease("2026-01-01T00:00:00.000000Z")];
        heartbeats.observe(nodes, &leases, pods, start);
        let later = start + Duration::from_secs(seconds);
        heartbeats.observe(nodes, &leases, pods, later);
        named(&actions(nodes, pods, &heartbeats, Timing::default(), later))
    }

    #[test]
    fn silence_marks_then_evicts() {
        let none = json!([]);
        let (nodes, pods) = ([node("True")], [pod("n", "True", &none)]);
        assert_eq!(after(40, &nodes, &pods), [] as [&str; 0]);
        assert_eq!(after(41, &nodes, &pods), ["mark node", "mark pod"]);
        let (nodes, pods) = ([node("Unknown")], [pod("n", "False", &none)]);
        assert_eq!(after(340, &nodes, &pods), [] as [&str; 0], "marked already");
        assert_eq!(after(341, &nodes, &pods), ["evict"]);
    }

    #[test]
    fn tolerations_change_the_time_to_eviction() {
        let nodes = [node("Unknown")];
        let stays = |seconds, tolerations: Value| {
            after(seconds, &nodes, &[pod("n", "False", &tolerations)]).is_empty()
        };
        let tolerates = |seconds: Option<i64>| json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        assert!(stays(100_000, tolerates(None)));
        assert!(stays(50, tolerates(Some(10))) && !stays(51, tolerates(Some(10))));
        assert!(stays(100_000, json!([{"operator": "Exists"}])));
        assert!(!stays(
            341,
            json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoSchedule"}])
        ));
        assert!(!stays(341, json!([{"key": "other", "operator": "Exists"}])));
    }

    #[test]
    fn evicted_and_ended_pods_are_left_alone() {
        let nodes = [node("Unknown")];
        let mut leaving = pod("n", "False", &json!([]));
        Arc::make_mut(&mut leaving).metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let mut done = pod("n", "False", &json!([]));
        Arc::make_mut(&mut done).status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        assert_eq!(after(1000, &nodes, &[leaving, done]), [] as [&str; 0]);
    }

    #[test]
    fn pods_of_a_node_that_is_gone_are_removed_after_the_same_time() {
        let pods = [pod("gone", "True", &json!([]))];
        assert_eq!(after(40, &[node("True")], &pods), [] as [&str; 0]);
        assert_eq!(after(41, &[node("Unknown")], &pods), ["remove"]);
    }

    #[test]
    fn a_renewed_lease_counts_whatever_its_clock_says() {
        let start = Instant::now();
        let nodes = [node("True")];
        let mut heartbeats = Heartbeats::default();
        heartbeats.observe(&nodes, &[lease("2026-01-01T00:00:00.000000Z")], &[], start);
        let later = start + Duration::from_secs(60);
        heartbeats.observe(&nodes, &[lease("1999-01-01T00:00:00.000000Z")], &[], later);
        assert_eq!(heartbeats.silence("n", later), Duration::ZERO);
        heartbeats.observe(&[], &[], &[], later);
        assert!(heartbeats.last.is_empty(), "nodes that are gone are forgotten");
    }

    #[test]
    fn all_conditions_of_a_silent_node_become_unknown() {
        let patch = silent_conditions(&node("True"), Timestamp::UNIX_EPOCH);
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        let seen: Vec<_> = conditions
            .iter()
            .map(|c| (c["type"].as_str().unwrap(), c["status"].as_str().unwrap()))
            .collect();
        assert_eq!(seen, [("MemoryPressure", "Unknown"), ("Ready", "Unknown")]);
    }
}
