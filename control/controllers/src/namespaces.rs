//! Namespaces: each has its `default` service account; a terminating one is emptied, then released.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use api::resources::{RESOURCES, Resource, Stored};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, PostParams},
};

use crate::{backoff::Backoff, cache::Cache};

/// The finalizer that keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

const DEFAULT_ACCOUNT: &str = "default";

/// Everything is looked at again this often, change or not.
const RESYNC: Duration = Duration::from_secs(30);

/// Runs for ever.
pub(crate) async fn run(
    client: Client,
    mut namespaces: Cache<Namespace>,
    mut accounts: Cache<ServiceAccount>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        if let (Some(namespaces), Some(accounts)) = (namespaces.objects(), accounts.objects()) {
            match pass(&client, &namespaces, &accounts).await {
                Pass::Settled => backoff.reset(),
                Pass::Again => wait = backoff.fail(),
            }
        }
        tokio::select! {
            () = namespaces.changed() => {}
            () = accounts.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Whether there is something left to do.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    Settled,
    Again,
}

async fn pass(client: &Client, namespaces: &[Arc<Namespace>], accounts: &[Arc<ServiceAccount>]) -> Pass {
    let mut outcome = Pass::Settled;
    for name in lacking_account(namespaces, accounts) {
        if let Err(error) = create_account(client, &name).await {
            tracing::warn!(
                namespace = name,
                error = &error as &dyn std::error::Error,
                "no default service account yet"
            );
            outcome = Pass::Again;
        }
    }
    for namespace in namespaces.iter().filter(|namespace| to_empty(namespace)) {
        match empty_and_release(client, namespace).await {
            Ok(Pass::Settled) => {}
            Ok(Pass::Again) => outcome = Pass::Again,
            Err(error) => {
                let namespace = namespace.name_any();
                tracing::warn!(
                    namespace,
                    error = &error as &dyn std::error::Error,
                    "namespace is not empty yet"
                );
                outcome = Pass::Again;
            }
        }
    }
    outcome
}

/// Living namespaces without a default service account.
fn lacking_account(namespaces: &[Arc<Namespace>], accounts: &[Arc<ServiceAccount>]) -> Vec<String> {
    let have: BTreeSet<_> = accounts
        .iter()
        .filter(|account| account.name_any() == DEFAULT_ACCOUNT)
        .filter_map(|account| account.namespace())
        .collect();
    let living = namespaces
        .iter()
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
    living
        .map(|namespace| namespace.name_any())
        .filter(|name| !have.contains(name))
        .collect()
}

fn to_empty(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers.is_some_and(|finalizers| finalizers.iter().any(|f| f == FINALIZER))
}

async fn create_account(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT_ACCOUNT.to_owned()),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &account).await {
        Ok(_) => Ok(()),
        // The cache is behind, or the namespace is on its way out.
        Err(kube::Error::Api(status)) if status.code == 409 || is_terminating(&status) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_terminating(status: &kube::core::Status) -> bool {
    status.code == 404 || (status.code == 403 && status.message.contains("being terminated"))
}

/// One attempt: deletes all that is left; once nothing is, takes our finalizer off.
///
/// Pods go first, and while one is left nothing else does: what runs out its grace keeps the policies, secrets and
/// accounts that it was admitted with (Kubernetes' ordered deletion of namespaces, KEP-5080).
async fn empty_and_release(client: &Client, namespace: &Namespace) -> Result<Pass, kube::Error> {
    let name = namespace.name_any();
    let (pods, others): (Vec<&Resource>, Vec<&Resource>) = RESOURCES
        .iter()
        .filter(|resource| resource.namespaced() && resource.stored == Stored::Yes)
        .partition(|resource| resource.plural == "pods");
    for kinds in [pods, others] {
        let mut left = false;
        for kind in kinds {
            left |= !delete_all(client, &name, kind).await?;
        }
        // Pods take their grace period, and anything may have finalizers of its own.
        if left {
            return Ok(Pass::Again);
        }
    }
    let mut released = namespace.clone();
    if let Some(finalizers) = released.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let api: Api<Namespace> = Api::all(client.clone());
    match api
        .replace_subresource("finalize", &name, &PostParams::default(), &released)
        .await
    {
        Ok(_) => Ok(Pass::Settled),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Pass::Settled),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Pass::Again),
        Err(error) => Err(error),
    }
}

/// Deletes a namespace's objects of one kind; whether none is left.
async fn delete_all(client: &Client, namespace: &str, kind: &Resource) -> Result<bool, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &api_resource(kind));
    if is_empty(&api).await? {
        return Ok(true);
    }
    api.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    is_empty(&api).await
}

async fn is_empty(api: &Api<DynamicObject>) -> Result<bool, kube::Error> {
    Ok(api
        .list_metadata(&ListParams::default().limit(1))
        .await?
        .items
        .is_empty())
}

/// A kind as kube's clients have it.
pub(crate) fn api_resource(resource: &Resource) -> ApiResource {
    ApiResource {
        group: resource.group.to_owned(),
        version: resource.version.to_owned(),
        api_version: resource.api_version(),
        kind: resource.kind.to_owned(),
        plural: resource.plural.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(name: &str, deleted: bool, finalizers: &[&str]) -> Arc<Namespace> {
        let deletion = deleted.then_some("2026-01-01T00:00:00Z");
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "deletionTimestamp": deletion},
                "spec": {"finalizers": finalizers},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn living_namespaces_get_an_account() {
        let account = |namespace: &str, name: &str| {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}})).unwrap(),
            )
        };
        let namespaces = [
            namespace("a", false, &[]),
            namespace("b", false, &[]),
            namespace("c", true, &[]),
        ];
        let accounts = [account("a", "default"), account("b", "builder")];
        assert_eq!(lacking_account(&namespaces, &accounts), ["b"]);
    }

    #[test]
    fn only_terminating_namespaces_that_wait_for_us_are_emptied() {
        assert!(to_empty(&namespace("a", true, &["other", "kubernetes"])));
        for (deleted, finalizers) in [(false, vec!["kubernetes"]), (true, vec!["other"]), (true, vec![])] {
            assert!(
                !to_empty(&namespace("a", deleted, &finalizers)),
                "{deleted} {finalizers:?}"
            );
        }
    }
}
