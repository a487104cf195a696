//! Every namespace has the config map `kube-root-ca.crt` with the authority of the API server: what pods verify it by.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::annotations::{ROOT_CA_CONFIG_MAP, ROOT_CA_KEY};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
    runtime::watcher,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, cache::Cache};

/// Everything is looked at again this often, change or not.
const RESYNC: Duration = Duration::from_secs(30);

/// What a namespace lacks.
#[derive(Debug, PartialEq, Eq)]
enum Lack {
    /// It has no such map.
    Map,
    /// Its map, at that revision, says something else.
    Content(Option<String>),
}

/// The cache that [`run`] takes: the maps of that name in all namespaces.
pub(crate) fn spawn(
    tasks: &mut JoinSet<Option<()>>,
    shutdown: &CancellationToken,
    client: &Client,
) -> Cache<ConfigMap> {
    let named = watcher::Config::default().fields(&format!("metadata.name={ROOT_CA_CONFIG_MAP}"));
    Cache::spawn_some(tasks, shutdown, Api::all(client.clone()), named)
}

/// Runs for ever.
pub(crate) async fn run(
    client: Client,
    root_ca: String,
    mut namespaces: Cache<Namespace>,
    mut maps: Cache<ConfigMap>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        if let (Some(namespaces), Some(maps)) = (namespaces.objects(), maps.objects()) {
            let mut settled = true;
            for (namespace, lack) in lacking(&namespaces, &maps, &root_ca) {
                if let Err(error) = publish(&client, &namespace, lack, &root_ca).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(namespace, error, "no authority for pods yet");
                    settled = false;
                }
            }
            match settled {
                true => backoff.reset(),
                false => wait = backoff.fail(),
            }
        }
        tokio::select! {
            () = namespaces.changed() => {}
            () = maps.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Living namespaces without the map as it should be.
fn lacking(namespaces: &[Arc<Namespace>], maps: &[Arc<ConfigMap>], root_ca: &str) -> Vec<(String, Lack)> {
    let have: BTreeMap<String, &Arc<ConfigMap>> = maps
        .iter()
        .filter(|map| map.name_any() == ROOT_CA_CONFIG_MAP)
        .filter_map(|map| Some((map.namespace()?, map)))
        .collect();
    let living = namespaces
        .iter()
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
    let lack = |name: &str| match have.get(name) {
        None => Some(Lack::Map),
        Some(map) if map.data == data(root_ca) => None,
        Some(map) => Some(Lack::Content(map.resource_version())),
    };
    living
        .map(|namespace| namespace.name_any())
        .filter_map(|name| lack(&name).map(|lack| (name, lack)))
        .collect()
}

async fn publish(client: &Client, namespace: &str, lack: Lack, root_ca: &str) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = |resource_version| ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CA_CONFIG_MAP.to_owned()),
            resource_version,
            ..Default::default()
        },
        data: data(root_ca),
        ..Default::default()
    };
    let written = match lack {
        Lack::Map => api.create(&PostParams::default(), &map(None)).await,
        Lack::Content(revision) => {
            let map = map(revision);
            api.replace(ROOT_CA_CONFIG_MAP, &PostParams::default(), &map)
                .await
        }
    };
    match written {
        Ok(_) => Ok(()),
        // The cache is behind, or the namespace is on its way out.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(kube::Error::Api(status)) if status.message.contains("being terminated") => Ok(()),
        Err(error) => Err(error),
    }
}

fn data(root_ca: &str) -> Option<BTreeMap<String, String>> {
    Some([(ROOT_CA_KEY.to_owned(), root_ca.to_owned())].into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_living_namespace_has_the_authority_and_nothing_else_in_the_map() {
        let namespace = |name: &str, deleted: Option<&str>| -> Arc<Namespace> {
            let metadata = json!({"name": name, "deletionTimestamp": deleted});
            Arc::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())
        };
        let map = |namespace: &str, name: &str, data: serde_json::Value| -> Arc<ConfigMap> {
            let metadata = json!({"namespace": namespace, "name": name, "resourceVersion": "7"});
            Arc::new(serde_json::from_value(json!({"metadata": metadata, "data": data})).unwrap())
        };
        let namespaces = [
            namespace("fine", None),
            namespace("none", None),
            namespace("old", None),
            namespace("more", None),
            namespace("going", Some("2026-01-01T00:00:00Z")),
        ];
        let maps = [
            map("fine", ROOT_CA_CONFIG_MAP, json!({"ca.crt": "CA"})),
            map("none", "other", json!({"ca.crt": "CA"})),
            map("old", ROOT_CA_CONFIG_MAP, json!({"ca.crt": "OLD"})),
            map("more", ROOT_CA_CONFIG_MAP, json!({"ca.crt": "CA", "x": "y"})),
        ];
        let changed = || Lack::Content(Some("7".to_owned()));
        assert_eq!(
            lacking(&namespaces, &maps, "CA"),
            [
                ("none".to_owned(), Lack::Map),
                ("old".to_owned(), changed()),
                ("more".to_owned(), changed()),
            ]
        );
    }
}
