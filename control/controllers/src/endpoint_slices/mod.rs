//! What stands behind services: for each service with a selector, EndpointSlices of the pods that it selects.
//!
//! As Kubernetes derives them: the ports of the pods (named ones may differ from pod to pod, then there are several
//! slices), and whether each pod is ready, serves, or is about to end. Slices of other managers are left alone; one
//! that was made here stays ours whatever its labels say.

mod derive;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
use derive::{Action, has_derived_name, reconcile};

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
    let mut names: HashMap<String, BTreeSet<String>> = HashMap::new();
    for slice in slices {
        let names = names.entry(slice.namespace().unwrap_or_default()).or_default();
        names.insert(slice.name_any());
    }
    let by_uid: HashMap<&str, &Service> = services
        .iter()
        .filter_map(|service| Some((service.metadata.uid.as_deref()?, &**service)))
        .collect();
    let mut ours: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let service = match made_for(slice, &by_uid) {
            Some(service) => service.name_any(),
            None if is_ours(slice) => slice
                .labels()
                .get(derive::SERVICE_NAME)
                .cloned()
                .unwrap_or_default(),
            None => continue,
        };
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
        let taken = names.entry(namespace).or_default();
        actions.extend(reconcile(service, pods, &existing, taken));
    }
    // What is left is of services that are gone.
    let gone = ours.into_values().flatten();
    actions.extend(gone.map(|slice| Action::Delete(Box::new(slice.clone()))));
    actions
}

/// The service that a slice was made for here, by what nobody has by chance: its owner and its name.
fn made_for<'s>(slice: &EndpointSlice, by_uid: &HashMap<&str, &'s Service>) -> Option<&'s Service> {
    let mut owners = slice.owner_references().iter();
    let owner = owners.find_map(|owner| by_uid.get(owner.uid.as_str()))?;
    (owner.namespace() == slice.namespace() && has_derived_name(slice, owner)).then_some(*owner)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str) -> Arc<Pod> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}},
            "spec": {"containers": []}, "status": {"podIP": "10.0.0.1"},
        }));
        Arc::new(pod.unwrap())
    }

    fn only(actions: Vec<Action>) -> Action {
        let [action] = <[Action; 1]>::try_from(actions).unwrap();
        action
    }

    #[test]
    fn a_slice_whose_labels_somebody_changed_is_taken_back() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
        }))
        .unwrap();
        let services = [Arc::new(service)];
        let pods = [pod("a")];
        let Action::Create(made) = only(actions(&services, &pods, &[])) else {
            panic!("nothing was made")
        };
        assert_eq!(actions(&services, &pods, &[Arc::new((*made).clone())]), []);

        for (label, value) in [(MANAGED_BY, "me"), (derive::SERVICE_NAME, "other")] {
            let mut changed = (*made).clone();
            let labels = changed.metadata.labels.as_mut().unwrap();
            labels.insert(label.to_owned(), value.to_owned());
            let Action::Replace(back) = only(actions(&services, &pods, &[Arc::new(changed)])) else {
                panic!("{label} was not written back")
            };
            assert_eq!((back.name_any(), back.labels()), (made.name_any(), made.labels()));
        }

        // One that only has the name stands in nobody's way, and is left alone.
        let mut foreign = (*made).clone();
        foreign.metadata.owner_references = None;
        foreign
            .metadata
            .labels
            .as_mut()
            .unwrap()
            .insert(MANAGED_BY.to_owned(), "me".to_owned());
        let Action::Create(beside) = only(actions(&services, &pods, &[Arc::new(foreign.clone())])) else {
            panic!("nothing was made beside it")
        };
        assert_ne!(beside.name_any(), foreign.name_any());
        // Neither is one of that service that somebody else named and keeps.
        let mut named = (*made).clone();
        named.metadata.name = Some("web-mine".to_owned());
        named
            .metadata
            .labels
            .as_mut()
            .unwrap()
            .insert(MANAGED_BY.to_owned(), "me".to_owned());
        assert_eq!(
            only(actions(&services, &pods, &[Arc::new(named)])),
            Action::Create(made)
        );
    }
}
