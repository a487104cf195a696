//! Where the containers of the node's pods are, for those who ask about them: log readers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::PodId;

/// What is known of the pods of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Directory {
    pods: Arc<Mutex<BTreeMap<(String, String), Entry>>>,
    /// Raised with every change.
    version: watch::Sender<u64>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: PodId,
    pub(crate) containers: BTreeMap<String, Latest>,
}

/// The latest run of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Latest {
    /// Number of the run; its log file is named after it.
    pub(crate) attempt: u32,
    /// Whether it runs.
    pub(crate) running: bool,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            pods: Arc::default(),
            version: watch::channel(0).0,
        }
    }
}

impl Directory {
    pub(crate) fn find(&self, namespace: &str, pod: &str) -> Option<Entry> {
        self.pods().get(&(namespace.to_owned(), pod.to_owned())).cloned()
    }

    /// Every pod.
    pub(crate) fn all(&self) -> Vec<Entry> {
        self.pods().values().cloned().collect()
    }

    /// Signals every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn publish(&self, entry: &Entry) {
        let key = (entry.id.namespace.clone(), entry.id.name.clone());
        let changed = self
            .pods()
            .insert(key, entry.clone())
            .is_none_or(|before| before != *entry);
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// As the pod's task does.
    #[cfg(test)]
    pub(crate) fn publish_for_tests(&self, entry: &Entry) {
        self.publish(entry);
    }

    /// Removes the pod, unless a new one has taken its name meanwhile.
    pub(super) fn remove(&self, id: &PodId) {
        let key = (id.namespace.clone(), id.name.clone());
        let mut pods = self.pods();
        if pods.get(&key).is_some_and(|entry| entry.id == *id) {
            pods.remove(&key);
            drop(pods);
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// A panic cannot leave the map half-changed: every change is one insertion or removal.
    fn pods(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
