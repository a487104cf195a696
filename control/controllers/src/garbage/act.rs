//! One step about one object, by what the API server says of it and its owners now.

use api::resources::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client,
    api::{
        DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, Preconditions,
        PropagationPolicy,
    },
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{
    collected,
    known::{FOREGROUND, Known, ORPHAN, Object, Phase, Task},
};
use crate::namespaces::api_resource;

/// Takes one step. That the object is gone meanwhile is no error.
pub(super) async fn take(client: &Client, known: &Mutex<Known>, task: &Task) -> Result<(), kube::Error> {
    let done = match task {
        Task::Judge(object) => {
            let dependents: Vec<Object> = known.lock().await.dependents(&object.uid).cloned().collect();
            judge(client, object, &dependents).await
        }
        Task::Release(object) => release(client, object, FOREGROUND, Phase::AwaitsDependents).await,
        Task::Orphan(object) => orphan(client, object).await,
    };
    match done {
        Err(kube::Error::Api(status)) if is_absent(&status, None) => Ok(()),
        other => other,
    }
}

/// What becomes of an object by one of its owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Lives,
    /// It goes once its dependents are gone.
    Awaits,
    Gone,
}

async fn judge(client: &Client, object: &Object, dependents: &[Object]) -> Result<(), kube::Error> {
    let Some(now) = read(client, object).await? else {
        return Ok(());
    };
    let owners = now.owner_references.as_deref().unwrap_or_default();
    if now.deletion_timestamp.is_some() || owners.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    for owner in owners {
        match owner_now(client, object, owner).await? {
            Some(state) => found.push((owner, state)),
            // Nobody can say what becomes of it.
            None => return Ok(()),
        }
    }
    let any = |state| found.iter().any(|(_, owner)| *owner == state);
    if any(Owner::Lives) {
        let living = found.iter().filter(|(_, owner)| *owner == Owner::Lives);
        let living: Vec<&OwnerReference> = living.map(|(owner, _)| *owner).collect();
        if living.len() == owners.len() {
            return Ok(());
        }
        return set(client, object, &now, json!({"ownerReferences": living})).await;
    }
    let policy = if any(Owner::Awaits) && !dependents.is_empty() {
        if dependents
            .iter()
            .any(|other| other.phase == Phase::AwaitsDependents)
        {
            // They may wait for each other: a circle is cut where it is found.
            let mut open = owners.to_vec();
            open.iter_mut()
                .for_each(|owner| owner.block_owner_deletion = Some(false));
            if open != owners {
                return set(client, object, &now, json!({"ownerReferences": open})).await;
            }
        }
        PropagationPolicy::Foreground
    } else {
        let has = |finalizer: &str| now.finalizers.iter().flatten().any(|own| own == finalizer);
        match (has(ORPHAN), has(FOREGROUND)) {
            (true, _) => PropagationPolicy::Orphan,
            (false, true) => PropagationPolicy::Foreground,
            (false, false) => PropagationPolicy::Background,
        }
    };
    tracing::info!(
        kind = object.row.kind,
        namespace = object.namespace,
        name = object.name,
        ?policy,
        "deleted after its owners"
    );
    let parameters = DeleteParams {
        propagation_policy: Some(policy),
        // Whoever gave it another owner since is heard first.
        preconditions: Some(Preconditions {
            uid: Some(object.uid.clone()),
            resource_version: now.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    place(client, object.row, &object.namespace)
        .delete(&object.name, &parameters)
        .await
        .map(drop)
}

/// Lets an object go that waited for its dependents, by taking `finalizer` from it.
async fn release(client: &Client, object: &Object, finalizer: &str, phase: Phase) -> Result<(), kube::Error> {
    let Some(now) = read(client, object).await?.filter(|now| Phase::of(now) == phase) else {
        return Ok(());
    };
    let others: Vec<&String> = now
        .finalizers
        .iter()
        .flatten()
        .filter(|other| *other != finalizer)
        .collect();
    set(client, object, &now, json!({"finalizers": others})).await
}

/// Takes an object's dependents from it, and then lets it go. They are listed anew: one that is forgotten now would be deleted.
async fn orphan(client: &Client, owner: &Object) -> Result<(), kube::Error> {
    let everywhere = owner.namespace.is_empty();
    for row in collected().filter(|row| everywhere || row.namespaced()) {
        let list = place(client, row, &owner.namespace)
            .list_metadata(&ListParams::default())
            .await?;
        for item in list.items {
            let Some(object) = Object::of(row, &item.metadata) else {
                continue;
            };
            let (own, others): (Vec<_>, Vec<_>) =
                object.owners.iter().partition(|other| other.uid == owner.uid);
            if !own.is_empty() {
                set(
                    client,
                    &object,
                    &item.metadata,
                    json!({"ownerReferences": others}),
                )
                .await?;
            }
        }
    }
    release(client, owner, ORPHAN, Phase::AwaitsOrphans).await
}

/// What an owner is now; nothing if nobody can say.
async fn owner_now(
    client: &Client,
    object: &Object,
    owner: &OwnerReference,
) -> Result<Option<Owner>, kube::Error> {
    let Some((row, namespace)) = object.place_of(owner) else {
        return Ok(None);
    };
    match place(client, row, namespace).get_metadata(&owner.name).await {
        Ok(found) if found.metadata.uid.as_deref() != Some(&owner.uid) => Ok(Some(Owner::Gone)),
        Ok(found) if Phase::of(&found.metadata) == Phase::AwaitsDependents => Ok(Some(Owner::Awaits)),
        Ok(_) => Ok(Some(Owner::Lives)),
        Err(kube::Error::Api(status)) if is_absent(&status, Some(&owner.name)) => Ok(Some(Owner::Gone)),
        Err(error) => Err(error),
    }
}

/// The object as it is now; nothing if it is gone.
async fn read(client: &Client, object: &Object) -> Result<Option<ObjectMeta>, kube::Error> {
    let found = place(client, object.row, &object.namespace)
        .get_metadata(&object.name)
        .await;
    match found {
        Ok(found) => Ok(Some(found.metadata).filter(|now| now.uid.as_deref() == Some(&object.uid))),
        Err(kube::Error::Api(status)) if is_absent(&status, Some(&object.name)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Changes the object's metadata if it is still as it was `read`.
async fn set(
    client: &Client,
    object: &Object,
    read: &ObjectMeta,
    mut metadata: Value,
) -> Result<(), kube::Error> {
    metadata["uid"] = json!(object.uid);
    metadata["resourceVersion"] = json!(read.resource_version);
    let patch = Patch::Merge(json!({"metadata": metadata}));
    place(client, object.row, &object.namespace)
        .patch_metadata(&object.name, &PatchParams::default(), &patch)
        .await
        .map(drop)
}

fn place(client: &Client, row: &Resource, namespace: &str) -> Api<DynamicObject> {
    let kind = api_resource(row);
    match (row.namespaced(), namespace) {
        (true, namespace) if !namespace.is_empty() => Api::namespaced_with(client.clone(), namespace, &kind),
        _ => Api::all_with(client.clone(), &kind),
    }
}

/// Whether the API server says that there is no object, of that name if one is given. That it has no such path is another 404.
fn is_absent(status: &kube::core::Status, name: Option<&str>) -> bool {
    let about = status.details.as_ref().map(|details| details.name.as_str());
    let about = about.filter(|about| !about.is_empty());
    status.code == 404
        && status.reason == "NotFound"
        && about.is_some()
        && name.is_none_or(|name| about == Some(name))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex as SyncMutex},
    };

    use kube::client::Body;

    use super::*;

    /// A secret that config maps own, by name.
    fn secret(owners: &[&str]) -> Value {
        let owner = |name: &&str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": name});
        let owners: Vec<Value> = owners.iter().map(owner).collect();
        json!({"metadata": {"name": "s", "namespace": "a", "uid": "s", "resourceVersion": "5", "ownerReferences": owners}})
    }

    /// What is written after a secret was judged whose owners are answered for like this.
    async fn written(owners: &[(&'static str, u16, Value)]) -> (Vec<String>, bool) {
        let names: Vec<&str> = owners.iter().map(|(name, ..)| *name).collect();
        let secret = secret(&names);
        let (log, answers) = (Arc::new(SyncMutex::new(Vec::new())), owners.to_vec());
        let (writes, shown) = (log.clone(), secret.clone());
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let owner = answers
                .iter()
                .find(|(name, ..)| path.ends_with(&format!("/configmaps/{name}")));
            let (code, body) = match owner {
                Some((_, code, body)) => (*code, body.clone()),
                None => (200, shown.clone()),
            };
            if method != http::Method::GET {
                writes.lock().unwrap().push(format!("{method} {path}"));
            }
            let answer = http::Response::builder()
                .status(code)
                .body(Body::from(body.to_string().into_bytes()))
                .unwrap();
            async move { Ok::<_, Infallible>(answer) }
        });
        let client = Client::new(service, "default");
        let row = collected().find(|row| row.kind == "Secret").unwrap();
        let metadata = serde_json::from_value(secret["metadata"].clone()).unwrap();
        let object = Object::of(row, &metadata).unwrap();
        let known = Mutex::new(Known::default());
        let done = take(&client, &known, &Task::Judge(object)).await;
        let written = log.lock().unwrap().clone();
        (written, done.is_ok())
    }

    fn no_such(name: &str) -> Value {
        json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "details": {"name": name}})
    }

    fn found(uid: &str) -> Value {
        json!({"metadata": {"name": "m", "namespace": "a", "uid": uid}})
    }

    #[tokio::test]
    async fn who_has_no_owner_is_deleted_and_who_has_one_is_not() {
        let deleted = || (vec!["DELETE /api/v1/namespaces/a/secrets/s".to_owned()], true);
        assert_eq!(written(&[("m", 404, no_such("m"))]).await, deleted());
        assert_eq!(written(&[("m", 200, found("another"))]).await, deleted());
        assert_eq!(written(&[("m", 200, found("m"))]).await, (vec![], true));
        // Of two owners one stays.
        let one = written(&[("m", 200, found("m")), ("n", 404, no_such("n"))]).await;
        assert_eq!(
            one,
            (vec!["PATCH /api/v1/namespaces/a/secrets/s".to_owned()], true)
        );
    }

    #[tokio::test]
    async fn an_owner_that_cannot_be_read_keeps_its_dependents() {
        let failure =
            |code: u16| json!({"kind": "Status", "code": code, "reason": "Failed", "details": {"name": "m"}});
        for (code, answer) in [
            (404, no_such("")),
            (404, json!("not of Kubernetes")),
            (403, failure(403)),
            (410, failure(410)),
            (429, failure(429)),
            (500, failure(500)),
            (503, failure(503)),
            (200, json!("no object")),
        ] {
            let (writes, done) = written(&[("m", code, answer.clone())]).await;
            assert_eq!((writes, done), (vec![], false), "{code} {answer}");
            // Neither does it where another owner is gone.
            let (writes, done) = written(&[("n", 404, no_such("n")), ("m", code, answer)]).await;
            assert_eq!((writes, done), (vec![], false), "{code}");
        }
    }

    #[test]
    fn only_a_server_that_knows_the_kind_says_that_an_object_is_absent() {
        let status = |code: u16, reason: &str, name: &str| -> kube::core::Status {
            let status = json!({"code": code, "reason": reason, "details": {"name": name}});
            serde_json::from_value(status).unwrap()
        };
        assert!(is_absent(&status(404, "NotFound", "m"), Some("m")));
        assert!(
            !is_absent(&status(404, "NotFound", ""), Some("m")),
            "no such path"
        );
        assert!(!is_absent(&status(404, "NotFound", "other"), Some("m")));
        for code in [403, 410, 500, 503] {
            assert!(!is_absent(&status(code, "NotFound", "m"), Some("m")), "{code}");
        }
    }
}
