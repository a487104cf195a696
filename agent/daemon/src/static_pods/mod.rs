//! Static pods: what files on this node ask for, as pods of the API.
//!
//! A file is not enough to run anything: images run because the image gate let them through, and the gate is a part of
//! admission. So for each file the agent asks the API for a *mirror pod*, which is admitted as any other, and runs exactly
//! what was admitted. What was admitted is kept on this node's disk ([`admitted`]), and from then on the pod also starts while
//! the API cannot be reached. A file whose pod was never admitted starts nothing.
//!
//! The mirror pod is the pod: its status, logs and sessions are the API's. One that is deleted there ends, and is made anew,
//! which begins when it has ended; only its file takes it away.
//!
//! Entry point: [`StaticPods::start`].

mod admitted;
mod files;
mod manifest;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::annotations::CONFIG_MIRROR;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{admitted::Admitted, manifest::Manifest};
use crate::{cluster::Cluster, config::Config, policy::chain};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

type Key = (String, String);

/// The pods that files ask for and that were admitted. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StaticPods {
    pods: Arc<Mutex<BTreeMap<Key, Arc<Pod>>>>,
    version: watch::Sender<u64>,
}

/// What is to be done about one pod.
#[derive(Debug, PartialEq)]
enum Action {
    /// Ask the API for it.
    Create(Key),
    /// Take it away: its file says something else, or is gone.
    Delete { key: Key, uid: String },
    /// Keep what was admitted.
    Remember(Key),
    /// Somebody else's pod has the name.
    Taken(Key),
}

/// Whether `pod` stands for a file of its node.
pub(crate) fn is_static(pod: &Pod) -> bool {
    mirror_hash(pod).is_some()
}

impl StaticPods {
    /// Begins to look at the files of `config`; those that were admitted before are known when this returns.
    pub(crate) async fn start(
        client: Client,
        cluster: Cluster,
        config: &Config,
        shutdown: CancellationToken,
    ) -> Self {
        let pods = Self {
            pods: Arc::default(),
            version: watch::channel(0).0,
        };
        let mut keeper = Keeper {
            client,
            cluster,
            directory: config.static_pod_dir(),
            node: config.node_name.clone(),
            admitted: Admitted::new(config.admitted_dir()),
            pods: pods.clone(),
            wanted: BTreeMap::new(),
            told: BTreeMap::new(),
        };
        keeper.look().await;
        tokio::spawn(async move {
            let mut changes = keeper.cluster.changes();
            loop {
                keeper.reconcile().await;
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    changed = changes.changed() => {
                        if changed.is_err() { return }
                        // Most changes are about others; many of them are one.
                        tokio::time::sleep(LOOK_EVERY / 10).await;
                        changes.borrow_and_update();
                    }
                    () = shutdown.cancelled() => return,
                }
                keeper.look().await;
            }
        });
        pods
    }

    /// Those that may run whether or not the API answers.
    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.lock().values().cloned().collect()
    }

    /// Signals every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn set(&self, pods: BTreeMap<Key, Arc<Pod>>) {
        let mut known = self.lock();
        if *known == pods {
            return;
        }
        *known = pods;
        drop(known);
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that looks at files and at the API.
struct Keeper {
    client: Client,
    cluster: Cluster,
    directory: PathBuf,
    node: String,
    admitted: Admitted,
    pods: StaticPods,
    /// What the files ask for, as they were last read.
    wanted: BTreeMap<Key, Manifest>,
    /// What was last said about a file or a pod, so that it is said once.
    told: BTreeMap<String, String>,
}

impl Keeper {
    /// Reads the files. While they cannot be read, what they said before holds.
    async fn look(&mut self) {
        let directory = self.directory.clone();
        let read = tokio::task::spawn_blocking(move || files::read(&directory)).await;
        let found = match read {
            Ok(Ok(found)) => found.unwrap_or_default(),
            Ok(Err(error)) => return self.tell("the directory", chain(&error)),
            Err(error) => return self.tell("the directory", error.to_string()),
        };
        let mut wanted: BTreeMap<Key, Manifest> = BTreeMap::new();
        for (path, text) in found {
            let shown = path.display().to_string();
            let read = text
                .map_err(|error| chain(&error))
                .and_then(|text| manifest::parse(&text, &self.node).map_err(|error| chain(&error)));
            match read {
                Ok(manifest) if wanted.contains_key(&manifest.key) => {
                    self.tell(
                        &shown,
                        format!("another file asks for pod {:?} too", manifest.key),
                    );
                }
                Ok(manifest) => {
                    self.told.remove(&shown);
                    wanted.insert(manifest.key.clone(), manifest);
                }
                Err(problem) => self.tell(&shown, problem),
            }
        }
        self.wanted = wanted;
        self.publish();
    }

    /// Hands out what was admitted of what is wanted.
    fn publish(&self) {
        let admitted = self.wanted.values().filter_map(|manifest| {
            let pod = self.admitted.find(&manifest.key, &manifest.hash)?;
            Some((manifest.key.clone(), Arc::new(pod)))
        });
        self.pods.set(admitted.collect());
    }

    async fn reconcile(&mut self) {
        let Some(pods) = self.cluster.pods() else { return };
        let present: BTreeMap<Key, Arc<Pod>> = pods
            .into_iter()
            .filter_map(|pod| Some((key_of(&pod)?, pod)))
            .filter(|(key, pod)| self.wanted.contains_key(key) || is_own(pod, &self.node))
            .collect();
        for action in plan(&self.wanted, &present, &self.node) {
            let (shown, result) = match action {
                Action::Create(key) => (format!("{}/{}", key.0, key.1), self.create(&key).await),
                Action::Delete { key, uid } => (format!("{}/{}", key.0, key.1), self.delete(&key, uid).await),
                Action::Remember(key) => {
                    let pod = present.get(&key).map(Arc::as_ref);
                    let kept = pod.map(|pod| self.admitted.keep(&key, pod)).transpose();
                    (
                        format!("{}/{}", key.0, key.1),
                        kept.map(drop).map_err(|error| chain(&error)),
                    )
                }
                Action::Taken(key) => (
                    format!("{}/{}", key.0, key.1),
                    Err("a pod of this name exists that is not of a file of this node".to_owned()),
                ),
            };
            match result {
                Ok(()) => drop(self.told.remove(&shown)),
                Err(problem) => self.tell(&shown, problem),
            }
        }
        let wanted = self.wanted.keys().cloned().collect();
        if let Err(error) = self.admitted.forget_others(&wanted) {
            self.tell("what was admitted", chain(&error));
        }
        self.publish();
    }

    async fn create(&self, key: &Key) -> Result<(), String> {
        let Some(manifest) = self.wanted.get(key) else {
            return Ok(());
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        match pods.create(&PostParams::default(), &manifest.pod).await {
            // The watch has not brought it yet.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            created => created.map(drop).map_err(|error| chain(&error)),
        }
    }

    async fn delete(&self, key: &Key, uid: String) -> Result<(), String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match pods.delete(&key.1, &parameters).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            deleted => deleted.map(drop).map_err(|error| chain(&error)),
        }
    }

    fn tell(&mut self, about: &str, problem: String) {
        if self.told.get(about) != Some(&problem) {
            tracing::warn!(about, problem, "static pod");
            self.told.insert(about.to_owned(), problem);
        }
    }
}

/// Compares what files ask for with the pods that have these names or stand for files of this node.
fn plan(wanted: &BTreeMap<Key, Manifest>, present: &BTreeMap<Key, Arc<Pod>>, node: &str) -> Vec<Action> {
    let mut actions = Vec::new();
    for (key, manifest) in wanted {
        let action = match present.get(key) {
            None => Action::Create(key.clone()),
            Some(pod) if !is_own(pod, node) => Action::Taken(key.clone()),
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => continue,
            Some(pod) if mirror_hash(pod) == Some(&manifest.hash) => Action::Remember(key.clone()),
            Some(pod) => Action::Delete {
                key: key.clone(),
                uid: pod.metadata.uid.clone().unwrap_or_default(),
            },
        };
        actions.push(action);
    }
    for (key, pod) in present {
        if !wanted.contains_key(key) && is_own(pod, node) && pod.metadata.deletion_timestamp.is_none() {
            actions.push(Action::Delete {
                key: key.clone(),
                uid: pod.metadata.uid.clone().unwrap_or_default(),
            });
        }
    }
    actions
}

fn key_of(pod: &Pod) -> Option<Key> {
    Some((pod.metadata.namespace.clone()?, pod.metadata.name.clone()?))
}

/// Whether `pod` stands for a file of the node called `node`.
pub(crate) fn is_own(pod: &Pod, node: &str) -> bool {
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    is_static(pod) && bound == Some(node)
}

fn mirror_hash(pod: &Pod) -> Option<&String> {
    pod.metadata.annotations.as_ref()?.get(CONFIG_MIRROR)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        ("kube-system".to_owned(), name.to_owned())
    }

    fn pod(name: &str, node: &str, hash: Option<&str>, deleted: bool) -> (Key, Arc<Pod>) {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "kube-system", "uid": format!("uid-{name}"),
                "annotations": hash.map(|hash| json!({"kubernetes.io/config.mirror": hash})),
                "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z")},
            "spec": {"nodeName": node, "containers": []},
        }));
        (key(name), Arc::new(pod.unwrap()))
    }

    fn wanted(names: &[&str]) -> BTreeMap<Key, Manifest> {
        let manifest = |name: &&str| {
            let manifest = Manifest {
                key: key(name),
                hash: "h".to_owned(),
                pod: Pod::default(),
            };
            (key(name), manifest)
        };
        names.iter().map(manifest).collect()
    }

    #[test]
    fn files_decide_which_pods_there_are() {
        let present = [
            pod("same-n", "n", Some("h"), false),
            pod("changed-n", "n", Some("other"), false),
            pod("going-n", "n", Some("other"), true),
            pod("orphan-n", "n", Some("h"), false),
            pod("dying-n", "n", Some("h"), true),
            pod("foreign-n", "n", None, false),
            pod("elsewhere-n", "m", Some("h"), false),
        ];
        let wanted = wanted(&[
            "new-n",
            "same-n",
            "changed-n",
            "going-n",
            "foreign-n",
            "elsewhere-n",
        ]);
        let mut actions = plan(&wanted, &present.into(), "n");
        actions.sort_by_key(|action| format!("{action:?}"));
        let delete = |name: &str| Action::Delete {
            key: key(name),
            uid: format!("uid-{name}"),
        };
        let expected = [
            Action::Create(key("new-n")),
            delete("changed-n"),
            delete("orphan-n"),
            Action::Remember(key("same-n")),
            Action::Taken(key("elsewhere-n")),
            Action::Taken(key("foreign-n")),
        ];
        assert_eq!(actions, expected);
    }
}
