//! Where the containers of the node's pods are, for those who ask about them: log readers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{ContainerState, PodStatus};
use tokio::sync::watch;

use super::PodId;

/// What is known of the pods of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Directory {
    pods: Arc<Mutex<Pods>>,
    /// Raised with every change.
    version: watch::Sender<u64>,
}

/// By UID: while a pod ends there may be another of its name.
#[derive(Default)]
struct Pods {
    entries: BTreeMap<String, (u64, Entry)>,
    /// Number of the last pod that came: the higher, the newer.
    last: u64,
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
    /// Whether the next run is waited for, as the API was told. Then this one, which has ended, is the one before.
    pub(crate) waits: bool,
}

impl Latest {
    /// The run whose log is asked for: the latest, or the one that the API tells of as the container's last state.
    pub(crate) fn run(self, previous: bool) -> Option<u32> {
        match previous && !self.waits {
            true => self.attempt.checked_sub(1),
            false => Some(self.attempt),
        }
    }
}

/// Whether a container that has run waits for its next run by that status.
pub(super) fn waits(status: Option<&PodStatus>, name: &str) -> bool {
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    let mains = status.and_then(|status| status.container_statuses.as_ref());
    let mut all = inits.into_iter().chain(mains).flatten();
    let status = all.find(|status| status.name == name);
    let has = |state: Option<&ContainerState>, is: fn(&ContainerState) -> bool| state.is_some_and(is);
    status.is_some_and(|status| {
        has(status.state.as_ref(), |state| state.waiting.is_some())
            && has(status.last_state.as_ref(), |state| state.terminated.is_some())
    })
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
    /// The pod of that name; the newest, if there are several.
    pub(crate) fn find(&self, namespace: &str, pod: &str) -> Option<Entry> {
        let pods = self.pods();
        let named = pods
            .entries
            .values()
            .filter(|(_, entry)| entry.id.namespace == namespace && entry.id.name == pod);
        let newest = named.max_by_key(|(number, _)| *number);
        newest.map(|(_, entry)| entry.clone())
    }

    /// The pod with that UID.
    pub(crate) fn entry(&self, uid: &str) -> Option<Entry> {
        self.pods().entries.get(uid).map(|(_, entry)| entry.clone())
    }

    /// Every pod.
    pub(crate) fn all(&self) -> Vec<Entry> {
        let pods = self.pods();
        pods.entries.values().map(|(_, entry)| entry.clone()).collect()
    }

    /// Signals every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn publish(&self, entry: &Entry) {
        if self.pods().put(entry) {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// As the pod's task does.
    #[cfg(test)]
    pub(crate) fn publish_for_tests(&self, entry: &Entry) {
        self.publish(entry);
    }

    /// Removes the pod.
    pub(super) fn remove(&self, id: &PodId) {
        let removed = self.pods().entries.remove(&id.uid);
        if removed.is_some() {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// A panic cannot leave the map half-changed: every change is one insertion or removal.
    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods {
    /// Whether that is a change.
    fn put(&mut self, entry: &Entry) -> bool {
        if let Some((_, known)) = self.entries.get_mut(&entry.id.uid) {
            let changed = known != entry;
            known.clone_from(entry);
            return changed;
        }
        self.last += 1;
        let numbered = (self.last, entry.clone());
        self.entries.insert(entry.id.uid.clone(), numbered);
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    impl Latest {
        /// The first run.
        pub(crate) fn for_tests(running: bool) -> Self {
            Self {
                attempt: 0,
                running,
                waits: false,
            }
        }
    }

    #[test]
    fn the_previous_run_of_one_that_waits_is_the_one_that_has_crashed() {
        let terminated = json!({"terminated": {"exitCode": 1}});
        let told = |state: Value, last: Value| {
            let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [{
                "name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 2,
                "state": state, "lastState": last}]}))
            .unwrap();
            assert!(!waits(Some(&status), "other"));
            waits(Some(&status), "main")
        };
        let back_off = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert!(told(back_off.clone(), terminated.clone()));
        assert!(!told(json!({"running": {}}), terminated.clone()));
        assert!(!told(terminated.clone(), terminated), "it does not start again");
        assert!(!told(back_off, json!({})), "it has not run");
        assert!(!waits(None, "main"));

        let run = |attempt, waits, previous| {
            let latest = Latest {
                attempt,
                running: false,
                waits,
            };
            latest.run(previous)
        };
        assert_eq!([run(2, true, true), run(2, true, false)], [Some(2), Some(2)]);
        assert_eq!([run(2, false, true), run(2, false, false)], [Some(1), Some(2)]);
        // One crash, and then something else keeps it from starting.
        assert_eq!(run(0, true, true), Some(0));
        assert_eq!(run(0, false, true), None);
    }

    fn entry(uid: &str, running: bool) -> Entry {
        Entry {
            id: PodId {
                uid: uid.to_owned(),
                namespace: "ns".to_owned(),
                name: "web-0".to_owned(),
            },
            containers: [("main".to_owned(), Latest::for_tests(running))].into(),
        }
    }

    #[test]
    fn a_pod_that_ends_does_not_hide_the_one_that_has_its_name() {
        let directory = Directory::default();
        directory.publish(&entry("z-old", true));
        directory.publish(&entry("new", true));
        // The old pod's task lives on and speaks of it.
        directory.publish(&entry("z-old", false));
        assert_eq!(directory.find("ns", "web-0"), Some(entry("new", true)));
        assert_eq!(directory.entry("z-old"), Some(entry("z-old", false)));
        assert_eq!(directory.all().len(), 2);
        directory.remove(&entry("z-old", false).id);
        assert_eq!(directory.find("ns", "web-0"), Some(entry("new", true)));
        directory.remove(&entry("new", true).id);
        assert_eq!(
            (directory.find("ns", "web-0"), directory.all()),
            (None, Vec::new())
        );
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let directory = Directory::default();
        let mut changes = directory.changes();
        let mut changed = || {
            let changed = changes.has_changed().unwrap();
            changes.borrow_and_update();
            changed
        };
        directory.publish(&entry("u", true));
        assert!(changed());
        directory.publish(&entry("u", true));
        assert!(!changed());
        directory.publish(&entry("u", false));
        assert!(changed());
        directory.remove(&entry("u", false).id);
        assert!(changed());
        directory.remove(&entry("u", false).id);
        assert!(!changed());
    }
}
