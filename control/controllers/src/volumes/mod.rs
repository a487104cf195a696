//! Claims and volumes: each claim gets a volume that fits, made on its node if there is none; what nobody claims any
//! more is released, and goes if its class says so. [`decide`] says what is next, this loop does it.
//!
//! The data are the node's: it makes directories when a pod mounts them, and removes them when their volume is deleted.

mod decide;

use std::{sync::Arc, time::Duration};

use api::storage::{
    HOSTNAME_LABEL, LOCAL_PATH_FINALIZER, LOCAL_PATH_PROVISIONER, PROVISIONED_BY, VOLUME_PROTECTION,
    volume_name,
};
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};

use crate::{
    backoff::Backoff,
    cache::Cache,
    recorder::{Recorder, Severity},
};
use decide::{Step, World, decide};

/// Everything is looked at again this often, change or not.
const RESYNC: Duration = Duration::from_secs(30);

/// What the loop looks at.
#[derive(Clone)]
pub(crate) struct Caches {
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) volumes: Cache<PersistentVolume>,
    pub(crate) classes: Cache<StorageClass>,
}

/// Runs for ever.
pub(crate) async fn run(
    client: Client,
    recorder: Recorder,
    mut caches: Caches,
    mut pods: Cache<Pod>,
    mut nodes: Cache<Node>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        let all = (
            caches.claims.objects(),
            caches.volumes.objects(),
            caches.classes.objects(),
            pods.objects(),
            nodes.objects(),
        );
        if let (Some(claims), Some(volumes), Some(classes), Some(pods), Some(nodes)) = all {
            let steps = decide(&World {
                claims: &claims,
                volumes: &volumes,
                classes: &classes,
                pods: &pods,
                nodes: &nodes,
            });
            let mut settled = true;
            for step in steps {
                settled &= take(&client, &recorder, &classes, &nodes, step).await;
            }
            match settled {
                true => backoff.reset(),
                false => wait = backoff.fail(),
            }
        }
        tokio::select! {
            () = caches.claims.changed() => {}
            () = caches.volumes.changed() => {}
            () = caches.classes.changed() => {}
            () = pods.changed() => {}
            () = nodes.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Takes a step; false if it has to be taken again. Every write names the revision that was decided on, so a cache that
/// is behind costs a conflict and nothing else.
async fn take(
    client: &Client,
    recorder: &Recorder,
    classes: &[Arc<StorageClass>],
    nodes: &[Arc<Node>],
    step: Step,
) -> bool {
    let done = match &step {
        Step::Provision { claim, node } => {
            let made = provision(client, classes, nodes, claim, node).await;
            if let Ok(Some(name)) = &made {
                let message = format!("Successfully provisioned volume {name}");
                recorder
                    .record(
                        claim.as_ref(),
                        Severity::Normal,
                        "ProvisioningSucceeded",
                        &message,
                    )
                    .await;
            }
            made.map(drop)
        }
        Step::GiveVolume { volume, claim } => give(client, volume, claim).await,
        Step::TellClaim { claim, volume } => {
            let annotations = json!({"pv.kubernetes.io/bind-completed": "yes"});
            let patch = json!({
                "metadata": {"annotations": annotations, "resourceVersion": claim.resource_version()},
                "spec": {"volumeName": volume.name_any()},
            });
            merge(&claims(client, claim), &claim.name_any(), &patch).await
        }
        Step::ClaimIsBound { claim, volume } => {
            let spec = volume.spec.clone().unwrap_or_default();
            let status = json!({
                "phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity,
            });
            claim_status(client, claim, &status).await
        }
        Step::ClaimIsLost(claim) => {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            recorder
                .record(claim.as_ref(), Severity::Warning, "ClaimLost", message)
                .await;
            claim_status(
                client,
                claim,
                &json!({"phase": "Lost", "accessModes": null, "capacity": null}),
            )
            .await
        }
        Step::VolumeIs { volume, phase } => {
            let patch = json!({
                "metadata": {"resourceVersion": volume.resource_version()},
                "status": {"phase": phase},
            });
            let api: Api<PersistentVolume> = Api::all(client.clone());
            api.patch_status(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .map(drop)
        }
        Step::LetClaimGo(claim) => {
            let patch = without(&claim.metadata, api::storage::CLAIM_PROTECTION);
            merge(&claims(client, claim), &claim.name_any(), &patch).await
        }
        Step::LetVolumeGo { volume, finalizer } => {
            let patch = without(&volume.metadata, finalizer);
            let api: Api<PersistentVolume> = Api::all(client.clone());
            merge(&api, &volume.name_any(), &patch).await
        }
        Step::DeleteVolume(volume) => {
            let api: Api<PersistentVolume> = Api::all(client.clone());
            let exactly = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: volume.uid(),
                    resource_version: volume.resource_version(),
                }),
                ..DeleteParams::default()
            };
            api.delete(&volume.name_any(), &exactly).await.map(drop)
        }
    };
    match done {
        Ok(()) => true,
        // Somebody was faster, and the watch tells what became of it.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => false,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, ?step, "storage");
            false
        }
    }
}

/// Makes the volume of a claim; its name, or nothing if it is there already.
async fn provision(
    client: &Client,
    classes: &[Arc<StorageClass>],
    nodes: &[Arc<Node>],
    claim: &PersistentVolumeClaim,
    node: &str,
) -> Result<Option<String>, kube::Error> {
    let volume = volume_for(classes, nodes, claim, node);
    let volume: PersistentVolume = serde_json::from_value(volume).map_err(kube::Error::SerdeError)?;
    let api: Api<PersistentVolume> = Api::all(client.clone());
    match api.create(&PostParams::default(), &volume).await {
        Ok(made) => Ok(Some(made.name_any())),
        // An earlier pass made it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

/// A directory on the node, given to the claim from the start.
fn volume_for(
    classes: &[Arc<StorageClass>],
    nodes: &[Arc<Node>],
    claim: &PersistentVolumeClaim,
    node: &str,
) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    let class_name = spec.storage_class_name.clone().unwrap_or_default();
    let class = classes.iter().find(|class| class.name_any() == class_name);
    let policy = class.and_then(|class| class.reclaim_policy.clone());
    let size = spec.resources.and_then(|resources| resources.requests);
    let size = size.and_then(|requests| requests.get("storage").cloned());
    let name = volume_name(&claim.uid().unwrap_or_default());
    let hostname = nodes
        .iter()
        .find(|known| known.name_any() == node)
        .and_then(|known| known.labels().get(HOSTNAME_LABEL).cloned())
        .unwrap_or_else(|| node.to_owned());
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": {PROVISIONED_BY: LOCAL_PATH_PROVISIONER},
            "finalizers": [VOLUME_PROTECTION, LOCAL_PATH_FINALIZER],
        },
        "spec": {
            "accessModes": spec.access_modes,
            "capacity": {"storage": size},
            "claimRef": reference(claim),
            // Below the agent's own directory, wherever that is on its node.
            "local": {"path": format!("/local-path/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME_LABEL, "operator": "In", "values": [hostname]},
            ]}]}},
            "persistentVolumeReclaimPolicy": policy.unwrap_or_else(|| "Delete".to_owned()),
            "storageClassName": class_name,
            "volumeMode": "Filesystem",
        },
    })
}

async fn give(
    client: &Client,
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Result<(), kube::Error> {
    let patch = json!({
        "metadata": {
            "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
            "resourceVersion": volume.resource_version(),
        },
        "spec": {"claimRef": reference(claim)},
    });
    let api: Api<PersistentVolume> = Api::all(client.clone());
    merge(&api, &volume.name_any(), &patch).await
}

fn reference(claim: &PersistentVolumeClaim) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
    })
}

/// The patch that takes a finalizer off.
fn without(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, finalizer: &str) -> Value {
    let left = metadata
        .finalizers
        .iter()
        .flatten()
        .filter(|own| *own != finalizer);
    let left: Vec<&String> = left.collect();
    json!({"metadata": {"finalizers": left, "resourceVersion": metadata.resource_version}})
}

async fn claim_status(
    client: &Client,
    claim: &PersistentVolumeClaim,
    status: &Value,
) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"resourceVersion": claim.resource_version()}, "status": status});
    claims(client, claim)
        .patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map(drop)
}

fn claims(client: &Client, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
    Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default())
}

async fn merge<K>(api: &Api<K>, name: &str, patch: &Value) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_volume_is_made_for_its_claim_on_its_node() {
        let class: StorageClass = serde_json::from_value(json!({"metadata": {"name": "keep"},
            "provisioner": LOCAL_PATH_PROVISIONER, "reclaimPolicy": "Retain"}))
        .unwrap();
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1",
            "labels": {"kubernetes.io/hostname": "host-1"}}}))
        .unwrap();
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "u1"},
            "spec": {"storageClassName": "keep", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}))
        .unwrap();
        let made = volume_for(&[Arc::new(class)], &[Arc::new(node)], &claim, "n1");
        let volume: PersistentVolume = serde_json::from_value(made).unwrap();
        assert_eq!(volume.name_any(), "pvc-u1");
        assert!(api::storage::is_local_path(&volume) && api::storage::fits(&volume, &claim));
        let labels: BTreeMap<String, String> = [(HOSTNAME_LABEL.to_owned(), "host-1".to_owned())].into();
        assert!(api::storage::allows_node(&volume, "n1", &labels));
        assert!(!api::storage::allows_node(&volume, "n1", &BTreeMap::new()));
        let spec = volume.spec.unwrap();
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("u1"));
    }
}
