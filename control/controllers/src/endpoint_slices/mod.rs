//! What stands behind services: for each service with a selector, EndpointSlices of the pods that it selects.
//!
//! As Kubernetes derives them: the ports of the pods (named ones may differ from pod to pod, then there are several
//! slices), and whether each pod is ready, serves, or is about to end. Slices of other managers are left alone.

mod derive;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};

use crate::{backoff::Backoff, cache::Cache};
use derive::{Action, reconcile};

/// Label that says whose slice it is.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What it says on ours: Kubernetes' own name for this controller.
const MANAGER: &str = "endpointslice-controller.k8s.io";

/// Everything is looked at again this often, change or not.
const RESYNC: Duration = Duration::from_secs(30);

/// What the loop looks at.
pub(crate) struct Caches {
    pub(crate) services: Cache<Service>,
    pub(crate) pods: Cache<Pod>,
    pub(crate) slices: Cache<EndpointSlice>,
}

/// Runs for ever.
pub(crate) async fn run(client: Client, mut caches: Caches) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        if let (Some(services), Some(pods), Some(slices)) = (
            caches.services.objects(),
            caches.pods.objects(),
            caches.slices.objects(),
        ) {
            let mut settled = true;
            for action in actions(&services, &pods, &slices) {
                settled &= act(&client, action).await;
            }
            match settled {
                true => backoff.reset(),
                false => wait = backoff.fail(),
            }
        }
        tokio::select! {
            () = caches.services.changed() => {}
            () = caches.pods.changed() => {}
            () = caches.slices.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What is to do, over all services.
fn actions(services: &[Arc<Service>], pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    let mut pods_of: HashMap<String, Vec<&Pod>> = HashMap::new();
    for pod in pods {
        pods_of
            .entry(pod.namespace().unwrap_or_default())
            .or_default()
            .push(pod);
    }
    let mut ours: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| is_ours(slice)) {
        let service = slice
            .labels()
            .get(derive::SERVICE_NAME)
            .cloned()
            .unwrap_or_default();
        ours.entry((slice.namespace().unwrap_or_default(), service))
            .or_default()
            .push(slice);
    }
    let mut actions = Vec::new();
    for service in services
        .iter()
        .filter(|service| service.metadata.deletion_timestamp.is_none())
    {
        let namespace = service.namespace().unwrap_or_default();
        let existing = ours
            .remove(&(namespace.clone(), service.name_any()))
            .unwrap_or_default();
        let pods = pods_of.get(&namespace).map(Vec::as_slice).unwrap_or_default();
        actions.extend(reconcile(service, pods, &existing));
    }
    // What is left is of services that are gone.
    let gone = ours.into_values().flatten();
    actions.extend(gone.map(|slice| Action::Delete(Box::new(slice.clone()))));
    actions
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice
        .labels()
        .get(MANAGED_BY)
        .is_some_and(|manager| manager == MANAGER)
}

/// One attempt; whether nothing is left to do.
async fn act(client: &Client, action: Action) -> bool {
    let slice = action.slice();
    let (namespace, name) = (slice.namespace().unwrap_or_default(), slice.name_any());
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &namespace);
    let outcome = match &action {
        Action::Create(slice) => api.create(&PostParams::default(), slice).await.map(drop),
        Action::Replace(slice) => api.replace(&name, &PostParams::default(), slice).await.map(drop),
        Action::Delete(slice) => {
            let preconditions = Preconditions {
                uid: slice.uid(),
                resource_version: None,
            };
            let params = DeleteParams {
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            api.delete(&name, &params).await.map(drop)
        }
    };
    match outcome {
        Ok(()) => true,
        // It changed or went while we looked, or its namespace goes: the watch will tell.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
        Err(kube::Error::Api(status)) if status.message.contains("being terminated") => true,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                namespace,
                name,
                "endpoint slice was not written, will be retried"
            );
            false
        }
    }
}
