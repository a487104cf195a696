//! What the agent knows of the cluster: pods, namespaces and network policies, kept up to date by watches.
//!
//! Readers get whole snapshots; nothing is handed out before the first listing of everything is complete,
//! because a policy that is not known yet must not be mistaken for one that does not exist.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Resource,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Objects of one kind by (namespace, name).
type Objects<K> = BTreeMap<(String, String), Arc<K>>;

/// The cluster as far as this node needs it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    pods: Mutex<Table<Pod>>,
    namespaces: Mutex<Table<Namespace>>,
    policies: Mutex<Table<NetworkPolicy>>,
    /// Raised with every change.
    version: watch::Sender<u64>,
}

struct Table<K> {
    objects: Objects<K>,
    /// Whether the first listing is complete.
    listed: bool,
    /// Objects of a listing that is under way; those not in it are gone when it ends.
    listing: Objects<K>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listed: false,
            listing: BTreeMap::new(),
        }
    }
}

/// Everything at one moment.
pub(crate) struct Snapshot {
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) namespaces: Vec<Arc<Namespace>>,
    pub(crate) policies: Vec<Arc<NetworkPolicy>>,
}

impl Cluster {
    /// Starts watching until `shutdown`.
    pub(crate) fn start(client: &Client, shutdown: &CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            pods: Mutex::default(),
            namespaces: Mutex::default(),
            policies: Mutex::default(),
            version: watch::channel(0).0,
        });
        let cluster = Self { shared };
        cluster.follow(Api::all(client.clone()), |shared: &Shared| &shared.pods, shutdown);
        cluster.follow(
            Api::all(client.clone()),
            |shared: &Shared| &shared.namespaces,
            shutdown,
        );
        cluster.follow(
            Api::all(client.clone()),
            |shared: &Shared| &shared.policies,
            shutdown,
        );
        cluster
    }

    /// Signals every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// All pods, or `None` before the first listing.
    pub(crate) fn pods(&self) -> Option<Vec<Arc<Pod>>> {
        lock(&self.shared.pods).all()
    }

    /// Everything that policy depends on, or `None` before the first listings.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        Some(Snapshot {
            pods: lock(&self.shared.pods).all()?,
            namespaces: lock(&self.shared.namespaces).all()?,
            policies: lock(&self.shared.policies).all()?,
        })
    }

    /// Reads the policies of `namespace` and the namespace itself from the API, so that a pod created after
    /// a policy is never judged without it, however late the watch is.
    pub(crate) async fn refresh(&self, client: &Client, namespace: &str) -> Result<(), kube::Error> {
        let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let everything = ListParams::default();
        let (policies, found) =
            futures::try_join!(policies.list(&everything), namespaces.get_opt(namespace))?;
        let mut changed = false;
        for policy in policies {
            changed |= lock(&self.shared.policies).newer(policy);
        }
        if let Some(found) = found {
            changed |= lock(&self.shared.namespaces).newer(found);
        }
        if changed {
            self.shared.version.send_modify(|version| *version += 1);
        }
        Ok(())
    }

    fn follow<K>(&self, api: Api<K>, table: fn(&Shared) -> &Mutex<Table<K>>, shutdown: &CancellationToken)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let (shared, shutdown) = (self.shared.clone(), shutdown.clone());
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.try_next() => event,
                    () = shutdown.cancelled() => return,
                };
                match event {
                    Ok(Some(event)) => {
                        if lock(table(&shared)).apply(event) {
                            shared.version.send_modify(|version| *version += 1);
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, kind = %K::kind(&()), "watch failed, will retry");
                    }
                }
            }
        });
    }
}

impl<K: Resource> Table<K> {
    fn all(&self) -> Option<Vec<Arc<K>>> {
        self.listed.then(|| self.objects.values().cloned().collect())
    }

    /// Takes one event of the watch; whether readers see a difference.
    fn apply(&mut self, event: watcher::Event<K>) -> bool {
        match event {
            watcher::Event::Apply(object) => {
                self.objects.insert(key(&object), Arc::new(object));
                true
            }
            watcher::Event::Delete(object) => self.objects.remove(&key(&object)).is_some(),
            watcher::Event::Init => {
                self.listing.clear();
                false
            }
            watcher::Event::InitApply(object) => {
                self.listing.insert(key(&object), Arc::new(object));
                false
            }
            watcher::Event::InitDone => {
                self.objects = std::mem::take(&mut self.listing);
                self.listed = true;
                true
            }
        }
    }

    /// Takes an object that was read apart from the watch, if the watch has not brought a later one.
    fn newer(&mut self, object: K) -> bool {
        let known = self
            .objects
            .get(&key(&object))
            .map(|known| revision(known.as_ref()));
        if known.is_some_and(|known| known >= revision(&object)) {
            return false;
        }
        self.objects.insert(key(&object), Arc::new(object));
        true
    }
}

fn key<K: Resource>(object: &K) -> (String, String) {
    let meta = object.meta();
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// Palisade's resource versions are revisions: numbers that grow with every write to the store.
fn revision<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_ref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// A panic while a table was locked leaves a whole object in or out, never half of one.
fn lock<K>(table: &Mutex<Table<K>>) -> MutexGuard<'_, Table<K>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(name: &str, revision: &str) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": name, "resourceVersion": revision}})).unwrap()
    }

    fn names(table: &Table<Namespace>) -> Option<Vec<String>> {
        Some(
            table
                .all()?
                .iter()
                .map(|n| n.metadata.name.clone().unwrap())
                .collect(),
        )
    }

    #[test]
    fn nothing_is_known_before_the_first_listing_and_a_new_one_replaces_all() {
        let mut table = Table::default();
        assert!(!table.apply(watcher::Event::Init));
        assert!(!table.apply(watcher::Event::InitApply(namespace("a", "1"))));
        assert_eq!(names(&table), None);
        assert!(table.apply(watcher::Event::InitDone));
        assert_eq!(names(&table).unwrap(), ["a"]);
        table.apply(watcher::Event::Init);
        table.apply(watcher::Event::InitApply(namespace("b", "2")));
        assert_eq!(
            names(&table).unwrap(),
            ["a"],
            "the old one serves until the new one is complete"
        );
        table.apply(watcher::Event::InitDone);
        assert_eq!(names(&table).unwrap(), ["b"]);
        assert!(!table.apply(watcher::Event::Delete(namespace("a", "3"))));
    }

    #[test]
    fn what_was_read_apart_does_not_go_back_in_time() {
        let mut table = Table::default();
        table.apply(watcher::Event::Apply(namespace("a", "10")));
        assert!(!table.newer(namespace("a", "9")));
        assert!(table.newer(namespace("a", "11")));
        assert!(table.newer(namespace("b", "1")));
    }
}
