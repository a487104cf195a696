//! Which pods there are on this node, for those who decide which of them have to go: the API's word, and what was kept of
//! pods that it has said nothing of.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Pod;

use super::{directory::Directory, kept};
use crate::{cluster::Cluster, config::Config};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Roster {
    cluster: Cluster,
    directory: Directory,
    config: Arc<Config>,
}

impl Roster {
    pub(crate) fn new(cluster: Cluster, directory: Directory, config: Arc<Config>) -> Self {
        Self {
            cluster,
            directory,
            config,
        }
    }

    /// The pods of this node, by UID. Those that have a sandbox are among them also while the API has not said yet which
    /// there are, and when it has one no more that still runs.
    pub(crate) fn pods(&self) -> BTreeMap<String, Arc<Pod>> {
        let node = Some(self.config.node_name.as_str());
        let bound = self.cluster.pods().unwrap_or_default().into_iter();
        let own = bound.filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == node);
        let mut pods: BTreeMap<String, Arc<Pod>> = own
            .filter_map(|pod| Some((pod.metadata.uid.clone()?, pod)))
            .collect();
        for entry in self.directory.all() {
            if pods.contains_key(&entry.id.uid) {
                continue;
            }
            if let Some(pod) = kept::read(&entry.id.directory(&self.config)) {
                pods.insert(entry.id.uid, Arc::new(pod));
            }
        }
        pods
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use kube::runtime::watcher;
    use serde_json::json;

    use super::*;
    use crate::pods::{
        PodId,
        directory::{Entry, Latest},
    };

    /// A pod of node `n` with a container that runs.
    pub(crate) fn pod(uid: &str, priority: i32) -> Pod {
        let pod = json!({
            "metadata": {"name": uid, "namespace": "ns", "uid": uid},
            "spec": {"nodeName": "n", "priority": priority, "containers": [{"name": "main"}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    /// As an agent that is started finds it.
    pub(crate) fn found(pod: &Pod, running: bool) -> Entry {
        Entry {
            id: PodId::of(pod).unwrap(),
            containers: [("main".to_owned(), Latest::for_tests(running))].into(),
        }
    }

    /// A roster below `base` with pods that an earlier agent has started, while the API says nothing.
    pub(crate) fn unheard(base: &Path, pods: &[Pod]) -> (Roster, Directory) {
        let config = Arc::new(Config::below(base));
        let directory = Directory::default();
        for pod in pods {
            let entry = found(pod, true);
            kept::write(&entry.id.directory(&config), pod, None).unwrap();
            directory.publish_for_tests(&entry);
        }
        (
            Roster::new(Cluster::unwatched(), directory.clone(), config),
            directory,
        )
    }

    #[test]
    fn pods_are_known_before_the_api_is_heard() {
        let base = tempfile::tempdir().unwrap();
        let (roster, directory) = unheard(base.path(), &[pod("a", 1), pod("b", 2)]);
        // Nothing was kept of this one: there is nothing to decide by.
        directory.publish_for_tests(&found(&pod("c", 3), true));
        let priorities = || -> Vec<(String, Option<i32>)> {
            let pods = roster.pods().into_iter();
            pods.map(|(uid, pod)| (uid, pod.spec.as_ref().unwrap().priority))
                .collect()
        };
        assert_eq!(
            priorities(),
            [("a".to_owned(), Some(1)), ("b".to_owned(), Some(2))]
        );

        // What the API says counts more, and pods of other nodes are theirs.
        let mut elsewhere = pod("d", 4);
        elsewhere.spec.as_mut().unwrap().node_name = Some("m".to_owned());
        roster.cluster.bring(watcher::Event::Init);
        for pod in [pod("a", 7), pod("new", 8), elsewhere] {
            roster.cluster.bring(watcher::Event::InitApply(pod));
        }
        roster.cluster.bring(watcher::Event::InitDone);
        let expected = [("a", 7), ("b", 2), ("new", 8)];
        assert_eq!(
            priorities(),
            expected.map(|(uid, priority)| (uid.to_owned(), Some(priority)))
        );
    }

    #[test]
    fn what_was_kept_has_the_newest_status_and_is_roots_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("u");
        let mut object = pod("u", 0);
        object.status.get_or_insert_default().phase = Some("Pending".to_owned());
        kept::write(&directory, &object, None).unwrap();
        assert_eq!(kept::read(&directory), Some(object.clone()));
        let mut reported = object.status.clone().unwrap();
        reported.phase = Some("Running".to_owned());
        kept::write(&directory, &object, Some(&reported)).unwrap();
        assert_eq!(kept::read(&directory).unwrap().status, Some(reported));
        let mode = std::fs::metadata(directory.join("pod.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(directory.join("pod.json"), "{\"metadata\":").unwrap();
        assert_eq!(kept::read(&directory), None);
    }
}
