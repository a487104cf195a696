//! Which pods of the node's files run beside those that the API has, and when. Pure.
//!
//! What was admitted of a file runs also if the API does not have it: perhaps nobody could ask it yet. But once it has had a pod
//! of that name, its word counts: what is gone from there was deleted, and its successor is on the way.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::Pod;

use super::PodId;
use crate::static_pods::{is_own, is_static};

/// Namespace and name.
type Name = (Option<String>, Option<String>);

/// The names of this node's static pods that the API has had since the agent was started.
#[derive(Default)]
pub(super) struct OfFiles {
    heard: BTreeSet<Name>,
}

impl OfFiles {
    /// Those of the `admitted` that run beside `pods`, which are all that the API has now.
    pub(super) fn beside(&mut self, pods: &[Arc<Pod>], admitted: Vec<Arc<Pod>>, node: &str) -> Vec<Arc<Pod>> {
        let own = pods.iter().filter(|pod| is_own(pod, node));
        self.heard.extend(own.map(|pod| name(pod)));
        let present: BTreeSet<Name> = pods.iter().map(|pod| name(pod)).collect();
        let unheard = |pod: &Arc<Pod>| !present.contains(&name(pod)) && !self.heard.contains(&name(pod));
        admitted.into_iter().filter(unheard).collect()
    }
}

/// Whether a pod of a file has to wait for another one of its name, which has the same ports and paths of the node and has not
/// ended yet. `present` are those with a task, and those that run without one.
pub(super) fn waits(pod: &Pod, id: &PodId, mut present: impl Iterator<Item = PodId>) -> bool {
    let is_before =
        |other: PodId| other.uid != id.uid && other.namespace == id.namespace && other.name == id.name;
    is_static(pod) && present.any(is_before)
}

fn name(pod: &Pod) -> Name {
    (pod.metadata.namespace.clone(), pod.metadata.name.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, is_static: bool) -> Arc<Pod> {
        let annotation = match is_static {
            true => "kubernetes.io/config.mirror",
            false => "other",
        };
        let pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": uid, "annotations": {annotation: "h"}},
            "spec": {"nodeName": "n", "containers": []},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_deleted_pod_of_a_file_does_not_run_again_before_its_successor() {
        let mut of_files = OfFiles::default();
        let mut beside = |pods: &[&Arc<Pod>], admitted: &[&Arc<Pod>]| {
            let all = |pods: &[&Arc<Pod>]| pods.iter().map(|pod| Arc::clone(pod)).collect::<Vec<_>>();
            let beside = of_files.beside(&all(pods), all(admitted), "n");
            let uids = beside.iter().map(|pod| pod.metadata.uid.clone().unwrap());
            uids.collect::<Vec<_>>()
        };
        let (old, new) = (pod("web-n", "old", true), pod("web-n", "new", true));
        let never = pod("never-n", "never", true);
        let stranger = pod("never-n", "stranger", false);
        // The API does not have it, but neither did this agent hear that it ever had.
        assert_eq!(beside(&[], &[&old, &never]), ["old", "never"]);
        assert_eq!(beside(&[&old], &[&old, &never]), ["never"]);
        // Deleted, and nobody has asked for its successor yet; then that is deleted before it is kept.
        assert_eq!(beside(&[], &[&old, &never]), ["never"]);
        assert_eq!(beside(&[&new], &[&old, &never]), ["never"]);
        assert_eq!(beside(&[], &[&old, &never]), ["never"]);
        assert_eq!(beside(&[], &[&new, &never]), ["never"]);
        // The file said something else in between.
        assert!(beside(&[], &[]).is_empty());
        assert!(beside(&[], &[&old]).is_empty());
        // Somebody else's pod has the name, for a while.
        assert!(beside(&[&stranger], &[&never]).is_empty());
        assert_eq!(beside(&[], &[&never]), ["never"]);
    }

    #[test]
    fn a_pod_of_a_file_waits_until_the_one_before_it_has_ended() {
        let id = |name: &str, uid: &str| PodId {
            uid: uid.to_owned(),
            namespace: "ns".to_owned(),
            name: name.to_owned(),
        };
        let new = id("web-n", "new");
        let waits = |is_static, present: &[PodId]| {
            waits(&pod("web-n", "new", is_static), &new, present.iter().cloned())
        };
        let (old, other) = (id("web-n", "old"), id("other-n", "other"));
        assert!(waits(true, &[other.clone(), old.clone()]));
        assert!(!waits(true, &[other, new.clone()]));
        assert!(!waits(false, &[old]), "as with the kubelet, others do not");
    }
}
