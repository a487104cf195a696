//! Removes the data of provisioned volumes of this node that are being deleted, and says so: the control plane lets a
//! volume go only then.

use std::{collections::BTreeMap, time::Duration};

use api::storage::{DATA_REMOVED, LOCAL_PATH_FINALIZER, VOLUME_PROTECTION, hostnames, is_local_path};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, pods::claims, policy::chain};

/// What could not be removed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Why the data of a volume are still there.
#[derive(Debug, thiserror::Error)]
enum RemoveError {
    #[error("the volume's name cannot name a directory")]
    Name,
    #[error("cannot remove the data")]
    Data(#[source] std::io::Error),
    #[error("the removal was interrupted")]
    Interrupted,
    #[error("cannot say that the data are removed")]
    Api(#[from] kube::Error),
}

/// Runs until `shutdown`.
pub(crate) async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let mut events = watcher(api.clone(), watcher::Config::default())
        .backoff(api_client::watch_again())
        .touched_objects()
        .boxed();
    let mut doomed: BTreeMap<String, PersistentVolume> = BTreeMap::new();
    loop {
        let wait = match doomed.is_empty() {
            true => Duration::MAX,
            false => RETRY,
        };
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(volume)) if is_doomed(&volume, &config.node_name) => {
                    doomed.insert(volume.name_any(), volume);
                }
                Ok(Some(volume)) => drop(doomed.remove(&volume.name_any())),
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "watch of volumes failed, will retry"),
            },
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
        let mut left = BTreeMap::new();
        for (name, volume) in std::mem::take(&mut doomed) {
            match remove(&api, &config, &volume).await {
                Ok(()) => tracing::info!(volume = name, "the data of a deleted volume are removed"),
                Err(error) => {
                    tracing::warn!(
                        volume = name,
                        error = chain(&error),
                        "a deleted volume keeps its data for now"
                    );
                    left.insert(name, volume);
                }
            }
        }
        doomed = left;
    }
}

/// Whether the volume is one of this node's, on its way out, bound to nobody, with its data.
fn is_doomed(volume: &PersistentVolume, node: &str) -> bool {
    let has = |finalizer: &str| volume.finalizers().iter().any(|own| own == finalizer);
    let removed = volume
        .status
        .as_ref()
        .is_some_and(|status| status.reason.as_deref() == Some(DATA_REMOVED));
    is_local_path(volume)
        && volume.metadata.deletion_timestamp.is_some()
        && has(LOCAL_PATH_FINALIZER)
        // It goes first, once no claim has the volume any more.
        && !has(VOLUME_PROTECTION)
        && hostnames(volume).any(|name| name == node)
        && !removed
}

async fn remove(
    api: &Api<PersistentVolume>,
    config: &Config,
    volume: &PersistentVolume,
) -> Result<(), RemoveError> {
    let name = volume.name_any();
    let directory = claims::directory_of(&config.agent_dir, &name).ok_or(RemoveError::Name)?;
    // Not by way of the trash: that the data are removed is said when they are. Pods do not wait for this.
    let removed = tokio::task::spawn_blocking(move || agent_runtime::remove_tree(&directory));
    removed
        .await
        .map_err(|_cancelled| RemoveError::Interrupted)?
        .map_err(RemoveError::Data)?;
    let patch = json!({"status": {"reason": DATA_REMOVED, "message": "the node has removed the data"}});
    match api
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(finalizers: &[&str], deleted: bool, by: &str, reason: Option<&str>) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "v", "finalizers": finalizers,
                "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z"),
                "annotations": {"pv.kubernetes.io/provisioned-by": by}},
            "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}},
            "status": {"reason": reason},
        }))
        .unwrap()
    }

    #[test]
    fn only_data_that_nobody_can_have_any_more_are_removed() {
        const OURS: &str = api::storage::LOCAL_PATH_PROVISIONER;
        let last = [LOCAL_PATH_FINALIZER];
        assert!(is_doomed(&volume(&last, true, OURS, None), "n1"));
        assert!(
            !is_doomed(&volume(&last, true, OURS, None), "n2"),
            "another node's"
        );
        assert!(!is_doomed(&volume(&last, false, OURS, None), "n1"), "not deleted");
        assert!(
            !is_doomed(&volume(&last, true, "x", None), "n1"),
            "an administrator's"
        );
        assert!(
            !is_doomed(&volume(&last, true, OURS, Some(DATA_REMOVED)), "n1"),
            "done"
        );
        let both = [VOLUME_PROTECTION, LOCAL_PATH_FINALIZER];
        assert!(
            !is_doomed(&volume(&both, true, OURS, None), "n1"),
            "perhaps still bound"
        );
        assert!(!is_doomed(&volume(&[], true, OURS, None), "n1"));
    }
}
