//! Brings a pod's status to the API: the latest one wins, failures are repeated.

use std::time::Duration;

use api::annotations::SANDBOX_STATUS;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::PodId;
use crate::policy::chain;

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
    task: JoinHandle<()>,
}

impl Reporter {
    pub(super) fn start(client: Client, id: PodId) -> Self {
        let (statuses, mut latest) = watch::channel(None);
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
                        Ok(()) => {
                            delay = RETRY.0;
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
        Self { statuses, task }
    }

    /// Queues a status; one that still waits is replaced.
    pub(super) fn send(&self, status: Told) {
        self.statuses.send_replace(Some(status));
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
        written => written?,
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

/// Merges the status in as Kubernetes' clients do: conditions of others stay, whatever happened meanwhile. The
/// UID keeps it from a new pod of the same name.
async fn write(client: &Client, id: &PodId, told: &Told) -> Result<(), kube::Error> {
    let mut metadata = json!({"uid": id.uid});
    if !told.sandbox.is_empty() {
        metadata["annotations"] = json!({SANDBOX_STATUS: told.sandbox});
    }
    let patch = json!({"metadata": metadata, "status": body(&told.status).map_err(kube::Error::SerdeError)?});
    let pods: Api<Pod> = Api::namespaced(client.clone(), &id.namespace);
    pods.patch_status(&id.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(drop)
}

/// The node's part of the status. What it does not say any more is taken away by name.
fn body(status: &PodStatus) -> serde_json::Result<Value> {
    let mut status = status.clone();
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(agent_plan::is_by_node);
    }
    let mut body = serde_json::to_value(&status)?;
    let absent = ["message", "reason", "initContainerStatuses", "podIP", "podIPs"];
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

    #[test]
    fn addresses_take_the_place_of_those_before() {
        let status = json!({"podIP": "10.88.0.3", "podIPs": [{"ip": "10.88.0.3"}], "hostIPs": [{"ip": "192.0.2.2"}]});
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
