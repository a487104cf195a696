//! What the agent knows of the cluster: everything that network policy depends on, kept up to date by watches.
//!
//! One reader, the thread that owns the datapath, takes the changes since it last asked; nothing is handed out before the
//! first listing of everything is complete, because a policy that is not known yet must not be mistaken for one that
//! does not exist.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
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

use crate::policy_objects::{self, PolicyObject};

/// Namespace and name.
pub(crate) type Key = (String, String);
/// Objects of one kind.
type Objects<K> = BTreeMap<Key, Arc<K>>;

/// The cluster as far as this node needs it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    pods: Arc<Mutex<Table<Pod>>>,
    namespaces: Arc<Mutex<Table<Namespace>>>,
    nodes: Arc<Mutex<Table<Node>>>,
    accounts: Arc<Mutex<Table<ServiceAccount>>>,
    slices: Arc<Mutex<Table<EndpointSlice>>>,
    policies: Arc<Mutex<Table<NetworkPolicy>>>,
    /// Calico's kinds and ClusterNetworkPolicy, each with its row.
    objects: Vec<(&'static api::resources::Resource, Arc<Mutex<Table<PolicyObject>>>)>,
    /// Raised with every change.
    version: watch::Sender<u64>,
}

struct Table<K> {
    objects: Objects<K>,
    /// Whether the first listing is complete.
    listed: bool,
    /// Objects of a listing that is under way; those not in it are gone when it ends.
    listing: Objects<K>,
    /// Highest revision that the watch has brought to `objects`.
    seen: u64,
    /// Revisions of objects that were read apart from the watch, which has not brought them yet.
    apart: BTreeMap<Key, u64>,
    /// Objects that came, changed or went since the reader last asked, as they were when they did.
    changed: Objects<K>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listed: false,
            listing: BTreeMap::new(),
            seen: 0,
            apart: BTreeMap::new(),
            changed: BTreeMap::new(),
        }
    }
}

/// What became of an object since the reader last asked.
#[derive(Debug)]
pub(crate) enum Change<K> {
    /// It came or changed.
    Is(Arc<K>),
    /// It went; this is what it was.
    Went(Arc<K>),
}

/// Everything that changed since the reader last asked.
pub(crate) struct Changes {
    pub(crate) pods: Vec<(Key, Change<Pod>)>,
    pub(crate) namespaces: Vec<(Key, Change<Namespace>)>,
    pub(crate) nodes: Vec<(Key, Change<Node>)>,
    pub(crate) accounts: Vec<(Key, Change<ServiceAccount>)>,
    /// All slices, if one of them changed: several may be of one service.
    pub(crate) slices: Option<Vec<Arc<EndpointSlice>>>,
    pub(crate) policies: Vec<(Key, Change<NetworkPolicy>)>,
    pub(crate) objects: Vec<(Key, Change<PolicyObject>)>,
}

impl<K> Change<K> {
    /// The object, if it is there.
    pub(crate) fn now(&self) -> Option<&Arc<K>> {
        match self {
            Self::Is(object) => Some(object),
            Self::Went(_) => None,
        }
    }
}

impl Cluster {
    /// Starts watching until `shutdown`.
    pub(crate) fn start(client: &Client, shutdown: &CancellationToken) -> Self {
        let cluster = Self::unwatched();
        let shared = &cluster.shared;
        cluster.follow_all(client, &shared.pods, shutdown);
        cluster.follow_all(client, &shared.namespaces, shutdown);
        cluster.follow_all(client, &shared.nodes, shutdown);
        cluster.follow_all(client, &shared.accounts, shutdown);
        cluster.follow_all(client, &shared.slices, shutdown);
        cluster.follow_all(client, &shared.policies, shutdown);
        for (row, table) in &shared.objects {
            let api = Api::all_with(client.clone(), row);
            cluster.follow(api, row.kind, table, shutdown);
        }
        cluster
    }

    /// One that hears nothing.
    pub(crate) fn unwatched() -> Self {
        Self {
            shared: Arc::new(Shared {
                pods: Arc::default(),
                namespaces: Arc::default(),
                nodes: Arc::default(),
                accounts: Arc::default(),
                slices: Arc::default(),
                policies: Arc::default(),
                objects: policy_objects::rows().map(|row| (row, Arc::default())).collect(),
                version: watch::channel(0).0,
            }),
        }
    }

    /// A cluster in which there is nothing yet, as the first listing has it.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        let cluster = Self::unwatched();
        let shared = &cluster.shared;
        lock(&shared.pods).apply(watcher::Event::InitDone);
        lock(&shared.namespaces).apply(watcher::Event::InitDone);
        lock(&shared.nodes).apply(watcher::Event::InitDone);
        lock(&shared.accounts).apply(watcher::Event::InitDone);
        lock(&shared.slices).apply(watcher::Event::InitDone);
        lock(&shared.policies).apply(watcher::Event::InitDone);
        for (_, table) in &shared.objects {
            lock(table).apply(watcher::Event::InitDone);
        }
        cluster
    }

    /// Brings an event of the watch of pods.
    #[cfg(test)]
    pub(crate) fn bring(&self, event: watcher::Event<Pod>) {
        lock(&self.shared.pods).apply(event);
    }

    /// Brings an event of the watch of nodes.
    #[cfg(test)]
    pub(crate) fn bring_node(&self, event: watcher::Event<Node>) {
        lock(&self.shared.nodes).apply(event);
    }

    /// Brings an event of the watch of one of Calico's kinds.
    #[cfg(test)]
    pub(crate) fn bring_object(&self, kind: &str, event: watcher::Event<PolicyObject>) {
        let mut tables = self.shared.objects.iter();
        let (_, table) = tables.find(|(row, _)| row.kind == kind).unwrap();
        lock(table).apply(event);
    }

    /// Signals every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// All pods, or `None` before the first listing.
    pub(crate) fn pods(&self) -> Option<Vec<Arc<Pod>>> {
        lock(&self.shared.pods).all()
    }

    /// A pod.
    pub(crate) fn pod(&self, key: &Key) -> Option<Arc<Pod>> {
        lock(&self.shared.pods).objects.get(key).cloned()
    }

    /// A node.
    pub(crate) fn node(&self, name: &str) -> Option<Arc<Node>> {
        lock(&self.shared.nodes)
            .objects
            .get(&(String::new(), name.to_owned()))
            .cloned()
    }

    /// Everything that policy depends on and that changed since the last call, or `None` before the first listings.
    pub(crate) fn take_changes(&self) -> Option<Changes> {
        let shared = &self.shared;
        let listed = lock(&shared.pods).listed
            && lock(&shared.namespaces).listed
            && lock(&shared.nodes).listed
            && lock(&shared.accounts).listed
            && lock(&shared.slices).listed
            && lock(&shared.policies).listed
            && shared.objects.iter().all(|(_, table)| lock(table).listed);
        if !listed {
            return None;
        }
        let mut objects = Vec::new();
        for (_, table) in &shared.objects {
            objects.extend(lock(table).take_changes());
        }
        let mut slices = lock(&shared.slices);
        let slices_changed = !slices.take_changes().is_empty();
        Some(Changes {
            pods: lock(&shared.pods).take_changes(),
            namespaces: lock(&shared.namespaces).take_changes(),
            nodes: lock(&shared.nodes).take_changes(),
            accounts: lock(&shared.accounts).take_changes(),
            slices: slices_changed.then(|| slices.objects.values().cloned().collect()),
            policies: lock(&shared.policies).take_changes(),
            objects,
        })
    }

    /// Reads the policies that apply in `namespace`, the namespace itself and its service accounts from the API, so
    /// that a pod created after a policy is never judged without it, however late the watch is.
    pub(crate) async fn refresh(&self, client: &Client, namespace: &str) -> Result<(), kube::Error> {
        let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let everything = ListParams::default();
        let needed = self.shared.objects.iter();
        let needed = needed.filter(|(row, _)| policy_objects::is_needed_at_start(row));
        let objects = needed.map(async |(row, table)| {
            let api: Api<PolicyObject> = match row.namespaced() {
                true => Api::namespaced_with(client.clone(), namespace, row),
                false => Api::all_with(client.clone(), row),
            };
            Ok((table, api.list(&ListParams::default()).await?))
        });
        let (policies, accounts, found, objects) = futures::try_join!(
            policies.list(&everything),
            accounts.list(&everything),
            namespaces.get_opt(namespace),
            try_join_all(objects),
        )?;
        let mut changed = false;
        changed |= newer(&self.shared.policies, policies);
        changed |= newer(&self.shared.accounts, accounts);
        changed |= newer(&self.shared.namespaces, found);
        for (table, objects) in objects {
            changed |= newer(table, objects);
        }
        if changed {
            self.shared.version.send_modify(|version| *version += 1);
        }
        Ok(())
    }

    fn follow_all<K>(&self, client: &Client, table: &Arc<Mutex<Table<K>>>, shutdown: &CancellationToken)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        self.follow(Api::all(client.clone()), &K::kind(&()), table, shutdown);
    }

    fn follow<K>(&self, api: Api<K>, kind: &str, table: &Arc<Mutex<Table<K>>>, shutdown: &CancellationToken)
    where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let (shared, table, shutdown) = (self.shared.clone(), Arc::clone(table), shutdown.clone());
        let kind = kind.to_owned();
        let mut events = watcher(api, watcher::Config::default())
            .backoff(api_client::watch_again())
            .boxed();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.try_next() => event,
                    () = shutdown.cancelled() => return,
                };
                match event {
                    Ok(Some(event)) => {
                        if lock(&table).apply(event) {
                            shared.version.send_modify(|version| *version += 1);
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, kind, "watch failed, will retry");
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
        if let watcher::Event::Apply(object) | watcher::Event::Delete(object) = &event {
            let revision = revision(object);
            self.seen = self.seen.max(revision);
            self.apart.remove(&key(object));
            // Revisions come in order: what the watch should have brought by now and did not was gone when it began.
            let gone: Vec<Key> = self
                .apart
                .extract_if(.., |_, apart| *apart < revision)
                .map(|(key, _)| key)
                .collect();
            for key in gone {
                self.take(&key);
            }
        }
        match event {
            watcher::Event::Apply(object) => {
                self.put(Arc::new(object));
                true
            }
            watcher::Event::Delete(object) => self.take(&key(&object)),
            watcher::Event::Init => {
                self.listing.clear();
                // The listing is made after this, so it knows better than what was read before.
                self.apart.clear();
                false
            }
            watcher::Event::InitApply(object) => {
                self.listing.insert(key(&object), Arc::new(object));
                false
            }
            watcher::Event::InitDone => {
                let mut now = std::mem::take(&mut self.listing);
                let listed = now.values().map(|object| revision(object.as_ref())).max();
                let listed = listed.unwrap_or(0);
                // What was read while the listing was made is no older than it, if it is newer than all of it.
                self.apart.retain(|_, apart| *apart > listed);
                now.retain(|key, _| !self.apart.contains_key(key));
                let gone: Vec<Key> = self
                    .objects
                    .keys()
                    .filter(|key| !now.contains_key(*key) && !self.apart.contains_key(*key))
                    .cloned()
                    .collect();
                for key in gone {
                    self.take(&key);
                }
                self.seen = self.seen.max(listed);
                for object in now.into_values() {
                    self.put(object);
                }
                self.listed = true;
                true
            }
        }
    }

    fn put(&mut self, object: Arc<K>) {
        let key = key(object.as_ref());
        self.changed.insert(key.clone(), Arc::clone(&object));
        self.objects.insert(key, object);
    }

    /// Whether it was there.
    fn take(&mut self, key: &Key) -> bool {
        let Some(object) = self.objects.remove(key) else {
            return false;
        };
        self.changed.insert(key.clone(), object);
        true
    }

    fn take_changes(&mut self) -> Vec<(Key, Change<K>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        let changed = changed.map(|(key, last)| {
            let change = match self.objects.get(&key) {
                Some(now) => Change::Is(Arc::clone(now)),
                None => Change::Went(last),
            };
            (key, change)
        });
        changed.collect()
    }

    /// Takes an object that was read apart from the watch, unless the watch is past it: then it has brought the
    /// object, or it has also brought that the object is gone.
    fn newer(&mut self, object: K) -> bool {
        let known = self
            .objects
            .get(&key(&object))
            .map_or(0, |known| revision(known.as_ref()));
        if revision(&object) <= known.max(self.seen) {
            return false;
        }
        self.apart.insert(key(&object), revision(&object));
        self.put(Arc::new(object));
        true
    }
}

/// Takes what was read apart from the watch; whether readers see a difference.
fn newer<K: Resource>(table: &Mutex<Table<K>>, objects: impl IntoIterator<Item = K>) -> bool {
    let mut table = lock(table);
    let mut changed = false;
    for object in objects {
        changed |= table.newer(object);
    }
    changed
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// Palisade's resource versions are revisions: numbers that grow with every write to the store.
pub(crate) fn revision<K: Resource>(object: &K) -> u64 {
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
    fn each_change_is_handed_out_once_and_a_new_listing_brings_those_that_were_missed() {
        let said = |table: &mut Table<Namespace>| -> Vec<String> {
            let changes = table.take_changes().into_iter();
            let said = changes.map(|((_, name), change)| match change {
                Change::Is(now) => format!("{name} {}", revision(now.as_ref())),
                Change::Went(_) => format!("{name} went"),
            });
            said.collect()
        };
        let mut table = Table::default();
        table.apply(watcher::Event::Init);
        for name in ["a", "b"] {
            table.apply(watcher::Event::InitApply(namespace(name, "1")));
        }
        assert_eq!(said(&mut table), [] as [&str; 0]);
        table.apply(watcher::Event::InitDone);
        assert_eq!(said(&mut table), ["a 1", "b 1"]);
        table.apply(watcher::Event::Apply(namespace("a", "2")));
        table.apply(watcher::Event::Apply(namespace("a", "3")));
        table.apply(watcher::Event::Delete(namespace("b", "4")));
        table.apply(watcher::Event::Delete(namespace("c", "5")));
        assert_eq!(said(&mut table), ["a 3", "b went"]);
        assert_eq!(said(&mut table), [] as [&str; 0]);
        // Another listing: `a` went and `b` came back while nobody watched.
        table.apply(watcher::Event::Init);
        table.apply(watcher::Event::InitApply(namespace("b", "6")));
        table.apply(watcher::Event::InitDone);
        assert_eq!(said(&mut table), ["a went", "b 6"]);
    }

    #[test]
    fn what_was_read_apart_does_not_go_back_in_time() {
        let mut table = Table::default();
        table.apply(watcher::Event::Apply(namespace("a", "10")));
        assert!(!table.newer(namespace("a", "9")));
        assert!(table.newer(namespace("a", "11")));
        assert!(table.newer(namespace("b", "12")));
        assert!(!table.newer(namespace("b", "12")), "known already");
        table.apply(watcher::Event::Delete(namespace("c", "15")));
        assert!(
            !table.newer(namespace("c", "14")),
            "read before it was deleted, taken after"
        );
    }

    /// A pod's policies are read while the watch begins again: the listing, older than that, does not take them back.
    #[test]
    fn a_listing_does_not_take_back_what_was_read_while_it_was_made() {
        let relisted = |apart: &[(&str, &str)]| {
            let mut table = Table::default();
            table.apply(watcher::Event::Apply(namespace("a", "10")));
            table.apply(watcher::Event::Init);
            for (name, revision) in apart {
                assert!(table.newer(namespace(name, revision)));
            }
            table.apply(watcher::Event::InitApply(namespace("a", "10")));
            table.apply(watcher::Event::InitDone);
            table
        };
        let mut table = relisted(&[("a", "11"), ("b", "12")]);
        assert_eq!(names(&table).unwrap(), ["a", "b"]);
        let of_a = table.objects.get(&(String::new(), "a".to_owned()));
        assert_eq!(of_a.map(|a| revision(a.as_ref())), Some(11));
        // The watch brings what it missed, and they stay.
        table.apply(watcher::Event::Apply(namespace("a", "11")));
        table.apply(watcher::Event::Apply(namespace("b", "12")));
        table.apply(watcher::Event::Apply(namespace("c", "13")));
        assert_eq!(names(&table).unwrap(), ["a", "b", "c"]);

        // `b` was deleted before the listing was made: the watch never brings it, and is past it.
        let mut table = relisted(&[("b", "12")]);
        table.apply(watcher::Event::Apply(namespace("c", "14")));
        assert_eq!(names(&table).unwrap(), ["a", "c"]);

        // What was read before the listing began is gone if that does not have it.
        let mut table = relisted(&[("b", "12")]);
        table.apply(watcher::Event::Init);
        table.apply(watcher::Event::InitApply(namespace("a", "10")));
        table.apply(watcher::Event::InitDone);
        assert_eq!(names(&table).unwrap(), ["a"]);
    }

    #[test]
    fn a_listing_of_less_does_not_forget_how_far_the_watch_was() {
        let mut table = Table::default();
        table.apply(watcher::Event::Apply(namespace("a", "10")));
        table.apply(watcher::Event::Delete(namespace("a", "20")));
        table.apply(watcher::Event::Init);
        table.apply(watcher::Event::InitDone);
        assert!(!table.newer(namespace("a", "19")), "read before it was deleted");
    }
}
