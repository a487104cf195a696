//! The scheduling loop: finds pods without a node, decides, binds, says so.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use api::storage::SELECTED_NODE;
use control_scheduler::{Needs, Storage};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status, Time},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    backoff::Backoff,
    cache::Cache,
    recorder::{Recorder, Severity},
    volumes,
};

/// Bindings written at a time: enough to share the store's commits.
const CONCURRENT_BINDINGS: usize = 16;

/// An unschedulable pod is reported again when its reasons change, and else after this long.
const REPORT_AGAIN: Duration = Duration::from_secs(5 * 60);

/// Everything is looked at again this often, change or not.
const RESYNC: Duration = Duration::from_secs(30);

/// Pods of this scheduler name are ours; so are those with none.
const SCHEDULER_NAME: &str = "default-scheduler";

/// Runs for ever.
pub(crate) async fn run(
    client: Client,
    recorder: Recorder,
    mut pods: Cache<Pod>,
    mut nodes: Cache<Node>,
    mut storage: volumes::Caches,
) {
    let mut scheduler = Scheduler {
        client,
        recorder,
        assumed: HashMap::new(),
        reported: HashMap::new(),
        retries: HashMap::new(),
    };
    loop {
        let mut wait = RESYNC;
        let stored = (
            storage.claims.objects(),
            storage.volumes.objects(),
            storage.classes.objects(),
        );
        if let (Some(pods), Some(nodes), (Some(claims), Some(volumes), Some(classes))) =
            (pods.objects(), nodes.objects(), stored)
        {
            let storage = Storage {
                claims: &claims,
                volumes: &volumes,
                classes: &classes,
            };
            scheduler.forget_settled(&pods);
            wait = wait.min(scheduler.pass(&pods, &nodes, storage).await);
        }
        tokio::select! {
            () = storage.claims.changed() => {}
            () = storage.volumes.changed() => {}
            () = storage.classes.changed() => {}
            () = pods.changed() => {}
            () = nodes.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

struct Scheduler {
    client: Client,
    recorder: Recorder,
    /// Node by pod UID: bound by us, and not yet seen as bound in the cache.
    assumed: HashMap<String, String>,
    /// What was last said about a pod that cannot be placed, by UID.
    reported: HashMap<String, (String, Instant)>,
    /// Pods whose binding failed, by UID, and when to try again.
    retries: HashMap<String, (Backoff, Instant)>,
}

/// What becomes of one waiting pod.
struct Outcome {
    pod: Arc<Pod>,
    decision: Result<String, String>,
    /// Claims that must be told the node first; the pod is bound when they have their volumes.
    waiting: Vec<Arc<PersistentVolumeClaim>>,
}

impl Scheduler {
    /// Drops what is remembered about pods that are bound or gone.
    fn forget_settled(&mut self, pods: &[Arc<Pod>]) {
        let waiting: HashMap<_, _> = pods
            .iter()
            .filter(|pod| node_of(pod).is_none())
            .filter_map(|pod| Some((pod.uid()?, ())))
            .collect();
        self.assumed.retain(|uid, _| waiting.contains_key(uid));
        self.reported.retain(|uid, _| waiting.contains_key(uid));
        self.retries.retain(|uid, _| waiting.contains_key(uid));
    }

    /// One look at everything. Returns how long to wait at most before the next.
    async fn pass(&mut self, pods: &[Arc<Pod>], nodes: &[Arc<Node>], storage: Storage<'_>) -> Duration {
        let now = Instant::now();
        let due = |uid: &str| self.retries.get(uid).is_none_or(|(_, at)| *at <= now);
        let outcomes = decide(pods, nodes, storage, &self.assumed, due);

        let mut bindings = Vec::new();
        for outcome in outcomes {
            match outcome.decision {
                Ok(node) if !outcome.waiting.is_empty() => self.tell_claims(outcome.waiting, &node),
                Ok(node) => {
                    let uid = outcome.pod.uid().unwrap_or_default();
                    self.assumed.insert(uid, node.clone());
                    bindings.push(bind(self.client.clone(), outcome.pod, node));
                }
                Err(message) => self.report(&outcome.pod, message),
            }
        }
        let mut results = futures::stream::iter(bindings).buffer_unordered(CONCURRENT_BINDINGS);
        while let Some((pod, node, result)) = results.next().await {
            self.settle(&pod, &node, result);
        }
        let next = self
            .retries
            .values()
            .map(|(_, at)| at.saturating_duration_since(now))
            .min();
        next.unwrap_or(RESYNC)
    }

    /// Beside the loop: what they become, the watch tells.
    fn tell_claims(&self, claims: Vec<Arc<PersistentVolumeClaim>>, node: &str) {
        let (client, node) = (self.client.clone(), node.to_owned());
        tokio::spawn(async move {
            for claim in claims {
                let api: Api<PersistentVolumeClaim> =
                    Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
                let patch = json!({"metadata": {
                    "annotations": {SELECTED_NODE: node}, "resourceVersion": claim.resource_version()}});
                let told = api
                    .patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
                    .await;
                if let Err(error) = told {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(claim = claim.name_any(), error, "the claim was not told its node");
                }
            }
        });
    }

    fn settle(&mut self, pod: &Arc<Pod>, node: &str, result: Result<(), kube::Error>) {
        let uid = pod.uid().unwrap_or_default();
        match result {
            Ok(()) => {
                self.retries.remove(&uid);
                let namespace = pod.namespace().unwrap_or_default();
                let message = format!("Successfully assigned {namespace}/{} to {node}", pod.name_any());
                self.say(pod, Severity::Normal, "Scheduled", message);
            }
            Err(error) => {
                self.assumed.remove(&uid);
                let retry = self.retries.entry(uid).or_insert_with(|| {
                    (
                        Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
                        Instant::now(),
                    )
                });
                retry.1 = Instant::now() + retry.0.fail();
                // Somebody else bound, changed or deleted it: no news, and the watch tells how it ended.
                if let kube::Error::Api(status) = &error
                    && matches!(status.code, 404 | 409)
                {
                    return;
                }
                let name = pod.name_any();
                tracing::warn!(
                    pod = name,
                    node,
                    error = &error as &dyn std::error::Error,
                    "binding failed"
                );
                self.say(
                    pod,
                    Severity::Warning,
                    "FailedScheduling",
                    format!("binding rejected: {error}"),
                );
            }
        }
    }

    fn report(&mut self, pod: &Arc<Pod>, message: String) {
        let uid = pod.uid().unwrap_or_default();
        let now = Instant::now();
        if let Some((said, at)) = self.reported.get(&uid)
            && *said == message
            && now.duration_since(*at) < REPORT_AGAIN
        {
            return;
        }
        self.reported.insert(uid, (message.clone(), now));
        let (client, condition) = (self.client.clone(), unscheduled_condition(pod, &message));
        let target = (pod.namespace().unwrap_or_default(), pod.name_any());
        tokio::spawn(async move {
            let api: Api<Pod> = Api::namespaced(client, &target.0);
            let patched = api
                .patch_status(&target.1, &PatchParams::default(), &Patch::Strategic(condition))
                .await;
            if let Err(error) = patched {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    pod = target.1,
                    "condition was not set"
                );
            }
        });
        self.say(pod, Severity::Warning, "FailedScheduling", message);
    }

    /// Beside the loop: no pod waits for another one's event.
    fn say(&self, pod: &Arc<Pod>, severity: Severity, reason: &'static str, message: String) {
        let (recorder, pod) = (self.recorder.clone(), Arc::clone(pod));
        tokio::spawn(async move { recorder.record(&*pod, severity, reason, &message).await });
    }
}

/// Places every waiting pod that is due, oldest first, each with regard to those placed before it.
fn decide(
    pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    storage: Storage<'_>,
    assumed: &HashMap<String, String>,
    due: impl Fn(&str) -> bool,
) -> Vec<Outcome> {
    let mut by_node: HashMap<&str, Vec<&Pod>> = HashMap::new();
    let mut unbound = Vec::new();
    for pod in pods {
        let assumed = pod.uid().and_then(|uid| assumed.get(&uid));
        match node_of(pod).or(assumed.map(String::as_str)) {
            Some(node) => by_node.entry(node).or_default().push(pod),
            None if ours(pod) && due(&pod.uid().unwrap_or_default()) => unbound.push(pod),
            None => {}
        }
    }
    unbound.sort_by_key(|pod| {
        (
            pod.creation_timestamp().map(|t| t.0),
            pod.namespace(),
            pod.name_any(),
        )
    });
    if unbound.is_empty() {
        return Vec::new();
    }
    let mut candidates: Vec<_> = nodes
        .iter()
        .map(|node| {
            let bound = by_node.get(node.name_any().as_str()).cloned().unwrap_or_default();
            control_scheduler::Candidate::new(node, bound)
        })
        .collect();
    let place = |pod: &Arc<Pod>| -> Option<Outcome> {
        let needs = match Needs::of(pod, storage) {
            Ok(needs) => needs,
            Err(problem) => {
                let all = candidates.len();
                let message = format!("0/{all} nodes are available: {problem}.");
                return Some(Outcome {
                    pod: Arc::clone(pod),
                    decision: Err(message),
                    waiting: Vec::new(),
                });
            }
        };
        let known = |name: &str| nodes.iter().map(Arc::as_ref).find(|node| node.name_any() == name);
        let waiting: Vec<_> = needs.untold(known).cloned().map(Arc::new).collect();
        let decision = match control_scheduler::schedule(pod, &needs, &candidates) {
            Ok(_) if needs.pends() && waiting.is_empty() => return None,
            Ok(placement) => {
                if let Some(candidate) = candidates.iter_mut().find(|c| c.name() == placement.node) {
                    candidate.add(pod);
                }
                Ok(placement.node)
            }
            Err(unschedulable) => Err(unschedulable.to_string()),
        };
        Some(Outcome {
            pod: Arc::clone(pod),
            decision,
            waiting,
        })
    };
    unbound.into_iter().filter_map(place).collect()
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|node| !node.is_empty())
}

fn ours(pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none()
        && matches!(scheduler, None | Some("" | SCHEDULER_NAME))
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

async fn bind(client: Client, pod: Arc<Pod>, node: String) -> (Arc<Pod>, String, Result<(), kube::Error>) {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let binding = Binding {
        // The UID keeps the binding from a pod that took the name meanwhile.
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            uid: pod.uid(),
            ..Default::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.clone()),
            ..Default::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let result: Result<Status, _> = api
        .create_subresource("binding", &name, &PostParams::default(), &binding)
        .await;
    (pod, node, result.map(|_| ()))
}

fn unscheduled_condition(pod: &Pod, message: &str) -> serde_json::Value {
    json!({
        "metadata": {"uid": pod.uid()},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": Time(Timestamp::now()),
        }]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cpu: &str) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "status": {
                    "allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "110"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }))
            .unwrap(),
        )
    }

    fn pod(name: &str, cpu: &str, second: u32, node: Option<&str>) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        }))
        .unwrap())
    }

    fn outcomes(
        pods: &[Arc<Pod>],
        nodes: &[Arc<Node>],
        assumed: &[(&str, &str)],
        due: impl Fn(&str) -> bool,
    ) -> Vec<(String, String)> {
        let assumed = assumed
            .iter()
            .map(|(u, n)| ((*u).to_owned(), (*n).to_owned()))
            .collect();
        let storage = Storage {
            claims: &[],
            volumes: &[],
            classes: &[],
        };
        decide(pods, nodes, storage, &assumed, due)
            .into_iter()
            .map(|o| (o.pod.name_any(), o.decision.unwrap_or_else(|message| message)))
            .collect()
    }

    fn pair(pod: &str, outcome: &str) -> (String, String) {
        (pod.to_owned(), outcome.to_owned())
    }

    #[test]
    fn the_oldest_is_placed_first_and_counts_for_the_next() {
        let pods = [
            pod("young", "2", 2, None),
            pod("old", "2", 1, None),
            pod("bound", "1", 0, Some("a")),
        ];
        assert_eq!(
            outcomes(&pods, &[node("a", "4")], &[], |_| true),
            [
                pair("old", "a"),
                pair("young", "0/1 nodes are available: 1 Insufficient cpu.")
            ]
        );
    }

    #[test]
    fn a_binding_under_way_takes_room_and_is_not_repeated() {
        let pods = [pod("first", "3", 1, None), pod("second", "3", 2, None)];
        assert_eq!(
            outcomes(&pods, &[node("a", "4")], &[("first", "a")], |_| true),
            [pair("second", "0/1 nodes are available: 1 Insufficient cpu.")]
        );
    }

    #[test]
    fn leaves_alone_what_is_not_waiting_or_not_ours() {
        let mut deleted = pod("deleted", "1", 1, None);
        Arc::make_mut(&mut deleted).metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let mut foreign = pod("foreign", "1", 1, None);
        Arc::make_mut(&mut foreign).spec.as_mut().unwrap().scheduler_name = Some("mine".to_owned());
        let mut failed = pod("failed", "1", 1, None);
        Arc::make_mut(&mut failed).status = Some(Default::default());
        Arc::make_mut(&mut failed).status.as_mut().unwrap().phase = Some("Failed".to_owned());
        let pods = [
            deleted,
            foreign,
            failed,
            pod("later", "1", 1, None),
            pod("bound", "1", 1, Some("a")),
        ];
        assert_eq!(outcomes(&pods, &[node("a", "4")], &[], |uid| uid != "later"), []);
        assert_eq!(
            outcomes(&pods, &[], &[], |_| true),
            [pair("later", "no nodes available to schedule pods")]
        );
    }
}
