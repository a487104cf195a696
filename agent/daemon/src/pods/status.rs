//! Brings a pod's status to the API: the latest one wins, failures are repeated.

use std::time::Duration;

use api::annotations::SANDBOX_STATUS;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::PodId;
use crate::{cluster::revision, policy::chain};

/// First and longest delay before a status that could not be written is written again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What is told of a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) status: PodStatus,
    /// What was seen of the sandboxes of its containers; empty before one was started.
    pub(super) sandbox: String,
}

/// Writes statuses of one pod from a task of its own, so that nobody waits for the API.
pub(super) struct Reporter {
    statuses: watch::Sender<Option<Told>>,
    /// Revision of the object since which it has the status that was queued last; nothing while that waits, and when the
    /// API would not have it.
    revision: watch::Sender<Option<u64>>,
    written: watch::Receiver<Option<u64>>,
    task: JoinHandle<()>,
}

impl Reporter {
    pub(super) fn start(client: Client, id: PodId) -> Self {
        let (statuses, mut latest) = watch::channel(None);
        let (revision, written) = watch::channel(None);
        let done = revision.clone();
        let task = tokio::spawn(async move {
            let mut delay = RETRY.0;
            loop {
                if latest.changed().await.is_err() {
                    return;
                }
                loop {
                    let status: Option<Told> = latest.borrow_and_update().clone();
                    let Some(status) = status else { break };
                    // Apart, as the task mostly waits.
                    match Box::pin(write(&client, &id, &status)).await {
                        Ok(revision) => {
                            delay = RETRY.0;
                            if latest.has_changed().is_ok_and(|newer| !newer) {
                                done.send_replace(Some(revision));
                            }
                            break;
                        }
                        Err(error) if is_gone(&error) => break,
                        // Said again it would be refused again.
                        Err(error) if is_refused(&error) => {
                            tracing::error!(pod = %id.name, error = chain(&error), "status refused");
                            break;
                        }
                        Err(error) => {
                            tracing::warn!(pod = %id.name, error = chain(&error), "status not written, will retry");
                            tokio::time::sleep(delay).await;
                            delay = (delay * 2).min(RETRY.1);
                        }
                    }
                }
            }
        });
        Self {
            statuses,
            revision,
            written,
            task,
        }
    }

    /// Queues a status; one that still waits is replaced.
    pub(super) fn send(&self, status: Told) {
        // Nobody has to be woken for that.
        self.revision.send_if_modified(|revision| {
            *revision = None;
            false
        });
        self.statuses.send_replace(Some(status));
    }

    /// Waits until a status was written.
    pub(super) async fn written(&mut self) {
        // Ends only with the reporter.
        if self.written.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether somebody has written other conditions over the node's, since the object had the status that was queued
    /// last. So each such write is contradicted once, whatever comes of that.
    pub(super) fn is_overruled(&self, pod: &Pod) -> bool {
        let (queued, written) = (self.statuses.borrow(), *self.revision.borrow());
        let (Some(told), Some(written)) = (&*queued, written) else {
            return false;
        };
        revision(pod) > written && !has_conditions(pod, &told.status)
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What became of an object that the node has no use for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    /// It is gone, or another has its name.
    Gone,
    /// Somebody's finalizers keep it.
    Kept,
}

/// Writes the pod's last status and lets the API delete the object. A pod that is gone is no error.
pub(super) async fn confirm_deletion(
    client: &Client,
    id: &PodId,
    status: &Told,
) -> Result<Object, kube::Error> {
    match write(client, id, status).await {
        Err(error) if is_gone(&error) => return Ok(Object::Gone),
        // The deletion does not depend on it.
        Err(error) if is_refused(&error) => {
            tracing::error!(pod = %id.name, error = chain(&error), "last status refused");
        }
        written => drop(written?),
    }
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(id.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &id.namespace);
    match pods.delete(&id.name, &parameters).await {
        // The answer is the object as it was before, also where it went.
        Ok(answer) => Ok(match answer.left() {
            Some(pod) if !pod.finalizers().is_empty() => Object::Kept,
            _ => Object::Gone,
        }),
        Err(error) if is_gone(&error) => Ok(Object::Gone),
        Err(error) => Err(error),
    }
}

/// Whether the object has the node's conditions of `status`, in the same words.
fn has_conditions(pod: &Pod, status: &PodStatus) -> bool {
    let said = || {
        pod.status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
    };
    let own = status.conditions.iter().flatten();
    let mut own = own.filter(|condition| agent_plan::is_by_node(condition));
    let words = |c: &PodCondition| {
        (
            c.type_.clone(),
            c.status.clone(),
            c.reason.clone(),
            c.message.clone(),
        )
    };
    own.all(|own| said().any(|said| words(said) == words(own)))
}

/// Merges the status in as Kubernetes' clients do: conditions of others stay, whatever happened meanwhile. The
/// UID keeps it from a new pod of the same name. Returns the revision of the object that has it.
async fn write(client: &Client, id: &PodId, told: &Told) -> Result<u64, kube::Error> {
    let mut metadata = json!({"uid": id.uid});
    if !told.sandbox.is_empty() {
        metadata["annotations"] = json!({SANDBOX_STATUS: told.sandbox});
    }
    let patch = json!({"metadata": metadata, "status": body(&told.status).map_err(kube::Error::SerdeError)?});
    let pods: Api<Pod> = Api::namespaced(client.clone(), &id.namespace);
    let written = pods
        .patch_status(&id.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    Ok(revision(&written))
}

/// The node's part of the status. What it does not say any more is taken away by name.
fn body(status: &PodStatus) -> serde_json::Result<Value> {
    let mut status = status.clone();
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(agent_plan::is_by_node);
    }
    let mut body = serde_json::to_value(&status)?;
    let absent = [
        "message",
        "reason",
        "initContainerStatuses",
        "containerStatuses",
        "podIP",
        "podIPs",
    ];
    set_null(&mut body, &absent);
    // By themselves they would merge by address, and those of a life before would stay.
    for field in ["podIPs", "hostIPs"] {
        if let Some(addresses) = body.get_mut(field).and_then(Value::as_array_mut) {
            addresses.insert(0, json!({"$patch": "replace"}));
        }
    }
    for condition in body["conditions"].as_array_mut().into_iter().flatten() {
        set_null(condition, &["message", "reason"]);
    }
    Ok(body)
}

fn set_null(object: &mut Value, fields: &[&str]) {
    for field in fields {
        if let Some(object) = object.as_object_mut() {
            object.entry(*field).or_insert(Value::Null);
        }
    }
}

/// Not found, or another object of the same name. A conflict of another kind is one of writers, and passes.
fn is_gone(error: &kube::Error) -> bool {
    let of_uid = |message: &str| message.contains("Precondition failed: ");
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409 && of_uid(&status.message))
}

/// What the API will not take, however often it is said.
fn is_refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_others_are_left_to_them() {
        let status = serde_json::from_value(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "lab/gate", "status": "True"}]}));
        let body = body(&status.unwrap()).unwrap();
        assert_eq!(
            body["conditions"],
            json!([{"type": "Ready", "status": "True", "message": null, "reason": null}])
        );
        assert!(
            body.as_object().unwrap().contains_key("reason"),
            "a reason of before goes"
        );
    }

    fn object(revision: u64, ready: &Value) -> Pod {
        let others = json!({"type": "lab/gate", "status": "True"});
        let pod = json!({"metadata": {"name": "p", "resourceVersion": revision.to_string()},
            "status": {"conditions": [ready, others]}});
        serde_json::from_value(pod).unwrap()
    }

    /// A reporter that has nobody to tell, with the condition that it was told to write.
    fn reporter(status: &Value) -> Reporter {
        let status = serde_json::from_value(json!({"conditions": [status]})).unwrap();
        let told = Told {
            status,
            sandbox: String::new(),
        };
        let (revision, written) = watch::channel(Some(7));
        Reporter {
            statuses: watch::channel(Some(told)).0,
            revision,
            written,
            task: tokio::spawn(std::future::pending()),
        }
    }

    #[tokio::test]
    async fn what_others_say_over_the_nodes_word_is_contradicted_once() {
        let ready = json!({"type": "Ready", "status": "True"});
        let marked = json!({"type": "Ready", "status": "False", "reason": "NodeNotReady"});
        let reporter = reporter(&ready);
        assert!(reporter.is_overruled(&object(8, &marked)));
        assert!(
            !reporter.is_overruled(&object(8, &ready)),
            "a label, or a condition of theirs"
        );
        // The watch has not brought it yet, or the API keeps nothing of what it is told.
        assert!(!reporter.is_overruled(&object(6, &marked)) && !reporter.is_overruled(&object(7, &marked)));
        // It is on its way, or refused.
        let again = reporter.statuses.borrow().clone();
        reporter.send(again.unwrap());
        assert!(!reporter.is_overruled(&object(8, &marked)));
        reporter.revision.send_replace(Some(9));
        assert!(!reporter.is_overruled(&object(8, &marked)) && reporter.is_overruled(&object(10, &marked)));
    }

    #[test]
    fn addresses_take_the_place_of_those_before() {
        let status =
            json!({"podIP": "10.88.0.3", "podIPs": [{"ip": "10.88.0.3"}], "hostIPs": [{"ip": "192.0.2.2"}]});
        let told = body(&serde_json::from_value(status).unwrap()).unwrap();
        let replace = json!({"$patch": "replace"});
        assert_eq!(told["podIPs"], json!([replace, {"ip": "10.88.0.3"}]));
        assert_eq!(told["hostIPs"], json!([replace, {"ip": "192.0.2.2"}]));
        assert_eq!(body(&PodStatus::default()).unwrap()["podIPs"], Value::Null);
    }

    #[test]
    fn only_what_is_not_there_any_more_is_gone() {
        let answer = |code: u16, message: &str| {
            kube::Error::Api(Box::new(kube::core::Status {
                code,
                message: message.to_owned(),
                ..kube::core::Status::default()
            }))
        };
        assert!(is_gone(&answer(404, "")));
        assert!(is_gone(&answer(
            409,
            "Precondition failed: UID in precondition: a, UID in object meta: b"
        )));
        let race = answer(409, "the object has been modified; please apply your changes");
        assert!(!is_gone(&race) && !is_refused(&race));
        let refused = answer(422, "");
        assert!(!is_gone(&refused) && is_refused(&refused));
    }
}
